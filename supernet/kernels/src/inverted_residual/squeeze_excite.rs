//! The two small layers of squeeze-excite: `gate = hard_sigmoid(We relu(Wr pooled + br) + be)` (Howard et al., ICCV
//! 2019, §5.3).

use super::{BlockShape, Parameters};
use crate::activation::{hard_sigmoid, hard_sigmoid_slope};
use crate::matmul::Packed;
use crate::passes::{accumulate_transposed_together, multiply_together};
use crate::simd::InstructionSet;

/// Values kept for the gradient, all `[batch, middle]` except `hidden`.
pub(super) struct Saved {
    pooled: Vec<f32>,
    /// Hidden values after ReLU, `[batch, stride]`, where `stride` is a whole number of vectors.
    hidden: Vec<f32>,
    /// Values before the hard sigmoid.
    raw: Vec<f32>,
    pub gate: Vec<f32>,
}

fn hidden_stride(reduced: usize) -> usize {
    reduced.next_multiple_of(InstructionSet::active().lanes())
}

/// Computes the gate from the pooled activations `[batch, middle]`.
pub(super) fn forward(shape: &BlockShape, reduced: usize, packed: &[f32], at: &Parameters, pooled: Vec<f32>) -> Saved {
    let (batch, middle, stride) = (shape.batch, shape.middle, hidden_stride(reduced));
    let mut hidden = vec![0.0; batch * stride];
    let weight = Packed::new(&packed[at.reduce[0].clone()], middle, reduced, 1, middle);
    multiply_together(&pooled, middle, batch, &weight, &mut hidden, stride);
    for row in hidden.chunks_exact_mut(stride) {
        for (v, bias) in row.iter_mut().zip(&packed[at.reduce[1].clone()]) {
            *v = (*v + bias).max(0.0);
        }
    }
    let mut raw = vec![0.0; batch * middle];
    let weight = Packed::new(&packed[at.excite[0].clone()], reduced, middle, 1, reduced);
    multiply_together(&hidden, stride, batch, &weight, &mut raw, middle);
    for row in raw.chunks_exact_mut(middle) {
        for (v, bias) in row.iter_mut().zip(&packed[at.excite[1].clone()]) {
            *v += bias;
        }
    }
    let gate = raw.iter().map(|&v| hard_sigmoid(v)).collect();
    Saved { pooled, hidden, raw, gate }
}

/// Gradient at the pooled activations from the gradient at the gate `[batch, middle]`; parameter gradients are written
/// to `gradient`, packed.
pub(super) fn backward(
    shape: &BlockShape,
    reduced: usize,
    packed: &[f32],
    at: &Parameters,
    saved: &Saved,
    mut gate_gradient: Vec<f32>,
    gradient: &mut [f32],
) -> Vec<f32> {
    let (batch, middle, stride) = (shape.batch, shape.middle, hidden_stride(reduced));
    for (g, &raw) in gate_gradient.iter_mut().zip(&saved.raw) {
        *g *= hard_sigmoid_slope(raw);
    }
    // Excite: weight [middle, reduced].
    let mut weight_gradient = vec![0.0; middle * stride];
    accumulate_transposed_together(
        &gate_gradient,
        middle,
        &saved.hidden,
        stride,
        batch,
        middle,
        reduced,
        &mut weight_gradient,
        stride,
    );
    for (row, out) in gradient[at.excite[0].clone()].chunks_exact_mut(reduced).enumerate() {
        out.copy_from_slice(&weight_gradient[row * stride..][..reduced]);
    }
    sum_rows(&gate_gradient, middle, &mut gradient[at.excite[1].clone()]);
    let mut hidden_gradient = vec![0.0; batch * stride];
    let weight = Packed::new(&packed[at.excite[0].clone()], middle, reduced, reduced, 1);
    multiply_together(&gate_gradient, middle, batch, &weight, &mut hidden_gradient, stride);
    for (g, &hidden) in hidden_gradient.iter_mut().zip(&saved.hidden) {
        if hidden <= 0.0 {
            *g = 0.0;
        }
    }
    // Reduce: weight [reduced, middle], whose gradient is computed transposed.
    weight_gradient.fill(0.0);
    accumulate_transposed_together(
        &saved.pooled,
        middle,
        &hidden_gradient,
        stride,
        batch,
        middle,
        reduced,
        &mut weight_gradient,
        stride,
    );
    for (row, out) in gradient[at.reduce[0].clone()].chunks_exact_mut(middle).enumerate() {
        for (column, out) in out.iter_mut().enumerate() {
            *out = weight_gradient[column * stride + row];
        }
    }
    sum_rows(&hidden_gradient, stride, &mut gradient[at.reduce[1].clone()]);
    let mut pooled_gradient = vec![0.0; batch * middle];
    let weight = Packed::new(&packed[at.reduce[0].clone()], reduced, middle, middle, 1);
    multiply_together(&hidden_gradient, stride, batch, &weight, &mut pooled_gradient, middle);
    pooled_gradient
}

fn sum_rows(rows: &[f32], stride: usize, out: &mut [f32]) {
    for row in rows.chunks_exact(stride) {
        for (out, v) in out.iter_mut().zip(row) {
            *out += v;
        }
    }
}
