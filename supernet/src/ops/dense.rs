//! A dense convolution with batch norm, activation and optional global average pooling, as one op.

use super::activation::{Act, with_activation};
use super::batch_norm::{Affine, Backward, ChannelStatistics, Normalise, SumOverProcesses, Sums};
use super::buffers::{Buffer, written};
use super::columns::{Columns, from_column_order, to_column_order};
use super::dense_kernels::{ColumnsBackward, Mask};
use super::dense_shape::DenseShape;
use super::matmul::Packed;
use super::parallel;
use super::passes::{normalise, pool, product, product_backward};
use super::rows::{Left, Nothing, RawGradient, write_transposed};
use super::simd::{InstructionSet, dispatch};
use super::{contiguous_f32, summing, tensor_values};
use crate::ranks::Ranks;
use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard};

/// Output of the convolution and the statistics used.
///
/// `x` is `[batch, height, width, in]`, the output `[batch, height, width, out]`, or `[batch, out]` when pooled.
/// `packed` holds the weight `[out, in, k, k]`, then batch norm's weight and bias. The input gets a gradient only if it
/// is tracked: images are not.
///
/// # Errors
/// Shapes or types do not fit.
pub fn dense(
    x: &Tensor,
    packed: &Tensor,
    shape: DenseShape,
    given: Option<ChannelStatistics>,
    ranks: Option<&Ranks>,
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
    let saved: SharedState = Arc::new(Mutex::new((None, ChannelStatistics::default())));
    let op = Dense { shape, given, ranks: ranks.cloned(), keep, saved: saved.clone() };
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
    /// Processes that synchronise their batch statistics.
    ranks: Option<Ranks>,
    keep: bool,
    /// The raw output, kept for the gradient, and the statistics.
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
        let sum = summing(self.ranks.as_ref());
        let (given, over_processes) = (self.given.as_ref(), sum.as_ref().map(|sum| sum as SumOverProcesses));
        let (output, y, statistics) =
            with_activation!(self.shape.activation, A => forward::<A>(&self.shape, x, packed, given, over_processes));
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
        let with_input = x.track_op();
        let normalise = if self.given.is_some() { Normalise::Given } else { Normalise::Batch };
        let sum = summing(self.ranks.as_ref());
        let over_processes = sum.as_ref().map(|sum| sum as SumOverProcesses);
        let (dx, dp) = tensor_values(x, |x| {
            tensor_values(packed, |packed| {
                tensor_values(gradient, |g| {
                    Ok(with_activation!(self.shape.activation, A =>
                        backward::<A>(&self.shape, x, packed, &y, &statistics, normalise, over_processes, g, with_input)))
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
    over_processes: Option<SumOverProcesses>,
) -> (Vec<f32>, Buffer, ChannelStatistics) {
    let (rows, columns, n) = (shape.rows(), shape.columns(), shape.out_channels);
    let (norm_weight, norm_bias, end) = shape.offsets();
    let mut y = Buffer::with_arbitrary_contents(rows * n);
    let sums = if shape.is_plain_product() {
        let weight = Packed::new(&packed[..norm_weight], columns, n, 1, columns);
        product::<Nothing>(Left::Plain(x), rows, &weight, &mut y, given.is_none())
    } else {
        let ordered = to_column_order(&packed[..norm_weight], shape.in_channels, shape.kernel * shape.kernel);
        let weight = Packed::new(&ordered, columns, n, 1, columns);
        product(Left::Made(&Columns { shape, x }), rows, &weight, &mut y, given.is_none())
    };
    let statistics = given.cloned().unwrap_or_else(|| sums.statistics_over(over_processes, rows));
    let affine = Affine::new(&statistics, &packed[norm_weight..norm_bias], &packed[norm_bias..end], shape.eps);
    let output = if shape.pool {
        pool::<A>(&y, &affine, shape.batch)
    } else {
        written(rows * n, |output| (normalise::<A>(&y, &affine, None, output), ())).0
    };
    (output, y, statistics)
}

#[allow(clippy::too_many_arguments)] // inputs and saved values of the forward pass, and the gradient
fn backward<A: Act>(
    shape: &DenseShape,
    x: &[f32],
    packed: &[f32],
    y: &[f32],
    statistics: &ChannelStatistics,
    normalise: Normalise,
    over_processes: Option<SumOverProcesses>,
    g: &[f32],
    with_input: bool,
) -> (Option<Vec<f32>>, Vec<f32>) {
    let (rows, columns, n) = (shape.rows(), shape.columns(), shape.out_channels);
    let (norm_weight, norm_bias, end) = shape.offsets();
    let affine = Affine::new(statistics, &packed[norm_weight..norm_bias], &packed[norm_bias..end], shape.eps);
    let pixels = rows / shape.batch;
    let mut masked = Buffer::with_arbitrary_contents(rows * n);
    let parts = parallel::map_parts(&mut masked, pixels * n, shape.batch, 1, |images, masked| {
        let span = images.start * pixels * n..images.end * pixels * n;
        let g = if shape.pool { &g[images.start * n..images.end * n] } else { &g[span.clone()] };
        let pooled = shape.pool.then_some(pixels);
        dispatch(Mask::<A> { g, y: &y[span], affine: &affine, pooled, masked, activation: PhantomData })
    });
    let sums = Sums::total(parts);
    let back = Backward::over(over_processes, &sums, statistics, &packed[norm_weight..norm_bias], shape.eps, normalise);
    let mut gradient = vec![0.0; end];
    gradient[norm_weight..norm_bias].copy_from_slice(&back.weight_gradient);
    gradient[norm_bias..].copy_from_slice(&back.bias_gradient);
    let raw = RawGradient { g: &masked, y, back: &back };
    let stride = n.next_multiple_of(InstructionSet::active().lanes());
    if shape.is_plain_product() {
        let weight = with_input.then(|| Packed::new(&packed[..norm_weight], n, columns, columns, 1));
        let (dx, parts) = product_backward(raw, x, columns, weight.as_ref());
        write_transposed(parts, stride, &mut gradient[..norm_weight], columns);
        return (dx, gradient);
    }
    let mut dx = with_input.then(|| vec![0.0; x.len()]);
    let taps = shape.kernel * shape.kernel;
    let weight = dx.is_some().then(|| {
        let ordered = to_column_order(&packed[..norm_weight], shape.in_channels, taps);
        Packed::new(&ordered, n, columns, columns, 1)
    });
    let image = if dx.is_some() { shape.height * shape.width * shape.in_channels } else { 0 };
    let parts = parallel::map_parts(dx.as_deref_mut().unwrap_or_default(), image, shape.batch, 1, |images, dx| {
        dispatch(ColumnsBackward { shape, raw, x, weight: weight.as_ref(), images, dx })
    });
    let mut ordered = vec![0.0; norm_weight];
    write_transposed(parts, stride, &mut ordered, columns);
    gradient[..norm_weight].copy_from_slice(&from_column_order(&ordered, shape.in_channels, taps));
    (dx, gradient)
}
