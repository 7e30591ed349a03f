//! Backward pass of the inverted residual block.

use super::depthwise_backward::{DepthwiseBackward, Expand, MiddleGradient, scaled_slices};
use super::expand::NormGradient;
use super::middle::Middle;
use super::project_backward::ProjectBackward;
use super::{BlockShape, Parameters, RECOMPUTED, Saved, squeeze_excite};
use crate::ops::activation::{Act, Identity, with_activation};
use crate::ops::batch_norm::{Affine, Backward, Normalise, Sums};
use crate::ops::buffers::{Buffer, uninit_vec};
use crate::ops::depthwise;
use crate::ops::matmul::Packed;
use crate::ops::parallel::{self, Shared};
use crate::ops::rows::{RawGradient, accumulate, gradient_sums, total, write_transposed};
use crate::ops::simd::{InstructionSet, dispatch};
use crate::ops::slice::SLICE;
use crate::ranks::Ranks;
use std::marker::PhantomData;
use std::ops::Range;

/// Gradients at the input and at the packed parameters, given the gradient `g` at the output.
pub(super) fn backward(
    shape: &BlockShape,
    x: &[f32],
    packed: &[f32],
    saved: &Saved,
    normalise: Normalise,
    ranks: Option<&Ranks>,
    g: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    with_activation!(shape.activation, A => backward_with::<A>(shape, x, packed, saved, normalise, ranks, g))
}

fn backward_with<A: Act>(
    shape: &BlockShape,
    x: &[f32],
    packed: &[f32],
    saved: &Saved,
    normalise: Normalise,
    ranks: Option<&Ranks>,
    g: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    let at = Parameters::new(shape);
    let mut gradient = vec![0.0; at.len];
    let (inputs, middle, outputs) = (shape.in_channels, shape.middle, shape.out_channels);
    let affine = |index: usize, norm: &[Range<usize>; 2]| {
        Affine::new(&saved.statistics[index], &packed[norm[0].clone()], &packed[norm[1].clone()], shape.eps)
    };
    let norm_backward = |index: usize, norm: &[Range<usize>; 2], sums: &Sums, gradient: &mut [f32]| {
        let back =
            Backward::over(ranks, sums, &saved.statistics[index], &packed[norm[0].clone()], shape.eps, normalise);
        gradient[norm[0].clone()].copy_from_slice(&back.weight_gradient);
        gradient[norm[1].clone()].copy_from_slice(&back.bias_gradient);
        back
    };

    // Last batch norm.
    let sums = gradient_sums(g, &saved.y3, outputs);
    let back3 = norm_backward(2, &at.norm3, &sums, &mut gradient);

    // Project: the gradient of its weight, and the partial sums that the second batch norm's gradient needs.
    let affine2 = affine(1, &at.norm2);
    let layout = Middle::of_output(shape);
    let gate = saved.squeeze_excite.as_ref().map(|s| &s.gate[..]);
    let stride = outputs.next_multiple_of(InstructionSet::active().lanes());
    let project = Packed::slices(&packed[at.project.clone()], outputs, middle, middle, 1);
    let mut g2 = (outputs > RECOMPUTED).then(|| Buffer::with_arbitrary_contents(layout.len()));
    let mut g3 = Buffer::with_arbitrary_contents(shape.out_pixels() * stride);
    let (g2_shared, g3_shared) = (g2.as_deref_mut().map(Shared::new), Shared::new(&mut g3));
    let parts = parallel::map(layout.groups(), 1, |groups| {
        let images = layout.images(groups.clone());
        let rows = images.start * layout.pixels..images.end * layout.pixels;
        // SAFETY: the range covers the rows of the images of `groups`. `map` passes each group to one call, so no other
        // reference covers it; `g3` stays borrowed until all calls are done.
        let g3 = unsafe { g3_shared.slice(rows.start * stride..rows.end * stride) };
        dispatch(ProjectBackward::<A> {
            raw: RawGradient { g, y: &saved.y3, back: &back3 },
            layout,
            y2: &saved.y2,
            affine2: &affine2,
            gate,
            project: &project,
            stride,
            g3,
            g2: g2_shared,
            groups,
            activation: PhantomData,
        })
    });
    let (parts, weight_parts): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    write_transposed(weight_parts, stride, &mut gradient[at.project.clone()], middle);
    let pooled_gradient = saved.squeeze_excite.as_ref().zip(shape.squeeze_excite).map(|(se, reduced)| {
        let gate_gradient = parts.iter().map(|part| part.gate_gradient(middle)).collect::<Vec<_>>().concat();
        let mut pooled = squeeze_excite::backward(shape, reduced, packed, &at, se, gate_gradient, &mut gradient);
        pooled.iter_mut().for_each(|g| *g /= layout.pixels as f32);
        pooled
    });
    let gates = gate.zip(pooled_gradient.as_deref());
    let totals =
        parallel::map(parts.len(), 1, |range| Sums::total(parts[range].iter().map(|part| part.total(middle, gates))));
    let sums = Sums::total(totals);
    let back2 = norm_backward(1, &at.norm2, &sums, &mut gradient);

    // Depthwise, and the part of expand that does not depend on the first batch norm's gradient.
    let conv = shape.depthwise();
    let in_layout = Middle::of_input(shape);
    let flipped = depthwise::pack_weights(&packed[at.depthwise.clone()], middle, conv.taps(), true);
    let affine1 = shape.expand.then(|| affine(0, &at.norm1));
    let weight1 = &packed[at.expand.clone()];
    let expand = affine1.as_ref().map(|affine| Expand {
        affine,
        slices: Packed::slices(weight1, inputs, middle, 1, inputs),
        back: scaled_slices(weight1, inputs, &affine.scale),
        y1: saved.y1.as_deref(),
    });
    // SAFETY: with expand, the product of the first slice of each group of images writes all `inputs` channels of all
    // pixels of the group before other slices add to them. Without expand, the middle channels are the inputs, and each
    // slice writes its own channels. Nothing is read before it is written.
    let mut dx = unsafe { uninit_vec(shape.in_pixels() * inputs) };
    let dx_shared = Shared::new(&mut dx);
    let parts = parallel::map(in_layout.groups(), 1, |groups| {
        let images = in_layout.images(groups.clone());
        let image = in_layout.pixels * inputs;
        let middle_gradient = MiddleGradient {
            layout,
            y2: &saved.y2,
            affine2: &affine2,
            back2: &back2,
            g2: g2.as_deref(),
            g3: &g3,
            stride,
            project: &project,
            gates,
        };
        let (expand, flipped) = (expand.as_ref(), &flipped[..]);
        // SAFETY: the range covers the images of `groups`. `map` passes each group to one call, so no other reference
        // covers it; `dx` stays borrowed until all calls are done.
        let dx = unsafe { dx_shared.slice(images.start * image..images.end * image) };
        match expand {
            Some(_) => dispatch(DepthwiseBackward::<A, A> {
                shape,
                layout: in_layout,
                x,
                expand,
                middle_gradient,
                flipped,
                dx,
                groups,
                activations: PhantomData,
            }),
            None => dispatch(DepthwiseBackward::<Identity, A> {
                shape,
                layout: in_layout,
                x,
                expand,
                middle_gradient,
                flipped,
                dx,
                groups,
                activations: PhantomData,
            }),
        }
    });
    let (mut sums, mut depthwise_parts, mut expand_parts) = (Vec::new(), Vec::new(), Vec::new());
    for (of_sums, of_depthwise, of_expand) in parts {
        sums.push(of_sums);
        depthwise_parts.push(of_depthwise);
        expand_parts.push(of_expand);
    }
    depthwise::unpack_weights(&total(depthwise_parts), middle, conv.taps(), &mut gradient[at.depthwise.clone()]);

    // The first batch norm, and the gradient of the shortcut.
    let mut residual = shape.residual.then_some(g);
    if shape.expand {
        let back1 = norm_backward(0, &at.norm1, &Sums::total(sums), &mut gradient);
        let products = total(expand_parts);
        for (channel, out) in gradient[at.expand.clone()].chunks_exact_mut(inputs).enumerate() {
            let slice = &products[channel / SLICE * inputs * SLICE..];
            for (input, out) in out.iter_mut().enumerate() {
                *out = back1.by_gradient[channel] * slice[input * SLICE + channel % SLICE];
            }
        }
        if let Some(moments) = &saved.moments {
            let norm = NormGradient::new(moments, weight1, &back1);
            norm.add_to(x, residual.take(), &mut dx);
            for (out, v) in gradient[at.expand.clone()].iter_mut().zip(&norm.weight) {
                *out += v;
            }
        }
    }
    if let Some(residual) = residual {
        accumulate(&mut dx, residual);
    }
    (dx, gradient)
}
