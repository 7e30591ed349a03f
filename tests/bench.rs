//! `ofa bench` through the binary.

mod common;

use common::{
    changed, command, fails, finished_run, grey_images, misused, ofa, small_configuration, succeeds, write_images,
};
use serde_json::Value;
use std::fs;
use std::path::Path;

#[test]
fn models_are_measured_at_each_batch_size() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let models = ["run/models/largest", "run/models/smallest"];
    let out = succeeds(folder, &["bench", models[0], models[1], "--data", "builtin", "--batch", "1,4", "--json"]);
    let rows = &serde_json::from_str::<serde_json::Value>(&out).unwrap()["models"];
    assert_eq!(rows[0]["model"], "largest");
    let batches = rows[0]["latencies"].as_array().unwrap().iter().map(|latency| latency["batch"].as_u64());
    assert_eq!(batches.collect::<Vec<_>>(), [Some(1), Some(4)]);
    assert!(rows[1]["file_bytes"].as_f64().unwrap() < rows[0]["file_bytes"].as_f64().unwrap());
}

#[test]
fn layers_are_listed_with_their_times() {
    let temporary = tempfile::tempdir().unwrap();
    finished_run(temporary.path());
    let out = succeeds(temporary.path(), &["bench", "run/models/smallest", "--layers"]);
    let row = |name: &str| out.lines().find(|line| line.trim_start().starts_with(name)).map(str::to_string);
    assert!(row("conv_stem").is_some_and(|row| row.contains("3x3 stride") && row.contains('%')), "{out}");
    assert!(row("classifier").is_some() && out.contains("GFLOP/s"), "{out}");
    let value = succeeds(temporary.path(), &["bench", "run/models/smallest", "--layers", "--json"]);
    let value: Value = serde_json::from_str(&value).unwrap();
    assert_eq!(value["layers"][0]["model"], value["models"][0]["model"]);
    let layers = value["layers"][0]["layers"].as_array().unwrap();
    assert!(layers.iter().any(|layer| layer["name"] == "classifier" && layer["macs"].as_u64() > Some(0)), "{value}");
    assert!(layers.iter().all(|layer| layer["floor_ms"].is_number() && layer["shape"].is_string()), "{value}");
    misused(temporary.path(), &["bench", "run/models/smallest", "--layers", "--csv"], &["--layers"]);
}

#[test]
fn every_class_has_its_accuracy_and_the_confusions_are_listed() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let bench = ["bench", "run/models/smallest", "--data", "builtin", "--per-class"];
    let out = succeeds(folder, &bench);
    let rows: Value = serde_json::from_str(&succeeds(folder, &[&bench[..], &["--json"]].concat())).unwrap();
    let row = &rows["models"][0];
    let (accuracy, classes) = (&row["accuracy"], row["classes"].as_array().unwrap());
    let number = |value: &Value| value.as_u64().unwrap();
    assert_eq!(classes.iter().map(|class| number(&class["images"])).sum::<u64>(), number(&accuracy["images"]));
    let (mut right, mut wrong) = (0, Vec::new());
    for (index, class) in classes.iter().enumerate() {
        for answer in class["answers"].as_array().unwrap() {
            assert_eq!(answer["class"], classes[number(&answer["number"]) as usize]["class"]);
            match number(&answer["number"]) == index as u64 {
                true => right += number(&answer["images"]),
                false => wrong.push((number(&answer["images"]), &class["class"], &answer["class"])),
            }
        }
    }
    assert!((right as f64 / number(&accuracy["images"]) as f64 - accuracy["top1"].as_f64().unwrap()).abs() < 1e-12);
    // The terminal has a line for every class, and the most frequent confusion first.
    let lines = |after: &str| out.split(after).nth(1).unwrap().lines().skip(2).take_while(|line| !line.is_empty());
    assert_eq!(lines("accuracy by class").count(), 10, "{out}");
    let most = wrong.iter().map(|wrong| wrong.0).max().unwrap();
    let first: Vec<&str> = lines("most frequent confusions").next().unwrap().split_whitespace().collect();
    let shown = |part: &str| first.iter().position(|word| *word == part);
    assert!(shown(&most.to_string()).is_some(), "{out}");
    assert!(wrong.iter().any(|(images, class, answer)| {
        *images == most && shown(class.as_str().unwrap()).is_some() && shown(answer.as_str().unwrap()).is_some()
    }));
    // The matrix goes to bench.json, and only there without the option.
    let out = succeeds(folder, &["bench", "run/models/smallest", "--data", "builtin", "--update-card", "--json"]);
    assert!(!out.contains("answers"), "{out}");
    let record: Value =
        serde_json::from_slice(&std::fs::read(folder.join("run/models/smallest/bench.json")).unwrap()).unwrap();
    assert_eq!(record["devices"][0]["row"]["classes"], row["classes"]);
    misused(folder, &["bench", "run/models/smallest", "--per-class"], &["required arguments were not provided"]);
}

#[test]
fn a_table_for_spreadsheets_has_a_line_per_model() {
    let temporary = tempfile::tempdir().unwrap();
    finished_run(temporary.path());
    let csv = succeeds(temporary.path(), &["bench", "run/models/smallest", "--csv"]);
    assert_eq!(csv.lines().count(), 2, "{csv}");
}

#[test]
fn only_the_test_split_is_needed_and_damaged_images_can_be_skipped() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    for (class, brightness) in [("dark", 40), ("light", 200)] {
        write_images(&folder.join("images/train").join(class), 30, brightness);
        write_images(&folder.join("images/test").join(class), 4, brightness);
    }
    small_configuration(folder, "c.toml", "1");
    let config = std::fs::read_to_string(folder.join("c.toml")).unwrap();
    std::fs::write(folder.join("c.toml"), changed(&config, "\"builtin\"", "\"images\"")).unwrap();
    succeeds(folder, &["train", "--config", "c.toml", "--out", "run"]);
    succeeds(folder, &["extract", "--run", "run", "--subnet", "smallest", "--recalibration", "20"]);
    let bench = ["bench", "run/models/smallest", "--data", "images", "--json"];
    let accuracy = |arguments: &[&str]| {
        serde_json::from_str::<serde_json::Value>(&succeeds(folder, arguments)).unwrap()["models"][0]["accuracy"]
            .clone()
    };
    let whole = accuracy(&bench);
    std::fs::write(folder.join("images/train/dark/0.png"), b"damaged").unwrap();
    assert_eq!(accuracy(&bench), whole);
    std::fs::remove_dir_all(folder.join("images/train")).unwrap();
    assert_eq!(accuracy(&bench), whole);
    std::fs::write(folder.join("images/test/dark/0.png"), b"damaged").unwrap();
    fails(folder, &bench, &["images/test/dark/0.png", "--skip-bad"]);
    let output = ofa(folder, &[&bench[..], &["--skip-bad"]].concat());
    assert!(output.status.success() && String::from_utf8_lossy(&output.stderr).contains("7 test images, 1 skipped"));
}

#[test]
fn a_damaged_model_is_named() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    std::fs::write(folder.join("run/models/smallest/model.safetensors"), b"short").unwrap();
    fails(folder, &["bench", "run/models/smallest"], &["smallest"]);
}

/// Models of two runs, two of them with one name.
fn models() -> tempfile::TempDir {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_configuration(folder, "c.toml", "0.6");
    succeeds(folder, &["train", "--config", "c.toml", "--out", "a"]);
    let copied = std::process::Command::new("cp").args(["-r", "a", "b"]).current_dir(folder).status().unwrap();
    assert!(copied.success());
    succeeds(folder, &["extract", "--run", "a", "--subnet", "smallest"]);
    succeeds(folder, &["extract", "--run", "b", "--subnet", "largest", "--name", "smallest"]);
    succeeds(folder, &["extract", "--run", "b", "--subnet", "largest"]);
    temporary
}

const MODELS: [&str; 4] = ["bench", "a/models/smallest", "b/models/smallest", "b/models/largest"];

/// First column of a table or CSV, without the header.
fn names(out: &str, separator: char) -> Vec<&str> {
    out.lines().skip(1).map(|line| line.split(separator).next().unwrap()).collect()
}

#[test]
fn models_of_one_name_are_told_apart_in_table_csv_and_json() {
    let temporary = models();
    let folder: &Path = temporary.path();
    let expected = ["a/models/smallest", "b/models/smallest", "largest"];
    assert_eq!(names(&succeeds(folder, &MODELS), ' '), expected);
    assert_eq!(names(&succeeds(folder, &[&MODELS[..], &["--csv"]].concat()), ','), expected);
    let rows: serde_json::Value =
        serde_json::from_str(&succeeds(folder, &[&MODELS[..], &["--json"]].concat())).unwrap();
    assert_eq!(
        rows["models"].as_array().unwrap().iter().map(|row| row["model"].as_str().unwrap()).collect::<Vec<_>>(),
        expected
    );
    assert_eq!(
        names(
            &succeeds(
                folder,
                &MODELS[2..].iter().fold(vec!["bench"], |mut all, m| {
                    all.push(m);
                    all
                })
            ),
            ' '
        ),
        ["smallest", "largest"]
    );
}

#[test]
fn the_folder_above_models_names_them() {
    let temporary = models();
    let parts = ["b/models: this is no model folder", "2 of them", "largest", "ofa bench b/models/*"];
    fails(temporary.path(), &["bench", "b/models"], &parts);
    fails(temporary.path(), &["bench", "b"], &["b/config.json"]);
}

#[test]
#[cfg(target_os = "linux")]
fn a_batch_that_memory_cannot_hold_is_refused() {
    let temporary = models();
    let folder = temporary.path();
    // A model for large images: its configuration alone determines the memory.
    let path = folder.join("b/models/largest/config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    resize(&mut config["network"], 4096);
    config["input"]["crop"] = "central_square_224_of_256".into();
    std::fs::write(&path, config.to_string()).unwrap();
    let bench = ["bench", "b/models/largest", "--batch", "65536"];
    fails(folder, &bench, &["65536 images", "of this machine"]);
    // The memory of another machine is judged there.
    let on = ["--on", "ssh:board", "--ssh", "no-such-ssh"];
    fails(folder, &[&bench[..], &on].concat(), &["cannot start `no-such-ssh`"]);
}

/// Sets the resolution of a network and the sizes that follow from it.
#[cfg(target_os = "linux")]
fn resize(network: &mut serde_json::Value, resolution: usize) {
    fn sizes(value: &mut serde_json::Value, factor: usize) {
        match value {
            serde_json::Value::Object(fields) => {
                for (key, value) in fields {
                    match key.as_str() {
                        "input_size" | "resolution" => *value = (value.as_u64().unwrap() as usize * factor).into(),
                        _ => sizes(value, factor),
                    }
                }
            }
            serde_json::Value::Array(values) => values.iter_mut().for_each(|value| sizes(value, factor)),
            _ => {}
        }
    }
    let before = network["resolution"].as_u64().unwrap() as usize;
    sizes(network, resolution / before);
}

#[test]
fn a_damaged_record_is_refused_before_anything_is_measured() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    fs::write(folder.join("run/models/largest/bench.json"), "{").unwrap();
    let bench = ["bench", "run/models/smallest", "run/models/largest", "--update-card", "--model-threads", "1"];
    let before = fs::read(folder.join("run/models/smallest/bench.json")).unwrap();
    fails(folder, &bench, &["largest/bench.json", "not the expected JSON"]);
    assert_eq!(fs::read(folder.join("run/models/smallest/bench.json")).unwrap(), before);
}

/// The batch takes some seconds of warm-up and measuring, which nothing else interrupts.
#[cfg(unix)]
#[test]
fn a_signal_ends_measuring_with_its_exit_code() {
    let temporary = models();
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let arguments = [&MODELS[..], &["--batch", "2000"]].concat();
        let mut child = command(temporary.path(), &arguments).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_secs(1));
        assert!(child.try_wait().unwrap().is_none(), "the command has ended already");
        assert!(common::signal(signal, child.id()));
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code));
        assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

/// Trains on images whose labels come in turn; the same images, sorted, are in `sorted`.
fn run_of_grey_images(folder: &Path) {
    grey_images(folder, "mixed", false);
    grey_images(folder, "sorted", true);
    let train = ["train", "--preset", "tiny", "--epochs", "12", "--batch", "16", "--data", "mixed", "--out", "run"];
    succeeds(folder, &train);
}

#[test]
fn accuracy_does_not_depend_on_how_images_are_sorted() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    run_of_grey_images(folder);
    let accuracies = |data: &str, recalibration: &str| -> Vec<f64> {
        let extract = ["extract", "--run", "run", "--subnet", "smallest", "--subnet", "largest", "--data", data];
        succeeds(folder, &[&extract[..], &["--recalibration", recalibration]].concat());
        let models = ["run/models/smallest", "run/models/largest"];
        let out = succeeds(folder, &[&["bench"], &models[..], &["--data", "mixed", "--json"]].concat());
        let rows: serde_json::Value = serde_json::from_str(&out).unwrap();
        [0, 1].map(|row| rows["models"][row]["accuracy"]["top1"].as_f64().unwrap()).to_vec()
    };
    // One batch, and a batch with one image more than it can hold.
    for recalibration in ["60", "101"] {
        let (mixed, sorted) = (accuracies("mixed", recalibration), accuracies("sorted", recalibration));
        assert!(mixed.iter().chain(&sorted).all(|&accuracy| accuracy > 0.9), "{mixed:?} {sorted:?}");
    }
}

#[test]
fn images_that_were_trained_on_do_not_validate_in_another_order() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    run_of_grey_images(folder);
    let extract = ["extract", "--run", "run", "--subnet", "smallest", "--data"];
    let row = |out: &std::process::Output| {
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let shown = String::from_utf8_lossy(&out.stdout).into_owned();
        shown.lines().find(|line| line.contains("run/models/smallest")).unwrap().to_string()
    };
    let other = ofa(folder, &[&extract[..], &["sorted"]].concat());
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(said.contains("'sorted' are training images of the supernet") && said.contains("val/CLASS"), "{said}");
    assert!(!row(&other).contains('%') && row(&other).contains(" - "), "{}", row(&other));
    fails(folder, &["predictor", "--run", "run", "--samples", "10", "--data", "sorted"], &["no validation images"]);
    let search = ["search", "--run", "run", "--limit", "any:macs=1M", "--score", "measured", "--data", "sorted"];
    fails(folder, &search, &["no validation images"]);

    // The run's own images in a folder of another name are split as in training.
    fs::rename(folder.join("mixed"), folder.join("moved")).unwrap();
    assert!(row(&ofa(folder, &[&extract[..], &["moved"]].concat())).contains('%'));
}

#[test]
fn other_images_are_normalised_as_in_training() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    run_of_grey_images(folder);
    let normalisation = |data: &[&str]| {
        succeeds(folder, &[&["extract", "--run", "run", "--subnet", "smallest"], data].concat());
        let config = fs::read(folder.join("run/models/smallest/config.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&config).unwrap()["normalisation"].clone()
    };
    let own = normalisation(&[]);
    assert!(own["mean"][0].as_f64().unwrap() > 0.1, "{own}");
    // Other images: the same classes, but darker.
    for split in ["train", "t10k"] {
        let path = folder.join(format!("sorted/{split}-images-idx3-ubyte"));
        let mut bytes = fs::read(&path).unwrap();
        bytes[16..].iter_mut().for_each(|byte| *byte /= 2);
        fs::write(path, bytes).unwrap();
    }
    assert_eq!(normalisation(&["--data", "sorted"]), own);
}
