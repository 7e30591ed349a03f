//! Files of a run that are well-formed but meaningless: each error is one short line that begins with the file's path.

mod common;

use candle_core::Tensor;
use common::{QUICKSTART, changed, fails, finished_run, small_configuration, succeeds};
use ofa_supernet::train::tensor_file;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const SEARCH: &[&str] = &["search", "--run", "run", "--limit", "this:latency=1s", "--generations", "2"];
const PREDICTOR: &[&str] =
    &["predictor", "--run", "run", "--samples", "16", "--recalibration", "300", "--batch", "100"];
const EXTRACT: &[&str] = &["extract", "--run", "run", "--subnet", "smallest", "--recalibration", "20"];
const RESUME: &[&str] = &["train", "--out", "run", "--resume"];

/// Asserts that the command fails with an error of one line of at most 1200 characters that begins with the path of
/// `file`.
#[track_caller]
fn names(folder: &Path, arguments: &[&str], file: &str, expected: &[&str]) {
    let err = fails(folder, arguments, expected);
    let line = err.lines().last().unwrap();
    assert!(line.starts_with(&format!("error: {file}:")), "{arguments:?}: {line}");
    assert!(line.len() < 1200, "{} bytes: {line}", line.len());
}

/// Changes a file of [`tensor_file`], including its checksum.
fn rewrite(path: &Path, change: impl FnOnce(&mut BTreeMap<String, Tensor>, &mut Value)) {
    let (tensors, mut note): (_, Value) = tensor_file::read(path).unwrap();
    let mut tensors = tensors.into_iter().collect();
    change(&mut tensors, &mut note);
    tensor_file::write(path, &tensors, &note).unwrap();
}

fn replace(path: &Path, old: &str, new: &str) {
    fs::write(path, changed(&fs::read_to_string(path).unwrap(), old, new)).unwrap();
}

fn checkpoints(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.join("run/checkpoints")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.to_string_lossy().contains("step-")).collect()
}

#[test]
fn configuration() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let config = folder.join("run/config.toml");
    let good = fs::read_to_string(&config).unwrap();
    for (old, new, reason) in [
        ("\nmomentum = 0.9", "\nmomentum = 1e300", "momentum = 1"),
        ("\nwidth_multiplier = 1.0", "\nwidth_multiplier = 1e300", "width_multiplier"),
        ("builtin_test = 1000", "builtin_test = 1000000000000000", "[data] builtin_test"),
        ("\nkeep_checkpoints = 3", "\nkeep_checkpoints = 9000000000000000000", "keep_checkpoints"),
        ("\nepochs = ", "\nepochs = 1e300 # ", "epochs = 1"),
    ] {
        fs::write(&config, changed(&good, old, new)).unwrap();
        for command in [SEARCH, PREDICTOR, EXTRACT, RESUME] {
            names(folder, command, "run/config.toml", &[reason]);
        }
    }
}

#[test]
fn supernet() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let file = "run/checkpoints/supernet.safetensors";
    finished_run(folder);
    rewrite(&folder.join(file), |_, note| note["space"]["width_multiplier"] = 1e9.into());
    for command in [SEARCH, PREDICTOR, EXTRACT] {
        names(folder, command, file, &["search space: width_multiplier"]);
    }
    finished_run(folder);
    rewrite(&folder.join(file), |_, note| note["classes"] = Value::Array(Vec::new()));
    names(folder, SEARCH, file, &["no classes"]);
    finished_run(folder);
    rewrite(&folder.join(file), |tensors, _| drop(tensors.pop_first()));
    for command in [PREDICTOR, EXTRACT] {
        names(folder, command, file, &["weights: the tensor", "is missing"]);
    }
    finished_run(folder);
    rewrite(&folder.join(file), |tensors, _| {
        let mut first = tensors.first_entry().unwrap();
        let nan = (first.get() * f64::NAN).unwrap();
        first.insert(nan);
    });
    for command in [PREDICTOR, EXTRACT] {
        names(folder, command, file, &["weights: the tensor", "NaN"]);
    }
}

#[test]
fn checkpoint() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    for path in checkpoints(folder) {
        rewrite(&path, |_, note| note["identity"]["space"]["depths"] = Value::Array(Vec::new()));
    }
    names(folder, RESUME, "run/checkpoints", &["step-", "search space: depths"]);
    finished_run(folder);
    for path in checkpoints(folder) {
        rewrite(&path, |tensors, _| {
            let name = tensors.keys().find(|name| name.starts_with("weights.")).unwrap().clone();
            tensors.remove(&name);
        });
    }
    let err = fails(folder, RESUME, &["weights: the tensor", "is missing"]);
    assert!(err.lines().last().unwrap().starts_with("error: run/checkpoints/step-"), "{err}");
}

#[test]
fn predictor_and_samples() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let (file, path) = ("run/predictor/predictor.safetensors", folder.join("run/predictor/predictor.safetensors"));
    let mut bytes = fs::read(&path).unwrap();
    let old = b"\\\"width_multiplier\\\":1.0";
    let at = bytes.windows(old.len()).position(|window| window == old).unwrap() + old.len() - 3;
    bytes[at..at + 3].copy_from_slice(b"9e9");
    fs::write(&path, bytes).unwrap();
    names(folder, SEARCH, file, &["search space: width_multiplier"]);
    let samples = folder.join("run/predictor/samples.jsonl");
    let good = fs::read_to_string(&samples).unwrap();
    let first = good.lines().nth(1).unwrap();
    let long = "9".repeat(50_000);
    for (line, reason) in [
        (first.replace("\"r", "\"r9"), "resolution"),
        (first.replace("\"r", &format!("\"r{long}")), "no resolution"),
        (first.replace("\"subnet\"", &format!("\"{long}\"")), "unknown field"),
        (first.replace("accuracy\":", "accuracy\":7"), "between 0 and 1"),
    ] {
        fs::write(&samples, format!("{good}{line}\n{first}\n")).unwrap();
        let number = good.lines().count() + 1;
        names(folder, PREDICTOR, &format!("run/predictor/samples.jsonl:{number}"), &[reason]);
    }
}

#[test]
fn device_profile() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let path = folder.join("run/devices/this.json");
    let good = fs::read_to_string(&path).unwrap();
    for (old, new, reason) in [
        ("\"width_multiplier\": 1.0", "\"width_multiplier\": 9e9", "search space: width_multiplier"),
        ("\"subnet\": \"r", "\"subnet\": \"r9", "resolution"),
        ("\"batch\": 1", "\"batch\": 0", "batch is 0"),
    ] {
        fs::write(&path, changed(&good, old, new)).unwrap();
        names(folder, SEARCH, "run/devices/this.json", &[reason]);
    }
}

#[test]
fn search_result() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    for entry in fs::read_dir(folder.join("run/search")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let extract = ["extract", "--run", "run", "--search-results", "--recalibration", "20"];
    names(folder, &extract, "run/search", &["ofa search"]);
    succeeds(folder, SEARCH);
    // macOS leaves such files beside a file that it copies.
    fs::write(folder.join("run/search/._this.json"), b"\0\x05\x16\x07").unwrap();
    succeeds(folder, &extract);
    let file = "run/search/this-latency-1s.json";
    replace(&folder.join(file), "\"best\": \"r", "\"best\": \"r9");
    names(folder, &extract, file, &["resolution"]);
}

#[test]
fn model() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let bench = ["bench", "run/models/smallest"];
    let config = folder.join("run/models/smallest/config.json");
    let good = fs::read_to_string(&config).unwrap();
    for (old, new, reason) in [
        ("\"batch_norm_epsilon\": 0.00001", "\"batch_norm_epsilon\": -1.0", "epsilon"),
        ("\"version\": 1", "\"version\": 9", "version 9"),
    ] {
        let old = if good.contains(old) { old } else { "\"batch_norm_epsilon\": 1e-5" };
        fs::write(&config, changed(&good, old, new)).unwrap();
        names(folder, &bench, "run/models/smallest/config.json", &[reason]);
    }
    fs::write(&config, &good).unwrap();
    let other = fs::read(folder.join("run/models/largest/model.safetensors")).unwrap();
    fs::write(folder.join("run/models/smallest/model.safetensors"), other).unwrap();
    names(folder, &bench, "run/models/smallest/model.safetensors", &["tensor"]);
}

#[test]
fn files_named_by_flags() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_configuration(folder, "good.toml", "1");
    let good = fs::read_to_string(folder.join("good.toml")).unwrap();
    let train = ["train", "--config", "bad.toml", "--out", "other"];
    // None of the messages has the whole list or the whole name.
    let list: Vec<String> = (0..40_000).map(|number: usize| number.to_string()).collect();
    let list = format!("resolutions = [{}] #", list.join(", "));
    fs::write(folder.join("bad.toml"), changed(&good, "resolutions = ", &list)).unwrap();
    names(folder, &train, "bad.toml", &["resolutions holds 40000 values", "at most 128"]);
    let name = format!("\n{} = 1\nmomentum = ", "n".repeat(200_000));
    fs::write(folder.join("bad.toml"), changed(&good, "\nmomentum = ", &name)).unwrap();
    let line = 1 + good.lines().position(|line| line.starts_with("momentum = ")).unwrap();
    names(folder, &train, &format!("bad.toml:{line}"), &["unknown field `nnn", "nnn...`", "`momentum`"]);

    let mut space = toml::from_str::<toml::Table>(&good).unwrap()["space"].as_table().unwrap().clone();
    space.insert("width_multiplier".into(), 1e9.into());
    fs::write(folder.join("space.toml"), space.to_string()).unwrap();
    names(folder, &["config", "--space", "space.toml"], "space.toml", &["search space: width_multiplier"]);

    let tune = ["tune", "--config", "good.toml", "--ranges", "r.toml", "--out", "tuned"];
    fs::write(folder.join("r.toml"), "[momentum]\nlow = 0.5\nhigh = 1.5\n").unwrap();
    names(folder, &tune, "r.toml", &["momentum = 1.5"]);
    fs::write(folder.join("r.toml"), "[momentum]\nlow = 0.5\nhigh = 0.1\n").unwrap();
    names(folder, &tune, "r.toml", &["low = 0.5"]);
    fs::write(folder.join("r.toml"), "[momentum]\nlow = 0.5\nhigh = 0.9\n\n[colour]\nlow = 0.5\nhigh = 0.9\n").unwrap();
    names(folder, &tune, "r.toml:5", &["colour"]);

    fs::write(folder.join("net.config"), "{\"name\": \"x\", \"classifier\": {}}").unwrap();
    let import = ["import", "none.pth", "--network", "net.config", "--resolution", "32", "--out", "m"];
    names(folder, &import, "net.config", &["no published network"]);
}

#[test]
fn text_files_with_a_byte_order_mark_are_read() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    for file in ["config.toml", "devices/this.json", "predictor/samples.jsonl", "models/smallest/config.json"] {
        let path = folder.join("run").join(file);
        fs::write(&path, ["\u{feff}".as_bytes(), &fs::read(&path).unwrap()].concat()).unwrap();
    }
    succeeds(folder, PREDICTOR);
    succeeds(folder, SEARCH);
    succeeds(folder, &["bench", "run/models/smallest"]);
    // The changed files no longer count as the quickstart's.
    fails(
        folder,
        &[&["quickstart", "--out", "run"], QUICKSTART].concat(),
        &["run/config.toml", "this file has changed"],
    );
}
