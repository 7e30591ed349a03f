//! Depthwise convolution and its two gradients, over one slice of channels of one image at a time.
//!
//! A slice is [`SLICE`] channels (one cache line): it is copied, transformed as the caller wishes, into a zero-padded scratch
//! that stays in L2 for every size in use, so that the inner loops need no border cases and read whole lines. Weights lie as
//! `[slice][kernel * kernel][SLICE]`.

use super::buffers::Aligned;
use super::simd::{Kernel, Simd, dispatch};

/// Channels a slice.
pub(crate) const SLICE: usize = 16;

/// One value a channel of a slice.
pub(crate) type Lanes = [f32; SLICE];

/// Extents of a depthwise convolution of one image; padding is `kernel / 2`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub channels: usize,
    pub kernel: usize,
    pub stride: usize,
    pub height: usize,
    pub width: usize,
}

impl Shape {
    pub(crate) fn out_height(self) -> usize {
        self.height.div_ceil(self.stride)
    }

    pub(crate) fn out_width(self) -> usize {
        self.width.div_ceil(self.stride)
    }

    pub(crate) fn in_pixels(self) -> usize {
        self.height * self.width
    }

    pub(crate) fn out_pixels(self) -> usize {
        self.out_height() * self.out_width()
    }

    pub(crate) fn slices(self) -> usize {
        self.channels.div_ceil(SLICE)
    }

    /// Channels in slice `slice`.
    pub(crate) fn slice_width(self, slice: usize) -> usize {
        SLICE.min(self.channels - slice * SLICE)
    }

    pub(crate) fn padding(self) -> usize {
        self.kernel / 2
    }

    /// Width in pixels of the padded scratch.
    pub(crate) fn padded_width(self) -> usize {
        (self.width + 2 * self.padding()).max((self.out_width() - 1) * self.stride + self.kernel)
    }

    /// Floats in the padded scratch of one slice.
    pub(crate) fn padded_len(self) -> usize {
        let height = (self.height + 2 * self.padding()).max((self.out_height() - 1) * self.stride + self.kernel);
        height * self.padded_width() * SLICE
    }
}

/// `[channels, kernel * kernel]` into `[slice][kernel * kernel][SLICE]`, missing channels zero; `flip` turns each kernel by 180
/// degrees (for the input gradient).
pub(crate) fn pack_weights(weight: &[f32], channels: usize, taps: usize, flip: bool) -> Aligned {
    let mut packed = Aligned::zeros(channels.div_ceil(SLICE) * taps * SLICE);
    for (channel, kernel) in weight.chunks_exact(taps).enumerate() {
        let slice = &mut packed[channel / SLICE * taps * SLICE..];
        for (tap, &value) in kernel.iter().enumerate() {
            let tap = if flip { taps - 1 - tap } else { tap };
            slice[tap * SLICE + channel % SLICE] = value;
        }
    }
    packed
}

/// The inverse of [`pack_weights`] without flip, for gradients.
pub(crate) fn unpack_weights(packed: &[f32], channels: usize, taps: usize, weight: &mut [f32]) {
    for (channel, kernel) in weight.chunks_exact_mut(taps).enumerate().take(channels) {
        let slice = &packed[channel / SLICE * taps * SLICE..];
        for (tap, value) in kernel.iter_mut().enumerate() {
            *value = slice[tap * SLICE + channel % SLICE];
        }
    }
}

/// What one task reads of, or writes to, one image: some channels of each pixel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strip {
    /// Channels of the image.
    pub channels: usize,
    /// The first that count.
    pub first: usize,
    /// How many.
    pub width: usize,
    /// Height and width of the image.
    pub pixels: (usize, usize),
}

impl Strip {
    /// Strip of the `slice` of an image of `pixels`.
    pub(crate) fn new(shape: Shape, slice: usize, pixels: (usize, usize)) -> Self {
        Strip { channels: shape.channels, first: slice * SLICE, width: shape.slice_width(slice), pixels }
    }

    /// Floats from a value to its counterpart in the next task's strip: the next slice, or the next image's first. Strips are cache lines far
    /// apart, which the processor does not foresee, so that each task asks for the next one's.
    pub(crate) fn ahead(self) -> usize {
        if self.first + self.width < self.channels {
            SLICE
        } else {
            self.pixels.0 * self.pixels.1 * self.channels - self.first
        }
    }
}

/// Copies the strip of two images (or twice the same) into the scratch's interior, each pair of values through `value(lane, a, b)`; pixels
/// land `step` apart (2 spreads a strided gradient out). The border and unused lanes must be zero already and stay so.
#[inline(always)]
pub(crate) fn fill_padded<S: Simd>(
    images: [&[f32]; 2],
    strip: Strip,
    scratch: &mut [f32],
    padded_width: usize,
    padding: usize,
    step: usize,
    value: impl Fn(usize, f32, f32) -> f32,
) {
    // All loops of fixed length, but for odd numbers of channels.
    match strip.width {
        SLICE => fill::<S, SLICE>(images, strip, scratch, padded_width, padding, step, value),
        8 => fill::<S, 8>(images, strip, scratch, padded_width, padding, step, value),
        _ => fill::<S, 0>(images, strip, scratch, padded_width, padding, step, value),
    }
}

#[inline(always)]
fn fill<S: Simd, const WIDTH: usize>(
    images: [&[f32]; 2],
    strip: Strip,
    scratch: &mut [f32],
    padded_width: usize,
    padding: usize,
    step: usize,
    value: impl Fn(usize, f32, f32) -> f32,
) {
    let Strip { channels, first, width, pixels: (height, columns) } = strip;
    let width = if WIDTH == 0 { width } else { WIDTH };
    let (row, ahead) = (columns * channels, strip.ahead());
    let twice = std::ptr::eq(images[0], images[1]);
    for y in 0..height {
        let [a, b] = images.map(|image| image[y * row..][..row].chunks_exact(channels));
        let targets = scratch[((y * step + padding) * padded_width + padding) * SLICE..].chunks_mut(step * SLICE);
        for ((a, b), target) in a.zip(b).zip(targets) {
            let (a, b, target) = (&a[first..][..width], &b[first..][..width], &mut target[..width]);
            for lane in 0..width {
                target[lane] = value(lane, a[lane], b[lane]);
            }
            // SAFETY: the CPU has `S`; any address may be given.
            unsafe {
                S::prefetch(a.as_ptr().wrapping_add(ahead));
                if !twice {
                    S::prefetch(b.as_ptr().wrapping_add(ahead));
                }
            }
        }
    }
}

/// One output row of a convolution: `row[x] = sum over taps of scratch[y * stride + ky, x * stride + kx] * weight`.
///
/// `weights` is one packed slice, `row` holds `out_width` x [`SLICE`] floats. A kernel of its own, so that its many variants are
/// compiled once an instruction set and not again for each activation around it.
#[allow(clippy::too_many_arguments)] // one line of a convolution has this many extents
pub(crate) fn convolve_row(
    scratch: &[f32],
    padded_width: usize,
    weights: &[f32],
    kernel: usize,
    stride: usize,
    y: usize,
    out_width: usize,
    row: &mut [f32],
) {
    let last = ((y * stride + kernel - 1) * padded_width + (out_width - 1) * stride + kernel) * SLICE;
    assert!(scratch.len() >= last && weights.len() >= kernel * kernel * SLICE && row.len() >= out_width * SLICE);
    // SAFETY: extents checked above.
    unsafe {
        dispatch(Row {
            source: scratch.as_ptr().add(y * stride * padded_width * SLICE),
            padded_width,
            weights: weights.as_ptr(),
            kernel,
            stride,
            out_width,
            row: row.as_mut_ptr(),
        })
    }
}

struct Row {
    source: *const f32,
    padded_width: usize,
    weights: *const f32,
    kernel: usize,
    stride: usize,
    out_width: usize,
    row: *mut f32,
}

impl Kernel for Row {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Row { source, padded_width, weights, kernel, stride, out_width, row } = self;
        // SAFETY: tiles stay inside `out_width`, for which the caller checked the extents.
        unsafe {
            match (if S::ACCUMULATORS > 4 { kernel } else { 0 }, stride) {
                (3, 1) => tiles::<S, 3, 1>(source, padded_width, weights, kernel, out_width, row),
                (5, 1) => tiles::<S, 5, 1>(source, padded_width, weights, kernel, out_width, row),
                (7, 1) => tiles::<S, 7, 1>(source, padded_width, weights, kernel, out_width, row),
                // Other sizes: `0` means the run-time kernel size.
                (_, 1) => tiles::<S, 0, 1>(source, padded_width, weights, kernel, out_width, row),
                _ => tiles::<S, 0, 2>(source, padded_width, weights, kernel, out_width, row),
            }
        }
    }
}

#[inline(always)]
unsafe fn tiles<S: Simd, const K: usize, const STRIDE: usize>(
    source: *const f32,
    padded_width: usize,
    weights: *const f32,
    kernel: usize,
    out_width: usize,
    row: *mut f32,
) {
    let kernel = if K == 0 { kernel } else { K };
    let mut lane = 0;
    // SAFETY: as the caller's.
    unsafe {
        while lane < SLICE {
            let mut x = 0;
            while x + 8 <= out_width {
                tile::<S, STRIDE, 8>(source, padded_width, weights, kernel, x, lane, row);
                x += 8;
            }
            if x + 4 <= out_width {
                tile::<S, STRIDE, 4>(source, padded_width, weights, kernel, x, lane, row);
                x += 4;
            }
            if x + 2 <= out_width {
                tile::<S, STRIDE, 2>(source, padded_width, weights, kernel, x, lane, row);
                x += 2;
            }
            if x < out_width {
                tile::<S, STRIDE, 1>(source, padded_width, weights, kernel, x, lane, row);
            }
            lane += S::LANES;
        }
    }
}

/// `WIDE` output pixels of one vector of channels, summed in registers.
#[inline(always)]
unsafe fn tile<S: Simd, const STRIDE: usize, const WIDE: usize>(
    source: *const f32,
    padded_width: usize,
    weights: *const f32,
    kernel: usize,
    x: usize,
    lane: usize,
    row: *mut f32,
) {
    // SAFETY: as the caller's.
    unsafe {
        let mut sums = [S::splat(0.0); WIDE];
        for ky in 0..kernel {
            let line = source.add((ky * padded_width + x * STRIDE) * SLICE + lane);
            let taps = weights.add(ky * kernel * SLICE + lane);
            for kx in 0..kernel {
                let weight = S::load(taps.add(kx * SLICE));
                for (o, sum) in sums.iter_mut().enumerate() {
                    *sum = S::mul_add(S::load(line.add((o * STRIDE + kx) * SLICE)), weight, *sum);
                }
            }
        }
        for (o, &sum) in sums.iter().enumerate() {
            S::store(row.add((x + o) * SLICE + lane), sum);
        }
    }
}

/// Adds the weight gradient of one slice of one image: `gradient[ky, kx] += sum over pixels of input * output gradient`.
///
/// `input` is the padded input scratch; the output gradient lies in `outer` with `outer_width` pixels a row, its pixel
/// `(y, x)` at `(y * step + offset, x * step + offset)` (the scratch of the input gradient can so be read in place).
#[allow(clippy::too_many_arguments)] // two scratches with their geometry
pub(crate) fn accumulate_weight_gradient(
    input: &[f32],
    shape: Shape,
    outer: &[f32],
    outer_width: usize,
    offset: usize,
    step: usize,
    gradient: &mut [f32],
) {
    let (rows, columns) = (shape.out_height(), shape.out_width());
    assert!(input.len() >= shape.padded_len());
    assert!(
        outer.len() >= (((rows - 1) * step + offset) * outer_width + (columns - 1) * step + offset + 1) * SLICE
            && gradient.len() >= shape.kernel * shape.kernel * SLICE
    );
    // SAFETY: extents checked above.
    unsafe {
        dispatch(Gradient {
            input: input.as_ptr(),
            padded_width: shape.padded_width(),
            outer: outer.as_ptr(),
            outer_width,
            offset,
            step,
            stride: shape.stride,
            rows,
            columns,
            gradient: gradient.as_mut_ptr(),
            kernel: shape.kernel,
        })
    }
}

#[derive(Clone, Copy)]
struct Gradient {
    input: *const f32,
    padded_width: usize,
    outer: *const f32,
    outer_width: usize,
    offset: usize,
    step: usize,
    stride: usize,
    rows: usize,
    columns: usize,
    gradient: *mut f32,
    kernel: usize,
}

impl Kernel for Gradient {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's extents.
        unsafe {
            match if S::ACCUMULATORS > 4 { self.kernel } else { 0 } {
                // As many kernel rows at once as leave registers: more independent sums, fewer loads of the output gradient.
                3 => self.kernel_rows::<S, 3, 3>(),
                5 => self.kernel_rows::<S, 5, 2>(),
                7 => self.kernel_rows::<S, 7, 1>(),
                _ => self.any_kernel::<S>(),
            }
        }
    }
}

impl Gradient {
    #[inline(always)]
    unsafe fn kernel_rows<S: Simd, const K: usize, const ROWS: usize>(self) {
        let mut lane = 0;
        // SAFETY: as the caller's.
        unsafe {
            while lane < SLICE {
                let mut ky = 0;
                while ky + ROWS <= K {
                    self.rows_at::<S, K, ROWS>(ky, lane);
                    ky += ROWS;
                }
                while ky < K {
                    self.rows_at::<S, K, 1>(ky, lane);
                    ky += 1;
                }
                lane += S::LANES;
            }
        }
    }

    #[inline(always)]
    unsafe fn rows_at<S: Simd, const K: usize, const ROWS: usize>(self, ky: usize, lane: usize) {
        // SAFETY: as the caller's.
        unsafe {
            let mut sums = [[S::splat(0.0); K]; ROWS];
            for y in 0..self.rows {
                let outer =
                    self.outer.add(((y * self.step + self.offset) * self.outer_width + self.offset) * SLICE + lane);
                let input = self.input.add((y * self.stride + ky) * self.padded_width * SLICE + lane);
                for x in 0..self.columns {
                    let g = S::load(outer.add(x * self.step * SLICE));
                    let input = input.add(x * self.stride * SLICE);
                    for (row, sums) in sums.iter_mut().enumerate() {
                        for (kx, sum) in sums.iter_mut().enumerate() {
                            *sum = S::mul_add(S::load(input.add((row * self.padded_width + kx) * SLICE)), g, *sum);
                        }
                    }
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                for (kx, &sum) in sums.iter().enumerate() {
                    let place = self.gradient.add(((ky + row) * K + kx) * SLICE + lane);
                    S::store(place, S::add(S::load(place), sum));
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn any_kernel<S: Simd>(self) {
        // SAFETY: as the caller's.
        unsafe {
            for ky in 0..self.kernel {
                for kx in 0..self.kernel {
                    let mut lane = 0;
                    while lane < SLICE {
                        let mut sum = S::splat(0.0);
                        for y in 0..self.rows {
                            let outer = self
                                .outer
                                .add(((y * self.step + self.offset) * self.outer_width + self.offset) * SLICE + lane);
                            let input =
                                self.input.add(((y * self.stride + ky) * self.padded_width + kx) * SLICE + lane);
                            for x in 0..self.columns {
                                let g = S::load(outer.add(x * self.step * SLICE));
                                sum = S::mul_add(S::load(input.add(x * self.stride * SLICE)), g, sum);
                            }
                        }
                        let place = self.gradient.add((ky * self.kernel + kx) * SLICE + lane);
                        S::store(place, S::add(S::load(place), sum));
                        lane += S::LANES;
                    }
                }
            }
        }
    }
}
