//! The static network that a subnet stands for, layer by layer: what cost, latency, export and inference read.

use super::{Activation, make_divisible};
use crate::blocks::BlockSpec;
use crate::graph::{Graph, RegionKind};
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

/// A static network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// Height and width of the input image.
    pub resolution: usize,
    /// First convolution, in ResNet-D two or three of them.
    #[serde(deserialize_with = "crate::legacy::stem")]
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

    /// Multiply-accumulates of one image's forward pass: [`Graph::macs`].
    pub fn macs(&self) -> u64 {
        Graph::of(self).macs()
    }

    /// The block at whose input half of the work is done: the first that has half of the multiply-accumulates or more
    /// before it, or the last block.
    pub(crate) fn middle_block(&self) -> usize {
        let graph = Graph::of(self);
        let half = graph.macs() / 2;
        let (mut before, mut middle) = (0, 0);
        let mut blocks = 0;
        for layer in graph.layers() {
            if matches!(layer.kind, RegionKind::Block { .. }) {
                middle = blocks;
                blocks += 1;
                if before >= half {
                    break;
                }
            }
            before += graph.layer_macs(layer);
        }
        middle
    }

    /// Layers from the first on that this network and `other` have in common, the stem counted as one, each block as
    /// one: they stand at the same place and are the same.
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

    /// Changes the size of the images; layers keep their weights' shapes.
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

/// Middle channels of a block: `make_divisible(round(channels x ratio))`, of input channels (inverted residuals) or
/// output channels (bottlenecks).
pub(crate) fn middle_channels(channels: usize, ratio: f64) -> usize {
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
