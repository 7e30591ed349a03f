//! Kernels of the layers of extracted models.

use super::product::{Product, Slices, group};
use crate::ops::Activation;
use crate::ops::activation::{Act, Identity};
use crate::ops::buffers::Buffer;
use crate::ops::matmul::ROW_BLOCK;
use crate::ops::rows::{Left, RowSource};
use crate::ops::simd::{Kernel, Simd, dispatch, entry_points};
use crate::ops::slice::SLICE;
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
            let mut slice = 0;
            while slice < self.weight.count() {
                let group = group(self.weight.count() - slice);
                let channel = slice * SLICE;
                dispatch(Product {
                    left,
                    rows,
                    weight: self.weight,
                    first: slice,
                    group,
                    activation: self.activation,
                    residual: residual.map(|residual| &residual[channel..]),
                    output: &mut output[channel..],
                    steps: (n, SLICE),
                    width: (n - channel).min(group * SLICE),
                });
                slice += group;
            }
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
        for (image, out) in self.input.chunks_exact(self.pixels * n).zip(self.output.chunks_exact_mut(n)) {
            out.fill(0.0);
            for row in image.chunks_exact(n) {
                for c in 0..n {
                    out[c] += Identity::value(row[c]);
                }
            }
            for v in out.iter_mut() {
                *v /= self.pixels as f32;
            }
        }
    }
}
