//! What the checks of a configuration have in common.

use crate::{Error, Result};

/// Largest factor that a configuration may hold; sums with it stay finite in f32.
pub(super) const LARGE: f64 = 1e9;

/// An impossible configuration.
pub(super) fn fail<T>(message: String) -> Result<T> {
    Err(Error::Config(message))
}
