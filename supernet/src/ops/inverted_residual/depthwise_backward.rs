//! Backward pass of the depthwise convolution and its neighbours: from the gradient at the raw `y3` to that at the
//! input, without the term of the first batch norm.

use super::BlockShape;
use super::expand;
use super::middle::Middle;
use crate::ops::activation::Act;
use crate::ops::batch_norm::{Affine, Backward, RunningSums, Sums, TURNS};
use crate::ops::buffers::{Aligned, Buffer};
use crate::ops::depthwise::{
    Frame, Prefetch, Strip, accumulate_weight_gradient, chunk_rows, input_gradient_rows, prefetch_next,
};
use crate::ops::matmul::{Packed, accumulate_transposed, multiply, multiply_add};
use crate::ops::simd::{Kernel, Simd, entry_points};
use crate::ops::slice::{Lane, Lanes, SLICE, lanes};
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
    let rows = weight.chunks_exact(inputs).zip(factors);
    let scaled: Vec<f32> = rows.flat_map(|(row, factor)| row.iter().map(move |w| w * factor)).collect();
    scaled.chunks(SLICE * inputs).map(|slice| Packed::new(slice, slice.len() / inputs, inputs, inputs, 1)).collect()
}

/// Operands of the gradient at the raw `y2`.
pub(super) struct MiddleGradient<'a> {
    pub layout: Middle,
    pub y2: &'a [f32],
    pub affine2: &'a Affine,
    pub back2: &'a Backward,
    /// Gradient at the projection's input, if it was kept.
    pub g2: Option<&'a [f32]>,
    /// Gradient at the raw `y3`, `[pixels, stride]`.
    pub g3: &'a [f32],
    pub stride: usize,
    /// The projection's weight, `[out, SLICE]` per slice.
    pub project: &'a [Packed],
    /// The gate, and the pooled gradient divided by the number of pixels; `[images, middle]`.
    pub gates: Option<(&'a [f32], &'a [f32])>,
}

/// [`MiddleGradient`] for one slice of one group of images.
struct MiddleGradientSlice<'a> {
    y2: &'a [Lanes],
    g2: Option<&'a [Lanes]>,
    g3: &'a [f32],
    stride: usize,
    weight: &'a Packed,
    scale: Lanes,
    shift: Lanes,
    back: [Lanes; 3],
    /// Gate and pooled gradient of the group's images.
    gates: Option<(&'a [f32], &'a [f32])>,
    channels: Range<usize>,
}

impl MiddleGradient<'_> {
    #[inline(always)]
    fn slice(&self, group: usize, slice: usize) -> MiddleGradientSlice<'_> {
        let (first, m) = (slice * SLICE, self.affine2.scale.len());
        let width = SLICE.min(m - first);
        let of_slice = |values: &[f32]| lanes(values, first, width);
        let images = self.layout.images(group..group + 1);
        let pixels = images.start * self.layout.pixels..images.end * self.layout.pixels;
        let range = self.layout.group(group, slice);
        let of_images = images.start * m..images.end * m;
        MiddleGradientSlice {
            y2: self.y2[range.clone()].as_chunks().0,
            g2: self.g2.map(|g2| g2[range].as_chunks().0),
            g3: &self.g3[pixels.start * self.stride..pixels.end * self.stride],
            stride: self.stride,
            weight: &self.project[slice],
            scale: of_slice(&self.affine2.scale),
            shift: of_slice(&self.affine2.shift),
            back: [&self.back2.by_gradient, &self.back2.by_value, &self.back2.constant].map(|values| of_slice(values)),
            gates: self.gates.map(|(gate, pooled)| (&gate[of_images.clone()], &pooled[of_images])),
            channels: first..first + width,
        }
    }
}

impl MiddleGradientSlice<'_> {
    /// Computes the rows `rows` of `width` pixels into the frames of the group's images; all rows if there are several
    /// images. `tile` has room for them.
    #[inline(always)]
    fn make<S: Simd, A: Act>(
        &self,
        s: S,
        rows: Range<usize>,
        width: usize,
        middle: usize,
        tile: &mut [f32],
        frames: &mut [Frame],
    ) {
        let first = rows.start * width;
        let count = frames.len() * rows.len() * width;
        let g2 = match self.g2 {
            Some(g2) => &g2[first..first + count],
            None => {
                multiply(&self.g3[first * self.stride..], self.stride, count, self.weight, tile, SLICE);
                &tile.as_chunks::<SLICE>().0[..count]
            }
        };
        let y2 = &self.y2[first..first + count];
        let per_image = rows.len() * width;
        for lane in Lane::covering(s, self.channels.len()) {
            let (scale, shift) = (lane.load(&self.scale), lane.load(&self.shift));
            let [by_gradient, by_value, constant] = &self.back;
            let (by_gradient, by_value) = (lane.load(by_gradient), lane.load(by_value));
            let constant = lane.load(constant);
            let images = frames.iter_mut().zip(g2.chunks_exact(per_image)).zip(y2.chunks_exact(per_image));
            for (image, ((frame, g2), y2)) in images.enumerate() {
                let gates = self.gates_of(image * middle);
                let (gate, pooled) = (lane.load(&gates[0]), lane.load(&gates[1]));
                for ((y, g2), y2) in rows.clone().zip(g2.chunks_exact(width)).zip(y2.chunks_exact(width)) {
                    for ((out, g), y2) in frame.row(y).iter_mut().zip(g2).zip(y2) {
                        let y2 = lane.load(y2);
                        let g = s.mul_add(lane.load(g), gate, pooled);
                        let g = A::times_slopes(s, s.mul_add(y2, scale, shift), g);
                        let rest = s.mul_add(by_value, y2, constant);
                        lane.store(out, s.mul_add(by_gradient, g, rest));
                    }
                }
            }
        }
    }

    /// Prefetches a part of the next chunk's operands, the pixels from `pixel` on.
    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, pixel: usize, part: usize) {
        Prefetch::after(&self.y2[..pixel]).issue(s, part);
        if let Some(g2) = self.g2 {
            Prefetch::after(&g2[..pixel]).issue(s, part);
        }
    }

    /// Prefetches a share of the next group's gradient at the raw `y3`, for the rows `rows` of `width` pixels.
    #[inline(always)]
    fn prefetch_next<S: Simd>(&self, s: S, width: usize, rows: Range<usize>, slice: usize, slices: usize) {
        if self.g2.is_none() {
            let part = rows.start * width * self.stride..rows.end * width * self.stride;
            prefetch_next(s, self.g3, part, slice, slices);
        }
    }

    /// Gate and pooled gradient of the image whose channels start at `first`; 1 and 0 without squeeze-excite.
    #[inline(always)]
    fn gates_of(&self, first: usize) -> [Lanes; 2] {
        self.gates.map_or([[1.0; SLICE], [0.0; SLICE]], |(gate, pooled)| {
            [gate, pooled].map(|values| lanes(values, first + self.channels.start, self.channels.len()))
        })
    }
}

/// Backward pass over whole groups of images, a slice of channels at a time. `A1` is the activation before the
/// depthwise convolution, `A2` the one after it.
pub(super) struct DepthwiseBackward<'a, A1, A2> {
    pub shape: &'a BlockShape,
    pub layout: Middle,
    pub x: &'a [f32],
    pub expand: Option<&'a Expand<'a>>,
    pub middle_gradient: MiddleGradient<'a>,
    pub flipped: &'a [f32],
    /// Input gradient of the images of `groups`.
    pub dx: &'a mut [f32],
    pub groups: Range<usize>,
    pub activations: PhantomData<(A1, A2)>,
}

impl<A1: Act, A2: Act> Kernel for DepthwiseBackward<'_, A1, A2> {
    /// Sums for the first batch norm, the packed depthwise weight gradient, and the products of expand's weight
    /// gradient `[slices, in, SLICE]`.
    type Output = (Sums, Aligned, Aligned);
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let (conv, layout) = (self.shape.depthwise(), self.layout);
        let (inputs, columns, out_columns) = (self.shape.in_channels, conv.width, conv.out_width());
        let (together, in_pixels) = (layout.together, layout.pixels);
        let taps = conv.taps() * SLICE;
        let out_rows = chunk_rows(out_columns).min(conv.out_height());
        let in_rows = chunk_rows(columns).min(conv.height);
        let mut sums = Sums::new(conv.channels);
        let mut weight_gradient = Aligned::zeros(conv.slices() * taps);
        let mut products = Aligned::zeros(if self.expand.is_some() { conv.slices() * inputs * SLICE } else { 0 });
        let mut inputs_of: Vec<Frame> = (0..together).map(|_| Frame::of_input(conv)).collect();
        let mut outputs_of: Vec<Frame> = (0..together).map(|_| Frame::of_output(conv)).collect();
        let makes_y1 = self.expand.is_some_and(|expand| expand.y1.is_none());
        let mut made_y1 = Buffer::with_arbitrary_contents(if makes_y1 { together * in_pixels * SLICE } else { 0 });
        let mut tile = Aligned::zeros(together * out_rows * out_columns * SLICE);
        let mut line = Aligned::zeros(together * in_rows * columns * SLICE);
        for (group, dx) in self.groups.zip(self.dx.chunks_mut(together * in_pixels * inputs)) {
            let images = layout.images(group..group + 1);
            let x = &self.x[images.start * in_pixels * inputs..images.end * in_pixels * inputs];
            let (input, output) = (&mut inputs_of[..images.len()], &mut outputs_of[..images.len()]);
            for slice in 0..conv.slices() {
                let (first, width) = (slice * SLICE, conv.slice_width(slice));
                let strip = Strip::new(conv, slice, (conv.height, columns));
                let middle_gradient = self.middle_gradient.slice(group, slice);
                let expand = self.expand.map(|expand| {
                    let of_slice = |values: &[f32]| lanes(values, first, width);
                    let (scale, shift) = (of_slice(&expand.affine.scale), of_slice(&expand.affine.shift));
                    (expand::Slice { weight: &expand.slices[slice], scale, shift, width }, &expand.back[slice])
                });
                let kept = self.expand.and_then(|expand| expand.y1).map(|y1| &y1[layout.group(group, slice)]);
                let flipped = &self.flipped[slice * taps..][..taps];
                let (mut made, mut known) = (0, 0);
                // Some rows of one image, or all rows of several.
                for start in (0..conv.out_height()).step_by(out_rows) {
                    let rows = start..conv.out_height().min(start + out_rows);
                    let needed = conv.rows_read(rows.end);
                    match &expand {
                        None => {
                            for (input, x) in input.iter_mut().zip(x.chunks_exact(in_pixels * inputs)) {
                                input.fill(s, x, strip, made..needed, |_, x| x);
                            }
                        }
                        Some((expand, _)) => {
                            let offset = made * columns * SLICE;
                            let y1 = match kept {
                                Some(y1) => &y1[offset..],
                                None => {
                                    let y1 = &mut made_y1[offset..];
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
                    middle_gradient.make::<S, A2>(s, rows.clone(), out_columns, conv.channels, &mut tile, output);
                    next(1);
                    prefetch_next(s, x, of_x.clone(), slice, conv.slices());
                    let gradient = &mut weight_gradient[slice * taps..][..taps];
                    for (input, output) in input.iter().zip(output.iter()) {
                        accumulate_weight_gradient(input, output, conv, rows.clone(), width, gradient);
                    }
                    next(2);
                    middle_gradient.prefetch_next(s, images.len() * out_columns, rows.clone(), slice, conv.slices());
                    let now_known = conv.rows_known(rows.end);
                    for row in (known..now_known).step_by(in_rows) {
                        let rows = row..now_known.min(row + in_rows);
                        let of_image = rows.len() * columns * SLICE;
                        let line = &mut line[..images.len() * of_image];
                        for (output, line) in output.iter().zip(line.chunks_exact_mut(of_image)) {
                            input_gradient_rows(output, conv, flipped, rows.clone(), width, line);
                        }
                        let pixels = rows.start * columns..rows.start * columns + line.len() / SLICE;
                        let Some((expand, back)) = &expand else {
                            let dx = dx[pixels.start * inputs..].chunks_exact_mut(inputs);
                            for (dx, g) in dx.zip(line.as_chunks::<SLICE>().0) {
                                dx[first..first + width].copy_from_slice(&g[..width]);
                            }
                            continue;
                        };
                        let y1 = kept.unwrap_or(&made_y1);
                        let y1 = &y1.as_chunks::<SLICE>().0[pixels.clone()];
                        let (mut sum, mut square): (Lanes, Lanes) = ([0.0; SLICE], [0.0; SLICE]);
                        for lane in Lane::covering(s, width) {
                            let scale = lane.load(&expand.scale);
                            let shift = lane.load(&expand.shift);
                            let mut running = RunningSums::new(s);
                            let affine = [scale, shift];
                            let (turns, rest) = line.as_chunks_mut::<SLICE>().0.as_chunks_mut::<TURNS>();
                            let (y1_turns, y1_rest) = y1.as_chunks::<TURNS>();
                            for (g, y1) in turns.iter_mut().zip(y1_turns) {
                                for (turn, (g, y1)) in g.iter_mut().zip(y1).enumerate() {
                                    times_slope::<S, A1>(s, lane, affine, g, y1, &mut running, turn);
                                }
                            }
                            for (g, y1) in rest.iter_mut().zip(y1_rest) {
                                times_slope::<S, A1>(s, lane, affine, g, y1, &mut running, 0);
                            }
                            let (sums, squares) = running.totals();
                            lane.store(&mut sum, sums);
                            lane.store(&mut square, squares);
                        }
                        sums.add_block(first, &sum[..width], &square[..width]);
                        let span = pixels.start * inputs..pixels.end * inputs;
                        let back_into = if slice == 0 { multiply } else { multiply_add };
                        back_into(line, SLICE, pixels.len(), back, &mut dx[span.clone()], inputs);
                        let products = &mut products[slice * inputs * SLICE..][..inputs * SLICE];
                        let count = pixels.len();
                        accumulate_transposed(&x[span], inputs, line, SLICE, count, inputs, width, products, SLICE);
                    }
                    known = now_known;
                    next(3);
                    prefetch_next(s, dx, of_x, slice, conv.slices());
                }
            }
        }
        (sums, weight_gradient, products)
    }
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
