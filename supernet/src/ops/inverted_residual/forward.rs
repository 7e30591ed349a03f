//! Forward pass of the inverted residual block.

use super::expand::{self, Moments};
use super::middle::Middle;
use super::{BlockShape, BlockStatistics, Parameters, RECOMPUTED, Saved, squeeze_excite};
use crate::ops::activation::{Act, Identity, with_activation};
use crate::ops::batch_norm::{Affine, RunningSums, Sums, TURNS};
use crate::ops::buffers::{Aligned, Buffer, uninit_vec};
use crate::ops::depthwise::{self, Frame, Prefetch, Strip, chunk_rows, convolve_rows, prefetch_next};
use crate::ops::matmul::{Packed, ROW_BLOCK};
use crate::ops::parallel::{self, Shared};
use crate::ops::rows::{Left, RowSource, normalise, product};
use crate::ops::simd::{Kernel, Simd, dispatch, entry_points};
use crate::ops::slice::{Lane, Lanes, SLICE, lanes};
use crate::ranks::Ranks;
use std::marker::PhantomData;
use std::ops::Range;

/// Middle values per part when images are independent: as many as stay in L2.
const PART: usize = 1 << 16;

/// Output `[batch, height, width, out]`, the saved values for the backward pass if `keep`, and the statistics used:
/// `given`, or those of the batch (over all `ranks`, if passed).
pub(super) fn forward(
    shape: &BlockShape,
    x: &[f32],
    packed: &[f32],
    given: Option<&BlockStatistics>,
    ranks: Option<&Ranks>,
    keep: bool,
) -> (Vec<f32>, Option<Saved>, BlockStatistics) {
    let weights = Weights::new(shape, packed);
    // SAFETY: each `pass` ends with `normalise`, which writes all output values of the pass's images and reads none of
    // them; the passes below cover all images.
    let mut output = unsafe { uninit_vec(shape.out_pixels() * shape.out_channels) };
    with_activation!(shape.activation, A => match given {
        Some(given) if !keep && shape.batch >= 2 * parallel::threads() => {
            in_parts::<A>(shape, x, packed, &weights, given, &mut output);
            (output, None, given.clone())
        }
        _ => {
            let saved = pass::<A>(shape, x, packed, &weights, given, ranks, keep, &mut output);
            let statistics = saved.statistics.clone();
            (output, keep.then_some(saved), statistics)
        }
    })
}

/// Weights of the convolutions, packed for the kernels.
struct Weights {
    /// The expand weight per slice of middle channels; empty without expand.
    expand: Vec<Packed>,
    depthwise: Aligned,
    project: Packed,
}

impl Weights {
    fn new(shape: &BlockShape, packed: &[f32]) -> Self {
        let at = Parameters::new(shape);
        let (middle, inputs) = (shape.middle, shape.in_channels);
        let taps = shape.depthwise().taps();
        let expand = || Packed::slices(&packed[at.expand.clone()], inputs, middle, 1, inputs);
        Weights {
            expand: if shape.expand { expand() } else { Vec::new() },
            depthwise: depthwise::pack_weights(&packed[at.depthwise.clone()], middle, taps, false),
            project: Packed::new(&packed[at.project.clone()], middle, shape.out_channels, 1, middle),
        }
    }
}

/// Passes a few images at a time through the whole block, on each thread separately. With given statistics images are
/// independent, and values between the convolutions never leave the cache.
fn in_parts<A: Act>(
    shape: &BlockShape,
    x: &[f32],
    packed: &[f32],
    weights: &Weights,
    given: &BlockStatistics,
    output: &mut [f32],
) {
    let (input, out) = (x.len() / shape.batch, output.len() / shape.batch);
    let middle = shape.out_pixels() / shape.batch * shape.middle;
    let images = (PART / middle).clamp(1, shape.batch.div_ceil(2 * parallel::threads()));
    let output = Shared::new(output);
    parallel::each(shape.batch.div_ceil(images), |part| {
        let first = part * images;
        let shape = BlockShape { batch: images.min(shape.batch - first), ..shape.clone() };
        // SAFETY: the range covers the images from `first` on, and `each` passes every `part` to one call, so no other
        // reference covers it; `output` stays borrowed until all calls are done.
        let output = unsafe { output.slice(first * out..(first + shape.batch) * out) };
        let x = &x[first * input..][..shape.batch * input];
        parallel::with_threads(1, || pass::<A>(&shape, x, packed, weights, Some(given), None, false, output));
    });
}

/// Passes all images through the block, phase by phase.
#[allow(clippy::too_many_arguments)] // inputs, source of the statistics, and outputs of the block
fn pass<A: Act>(
    shape: &BlockShape,
    x: &[f32],
    packed: &[f32],
    weights: &Weights,
    given: Option<&BlockStatistics>,
    ranks: Option<&Ranks>,
    keep: bool,
    output: &mut [f32],
) -> Saved {
    let at = Parameters::new(shape);
    let out_pixels = shape.out_pixels();
    let affine = |statistics: &_, norm: &[Range<usize>; 2]| {
        Affine::new(statistics, &packed[norm[0].clone()], &packed[norm[1].clone()], shape.eps)
    };
    let mut statistics = given.cloned().unwrap_or_default();
    let with_sums = given.is_none();

    // Expand: its statistics.
    let moments = (with_sums && shape.expand).then(|| Moments::new(x, shape.in_channels));
    if let Some(moments) = &moments {
        statistics[0] = moments.sums(&packed[at.expand.clone()]).statistics_over(ranks, shape.in_pixels());
    }
    let affine1 = shape.expand.then(|| affine(&statistics[0], &at.norm1));

    // Depthwise.
    let layout = Middle::of_output(shape);
    let mut y1 = (keep && shape.expand && shape.in_channels > RECOMPUTED)
        .then(|| Buffer::with_arbitrary_contents(Middle::of_input(shape).len()));
    let mut y2 = Buffer::with_arbitrary_contents(layout.len());
    let sums = depthwise_forward::<A>(shape, x, weights, affine1.as_ref(), y1.as_deref_mut(), &mut y2, with_sums);
    if with_sums {
        statistics[1] = sums.statistics_over(ranks, out_pixels);
    }
    let affine2 = affine(&statistics[1], &at.norm2);

    // Squeeze-excite.
    let squeeze_excite = shape.squeeze_excite.map(|reduced| {
        let pooled = pool::<A>(&y2, &affine2, layout, shape.batch);
        squeeze_excite::forward(shape, reduced, packed, &at, pooled)
    });

    // Project.
    let mut y3 = Buffer::with_arbitrary_contents(out_pixels * shape.out_channels);
    let gate = squeeze_excite.as_ref().map(|s| &s.gate[..]);
    let source = Activated::<A> { y2: &y2, layout, affine: &affine2, gate, activation: PhantomData };
    let sums = product(Left::Made(&source), out_pixels, &weights.project, &mut y3, with_sums);
    if with_sums {
        statistics[2] = sums.statistics_over(ranks, out_pixels);
    }
    normalise::<Identity>(&y3, &affine(&statistics[2], &at.norm3), shape.residual.then_some(x), output);
    Saved { moments, y1, y2, y3, statistics, squeeze_excite }
}

/// Computes `y2 = depthwise(activation(affine(expand(x))))`, or `depthwise(x)` without `affine`, and keeps the raw
/// output of expand in `y1` if there is one. Returns the sums of `y2` if `with_sums`.
fn depthwise_forward<A: Act>(
    shape: &BlockShape,
    x: &[f32],
    weights: &Weights,
    affine: Option<&Affine>,
    y1: Option<&mut [f32]>,
    y2: &mut [f32],
    with_sums: bool,
) -> Sums {
    let layout = Middle::of_input(shape);
    let (y1, y2) = (y1.map(Shared::new), Shared::new(y2));
    let parts = parallel::map(layout.groups() * layout.slices, 1, |tasks| {
        dispatch(DepthwiseForward::<A> {
            shape,
            layout,
            x,
            weights,
            affine,
            y1,
            y2,
            with_sums,
            tasks,
            activation: PhantomData,
        })
    });
    Sums::total(parts)
}

struct DepthwiseForward<'a, A> {
    shape: &'a BlockShape,
    layout: Middle,
    x: &'a [f32],
    weights: &'a Weights,
    /// Batch norm of the expand convolution, if there is one.
    affine: Option<&'a Affine>,
    y1: Option<Shared>,
    y2: Shared,
    with_sums: bool,
    /// Pairs (group, slice), the slices of a group in sequence; no concurrent kernel has any of them.
    tasks: Range<usize>,
    activation: PhantomData<A>,
}

impl<A: Act> Kernel for DepthwiseForward<'_, A> {
    type Output = Sums;
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Sums {
        let (conv, layout, inputs) = (self.shape.depthwise(), self.layout, self.shape.in_channels);
        let out_layout = Middle::of_output(self.shape);
        let taps = conv.taps() * SLICE;
        let (height, columns) = (conv.out_height(), conv.out_width());
        let at_a_time = chunk_rows(columns).min(height);
        let raw_rows = chunk_rows(conv.width).min(conv.height);
        let mut sums = Sums::new(conv.channels);
        let mut frames: Vec<Frame> = (0..layout.together).map(|_| Frame::of_input(conv)).collect();
        let mut tile = Aligned::zeros(layout.together * raw_rows * conv.width * SLICE);
        for task in self.tasks {
            let (group, slice) = (task / layout.slices, task % layout.slices);
            let images = layout.images(group..group + 1);
            let (first, width) = (slice * SLICE, conv.slice_width(slice));
            let image_len = layout.pixels * inputs;
            let x = &self.x[images.start * image_len..images.end * image_len];
            let frames = &mut frames[..images.len()];
            let expand = self.affine.map(|affine| expand::Slice {
                weight: &self.weights.expand[slice],
                scale: lanes(&affine.scale, first, width),
                shift: lanes(&affine.shift, first, width),
                width,
            });
            // SAFETY: the ranges are those of this slice of this group, disjoint from those of any other pair, and no
            // other task has this pair, so no other reference covers them; `depthwise_forward` keeps `y1` and `y2`
            // borrowed until all tasks are done.
            let (y1, y2) = unsafe {
                let y1 = self.y1.as_ref().map(|y1| y1.slice(layout.group(group, slice)));
                (y1.unwrap_or_default(), self.y2.slice(out_layout.group(group, slice)))
            };
            let strip = Strip::new(conv, slice, (conv.height, conv.width));
            let weights = &self.weights.depthwise[slice * taps..][..taps];
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
                        for row in (made..needed).step_by(raw_rows) {
                            let rows = row..needed.min(row + raw_rows);
                            let kept = row * conv.width * SLICE;
                            let raw = if y1.is_empty() { &mut tile[..] } else { &mut y1[kept..] };
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
                    convolve_rows(frame, conv, weights, rows.clone(), width, y2);
                }
                (2..Prefetch::PARTS).for_each(|part| next.issue(s, part));
                if !self.with_sums {
                    continue;
                }
                let (mut sum, mut square): (Lanes, Lanes) = ([0.0; SLICE], [0.0; SLICE]);
                for lane in Lane::covering(s, width) {
                    let mut running = RunningSums::new(s);
                    let (turns, rest) = y2.as_chunks::<SLICE>().0.as_chunks::<TURNS>();
                    for y2 in turns {
                        for (turn, y2) in y2.iter().enumerate() {
                            running.add(turn, lane.load(y2), lane.load(y2));
                        }
                    }
                    for y2 in rest {
                        running.add(0, lane.load(y2), lane.load(y2));
                    }
                    let (sums, squares) = running.totals();
                    lane.store(&mut sum, sums);
                    lane.store(&mut square, squares);
                }
                sums.add_block(first, &sum[..width], &square[..width]);
            }
        }
        sums
    }
}

/// The row source `activation(affine(y2)) * gate`, for the projection.
struct Activated<'a, A> {
    y2: &'a [f32],
    layout: Middle,
    affine: &'a Affine,
    /// `[images, columns]`
    gate: Option<&'a [f32]>,
    activation: PhantomData<A>,
}

impl<A: Act> RowSource for Activated<'_, A> {
    #[inline(always)]
    fn fill<S: Simd>(&self, s: S, first: usize, rows: usize, columns: usize, tile: &mut [f32]) {
        let mut done = 0;
        while done < rows {
            let pixels = self.layout.pixels;
            let (image, pixel) = ((first + done) / pixels, (first + done) % pixels);
            let run = (pixels - pixel).min(rows - done);
            // Prefetches the start of the next block: slices are streams far apart, which the hardware prefetcher does
            // not predict.
            let next = first + done + rows;
            let next = self.layout.has(next / pixels).then_some((next / pixels, next % pixels));
            for slice in 0..columns.div_ceil(SLICE) {
                let start = slice * SLICE;
                let width = SLICE.min(columns - start);
                let (scale, shift) = (lanes(&self.affine.scale, start, width), lanes(&self.affine.shift, start, width));
                let gate = self.gate.map_or([1.0; SLICE], |gate| lanes(&gate[image * columns..], start, width));
                let y2 = self.layout.image(self.y2, image, slice);
                let y2 = &y2[pixel..pixel + run];
                let ahead =
                    next.map_or(y2, |(image, pixel)| &self.layout.image(self.y2, image, slice)[pixel..]).as_ptr();
                let tile = &mut tile[done * columns + start..(done + run) * columns];
                for lane in Lane::covering(s, width) {
                    let kept = lane.start()..width.min(lane.start() + S::LANES);
                    let (scale, shift) = (lane.load(&scale), lane.load(&shift));
                    let gate = lane.load(&gate);
                    for (pixel, (y2, out)) in y2.iter().zip(tile.chunks_mut(columns)).enumerate() {
                        if lane.start() == 0 {
                            s.prefetch(ahead.wrapping_add(pixel).cast());
                        }
                        let value = A::values(s, s.mul_add(lane.load(y2), scale, shift));
                        s.write(&mut out[kept.clone()], s.mul(value, gate));
                    }
                }
            }
            done += run;
        }
    }
}

/// Mean of `activation(affine(y2))` over each image's pixels: `[images, channels]`.
fn pool<A: Act>(y2: &[f32], affine: &Affine, layout: Middle, images: usize) -> Vec<f32> {
    let channels = affine.scale.len();
    let mut pooled = vec![0.0; images * channels];
    parallel::map_parts(&mut pooled, channels, images, 1, |images, pooled| {
        dispatch(Pool::<A> { y2, affine, layout, images, pooled, activation: PhantomData })
    });
    pooled
}

struct Pool<'a, A> {
    y2: &'a [f32],
    affine: &'a Affine,
    layout: Middle,
    images: Range<usize>,
    /// Means of `images`.
    pooled: &'a mut [f32],
    activation: PhantomData<A>,
}

impl<A: Act> Kernel for Pool<'_, A> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let channels = self.affine.scale.len();
        for (image, pooled) in self.images.zip(self.pooled.chunks_exact_mut(channels)) {
            for (slice, pooled) in pooled.chunks_mut(SLICE).enumerate() {
                let scale = lanes(&self.affine.scale, slice * SLICE, pooled.len());
                let shift = lanes(&self.affine.shift, slice * SLICE, pooled.len());
                let mut total = [0.0; SLICE];
                for lane in Lane::covering(s, pooled.len()) {
                    let (scale, shift) = (lane.load(&scale), lane.load(&shift));
                    let mut all = s.splat(0.0);
                    for y2 in self.layout.image(self.y2, image, slice).chunks(ROW_BLOCK) {
                        let mut sum = s.splat(0.0);
                        for y2 in y2 {
                            sum = s.add(sum, A::values(s, s.mul_add(lane.load(y2), scale, shift)));
                        }
                        all = s.add(all, sum);
                    }
                    lane.store(&mut total, all);
                }
                for (out, total) in pooled.iter_mut().zip(total) {
                    *out = total / self.layout.pixels as f32;
                }
            }
        }
    }
}
