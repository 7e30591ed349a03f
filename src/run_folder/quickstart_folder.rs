//! The quickstart's folder, which a later quickstart replaces without touching other files.
//!
//! The file [`MARKER`] identifies the folder. A quickstart writes the marker before all other files, and at its end
//! lists in it each file that it wrote, with size and checksum. A later quickstart removes exactly the listed files,
//! and refuses the folder if one of them has changed: somebody has continued to work with the run. Files that are not
//! listed are kept. A killed quickstart leaves no list; then every file at a path that quickstarts write counts as
//! listed.

use crate::run_folder::RunFolder;
use anyhow::{Context, Result, bail};
use flate2::Crc;
use ofa_evaluate::model::file_role;
use ofa_supernet::files::{is_temporary, read_text, write_atomic};
use ofa_supernet::lock::{LOCK_FILE, Lock};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Name of the marker file.
pub const MARKER: &str = ".quickstart";

/// The marker's first line.
const TITLE: &str = "This folder was made by `ofa quickstart`. The next quickstart in it replaces the files below; all others are kept.";

/// Heading of the marker's list; a marker without it was left by a killed quickstart.
const LIST: &str = "checksum bytes file";

/// Size and CRC-32 of a file.
type Digest = (u64, u32);

/// The locked folder that a quickstart works in.
pub struct QuickstartFolder {
    path: PathBuf,
    /// Files that other programs or people put there.
    kept: BTreeSet<String>,
    _lock: Lock,
}

impl QuickstartFolder {
    /// Locks the folder, removes the files of an earlier quickstart, and writes the marker.
    ///
    /// # Errors
    /// A folder that no quickstart made, or in which another command changed the quickstart's files. Nothing is removed
    /// then.
    pub fn claim(path: &Path) -> Result<Self> {
        refuse_others(path)?;
        let lock = RunFolder::new(path).lock()?;
        refuse_others(path)?;
        let marker = path.join(MARKER);
        let mut kept = files_in(path)?;
        if marker.exists() {
            let list = parse(&read_text(&marker)?);
            let own = own_files(path, &kept, list.as_ref())?;
            for name in &own {
                let file = path.join(name);
                fs::remove_file(&file).with_context(|| file.display().to_string())?;
                kept.remove(name);
            }
            remove_empty_folders(path, &own);
        }
        write_atomic(&marker, format!("{TITLE}\n").as_bytes())?;
        Ok(QuickstartFolder { path: path.to_path_buf(), kept, _lock: lock })
    }

    /// Adds the list of the quickstart's files to the marker.
    ///
    /// # Errors
    /// A file that cannot be read, or a marker that cannot be written.
    pub fn list(&self) -> Result<()> {
        let mut text = format!("{TITLE}\n{LIST}\n");
        for name in files_in(&self.path)?.difference(&self.kept).filter(|name| is_written(name)) {
            let (bytes, checksum) = digest(&self.path.join(name))?;
            text.push_str(&format!("{checksum:08x} {bytes} {name}\n"));
        }
        Ok(write_atomic(&self.path.join(MARKER), text.as_bytes())?)
    }
}

/// Fails for a folder that no quickstart made, unless it holds no files.
fn refuse_others(path: &Path) -> Result<()> {
    if path.join(MARKER).is_file() || !path.exists() {
        return Ok(());
    }
    // A quickstart that was killed at its beginning leaves only the folder and its lock.
    if path.is_dir() && files_in(path)?.is_empty() {
        return Ok(());
    }
    bail!(
        "{}: already exists and was not made by an earlier quickstart; name another folder with --out",
        path.display()
    )
}

/// The files among `files` that an earlier quickstart wrote.
fn own_files(path: &Path, files: &BTreeSet<String>, list: Option<&BTreeMap<String, Digest>>) -> Result<Vec<String>> {
    let mut own = Vec::new();
    for name in files {
        let file = path.join(name);
        match list.map(|list| list.get(name)) {
            Some(Some(listed)) if digest(&file)? == *listed => own.push(name.clone()),
            None if is_written(name) => own.push(name.clone()),
            Some(Some(_)) => bail!(
                "{}: this file has changed since the quickstart wrote it; name another folder with --out, or remove this folder",
                file.display()
            ),
            Some(None) if is_written(name) => bail!(
                "{}: another command wrote this file, which the quickstart would replace; name another folder with --out, or remove this folder",
                file.display()
            ),
            _ => {}
        }
    }
    Ok(own)
}

/// Whether `name` is a path that a quickstart writes.
fn is_written(name: &str) -> bool {
    let model = |name: &str| {
        let limit = name.strip_prefix("this-latency-").and_then(|rest| rest.strip_suffix("us"));
        ["smallest", "largest"].contains(&name) || limit.is_some_and(|limit| limit.bytes().all(|b| b.is_ascii_digit()))
    };
    match name.split('/').collect::<Vec<_>>()[..] {
        ["config.toml" | "metrics.jsonl" | "metrics.csv" | "report.html"] | ["checkpoints" | "predictor", _] => true,
        ["devices", "this.json" | "this.unfinished"] => true,
        ["search", file] => file.strip_suffix(".json").is_some_and(model),
        // Files that another command made of a model are removed with it.
        ["models", folder, file] => model(folder) && file_role(file).is_some(),
        _ => false,
    }
}

/// Parses the list of a marker; `None` if it has none.
fn parse(text: &str) -> Option<BTreeMap<String, Digest>> {
    let (_, list) = text.split_once(&format!("\n{LIST}\n"))?;
    let line = |line: &str| {
        let (checksum, rest) = line.split_once(' ')?;
        let (bytes, name) = rest.split_once(' ')?;
        Some((name.to_string(), (bytes.parse().ok()?, u32::from_str_radix(checksum, 16).ok()?)))
    };
    Some(list.lines().filter_map(line).collect())
}

fn digest(file: &Path) -> Result<Digest> {
    let bytes = fs::read(file).with_context(|| file.display().to_string())?;
    let mut checksum = Crc::new();
    checksum.update(&bytes);
    Ok((bytes.len() as u64, checksum.sum()))
}

/// Paths of all files below `root`, with `/` between names, without marker, lock and temporary files. A link counts as
/// a file, whatever it points to. Names that are not UTF-8 are skipped: a quickstart writes none.
fn files_in(root: &Path) -> Result<BTreeSet<String>> {
    let (mut files, mut folders) = (BTreeSet::new(), vec![(root.to_path_buf(), String::new())]);
    while let Some((folder, prefix)) = folders.pop() {
        let at = || folder.display().to_string();
        for entry in fs::read_dir(&folder).with_context(at)? {
            let entry = entry.with_context(at)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if is_temporary(&name) || (prefix.is_empty() && [MARKER, LOCK_FILE].contains(&name.as_str())) {
                continue;
            }
            if entry.file_type().with_context(at)?.is_dir() {
                folders.push((entry.path(), format!("{prefix}{name}/")));
            } else {
                files.insert(format!("{prefix}{name}"));
            }
        }
    }
    Ok(files)
}

/// Removes the folders of removed files, unless they hold other files.
fn remove_empty_folders(root: &Path, removed: &[String]) {
    let parents = removed.iter().flat_map(|name| Path::new(name).ancestors().skip(1)).filter(|p| *p != Path::new(""));
    let parents: BTreeSet<&Path> = parents.collect();
    // The deepest folders first.
    parents.iter().rev().for_each(|parent| drop(fs::remove_dir(root.join(parent))));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes files with their name as content.
    fn write(root: &Path, names: &[&str]) {
        for name in names {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
    }

    fn names(root: &Path) -> Vec<String> {
        files_in(root).unwrap().into_iter().collect()
    }

    const WRITTEN: &[&str] =
        &["config.toml", "checkpoints/supernet.safetensors", "models/smallest/config.json", "metrics.jsonl"];

    /// A folder in which a quickstart has ended, beside a user's file.
    fn ended(temporary: &Path) -> PathBuf {
        let root = temporary.join("q");
        write(&root, &["mine.txt", MARKER]);
        let quickstart = QuickstartFolder::claim(&root).unwrap();
        write(&root, WRITTEN);
        quickstart.list().unwrap();
        root
    }

    #[test]
    fn what_a_quickstart_wrote_is_removed_and_all_else_is_kept() {
        let temporary = tempfile::tempdir().unwrap();
        let root = ended(temporary.path());
        let marker = fs::read_to_string(root.join(MARKER)).unwrap();
        assert!(marker.starts_with("This folder was made by `ofa quickstart`."), "{marker}");
        write(&root, &["models/tuned/config.json", "devices/laptop.json"]);
        QuickstartFolder::claim(&root).unwrap();
        assert_eq!(names(&root), ["devices/laptop.json", "mine.txt", "models/tuned/config.json"]);
        assert!(!root.join("checkpoints").exists() && !root.join("models/smallest").exists());
    }

    #[test]
    fn a_folder_with_changed_or_foreign_results_is_refused_and_untouched() {
        let temporary = tempfile::tempdir().unwrap();
        let root = ended(temporary.path());
        let refused = |part: &str| {
            let before = names(&root);
            let error = QuickstartFolder::claim(&root).err().expect(part).to_string();
            assert!(error.contains(part) && error.contains("--out"), "{error}");
            assert_eq!(names(&root), before);
        };
        fs::write(root.join("checkpoints/supernet.safetensors"), "trained further").unwrap();
        refused("q/checkpoints/supernet.safetensors: this file has changed");
        write(&root, &["checkpoints/supernet.safetensors", "models/this-latency-20us/config.json"]);
        refused("q/models/this-latency-20us/config.json: another command wrote this file");
        fs::remove_dir_all(root.join("models/this-latency-20us")).unwrap();
        QuickstartFolder::claim(&root).unwrap();
    }

    #[test]
    fn an_exported_model_is_the_work_of_another_command_whatever_the_format() {
        for format in ofa_evaluate::export::FORMATS {
            let temporary = tempfile::tempdir().unwrap();
            let root = ended(temporary.path());
            let exported = format!("models/smallest/{}", format.file);
            write(&root, &[&exported]);
            let error = QuickstartFolder::claim(&root).err().expect(format.name).to_string();
            assert!(error.contains(&format!("{exported}: another command wrote this file")), "{error}");
        }
    }

    #[test]
    fn a_killed_quickstart_is_replaced() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().join("q");
        let quickstart = QuickstartFolder::claim(&root).unwrap();
        write(
            &root,
            &[
                "config.toml",
                "checkpoints/step-1",
                "models/largest/model.safetensors",
                "notes.txt",
                ".config.toml.7.tmp",
            ],
        );
        drop(quickstart);
        QuickstartFolder::claim(&root).unwrap();
        assert_eq!(names(&root), ["notes.txt"]);
        // Killed before the marker was written.
        fs::remove_file(root.join(MARKER)).unwrap();
        fs::remove_file(root.join("notes.txt")).unwrap();
        QuickstartFolder::claim(&root).unwrap();
    }

    #[test]
    fn other_folders_and_files_are_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let run = temporary.path().join("run");
        write(&run, &["config.toml"]);
        for path in [&run, &run.join("config.toml")] {
            let error = QuickstartFolder::claim(path).err().expect("refused").to_string();
            assert!(error.contains("was not made by an earlier quickstart"), "{error}");
        }
        assert_eq!(names(&run), ["config.toml"]);
    }
}
