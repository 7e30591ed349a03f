//! Padded rows of a map, from which a dense convolution reads.
//!
//! An output pixel reads `kernel` runs of values, one from each of `kernel` rows of the map, and neighbouring pixels
//! share values: nothing is copied but the map, with its border.

use crate::dense_shape::DenseShape;

/// Places of the values of a product's rows: a row is what one output value reads, a line the rows of an output row.
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

    /// Whether each four of `rows` rows, from a multiple of 4 on, lie in a line.
    pub(super) fn in_fours(&self, rows: usize) -> bool {
        self.line.is_multiple_of(4) || rows <= self.line
    }

    /// Number of values that `rows` rows lie in, those of the last line counted as if it were whole.
    pub(super) fn extent(&self, rows: usize) -> usize {
        let last = (rows - 1) / self.line * self.line_step + (rows.min(self.line) - 1) * self.step;
        last + (self.runs - 1) * self.run_step + self.run
    }
}

/// Extents of the padded rows that some rows of the output read.
pub(super) struct PaddedRows<'a> {
    shape: &'a DenseShape,
    /// Values of a padded row.
    row: usize,
    /// Most rows of the output at a time.
    most: usize,
}

impl<'a> PaddedRows<'a> {
    /// Extents of at most `values` values, for at most `rows` rows of the output, but at least for one.
    pub(super) fn new(shape: &'a DenseShape, values: usize, rows: usize) -> Self {
        let (out_height, out_width) = shape.output_size();
        let row = ((out_width - 1) * shape.stride + shape.kernel) * shape.in_channels;
        let most = (values / row).saturating_sub(shape.kernel) / shape.stride + 1;
        PaddedRows { shape, row, most: most.min(out_height).min(rows).max(1) }
    }

    /// Number of values that are kept at a time.
    pub(super) fn len(&self) -> usize {
        self.count(self.most) * self.row
    }

    /// Number of padded rows that `rows` rows of the output read.
    fn count(&self, rows: usize) -> usize {
        (rows - 1) * self.shape.stride + self.shape.kernel
    }

    /// The layout of the output's pixels, with runs of `run` values.
    pub(super) fn layout(&self, run: usize) -> Layout {
        let DenseShape { in_channels, kernel, stride, .. } = *self.shape;
        let (_, line) = self.shape.output_size();
        Layout { run, step: stride * in_channels, line, line_step: stride * self.row, runs: kernel, run_step: self.row }
    }

    /// Copies, with `copy`, what `rows` rows of the output from `first` on read. They lie in one image, `first` is
    /// counted over all images, and values outside the map are `border`.
    pub(super) fn fill<A, T: Copy>(
        &self,
        input: &[A],
        border: T,
        first: usize,
        rows: usize,
        padded: &mut [T],
        copy: impl Fn(&mut [T], &[A]),
    ) {
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
            copy(middle, &pixels[..middle.len()]);
            after.fill(border);
        }
    }

    /// Number of rows of the output from `first` on, at most to `end`, that are computed at a time.
    pub(super) fn rows_from(&self, first: usize, end: usize) -> usize {
        let (out_height, _) = self.shape.output_size();
        self.most.min(end - first).min(out_height - first % out_height)
    }
}

#[cfg(test)]
mod tests {
    use super::PaddedRows;
    use crate::Activation;
    use crate::dense_shape::DenseShape;

    fn shape(
        batch: usize,
        (height, width, in_channels): (usize, usize, usize),
        kernel: usize,
        stride: usize,
    ) -> DenseShape {
        let (depthwise, activation) = (false, Activation::Identity);
        DenseShape {
            batch,
            height,
            width,
            in_channels,
            out_channels: 1,
            kernel,
            stride,
            depthwise,
            activation,
            pool: false,
            eps: 0.0,
        }
    }

    #[test]
    fn every_pixel_finds_what_it_reads() {
        let maps = [(1, 1, 1), (1, 3, 2), (5, 2, 3), (7, 8, 1), (4, 9, 5)];
        let cases = maps.into_iter().flat_map(|map| (1..=7).flat_map(move |k| (1..=3).map(move |s| (map, k, s))));
        for (map, kernel, stride) in cases {
            let (height, width, channels) = map;
            let shape = shape(2, map, kernel, stride);
            let input: Vec<i32> = (1..=(2 * height * width * channels) as i32).collect();
            let (out_height, out_width) = shape.output_size();
            // From strips of one row to whole images, and from each row of the output.
            for (values, start) in [0, 60, 200, 10_000].into_iter().flat_map(|v| (0..out_height).map(move |y| (v, y))) {
                let padded = PaddedRows::new(&shape, values, 2 * out_height - start);
                let layout = padded.layout(kernel * channels);
                let mut strip = vec![-1; padded.len()];
                let (mut first, end) = (start, 2 * out_height);
                while first < end {
                    let rows = padded.rows_from(first, end);
                    padded.fill(&input, 0, first, rows, &mut strip, <[i32]>::copy_from_slice);
                    assert!(layout.extent(rows * out_width) <= strip.len());
                    for (row, run, value) in (0..rows * out_width).flat_map(|row| {
                        (0..kernel).flat_map(move |run| (0..kernel * channels).map(move |v| (row, run, v)))
                    }) {
                        let (line, x) = (first + row / out_width, row % out_width);
                        let (image, y) = (line / out_height, line % out_height * stride + run);
                        let y = y.checked_sub(kernel / 2).filter(|&y| y < height);
                        let x = (x * stride + value / channels).checked_sub(kernel / 2).filter(|&x| x < width);
                        let place = |(y, x)| ((image * height + y) * width + x) * channels + value % channels;
                        let expected = y.zip(x).map_or(0, |place_of| input[place(place_of)]);
                        let found = strip[layout.place(row) + run * layout.run_step + value];
                        assert_eq!(found, expected, "{map:?}, kernel {kernel}, stride {stride}, row {row} of {first}");
                    }
                    first += rows;
                }
            }
        }
    }
}
