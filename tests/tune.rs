//! `ofa tune` through the binary.

mod common;

use common::{changed, fails, succeeds, tuning_configuration, write_two_classes};
use serde_json::{Value, json};
use std::path::Path;

/// Trials without measured times.
fn trials(folder: &Path, name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join(name).join("trials.jsonl")).unwrap();
    let mut trials: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    trials.iter_mut().for_each(|trial| trial["seconds"] = json!(0));
    trials
}

#[test]
fn tuning_stops_bad_trials_resumes_and_writes_the_best() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    tuning_configuration(folder, "8");
    write_two_classes(&folder.join("images"), 40, 4);
    let text = std::fs::read_to_string(folder.join("c.toml")).unwrap();
    let text = changed(&text, "\nvalidation = 100", "\nvalidation = 20");
    std::fs::write(folder.join("c.toml"), changed(&text, "\nbatch = 32", "\nbatch = 16")).unwrap();
    // The learning rates range from useless to usable.
    let ranges = "[learning_rate]\nlow = 1e-6\nhigh = 0.1\nlog = true\n[batch]\nvalues = [16, 32]\n";
    std::fs::write(folder.join("r.toml"), ranges).unwrap();
    let tune = |out: &str, more: &[&str]| {
        let arguments = [
            "tune",
            "--config",
            "c.toml",
            "--data",
            "images",
            "--ranges",
            "r.toml",
            "--trial-epochs",
            "4",
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
    // Hopeless trials are stopped early, but only after three trials to compare with.
    assert!(found[..3].iter().all(|trial| trial["outcome"] == "finished"), "{found:?}");
    let stopped: Vec<&Value> = found.iter().filter(|trial| trial["outcome"] == "stopped").collect();
    assert!(!stopped.is_empty(), "{found:?}");
    assert!(stopped.iter().all(|trial| trial["curve"].as_array().unwrap().last().unwrap()["progress"] != 1.0));
    assert!(!folder.join("whole/trial-000").exists());

    // best.toml is a complete configuration, with all epochs.
    let objective = |trial: &&Value| (trial["objective"].as_f64().unwrap() * 1e6) as u64;
    let best = found.iter().filter(|trial| trial["outcome"] == "finished").max_by_key(objective).unwrap();
    let text = std::fs::read_to_string(folder.join("whole/best.toml")).unwrap();
    let config: toml::Table = toml::from_str(&text).unwrap();
    let rate = config["train"]["stages"][0]["learning_rate"].as_float().unwrap();
    assert!((rate / best["values"]["learning_rate"].as_f64().unwrap() - 1.0).abs() < 1e-9);
    assert_eq!(config["train"]["batch"].as_integer().unwrap() as f64, best["values"]["batch"].as_f64().unwrap());
    succeeds(folder, &["config", "--config", "whole/best.toml"]);

    // A grid ends by itself; a trial with a diverging learning rate counts like any other.
    std::fs::write(folder.join("r.toml"), "[learning_rate]\nvalues = [0.05, 1e9]\n").unwrap();
    tune("grid", &["--strategy", "grid", "--no-pruning"]);
    let outcomes: Vec<Value> = trials(folder, "grid").iter().map(|trial| trial["outcome"].clone()).collect();
    assert_eq!(outcomes, [json!("finished"), json!("diverged")]);

    let arguments = ["tune", "--config", "c.toml", "--data", "builtin", "--ranges", "r.toml"];
    fails(folder, &[&arguments[..], &["--out", "whole"]].concat(), &["whole", "other ranges", "--out"]);
    std::fs::write(folder.join("r.toml"), "[learnin_rate]\nvalues = [1]\n").unwrap();
    fails(folder, &arguments, &["r.toml", "learnin_rate", "learning_rate"]);
}

/// Arguments that tune `learning_rate` over `values` with half an epoch per trial.
fn tune<'a>(out: &'a str, strategy: &'a str, trials: &'a str) -> Vec<&'a str> {
    let arguments = ["tune", "--config", "c.toml", "--ranges", "r.toml", "--trial-epochs", "0.5", "--no-pruning"];
    [&arguments[..], &["--out", out, "--strategy", strategy, "--trials", trials]].concat()
}

#[test]
fn a_tuning_whose_trials_all_diverge_has_no_best() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    tuning_configuration(folder, "4");
    std::fs::write(folder.join("r.toml"), "[learning_rate]\nlow = 1e8\nhigh = 1e9\n").unwrap();
    let words = ["out: all 2 trials diverged", "lower learning rates", "--out"];
    fails(folder, &tune("out", "random", "2"), &words);
    assert!(!folder.join("out/best.toml").exists());
    // The same command finds the trials done, and also has no best.
    fails(folder, &tune("out", "random", "2"), &words);
}

#[test]
fn values_that_training_refuses_are_refused_with_file_and_line() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    tuning_configuration(folder, "4");
    for (ranges, words) in [
        ("[batch]\nvalues = [0]\n", "error: r.toml:1: [batch] 0 is not a possible batch"),
        ("[batch]\nvalues = [8.5]\n", "error: r.toml:1: [batch] 8.5 is not a possible batch"),
        ("\n[momentum]\nlow = 0.5\nhigh = 1.5\n", "error: r.toml:2: [momentum] momentum = 1.5 must be"),
        ("[dropout]\nlow = 0.1\nvalues = [0.2]\n", "error: r.toml:1: [dropout] values excludes low"),
    ] {
        std::fs::write(folder.join("r.toml"), ranges).unwrap();
        fails(folder, &tune("out", "random", "2"), &[words]);
    }
    assert!(!folder.join("out").exists());
}

#[test]
fn no_strategy_repeats_what_another_has_tried() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    tuning_configuration(folder, "4");
    let ranges = "[learning_rate]\nlow = 0.01\nhigh = 0.1\nlog = true\nsteps = 2\n[batch]\nvalues = [50, 100]\n";
    std::fs::write(folder.join("r.toml"), ranges).unwrap();
    succeeds(folder, &tune("out", "random", "1"));
    succeeds(folder, &tune("out", "grid", "9"));
    let values: Vec<Value> = trials(folder, "out").iter().map(|trial| trial["values"].clone()).collect();
    assert_eq!(values.len(), 5, "{values:?}");
    let grid = [(0.01, 50.0), (0.01, 100.0), (0.1, 50.0), (0.1, 100.0)];
    let grid = grid.map(|(rate, batch)| json!({"learning_rate": rate, "batch": batch}));
    assert_eq!(values[1..], grid);

    std::fs::write(folder.join("r.toml"), "[batch]\nvalues = [50, 100]\n").unwrap();
    succeeds(folder, &tune("few", "random", "9"));
    assert_eq!(trials(folder, "few").len(), 2);
}

#[test]
fn an_unfinished_trial_is_finished_before_another_strategy_suggests() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    tuning_configuration(folder, "4");
    std::fs::write(folder.join("r.toml"), "[learning_rate]\nvalues = [0.01, 0.05, 0.1]\n").unwrap();
    succeeds(folder, &tune("out", "grid", "1"));
    std::fs::create_dir(folder.join("out/trial-001")).unwrap();
    std::fs::write(folder.join("out/trial-001/values.json"), "{\"learning_rate\": 0.1}").unwrap();
    succeeds(folder, &tune("out", "grid", "3"));
    let rates: Vec<f64> =
        trials(folder, "out").iter().map(|trial| trial["values"]["learning_rate"].as_f64().unwrap()).collect();
    assert_eq!(rates, [0.01, 0.1, 0.05]);
}

#[test]
fn a_tuning_continues_only_with_the_images_it_began_with() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let fill = |classes: &[&str]| {
        for (class, split) in classes.iter().flat_map(|class| [(class, "train"), (class, "test")]) {
            let path = folder.join("images").join(split).join(class);
            std::fs::create_dir_all(&path).unwrap();
            for index in 0..30 {
                let value = |x: u32, y: u32| (x * 7 + y * index + class.len() as u32 * 90) as u8;
                let image =
                    image::RgbImage::from_fn(16, 16, |x, y| image::Rgb([value(x, y), value(y, x), value(x, x)]));
                image.save(path.join(format!("{index}.png"))).unwrap();
            }
        }
    };
    fill(&["a", "bb", "ccc"]);
    tuning_configuration(folder, "4");
    let text = std::fs::read_to_string(folder.join("c.toml")).unwrap();
    let text = changed(&text, "source = \"builtin\"", "source = \"images\"");
    std::fs::write(folder.join("c.toml"), changed(&text, "validation = 100", "validation = 20")).unwrap();
    std::fs::write(folder.join("r.toml"), "[learning_rate]\nvalues = [0.01, 0.05, 0.1]\n").unwrap();
    succeeds(folder, &tune("out", "random", "1"));
    succeeds(folder, &tune("out", "random", "2"));
    std::fs::remove_dir_all(folder.join("images")).unwrap();
    fill(&["a", "bb", "dddd"]);
    fails(folder, &tune("out", "random", "3"), &["out/data.json", "other images than 'images'", "--out"]);
    assert_eq!(trials(folder, "out").len(), 2);
}
