//! Forward pass of the inverted residual block.

use super::activated::{Activated, Pool};
use super::depthwise_forward::DepthwiseForward;
use super::expand::Moments;
use super::middle::Middle;
use super::{BlockSaved, BlockShape, BlockStatistics, Parameters, RECOMPUTED, squeeze_excite};
use crate::activation::{Act, Identity, with_activation};
use crate::batch_norm::{Affine, Normalise, SumOverProcesses, Sums};
use crate::buffers::{Aligned, Buffer, Unwritten, written};
use crate::depthwise;
use crate::matmul::Packed;
use crate::parallel;
use crate::passes::{normalise, packed_slices, packed_together, product};
use crate::rows::Left;
use crate::simd::dispatch;
use std::marker::PhantomData;
use std::ops::Range;

/// Middle values per part when images are independent: as many as stay in L2.
const PART: usize = 1 << 16;

/// Output `[batch, height, width, out]`, the saved values for the backward pass if `keep`, and the statistics used:
/// `given`, or those of the batch (`over_processes`, if passed).
pub(super) fn forward(
    shape: &BlockShape,
    x: &[f32],
    packed: &[f32],
    given: Option<&BlockStatistics>,
    over_processes: Option<SumOverProcesses>,
    keep: bool,
) -> (Vec<f32>, Option<BlockSaved>, BlockStatistics) {
    let weights = Weights::new(shape, packed);
    let len = shape.out_pixels() * shape.out_channels;
    with_activation!(shape.activation, A => match given {
        Some(given) if !keep && shape.batch >= 2 * parallel::threads() => {
            let (output, ()) = written(len, |output| (in_parts::<A>(shape, x, packed, &weights, given, output), ()));
            (output, None, given.clone())
        }
        _ => {
            let (output, saved) = written(len, |output| {
                pass::<A>(shape, x, packed, &weights, given, over_processes, keep, output)
            });
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
        let expand = || packed_slices(&packed[at.expand.clone()], inputs, middle, 1, inputs);
        Weights {
            expand: if shape.expand { expand() } else { Vec::new() },
            depthwise: depthwise::pack_weights(&packed[at.depthwise.clone()], middle, taps, false),
            project: packed_together(&packed[at.project.clone()], middle, shape.out_channels, 1, middle),
        }
    }
}

/// Passes a few images at a time through the whole block, on each thread separately. With given statistics images are
/// independent, and values between the convolutions never leave the cache.
fn in_parts<'o, A: Act>(
    shape: &BlockShape,
    x: &[f32],
    packed: &[f32],
    weights: &Weights,
    given: &BlockStatistics,
    output: &'o mut Unwritten,
) -> &'o mut [f32] {
    let (input, out) = (x.len() / shape.batch, output.len() / shape.batch);
    let middle = shape.out_pixels() / shape.batch * shape.middle;
    let images = (PART / middle).clamp(1, shape.batch.div_ceil(2 * parallel::threads()));
    let parts = x.chunks(images * input).map(|x| (x.len() / input * out, x)).collect();
    let (output, _) = parallel::write_items(output, parts, |x, output| {
        let shape = BlockShape { batch: x.len() / input, ..shape.clone() };
        let floats =
            parallel::with_threads(1, || pass::<A>(&shape, x, packed, weights, Some(given), None, false, output).0);
        (floats, ())
    });
    output
}

/// Passes all images through the block, phase by phase; returns the output, written, and the saved values.
#[allow(clippy::too_many_arguments)] // inputs, source of the statistics, and outputs of the block
fn pass<'o, A: Act>(
    shape: &BlockShape,
    x: &[f32],
    packed: &[f32],
    weights: &Weights,
    given: Option<&BlockStatistics>,
    over_processes: Option<SumOverProcesses>,
    keep: bool,
    output: &'o mut Unwritten,
) -> (&'o mut [f32], BlockSaved) {
    let at = Parameters::new(shape);
    let out_pixels = shape.out_pixels();
    let affine = |statistics: &_, norm: &[Range<usize>; 2]| {
        Affine::new(statistics, &packed[norm[0].clone()], &packed[norm[1].clone()], shape.eps)
    };
    let mut statistics = given.cloned().unwrap_or_default();
    let with_sums = given.is_none();

    // Expand: its statistics.
    let moments = (with_sums && shape.expand).then(|| {
        let (moments, sums) = Moments::new(x, &packed[at.expand.clone()], shape.in_channels);
        statistics[0] = sums.statistics_over(over_processes, shape.in_pixels());
        moments
    });
    let affine1 = shape.expand.then(|| affine(&statistics[0], &at.norm1));

    // Depthwise.
    let layout = Middle::of_output(shape);
    let mut y1 = (keep && shape.expand && shape.in_channels > RECOMPUTED)
        .then(|| Buffer::with_arbitrary_contents(Middle::of_input(shape).len()));
    let mut y2 = Buffer::with_arbitrary_contents(layout.len());
    let sums = depthwise_forward::<A>(shape, x, weights, affine1.as_ref(), y1.as_deref_mut(), &mut y2, with_sums);
    if with_sums {
        statistics[1] = sums.statistics_over(over_processes, out_pixels);
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
        statistics[2] = sums.statistics_over(over_processes, out_pixels);
    }
    let residual = shape.residual.then_some(x);
    let output = normalise::<Identity>(&y3, &affine(&statistics[2], &at.norm3), residual, output);
    let normalise = if with_sums { Normalise::Batch } else { Normalise::Given };
    let threads = parallel::threads();
    (output, BlockSaved { threads, moments, y1, y2, y3, normalise, statistics, squeeze_excite })
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
    let (layout, out_layout) = (Middle::of_input(shape), Middle::of_output(shape));
    let y1_size = if y1.is_some() { layout.stride() } else { 0 };
    let outputs = [(y1.unwrap_or_default(), y1_size), (y2, out_layout.stride())];
    let parts = parallel::map_outputs(outputs, layout.groups() * layout.slices, 1, |tasks, [y1, y2]| {
        dispatch(DepthwiseForward::<A> {
            shape,
            layout,
            out_layout,
            x,
            expand: affine.map(|affine| (&weights.expand[..], affine)),
            weight: &weights.depthwise,
            y1,
            y2,
            with_sums,
            tasks,
            activation: PhantomData,
        })
    });
    Sums::total(parts)
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
