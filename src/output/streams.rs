//! Standard output and standard error, without the panics of `println!`.
//!
//! A failed write never stops a command: the failure is remembered, later output is dropped, and [`finish`] reports the
//! failure at the end. A closed pipe (`ofa bench ... | head -1`) is not a failure: the reader has had enough.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::{Mutex, PoisonError};

/// The first write to standard output that failed.
static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

/// Writes to standard output.
pub fn write(text: Arguments) {
    attempt(|| io::stdout().write_fmt(text));
}

/// Writes to standard error. A failure is ignored: there is nobody left to tell.
pub fn write_error(text: Arguments) {
    let _ = io::stderr().write_fmt(text);
}

/// Runs a write to standard output, unless one has failed before.
pub fn attempt(write: impl FnOnce() -> io::Result<()>) {
    let mut failed = FAILED.lock().unwrap_or_else(PoisonError::into_inner);
    if failed.is_none() {
        *failed = write().err();
    }
}

/// Flushes standard output.
///
/// # Errors
/// The first failed write since the program started, unless the reader closed the pipe.
pub fn finish() -> io::Result<()> {
    attempt(|| io::stdout().flush());
    match FAILED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}
