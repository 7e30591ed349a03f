//! The layers a network's time is the sum of: the keys of a latency table.

use ofa_supernet::space::{Activation, BlockSpec, ConvSpec, NetworkSpec};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A part of a network that is timed as one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerSpec {
    /// The first convolution.
    Stem(ConvSpec),
    /// An inverted residual block, the fixed first one included.
    Block(BlockSpec),
    /// Everything after the last block.
    Head(HeadSpec),
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

/// The layers of `network` in the order they run: stem, blocks, head.
pub fn layers(network: &NetworkSpec) -> impl Iterator<Item = LayerSpec> + '_ {
    let head = HeadSpec {
        feature: network.feature.clone(),
        hidden_channels: network.hidden_channels,
        hidden_activation: network.hidden_activation,
        classes: network.classes,
    };
    std::iter::once(LayerSpec::Stem(network.stem.clone()))
        .chain(network.blocks().cloned().map(LayerSpec::Block))
        .chain(std::iter::once(LayerSpec::Head(head)))
}

impl fmt::Display for LayerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LayerSpec::Stem(conv) => write!(
                f,
                "stem {}-{} k{} stride {} {} at {size}x{size}",
                conv.in_channels,
                conv.out_channels,
                conv.kernel,
                conv.stride,
                conv.activation,
                size = conv.input_size
            ),
            LayerSpec::Block(block) => {
                write!(f, "block {}-{}-{}", block.in_channels, block.middle_channels, block.out_channels)?;
                write!(f, " k{} stride {} {}", block.kernel, block.stride, block.activation)?;
                if let Some(reduced) = block.squeeze_excite {
                    write!(f, " se{reduced}")?;
                }
                if block.residual {
                    f.write_str(" residual")?;
                }
                write!(f, " at {size}x{size}", size = block.input_size)
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
