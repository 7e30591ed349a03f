//! `ofa bench` through the binary.

mod common;

use common::{changed, command, fails, finished_run, misused, ofa, small_configuration, succeeds, write_images};
use std::path::Path;

#[test]
fn models_are_measured_at_each_batch_size() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let models = ["run/models/largest", "run/models/smallest"];
    let out = succeeds(folder, &["bench", models[0], models[1], "--data", "builtin", "--batch", "1,4", "--json"]);
    let rows: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(rows[0]["model"], "largest");
    assert_eq!(rows[0]["latencies"].as_array().unwrap().len(), 2);
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
    misused(temporary.path(), &["bench", "run/models/smallest", "--layers", "--json"], &["--layers"]);
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
        serde_json::from_str::<serde_json::Value>(&succeeds(folder, arguments)).unwrap()[0]["accuracy"].clone()
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
    assert_eq!(rows.as_array().unwrap().iter().map(|row| row["model"].as_str().unwrap()).collect::<Vec<_>>(), expected);
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
    std::fs::write(&path, config.to_string()).unwrap();
    fails(folder, &["bench", "b/models/largest", "--batch", "65536"], &["65536 images", "of this machine"]);
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

/// The batch takes some seconds of warm-up and measuring, which nothing else interrupts.
#[cfg(unix)]
#[test]
fn a_signal_ends_measuring_with_its_exit_code() {
    let temporary = models();
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let arguments = [&MODELS[..], &["--batch", "2000"]].concat();
        let mut child = command(temporary.path(), &arguments).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_secs(1));
        assert!(child.try_wait().unwrap().is_none(), "the command has ended already");
        assert!(std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code));
        assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}
