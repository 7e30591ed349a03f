//! `ofa profile` through the binary.

mod common;

use common::{fails, finished_run, misused, succeeds};
use ofa_supernet::files::read_json;

#[test]
fn a_profile_is_measured_with_a_number_of_threads_and_its_limits_are_searched() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let profile = ["profile", "--run", "run", "--name", "two", "--model-threads", "2", "--batch", "3"];
    succeeds(folder, &[&profile[..], &["--rounds", "3", "--check", "5"]].concat());
    let stored: serde_json::Value = read_json(&folder.join("run/devices/two.json")).unwrap();
    assert_eq!((&stored["hardware"]["threads"], &stored["batch"]), (&2.into(), &3.into()));
    succeeds(folder, &["search", "--run", "run", "--limit", "two:latency=1s", "--generations", "3"]);
}

#[test]
fn a_profile_in_int8_is_measured_and_its_limits_are_searched() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let profile = ["profile", "--run", "run", "--name", "small", "--number-type"];
    let out = succeeds(folder, &[&profile[..], &["int8", "--rounds", "3", "--check", "5"]].concat());
    assert!(out.contains(", int8)"), "{out}");
    succeeds(folder, &["search", "--run", "run", "--limit", "small:latency=1s", "--generations", "3"]);
    misused(folder, &[&profile[..], &["f16"]].concat(), &["f16", "f32 or int8"]);
}

#[test]
fn a_table_for_another_space_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    std::fs::write(folder.join("t.yaml"), "Conv-input:16x16x3-output:8x8x8:\n  count: 1\n  mean: 1.0\n").unwrap();
    fails(
        folder,
        &["profile", "--run", "run", "--name", "phone", "--import", "t.yaml"],
        &["t.yaml", "no entry 'expanded_conv"],
    );
}

#[test]
fn a_name_that_no_limit_can_use_is_refused_before_anything_is_read() {
    let temporary = tempfile::tempdir().unwrap();
    for (name, reason) in [
        ("any", "no limit could name"),
        ("../x", "expected letters, digits"),
        ("", "expected letters, digits"),
        (".hidden", "expected letters, digits"),
        (&"a".repeat(252), "at most 100"),
    ] {
        for more in [&["--rounds", "1"][..], &["--import", "t.yaml"]] {
            fails(temporary.path(), &[&["profile", "--name", name], more].concat(), &["device name", reason]);
        }
    }
}
