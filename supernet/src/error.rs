//! The one error type of this crate: every message says what was found, what was expected and what to do.

use std::path::{Path, PathBuf};

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing a file failed.
    #[error("{}: {source}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file's content is not what its format asks for.
    #[error("{}: {message}", path.display())]
    Format {
        /// The file or folder.
        path: PathBuf,
        /// What was found, what was expected, what to do.
        message: String,
    },
    /// A search space contradicts itself or the subnet asked of it.
    #[error("search space: {0}")]
    Space(String),
    /// A subnet's text cannot be read, or the subnet lies outside the space.
    #[error("subnet: {0}")]
    Subnet(String),
    /// A dataset cannot be used.
    #[error("data: {0}")]
    Data(String),
    /// A training configuration is impossible.
    #[error("training configuration: {0}")]
    Config(String),
    /// The loss or a weight became NaN or infinite.
    #[error("{0}")]
    NotFinite(String),
    /// Another process works in the folder.
    #[error("{}: {holder} works in this folder; wait for it, stop it, or name another folder", path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
        /// Which process.
        holder: String,
    },
    /// Processes that work together do not agree, or cannot reach one another.
    #[error("{0}")]
    Ranks(String),
    /// The work was interrupted on request.
    #[error("interrupted")]
    Interrupted,
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// Wraps an operating system error with the path it happened at.
    pub fn file(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::File { path: path.as_ref().to_path_buf(), source }
    }

    /// A format error at a path.
    pub fn format(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::Format { path: path.as_ref().to_path_buf(), message: message.into() }
    }
}
