//! Dense convolution of bytes: products whose rows lie in padded rows of the map.

use super::affine::Channels;
use super::ends::Target;
use super::product::{Packed, widen};
use crate::Activation;
use crate::buffers::Buffer;
use crate::dense_shape::DenseShape;
use crate::inference::padded::PaddedRows;
use crate::simd::InstructionSet;
use bytemuck::{cast_slice, cast_slice_mut};
use std::ops::Range;

/// Bytes of padded rows that stay in L2, and take little memory on each thread.
const STRIP: usize = 64 << 10;

/// Packs `weight` `[out, in, kernel, kernel]` as `[out, kernel, run]`; runs are filled up with zeros to whole groups.
pub(super) fn pack(weight: &[i8], outputs: usize, inputs: usize, kernel: usize) -> Packed {
    let (area, run) = (kernel * kernel, run(inputs, kernel));
    assert_eq!(weight.len(), outputs * inputs * area);
    let mut ordered = vec![0; outputs * kernel * run];
    for (place, &weight) in weight.iter().enumerate() {
        let (output, input, tap) = (place / (inputs * area), place / area % inputs, place % area);
        ordered[(output * kernel + tap / kernel) * run + tap % kernel * inputs + input] = weight;
    }
    Packed::new(&ordered, outputs, kernel * run)
}

/// Values of a run.
fn run(inputs: usize, kernel: usize) -> usize {
    (kernel * inputs).next_multiple_of(InstructionSet::active().word_values())
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
        let values = InstructionSet::active().word_values();
        let padded = PaddedRows::new(self.shape, STRIP * values / 4, self.range.len());
        let layout = padded.layout(run(self.shape.in_channels, self.shape.kernel));
        let n = self.weight.n;
        // The last run may end in values beyond the last row, which meet zeros.
        let mut strip = Buffer::with_arbitrary_contents(padded.len().div_ceil(values) + 1);
        let mut first = self.range.start;
        while first < self.range.end {
            let rows = padded.rows_from(first, self.range.end);
            let (input, zero_point) = (self.input, self.zero_point);
            if values == 4 {
                padded.fill(input, zero_point, first, rows, cast_slice_mut(&mut strip), <[u8]>::copy_from_slice);
            } else {
                padded.fill(input, zero_point.into(), first, rows, cast_slice_mut(&mut strip), widen);
            }
            for panel in self.weight.panels() {
                let target = self.target.from((first - self.range.start) * layout.line * n + panel.column);
                let end = panel.end(n, self.channels, target, None, self.activation);
                panel.multiply(cast_slice(&strip), layout, rows * layout.line, self.channels.bias(), end);
            }
            first += rows;
        }
    }
}
