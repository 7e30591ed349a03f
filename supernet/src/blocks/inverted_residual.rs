//! Inverted residual blocks of MobileNets: description, graph, and elastic layers with parameters at full size.

use super::BlockSpec;
use crate::graph::{Builder, NodeId};
use crate::layers::{
    BatchNorm, ElasticKernel, Initialiser, OuterChannels, ParameterId, Parameters, Pass, channel_sorting, fused,
};
use crate::ops::{self, BlockShape, Relay};
use crate::space::Activation;
use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};
use std::fmt;

/// An inverted residual block: 1x1 expand, depthwise, optional squeeze-excite, 1x1 project, optional residual.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InvertedResidualSpec {
    /// Input channels.
    pub in_channels: usize,
    /// Channels of the depthwise convolution.
    pub middle_channels: usize,
    /// Output channels.
    pub out_channels: usize,
    /// Depthwise kernel size; the padding is half of it.
    pub kernel: usize,
    /// Depthwise stride.
    pub stride: usize,
    /// Activation of the expand and depthwise convolutions.
    pub activation: Activation,
    /// Whether there is an expand convolution (only the first block has none).
    pub expand: bool,
    /// Reduced channels of squeeze-excite, if the block has it.
    pub squeeze_excite: Option<usize>,
    /// Whether the input is added to the output.
    pub residual: bool,
    /// Height and width of the input map.
    pub input_size: usize,
}

impl InvertedResidualSpec {
    /// Height and width of the output map.
    pub fn output_size(&self) -> usize {
        self.input_size.div_ceil(self.stride)
    }

    /// Kind of the block in regions of a graph.
    pub(super) fn kind(&self) -> &'static str {
        "inverted_residual"
    }

    pub(super) fn inner_channels(&self) -> Vec<(&'static str, usize)> {
        let reduced = self.squeeze_excite.map(|reduced| ("squeeze-excite", reduced));
        [("middle", self.middle_channels)].into_iter().chain(reduced).collect()
    }

    pub(super) fn check(&self) -> std::result::Result<(), String> {
        if !self.expand && self.middle_channels != self.in_channels {
            return Err(format!(
                "has no expand convolution, but {} middle channels for {} input channels",
                self.middle_channels, self.in_channels
            ));
        }
        if self.residual && (self.stride != 1 || self.out_channels != self.in_channels) {
            return Err(format!(
                "has a residual, but its output ({} channels, stride {}) has not the shape of its input ({} channels)",
                self.out_channels, self.stride, self.in_channels
            ));
        }
        Ok(())
    }

    pub(super) fn prefix(&self, stage: usize, place: usize) -> String {
        format!("blocks.{stage}.{place}.")
    }

    /// timm's names: a block without expand convolution is its depthwise-separable block, every other its inverted
    /// residual.
    pub(super) fn lower(&self, builder: &mut Builder, x: NodeId) -> NodeId {
        let (middle, activation) = (self.middle_channels, self.activation);
        let (depthwise, project) = match self.expand {
            true => (("conv_dw", "bn2"), ("conv_pwl", "bn3")),
            false => (("conv_dw", "bn1"), ("conv_pw", "bn2")),
        };
        let mut y = x;
        if self.expand {
            y = builder.convolution_norm_activation(y, ("conv_pw", "bn1"), middle, (1, 1), 1, activation);
        }
        let kernel = (self.kernel, self.stride);
        y = builder.convolution_norm_activation(y, depthwise, middle, kernel, middle, activation);
        if let Some(reduced) = self.squeeze_excite {
            let pooled = builder.global_average_pool(y);
            let squeezed = builder.pointwise(pooled, "se.conv_reduce", reduced, true);
            let squeezed = builder.activation(squeezed, Activation::Relu);
            let excited = builder.pointwise(squeezed, "se.conv_expand", middle, true);
            let factors = builder.hard_sigmoid(excited);
            y = builder.gate(y, factors);
        }
        y = builder.convolution_norm_activation(y, project, self.out_channels, (1, 1), 1, Activation::Identity);
        if self.residual { builder.add(y, x) } else { y }
    }
}

impl fmt::Display for InvertedResidualSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {}-{}-{}", self.in_channels, self.middle_channels, self.out_channels)?;
        write!(f, " k{} stride {} {}", self.kernel, self.stride, self.activation)?;
        if let Some(reduced) = self.squeeze_excite {
            write!(f, " se{reduced}")?;
        }
        if self.residual {
            f.write_str(" residual")?;
        }
        write!(f, " at {size}x{size}", size = self.input_size)
    }
}

/// A 1x1 convolution with bias, of squeeze-excite.
#[derive(Debug)]
pub(crate) struct Biased {
    pub weight: ParameterId,
    pub bias: ParameterId,
}

/// Elastic layers of the block.
#[derive(Debug)]
pub(crate) struct InvertedResidual {
    /// `[middle, in, 1, 1]` and its batch norm.
    pub expand: Option<(ParameterId, BatchNorm)>,
    pub depthwise: ElasticKernel,
    pub depthwise_norm: BatchNorm,
    /// Reduce `[reduced, middle, 1, 1]` and expand `[middle, reduced, 1, 1]`.
    pub squeeze_excite: Option<(Biased, Biased)>,
    /// `[out, middle, 1, 1]`
    pub project: ParameterId,
    pub project_norm: BatchNorm,
}

impl InvertedResidual {
    /// `largest` is the block at its largest choice.
    pub(super) fn new(
        parameters: &mut Parameters,
        name: &str,
        largest: &InvertedResidualSpec,
        kernel_sizes: &[usize],
    ) -> Result<Self> {
        let (m, n) = (largest.middle_channels, largest.out_channels);
        let he = |fan_out: usize| Initialiser::Normal((2.0 / fan_out as f64).sqrt());
        let expand = if largest.expand {
            let dims = [m, largest.in_channels, 1, 1];
            let weight = parameters.add(format!("{name}.expand.weight"), &dims, he(m), true)?;
            Some((weight, BatchNorm::new(parameters, format!("{name}.expand.norm"), m)?))
        } else {
            None
        };
        let depthwise = ElasticKernel::new(parameters, &format!("{name}.depthwise"), m, kernel_sizes)?;
        let depthwise_norm = BatchNorm::new(parameters, format!("{name}.depthwise.norm"), m)?;
        let squeeze_excite = match largest.squeeze_excite {
            Some(reduced) => {
                let mut biased = |part: &str, out: usize, input: usize| -> Result<Biased> {
                    Ok(Biased {
                        weight: parameters.add(format!("{name}.{part}.weight"), &[out, input, 1, 1], he(out), true)?,
                        bias: parameters.add(
                            format!("{name}.{part}.bias"),
                            &[out],
                            Initialiser::Constant(0.0),
                            false,
                        )?,
                    })
                };
                Some((biased("squeeze", reduced, m)?, biased("excite", m, reduced)?))
            }
            None => None,
        };
        let project = parameters.add(format!("{name}.project.weight"), &[n, m, 1, 1], he(n), true)?;
        let project_norm = BatchNorm::new(parameters, format!("{name}.project.norm"), n)?;
        Ok(InvertedResidual { expand, depthwise, depthwise_norm, squeeze_excite, project, project_norm })
    }

    pub(super) fn first_parameter(&self) -> ParameterId {
        self.expand.as_ref().map_or(self.depthwise.weight, |(weight, _)| *weight)
    }

    pub(super) fn norms(&self) -> impl Iterator<Item = &BatchNorm> {
        self.expand.iter().map(|(_, norm)| norm).chain([&self.depthwise_norm, &self.project_norm])
    }

    pub(super) fn outer_channels(&self) -> Option<OuterChannels<'_>> {
        None
    }

    /// Sorts middle channels by the L1 norm of the projection's weights, and squeeze-excite's reduced channels by the
    /// L1 norm of its second layer.
    pub(super) fn sort_channels(&self, parameters: &Parameters, widths: &[usize]) -> Result<()> {
        use channel_sorting::{descending, importance, permute, permute_norm};
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

    pub(super) fn active(
        &self,
        parameters: &Parameters,
        spec: &InvertedResidualSpec,
        keep: bool,
    ) -> Result<Vec<Vec<Tensor>>> {
        let m = spec.middle_channels;
        let get = |id| parameters.get(id, keep);
        let mut slots = Vec::with_capacity(8);
        if let Some((weight, norm)) = &self.expand {
            slots.push(vec![get(*weight).narrow(0, 0, m)?]);
            slots.push(norm.pack(parameters, m, keep)?.to_vec());
        }
        slots.push(vec![self.depthwise.pack(parameters, m, spec.kernel, keep)?]);
        slots.push(self.depthwise_norm.pack(parameters, m, keep)?.to_vec());
        if let (Some((squeeze, excite)), Some(reduced)) = (&self.squeeze_excite, spec.squeeze_excite) {
            let weight = get(squeeze.weight).narrow(0, 0, reduced)?.narrow(1, 0, m)?;
            slots.push(vec![weight, get(squeeze.bias).narrow(0, 0, reduced)?]);
            let weight = get(excite.weight).narrow(0, 0, m)?.narrow(1, 0, reduced)?;
            slots.push(vec![weight, get(excite.bias).narrow(0, 0, m)?]);
        }
        slots.push(vec![get(self.project).narrow(1, 0, m)?]);
        slots.push(self.project_norm.pack(parameters, spec.out_channels, keep)?.to_vec());
        Ok(slots)
    }

    pub(super) fn forward(
        &self,
        parameters: &Parameters,
        x: Relay,
        spec: &InvertedResidualSpec,
        eps: f64,
        pass: &mut Pass,
    ) -> Result<Relay> {
        let active = self.active(parameters, spec, pass.keep_gradients)?;
        if !fused(x.value()) {
            let graph = BlockSpec::InvertedResidual(spec.clone()).graph(eps);
            return Ok(pass.interpret(&graph, &x.tracked()?, &active)?.into());
        }
        let (batch, height, width, _) = x.value().dims4()?;
        let shape = BlockShape::new(spec, batch, height, width, eps);
        let flat = active.iter().flatten().map(Tensor::flatten_all).collect::<Result<Vec<_>>>()?;
        let packed = Tensor::cat(&flat, 0)?;
        let m = spec.middle_channels;
        let given = pass.next_given([if spec.expand { m } else { 0 }, m, spec.out_channels])?;
        let (output, used) = ops::inverted_residual(x, &packed, shape, given, pass.ranks, pass.keep_gradients)?;
        pass.used.extend(used.into_iter().skip(usize::from(!spec.expand)));
        Ok(output)
    }
}

impl BlockShape {
    /// The block `spec` for `batch` maps of `height x width`.
    fn new(spec: &InvertedResidualSpec, batch: usize, height: usize, width: usize, eps: f64) -> Self {
        BlockShape {
            batch,
            height,
            width,
            in_channels: spec.in_channels,
            middle: spec.middle_channels,
            out_channels: spec.out_channels,
            kernel: spec.kernel,
            stride: spec.stride,
            activation: spec.activation,
            expand: spec.expand,
            squeeze_excite: spec.squeeze_excite,
            residual: spec.residual,
            eps,
        }
    }
}
