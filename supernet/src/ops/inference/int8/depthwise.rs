//! Depthwise convolution of bytes, one vector of channels at a time.
//!
//! A word of the frame holds the bytes of four neighbouring pixels of one channel, so that a dot product sums four taps
//! of a row. The frame has the rows that one output row reads; input rows replace each other in it.

use super::affine::{Channels, Finish, Target};
use super::words;
use crate::ops::activation::Act;
use crate::ops::buffers::{Aligned, Buffer};
use crate::ops::depthwise::Shape;
use crate::ops::simd::{InstructionSet, Kernel, Simd, entry_points};
use std::marker::PhantomData;
use std::ops::Range;

/// A weight `[channels, kernel, kernel]` as words of four taps of a row: `[vector of channels][row][word][lane]`.
pub(super) fn pack(weight: &[i8], channels: usize, kernel: usize) -> Aligned {
    let lanes = InstructionSet::active().lanes();
    let words = kernel.div_ceil(4);
    let per_vector = kernel * words * lanes;
    let mut packed = Aligned::zeros(channels.div_ceil(lanes) * per_vector);
    let out = words::of_mut(&mut packed);
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

/// `target = activation(depthwise(input))` for some rows of the output; kernels have `K` rows and columns.
pub(super) struct DepthwiseRows<'a, 'o, const K: usize, A> {
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
    pub activation: PhantomData<A>,
}

/// Most sums that are computed at a time.
const WIDE: usize = 8;

impl<const K: usize, A: Act> Kernel for DepthwiseRows<'_, '_, K, A> {
    type Output = ();
    entry_points!(dot);

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let shape = self.shape;
        assert!(shape.kernel == K && matches!(K, 3 | 5 | 7) && (shape.stride == 1 || shape.stride == 2));
        let (out_height, out_width) = (shape.out_height(), shape.out_width());
        // Words of the frame's rows: one per pixel that starts a group of taps.
        let pixels = (out_width - 1) * shape.stride + 1 + (K - 1) / 4 * 4;
        let mut frame = Buffer::with_arbitrary_contents((K + 1) * pixels * S::LANES);
        let frame = words::of_mut(&mut frame);
        // The last row is the border above and below the map.
        let border = s.splat_i32(i32::from_le_bytes([self.zero_point; 4]));
        for words in frame[K * pixels * S::LANES..].chunks_exact_mut(S::LANES) {
            // SAFETY: the chunk holds `LANES` words.
            unsafe { s.store_i32(words.as_mut_ptr(), border) };
        }
        for first in (0..shape.channels).step_by(S::LANES) {
            let mut row = self.range.start;
            while row < self.range.end {
                let image = row / out_height;
                let end = self.range.end.min((image + 1) * out_height);
                self.rows_of_image(s, frame, pixels, first, image, row..end);
                row = end;
            }
        }
    }
}

impl<const K: usize, A: Act> DepthwiseRows<'_, '_, K, A> {
    /// The vector of channels from `first` on of the output rows `rows`, which lie in one image.
    #[inline(always)]
    fn rows_of_image<S: Simd>(
        &mut self,
        s: S,
        frame: &mut [i32],
        pixels: usize,
        first: usize,
        image: usize,
        rows: Range<usize>,
    ) {
        let shape = self.shape;
        let (out_height, out_width, padding) = (shape.out_height(), shape.out_width(), K / 2);
        let width = S::LANES.min(shape.channels - first);
        let input = &self.input[image * shape.in_pixels() * shape.channels..][..shape.in_pixels() * shape.channels];
        let mut filled = ((rows.start % out_height) * shape.stride).saturating_sub(padding);
        for row in rows {
            let y = row % out_height * shape.stride;
            // Input rows that this output row reads first.
            while filled < (y + K - padding).min(shape.height) {
                let line = &mut frame[filled % K * pixels * S::LANES..][..pixels * S::LANES];
                let values = &input[filled * shape.width * shape.channels..][..shape.width * shape.channels];
                fill_row(s, values, shape.channels, first..first + width, self.zero_point, padding, line);
                filled += 1;
            }
            // Place of each row of taps in the frame.
            let mut lines = [K * pixels * S::LANES; K];
            for (ky, line) in lines.iter_mut().enumerate() {
                if let Some(source) = (y + ky).checked_sub(padding).filter(|&source| source < shape.height) {
                    *line = source % K * pixels * S::LANES;
                }
            }
            let start = (row - self.range.start) * out_width;
            match out_width {
                8.. => self.tiles::<S, WIDE>(s, frame, pixels, lines, first, start),
                4.. => self.tiles::<S, 4>(s, frame, pixels, lines, first, start),
                2.. => self.tiles::<S, 2>(s, frame, pixels, lines, first, start),
                _ => self.tiles::<S, 1>(s, frame, pixels, lines, first, start),
            }
        }
    }

    /// An output row, `COUNT` pixels at a time; the last tile overlaps the one before it.
    #[inline(always)]
    fn tiles<S: Simd, const COUNT: usize>(
        &mut self,
        s: S,
        frame: &[i32],
        pixels: usize,
        lines: [usize; K],
        first: usize,
        start: usize,
    ) {
        let Shape { channels, stride, .. } = self.shape;
        let (out_width, words) = (self.shape.out_width(), K.div_ceil(4));
        let weight = &words::of(self.weight)[first * K * words..][..K * words * S::LANES];
        let bias = s.read_i32(&self.channels.bias()[first..][..S::LANES]);
        // The loads below rely on these extents.
        assert!(frame.len() >= (K + 1) * pixels * S::LANES && lines.iter().all(|&line| line <= K * pixels * S::LANES));
        assert!(pixels > (out_width - 1) * stride + (words - 1) * 4 && out_width >= COUNT);
        let mut sums = [0; WIDE * 16];
        let mut column = 0;
        while column < out_width {
            column = column.min(out_width - COUNT);
            let mut tile = [bias; COUNT];
            for (ky, &line) in lines.iter().enumerate() {
                for word in 0..words {
                    let taps = s.read_i32(&weight[(ky * words + word) * S::LANES..][..S::LANES]);
                    for (x, sum) in tile.iter_mut().enumerate() {
                        let place = line + ((column + x) * stride + 4 * word) * S::LANES;
                        // SAFETY: `column + x < out_width` and `word < words`, so the pixel lies below `pixels`, and
                        // its vector in the row of the frame that starts at `line`.
                        *sum = s.dot(*sum, unsafe { s.load_i32(frame.as_ptr().add(place)) }, taps);
                    }
                }
            }
            for (sum, out) in tile.into_iter().zip(sums.chunks_exact_mut(S::LANES)) {
                // SAFETY: the chunk holds `LANES` words.
                unsafe { s.store_i32(out.as_mut_ptr(), sum) };
            }
            Finish {
                multipliers: &self.channels.multipliers[first..][..S::LANES],
                residual: None,
                target: &mut self.target,
                start: (start + column) * channels + first,
                step: channels,
                width: S::LANES.min(channels - first),
            }
            .pixels::<S, A>(s, &sums, S::LANES, COUNT);
            column += COUNT;
        }
    }
}

/// Fills a row of the frame from the channels `channels` of a row of pixels. Word `p` holds the pixels `p - padding` to
/// `p - padding + 3`, with a padding of at most 3; those outside the row have the zero point.
#[inline(always)]
fn fill_row<S: Simd>(
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
    // The first word is complete with the pixel `3 - padding`.
    let mut pixels = row.chunks_exact(step);
    for _ in padding..3 {
        let next = pixels.next().map_or(border, |pixel| s.read_bytes(&pixel[channels.clone()]));
        word = s.shift_in(word, next);
    }
    for words in line.chunks_exact_mut(S::LANES) {
        let next = pixels.next().map_or(border, |pixel| s.read_bytes(&pixel[channels.clone()]));
        word = s.shift_in(word, next);
        // SAFETY: the chunk holds `LANES` words.
        unsafe { s.store_i32(words.as_mut_ptr(), word) };
    }
}
