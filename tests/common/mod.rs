//! Running the binary on small runs.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The command, not yet started.
pub fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ofa"));
    command.current_dir(folder).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub fn ofa(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().unwrap()
}

/// What it printed on standard output.
#[track_caller]
pub fn succeeds(folder: &Path, arguments: &[&str]) -> String {
    let output = ofa(folder, arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "ofa {arguments:?}\n{out}\n{err}");
    out.into_owned()
}

/// The error: one line, the last one, no panic, exit code 1.
#[track_caller]
pub fn fails(folder: &Path, arguments: &[&str], expected: &[&str]) -> String {
    refused(&ofa(folder, arguments), expected)
}

/// As [`fails`], of a command that has ended.
#[track_caller]
pub fn refused(output: &Output, expected: &[&str]) -> String {
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{err}");
    let last = err.lines().last().unwrap_or_default();
    assert!(last.starts_with("error: "), "{err}");
    for part in expected {
        assert!(err.contains(part), "'{part}' is not in: {err}");
    }
    err
}

/// A configuration of five short stages on 100 generated images, with a line of metrics a step and a checkpoint every three.
pub fn small_configuration(folder: &Path, name: &str, epochs: &str) {
    let text =
        succeeds(folder, &["config", "--preset", "tiny", "--epochs", epochs, "--batch", "16", "--validation", "20"]);
    let text = changed(&text, "builtin_train = 6000", "builtin_train = 120");
    let text = changed(&text, "builtin_test = 1000", "builtin_test = 20");
    let text = changed(&text, "log_every = 20", "log_every = 1\ncheckpoint_steps = 3\nema = 0.9");
    fs::write(folder.join(name), text).unwrap();
}

#[track_caller]
pub fn changed(text: &str, old: &str, new: &str) -> String {
    assert!(text.contains(old), "'{old}' is not in: {text}");
    text.replacen(old, new, 1)
}

/// The metrics without what a clock says.
pub fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| {
            let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
            for clock in ["seconds", "images_per_second"] {
                line.as_object_mut().unwrap().remove(clock);
            }
            line
        })
        .collect()
}

pub fn weights(run: &Path) -> Vec<u8> {
    fs::read(run.join("checkpoints/supernet.safetensors")).unwrap()
}
