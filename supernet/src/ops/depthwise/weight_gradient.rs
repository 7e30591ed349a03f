//! The weight gradient of a depthwise convolution, summed over a few rows of one image.

use super::{Frame, SLICE, Shape};
use crate::ops::simd::{Kernel, Simd, dispatch};
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
    let (kernel, stride, columns) = (shape.kernel, shape.stride, shape.out_width());
    assert!(rows.start < rows.end && rows.end <= output.map.0 && columns == output.map.1 && columns > 0);
    assert!((rows.end - 1) * stride + kernel <= input.extents().0 && (columns - 1) * stride + kernel <= input.row);
    assert!(gradient.len() >= shape.taps() * SLICE && width <= SLICE);
    // SAFETY: the output's map has the rows `rows` and `columns` pixels per row, and the input's frame has the rows and
    // pixels that their taps read, up to those of the last row and pixel (asserted above). `gradient` holds `kernel *
    // kernel` slices (asserted above) and is borrowed mutably.
    unsafe {
        Gradient {
            input: input.start(0),
            input_row: input.row * SLICE,
            filled: input.filled(),
            output: output.start(output.border).add(output.border * SLICE),
            output_row: output.row * SLICE,
            stride,
            rows,
            columns,
            gradient: gradient.as_mut_ptr(),
            kernel,
            lanes: width,
        }
        .run()
    }
}

#[derive(Clone)]
struct Gradient {
    input: *const f32,
    /// Floats from one input row to the next.
    input_row: usize,
    /// Input rows that may be nonzero.
    filled: Range<usize>,
    output: *const f32,
    output_row: usize,
    stride: usize,
    rows: Range<usize>,
    columns: usize,
    gradient: *mut f32,
    kernel: usize,
    lanes: usize,
}

/// The gradient specialised to kernel size `K` (0: not specialised), `ROWS` of its rows at a time.
struct KernelRows<const K: usize, const ROWS: usize>(Gradient);

impl<const K: usize, const ROWS: usize> Kernel for KernelRows<K, ROWS> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: only `Gradient::run` builds this kernel, with `K` equal to the kernel size or 0, and its contract
        // gives the extents; the CPU has `S` by this function's contract.
        unsafe {
            match K == 0 || S::ACCUMULATORS == 4 {
                true => self.0.any_kernel::<S>(),
                false => self.0.kernel_rows::<S, K, ROWS>(),
            }
        }
    }
}

impl Gradient {
    /// Adds the sums of all taps to the gradient.
    ///
    /// # Safety
    /// For each of `rows` and each column below `columns`, the [`SLICE`] output values and the input values at each tap
    /// must be readable; `kernel * kernel` slices of the gradient must be writable and accessed by no other thread;
    /// `lanes` is at most [`SLICE`].
    unsafe fn run(self) {
        match self.kernel {
            // As many kernel rows at once as registers allow: more independent sums (about eight are in flight at a
            // time) and fewer loads of the output gradient.
            3 => dispatch(KernelRows::<3, 3>(self)),
            5 => dispatch(KernelRows::<5, 3>(self)),
            7 => dispatch(KernelRows::<7, 2>(self)),
            _ => dispatch(KernelRows::<0, 1>(self)),
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
    ///
    /// # Safety
    /// The CPU has `S`, the contract of [`run`](Self::run) holds, and `K` is the kernel's size.
    #[inline(always)]
    unsafe fn kernel_rows<S: Simd, const K: usize, const ROWS: usize>(self) {
        let mut lane = 0;
        // SAFETY: rows of taps end at `K`. `lane` is a multiple of the vector's length below `lanes`, at most `SLICE`,
        // so the vector at `lane` lies inside a slice.
        unsafe {
            while lane < self.lanes {
                let mut ky = 0;
                while ky + ROWS <= K {
                    self.rows_at::<S, K, ROWS>(ky, lane);
                    ky += ROWS;
                }
                match K - ky {
                    0 => {}
                    1 => self.rows_at::<S, K, 1>(ky, lane),
                    _ => self.rows_at::<S, K, 2>(ky, lane),
                }
                lane += S::LANES;
            }
        }
    }

    /// Adds the `ROWS` rows of taps from `ky` on, for the channels of one vector.
    ///
    /// # Safety
    /// The CPU has `S`, the contract of [`run`](Self::run) holds, `K` is the kernel's size, `ky + ROWS <= K`, and the
    /// vector at `lane` lies inside a slice.
    #[inline(always)]
    unsafe fn rows_at<S: Simd, const K: usize, const ROWS: usize>(&self, ky: usize, lane: usize) {
        // SAFETY: `rows_seeing` returns a part of `rows`. By the contract the output slice at (`y`, `x`), the input
        // slice at each of its taps and the gradient slice of each tap exist, and the vector at `lane` lies inside each
        // of them.
        unsafe {
            let mut sums = [[S::splat(0.0); K]; ROWS];
            for y in self.rows_seeing(ky, ROWS) {
                let output = self.output.add(y * self.output_row + lane);
                let input = self.input.add((y * self.stride + ky) * self.input_row + lane);
                for x in 0..self.columns {
                    let g = S::load(output.add(x * SLICE));
                    let input = input.add(x * self.stride * SLICE);
                    for (row, sums) in sums.iter_mut().enumerate() {
                        for (kx, sum) in sums.iter_mut().enumerate() {
                            *sum = S::mul_add(S::load(input.add(row * self.input_row + kx * SLICE)), g, *sum);
                        }
                    }
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                for (kx, &sum) in sums.iter().enumerate() {
                    let target = self.gradient.add(((ky + row) * K + kx) * SLICE + lane);
                    S::store(target, S::add(S::load(target), sum));
                }
            }
        }
    }

    /// Adds all taps of a kernel of any size, one at a time.
    ///
    /// # Safety
    /// The CPU has `S`, and the contract of [`run`](Self::run) holds.
    #[inline(always)]
    unsafe fn any_kernel<S: Simd>(self) {
        // SAFETY: `rows_seeing` returns a part of `rows`, and `ky` and `kx` are below `kernel`. By the contract the
        // output slice at (`y`, `x`), the input slice at the tap and the gradient slice of the tap exist. `lane` is a
        // multiple of the vector's length below `lanes`, at most `SLICE`, so the vector at `lane` lies inside each of
        // them.
        unsafe {
            for ky in 0..self.kernel {
                for kx in 0..self.kernel {
                    let mut lane = 0;
                    while lane < self.lanes {
                        let mut sum = S::splat(0.0);
                        for y in self.rows_seeing(ky, 1) {
                            let output = self.output.add(y * self.output_row + lane);
                            let input = self.input.add((y * self.stride + ky) * self.input_row + kx * SLICE + lane);
                            for x in 0..self.columns {
                                let g = S::load(output.add(x * SLICE));
                                sum = S::mul_add(S::load(input.add(x * self.stride * SLICE)), g, sum);
                            }
                        }
                        let target = self.gradient.add((ky * self.kernel + kx) * SLICE + lane);
                        S::store(target, S::add(S::load(target), sum));
                        lane += S::LANES;
                    }
                }
            }
        }
    }
}
