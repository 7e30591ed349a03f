//! Depthwise convolution of bytes, one vector of channels at a time.
//!
//! A word of the frame holds the bytes of four neighbouring pixels of one channel, so that a dot product sums four taps
//! of a row. The frame has the rows that one output row reads; input rows replace each other in it.

use super::affine::{Channels, Finish, Target};
use crate::ops::activation::Act;
use crate::ops::buffers::{Aligned, Buffer};
use crate::ops::depthwise::Shape;
use crate::ops::simd::{InstructionSet, Kernel, Simd, dispatch, entry_points};
use bytemuck::{cast_slice, cast_slice_mut};
use std::marker::PhantomData;
use std::ops::Range;

/// A weight `[channels, kernel, kernel]` as words of four taps of a row: `[vector of channels][row][word][lane]`.
pub(super) fn pack(weight: &[i8], channels: usize, kernel: usize) -> Aligned {
    let lanes = InstructionSet::active().lanes();
    let words = kernel.div_ceil(4);
    let per_vector = kernel * words * lanes;
    let mut packed = Aligned::zeros(channels.div_ceil(lanes) * per_vector);
    let out = cast_slice_mut::<f32, i32>(&mut packed);
    for (channel, filter) in weight.chunks_exact(kernel * kernel).enumerate() {
        for (row, taps) in filter.chunks_exact(kernel).enumerate() {
            for (word, taps) in taps.chunks(4).enumerate() {
                let byte = |i: usize| taps.get(i).copied().unwrap_or(0) as u8;
                let place = channel / lanes * per_vector + (row * words + word) * lanes + channel % lanes;
                out[place] = i32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)]);
            }
        }
    }
    packed
}

/// Output pixels whose sums are computed before they are finished: they stay in L1.
const CHUNK: usize = 64;

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
}

impl DepthwiseRows<'_, '_> {
    /// Computes `target = activation(depthwise(input))`; kernels have `K` rows and columns.
    pub(super) fn run<const K: usize, A: Act>(mut self) {
        // All channels of a band before the next one, since a cache line holds several vectors of channels.
        let row = self.shape.stride * self.shape.width * self.shape.channels;
        let rows = (BAND / row).max(4 * K);
        for start in self.range.clone().step_by(rows) {
            self.band::<K, A>(start..self.range.end.min(start + rows));
        }
    }

    /// Computes the output rows `band` of the range.
    fn band<const K: usize, A: Act>(&mut self, band: Range<usize>) {
        let shape = self.shape;
        assert!(shape.kernel == K && matches!(K, 3 | 5 | 7) && (shape.stride == 1 || shape.stride == 2));
        let lanes = InstructionSet::active().lanes();
        let (out_height, out_width) = (shape.out_height(), shape.out_width());
        let rows_at_a_time = (CHUNK / out_width).max(2).min(out_height);
        let pixels = words_per_row::<K>(shape);
        let mut frame = Buffer::with_arbitrary_contents((K + 3) * pixels * lanes);
        let frame = cast_slice_mut::<f32, i32>(&mut frame);
        // The last row is the border above and below the map.
        frame[(K + 2) * pixels * lanes..].fill(i32::from_le_bytes([self.zero_point; 4]));
        let mut sums = Buffer::with_arbitrary_contents(rows_at_a_time * out_width * lanes);
        let sums = cast_slice_mut::<f32, i32>(&mut sums);
        for first in (0..shape.channels).step_by(lanes) {
            let (width, taps) = (lanes.min(shape.channels - first), K * K.div_ceil(4));
            let mut row = band.start;
            let mut filled = 0;
            while row < band.end {
                let (image, y) = (row / out_height, row % out_height);
                let rows = rows_at_a_time.min(band.end - row).min(out_height - y);
                let values = shape.in_pixels() * shape.channels;
                if y == 0 || row == band.start {
                    filled = (y * shape.stride).saturating_sub(K / 2);
                }
                filled = dispatch(Sums::<K> {
                    weight: &cast_slice::<f32, i32>(self.weight)[first * taps..][..taps * lanes],
                    bias: &self.channels.bias()[first..][..lanes],
                    shape,
                    input: &self.input[image * values..][..values],
                    zero_point: self.zero_point,
                    channels: first..first + width,
                    rows: y..y + rows,
                    pixels,
                    frame,
                    filled,
                    sums,
                });
                dispatch(Finish::<A> {
                    sums: &sums[..rows * out_width * lanes],
                    multipliers: &self.channels.multipliers[first..][..lanes],
                    residual: None,
                    target: &mut self.target,
                    start: (row - self.range.start) * out_width * shape.channels + first,
                    step: shape.channels,
                    width,
                    activation: PhantomData,
                });
                row += rows;
            }
        }
    }
}

/// Sums of one vector of channels of some output rows of an image.
struct Sums<'a, const K: usize> {
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
    /// Input rows that were filled so far.
    filled: usize,
    /// `[rows, out_width]`
    sums: &'a mut [i32],
}

impl<const K: usize> Kernel for Sums<'_, K> {
    /// Input rows that are filled now.
    type Output = usize;
    entry_points!(dot);

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> usize {
        let Shape { channels: step, stride, height, width, .. } = self.shape;
        let (padding, line) = (K / 2, self.pixels * S::LANES);
        let out_width = self.shape.out_width();
        // The loads of `tiles` rely on these extents.
        assert!(self.frame.len() >= (K + 3) * line && self.pixels >= words_per_row::<K>(self.shape));
        let mut row = self.rows.start;
        while row < self.rows.end {
            // Rows at stride 2 have few taps in common.
            let high = if stride == 1 { (self.rows.end - row).min(2) } else { 1 };
            let y = row * stride;
            // Input rows that these output rows read first.
            while self.filled < (y + (high - 1) * stride + K - padding).min(height) {
                let values = &self.input[self.filled * width * step..][..width * step];
                let words = &mut self.frame[self.filled % (K + 2) * line..][..line];
                let channels = self.channels.clone();
                match stride {
                    1 => fill_row::<S, 1>(s, values, step, channels, self.zero_point, padding, words),
                    _ => fill_row::<S, 2>(s, values, step, channels, self.zero_point, padding, words),
                }
                self.filled += 1;
            }
            // Place of each row of taps in the frame.
            let place = |ky: usize| match (y + ky).checked_sub(padding).filter(|&source| source < height) {
                Some(source) => source % (K + 2) * line,
                None => (K + 2) * line,
            };
            let lines: [usize; ROWS] = std::array::from_fn(place);
            let start = (row - self.rows.start) * out_width * S::LANES;
            // SAFETY: `run` asserted the extents of the frame, in which the lines are whole rows.
            unsafe {
                match (stride, high, out_width) {
                    (1, 2, 4..) => self.tiles::<S, 1, 2, 4>(s, lines, start),
                    (1, 2, 2..) => self.tiles::<S, 1, 2, 2>(s, lines, start),
                    (1, 2, _) => self.tiles::<S, 1, 2, 1>(s, lines, start),
                    (1, _, 4..) => self.tiles::<S, 1, 1, 4>(s, lines, start),
                    (1, ..) => self.tiles::<S, 1, 1, 1>(s, lines, start),
                    (_, _, 8..) => self.tiles::<S, 2, 1, 8>(s, lines, start),
                    (_, _, 4..) => self.tiles::<S, 2, 1, 4>(s, lines, start),
                    _ => self.tiles::<S, 2, 1, 1>(s, lines, start),
                }
            }
            row += high;
        }
        self.filled
    }
}

/// Most rows of taps that two output rows read.
const ROWS: usize = 9;

impl<const K: usize> Sums<'_, K> {
    /// `HIGH` output rows, `COUNT` pixels of each at a time; the last tile overlaps the one before it. Two rows share
    /// the loads of the taps that both read.
    ///
    /// # Safety
    /// `frame` has a row of `pixels` vectors at each of the `lines`, and `pixels` are as many as `run` asserts.
    /// `STRIDE` is the convolution's, and the output at least `COUNT` pixels wide.
    #[inline(always)]
    unsafe fn tiles<S: Simd, const STRIDE: usize, const HIGH: usize, const COUNT: usize>(
        &mut self,
        s: S,
        lines: [usize; ROWS],
        start: usize,
    ) {
        let (out_width, words) = (self.shape.out_width(), K.div_ceil(4));
        let (frame, bias) = (self.frame.as_ptr(), s.read_i32(self.bias));
        let weight = &self.weight[..K * K.div_ceil(4) * S::LANES];
        let mut rows = self.sums[start..][..HIGH * out_width * S::LANES].chunks_exact_mut(out_width * S::LANES);
        let mut rows: [&mut [i32]; HIGH] = std::array::from_fn(|_| rows.next().unwrap_or_default());
        let mut column = 0;
        while column < out_width {
            column = column.min(out_width - COUNT);
            // Checked before the sums: the compiler would move these behind the checks, one chain after the other.
            let outputs = rows.each_mut().map(|row| &mut row[column * S::LANES..][..COUNT * S::LANES]);
            let mut tile = [[bias; COUNT]; HIGH];
            for (ky, &line) in lines.iter().enumerate().take(K + (HIGH - 1) * STRIDE) {
                for word in 0..words {
                    let place = line + (column + 4 / STRIDE * word) * S::LANES;
                    // SAFETY: `column + x < out_width` for all `x < COUNT`, and `word < words`, so the words lie below
                    // `pixels`, and their vectors in the row of the frame that starts at `line`.
                    unsafe {
                        add_word::<S, K, STRIDE, HIGH, COUNT>(s, &mut tile, weight, (ky, word), frame.add(place))
                    };
                }
            }
            for (output, tile) in outputs.into_iter().zip(tile) {
                output.chunks_exact_mut(S::LANES).zip(tile).for_each(|(output, sum)| s.write_i32(output, sum));
            }
            column += COUNT;
        }
    }
}

/// Adds the products of `COUNT` vectors of pixels with word `word` of the taps of row `ky` to the sums of those output
/// rows that read it.
///
/// # Safety
/// `pixels` points to `COUNT` vectors.
#[inline(always)]
unsafe fn add_word<S: Simd, const K: usize, const STRIDE: usize, const HIGH: usize, const COUNT: usize>(
    s: S,
    tile: &mut [[S::I; COUNT]; HIGH],
    weight: &[i32],
    (ky, word): (usize, usize),
    pixels: *const i32,
) {
    for x in 0..COUNT {
        // SAFETY: `x < COUNT`.
        let pixels = unsafe { s.load_i32(pixels.add(x * S::LANES)) };
        for (high, sums) in tile.iter_mut().enumerate() {
            let Some(ky) = ky.checked_sub(high * STRIDE).filter(|&ky| ky < K) else { continue };
            let taps = s.read_i32(&weight[(ky * K.div_ceil(4) + word) * S::LANES..][..S::LANES]);
            sums[x] = s.dot(sums[x], pixels, taps);
        }
    }
}

/// Words in a row of the frame, per channel: one for each output pixel, and those of the last pixel's other taps.
fn words_per_row<const K: usize>(shape: Shape) -> usize {
    shape.out_width() + (K - 1) / 4 * 4 / shape.stride
}

/// Fills a row of the frame from the channels `channels` of a row of pixels. Word `p` holds the four pixels from
/// `p * STRIDE - padding` on, with a padding of at most 3; those outside the row have the zero point.
#[inline(always)]
fn fill_row<S: Simd, const STRIDE: usize>(
    s: S,
    row: &[u8],
    step: usize,
    channels: Range<usize>,
    zero_point: u8,
    padding: usize,
    line: &mut [i32],
) {
    let border = s.splat_i32(zero_point.into());
    let mut word = s.splat_i32(i32::from_le_bytes([zero_point; 4]));
    let mut pixels = row.chunks_exact(step);
    // The first word begins in the border.
    let mut new = 4 - padding;
    for words in line.chunks_exact_mut(S::LANES) {
        for _ in 0..new {
            let next = match pixels.next() {
                Some(pixel) => s.read_bytes(&pixel[channels.clone()]),
                None => border,
            };
            word = s.shift_in(word, next);
        }
        new = STRIDE;
        s.write_i32(words, word);
    }
}
