//! `ofa speed` through the binary.

mod common;

use common::succeeds;

#[test]
fn speed_reports_every_mode() {
    let temporary = tempfile::tempdir().unwrap();
    for mode in ["max", "elastic", "eval"] {
        let size = ["--space", "tiny", "--resolution", "16", "--batch", "4", "--steps", "2"];
        let out = succeeds(temporary.path(), &[&["speed"], &size[..], &["--mode", mode, "--json"]].concat());
        let report: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert!(report["images_per_second"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn speed_estimates_the_time_of_a_schedule() {
    let temporary = tempfile::tempdir().unwrap();
    let config = succeeds(temporary.path(), &["config", "--preset", "tiny", "--epochs", "1", "--batch", "4"]);
    std::fs::write(temporary.path().join("c.toml"), &config).unwrap();
    let arguments =
        ["speed", "--space", "tiny", "--batch", "4", "--steps", "1", "--config", "c.toml", "--images", "100"];
    let out = succeeds(temporary.path(), &arguments);
    assert!(out.contains("the schedule takes about"), "{out}");
}
