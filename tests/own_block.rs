//! A program with a block kind of its own, `examples/fused_mbconv.rs`, from training to models, and the ordinary
//! program on the model folders.

mod common;
#[path = "../examples/fused_mbconv.rs"]
mod fused_mbconv;

use common::{changed, fails, ofa, succeeds};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

const SPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/fused_mbconv.toml");

/// Set in the processes in which this program is the example.
const AS_EXAMPLE: &str = "OFA_TEST_AS_EXAMPLE";

/// What the example prints on standard output.
#[track_caller]
fn own(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.env(AS_EXAMPLE, "1").current_dir(folder).args(arguments).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments:?}\n{out}\n{err}");
    out.into_owned()
}

/// Without the usual harness, whose arguments and output would be in the example's way.
fn main() -> ExitCode {
    if std::env::var_os(AS_EXAMPLE).is_some() {
        return fused_mbconv::main();
    }
    a_block_from_outside_is_trained_searched_and_extracted_and_the_ordinary_program_runs_the_models();
    println!("test result: ok. 1 passed; 0 failed; 0 ignored");
    ExitCode::SUCCESS
}

fn a_block_from_outside_is_trained_searched_and_extracted_and_the_ordinary_program_runs_the_models() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let preset = ["--preset", "tiny", "--space", SPACE];
    fails(folder, &[&["config"], &preset[..]].concat(), &["no block kind 'fused_mbconv'", "known: none"]);

    let config = own(folder, &[&["config", "--epochs", "3", "--validation", "60"], &preset[..]].concat());
    let config = changed(&config, "builtin_train = 6000", "builtin_train = 360");
    let config = changed(&config, "builtin_test = 1000", "builtin_test = 100");
    fs::write(folder.join("c.toml"), config).unwrap();
    own(folder, &["train", "--config", "c.toml", "--data", "builtin", "--out", "run"]);
    // The width stage sorted the channels, and a resumed run finds nothing left to do.
    own(folder, &["train", "--out", "run", "--resume"]);
    own(folder, &["predictor", "--run", "run", "--samples", "12", "--recalibration", "40", "--images", "60"]);
    own(folder, &["profile", "--run", "run", "--name", "here", "--rounds", "2", "--check", "4"]);
    let table: Value = serde_json::from_slice(&fs::read(folder.join("run/devices/here.json")).unwrap()).unwrap();
    let timed = table["table"].as_array().unwrap().iter().filter_map(|entry| entry["layer"]["block"].as_str());
    let timed: Vec<&str> = timed.collect();
    // Kernels, ratios and sizes of both blocks of the stage.
    assert_eq!(timed.len(), 2 * 2 * 3 * 3, "{timed:?}");
    assert!(timed.iter().all(|key| key.starts_with("fused_mbconv ") && key.contains("conv_exp=conv ")));
    own(
        folder,
        &["search", "--run", "run", "--limit", "here:latency=1s", "--limit", "any:macs=600k", "--strategy", "grid"],
    );
    own(folder, &["extract", "--run", "run", "--search-results", "--recalibration", "60"]);

    for model in ["here-latency-1s", "any-macs-600k"] {
        let model = format!("run/models/{model}");
        let bench = ["bench", &model, "--data", "builtin", "--json"];
        let accuracy = |out: String| serde_json::from_str::<Value>(&out).unwrap()["models"][0]["accuracy"].clone();
        let (ours, theirs) = (accuracy(own(folder, &bench)), accuracy(succeeds(folder, &bench)));
        assert_eq!(ours["top1"], theirs["top1"], "{model}");
        assert!(theirs["top1"].as_f64().unwrap() > 0.0, "{theirs}");
    }
    // Without the kind, the run's space cannot be read, only its models.
    fails(folder, &["search", "--run", "run", "--limit", "any:macs=600k"], &["no block kind 'fused_mbconv'"]);

    let path = folder.join("run/models/any-macs-600k/config.json");
    let text = fs::read_to_string(&path).unwrap();
    for (old, new, part) in [
        ("conv_exp=conv ", "conv_exp=conv 9", "tensor"),
        ("bn1=norm", "bn1=norm of 0", "only reader of a convolution"),
        ("bn1=norm", "bn1=norm of 7", "does not come before it"),
        ("conv_pwl=conv ", "conv_pwl=conv 1048577", "number of channels is 1048577"),
        ("fused_mbconv ", "fused mbconv ", "is not an extent"),
    ] {
        fs::write(&path, changed(&text, old, new)).unwrap();
        let output = ofa(folder, &["bench", "run/models/any-macs-600k", "--data", "builtin"]);
        let error = common::refused(&output, &["any-macs-600k", part]);
        assert!(!error.contains("panicked"), "{error}");
    }
}
