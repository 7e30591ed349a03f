//! Depthwise convolution, with the 1x1 convolution before it where there is one.
//!
//! Some slices of channels of an image are computed at a time, in strips of rows: the 1x1 convolution writes them a few
//! rows ahead of the depthwise one, into a window that stays in the second-level cache, so that the map between the two
//! never exists in memory.

use super::padded::Layout;
use super::product::{GROUP, Product, Slices, group};
use crate::Activation;
use crate::activation::Act;
use crate::buffers::Buffer;
use crate::depthwise::{Shape, chunk_rows, convolve_window};
use crate::simd::{Kernel, Simd, dispatch, entry_points, vectors};
use crate::slice::{Lane, Lanes, SLICE, lanes};
use crate::strips::{StripMut, Strips};
use std::marker::PhantomData;
use std::ops::Range;

/// Floats of a window: with the other operands they stay in a second-level cache.
const WINDOW: usize = 48 << 10;

/// The input of a depthwise convolution.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// A map `[batch, height, width, channels]`.
    Map(&'a [f32]),
    /// The output of a 1x1 convolution of `[batch, height, width, in]`.
    Expanded(&'a [f32], &'a Slices, Activation),
}

/// `output = activation(depthwise(source) + bias)` for some slices of channels of images, with the means over pixels in
/// `pooled`.
pub(super) struct DepthwiseTasks<'a, A> {
    pub source: Source<'a>,
    /// The weight, packed.
    pub weights: &'a [f32],
    pub bias: &'a [f32],
    pub shape: Shape,
    pub output: Strips<'a>,
    pub pooled: Option<Strips<'a>>,
    /// Pairs (image, slice), of which `output` and `pooled` hold the strips.
    pub tasks: Range<usize>,
    pub activation: PhantomData<A>,
}

impl<A: Act> Kernel for DepthwiseTasks<'_, A> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let DepthwiseTasks { source, weights, bias, shape, mut output, mut pooled, tasks, .. } = self;
        let columns = shape.out_width();
        let at_a_time = chunk_rows(columns).min(shape.out_height());
        let mut tile = Buffer::with_arbitrary_contents(at_a_time * columns * SLICE);
        let mut window = Window::new(shape, group(tasks.len().min(shape.slices())), at_a_time);
        let mut task = tasks.start;
        while task < tasks.end {
            let (image, first) = (task / shape.slices(), task % shape.slices());
            let slices = group((tasks.end - task).min(shape.slices() - first)).min(window.slices);
            window.begin();
            let mut strips: [Option<StripMut>; GROUP] = [None, None, None];
            strips.iter_mut().take(slices).for_each(|strip| *strip = output.next());
            let mut sums = [[0.0; SLICE]; GROUP];
            for start in (0..shape.out_height()).step_by(at_a_time) {
                let rows = start..shape.out_height().min(start + at_a_time);
                window.advance(s, source, image, first..first + slices, rows.clone());
                let tile = &mut tile[..rows.len() * columns * SLICE];
                for (number, (strip, sums)) in strips.iter_mut().flatten().zip(&mut sums).enumerate() {
                    let (slice, taps) = (first + number, shape.taps() * SLICE);
                    let width = shape.slice_width(slice);
                    window.convolve(number, &weights[slice * taps..][..taps], rows.clone(), width, tile);
                    finish::<S, A>(s, tile, lanes(bias, slice * SLICE, width), start * columns, width, strip, sums);
                }
            }
            for sums in sums.iter().take(slices) {
                let Some(mut pooled) = pooled.as_mut().and_then(Iterator::next) else { break };
                for (out, sum) in pooled.pixel(0).iter_mut().zip(sums) {
                    *out = sum / shape.out_pixels() as f32;
                }
            }
            task += slices;
        }
    }
}

/// Writes the activated values of some pixels from `first` on to the output, and adds them to `sums`.
#[inline(always)]
fn finish<S: Simd, A: Act>(
    s: S,
    tile: &[f32],
    bias: Lanes,
    first: usize,
    width: usize,
    output: &mut StripMut,
    sums: &mut Lanes,
) {
    for lane in Lane::covering(s, width) {
        let (bias, mut sum) = (lane.load(&bias), s.splat(0.0));
        let kept = lane.start()..width.min(lane.start() + S::LANES);
        for (pixel, values) in tile.as_chunks::<SLICE>().0.iter().enumerate() {
            let value = A::values(s, s.add(lane.load(values), bias));
            sum = s.add(sum, value);
            s.write(&mut output.pixel(first + pixel)[kept.clone()], value);
        }
        lane.store(sums, s.add(lane.load(sums), sum));
    }
}

/// Rows of some slices of an image inside a border of zeros: those that the next output rows read. Rows are counted
/// with the border.
struct Window {
    shape: Shape,
    /// `[slice][row][pixel][SLICE]`
    values: Buffer,
    slices: usize,
    /// Rows that the window holds.
    rows: usize,
    /// Pixels of a row.
    row: usize,
    /// The first row in the window.
    top: usize,
    /// The row after the last one that is filled.
    filled: usize,
}

impl Window {
    /// A window for `slices` slices at a time and `at_a_time` output rows.
    fn new(shape: Shape, slices: usize, at_a_time: usize) -> Self {
        let all = (shape.out_height() - 1) * shape.stride + shape.kernel;
        let row = ((shape.out_width() - 1) * shape.stride + shape.kernel).max(shape.width + shape.padding());
        let read = (at_a_time - 1) * shape.stride + shape.kernel;
        let rows = (WINDOW / (slices * row * SLICE)).max(2 * read).min(all.max(read));
        let mut values = Buffer::with_arbitrary_contents(slices * rows * row * SLICE);
        // Borders left and right are never written again.
        for row in values.chunks_exact_mut(row * SLICE) {
            row[..shape.padding() * SLICE].fill(0.0);
            row[(shape.padding() + shape.width) * SLICE..].fill(0.0);
        }
        Window { shape, values, slices, rows, row, top: 0, filled: 0 }
    }

    /// Starts with another image or other slices.
    fn begin(&mut self) {
        (self.top, self.filled) = (0, 0);
    }

    /// Makes the window hold what the output rows `rows` read, of the slices `slices` of `image`.
    #[inline(always)]
    fn advance<S: Simd>(&mut self, s: S, source: Source, image: usize, slices: Range<usize>, rows: Range<usize>) {
        let (shape, line) = (self.shape, self.row * SLICE);
        let needed = (rows.end - 1) * shape.stride + shape.kernel;
        let first = rows.start * shape.stride;
        if needed > self.top + self.rows {
            // Rows that are still read move to the top.
            let kept = (first.min(self.filled) - self.top) * line..(self.filled - self.top) * line;
            for slice in self.values.chunks_exact_mut(self.rows * line) {
                slice.copy_within(kept.clone(), 0);
            }
            self.filled = self.filled.max(first);
            self.top = first;
        }
        while self.filled < needed {
            let start = (self.filled - self.top) * line;
            match self.filled.checked_sub(shape.padding()).filter(|&y| y < shape.height) {
                Some(y) => self.fill(s, source, image, slices.clone(), y, start + shape.padding() * SLICE),
                None => {
                    for slice in self.values.chunks_exact_mut(self.rows * line) {
                        slice[start..][..line].fill(0.0);
                    }
                }
            }
            self.filled += 1;
        }
    }

    /// Writes row `y` of the map to the place `start` of each slice.
    #[inline(always)]
    fn fill<S: Simd>(&mut self, s: S, source: Source, image: usize, slices: Range<usize>, y: usize, start: usize) {
        let (shape, step) = (self.shape, self.rows * self.row * SLICE);
        let pixels = (image * shape.height + y) * shape.width;
        match source {
            Source::Map(input) => {
                let input = &input[pixels * shape.channels..][..shape.width * shape.channels];
                for (number, slice) in slices.enumerate() {
                    let (first, width) = (slice * SLICE, shape.slice_width(slice));
                    let targets = self.values[number * step + start..].as_chunks_mut::<SLICE>().0;
                    for (source, target) in input.chunks_exact(shape.channels).zip(targets) {
                        let source = &source[first..][..width];
                        for lanes in vectors(s, width) {
                            s.write(&mut target[lanes.start..][..S::LANES], s.read(&source[lanes]));
                        }
                    }
                }
            }
            Source::Expanded(input, weight, activation) => dispatch(Product {
                left: &input[pixels * weight.inputs..],
                layout: Layout::plain(weight.inputs),
                rows: shape.width,
                weight,
                first: slices.start,
                group: slices.len(),
                activation,
                residual: None,
                output: &mut self.values[start..],
                steps: (SLICE, step),
                width: slices.len() * SLICE,
            }),
        }
    }

    /// Computes output rows `rows` of slice `number` of the window into `output` `[rows, out_width, SLICE]`.
    #[inline(always)]
    fn convolve(&self, number: usize, weights: &[f32], rows: Range<usize>, width: usize, output: &mut [f32]) {
        let (shape, line) = (self.shape, self.row * SLICE);
        let start = rows.start * shape.stride;
        let slice = &self.values[number * self.rows * line..][..self.rows * line];
        let source = &slice[(start - self.top) * line..];
        convolve_window(source.as_chunks().0, self.row, start, shape, weights, rows.len(), width, output);
    }
}
