//! Muon: momentum whose update of a matrix is orthogonal (Jordan et al. 2024), for pointwise convolutions.

use super::Muon;
use super::buffer::Buffer;
use crate::Result;
use crate::network::{Parameter, ParameterKind};
use crate::ops::orthogonalised;
use crate::ranks::Ranks;
use crate::train::gradients::Gradients;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

/// Places of the weights that Muon updates, ascending: those of pointwise convolutions before a batch norm, which makes
/// their size free. Without it (squeeze-excite, shortcuts of MobileNets, the hidden layer) the size has a meaning.
pub(super) fn matrices(parameters: &[Parameter]) -> Vec<usize> {
    let is_matrix = |parameter: &Parameter| {
        parameter.kind == ParameterKind::NormalisedPointwise
            && matches!(parameter.var.dims(), &[out, input, 1, 1] if out > 1 && input > 1)
    };
    (0..parameters.len()).filter(|&place| is_matrix(&parameters[place])).collect()
}

/// Updates the matrices that have a gradient. With the whole stored weight W `[out, in]`, its gradient G and buffer M:
/// `M = momentum M + G`; X is the orthogonal matrix nearest to `G + momentum M`; `W = W sqrt(out) / |W| - rate_factor
/// rate X`.
///
/// Each rank computes X for its part of the matrices only. That divides the work, and all ranks get the same bits
/// whatever their instruction sets are.
pub(super) fn update(
    settings: &Muon,
    matrices: &[usize],
    parameters: &[Parameter],
    gradients: &Gradients,
    buffers: &mut [Option<Buffer>],
    (rate, scale): (f64, f64),
    ranks: &Ranks,
) -> Result<()> {
    let (momentum, scale) = (settings.momentum as f32, scale as f32);
    let mut directions: Vec<(usize, Vec<f32>)> = Vec::new();
    for &place in matrices {
        let Some(gradient) = &gradients.tensors()[place] else { continue };
        let mut direction = host_values(gradient)?;
        let mut moved = match &buffers[place] {
            Some(buffer) => host_values(&buffer.tensor(parameters[place].var.as_tensor())?)?,
            None => vec![0.0; direction.len()],
        };
        for (d, m) in direction.iter_mut().zip(&mut moved) {
            *d *= scale;
            *m = momentum * *m + *d;
            *d += momentum * *m;
        }
        let weight = parameters[place].var.as_tensor();
        let moved = Tensor::from_vec(moved, weight.shape(), &Device::Cpu)?;
        buffers[place] = Some(Buffer::from_tensor(&moved, weight)?);
        directions.push((place, direction));
    }
    let dims = |place: usize| parameters[place].var.dims();
    directions.par_iter_mut().enumerate().for_each(|(index, (place, direction))| {
        *direction = match index % ranks.count() == ranks.rank() {
            true => orthogonalised(direction, dims(*place)[0], dims(*place)[1]),
            false => vec![0.0; direction.len()],
        };
    });
    sum_over(ranks, &mut directions);
    for (place, direction) in directions {
        let var = &parameters[place].var;
        let mut weight = host_values(var.as_tensor())?;
        let norm = weight.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>().sqrt();
        let factor = if norm > 0.0 { ((dims(place)[0] as f64).sqrt() / norm) as f32 } else { 1.0 };
        let rate = (settings.rate_factor * rate) as f32;
        weight.iter_mut().zip(direction).for_each(|(w, x)| *w = factor * *w - rate * x);
        let weight = Tensor::from_vec(weight, var.shape(), &Device::Cpu)?;
        var.set(&weight.to_dtype(var.dtype())?.to_device(var.device())?)?;
    }
    Ok(())
}

fn host_values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)
}

/// Replaces the values by their sums over all ranks, as one bucket.
fn sum_over(ranks: &Ranks, directions: &mut [(usize, Vec<f32>)]) {
    if !ranks.is_distributed() {
        return;
    }
    let mut bucket: Vec<f32> = directions.iter().flat_map(|(_, values)| values).copied().collect();
    ranks.sum(&mut bucket);
    let mut rest = &bucket[..];
    for (_, values) in directions {
        let (own, after) = rest.split_at(values.len());
        values.copy_from_slice(own);
        rest = after;
    }
}
