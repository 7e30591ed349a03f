//! The weight gradient of a depthwise convolution, summed over a few rows of one image.

use super::{Frame, Shape};
use crate::simd::{Kernel, Simd, dispatch, entry_points};
use crate::slice::{Lane, Lanes};
use std::ops::Range;

/// Adds `gradient[ky, kx] += sum over the pixels of the output's rows of input * output gradient` to one packed slice
/// `gradient`; only the first `width` lanes are defined.
pub(crate) fn accumulate_weight_gradient(
    input: &Frame,
    output: &Frame,
    shape: Shape,
    rows: Range<usize>,
    width: usize,
    gradient: &mut [f32],
) {
    assert!(rows.end <= output.map.0 && shape.out_width() == output.map.1);
    Gradient {
        input: input.rows_from(0),
        input_row: input.row,
        filled: input.filled(),
        output: &output.rows_from(output.border)[output.border..],
        output_row: output.row,
        stride: shape.stride,
        rows,
        columns: shape.out_width(),
        gradient: gradient.as_chunks_mut().0,
        kernel: shape.kernel,
        lanes: width,
    }
    .run()
}

struct Gradient<'a> {
    input: &'a [Lanes],
    /// Pixels from one input row to the next.
    input_row: usize,
    /// Input rows that may be nonzero.
    filled: Range<usize>,
    output: &'a [Lanes],
    output_row: usize,
    stride: usize,
    rows: Range<usize>,
    columns: usize,
    gradient: &'a mut [Lanes],
    kernel: usize,
    lanes: usize,
}

/// The gradient specialised to kernel size `K` (0: not specialised), `ROWS` of its rows at a time. Only
/// [`Gradient::run`] builds one, with `K` equal to the kernel size or 0.
struct AccumulateKernelRows<'a, const K: usize, const ROWS: usize>(Gradient<'a>);

impl<const K: usize, const ROWS: usize> Kernel for AccumulateKernelRows<'_, K, ROWS> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match K == 0 || S::ACCUMULATORS == 4 {
            true => self.0.any_kernel(s),
            false => self.0.kernel_rows::<S, K, ROWS>(s),
        }
    }
}

impl Gradient<'_> {
    /// Adds the sums of all taps to the gradient.
    fn run(self) {
        let Gradient { stride, columns, kernel, .. } = self;
        assert!(self.rows.start < self.rows.end && columns > 0 && kernel > 0);
        // `rows_at` relies on these extents.
        let (last_row, last_column) = ((self.rows.end - 1) * stride + kernel - 1, (columns - 1) * stride + kernel - 1);
        assert!(self.input.len() > last_row * self.input_row + last_column);
        assert!(self.output.len() >= (self.rows.end - 1) * self.output_row + columns);
        assert!(self.gradient.len() >= kernel * kernel);
        match self.kernel {
            // As many kernel rows at once as registers allow: more independent sums (about eight are in flight at a
            // time) and fewer loads of the output gradient.
            3 => dispatch(AccumulateKernelRows::<3, 3>(self)),
            5 => dispatch(AccumulateKernelRows::<5, 3>(self)),
            7 => dispatch(AccumulateKernelRows::<7, 2>(self)),
            _ => dispatch(AccumulateKernelRows::<0, 1>(self)),
        }
    }

    /// Output rows that meet nonzero input through the `count` rows of taps from `ky` on.
    #[inline(always)]
    fn rows_seeing(&self, ky: usize, count: usize) -> Range<usize> {
        let first = self.filled.start.saturating_sub(ky + count - 1).div_ceil(self.stride);
        let end = self.filled.end.saturating_sub(ky).div_ceil(self.stride);
        self.rows.start.max(first)..self.rows.end.min(end)
    }

    /// Adds all taps of a kernel of size `K`, `ROWS` of its rows at a time.
    #[inline(always)]
    fn kernel_rows<S: Simd, const K: usize, const ROWS: usize>(mut self, s: S) {
        for lane in Lane::covering(s, self.lanes) {
            let mut ky = 0;
            // SAFETY: rows of taps end at `K`, which is the kernel's size, since only `run` builds the kernels.
            unsafe {
                while ky + ROWS <= K {
                    self.rows_at::<S, K, ROWS>(s, ky, lane);
                    ky += ROWS;
                }
                match K - ky {
                    0 => {}
                    1 => self.rows_at::<S, K, 1>(s, ky, lane),
                    _ => self.rows_at::<S, K, 2>(s, ky, lane),
                }
            }
        }
    }

    /// Adds the `ROWS` rows of taps from `ky` on, for the channels of one vector.
    ///
    /// # Safety
    /// `K` is the kernel's size, and `ky + ROWS <= K`; [`run`](Self::run) checked the extents.
    #[inline(always)]
    unsafe fn rows_at<S: Simd, const K: usize, const ROWS: usize>(&mut self, s: S, ky: usize, lane: Lane<S>) {
        let mut sums = [[s.splat(0.0); K]; ROWS];
        // SAFETY: `rows_seeing` returns a part of `rows`. `run` asserted that the input pixel at the last tap of the
        // last row and column, the last output pixel and the gradient of each tap exist; by the contract no index below
        // exceeds theirs.
        unsafe {
            for y in self.rows_seeing(ky, ROWS) {
                let output = self.output.as_ptr().add(y * self.output_row);
                let input = self.input.as_ptr().add((y * self.stride + ky) * self.input_row);
                for x in 0..self.columns {
                    let g = lane.load(&*output.add(x));
                    let input = input.add(x * self.stride);
                    for (row, sums) in sums.iter_mut().enumerate() {
                        for (kx, sum) in sums.iter_mut().enumerate() {
                            *sum = s.mul_add(lane.load(&*input.add(row * self.input_row + kx)), g, *sum);
                        }
                    }
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                for (kx, &sum) in sums.iter().enumerate() {
                    let target = self.gradient.get_unchecked_mut((ky + row) * K + kx);
                    lane.store(target, s.add(lane.load(target), sum));
                }
            }
        }
    }

    /// Adds all taps of a kernel of any size, one at a time.
    #[inline(always)]
    fn any_kernel<S: Simd>(self, s: S) {
        for tap in 0..self.kernel * self.kernel {
            let (ky, kx) = (tap / self.kernel, tap % self.kernel);
            for lane in Lane::covering(s, self.lanes) {
                let mut sum = s.splat(0.0);
                for y in self.rows_seeing(ky, 1) {
                    let output = &self.output[y * self.output_row..][..self.columns];
                    let input = &self.input[(y * self.stride + ky) * self.input_row + kx..];
                    for (g, x) in output.iter().zip(input.iter().step_by(self.stride)) {
                        sum = s.mul_add(lane.load(x), lane.load(g), sum);
                    }
                }
                let target = &mut self.gradient[tap];
                lane.store(target, s.add(lane.load(target), sum));
            }
        }
    }
}
