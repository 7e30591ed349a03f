//! The expand convolution. Its output is recomputed, a slice of channels of a few rows at a time, wherever it is read,
//! and never stored as a whole.
//!
//! Only the statistics need the whole output, and they follow from the input's: for `y = W x` the sum over pixels is `W
//! sum(x)`, and the sum of squares `w sum(x x') w'` per channel with weights `w`. Likewise the part of batch norm's
//! gradient that depends on `y` is a small matrix applied to `x`.

use super::expand_kernels::{AddNormGradient, BLOCK, SumMoments, WeightDeviations};
use crate::batch_norm::{Backward, Sums};
use crate::buffers::{Aligned, Buffer};
use crate::matmul::{Packed, ROW_BLOCK, accumulate_transposed};
use crate::parallel;
use crate::rows::total;
use crate::simd::{InstructionSet, dispatch};
use crate::slice::SLICE;

/// Sums over pixels of the input `[pixels, channels]`, and of the products of its deviations from the means, weighted
/// by the convolution's weight.
///
/// The sums of products are taken in f64, since the deviations' are small differences of these large numbers. What
/// remains has no such differences, and f32 is enough.
pub(super) struct Moments {
    pixels: usize,
    /// `[channels]`
    sum: Vec<f64>,
    /// `W D` `[out, channels]` for the weight `W` and the sums `D` of the products of deviations.
    weighted: Buffer,
}

impl Moments {
    /// The moments of `x` for `weight` `[out, channels]`, and the sums over pixels of `y = W x` and of its squares.
    pub(super) fn new(x: &[f32], weight: &[f32], channels: usize) -> (Self, Sums) {
        let pixels = x.len() / channels;
        let parts = parallel::map(pixels, BLOCK, |rows| {
            dispatch(SumMoments { x: &x[rows.start * channels..rows.end * channels], channels })
        });
        let (mut sum, mut products) = (vec![0.0; channels], vec![0.0; channels * channels]);
        for (part, of_products) in parts {
            sum.iter_mut().zip(part).for_each(|(total, v)| *total += v);
            products.iter_mut().zip(of_products).for_each(|(total, v)| *total += v);
        }
        let mut moments = Moments { pixels, sum, weighted: Buffer::with_arbitrary_contents(weight.len()) };
        let means = moments.means();
        let rows = products.chunks_exact(channels).zip(&moments.sum);
        let deviations: Vec<f32> =
            rows.flat_map(|(row, sum)| row.iter().zip(&means).map(move |(v, mean)| (v - sum * mean) as f32)).collect();
        let deviations = Packed::new(&deviations, channels, channels, channels, 1);
        let (sum, out) = (&moments.sum, weight.len() / channels);
        let parts = parallel::map_parts(&mut moments.weighted, channels, out, ROW_BLOCK, |rows, weighted| {
            let weight = &weight[rows.start * channels..rows.end * channels];
            dispatch(WeightDeviations { weight, deviations: &deviations, sum, pixels, weighted })
        });
        let mut sums = Sums::new(0);
        for part in parts {
            sums.sum.extend(part.sum);
            sums.square.extend(part.square);
        }
        (moments, sums)
    }

    fn means(&self) -> Vec<f64> {
        self.sum.iter().map(|sum| sum / self.pixels as f64).collect()
    }
}

/// Contribution of batch norm's gradient at the convolution's input.
///
/// At the raw output `y = W x` the gradient is `by_gradient * g + by_value * y + constant`, where all terms but the
/// first depend only on `x`.
pub(super) struct NormGradient {
    /// Matrix `[in, in]`, applied to the input's pixels.
    matrix: Packed,
    /// Vector `[in]`, added to each pixel.
    constant: Vec<f32>,
}

impl NormGradient {
    /// The contribution for the convolution's `weight` `[out, in]`; that to the weight's gradient is added to
    /// `weight_gradient`.
    pub(super) fn new(moments: &Moments, weight: &[f32], back: &Backward, weight_gradient: &mut [f32]) -> Self {
        let (n, m) = (moments.sum.len(), back.constant.len());
        let means = moments.means();
        // by_value * y + constant = by_value * W (x - mean) + rest
        let rest: Vec<f64> = weight
            .chunks_exact(n)
            .zip(back.by_value.iter().zip(back.constant.iter()))
            .map(|(w, (&by_value, &constant))| {
                let mean: f64 = w.iter().zip(&means).map(|(&w, mean)| f64::from(w) * mean).sum();
                f64::from(by_value) * mean + f64::from(constant)
            })
            .collect();
        let stride = n.next_multiple_of(InstructionSet::active().lanes());
        let parts = parallel::map(m, SLICE, |rows| {
            let mut scaled = Aligned::zeros(rows.len() * stride);
            let mut matrix = Aligned::zeros(n * stride);
            let weight = &weight[rows.start * n..rows.end * n];
            for ((out, w), &factor) in
                scaled.chunks_exact_mut(stride).zip(weight.chunks_exact(n)).zip(&back.by_value[rows.clone()])
            {
                for (out, w) in out.iter_mut().zip(w) {
                    *out = w * factor;
                }
            }
            accumulate_transposed(weight, n, &scaled, stride, rows.len(), n, n, &mut matrix, stride);
            matrix
        });
        let matrix = total(parts);
        let mut constant = vec![0.0f64; n];
        for (w, rest) in weight.chunks_exact(n).zip(&rest) {
            constant.iter_mut().zip(w).for_each(|(total, &w)| *total += f64::from(w) * rest);
        }
        for (row, mean) in matrix.chunks_exact(stride).zip(&means) {
            constant.iter_mut().zip(row).for_each(|(total, &v)| *total -= mean * f64::from(v));
        }
        parallel::map_parts(weight_gradient, n, m, ROW_BLOCK, |rows, out| {
            let weighted = moments.weighted[rows.start * n..rows.end * n].chunks_exact(n);
            for ((row, weighted), out) in rows.zip(weighted).zip(out.chunks_exact_mut(n)) {
                for ((out, weighted), &sum) in out.iter_mut().zip(weighted).zip(&moments.sum) {
                    *out += back.by_value[row] * weighted + (rest[row] * sum) as f32;
                }
            }
        });
        NormGradient {
            matrix: Packed::new(&matrix, n, n, stride, 1),
            constant: constant.into_iter().map(|v| v as f32).collect(),
        }
    }

    /// Adds the contribution, and the gradient of the shortcut if the block has one, to the input gradient `dx`
    /// `[pixels, in]`.
    pub(super) fn add_to(&self, x: &[f32], residual: Option<&[f32]>, dx: &mut [f32]) {
        let n = self.constant.len();
        parallel::map_parts(dx, n, x.len() / n, ROW_BLOCK, |rows, dx| {
            let span = rows.start * n..rows.end * n;
            let residual = residual.map(|residual| &residual[span.clone()]);
            dispatch(AddNormGradient { matrix: &self.matrix, constant: &self.constant, x: &x[span], residual, dx })
        });
    }
}
