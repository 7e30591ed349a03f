//! Depthwise convolution of a few rows, and the gradient at its input.
//!
//! The input gradient is a convolution too, with the kernel rotated by 180 degrees; at stride 2 it is one convolution
//! per parity of a pixel's row and column, each with every other tap.

use super::{Frame, Shape};
use crate::simd::{Kernel, Simd, dispatch, entry_points};
use crate::slice::{Lane, Lanes};
use std::ops::Range;

/// Computes output rows `rows` of the convolution of `input` with one packed slice of weights into `output` `[rows,
/// out_width, SLICE]`; only the first `width` lanes are defined.
pub(crate) fn convolve_rows(
    input: &Frame,
    shape: Shape,
    weights: &[f32],
    rows: Range<usize>,
    width: usize,
    output: &mut [f32],
) {
    let start = rows.start * shape.stride;
    convolve_window(input.rows_from(start), input.row, start, shape, weights, rows.len(), width, output);
}

/// [`convolve_rows`] of `rows` output rows from a source that starts with row `start` of the map, counted with the
/// border of zeros, and has `source_row` pixels per row.
#[allow(clippy::too_many_arguments)] // the source with its extents, the weights, and the output with its extents
pub(crate) fn convolve_window(
    source: &[Lanes],
    source_row: usize,
    start: usize,
    shape: Shape,
    weights: &[f32],
    rows: usize,
    width: usize,
    output: &mut [f32],
) {
    let (kernel, stride, columns) = (shape.kernel, shape.stride, shape.out_width());
    Convolution {
        source,
        source_row,
        stride,
        filled: relative(shape.padding()..shape.padding() + shape.height, start),
        weights: weights.as_chunks().0,
        weight_steps: (kernel, 1),
        taps: (kernel, kernel),
        output: output.as_chunks_mut().0,
        output_steps: (columns, 1),
        rows,
        columns,
        lanes: width,
    }
    .run()
}

/// Computes rows `rows` of the input gradient into `gradient` `[rows, width, SLICE]`, from the gradient at the `output`
/// and one slice of weights packed with `flip`; only the first `width` lanes are defined.
pub(crate) fn input_gradient_rows(
    output: &Frame,
    shape: Shape,
    flipped: &[f32],
    rows: Range<usize>,
    width: usize,
    gradient: &mut [f32],
) {
    let (kernel, stride, padding) = (shape.kernel, shape.stride, shape.padding());
    let (flipped, gradient) = (flipped.as_chunks().0, gradient.as_chunks_mut().0);
    assert!(stride == 1 || stride == 2);
    // Input pixels of one parity see the taps of one parity (of the flipped kernel, whose size is odd): the first such
    // tap, the first output pixel that it meets, and the number of pixels.
    let parity = |position: usize| (position + padding) % stride;
    let first = |position: usize| (position + parity(position) + output.border * stride - padding) / stride;
    let count = |positions: &Range<usize>| positions.len().div_ceil(stride);
    for row in rows.start..rows.end.min(rows.start + stride) {
        for column in 0..shape.width.min(stride) {
            let of_parity = (row..rows.end, column..shape.width);
            let (rows_here, columns) = (count(&of_parity.0), count(&of_parity.1));
            let (tap_row, tap_column) = (parity(row), parity(column));
            let taps = ((kernel - tap_row).div_ceil(stride), (kernel - tap_column).div_ceil(stride));
            let (source_row, source_column) = (first(row), first(column));
            // A kernel smaller than the stride skips pixels, whose gradients are zero.
            let (source, weights, taps) = match taps.0 * taps.1 {
                0 => (&[][..], &[][..], (0, 0)),
                _ => {
                    let source = &output.rows_from(source_row)[source_column..];
                    (source, &flipped[tap_row * kernel + tap_column..], taps)
                }
            };
            Convolution {
                source,
                source_row: output.row,
                stride: 1,
                filled: relative(output.filled(), source_row),
                weights,
                weight_steps: (stride * kernel, stride),
                taps,
                output: &mut gradient[(row - rows.start) * shape.width + column..],
                output_steps: (stride * shape.width, stride),
                rows: rows_here,
                columns,
                lanes: width,
            }
            .run()
        }
    }
}

/// The range of rows counted from `start`.
fn relative(rows: Range<usize>, start: usize) -> Range<isize> {
    rows.start as isize - start as isize..rows.end as isize - start as isize
}

/// Pixels of a row that a tile of eight pixels reads with 7 taps at stride 2.
const MOST_PIXELS: usize = 7 * 2 + 7;

/// `output[y, x] = sum over taps of source[y * stride + ky, x * stride + kx] * weights[ky, kx]`, for at least one row
/// and column.
struct Convolution<'a> {
    source: &'a [Lanes],
    /// Pixels from one source row to the next.
    source_row: usize,
    stride: usize,
    /// Source rows that may be nonzero.
    filled: Range<isize>,
    weights: &'a [Lanes],
    /// Slices from one row of taps to the next, and from one tap to the next.
    weight_steps: (usize, usize),
    /// Rows of taps and taps per row; both zero where no tap meets the source.
    taps: (usize, usize),
    output: &'a mut [Lanes],
    /// Pixels from one output row to the next, and from one output pixel to the next.
    output_steps: (usize, usize),
    rows: usize,
    columns: usize,
    lanes: usize,
}

/// The convolution specialised to one stride (1 or 2) and `TAPS` taps per row (0: not specialised).
///
/// Each is a kernel of its own, so that it is compiled once per instruction set rather than once per surrounding
/// activation, and does no set-up work of other cases. Only [`Convolution::run`] builds one.
struct ConvolveRows<'a, const STRIDE: usize, const TAPS: usize>(Convolution<'a>);

impl<const STRIDE: usize, const TAPS: usize> Kernel for ConvolveRows<'_, STRIDE, TAPS> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.0.tiles::<S, STRIDE, TAPS>(s)
    }
}

impl Convolution<'_> {
    /// Computes all rows and columns.
    fn run(self) {
        let Convolution { stride, taps, rows, columns, .. } = self;
        assert!((stride == 1 || stride == 2) && rows > 0 && columns > 0);
        let last = |row_step: usize, column_step: usize| (rows - 1) * row_step + (columns - 1) * column_step;
        // `tile` relies on these extents.
        assert!(self.output.len() > last(self.output_steps.0, self.output_steps.1));
        if taps != (0, 0) {
            let last_tap = |row_step: usize, column_step: usize| (taps.0 - 1) * row_step + (taps.1 - 1) * column_step;
            assert!(self.source.len() > last(stride * self.source_row, stride) + last_tap(self.source_row, 1));
            assert!(self.weights.len() > last_tap(self.weight_steps.0, self.weight_steps.1));
        }
        // The lengths in use have unrolled loops over taps; the loop that counts them is much slower.
        match (self.stride, self.taps.1) {
            (1, 1) => dispatch(ConvolveRows::<1, 1>(self)),
            (1, 2) => dispatch(ConvolveRows::<1, 2>(self)),
            (1, 3) => dispatch(ConvolveRows::<1, 3>(self)),
            (1, 4) => dispatch(ConvolveRows::<1, 4>(self)),
            (1, 5) => dispatch(ConvolveRows::<1, 5>(self)),
            (1, 7) => dispatch(ConvolveRows::<1, 7>(self)),
            (1, _) => dispatch(ConvolveRows::<1, 0>(self)),
            (_, 3) => dispatch(ConvolveRows::<2, 3>(self)),
            (_, 5) => dispatch(ConvolveRows::<2, 5>(self)),
            (_, 7) => dispatch(ConvolveRows::<2, 7>(self)),
            _ => dispatch(ConvolveRows::<2, 0>(self)),
        }
    }

    /// Computes tiles of eight sums where the map is wide enough, since about eight additions are in flight at a time;
    /// the last tile of a row overlaps the one before it. Rows have `TAPS` taps (0: any number).
    #[inline(always)]
    fn tiles<S: Simd, const STRIDE: usize, const TAPS: usize>(mut self, s: S) {
        for lane in Lane::covering(s, self.lanes) {
            match self.columns {
                8.. => self.cover::<S, STRIDE, TAPS, 1, 8>(s, 0, lane),
                4.. => {
                    let pairs = self.cover::<S, STRIDE, TAPS, 2, 4>(s, 0, lane);
                    self.cover::<S, STRIDE, TAPS, 1, 4>(s, pairs, lane)
                }
                2.. => self.cover::<S, STRIDE, TAPS, 1, 2>(s, 0, lane),
                _ => self.cover::<S, STRIDE, TAPS, 1, 1>(s, 0, lane),
            };
        }
    }

    /// Covers the rows from `row` on as far as whole tiles reach, and returns the next row. Tiles must not be wider
    /// than the map.
    #[inline(always)]
    fn cover<S: Simd, const STRIDE: usize, const TAPS: usize, const HIGH: usize, const WIDE: usize>(
        &mut self,
        s: S,
        mut row: usize,
        lane: Lane<S>,
    ) -> usize {
        let last_tile = self.columns - WIDE;
        while row + HIGH <= self.rows {
            // Rows of taps that meet nonzero source rows.
            let top = (row * STRIDE) as isize;
            let last = ((row + HIGH - 1) * STRIDE) as isize;
            let ky =
                (self.filled.start - last).max(0) as usize..((self.filled.end - top).max(0) as usize).min(self.taps.0);
            let mut column = 0;
            // SAFETY: the tile's rows end at `rows`, and its columns at `columns`: those of the last tile exactly,
            // those of the others before. `ky` is clipped to the rows of taps. `STRIDE` and `TAPS` are the
            // convolution's own, since only `run` builds the kernels.
            unsafe {
                while column < last_tile {
                    self.tile::<S, STRIDE, TAPS, HIGH, WIDE>(s, row, column, lane, ky.clone());
                    column += WIDE;
                }
                self.tile::<S, STRIDE, TAPS, HIGH, WIDE>(s, row, last_tile, lane, ky);
            }
            row += HIGH;
        }
        row
    }

    /// Computes `HIGH x WIDE` output pixels of one vector of channels, summed in registers.
    ///
    /// # Safety
    /// The tile's rows and columns lie below `rows` and `columns`, and `ky` below the rows of taps; `STRIDE` is the
    /// stride, and `TAPS` the taps per row or 0; [`run`](Self::run) checked the extents.
    #[inline(always)]
    unsafe fn tile<S: Simd, const STRIDE: usize, const TAPS: usize, const HIGH: usize, const WIDE: usize>(
        &mut self,
        s: S,
        row: usize,
        column: usize,
        lane: Lane<S>,
        ky: Range<usize>,
    ) {
        let taps = if TAPS == 0 { self.taps.1 } else { TAPS };
        let mut sums = [[s.splat(0.0); WIDE]; HIGH];
        // SAFETY: `run` asserted that the source pixel at the last tap of the last row and column, the last tap's
        // weights and the last output pixel exist; by the contract no index below exceeds theirs.
        unsafe {
            for ky in ky {
                let source = self.source.as_ptr().add((row * STRIDE + ky) * self.source_row + column * STRIDE);
                let weights = self.weights.as_ptr().add(ky * self.weight_steps.0);
                if TAPS > 0 && S::ACCUMULATORS == 24 {
                    // With many registers each pixel is loaded once for all taps of the row that meet it.
                    for (y, sums) in sums.iter_mut().enumerate() {
                        let source = source.add(y * STRIDE * self.source_row);
                        let mut pixels = [s.splat(0.0); MOST_PIXELS];
                        for (x, pixel) in pixels.iter_mut().enumerate().take((WIDE - 1) * STRIDE + TAPS) {
                            *pixel = lane.load(&*source.add(x));
                        }
                        for kx in 0..TAPS {
                            let weight = lane.load(&*weights.add(kx * self.weight_steps.1));
                            add_tap::<S, STRIDE, WIDE>(s, sums, &pixels, kx, weight);
                        }
                    }
                    continue;
                }
                for kx in 0..taps {
                    let weight = lane.load(&*weights.add(kx * self.weight_steps.1));
                    for (y, sums) in sums.iter_mut().enumerate() {
                        let source = source.add(y * STRIDE * self.source_row + kx);
                        for (x, sum) in sums.iter_mut().enumerate() {
                            *sum = s.mul_add(lane.load(&*source.add(x * STRIDE)), weight, *sum);
                        }
                    }
                }
            }
            for (y, sums) in sums.iter().enumerate() {
                let start = (row + y) * self.output_steps.0 + column * self.output_steps.1;
                let output = self.output.as_mut_ptr().add(start);
                for (x, &sum) in sums.iter().enumerate() {
                    lane.store(&mut *output.add(x * self.output_steps.1), sum);
                }
            }
        }
    }
}

/// Adds the products of a tap with the pixels that it meets, of those of its row.
#[inline(always)]
fn add_tap<S: Simd, const STRIDE: usize, const WIDE: usize>(
    s: S,
    sums: &mut [S::V; WIDE],
    pixels: &[S::V; MOST_PIXELS],
    kx: usize,
    weight: S::V,
) {
    for (x, sum) in sums.iter_mut().enumerate() {
        *sum = s.mul_add(pixels[x * STRIDE + kx], weight, *sum);
    }
}
