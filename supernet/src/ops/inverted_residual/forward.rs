//! The block's forward pass.

use super::{BlockShape, BlockStatistics, Parameters, Saved, squeeze_excite};
use crate::ops::activation::{Act, Identity, with_activation};
use crate::ops::batch_norm::{Affine, Sums, lanes};
use crate::ops::buffers::{Aligned, Buffer};
use crate::ops::depthwise::{self, Lanes, SLICE, Strip, convolve_row, fill_padded};
use crate::ops::matmul::Packed;
use crate::ops::parallel::{self, Shared};
use crate::ops::rows::{Activated, Left, Nothing, normalise, pool, product};
use crate::ops::simd::{Kernel, Simd, dispatch};
use crate::ranks::Ranks;
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// Middle values that pass through a block together when images do not depend on one another: as many as stay in the second-level cache.
const PART: usize = 1 << 16;

/// Output `[batch, height, width, out]`, what the backward pass needs if `keep`, and the statistics used: the batch's (of all
/// `ranks` together, if there are) unless `given`.
pub(super) fn forward(
    shape: &BlockShape,
    x: &[f32],
    packed: &[f32],
    given: Option<&BlockStatistics>,
    ranks: Option<&Ranks>,
    keep: bool,
) -> (Vec<f32>, Option<Saved>, BlockStatistics) {
    let weights = Weights::new(shape, packed);
    let mut output = vec![0.0; shape.out_pixels() * shape.out_channels];
    with_activation!(shape.activation, A => match given {
        Some(given) if !keep && shape.batch >= 2 * rayon::current_num_threads() => {
            in_parts::<A>(shape, x, packed, &weights, given, &mut output);
            (output, None, given.clone())
        }
        _ => {
            let saved = pass::<A>(shape, x, packed, &weights, given, ranks, &mut output);
            let statistics = saved.statistics.clone();
            (output, keep.then_some(saved), statistics)
        }
    })
}

/// The convolutions' weights as the kernels read them.
struct Weights {
    expand: Option<Packed>,
    depthwise: Aligned,
    project: Packed,
}

impl Weights {
    fn new(shape: &BlockShape, packed: &[f32]) -> Self {
        let at = Parameters::new(shape);
        let (middle, inputs) = (shape.middle, shape.in_channels);
        let taps = shape.kernel * shape.kernel;
        Weights {
            expand: shape.expand.then(|| Packed::new(&packed[at.expand.clone()], inputs, middle, 1, inputs)),
            depthwise: depthwise::pack_weights(&packed[at.depthwise.clone()], middle, taps, false),
            project: Packed::new(&packed[at.project.clone()], middle, shape.out_channels, 1, middle),
        }
    }
}

/// A few images at a time through the whole block, each thread with its own: with given statistics they do not depend on one another, and what
/// lies between the convolutions never leaves the cache.
fn in_parts<A: Act>(
    shape: &BlockShape,
    x: &[f32],
    packed: &[f32],
    weights: &Weights,
    given: &BlockStatistics,
    output: &mut [f32],
) {
    let (input, out) = (x.len() / shape.batch, output.len() / shape.batch);
    let middle = (shape.in_pixels() + shape.out_pixels()) / shape.batch * shape.middle;
    let images = (PART / middle).clamp(1, shape.batch.div_ceil(2 * rayon::current_num_threads()));
    let output = Shared::new(output);
    (0..shape.batch.div_ceil(images)).into_par_iter().with_max_len(1).for_each(|part| {
        let first = part * images;
        let shape = BlockShape { batch: images.min(shape.batch - first), ..shape.clone() };
        // SAFETY: parts are disjoint ranges of images.
        let output = unsafe { output.slice(first * out..(first + shape.batch) * out) };
        let x = &x[first * input..][..shape.batch * input];
        parallel::alone(|| pass::<A>(&shape, x, packed, weights, Some(given), None, output));
    });
}

/// One pass over all images.
fn pass<A: Act>(
    shape: &BlockShape,
    x: &[f32],
    packed: &[f32],
    weights: &Weights,
    given: Option<&BlockStatistics>,
    ranks: Option<&Ranks>,
    output: &mut [f32],
) -> Saved {
    let at = Parameters::new(shape);
    let (middle, out_channels) = (shape.middle, shape.out_channels);
    let (in_pixels, out_pixels) = (shape.in_pixels(), shape.out_pixels());
    let affine = |statistics: &_, norm: &[Range<usize>; 2]| {
        Affine::new(statistics, &packed[norm[0].clone()], &packed[norm[1].clone()], shape.eps)
    };
    let mut statistics = given.cloned().unwrap_or_default();
    let with_sums = given.is_none();

    // Expand.
    let mut y1 = Buffer::default();
    let mut affine1 = None;
    if let Some(weight) = &weights.expand {
        y1 = Buffer::uninitialised(in_pixels * middle);
        let sums = product::<Nothing>(Left::Plain(x), in_pixels, weight, &mut y1, with_sums);
        if with_sums {
            statistics[0] = sums.statistics_over(ranks, in_pixels);
        }
        affine1 = Some(affine(&statistics[0], &at.norm1));
    }

    // Depthwise.
    let mut y2 = Buffer::uninitialised(out_pixels * middle);
    let input = if shape.expand { &y1[..] } else { x };
    let sums = depthwise_forward::<A>(shape, input, affine1.as_ref(), &weights.depthwise, &mut y2);
    if with_sums {
        statistics[1] = sums.statistics_over(ranks, out_pixels);
    }
    let affine2 = affine(&statistics[1], &at.norm2);

    // Squeeze-excite.
    let pixels = out_pixels / shape.batch;
    let squeeze_excite = shape.squeeze_excite.map(|reduced| {
        let pooled = pool::<A>(&y2, &affine2, shape.batch);
        squeeze_excite::forward(shape, reduced, packed, &at, pooled)
    });

    // Project.
    let mut y3 = Buffer::uninitialised(out_pixels * out_channels);
    let source = Activated::<A> {
        y: &y2,
        affine: &affine2,
        gate: squeeze_excite.as_ref().map(|s| (&s.gate[..], pixels)),
        activation: PhantomData,
    };
    let sums = product(Left::Made(&source), out_pixels, &weights.project, &mut y3, with_sums);
    if with_sums {
        statistics[2] = sums.statistics_over(ranks, out_pixels);
    }
    normalise::<Identity>(&y3, &affine(&statistics[2], &at.norm3), shape.residual.then_some(x), output);
    Saved { y1, y2, y3, statistics, squeeze_excite }
}

/// `y2 = depthwise(activated input)`; without `affine` the input is taken as it is.
fn depthwise_forward<A: Act>(
    shape: &BlockShape,
    input: &[f32],
    affine: Option<&Affine>,
    weights: &[f32],
    y2: &mut [f32],
) -> Sums {
    let tasks = shape.batch * shape.depthwise().slices();
    let output = Shared::new(y2);
    let parts = parallel::map(tasks, 1, |tasks| {
        // SAFETY: tasks write disjoint (image, slice) parts; extents are checked.
        unsafe {
            match affine {
                Some(affine) => dispatch(DepthwiseForward::<A> {
                    shape,
                    input,
                    affine,
                    weights,
                    output,
                    tasks,
                    activation: PhantomData,
                }),
                None => {
                    let affine = &Affine::identity(shape.middle);
                    dispatch(DepthwiseForward::<Identity> {
                        shape,
                        input,
                        affine,
                        weights,
                        output,
                        tasks,
                        activation: PhantomData,
                    })
                }
            }
        }
    });
    Sums::total(parts)
}

struct DepthwiseForward<'a, A> {
    shape: &'a BlockShape,
    input: &'a [f32],
    affine: &'a Affine,
    weights: &'a [f32],
    output: Shared,
    /// (image, slice) pairs, slices of an image side by side.
    tasks: Range<usize>,
    activation: PhantomData<A>,
}

impl<A: Act> Kernel for DepthwiseForward<'_, A> {
    type Output = Sums;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Sums {
        let conv = self.shape.depthwise();
        let channels = conv.channels;
        let taps = conv.kernel * conv.kernel * SLICE;
        let (rows, columns) = (conv.out_height(), conv.out_width());
        let mut sums = Sums::new(channels);
        let mut scratch = Buffer::zeros(conv.padded_len());
        let mut line = Aligned::zeros(columns * SLICE);
        let mut last_width = SLICE;
        for task in self.tasks {
            let (image, slice) = (task / conv.slices(), task % conv.slices());
            let (first, width) = (slice * SLICE, conv.slice_width(slice));
            if width < last_width {
                scratch.fill(0.0); // lanes that this slice lacks
            }
            last_width = width;
            let scale = lanes(&self.affine.scale, first, width);
            let shift = lanes(&self.affine.shift, first, width);
            let image_input = &self.input[image * conv.in_pixels() * channels..];
            let strip = Strip::new(conv, slice, (conv.height, conv.width));
            let (padded_width, padding) = (conv.padded_width(), conv.padding());
            fill_padded::<S>([image_input; 2], strip, &mut scratch, padded_width, padding, 1, |lane, y, _| {
                A::value(y * scale[lane] + shift[lane])
            });
            let weights = &self.weights[slice * taps..][..taps];
            let ahead = Strip::new(conv, slice, (rows, columns)).ahead();
            for y in 0..rows {
                convolve_row(&scratch, padded_width, weights, conv.kernel, conv.stride, y, columns, &mut line);
                let (mut sum, mut square): (Lanes, Lanes) = ([0.0; SLICE], [0.0; SLICE]);
                for (x, values) in line.chunks_exact(SLICE).enumerate() {
                    let place = (image * conv.out_pixels() + y * columns + x) * channels + first;
                    // SAFETY: this task alone writes these channels of this image; any address may be prefetched.
                    let out = unsafe {
                        let out = self.output.slice(place..place + width);
                        S::prefetch(out.as_ptr().wrapping_add(ahead));
                        out
                    };
                    match width {
                        SLICE => out.copy_from_slice(values),
                        8 => out.copy_from_slice(&values[..8]),
                        _ => out.copy_from_slice(&values[..width]),
                    }
                    for lane in 0..SLICE {
                        sum[lane] += values[lane];
                        square[lane] += values[lane] * values[lane];
                    }
                }
                sums.add_block(first, &sum[..width], &square[..width]);
            }
        }
        sums
    }
}
