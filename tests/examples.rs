//! The scripts in `examples/`, on small data in CIFAR-10's format.
#![cfg(target_os = "linux")] // They need GNU sed.

mod common;

use common::succeeds;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// Records of CIFAR-10's binary version: a label, then the planes of 32x32 pixels, whose brightness tells the label.
fn records(count: usize) -> Vec<u8> {
    let record = |index: usize| {
        let label = (index % 10) as u8;
        let pixels = (0..3072).map(move |pixel| 20 * label + ((7 * index + 11 * pixel) % 40) as u8);
        std::iter::once(label).chain(pixels)
    };
    (0..count).flat_map(record).collect()
}

/// What a script, which has to succeed, prints about its results: all from `==` on.
fn script(folder: &Path, name: &str, arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
    let output = Command::new("bash")
        .arg(script)
        .args(arguments)
        .current_dir(folder)
        .env("OFA", env!("CARGO_BIN_EXE_ofa"))
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name}\n{out}\n{err}");
    let results = out.find("== ").unwrap_or_else(|| panic!("{name} has no results\n{out}\n{err}"));
    out[results..].to_string()
}

#[test]
fn an_experiment_and_the_comparison_with_subnets_trained_alone() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::create_dir(folder.join("data")).unwrap();
    for number in 1..=5 {
        fs::write(folder.join(format!("data/data_batch_{number}.bin")), records(60)).unwrap();
    }
    fs::write(folder.join("data/test_batch.bin"), records(40)).unwrap();

    let variables = [("EPOCHS", "2"), ("SEED", "3"), ("VALIDATION", "100")];
    let experiment = || script(folder, "accuracy.sh", &["data", "out", "long"], &variables);
    let printed = experiment();
    let mut lines = printed.lines();
    assert!(lines.next().unwrap().starts_with("== long, seed 3, "), "{printed}");
    assert_eq!(lines.next(), Some("model,top1,macs"), "{printed}");
    let rows: Vec<Vec<&str>> = lines.map(|line| line.split(',').collect()).collect();
    assert_eq!(rows.iter().map(|row| row[0]).collect::<Vec<_>>(), ["largest", "middle", "smallest"]);
    assert!(rows.iter().all(|row| (0.0..=1.0).contains(&row[1].parse::<f64>().unwrap())), "{printed}");
    // What is finished is skipped.
    let metrics = |run: &str| fs::read_to_string(folder.join(run).join("metrics.jsonl")).unwrap();
    let trained = metrics("out/long-3-2");
    assert_eq!(experiment(), printed);
    assert_eq!(metrics("out/long-3-2"), trained);

    // A benchmark and an extraction that were stopped are done again.
    fs::remove_file(folder.join("out/long-3-2/bench.csv")).unwrap();
    fs::write(folder.join("out/long-3-2/bench.csv.part"), "").unwrap();
    fs::remove_file(folder.join("out/long-3-2/models/middle/config.json")).unwrap();
    assert_eq!(experiment(), printed);

    succeeds(folder, &["predictor", "--run", "out/long-3-2", "--samples", "10", "--images", "20"]);
    succeeds(folder, &["profile", "--run", "out/long-3-2", "--rounds", "1", "--check", "2"]);
    let compared = || script(folder, "trained_alone.sh", &["out/long-3-2", "data", "alone"], &[("LIMITS", "90")]);
    let printed = compared();
    let (accuracies, subnet) = printed.trim_end().split_once("; ").unwrap();
    assert!(subnet.starts_with('r') && subnet.contains(" d"), "{printed}");
    let words: Vec<&str> = accuracies.split([' ', ',', ':']).filter(|word| !word.is_empty()).collect();
    assert_eq!(
        [words[0], words[1], words[3], words[5], words[7], words[11]],
        ["==", "90", "subnet", "grid", "alone", "min"]
    );
    for accuracy in [words[4], words[6], words[8]] {
        assert!((0.0..=1.0).contains(&accuracy.parse::<f64>().unwrap()), "{printed}");
    }
    assert!(metrics("alone/alone-90").contains(subnet));
    assert_eq!(compared(), printed);
}
