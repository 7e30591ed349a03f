//! The static network that a subnet stands for, layer by layer: what cost, latency, export and inference read.

use super::{Activation, make_divisible};
use serde::{Deserialize, Deserializer, Serialize};

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
    /// Whether the input is added to the (activated) output: the optional convolution of ResNet-D's stem.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub residual: bool,
    /// Height and width of the input map.
    pub input_size: usize,
}

impl ConvSpec {
    /// Height and width of the output map.
    pub fn output_size(&self) -> usize {
        self.input_size.div_ceil(self.stride)
    }
}

/// ResNet's max pool after the stem: 3x3, stride 2.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaxPoolSpec {
    /// Channels.
    pub channels: usize,
    /// Height and width of the input map.
    pub input_size: usize,
}

impl MaxPoolSpec {
    /// Height and width of the output map.
    pub fn output_size(&self) -> usize {
        self.input_size.div_ceil(2)
    }
}

/// A block of a stage. It holds no position, so equal blocks compare equal wherever they stand.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum BlockSpec {
    /// MobileNets.
    InvertedResidual(InvertedResidualSpec),
    /// ResNets.
    Bottleneck(BottleneckSpec),
}

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
}

/// A bottleneck: 1x1, `kernel x kernel` with the stride, 1x1 without activation; their output plus the shortcut is activated.
///
/// The shortcut is the input, or (`projection`) its average over `stride x stride` pixels, those at the border over fewer, and a 1x1
/// convolution without activation (ResNet-D: He et al., CVPR 2019, figure 2c).
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
    /// Height and width of the output map.
    pub fn output_size(&self) -> usize {
        self.input_size.div_ceil(self.stride)
    }

    /// Its three convolutions in order.
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
}

impl BlockSpec {
    /// Input channels.
    pub fn in_channels(&self) -> usize {
        match self {
            BlockSpec::InvertedResidual(block) => block.in_channels,
            BlockSpec::Bottleneck(block) => block.in_channels,
        }
    }

    /// Output channels.
    pub fn out_channels(&self) -> usize {
        match self {
            BlockSpec::InvertedResidual(block) => block.out_channels,
            BlockSpec::Bottleneck(block) => block.out_channels,
        }
    }

    /// Height and width of the input map.
    pub fn input_size(&self) -> usize {
        match self {
            BlockSpec::InvertedResidual(block) => block.input_size,
            BlockSpec::Bottleneck(block) => block.input_size,
        }
    }

    /// Height and width of the output map.
    pub fn output_size(&self) -> usize {
        match self {
            BlockSpec::InvertedResidual(block) => block.output_size(),
            BlockSpec::Bottleneck(block) => block.output_size(),
        }
    }

    fn set_input_size(&mut self, size: usize) {
        match self {
            BlockSpec::InvertedResidual(block) => block.input_size = size,
            BlockSpec::Bottleneck(block) => block.input_size = size,
        }
    }

    /// Channels of its batch norms, in the order in which the supernet lists statistics: expand, depthwise, project; or the three
    /// convolutions and the shortcut's.
    pub fn norm_widths(&self) -> Vec<usize> {
        match self {
            BlockSpec::InvertedResidual(block) => {
                let expand = block.expand.then_some(block.middle_channels);
                expand.into_iter().chain([block.middle_channels, block.out_channels]).collect()
            }
            BlockSpec::Bottleneck(block) => {
                let convolutions = block.convolutions().into_iter().chain(block.shortcut());
                convolutions.map(|conv| conv.out_channels).collect()
            }
        }
    }
}

/// A static network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// Height and width of the input image.
    pub resolution: usize,
    /// First convolution, in ResNet-D two or three of them. (One may stand in a file without brackets.)
    #[serde(deserialize_with = "one_or_several")]
    pub stem: Vec<ConvSpec>,
    /// The pool after the stem, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pool: Option<MaxPoolSpec>,
    /// Blocks, stage by stage; in MobileNets the first stage is the fixed first block.
    pub stages: Vec<Vec<BlockSpec>>,
    /// Last 1x1 convolution, before the global average pool; ResNets have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature: Option<ConvSpec>,
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

    /// Channels and size (height and width) of the map that the global average pool reads.
    pub fn pooled_map(&self) -> (usize, usize) {
        if let Some(feature) = &self.feature {
            return (feature.out_channels, feature.output_size());
        }
        self.blocks().last().map_or((0, 0), |block| (block.out_channels(), block.output_size()))
    }

    /// Width of the classifier's input.
    pub fn classifier_channels(&self) -> usize {
        self.hidden_channels.unwrap_or(self.pooled_map().0)
    }

    /// Layers from the first on that this network and `other` have in common, the stem counted as one, each block as one: they stand at the same
    /// place and are the same.
    pub(crate) fn layers_in_common(&self, other: &NetworkSpec) -> usize {
        if (&self.stem, &self.max_pool) != (&other.stem, &other.max_pool) {
            return 0;
        }
        fn placed(network: &NetworkSpec) -> impl Iterator<Item = (usize, usize, &BlockSpec)> {
            let stages = network.stages.iter().enumerate();
            stages
                .flat_map(|(stage, blocks)| blocks.iter().enumerate().map(move |(place, block)| (stage, place, block)))
        }
        1 + placed(self).zip(placed(other)).take_while(|(own, other)| own == other).count()
    }

    /// Channels of all batch norms, in the order in which the supernet lists statistics.
    pub fn norm_widths(&self) -> Vec<usize> {
        let dense = |conv: &ConvSpec| conv.out_channels;
        let stem = self.stem.iter().map(dense);
        stem.chain(self.blocks().flat_map(BlockSpec::norm_widths)).chain(self.feature.iter().map(dense)).collect()
    }

    /// The same layers for images of another size.
    pub fn set_resolution(&mut self, resolution: usize) {
        self.resolution = resolution;
        let mut size = resolution;
        for conv in &mut self.stem {
            conv.input_size = size;
            size = conv.output_size();
        }
        if let Some(pool) = &mut self.max_pool {
            pool.input_size = size;
            size = pool.output_size();
        }
        for block in self.stages.iter_mut().flatten() {
            block.set_input_size(size);
            size = block.output_size();
        }
        if let Some(feature) = &mut self.feature {
            feature.input_size = size;
        }
    }
}

fn one_or_several<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ConvSpec>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Stem {
        One(ConvSpec),
        Several(Vec<ConvSpec>),
    }
    Ok(match Stem::deserialize(deserializer)? {
        Stem::One(conv) => vec![conv],
        Stem::Several(list) => list,
    })
}

/// Middle channels of a block: `make_divisible(round(channels x ratio))`, of input channels (inverted residuals) or output channels
/// (bottlenecks).
pub(super) fn middle_channels(channels: usize, ratio: f64) -> usize {
    make_divisible((channels as f64 * ratio).round())
}

/// Reduced channels of squeeze-excite: `make_divisible(middle // 4)`.
pub fn reduced_channels(middle: usize) -> usize {
    make_divisible((middle / 4) as f64)
}

#[cfg(test)]
mod tests {
    use crate::space::{SearchSpace, Subnet};

    #[test]
    fn layers_in_common_end_where_networks_part() {
        fn in_common(space: &str, one: &str, other: &str) -> usize {
            let space = SearchSpace::named(space).unwrap();
            let network = |text: &str| space.network(&text.parse::<Subnet>().unwrap(), 10).unwrap();
            let (one, other) = (network(one), network(other));
            assert_eq!(one.layers_in_common(&other), other.layers_in_common(&one));
            one.layers_in_common(&other)
        }
        let tiny = |one, other| in_common("tiny", one, other);
        // The stem and the fixed first block are always the same.
        assert_eq!(tiny("r24 d1,2 k5|3,5 e2|4,3", "r24 d1,2 k3|3,5 e2|4,3"), 2);
        assert_eq!(tiny("r24 d1,2 k5|3,5 e2|4,3", "r24 d1,2 k5|3,3 e2|4,3"), 4);
        assert_eq!(tiny("r24 d1,2 k5|3,5 e2|4,3", "r24 d1,2 k5|3,5 e2|4,3"), 5);
        // A shallower stage ends it, also where the next stage begins with a block like the missing one.
        assert_eq!(tiny("r24 d1,1 k5|3 e2|4", "r24 d2,1 k5,3|3 e2,4|4"), 3);
        assert_eq!(tiny("r24 d1,1 k5|3 e2|4", "r32 d1,1 k5|3 e2|4"), 0);
        let mut resnet = SearchSpace::named("resnet-tiny").unwrap().largest();
        let (largest, blocks) = (resnet.to_string(), resnet.blocks().count());
        assert_eq!(in_common("resnet-tiny", &largest, &largest), 1 + blocks);
        resnet.stem_blocks = 0;
        assert_eq!(in_common("resnet-tiny", &largest, &resnet.to_string()), 0);
    }
}
