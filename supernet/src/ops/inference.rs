//! Layers of extracted models: a static network with batch norm folded into weights and biases.
//!
//! All layers work on NHWC f32 slices, write every output value, and use the threads of the calling rayon pool.

use super::activation::{Act, Identity, with_activation};
use super::buffers::{Aligned, Buffer};
use super::columns::{Columns, to_column_order};
use super::dense_shape::DenseShape;
use super::depthwise::{self, Frame, Strip, chunk_rows, convolve_rows};
use super::matmul::{Packed, ROW_BLOCK, multiply};
use super::parallel;
use super::pools::{Windows, max_windows, mean_windows};
use super::rows::{Left, Nothing, RowSource};
use super::simd::{Kernel, Simd, dispatch, entry_points};
use super::slice::{SLICE, lanes};
use super::strips::Strips;
use crate::space::Activation;
use std::marker::PhantomData;
use std::ops::Range;

/// A 1x1 convolution or fully connected layer with bias.
#[derive(Debug, Clone)]
pub struct Pointwise {
    weight: Packed,
    bias: Vec<f32>,
}

/// Rows multiplied by a gate per image.
struct Gated<'a> {
    input: &'a [f32],
    gate: &'a [f32],
    pixels: usize,
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

impl Pointwise {
    /// Packs the weight `[out, in]` and bias `[out]`.
    pub fn new(weight: &[f32], bias: &[f32], in_channels: usize, out_channels: usize) -> Self {
        assert_eq!((weight.len(), bias.len()), (in_channels * out_channels, out_channels));
        Pointwise { weight: Packed::new(weight, in_channels, out_channels, 1, in_channels), bias: bias.to_vec() }
    }

    /// Computes `output[p] = activation(W (input[p] * gate[image of p]) + bias + residual[p])` for `batch *
    /// pixels_per_image` pixels; `gate` is `[batch, in]`.
    #[allow(clippy::too_many_arguments)] // the layer's inputs and extents
    pub fn run(
        &self,
        input: &[f32],
        batch: usize,
        pixels_per_image: usize,
        activation: Activation,
        gate: Option<&[f32]>,
        residual: Option<&[f32]>,
        output: &mut [f32],
    ) {
        let rows = batch * pixels_per_image;
        assert_eq!((input.len(), output.len()), (rows * self.weight.rows(), rows * self.bias.len()));
        match gate {
            None => self.rows::<Nothing>(Left::Plain(input), rows, activation, residual, output),
            Some(gate) => {
                let gated = Gated { input, gate, pixels: pixels_per_image };
                self.rows(Left::Made(&gated), rows, activation, residual, output);
            }
        }
    }

    fn rows<R: RowSource>(
        &self,
        left: Left<R>,
        rows: usize,
        activation: Activation,
        residual: Option<&[f32]>,
        output: &mut [f32],
    ) {
        let n = self.bias.len();
        // A grain of few rows, so that small maps at batch 1 still spread over threads.
        parallel::map_parts(output, n, rows, 8, |range, output| {
            with_activation!(activation, A => dispatch(PointwiseRows::<R, A> {
                layer: self, left: &left, range, residual, output, activation: PhantomData,
            }))
        });
    }
}

struct PointwiseRows<'a, R, A> {
    layer: &'a Pointwise,
    left: &'a Left<'a, R>,
    range: Range<usize>,
    residual: Option<&'a [f32]>,
    output: &'a mut [f32],
    activation: PhantomData<A>,
}

impl<R: RowSource, A: Act> Kernel for PointwiseRows<'_, R, A> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (k, n) = (self.layer.weight.rows(), self.layer.weight.columns());
        let bias = &self.layer.bias[..n];
        let mut tile = match self.left {
            Left::Plain(_) => Aligned::default(),
            Left::Made(_) => Aligned::zeros(ROW_BLOCK * k),
        };
        let mut first = self.range.start;
        while first < self.range.end {
            let rows = ROW_BLOCK.min(self.range.end - first);
            let out = &mut self.output[(first - self.range.start) * n..][..rows * n];
            match self.left {
                Left::Plain(input) => multiply(&input[first * k..], k, rows, &self.layer.weight, out, n),
                Left::Made(source) => {
                    source.fill(s, first, rows, k, &mut tile);
                    multiply(&tile, k, rows, &self.layer.weight, out, n);
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

/// A depthwise convolution with bias.
#[derive(Debug, Clone)]
pub struct Depthwise {
    weights: Aligned,
    bias: Vec<f32>,
    kernel: usize,
    stride: usize,
}

impl Depthwise {
    /// Packs the weight `[channels, k, k]` and bias `[channels]`.
    pub fn new(weight: &[f32], bias: &[f32], channels: usize, kernel: usize, stride: usize) -> Self {
        assert_eq!((weight.len(), bias.len()), (channels * kernel * kernel, channels));
        let weights = depthwise::pack_weights(weight, channels, kernel * kernel, false);
        Depthwise { weights, bias: bias.to_vec(), kernel, stride }
    }

    /// Computes `output = activation(depthwise(input) + bias)`, and the spatial means of `output` in `pooled` `[batch,
    /// channels]`.
    #[allow(clippy::too_many_arguments)] // the layer's inputs and extents
    pub fn run(
        &self,
        input: &[f32],
        batch: usize,
        height: usize,
        width: usize,
        activation: Activation,
        output: &mut [f32],
        pooled: Option<&mut [f32]>,
    ) {
        let channels = self.bias.len();
        let shape = depthwise::Shape { channels, kernel: self.kernel, stride: self.stride, height, width };
        assert_eq!(input.len(), batch * shape.in_pixels() * channels);
        assert_eq!(output.len(), batch * shape.out_pixels() * channels);
        let mut output = Strips::new(output, shape.out_pixels(), channels);
        let mut pooled = pooled.map(|pooled| {
            assert_eq!(pooled.len(), batch * channels);
            Strips::new(pooled, 1, channels)
        });
        let parts = parallel::ranges(batch * shape.slices(), 1).into_iter().map(|tasks| {
            let count = tasks.len();
            (tasks, output.split_off(count), pooled.as_mut().map(|pooled| pooled.split_off(count)))
        });
        parallel::map_items(parts.collect(), |(tasks, output, pooled)| {
            with_activation!(activation, A => dispatch(DepthwiseTasks::<A> {
                layer: self, shape, input, output, pooled, tasks, activation: PhantomData,
            }))
        });
    }
}

struct DepthwiseTasks<'a, A> {
    layer: &'a Depthwise,
    shape: depthwise::Shape,
    input: &'a [f32],
    output: Strips<'a>,
    pooled: Option<Strips<'a>>,
    /// Pairs (image, slice), of which `output` and `pooled` hold the strips.
    tasks: Range<usize>,
    activation: PhantomData<A>,
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
            let bias = lanes(&self.layer.bias, first, width);
            let weights = &self.layer.weights[slice * taps..][..taps];
            let mut sum = [0.0; SLICE];
            let mut made = 0;
            for start in (0..out_height).step_by(at_a_time) {
                let rows = start..out_height.min(start + at_a_time);
                let needed = shape.rows_read(rows.end);
                frame.fill(s, image_input, strip, made..needed, |_, v| v);
                made = needed;
                let tile = &mut tile[..rows.len() * columns * SLICE];
                convolve_rows(&frame, shape, weights, rows, width, tile);
                for (pixel, values) in tile.as_chunks_mut::<SLICE>().0.iter_mut().enumerate() {
                    for lane in 0..SLICE {
                        values[lane] = A::value(values[lane] + bias[lane]);
                        sum[lane] += values[lane];
                    }
                    let out = output.pixel(start * columns + pixel);
                    if width == SLICE {
                        out.copy_from_slice(values);
                    } else {
                        out.copy_from_slice(&values[..width]);
                    }
                }
            }
            if let Some(mut pooled) = pooled.as_mut().and_then(Iterator::next) {
                for (out, sum) in pooled.pixel(0).iter_mut().zip(sum) {
                    *out = sum / shape.out_pixels() as f32;
                }
            }
        }
    }
}

/// A dense convolution of any kernel size, with bias.
#[derive(Debug, Clone)]
pub struct DenseConv {
    product: Pointwise,
    in_channels: usize,
    kernel: usize,
    stride: usize,
}

impl DenseConv {
    /// Packs the weight `[out, in, k, k]` and bias `[out]`.
    pub fn new(
        weight: &[f32],
        bias: &[f32],
        in_channels: usize,
        out_channels: usize,
        kernel: usize,
        stride: usize,
    ) -> Self {
        let ordered = to_column_order(weight, in_channels, kernel * kernel);
        let product = Pointwise::new(&ordered, bias, in_channels * kernel * kernel, out_channels);
        DenseConv { product, in_channels, kernel, stride }
    }

    /// Computes `output = activation(convolution(input) + bias)`.
    pub fn run(
        &self,
        input: &[f32],
        batch: usize,
        height: usize,
        width: usize,
        activation: Activation,
        output: &mut [f32],
    ) {
        let shape = DenseShape {
            batch,
            height,
            width,
            in_channels: self.in_channels,
            out_channels: self.product.bias.len(),
            kernel: self.kernel,
            stride: self.stride,
            activation: Activation::Identity,
            pool: false,
            eps: 0.0,
        };
        assert_eq!(input.len(), batch * height * width * self.in_channels);
        let (out_height, out_width) = shape.output_size();
        let rows = batch * out_height * out_width;
        assert_eq!(output.len(), rows * self.product.bias.len());
        self.product.rows(Left::Made(&Columns { shape: &shape, x: input }), rows, activation, None, output);
    }
}

/// 3x3 max pool with stride 2 of `input` `[batch, height, width, channels]`.
pub fn max_pool(input: &[f32], height: usize, width: usize, channels: usize, output: &mut [f32]) {
    max_windows(&Windows::max_pool(height, width, channels), input, output);
}

/// Average over adjacent windows of `size x size` pixels of `input` `[batch, height, width, channels]`; windows that
/// cross the right or lower border average their existing pixels.
pub fn average_windows(input: &[f32], height: usize, width: usize, channels: usize, size: usize, output: &mut [f32]) {
    mean_windows(&Windows::side_by_side(height, width, channels, (size, size)), input, output);
}

/// Spatial means `[batch, channels]` of `input` `[batch, pixels, channels]`.
pub fn average_pool(input: &[f32], batch: usize, pixels: usize, channels: usize, output: &mut [f32]) {
    assert_eq!((input.len(), output.len()), (batch * pixels * channels, batch * channels));
    dispatch(AveragePool { input, pixels, channels, output })
}

struct AveragePool<'a> {
    input: &'a [f32],
    pixels: usize,
    channels: usize,
    output: &'a mut [f32],
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
