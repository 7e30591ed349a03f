//! A run folder that a failed command made: it goes again.

use ofa_supernet::files::write_atomic;
use ofa_supernet::lock::LOCK_FILE;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Files and folders that a training makes before its first step.
const FIRST_FILES: [&str; 5] = [LOCK_FILE, "config.toml", "metrics.jsonl", "metrics.csv", "tensorboard"];

/// Files among them that a training replaces where they exist.
const REPLACED: [&str; 3] = ["config.toml", "metrics.jsonl", "metrics.csv"];

/// What a command adds to the file system for its run folder.
pub struct NewFolder {
    /// Folders that were missing, the innermost first.
    missing: Vec<PathBuf>,
    /// Files that a training replaces, with the contents of those that were there.
    kept: Vec<(PathBuf, Option<Vec<u8>>)>,
}

impl NewFolder {
    /// Notes, before anything is written, which of the folders of `path` are missing and what files are there.
    pub fn of(path: &Path) -> Self {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        let missing = path.ancestors().take_while(|folder| !folder.exists()).map(Path::to_path_buf).collect();
        let files = REPLACED.iter().map(|name| path.join(name));
        let content = |file: PathBuf| match fs::read(&file) {
            Ok(content) => Some((file, Some(content))),
            Err(error) if error.kind() == ErrorKind::NotFound => Some((file, None)),
            // What cannot be read is not touched.
            Err(_) => None,
        };
        let kept = files.filter_map(content).collect();
        NewFolder { missing, kept }
    }

    /// Removes the folders that were missing and the first files in them. A folder that was there, or that holds
    /// anything else by now, stays, and its files get back their contents.
    pub fn discard(&self) {
        if self.missing.is_empty() {
            for (file, content) in &self.kept {
                match content {
                    Some(content) if fs::read(file).ok().as_ref() != Some(content) => {
                        let _ = write_atomic(file, content);
                    }
                    Some(_) => {}
                    None => drop(fs::remove_file(file)),
                }
            }
        }
        let Some(run) = self.missing.first() else { return };
        let first = |name: &std::ffi::OsStr| FIRST_FILES.iter().any(|file| *file == name);
        let names = || fs::read_dir(run).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let checkpoints = run.join("checkpoints");
        // Only an empty folder can be removed.
        let _ = fs::remove_dir(&checkpoints);
        if names().all(|name| first(&name)) {
            names().map(|name| run.join(name)).for_each(|path| {
                let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            });
            self.missing.iter().for_each(|folder| drop(fs::remove_dir(folder)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_made_goes_and_only_without_results() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path();
        let run = root.join("a/b/run");
        let fill = |others: &[&str]| {
            fs::create_dir_all(run.join("checkpoints")).unwrap();
            FIRST_FILES.iter().chain(others).for_each(|name| fs::write(run.join(name), "").unwrap());
        };
        let made = NewFolder::of(&run);
        fill(&[]);
        made.discard();
        assert!(root.exists() && !root.join("a").exists());
        for kept in ["notes.txt", "checkpoints/step-00000001.safetensors"] {
            fill(&[kept]);
            made.discard();
            assert!(run.join(kept).exists() && run.join("config.toml").exists());
            fs::remove_dir_all(root.join("a")).unwrap();
        }
        fill(&[]);
        let made = NewFolder::of(&run);
        fs::write(run.join("config.toml"), "another").unwrap();
        made.discard();
        assert_eq!(fs::read_to_string(run.join("config.toml")).unwrap(), "");
    }
}
