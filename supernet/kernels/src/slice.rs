//! A slice of channels: one cache line of floats, and the vectors inside it.

use super::simd::Simd;

/// Channels per slice.
pub(crate) const SLICE: usize = 16;

/// A value per channel of a slice.
pub(crate) type Lanes = [f32; SLICE];

/// The place of a vector inside a slice: a multiple of the vector length, below [`SLICE`].
#[derive(Clone, Copy)]
pub(crate) struct Lane<S> {
    s: S,
    start: usize,
}

impl<S: Simd> Lane<S> {
    /// The places of the vectors that hold the first `width` channels of a slice.
    #[inline(always)]
    pub(crate) fn covering(s: S, width: usize) -> impl Iterator<Item = Lane<S>> {
        const { assert!(SLICE.is_multiple_of(S::LANES)) };
        (0..width.min(SLICE)).step_by(S::LANES).map(move |start| Lane { s, start })
    }

    /// Number of the vector's first channel.
    #[inline(always)]
    pub(crate) fn start(self) -> usize {
        self.start
    }

    /// Loads the vector.
    #[inline(always)]
    pub(crate) fn load(self, values: &Lanes) -> S::V {
        // SAFETY: `covering` gives multiples of the vector length below `SLICE`, which it divides, so the whole vector
        // lies inside `values`.
        unsafe { self.s.load(values.as_ptr().add(self.start)) }
    }

    /// Stores the vector.
    #[inline(always)]
    pub(crate) fn store(self, values: &mut Lanes, v: S::V) {
        // SAFETY: `covering` gives multiples of the vector length below `SLICE`, which it divides, so the whole vector
        // lies inside `values`.
        unsafe { self.s.store(values.as_mut_ptr().add(self.start), v) }
    }
}

/// The values of one slice of channels, padded with zeros.
#[inline(always)]
pub(crate) fn lanes(values: &[f32], first: usize, width: usize) -> Lanes {
    let mut lanes = [0.0; SLICE];
    lanes[..width].copy_from_slice(&values[first..first + width]);
    lanes
}
