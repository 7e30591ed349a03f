//! The elastic bottleneck of ResNet-D: every convolution uses the leading input and output channels of its full weight.

use super::dense::{add, average_pool};
use super::{BatchNorm, Dense, Parameters, Pass};
use crate::ops::composite::activate;
use crate::space::{Activation, BottleneckSpec, ConvSpec};
use candle_core::{Result, Tensor};

#[derive(Debug)]
pub(crate) struct Bottleneck {
    pub convolutions: [Dense; 3],
    /// After the shortcut's average pool.
    pub shortcut: Option<Dense>,
}

impl Bottleneck {
    /// `largest` is the block at its largest choice.
    pub(crate) fn new(parameters: &mut Parameters, name: &str, largest: &BottleneckSpec) -> Result<Self> {
        let mut dense = |part: &str, spec: &ConvSpec| Dense::new(parameters, &format!("{name}.{part}"), spec, false);
        let [first, second, third] = largest.convolutions();
        let convolutions = [dense("conv1", &first)?, dense("conv2", &second)?, dense("conv3", &third)?];
        let shortcut = largest.shortcut().map(|spec| dense("shortcut", &spec)).transpose()?;
        Ok(Bottleneck { convolutions, shortcut })
    }

    /// Its convolutions with what they are in `spec`, in the order in which statistics are listed.
    pub(crate) fn layers<'a>(&'a self, spec: &BottleneckSpec) -> impl Iterator<Item = (&'a Dense, ConvSpec)> + use<'a> {
        self.convolutions.iter().zip(spec.convolutions()).chain(self.shortcut.iter().zip(spec.shortcut()))
    }

    /// Its batch norms in the order in which statistics are listed.
    pub(crate) fn norms(&self) -> impl Iterator<Item = &BatchNorm> {
        self.convolutions.iter().chain(&self.shortcut).map(|dense| &dense.norm)
    }

    /// `x` `[batch, height, width, in]` to `[batch, height / stride, width / stride, out]`.
    pub(crate) fn forward(
        &self,
        parameters: &Parameters,
        x: &Tensor,
        spec: &BottleneckSpec,
        eps: f64,
        pass: &mut Pass,
    ) -> Result<Tensor> {
        let mut y = x.clone();
        for (dense, conv) in self.convolutions.iter().zip(spec.convolutions()) {
            y = dense.forward(parameters, &y, &conv, eps, pass)?;
        }
        let shortcut = match (&self.shortcut, spec.shortcut()) {
            (Some(dense), Some(conv)) => {
                let pooled = if spec.stride > 1 { average_pool(x, (spec.stride, spec.stride))? } else { x.clone() };
                dense.forward(parameters, &pooled, &conv, eps, pass)?
            }
            _ => x.clone(),
        };
        match spec.activation {
            Activation::Relu => add(&y, &shortcut, true),
            other => activate(&add(&y, &shortcut, false)?, other),
        }
    }
}
