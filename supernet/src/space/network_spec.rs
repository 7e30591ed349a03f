//! The static network that a subnet stands for, layer by layer: what cost, latency, export and inference read.

use super::{Activation, SearchSpace, Subnet, make_divisible};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// A dense convolution with batch norm and activation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConvSpec {
    /// Input channels.
    pub in_channels: usize,
    /// Output channels.
    pub out_channels: usize,
    /// Kernel size; the padding is half of it.
    pub kernel: usize,
    /// Stride.
    pub stride: usize,
    /// Activation after batch norm.
    pub activation: Activation,
    /// Height and width of the input map.
    pub input_size: usize,
}

impl ConvSpec {
    /// Height and width of the output map.
    pub fn output_size(&self) -> usize {
        self.input_size.div_ceil(self.stride)
    }
}

/// An inverted residual block: 1x1 expand, depthwise, optional squeeze-excite, 1x1 project, optional residual.
/// It holds no position, so equal blocks compare equal wherever they stand.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockSpec {
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

impl BlockSpec {
    /// Height and width of the output map.
    pub fn output_size(&self) -> usize {
        self.input_size.div_ceil(self.stride)
    }
}

/// A static network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// Height and width of the input image.
    pub resolution: usize,
    /// First convolution.
    pub stem: ConvSpec,
    /// Blocks, stage by stage; the first stage is the fixed first block.
    pub stages: Vec<Vec<BlockSpec>>,
    /// Last 1x1 convolution, before the global average pool.
    pub feature: ConvSpec,
    /// Width of the layer between pool and classifier (a linear map without bias or batch norm), if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden_channels: Option<usize>,
    /// Activation of that layer.
    pub hidden_activation: Activation,
    /// Epsilon of every batch norm.
    #[serde(default = "super::default_epsilon")]
    pub batch_norm_epsilon: f64,
    /// Number of classes.
    pub classes: usize,
}

impl NetworkSpec {
    /// All blocks in order.
    pub fn blocks(&self) -> impl Iterator<Item = &BlockSpec> {
        self.stages.iter().flatten()
    }

    /// Width of the classifier's input.
    pub fn classifier_channels(&self) -> usize {
        self.hidden_channels.unwrap_or(self.feature.out_channels)
    }
}

/// Middle channels of a block: `make_divisible(round(in x ratio))`.
pub(crate) fn middle_channels(in_channels: usize, ratio: f64) -> usize {
    make_divisible((in_channels as f64 * ratio).round())
}

/// Reduced channels of squeeze-excite: `make_divisible(middle // 4)`.
pub(crate) fn reduced_channels(middle: usize) -> usize {
    make_divisible((middle / 4) as f64)
}

impl SearchSpace {
    /// The static network of `subnet` for `classes` classes.
    ///
    /// # Errors
    /// A subnet outside this space, or no classes.
    pub fn network(&self, subnet: &Subnet, classes: usize) -> Result<NetworkSpec> {
        self.check(subnet)?;
        if classes == 0 {
            return Err(Error::Space("a network needs at least one class".into()));
        }
        let stem = ConvSpec {
            in_channels: 3,
            out_channels: self.width(self.stem.channels),
            kernel: 3,
            stride: self.stem.stride,
            activation: self.stem.activation,
            input_size: subnet.resolution,
        };
        let first = self.width(self.first_block.channels);
        let mut size = stem.output_size();
        let mut channels = first;
        let mut stages = vec![vec![BlockSpec {
            in_channels: stem.out_channels,
            middle_channels: stem.out_channels,
            out_channels: first,
            kernel: 3,
            stride: 1,
            activation: self.first_block.activation,
            expand: false,
            squeeze_excite: None,
            residual: stem.out_channels == first,
            input_size: size,
        }]];
        for (stage, choices) in self.stages.iter().zip(&subnet.stages) {
            let out_channels = self.width(stage.channels);
            let mut blocks = Vec::with_capacity(choices.len());
            for (index, choice) in choices.iter().enumerate() {
                let middle = middle_channels(channels, choice.expand.value());
                let block = BlockSpec {
                    in_channels: channels,
                    middle_channels: middle,
                    out_channels,
                    kernel: choice.kernel,
                    stride: if index == 0 { stage.stride } else { 1 },
                    activation: stage.activation,
                    expand: true,
                    squeeze_excite: stage.squeeze_excite.then(|| reduced_channels(middle)),
                    residual: channels == out_channels && (index > 0 || stage.stride == 1),
                    input_size: size,
                };
                size = block.output_size();
                channels = out_channels;
                blocks.push(block);
            }
            stages.push(blocks);
        }
        let feature = ConvSpec {
            in_channels: channels,
            out_channels: self.width(self.head.feature_channels),
            kernel: 1,
            stride: 1,
            activation: self.head.activation,
            input_size: size,
        };
        Ok(NetworkSpec {
            resolution: subnet.resolution,
            stem,
            stages,
            feature,
            hidden_channels: self.head.hidden_channels.map(|channels| self.width(channels)),
            hidden_activation: self.head.activation,
            batch_norm_epsilon: self.batch_norm_epsilon,
            classes,
        })
    }
}
