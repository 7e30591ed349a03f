//! The order of a block's middle channels: the most important first, so that a narrower subnet keeps what matters (paper §3.3,
//! elastic width, figure 4). The largest subnet's function does not change.

use super::{BatchNorm, InvertedResidual, ParameterId, Parameters};
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

/// L1 norm over everything but dimension 1.
fn importance(parameters: &Parameters, id: ParameterId) -> Result<Vec<f32>> {
    let weight = parameters.get(id, false);
    weight.abs()?.flatten_from(1)?.sum(0)?.to_dtype(candle_core::DType::F32)?.to_vec1()
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
