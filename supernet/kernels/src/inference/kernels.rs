//! Kernels of the layers of extracted models.

use super::padded::{Layout, PaddedRows};
use super::product::{Product, Slices, group};
use crate::Activation;
use crate::activation::{Act, Identity};
use crate::buffers::Buffer;
use crate::dense_shape::DenseShape;
use crate::matmul::ROW_BLOCK;
use crate::rows::{Left, RowSource};
use crate::simd::{Kernel, Simd, dispatch, entry_points};
use crate::slice::SLICE;
use std::ops::Range;

/// Rows multiplied by a gate per image.
pub(super) struct Gated<'a> {
    pub input: &'a [f32],
    pub gate: &'a [f32],
    pub pixels: usize,
}

impl RowSource for Gated<'_> {
    #[inline(always)]
    fn fill<S: Simd>(&self, _: S, first: usize, rows: usize, columns: usize, tile: &mut [f32]) {
        for row in 0..rows {
            let input = &self.input[(first + row) * columns..][..columns];
            let gate = &self.gate[(first + row) / self.pixels * columns..][..columns];
            let out = &mut tile[row * columns..][..columns];
            for c in 0..columns {
                out[c] = input[c] * gate[c];
            }
        }
    }
}

/// `output = activation(left x weight + bias + residual)` for the rows `range`.
pub(super) struct PointwiseRows<'a, R> {
    pub weight: &'a Slices,
    pub left: &'a Left<'a, R>,
    pub range: Range<usize>,
    pub activation: Activation,
    pub residual: Option<&'a [f32]>,
    pub output: &'a mut [f32],
}

impl<R: RowSource> Kernel for PointwiseRows<'_, R> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (k, n) = (self.weight.inputs, self.weight.outputs);
        let mut tile = match self.left {
            Left::Plain(_) => Buffer::default(),
            Left::Made(_) => Buffer::with_arbitrary_contents(ROW_BLOCK.min(self.range.len()) * k),
        };
        for first in self.range.clone().step_by(ROW_BLOCK) {
            let rows = ROW_BLOCK.min(self.range.end - first);
            let output = &mut self.output[(first - self.range.start) * n..][..rows * n];
            let residual = self.residual.map(|residual| &residual[first * n..][..rows * n]);
            let left = match self.left {
                Left::Plain(input) => &input[first * k..][..rows * k],
                Left::Made(source) => {
                    source.fill(s, first, rows, k, &mut tile);
                    &tile[..rows * k]
                }
            };
            all_slices(self.weight, left, Layout::plain(k), rows, self.activation, residual, output);
        }
    }
}

/// Multiplies `rows` rows by all slices of a weight.
fn all_slices(
    weight: &Slices,
    left: &[f32],
    layout: Layout,
    rows: usize,
    activation: Activation,
    residual: Option<&[f32]>,
    output: &mut [f32],
) {
    let n = weight.outputs;
    let mut first = 0;
    while first < weight.count() {
        let group = group(weight.count() - first);
        let channel = first * SLICE;
        dispatch(Product {
            left,
            layout,
            rows,
            weight,
            first,
            group,
            activation,
            residual: residual.map(|residual| &residual[channel..]),
            output: &mut output[channel..],
            steps: (n, SLICE),
            width: (n - channel).min(group * SLICE),
        });
        first += group;
    }
}

/// Values of padded rows that stay in L2, and take little memory on each thread.
const STRIP: usize = 16 << 10;

/// `output = activation(convolution(input) + bias)` for the rows `range` of the output, counted over all images.
pub(super) struct DenseRows<'a> {
    /// `[out, kernel, kernel, in]`
    pub weight: &'a Slices,
    pub shape: &'a DenseShape,
    pub input: &'a [f32],
    pub range: Range<usize>,
    pub activation: Activation,
    pub output: &'a mut [f32],
}

impl DenseRows<'_> {
    /// Computes the rows.
    pub(super) fn run(self) {
        let padded = PaddedRows::new(self.shape, STRIP, self.range.len());
        let layout = padded.layout(self.shape.kernel * self.shape.in_channels);
        let line = layout.line * self.weight.outputs;
        let mut strip = Buffer::with_arbitrary_contents(padded.len());
        let mut first = self.range.start;
        while first < self.range.end {
            let rows = padded.rows_from(first, self.range.end);
            padded.fill(self.input, 0.0, first, rows, &mut strip, <[f32]>::copy_from_slice);
            let output = &mut self.output[(first - self.range.start) * line..][..rows * line];
            all_slices(self.weight, &strip, layout, rows * layout.line, self.activation, None, output);
            first += rows;
        }
    }
}

/// Spatial means `[batch, channels]` of `input` `[batch, pixels, channels]`.
pub(super) struct AveragePool<'a> {
    pub input: &'a [f32],
    pub pixels: usize,
    pub channels: usize,
    pub output: &'a mut [f32],
}

impl Kernel for AveragePool<'_> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let n = self.channels;
        let (mut sum, mut total) = (vec![0.0; n], vec![0.0; n]);
        for (image, out) in self.input.chunks_exact(self.pixels * n).zip(self.output.chunks_exact_mut(n)) {
            total.fill(0.0);
            // A sum in f32 for each block: over a large map it would lose the last bits of each pixel.
            for block in image.chunks(ROW_BLOCK * n) {
                sum.fill(0.0);
                for row in block.chunks_exact(n) {
                    for c in 0..n {
                        sum[c] += Identity::value(row[c]);
                    }
                }
                for c in 0..n {
                    total[c] += f64::from(sum[c]);
                }
            }
            for c in 0..n {
                out[c] = (total[c] / self.pixels as f64) as f32;
            }
        }
    }
}
