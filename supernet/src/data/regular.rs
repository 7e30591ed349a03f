//! Reading of regular files only: reading a FIFO, a socket or a device that is named like data could block for ever.

use std::fs::{self, FileType};
use std::path::Path;

/// Length in bytes of the regular file at `path` (links are followed); otherwise the reason, without the path.
pub(super) fn length(path: &Path) -> Result<u64, String> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(metadata.len()),
        Ok(metadata) => Err(format!("is {}, not a regular file", kind(metadata.file_type()))),
        Err(error) => Err(dangling(path).unwrap_or_else(|| format!("cannot be read: {error}"))),
    }
}

/// Content of the regular file at `path`, or the reason why it cannot be read.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, String> {
    length(path)?;
    fs::read(path).map_err(|error| format!("cannot be read: {error}"))
}

/// The reason why `path` is a dangling link, if it is one.
pub(super) fn dangling(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    let missing = matches!(fs::metadata(path), Err(error) if error.kind() == std::io::ErrorKind::NotFound);
    missing.then(|| format!("is a dangling link: its target {} does not exist", target.display()))
}

fn kind(of: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if of.is_fifo() {
            return "a FIFO";
        } else if of.is_socket() {
            return "a socket";
        } else if of.is_block_device() || of.is_char_device() {
            return "a device";
        }
    }
    if of.is_dir() { "a folder" } else { "something else" }
}
