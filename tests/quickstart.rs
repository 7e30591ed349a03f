//! `ofa quickstart` through the binary.

mod common;

use common::{QUICKSTART, fails, succeeds};

#[test]
fn quickstart_goes_from_training_to_benchmarked_models() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let out = succeeds(folder, &[&["quickstart", "--out", "q"], QUICKSTART].concat());
    for part in ["Kendall tau", "smallest", "largest", "this-latency-", "ofa train --preset cifar"] {
        assert!(out.contains(part), "'{part}' is not in: {out}");
    }
    for file in ["config.toml", "metrics.jsonl", "predictor/samples.jsonl", "predictor/fit.json", "devices/this.json"] {
        assert!(folder.join("q").join(file).exists(), "{file}");
    }
    let samples = std::fs::read_to_string(folder.join("q/predictor/samples.jsonl")).unwrap();
    assert_eq!(samples.lines().count(), 16);
}

#[test]
fn quickstart_replaces_no_folder_that_is_not_an_earlier_quickstart() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    std::fs::create_dir(folder.join("mine")).unwrap();
    std::fs::write(folder.join("mine/notes.txt"), "").unwrap();
    fails(folder, &["quickstart", "--out", "mine"], &["mine", "not an earlier quickstart"]);
}
