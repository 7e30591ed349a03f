//! A dense convolution with batch norm, activation and optional global average pooling, as one kernel.

use super::activation::{Act, with_activation};
use super::batch_norm::{Affine, Backward, ChannelStatistics, Normalise, SumBlock, Sums};
use super::buffers::{Aligned, Buffer, uninit_vec};
use super::columns::{Columns, from_column_order, scatter, to_column_order};
use super::dense_shape::DenseShape;
use super::matmul::{Packed, ROW_BLOCK, accumulate_transposed, multiply};
use super::parallel;
use super::rows::{
    Left, Nothing, RawGradient, RowSource, normalise, pool, product, product_backward, write_transposed,
};
use super::simd::{InstructionSet, Kernel, Simd, dispatch};
use crate::ranks::Ranks;
use std::marker::PhantomData;
use std::ops::Range;

/// Output of the convolution, `[batch, height, width, out]`, or `[batch, out]` when pooled, and the values that the
/// backward pass reads.
///
/// `x` is `[batch, height, width, in]`. `packed` holds the weight `[out, in, k, k]`, then batch norm's weight and bias.
/// Statistics are `given`, or those of the batch (over all `ranks`, if passed).
///
/// # Errors
/// Values that do not fit the extents.
pub fn dense(
    x: &[f32],
    packed: &[f32],
    shape: &DenseShape,
    given: Option<&ChannelStatistics>,
    ranks: Option<&Ranks>,
) -> candle_core::Result<(Vec<f32>, DenseSaved)> {
    let inputs = shape.batch * shape.height * shape.width * shape.in_channels;
    if (x.len(), packed.len()) != (inputs, shape.offsets().2) || x.is_empty() {
        candle_core::bail!(
            "dense convolution: input of {} values and {} parameters do not fit {shape:?}",
            x.len(),
            packed.len()
        );
    }
    let (output, y, statistics) = with_activation!(shape.activation, A => forward::<A>(shape, x, packed, given, ranks));
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
        ranks: Option<&Ranks>,
        g: &[f32],
        with_input: bool,
    ) -> (Option<Vec<f32>>, Vec<f32>) {
        let DenseSaved { y, statistics, normalise } = &self;
        with_activation!(shape.activation, A =>
            backward::<A>(shape, x, packed, y, statistics, *normalise, ranks, g, with_input))
    }
}

fn forward<A: Act>(
    shape: &DenseShape,
    x: &[f32],
    packed: &[f32],
    given: Option<&ChannelStatistics>,
    ranks: Option<&Ranks>,
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
    let statistics = given.cloned().unwrap_or_else(|| sums.statistics_over(ranks, rows));
    let affine = Affine::new(&statistics, &packed[norm_weight..norm_bias], &packed[norm_bias..end], shape.eps);
    let output = if shape.pool {
        pool::<A>(&y, &affine, shape.batch)
    } else {
        // SAFETY: `normalise` writes all `rows` rows of `n` values and reads none of them.
        let mut output = unsafe { uninit_vec(rows * n) };
        normalise::<A>(&y, &affine, None, &mut output);
        output
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
    ranks: Option<&Ranks>,
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
    let back = Backward::over(ranks, &sums, statistics, &packed[norm_weight..norm_bias], shape.eps, normalise);
    let mut gradient = vec![0.0; end];
    gradient[norm_weight..norm_bias].copy_from_slice(&back.weight_gradient);
    gradient[norm_bias..].copy_from_slice(&back.bias_gradient);
    let raw = RawGradient { g: &masked, y, back: &back };
    let stride = n.next_multiple_of(InstructionSet::active().lanes());
    let mut dx = with_input.then(|| match shape.is_plain_product() {
        // SAFETY: `dx` exists only together with a weight; `product_backward` below then writes all of it, `columns`
        // (the input's channels) values per row, and reads none of them.
        true => unsafe { uninit_vec(x.len()) },
        false => vec![0.0; x.len()],
    });
    if shape.is_plain_product() {
        let weight = dx.is_some().then(|| Packed::new(&packed[..norm_weight], n, columns, columns, 1));
        let parts = product_backward(raw, x, columns, weight.as_ref(), dx.as_deref_mut().unwrap_or_default());
        write_transposed(parts, stride, &mut gradient[..norm_weight], columns);
        return (dx, gradient);
    }
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

/// Backward pass of the convolution over whole images, given the raw gradient at its output.
struct ColumnsBackward<'a> {
    shape: &'a DenseShape,
    raw: RawGradient<'a>,
    x: &'a [f32],
    /// `[out, k * k * in]`, for the input gradient; `None` if none is needed.
    weight: Option<&'a Packed>,
    images: Range<usize>,
    /// Input gradient of `images`, zeros at the start.
    dx: &'a mut [f32],
}

impl Kernel for ColumnsBackward<'_> {
    /// The transposed weight gradient `[k * k * in, stride]`.
    type Output = Aligned;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Aligned {
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
            // SAFETY: the CPU has `S` by this function's contract; both tiles have `ROW_BLOCK >= rows` rows.
            unsafe {
                self.raw.fill::<S>(first, rows, stride, &mut gradients);
                source.fill::<S>(first, rows, columns, &mut tile);
            }
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
struct Mask<'a, A> {
    /// Gradient per pixel, or per image when pooled.
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
        let blocks = self.y.chunks(ROW_BLOCK * n).zip(self.masked.chunks_mut(ROW_BLOCK * n));
        for (number, (y, masked)) in blocks.enumerate() {
            for (row, (y, out)) in y.chunks_exact(n).zip(masked.chunks_exact_mut(n)).enumerate() {
                let row = number * ROW_BLOCK + row;
                let g = &self.g[self.pooled.map_or(row, |pixels| row / pixels) * n..][..n];
                for c in 0..n {
                    out[c] = g[c] * factor * A::slope(y[c] * scale[c] + shift[c]);
                }
            }
            // SAFETY: the CPU has `S` by this function's contract.
            unsafe { block.set_products::<S>(masked, y) };
            sums.add_block(0, &block.sum, &block.square);
        }
        sums
    }
}
