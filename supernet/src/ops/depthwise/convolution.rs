//! Depthwise convolution of a few rows, and the gradient at its input.
//!
//! The input gradient is a convolution too, with the kernel rotated by 180 degrees; at stride 2 it is one convolution
//! per parity of a pixel's row and column, each with every other tap.

use super::{Frame, SLICE, Shape};
use crate::ops::simd::{Kernel, Simd, dispatch};
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
    let (kernel, stride, columns) = (shape.kernel, shape.stride, shape.out_width());
    assert!((stride == 1 || stride == 2) && rows.start < rows.end && columns > 0 && width <= SLICE);
    let (last_row, last_column) = ((rows.end - 1) * stride + kernel, (columns - 1) * stride + kernel);
    assert!(last_row <= input.extents().0 && last_column <= input.extents().1);
    assert!(weights.len() >= shape.taps() * SLICE && output.len() >= rows.len() * columns * SLICE);
    let start = rows.start * stride;
    // SAFETY: the last output row reads source rows below `last_row`, the last output pixel source pixels below
    // `last_column`, and the frame holds both (asserted above). `weights` holds `kernel * kernel` slices and `output`
    // `rows * columns` (asserted above); `output` is borrowed mutably.
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
    assert!(rows.end <= shape.height && gradient.len() >= rows.len() * shape.width * SLICE);
    assert!(flipped.len() >= shape.taps() * SLICE && (stride == 1 || stride == 2) && width <= SLICE);
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
            assert!(source_row + rows_here - 1 + taps.0 <= output.extents().0);
            assert!(source_column + columns - 1 + taps.1 <= output.extents().1);
            // SAFETY: the frame holds the rows and pixels that the taps of the last row and pixel read (asserted
            // above). Taps are every `stride`-th from (`tap_row`, `tap_column`) on, below `kernel`, hence inside
            // `flipped`; output pixels are every `stride`-th from (`row`, `column`) on, below `rows.end` and
            // `shape.width`, hence inside `gradient` (both lengths asserted above). `rows_here` and `columns` are above
            // zero.
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

/// The range of rows counted from `start`.
fn relative(rows: Range<usize>, start: usize) -> Range<isize> {
    rows.start as isize - start as isize..rows.end as isize - start as isize
}

/// `output[y, x] = sum over taps of source[y * stride + ky, x * stride + kx] * weights[ky, kx]`.
#[derive(Clone)]
struct Convolution {
    source: *const f32,
    /// Floats from one source row to the next.
    source_row: usize,
    stride: usize,
    /// Source rows that may be nonzero.
    filled: Range<isize>,
    weights: *const f32,
    /// Floats from one row of taps to the next, and from one tap to the next.
    weight_steps: (usize, usize),
    taps: (usize, usize),
    output: *mut f32,
    /// Floats from one output row to the next, and from one output pixel to the next.
    output_steps: (usize, usize),
    rows: usize,
    columns: usize,
    lanes: usize,
}

/// The convolution specialised to one stride (1 or 2) and `TAPS` taps per row (0: not specialised).
///
/// Each is a kernel of its own, so that it is compiled once per instruction set rather than once per surrounding
/// activation, and does no set-up work of other cases.
struct Rows<const STRIDE: usize, const TAPS: usize>(Convolution);

impl<const STRIDE: usize, const TAPS: usize> Kernel for Rows<STRIDE, TAPS> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: only `Convolution::run` builds this kernel, with the convolution's own stride and taps, and its
        // contract gives the extents for all rows and columns; the CPU has `S` by this function's contract.
        unsafe { self.0.tiles::<S, STRIDE, TAPS>() }
    }
}

impl Convolution {
    /// Computes all rows and columns.
    ///
    /// # Safety
    /// For each row below `rows` and column below `columns` (at least one), the [`SLICE`] source values at each tap and
    /// the weights of each tap must be readable, and the [`SLICE`] output values writable and accessed by no other
    /// thread. The stride is 1 or 2, and `lanes` at most [`SLICE`].
    unsafe fn run(self) {
        // The lengths in use have unrolled loops over taps; the loop that counts them is much slower.
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

    /// Computes tiles of eight sums where the map is wide enough, since about eight additions are in flight at a time;
    /// the last tile of a row overlaps the one before it. Rows have `TAPS` taps (0: any number).
    ///
    /// # Safety
    /// The CPU has `S`, and the contract of [`run`](Self::run) holds.
    #[inline(always)]
    unsafe fn tiles<S: Simd, const STRIDE: usize, const TAPS: usize>(self) {
        // SAFETY: each tile is at most `columns` wide. `lane` is a multiple of the vector's length below `lanes`, at
        // most `SLICE`, so the vector at `lane` lies inside a slice.
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

    /// Covers the rows from `row` on as far as whole tiles reach, and returns the next row.
    ///
    /// # Safety
    /// The CPU has `S`, the contract of [`run`](Self::run) holds, `WIDE <= self.columns`, and the vector at `lane` lies
    /// inside a slice.
    #[inline(always)]
    unsafe fn cover<S: Simd, const STRIDE: usize, const TAPS: usize, const HIGH: usize, const WIDE: usize>(
        &self,
        mut row: usize,
        lane: usize,
    ) -> usize {
        // SAFETY: tiles of `HIGH` rows end at `rows` at most; tiles of `WIDE` columns end at `columns` at most, the
        // last one exactly there; `ky` is clipped to the rows of taps.
        unsafe {
            while row + HIGH <= self.rows {
                // Rows of taps that meet nonzero source rows.
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

    /// Computes `HIGH x WIDE` output pixels of one vector of channels, summed in registers.
    ///
    /// # Safety
    /// The CPU has `S`, the contract of [`run`](Self::run) holds for the tile's rows and columns and the rows of taps
    /// `ky`, and the vector at `lane` lies inside a slice.
    #[inline(always)]
    unsafe fn tile<S: Simd, const STRIDE: usize, const TAPS: usize, const HIGH: usize, const WIDE: usize>(
        &self,
        row: usize,
        column: usize,
        lane: usize,
        ky: Range<usize>,
    ) {
        // SAFETY: by the contract the output slice at each pixel of the tile, the source slice at each of its taps and
        // the weight slice of each tap exist, and the vector at `lane` lies inside each of them.
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
