//! Blocks of a stage: a file for each kind, with its description, its graph, and its elastic layers.

mod bottleneck;
mod inverted_residual;

pub use bottleneck::BottleneckSpec;
pub use inverted_residual::InvertedResidualSpec;

pub(crate) use bottleneck::Bottleneck;
pub(crate) use inverted_residual::InvertedResidual;

use crate::graph::{Builder, Graph, NodeId, RegionKind, Shape};
use crate::layers::{Active, BatchNorm, OuterChannels, ParameterId, Parameters, Pass};
use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A block of a stage. It holds no position, so equal blocks compare equal wherever they stand.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum BlockSpec {
    /// MobileNets.
    InvertedResidual(InvertedResidualSpec),
    /// ResNets.
    Bottleneck(BottleneckSpec),
}

/// The elastic layers of a block.
#[derive(Debug)]
pub(crate) enum Block {
    InvertedResidual(InvertedResidual),
    Bottleneck(Bottleneck),
}

/// Evaluates an expression for the block of whichever kind `$block` is.
macro_rules! for_kind {
    ($kinds:ident, $this:expr, $block:ident => $value:expr) => {
        match $this {
            $kinds::InvertedResidual($block) => $value,
            $kinds::Bottleneck($block) => $value,
        }
    };
}

impl BlockSpec {
    /// Input channels.
    pub fn in_channels(&self) -> usize {
        for_kind!(BlockSpec, self, block => block.in_channels)
    }

    /// Output channels.
    pub fn out_channels(&self) -> usize {
        for_kind!(BlockSpec, self, block => block.out_channels)
    }

    /// Kernel size of the convolution that sees neighbours.
    pub fn kernel(&self) -> usize {
        for_kind!(BlockSpec, self, block => block.kernel)
    }

    /// Stride of that convolution.
    pub fn stride(&self) -> usize {
        for_kind!(BlockSpec, self, block => block.stride)
    }

    /// Height and width of the input map.
    pub fn input_size(&self) -> usize {
        for_kind!(BlockSpec, self, block => block.input_size)
    }

    /// Height and width of the output map.
    pub fn output_size(&self) -> usize {
        for_kind!(BlockSpec, self, block => block.output_size())
    }

    pub(crate) fn set_input_size(&mut self, size: usize) {
        for_kind!(BlockSpec, self, block => block.input_size = size);
    }

    /// Channel counts between the block's input and output, each with its name, for messages.
    pub fn inner_channels(&self) -> Vec<(&'static str, usize)> {
        for_kind!(BlockSpec, self, block => block.inner_channels())
    }

    /// Checks that the block's parts fit each other, whatever stands before it.
    ///
    /// # Errors
    /// The end of a sentence that begins with the block's name.
    pub fn check(&self) -> std::result::Result<(), String> {
        for_kind!(BlockSpec, self, block => block.check())
    }

    /// Prefix of the names of its tensors at place `place` of stage `stage`, with a final dot.
    pub fn prefix(&self, stage: usize, place: usize) -> String {
        for_kind!(BlockSpec, self, block => block.prefix(stage, place))
    }

    pub(crate) fn region(&self) -> RegionKind {
        RegionKind::Block(for_kind!(BlockSpec, self, block => block.kind()))
    }

    pub(crate) fn lower(&self, builder: &mut Builder, x: NodeId) -> NodeId {
        for_kind!(BlockSpec, self, block => block.lower(builder, x))
    }

    /// The block as a graph of its own.
    pub fn graph(&self, batch_norm_epsilon: f64) -> Graph {
        let (height, width) = (self.input_size(), self.input_size());
        let (mut builder, x) = Builder::new(Shape { height, width, channels: self.in_channels() }, batch_norm_epsilon);
        builder.layer(self.region(), |b| self.lower(b, x));
        builder.finish()
    }
}

impl fmt::Display for BlockSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for_kind!(BlockSpec, self, block => block.fmt(f))
    }
}

impl Block {
    /// `largest` is the block at its largest choice.
    pub(crate) fn new(
        parameters: &mut Parameters,
        name: &str,
        largest: &BlockSpec,
        kernel_sizes: &[usize],
    ) -> Result<Self> {
        Ok(match largest {
            BlockSpec::InvertedResidual(spec) => {
                Block::InvertedResidual(InvertedResidual::new(parameters, name, spec, kernel_sizes)?)
            }
            BlockSpec::Bottleneck(spec) => Block::Bottleneck(Bottleneck::new(parameters, name, spec)?),
        })
    }

    /// First parameter of the block in the list; the others follow one after the other.
    pub(crate) fn first_parameter(&self) -> ParameterId {
        for_kind!(Block, self, block => block.first_parameter())
    }

    /// Batch norms in the order in which statistics are listed.
    pub(crate) fn norms(&self) -> Vec<&BatchNorm> {
        for_kind!(Block, self, block => block.norms().collect())
    }

    /// Active parts of the tensors of each slot of the block's graph, without running statistics.
    pub(crate) fn active(&self, parameters: &Parameters, spec: &BlockSpec) -> Result<Vec<Vec<Active>>> {
        match (self, spec) {
            (Block::InvertedResidual(block), BlockSpec::InvertedResidual(spec)) => Ok(block.active(parameters, spec)),
            (Block::Bottleneck(block), BlockSpec::Bottleneck(spec)) => Ok(block.active(parameters, spec)),
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
            _ => bail!("a block of one kind was given the description of another"),
        }
    }

    /// Sorts middle channels by importance.
    ///
    /// `widths` are the middle widths of earlier width stages, descending, ending with the narrowest that was trained:
    /// channels that survived together stay together in front.
    pub(crate) fn sort_channels(&self, parameters: &Parameters, widths: &[usize]) -> Result<()> {
        for_kind!(Block, self, block => block.sort_channels(parameters, widths))
    }

    /// Layers that read the block's input channels and that write its output channels; `None` where these are not
    /// elastic.
    pub(crate) fn outer_channels(&self) -> Option<OuterChannels<'_>> {
        for_kind!(Block, self, block => block.outer_channels())
    }
}
