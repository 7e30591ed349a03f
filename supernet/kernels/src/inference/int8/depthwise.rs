//! Depthwise convolution of bytes, one vector of channels at a time.
//!
//! A word of the frame holds neighbouring pixels of one channel, as many as a word has values, so that a dot product
//! sums as many taps of a row. The frame has the rows that two output rows read; input rows replace each other in it.

use super::affine::Channels;
use super::ends::{End, Ending, Target};
use crate::Activation;
use crate::buffers::{Aligned, Buffer};
use crate::depthwise::Shape;
use crate::simd::{InstructionSet, Kernel, Simd, dispatch, entry_points};
use bytemuck::{cast_slice, cast_slice_mut};
use std::ops::Range;

/// A weight `[channels, kernel, kernel]` as words of taps of a row: `[vector of channels][row][word][lane]`.
pub(super) fn pack(weight: &[i8], channels: usize, kernel: usize) -> Aligned {
    let (lanes, values) = (InstructionSet::active().lanes(), InstructionSet::active().word_values());
    let words = kernel.div_ceil(values);
    let per_vector = kernel * words * lanes;
    let mut packed = Aligned::zeros(channels.div_ceil(lanes) * per_vector);
    let out = cast_slice_mut::<f32, i32>(&mut packed);
    for (channel, filter) in weight.chunks_exact(kernel * kernel).enumerate() {
        for (row, taps) in filter.chunks_exact(kernel).enumerate() {
            for (word, taps) in taps.chunks(values).enumerate() {
                let tap = |i: usize| taps.get(i).copied().unwrap_or(0);
                let place = channel / lanes * per_vector + (row * words + word) * lanes + channel % lanes;
                out[place] = word_of(tap);
            }
        }
    }
    packed
}

/// The word of the active instruction set that holds the values.
fn word_of(value: impl Fn(usize) -> i8) -> i32 {
    let values = InstructionSet::active().word_values();
    let bits = 32 / values;
    let low = |value: i8| i32::from(value) as u32 & (u32::MAX >> (32 - bits));
    (0..values).fold(0, |word, i| word | low(value(i)) << (bits * i)) as i32
}

/// Bytes of input that stay in L2.
const BAND: usize = 128 << 10;

/// A depthwise convolution for some rows of the output.
pub(super) struct DepthwiseRows<'a, 'o> {
    /// The packed weight.
    pub weight: &'a Aligned,
    pub channels: &'a Channels,
    pub shape: Shape,
    pub input: &'a [u8],
    pub zero_point: u8,
    /// Rows of the output, counted over all images.
    pub range: Range<usize>,
    /// Output of the range.
    pub target: Target<'o>,
    pub activation: Activation,
}

impl DepthwiseRows<'_, '_> {
    /// Computes `target = activation(depthwise(input))`; kernels have `K` rows and columns.
    pub(super) fn run<const K: usize>(mut self) {
        // All channels of a band before the next one, since a cache line holds several vectors of channels.
        let row = self.shape.stride * self.shape.width * self.shape.channels;
        let rows = (BAND / row).max(4 * K);
        for start in self.range.clone().step_by(rows) {
            self.band::<K>(start..self.range.end.min(start + rows));
        }
    }

    /// Computes the output rows `band` of the range.
    fn band<const K: usize>(&mut self, band: Range<usize>) {
        let shape = self.shape;
        assert!(shape.kernel == K && matches!(K, 3 | 5 | 7) && (shape.stride == 1 || shape.stride == 2));
        let lanes = InstructionSet::active().lanes();
        let (out_height, out_width) = (shape.out_height(), shape.out_width());
        let values = InstructionSet::active().word_values();
        let pixels = words_per_row::<K>(shape, values);
        let mut frame = Buffer::with_arbitrary_contents((K + 3) * pixels * lanes);
        let frame = cast_slice_mut::<f32, i32>(&mut frame);
        // The last row is the border above and below the map.
        frame[(K + 2) * pixels * lanes..].fill(border(self.zero_point, values));
        for first in (0..shape.channels).step_by(lanes) {
            let (width, taps) = (lanes.min(shape.channels - first), K * K.div_ceil(values));
            let mut row = band.start;
            while row < band.end {
                let (image, y) = (row / out_height, row % out_height);
                let rows = (band.end - row).min(out_height - y);
                let values = shape.in_pixels() * shape.channels;
                let start = (row - self.range.start) * out_width * shape.channels + first;
                let end = End {
                    target: self.target.from(start),
                    step: shape.channels,
                    width,
                    multipliers: &self.channels.multipliers[first..][..lanes],
                    residual: None,
                    activation: self.activation,
                };
                dispatch(Convolution::<K> {
                    weight: &cast_slice::<f32, i32>(self.weight)[first * taps..][..taps * lanes],
                    bias: &self.channels.bias()[first..][..lanes],
                    shape,
                    input: &self.input[image * values..][..values],
                    zero_point: self.zero_point,
                    channels: first..first + width,
                    rows: y..y + rows,
                    pixels,
                    frame,
                    filled: (y * shape.stride).saturating_sub(K / 2),
                    end,
                });
                row += rows;
            }
        }
    }
}

/// One vector of channels of some output rows of an image.
struct Convolution<'a, const K: usize> {
    /// The vector's words of taps.
    weight: &'a [i32],
    bias: &'a [i32],
    shape: Shape,
    /// The image.
    input: &'a [u8],
    zero_point: u8,
    channels: Range<usize>,
    /// Output rows.
    rows: Range<usize>,
    /// Words per row of the frame and channel.
    pixels: usize,
    /// `K + 2` input rows, row `y` at place `y % (K + 2)`, and the border.
    frame: &'a mut [i32],
    /// The next input row that the frame gets.
    filled: usize,
    /// Of the sums `[rows, out_width]`.
    end: End<'a>,
}

impl<const K: usize> Kernel for Convolution<'_, K> {
    type Output = ();
    entry_points!(dot);

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let Shape { stride, height, .. } = self.shape;
        let (padding, line) = (K / 2, self.pixels * S::LANES);
        let out_width = self.shape.out_width();
        // The accesses of `tiles` rely on these extents.
        assert!(self.frame.len() >= (K + 3) * line && self.pixels >= words_per_row::<K>(self.shape, S::WORD_VALUES));
        assert!(self.weight.len() >= K * K.div_ceil(S::WORD_VALUES) * S::LANES);
        let end = &mut std::mem::take(&mut self.end).ending(s, self.rows.len() * out_width);
        let mut row = self.rows.start;
        while row < self.rows.end {
            // Rows at stride 2 have few taps in common.
            let high = if stride == 1 { (self.rows.end - row).min(2) } else { 1 };
            let y = row * stride;
            // Input rows that these output rows read first.
            let needed = (y + (high - 1) * stride + K - padding).min(height);
            while self.filled < needed {
                match (stride, needed - self.filled) {
                    (1, 1) => self.fill_rows::<S, 1, 1>(s),
                    (1, _) => self.fill_rows::<S, 1, 2>(s),
                    (_, 1) => self.fill_rows::<S, 2, 1>(s),
                    _ => self.fill_rows::<S, 2, 2>(s),
                }
            }
            // Place of each row of taps in the frame.
            let place = |ky: usize| match (y + ky).checked_sub(padding).filter(|&source| source < height) {
                Some(source) => source % (K + 2) * line,
                None => (K + 2) * line,
            };
            let lines: [usize; INPUT_ROWS] = std::array::from_fn(place);
            let start = (row - self.rows.start) * out_width;
            // SAFETY: `run` asserted the extents of the frame, in which the lines are whole rows, and of the end.
            unsafe {
                match (stride, high, out_width) {
                    (1, 2, 4..) => self.tiles::<S, 1, 2, 4>(s, lines, start, end),
                    (1, 2, 2..) => self.tiles::<S, 1, 2, 2>(s, lines, start, end),
                    (1, 2, _) => self.tiles::<S, 1, 2, 1>(s, lines, start, end),
                    (1, _, 4..) => self.tiles::<S, 1, 1, 4>(s, lines, start, end),
                    (1, ..) => self.tiles::<S, 1, 1, 1>(s, lines, start, end),
                    (_, _, 8..) => self.tiles::<S, 2, 1, 8>(s, lines, start, end),
                    (_, _, 4..) => self.tiles::<S, 2, 1, 4>(s, lines, start, end),
                    _ => self.tiles::<S, 2, 1, 1>(s, lines, start, end),
                }
            }
            row += high;
        }
    }
}

/// Most input rows that output rows computed at a time read: two of a kernel of 7.
const INPUT_ROWS: usize = 8;

impl<const K: usize> Convolution<'_, K> {
    /// Fills the next `ROWS` rows of the frame, side by side, since each word of a row waits for the one before it.
    ///
    /// Word `p` holds the pixels from `p * STRIDE - K / 2` on; those outside the row have the zero point.
    #[inline(always)]
    fn fill_rows<S: Simd, const STRIDE: usize, const ROWS: usize>(&mut self, s: S) {
        let Shape { channels: step, width, .. } = self.shape;
        let (line, count) = (self.pixels * S::LANES, self.channels.len());
        let input = &self.input[self.filled * width * step..][..ROWS * width * step];
        let place = |row: usize| (self.filled + row) % (K + 2) * line;
        assert!(count > 0 && self.channels.end <= step && (0..ROWS).all(|row| place(row) + line <= self.frame.len()));
        let input = input[self.channels.start..].as_ptr();
        let frame = self.frame.as_mut_ptr();
        let frame: [_; ROWS] = std::array::from_fn(|row| frame.wrapping_add(place(row)));
        // SAFETY: the rows of the input and of the frame exist, as do the channels of each pixel; `pixel < width` and
        // `word < self.pixels` below.
        let load =
            |row: usize, pixel: usize| unsafe { s.load_bytes_up_to(input.add((row * width + pixel) * step), count) };
        // SAFETY: as for `load`.
        let store = |row: usize, word: usize, pixels| unsafe { s.store_i32(frame[row].add(word * S::LANES), pixels) };
        let (words, outside) = (self.pixels, s.splat_i32(self.zero_point.into()));
        let mut held = [s.splat_i32(border(self.zero_point, S::WORD_VALUES)); ROWS];
        // The first word begins in the border; `left` pixels of the border follow where it has room for no more.
        let (mut word, mut pixel, mut new) = (0, 0, S::WORD_VALUES.saturating_sub(K / 2));
        let mut left = (K / 2).saturating_sub(S::WORD_VALUES);
        while word < words {
            // Words of which all pixels exist.
            while new == STRIDE && left == 0 && pixel + STRIDE <= width && word < words {
                for (row, held) in held.iter_mut().enumerate() {
                    for next in 0..STRIDE {
                        *held = s.shift_in(*held, load(row, pixel + next));
                    }
                    store(row, word, *held);
                }
                (word, pixel) = (word + 1, pixel + STRIDE);
            }
            if word == words {
                break;
            }
            let before = left.min(new);
            for (row, held) in held.iter_mut().enumerate() {
                for _ in 0..before {
                    *held = s.shift_in(*held, outside);
                }
                for pixel in pixel..pixel + new - before {
                    *held = s.shift_in(*held, if pixel < width { load(row, pixel) } else { outside });
                }
                store(row, word, *held);
            }
            (word, pixel, left, new) = (word + 1, pixel + new - before, left - before, STRIDE);
        }
        self.filled += ROWS;
    }

    /// `HIGH` output rows, `COUNT` pixels of each at a time; the last tile overlaps the one before it. Two rows share
    /// the loads of the taps that both read.
    ///
    /// # Safety
    /// `frame` has a row of `pixels` vectors at each of the `lines`, and `pixels` are as many as `run` asserts.
    /// `STRIDE` is the convolution's, 1 if `HIGH` is 2, and the output at least `COUNT` pixels wide. The end has `HIGH`
    /// rows of pixels from `start` on.
    #[inline(always)]
    unsafe fn tiles<S: Simd, const STRIDE: usize, const HIGH: usize, const COUNT: usize>(
        &self,
        s: S,
        lines: [usize; INPUT_ROWS],
        start: usize,
        end: &mut Ending<S, 1>,
    ) {
        let (out_width, bias) = (self.shape.out_width(), s.read_i32(self.bias));
        let mut column = 0;
        while column < out_width {
            column = column.min(out_width - COUNT);
            let mut tile = [[[bias; 1]; COUNT]; HIGH];
            let place = |ky: usize| lines[ky] + column * S::LANES;
            // SAFETY: the contract gives the lines, and `column + x < out_width` for all `x < COUNT`. The pixels lie in
            // rows of `out_width`, of those that the end has.
            unsafe {
                if HIGH == 1 {
                    for ky in 0..K {
                        self.add_taps::<S, STRIDE, 0, 1, HIGH, COUNT>(s, &mut tile, ky, place(ky));
                    }
                    end.write(s, start + column, tile[0]);
                } else {
                    self.add_taps::<S, STRIDE, 0, 1, HIGH, COUNT>(s, &mut tile, 0, place(0));
                    for ky in 1..K {
                        self.add_taps::<S, STRIDE, 0, 2, HIGH, COUNT>(s, &mut tile, ky, place(ky));
                    }
                    self.add_taps::<S, STRIDE, 1, 2, HIGH, COUNT>(s, &mut tile, K, place(K));
                    end.write(s, start + column, tile[0]);
                    end.write(s, start + out_width + column, tile[1]);
                }
            }
            column += COUNT;
        }
    }

    /// Adds the products of `COUNT` pixels from `place` of the frame on to the sums of the output rows from `FROM` to
    /// `TO`, for which they are row `ky`, and one less for each further row.
    ///
    /// # Safety
    /// `frame` has the words of these pixels, and `run` asserted that there are all taps.
    #[inline(always)]
    unsafe fn add_taps<
        S: Simd,
        const STRIDE: usize,
        const FROM: usize,
        const TO: usize,
        const HIGH: usize,
        const COUNT: usize,
    >(
        &self,
        s: S,
        tile: &mut [[[S::I; 1]; COUNT]; HIGH],
        ky: usize,
        place: usize,
    ) {
        let words = K.div_ceil(S::WORD_VALUES);
        let (frame, weight) = (self.frame.as_ptr().wrapping_add(place), self.weight.as_ptr());
        // Counted loops over three axes, which the compiler unrolls.
        #[allow(clippy::needless_range_loop)]
        for word in 0..words {
            for x in 0..COUNT {
                // SAFETY: the contract gives the words, and `ky - row` is a row of taps.
                unsafe {
                    let pixels = s.load_i32(frame.add((x + S::WORD_VALUES / STRIDE * word) * S::LANES));
                    for row in FROM..TO {
                        let taps = s.load_i32(weight.add(((ky - row) * words + word) * S::LANES));
                        tile[row][x][0] = s.dot(tile[row][x][0], pixels, taps);
                    }
                }
            }
        }
    }
}

/// Words in a row of the frame, per channel: one for each output pixel, and those of the last pixel's other taps.
fn words_per_row<const K: usize>(shape: Shape, values: usize) -> usize {
    shape.out_width() + (K - 1) / values * values / shape.stride
}

/// A word of `values` pixels of the border.
fn border(zero_point: u8, values: usize) -> i32 {
    match values {
        4 => i32::from_le_bytes([zero_point; 4]),
        _ => i32::from(zero_point) << 16 | i32::from(zero_point),
    }
}
