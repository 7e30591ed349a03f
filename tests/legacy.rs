//! Folders that earlier versions wrote, read by this version's binary. `written_by/DATE` holds a finished run with a
//! device profile, a predictor, search results and a model, and a run that was interrupted. These folders are never
//! regenerated, so that a change of format that breaks users' files fails here.

mod common;

use common::{Snapshot, metrics, succeeds, weights};
use ofa_supernet::train::checkpoint::{Checkpoint, Folder};
use serde_json::Value;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

const WRITTEN: [&str; 1] = ["2026-11"];

/// Copies `kind` of every version to `folder/DATE` and returns the names of the copies.
fn copies(folder: &Path, kind: &str) -> Vec<String> {
    let written = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/written_by");
    for date in WRITTEN {
        Snapshot::of(&written.join(date).join(kind)).write_to(&folder.join(date));
    }
    WRITTEN.map(String::from).to_vec()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn an_earlier_profile_and_predictor_give_the_search_results_that_they_gave() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    for run in copies(folder, "finished") {
        let files =
            ["search/board-latency-1ms.json", "search/any-macs-500k.json"].map(|name| folder.join(&run).join(name));
        let before = files.each_ref().map(|file| json(file));
        let limits = ["--limit", "board:latency=1ms", "--limit", "any:macs=500k", "--strategy", "grid"];
        succeeds(folder, &[&["search", "--run", &run], &limits[..]].concat());
        for (file, before) in files.iter().zip(before) {
            let now = json(file);
            assert_eq!(now["best"].as_str().unwrap(), before["best"], "{run}");
            for (now, before) in [
                (&now["predicted_accuracy"], &before["predicted_accuracy"]),
                (&now["constraints"][0]["value"], &before["constraints"][0]["value"]),
            ] {
                let (now, before) = (now.as_f64().unwrap(), before.as_f64().unwrap());
                assert!((now - before).abs() <= 1e-5 * before.abs(), "{run}: {now} instead of {before}");
            }
        }
    }
}

#[test]
fn an_earlier_supernet_gives_the_model_that_it_gave() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    for run in copies(folder, "finished") {
        let model = folder.join(&run).join("models/any-macs-500k");
        let tensors = || {
            let file =
                candle_core::safetensors::load(model.join("model.safetensors"), &candle_core::Device::Cpu).unwrap();
            let mut tensors: Vec<_> = file.into_iter().collect();
            tensors.sort_by(|(name, _), (other, _)| name.cmp(other));
            tensors.into_iter().map(|(name, tensor)| (name, tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()))
        };
        let before: Vec<_> = tensors().collect();
        let subnet = json(&model.join("config.json"))["subnet"].as_str().unwrap().to_string();
        fs::remove_dir_all(&model).unwrap();
        succeeds(folder, &["extract", "--run", &run, "--subnet", &subnet, "--name", "any-macs-500k"]);
        let names = |tensors: &[(String, Vec<f32>)]| tensors.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        let now: Vec<_> = tensors().collect();
        assert_eq!(names(&now), names(&before), "{run}");
        for ((name, now), (_, before)) in now.into_iter().zip(before) {
            assert_eq!(now.len(), before.len(), "{run}: {name}");
            let scale = before.iter().fold(1e-3f32, |scale, value| scale.max(value.abs()));
            // Weights are copied; statistics are recalibrated, and their rounding depends on the number of threads.
            let allowed = if name.contains("running") { 1e-4 * scale } else { 0.0 };
            for off in now.iter().zip(&before).map(|(now, before)| (now - before).abs()) {
                assert!(off <= allowed, "{run}: {name} differs by {off}");
            }
        }
    }
}

#[test]
fn an_earlier_model_is_benchmarked() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    for run in copies(folder, "finished") {
        let model = format!("{run}/models/any-macs-500k");
        let out = succeeds(folder, &["bench", &model, "--data", "builtin", "--data-seed", "1", "--json"]);
        let rows: Value = serde_json::from_str(&out).unwrap();
        let accuracy = |part: &str| rows["models"][0]["accuracy"][part].as_f64().unwrap();
        assert!((accuracy("top1") - 0.099).abs() < 0.003 && (accuracy("top5") - 0.539).abs() < 0.003, "{run}: {out}");
    }
}

#[test]
fn an_earlier_run_is_resumed() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    for run in copies(folder, "interrupted") {
        let (path, before) = (folder.join(&run), metrics(&folder.join(&run)));
        // The same without momentum, to see that what the checkpoint holds is used.
        let forgetful = format!("{run}-without-momentum");
        Snapshot::of(&path).write_to(&folder.join(&forgetful));
        let checkpoint = Folder::of_run(&path, 1).latest().unwrap().unwrap().checkpoint;
        assert!(!checkpoint.momentum.is_empty(), "{run}");
        let checkpoint = Checkpoint { momentum: HashMap::new(), ..checkpoint };
        Folder::of_run(&folder.join(&forgetful), 1).save(&checkpoint).unwrap();
        for run in [&run, &forgetful] {
            succeeds(folder, &["train", "--out", run, "--resume"]);
        }
        let now = metrics(&path);
        assert!(now.starts_with(&before) && now.last().unwrap()["type"] == "finished", "{run}: {now:?}");
        assert!(weights(&path) != weights(&folder.join(&forgetful)), "{run}");
    }
}
