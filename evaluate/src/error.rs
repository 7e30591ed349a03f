//! The error type of this crate.

use ofa_supernet::quote::{quoted, shortened};
use std::path::Path;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of the supernet crate: files, formats, spaces, subnets, interruption.
    #[error(transparent)]
    Supernet(#[from] ofa_supernet::Error),
    /// A weight tensor is missing, unknown, of the wrong shape or not finite.
    #[error("tensor '{}': {}", quoted(name), shortened(message))]
    Tensor {
        /// The tensor's name.
        name: String,
        /// What was found and what was expected.
        message: String,
    },
    /// A network specification contradicts itself or is out of bounds.
    #[error("network: {}", shortened(.0))]
    Network(String),
    /// Images or labels given to a network do not fit it.
    #[error("input: {}", shortened(.0))]
    Input(String),
    /// A model cannot be written in another format with these options.
    #[error("export: {}", shortened(.0))]
    Export(String),
    /// A profile or benchmark cannot be made with these options.
    #[error("measurement: {}", shortened(.0))]
    Measurement(String),
    /// A device profile has no time for a layer.
    #[error(
        "device profile '{}' has no time for the layer '{layer}': it was made for the space '{}' with \
         {classes} classes; make a profile for this space with `ofa profile --run RUN`",
        quoted(device),
        quoted(space)
    )]
    MissingLayer {
        /// Name of the profile's device.
        device: String,
        /// The layer that was looked up.
        layer: String,
        /// Name of the space the profile was made for.
        space: String,
        /// Number of classes the profile was made for.
        classes: usize,
    },
}

impl Error {
    /// Whether the work was interrupted on request, so that nothing is wrong.
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Error::Supernet(error) if error.is_interrupted())
    }

    /// A tensor error.
    pub fn tensor(name: impl Into<String>, message: impl Into<String>) -> Self {
        Error::Tensor { name: name.into(), message: message.into() }
    }

    /// The error with the path of the file whose content it is about; one that names a path of its own, or is not about
    /// content, stays as it is.
    pub fn at(self, path: impl AsRef<Path>) -> Self {
        match self {
            Error::Supernet(error) => Error::Supernet(error.at(path)),
            Error::Tensor { .. } | Error::Network(_) | Error::Input(_) | Error::MissingLayer { .. } => {
                ofa_supernet::Error::format(path, self.to_string()).into()
            }
            Error::Measurement(_) | Error::Export(_) => self,
        }
    }
}
