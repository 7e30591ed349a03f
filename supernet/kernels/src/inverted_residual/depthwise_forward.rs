//! The depthwise convolution of the forward pass, with the expand convolution recomputed before it.

use super::BlockShape;
use super::expand_kernels::ExpandSlice;
use super::middle::Middle;
use crate::activation::Act;
use crate::batch_norm::{Affine, RunningSums, Sums, TURNS};
use crate::buffers::Aligned;
use crate::depthwise::{Frame, Prefetch, Strip, chunk_rows, convolve_rows, prefetch_next};
use crate::matmul::Packed;
use crate::simd::{Kernel, Simd, entry_points};
use crate::slice::{Lane, Lanes, SLICE, lanes};
use std::marker::PhantomData;
use std::ops::Range;

/// Computes `y2 = depthwise(activation(affine(expand(x))))`, or `depthwise(x)` without `expand`, for some slices of
/// some groups of images.
pub(super) struct DepthwiseForward<'a, A> {
    pub shape: &'a BlockShape,
    pub layout: Middle,
    pub out_layout: Middle,
    pub x: &'a [f32],
    /// The expand weight per slice of middle channels, and the batch norm after it, if there is one.
    pub expand: Option<(&'a [Packed], &'a Affine)>,
    /// The depthwise weight, packed.
    pub weight: &'a [f32],
    /// Output of the tasks, if kept, otherwise empty: the raw output of expand.
    pub y1: &'a mut [f32],
    /// Output of the tasks.
    pub y2: &'a mut [f32],
    pub with_sums: bool,
    /// Pairs (group, slice), the slices of a group in sequence.
    pub tasks: Range<usize>,
    pub activation: PhantomData<A>,
}

/// Scratch memory of the tasks.
struct Scratch {
    /// Inputs of the convolution, one per image of a group.
    frames: Vec<Frame>,
    /// The raw output of expand for some rows, where it is not kept.
    tile: Aligned,
    /// Rows per tile.
    rows: usize,
}

impl<A: Act> Kernel for DepthwiseForward<'_, A> {
    /// Sums of `y2`, zero if not `with_sums`.
    type Output = Sums;
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> Sums {
        let (conv, together) = (self.shape.depthwise(), self.layout.together);
        let rows = chunk_rows(conv.width).min(conv.height);
        let mut scratch = Scratch {
            frames: (0..together).map(|_| Frame::of_input(conv)).collect(),
            tile: Aligned::zeros(together * rows * conv.width * SLICE),
            rows,
        };
        let mut sums = Sums::new(conv.channels);
        let (y1, y2) = (std::mem::take(&mut self.y1), std::mem::take(&mut self.y2));
        let mut y1 = y1.chunks_mut(self.layout.stride());
        for (task, y2) in self.tasks.clone().zip(y2.chunks_mut(self.out_layout.stride())) {
            self.task(s, task, y1.next().unwrap_or_default(), y2, &mut scratch, &mut sums);
        }
        sums
    }
}

impl<A: Act> DepthwiseForward<'_, A> {
    /// Computes one slice of one group of images.
    #[inline(always)]
    fn task<S: Simd>(&self, s: S, task: usize, y1: &mut [f32], y2: &mut [f32], scratch: &mut Scratch, sums: &mut Sums) {
        let (conv, layout, inputs) = (self.shape.depthwise(), self.layout, self.shape.in_channels);
        let (height, columns) = (conv.out_height(), conv.out_width());
        let (group, slice) = (task / layout.slices, task % layout.slices);
        let images = layout.images(group..group + 1);
        let image_len = layout.pixels * inputs;
        let x = &self.x[images.start * image_len..images.end * image_len];
        let frames = &mut scratch.frames[..images.len()];
        let (first, width) = (slice * SLICE, conv.slice_width(slice));
        let expand = self.expand.map(|(weights, affine)| ExpandSlice {
            weight: &weights[slice],
            scale: lanes(&affine.scale, first, width),
            shift: lanes(&affine.shift, first, width),
            width,
        });
        let strip = Strip::new(conv, slice, (conv.height, conv.width));
        let taps = conv.taps() * SLICE;
        let weight = &self.weight[slice * taps..][..taps];
        let at_a_time = chunk_rows(columns).min(height);
        let mut made = 0;
        // Some rows of one image, or all rows of several.
        for start in (0..height).step_by(at_a_time) {
            let rows = start..height.min(start + at_a_time);
            let needed = conv.rows_read(rows.end);
            let of_image = rows.len() * columns * SLICE;
            let y2 = &mut y2[start * columns * SLICE..][..images.len() * of_image];
            let next = Prefetch::after(y2);
            next.issue(s, 0);
            match &expand {
                None => {
                    for (frame, x) in frames.iter_mut().zip(x.chunks_exact(image_len)) {
                        frame.fill(s, x, strip, made..needed, |_, x| x);
                    }
                }
                Some(expand) => {
                    for row in (made..needed).step_by(scratch.rows) {
                        let rows = row..needed.min(row + scratch.rows);
                        let kept = row * conv.width * SLICE;
                        let raw = if y1.is_empty() { &mut scratch.tile[..] } else { &mut y1[kept..] };
                        expand.convolve(x, conv.width, rows.clone(), images.len(), raw);
                        expand.activate::<S, A>(s, raw, conv.width, rows, frames);
                    }
                }
            }
            let of_x = images.len() * made * conv.width * inputs..images.len() * needed * conv.width * inputs;
            made = needed;
            next.issue(s, 1);
            prefetch_next(s, x, of_x, slice, layout.slices);
            for (frame, y2) in frames.iter().zip(y2.chunks_exact_mut(of_image)) {
                convolve_rows(frame, conv, weight, rows.clone(), width, y2);
            }
            (2..Prefetch::PARTS).for_each(|part| next.issue(s, part));
            if self.with_sums {
                add_sums(s, y2.as_chunks().0, first, width, sums);
            }
        }
    }
}

/// Adds the sums of some pixels' values and of their squares, in the `width` channels from `first` on.
#[inline(always)]
fn add_sums<S: Simd>(s: S, pixels: &[Lanes], first: usize, width: usize, sums: &mut Sums) {
    let (mut sum, mut square): (Lanes, Lanes) = ([0.0; SLICE], [0.0; SLICE]);
    for lane in Lane::covering(s, width) {
        let mut running = RunningSums::new(s);
        let (turns, rest) = pixels.as_chunks::<TURNS>();
        for pixels in turns {
            for (turn, pixel) in pixels.iter().enumerate() {
                running.add(turn, lane.load(pixel), lane.load(pixel));
            }
        }
        for pixel in rest {
            running.add(0, lane.load(pixel), lane.load(pixel));
        }
        let (of_values, of_squares) = running.totals();
        lane.store(&mut sum, of_values);
        lane.store(&mut square, of_squares);
    }
    sums.add_block(first, &sum[..width], &square[..width]);
}
