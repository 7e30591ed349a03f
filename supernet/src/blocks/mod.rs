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
use crate::layers::{Active, BatchNorm, OuterChannels, ParameterId, Parameters, Pass};
use candle_core::{Result, Tensor, bail};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// Declares the kinds of blocks, each as `Kind(description, elastic layers)`, and everything that goes by this list.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident($spec:ident, $layers:ident),)*) => {
        /// A block of a stage. It holds no position, so equal blocks compare equal wherever they stand.
        #[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
        #[serde(untagged)]
        pub enum BlockSpec {
            $($(#[$doc])* $kind($spec),)*
        }

        /// The elastic layers of a block.
        #[derive(Debug)]
        pub(crate) enum Block {
            $($kind($layers),)*
        }

        /// A block as a file's table, whose fields tell the kind. No table is a block of a custom kind.
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Fields {
            $($kind($spec),)*
        }

        impl Fields {
            fn block(self) -> BlockSpec {
                match self {
                    $(Fields::$kind(spec) => BlockSpec::$kind(spec),)*
                }
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
                match choices.first() {
                    $(Some(BlockSpec::$kind(_)) => {
                        let choices: Vec<&$spec> = all_of_kind(choices)?;
                        Ok(Block::$kind($layers::new(parameters, name, &choices, kernel_sizes)?))
                    })*
                    None => bail!("the block '{name}' has no choices"),
                }
            }
        }

        $(impl Kind for $spec {
            fn of(block: &BlockSpec) -> Result<&Self> {
                match block {
                    BlockSpec::$kind(spec) => Ok(spec),
                    _ => bail!("a block of one kind was given the description of another"),
                }
            }
        })*
    };
}

kinds! {
    /// MobileNets.
    InvertedResidual(InvertedResidualSpec, InvertedResidual),
    /// ResNets.
    Bottleneck(BottleneckSpec, Bottleneck),
    /// Kinds from outside this crate.
    Custom(CustomSpec, Custom),
}

/// The description of one kind of block.
trait Kind: Sized {
    /// The description of `block`.
    ///
    /// # Errors
    /// A block of another kind.
    fn of(block: &BlockSpec) -> Result<&Self>;
}

/// The descriptions of blocks of one kind.
fn all_of_kind<'a, S: Kind>(blocks: &[&'a BlockSpec]) -> Result<Vec<&'a S>> {
    blocks.iter().map(|&block| S::of(block)).collect()
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
                Fields::deserialize(MapAccessDeserializer::new(map)).map(Fields::block)
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
            (Block::InvertedResidual(_) | Block::Bottleneck(_) | Block::Custom(_), _) => self.norms(),
        }
    }

    /// Active parts of the tensors of each slot of the block's graph, without running statistics.
    pub(crate) fn active(&self, parameters: &Parameters, spec: &BlockSpec) -> Result<Vec<Vec<Active>>> {
        for_kind!(Block, self, block => block.active(parameters, Kind::of(spec)?))
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
        for_kind!(Block, self, block => block.forward(parameters, x, Kind::of(spec)?, eps, pass))
    }

    /// Sorts middle channels by importance. `trained` is the block at the expand ratios that were trained beside the
    /// largest: the channels that each of them uses stay together in front.
    pub(crate) fn sort_channels(&self, parameters: &Parameters, trained: &[&BlockSpec]) -> Result<()> {
        for_kind!(Block, self, block => block.sort_channels(parameters, &all_of_kind(trained)?))
    }

    /// Layers that read the block's input channels and that write its output channels; `None` where these are not
    /// elastic.
    pub(crate) fn outer_channels(&self) -> Option<OuterChannels<'_>> {
        for_kind!(Block, self, block => block.outer_channels())
    }
}
