//! Atomic writing: after an error, a kill or power loss a file holds either its old or its new content, never a mixture.

use crate::{Error, Result};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

/// Writes `bytes` to `path` through a temporary neighbour: write, fsync, rename, fsync of the folder.
///
/// Missing parent folders are made.
///
/// # Errors
/// The operating system's error with the path; the old file is then untouched.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("file");
    let temporary = folder.join(format!(".{name}.{}.tmp", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_folder(folder);
        Ok(())
    };
    make_folder(folder)?;
    let mut written = write();
    if matches!(&written, Err(error) if error.kind() == ErrorKind::NotFound) {
        // Somebody removed the folder meanwhile.
        make_folder(folder)?;
        written = write();
    }
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(|e| Error::file(path, e))
}

/// Makes a folder with its missing parents, durably.
///
/// # Errors
/// The operating system's error with the path.
pub fn make_folder(folder: &Path) -> Result<()> {
    let missing = folder.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists()).count();
    fs::create_dir_all(folder).map_err(|e| Error::file(folder, e))?;
    // A new folder is an entry of the one above it.
    folder.ancestors().skip(1).take(missing).for_each(sync_folder);
    Ok(())
}

/// Makes new, renamed and removed entries of a folder durable. Not every platform can open a folder, and the files' content
/// is safe without it, so a failure is no error.
pub fn sync_folder(folder: &Path) {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

/// Serialises `value` as indented JSON and writes it atomically.
///
/// # Errors
/// As [`write_atomic`]; a value that has no JSON form is a [`Error::Format`].
pub fn write_json<T: serde::Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| Error::format(path, e.to_string()))?;
    text.push('\n');
    write_atomic(path, text.as_bytes())
}

/// Reads a JSON file.
///
/// # Errors
/// A missing file or text that does not fit `T`, with the path and position.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = read_text(path)?;
    serde_json::from_str(&text).map_err(|e| Error::format(path, format!("not the expected JSON: {e}")))
}

/// Reads a UTF-8 text file.
///
/// # Errors
/// A missing or unreadable file, with its path.
pub fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| Error::file(path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_files_and_leaves_no_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b.txt");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn an_error_names_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        fs::write(&blocked, b"x").unwrap();
        let error = write_atomic(&blocked.join("below"), b"y").unwrap_err().to_string();
        assert!(error.contains("file"), "{error}");
    }
}
