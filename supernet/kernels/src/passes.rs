//! Passes over whole tensors: the kernels of `matmul` and `rows`, with the rows divided among the threads.

use super::activation::Act;
use super::batch_norm::{Affine, Sums};
use super::buffers::{Aligned, Unwritten, written};
use super::matmul::{Packed, Panel, ROW_BLOCK, accumulate_transposed, multiply};
use super::parallel;
use super::rows::{GradientSums, Left, NormaliseRows, Pool, Product, ProductBackward, RawGradient, RowSource};
use super::simd::{InstructionSet, dispatch};
use super::slice::SLICE;
use std::marker::PhantomData;
use std::ops::Range;

/// Values of a matrix below which another thread does not pay for packing.
const PACKED_ALONE: usize = 1 << 14;

/// Packs a matrix in slices of [`SLICE`] columns; the last slice is padded with zero columns to whole vectors. The
/// element `(row, column)` is `source[row * row_stride + column * column_stride]`.
pub(crate) fn packed_slices(
    source: &[f32],
    k: usize,
    n: usize,
    row_stride: usize,
    column_stride: usize,
) -> Vec<Packed> {
    let slice = |start: usize| {
        let source = &source[start * column_stride..];
        let existing = SLICE.min(n - start);
        let columns = existing.next_multiple_of(InstructionSet::active().lanes());
        Packed::widened(source, k, existing, columns, row_stride, column_stride)
    };
    let slices = |range: Range<usize>| range.map(|number| slice(number * SLICE)).collect::<Vec<_>>();
    parallel::map(n.div_ceil(SLICE), 1, slices).into_iter().flatten().collect()
}

/// [`Packed::new`] with the panels divided among the threads.
pub(crate) fn packed_together(source: &[f32], k: usize, n: usize, row_stride: usize, column_stride: usize) -> Packed {
    let mut packed = Packed::zeros(k, n);
    let panels = packed.panels(n);
    let fill = |panel: Panel| panel.fill(source, row_stride, column_stride);
    if k * n < PACKED_ALONE {
        panels.into_iter().for_each(fill);
    } else {
        parallel::map_items(panels, fill);
    }
    packed
}

/// Computes [`multiply`] with the rows divided among the threads.
pub(crate) fn multiply_together(a: &[f32], a_stride: usize, rows: usize, b: &Packed, c: &mut [f32], c_stride: usize) {
    parallel::map_parts(c, c_stride, rows, 1, |range, c| {
        multiply(&a[range.start * a_stride..], a_stride, range.len(), b, c, c_stride);
    });
}

/// Computes [`accumulate_transposed`] with the rows of `c` divided among the threads.
#[allow(clippy::too_many_arguments)] // a matrix product has three matrices with strides and three extents
pub(crate) fn accumulate_transposed_together(
    a: &[f32],
    a_stride: usize,
    b: &[f32],
    b_stride: usize,
    rows: usize,
    m: usize,
    n: usize,
    c: &mut [f32],
    c_stride: usize,
) {
    parallel::map_parts(c, c_stride, m, SLICE, |range, c| {
        accumulate_transposed(&a[range.start..], a_stride, b, b_stride, rows, range.len(), n, c, c_stride);
    });
}

/// `output[row] = left[row] x weight` for `rows` rows; returns the sums per output channel if `with_sums`.
pub(crate) fn product<R: RowSource>(
    left: Left<R>,
    rows: usize,
    weight: &Packed,
    output: &mut [f32],
    with_sums: bool,
) -> Sums {
    let columns = weight.columns();
    assert_eq!(output.len(), rows * columns);
    let parts = parallel::map_parts(output, columns, rows, ROW_BLOCK, |range, output| {
        dispatch(Product { left: &left, range, weight, output, with_sums })
    });
    Sums::total(parts)
}

/// `output = activation(affine(y)) + residual`, all `[rows, channels]`; returns the output written.
pub(crate) fn normalise<'o, A: Act>(
    y: &[f32],
    affine: &Affine,
    residual: Option<&[f32]>,
    output: &'o mut Unwritten,
) -> &'o mut [f32] {
    let channels = affine.scale.len();
    let rows = output.len() / channels;
    let (output, _) = parallel::write_parts(output, channels, rows, ROW_BLOCK, |range, output| {
        let span = range.start * channels..range.end * channels;
        let pass = NormaliseRows::<A> {
            y: &y[span.clone()],
            affine,
            residual: residual.map(|r| &r[span]),
            output,
            activation: PhantomData,
        };
        (dispatch(pass), ())
    });
    output
}

/// Mean of `activation(affine(y))` over each image's pixels: `[images, channels]`.
pub(crate) fn pool<A: Act>(y: &[f32], affine: &Affine, images: usize) -> Vec<f32> {
    let channels = affine.scale.len();
    let image = y.len() / images;
    let mut pooled = vec![0.0; images * channels];
    parallel::map_parts(&mut pooled, channels, images, 1, |range, pooled| {
        let y = &y[range.start * image..range.end * image];
        dispatch(Pool::<A> { y, affine, image, pooled, activation: PhantomData })
    });
    pooled
}

/// `total += part`.
pub(crate) fn accumulate(total: &mut [f32], part: &[f32]) {
    parallel::map_parts(total, 1, part.len(), SLICE, |range, total| {
        for (total, v) in total.iter_mut().zip(&part[range]) {
            *total += v;
        }
    });
}

/// Sums of `g` and of `g * y` over rows, per channel.
pub(crate) fn gradient_sums(g: &[f32], y: &[f32], channels: usize) -> Sums {
    let rows = g.len() / channels;
    let parts = parallel::map(rows, ROW_BLOCK, |range| {
        let span = range.start * channels..range.end * channels;
        dispatch(GradientSums { g: &g[span.clone()], y: &y[span], channels })
    });
    Sums::total(parts)
}

/// Backward pass of `y = x W`, given the raw gradient at `y`: the input gradient if there is a `weight` (`[out, in]`,
/// packed), and each thread's transposed weight gradient `[in, stride]`.
pub(crate) fn product_backward(
    raw: RawGradient,
    x: &[f32],
    in_channels: usize,
    weight: Option<&Packed>,
) -> (Option<Vec<f32>>, Vec<Aligned>) {
    let rows = x.len() / in_channels;
    let Some(weight) = weight else {
        let parts = parallel::map(rows, ROW_BLOCK, |range| {
            dispatch(ProductBackward { raw, x, in_channels, range, input: None }).1
        });
        return (None, parts);
    };
    let (dx, parts) = written(x.len(), |dx| {
        parallel::write_parts(dx, in_channels, rows, ROW_BLOCK, |range, dx| {
            dispatch(ProductBackward { raw, x, in_channels, range, input: Some((weight, dx)) })
        })
    });
    (Some(dx), parts)
}
