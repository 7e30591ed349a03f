//! `ofa bench` through the binary.

mod common;

use common::{fails, finished_run, succeeds};

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
fn a_damaged_model_is_named() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    std::fs::write(folder.join("run/models/smallest/model.safetensors"), b"short").unwrap();
    fails(folder, &["bench", "run/models/smallest"], &["smallest"]);
}
