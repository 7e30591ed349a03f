//! Accuracies that were measured elsewhere: a run without a supernet, and what its search keeps to.

mod common;

use common::{fails, misused, ofa, succeeds};
use ofa_supernet::SearchSpace;
use ofa_supernet::seed::{Stream, generator};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// The predictor's samples.
fn samples(folder: &Path) -> String {
    fs::read_to_string(folder.join("run/predictor/samples.jsonl")).unwrap()
}

#[test]
fn accuracies_measured_elsewhere_make_a_run_without_a_supernet() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let space = SearchSpace::named("tiny").unwrap();
    let lines: Vec<String> = (0..60)
        .map(|position| {
            let subnet = space.sample(&mut generator(5, Stream::Samples, &[position]));
            let size: f64 = subnet.blocks().map(|block| block.kernel as f64 * block.expand.value()).sum();
            json!({"subnet": subnet, "accuracy": 50.0 + 0.3 * size, "source": "elsewhere"}).to_string()
        })
        .collect();
    fs::write(folder.join("a.jsonl"), lines.join("\n")).unwrap();
    let import = ["predictor", "--space", "tiny", "--classes", "10", "--import", "a.jsonl", "--out", "run"];
    let out = succeeds(folder, &import);
    assert!(out.contains("60 accuracies imported") && out.contains("Kendall tau"), "{out}");
    // Repeated, nothing is added, and the number of classes stays.
    let count = samples(folder).lines().count();
    let again = ["predictor", "--space", "tiny", "--import", "a.jsonl", "--out", "run"];
    succeeds(folder, &again);
    let classes = || {
        let text = fs::read_to_string(folder.join("run/space.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["classes"].as_array().unwrap().len()
    };
    assert_eq!(classes(), 10);
    fails(folder, &[&again[..], &["--classes", "20"]].concat(), &["run", "have 10 classes, not 20"]);
    assert_eq!(samples(folder).lines().count(), count);
    assert!(samples(folder).lines().all(|line| line.contains(r#""imported_from":"a.jsonl""#)));
    fs::write(folder.join("b.csv"), "subnet\n\"r24 d1,2 k5|3,5 e2|4,3\"\n\"r32 d2,2 k5,5|5,5 e4,4|4,4\"\n").unwrap();
    let out = succeeds(folder, &["predictor", "--run", "run", "--predict", "b.csv"]);
    let rows: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((rows.len(), &rows[0]["subnet"]), (2, &"r24 d1,2 k5|3,5 e2|4,3".into()));
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap();
    assert!(number(&rows[0], "accuracy") < number(&rows[1], "accuracy"));
    assert!(number(&rows[0], "low") <= number(&rows[0], "accuracy"));
    assert!(number(&rows[0], "high") >= number(&rows[0], "accuracy"));
    let out = succeeds(folder, &["search", "--run", "run", "--limit", "any:macs=0.4M", "--generations", "5", "--json"]);
    let found = &serde_json::from_str::<Value>(&out).unwrap()["results"];
    assert!(found[0]["constraints"][0]["value"].as_f64().unwrap() <= 4e5, "{found}");
    // Nothing is advised that needs a supernet.
    let out = succeeds(folder, &["search", "--run", "run", "--limit", "any:macs=0.4M", "--generations", "5"]);
    assert!(out.contains("predictor: Kendall's tau") && !out.contains("--verify") && !out.contains("Next:"), "{out}");
    let out = succeeds(folder, &["report", "--run", "run"]);
    assert!(out.contains("no supernet to extract models from") && !out.contains("ofa extract"), "{out}");
    succeeds(folder, &["profile", "--run", "run", "--name", "this", "--rounds", "2", "--check", "4"]);
    succeeds(folder, &["search", "--run", "run", "--limit", "this:latency=1s"]);
    // Latencies can come from elsewhere too.
    let layers = succeeds(folder, &["profile", "--run", "run", "--layers"]);
    let timed: Vec<String> = layers.lines().skip(1).map(|layer| format!("{layer}0.125")).collect();
    fs::write(folder.join("phone.csv"), format!("layer,ms\n{}\n", timed.join("\n"))).unwrap();
    succeeds(folder, &["profile", "--run", "run", "--name", "phone", "--import", "phone.csv"]);
    let limits = ["--limit", "phone:latency=1s", "--limit", "phone:latency=1001ms"];
    succeeds(folder, &[&["search", "--run", "run"][..], &limits].concat());
    let value = |name: &str| {
        let found: Value = serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap();
        found["constraints"][0]["value"].as_f64().unwrap()
    };
    let (first, second) = (value("run/search/phone-latency-1s.json"), value("run/search/phone-latency-1001ms.json"));
    assert!(first > 0.0 && (first / 0.125).fract() == 0.0 && first == second, "{first} {second}");
    fails(folder, &["extract", "--run", "run", "--search-results"], &["run", "no supernet"]);
    fails(folder, &["predictor", "--space", "resnet-tiny", "--import", "a.jsonl", "--out", "run"], &["a.jsonl:1"]);
    fs::write(folder.join("c.jsonl"), "{\"subnet\": \"r24 d1,2 k5|3,5 e2|4,3\"}\n").unwrap();
    fails(folder, &["predictor", "--run", "run", "--import", "c.jsonl"], &["c.jsonl:1", "accuracy"]);
    let published = ["predictor", "--run", "run", "--import", "p.pth", "--members", "5"];
    fails(folder, &published, &["p.pth: a published predictor is not fitted again", "--members"]);
    misused(folder, &["predictor", "--space", "tiny", "--import", "a.jsonl"], &["required"]);
    let many = ["predictor", "--space", "tiny", "--classes", "200000", "--import", "a.jsonl", "--out", "many"];
    misused(folder, &many, &["--classes", "65536"]);
    fs::copy(folder.join("a.jsonl"), folder.join("b.JSONL")).unwrap();
    let import = ["predictor", "--space", "tiny", "--classes", "10", "--import", "b.JSONL", "--out", "capital"];
    succeeds(folder, &import);
}

#[test]
fn a_search_keeps_to_the_values_that_samples_have() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let mut space = SearchSpace::named("tiny").unwrap();
    (space.resolutions, space.kernel_sizes) = (vec![24], vec![3]);
    let lines: Vec<String> = (0..40)
        .map(|position| {
            let subnet = space.sample(&mut generator(5, Stream::Samples, &[position]));
            let size: f64 = subnet.blocks().map(|block| block.expand.value()).sum();
            json!({"subnet": subnet, "accuracy": 50.0 + size}).to_string()
        })
        .collect();
    fs::write(folder.join("a.jsonl"), lines.join("\n")).unwrap();
    succeeds(folder, &["predictor", "--space", "tiny", "--classes", "10", "--import", "a.jsonl", "--out", "run"]);
    let output = ofa(folder, &["search", "--run", "run", "--limit", "any:macs=100M"]);
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(notes.contains("only the resolutions 24 are") && notes.contains("only the kernel sizes 3 are"), "{notes}");
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(out.contains("r24 d2,2 k3,3|3,3 e4,4|4,4"), "{out}");
    fs::write(folder.join("b.csv"), "subnet\n\"r24 d1,2 k3|3,3 e2|4,3\"\n\"r32 d1,2 k3|3,3 e2|4,3\"\n").unwrap();
    let output = ofa(folder, &["predictor", "--run", "run", "--predict", "b.csv"]);
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(notes.contains("1 of 2 subnets have values that no sample"), "{notes}");
}
