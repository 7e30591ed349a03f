//! A fully connected layer without bias, as one op, because candle's own product does not use the threads of our
//! kernels.

use super::buffers::{Aligned, written};
use super::matmul::{Packed, multiply_new};
use super::parallel;
use super::passes::{accumulate_transposed_together, packed_together};
use super::simd::InstructionSet;
use super::{LayerGradients, WrongExtents};

/// `x weight^T`, `[rows, outputs]`, for `x` `[rows, inputs]` and `weight` `[outputs, inputs]`.
///
/// # Errors
/// Values that do not fit the extents.
pub fn linear(x: &[f32], weight: &[f32], [rows, inputs, outputs]: [usize; 3]) -> Result<Vec<f32>, WrongExtents> {
    if (x.len(), weight.len()) != (rows * inputs, outputs * inputs) || rows * inputs * outputs == 0 {
        return Err(WrongExtents(format!(
            "linear: input of {} and weight of {} values do not fit {rows} rows, {inputs} inputs and {outputs} outputs",
            x.len(),
            weight.len()
        )));
    }
    Ok(times(x, rows, &packed_together(weight, inputs, outputs, 1, inputs)))
}

/// Gradients at input and weight of [`linear`], given the gradient `g` at its output.
pub fn linear_backward(x: &[f32], weight: &[f32], [rows, inputs, outputs]: [usize; 3], g: &[f32]) -> LayerGradients {
    let dx = times(g, rows, &packed_together(weight, outputs, inputs, inputs, 1));
    LayerGradients { input: Some(dx), parameters: weight_gradient(g, outputs, x, inputs, rows) }
}

/// Smallest number of rows per thread: each thread reads the whole weight.
const ROWS: usize = 16;

fn times(x: &[f32], rows: usize, weight: &Packed) -> Vec<f32> {
    let (k, n) = (weight.rows(), weight.columns());
    let (y, _) = written(rows * n, |y| {
        parallel::write_parts(y, n, rows, ROWS, |range, y| {
            (multiply_new(&x[range.start * k..], k, range.len(), weight, y), ())
        })
    });
    y
}

/// The weight gradient `[outputs, inputs]` from `g` `[rows, outputs]` and `x` `[rows, inputs]`.
fn weight_gradient(g: &[f32], outputs: usize, x: &[f32], inputs: usize, rows: usize) -> Vec<f32> {
    let stride = inputs.next_multiple_of(InstructionSet::active().lanes());
    let mut padded = Aligned::default();
    if stride > inputs {
        padded = Aligned::zeros(rows * stride);
        for (row, x) in padded.chunks_exact_mut(stride).zip(x.chunks_exact(inputs)) {
            row[..inputs].copy_from_slice(x);
        }
    }
    let x = if stride > inputs { &padded[..] } else { x };
    let mut gradient = vec![0.0; outputs * stride];
    accumulate_transposed_together(g, outputs, x, stride, rows, outputs, inputs, &mut gradient, stride);
    if stride > inputs {
        gradient = gradient.chunks_exact(stride).flat_map(|row| &row[..inputs]).copied().collect();
    }
    gradient
}
