//! Network families, and the rules in which they differ.

use serde::{Deserialize, Serialize};

/// The network family. Families are data plus the layers they need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Inverted residual blocks with squeeze-excite and hard-swish (Howard et al., ICCV 2019).
    MobileNetV3,
    /// MobileNetV2's inverted residual blocks with ReLU6, in ProxylessNAS's widths (Cai et al., ICLR 2019).
    ProxylessNas,
    /// ResNet-D's bottlenecks with average-pool shortcuts and a stem of three convolutions (He et al., CVPR 2019), with
    /// the elastic dimensions of the published ResNet-50D supernet: stem block, depth, expand ratio, and a width
    /// multiplier for each stage.
    #[serde(rename = "resnet_d")]
    ResNetD,
    /// Inverted residual blocks as in AttentiveNAS (Wang et al., CVPR 2021): channels between blocks are elastic too,
    /// every block has a shortcut, and a smaller kernel is the centre of the largest.
    AttentiveNas,
}

/// The rules in which families differ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    /// Name in messages.
    pub name: &'static str,
    /// Kind of the blocks, with the layers around them.
    pub blocks: Blocks,
    /// Channels between blocks.
    pub widths: Widths,
    /// How a smaller depthwise kernel follows from the largest.
    pub smaller_kernels: SmallerKernels,
    /// Inverted residuals that have a shortcut.
    pub shortcuts: Shortcuts,
    /// Whether the fixed first block has a shortcut where its input and output have equal channels.
    pub first_block_shortcut: bool,
    /// Whether the blocks of a stage whose only expand ratio is 1 have an expand convolution.
    pub expands_by_one: bool,
    /// Code whose checkpoints and descriptions of subnets are imported.
    pub publisher: Publisher,
    /// Epsilon of batch norm in published supernets, where it is not the default.
    pub published_epsilon: Option<f64>,
}

/// Kinds of a family's own blocks, with the layers around them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocks {
    /// Inverted residuals between a first convolution and a head.
    InvertedResiduals,
    /// Bottlenecks after a deep stem; the classifier follows the last block.
    Bottlenecks,
}

/// How the channels between blocks are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Widths {
    /// One multiplier for the whole space.
    Fixed,
    /// An elastic multiplier for each part of the network.
    Multipliers,
    /// A list of channels for each boundary.
    Lists,
}

/// How a smaller depthwise kernel follows from the largest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SmallerKernels {
    /// The centre of the next larger one, times a learned matrix.
    Transformed,
    /// The centre of the largest.
    Centre,
}

/// Inverted residuals that have a shortcut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortcuts {
    /// Blocks whose output has the shape of their input.
    WhereShapeIsKept,
    /// All blocks; pool and projection fit the input to the output.
    Everywhere,
}

/// Publishers of checkpoints, by whose names and notation files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publisher {
    /// Once-for-all.
    OnceForAll,
    /// AttentiveNAS.
    AttentiveNas,
}

impl Family {
    /// The family's rules.
    pub fn rules(self) -> &'static Rules {
        match self {
            Family::MobileNetV3 => &Rules {
                name: "MobileNetV3",
                blocks: Blocks::InvertedResiduals,
                widths: Widths::Fixed,
                smaller_kernels: SmallerKernels::Transformed,
                shortcuts: Shortcuts::WhereShapeIsKept,
                first_block_shortcut: true,
                expands_by_one: true,
                publisher: Publisher::OnceForAll,
                published_epsilon: None,
            },
            Family::ProxylessNas => &Rules {
                name: "ProxylessNAS",
                blocks: Blocks::InvertedResiduals,
                widths: Widths::Fixed,
                smaller_kernels: SmallerKernels::Transformed,
                shortcuts: Shortcuts::WhereShapeIsKept,
                // The published network has none, not even at widths that make both sides equal.
                first_block_shortcut: false,
                expands_by_one: true,
                publisher: Publisher::OnceForAll,
                published_epsilon: Some(1e-3),
            },
            Family::ResNetD => &Rules {
                name: "ResNet-D",
                blocks: Blocks::Bottlenecks,
                widths: Widths::Multipliers,
                smaller_kernels: SmallerKernels::Transformed,
                shortcuts: Shortcuts::WhereShapeIsKept,
                first_block_shortcut: false,
                expands_by_one: true,
                publisher: Publisher::OnceForAll,
                published_epsilon: None,
            },
            Family::AttentiveNas => &Rules {
                name: "AttentiveNAS",
                blocks: Blocks::InvertedResiduals,
                widths: Widths::Lists,
                smaller_kernels: SmallerKernels::Centre,
                shortcuts: Shortcuts::Everywhere,
                first_block_shortcut: false,
                expands_by_one: false,
                publisher: Publisher::AttentiveNas,
                published_epsilon: None,
            },
        }
    }
}
