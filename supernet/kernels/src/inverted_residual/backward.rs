//! Backward pass of the inverted residual block.

use super::depthwise_backward::{DepthwiseBackward, Expand, scaled_slices};
use super::expand::NormGradient;
use super::middle::Middle;
use super::middle_gradient::MiddleGradient;
use super::project_backward::ProjectBackward;
use super::{BlockSaved, BlockShape, Parameters, RECOMPUTED, squeeze_excite};
use crate::LayerGradients;
use crate::activation::{Act, Identity, with_activation};
use crate::batch_norm::{Affine, Backward, SumOverProcesses, Sums};
use crate::buffers::{Buffer, written};
use crate::depthwise;
use crate::matmul::Packed;
use crate::parallel;
use crate::passes::{accumulate, gradient_sums, packed_slices};
use crate::rows::{RawGradient, total};
use crate::simd::{InstructionSet, dispatch};
use crate::transposed::TransposedParts;
use std::marker::PhantomData;
use std::ops::Range;

/// Gradients at the input and at the packed parameters, given the gradient `g` at the output.
pub(super) fn backward(
    shape: &BlockShape,
    x: &[f32],
    packed: &[f32],
    saved: &BlockSaved,
    over_processes: Option<SumOverProcesses>,
    g: &[f32],
) -> LayerGradients {
    let at = Parameters::new(shape);
    let mut gradient = vec![0.0; at.len];
    let block = Block { shape, at: &at, x, packed, saved, over_processes };
    let dx = with_activation!(shape.activation, A => {
        let projection = block.project::<A>(g, &mut gradient);
        let (mut dx, of_expand) = match shape.expand {
            true => block.depthwise::<A, A>(&projection, &mut gradient),
            false => block.depthwise::<Identity, A>(&projection, &mut gradient),
        };
        block.first_norm(g, of_expand, &mut dx, &mut gradient);
        dx
    });
    LayerGradients { input: Some(dx), parameters: gradient }
}

/// The block with the values of its forward pass.
struct Block<'a> {
    shape: &'a BlockShape,
    at: &'a Parameters,
    x: &'a [f32],
    packed: &'a [f32],
    saved: &'a BlockSaved,
    over_processes: Option<SumOverProcesses<'a>>,
}

/// Gradients behind the depthwise convolution.
struct Projection {
    affine2: Affine,
    back2: Backward,
    /// The projection's weight, `[out, SLICE]` per slice.
    weight: Vec<Packed>,
    /// Gradient at the projection's input, if it is kept.
    g2: Option<Buffer>,
    /// Gradient at the raw `y3`, `[pixels, stride]`.
    g3: Buffer,
    stride: usize,
    /// Gradient at the gate's input, divided by the number of pixels.
    pooled: Option<Vec<f32>>,
}

impl Block<'_> {
    fn affine(&self, index: usize, norm: &[Range<usize>; 2]) -> Affine {
        let [weight, bias] = [0, 1].map(|part| &self.packed[norm[part].clone()]);
        Affine::new(&self.saved.statistics[index], weight, bias, self.shape.eps)
    }

    /// The map of a batch norm's gradient; the gradients of its weight and bias are written to `gradient`.
    fn norm_backward(&self, index: usize, norm: &[Range<usize>; 2], sums: &Sums, gradient: &mut [f32]) -> Backward {
        let weight = &self.packed[norm[0].clone()];
        let (statistics, eps) = (&self.saved.statistics[index], self.shape.eps);
        let back = Backward::over(self.over_processes, sums, statistics, weight, eps, self.saved.normalise);
        gradient[norm[0].clone()].copy_from_slice(&back.weight_gradient);
        gradient[norm[1].clone()].copy_from_slice(&back.bias_gradient);
        back
    }

    fn gate(&self) -> Option<&[f32]> {
        self.saved.squeeze_excite.as_ref().map(|saved| &saved.gate[..])
    }

    /// The last batch norm, the projection, and the sums that the second batch norm's gradient needs.
    fn project<A: Act>(&self, g: &[f32], gradient: &mut [f32]) -> Projection {
        let Block { shape, at, saved, .. } = *self;
        let (middle, outputs) = (shape.middle, shape.out_channels);
        let back3 = self.norm_backward(2, &at.norm3, &gradient_sums(g, &saved.y3, outputs), gradient);
        let affine2 = self.affine(1, &at.norm2);
        let layout = Middle::of_output(shape);
        let stride = outputs.next_multiple_of(InstructionSet::active().lanes());
        let weight = packed_slices(&self.packed[at.project.clone()], outputs, middle, middle, 1);
        let mut g2 = (outputs > RECOMPUTED).then(|| Buffer::with_arbitrary_contents(layout.len()));
        let mut g3 = Buffer::with_arbitrary_contents(shape.out_pixels() * stride);
        let g2_size = if g2.is_some() { layout.group_stride() } else { 0 };
        let written =
            [(&mut g3[..], layout.together * layout.pixels * stride), (g2.as_deref_mut().unwrap_or_default(), g2_size)];
        let parts = parallel::map_outputs(written, layout.groups(), 1, |groups, [g3, g2]| {
            dispatch(ProjectBackward::<A> {
                raw: RawGradient { g, y: &saved.y3, back: &back3 },
                layout,
                y2: &saved.y2,
                affine2: &affine2,
                gate: self.gate(),
                project: &weight,
                stride,
                g3,
                g2,
                groups,
                activation: PhantomData,
            })
        });
        let (parts, weight_parts): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        TransposedParts::in_rows(weight_parts, stride).write(&mut gradient[at.project.clone()], middle, None);
        let pooled = saved.squeeze_excite.as_ref().zip(shape.squeeze_excite).map(|(se, reduced)| {
            let gate_gradient = parts.iter().map(|part| part.gate_gradient(middle)).collect::<Vec<_>>().concat();
            let mut pooled = squeeze_excite::backward(shape, reduced, self.packed, at, se, gate_gradient, gradient);
            pooled.iter_mut().for_each(|g| *g /= layout.pixels as f32);
            pooled
        });
        let gates = self.gate().zip(pooled.as_deref());
        let totals = parallel::map(parts.len(), 1, |range| {
            Sums::total(parts[range].iter().map(|part| part.total(middle, gates)))
        });
        let back2 = self.norm_backward(1, &at.norm2, &Sums::total(totals), gradient);
        Projection { affine2, back2, weight, g2, g3, stride, pooled }
    }

    /// The depthwise convolution, and the part of expand that does not depend on the first batch norm's gradient.
    /// Returns the input gradient so far, the sums for the first batch norm, and expand's weight gradient before it, in
    /// slices. `A1` is the activation before the convolution, `A2` the one after it.
    fn depthwise<A1: Act, A2: Act>(
        &self,
        projection: &Projection,
        gradient: &mut [f32],
    ) -> (Vec<f32>, (Sums, TransposedParts)) {
        let Block { shape, at, x, saved, .. } = *self;
        let (conv, inputs, middle) = (shape.depthwise(), shape.in_channels, shape.middle);
        let (layout, out_layout) = (Middle::of_input(shape), Middle::of_output(shape));
        let flipped = depthwise::pack_weights(&self.packed[at.depthwise.clone()], middle, conv.taps(), true);
        let affine1 = shape.expand.then(|| self.affine(0, &at.norm1));
        let weight1 = &self.packed[at.expand.clone()];
        let expand = affine1.as_ref().map(|affine| Expand {
            affine,
            slices: packed_slices(weight1, inputs, middle, 1, inputs),
            back: scaled_slices(weight1, inputs, &affine.scale),
            y1: saved.y1.as_deref(),
        });
        let group = layout.together * layout.pixels * inputs;
        let (dx, parts) = written(x.len(), |dx| {
            parallel::write_parts(dx, group, layout.groups(), 1, |groups, dx| {
                let middle_gradient = MiddleGradient {
                    layout: out_layout,
                    y2: &saved.y2,
                    affine2: &projection.affine2,
                    back2: &projection.back2,
                    g2: projection.g2.as_deref(),
                    g3: &projection.g3,
                    stride: projection.stride,
                    project: &projection.weight,
                    gates: self.gate().zip(projection.pooled.as_deref()),
                };
                dispatch(DepthwiseBackward::<A1, A2> {
                    shape,
                    layout,
                    x,
                    expand: expand.as_ref(),
                    middle_gradient,
                    flipped: &flipped,
                    dx,
                    groups,
                    activations: PhantomData,
                })
            })
        });
        let (mut sums, mut depthwise_parts, mut expand_parts) = (Vec::new(), Vec::new(), Vec::new());
        for totals in parts {
            sums.push(totals.sums);
            depthwise_parts.push(totals.weight_gradient);
            expand_parts.push(totals.products);
        }
        depthwise::unpack_weights(&total(depthwise_parts), middle, conv.taps(), &mut gradient[at.depthwise.clone()]);
        (dx, (Sums::total(sums), TransposedParts::in_slices(expand_parts, inputs)))
    }

    /// The first batch norm, the rest of expand, and the gradient of the shortcut.
    fn first_norm(&self, g: &[f32], (sums, products): (Sums, TransposedParts), dx: &mut [f32], gradient: &mut [f32]) {
        let Block { shape, at, x, saved, .. } = *self;
        let inputs = shape.in_channels;
        let mut residual = shape.residual.then_some(g);
        if shape.expand {
            let back1 = self.norm_backward(0, &at.norm1, &sums, gradient);
            products.write(&mut gradient[at.expand.clone()], inputs, Some(&back1.by_gradient));
            if let Some(moments) = &saved.moments {
                let weight = &self.packed[at.expand.clone()];
                let norm = NormGradient::new(moments, weight, &back1, &mut gradient[at.expand.clone()]);
                norm.add_to(x, residual.take(), dx);
            }
        }
        if let Some(residual) = residual {
            accumulate(dx, residual);
        }
    }
}
