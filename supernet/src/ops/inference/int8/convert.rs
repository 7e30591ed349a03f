//! Rounding of numbers to bytes, and back.

use super::affine::Affine;
use crate::ops::simd::{Kernel, Simd, entry_points, vectors};

/// Rounds each number.
pub(super) struct Quantise<'a> {
    pub input: &'a [f32],
    pub affine: Affine,
    pub output: &'a mut [u8],
}

impl Kernel for Quantise<'_> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rounding = self.affine.rounding(s);
        for part in vectors(s, self.output.len()) {
            s.write_bytes(&mut self.output[part.clone()], rounding.bytes(s.read(&self.input[part])));
        }
    }
}

/// The number of each byte.
pub(super) struct Dequantise<'a> {
    pub input: &'a [u8],
    pub affine: Affine,
    pub output: &'a mut [f32],
}

impl Kernel for Dequantise<'_> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for part in vectors(s, self.output.len()) {
            s.write(&mut self.output[part.clone()], self.affine.numbers(s, &self.input[part]));
        }
    }
}
