//! Crashes at any call that changes a file or folder: the same command, repeated, leaves the files of an undisturbed
//! one.
//!
//! By default some calls of each command are tried; `cargo test --release --test crash -- --ignored` tries all.
#![cfg(target_os = "linux")]

mod common;

use common::{
    changed, command, finished_run, published_supernet, small_configuration, succeeds, tuning_configuration,
    write_two_classes,
};
use ofa_evaluate::Model;
use ofa_supernet::files::csv_fields;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Numbers of calls that are tried by default: of those that create or remove names, and of all.
const NAMING: usize = 6;
const ANY: usize = 4;

/// The library that ends a process at a call, compiled once. Wherever Rust links programs there is a C compiler.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        // Another run of the tests may use the file at this moment.
        let (path, new) = (folder.join("crash_point.so"), folder.join(format!("crash_point-{}", std::process::id())));
        let source = root.join("tests/common/crash_point.c");
        let status =
            Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).args([&new, &source]).arg("-ldl").status();
        assert!(status.unwrap().success(), "cc cannot compile {}", source.display());
        std::fs::rename(new, &path).unwrap();
        path
    })
}

/// A command whose crashes are tried.
struct Case<'a> {
    /// Fills the folder that it starts in.
    start: &'a dyn Fn(&Path),
    arguments: &'a [&'a str],
    /// Command that is started after a crash, in the folder as the crash left it.
    again: &'a dyn Fn(&Path) -> Vec<&'a str>,
    /// The folder that is compared.
    out: &'a str,
    /// Checks a folder as a crash left it.
    between: &'a dyn Fn(&Path),
}

impl Case<'_> {
    /// Returns the files that an undisturbed command leaves.
    fn try_crashes(&self, all: bool) -> BTreeMap<PathBuf, Vec<u8>> {
        let whole = tempfile::tempdir().unwrap();
        (self.start)(whole.path());
        let log = whole.path().join("calls");
        let output = preloaded(whole.path(), self.arguments).env("CRASH_LOG", &log).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let calls = fs::read_to_string(&log).unwrap();
        let calls: Vec<&str> = calls.lines().collect();
        assert_synced(&calls);
        let expected = content(&whole.path().join(self.out));
        let chosen = if all { (0..calls.len()).collect() } else { sample(&calls) };
        assert!(chosen.len() >= NAMING, "{calls:?}");
        for index in chosen {
            let temporary = tempfile::tempdir().unwrap();
            let folder = temporary.path();
            (self.start)(folder);
            let at = (index + 1).to_string();
            let output = preloaded(folder, self.arguments).env("CRASH_AT", &at).output().unwrap();
            // The clock decides about one or two calls, so the command may have ended before this one.
            let ended = output.status.success() && index + 3 > calls.len();
            assert!(output.status.signal() == Some(9) || ended, "{}", String::from_utf8_lossy(&output.stderr));
            (self.between)(folder);
            succeeds(folder, &(self.again)(folder));
            let found = content(&folder.join(self.out));
            let names = |content: &BTreeMap<PathBuf, Vec<u8>>| content.keys().cloned().collect::<Vec<_>>();
            assert_eq!(names(&found), names(&expected), "after a crash at call {at}: {}", calls[index]);
            for (path, bytes) in &expected {
                assert!(found[path] == *bytes, "{} after a crash at call {at}: {}", path.display(), calls[index]);
            }
        }
        expected
    }
}

/// Asserts that each new file is on the disk before it gets its name, and its name soon after, so that a power cut does
/// no more than a kill.
fn assert_synced(calls: &[&str]) {
    let is_one_of = |call: &str, names: &[&str]| names.iter().any(|name| call.starts_with(name));
    let next = |after: usize, passed: &[&str]| calls[after + 1..].iter().find(|call| !is_one_of(call, passed));
    let mut named = 0;
    for (index, call) in calls.iter().enumerate() {
        let Some(path) = call.strip_prefix("rename ") else { continue };
        let created = format!("create {path}");
        let Some(start) = calls[..index].iter().rposition(|call| *call == created) else { continue };
        assert_eq!(next(start, &["write "]), Some(&"fsync "), "{path} after it was written: {calls:?}");
        // Files that belong together are renamed one after the other.
        assert_eq!(next(index, &["rename "]), Some(&"fsync "), "the folder of {path}: {calls:?}");
        // The two files of metrics whose lines a checkpoint counts, and the samples that a predictor is fitted to.
        if let Some((_, files)) = [(".step-", 2), (".predictor.", 1)].iter().find(|(name, _)| path.contains(name)) {
            let written = calls[..start].iter().rposition(|call| *call == "write ").unwrap_or(0);
            let synced = calls[written..start].iter().filter(|call| **call == "fdatasync ").count();
            assert!(synced >= *files, "before {path}: {calls:?}");
        }
        named += 1;
    }
    assert!(named > 0, "{calls:?}");
}

fn preloaded(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = command(folder, arguments);
    command.env("LD_PRELOAD", library());
    command
}

/// Sample of the calls: evenly among those that create or remove names, the last one included, and evenly among all.
fn sample(calls: &[&str]) -> Vec<usize> {
    let evenly = |indices: &[usize], count: usize| -> Vec<usize> {
        let count = count.min(indices.len());
        (1..=count).map(|part| indices[part * indices.len() / count - 1]).collect()
    };
    let naming = |call: &str| ["rename", "unlink", "rmdir"].iter().any(|name| call.starts_with(name));
    let all: Vec<usize> = (0..calls.len()).collect();
    let of_names: Vec<usize> = all.iter().copied().filter(|&index| naming(calls[index])).collect();
    let mut chosen = [evenly(&of_names, NAMING), evenly(&all, ANY)].concat();
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

/// The files of a folder by path, without the lock and without values of a clock.
fn content(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut files, mut folders) = (BTreeMap::new(), vec![root.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.file_name().unwrap().to_str().unwrap();
            let bytes = match name {
                ".lock" => continue,
                "metrics.csv" => without_columns_of_clocks(&fs::read_to_string(&path).unwrap()),
                _ if name.ends_with(".jsonl") => without_clocks(&fs::read_to_string(&path).unwrap()),
                // Checkpoints hold the seconds of training.
                _ if name.starts_with("step-") => Vec::new(),
                _ => fs::read(&path).unwrap(),
            };
            files.insert(path.strip_prefix(root).unwrap().to_path_buf(), bytes);
        }
    }
    files
}

fn without_columns_of_clocks(table: &str) -> Vec<u8> {
    let rows: Vec<Vec<String>> = table.lines().map(csv_fields).collect();
    let is_kept = |column: &usize| !["seconds", "images_per_second"].contains(&rows[0][*column].as_str());
    let row = |row: &Vec<String>| (0..row.len()).filter(is_kept).map(|column| row[column].clone() + "\n").collect();
    rows.iter().map(row).collect::<Vec<String>>().concat().into_bytes()
}

fn without_clocks(lines: &str) -> Vec<u8> {
    let without = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        for clock in ["seconds", "images_per_second"] {
            if line.get(clock).is_some() {
                line[clock] = json!(0);
            }
        }
        format!("{line}\n")
    };
    lines.lines().map(without).collect::<String>().into_bytes()
}

fn nothing(_: &Path) {}

fn tune(all: bool) {
    // One folder for all, since best.toml names it.
    let images = tempfile::tempdir().unwrap();
    write_two_classes(images.path(), 40, 4);
    let arguments = [
        "tune",
        "--config",
        "c.toml",
        "--data",
        images.path().to_str().unwrap(),
        "--ranges",
        "r.toml",
        "--trial-epochs",
        "2",
        "--trials",
        "5",
        "--strategy",
        "grid",
        "--out",
        "out",
    ];
    let start = |folder: &Path| {
        tuning_configuration(folder, "4");
        let text = fs::read_to_string(folder.join("c.toml")).unwrap();
        let text = changed(&text, "\nbatch = 32", "\nbatch = 16");
        fs::write(folder.join("c.toml"), changed(&text, "\nvalidation = 100", "\nvalidation = 20")).unwrap();
        // The fourth trial learns nothing and is stopped early, the fifth diverges.
        let ranges = "[learning_rate]\nvalues = [0.1, 1e9]\n[label_smoothing]\nvalues = [0.0, 0.05, 0.1, 0.999]\n";
        fs::write(folder.join("r.toml"), ranges).unwrap();
    };
    let whole =
        Case { start: &start, arguments: &arguments, again: &|_| arguments.to_vec(), out: "out", between: &nothing }
            .try_crashes(all);
    let trials = String::from_utf8_lossy(&whole[Path::new("trials.jsonl")]).into_owned();
    assert!(["finished", "stopped", "diverged"].iter().all(|outcome| trials.contains(outcome)), "{trials}");
}

fn train(all: bool) {
    let arguments = ["train", "--config", "c.toml", "--out", "run"];
    let again = |folder: &Path| match folder.join("run/config.toml").exists() {
        true => vec!["train", "--out", "run", "--resume"],
        false => arguments.to_vec(),
    };
    let start = |folder: &Path| small_configuration(folder, "c.toml", "3");
    Case { start: &start, arguments: &arguments, again: &again, out: "run", between: &nothing }.try_crashes(all);
}

fn predictor(all: bool) {
    let arguments = [
        "predictor",
        "--run",
        "run",
        "--samples",
        "12",
        "--recalibration",
        "40",
        "--images",
        "20",
        "--members",
        "1",
        "--seed",
        "7",
    ];
    let start = |folder: &Path| {
        finished_run(folder);
        fs::remove_file(folder.join("run/predictor/samples.jsonl")).unwrap();
    };
    let report = |folder: &Path| fs::read(folder.join("run/predictor/fit.json")).ok();
    let weights = |folder: &Path| fs::read(folder.join("run/predictor/predictor.safetensors")).unwrap();
    let before = tempfile::tempdir().unwrap();
    start(before.path());
    // A report is never beside another predictor.
    let between = |folder: &Path| {
        let same = (weights(folder) == weights(before.path()), report(folder) == report(before.path()));
        assert!(report(folder).is_none() || same.0 == same.1);
    };
    Case { start: &start, arguments: &arguments, again: &|_| arguments.to_vec(), out: "run", between: &between }
        .try_crashes(all);
}

fn extract(all: bool) {
    let arguments = ["extract", "--run", "run", "--subnet", "smallest", "--dtype", "f16", "--recalibration", "40"];
    // The model that is replaced is stored as f32.
    let model = "run/models/smallest";
    let between = |folder: &Path| {
        if let Err(error) = Model::load(folder.join(model)) {
            assert!(error.to_string().contains("config.json: No such file"), "{error}");
        }
    };
    Case { start: &finished_run, arguments: &arguments, again: &|_| arguments.to_vec(), out: "run", between: &between }
        .try_crashes(all);
}

fn import(all: bool) {
    let arguments = ["import", "net.safetensors", "--space", "tiny", "--out", "run"];
    // Once the supernet is written the import is complete, and repeating it is refused.
    let again = |folder: &Path| match folder.join("run/checkpoints/supernet.safetensors").exists() {
        true => vec!["search", "--help"],
        false => arguments.to_vec(),
    };
    let start = &published_supernet;
    Case { start, arguments: &arguments, again: &again, out: "run", between: &nothing }.try_crashes(all);
}

/// A profile holds measured times, so only the names of its files are compared.
fn profile(all: bool) {
    let arguments = ["profile", "--run", "run", "--name", "new", "--rounds", "2", "--check", "2"];
    let start = |folder: &Path| {
        finished_run(folder);
    };
    let whole = tempfile::tempdir().unwrap();
    start(whole.path());
    let log = whole.path().join("calls");
    assert!(preloaded(whole.path(), &arguments).env("CRASH_LOG", &log).status().unwrap().success());
    let names = |folder: &Path| content(&folder.join("run")).into_keys().collect::<Vec<_>>();
    let calls = fs::read_to_string(&log).unwrap();
    let calls: Vec<&str> = calls.lines().collect();
    for index in if all { (0..calls.len()).collect() } else { sample(&calls) } {
        let temporary = tempfile::tempdir().unwrap();
        start(temporary.path());
        let output = preloaded(temporary.path(), &arguments).env("CRASH_AT", (index + 1).to_string()).output().unwrap();
        // The clock decides how many rounds are written: a run may end before the call.
        assert!(output.status.signal() == Some(9) || output.status.success(), "{}", calls[index]);
        succeeds(temporary.path(), &arguments);
        assert_eq!(names(temporary.path()), names(whole.path()), "after {}", calls[index]);
    }
}

#[test]
fn a_tuning_that_crashed_tries_what_an_undisturbed_one_does() {
    tune(false);
}

#[test]
fn training_that_crashed_ends_with_the_files_of_an_undisturbed_one() {
    train(false);
}

#[test]
fn a_predictor_whose_command_crashed_is_that_of_an_undisturbed_one() {
    predictor(false);
}

#[test]
fn an_extraction_that_crashed_leaves_no_configuration_beside_other_weights() {
    extract(false);
}

#[test]
fn an_import_that_crashed_is_repeated() {
    import(false);
}

#[test]
fn a_profile_that_crashed_leaves_nothing_unfinished_after_the_next() {
    profile(false);
}

#[test]
fn a_quickstart_that_crashed_at_its_beginning_starts_again() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    // Each run crashes in the folder that the run before left, the last one during training.
    for at in ["2", "4", "7", "9", "12", "20"] {
        let output = preloaded(folder, &["quickstart", "--out", "q"]).env("CRASH_AT", at).output().unwrap();
        assert_eq!(output.status.signal(), Some(9), "{at}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
#[ignore = "takes half an hour"]
fn every_crash() {
    for case in [tune, train, predictor, extract, import, profile] {
        case(true);
    }
}
