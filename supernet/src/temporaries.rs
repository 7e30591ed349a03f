//! Temporary files and folders, and the removal of those that a killed process left behind.
//!
//! A temporary of `NAME` is its hidden neighbour `.NAME.NUMBER.tmp`. The number only keeps writers apart: process ids
//! are reused, and processes on other machines (or in other containers) that share a folder may have equal ones.
//! Whether a temporary is still in use is decided by the operating system's lock on it, which its writer holds and
//! which ends with the writer. On a file system without locks this cannot be decided, and temporaries stay.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Number of names tried before a folder full of temporaries in use is an error.
const ATTEMPTS: u32 = 1000;

/// Creates a locked, empty temporary for the file `name` in `folder`.
pub(crate) fn create(folder: &Path, name: &str) -> io::Result<(File, PathBuf)> {
    for path in names(folder, name) {
        let file = match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                remove_abandoned(&path);
                continue;
            }
            Err(error) => return Err(error),
        };
        // A process that removes abandoned temporaries may have come between the two calls; the name is then lost.
        let taken = matches!(file.try_lock(), Err(TryLockError::WouldBlock));
        if !taken && is_linked(&file)? {
            return Ok((file, path));
        }
    }
    Err(io::Error::new(ErrorKind::AlreadyExists, format!("{ATTEMPTS} temporary files of '{name}' are in use")))
}

/// Renames the folder or file `path` to a temporary, in one step.
pub(crate) fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    for aside in names(folder, &name) {
        if aside.symlink_metadata().is_err() {
            fs::rename(path, &aside)?;
            return Ok(aside);
        }
    }
    Err(io::Error::new(ErrorKind::AlreadyExists, format!("{ATTEMPTS} temporaries of '{name}' exist already")))
}

/// Candidate names for a temporary of `name`.
fn names(folder: &Path, name: &str) -> impl Iterator<Item = PathBuf> {
    let first = std::process::id();
    (0..ATTEMPTS).map(move |more| folder.join(format!(".{name}.{}.tmp", first.wrapping_add(more))))
}

/// Whether `name` is the name of a temporary.
pub fn is_temporary(name: &str) -> bool {
    let number = || name.strip_prefix('.')?.strip_suffix(".tmp")?.rsplit_once('.').map(|(_, number)| number);
    number().is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Removes the temporaries in `folder` whose process has ended. Failures are ignored: the caller's work does not depend
/// on the removal.
pub fn remove_all_abandoned(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_some_and(is_temporary) {
            remove_abandoned(&entry.path());
        }
    }
}

/// Removes the temporary at `path` if nobody holds its lock. The lock is held meanwhile, so that the name cannot become
/// another process's file.
fn remove_abandoned(path: &Path) {
    let Ok(kind) = path.symlink_metadata() else { return };
    // Locking a file of a network file system needs write permission; a folder cannot be opened for writing.
    let file = match kind.is_dir() {
        true => File::open(path),
        false if kind.is_file() => OpenOptions::new().write(true).open(path),
        false => return,
    };
    let Ok(file) = file else { return };
    if file.try_lock().is_ok() {
        let _ = if kind.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    }
}

#[cfg(unix)]
fn is_linked(file: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(file.metadata()?.nlink() > 0)
}

#[cfg(not(unix))]
fn is_linked(_file: &File) -> io::Result<bool> {
    // On these systems an open file cannot be removed.
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporaries_in_use_stay_and_abandoned_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        let (file, used) = create(folder.path(), "a.json").unwrap();
        // Another writer of that name in this process, or in a process with the same id elsewhere.
        let (_other, second) = create(folder.path(), "a.json").unwrap();
        assert_ne!(used, second);
        let abandoned = folder.path().join(".model.safetensors.7.tmp");
        fs::write(&abandoned, b"half").unwrap();
        let aside = folder.path().join(".trial-003.7.tmp");
        fs::create_dir_all(aside.join("checkpoints")).unwrap();
        let others = [".b.tmp", "c.7.tmp", ".d.7x.tmp", ".e..tmp"].map(|name| folder.path().join(name));
        others.iter().for_each(|path| fs::write(path, b"").unwrap());
        remove_all_abandoned(folder.path());
        assert!(used.exists() && second.exists() && !abandoned.exists() && !aside.exists());
        assert!(others.iter().all(|path| path.exists()));
        drop(file);
        remove_all_abandoned(folder.path());
        assert!(!used.exists() && second.exists());
    }

    #[test]
    fn the_name_of_an_abandoned_temporary_does_not_block_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(format!(".a.json.{}.tmp", std::process::id()));
        fs::write(&path, b"half").unwrap();
        let (file, _) = create(folder.path(), "a.json").unwrap();
        assert!(!path.exists() && file.metadata().unwrap().len() == 0);
    }
}
