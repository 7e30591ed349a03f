//! Padded rows of a map, from which a dense convolution reads.
//!
//! An output pixel reads `kernel` runs of values, one of each row of the map, and neighbouring pixels read from the same
//! values: nothing is copied but the map, with its border.

use crate::ops::dense_shape::DenseShape;

/// Places of the values of a product's rows.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    /// Values of a run.
    pub run: usize,
    /// Values from one row to the next.
    pub step: usize,
    /// Rows of a line.
    pub line: usize,
    /// Values from one line to the next.
    pub line_step: usize,
    /// Runs of a row.
    pub runs: usize,
    /// Values from one run to the next.
    pub run_step: usize,
}

impl Layout {
    /// Rows one after the other, of `values` values each.
    pub(super) fn plain(values: usize) -> Self {
        Layout { run: values, step: values, line: usize::MAX, line_step: 0, runs: 1, run_step: 0 }
    }

    /// Place of a row's first value.
    #[inline(always)]
    pub(super) fn place(&self, row: usize) -> usize {
        if row < self.line { row * self.step } else { row / self.line * self.line_step + row % self.line * self.step }
    }

    /// Whether each four of `rows` rows lie in a line.
    pub(super) fn in_fours(&self, rows: usize) -> bool {
        self.line.is_multiple_of(4) || rows <= self.line
    }

    /// Number of values that `rows` rows lie in, those of the last line counted as if it were whole.
    pub(super) fn extent(&self, rows: usize) -> usize {
        let last = (rows - 1) / self.line * self.line_step + (rows.min(self.line) - 1) * self.step;
        last + (self.runs - 1) * self.run_step + self.run
    }
}

/// Some rows of an image with their border: the input of as many rows of output.
pub(super) struct PaddedRows<'a> {
    shape: &'a DenseShape,
    /// Values of a row.
    row: usize,
    /// Most rows of output at a time.
    pub most: usize,
}

impl<'a> PaddedRows<'a> {
    /// Rows of at most `values` values, but at least one row of output.
    pub(super) fn new(shape: &'a DenseShape, values: usize) -> Self {
        let (out_height, out_width) = shape.output_size();
        let row = ((out_width - 1) * shape.stride + shape.kernel) * shape.in_channels;
        let most = (values / row).saturating_sub(shape.kernel) / shape.stride + 1;
        PaddedRows { shape, row, most: most.min(out_height) }
    }

    /// Values of the largest number of rows.
    pub(super) fn len(&self) -> usize {
        self.count(self.most) * self.row
    }

    fn count(&self, rows: usize) -> usize {
        (rows - 1) * self.shape.stride + self.shape.kernel
    }

    /// The layout of the output's pixels, with runs of `run` values.
    pub(super) fn layout(&self, run: usize) -> Layout {
        let DenseShape { in_channels, kernel, stride, .. } = *self.shape;
        let (_, line) = self.shape.output_size();
        Layout { run, step: stride * in_channels, line, line_step: stride * self.row, runs: kernel, run_step: self.row }
    }

    /// Writes what `rows` rows of output from row `first` on read, counted over all images, of one of which all are.
    /// Values outside the map are `border`.
    pub(super) fn fill<T: Copy>(&self, input: &[T], border: T, first: usize, rows: usize, padded: &mut [T]) {
        let DenseShape { height, width, in_channels, kernel, stride, .. } = *self.shape;
        let (out_height, _) = self.shape.output_size();
        let (image, y) = (first / out_height, first % out_height * stride);
        let left = kernel / 2 * in_channels;
        for (number, padded) in padded.chunks_exact_mut(self.row).take(self.count(rows)).enumerate() {
            let Some(source) = (y + number).checked_sub(kernel / 2).filter(|&source| source < height) else {
                padded.fill(border);
                continue;
            };
            let pixels = &input[(image * height + source) * width * in_channels..][..width * in_channels];
            let (before, rest) = padded.split_at_mut(left);
            let (middle, after) = rest.split_at_mut(pixels.len().min(rest.len()));
            before.fill(border);
            middle.copy_from_slice(&pixels[..middle.len()]);
            after.fill(border);
        }
    }

    /// The rows of output from `first` on, at most to `end`, that are computed at a time.
    pub(super) fn next(&self, first: usize, end: usize) -> usize {
        let (out_height, _) = self.shape.output_size();
        self.most.min(end - first).min(out_height - first % out_height)
    }
}
