//! Layers of extracted models: a static network with batch norm folded into weights and biases.
//!
//! All layers work on NHWC f32 slices and write every output value. They share their work among
//! [`threads`](crate::threads) threads, except for [`average_pool`], which is too short for that.
//!
//! | file | concern |
//! | --- | --- |
//! | `product` | packed weights, and register tiles of products |
//! | `depthwise` | depthwise convolution of rows |
//! | `kernels` | rows of the other layers: pointwise, dense, gated, average pool |
//! | `max_pool` | the largest values of windows |
//! | `padded` | a map's rows with zeros around them |
//! | [`int8`] | layers of networks in 8-bit integers |

mod depthwise;
pub mod int8;
mod kernels;
mod max_pool;
mod padded;
mod product;

use super::activation::with_activation;
use super::buffers::Aligned;
use super::columns::to_column_order;
use super::dense_shape::DenseShape;
use super::depthwise::{Shape, pack_weights};
use super::parallel;
use super::pools::{Windows, mean_windows};
use super::rows::{Left, Nothing, RowSource};
use super::simd::dispatch;
use super::strips::Strips;
use crate::Activation;
use depthwise::{DepthwiseTasks, Source};
use kernels::{AveragePool, DenseRows, Gated, PointwiseRows};
use max_pool::largest_of_windows;
use product::Slices;
use std::marker::PhantomData;

/// A 1x1 convolution or fully connected layer with bias.
#[derive(Debug, Clone)]
pub struct Pointwise {
    weight: Slices,
}

impl Pointwise {
    /// Packs the weight `[out, in]` and bias `[out]`.
    pub fn new(weight: &[f32], bias: &[f32], in_channels: usize, out_channels: usize) -> Self {
        Pointwise { weight: Slices::new(weight, bias, in_channels, out_channels) }
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
        assert_eq!((input.len(), output.len()), (rows * self.weight.inputs, rows * self.weight.outputs));
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
        let n = self.weight.outputs;
        // A grain of few rows, so that small maps at batch 1 still spread over threads.
        parallel::map_parts(output, n, rows, 8, |range, output| {
            dispatch(PointwiseRows { weight: &self.weight, left: &left, range, activation, residual, output })
        });
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
        let weights = pack_weights(weight, channels, kernel * kernel, false);
        Depthwise { weights, bias: bias.to_vec(), kernel, stride }
    }

    /// Computes `output = activation(depthwise(map) + bias)`, and the spatial means of `output` in `pooled` `[batch,
    /// channels]`. The map is `input`, or with `expand` a 1x1 convolution of it and an activation, which are computed a
    /// few rows ahead and never stored as a whole.
    #[allow(clippy::too_many_arguments)] // the layer's inputs and extents
    pub fn run(
        &self,
        input: &[f32],
        expand: Option<(&Pointwise, Activation)>,
        batch: usize,
        height: usize,
        width: usize,
        activation: Activation,
        output: &mut [f32],
        pooled: Option<&mut [f32]>,
    ) {
        let channels = self.bias.len();
        let shape = Shape { channels, kernel: self.kernel, stride: self.stride, height, width };
        let in_channels = expand.map_or(channels, |(expand, _)| expand.weight.inputs);
        assert_eq!(input.len(), batch * shape.in_pixels() * in_channels);
        assert_eq!(output.len(), batch * shape.out_pixels() * channels);
        let source = match expand {
            None => Source::Map(input),
            Some((expand, activation)) => {
                assert_eq!(expand.weight.outputs, channels);
                Source::Expanded(input, &expand.weight, activation)
            }
        };
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
                source, weights: &self.weights, bias: &self.bias, shape, output, pooled, tasks, activation: PhantomData,
            }))
        });
    }
}

/// A dense convolution of any kernel size, with bias.
#[derive(Debug, Clone)]
pub struct DenseConv {
    weight: Slices,
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
        let weight = Slices::new(&ordered, bias, in_channels * kernel * kernel, out_channels);
        DenseConv { weight, in_channels, kernel, stride }
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
            out_channels: self.weight.outputs,
            kernel: self.kernel,
            stride: self.stride,
            depthwise: false,
            activation: Activation::Identity,
            pool: false,
            eps: 0.0,
        };
        assert_eq!(input.len(), batch * height * width * self.in_channels);
        let (out_height, out_width) = shape.output_size();
        let (weight, line) = (&self.weight, out_width * self.weight.outputs);
        assert_eq!(output.len(), batch * out_height * line);
        // A grain of few rows, so that small maps at batch 1 still spread over threads.
        parallel::map_parts(output, line, batch * out_height, 8_usize.div_ceil(out_width), |range, output| {
            DenseRows { weight, shape: &shape, input, range, activation, output }.run();
        });
    }
}

/// 3x3 max pool with stride 2 of `input` `[batch, height, width, channels]`.
pub fn max_pool(input: &[f32], height: usize, width: usize, channels: usize, output: &mut [f32]) {
    // `max` prefers every number to NaN.
    largest_of_windows(input, (height, width, channels), f32::NAN, f32::max, output);
}

/// Average over adjacent windows of `size x size` pixels of `input` `[batch, height, width, channels]` after `padding`
/// rows and columns of zeros, which count; windows that cross the right or lower border average their existing pixels.
pub fn average_windows(
    input: &[f32],
    (height, width, channels): (usize, usize, usize),
    size: usize,
    padding: usize,
    output: &mut [f32],
) {
    mean_windows(&Windows::side_by_side(height, width, channels, (size, size), padding), input, output);
}

/// Spatial means `[batch, channels]` of `input` `[batch, pixels, channels]`.
pub fn average_pool(input: &[f32], batch: usize, pixels: usize, channels: usize, output: &mut [f32]) {
    assert_eq!((input.len(), output.len()), (batch * pixels * channels, batch * channels));
    dispatch(AveragePool { input, pixels, channels, output })
}
