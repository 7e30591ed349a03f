//! `ofa quickstart` through the binary.

mod common;

use common::{QUICKSTART, fails, finished_run, small_configuration, succeeds};
use std::fs;

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
    fails(folder, &["quickstart", "--out", "mine"], &["mine", "not made by an earlier quickstart"]);
}

#[test]
fn a_run_of_the_same_space_and_data_is_not_replaced() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_configuration(folder, "c.toml", "0.6");
    succeeds(folder, &["train", "--config", "c.toml", "--out", "q"]);
    let files = || {
        let mut files =
            fs::read_dir(folder.join("q/checkpoints")).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
        files.sort();
        (files, fs::read(folder.join("q/config.toml")).unwrap())
    };
    let before = files();
    fails(
        folder,
        &[&["quickstart", "--out", "q"], QUICKSTART].concat(),
        &["q: ", "was not made by an earlier quickstart", "--out"],
    );
    assert!(files() == before);
}

#[test]
fn a_quickstart_replaces_its_own_files_and_refuses_those_that_others_changed() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let quickstart = [&["quickstart", "--out", "run"], QUICKSTART].concat();
    succeeds(folder, &["extract", "--run", "run", "--subnet", "smallest", "--name", "mine"]);
    fs::write(folder.join("run/notes.txt"), "mine").unwrap();
    succeeds(folder, &quickstart);
    assert!(folder.join("run/models/mine/model.safetensors").exists() && folder.join("run/notes.txt").exists());

    succeeds(folder, &["predictor", "--run", "run", "--samples", "18", "--recalibration", "300"]);
    let samples = || fs::read(folder.join("run/predictor/samples.jsonl")).unwrap();
    let measured = samples();
    fails(folder, &quickstart, &["run/predictor/", "changed since the quickstart wrote it", "--out"]);
    assert!(samples() == measured);
}

#[test]
fn too_few_samples_are_refused_before_anything_is_made() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    fails(folder, &["quickstart", "--out", "q", "--samples", "5"], &["--samples 5", "10"]);
    assert!(!folder.join("q").exists());
}
