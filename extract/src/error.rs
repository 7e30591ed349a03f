//! The one error type of this crate: every message says what was found, what was expected and what to do.

use ofa_supernet::quote::shortened;
use std::path::{Path, PathBuf};

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
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
    #[error("{}: {}", path.display(), shortened(message))]
    Format {
        /// The file or folder.
        path: PathBuf,
        /// What was found, what was expected, what to do.
        message: String,
    },
    /// A line of a file is not what its format asks for.
    #[error("{}:{line}: {}", path.display(), shortened(message))]
    Line {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What was found, what was expected, what to do.
        message: String,
    },
    /// A limit cannot be read or does not fit the devices at hand.
    #[error("limit: {}", shortened(.0))]
    Constraint(String),
    /// The predictor cannot be fitted.
    #[error("predictor: {}", shortened(.0))]
    Predictor(String),
    /// A setting of a search strategy is out of its range.
    #[error("search: {name} {value} is not {expected}")]
    Setting {
        /// The setting's name, as in files.
        name: &'static str,
        /// The value.
        value: String,
        /// The range, such as "between 0 and 1".
        expected: String,
    },
    /// A search problem or a scorer's answer is impossible.
    #[error("search: {}", shortened(.0))]
    Search(String),
    /// Hyperparameters cannot be varied like that.
    #[error("tune: {}", shortened(.0))]
    Tune(String),
    /// No subnet of the space meets the limits.
    #[error("search: {}", shortened(.0))]
    Impossible(String),
    /// Search space, subnet or network.
    #[error(transparent)]
    Supernet(#[from] ofa_supernet::Error),
    /// Cost or latency.
    #[error(transparent)]
    Evaluate(#[from] ofa_evaluate::Error),
    /// Code of this crate or its caller broke an invariant; no input should reach this.
    #[error("internal error: {0}; please report this")]
    Internal(String),
    /// A tensor operation failed.
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

    /// Wraps an operating system error with the path it happened at.
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
