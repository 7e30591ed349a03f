//! `ofa extract` through the binary.

mod common;

use common::{changed, fails, finished_resnet_run, finished_run, ofa, succeeds};
use ofa_supernet::train::checkpoint::{read_supernet, write_supernet};
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
fn a_search_result_that_is_out_of_date_is_told_by_name() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    fs::remove_dir_all(folder.join("run/search")).unwrap();
    let limits = ["--limit", "any:macs=0.4M", "--limit", "this:latency=1s"];
    succeeds(folder, &[&["search", "--run", "run", "--generations", "2"], &limits[..]].concat());
    let warnings = || {
        let output = ofa(folder, &["extract", "--run", "run", "--search-results", "--recalibration", "20"]);
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{err}");
        err
    };
    let (macs, latency) = ("warning: run/search/any-macs-400k.json: ", "warning: run/search/this-latency-1s.json: ");
    let err = warnings();
    assert!(!err.contains("warning"), "{err}");

    // The device became slower.
    let profile = folder.join("run/devices/this.json");
    let good = fs::read_to_string(&profile).unwrap();
    let mut slow: serde_json::Value = serde_json::from_str(&good).unwrap();
    slow["calibration"]["overhead_ms"] = 2000.0.into();
    fs::write(&profile, slow.to_string()).unwrap();
    let err = warnings();
    assert!(
        err.contains(&format!("{latency}by the present profile its subnet has 2s")) && !err.contains(macs),
        "{err}"
    );
    fs::write(&profile, good).unwrap();

    // Another predictor, other weights, and a result of an earlier version.
    succeeds(folder, &["predictor", "--run", "run", "--samples", "16", "--recalibration", "300", "--members", "1"]);
    let err = warnings();
    assert!(err.contains(&format!("{macs}it was found with an earlier predictor")) && err.contains(latency), "{err}");
    let path = folder.join("run/checkpoints/supernet.safetensors");
    let (state, note) = read_supernet(&path).unwrap();
    let state = state.into_iter().map(|(name, tensor)| (name, (tensor * 1.001).unwrap())).collect();
    write_supernet(&path, state, &note).unwrap();
    let err = warnings();
    assert!(err.contains(&format!("{macs}it was found for other weights")) && err.contains("search again"), "{err}");
    let path = folder.join("run/search/any-macs-400k.json");
    let mut result: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    result.as_object_mut().unwrap().remove("basis");
    fs::write(&path, result.to_string()).unwrap();
    let err = warnings();
    assert!(err.contains(&format!("{macs}it does not say for which weights")), "{err}");
}

#[test]
fn a_search_result_of_another_space_is_refused_by_name() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let path = folder.join("run/search/other.json");
    let some = fs::read_dir(folder.join("run/search")).unwrap().next().unwrap().unwrap().path();
    let mut result: serde_json::Value = serde_json::from_slice(&fs::read(some).unwrap()).unwrap();
    result["best"] = "r24 w0.5,1,1,0.5 s1 d2,1 e0.25,0.5|0.25".into();
    fs::write(&path, result.to_string()).unwrap();
    fails(
        folder,
        &["extract", "--run", "run", "--search-results"],
        &["error: run/search/other.json: ", "width multipliers"],
    );
}
