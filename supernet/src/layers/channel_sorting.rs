//! The order of channels: the most important first, so that a narrower subnet keeps what matters (paper §3.3, elastic
//! width, figure 4). The largest subnet's function does not change.
//!
//! A channel's importance is the L1 norm of the weights that read it. Of a block's middle channels that is one layer;
//! the output channels of a ResNet's stage are read by many, and all that write or read them are permuted alike.

use super::{BatchNorm, Dense, Moments, ParameterId, Parameters};
use candle_core::{Device, Result, Tensor};

/// Layers of a block that touch channels which other blocks touch too.
pub(crate) struct OuterChannels<'a> {
    /// Readers of the block's input channels.
    pub readers: Vec<Touch<'a>>,
    /// Writers of its output channels.
    pub writers: Vec<Touch<'a>>,
}

/// How a layer touches channels that it shares with others.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Touch<'a> {
    /// The layer writes them: they are its output channels.
    Writes(&'a Dense),
    /// A layer with this weight, `[out, in, ...]`, reads them.
    Reads(ParameterId),
}

/// Sorts channels by the L1 norm of all weights that read them. `layers` are all that touch them. Channels below a
/// width of `widths` stay together in front.
pub(crate) fn sort_shared(parameters: &Parameters, layers: &[Touch], widths: &[usize]) -> Result<()> {
    let mut total: Vec<f32> = Vec::new();
    for layer in layers {
        if let Touch::Reads(weight) = layer {
            let importance = importance(parameters, *weight)?;
            total.resize(importance.len(), 0.0);
            total.iter_mut().zip(importance).for_each(|(total, v)| *total += v);
        }
    }
    let order = descending(&total, widths);
    for layer in layers {
        match layer {
            Touch::Reads(weight) => permute(parameters, *weight, 1, &order)?,
            Touch::Writes(dense) => {
                permute(parameters, dense.weight, 0, &order)?;
                permute_norm(parameters, &dense.norm, &order)?;
            }
        }
    }
    Ok(())
}

/// L1 norm over everything but dimension 1.
pub(crate) fn importance(parameters: &Parameters, id: ParameterId) -> Result<Vec<f32>> {
    let weight = parameters.get(id);
    let by_channel = weight.abs()?.sum(0)?;
    let by_channel = if by_channel.rank() > 1 { by_channel.flatten_from(1)?.sum(1)? } else { by_channel };
    by_channel.to_dtype(candle_core::DType::F32)?.to_vec1()
}

/// Indices by group (channels below the narrowest of `widths` first), then by descending importance; ties keep their
/// order.
pub(crate) fn descending(importance: &[f32], widths: &[usize]) -> Vec<u32> {
    let group = |channel: usize| widths.iter().filter(|&&width| channel >= width).count();
    let mut order: Vec<u32> = (0..importance.len() as u32).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (a as usize, b as usize);
        group(a).cmp(&group(b)).then(importance[b].total_cmp(&importance[a]))
    });
    order
}

pub(crate) fn permute(parameters: &Parameters, id: ParameterId, dim: usize, order: &[u32]) -> Result<()> {
    let var = parameters.var(id);
    let index = Tensor::new(order, &Device::Cpu)?.to_device(var.device())?;
    var.set(&var.as_detached_tensor().index_select(&index, dim)?.contiguous()?)
}

pub(crate) fn permute_norm(parameters: &Parameters, norm: &BatchNorm, order: &[u32]) -> Result<()> {
    permute(parameters, norm.weight, 0, order)?;
    permute(parameters, norm.bias, 0, order)?;
    let Moments { mean, variance } = norm.running();
    let pick = |values: &[f32]| order.iter().map(|&i| values[i as usize]).collect();
    norm.set_running(Moments { mean: pick(&mean), variance: pick(&variance) });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::descending;

    #[test]
    fn survivors_stay_in_front() {
        let importance = [1.0, 3.0, 2.0, 9.0, 4.0, 4.0];
        assert_eq!(descending(&importance, &[]), [3, 4, 5, 1, 2, 0]);
        assert_eq!(descending(&importance, &[3]), [1, 2, 0, 3, 4, 5]);
    }
}
