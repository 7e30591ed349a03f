//! `ofa train` through the binary; kills and signals are in `survive.rs`.

mod common;
#[path = "train/recipe.rs"]
mod recipe;

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
    let train = ["train", "--config", "my.toml", "--data", "images", "--out", "run", "--skip-nonfinite", "3"];
    let out = succeeds(folder, &train);
    let resolved = fs::read_to_string(folder.join("run/config.toml")).unwrap();
    assert!(resolved.contains("skip_nonfinite = 3"), "{resolved}");
    assert!(out.contains("supernet.safetensors written"), "{out}");
    assert!(!cfg!(target_os = "linux") || out.contains("peak memory "), "{out}");
    let weights = || fs::read(folder.join("run/checkpoints/supernet.safetensors")).unwrap();
    let first = weights();
    fails(folder, &train, &["--resume"]);
    succeeds(folder, &["train", "--out", "run", "--resume"]);
    assert!(first == weights(), "resuming a finished run changed its weights");
    // A stage that is added to a run is refused for what it would be refused for in a new one.
    let more = "\n[[train.stages]]\nname = \"more\"\nepochs = 1.0\nlearning_rate = 0.01\nsampling = \"sandwich\"\n";
    fs::write(folder.join("run/config.toml"), resolved.clone() + more).unwrap();
    fails(folder, &["train", "--out", "run", "--resume"], &["run/config.toml", "'more'", "no other would be trained"]);
    fs::write(folder.join("run/config.toml"), &resolved).unwrap();
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
fn a_training_that_fails_before_its_first_step_leaves_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_configuration(folder, "c.toml", "1");
    let text = fs::read_to_string(folder.join("c.toml")).unwrap();
    let write = |name: &str, old: &str, new: &str| fs::write(folder.join(name), changed(&text, old, new)).unwrap();
    write("data.toml", "\"builtin\"", "\"nowhere\"");
    write("key.toml", "\nmomentum", "\nmomentun");
    // Known once the classes are counted, when the folder is there.
    write("weights.toml", "\nbatch = 16", "\nclass_balance = { weights = [1.0, 2.0] }\nbatch = 16");
    for (config, expected) in [("data.toml", "nowhere"), ("key.toml", "momentun"), ("weights.toml", "2 numbers for 10")]
    {
        fails(folder, &["train", "--config", config, "--out", "deep/run"], &[expected]);
        assert!(!folder.join("deep").exists(), "{config}");
    }
    // What was there stays, with the lock file beside it.
    fs::create_dir(folder.join("mine")).unwrap();
    fs::write(folder.join("mine/notes.txt"), "x").unwrap();
    fails(folder, &["train", "--config", "data.toml", "--out", "mine"], &["nowhere"]);
    assert_eq!(fs::read_to_string(folder.join("mine/notes.txt")).unwrap(), "x");
    assert!(!folder.join("mine/config.toml").exists());
}

#[test]
fn folders_of_other_work_are_refused_and_a_failed_start_changes_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_configuration(folder, "c.toml", "1");
    for (file, what) in [("trials.jsonl", "trials of `ofa tune`"), ("space.json", "accuracies from elsewhere")] {
        fs::create_dir_all(folder.join("other")).unwrap();
        fs::write(folder.join("other").join(file), "{}").unwrap();
        fails(folder, &["train", "--config", "c.toml", "--out", "other"], &["other", what]);
        fs::remove_file(folder.join("other").join(file)).unwrap();
    }
    let text = fs::read_to_string(folder.join("c.toml")).unwrap();
    let wrong = changed(&text, "dropout = 0.0", "dropout = 0.0\nclass_balance = { weights = [1.0, 1.0] }");
    fs::write(folder.join("wrong.toml"), wrong).unwrap();
    fs::write(folder.join("other/config.toml"), "mine").unwrap();
    fails(folder, &["train", "--config", "wrong.toml", "--out", "other"], &["2 numbers for 10 classes"]);
    assert_eq!(fs::read_to_string(folder.join("other/config.toml")).unwrap(), "mine");
    fs::remove_file(folder.join("other/config.toml")).unwrap();
    fails(folder, &["train", "--config", "wrong.toml", "--out", "other"], &["2 numbers for 10 classes"]);
    let left = ofa_supernet::files::list_folder(&folder.join("other")).unwrap();
    assert!(left.iter().all(|path| path.is_dir()), "{left:?}");
    // One that could be read when it was trained is read on, but not begun.
    let single = changed(&text, "subnets_per_step = 2", "subnets_per_step = 1");
    fs::write(folder.join("single.toml"), changed(&single, "\"uniform\"", "\"sandwich\"")).unwrap();
    fails(folder, &["train", "--config", "single.toml", "--out", "other"], &["no other would be trained"]);
}

#[cfg(unix)]
#[test]
fn a_training_that_is_stopped_while_it_reads_images_leaves_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_configuration(folder, "c.toml", "1");
    let text = fs::read_to_string(folder.join("c.toml")).unwrap();
    // Generating so many to measure their colours takes half a minute.
    let text = changed(&text, "builtin_train = 120", "cache_mib = 1\nbuiltin_train = 900000");
    fs::write(folder.join("c.toml"), text).unwrap();
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let mut child = common::command(folder, &["train", "--config", "c.toml", "--out", "run"]).spawn().unwrap();
        while !folder.join("run/.lock").exists() {
            assert!(child.try_wait().unwrap().is_none(), "the command has ended already");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert!(common::signal(signal, child.id()));
        let output = child.wait_with_output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{err}");
        assert!(err.contains("run the same command again") && !err.contains("training,"), "{err}");
        assert!(!folder.join("run").exists());
    }
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
    // No trial of a tuning is begun.
    let tune = ["tune", "--config", "giant.toml", "--out", "tuned"];
    fails(folder, &tune, &["training with 32 images at a time takes about", "MiB of this machine"]);
    assert!(!folder.join("tuned/trial-000").exists());
}

#[test]
fn the_preset_for_trained_weights_is_refused_without_any() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    fails(folder, &["train", "--preset", "transfer", "--out", "run"], &["--preset transfer", "--from"]);
    fails(folder, &["tune", "--preset", "transfer", "--out", "tuned"], &["--preset transfer", "another preset"]);
    assert!(!folder.join("run").exists() && !folder.join("tuned").exists());
    // What a file is made of may get its weights later.
    succeeds(folder, &["config", "--preset", "transfer"]);
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

#[test]
fn a_subnet_is_trained_alone_with_the_schedule_of_all_and_extracted() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_configuration(folder, "c.toml", "2");
    let text = "r24 d1,2 k3|5,3 e2|4,3";
    let train = ["train", "--config", "c.toml", "--subnet", text, "--out", "alone"];
    let out = succeeds(folder, &train);
    assert!(out.contains(text) && !out.contains("smallest"), "{out}");
    let lines = metrics(&folder.join("alone"));
    let probes: Vec<_> = lines.iter().filter(|line| line["type"] == "probe").collect();
    assert!(!probes.is_empty() && probes.iter().all(|line| line["probe"] == "subnet" && line["subnet"] == text));
    let steps = lines.iter().filter(|line| line["type"] == "step");
    assert!(steps.into_iter().all(|line| line["stage"] == "alone"), "{lines:?}");
    // 100 images in steps of 16.
    assert_eq!(lines.last().unwrap()["step"], 12);
    let before = weights(&folder.join("alone"));
    succeeds(folder, &["train", "--out", "alone", "--resume"]);
    assert!(weights(&folder.join("alone")) == before);
    // A predictor would need more subnets.
    let next = succeeds(folder, &["status", "alone"]);
    assert!(
        next.contains(&format!("ofa extract --run alone --subnet '{text}'")) && !next.contains("ofa predictor"),
        "{next}"
    );
    succeeds(folder, &["extract", "--run", "alone", "--subnet", text, "--recalibration", "32"]);
    let report: serde_json::Value =
        serde_json::from_str(&succeeds(folder, &["report", "--run", "alone", "--json"])).unwrap();
    assert!(report["training"]["best"]["accuracy"].as_f64().is_some(), "{report}");
    succeeds(folder, &["report", "--run", "alone"]);
    let page = fs::read_to_string(folder.join("alone/report.html")).unwrap();
    assert!(page.contains("subnet after 12 steps") && !page.contains("mean of all"));
    fails(folder, &["train", "--config", "c.toml", "--subnet", "r24 d1,2 k3|5,9 e2|4,3", "--out", "r"], &["9"]);
    fails(folder, &["train", "--config", "c.toml", "--subnet", "tiniest", "--out", "r"], &["tiniest", "expected"]);
}

/// The tensors of a run's supernet.
fn tensors(run: &Path) -> std::collections::HashMap<String, Vec<f32>> {
    let path = run.join("checkpoints/supernet.safetensors");
    let tensors = candle_core::safetensors::load(path, &candle_core::Device::Cpu).unwrap();
    tensors.into_iter().map(|(name, t)| (name, t.flatten_all().unwrap().to_vec1().unwrap())).collect()
}

#[test]
fn a_training_starts_from_the_supernet_of_another_run_with_other_classes() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    run_of_a_folder(folder);
    for (class, brightness) in [("dark", 60), ("grey", 130), ("light", 210)] {
        for split in ["train", "test"] {
            common::write_images(&folder.join("others").join(split).join(class), 12, brightness);
        }
    }
    let settings = ["--data", "others", "--epochs", "1", "--batch", "8", "--validation", "6"];
    let config = succeeds(folder, &[&["config", "--from", "run"][..], &settings].concat());
    // So slow that the weights stay where they are.
    fs::write(folder.join("slow.toml"), changed(&config, "learning_rate = 0.02", "learning_rate = 1e-12")).unwrap();
    let output = common::ofa(folder, &["train", "--config", "slow.toml", "--out", "next"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("a new classifier"), "{said}");
    let (before, after) = (tensors(&folder.join("run")), tensors(&folder.join("next")));
    for (name, values) in &before {
        let now = &after[name];
        match name.as_str() {
            name if name.contains("classifier") => assert_eq!(now.len() * 2, values.len() * 3, "{name}"),
            name if name.contains("running") => {}
            name => assert!(now.iter().zip(values).all(|(now, then)| (now - then).abs() < 1e-5), "{name}"),
        }
    }
    // The images are normalised as those of the first run were, wherever the second is started from.
    let table = |path: &str| toml::from_str::<toml::Table>(&fs::read_to_string(folder.join(path)).unwrap()).unwrap();
    let next = table("next/config.toml");
    assert!(Path::new(next["from"].as_str().unwrap()).is_absolute());
    assert!(next["data"]["normalisation"].as_table().is_some(), "{next:?}");
    fs::rename(folder.join("run"), folder.join("gone")).unwrap();
    succeeds(folder, &["train", "--out", "next", "--resume"]);
    // From a checkpoint, to the same classes.
    let step = fs::read_dir(folder.join("next/checkpoints")).unwrap().map(|entry| entry.unwrap().path());
    let step = step.filter(|path| path.to_str().unwrap().contains("step-")).max().unwrap();
    let train = [&["train", "--from", step.to_str().unwrap(), "--out", "last"][..], &settings].concat();
    let output = common::ofa(folder, &train);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("with the same classes"), "{said}");
    // Weights that have seen validation images are refused, and so are those images in later commands of the run.
    for from in ["next", step.to_str().unwrap()] {
        let train = ["train", "--from", from, "--data", "others", "--validation", "9", "--out", "r"];
        fails(folder, &train, &[from, "about 6 of the 9 validation images of 'others'", "val/CLASS"]);
    }
    let extract = common::ofa(folder, &["extract", "--run", "next", "--subnet", "smallest", "--data", "images"]);
    let said = String::from_utf8_lossy(&extract.stderr).into_owned();
    assert!(said.contains("about 4 of the 6 validation images of 'images' are training images"), "{said}");
    let from = |more: [&'static str; 2]| [&["train", "--from", "gone", "--out", "r"], &settings[..], &more].concat();
    fails(folder, &from(["--space", "cifar-k5"]), &["another space", "train in the space 'tiny'"]);
    fails(folder, &from(["--subnet", "smallest"]), &["--subnet", "leave one of them out"]);
    fails(folder, &["train", "--from", "others", "--out", "r"], &["others", "expected a run folder"]);
    fails(folder, &["train", "--from", "slow.toml", "--out", "r"], &["slow.toml", "expected a run folder"]);
    let text = changed(&config, "dropout = 0.0", "dropout = 0.0\nzero_last_scale = true");
    fs::write(folder.join("zero.toml"), text).unwrap();
    fails(folder, &["train", "--config", "zero.toml", "--out", "r"], &["zero.toml", "zero_last_scale", "from"]);
}

#[test]
fn another_runs_network_teaches_from_the_first_stage_on_and_is_kept_in_checkpoints() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_configuration(folder, "c.toml", "2");
    let config = fs::read_to_string(folder.join("c.toml")).unwrap();
    fs::write(folder.join("c.toml"), changed(&config, "keep_checkpoints = 3", "keep_checkpoints = 99")).unwrap();
    // A teacher of another space.
    let wide = fs::read_to_string(folder.join("c.toml")).unwrap();
    let wide = changed(&wide, "width_multiplier = 1.0", "width_multiplier = 2.0");
    fs::write(folder.join("wide.toml"), &wide).unwrap();
    succeeds(folder, &["train", "--config", "wide.toml", "--epochs", "1", "--out", "wide"]);
    succeeds(folder, &["train", "--config", "c.toml", "--teacher", "wide", "--out", "whole"]);
    let (whole, lines) = (weights(&folder.join("whole")), metrics(&folder.join("whole")));
    let taught = |line: &&serde_json::Value| line["type"] == "step" && line["distillation"].is_number();
    assert_eq!(lines.iter().filter(taught).count(), lines.iter().filter(|line| line["type"] == "step").count());
    assert_eq!(lines.iter().find(|line| line["type"] == "step").unwrap()["stage"], "largest");
    fs::rename(folder.join("wide"), folder.join("gone")).unwrap();
    let run = folder.join("resumed");
    common::Snapshot::of(&folder.join("whole")).write_to(&run);
    for entry in fs::read_dir(run.join("checkpoints")).unwrap() {
        let path = entry.unwrap().path();
        let step = path.file_stem().unwrap().to_str().unwrap().strip_prefix("step-").map(|step| step.parse::<u32>());
        if step.is_none_or(|step| step.unwrap() > 3) {
            fs::remove_file(path).unwrap();
        }
    }
    succeeds(folder, &["train", "--out", "resumed", "--resume"]);
    assert!(weights(&run) == whole);
    assert_eq!(metrics(&run), lines);
    // Whose lesson was it? Another teacher, other weights.
    succeeds(folder, &["train", "--config", "c.toml", "--out", "untaught"]);
    assert!(weights(&folder.join("untaught")) != whole);
    let train = ["train", "--config", "c.toml", "--out", "r", "--data"];
    write_two_classes(&folder.join("images"), 24, 6);
    fails(folder, &[&train[..], &["images", "--teacher", "gone"]].concat(), &["gone", "classes of the data"]);
    let text = changed(&config, "batch = 16", "batch = 16\nteacher_from = \"gone\"")
        .replace("kd_ratio = 1.0", "kd_ratio = 0.0");
    fs::write(folder.join("none.toml"), text).unwrap();
    fails(folder, &["train", "--config", "none.toml", "--out", "r"], &["teacher_from", "no stage learns"]);
}

#[test]
fn hours_decide_the_epochs() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    write_two_classes(&folder.join("images"), 24, 6);
    let train = ["train", "--preset", "tiny", "--data", "images", "--batch", "8", "--validation", "8"];
    let epochs = |hours: &str, out: &str| -> f64 {
        succeeds(folder, &[&train[..], &["--hours", hours, "--out", out]].concat());
        let config = fs::read_to_string(folder.join(out).join("config.toml")).unwrap();
        let config: toml::Table = toml::from_str(&config).unwrap();
        let stages = config["train"]["stages"].as_array().unwrap();
        stages.iter().map(|stage| stage["epochs"].as_float().unwrap()).sum()
    };
    let (short, long) = (epochs("1e-4", "short"), epochs("1e-3", "long"));
    assert!(short > 0.0 && long > short, "{short} {long}");
    common::misused(folder, &[&train[..], &["--hours", "1", "--epochs", "2"]].concat(), &["--hours"]);
}

#[test]
fn images_much_larger_than_what_the_network_sees_are_warned_of() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    for split in ["train", "test"] {
        for class in ["a", "b"] {
            let class = folder.join("images").join(split).join(class);
            fs::create_dir_all(&class).unwrap();
            for n in 0..4 {
                image::RgbImage::from_fn(150, 120, |x, y| image::Rgb([x as u8, y as u8, n]))
                    .save(class.join(format!("{n}.png")))
                    .unwrap();
            }
        }
    }
    let train = ["train", "--preset", "tiny", "--epochs", "1", "--batch", "4", "--validation", "2", "--data", "images"];
    let output = common::ofa(folder, &train);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("images are about 120 pixels") && said.contains("sees them at 32"), "{said}");
}
