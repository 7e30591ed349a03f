//! Depthwise convolution and its two gradients, one slice of channels of one image at a time.
//!
//! A slice is [`SLICE`] channels, one cache line. The slice's map lies in a [`Frame`], a scratch buffer with a border
//! of zeros that stays in the caches for every size in use, so that inner loops have no border cases and read whole
//! lines. A frame is filled a few rows ahead of where it is read. Weights are laid out as `[slice][kernel *
//! kernel][SLICE]`.
//!
//! | file | concern |
//! | --- | --- |
//! | `convolution` | the convolution of some rows, and the gradient at its input |
//! | `weight_gradient` | the gradient at the weight |

mod convolution;
mod weight_gradient;

pub(crate) use convolution::{convolve_rows, convolve_window, input_gradient_rows};
pub(crate) use weight_gradient::accumulate_weight_gradient;

use super::buffers::{Aligned, Buffer};
use super::simd::Simd;
use super::slice::{Lanes, SLICE};
use std::ops::Range;

/// Pixels processed at a time: few enough that they and their intermediate values stay in L1.
pub(crate) const CHUNK: usize = 64;

/// Software prefetch of the [`CHUNK`] that is read or written next.
///
/// The hardware prefetcher stops at the end of a memory page, which is a chunk's length. A chunk is prefetched in
/// [`PARTS`](Self::PARTS) between the steps of work on the chunk before it, because memory delivers too slowly for all
/// of it at once.
#[derive(Clone, Copy)]
pub(crate) struct Prefetch(*const f32);

impl Prefetch {
    /// Number of parts of a chunk.
    pub(crate) const PARTS: usize = 4;

    /// The chunk that starts where `before` ends.
    #[inline(always)]
    pub(crate) fn after<T>(before: &[T]) -> Self {
        Prefetch(before.as_ptr_range().end.cast())
    }

    /// Prefetches one part of the chunk.
    #[inline(always)]
    pub(crate) fn issue<S: Simd>(self, s: S, part: usize) {
        const PIXELS: usize = CHUNK / Prefetch::PARTS;
        for pixel in part * PIXELS..(part + 1) * PIXELS {
            s.prefetch(self.0.wrapping_add(pixel * SLICE));
        }
    }
}

/// Prefetches the values of the next group of images that correspond to `part` of this group's `values`. Each of the
/// `slices` that pass over them prefetches its share of the cache lines, because memory delivers too slowly for all of
/// them at the next group's first slice.
#[inline(always)]
pub(crate) fn prefetch_next<S: Simd, T>(s: S, values: &[T], part: Range<usize>, slice: usize, slices: usize) {
    let next: *const f32 = values.as_ptr_range().end.cast();
    for line in (part.start / SLICE + slice..part.end.div_ceil(SLICE)).step_by(slices) {
        s.prefetch(next.wrapping_add(line * SLICE));
    }
}

/// Rows, of a map `width` wide, that are processed at a time.
pub(crate) fn chunk_rows(width: usize) -> usize {
    (CHUNK / width).max(1)
}

/// Extents of a depthwise convolution of one image; padding is `kernel / 2`, the stride 1 or 2.
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

    /// Number of channels in slice `slice`.
    pub(crate) fn slice_width(self, slice: usize) -> usize {
        SLICE.min(self.channels - slice * SLICE)
    }

    pub(crate) fn taps(self) -> usize {
        self.kernel * self.kernel
    }

    pub(crate) fn padding(self) -> usize {
        self.kernel / 2
    }

    /// Number of input rows that the output rows before `end` read; for the last output row all rows, including those
    /// that none reads (kernel 1 at stride 2).
    pub(crate) fn rows_read(self, end: usize) -> usize {
        if end == self.out_height() {
            return self.height;
        }
        ((end - 1) * self.stride + self.kernel - self.padding()).min(self.height)
    }

    /// Number of input rows whose gradients are complete once those of the output rows before `end` are known, among
    /// those that these rows read.
    pub(crate) fn rows_known(self, end: usize) -> usize {
        if end == self.out_height() {
            return self.height;
        }
        (end * self.stride).saturating_sub(self.padding()).min(self.rows_read(end))
    }
}

/// Packs `[channels, kernel * kernel]` as `[slice][kernel * kernel][SLICE]`, missing channels zero; `flip` rotates each
/// kernel by 180 degrees, for the input gradient.
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

/// Inverse of [`pack_weights`] without `flip`, for gradients.
pub(crate) fn unpack_weights(packed: &[f32], channels: usize, taps: usize, weight: &mut [f32]) {
    for (channel, kernel) in weight.chunks_exact_mut(taps).enumerate().take(channels) {
        let slice = &packed[channel / SLICE * taps * SLICE..];
        for (tap, value) in kernel.iter_mut().enumerate() {
            *value = slice[tap * SLICE + channel % SLICE];
        }
    }
}

/// A slice of an image's map inside a border of zeros. Lanes beyond the slice's channels hold arbitrary values: no
/// sum crosses lanes.
pub(crate) struct Frame {
    values: Buffer,
    /// Height and width of the map.
    map: (usize, usize),
    /// Rows of zeros above the map, and pixels of zeros left of it.
    border: usize,
    /// Pixels from one row to the next, border included.
    row: usize,
}

impl Frame {
    /// A frame for the input of `shape`.
    pub(crate) fn of_input(shape: Shape) -> Frame {
        let padding = shape.padding();
        let reach = |size: usize, out: usize| (size + padding).max((out - 1) * shape.stride + shape.kernel);
        let extents = (reach(shape.height, shape.out_height()), reach(shape.width, shape.out_width()));
        Frame::new((shape.height, shape.width), padding, extents)
    }

    /// A frame for the gradient at the output of `shape`.
    pub(crate) fn of_output(shape: Shape) -> Frame {
        let border = shape.padding() / shape.stride;
        let reach = |size: usize, out: usize| border + out.max((size - 1 + shape.padding()) / shape.stride + 1);
        let extents = (reach(shape.height, shape.out_height()), reach(shape.width, shape.out_width()));
        Frame::new((shape.out_height(), shape.out_width()), border, extents)
    }

    fn new(map: (usize, usize), border: usize, (height, width): (usize, usize)) -> Frame {
        let mut values = Buffer::with_arbitrary_contents(height * width * SLICE);
        // Only the border is cleared: the map is written before it is read.
        let row = width * SLICE;
        values[..border * row].fill(0.0);
        for line in values[border * row..].chunks_exact_mut(row).take(map.0) {
            line[..border * SLICE].fill(0.0);
            line[(border + map.1) * SLICE..].fill(0.0);
        }
        values[(border + map.0) * row..].fill(0.0);
        Frame { values, map, border, row: width }
    }

    /// Row `y` of the map: `[width]` pixels.
    #[inline(always)]
    pub(crate) fn row(&mut self, y: usize) -> &mut [Lanes] {
        let start = ((y + self.border) * self.row + self.border) * SLICE;
        self.values[start..][..self.map.1 * SLICE].as_chunks_mut().0
    }

    /// The pixels from row `y` on, counted with the border.
    fn rows_from(&self, y: usize) -> &[Lanes] {
        self.values[y * self.row * SLICE..].as_chunks().0
    }

    /// Rows of the map, counted with the border; all other rows are zero.
    fn filled(&self) -> Range<usize> {
        self.border..self.border + self.map.0
    }

    /// Fills the map's rows `rows` from a strip of an image, mapping each value by `value(lane, x)`.
    #[inline(always)]
    pub(crate) fn fill<S: Simd>(
        &mut self,
        s: S,
        image: &[f32],
        strip: Strip,
        rows: Range<usize>,
        value: impl Fn(usize, f32) -> f32,
    ) {
        // Loops of fixed length, except for other numbers of channels than 8 and 16.
        match strip.width {
            SLICE => self.fill_width::<S, SLICE>(s, image, strip, rows, value),
            8 => self.fill_width::<S, 8>(s, image, strip, rows, value),
            _ => self.fill_width::<S, 0>(s, image, strip, rows, value),
        }
    }

    #[inline(always)]
    fn fill_width<S: Simd, const WIDTH: usize>(
        &mut self,
        s: S,
        image: &[f32],
        strip: Strip,
        rows: Range<usize>,
        value: impl Fn(usize, f32) -> f32,
    ) {
        let Strip { channels, first, width, pixels: (_, columns) } = strip;
        let width = if WIDTH == 0 { width } else { WIDTH };
        let (row, ahead) = (columns * channels, strip.ahead());
        for y in rows {
            let pixels = image[y * row..][..row].chunks_exact(channels);
            for (source, target) in pixels.zip(self.row(y)) {
                let (source, target) = (&source[first..][..width], &mut target[..width]);
                for lane in 0..width {
                    target[lane] = value(lane, source[lane]);
                }
                s.prefetch(source.as_ptr().wrapping_add(ahead));
            }
        }
    }
}

/// The part of an NHWC image that one task reads or writes: some channels of each pixel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strip {
    /// Channels of the image.
    pub channels: usize,
    /// First channel of the strip.
    pub first: usize,
    /// Number of channels of the strip.
    pub width: usize,
    /// Height and width of the image.
    pub pixels: (usize, usize),
}

impl Strip {
    /// The strip of slice `slice` of an image of `pixels`.
    pub(crate) fn new(shape: Shape, slice: usize, pixels: (usize, usize)) -> Self {
        Strip { channels: shape.channels, first: slice * SLICE, width: shape.slice_width(slice), pixels }
    }

    /// Distance in floats from a value to its counterpart in the next task's strip: in the next slice, or in the next
    /// image's first slice. Strips are cache lines far apart, which the hardware prefetcher does not predict, so each
    /// task prefetches the next one's.
    fn ahead(self) -> usize {
        if self.first + self.width < self.channels {
            SLICE
        } else {
            self.pixels.0 * self.pixels.1 * self.channels - self.first
        }
    }
}
