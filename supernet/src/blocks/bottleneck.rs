//! Bottleneck blocks of ResNet-D: description, graph, and elastic layers, of which each uses the leading input and
//! output channels of its full weight.

use super::{BlockSettings, BlockSpec};
use crate::graph::names::{BOTTLENECK, BlockNames};
use crate::graph::{Builder, NodeId, Shape};
use crate::layers::{
    Active, BatchNorm, Dense, OuterChannels, ParameterId, Parameters, Pass, Touch, activate, average_pool, fused,
    sort_shared, sum_of_branches,
};
use crate::space::{Activation, ConvSpec, middle_channels};
use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A bottleneck: 1x1, `kernel x kernel` with the stride, 1x1 without activation; their output plus the shortcut is
/// activated.
///
/// The shortcut is the input, or (`projection`) its average over `stride x stride` pixels, those at the border over
/// fewer, and a 1x1 convolution without activation (ResNet-D: He et al., CVPR 2019, figure 2c).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BottleneckSpec {
    /// Input channels.
    pub in_channels: usize,
    /// Channels of the middle convolution.
    pub middle_channels: usize,
    /// Output channels.
    pub out_channels: usize,
    /// Kernel size of the middle convolution; the padding is half of it.
    pub kernel: usize,
    /// Stride of the middle convolution and of the shortcut's pool.
    pub stride: usize,
    /// Activation of the first two convolutions and of the sum.
    pub activation: Activation,
    /// Whether the shortcut has a pool and a convolution; the first block of every stage has them.
    pub projection: bool,
    /// Height and width of the input map.
    pub input_size: usize,
}

impl BottleneckSpec {
    /// The block for these settings: the expand ratio counts from the output channels.
    pub(crate) fn of(settings: &BlockSettings, projection: bool) -> Self {
        BottleneckSpec {
            in_channels: settings.in_channels,
            middle_channels: middle_channels(settings.out_channels, settings.expand.value()),
            out_channels: settings.out_channels,
            kernel: settings.kernel,
            stride: settings.stride,
            activation: settings.activation,
            projection,
            input_size: settings.input_size,
        }
    }

    /// Height and width of the output map.
    pub fn output_size(&self) -> usize {
        self.input_size.div_ceil(self.stride)
    }

    /// The three convolutions in order.
    pub fn convolutions(&self) -> [ConvSpec; 3] {
        let pointwise = |in_channels, out_channels, activation, input_size| ConvSpec {
            in_channels,
            out_channels,
            kernel: 1,
            stride: 1,
            activation,
            residual: false,
            input_size,
        };
        let middle = self.middle_channels;
        let first = pointwise(self.in_channels, middle, self.activation, self.input_size);
        let second = ConvSpec { in_channels: middle, kernel: self.kernel, stride: self.stride, ..first.clone() };
        [first, second, pointwise(middle, self.out_channels, Activation::Identity, self.output_size())]
    }

    /// The shortcut's convolution after its pool, if it has one.
    pub fn shortcut(&self) -> Option<ConvSpec> {
        self.projection.then(|| {
            let [.., last] = self.convolutions();
            ConvSpec { in_channels: self.in_channels, ..last }
        })
    }

    /// Whether a backward pass recomputes the activations inside the block: each convolution keeps its own.
    pub(super) fn recomputes(&self) -> bool {
        false
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
        vec![("middle", self.middle_channels)]
    }

    pub(super) fn check(&self) -> std::result::Result<(), String> {
        if !self.projection && (self.stride != 1 || self.out_channels != self.in_channels) {
            return Err(format!(
                "has a residual, but its output ({} channels, stride {}) has not the shape of its input ({} channels)",
                self.out_channels, self.stride, self.in_channels
            ));
        }
        Ok(())
    }

    pub(super) fn names(&self) -> &'static BlockNames {
        &BOTTLENECK
    }

    pub(super) fn lower(&self, builder: &mut Builder, x: NodeId) -> NodeId {
        let mut y = x;
        let roles = [("conv1", "conv1.norm"), ("conv2", "conv2.norm"), ("conv3", "conv3.norm")];
        for (conv, roles) in self.convolutions().iter().zip(roles) {
            y = conv.lower(builder, y, roles);
        }
        let mut shortcut = x;
        if let Some(conv) = self.shortcut() {
            shortcut = builder.average_pool(x, self.stride, 0);
            shortcut = conv.lower(builder, shortcut, ("shortcut", "shortcut.norm"));
        }
        let sum = builder.add(y, shortcut);
        builder.activation(sum, self.activation)
    }
}

impl fmt::Display for BottleneckSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bottleneck {}-{}-{}", self.in_channels, self.middle_channels, self.out_channels)?;
        write!(f, " k{} stride {} {}", self.kernel, self.stride, self.activation)?;
        if self.projection {
            f.write_str(" projection")?;
        }
        write!(f, " at {size}x{size}", size = self.input_size)
    }
}

/// Elastic layers of the block.
#[derive(Debug)]
pub(crate) struct Bottleneck {
    pub convolutions: [Dense; 3],
    /// After the shortcut's average pool.
    pub shortcut: Option<Dense>,
}

impl Bottleneck {
    /// The block at all choices that a subnet may make, the largest first; it has one kernel size.
    pub(super) fn new(
        parameters: &mut Parameters,
        name: &str,
        choices: &[&BottleneckSpec],
        _kernel_sizes: &[usize],
    ) -> Result<Self> {
        let mut dense = |part: &str, spec: &ConvSpec| Dense::new(parameters, &format!("{name}.{part}"), spec, false);
        let [first, second, third] = choices[0].convolutions();
        let convolutions = [dense("conv1", &first)?, dense("conv2", &second)?, dense("conv3", &third)?];
        let shortcut = choices[0].shortcut().map(|spec| dense("shortcut", &spec)).transpose()?;
        Ok(Bottleneck { convolutions, shortcut })
    }

    pub(super) fn first_parameter(&self) -> ParameterId {
        self.convolutions[0].weight
    }

    pub(super) fn active(&self, parameters: &Parameters, spec: &BottleneckSpec) -> Result<Vec<Vec<Active>>> {
        let convolutions = self.convolutions.iter().zip(spec.convolutions());
        let all = convolutions.chain(self.shortcut.iter().zip(spec.shortcut()));
        Ok(all.flat_map(|(dense, conv)| dense.active(parameters, &conv)).collect())
    }

    pub(super) fn outer_channels(&self) -> Option<OuterChannels<'_>> {
        let [first, _, last] = &self.convolutions;
        let readers = [first].into_iter().chain(&self.shortcut).map(|dense| Touch::Reads(dense.weight)).collect();
        let writers = [last].into_iter().chain(&self.shortcut).map(Touch::Writes).collect();
        Some(OuterChannels { readers, writers })
    }

    /// Sorts the channels between the second and third convolution, then those between the first and second, by the L1
    /// norm of the weights that read them.
    pub(super) fn sort_channels(&self, parameters: &Parameters, trained: &[&BottleneckSpec]) -> Result<()> {
        let widths: Vec<usize> = trained.iter().map(|spec| spec.middle_channels).collect();
        let [first, second, third] = &self.convolutions;
        sort_shared(parameters, &[Touch::Writes(second), Touch::Reads(third.weight)], &widths)?;
        sort_shared(parameters, &[Touch::Writes(first), Touch::Reads(second.weight)], &widths)
    }

    pub(super) fn norms(&self) -> impl Iterator<Item = &BatchNorm> {
        self.convolutions.iter().chain(&self.shortcut).map(|dense| &dense.norm)
    }

    pub(super) fn forward(
        &self,
        parameters: &Parameters,
        x: &Tensor,
        spec: &BottleneckSpec,
        eps: f64,
        pass: &mut Pass,
    ) -> Result<Tensor> {
        if !fused(x) {
            let graph = BlockSpec::Bottleneck(spec.clone()).graph(eps);
            return pass.interpret(&graph, x, &self.active(parameters, spec)?);
        }
        let main = |pass: &mut Pass| {
            let mut convolutions = self.convolutions.iter().zip(spec.convolutions());
            pass.dropped(|pass| {
                convolutions.try_fold(x.clone(), |y, (dense, conv)| dense.forward(parameters, &y, &conv, eps, pass))
            })
        };
        let shortcut = |pass: &mut Pass| match (&self.shortcut, spec.shortcut()) {
            (Some(dense), Some(conv)) => {
                let pooled = match spec.stride {
                    1 => x.clone(),
                    stride => average_pool(x, (stride, stride), 0, pass)?,
                };
                dense.forward(parameters, &pooled, &conv, eps, pass)
            }
            _ => Ok(x.clone()),
        };
        match spec.activation {
            Activation::Relu => sum_of_branches(pass, main, shortcut, true),
            other => activate(&sum_of_branches(pass, main, shortcut, false)?, other, pass),
        }
    }
}
