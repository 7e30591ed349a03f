//! `ofa bench` through the binary.

mod common;

use common::{changed, fails, finished_run, ofa, small_configuration, succeeds, write_images};

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
