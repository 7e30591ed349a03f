//! Rows of input values of a dense convolution, one per output pixel.

use crate::ops::dense_shape::DenseShape;
use crate::ops::rows::RowSource;
use crate::ops::simd::Simd;
use std::ops::Range;

/// The rows of a convolution of f32 maps.
pub(super) struct Columns<'a> {
    pub shape: &'a DenseShape,
    /// `[batch, height, width, in]`
    pub input: &'a [f32],
}

impl RowSource for Columns<'_> {
    #[inline(always)]
    fn fill<S: Simd>(&self, _: S, first: usize, rows: usize, columns: usize, tile: &mut [f32]) {
        fill_columns(self.shape, self.input, 0.0, first..first + rows, tile, columns);
    }
}

/// Writes the input values `[ky, kx, channel]` of the output pixels `pixels` to `tile`, `stride` apart; `border` for
/// those outside the map.
pub(super) fn fill_columns<T: Copy>(
    shape: &DenseShape,
    input: &[T],
    border: T,
    pixels: Range<usize>,
    tile: &mut [T],
    stride: usize,
) {
    let (out_height, out_width) = shape.output_size();
    let (k, channels, step, padding) = (shape.kernel, shape.in_channels, shape.stride, shape.kernel / 2);
    let row = shape.width * channels;
    let mut first = pixels.start;
    while first < pixels.end {
        // Pixels of one output row.
        let (image, y, x) = (first / (out_height * out_width), first / out_width % out_height, first % out_width);
        let columns = x..out_width.min(x + pixels.end - first);
        let tile = &mut tile[(first - pixels.start) * stride..][..columns.len() * stride];
        for ky in 0..k {
            let source = (y * step + ky).checked_sub(padding).filter(|&source| source < shape.height);
            let source = source.map(|source| &input[(image * shape.height + source) * row..][..row]);
            for (x, out) in columns.clone().zip(tile.chunks_exact_mut(stride)) {
                let out = &mut out[ky * k * channels..][..k * channels];
                let Some(source) = source else {
                    out.fill(border);
                    continue;
                };
                if let Some(start) = (x * step).checked_sub(padding).filter(|start| start + k <= shape.width) {
                    copy(&source[start * channels..][..k * channels], out);
                    continue;
                }
                // Taps whose pixels exist.
                let left = padding.saturating_sub(x * step).min(k);
                let right = (shape.width + padding).saturating_sub(x * step).clamp(left, k);
                out.fill(border);
                if left < right {
                    let from = (x * step + left - padding) * channels;
                    let run = (right - left) * channels;
                    out[left * channels..][..run].copy_from_slice(&source[from..][..run]);
                }
            }
        }
        first += columns.len();
    }
}

/// Copies as many values; the lengths of a colour image's first convolution without a call.
#[inline(always)]
fn copy<T: Copy>(source: &[T], target: &mut [T]) {
    if let (Some(source), Some(target), 9) = (source.first_chunk::<9>(), target.first_chunk_mut::<9>(), source.len()) {
        *target = *source;
    } else {
        target.copy_from_slice(source);
    }
}
