//! Kernels of the expand convolution: its output for a slice of channels, and the sums and products of its input that
//! replace passes over the whole output.

use crate::activation::Act;
use crate::batch_norm::Sums;
use crate::buffers::Aligned;
use crate::depthwise::Frame;
use crate::matmul::{Packed, ROW_BLOCK, accumulate_transposed, multiply, multiply_add};
use crate::simd::{Kernel, Simd, entry_points, vectors};
use crate::slice::{Lane, Lanes, SLICE};
use std::ops::Range;

/// Rows whose products are summed in f32 before they are added to an f64 total.
pub(super) const BLOCK: usize = 4 * ROW_BLOCK;

/// Sums over pixels of the input and of its products, in f64: `[channels]` and `[channels, channels]`.
pub(super) struct SumMoments<'a> {
    /// `[pixels, channels]`
    pub x: &'a [f32],
    pub channels: usize,
}

impl Kernel for SumMoments<'_> {
    type Output = (Vec<f64>, Vec<f64>);
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let n = self.channels;
        let stride = n.next_multiple_of(S::LANES);
        let (mut sum, mut products) = (vec![0.0f64; n], vec![0.0f64; n * n]);
        // Rows of whole vectors: the input itself, or a padded copy.
        let mut tile = Aligned::zeros(if stride > n { BLOCK * stride } else { 0 });
        let mut block = Aligned::zeros(n * stride);
        let mut block_sum = Aligned::zeros(stride);
        for x in self.x.chunks(BLOCK * n) {
            let rows = x.len() / n;
            for channels in vectors(s, n) {
                let mut sum = s.splat(0.0);
                let mut padded = tile.chunks_exact_mut(stride);
                for x in x.chunks_exact(n) {
                    let v = s.read(&x[channels.clone()]);
                    if let Some(padded) = padded.next() {
                        s.write(&mut padded[channels.start..][..S::LANES], v);
                    }
                    sum = s.add(sum, v);
                }
                s.write(&mut block_sum[channels.start..][..S::LANES], sum);
            }
            block.fill(0.0);
            let padded = if stride > n { &tile[..] } else { x };
            accumulate_transposed(x, n, padded, stride, rows, n, n, &mut block, stride);
            for (total, &v) in sum.iter_mut().zip(block_sum.iter()) {
                *total += f64::from(v);
            }
            for (totals, block) in products.chunks_exact_mut(n).zip(block.chunks_exact(stride)) {
                for (total, &v) in totals.iter_mut().zip(block) {
                    *total += f64::from(v);
                }
            }
        }
        (sum, products)
    }
}

/// `W D` for some rows of the weight `W` `[out, channels]`, and the sums over pixels of `y = W x` and of its squares.
///
/// The sum is `W sum(x)`. The sum of squares of a row `w` is `w D w'` plus the square of its sum divided by the number
/// of pixels.
pub(super) struct WeightDeviations<'a> {
    /// Rows of the weight.
    pub weight: &'a [f32],
    /// Sums over pixels of the products of the input's deviations from its means, `[channels, channels]`.
    pub deviations: &'a Packed,
    /// Sums over pixels of the input.
    pub sum: &'a [f64],
    pub pixels: usize,
    /// The rows of `W D`.
    pub weighted: &'a mut [f32],
}

/// Sums that are added side by side, as vectors hold them.
const BESIDE: usize = 16;

impl Kernel for WeightDeviations<'_> {
    type Output = Sums;
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Sums {
        let WeightDeviations { weight, deviations, sum, pixels, weighted } = self;
        let n = sum.len();
        multiply(weight, n, weight.len() / n, deviations, weighted, n);
        let mut sums = Sums::new(weight.len() / n);
        let outputs = sums.sum.iter_mut().zip(&mut sums.square);
        for ((weight, weighted), outputs) in weight.chunks_exact(n).zip(weighted.chunks_exact(n)).zip(outputs) {
            let (mut of_sum, mut of_square) = ([0.0; BESIDE], [0.0; BESIDE]);
            let parts = weight.chunks(BESIDE).zip(weighted.chunks(BESIDE)).zip(sum.chunks(BESIDE));
            for ((weight, weighted), sum) in parts {
                for (index, ((&w, &d), sum)) in weight.iter().zip(weighted).zip(sum).enumerate() {
                    of_sum[index] += f64::from(w) * sum;
                    of_square[index] += f64::from(w) * f64::from(d);
                }
            }
            let total: f64 = of_sum.iter().sum();
            *outputs.0 = total;
            *outputs.1 = of_square.iter().sum::<f64>() + total * total / pixels as f64;
        }
        sums
    }
}

/// A slice of the expand convolution, with the batch norm and activation after it.
pub(super) struct ExpandSlice<'a> {
    /// `[in, SLICE]`
    pub weight: &'a Packed,
    pub scale: Lanes,
    pub shift: Lanes,
    /// Number of channels in the slice.
    pub width: usize,
}

impl ExpandSlice<'_> {
    /// Computes the rows `rows` of the images `x` `[images, height, width, in]` into `raw` `[images, rows, width,
    /// SLICE]`; `rows` must be all rows if there are several images.
    #[inline(always)]
    pub(super) fn convolve(&self, x: &[f32], width: usize, rows: Range<usize>, images: usize, raw: &mut [f32]) {
        let inputs = self.weight.rows();
        multiply(&x[rows.start * width * inputs..], inputs, images * rows.len() * width, self.weight, raw, SLICE);
    }

    /// Applies batch norm and activation to `raw`, the rows `rows` of each image, and writes them to the images'
    /// frames.
    #[inline(always)]
    pub(super) fn activate<S: Simd, A: Act>(
        &self,
        s: S,
        raw: &[f32],
        width: usize,
        rows: Range<usize>,
        frames: &mut [Frame],
    ) {
        for lane in Lane::covering(s, self.width) {
            let (scale, shift) = (lane.load(&self.scale), lane.load(&self.shift));
            let images = raw.as_chunks::<SLICE>().0.chunks_exact((rows.len() * width).max(1));
            for (frame, raw) in frames.iter_mut().zip(images) {
                for (y, raw) in rows.clone().zip(raw.chunks_exact(width)) {
                    for (out, raw) in frame.row(y).iter_mut().zip(raw) {
                        let value = s.mul_add(lane.load(raw), scale, shift);
                        lane.store(out, A::values(s, value));
                    }
                }
            }
        }
    }
}

/// Adds `matrix x + constant`, and the gradient of the shortcut, to the input gradient `dx` `[pixels, in]`.
pub(super) struct AddNormGradient<'a> {
    /// `[in, in]`
    pub matrix: &'a Packed,
    pub constant: &'a [f32],
    pub x: &'a [f32],
    pub residual: Option<&'a [f32]>,
    pub dx: &'a mut [f32],
}

impl Kernel for AddNormGradient<'_> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let constant = self.constant;
        let n = constant.len();
        assert!(self.dx.len() == self.x.len() && self.residual.is_none_or(|residual| residual.len() == self.x.len()));
        assert!(self.dx.len().is_multiple_of(n));
        for (block, dx) in self.dx.chunks_mut(ROW_BLOCK * n).enumerate() {
            let start = block * ROW_BLOCK * n;
            multiply_add(&self.x[start..], n, dx.len() / n, self.matrix, dx, n);
            let residual = self.residual.map(|residual| &residual[start..start + dx.len()]);
            for channels in vectors(s, n) {
                let constant = s.read(&constant[channels.clone()]);
                let mut residual = residual.map(|residual| residual.chunks_exact(n));
                for dx in dx.chunks_exact_mut(n) {
                    let dx = &mut dx[channels.clone()];
                    let mut sum = s.add(s.read(dx), constant);
                    if let Some(residual) = residual.as_mut().and_then(Iterator::next) {
                        sum = s.add(sum, s.read(&residual[channels.clone()]));
                    }
                    s.write(dx, sum);
                }
            }
        }
    }
}
