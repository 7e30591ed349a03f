//! `ofa extract` through the binary.

mod common;

use common::{changed, fails, finished_resnet_run, finished_run, succeeds};
use std::fs;

#[test]
fn a_fine_tuned_model_in_half_precision_is_half_as_large() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let arguments = ["extract", "--run", "run", "--subnet", "smallest", "--name", "tuned", "--finetune", "1"];
    let out = succeeds(folder, &[&arguments[..], &["--dtype", "f16"]].concat());
    assert!(out.contains("run/models/tuned"), "{out}");
    let bytes =
        |model: &str| fs::metadata(folder.join("run/models").join(model).join("model.safetensors")).unwrap().len();
    assert!((bytes("tuned") as f64) < 0.7 * bytes("smallest") as f64);
}

#[test]
fn a_damaged_model_is_replaced() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let config = folder.join("run/models/smallest/config.json");
    fs::write(&config, changed(&fs::read_to_string(&config).unwrap(), "\"labels\"", "\"lables\"")).unwrap();
    fails(folder, &["bench", "run/models/smallest"], &["config.json", "did you mean `labels`?"]);
    succeeds(folder, &["extract", "--run", "run", "--subnet", "smallest", "--recalibration", "20"]);
    succeeds(folder, &["bench", "run/models/smallest"]);
}

#[test]
fn subnets_of_a_resnet_are_found_by_text_setting_and_search() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_resnet_run(folder);
    let subnet = "r24 w0.5,1,1,0.5 s1 d2,1 e0.25,0.5|0.25";
    succeeds(folder, &["search", "--run", "run", "--generations", "3", "--limit", "any:macs=0.8M"]);
    succeeds(folder, &["extract", "--run", "run", "--search-results", "--subnet", "largest"]);
    let setting = r#"{"d": [1, 1, 0], "e": [0.25, 0.5, 0.25, 0.5], "w": [0, 1, 1, 0], "r": 24}"#;
    let tuned = ["extract", "--run", "run", "--subnet", setting, "--name", "tuned", "--finetune", "0.1"];
    let out = succeeds(folder, &tuned);
    assert!(out.contains(subnet), "{out}");
    let out = succeeds(folder, &["bench", "run/models/tuned", "run/models/largest", "--batch", "1,3", "--json"]);
    let rows: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(rows[0]["parameters"].as_f64() < rows[1]["parameters"].as_f64(), "{out}");
    let outside = subnet.replace("w0.5", "w0.7");
    fails(folder, &["extract", "--run", "run", "--subnet", &outside], &["width multiplier is 0.7", "0.5, 1"]);
}

#[test]
fn a_setting_is_read_as_the_published_search_prints_it() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    for (number, setting) in [
        r#"{"wid": null, "ks": [5, 5, 5, 5], "e": [4, 4, 4, 4], "d": [2, 2], "r": [32]}"#,
        r#"{"ks": [3, null, 3, null], "e": [2, null, 2, null], "d": [1, 1], "r": 16}"#,
        "{'wid': None, 'ks': [5, 5, 5, 5], 'e': [4, 4, 4, 4], 'd': [2, 2], 'r': [32]}",
    ]
    .into_iter()
    .enumerate()
    {
        let name = number.to_string();
        let arguments = ["extract", "--run", "run", "--recalibration", "20", "--name", &name, "--subnet", setting];
        let out = succeeds(folder, &arguments);
        assert!(out.contains(if number == 1 { "r16 d1,1 k3|3 e2|2" } else { "r32 d2,2 k5,5|5,5 e4,4|4,4" }), "{out}");
    }
}

#[test]
fn a_subnet_that_cannot_be_read_is_refused_in_one_line() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let depths = format!("r32 w1 s0 d{} e1", ["4000000000"; 10_000].join(","));
    for (subnet, reason) in [
        (depths.as_str(), "expected the form 'r160 d2,3"),
        ("{'ks': 5, 'e': 4}", "'d', the depths, is missing"),
        ("{'kernels': 5}", "'kernels' is not known; expected {"),
        ("{\"ks\": 5,", "cannot be read from column"),
        ("{'ks': 5, 'e': 4, 'd': [2, 9], 'r': 32}", "'d' asks for 9 blocks in stage 2, which has 2"),
    ] {
        let err = fails(folder, &["extract", "--run", "run", "--subnet", subnet], &["error: subnet: ", reason]);
        assert!(err.lines().count() == 1 && err.len() < 700, "{err}");
    }
}
