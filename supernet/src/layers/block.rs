//! A block of whichever kind its family has.

use super::{BatchNorm, Bottleneck, InvertedResidual, ParameterId, Parameters, Pass};
use crate::ops::Relay;
use crate::space::BlockSpec;
use candle_core::{Result, bail};

#[derive(Debug)]
pub(crate) enum Block {
    InvertedResidual(InvertedResidual),
    Bottleneck(Bottleneck),
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

    /// The first of its parameters in the list; the others follow one after the other.
    pub(crate) fn first_parameter(&self) -> ParameterId {
        match self {
            Block::InvertedResidual(block) => block.first_parameter(),
            Block::Bottleneck(block) => block.convolutions[0].weight,
        }
    }

    /// Its batch norms in the order in which statistics are listed.
    pub(crate) fn norms(&self) -> Vec<&BatchNorm> {
        match self {
            Block::InvertedResidual(block) => block.norms().collect(),
            Block::Bottleneck(block) => block.norms().collect(),
        }
    }

    /// `x` `[batch, height, width, in]` to `[batch, height / stride, width / stride, out]`.
    pub(crate) fn forward(
        &self,
        parameters: &Parameters,
        x: Relay,
        spec: &BlockSpec,
        eps: f64,
        pass: &mut Pass,
    ) -> Result<Relay> {
        match (self, spec) {
            (Block::InvertedResidual(block), BlockSpec::InvertedResidual(spec)) => {
                block.forward(parameters, x, spec, eps, pass)
            }
            (Block::Bottleneck(block), BlockSpec::Bottleneck(spec)) => {
                Ok(block.forward(parameters, &x.tracked()?, spec, eps, pass)?.into())
            }
            _ => bail!("a block of one family was given the description of another's"),
        }
    }

    /// Sorts middle channels by importance; see [`InvertedResidual::sort_channels`] and [`Bottleneck::sort_channels`].
    pub(crate) fn sort_channels(&self, parameters: &Parameters, widths: &[usize]) -> Result<()> {
        match self {
            Block::InvertedResidual(block) => block.sort_channels(parameters, widths),
            Block::Bottleneck(block) => block.sort_channels(parameters, widths),
        }
    }
}
