//! Inverted residual blocks of MobileNets: description, graph, and elastic layers with parameters at full size.

use super::{BlockSettings, BlockSpec};
use crate::graph::names::{BlockNames, DEPTHWISE_SEPARABLE, INVERTED_RESIDUAL};
use crate::graph::{Builder, NodeId, Shape};
use crate::layers::{
    Active, BatchNorm, ElasticKernel, Initialiser, OuterChannels, ParameterId, ParameterKind, Parameters, Pass,
    add_packed, average_pool, channel_sorting, fused, linear, pack, sum_of_branches,
};
use crate::ops::{self, BlockShape, summing, tensor_values};
use crate::space::{Activation, reduced_channels};
use candle_core::{Error, Result, Tensor};
use serde::{Deserialize, Serialize};
use std::fmt;

/// An inverted residual block: 1x1 expand, depthwise, optional squeeze-excite, 1x1 project, optional residual.
///
/// A residual over a stride is the input averaged over `stride x stride` pixels; where the map's size is odd, the first
/// windows begin a row and a column before it, and these count as zeros. With a projection a 1x1 convolution without
/// batch norm or bias follows (AttentiveNAS).
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
    /// Whether a convolution fits the residual to the output's channels.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub projection: bool,
    /// Height and width of the input map.
    pub input_size: usize,
}

impl InvertedResidualSpec {
    /// The block for these settings; a residual between maps of different widths has a projection.
    pub(crate) fn of(settings: &BlockSettings, expand: bool, residual: bool) -> Self {
        let middle_channels = if expand { settings.middle_channels() } else { settings.in_channels };
        InvertedResidualSpec {
            in_channels: settings.in_channels,
            middle_channels,
            out_channels: settings.out_channels,
            kernel: settings.kernel,
            stride: settings.stride,
            activation: settings.activation,
            expand,
            squeeze_excite: settings.squeeze_excite.then(|| reduced_channels(middle_channels)),
            residual,
            projection: residual && settings.in_channels != settings.out_channels,
            input_size: settings.input_size,
        }
    }

    /// Height and width of the output map.
    pub fn output_size(&self) -> usize {
        self.input_size.div_ceil(self.stride)
    }

    /// Whether a backward pass recomputes the activations inside the block: its kernels do.
    pub(super) fn recomputes(&self) -> bool {
        true
    }

    pub(super) fn input(&self) -> Shape {
        Shape { height: self.input_size, width: self.input_size, channels: self.in_channels }
    }

    pub(super) fn output(&self) -> Shape {
        let size = self.output_size();
        Shape { height: size, width: size, channels: self.out_channels }
    }

    pub(super) fn window(&self) -> Option<(usize, usize)> {
        Some((self.kernel, self.stride))
    }

    pub(super) fn set_input_size(&mut self, size: usize) {
        self.input_size = size;
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
        if self.residual && !self.projection && self.out_channels != self.in_channels {
            return Err(format!(
                "has a residual without projection, but {} output channels for {} input channels",
                self.out_channels, self.in_channels
            ));
        }
        if self.projection && !self.residual {
            return Err("has a projection, but no residual".into());
        }
        Ok(())
    }

    pub(super) fn names(&self) -> &'static BlockNames {
        if self.expand { &INVERTED_RESIDUAL } else { &DEPTHWISE_SEPARABLE }
    }

    pub(super) fn lower(&self, builder: &mut Builder, x: NodeId) -> NodeId {
        let (middle, activation) = (self.middle_channels, self.activation);
        let mut y = x;
        if self.expand {
            y = builder.convolution_norm_activation(y, ("expand", "expand.norm"), middle, (1, 1), 1, activation);
        }
        let (depthwise, kernel) = (("depthwise", "depthwise.norm"), (self.kernel, self.stride));
        y = builder.convolution_norm_activation(y, depthwise, middle, kernel, middle, activation);
        if let Some(reduced) = self.squeeze_excite {
            let pooled = builder.global_average_pool(y);
            let squeezed = builder.pointwise(pooled, "squeeze", reduced, true);
            let squeezed = builder.activation(squeezed, Activation::Relu);
            let excited = builder.pointwise(squeezed, "excite", middle, true);
            let factors = builder.hard_sigmoid(excited);
            y = builder.gate(y, factors);
        }
        let project = ("project", "project.norm");
        y = builder.convolution_norm_activation(y, project, self.out_channels, (1, 1), 1, Activation::Identity);
        if !self.residual {
            return y;
        }
        let mut shortcut = builder.average_pool(x, self.stride, pool_padding(self.input_size));
        if self.projection {
            shortcut = builder.pointwise(shortcut, "shortcut", self.out_channels, false);
        }
        builder.add(y, shortcut)
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
        if self.projection {
            f.write_str(" projection")?;
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
    /// `[out, in, 1, 1]` of the shortcut.
    pub shortcut: Option<ParameterId>,
}

impl InvertedResidual {
    /// The block at all choices that a subnet may make, the largest first; `kernel_sizes` are those with a transform,
    /// and the largest.
    pub(super) fn new(
        parameters: &mut Parameters,
        name: &str,
        choices: &[&InvertedResidualSpec],
        kernel_sizes: &[usize],
    ) -> Result<Self> {
        let largest = choices[0];
        let (m, n) = (largest.middle_channels, largest.out_channels);
        let he = |fan_out: usize| Initialiser::Normal((2.0 / fan_out as f64).sqrt());
        let (pointwise, other) = (ParameterKind::NormalisedPointwise, ParameterKind::OtherWeight);
        let expand = if largest.expand {
            let dims = [m, largest.in_channels, 1, 1];
            let weight = parameters.add(format!("{name}.expand.weight"), &dims, he(m), pointwise)?;
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
                        weight: parameters.add(format!("{name}.{part}.weight"), &[out, input, 1, 1], he(out), other)?,
                        bias: parameters.add(
                            format!("{name}.{part}.bias"),
                            &[out],
                            Initialiser::Constant(0.0),
                            ParameterKind::Vector,
                        )?,
                    })
                };
                Some((biased("squeeze", reduced, m)?, biased("excite", m, reduced)?))
            }
            None => None,
        };
        let project = parameters.add(format!("{name}.project.weight"), &[n, m, 1, 1], he(n), pointwise)?;
        let project_norm = BatchNorm::new(parameters, format!("{name}.project.norm"), n)?;
        // A narrow subnet may need a projection in a shortcut that joins equal widths in the largest.
        let shortcut = match choices.iter().any(|choice| choice.projection) {
            true => Some(parameters.add(
                format!("{name}.shortcut.weight"),
                &[n, largest.in_channels, 1, 1],
                he(n),
                other,
            )?),
            false => None,
        };
        Ok(InvertedResidual { expand, depthwise, depthwise_norm, squeeze_excite, project, project_norm, shortcut })
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
    /// L1 norm of its second layer. Without expand convolution the middle channels are the input's, whose order is not
    /// the block's.
    pub(super) fn sort_channels(&self, parameters: &Parameters, trained: &[&InvertedResidualSpec]) -> Result<()> {
        use channel_sorting::{descending, importance, permute, permute_norm};
        let Some((expand, expand_norm)) = &self.expand else { return Ok(()) };
        let widths: Vec<usize> = trained.iter().map(|spec| spec.middle_channels).collect();
        let order = descending(&importance(parameters, self.project)?, &widths);
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
        permute_norm(parameters, expand_norm, &order)?;
        permute(parameters, *expand, 0, &order)
    }

    pub(super) fn active(&self, parameters: &Parameters, spec: &InvertedResidualSpec) -> Result<Vec<Vec<Active>>> {
        let (p, m, inputs, outputs) = (parameters, spec.middle_channels, spec.in_channels, spec.out_channels);
        let mut slots = Vec::with_capacity(8);
        if let Some((weight, norm)) = &self.expand {
            slots.push(vec![p.leading_two(*weight, m, inputs)]);
            slots.push(norm.active(p, m));
        }
        slots.push(vec![self.depthwise.active(p, m, spec.kernel)]);
        slots.push(self.depthwise_norm.active(p, m));
        if let (Some((squeeze, excite)), Some(reduced)) = (&self.squeeze_excite, spec.squeeze_excite) {
            slots.push(vec![p.leading_two(squeeze.weight, reduced, m), p.leading(squeeze.bias, reduced)]);
            slots.push(vec![p.leading_two(excite.weight, m, reduced), p.leading(excite.bias, m)]);
        }
        slots.push(vec![p.leading_two(self.project, outputs, m)]);
        slots.push(self.project_norm.active(p, outputs));
        if let (Some(weight), true) = (self.shortcut, spec.projection) {
            slots.push(vec![p.leading_two(weight, outputs, inputs)]);
        }
        Ok(slots)
    }

    pub(super) fn forward(
        &self,
        parameters: &Parameters,
        x: &Tensor,
        spec: &InvertedResidualSpec,
        eps: f64,
        pass: &mut Pass,
    ) -> Result<Tensor> {
        let mut active = self.active(parameters, spec)?;
        let (batch, height, width, _) = x.dims4()?;
        if !fused(x) {
            // In training the images' size need not be the subnet's, and the shortcut's padding follows the map.
            let here = InvertedResidualSpec { input_size: height, ..spec.clone() };
            return pass.interpret(&BlockSpec::InvertedResidual(here).graph(eps), x, &active);
        }
        let mut shape = block_shape(spec, batch, height, width, eps);
        // The fused shortcut cannot stay where its branch is skipped.
        shape.residual &= pass.drops.is_none();
        if !spec.residual || shape.residual {
            return fused_block(x, active, shape, pass);
        }
        // A shortcut that changes the input is no part of the fused block.
        let weight = if spec.projection { active.pop().and_then(|mut slot| slot.pop()) } else { None };
        let shortcut = |pass: &mut Pass| fitted_shortcut(x, weight, spec.stride, pass);
        let main = |pass: &mut Pass| pass.dropped(|pass| fused_block(x, active, shape, pass));
        sum_of_branches(pass, main, shortcut, false)
    }
}

/// The block's kernel.
fn fused_block(x: &Tensor, active: Vec<Vec<Active>>, shape: BlockShape, pass: &mut Pass) -> Result<Tensor> {
    let packed = pack(&active)?;
    let expanded = if shape.expand { shape.middle } else { 0 };
    let given = pass.next_given([expanded, shape.middle, shape.out_channels])?;
    let (keep, ranks) = (pass.tape.is_some(), pass.ranks);
    let (output, saved, used) = tensor_values(x, |x| {
        ops::inverted_residual(x, &packed, &shape, given.as_ref(), summing(ranks).as_deref(), keep).map_err(Error::wrap)
    })?;
    pass.used.extend(used.into_iter().skip(usize::from(!shape.expand)));
    let (height, width) = shape.output_size();
    let output = Tensor::from_vec(output, (shape.batch, height, width, shape.out_channels), x.device())?;
    let Some(saved) = saved else { return Ok(output) };
    let (x, ranks) = (x.clone(), ranks.cloned());
    pass.record(move |gradient, gradients| {
        let computed = tensor_values(&x, |x| {
            let sum = summing(ranks.as_ref());
            tensor_values(&gradient, |g| Ok(saved.backward(&shape, x, &packed, sum.as_deref(), g)))
        })?;
        add_packed(&active, &computed.parameters, gradients)?;
        computed.input.map(|dx| Tensor::from_vec(dx, x.shape(), x.device())).transpose()
    });
    Ok(output)
}

/// Rows and columns of zeros before the map that the windows of a shortcut's pool begin with.
fn pool_padding(size: usize) -> usize {
    size % 2
}

/// The block's input averaged over `stride x stride` pixels and projected by `weight` `[out, in, 1, 1]`, as far as the
/// block needs that.
fn fitted_shortcut(x: &Tensor, weight: Option<Active>, stride: usize, pass: &mut Pass) -> Result<Tensor> {
    let (_, height, _, _) = x.dims4()?;
    let pooled = match stride {
        1 => x.clone(),
        _ => average_pool(x, (stride, stride), pool_padding(height), pass)?,
    };
    weight.map_or(Ok(pooled.clone()), |weight| linear(&pooled, weight, None, pass))
}

/// The block `spec` for `batch` maps of `height x width`.
fn block_shape(spec: &InvertedResidualSpec, batch: usize, height: usize, width: usize, eps: f64) -> BlockShape {
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
        residual: spec.residual && !spec.projection && spec.stride == 1,
        eps,
    }
}
