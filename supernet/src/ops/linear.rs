//! A fully connected layer without bias, as one op, because candle's own product does not use the threads of our
//! kernels.

use super::buffers::{Aligned, written};
use super::matmul::{Packed, multiply_new};
use super::parallel;
use super::passes::accumulate_transposed_together;
use super::simd::InstructionSet;
use super::{contiguous_f32, tensor_values};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

/// `x weight^T`, `[rows, out]`, for `x` `[rows, in]` and `weight` `[out, in]`, both f32 on the CPU.
///
/// # Errors
/// Shapes or types do not fit.
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let ((rows, inputs), (outputs, columns)) = (x.dims2()?, weight.dims2()?);
    if inputs != columns || rows * inputs * outputs == 0 {
        bail!("linear: input {:?} and weight {:?} do not fit", x.dims(), weight.dims());
    }
    x.contiguous()?.apply_op2(&weight.contiguous()?, Linear { rows, inputs, outputs })
}

struct Linear {
    rows: usize,
    inputs: usize,
    outputs: usize,
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let Linear { rows, inputs, outputs } = *self;
        let (x, weight) = (contiguous_f32(x, x_layout)?, contiguous_f32(weight, weight_layout)?);
        let y = times(x, rows, &Packed::new(weight, inputs, outputs, 1, inputs));
        Ok((CpuStorage::F32(y), (rows, outputs).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Linear { rows, inputs, outputs } = *self;
        let (dx, dw) = tensor_values(gradient, |g| {
            let dx = tensor_values(weight, |w| Ok(times(g, rows, &Packed::new(w, outputs, inputs, inputs, 1))))?;
            let dw = tensor_values(x, |x| Ok(weight_gradient(g, outputs, x, inputs, rows)))?;
            Ok((dx, dw))
        })?;
        let device = x.device();
        Ok((Some(Tensor::from_vec(dx, x.shape(), device)?), Some(Tensor::from_vec(dw, weight.shape(), device)?)))
    }
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
