//! Helpers of the kernel tests: repeatable values, and a comparison with a stated tolerance.

use crate::seed::{Stream, generator};
use rand::Rng;

/// `len` values in -1..1, a different sequence for each `stream`.
pub(crate) fn values(len: usize, stream: u64) -> Vec<f32> {
    let mut rng = generator(99, Stream::Weights, &[stream]);
    (0..len).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

/// Asserts that `found` is within `tolerance` times the largest expected magnitude (at least 1e-2) of `expected`.
#[track_caller]
pub(crate) fn assert_close(found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_close_above(1e-2, found, expected, tolerance, what);
}

/// Asserts that `found` is within `tolerance` times the largest expected magnitude (at least `least`) of `expected`.
/// `least` is the magnitude of terms that cancel: f32 rounds them, however small their sum is.
#[track_caller]
pub(crate) fn assert_close_above(least: f64, found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    let scale = expected.iter().fold(least, |m, v| m.max(v.abs()));
    for (index, (&f, &e)) in found.iter().zip(expected).enumerate() {
        let difference = (f64::from(f) - e).abs();
        assert!(difference <= tolerance * scale, "{what}[{index}]: {f} instead of {e} (scale {scale})");
    }
}
