//! Records the commit that the program is built from, for `ofa --version`.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-env=OFA_COMMIT={}", commit().unwrap_or_else(|| "unknown".into()));
}

/// The commit of this folder: from the file that `cargo package` writes, otherwise from the repository that the folder
/// is the top of. A copy of the sources inside another repository is not of its commits.
fn commit() -> Option<String> {
    if let Ok(packaged) = std::fs::read_to_string(".cargo_vcs_info.json") {
        let sha = packaged.split("\"sha1\"").nth(1)?.split('"').nth(1)?;
        return Some(sha.chars().take(10).collect());
    }
    if !git(&["rev-parse", "--show-prefix"])?.is_empty() {
        return None;
    }
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    if Path::new(&log).exists() {
        println!("cargo::rerun-if-changed={log}");
    }
    git(&["rev-parse", "--short=10", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
}
