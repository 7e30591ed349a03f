//! The layers a network's time is the sum of: the keys of a latency table.

use ofa_supernet::space::{Activation, BlockSpec, ConvSpec, MaxPoolSpec, NetworkSpec};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A part of a network that is timed as one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerSpec {
    /// The first convolution, or one of the first.
    Stem(ConvSpec),
    /// ResNet's max pool after them.
    MaxPool(MaxPoolSpec),
    /// A block, MobileNets' fixed first one included.
    Block(BlockSpec),
    /// Everything after the last block of a MobileNet.
    Head(HeadSpec),
    /// Everything after the last block of a ResNet.
    Classifier(ClassifierSpec),
}

/// Average pool and classifier.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierSpec {
    /// Channels of the pooled map.
    pub in_channels: usize,
    /// Height and width of that map.
    pub input_size: usize,
    /// Number of classes.
    pub classes: usize,
}

/// Feature convolution, average pool, perhaps a hidden layer, and classifier.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadSpec {
    /// The 1x1 convolution before the pool.
    pub feature: ConvSpec,
    /// Width of the hidden layer, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden_channels: Option<usize>,
    /// Activation of the hidden layer.
    pub hidden_activation: Activation,
    /// Number of classes.
    pub classes: usize,
}

/// The layers of `network` in the order they run.
pub fn layers(network: &NetworkSpec) -> impl Iterator<Item = LayerSpec> + '_ {
    let last = match &network.feature {
        Some(feature) => LayerSpec::Head(HeadSpec {
            feature: feature.clone(),
            hidden_channels: network.hidden_channels,
            hidden_activation: network.hidden_activation,
            classes: network.classes,
        }),
        None => {
            let (in_channels, input_size) = network.pooled_map();
            LayerSpec::Classifier(ClassifierSpec { in_channels, input_size, classes: network.classes })
        }
    };
    let stem = network.stem.iter().cloned().map(LayerSpec::Stem);
    stem.chain(network.max_pool.iter().cloned().map(LayerSpec::MaxPool))
        .chain(network.blocks().cloned().map(LayerSpec::Block))
        .chain(std::iter::once(last))
}

impl fmt::Display for LayerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LayerSpec::Stem(conv) => {
                write!(f, "stem {}-{} k{}", conv.in_channels, conv.out_channels, conv.kernel)?;
                write!(f, " stride {} {}", conv.stride, conv.activation)?;
                if conv.residual {
                    f.write_str(" residual")?;
                }
                write!(f, " at {size}x{size}", size = conv.input_size)
            }
            LayerSpec::MaxPool(pool) => {
                write!(f, "max pool {} at {size}x{size}", pool.channels, size = pool.input_size)
            }
            LayerSpec::Block(block) => block.fmt(f),
            LayerSpec::Classifier(last) => {
                write!(f, "classifier {}-{} at {size}x{size}", last.in_channels, last.classes, size = last.input_size)
            }
            LayerSpec::Head(head) => {
                write!(f, "head {}-{}", head.feature.in_channels, head.feature.out_channels)?;
                if let Some(hidden) = head.hidden_channels {
                    write!(f, "-{hidden}")?;
                }
                write!(f, "-{} at {size}x{size}", head.classes, size = head.feature.input_size)
            }
        }
    }
}
