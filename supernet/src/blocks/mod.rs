//! Blocks of a stage.
//!
//! | file | concern |
//! | --- | --- |
//! | `inverted_residual`, `bottleneck` | kinds of this crate, each with its description, its graph, and its elastic layers |
//! | `custom` | kinds from outside: registry, and the description of a block as its own graph |
//! | `custom_layers` | elastic layers of any graph |
//! | `custom_channels` | channels of a graph that are sorted alike |

mod bottleneck;
mod custom;
mod custom_channels;
mod custom_layers;
mod inverted_residual;

pub use bottleneck::BottleneckSpec;
pub use custom::{BlockSettings, CustomKind, CustomSpec, register};
pub use inverted_residual::InvertedResidualSpec;

pub(crate) use bottleneck::Bottleneck;
pub(crate) use custom::find;
pub(crate) use custom_layers::Custom;
pub(crate) use inverted_residual::InvertedResidual;

use crate::graph::names::BlockNames;
use crate::graph::{Builder, Graph, NodeId, RegionKind, Shape};
use crate::layers::channel_sorting::trained;
use crate::layers::{Active, BatchNorm, OuterChannels, ParameterId, Parameters, Pass};
use candle_core::{Result, Tensor, bail};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// A block of a stage. It holds no position, so equal blocks compare equal wherever they stand.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(untagged)]
pub enum BlockSpec {
    /// MobileNets.
    InvertedResidual(InvertedResidualSpec),
    /// ResNets.
    Bottleneck(BottleneckSpec),
    /// Kinds from outside this crate.
    Custom(CustomSpec),
}

/// The elastic layers of a block.
#[derive(Debug)]
pub(crate) enum Block {
    InvertedResidual(InvertedResidual),
    Bottleneck(Bottleneck),
    Custom(Custom),
}

/// Evaluates an expression for the block of whichever kind `$block` is.
macro_rules! for_kind {
    ($kinds:ident, $this:expr, $block:ident => $value:expr) => {
        match $this {
            $kinds::InvertedResidual($block) => $value,
            $kinds::Bottleneck($block) => $value,
            $kinds::Custom($block) => $value,
        }
    };
}

impl BlockSpec {
    /// Extent of the input map, which is a square.
    pub fn input(&self) -> Shape {
        for_kind!(BlockSpec, self, block => block.input())
    }

    /// Extent of the output map.
    pub fn output(&self) -> Shape {
        for_kind!(BlockSpec, self, block => block.output())
    }

    /// Input channels.
    pub fn in_channels(&self) -> usize {
        self.input().channels
    }

    /// Output channels.
    pub fn out_channels(&self) -> usize {
        self.output().channels
    }

    /// Height and width of the input map.
    pub fn input_size(&self) -> usize {
        self.input().height
    }

    /// Height and width of the output map.
    pub fn output_size(&self) -> usize {
        self.output().height
    }

    pub(crate) fn set_input_size(&mut self, size: usize) {
        for_kind!(BlockSpec, self, block => block.set_input_size(size));
    }

    /// Channel counts between the block's input and output, each with its name, for messages; none for custom kinds,
    /// whose nodes are checked when they are read.
    pub fn inner_channels(&self) -> Vec<(&'static str, usize)> {
        for_kind!(BlockSpec, self, block => block.inner_channels())
    }

    /// Kernel size and stride of the convolution that sees neighbours; none for custom kinds.
    pub fn window(&self) -> Option<(usize, usize)> {
        for_kind!(BlockSpec, self, block => block.window())
    }

    /// Checks that the block's parts fit each other, whatever stands before it.
    ///
    /// # Errors
    /// The end of a sentence that begins with the block's name.
    pub fn check(&self) -> std::result::Result<(), String> {
        for_kind!(BlockSpec, self, block => block.check())
    }

    /// Names of the layers that blocks of the kind can have.
    pub(crate) fn names(&self) -> &'static BlockNames {
        for_kind!(BlockSpec, self, block => block.names())
    }

    pub(crate) fn region(&self) -> RegionKind {
        RegionKind::Block { recomputes: for_kind!(BlockSpec, self, block => block.recomputes()) }
    }

    pub(crate) fn lower(&self, builder: &mut Builder, x: NodeId) -> NodeId {
        for_kind!(BlockSpec, self, block => block.lower(builder, x))
    }

    /// The block as a graph of its own.
    pub fn graph(&self, batch_norm_epsilon: f64) -> Graph {
        let (mut builder, x) = Builder::new(self.input(), batch_norm_epsilon);
        builder.layer(self.region(), |b| self.lower(b, x));
        builder.finish()
    }
}

/// A text is a block of a custom kind; the fields tell the others.
impl<'de> Deserialize<'de> for BlockSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Fields {
            InvertedResidual(InvertedResidualSpec),
            Bottleneck(BottleneckSpec),
        }
        struct Block;
        impl<'de> Visitor<'de> for Block {
            type Value = BlockSpec;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a block as a table of its fields or as a text of its nodes")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<BlockSpec, E> {
                text.parse().map(BlockSpec::Custom).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<BlockSpec, A::Error> {
                Ok(match Fields::deserialize(MapAccessDeserializer::new(map))? {
                    Fields::InvertedResidual(block) => BlockSpec::InvertedResidual(block),
                    Fields::Bottleneck(block) => BlockSpec::Bottleneck(block),
                })
            }
        }
        deserializer.deserialize_any(Block)
    }
}

impl fmt::Display for BlockSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for_kind!(BlockSpec, self, block => block.fmt(f))
    }
}

impl Block {
    /// The block at all choices that a subnet may make, the largest first.
    pub(crate) fn new(
        parameters: &mut Parameters,
        name: &str,
        choices: &[&BlockSpec],
        kernel_sizes: &[usize],
    ) -> Result<Self> {
        Ok(match choices {
            [BlockSpec::InvertedResidual(largest), ..] => {
                // A narrow subnet may need a projection in a shortcut that joins equal widths in the largest.
                let projects =
                    |choice: &&BlockSpec| matches!(choice, BlockSpec::InvertedResidual(spec) if spec.projection);
                let projection = choices.iter().any(projects);
                let largest = InvertedResidualSpec { projection, ..largest.clone() };
                Block::InvertedResidual(InvertedResidual::new(parameters, name, &largest, kernel_sizes)?)
            }
            [BlockSpec::Bottleneck(largest), ..] => Block::Bottleneck(Bottleneck::new(parameters, name, largest)?),
            _ => {
                let of_kind = |choice: &&BlockSpec| match choice {
                    BlockSpec::Custom(spec) => Some(spec.clone()),
                    _ => None,
                };
                let choices: Vec<CustomSpec> = choices.iter().filter_map(of_kind).collect();
                Block::Custom(Custom::new(parameters, name, &choices)?)
            }
        })
    }

    /// First parameter of the block in the list; the others follow one after the other.
    pub(crate) fn first_parameter(&self) -> ParameterId {
        for_kind!(Block, self, block => block.first_parameter())
    }

    /// All batch norms, in a fixed order.
    pub(crate) fn norms(&self) -> Vec<&BatchNorm> {
        for_kind!(Block, self, block => block.norms().collect())
    }

    /// Batch norms of one choice, in the order in which statistics are listed.
    pub(crate) fn active_norms(&self, spec: &BlockSpec) -> Vec<&BatchNorm> {
        match (self, spec) {
            (Block::Custom(block), BlockSpec::Custom(spec)) => block.active_norms(&spec.graph()),
            _ => self.norms(),
        }
    }

    /// Active parts of the tensors of each slot of the block's graph, without running statistics.
    pub(crate) fn active(&self, parameters: &Parameters, spec: &BlockSpec) -> Result<Vec<Vec<Active>>> {
        match (self, spec) {
            (Block::InvertedResidual(block), BlockSpec::InvertedResidual(spec)) => Ok(block.active(parameters, spec)),
            (Block::Bottleneck(block), BlockSpec::Bottleneck(spec)) => Ok(block.active(parameters, spec)),
            (Block::Custom(block), BlockSpec::Custom(spec)) => block.active(parameters, &spec.graph()),
            _ => bail!("a block of one kind was given the description of another"),
        }
    }

    /// `x` `[batch, height, width, in]` to `[batch, height / stride, width / stride, out]`.
    pub(crate) fn forward(
        &self,
        parameters: &Parameters,
        x: &Tensor,
        spec: &BlockSpec,
        eps: f64,
        pass: &mut Pass,
    ) -> Result<Tensor> {
        match (self, spec) {
            (Block::InvertedResidual(block), BlockSpec::InvertedResidual(spec)) => {
                block.forward(parameters, x, spec, eps, pass)
            }
            (Block::Bottleneck(block), BlockSpec::Bottleneck(spec)) => block.forward(parameters, x, spec, eps, pass),
            (Block::Custom(block), BlockSpec::Custom(_)) => block.forward(parameters, x, &spec.graph(eps), pass),
            _ => bail!("a block of one kind was given the description of another"),
        }
    }

    /// Sorts middle channels by importance, before width stage `stage` (1, 2, ...).
    ///
    /// `widths` are the block's middle widths, descending. Channels that survived an earlier stage together stay
    /// together in front.
    pub(crate) fn sort_channels(&self, parameters: &Parameters, widths: &[usize], stage: usize) -> Result<()> {
        match self {
            Block::InvertedResidual(block) => block.sort_channels(parameters, &trained(widths, stage)),
            Block::Bottleneck(block) => block.sort_channels(parameters, &trained(widths, stage)),
            Block::Custom(block) => block.sort_channels(parameters, stage),
        }
    }

    /// Layers that read the block's input channels and that write its output channels; `None` where these are not
    /// elastic.
    pub(crate) fn outer_channels(&self) -> Option<OuterChannels<'_>> {
        for_kind!(Block, self, block => block.outer_channels())
    }
}
