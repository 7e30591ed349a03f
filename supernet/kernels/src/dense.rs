//! A dense or depthwise convolution with batch norm, activation and optional global average pooling, as one kernel.

use super::activation::{Act, with_activation};
use super::batch_norm::{Affine, Backward, ChannelStatistics, Normalise, SumOverProcesses, Sums};
use super::buffers::{Buffer, written};
use super::columns::{Columns, from_column_order, to_column_order};
use super::dense_kernels::{ColumnsBackward, Mask};
use super::dense_shape::DenseShape;
use super::depthwise_maps;
use super::matmul::Packed;
use super::parallel;
use super::passes::{gradient_sums, normalise, packed_together, pool, product, product_backward};
use super::rows::{Left, Nothing, RawGradient};
use super::simd::{InstructionSet, dispatch};
use super::transposed::TransposedParts;
use super::{LayerGradients, WrongExtents};
use std::marker::PhantomData;

/// Output of the convolution, `[batch, height, width, out]`, or `[batch, out]` when pooled, and the values that the
/// backward pass reads.
///
/// `x` is `[batch, height, width, in]`. `packed` holds the weight `[out, in, k, k]` (depthwise: `[out, 1, k, k]`), then
/// batch norm's weight and bias. Statistics are `given`, or those of the batch (`over_processes`, if passed).
///
/// # Errors
/// Values that do not fit the extents.
pub fn dense(
    x: &[f32],
    packed: &[f32],
    shape: &DenseShape,
    given: Option<&ChannelStatistics>,
    over_processes: Option<SumOverProcesses>,
) -> Result<(Vec<f32>, DenseSaved), WrongExtents> {
    let inputs = shape.batch * shape.height * shape.width * shape.in_channels;
    let supported = !shape.depthwise
        || (shape.kernel % 2 == 1 && matches!(shape.stride, 1 | 2) && shape.in_channels == shape.out_channels);
    if (x.len(), packed.len()) != (inputs, shape.offsets().2) || x.is_empty() || !supported {
        return Err(WrongExtents(format!(
            "dense convolution: input of {} values and {} parameters do not fit {shape:?}",
            x.len(),
            packed.len()
        )));
    }
    let (output, y, statistics) =
        with_activation!(shape.activation, A => forward::<A>(shape, x, packed, given, over_processes));
    let normalise = if given.is_some() { Normalise::Given } else { Normalise::Batch };
    Ok((output, DenseSaved { y, statistics, normalise }))
}

/// Values of the forward pass that the backward pass reads, besides input and parameters.
pub struct DenseSaved {
    /// Raw output of the convolution.
    y: Buffer,
    statistics: ChannelStatistics,
    normalise: Normalise,
}

impl DenseSaved {
    /// The statistics used.
    pub fn statistics(&self) -> &ChannelStatistics {
        &self.statistics
    }

    /// Gradients at the input, if asked for, and at the packed parameters, given the gradient `g` at the output. The
    /// other values are those of the forward pass.
    pub fn backward(
        self,
        shape: &DenseShape,
        x: &[f32],
        packed: &[f32],
        over_processes: Option<SumOverProcesses>,
        g: &[f32],
        with_input: bool,
    ) -> LayerGradients {
        let DenseSaved { y, statistics, normalise } = &self;
        with_activation!(shape.activation, A =>
            backward::<A>(shape, x, packed, y, statistics, *normalise, over_processes, g, with_input))
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
    let sums = if let Some(image) = shape.of_image() {
        depthwise_maps::convolve(image, x, &packed[..norm_weight], &mut y);
        gradient_sums(&y, &y, n)
    } else if shape.is_plain_product() {
        let weight = packed_together(&packed[..norm_weight], columns, n, 1, columns);
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
) -> LayerGradients {
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
    if let Some(image) = shape.of_image() {
        let weight = (&packed[..norm_weight], &mut gradient[..norm_weight]);
        let dx = depthwise_maps::gradients(image, x, weight, raw);
        return LayerGradients { input: with_input.then_some(dx), parameters: gradient };
    }
    if shape.is_plain_product() {
        let weight = with_input.then(|| packed_together(&packed[..norm_weight], n, columns, columns, 1));
        let (dx, parts) = product_backward(raw, x, columns, weight.as_ref());
        TransposedParts::in_rows(parts, stride).write(&mut gradient[..norm_weight], columns, None);
        return LayerGradients { input: dx, parameters: gradient };
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
    TransposedParts::in_rows(parts, stride).write(&mut ordered, columns, None);
    gradient[..norm_weight].copy_from_slice(&from_column_order(&ordered, shape.in_channels, taps));
    LayerGradients { input: dx, parameters: gradient }
}
