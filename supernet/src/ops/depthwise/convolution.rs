//! The convolution of a few rows, and the gradient at its input, which is a convolution too: with the kernel turned by 180 degrees, and at stride 2
//! one for each of the four parities of a pixel's place, which see every other tap.

use super::{Frame, SLICE, Shape};
use crate::ops::simd::{Kernel, Simd, dispatch};
use std::ops::Range;

/// Output rows `rows` of the convolution of `input` with one packed slice of weights, into `output` `[rows, out_width, SLICE]`; only the first
/// `width` lanes count.
pub(crate) fn convolve_rows(
    input: &Frame,
    shape: Shape,
    weights: &[f32],
    rows: Range<usize>,
    width: usize,
    output: &mut [f32],
) {
    let (kernel, stride, columns) = (shape.kernel, shape.stride, shape.out_width());
    assert!((stride == 1 || stride == 2) && rows.start < rows.end && columns > 0 && width <= SLICE);
    let (last_row, last_column) = ((rows.end - 1) * stride + kernel, (columns - 1) * stride + kernel);
    assert!(last_row <= input.extents().0 && last_column <= input.extents().1);
    assert!(weights.len() >= shape.taps() * SLICE && output.len() >= rows.len() * columns * SLICE);
    let start = rows.start * stride;
    // SAFETY: the frame holds the rows below `last_row` and the pixels below `last_column` (checked above), which are the last that the taps of the last row
    // and of the last pixel read; weights hold `kernel * kernel` slices and the output `rows * columns`, borrowed mutably.
    unsafe {
        Convolution {
            source: input.start(start),
            source_row: input.row * SLICE,
            stride,
            filled: relative(input.filled(), start),
            weights: weights.as_ptr(),
            weight_steps: (kernel * SLICE, SLICE),
            taps: (kernel, kernel),
            output: output.as_mut_ptr(),
            output_steps: (columns * SLICE, SLICE),
            rows: rows.len(),
            columns,
            lanes: width,
        }
        .run()
    }
}

/// Rows `rows` of the gradient at the input, from that at the `output` and one slice of weights packed flipped, into `gradient`
/// `[rows, width, SLICE]`; only the first `width` lanes count.
pub(crate) fn input_gradient_rows(
    output: &Frame,
    shape: Shape,
    flipped: &[f32],
    rows: Range<usize>,
    width: usize,
    gradient: &mut [f32],
) {
    let (kernel, stride, padding) = (shape.kernel, shape.stride, shape.padding());
    assert!(rows.end <= shape.height && gradient.len() >= rows.len() * shape.width * SLICE);
    assert!(flipped.len() >= shape.taps() * SLICE && (stride == 1 || stride == 2) && width <= SLICE);
    // Pixels whose place has this parity see the taps of this parity (of the flipped kernel, whose size is odd), from this pixel of the output on.
    let parity = |place: usize| (place + padding) % stride;
    let first = |place: usize| (place + parity(place) + output.border * stride - padding) / stride;
    let count = |places: &Range<usize>| places.len().div_ceil(stride);
    for row in rows.start..rows.end.min(rows.start + stride) {
        for column in 0..shape.width.min(stride) {
            let of_parity = (row..rows.end, column..shape.width);
            let (rows_here, columns) = (count(&of_parity.0), count(&of_parity.1));
            let (tap_row, tap_column) = (parity(row), parity(column));
            let taps = ((kernel - tap_row).div_ceil(stride), (kernel - tap_column).div_ceil(stride));
            let (source_row, source_column) = (first(row), first(column));
            assert!(source_row + rows_here - 1 + taps.0 <= output.extents().0);
            assert!(source_column + columns - 1 + taps.1 <= output.extents().1);
            // SAFETY: the frame holds the rows and pixels that the taps of the last row and pixel read (checked above). Taps are every `stride`-th from
            // (`tap_row`, `tap_column`) on, below `kernel` in both directions, and rows and columns every `stride`-th from (`row`, `column`) on, below
            // `rows.end` and `shape.width`: inside the weights and the gradient, whose lengths are checked above. Both counts are above zero.
            unsafe {
                Convolution {
                    source: output.start(source_row).add(source_column * SLICE),
                    source_row: output.row * SLICE,
                    stride: 1,
                    filled: relative(output.filled(), source_row),
                    weights: flipped.as_ptr().add((tap_row * kernel + tap_column) * SLICE),
                    weight_steps: (stride * kernel * SLICE, stride * SLICE),
                    taps,
                    output: gradient.as_mut_ptr().add(((row - rows.start) * shape.width + column) * SLICE),
                    output_steps: (stride * shape.width * SLICE, stride * SLICE),
                    rows: rows_here,
                    columns,
                    lanes: width,
                }
                .run()
            }
        }
    }
}

/// The rows counted from `start`.
fn relative(rows: Range<usize>, start: usize) -> Range<isize> {
    rows.start as isize - start as isize..rows.end as isize - start as isize
}

/// `output[y, x] = sum over taps of source[y * stride + ky, x * stride + kx] * weights[ky, kx]`.
#[derive(Clone)]
struct Convolution {
    source: *const f32,
    /// Floats from one row to the next.
    source_row: usize,
    stride: usize,
    /// Source rows that are not zero.
    filled: Range<isize>,
    weights: *const f32,
    /// Floats from one row of taps to the next, and from one tap to the next.
    weight_steps: (usize, usize),
    taps: (usize, usize),
    output: *mut f32,
    /// Floats from one row to the next, and from one pixel to the next.
    output_steps: (usize, usize),
    rows: usize,
    columns: usize,
    lanes: usize,
}

/// It at one stride, 1 or 2, with rows of so many taps, any number if that is 0. Kernels of their own, so that they are compiled once an instruction set
/// and not again for each activation around them, and that none computes at its start what others need.
struct Rows<const STRIDE: usize, const TAPS: usize>(Convolution);

impl<const STRIDE: usize, const TAPS: usize> Kernel for Rows<STRIDE, TAPS> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: only `Convolution::run` makes this, with `STRIDE` and `TAPS` as its own, and its contract holds for the rows and columns below `rows` and
        // `columns`; the CPU has `S` by this function's contract.
        unsafe { self.0.tiles::<S, STRIDE, TAPS>() }
    }
}

impl Convolution {
    /// Writes all rows and columns.
    ///
    /// # Safety
    /// For each row below `rows` and column below `columns` (one at least), the [`SLICE`] source values at each tap and the weights of each tap must be
    /// readable, and [`SLICE`] output values writable by this thread alone. The stride is 1 or 2, and `lanes` at most [`SLICE`].
    unsafe fn run(self) {
        // Loops over taps are written out for the lengths in use: counted ones take half as long again.
        match (self.stride, self.taps.1) {
            (1, 1) => dispatch(Rows::<1, 1>(self)),
            (1, 2) => dispatch(Rows::<1, 2>(self)),
            (1, 3) => dispatch(Rows::<1, 3>(self)),
            (1, 4) => dispatch(Rows::<1, 4>(self)),
            (1, 5) => dispatch(Rows::<1, 5>(self)),
            (1, 7) => dispatch(Rows::<1, 7>(self)),
            (1, _) => dispatch(Rows::<1, 0>(self)),
            (_, 3) => dispatch(Rows::<2, 3>(self)),
            (_, 5) => dispatch(Rows::<2, 5>(self)),
            (_, 7) => dispatch(Rows::<2, 7>(self)),
            _ => dispatch(Rows::<2, 0>(self)),
        }
    }

    /// Tiles of eight sums where the map is wide enough, since as many additions are under way at a time; the last ones overlap. Rows of `TAPS` taps,
    /// of any number if that is 0.
    ///
    /// # Safety
    /// The CPU has `S`, and [`run`](Self::run)'s contract holds.
    #[inline(always)]
    unsafe fn tiles<S: Simd, const STRIDE: usize, const TAPS: usize>(self) {
        // SAFETY: tiles are no wider than `columns` and begin at multiples of the vector's length below `lanes`, so that vectors lie inside a slice.
        unsafe {
            let mut lane = 0;
            while lane < self.lanes {
                match self.columns {
                    8.. => self.cover::<S, STRIDE, TAPS, 1, 8>(0, lane),
                    4.. => {
                        let pairs = self.cover::<S, STRIDE, TAPS, 2, 4>(0, lane);
                        self.cover::<S, STRIDE, TAPS, 1, 4>(pairs, lane)
                    }
                    2.. => self.cover::<S, STRIDE, TAPS, 1, 2>(0, lane),
                    _ => self.cover::<S, STRIDE, TAPS, 1, 1>(0, lane),
                };
                lane += S::LANES;
            }
        }
    }

    /// Covers the rows from `row` on as far as whole tiles reach; the next row.
    ///
    /// # Safety
    /// The CPU has `S`, [`run`](Self::run)'s contract holds, `WIDE <= self.columns`, and a vector from `lane` on lies inside a slice.
    #[inline(always)]
    unsafe fn cover<S: Simd, const STRIDE: usize, const TAPS: usize, const HIGH: usize, const WIDE: usize>(
        &self,
        mut row: usize,
        lane: usize,
    ) -> usize {
        // SAFETY: tiles of `HIGH` rows end at `rows` at most, and those of `WIDE` columns at `columns`, the last one exactly; taps are a part of all.
        unsafe {
            while row + HIGH <= self.rows {
                // Rows of taps that see something.
                let top = (row * STRIDE) as isize;
                let last = ((row + HIGH - 1) * STRIDE) as isize;
                let ky = (self.filled.start - last).max(0) as usize
                    ..((self.filled.end - top).max(0) as usize).min(self.taps.0);
                let mut column = 0;
                while column + WIDE < self.columns {
                    self.tile::<S, STRIDE, TAPS, HIGH, WIDE>(row, column, lane, ky.clone());
                    column += WIDE;
                }
                self.tile::<S, STRIDE, TAPS, HIGH, WIDE>(row, self.columns - WIDE, lane, ky);
                row += HIGH;
            }
            row
        }
    }

    /// `HIGH x WIDE` output pixels of one vector of channels, summed in registers.
    ///
    /// # Safety
    /// The CPU has `S`, [`run`](Self::run)'s contract holds for the tile's rows and columns and the rows of taps `ky`, and a vector from `lane` on lies
    /// inside a slice.
    #[inline(always)]
    unsafe fn tile<S: Simd, const STRIDE: usize, const TAPS: usize, const HIGH: usize, const WIDE: usize>(
        &self,
        row: usize,
        column: usize,
        lane: usize,
        ky: Range<usize>,
    ) {
        // SAFETY: by the contract, the slices at (row + y, column + x) of the output, at each tap of it in the source, and of each tap of the weights exist, and
        // a vector from `lane` on lies inside each.
        unsafe {
            let taps = if TAPS == 0 { self.taps.1 } else { TAPS };
            let mut sums = [[S::splat(0.0); WIDE]; HIGH];
            for ky in ky {
                let source = self.source.add((row * STRIDE + ky) * self.source_row + column * STRIDE * SLICE + lane);
                let weights = self.weights.add(ky * self.weight_steps.0 + lane);
                for kx in 0..taps {
                    let weight = S::load(weights.add(kx * self.weight_steps.1));
                    for (y, sums) in sums.iter_mut().enumerate() {
                        let source = source.add(y * STRIDE * self.source_row + kx * SLICE);
                        for (x, sum) in sums.iter_mut().enumerate() {
                            *sum = S::mul_add(S::load(source.add(x * STRIDE * SLICE)), weight, *sum);
                        }
                    }
                }
            }
            for (y, sums) in sums.iter().enumerate() {
                let output = self.output.add((row + y) * self.output_steps.0 + column * self.output_steps.1 + lane);
                for (x, &sum) in sums.iter().enumerate() {
                    S::store(output.add(x * self.output_steps.1), sum);
                }
            }
        }
    }
}
