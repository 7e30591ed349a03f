//! `ofa predictor` through the binary: samples, active sampling and the learning curve.

mod common;

use common::{fails, finished_run, succeeds, tuning_configuration};
use ofa_supernet::SearchSpace;
use ofa_supernet::seed::{Purpose, generator};
use serde_json::{Value, json};

#[test]
fn earlier_samples_are_kept_when_more_are_measured() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let samples = || std::fs::read_to_string(folder.join("run/predictor/samples.jsonl")).unwrap();
    let before = samples();
    let out =
        succeeds(folder, &["predictor", "--run", "run", "--samples", "20", "--recalibration", "100", "--images", "50"]);
    assert!(out.contains("20 subnets, 4 held out"), "{out}");
    assert!(samples().starts_with(&before));
}

#[test]
fn a_damaged_line_of_the_samples_is_named() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    std::fs::write(folder.join("run/predictor/samples.jsonl"), "{\"subnet\": 3}\n").unwrap();
    let predictor = ["predictor", "--run", "run", "--samples", "12", "--images", "20", "--recalibration", "20"];
    fails(folder, &predictor, &["samples.jsonl", "samples.jsonl:1", "expected"]);
}

#[test]
fn a_missing_run_is_named() {
    let temporary = tempfile::tempdir().unwrap();
    fails(temporary.path(), &["predictor", "--run", "nowhere"], &["nowhere"]);
}

#[test]
fn a_published_predictor_for_another_space_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let file = "run/checkpoints/supernet.safetensors";
    fails(folder, &["predictor", "--run", "run", "--import", file], &[file, "five stages"]);
}

fn search<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["search", "--run", "run", "--limit", "any:macs=0.4M", "--generations", "5", "--json"], more].concat()
}

#[test]
fn samples_are_chosen_and_the_curve_is_drawn_from_them() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    tuning_configuration(folder, "1");
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
