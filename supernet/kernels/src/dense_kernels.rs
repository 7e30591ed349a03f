//! Kernels of the dense convolution's backward pass.

use super::activation::Act;
use super::batch_norm::{Affine, SumBlock, Sums};
use super::buffers::Aligned;
use super::columns::{Columns, scatter};
use super::dense_shape::DenseShape;
use super::matmul::{Packed, ROW_BLOCK, accumulate_transposed, multiply};
use super::rows::{RawGradient, RowSource};
use super::simd::{Kernel, Simd, entry_points};
use std::marker::PhantomData;
use std::ops::Range;

/// Backward pass of the convolution over whole images, given the raw gradient at its output.
pub(super) struct ColumnsBackward<'a> {
    pub shape: &'a DenseShape,
    pub raw: RawGradient<'a>,
    pub x: &'a [f32],
    /// `[out, k * k * in]`, for the input gradient; `None` if none is needed.
    pub weight: Option<&'a Packed>,
    pub images: Range<usize>,
    /// Input gradient of `images`, zeros at the start.
    pub dx: &'a mut [f32],
}

impl Kernel for ColumnsBackward<'_> {
    /// The transposed weight gradient `[k * k * in, stride]`.
    type Output = Aligned;
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Aligned {
        let (n, columns) = (self.shape.out_channels, self.shape.columns());
        let stride = n.next_multiple_of(S::LANES);
        let source = Columns { shape: self.shape, x: self.x };
        let mut gradients = Aligned::zeros(ROW_BLOCK * stride);
        let mut tile = Aligned::zeros(ROW_BLOCK * columns);
        let mut weight_gradient = Aligned::zeros(columns * stride);
        let pixels = self.shape.rows() / self.shape.batch;
        let end = self.images.end * pixels;
        let mut first = self.images.start * pixels;
        while first < end {
            let rows = ROW_BLOCK.min(end - first);
            self.raw.fill(s, first, rows, stride, &mut gradients);
            source.fill(s, first, rows, columns, &mut tile);
            accumulate_transposed(&tile, columns, &gradients, stride, rows, columns, n, &mut weight_gradient, stride);
            if let Some(weight) = self.weight {
                let tile = &mut tile[..rows * columns];
                multiply(&gradients, stride, rows, weight, tile, columns);
                scatter(self.shape, first, self.images.start, tile, self.dx);
            }
            first += rows;
        }
        weight_gradient
    }
}

/// Computes `masked = g * slope` and the sums that batch norm's gradient needs.
pub(super) struct Mask<'a, A> {
    /// Gradient per pixel, or per image when pooled.
    pub g: &'a [f32],
    pub y: &'a [f32],
    pub affine: &'a Affine,
    pub pooled: Option<usize>,
    pub masked: &'a mut [f32],
    pub activation: PhantomData<A>,
}

impl<A: Act> Kernel for Mask<'_, A> {
    type Output = Sums;
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Sums {
        let n = self.affine.scale.len();
        let (scale, shift) = (&self.affine.scale[..n], &self.affine.shift[..n]);
        let factor = self.pooled.map_or(1.0, |pixels| 1.0 / pixels as f32);
        let mut sums = Sums::new(n);
        let mut block = SumBlock::new(n);
        let blocks = self.y.chunks(ROW_BLOCK * n).zip(self.masked.chunks_mut(ROW_BLOCK * n));
        for (number, (y, masked)) in blocks.enumerate() {
            for (row, (y, out)) in y.chunks_exact(n).zip(masked.chunks_exact_mut(n)).enumerate() {
                let row = number * ROW_BLOCK + row;
                let g = &self.g[self.pooled.map_or(row, |pixels| row / pixels) * n..][..n];
                for c in 0..n {
                    out[c] = g[c] * factor * A::slope(y[c] * scale[c] + shift[c]);
                }
            }
            block.set_products(s, masked, y);
            sums.add_block(0, &block.sum, &block.square);
        }
        sums
    }
}
