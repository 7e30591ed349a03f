//! `ofa tune` through the binary.

mod common;

use common::{fails, succeeds, tuning_configuration};
use serde_json::{Value, json};
use std::path::Path;

/// Trials without what is measured in seconds.
fn trials(folder: &Path, name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join(name).join("trials.jsonl")).unwrap();
    let mut trials: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    trials.iter_mut().for_each(|trial| trial["seconds"] = json!(0));
    trials
}

#[test]
fn tuning_tries_gives_up_goes_on_and_writes_the_best() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    tuning_configuration(folder, "4");
    // From useless to usable.
    let ranges = "[learning_rate]\nlow = 1e-6\nhigh = 0.1\nlog = true\n[batch]\nvalues = [16, 32]\n";
    std::fs::write(folder.join("r.toml"), ranges).unwrap();
    let tune = |out: &str, more: &[&str]| {
        let arguments = [
            "tune",
            "--config",
            "c.toml",
            "--data",
            "builtin",
            "--ranges",
            "r.toml",
            "--trial-epochs",
            "2",
            "--out",
            out,
        ];
        succeeds(folder, &[&arguments[..], more].concat())
    };
    tune("stopped", &["--trials", "2"]);
    let out = tune("stopped", &["--trials", "7"]);
    for part in ["learning_rate", "batch", "best: trial", "stopped/best.toml", "trials.csv"] {
        assert!(out.contains(part), "'{part}' is not in: {out}");
    }
    tune("whole", &["--trials", "7"]);
    let found = trials(folder, "whole");
    assert_eq!(trials(folder, "stopped"), found);
    assert_eq!(found.len(), 7);
    // Hopeless ones are given up, though not before there are three to judge by.
    assert!(found[..3].iter().all(|trial| trial["outcome"] == "finished"), "{found:?}");
    let stopped: Vec<&Value> = found.iter().filter(|trial| trial["outcome"] == "stopped").collect();
    assert!(stopped.iter().all(|trial| trial["curve"].as_array().unwrap().last().unwrap()["progress"] != 1.0));
    assert!(!folder.join("whole/trial-000").exists());

    // The best is a whole configuration, with all epochs.
    let objective = |trial: &&Value| (trial["objective"].as_f64().unwrap() * 1e6) as u64;
    let best = found.iter().filter(|trial| trial["outcome"] == "finished").max_by_key(objective).unwrap();
    let text = std::fs::read_to_string(folder.join("whole/best.toml")).unwrap();
    let config: toml::Table = toml::from_str(&text).unwrap();
    let rate = config["train"]["stages"][0]["learning_rate"].as_float().unwrap();
    assert!((rate / best["values"]["learning_rate"].as_f64().unwrap() - 1.0).abs() < 1e-9);
    assert_eq!(config["train"]["batch"].as_integer().unwrap() as f64, best["values"]["batch"].as_f64().unwrap());
    succeeds(folder, &["config", "--config", "whole/best.toml"]);

    // A grid ends by itself; a learning rate that diverges is a trial like any other.
    std::fs::write(folder.join("r.toml"), "[learning_rate]\nvalues = [0.05, 1e30]\n").unwrap();
    tune("grid", &["--strategy", "grid", "--to-the-end"]);
    let outcomes: Vec<Value> = trials(folder, "grid").iter().map(|trial| trial["outcome"].clone()).collect();
    assert_eq!(outcomes, [json!("finished"), json!("diverged")]);

    let arguments = ["tune", "--config", "c.toml", "--data", "builtin", "--ranges", "r.toml"];
    fails(folder, &[&arguments[..], &["--out", "whole"]].concat(), &["whole", "other ranges", "--out"]);
    std::fs::write(folder.join("r.toml"), "[learnin_rate]\nvalues = [1]\n").unwrap();
    fails(folder, &arguments, &["r.toml", "learnin_rate", "learning_rate"]);
}
