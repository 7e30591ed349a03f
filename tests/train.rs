//! `ofa train` through the binary; kills and signals are in `survive.rs`.

mod common;

use common::{changed, fails, metrics, small_configuration, succeeds, weights, write_two_classes};
use std::fs;
use std::path::Path;

#[test]
fn training_from_an_edited_configuration_on_an_image_folder_resumes() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    write_two_classes(&folder.join("images"), 24, 6);
    let config =
        succeeds(folder, &["config", "--preset", "tiny", "--epochs", "6", "--batch", "8", "--validation", "8"]);
    fs::write(folder.join("my.toml"), &config).unwrap();
    let train = ["train", "--config", "my.toml", "--data", "images", "--out", "run"];
    let out = succeeds(folder, &train);
    assert!(out.contains("supernet.safetensors written"), "{out}");
    assert!(!cfg!(target_os = "linux") || out.contains("peak memory "), "{out}");
    let weights = || fs::read(folder.join("run/checkpoints/supernet.safetensors")).unwrap();
    let first = weights();
    fails(folder, &train, &["--resume"]);
    succeeds(folder, &["train", "--out", "run", "--resume"]);
    assert!(first == weights(), "resuming a finished run changed its weights");
    let err = fails(folder, &["train", "--out", "run", "--resume", "--data", "nowhere"], &["nowhere"]);
    assert!(!err.contains("resume with"), "nothing had begun: {err}");

    fs::write(folder.join("my.toml"), config.replace("momentum", "momentun")).unwrap();
    fails(folder, &train, &["my.toml", "momentun"]);
    fails(folder, &["train", "--data", "nowhere", "--out", "r"], &["nowhere"]);
    fails(folder, &["train", "--space", "mbv4", "--out", "r"], &["mbv4", "cifar-mbv3"]);
    fails(folder, &["predictor", "--run", "nowhere"], &["nowhere"]);
    fs::write(folder.join("images/train/dark/3.png"), b"no image").unwrap();
    fails(folder, &["train", "--preset", "tiny", "--data", "images", "--validation", "8", "--out", "r"], &["3.png"]);
}

#[test]
fn how_many_subnets_are_computed_at_one_time_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    small_configuration(folder.path(), "two.toml", "0.6");
    let text = fs::read_to_string(folder.path().join("two.toml")).unwrap();
    for (name, number) in [("one.toml", "1"), ("none.toml", "0")] {
        let text = changed(&text, "subnets_at_once = 2", &format!("subnets_at_once = {number}"));
        fs::write(folder.path().join(name), text).unwrap();
    }
    for run in ["one", "two"] {
        succeeds(folder.path(), &["train", "--config", &format!("{run}.toml"), "--out", run]);
    }
    let [one, two] = ["one", "two"].map(|run| metrics(&folder.path().join(run)));
    assert!(one.iter().any(|line| line["stage"] == "width-2"), "{one:?}");
    assert_eq!(one, two);
    fails(folder.path(), &["train", "--config", "none.toml", "--out", "none"], &["subnets_at_once = 0"]);
}

#[test]
#[cfg(target_os = "linux")]
fn training_that_no_machine_can_hold_is_refused_before_it_starts() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_configuration(folder, "c.toml", "8");
    let text = fs::read_to_string(folder.join("c.toml")).unwrap();
    let mut table: toml::Table = toml::from_str(&text).unwrap();
    let space = table["space"].as_table_mut().unwrap();
    space.insert("width_multiplier".into(), 10.0.into());
    for key in ["feature_channels", "hidden_channels"] {
        space["head"].as_table_mut().unwrap().insert(key.into(), 65_536.into());
    }
    fs::write(folder.join("giant.toml"), table.to_string()).unwrap();
    let err =
        fails(folder, &["train", "--config", "giant.toml", "--out", "run"], &["MiB of this machine", "smaller space"]);
    assert!(err.contains("training with 16 images at a time takes about"), "{err}");
    assert!(!folder.join("run/config.toml").exists());
}

#[test]
fn an_empty_data_flag_is_told_from_a_run_without_images() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    for command in [&["train", "--data", "", "--out", "run"], &["tune", "--data", "", "--out", "tuned"]] {
        fails(folder, command, &["error: --data is empty; expected a folder of images, or `builtin`"]);
    }
}

/// A finished run in `run`, of two classes in the folder `images`.
fn run_of_a_folder(folder: &Path) {
    write_two_classes(&folder.join("images"), 20, 2);
    let train = ["train", "--preset", "tiny", "--epochs", "6", "--batch", "8", "--validation", "8", "--data", "images"];
    succeeds(folder, &train);
}

const RESUME: &[&str] = &["train", "--resume"];

#[test]
fn resuming_refuses_another_split_normalisation_or_images_by_name() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    run_of_a_folder(folder);
    let (path, before) = (folder.join("run/config.toml"), weights(&folder.join("run")));
    let config = fs::read_to_string(&path).unwrap();
    let with = |old: &str, new: &str| fs::write(&path, changed(&config, old, new)).unwrap();
    with("seed = 0", "seed = 5");
    fails(folder, RESUME, &["step-", "validation split", "data.seed"]);
    with("skip_bad = false", "skip_bad = false\nnormalisation = { mean = [0.1, 0.1, 0.1], std = [0.9, 0.9, 0.9] }");
    fails(folder, RESUME, &["step-", "normalisation", "0.9"]);
    fs::write(&path, &config).unwrap();
    let image = |name: &str| folder.join("images/train/dark").join(name);
    fs::rename(image("3.png"), image("z.png")).unwrap();
    fails(folder, RESUME, &["step-", "renamed"]);
    fs::rename(image("z.png"), image("3.png")).unwrap();
    image::RgbImage::new(9, 9).save(image("4.png")).unwrap();
    fails(folder, RESUME, &["step-", "replaced"]);
    assert!(before == weights(&folder.join("run")));
}

#[test]
fn images_are_found_from_any_folder_and_after_they_moved() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    run_of_a_folder(folder);
    let elsewhere = folder.join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let extract = ["extract", "--run", "../run", "--subnet", "smallest", "--recalibration", "20"];
    succeeds(&elsewhere, &extract);
    fs::rename(folder.join("images"), folder.join("moved")).unwrap();
    let gone = ["run/config.toml", "images", "does not exist", "--data"];
    fails(&elsewhere, &extract, &gone);
    fails(folder, RESUME, &gone);
    succeeds(folder, &[RESUME, &["--data", "moved"]].concat());
    // From now on the configuration has the new path.
    succeeds(&elsewhere, &extract);
    fails(folder, &[RESUME, &["--data", "builtin"]].concat(), &["classes"]);
    succeeds(folder, RESUME);
}

#[test]
fn a_run_whose_checkpoints_are_gone_is_not_started_again() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    run_of_a_folder(folder);
    let run = folder.join("run");
    let (lines, supernet) = (metrics(&run), weights(&run));
    for entry in fs::read_dir(run.join("checkpoints")).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("step-") {
            fs::remove_file(path).unwrap();
        }
    }
    fails(folder, RESUME, &["supernet.safetensors", "step-*.safetensors", "missing"]);
    assert!(metrics(&run) == lines && weights(&run) == supernet);
    fs::remove_file(run.join("checkpoints/supernet.safetensors")).unwrap();
    fails(folder, RESUME, &["metrics.jsonl", "step-*.safetensors", "missing"]);
    fails(folder, &["train", "--preset", "tiny", "--data", "images", "--out", "run"], &["checkpoints are gone"]);
    assert_eq!(metrics(&run), lines);
}

#[test]
fn damaged_checkpoints_are_not_called_whole() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    run_of_a_folder(folder);
    for entry in fs::read_dir(folder.join("run/checkpoints")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    }
    let said = fails(folder, RESUME, &["no checkpoint can be read", "step-", "copy"]);
    assert!(!said.contains("whole"), "{said}");
}

#[test]
fn a_run_without_a_step_may_be_started_again() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    run_of_a_folder(folder);
    let train = |epochs| {
        ["train", "--preset", "tiny", "--epochs", epochs, "--batch", "8", "--validation", "8", "--data", "images"]
    };
    fails(folder, &train("6"), &["already holds checkpoints", "--resume"]);
    for entry in fs::read_dir(folder.join("run/checkpoints")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let config = || fs::read_to_string(folder.join("run/config.toml")).unwrap();
    let before = config();
    fs::write(folder.join("run/metrics.jsonl"), "").unwrap();
    succeeds(folder, &train("7"));
    assert_ne!(config(), before);
}

#[test]
fn metrics_with_other_line_ends_stay_valid_on_resuming() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    run_of_a_folder(folder);
    let run = folder.join("run");
    let lines = metrics(&run);
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    fs::write(run.join("metrics.jsonl"), text.replace('\n', "\r\n")).unwrap();
    succeeds(folder, RESUME);
    assert_eq!(metrics(&run), lines);
}
