//! A dense convolution as a matrix product: the columns (input values of each output pixel) are produced a block of
//! pixels at a time, and their gradients scattered back. The whole matrix of columns never exists.
//!
//! Columns are ordered `[ky, kx, channel]`, so that a pixel's channels are copied as one contiguous run; weights are
//! reordered to that from PyTorch's `[channel, ky, kx]`.

use super::dense_shape::DenseShape;
use super::rows::RowSource;
use super::simd::Simd;
use std::ops::Range;

/// Rows `[pixels, k * k * in]` of input values, one per output pixel.
pub(crate) struct Columns<'a> {
    pub shape: &'a DenseShape,
    /// `[batch, height, width, in]`
    pub x: &'a [f32],
}

impl RowSource for Columns<'_> {
    #[inline(always)]
    fn fill<S: Simd>(&self, _: S, first: usize, rows: usize, columns: usize, tile: &mut [f32]) {
        for (row, out) in tile[..rows * columns].chunks_exact_mut(columns).enumerate() {
            runs(self.shape, first + row, |at, run| match run {
                Some(source) => out[at].copy_from_slice(&self.x[source]),
                None => out[at].fill(0.0),
            });
        }
    }
}

/// Adds the gradients of columns (of the pixels from `first` on) to those of the input values that they were copied
/// from. `dx` starts at image `first_image`.
#[inline(always)]
pub(crate) fn scatter(shape: &DenseShape, first: usize, first_image: usize, gradients: &[f32], dx: &mut [f32]) {
    let offset = first_image * shape.height * shape.width * shape.in_channels;
    for (row, gradient) in gradients.chunks_exact(shape.columns()).enumerate() {
        runs(shape, first + row, |at, run| {
            if let Some(source) = run {
                for (dx, g) in dx[source.start - offset..source.end - offset].iter_mut().zip(&gradient[at]) {
                    *dx += g;
                }
            }
        });
    }
}

/// Calls `visit` with every contiguous run of the columns of output pixel `pixel` and its range in the input (`None`
/// for padding).
#[inline(always)]
fn runs(shape: &DenseShape, pixel: usize, mut visit: impl FnMut(Range<usize>, Option<Range<usize>>)) {
    let (out_height, out_width) = shape.output_size();
    let (k, channels) = (shape.kernel, shape.in_channels);
    let (image, y, x) = (pixel / (out_height * out_width), pixel / out_width % out_height, pixel % out_width);
    let (top, left) = ((y * shape.stride) as isize - (k / 2) as isize, (x * shape.stride) as isize - (k / 2) as isize);
    // Range of `kx` for which the input pixel exists.
    let start = (-left).clamp(0, k as isize) as usize;
    let end = (shape.width as isize - left).clamp(start as isize, k as isize) as usize;
    for ky in 0..k {
        let at = ky * k * channels;
        let source_y = top + ky as isize;
        if source_y < 0 || source_y >= shape.height as isize || start == end {
            visit(at..at + k * channels, None);
            continue;
        }
        let source_x = (left + start as isize) as usize;
        let source = ((image * shape.height + source_y as usize) * shape.width + source_x) * channels;
        if start > 0 {
            visit(at..at + start * channels, None);
        }
        visit(at + start * channels..at + end * channels, Some(source..source + (end - start) * channels));
        if end < k {
            visit(at + end * channels..at + k * channels, None);
        }
    }
}

/// Reorders a weight `[out, channel, ky, kx]` to columns: `[out, ky, kx, channel]`.
pub(crate) fn to_column_order(weight: &[f32], channels: usize, taps: usize) -> Vec<f32> {
    let mut ordered = vec![0.0; weight.len()];
    for (from, to) in weight.chunks_exact(channels * taps).zip(ordered.chunks_exact_mut(channels * taps)) {
        for (channel, values) in from.chunks_exact(taps).enumerate() {
            for (tap, &value) in values.iter().enumerate() {
                to[tap * channels + channel] = value;
            }
        }
    }
    ordered
}

/// Inverse of [`to_column_order`].
pub(crate) fn from_column_order(ordered: &[f32], channels: usize, taps: usize) -> Vec<f32> {
    to_column_order(ordered, taps, channels)
}
