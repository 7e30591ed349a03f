//! Bytes as numbers: scales, rounding, and factors of channels.

use crate::buffers::Aligned;
use crate::simd::Simd;
use bytemuck::{cast_slice, cast_slice_mut};

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
        self.rounding_from(s, f32::NEG_INFINITY)
    }

    /// Constants of rounding `max(value, least)`. The bound is scaled once, and values are compared after scaling:
    /// the same bits, since products are monotone.
    #[inline(always)]
    pub(super) fn rounding_from<S: Simd>(self, s: S, least: f32) -> Rounding<S> {
        let (zero, reciprocal) = (f32::from(self.zero_point), 1.0 / self.scale);
        Rounding {
            s,
            reciprocal: s.splat(reciprocal),
            least: s.splat((least * reciprocal).max(-zero)),
            most: s.splat(255.0 - zero),
            zero_point: s.splat_i32(self.zero_point.into()),
        }
    }

    /// Largest number that has a byte of its own.
    pub(super) fn largest(self) -> f32 {
        (255.0 - f32::from(self.zero_point)) * self.scale
    }

    /// Bytes less the zero point, as floats.
    #[inline(always)]
    pub(super) fn centred<S: Simd>(self, s: S, bytes: S::I) -> S::V {
        s.to_floats(s.add_i32(bytes, s.splat_i32(-i32::from(self.zero_point))))
    }

    /// Numbers of bytes.
    #[inline(always)]
    pub(super) fn numbers<S: Simd>(self, s: S, bytes: S::I) -> S::V {
        s.mul(self.centred(s, bytes), s.splat(self.scale))
    }
}

/// Rounding of vectors to bytes: `round_ties_even(value * (1 / scale)) + zero_point`, from 0 or a larger bound to 255.
#[derive(Clone, Copy)]
pub(super) struct Rounding<S: Simd> {
    s: S,
    reciprocal: S::V,
    least: S::V,
    most: S::V,
    zero_point: S::I,
}

impl<S: Simd> Rounding<S> {
    /// The byte of each number, for [`Simd::store_bytes`] or [`Simd::store_values`], which may leave the upper bound to
    /// them.
    #[inline(always)]
    pub(super) fn bytes(self, v: S::V) -> S::I {
        let s = self.s;
        // The bounds are integers, so that they are the same before rounding and after it.
        let v = s.max(s.mul(v, self.reciprocal), self.least);
        let v = if S::BYTES_SATURATE { v } else { s.min(v, self.most) };
        s.add_i32(s.to_nearest(v), self.zero_point)
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
