//! Cutting a subnet's weights out of the supernet.

use crate::layers::{InvertedResidual, Parameters};
use crate::network::{Statistics, Supernet};
use crate::ops::{BlockShape, parameter_count};
use crate::space::{BlockSpec, Subnet};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};

/// Tensors under timm's names, each contiguous f32 on the CPU.
pub(crate) fn cut(net: &Supernet, subnet: &Subnet, statistics: &Statistics) -> Result<Vec<(String, Tensor)>> {
    let network = net.space().network(subnet, net.classes())?;
    let (parameters, stem, first, stages, feature) = net.parts();
    let mut out = Cut { tensors: Vec::new(), statistics: statistics.layers.iter() };
    let get = |id| parameters.get(id, false);
    let dense = |out: &mut Cut, layer: &crate::layers::Dense, weight: &str, norm: &str| -> Result<()> {
        out.push(weight.into(), get(layer.weight))?;
        out.norm(norm, get(layer.norm.weight), get(layer.norm.bias))
    };
    dense(&mut out, stem, "conv_stem.weight", "bn1")?;
    block(&mut out, parameters, first, &network.stages[0][0], "blocks.0.0")?;
    for (s, (blocks, specs)) in stages.iter().zip(&network.stages[1..]).enumerate() {
        for (b, (layer, spec)) in blocks.iter().zip(specs).enumerate() {
            block(&mut out, parameters, layer, spec, &format!("blocks.{}.{b}", s + 1))?;
        }
    }
    let (hidden, (weight, bias)) = net.head();
    match hidden {
        // timm's MobileNetV3
        Some(hidden) => {
            let last = network.stages.len();
            dense(&mut out, feature, &format!("blocks.{last}.0.conv.weight"), &format!("blocks.{last}.0.bn1"))?;
            let hidden = get(hidden);
            let (width, pooled) = hidden.dims2()?;
            out.push("conv_head.weight".into(), hidden.reshape((width, pooled, 1, 1))?)?;
        }
        // timm's EfficientNet, MobileNetV2 and ProxylessNAS
        None => dense(&mut out, feature, "conv_head.weight", "bn2")?,
    }
    out.push("classifier.weight".into(), get(weight))?;
    out.push("classifier.bias".into(), get(bias))?;
    if out.statistics.next().is_some() {
        return Err(Error::Subnet(format!("{subnet}: the statistics belong to a deeper subnet")));
    }
    Ok(out.tensors)
}

struct Cut<'a> {
    tensors: Vec<(String, Tensor)>,
    statistics: std::slice::Iter<'a, (Vec<f32>, Vec<f32>)>,
}

impl Cut<'_> {
    fn push(&mut self, name: String, tensor: Tensor) -> Result<()> {
        let tensor = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
        self.tensors.push((name, tensor));
        Ok(())
    }

    fn norm(&mut self, name: &str, weight: Tensor, bias: Tensor) -> Result<()> {
        let channels = weight.elem_count();
        let Some((mean, variance)) = self.statistics.next().filter(|(m, v)| (m.len(), v.len()) == (channels, channels))
        else {
            return Err(Error::Subnet(format!("{name}: the statistics do not belong to this subnet")));
        };
        self.push(format!("{name}.weight"), weight)?;
        self.push(format!("{name}.bias"), bias)?;
        self.push(format!("{name}.running_mean"), Tensor::from_slice(mean, channels, &Device::Cpu)?)?;
        self.push(format!("{name}.running_var"), Tensor::from_slice(variance, channels, &Device::Cpu)?)
    }
}

/// Splits the block's packed active parameters (the very values that the fused op computes with) into named tensors.
fn block(out: &mut Cut, parameters: &Parameters, layer: &InvertedResidual, spec: &BlockSpec, name: &str) -> Result<()> {
    let packed = layer.pack(parameters, spec, false)?;
    debug_assert_eq!(packed.elem_count(), parameter_count(&BlockShape::new(spec, 1, 1, 1, 0.0)));
    let mut offset = 0;
    let mut next = |dims: &[usize]| -> Result<Tensor> {
        let len = dims.iter().product();
        offset += len;
        Ok(packed.narrow(0, offset - len, len)?.reshape(dims)?)
    };
    let (m, n, k) = (spec.middle_channels, spec.out_channels, spec.kernel);
    // timm numbers the batch norms, and calls the projection of a block without expand convolution `conv_pw`.
    let (depthwise_norm, project, project_norm) =
        if spec.expand { ("bn2", "conv_pwl", "bn3") } else { ("bn1", "conv_pw", "bn2") };
    if spec.expand {
        out.push(format!("{name}.conv_pw.weight"), next(&[m, spec.in_channels, 1, 1])?)?;
        out.norm(&format!("{name}.bn1"), next(&[m])?, next(&[m])?)?;
    }
    out.push(format!("{name}.conv_dw.weight"), next(&[m, 1, k, k])?)?;
    out.norm(&format!("{name}.{depthwise_norm}"), next(&[m])?, next(&[m])?)?;
    if let Some(reduced) = spec.squeeze_excite {
        out.push(format!("{name}.se.conv_reduce.weight"), next(&[reduced, m, 1, 1])?)?;
        out.push(format!("{name}.se.conv_reduce.bias"), next(&[reduced])?)?;
        out.push(format!("{name}.se.conv_expand.weight"), next(&[m, reduced, 1, 1])?)?;
        out.push(format!("{name}.se.conv_expand.bias"), next(&[m])?)?;
    }
    out.push(format!("{name}.{project}.weight"), next(&[n, m, 1, 1])?)?;
    out.norm(&format!("{name}.{project_norm}"), next(&[n])?, next(&[n])?)
}
