//! A dense convolution with batch norm, activation and, if asked, global average pooling, as one op: the network's first
//! convolution and its last 1x1 convolution.

use super::activation::{Act, with_activation};
use super::batch_norm::{Affine, Backward, ChannelStatistics, Normalise, SumBlock, Sums};
use super::buffers::Buffer;
use super::inverted_residual::{RawGradient, add_transposed, product_backward};
use super::matmul::Packed;
use super::parallel::{self, Shared};
use super::rows::{Left, Nothing, add_products, normalise, pool, product};
use super::simd::{InstructionSet, Kernel, Simd, dispatch};
use super::{contiguous_f32, tensor_values};
use crate::space::{Activation, ConvSpec};
use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard};

/// Extents and options of one call.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseShape {
    /// Images.
    pub batch: usize,
    /// Height of the input map.
    pub height: usize,
    /// Width of the input map.
    pub width: usize,
    /// Input channels.
    pub in_channels: usize,
    /// Output channels.
    pub out_channels: usize,
    /// Kernel size; the padding is half of it.
    pub kernel: usize,
    /// Stride.
    pub stride: usize,
    /// Activation after batch norm.
    pub activation: Activation,
    /// Whether the output is averaged over each image's pixels.
    pub pool: bool,
    /// Batch norm's epsilon.
    pub eps: f64,
}

impl DenseShape {
    /// The convolution `spec` for `batch` maps of `height x width`.
    pub fn new(spec: &ConvSpec, batch: usize, height: usize, width: usize, pool: bool, eps: f64) -> Self {
        DenseShape {
            batch,
            height,
            width,
            in_channels: spec.in_channels,
            out_channels: spec.out_channels,
            kernel: spec.kernel,
            stride: spec.stride,
            activation: spec.activation,
            pool,
            eps,
        }
    }

    /// Height and width of the convolution's output map.
    pub fn output_size(&self) -> (usize, usize) {
        (self.height.div_ceil(self.stride), self.width.div_ceil(self.stride))
    }

    fn rows(&self) -> usize {
        let (height, width) = self.output_size();
        self.batch * height * width
    }

    /// Values that one output pixel sees.
    fn columns(&self) -> usize {
        self.in_channels * self.kernel * self.kernel
    }

    fn is_plain_product(&self) -> bool {
        self.kernel == 1 && self.stride == 1
    }

    /// Offsets of batch norm's weight and bias in the packed parameters, and their number.
    fn offsets(&self) -> (usize, usize, usize) {
        let weight = self.out_channels * self.columns();
        (weight, weight + self.out_channels, weight + 2 * self.out_channels)
    }

    fn output_shape(&self) -> Shape {
        let (height, width) = self.output_size();
        match self.pool {
            true => (self.batch, self.out_channels).into(),
            false => (self.batch, height, width, self.out_channels).into(),
        }
    }
}

/// Rows `[pixels, in * k * k]` that the convolution sees, in the weight's order.
pub(crate) fn image_to_columns(shape: &DenseShape, x: &[f32]) -> Buffer {
    let (height, width) = shape.output_size();
    let (k, columns, channels) = (shape.kernel, shape.columns(), shape.in_channels);
    let mut output = Buffer::uninitialised(shape.rows() * columns);
    let shared = Shared::new(&mut output);
    parallel::map(shape.batch * height, 1, |lines| {
        // SAFETY: ranges of lines are disjoint.
        let output = unsafe { shared.slice(lines.start * width * columns..lines.end * width * columns) };
        output.fill(0.0);
        for (line, row) in lines.zip(output.chunks_exact_mut(width * columns)) {
            let (image, y) = (line / height, line % height);
            for ky in 0..k {
                let Some(source_y) = (y * shape.stride + ky).checked_sub(k / 2).filter(|&y| y < shape.height) else {
                    continue;
                };
                let source = &x[(image * shape.height + source_y) * shape.width * channels..][..shape.width * channels];
                for (out_x, row) in row.chunks_exact_mut(columns).enumerate() {
                    for kx in 0..k {
                        let Some(source_x) =
                            (out_x * shape.stride + kx).checked_sub(k / 2).filter(|&x| x < shape.width)
                        else {
                            continue;
                        };
                        for (channel, &v) in source[source_x * channels..][..channels].iter().enumerate() {
                            row[(channel * k + ky) * k + kx] = v;
                        }
                    }
                }
            }
        }
    });
    output
}

/// Output (`[batch, height, width, out]`, or `[batch, out]` when pooled) for `x` `[batch, height, width, in]`, and the statistics used.
///
/// `packed` holds weight `[out, in, k, k]`, then batch norm's weight and bias. A kernel larger than 1 has no input gradient:
/// only the first convolution has one, and images are no variables.
///
/// # Errors
/// Shapes or types that do not fit.
pub fn dense(
    x: &Tensor,
    packed: &Tensor,
    shape: DenseShape,
    given: Option<ChannelStatistics>,
    keep: bool,
) -> candle_core::Result<(Tensor, ChannelStatistics)> {
    let dims = x.dims4()?;
    let parameters = shape.offsets().2;
    if dims != (shape.batch, shape.height, shape.width, shape.in_channels)
        || packed.elem_count() != parameters
        || x.elem_count() == 0
    {
        candle_core::bail!(
            "dense convolution: input {:?} and {} parameters do not fit {shape:?}",
            x.dims(),
            packed.elem_count()
        );
    }
    if keep && !shape.is_plain_product() && x.track_op() {
        candle_core::bail!("dense convolution: a {0}x{0} kernel has no input gradient", shape.kernel);
    }
    let saved: SharedState = Arc::new(Mutex::new((None, ChannelStatistics::default())));
    let op = Dense { shape, given, keep, saved: saved.clone() };
    let output = x.contiguous()?.apply_op2(&packed.contiguous()?, op)?;
    let statistics = lock(&saved)?.1.clone();
    Ok((output, statistics))
}

type State = (Option<Buffer>, ChannelStatistics);
type SharedState = Arc<Mutex<State>>;

fn lock(saved: &SharedState) -> candle_core::Result<MutexGuard<'_, State>> {
    saved.lock().map_err(|_| candle_core::Error::Msg("dense convolution: a thread panicked".into()))
}

struct Dense {
    shape: DenseShape,
    given: Option<ChannelStatistics>,
    keep: bool,
    /// The raw output and the statistics.
    saved: SharedState,
}

impl CustomOp2 for Dense {
    fn name(&self) -> &'static str {
        "dense-convolution"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        packed: &CpuStorage,
        packed_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, packed) = (contiguous_f32(x, x_layout)?, contiguous_f32(packed, packed_layout)?);
        let (output, y, statistics) =
            with_activation!(self.shape.activation, A => forward::<A>(&self.shape, x, packed, self.given.as_ref()));
        let mut saved = lock(&self.saved)?;
        saved.1 = statistics;
        saved.0 = self.keep.then_some(y);
        Ok((CpuStorage::F32(output), self.shape.output_shape()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        packed: &Tensor,
        _output: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (y, statistics) = {
            let mut saved = lock(&self.saved)?;
            let Some(y) = saved.0.take() else {
                candle_core::bail!("dense convolution: no values were kept for a gradient, or it was taken twice");
            };
            (y, saved.1.clone())
        };
        let normalise = if self.given.is_some() { Normalise::Given } else { Normalise::Batch };
        let (dx, dp) = tensor_values(x, |x| {
            tensor_values(packed, |packed| {
                tensor_values(gradient, |g| {
                    Ok(with_activation!(self.shape.activation, A =>
                        backward::<A>(&self.shape, x, packed, &y, &statistics, normalise, g)))
                })
            })
        })?;
        let dx = dx.map(|dx| Tensor::from_vec(dx, x.shape(), x.device())).transpose()?;
        Ok((dx, Some(Tensor::from_vec(dp, packed.shape(), packed.device())?)))
    }
}

fn forward<A: Act>(
    shape: &DenseShape,
    x: &[f32],
    packed: &[f32],
    given: Option<&ChannelStatistics>,
) -> (Vec<f32>, Buffer, ChannelStatistics) {
    let (rows, columns, n) = (shape.rows(), shape.columns(), shape.out_channels);
    let (norm_weight, norm_bias, end) = shape.offsets();
    let weight = Packed::new(&packed[..norm_weight], columns, n, 1, columns);
    let mut y = Buffer::uninitialised(rows * n);
    let sums = if shape.is_plain_product() {
        product::<Nothing>(Left::Plain(x), rows, &weight, &mut y, given.is_none())
    } else {
        product::<Nothing>(Left::Plain(&image_to_columns(shape, x)), rows, &weight, &mut y, given.is_none())
    };
    let statistics = given.cloned().unwrap_or_else(|| sums.statistics(rows));
    let affine = Affine::new(&statistics, &packed[norm_weight..norm_bias], &packed[norm_bias..end], shape.eps);
    let output = if shape.pool {
        pool::<A>(&y, &affine, shape.batch)
    } else {
        let mut output = vec![0.0; rows * n];
        normalise::<A>(&y, &affine, None, &mut output);
        output
    };
    (output, y, statistics)
}

fn backward<A: Act>(
    shape: &DenseShape,
    x: &[f32],
    packed: &[f32],
    y: &[f32],
    statistics: &ChannelStatistics,
    normalise: Normalise,
    g: &[f32],
) -> (Option<Vec<f32>>, Vec<f32>) {
    let (rows, columns, n) = (shape.rows(), shape.columns(), shape.out_channels);
    let (norm_weight, norm_bias, end) = shape.offsets();
    let affine = Affine::new(statistics, &packed[norm_weight..norm_bias], &packed[norm_bias..end], shape.eps);
    let pixels = rows / shape.batch;
    let mut masked = Buffer::uninitialised(rows * n);
    let shared = Shared::new(&mut masked);
    let parts = parallel::map(shape.batch, 1, |images| {
        let span = images.start * pixels * n..images.end * pixels * n;
        let g = if shape.pool { &g[images.start * n..images.end * n] } else { &g[span.clone()] };
        // SAFETY: ranges of images are disjoint.
        unsafe {
            let masked = shared.slice(span.clone());
            let pooled = shape.pool.then_some(pixels);
            dispatch(Mask::<A> { g, y: &y[span], affine: &affine, pooled, masked, activation: PhantomData })
        }
    });
    let back = Backward::new(&Sums::total(parts), statistics, &packed[norm_weight..norm_bias], shape.eps, normalise);
    let mut gradient = vec![0.0; end];
    gradient[norm_weight..norm_bias].copy_from_slice(&back.weight_gradient);
    gradient[norm_bias..].copy_from_slice(&back.bias_gradient);
    let raw = RawGradient { g: &masked, y, back: &back };
    let (dx, parts) = if shape.is_plain_product() {
        let weight = Packed::new(&packed[..norm_weight], n, columns, columns, 1);
        let mut dx = vec![0.0; x.len()];
        let parts = product_backward(raw, x, columns, Some(&weight), None, &mut dx);
        (Some(dx), parts)
    } else {
        (None, product_backward(raw, &image_to_columns(shape, x), columns, None, None, &mut []))
    };
    let stride = n.next_multiple_of(InstructionSet::active().lanes());
    add_transposed(&parts, stride, &mut gradient[..norm_weight], columns);
    (dx, gradient)
}

/// `masked = g * slope` with the sums of batch norm's gradient.
struct Mask<'a, A> {
    /// By pixel, or by image when pooled over this many pixels.
    g: &'a [f32],
    y: &'a [f32],
    affine: &'a Affine,
    pooled: Option<usize>,
    masked: &'a mut [f32],
    activation: PhantomData<A>,
}

impl<A: Act> Kernel for Mask<'_, A> {
    type Output = Sums;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Sums {
        let n = self.affine.scale.len();
        let (scale, shift) = (&self.affine.scale[..n], &self.affine.shift[..n]);
        let factor = self.pooled.map_or(1.0, |pixels| 1.0 / pixels as f32);
        let mut sums = Sums::new(n);
        let mut block = SumBlock::new(n);
        for (row, (y, out)) in self.y.chunks_exact(n).zip(self.masked.chunks_exact_mut(n)).enumerate() {
            let g = &self.g[self.pooled.map_or(row, |pixels| row / pixels) * n..][..n];
            for c in 0..n {
                out[c] = g[c] * factor * A::slope(y[c] * scale[c] + shift[c]);
            }
            add_products(out, y, &mut block);
            if row % super::matmul::ROW_BLOCK == super::matmul::ROW_BLOCK - 1 {
                sums.add_block(0, &block.sum, &block.square);
                block.clear();
            }
        }
        sums.add_block(0, &block.sum, &block.square);
        sums
    }
}
