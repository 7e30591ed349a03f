//! Kernels of the layers of extracted models.

use crate::ops::activation::{Act, Identity};
use crate::ops::buffers::{Aligned, Buffer};
use crate::ops::depthwise::{self, Frame, Strip, chunk_rows, convolve_rows};
use crate::ops::matmul::{Packed, ROW_BLOCK, multiply};
use crate::ops::rows::{Left, RowSource};
use crate::ops::simd::{Kernel, Simd, entry_points};
use crate::ops::slice::{Lane, SLICE, lanes};
use crate::ops::strips::Strips;
use std::marker::PhantomData;
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
pub(super) struct PointwiseRows<'a, R, A> {
    pub weight: &'a Packed,
    pub bias: &'a [f32],
    pub left: &'a Left<'a, R>,
    pub range: Range<usize>,
    pub residual: Option<&'a [f32]>,
    pub output: &'a mut [f32],
    pub activation: PhantomData<A>,
}

impl<R: RowSource, A: Act> Kernel for PointwiseRows<'_, R, A> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (k, n) = (self.weight.rows(), self.weight.columns());
        let bias = &self.bias[..n];
        let mut tile = match self.left {
            Left::Plain(_) => Aligned::default(),
            Left::Made(_) => Aligned::zeros(ROW_BLOCK * k),
        };
        let mut first = self.range.start;
        while first < self.range.end {
            let rows = ROW_BLOCK.min(self.range.end - first);
            let out = &mut self.output[(first - self.range.start) * n..][..rows * n];
            match self.left {
                Left::Plain(input) => multiply(&input[first * k..], k, rows, self.weight, out, n),
                Left::Made(source) => {
                    source.fill(s, first, rows, k, &mut tile);
                    multiply(&tile, k, rows, self.weight, out, n);
                }
            }
            for (row, out) in out.chunks_exact_mut(n).enumerate() {
                match self.residual {
                    None => {
                        for c in 0..n {
                            out[c] = A::value(out[c] + bias[c]);
                        }
                    }
                    Some(residual) => {
                        let residual = &residual[(first + row) * n..][..n];
                        for c in 0..n {
                            out[c] = A::value(out[c] + bias[c] + residual[c]);
                        }
                    }
                }
            }
            first += rows;
        }
    }
}

/// `output = activation(depthwise(input) + bias)` for some slices of channels of images, with the means over pixels in
/// `pooled`.
pub(super) struct DepthwiseTasks<'a, A> {
    /// The weight, packed.
    pub weights: &'a [f32],
    pub bias: &'a [f32],
    pub shape: depthwise::Shape,
    pub input: &'a [f32],
    pub output: Strips<'a>,
    pub pooled: Option<Strips<'a>>,
    /// Pairs (image, slice), of which `output` and `pooled` hold the strips.
    pub tasks: Range<usize>,
    pub activation: PhantomData<A>,
}

impl<A: Act> Kernel for DepthwiseTasks<'_, A> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let shape = self.shape;
        let channels = shape.channels;
        let taps = shape.taps() * SLICE;
        let (out_height, columns) = (shape.out_height(), shape.out_width());
        let at_a_time = chunk_rows(columns).min(out_height);
        let mut frame = Frame::of_input(shape);
        let mut tile = Buffer::with_arbitrary_contents(at_a_time * columns * SLICE);
        let mut pooled = self.pooled;
        for (task, mut output) in self.tasks.zip(self.output) {
            let (image, slice) = (task / shape.slices(), task % shape.slices());
            let (first, width) = (slice * SLICE, shape.slice_width(slice));
            let image_input = &self.input[image * shape.in_pixels() * channels..];
            let strip = Strip::new(shape, slice, (shape.height, shape.width));
            let bias = lanes(self.bias, first, width);
            let weights = &self.weights[slice * taps..][..taps];
            let mut sums = [0.0; SLICE];
            let mut made = 0;
            for start in (0..out_height).step_by(at_a_time) {
                let rows = start..out_height.min(start + at_a_time);
                let needed = shape.rows_read(rows.end);
                frame.copy(s, image_input, strip, made..needed);
                made = needed;
                let tile = &mut tile[..rows.len() * columns * SLICE];
                convolve_rows(&frame, shape, weights, rows, width, tile);
                for lane in Lane::covering(s, width) {
                    let (bias, mut sum) = (lane.load(&bias), lane.load(&sums));
                    let kept = lane.start()..width.min(lane.start() + S::LANES);
                    for (pixel, values) in tile.as_chunks::<SLICE>().0.iter().enumerate() {
                        let value = A::values(s, s.add(lane.load(values), bias));
                        sum = s.add(sum, value);
                        s.write(&mut output.pixel(start * columns + pixel)[kept.clone()], value);
                    }
                    lane.store(&mut sums, sum);
                }
            }
            if let Some(mut pooled) = pooled.as_mut().and_then(Iterator::next) {
                for (out, sum) in pooled.pixel(0).iter_mut().zip(sums) {
                    *out = sum / shape.out_pixels() as f32;
                }
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
