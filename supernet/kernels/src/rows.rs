//! Kernels over rows (pixels) of `[pixels, channels]` tensors: products with statistics, and elementwise maps.

use super::activation::Act;
use super::batch_norm::{Affine, Backward, SumBlock, Sums};
use super::buffers::{Aligned, Unwritten, assume_written};
use super::matmul::{Packed, ROW_BLOCK, accumulate_transposed, multiply, multiply_new};
use super::simd::{Kernel, Simd, entry_points, vectors};
use std::marker::PhantomData;
use std::ops::Range;

/// Produces the left rows of a product, a block at a time.
pub(crate) trait RowSource: Sync {
    /// Writes rows `first..first + rows`, of `columns` values each, to `tile`.
    fn fill<S: Simd>(&self, s: S, first: usize, rows: usize, columns: usize, tile: &mut [f32]);
}

/// The left operand of a product.
pub(crate) enum Left<'a, R> {
    /// Rows that lie in memory.
    Plain(&'a [f32]),
    /// Rows produced a block at a time.
    Made(&'a R),
}

/// The row source of [`Left::Plain`], which produces no rows.
pub(crate) struct Nothing;

impl RowSource for Nothing {
    fn fill<S: Simd>(&self, _: S, _: usize, _: usize, _: usize, _: &mut [f32]) {}
}

/// `output[row] = left[row] x weight` for the rows `range`, with sums per output channel if `with_sums`.
pub(super) struct Product<'a, R> {
    pub left: &'a Left<'a, R>,
    pub range: Range<usize>,
    pub weight: &'a Packed,
    pub output: &'a mut [f32],
    pub with_sums: bool,
}

impl<R: RowSource> Kernel for Product<'_, R> {
    type Output = Sums;
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Sums {
        let (k, n) = (self.weight.rows(), self.weight.columns());
        let mut sums = Sums::new(n);
        let mut block = SumBlock::new(n);
        let mut tile = match self.left {
            Left::Plain(_) => Aligned::default(),
            Left::Made(_) => Aligned::zeros(ROW_BLOCK * k),
        };
        let mut first = self.range.start;
        while first < self.range.end {
            let rows = ROW_BLOCK.min(self.range.end - first);
            let out = &mut self.output[(first - self.range.start) * n..][..rows * n];
            match self.left {
                Left::Plain(rows_in_memory) => multiply(&rows_in_memory[first * k..], k, rows, self.weight, out, n),
                Left::Made(source) => {
                    source.fill(s, first, rows, k, &mut tile);
                    multiply(&tile, k, rows, self.weight, out, n);
                }
            }
            if self.with_sums {
                block.set_squares(s, out);
                sums.add_block(0, &block.sum, &block.square);
            }
            first += rows;
        }
        sums
    }
}

/// `output = activation(affine(y)) + residual`, all `[rows, channels]`.
pub(super) struct NormaliseRows<'a, 'o, A> {
    pub y: &'a [f32],
    pub affine: &'a Affine,
    pub residual: Option<&'a [f32]>,
    pub output: &'o mut Unwritten,
    pub activation: PhantomData<A>,
}

impl<'o, A: Act> Kernel for NormaliseRows<'_, 'o, A> {
    /// `output`, written.
    type Output = &'o mut [f32];
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let n = self.affine.scale.len();
        let (scale, shift) = (&self.affine.scale[..n], &self.affine.shift[..n]);
        assert!(
            self.y.len() == self.output.len()
                && self.y.len().is_multiple_of(n)
                && self.residual.is_none_or(|residual| residual.len() == self.y.len())
        );
        for (block, out) in self.output.chunks_mut(ROW_BLOCK * n).enumerate() {
            let span = block * ROW_BLOCK * n..block * ROW_BLOCK * n + out.len();
            let rows = self.y[span.clone()].chunks_exact(n);
            for channels in vectors(s, n) {
                let (scale, shift) = (s.read(&scale[channels.clone()]), s.read(&shift[channels.clone()]));
                let rows = rows.clone().zip(out.chunks_exact_mut(n));
                // Loops in the function itself: a closure would be compiled without the instruction set if it were not
                // inlined.
                match self.residual {
                    None => {
                        for (y, out) in rows {
                            let value = A::values(s, s.mul_add(s.read(&y[channels.clone()]), scale, shift));
                            s.write_new(&mut out[channels.clone()], value);
                        }
                    }
                    Some(residual) => {
                        for ((y, out), residual) in rows.zip(residual[span.clone()].chunks_exact(n)) {
                            let value = A::values(s, s.mul_add(s.read(&y[channels.clone()]), scale, shift));
                            let sum = s.add(value, s.read(&residual[channels.clone()]));
                            s.write_new(&mut out[channels.clone()], sum);
                        }
                    }
                }
            }
        }
        // SAFETY: output and `y` are equally many whole rows (asserted above); the loops wrote all channels of each.
        unsafe { assume_written(self.output) }
    }
}

/// Mean of `activation(affine(y))` over each image's pixels: `[images, channels]`.
pub(super) struct Pool<'a, A> {
    pub y: &'a [f32],
    pub affine: &'a Affine,
    /// Values per image.
    pub image: usize,
    pub pooled: &'a mut [f32],
    pub activation: PhantomData<A>,
}

impl<A: Act> Kernel for Pool<'_, A> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let n = self.affine.scale.len();
        let (scale, shift) = (&self.affine.scale[..n], &self.affine.shift[..n]);
        let pixels = (self.image / n) as f64;
        let (mut sum, mut total) = (vec![0.0; n], vec![0.0; n]);
        for (image, pooled) in self.y.chunks_exact(self.image).zip(self.pooled.chunks_exact_mut(n)) {
            total.fill(0.0);
            // A sum in f32 for each block: over a large map it would lose the last bits of each pixel.
            for block in image.chunks(ROW_BLOCK * n) {
                sum.fill(0.0);
                for y in block.chunks_exact(n) {
                    for c in 0..n {
                        sum[c] += A::value(y[c] * scale[c] + shift[c]);
                    }
                }
                for c in 0..n {
                    total[c] += f64::from(sum[c]);
                }
            }
            for c in 0..n {
                pooled[c] = (total[c] / pixels) as f32;
            }
        }
    }
}

/// Sums of `g` and of `g * y` over rows, per channel.
pub(super) struct GradientSums<'a> {
    pub g: &'a [f32],
    pub y: &'a [f32],
    pub channels: usize,
}

impl Kernel for GradientSums<'_> {
    type Output = Sums;
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Sums {
        let n = self.channels;
        let mut sums = Sums::new(n);
        let mut block = SumBlock::new(n);
        for (g, y) in self.g.chunks(ROW_BLOCK * n).zip(self.y.chunks(ROW_BLOCK * n)) {
            block.set_products(s, g, y);
            sums.add_block(0, &block.sum, &block.square);
        }
        sums
    }
}

/// The sum of the parts, added in their order.
pub(crate) fn total(parts: Vec<Aligned>) -> Aligned {
    let mut parts = parts.into_iter();
    let mut total = parts.next().unwrap_or_default();
    for part in parts {
        for (total, v) in total.iter_mut().zip(part.iter()) {
            *total += v;
        }
    }
    total
}

/// The gradient at a raw (not yet normalised) tensor, computed where it is read: batch norm's backward map of `g` and
/// `y`.
#[derive(Clone, Copy)]
pub(crate) struct RawGradient<'a> {
    pub g: &'a [f32],
    pub y: &'a [f32],
    pub back: &'a Backward,
}

impl RawGradient<'_> {
    /// Writes `rows` rows from `first` on to `tile`, `stride` apart; `stride` is a multiple of the vector length, and
    /// columns beyond the channels become 0.
    #[inline(always)]
    pub(crate) fn fill<S: Simd>(&self, s: S, first: usize, rows: usize, stride: usize, tile: &mut [f32]) {
        let n = self.back.constant.len();
        let (a, b, constant) = (&self.back.by_gradient[..n], &self.back.by_value[..n], &self.back.constant[..n]);
        let (g, y) = (&self.g[first * n..(first + rows) * n], &self.y[first * n..(first + rows) * n]);
        assert!(stride >= n.next_multiple_of(S::LANES));
        let blocks = g.chunks(ROW_BLOCK * n).zip(y.chunks(ROW_BLOCK * n));
        for ((g, y), tile) in blocks.zip(tile[..rows * stride].chunks_mut(ROW_BLOCK * stride)) {
            for channels in vectors(s, n) {
                let (a, b) = (s.read(&a[channels.clone()]), s.read(&b[channels.clone()]));
                let constant = s.read(&constant[channels.clone()]);
                let rows = g.chunks_exact(n).zip(y.chunks_exact(n));
                for ((g, y), out) in rows.zip(tile.chunks_exact_mut(stride)) {
                    let (g, y) = (s.read(&g[channels.clone()]), s.read(&y[channels.clone()]));
                    s.write(&mut out[channels.start..][..S::LANES], s.mul_add(a, g, s.mul_add(b, y, constant)));
                }
            }
        }
    }
}

/// Backward pass of `y = x W` for the rows `range`, given the raw gradient at `y`.
pub(super) struct ProductBackward<'a, 'o> {
    pub raw: RawGradient<'a>,
    pub x: &'a [f32],
    pub in_channels: usize,
    pub range: Range<usize>,
    /// The weight, and the input gradient of the range.
    pub input: Option<(&'a Packed, &'o mut Unwritten)>,
}

impl<'o> Kernel for ProductBackward<'_, 'o> {
    /// The input gradient, empty without a weight, and the weight gradient.
    type Output = (&'o mut [f32], Aligned);
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> Self::Output {
        let (n, k) = (self.raw.back.constant.len(), self.in_channels);
        let stride = n.next_multiple_of(S::LANES);
        let mut tile = Aligned::zeros(ROW_BLOCK * stride);
        let mut weight_gradient = Aligned::zeros(k * stride);
        for first in self.range.clone().step_by(ROW_BLOCK) {
            let rows = ROW_BLOCK.min(self.range.end - first);
            self.raw.fill(s, first, rows, stride, &mut tile);
            let x = &self.x[first * k..][..rows * k];
            accumulate_transposed(x, k, &tile, stride, rows, k, n, &mut weight_gradient, stride);
            if let Some((weight, dx)) = &mut self.input {
                let dx = &mut dx[(first - self.range.start) * k..][..rows * k];
                multiply_new(&tile, stride, rows, weight, dx);
            }
        }
        let dx = self.input.map(|(_, dx)| {
            assert_eq!(dx.len(), self.range.len() * k);
            // SAFETY: the products wrote the rows of the whole range, which are all of `dx` (asserted above).
            unsafe { assume_written(dx) }
        });
        (dx.unwrap_or_default(), weight_gradient)
    }
}
