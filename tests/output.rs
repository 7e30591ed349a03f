//! Standard output or error that cannot be written, for every command: no command panics, and its work is done
//! nevertheless.
#![cfg(target_os = "linux")]

mod common;

use common::{QUICKSTART, command, finished_run, published_supernet, small_configuration, succeeds, write_images};
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;

/// A command line of every command that prints something; each can be repeated, but for that of `import`.
const PRINTING: &[&[&str]] = &[
    &["--help"],
    &["--version"],
    &["search", "--help"],
    &["config", "--preset", "tiny"],
    &["train", "--out", "trained", "--resume"],
    &["tune", "--config", "c.toml", "--trials", "1", "--trial-epochs", "0.2", "--out", "tune"],
    &["import", "net.safetensors", "--space", "tiny", "--out", "imported"],
    &["speed", "--space", "tiny", "--resolution", "16", "--batch", "4", "--steps", "1"],
    &["speed", "--space", "tiny", "--resolution", "16", "--batch", "4", "--steps", "1", "--json"],
    &["profile", "--run", "run", "--name", "other", "--rounds", "1", "--check", "2"],
    &["predictor", "--run", "run", "--samples", "16", "--recalibration", "300"],
    &["search", "--run", "run", "--limit", "any:macs=500k", "--generations", "2"],
    &["search", "--run", "run", "--limit", "any:macs=500k", "--generations", "2", "--json"],
    &["search", "--run", "run", "--limit", "any:macs=500k", "--compare", "--seeds", "1", "--evaluations", "20"],
    &["extract", "--run", "run", "--subnet", "smallest"],
    &["bench", "run/models/smallest"],
    &["bench", "run/models/smallest", "--csv"],
    &["quantise", "run/models/smallest", "--data", "builtin", "--images", "32"],
    &["export", "run/models/smallest"],
    &["report", "--run", "run"],
    &["status", "run"],
    &["predict", "run/models/smallest", "pictures/0.png"],
    &["completions", "bash"],
    &["man", "--out", "pages"],
];

/// A folder with the finished quickstart `run`, and the finished run `trained` of `c.toml`.
fn prepared() -> tempfile::TempDir {
    let temporary = tempfile::tempdir().unwrap();
    small_configuration(temporary.path(), "c.toml", "0.6");
    succeeds(temporary.path(), &["train", "--config", "c.toml", "--out", "trained"]);
    finished_run(temporary.path());
    write_images(&temporary.path().join("pictures"), 1, 90);
    published_supernet(temporary.path());
    temporary
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

/// A pipe whose reading end is closed.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

/// Runs a command with the given standard output; returns exit code and standard error.
fn run(folder: &Path, arguments: &[&str], stdout: Stdio) -> (Option<i32>, String) {
    let output = command(folder, arguments).stdout(stdout).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn output_to_a_full_disk_is_an_error_of_one_line_after_the_work() {
    let temporary = prepared();
    let folder = temporary.path();
    for arguments in PRINTING {
        let (code, err) = run(folder, arguments, full());
        assert_eq!(code, Some(1), "{arguments:?}: {err}");
        let last = err.lines().last().unwrap_or_default();
        assert!(last.starts_with("error: cannot write the output: No space left on device"), "{arguments:?}: {err}");
    }
    assert!(folder.join("run/search/any-macs-500k.json").exists());
    assert!(folder.join("run/devices/other.json").exists() && folder.join("tune/best.toml").exists());

    let (code, err) = run(folder, &[&["quickstart", "--out", "new"], QUICKSTART].concat(), full());
    assert_eq!(code, Some(1), "{err}");
    assert!(folder.join("new/models/largest/model.safetensors").exists(), "{err}");
}

#[test]
fn a_reader_that_has_had_enough_is_no_error() {
    let temporary = prepared();
    for arguments in PRINTING {
        let (code, err) = run(temporary.path(), arguments, closed());
        assert_eq!(code, Some(0), "{arguments:?}: {err}");
        let failed = err.lines().any(|line| line.starts_with("error"));
        assert!(!err.contains("panicked") && !failed, "{arguments:?}: {err}");
    }
}

#[test]
fn standard_error_that_cannot_be_written_changes_nothing() {
    let temporary = prepared();
    let folder = temporary.path();
    // Both are written in the same way: some commands will do for the second.
    for (stderr, every) in [(full as fn() -> Stdio, 1), (closed as fn() -> Stdio, 4)] {
        for arguments in PRINTING.iter().step_by(every) {
            let output = command(folder, arguments).stderr(stderr()).output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{arguments:?}");
            assert!(!output.stdout.is_empty(), "{arguments:?}");
        }
        // Errors keep their exit codes.
        for (arguments, code) in [(&["bench", "nowhere"][..], 1), (&["bench"], 2), (&["nonsense"], 2)] {
            let status = command(folder, arguments).stderr(stderr()).status().unwrap();
            assert_eq!(status.code(), Some(code), "{arguments:?}");
        }
        for made in ["trained", "imported"] {
            let _ = fs::remove_dir_all(folder.join(made));
        }
        let train = ["train", "--config", "c.toml", "--out", "trained"];
        assert!(command(folder, &train).stderr(stderr()).stdout(Stdio::null()).status().unwrap().success());
        assert!(folder.join("trained/checkpoints/supernet.safetensors").exists());
    }
}
