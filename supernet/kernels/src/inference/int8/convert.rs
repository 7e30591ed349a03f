//! Rounding of numbers to bytes, and back; channels multiplied by factors.

use super::affine::Affine;
use super::ends::Target;
use crate::simd::{Kernel, Simd, entry_points, vectors};

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
            s.write(&mut self.output[part.clone()], self.affine.numbers(s, s.read_bytes(&self.input[part])));
        }
    }
}

/// Each channel of `input` `[batch, pixels, channels]` multiplied by its factor of `[batch, channels]`.
pub(super) struct GateMap<'a, 'o> {
    pub input: &'a [u8],
    pub affine: Affine,
    pub factors: &'a [f32],
    pub pixels: usize,
    pub channels: usize,
    pub target: Target<'o>,
}

impl Kernel for GateMap<'_, '_> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (n, scale) = (self.channels, s.splat(self.affine.scale));
        for (row, pixel) in self.input.chunks_exact(n).enumerate() {
            let factors = &self.factors[row / self.pixels * n..][..n];
            for channels in vectors(s, n) {
                let factor = s.mul(scale, s.read(&factors[channels.clone()]));
                let value = s.mul(self.affine.centred(s, s.read_bytes(&pixel[channels.clone()])), factor);
                let place = row * n + channels.start..row * n + channels.end;
                match &mut self.target {
                    Target::Bytes(bytes, to) => s.write_bytes(&mut bytes[place], to.rounding(s).bytes(value)),
                    Target::Floats(floats) => s.write(&mut floats[place], value),
                }
            }
        }
    }
}
