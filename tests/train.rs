//! `ofa train` through the binary; kills and signals are in `survive.rs`.

mod common;

use common::{changed, fails, metrics, small_configuration, succeeds};
use std::fs;

#[test]
fn training_from_an_edited_configuration_on_an_image_folder_resumes() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    for (split, count) in [("train", 24), ("test", 6)] {
        for (class, value) in [("dark", 40u8), ("light", 200)] {
            let path = folder.join("images").join(split).join(class);
            fs::create_dir_all(&path).unwrap();
            for index in 0..count {
                let image =
                    image::RgbImage::from_fn(20, 18, |x, y| image::Rgb([value, (x * 9) as u8, (y * index) as u8]));
                image.save(path.join(format!("{index}.png"))).unwrap();
            }
        }
    }
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
    fails(folder, &["train", "--out", "run", "--resume", "--batch", "9"], &["--resume", "config.toml"]);
    succeeds(folder, &["train", "--out", "run", "--resume"]);
    assert!(first == weights(), "resuming a finished run changed its weights");

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
    assert!(err.contains("training with 16 images a step takes about"), "{err}");
    assert!(!folder.join("run/config.toml").exists());
}

#[test]
fn an_empty_data_flag_is_told_from_a_run_without_images() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    for command in [&["train", "--data", "", "--out", "run"], &["tune", "--data", "", "--out", "tuned"]] {
        fails(folder, command, &["error: --data '': it is empty; expected a folder of images, or `builtin`"]);
    }
}
