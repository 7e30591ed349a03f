//! Locks on a run folder: one writer at a time.
//!
//! The lock is the operating system's, on the file `.lock` in the folder, and ends with the process, however the
//! process ends. The file's content, `PID command`, only serves the message to other processes.

use crate::{Error, Result, files};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Name of the lock file.
pub const LOCK_FILE: &str = ".lock";

/// Whether other processes may hold the lock at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Exclusive: for work that changes files that others read.
    Alone,
    /// Shared: for work that reads, and adds whole files of its own.
    Shared,
}

/// A held lock, released when dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of `folder` for `command`, which is shown to other processes. A missing folder is created.
    ///
    /// Where the file system has no locks there is no protection and no error.
    ///
    /// # Errors
    /// [`Error::Busy`] with the holder's process id and command, or a folder that cannot be written.
    pub fn take(folder: &Path, sharing: Sharing, command: &str) -> Result<Lock> {
        files::make_folder(folder)?;
        let path = folder.join(LOCK_FILE);
        let fail = |e| Error::file(&path, e);
        let mut file =
            OpenOptions::new().create(true).read(true).write(true).truncate(false).open(&path).map_err(fail)?;
        let taken = match sharing {
            Sharing::Alone => file.try_lock(),
            Sharing::Shared => file.try_lock_shared(),
        };
        match taken {
            Ok(()) => {}
            Err(TryLockError::Error(e)) if has_no_locks(&e) => {}
            Err(TryLockError::Error(e)) => return Err(fail(e)),
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Busy { path: folder.to_path_buf(), holder: holder(&mut file) });
            }
        }
        // The content is informative only, so a full disk does not matter here.
        let line = format!("{} {command}\n", std::process::id());
        let _ =
            file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0))).and_then(|_| file.write_all(line.as_bytes()));
        Ok(Lock { _file: file })
    }

    /// Takes the shared lock of `folder` for a command that writes nothing.
    ///
    /// The folder and its lock file stay unchanged, so a read-only folder is fine. `None` if there is no lock file,
    /// which means that nobody has locked the folder, or if it cannot be opened.
    ///
    /// # Errors
    /// [`Error::Busy`] with the process id and command of an exclusive holder.
    pub fn take_to_read(folder: &Path) -> Result<Option<Lock>> {
        let Ok(mut file) = File::open(folder.join(LOCK_FILE)) else { return Ok(None) };
        match file.try_lock_shared() {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(TryLockError::Error(_)) => Ok(None),
            Err(TryLockError::WouldBlock) => Err(Error::Busy { path: folder.to_path_buf(), holder: holder(&mut file) }),
        }
    }
}

/// Waits for the lock of the folder itself, for a few reads or writes of files that belong together. Dropping the
/// result releases it. `None` if the folder cannot be locked: then there is no protection.
pub fn wait(folder: &Path, sharing: Sharing) -> Option<File> {
    let file = File::open(folder).ok()?;
    loop {
        let locked = match sharing {
            Sharing::Alone => file.lock(),
            Sharing::Shared => file.lock_shared(),
        };
        match locked {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            locked => return locked.ok().map(|()| file),
        }
    }
}

/// Whether an error says that the file system, or its server, has no locks.
fn has_no_locks(error: &std::io::Error) -> bool {
    const ENOLCK: i32 = 37;
    error.kind() == ErrorKind::Unsupported || (cfg!(target_os = "linux") && error.raw_os_error() == Some(ENOLCK))
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.take(1000).read_to_string(&mut text);
    // Of several that share, the last one is written down, and may have ended; or it runs on another machine.
    let lives = |process: &str| !Path::new("/proc/self").exists() || Path::new("/proc").join(process).exists();
    match (read, text.trim().split_once(' ')) {
        (Ok(_), Some((process, command))) if lives(process) => format!("process {process} (`{command}`)"),
        (Ok(_), Some((process, command))) => {
            format!("process {process} (`{command}`) of another machine, or one that began beside it,")
        }
        _ => "another process".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_alone_or_several_that_share() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let first = Lock::take(&run, Sharing::Alone, "ofa train").unwrap();
        for sharing in [Sharing::Alone, Sharing::Shared] {
            let error = Lock::take(&run, sharing, "ofa search").unwrap_err().to_string();
            assert!(error.contains(&format!("process {} (`ofa train`)", std::process::id())), "{error}");
        }
        drop(first);
        let readers: Vec<Lock> = (0..2).map(|_| Lock::take(&run, Sharing::Shared, "ofa search").unwrap()).collect();
        assert!(matches!(Lock::take(&run, Sharing::Alone, "ofa train"), Err(Error::Busy { .. })));
        drop(readers);
        // Of several that share, the one that wrote its name last may have ended.
        let shared = Lock::take(&run, Sharing::Shared, "ofa search").unwrap();
        std::fs::write(run.join(LOCK_FILE), "4194999 ofa extract\n").unwrap();
        let error = Lock::take(&run, Sharing::Alone, "ofa train").unwrap_err().to_string();
        assert_eq!(error.contains("or one that began beside it, works"), cfg!(target_os = "linux"), "{error}");
        drop(shared);
        Lock::take(&run, Sharing::Alone, "ofa train").unwrap();
    }

    #[test]
    fn reading_takes_a_lock_that_is_there_and_leaves_no_trace() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path();
        assert!(Lock::take_to_read(run).unwrap().is_none());
        assert_eq!(std::fs::read_dir(run).unwrap().count(), 0);
        let writer = Lock::take(run, Sharing::Alone, "ofa train").unwrap();
        let state = || {
            let file = run.join(LOCK_FILE);
            (std::fs::read(&file).unwrap(), file.metadata().unwrap().modified().unwrap())
        };
        let before = state();
        let error = Lock::take_to_read(run).unwrap_err().to_string();
        assert!(error.contains("`ofa train`"), "{error}");
        drop(writer);
        let reader = Lock::take_to_read(run).unwrap();
        assert!(reader.is_some());
        assert_eq!(state(), before);
        Lock::take(run, Sharing::Shared, "ofa search").unwrap();
        assert!(matches!(Lock::take(run, Sharing::Alone, "ofa train"), Err(Error::Busy { .. })));
    }
}
