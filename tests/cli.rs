//! Every command end to end through the binary, on a very small run; and what it says to bad input.

use std::path::Path;
use std::process::{Command, Output};

fn ofa(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ofa")).current_dir(folder).args(arguments).output().unwrap()
}

#[track_caller]
fn succeeds(folder: &Path, arguments: &[&str]) -> String {
    let output = ofa(folder, arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "ofa {arguments:?}\n{out}\n{err}");
    out.into_owned()
}

/// The error: one line, no panic, exit code 1.
#[track_caller]
fn fails(folder: &Path, arguments: &[&str], expected: &[&str]) {
    let output = ofa(folder, arguments);
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "ofa {arguments:?}: {err}");
    let last = err.lines().last().unwrap_or_default();
    assert!(last.starts_with("error: "), "{err}");
    for part in expected {
        assert!(err.contains(part), "'{part}' is not in: {err}");
    }
}

const SMALL: &[&str] = &["--epochs", "3", "--images", "400", "--samples", "16"];

#[test]
fn quickstart_then_every_command_on_its_run() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let out = succeeds(folder, &[&["quickstart", "--out", "q"], SMALL].concat());
    for part in ["Kendall tau", "smallest", "largest", "this-latency-", "ofa train --preset cifar"] {
        assert!(out.contains(part), "'{part}' is not in: {out}");
    }
    for file in ["config.toml", "metrics.jsonl", "predictor/samples.jsonl", "predictor/fit.json", "devices/this.json"] {
        assert!(folder.join("q").join(file).exists(), "{file}");
    }
    let samples = || std::fs::read_to_string(folder.join("q/predictor/samples.jsonl")).unwrap();
    assert_eq!(samples().lines().count(), 16);

    // More samples: the earlier ones are kept.
    let before = samples();
    let out =
        succeeds(folder, &["predictor", "--run", "q", "--samples", "20", "--recalibration", "100", "--images", "50"]);
    assert!(out.contains("20 subnets, 4 held out"), "{out}");
    assert!(samples().starts_with(&before));

    succeeds(
        folder,
        &["profile", "--run", "q", "--name", "two", "--model-threads", "2", "--rounds", "3", "--check", "5"],
    );
    let out = succeeds(
        folder,
        &[
            "search",
            "--run",
            "q",
            "--limit",
            "two:latency=1s",
            "--limit",
            "any:macs=0.5M",
            "--generations",
            "5",
            "--json",
        ],
    );
    let results: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(results.as_array().unwrap().len(), 2);
    assert!(results[1]["constraints"][0]["value"].as_f64().unwrap() <= 0.5e6);
    assert!(folder.join("q/search/any-macs-500k.json").exists() || folder.join("q/search/any-macs-0.5M.json").exists());
    fails(folder, &["search", "--run", "q", "--limit", "any:macs=1k"], &["smallest"]);
    fails(folder, &["search", "--run", "q", "--limit", "phone:latency=1ms"], &["phone", "this"]);

    let out = succeeds(
        folder,
        &["extract", "--run", "q", "--subnet", "smallest", "--name", "tuned", "--finetune", "1", "--dtype", "f16"],
    );
    assert!(out.contains("q/models/tuned"), "{out}");
    let models = ["q/models/tuned", "q/models/smallest"];
    let out = succeeds(folder, &["bench", models[0], models[1], "--data", "builtin", "--batch", "1,4", "--json"]);
    let rows: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(rows[0]["model"], "tuned");
    assert_eq!(rows[0]["latencies"].as_array().unwrap().len(), 2);
    assert!(rows[0]["file_bytes"].as_f64().unwrap() < 0.7 * rows[1]["file_bytes"].as_f64().unwrap());
    let csv = succeeds(folder, &["bench", models[1], "--csv"]);
    assert_eq!(csv.lines().count(), 2, "{csv}");

    // A quickstart replaces a quickstart, and nothing else.
    std::fs::create_dir(folder.join("mine")).unwrap();
    fails(folder, &["quickstart", "--out", "mine"], &["mine", "not an earlier quickstart"]);
    // A damaged model is named.
    std::fs::write(folder.join("q/models/smallest/model.safetensors"), b"short").unwrap();
    fails(folder, &["bench", models[1]], &["smallest"]);
}

#[test]
fn training_from_an_edited_configuration_on_an_image_folder_resumes() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    for (split, count) in [("train", 24), ("test", 6)] {
        for (class, value) in [("dark", 40u8), ("light", 200)] {
            let path = folder.join("images").join(split).join(class);
            std::fs::create_dir_all(&path).unwrap();
            for index in 0..count {
                let image =
                    image::RgbImage::from_fn(20, 18, |x, y| image::Rgb([value, (x * 9) as u8, (y * index) as u8]));
                image.save(path.join(format!("{index}.png"))).unwrap();
            }
        }
    }
    let config =
        succeeds(folder, &["config", "--preset", "tiny", "--epochs", "6", "--batch", "8", "--validation", "8"]);
    std::fs::write(folder.join("my.toml"), &config).unwrap();
    let train = ["train", "--config", "my.toml", "--data", "images", "--out", "run"];
    let out = succeeds(folder, &train);
    assert!(out.contains("supernet.safetensors written"), "{out}");
    let weights = || std::fs::read(folder.join("run/checkpoints/supernet.safetensors")).unwrap();
    let first = weights();
    fails(folder, &train, &["--resume"]);
    fails(folder, &["train", "--out", "run", "--resume", "--batch", "9"], &["--resume", "config.toml"]);
    succeeds(folder, &["train", "--out", "run", "--resume"]);
    assert!(first == weights(), "resuming a finished run changed its weights");

    std::fs::write(folder.join("my.toml"), config.replace("momentum", "momentun")).unwrap();
    fails(folder, &train, &["my.toml", "momentun"]);
    fails(folder, &["train", "--data", "nowhere", "--out", "r"], &["nowhere"]);
    fails(folder, &["train", "--space", "mbv4", "--out", "r"], &["mbv4", "cifar-mbv3"]);
    fails(folder, &["predictor", "--run", "nowhere"], &["nowhere"]);
    std::fs::write(folder.join("images/train/dark/3.png"), b"no image").unwrap();
    fails(folder, &["train", "--preset", "tiny", "--data", "images", "--validation", "8", "--out", "r"], &["3.png"]);
}

#[test]
fn speed_reports_every_mode() {
    let temporary = tempfile::tempdir().unwrap();
    for mode in ["max", "elastic", "eval"] {
        let out = succeeds(
            temporary.path(),
            &[
                "speed",
                "--space",
                "tiny",
                "--resolution",
                "16",
                "--batch",
                "4",
                "--steps",
                "2",
                "--mode",
                mode,
                "--json",
            ],
        );
        let report: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert!(report["images_per_second"].as_f64().unwrap() > 0.0);
    }
    let config = succeeds(temporary.path(), &["config", "--preset", "tiny", "--epochs", "1", "--batch", "4"]);
    std::fs::write(temporary.path().join("c.toml"), &config).unwrap();
    // A space of one's own, from the space of a configuration.
    let mut space = toml::from_str::<toml::Table>(&config).unwrap()["space"].as_table().unwrap().clone();
    space.insert("name".into(), "mine".into());
    std::fs::write(temporary.path().join("space.toml"), space.to_string()).unwrap();
    let out = succeeds(temporary.path(), &["config", "--preset", "tiny", "--space", "space.toml"]);
    assert!(out.contains("name = \"mine\""), "{out}");
    let arguments =
        ["speed", "--space", "tiny", "--batch", "4", "--steps", "1", "--config", "c.toml", "--images", "100"];
    let out = succeeds(temporary.path(), &arguments);
    assert!(out.contains("the schedule takes about"), "{out}");
}

#[test]
fn the_example_configuration_is_valid_and_its_space_is_the_preset() {
    let root = env!("CARGO_MANIFEST_DIR");
    let temporary = tempfile::tempdir().unwrap();
    let example = format!("{root}/examples/cifar10.toml");
    let out = succeeds(temporary.path(), &["config", "--config", &example]);
    let preset = succeeds(temporary.path(), &["config", "--preset", "cifar"]);
    let space = |text: &str| toml::from_str::<toml::Table>(text).unwrap()["space"].clone();
    assert_eq!(space(&out), space(&preset));
}
