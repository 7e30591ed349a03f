//! `ofa tune`, active sampling and the learning curve through the binary.

mod common;

use common::{fails, succeeds};
use ofa_supernet::SearchSpace;
use ofa_supernet::seed::{Purpose, generator};
use serde_json::{Value, json};
use std::path::Path;

/// A small configuration of the preset `tiny`.
fn configuration(folder: &Path, epochs: &str) {
    let config = succeeds(folder, &["config", "--preset", "tiny", "--epochs", epochs]);
    let config = config
        .replace("builtin_train = 6000", "builtin_train = 400")
        .replace("recalibration_images = 200", "recalibration_images = 32")
        .replace("validation = 5000", "validation = 100");
    assert!(config.contains("builtin_train = 400") && config.contains("validation = 100"), "{config}");
    std::fs::write(folder.join("c.toml"), config).unwrap();
}

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
    configuration(folder, "4");
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

fn search<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["search", "--run", "run", "--limit", "any:macs=0.4M", "--generations", "5", "--json"], more].concat()
}

#[test]
fn samples_are_chosen_and_the_curve_is_drawn_from_them() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    configuration(folder, "1");
    succeeds(folder, &["train", "--config", "c.toml", "--data", "builtin", "--out", "run"]);
    let images = ["--recalibration", "20", "--images", "20"];
    let choose = |run: &str, count: &str, by: &str| {
        let more = ["--samples", count, "--active", by, "--members", "2"];
        succeeds(folder, &[&["predictor", "--run", run], &images[..], &more].concat())
    };
    let sample = |run: &str, count: &str| choose(run, count, "improvement");
    let samples = |run: &str| std::fs::read_to_string(folder.join(run).join("predictor/samples.jsonl")).unwrap();
    let out = sample("run", "24");
    assert!(out.contains("24 subnets") && out.contains("2 members") && out.contains("90 % interval"), "{out}");
    let whole = samples("run");
    // What was chosen is not what chance would have drawn next, and a cut file is completed with the same subnets.
    let cut: String = whole.lines().take(15).map(|line| format!("{line}\n")).collect();
    std::fs::write(folder.join("run/predictor/samples.jsonl"), cut).unwrap();
    sample("run", "24");
    assert_eq!(samples("run"), whole);
    // By deviation, all but the smallest and the largest are chosen.
    std::fs::remove_file(folder.join("run/predictor/samples.jsonl")).unwrap();
    choose("run", "20", "deviation");
    let by_deviation = samples("run");
    let cut: String = by_deviation.lines().take(7).map(|line| format!("{line}\n")).collect();
    std::fs::write(folder.join("run/predictor/samples.jsonl"), cut).unwrap();
    choose("run", "20", "deviation");
    assert_eq!(samples("run"), by_deviation);
    let space = SearchSpace::named("tiny").unwrap();
    let extremes = [space.smallest(), space.largest()].map(|subnet| format!("\"{subnet}\""));
    assert!(by_deviation.lines().zip(&extremes).all(|(line, subnet)| line.contains(subnet)), "{by_deviation}");
    assert!(!by_deviation.lines().skip(2).all(|line| whole.contains(line)), "{whole}\n{by_deviation}");
    std::fs::remove_file(folder.join("run/predictor/samples.jsonl")).unwrap();
    succeeds(
        folder,
        &["predictor", "--run", "run", "--samples", "24", "--recalibration", "20", "--images", "20", "--members", "1"],
    );
    let random = samples("run");
    let drawn = |count: usize| whole.lines().take(count).all(|line| random.contains(line));
    assert!(drawn(10) && !drawn(24), "{whole}\n{random}");

    // A single network cannot be pessimistic; several are, each to the extent of its deviation.
    fails(folder, &search(&["--pessimism", "1"]), &["single network", "--members"]);
    sample("run", "26");
    let found = |more: &[&str]| serde_json::from_str::<Value>(&succeeds(folder, &search(more))).unwrap()[0].clone();
    let (neutral, pessimistic) = (found(&[]), found(&["--pessimism", "3"]));
    assert_eq!((&neutral["pessimism"], pessimistic["pessimism"].as_f64()), (&Value::Null, Some(3.0)));
    let number = |result: &Value, key: &str| result[key].as_f64().unwrap();
    assert!(number(&pessimistic, "predicted_deviation") <= number(&neutral, "predicted_deviation"));
    assert!(number(&pessimistic, "predicted_accuracy") <= number(&neutral, "predicted_accuracy") + 1e-9);
    let last = pessimistic["history"].as_array().unwrap().last().unwrap()["score"].as_f64().unwrap();
    let lower = number(&pessimistic, "predicted_accuracy") - 3.0 * number(&pessimistic, "predicted_deviation");
    assert!((last - lower).abs() < 1e-9, "{last} {lower}");
    fails(folder, &search(&["--pessimism=-1"]), &["--pessimism -1"]);

    let lines: String = (0..120)
        .map(|i| space.sample(&mut generator(1, Purpose::Sampling, &[i])))
        .map(|subnet| {
            let size: f64 = subnet.blocks().map(|b| b.expand.value()).sum();
            format!("{}\n", json!({"subnet": subnet.to_string(), "accuracy": 0.3 + 0.02 * size}))
        })
        .collect();
    std::fs::write(folder.join("run/predictor/samples.jsonl"), lines).unwrap();
    let out = succeeds(folder, &["predictor", "--run", "run", "--curve", "--members", "2"]);
    assert_eq!(out.lines().count(), 9, "{out}");
    assert!(out.contains("tau, random") && out.contains("tau, chosen"), "{out}");
    let alone = ["predictor", "--run", "run", "--curve", "--active", "improvement", "--members", "1"];
    fails(folder, &alone, &["two members"]);
}
