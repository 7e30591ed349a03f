//! The program as a process: what it takes from its environment, and that it starts only once.

mod common;

use common::{command, fails, refused, succeeds};

const SPEED: [&str; 7] = ["speed", "--space", "tiny", "--batch", "4", "--steps", "1"];

#[test]
fn an_unknown_instruction_set_is_an_error_before_anything_is_computed() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["AVX2", "avx1024", " portable", "sse2"] {
        let output = command(folder.path(), &SPEED).env("OFA_ISA", name).output().unwrap();
        let err = refused(&output, &[&format!("OFA_ISA='{name}'"), "portable"]);
        assert_eq!(err.lines().count(), 1, "{err}");
        assert!(output.stdout.is_empty());
    }
    let hostile = format!("a\n\u{1b}[31m{}", "b".repeat(100_000));
    let output = command(folder.path(), &SPEED).env("OFA_ISA", hostile).output().unwrap();
    let err = refused(&output, &["OFA_ISA='a\\n\\u{1b}[31mbbb", "portable"]);
    assert!(err.lines().count() == 1 && err.len() < 1000, "{err}");
    let foreign = if cfg!(target_arch = "aarch64") { "avx2" } else { "neon" };
    refused(&command(folder.path(), &SPEED).env("OFA_ISA", foreign).output().unwrap(), &["on this machine"]);
}

#[test]
fn a_named_instruction_set_is_the_one_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let default = succeeds(folder.path(), &SPEED);
    let default = default.split(['(', ')']).nth(1).unwrap();
    for (name, used) in [("portable", "(portable)"), ("", &format!("({default})"))] {
        let output = command(folder.path(), &SPEED).env("OFA_ISA", name).output().unwrap();
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && out.contains(used), "{out}{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[cfg(unix)]
#[test]
fn a_path_that_is_not_utf_8_is_refused_before_any_work() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let path = std::ffi::OsStr::from_bytes(b"m\xff");
    let output = command(folder.path(), &["man", "--out"]).arg(path).output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && err.contains("not UTF-8") && err.lines().count() == 1, "{err}");
    assert!(!folder.path().join(path).exists());
}

#[test]
fn no_colour_is_stronger_than_a_forced_one() {
    let folder = tempfile::tempdir().unwrap();
    for (name, coloured) in [("NO_COLOUR", true), ("NO_COLOR", false)] {
        let mut command = command(folder.path(), &["status", "nowhere"]);
        let output = command.env("CLICOLOR_FORCE", "1").env(name, "1").output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(err.contains('\u{1b}'), coloured, "{err}");
    }
}

#[test]
fn an_empty_environment_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let output = command(folder.path(), &SPEED).env_clear().output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    succeeds(folder.path(), &SPEED);
    fails(folder.path(), &["speed", "--space", "none-such"], &["none-such"]);
}

/// A program that restarts itself loses the name and the environment that a wrapper gave it, both of which Linux shows
/// as they were at the last start.
#[cfg(target_os = "linux")]
#[test]
fn the_program_starts_once() {
    use std::os::unix::process::CommandExt;

    let folder = tempfile::tempdir().unwrap();
    // The command runs long enough to be inspected.
    let mut process = command(folder.path(), &["speed", "--space", "tiny", "--threads", "3", "--steps", "100000"])
        .arg0("wrapped")
        .env_clear()
        .env("ONLY", "this")
        .spawn()
        .unwrap();
    let shown = format!("/proc/{}", process.id());
    // With its worker threads running, the process is past its start.
    let start = std::time::Instant::now();
    while std::fs::read_dir(format!("{shown}/task")).unwrap().count() < 3 {
        assert!(
            start.elapsed().as_secs() < 60 && process.try_wait().unwrap().is_none(),
            "the process started no threads"
        );
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let read = |what: &str| String::from_utf8(std::fs::read(format!("{shown}/{what}")).unwrap()).unwrap();
    let (arguments, environment) = (read("cmdline"), read("environ"));
    process.kill().unwrap();
    process.wait().unwrap();
    assert_eq!(arguments.split('\0').next(), Some("wrapped"));
    assert_eq!(environment, "ONLY=this\0");
}
