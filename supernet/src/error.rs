//! The one error type of this crate: every message says what was found, what was expected and what to do.

use crate::quote::shortened;
use std::path::{Path, PathBuf};

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong in this crate. Messages may hold foreign text as it is: showing them cuts it to a line.
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
    /// A search space contradicts itself or the subnet asked of it.
    #[error("search space: {}", shortened(.0))]
    Space(String),
    /// A subnet's text cannot be read, or the subnet lies outside the space.
    #[error("subnet: {}", shortened(.0))]
    Subnet(String),
    /// A dataset cannot be used.
    #[error("data: {}", shortened(.0))]
    Data(String),
    /// A training configuration is impossible.
    #[error("training configuration: {}", shortened(.0))]
    Config(String),
    /// A run cannot begin or resume as asked; nothing was changed.
    #[error("{}: {}", path.display(), shortened(message))]
    Refused {
        /// The run folder or checkpoint.
        path: PathBuf,
        /// What was found, what was expected, what to do.
        message: String,
    },
    /// Weights, statistics or momentum do not fit the network.
    #[error("weights: {}", shortened(.0))]
    Weights(String),
    /// The loss or a weight became NaN or infinite.
    #[error("{}", shortened(.0))]
    NotFinite(String),
    /// Another process works in the folder.
    #[error("{}: {} works in this folder; wait for it, stop it, or name another folder", path.display(), shortened(holder))]
    Busy {
        /// The folder.
        path: PathBuf,
        /// Process id and command of the other process.
        holder: String,
    },
    /// Processes that work together do not agree, or cannot reach one another.
    #[error("{0}")]
    Ranks(String),
    /// The work was interrupted on request.
    #[error("interrupted")]
    Interrupted,
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
        matches!(self, Error::Interrupted)
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

    /// A run folder or checkpoint that cannot be used as asked.
    pub fn refused(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::Refused { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// The error with the path of the file whose content it is about.
    ///
    /// An error about content becomes [`Error::Format`]; one that names a path of its own, or is not about content,
    /// stays as it is.
    pub fn at(self, path: impl AsRef<Path>) -> Self {
        match self {
            Error::Space(_)
            | Error::Subnet(_)
            | Error::Data(_)
            | Error::Config(_)
            | Error::Weights(_)
            | Error::NotFinite(_)
            | Error::Tensor(_) => Error::format(path, self.to_string()),
            Error::File { .. }
            | Error::Format { .. }
            | Error::Line { .. }
            | Error::Refused { .. }
            | Error::Busy { .. }
            | Error::Ranks(_)
            | Error::Interrupted
            | Error::Internal(_) => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_about_content_gains_its_path_once() {
        for error in [Error::Space("x".into()), Error::Weights("x".into()), Error::Config("x".into())] {
            let before = error.to_string();
            let with_path = error.at("a/b").at("c");
            assert_eq!(with_path.to_string(), format!("a/b: {before}"));
        }
        assert_eq!(Error::Interrupted.at("a").to_string(), "interrupted");
    }
}
