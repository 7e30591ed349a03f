//! Dense convolution of bytes: products whose rows lie in padded rows of the map.
//!
//! An output pixel reads `kernel` runs of bytes, one of each row of the map, and neighbouring pixels read from the same
//! bytes: nothing is copied but the map, with its border.

use super::affine::Channels;
use super::ends::{End, Target};
use super::product::{Layout, Packed};
use crate::ops::Activation;
use crate::ops::buffers::Buffer;
use crate::ops::dense_shape::DenseShape;
use crate::ops::simd::InstructionSet;
use bytemuck::cast_slice_mut;
use std::ops::Range;

/// Bytes of padded rows that stay in L2.
const STRIP: usize = 64 << 10;

/// Packs `weight` `[out, in, kernel, kernel]` as `[out, kernel, run]`; runs are filled up with zeros to whole groups.
pub(super) fn pack(weight: &[i8], outputs: usize, inputs: usize, kernel: usize) -> Packed {
    let (area, run) = (kernel * kernel, run(inputs, kernel));
    let mut ordered = vec![0; outputs * kernel * run];
    for (place, &weight) in weight.iter().enumerate() {
        let (output, input, tap) = (place / (inputs * area), place / area % inputs, place % area);
        ordered[(output * kernel + tap / kernel) * run + tap % kernel * inputs + input] = weight;
    }
    Packed::new(&ordered, outputs, kernel * run)
}

/// Bytes of a run.
fn run(inputs: usize, kernel: usize) -> usize {
    (kernel * inputs).next_multiple_of(4)
}

/// A dense convolution for some rows of the output.
pub(super) struct DenseRows<'a, 'o> {
    /// Of [`pack`].
    pub weight: &'a Packed,
    pub channels: &'a Channels,
    pub shape: &'a DenseShape,
    pub input: &'a [u8],
    pub zero_point: u8,
    /// Rows of the output, counted over all images.
    pub range: Range<usize>,
    /// Output of the range.
    pub target: Target<'o>,
    pub activation: Activation,
}

impl DenseRows<'_, '_> {
    /// Computes `target = activation(convolution(input))`.
    pub(super) fn run(mut self) {
        let DenseShape { in_channels, kernel, stride, .. } = *self.shape;
        let (out_height, out_width) = self.shape.output_size();
        let lanes = InstructionSet::active().lanes();
        let row = ((out_width - 1) * stride + kernel) * in_channels;
        let most = (STRIP / row).saturating_sub(kernel) / stride + 1;
        // The last run may end in bytes beyond the last row, which meet zeros.
        let bytes = (((most.min(out_height) - 1) * stride + kernel) * row).next_multiple_of(4) + 4;
        let mut strip = Buffer::with_arbitrary_contents(bytes / 4);
        let strip = cast_slice_mut::<f32, u8>(&mut strip);
        let mut first = self.range.start;
        while first < self.range.end {
            let (image, y) = (first / out_height, first % out_height);
            let rows = most.min(self.range.end - first).min(out_height - y);
            self.fill(image, y * stride, (rows - 1) * stride + kernel, row, strip);
            let layout = Layout {
                step: stride * in_channels,
                line: out_width,
                line_step: stride * row,
                runs: kernel,
                run_step: row,
            };
            let n = self.weight.n;
            for panel in self.weight.panels() {
                let end = End {
                    target: self.target.from((first - self.range.start) * out_width * n + panel.column),
                    step: n,
                    width: panel.width(lanes).min(n - panel.column),
                    multipliers: &self.channels.multipliers[panel.column..][..panel.width(lanes)],
                    residual: None,
                    activation: self.activation,
                };
                panel.multiply(strip, layout, rows * out_width, self.channels.bias(), end);
            }
            first += rows;
        }
    }

    /// Fills `rows` padded rows of `row` bytes each with an image, of which row `y - kernel / 2` comes first.
    fn fill(&self, image: usize, y: usize, rows: usize, row: usize, strip: &mut [u8]) {
        let DenseShape { height, width, in_channels, kernel, .. } = *self.shape;
        let left = kernel / 2 * in_channels;
        for (number, padded) in strip.chunks_exact_mut(row).take(rows).enumerate() {
            let Some(source) = (y + number).checked_sub(kernel / 2).filter(|&source| source < height) else {
                padded.fill(self.zero_point);
                continue;
            };
            let pixels = &self.input[(image * height + source) * width * in_channels..][..width * in_channels];
            let pixels = &pixels[..pixels.len().min(row - left)];
            let (before, rest) = padded.split_at_mut(left);
            let (middle, after) = rest.split_at_mut(pixels.len());
            before.fill(self.zero_point);
            middle.copy_from_slice(pixels);
            after.fill(self.zero_point);
        }
    }
}
