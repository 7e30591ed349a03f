//! Kernels of the expand convolution: its output for a slice of channels, and the sums and products of its input that
//! replace passes over the whole output.

use crate::ops::activation::Act;
use crate::ops::batch_norm::Sums;
use crate::ops::buffers::Aligned;
use crate::ops::depthwise::Frame;
use crate::ops::matmul::{Packed, ROW_BLOCK, accumulate_transposed, multiply, multiply_add};
use crate::ops::simd::{Kernel, Simd, entry_points, vectors};
use crate::ops::slice::{Lane, Lanes, SLICE};
use std::ops::Range;

/// Rows whose products are summed in f32 before they are added to an f64 total.
pub(super) const BLOCK: usize = 4 * ROW_BLOCK;

/// Columns per group of the products.
pub(super) const COLUMNS: usize = 16;

/// Sums over pixels of the input and of its products, in f64: `[channels]` and `[channels, stride]`.
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

/// Sums over pixels of `y = W x` and of its squares, for some rows of the weight `W`, from the sums of [`SumMoments`].
pub(super) struct QuadraticForms<'a> {
    pub sum: &'a [f64],
    pub products: &'a [f64],
    /// Rows of the weight.
    pub weight: &'a [f32],
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
        let n = self.sum.len();
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
            for (row, total) in rows.iter().zip(self.sum) {
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
            rows[range.clone()].iter().zip(self.products[range.start * stride..].chunks_exact(stride))
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
