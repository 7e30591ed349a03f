//! Bytes as numbers: scales, rounding, and the end of a layer.

use crate::ops::activation::Act;
use crate::ops::buffers::Aligned;
use crate::ops::simd::{Kernel, Simd, entry_points};
use bytemuck::{cast_slice, cast_slice_mut};
use std::marker::PhantomData;

/// Map between bytes and numbers: `number = (byte - zero_point) * scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Affine {
    /// Distance of two neighbouring numbers; above 0.
    pub scale: f32,
    /// The byte of zero.
    pub zero_point: u8,
}

impl Affine {
    /// Constants of rounding, as vectors.
    #[inline(always)]
    pub(super) fn rounding<S: Simd>(self, s: S) -> Rounding<S> {
        let zero = f32::from(self.zero_point);
        Rounding {
            s,
            reciprocal: s.splat(1.0 / self.scale),
            least: s.splat(-zero),
            most: s.splat(255.0 - zero),
            zero_point: s.splat_i32(self.zero_point.into()),
        }
    }

    /// Bytes less the zero point, as floats.
    #[inline(always)]
    pub(super) fn centred<S: Simd>(self, s: S, bytes: &[u8]) -> S::V {
        s.to_floats(s.add_i32(s.read_bytes(bytes), s.splat_i32(-i32::from(self.zero_point))))
    }

    /// Numbers of bytes.
    #[inline(always)]
    pub(super) fn numbers<S: Simd>(self, s: S, bytes: &[u8]) -> S::V {
        s.mul(self.centred(s, bytes), s.splat(self.scale))
    }
}

/// Rounding of vectors to bytes: `round_ties_even(value * (1 / scale)) + zero_point`, from 0 to 255.
#[derive(Clone, Copy)]
pub(super) struct Rounding<S: Simd> {
    s: S,
    reciprocal: S::V,
    least: S::V,
    most: S::V,
    zero_point: S::I,
}

impl<S: Simd> Rounding<S> {
    /// The byte of each number.
    #[inline(always)]
    pub(super) fn bytes(self, v: S::V) -> S::I {
        let s = self.s;
        // The bounds are integers, so that they are the same before rounding and after it.
        let v = s.min(s.max(s.mul(v, self.reciprocal), self.least), self.most);
        s.add_i32(s.to_nearest(v), self.zero_point)
    }

    /// The byte of each output of an activation.
    #[inline(always)]
    fn activated<A: Act>(self, v: S::V) -> S::I {
        if !A::NEVER_NEGATIVE {
            return self.bytes(v);
        }
        let s = self.s;
        let v = s.min(s.mul(v, self.reciprocal), self.most);
        s.add_i32(s.to_nearest(v), self.zero_point)
    }
}

/// Memory for a layer's output.
pub enum Target<'a> {
    /// Bytes of a scale.
    Bytes(&'a mut [u8], Affine),
    /// Numbers.
    Floats(&'a mut [f32]),
}

impl Target<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Target::Bytes(bytes, _) => bytes.len(),
            Target::Floats(floats) => floats.len(),
        }
    }
}

/// The end of a layer for some vectors of channels: `activation(sum * multiplier + residual)` of some pixels.
///
/// A kernel of its own, so that its constants stay in registers and it is compiled once per activation.
pub(super) struct Finish<'a, 'o, A> {
    /// Sums `[pixels, channels]`, whole vectors of channels.
    pub sums: &'a [i32],
    /// Factors of the channels, as many as a pixel has sums.
    pub multipliers: &'a [f32],
    /// Added to the product; laid out as the output.
    pub residual: Option<(&'a [u8], Affine)>,
    pub target: &'a mut Target<'o>,
    /// Place of the first pixel's channels in the output and the residual.
    pub start: usize,
    /// Distance from one pixel to the next.
    pub step: usize,
    /// Channels that exist: more than all vectors but the last hold.
    pub width: usize,
    pub activation: PhantomData<A>,
}

impl<A: Act> Kernel for Finish<'_, '_, A> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.multipliers.len() / S::LANES {
            1 => self.vectors::<S, 1>(s),
            2 => self.vectors::<S, 2>(s),
            _ => self.vectors::<S, 3>(s),
        }
    }
}

impl<A: Act> Finish<'_, '_, A> {
    /// `N` vectors of each pixel.
    #[inline(always)]
    fn vectors<S: Simd, const N: usize>(self, s: S) {
        assert!(self.multipliers.len() == N * S::LANES && self.width > (N - 1) * S::LANES);
        // Loops of whole vectors have no case of shorter ones.
        if self.width >= N * S::LANES {
            self.pixels::<S, N>(s, N * S::LANES);
        } else {
            let width = self.width;
            self.pixels::<S, N>(s, width);
        }
    }

    #[inline(always)]
    fn pixels<S: Simd, const N: usize>(self, s: S, width: usize) {
        let Finish { start, step, .. } = self;
        let part = |n: usize| n * S::LANES..width.min((n + 1) * S::LANES);
        let multipliers: [S::V; N] = std::array::from_fn(|n| s.read(&self.multipliers[n * S::LANES..][..S::LANES]));
        let product = |sums: &[i32], n: usize| s.mul(s.to_floats(s.read_i32(&sums[n * S::LANES..])), multipliers[n]);
        let sums = self.sums.chunks_exact(N * S::LANES);
        match (self.target, self.residual) {
            (Target::Bytes(out, affine), None) => {
                let rounding = affine.rounding(s);
                for (sums, out) in sums.zip(out[start..].chunks_mut(step)) {
                    let out = &mut out[..width];
                    for n in 0..N {
                        let value = A::exact_values(s, product(sums, n));
                        s.write_bytes(&mut out[part(n)], rounding.activated::<A>(value));
                    }
                }
            }
            (Target::Bytes(out, affine), Some((residual, from))) => {
                let rounding = affine.rounding(s);
                let pixels = out[start..].chunks_mut(step).zip(residual[start..].chunks(step));
                for (sums, (out, residual)) in sums.zip(pixels) {
                    let (out, residual) = (&mut out[..width], &residual[..width]);
                    for n in 0..N {
                        let value = s.add(product(sums, n), from.numbers(s, &residual[part(n)]));
                        s.write_bytes(&mut out[part(n)], rounding.activated::<A>(A::exact_values(s, value)));
                    }
                }
            }
            (Target::Floats(out), residual) => {
                for (pixel, (sums, out)) in sums.zip(out[start..].chunks_mut(step)).enumerate() {
                    for n in 0..N {
                        let mut value = product(sums, n);
                        if let Some((residual, from)) = residual {
                            value = s.add(value, from.numbers(s, &residual[start + pixel * step..][part(n)]));
                        }
                        s.write(&mut out[part(n)], A::exact_values(s, value));
                    }
                }
            }
        }
    }
}

/// Factors and biases of a layer's output channels, padded with zeros to whole vectors.
#[derive(Debug, Clone)]
pub(super) struct Channels {
    bias: Aligned,
    pub multipliers: Aligned,
}

impl Channels {
    /// `bias` less what the zero point of the input adds to each sum of the products with `weight` `[channels, ...]`.
    pub(super) fn new(weight: &[i8], bias: &[i32], multipliers: &[f32], zero_point: u8, lanes: usize) -> Self {
        let channels = bias.len();
        assert!(multipliers.len() == channels && channels > 0 && weight.len().is_multiple_of(channels));
        let padded = channels.next_multiple_of(lanes);
        let mut all = Channels { bias: Aligned::zeros(padded), multipliers: Aligned::zeros(padded) };
        let filters = weight.chunks_exact(weight.len() / channels);
        for ((out, &bias), filter) in cast_slice_mut::<f32, i32>(&mut all.bias).iter_mut().zip(bias).zip(filters) {
            let sum: i32 = filter.iter().map(|&weight| i32::from(weight)).sum();
            *out = bias.wrapping_sub(i32::from(zero_point).wrapping_mul(sum));
        }
        all.multipliers[..channels].copy_from_slice(multipliers);
        all
    }

    pub(super) fn bias(&self) -> &[i32] {
        cast_slice(&self.bias)
    }
}
