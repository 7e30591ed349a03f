//! Backward pass of the depthwise convolution and its neighbours: from the gradient at the raw `y3` to that at the
//! input, without the term of the first batch norm.

use super::BlockShape;
use super::expand_kernels::ExpandSlice;
use super::middle::Middle;
use super::middle_gradient::MiddleGradient;
use crate::activation::Act;
use crate::batch_norm::{Affine, RunningSums, Sums, TURNS};
use crate::buffers::{Aligned, Buffer, Unwritten, assume_written};
use crate::depthwise::{
    Frame, Prefetch, Strip, accumulate_weight_gradient, chunk_rows, input_gradient_rows, prefetch_next,
};
use crate::matmul::{Packed, accumulate_transposed, multiply_add, multiply_new};
use crate::parallel;
use crate::simd::{Kernel, Simd, entry_points};
use crate::slice::{Lane, Lanes, SLICE, lanes};
use std::marker::PhantomData;
use std::ops::Range;

/// The expand convolution, packed for both directions.
pub(super) struct Expand<'a> {
    pub affine: &'a Affine,
    /// The weight, `[in, SLICE]` per slice.
    pub slices: Vec<Packed>,
    /// The weight, `[SLICE, in]` per slice, multiplied by batch norm's scale.
    pub back: Vec<Packed>,
    /// The raw output, if it was kept.
    pub y1: Option<&'a [f32]>,
}

/// `weight` `[out, in]` with each row multiplied by its factor, packed in slices of [`SLICE`] rows.
pub(super) fn scaled_slices(weight: &[f32], inputs: usize, factors: &[f32]) -> Vec<Packed> {
    let slice = |(weight, factors): (&[f32], &[f32])| {
        let rows = weight.chunks_exact(inputs).zip(factors);
        let scaled: Vec<f32> = rows.flat_map(|(row, factor)| row.iter().map(move |w| w * factor)).collect();
        Packed::new(&scaled, factors.len(), inputs, inputs, 1)
    };
    let slices = |range: Range<usize>| {
        let of_slices = weight.chunks(SLICE * inputs).zip(factors.chunks(SLICE));
        of_slices.take(range.end).skip(range.start).map(slice).collect::<Vec<_>>()
    };
    parallel::map(factors.len().div_ceil(SLICE), 1, slices).into_iter().flatten().collect()
}

/// Backward pass over whole groups of images, a slice of channels at a time. `A1` is the activation before the
/// depthwise convolution, `A2` the one after it.
pub(super) struct DepthwiseBackward<'a, 'o, A1, A2> {
    pub shape: &'a BlockShape,
    pub layout: Middle,
    pub x: &'a [f32],
    pub expand: Option<&'a Expand<'a>>,
    pub middle_gradient: MiddleGradient<'a>,
    pub flipped: &'a [f32],
    /// Input gradient of the images of `groups`.
    pub dx: &'o mut Unwritten,
    pub groups: Range<usize>,
    pub activations: PhantomData<(A1, A2)>,
}

/// Sums over the groups of a kernel.
pub(super) struct Totals {
    /// Sums for the first batch norm.
    pub sums: Sums,
    /// The packed depthwise weight gradient.
    pub weight_gradient: Aligned,
    /// Products of expand's weight gradient, `[slices, in, SLICE]`.
    pub products: Aligned,
}

/// Scratch memory of a group of images.
struct Scratch {
    /// Inputs of the convolution, per image.
    inputs: Vec<Frame>,
    /// Gradients at the convolution's output, per image.
    outputs: Vec<Frame>,
    /// The raw output of expand, where it was not kept.
    y1: Buffer,
    /// Gradients at the projection's input, for some output rows.
    tile: Aligned,
    /// Gradients at the convolution's input, for some input rows.
    line: Aligned,
}

/// One slice of the expand convolution in both directions.
type ExpandBothWays<'a> = Option<(ExpandSlice<'a>, &'a Packed)>;

impl<'o, A1: Act, A2: Act> Kernel for DepthwiseBackward<'_, 'o, A1, A2> {
    /// The input gradient, written, and the sums.
    type Output = (&'o mut [f32], Totals);
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> Self::Output {
        let (conv, layout, inputs) = (self.shape.depthwise(), self.layout, self.shape.in_channels);
        let together = layout.together;
        let makes_y1 = self.expand.is_some_and(|expand| expand.y1.is_none());
        let mut scratch = Scratch {
            inputs: (0..together).map(|_| Frame::of_input(conv)).collect(),
            outputs: (0..together).map(|_| Frame::of_output(conv)).collect(),
            y1: Buffer::with_arbitrary_contents(if makes_y1 { layout.stride() } else { 0 }),
            tile: Aligned::zeros(together * self.out_rows() * conv.out_width() * SLICE),
            line: Aligned::zeros(together * self.in_rows() * conv.width * SLICE),
        };
        let mut totals = Totals {
            sums: Sums::new(conv.channels),
            weight_gradient: Aligned::zeros(conv.slices() * conv.taps() * SLICE),
            products: Aligned::zeros(if self.expand.is_some() { conv.slices() * inputs * SLICE } else { 0 }),
        };
        let dx = std::mem::take(&mut self.dx);
        let images = layout.images(self.groups.clone());
        assert_eq!(dx.len(), images.len() * layout.pixels * inputs);
        for (group, dx) in self.groups.clone().zip(dx.chunks_mut(together * layout.pixels * inputs)) {
            for slice in 0..conv.slices() {
                self.slice(s, group, slice, dx, &mut scratch, &mut totals);
            }
        }
        // SAFETY: the range of groups covers `dx`, and the slices of each group wrote all of its pixels: with expand
        // the product of each slice has all channels, without expand the channels of the slices are those of the input.
        (unsafe { assume_written(dx) }, totals)
    }
}

impl<A1: Act, A2: Act> DepthwiseBackward<'_, '_, A1, A2> {
    /// Output rows that are processed at a time.
    fn out_rows(&self) -> usize {
        let conv = self.shape.depthwise();
        chunk_rows(conv.out_width()).min(conv.out_height())
    }

    /// Input rows whose gradients are computed at a time.
    fn in_rows(&self) -> usize {
        chunk_rows(self.shape.width).min(self.shape.height)
    }

    /// Processes one slice of one group; `dx` is the input gradient of the group.
    #[inline(always)]
    fn slice<S: Simd>(
        &self,
        s: S,
        group: usize,
        slice: usize,
        dx: &mut Unwritten,
        scratch: &mut Scratch,
        totals: &mut Totals,
    ) {
        let (conv, layout, inputs) = (self.shape.depthwise(), self.layout, self.shape.in_channels);
        let (columns, out_columns, image) = (conv.width, conv.out_width(), layout.pixels * inputs);
        let images = layout.images(group..group + 1);
        let x = &self.x[images.start * image..images.end * image];
        let (input, output) = (&mut scratch.inputs[..images.len()], &mut scratch.outputs[..images.len()]);
        let (first, width) = (slice * SLICE, conv.slice_width(slice));
        let strip = Strip::new(conv, slice, (conv.height, columns));
        let middle_gradient = self.middle_gradient.slice(group, slice);
        let expand: ExpandBothWays = self.expand.map(|expand| {
            let [scale, shift] = [&expand.affine.scale, &expand.affine.shift].map(|v| lanes(v, first, width));
            (ExpandSlice { weight: &expand.slices[slice], scale, shift, width }, &expand.back[slice])
        });
        let kept = self.expand.and_then(|expand| expand.y1).map(|y1| &y1[layout.group(group, slice)]);
        let taps = conv.taps() * SLICE;
        let (mut made, mut known) = (0, 0);
        // Some rows of one image, or all rows of several.
        for start in (0..conv.out_height()).step_by(self.out_rows()) {
            let rows = start..conv.out_height().min(start + self.out_rows());
            let needed = conv.rows_read(rows.end);
            match &expand {
                None => {
                    for (input, x) in input.iter_mut().zip(x.chunks_exact(image)) {
                        input.fill(s, x, strip, made..needed, |_, x| x);
                    }
                }
                Some((expand, _)) => {
                    let offset = made * columns * SLICE;
                    let y1 = match kept {
                        Some(y1) => &y1[offset..],
                        None => {
                            let y1 = &mut scratch.y1[offset..];
                            expand.convolve(x, columns, made..needed, images.len(), y1);
                            y1
                        }
                    };
                    expand.activate::<S, A1>(s, y1, columns, made..needed, input);
                }
            }
            let of_x = images.len() * made * columns * inputs..images.len() * needed * columns * inputs;
            made = needed;
            let next = |part: usize| {
                let pixel = images.len() * rows.end * out_columns;
                middle_gradient.prefetch(s, pixel, part);
                if let Some(y1) = kept {
                    Prefetch::after(&y1[..images.len() * needed * columns * SLICE]).issue(s, part);
                }
            };
            next(0);
            middle_gradient.make::<S, A2>(s, rows.clone(), out_columns, conv.channels, &mut scratch.tile, output);
            next(1);
            prefetch_next(s, x, of_x.clone(), slice, conv.slices());
            let gradient = &mut totals.weight_gradient[slice * taps..][..taps];
            for (input, output) in input.iter().zip(output.iter()) {
                accumulate_weight_gradient(input, output, conv, rows.clone(), width, gradient);
            }
            next(2);
            middle_gradient.prefetch_next(s, images.len() * out_columns, rows.clone(), slice, conv.slices());
            let now_known = conv.rows_known(rows.end);
            let y1 = kept.unwrap_or(&scratch.y1);
            for row in (known..now_known).step_by(self.in_rows()) {
                let rows = row..now_known.min(row + self.in_rows());
                self.input_rows(s, slice, &expand, rows, output, y1, x, &mut scratch.line, dx, totals);
            }
            known = now_known;
            next(3);
            prefetch_next(s, dx, of_x, slice, conv.slices());
        }
    }

    /// Gradients at the convolution's input in the rows `rows` of each image, from there to expand's input, and
    /// expand's weight gradient; all rows if there are several images. `line` has room for the rows.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // operands, scratch memory and outputs of one slice
    fn input_rows<S: Simd>(
        &self,
        s: S,
        slice: usize,
        expand: &ExpandBothWays,
        rows: Range<usize>,
        output: &[Frame],
        y1: &[f32],
        x: &[f32],
        line: &mut [f32],
        dx: &mut Unwritten,
        totals: &mut Totals,
    ) {
        let (conv, inputs, columns) = (self.shape.depthwise(), self.shape.in_channels, self.shape.width);
        let (first, width) = (slice * SLICE, conv.slice_width(slice));
        let taps = conv.taps() * SLICE;
        let flipped = &self.flipped[slice * taps..][..taps];
        let of_image = rows.len() * columns * SLICE;
        let line = &mut line[..output.len() * of_image];
        for (output, line) in output.iter().zip(line.chunks_exact_mut(of_image)) {
            input_gradient_rows(output, conv, flipped, rows.clone(), width, line);
        }
        let count = line.len() / SLICE;
        let pixels = rows.start * columns..rows.start * columns + count;
        let Some((expand, back)) = expand else {
            let dx = dx[pixels.start * inputs..].chunks_exact_mut(inputs);
            for (dx, g) in dx.zip(line.as_chunks::<SLICE>().0) {
                for (dx, &g) in dx[first..first + width].iter_mut().zip(g) {
                    dx.write(g);
                }
            }
            return;
        };
        let y1 = &y1.as_chunks::<SLICE>().0[pixels.clone()];
        times_slopes::<S, A1>(s, expand, line.as_chunks_mut().0, y1, first, &mut totals.sums);
        let span = pixels.start * inputs..pixels.end * inputs;
        let dx = &mut dx[span.clone()];
        if slice == 0 {
            multiply_new(line, SLICE, count, back, dx);
        } else {
            // SAFETY: the first slice, which came before, wrote the product at all pixels of the group.
            multiply_add(line, SLICE, count, back, unsafe { assume_written(dx) }, inputs);
        }
        let products = &mut totals.products[slice * inputs * SLICE..][..inputs * SLICE];
        accumulate_transposed(&x[span], inputs, line, SLICE, count, inputs, width, products, SLICE);
    }
}

/// Multiplies the gradients `g` by the slopes of the activation after batch norm of `y1`, and adds them to the sums of
/// the channels from `first` on.
#[inline(always)]
fn times_slopes<S: Simd, A: Act>(
    s: S,
    expand: &ExpandSlice,
    g: &mut [Lanes],
    y1: &[Lanes],
    first: usize,
    sums: &mut Sums,
) {
    let (mut sum, mut square): (Lanes, Lanes) = ([0.0; SLICE], [0.0; SLICE]);
    let (turns, rest) = g.as_chunks_mut::<TURNS>();
    let (y1_turns, y1_rest) = y1.as_chunks::<TURNS>();
    for lane in Lane::covering(s, expand.width) {
        let affine = [lane.load(&expand.scale), lane.load(&expand.shift)];
        let mut running = RunningSums::new(s);
        for (g, y1) in turns.iter_mut().zip(y1_turns) {
            for (turn, (g, y1)) in g.iter_mut().zip(y1).enumerate() {
                times_slope::<S, A>(s, lane, affine, g, y1, &mut running, turn);
            }
        }
        for (g, y1) in rest.iter_mut().zip(y1_rest) {
            times_slope::<S, A>(s, lane, affine, g, y1, &mut running, 0);
        }
        let (of_gradients, of_products) = running.totals();
        lane.store(&mut sum, of_gradients);
        lane.store(&mut square, of_products);
    }
    sums.add_block(first, &sum[..expand.width], &square[..expand.width]);
}

/// Multiplies a pixel's gradient, in the channels from `lane` on, by the slope of the activation after batch norm
/// (`[scale, shift]`) of `y1`, and adds it to the running sums.
#[inline(always)]
fn times_slope<S: Simd, A: Act>(
    s: S,
    lane: Lane<S>,
    [scale, shift]: [S::V; 2],
    g: &mut Lanes,
    y1: &Lanes,
    running: &mut RunningSums<S>,
    turn: usize,
) {
    let y1 = lane.load(y1);
    let by_slope = A::times_slopes(s, s.mul_add(y1, scale, shift), lane.load(g));
    lane.store(g, by_slope);
    running.add(turn, by_slope, y1);
}
