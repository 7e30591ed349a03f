//! Ends of layers: from sums of products to bytes or numbers.

use super::affine::{Affine, Rounding};
use crate::Activation;
use crate::activation::{Act, HardSwish, Swish};
use crate::simd::Simd;

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

    /// The part from `start` on.
    pub(super) fn from(&mut self, start: usize) -> Target<'_> {
        match self {
            Target::Bytes(bytes, affine) => Target::Bytes(&mut bytes[start..], *affine),
            Target::Floats(floats) => Target::Floats(&mut floats[start..]),
        }
    }
}

/// The end of a layer for some vectors of channels: `activation(sum * multiplier + residual)` of some pixels.
pub(super) struct End<'a> {
    /// Output from the first pixel's channels on.
    pub target: Target<'a>,
    /// Distance from one pixel to the next.
    pub step: usize,
    /// Channels that exist: more than all vectors but the last hold.
    pub width: usize,
    /// Factors of the channels, whole vectors.
    pub multipliers: &'a [f32],
    /// Added to the product; laid out as the output.
    pub residual: Option<(&'a [u8], Affine)>,
    pub activation: Activation,
}

impl Default for End<'_> {
    /// No room.
    fn default() -> Self {
        let target = Target::Floats(&mut []);
        End { target, step: 0, width: 0, multipliers: &[], residual: None, activation: Activation::Identity }
    }
}

/// An end for `N` vectors of each pixel, with its constants: kernels finish their tiles of sums in registers.
pub(super) struct Ending<'a, S: Simd, const N: usize> {
    end: End<'a>,
    multipliers: [S::V; N],
    /// Rounding to bytes, with the activation's lower bound.
    rounding: Rounding<S>,
    /// The activation's upper bound, where bytes do not end before it.
    most: Option<S::V>,
    /// Whether the target is bytes and the activation does no more than bound values.
    only_bounded: bool,
}

impl<'a> End<'a> {
    /// The end of `pixels` pixels, for which there has to be room.
    #[inline(always)]
    pub(super) fn ending<S: Simd, const N: usize>(self, s: S, pixels: usize) -> Ending<'a, S, N> {
        let End { target, step, width, multipliers, residual, activation } = &self;
        let extent = (pixels - 1) * step + width;
        assert!(*width > (N - 1) * S::LANES && *width <= N * S::LANES && target.len() >= extent);
        assert!(residual.is_none_or(|(residual, _)| residual.len() >= extent));
        let multipliers = std::array::from_fn(|n| s.read(&multipliers[n * S::LANES..][..S::LANES]));
        let (least, most) = activation.bounds();
        let (to, largest) = match target {
            Target::Bytes(_, to) => (*to, to.largest()),
            // Numbers are not rounded.
            Target::Floats(_) => (Affine { scale: 1.0, zero_point: 0 }, f32::INFINITY),
        };
        let curved = matches!(activation, Activation::HardSwish | Activation::Swish);
        let only_bounded = matches!(target, Target::Bytes(..)) && !curved;
        let most = (most < largest).then(|| s.splat(most));
        Ending { end: self, multipliers, rounding: to.rounding_from(s, least), most, only_bounded }
    }
}

impl<S: Simd, const N: usize> Ending<'_, S, N> {
    /// Writes the pixels from `first` on.
    ///
    /// # Safety
    /// They are among the pixels that [`End::ending`] was given.
    #[inline(always)]
    pub(super) unsafe fn write<const PIXELS: usize>(&mut self, s: S, first: usize, sums: [[S::I; N]; PIXELS]) {
        let whole = self.end.width == N * S::LANES;
        // SAFETY: the contract is the same; `WHOLE` and `ONLY_BOUNDED` are what they say.
        unsafe {
            match (whole, self.only_bounded) {
                (true, true) => self.finish::<PIXELS, true, true>(s, first, sums),
                (false, true) => self.finish::<PIXELS, false, true>(s, first, sums),
                (_, false) => self.finish::<PIXELS, false, false>(s, first, sums),
            }
        }
    }

    /// [`write`](Self::write), where `WHOLE` says that each pixel's last vector exists to its end if it is set, and
    /// `ONLY_BOUNDED` is the field. With few branches the compiler keeps the tile in registers.
    ///
    /// # Safety
    /// As for [`write`](Self::write).
    #[allow(clippy::needless_range_loop)] // counted loops over two axes, which the compiler unrolls
    #[inline(always)]
    unsafe fn finish<const PIXELS: usize, const WHOLE: bool, const ONLY_BOUNDED: bool>(
        &mut self,
        s: S,
        first: usize,
        sums: [[S::I; N]; PIXELS],
    ) {
        let End { step, width, .. } = self.end;
        let place = |pixel: usize, n: usize| (first + pixel) * step + n * S::LANES;
        let count = |n: usize| if WHOLE || n + 1 < N { S::LANES } else { width - (N - 1) * S::LANES };
        // Loops of few instructions each, which the compiler unrolls, so that sums stay in registers.
        let mut values = [[s.splat(0.0); N]; PIXELS];
        for pixel in 0..PIXELS {
            for n in 0..N {
                values[pixel][n] = s.mul(s.to_floats(sums[pixel][n]), self.multipliers[n]);
            }
        }
        // SAFETY: `ending` asserted that the channels of each vector, `count` of them, exist in every pixel.
        unsafe {
            if let Some((residual, from)) = self.end.residual {
                for pixel in 0..PIXELS {
                    for n in 0..N {
                        let residual = s.load_bytes_up_to(residual.as_ptr().add(place(pixel, n)), count(n));
                        values[pixel][n] = s.add(values[pixel][n], from.numbers(s, residual));
                    }
                }
            }
            match self.end.activation {
                Activation::HardSwish if !ONLY_BOUNDED => each(&mut values, |value| HardSwish::exact_values(s, value)),
                Activation::Swish if !ONLY_BOUNDED => each(&mut values, |value| Swish::exact_values(s, value)),
                _ => {}
            }
            // Bytes have the bound in their rounding.
            let (least, _) = self.end.activation.bounds();
            if !ONLY_BOUNDED && least.is_finite() {
                each(&mut values, |value| s.max(value, s.splat(least)));
            }
            if let Some(most) = self.most {
                each(&mut values, |value| s.min(value, most));
            }
            match &mut self.end.target {
                Target::Bytes(bytes, _) => {
                    for pixel in 0..PIXELS {
                        for n in 0..N {
                            let byte = self.rounding.bytes(values[pixel][n]);
                            s.store_bytes_up_to(bytes.as_mut_ptr().add(place(pixel, n)), byte, count(n));
                        }
                    }
                }
                Target::Floats(floats) if !ONLY_BOUNDED => {
                    for pixel in 0..PIXELS {
                        for n in 0..N {
                            s.store_up_to(floats.as_mut_ptr().add(place(pixel, n)), values[pixel][n], count(n));
                        }
                    }
                }
                Target::Floats(_) => {}
            }
        }
    }
}

/// Maps the values of a tile.
#[inline(always)]
fn each<V: Copy, const N: usize, const PIXELS: usize>(values: &mut [[V; N]; PIXELS], map: impl Fn(V) -> V) {
    for pixel in values {
        for value in pixel {
            *value = map(*value);
        }
    }
}
