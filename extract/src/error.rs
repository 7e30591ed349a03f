//! Error type of this crate: every message says what was found, what was expected and what to do.

use ofa_supernet::quote::shortened;
use std::path::{Path, PathBuf};

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Failed reading or writing of a file.
    #[error("{}: {source}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// Content of a file in another format than expected.
    #[error("{}: {}", path.display(), shortened(message))]
    Format {
        /// The file or folder.
        path: PathBuf,
        /// Message: what was found, what was expected, what to do.
        message: String,
    },
    /// Line of a file in another format than expected.
    #[error("{}:{line}: {}", path.display(), shortened(message))]
    Line {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// Message: what was found, what was expected, what to do.
        message: String,
    },
    /// Limit that cannot be read or does not fit the known devices.
    #[error("limit: {}", shortened(.0))]
    Constraint(String),
    /// Predictor that cannot be fitted.
    #[error("predictor: {}", shortened(.0))]
    Predictor(String),
    /// Setting of a search strategy outside its range.
    #[error("search: {name} {value} is not {expected}")]
    Setting {
        /// The setting's name, as in files.
        name: &'static str,
        /// The value.
        value: String,
        /// The range, such as "between 0 and 1".
        expected: String,
    },
    /// Impossible search problem or score.
    #[error("search: {}", shortened(.0))]
    Search(String),
    /// Hyperparameters that cannot be varied in this way.
    #[error("tune: {}", shortened(.0))]
    Tune(String),
    /// Limits that no subnet of the space meets.
    #[error("search: {}", shortened(.0))]
    Impossible(String),
    /// Error of search space, subnet or network.
    #[error(transparent)]
    Supernet(#[from] ofa_supernet::Error),
    /// Error of a cost or latency.
    #[error(transparent)]
    Evaluate(#[from] ofa_evaluate::Error),
    /// Invariant broken by code of this crate or its caller; no input should reach this.
    #[error("internal error: {0}; please report this")]
    Internal(String),
    /// Failed tensor operation.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// Whether the work was interrupted on request, so that nothing is wrong.
    pub fn is_interrupted(&self) -> bool {
        match self {
            Error::Supernet(error) => error.is_interrupted(),
            Error::Evaluate(error) => error.is_interrupted(),
            _ => false,
        }
    }

    /// Wraps an error of the operating system with the path of the file.
    pub fn file(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::File { path: path.as_ref().to_path_buf(), source }
    }

    /// A format error at a path.
    pub fn format(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::Format { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// A format error at a line (from 1) of a path.
    pub fn line(path: impl AsRef<Path>, line: usize, message: impl Into<String>) -> Self {
        Error::Line { path: path.as_ref().to_path_buf(), line, message: message.into() }
    }
}
