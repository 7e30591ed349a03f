//! The expand convolution. Its output is recomputed, a slice of channels of a few rows at a time, wherever it is read,
//! and never stored as a whole.
//!
//! Only the statistics need the whole output, and they follow from the input's: for `y = W x` the sum over pixels is `W
//! sum(x)`, and the sum of squares `w sum(x x') w'` per channel with weights `w`. Likewise the part of batch norm's
//! gradient that depends on `y` is a small matrix applied to `x`.

use crate::ops::activation::Act;
use crate::ops::batch_norm::{Backward, Sums};
use crate::ops::buffers::Aligned;
use crate::ops::depthwise::Frame;
use crate::ops::matmul::{Packed, ROW_BLOCK, accumulate_transposed, multiply, multiply_add};
use crate::ops::parallel;
use crate::ops::rows::total;
use crate::ops::simd::{InstructionSet, Kernel, Simd, dispatch, entry_points, vectors};
use crate::ops::slice::{Lane, Lanes, SLICE};
use std::ops::Range;

/// Rows whose products are summed in f32 before they are added to an f64 total.
const BLOCK: usize = 4 * ROW_BLOCK;

/// Sums over pixels of the input `[pixels, channels]` and of its products, in f64: statistics are small differences of
/// these large numbers.
pub(super) struct Moments {
    pixels: usize,
    /// `[channels]`
    sum: Vec<f64>,
    /// `[channels, stride]`, where `stride` is the number of channels rounded up to a multiple of [`COLUMNS`]; the
    /// padding is zero.
    products: Vec<f64>,
}

/// Columns per group of the products.
const COLUMNS: usize = 16;

impl Moments {
    pub(super) fn new(x: &[f32], channels: usize) -> Self {
        let pixels = x.len() / channels;
        let parts = parallel::map(pixels, BLOCK, |rows| {
            dispatch(SumMoments { x: &x[rows.start * channels..rows.end * channels], channels })
        });
        let stride = channels.next_multiple_of(COLUMNS);
        let mut moments = Moments { pixels, sum: vec![0.0; channels], products: vec![0.0; channels * stride] };
        for (sum, products) in parts {
            moments.sum.iter_mut().zip(sum).for_each(|(total, v)| *total += v);
            moments.products.iter_mut().zip(products).for_each(|(total, v)| *total += v);
        }
        moments
    }

    /// Sums over pixels of `y = W x` and of its squares, for `weight` `[out, channels]`.
    pub(super) fn sums(&self, weight: &[f32]) -> Sums {
        let channels = self.sum.len();
        let parts = parallel::map(weight.len() / channels, 1, |rows| {
            let weight = &weight[rows.start * channels..rows.end * channels];
            dispatch(QuadraticForms { moments: self, weight })
        });
        let mut sums = Sums::new(0);
        for part in parts {
            sums.sum.extend(part.sum);
            sums.square.extend(part.square);
        }
        sums
    }

    fn means(&self) -> Vec<f64> {
        self.sum.iter().map(|sum| sum / self.pixels as f64).collect()
    }

    /// Sums of the products of deviations from the means.
    fn deviations(&self) -> Vec<f32> {
        let means = self.means();
        let products = self.products.chunks_exact(means.len().next_multiple_of(COLUMNS)).zip(&self.sum);
        products.flat_map(|(row, sum)| row.iter().zip(&means).map(move |(v, mean)| (v - sum * mean) as f32)).collect()
    }
}

struct SumMoments<'a> {
    x: &'a [f32],
    channels: usize,
}

impl Kernel for SumMoments<'_> {
    type Output = (Vec<f64>, Vec<f64>);
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let n = self.channels;
        let stride = n.next_multiple_of(S::LANES);
        let wide = n.next_multiple_of(COLUMNS);
        let (mut sum, mut products) = (vec![0.0f64; n], vec![0.0f64; n * wide]);
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
            for (totals, block) in products.chunks_exact_mut(wide).zip(block.chunks_exact(stride)) {
                for (total, &v) in totals[..n].iter_mut().zip(block) {
                    *total += f64::from(v);
                }
            }
        }
        (sum, products)
    }
}

struct QuadraticForms<'a> {
    moments: &'a Moments,
    /// Rows of the weight.
    weight: &'a [f32],
}

/// Rows of the weight that are processed together.
const FORMS: usize = 4;

impl Kernel for QuadraticForms<'_> {
    type Output = Sums;
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Sums {
        // The block of columns is chosen so that its sums stay in registers.
        if S::LANES == COLUMNS { self.by_columns::<COLUMNS>() } else { self.by_columns::<{ COLUMNS / 2 }>() }
    }
}

impl QuadraticForms<'_> {
    /// Sums over blocks of `WIDE` columns.
    #[inline(always)]
    fn by_columns<const WIDE: usize>(self) -> Sums {
        let n = self.moments.sum.len();
        let stride = n.next_multiple_of(COLUMNS);
        let mut sums = Sums::new(self.weight.len() / n);
        // `FORMS` rows of the weight, transposed.
        let mut rows = vec![[0.0f64; FORMS]; stride];
        let outputs = sums.sum.chunks_mut(FORMS).zip(sums.square.chunks_mut(FORMS));
        for (weight, (sum, square)) in self.weight.chunks(FORMS * n).zip(outputs) {
            rows.fill([0.0; FORMS]);
            for (form, weight) in weight.chunks_exact(n).enumerate() {
                for (row, &w) in rows.iter_mut().zip(weight) {
                    row[form] = f64::from(w);
                }
            }
            let (mut of_sum, mut of_square) = ([0.0; FORMS], [0.0; FORMS]);
            for (row, total) in rows.iter().zip(&self.moments.sum) {
                for form in 0..FORMS {
                    of_sum[form] += row[form] * total;
                }
            }
            for first in (0..n).step_by(WIDE) {
                // The matrix is symmetric: each block above the diagonal counts twice.
                let mut totals = [[0.0; WIDE]; FORMS];
                self.add_products(&rows, first, 0..first, &mut totals);
                totals.iter_mut().flatten().for_each(|v| *v *= 2.0);
                self.add_products(&rows, first, first..n.min(first + WIDE), &mut totals);
                for (column, row) in rows[first..first + WIDE].iter().enumerate() {
                    for form in 0..FORMS {
                        of_square[form] += row[form] * totals[form][column];
                    }
                }
            }
            sum.copy_from_slice(&of_sum[..sum.len()]);
            square.copy_from_slice(&of_square[..square.len()]);
        }
        sums
    }

    /// Adds the rows `range` of the matrix, each multiplied by its weights, in the `WIDE` columns from `first` on.
    #[inline(always)]
    fn add_products<const WIDE: usize>(
        &self,
        rows: &[[f64; FORMS]],
        first: usize,
        range: Range<usize>,
        totals: &mut [[f64; WIDE]; FORMS],
    ) {
        let stride = rows.len();
        let mut sums = *totals;
        for (row, products) in
            rows[range.clone()].iter().zip(self.moments.products[range.start * stride..].chunks_exact(stride))
        {
            if let Some(products) = products[first..].first_chunk::<WIDE>() {
                for (sums, w) in sums.iter_mut().zip(row) {
                    for (sum, product) in sums.iter_mut().zip(products) {
                        *sum += w * product;
                    }
                }
            }
        }
        *totals = sums;
    }
}

/// A slice of the expand convolution, with the batch norm and activation after it.
pub(super) struct Slice<'a> {
    /// `[in, SLICE]`
    pub weight: &'a Packed,
    pub scale: Lanes,
    pub shift: Lanes,
    /// Number of channels in the slice.
    pub width: usize,
}

impl Slice<'_> {
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

/// Contribution of batch norm's gradient at the convolution's input.
///
/// At the raw output `y = W x` the gradient is `by_gradient * g + by_value * y + constant`, where all terms but the
/// first depend only on `x`.
pub(super) struct NormGradient {
    /// Matrix `[in, in]`, applied to the input's pixels.
    matrix: Packed,
    /// Vector `[in]`, added to each pixel.
    constant: Vec<f32>,
    /// Matrix `[out, in]`, added to the weight's gradient.
    pub weight: Vec<f32>,
}

impl NormGradient {
    /// The contribution for the convolution's `weight` `[out, in]`.
    pub(super) fn new(moments: &Moments, weight: &[f32], back: &Backward) -> Self {
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
        let deviations = Packed::new(&moments.deviations(), n, n, n, 1);
        let mut weight_gradient = vec![0.0; weight.len()];
        parallel::map_parts(&mut weight_gradient, n, m, ROW_BLOCK, |rows, out| {
            multiply(&weight[rows.start * n..], n, rows.len(), &deviations, out, n);
            for (row, out) in rows.zip(out.chunks_exact_mut(n)) {
                for (out, &sum) in out.iter_mut().zip(&moments.sum) {
                    *out = back.by_value[row] * *out + (rest[row] * sum) as f32;
                }
            }
        });
        NormGradient {
            matrix: Packed::new(&matrix, n, n, stride, 1),
            constant: constant.into_iter().map(|v| v as f32).collect(),
            weight: weight_gradient,
        }
    }

    /// Adds the contribution, and the gradient of the shortcut if the block has one, to the input gradient `dx`
    /// `[pixels, in]`.
    pub(super) fn add_to(&self, x: &[f32], residual: Option<&[f32]>, dx: &mut [f32]) {
        let n = self.constant.len();
        parallel::map_parts(dx, n, x.len() / n, ROW_BLOCK, |rows, dx| {
            let span = rows.start * n..rows.end * n;
            let residual = residual.map(|residual| &residual[span.clone()]);
            dispatch(AddNormGradient { norm: self, x: &x[span], residual, dx })
        });
    }
}

struct AddNormGradient<'a> {
    norm: &'a NormGradient,
    x: &'a [f32],
    residual: Option<&'a [f32]>,
    dx: &'a mut [f32],
}

impl Kernel for AddNormGradient<'_> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let constant = &self.norm.constant[..];
        let n = constant.len();
        assert!(self.dx.len() == self.x.len() && self.residual.is_none_or(|residual| residual.len() == self.x.len()));
        assert!(self.dx.len().is_multiple_of(n));
        for (block, dx) in self.dx.chunks_mut(ROW_BLOCK * n).enumerate() {
            let start = block * ROW_BLOCK * n;
            multiply_add(&self.x[start..], n, dx.len() / n, &self.norm.matrix, dx, n);
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
