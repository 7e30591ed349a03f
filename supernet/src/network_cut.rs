//! Cutting a subnet's weights out of the supernet.

use crate::layers::{Block, Bottleneck, Dense, InvertedResidual, Parameters};
use crate::network::{Statistics, Supernet};
use crate::ops::{BlockShape, parameter_count};
use crate::space::{BlockSpec, BottleneckSpec, ConvSpec, InvertedResidualSpec, Subnet};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};

/// Tensors under timm's names, each contiguous f32 on the CPU.
pub(crate) fn cut(net: &Supernet, subnet: &Subnet, statistics: &Statistics) -> Result<Vec<(String, Tensor)>> {
    let network = net.space().network(subnet, net.classes())?;
    let parts = net.parts();
    let mut out = Cut { parameters: parts.parameters, tensors: Vec::new(), statistics: statistics.layers.iter() };
    let get = |id| parts.parameters.get(id, false);
    match (parts.stem, &network.stem[..]) {
        ([stem], [spec]) => out.dense(stem, spec, "conv_stem", "bn1")?,
        (stem, specs) => {
            // timm's deep stem is a sequence of convolution, norm and activation; the last two of it are outside.
            let skipped = if specs.len() < stem.len() { 1..stem.len() - 1 } else { 0..0 };
            let active = stem.iter().enumerate().filter(|(index, _)| !skipped.contains(index));
            for (place, ((_, dense), spec)) in active.zip(specs).enumerate() {
                let (conv, norm) = match (place + 1 == specs.len(), spec.residual) {
                    (true, _) => ("conv1.6", "bn1"),
                    (false, true) => ("conv1.3", "conv1.4"),
                    (false, false) => ("conv1.0", "conv1.1"),
                };
                out.dense(dense, spec, conv, norm)?;
            }
        }
    }
    let blocks = parts.first.map(std::slice::from_ref).into_iter().chain(parts.stages.iter().map(Vec::as_slice));
    for (s, (blocks, specs)) in blocks.zip(&network.stages).enumerate() {
        for (b, (block, spec)) in blocks.iter().zip(specs).enumerate() {
            match (block, spec) {
                (Block::InvertedResidual(block), BlockSpec::InvertedResidual(spec)) => {
                    out.inverted_residual(block, spec, &format!("blocks.{s}.{b}"))?;
                }
                (Block::Bottleneck(block), BlockSpec::Bottleneck(spec)) => {
                    out.bottleneck(block, spec, &format!("layer{}.{b}", s + 1))?;
                }
                _ => return Err(Error::Subnet(format!("{subnet}: a block of another family"))),
            }
        }
    }
    let classifier = match (parts.feature, &network.feature, parts.hidden) {
        // timm's MobileNetV3
        (Some(feature), Some(spec), Some(hidden)) => {
            let last = network.stages.len();
            out.dense(feature, spec, &format!("blocks.{last}.0.conv"), &format!("blocks.{last}.0.bn1"))?;
            let hidden = get(hidden);
            let (width, pooled) = hidden.dims2()?;
            out.push("conv_head.weight".into(), hidden.reshape((width, pooled, 1, 1))?)?;
            "classifier"
        }
        // timm's EfficientNet, MobileNetV2 and ProxylessNAS
        (Some(feature), Some(spec), None) => {
            out.dense(feature, spec, "conv_head", "bn2")?;
            "classifier"
        }
        // timm's ResNet
        _ => "fc",
    };
    let (weight, bias) = parts.classifier;
    out.push(format!("{classifier}.weight"), get(weight).narrow(1, 0, network.classifier_channels())?)?;
    out.push(format!("{classifier}.bias"), get(bias))?;
    if out.statistics.next().is_some() {
        return Err(Error::Subnet(format!("{subnet}: the statistics belong to a deeper subnet")));
    }
    Ok(out.tensors)
}

struct Cut<'a> {
    parameters: &'a Parameters,
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

    fn dense(&mut self, layer: &Dense, spec: &ConvSpec, weight: &str, norm: &str) -> Result<()> {
        let [active, scale, shift] = layer.active(self.parameters, spec, false)?;
        self.push(format!("{weight}.weight"), active)?;
        self.norm(norm, scale, shift)
    }

    fn bottleneck(&mut self, block: &Bottleneck, spec: &BottleneckSpec, name: &str) -> Result<()> {
        let names = [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("downsample.1", "downsample.2")];
        for ((dense, conv), (weight, norm)) in block.layers(spec).zip(names) {
            self.dense(dense, &conv, &format!("{name}.{weight}"), &format!("{name}.{norm}"))?;
        }
        Ok(())
    }

    /// Splits the block's packed active parameters (the very values that the fused op computes with) into named tensors.
    fn inverted_residual(&mut self, layer: &InvertedResidual, spec: &InvertedResidualSpec, name: &str) -> Result<()> {
        let packed = layer.pack(self.parameters, spec, false)?;
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
            self.push(format!("{name}.conv_pw.weight"), next(&[m, spec.in_channels, 1, 1])?)?;
            self.norm(&format!("{name}.bn1"), next(&[m])?, next(&[m])?)?;
        }
        self.push(format!("{name}.conv_dw.weight"), next(&[m, 1, k, k])?)?;
        self.norm(&format!("{name}.{depthwise_norm}"), next(&[m])?, next(&[m])?)?;
        if let Some(reduced) = spec.squeeze_excite {
            self.push(format!("{name}.se.conv_reduce.weight"), next(&[reduced, m, 1, 1])?)?;
            self.push(format!("{name}.se.conv_reduce.bias"), next(&[reduced])?)?;
            self.push(format!("{name}.se.conv_expand.weight"), next(&[m, reduced, 1, 1])?)?;
            self.push(format!("{name}.se.conv_expand.bias"), next(&[m])?)?;
        }
        self.push(format!("{name}.{project}.weight"), next(&[n, m, 1, 1])?)?;
        self.norm(&format!("{name}.{project_norm}"), next(&[n])?, next(&[n])?)
    }
}
