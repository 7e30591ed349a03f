//! The order of channels: the most important first, so that a narrower subnet keeps what matters (paper §3.3, elastic width,
//! figure 4). The largest subnet's function does not change.
//!
//! A channel's importance is the L1 norm of the weights that read it. Of a block's middle channels that is one layer; the output
//! channels of a ResNet's stage are read by many, and all that write or read them are permuted alike.

use super::{BatchNorm, Bottleneck, Dense, InvertedResidual, ParameterId, Parameters};
use candle_core::{Device, Result, Tensor};

impl InvertedResidual {
    /// Sorts middle channels by the L1 norm of the projection's weights, and squeeze-excite's reduced channels by the L1 norm
    /// of its second layer.
    ///
    /// `widths` are the middle widths of earlier width stages, descending, ending with the narrowest that was trained: channels
    /// that survived together stay together in front.
    pub(crate) fn sort_channels(&self, parameters: &Parameters, widths: &[usize]) -> Result<()> {
        let order = descending(&importance(parameters, self.project)?, widths);
        permute(parameters, self.project, 1, &order)?;
        permute_norm(parameters, &self.depthwise_norm, &order)?;
        permute(parameters, self.depthwise.weight, 0, &order)?;
        if let Some((squeeze, excite)) = &self.squeeze_excite {
            permute(parameters, excite.weight, 0, &order)?;
            permute(parameters, excite.bias, 0, &order)?;
            permute(parameters, squeeze.weight, 1, &order)?;
            let reduced = descending(&importance(parameters, excite.weight)?, &[]);
            permute(parameters, excite.weight, 1, &reduced)?;
            permute(parameters, squeeze.weight, 0, &reduced)?;
            permute(parameters, squeeze.bias, 0, &reduced)?;
        }
        if let Some((weight, norm)) = &self.expand {
            permute_norm(parameters, norm, &order)?;
            permute(parameters, *weight, 0, &order)?;
        }
        Ok(())
    }
}

impl Bottleneck {
    /// Sorts the channels between its second and third convolution, then those between its first and second, by the L1 norm of the
    /// weights that read them; `widths` as in [`InvertedResidual::sort_channels`].
    pub(crate) fn sort_channels(&self, parameters: &Parameters, widths: &[usize]) -> Result<()> {
        let [first, second, third] = &self.convolutions;
        sort_shared(parameters, &[Touch::Writes(second), Touch::Reads(third.weight)], widths)?;
        sort_shared(parameters, &[Touch::Writes(first), Touch::Reads(second.weight)], widths)
    }
}

/// How a layer touches channels that it shares with others.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Touch<'a> {
    /// They are its output.
    Writes(&'a Dense),
    /// They are the input of a layer with this weight, `[out, in, ...]`.
    Reads(ParameterId),
}

/// Sorts channels by the L1 norm of all weights that read them. `layers` are all that touch them; `widths` as in
/// [`InvertedResidual::sort_channels`].
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
fn importance(parameters: &Parameters, id: ParameterId) -> Result<Vec<f32>> {
    let weight = parameters.get(id, false);
    let by_channel = weight.abs()?.sum(0)?;
    let by_channel = if by_channel.rank() > 1 { by_channel.flatten_from(1)?.sum(1)? } else { by_channel };
    by_channel.to_dtype(candle_core::DType::F32)?.to_vec1()
}

/// Indices by group (channels below the narrowest of `widths` first), then by descending importance; ties keep their order.
fn descending(importance: &[f32], widths: &[usize]) -> Vec<u32> {
    let group = |channel: usize| widths.iter().filter(|&&width| channel >= width).count();
    let mut order: Vec<u32> = (0..importance.len() as u32).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (a as usize, b as usize);
        group(a).cmp(&group(b)).then(importance[b].total_cmp(&importance[a]))
    });
    order
}

fn permute(parameters: &Parameters, id: ParameterId, dim: usize, order: &[u32]) -> Result<()> {
    let var = parameters.var(id);
    let index = Tensor::new(order, &Device::Cpu)?.to_device(var.device())?;
    var.set(&var.as_detached_tensor().index_select(&index, dim)?.contiguous()?)
}

fn permute_norm(parameters: &Parameters, norm: &BatchNorm, order: &[u32]) -> Result<()> {
    permute(parameters, norm.weight, 0, order)?;
    permute(parameters, norm.bias, 0, order)?;
    let (mean, variance) = norm.running();
    let pick = |values: &[f32]| order.iter().map(|&i| values[i as usize]).collect();
    norm.set_running(pick(&mean), pick(&variance));
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
