//! Layers of networks in 8-bit integers.
//!
//! Values are bytes with a scale and a zero point ([`Affine`]), weights signed bytes with a scale per output channel.
//! Sums of products are exact in `i32`; the end of a layer multiplies them by `input scale * weight scale`, adds the
//! residual, applies the activation, and rounds. No operation on floats is contracted, so that all instruction sets and
//! any number of threads give the same bits. Layers share their work among [`threads`](crate::threads) threads, except
//! for [`average_pool`], [`gate`] and [`dequantise`].
//!
//! | file | concern |
//! | --- | --- |
//! | `affine` | scales, rounding, factors of channels |
//! | `ends` | ends of layers: factors, residual, activation, rounding |
//! | `product` | packed weights and register tiles of products |
//! | `pointwise` | products over pixels, plain or gated |
//! | `dense` | dense convolution |
//! | `depthwise` | depthwise convolution |
//! | `pools`, `convert` | averages; rounding and its inverse |
//! | `ordered` | layers that stay f32 |

mod affine;
mod convert;
mod dense;
mod depthwise;
mod ends;
mod ordered;
mod pointwise;
mod pools;
mod product;

pub use affine::Affine;
pub use ends::Target;

use crate::Activation;
use crate::activation::with_activation;
use crate::buffers::Aligned;
use crate::dense_shape::DenseShape;
use crate::depthwise::Shape;
use crate::inference::max_pool::largest_of_windows;
use crate::parallel;
use crate::pools::Windows;
use crate::simd::{InstructionSet, dispatch};
use affine::Channels;
use dense::DenseRows;
use depthwise::DepthwiseRows;
use pointwise::{ProductRows, Rows};
use product::Packed;
use std::marker::PhantomData;
use std::ops::Range;

/// Multiply-accumulates that are worth a thread.
const GRAIN: usize = 1 << 19;

/// Integer weights of a layer: `weight` `[out, in / groups, k, k]`, `bias` and `multipliers` `[out]`.
#[derive(Debug, Clone, Copy)]
pub struct Int8Weights<'a> {
    /// Weight.
    pub weight: &'a [i8],
    /// Added to the sums of products.
    pub bias: &'a [i32],
    /// Factors from sums to numbers; finite.
    pub multipliers: &'a [f32],
    /// The input's.
    pub zero_point: u8,
}

impl Int8Weights<'_> {
    fn channels(&self) -> Channels {
        let Int8Weights { weight, bias, multipliers, zero_point } = *self;
        Channels::new(weight, bias, multipliers, zero_point, InstructionSet::active().lanes())
    }
}

/// Factors of a layer's input.
#[derive(Debug, Clone, Copy)]
pub struct Gate<'a> {
    /// `[batch, in]`
    pub factors: &'a [f32],
    /// Scale of the input.
    pub from: Affine,
    /// Scale of the product.
    pub to: Affine,
}

/// A 1x1 convolution or fully connected layer.
#[derive(Debug, Clone)]
pub struct Pointwise {
    weight: Packed,
    channels: Channels,
}

impl Pointwise {
    /// Packs the layer.
    pub fn new(weights: Int8Weights, in_channels: usize) -> Self {
        Pointwise { weight: Packed::new(weights.weight, weights.bias.len(), in_channels), channels: weights.channels() }
    }

    /// Computes `activation(W (input * gate) + residual)` for `pixels` pixels of each of `batch` images.
    #[allow(clippy::too_many_arguments)] // the layer's inputs and extents
    pub fn run(
        &self,
        input: &[u8],
        batch: usize,
        pixels: usize,
        activation: Activation,
        gate: Option<Gate>,
        residual: Option<(&[u8], Affine)>,
        target: Target,
    ) {
        assert_eq!(input.len(), batch * pixels * self.weight.k);
        let rows = match gate {
            None => Rows::Plain(input),
            Some(Gate { factors, from, to }) => {
                assert_eq!(factors.len(), batch * self.weight.k);
                Rows::Gated { input, from, gate: factors, to, pixels }
            }
        };
        self.rows(rows, batch * pixels, activation, residual, target);
    }

    fn rows(
        &self,
        rows: Rows,
        count: usize,
        activation: Activation,
        residual: Option<(&[u8], Affine)>,
        target: Target,
    ) {
        let (weight, channels, n) = (&self.weight, &self.channels, self.weight.n);
        assert!(target.len() == count * n && residual.is_none_or(|(residual, _)| residual.len() == count * n));
        let grain = (GRAIN / (n * weight.k)).max(8).next_multiple_of(8);
        split(target, count, n, grain, |range, target| {
            let residual = residual.map(|(bytes, affine)| (&bytes[range.start * n..range.end * n], affine));
            ProductRows { weight, channels, rows, range, residual, target, activation }.run();
        });
    }
}

/// Runs `work` on ranges of `0..total` in parallel, each with its part of the target, `size` values per index.
fn split(target: Target, total: usize, size: usize, grain: usize, work: impl Fn(Range<usize>, Target) + Sync) {
    match target {
        Target::Bytes(bytes, affine) => {
            parallel::map_parts(bytes, size, total, grain, |range, bytes| work(range, Target::Bytes(bytes, affine)));
        }
        Target::Floats(floats) => {
            parallel::map_parts(floats, size, total, grain, |range, floats| work(range, Target::Floats(floats)));
        }
    }
}

/// A depthwise convolution with a kernel of 3, 5 or 7 and stride 1 or 2.
#[derive(Debug, Clone)]
pub struct Depthwise {
    weight: Aligned,
    channels: Channels,
    zero_point: u8,
    count: usize,
    kernel: usize,
    stride: usize,
}

impl Depthwise {
    /// Whether there is a kernel for this layer.
    pub fn supports(kernel: usize, stride: usize) -> bool {
        matches!(kernel, 3 | 5 | 7) && matches!(stride, 1 | 2)
    }

    /// Packs the layer.
    pub fn new(weights: Int8Weights, kernel: usize, stride: usize) -> Self {
        assert!(Self::supports(kernel, stride) && weights.weight.len() == weights.bias.len() * kernel * kernel);
        Depthwise {
            weight: depthwise::pack(weights.weight, weights.bias.len(), kernel),
            channels: weights.channels(),
            zero_point: weights.zero_point,
            count: weights.bias.len(),
            kernel,
            stride,
        }
    }

    /// Computes `activation(depthwise(input))` of `batch` images.
    pub fn run(&self, input: &[u8], batch: usize, height: usize, width: usize, activation: Activation, target: Target) {
        let shape = Shape { channels: self.count, kernel: self.kernel, stride: self.stride, height, width };
        assert_eq!(input.len(), batch * shape.in_pixels() * self.count);
        let (rows, row) = (batch * shape.out_height(), shape.out_width() * self.count);
        assert_eq!(target.len(), rows * row);
        let grain = (GRAIN / 8 / (row * self.kernel)).max(1);
        split(target, rows, row, grain, |range, target| match self.kernel {
            3 => self.rows::<3>(input, shape, range, activation, target),
            5 => self.rows::<5>(input, shape, range, activation, target),
            _ => self.rows::<7>(input, shape, range, activation, target),
        });
    }

    fn rows<const K: usize>(
        &self,
        input: &[u8],
        shape: Shape,
        range: Range<usize>,
        activation: Activation,
        target: Target,
    ) {
        let Depthwise { weight, channels, zero_point, .. } = self;
        let rows = DepthwiseRows { weight, channels, shape, input, zero_point: *zero_point, range, target, activation };
        rows.run::<K>();
    }
}

/// A dense convolution of any kernel size.
#[derive(Debug, Clone)]
pub struct DenseConv {
    weight: Packed,
    channels: Channels,
    zero_point: u8,
    in_channels: usize,
    kernel: usize,
    stride: usize,
}

impl DenseConv {
    /// Packs the layer.
    pub fn new(weights: Int8Weights, in_channels: usize, kernel: usize, stride: usize) -> Self {
        let weight = dense::pack(weights.weight, weights.bias.len(), in_channels, kernel);
        let (channels, zero_point) = (weights.channels(), weights.zero_point);
        DenseConv { weight, channels, zero_point, in_channels, kernel, stride }
    }

    /// Computes `activation(convolution(input))` of `batch` images.
    pub fn run(&self, input: &[u8], batch: usize, height: usize, width: usize, activation: Activation, target: Target) {
        let shape = DenseShape {
            batch,
            height,
            width,
            in_channels: self.in_channels,
            out_channels: self.weight.n,
            kernel: self.kernel,
            stride: self.stride,
            activation: Activation::Identity,
            pool: false,
            eps: 0.0,
            depthwise: false,
        };
        assert_eq!(input.len(), batch * height * width * self.in_channels);
        let (out_height, out_width) = shape.output_size();
        let DenseConv { weight, channels, zero_point, .. } = self;
        let line = out_width * weight.n;
        assert_eq!(target.len(), batch * out_height * line);
        let grain = (GRAIN / (line * weight.k)).max(1);
        split(target, batch * out_height, line, grain, |range, target| {
            let shape = &shape;
            DenseRows { weight, channels, shape, input, zero_point: *zero_point, range, target, activation }.run();
        });
    }
}

/// A convolution or fully connected layer that stays f32.
#[derive(Debug, Clone)]
pub struct OrderedConv {
    weight: Aligned,
    bias: Vec<f32>,
    inputs: usize,
    depthwise: bool,
    kernel: usize,
    stride: usize,
}

impl OrderedConv {
    /// Packs `weight` `[out, in, k, k]`, or `[channels, k, k]` if `depthwise`.
    pub fn new(
        weight: &[f32],
        bias: &[f32],
        in_channels: usize,
        kernel: usize,
        stride: usize,
        depthwise: bool,
    ) -> Self {
        let (n, area) = (bias.len(), kernel * kernel);
        let inputs = if depthwise { 1 } else { in_channels };
        assert_eq!(weight.len(), n * inputs * area);
        let panel = ordered::panel();
        let mut packed = Aligned::zeros(n.next_multiple_of(panel) * inputs * area);
        for (place, &weight) in weight.iter().enumerate() {
            let (output, input, tap) = (place / (inputs * area), place / area % inputs, place % area);
            let row = (output / panel * area + tap) * inputs + input;
            packed[row * panel + output % panel] = weight;
        }
        OrderedConv { weight: packed, bias: bias.to_vec(), inputs, depthwise, kernel, stride }
    }

    /// Computes `activation(convolution(input) + bias)` of `batch` images.
    pub fn run(
        &self,
        input: &[f32],
        batch: usize,
        height: usize,
        width: usize,
        activation: Activation,
        output: &mut [f32],
    ) {
        let OrderedConv { weight, bias, inputs, depthwise, kernel, stride } = self;
        let (n, area, padding) = (bias.len(), kernel * kernel, kernel / 2);
        let channels = if *depthwise { n } else { *inputs };
        let (out_height, out_width) = (height.div_ceil(*stride), width.div_ceil(*stride));
        let pixels = batch * out_height * out_width;
        assert_eq!((input.len(), output.len()), (batch * height * width * channels, pixels * n));
        let taps = |pixel: usize, tap: usize| {
            let (image, row, column) =
                (pixel / (out_height * out_width), pixel / out_width % out_height, pixel % out_width);
            let y = (row * stride + tap / kernel).checked_sub(padding).filter(|&y| y < height)?;
            let x = (column * stride + tap % kernel).checked_sub(padding).filter(|&x| x < width)?;
            Some(((image * height + y) * width + x) * channels)
        };
        let grain = (GRAIN / 16 / (n * inputs * area)).max(1);
        parallel::map_parts(output, n, pixels, grain, |range, output| {
            with_activation!(activation, A => dispatch(ordered::OrderedPixels::<A> {
                weight, bias, depthwise: *depthwise, inputs: *inputs, input, taps: &taps, area, first: range.start,
                output, activation: PhantomData,
            }))
        });
    }
}

/// Spatial means `[batch, channels]` of `input` `[batch, pixels, channels]`.
pub fn average_pool(input: &[u8], affine: Affine, pixels: usize, channels: usize, output: &mut [f32]) {
    assert_eq!(input.len(), output.len() * pixels);
    dispatch(pools::AveragePool { input, affine, pixels, channels, output })
}

/// Averages over adjacent windows, as [`average_windows`](super::average_windows) says.
pub fn average_windows(
    input: &[u8],
    affine: Affine,
    (height, width, channels): (usize, usize, usize),
    size: usize,
    padding: usize,
    output: &mut [f32],
) {
    let windows = Windows::side_by_side(height, width, channels, (size, size), padding);
    assert_eq!(windows.out_values(input.len()), output.len());
    parallel::map_parts(output, channels, output.len() / channels, pool_grain(channels), |range, output| {
        dispatch(pools::AverageWindows { windows: &windows, input, affine, first: range.start, output })
    });
}

/// 3x3 max pool with stride 2 of `input` `[batch, height, width, channels]`.
pub fn max_pool(input: &[u8], height: usize, width: usize, channels: usize, output: &mut [u8]) {
    // `max` prefers every byte to zero.
    largest_of_windows(input, (height, width, channels), 0, u8::max, output);
}

/// Fewest parts of `values` output values each of a pool for a thread: some thousand values.
fn pool_grain(values: usize) -> usize {
    4096_usize.div_ceil(values)
}

/// Each channel of `input` `[batch, pixels, channels]` multiplied by its factor of `[batch, channels]`.
pub fn gate(input: &[u8], affine: Affine, factors: &[f32], (pixels, channels): (usize, usize), target: Target) {
    assert_eq!((target.len(), factors.len() * pixels), (input.len(), input.len()));
    dispatch(convert::GateMap { input, affine, factors, pixels, channels, target })
}

/// Rounds each number.
pub fn quantise(input: &[f32], affine: Affine, output: &mut [u8]) {
    assert_eq!(input.len(), output.len());
    parallel::map_parts(output, 1, input.len(), 1 << 16, |range, output| {
        dispatch(convert::Quantise { input: &input[range], affine, output })
    });
}

/// The number of each byte.
pub fn dequantise(input: &[u8], affine: Affine, output: &mut [f32]) {
    assert_eq!(input.len(), output.len());
    dispatch(convert::Dequantise { input, affine, output })
}
