//! The error type of this crate.

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An error of the supernet crate: files, formats, spaces, subnets, interruption.
    #[error(transparent)]
    Supernet(#[from] ofa_supernet::Error),
    /// A weight tensor is missing, unknown, of the wrong shape or not finite.
    #[error("tensor '{name}': {message}")]
    Tensor {
        /// The tensor's name.
        name: String,
        /// What was found and what was expected.
        message: String,
    },
    /// A network specification contradicts itself or is out of bounds.
    #[error("network: {0}")]
    Network(String),
    /// Images or labels given to a network do not fit it.
    #[error("input: {0}")]
    Input(String),
    /// A profile or benchmark cannot be made with these options.
    #[error("measurement: {0}")]
    Measurement(String),
    /// A device profile has no time for a layer.
    #[error(
        "device profile '{device}' has no time for the layer '{layer}': it was made for the space '{space}' with \
         {classes} classes; make a profile for this space with `ofa profile`"
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
    /// A tensor error.
    pub fn tensor(name: impl Into<String>, message: impl Into<String>) -> Self {
        Error::Tensor { name: name.into(), message: message.into() }
    }
}
