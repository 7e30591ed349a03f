//! Elastic layers: each holds its parameters at full size, cuts out the part that a subnet uses, and records its
//! backward pass on a tape.
//!
//! | file | concern |
//! | --- | --- |
//! | `tape` | the record of a forward pass, and the way back over it |
//! | `parameter`, `gradients` | the lists of trainable tensors and of their gradients |
//! | `active` | the parts of parameters that a subnet uses |
//! | `batch_norm` | scale, shift and running statistics |
//! | `drop_path` | images that skip blocks in training |
//! | `kernel_transform` | elastic kernel size |
//! | `dense` | a dense convolution, as a layer and in a graph, and the plain steps between: sum, pools |
//! | `channel_sorting` | the order of channels before a width stage |

mod active;
mod batch_norm;
pub(crate) mod channel_sorting;
mod dense;
mod drop_path;
mod gradients;
mod kernel_transform;
mod parameter;
mod tape;

use active::Source;
pub(crate) use active::{Active, add_packed, pack, tensors};
pub(crate) use batch_norm::BatchNorm;
pub use batch_norm::Moments;
pub(crate) use channel_sorting::{OuterChannels, Touch, sort_shared};
pub(crate) use dense::{Dense, activate, average_pool, fused, global_average_pool, linear, max_pool, sum_of_branches};
pub(crate) use drop_path::BlockDrops;
pub use drop_path::DropPath;
pub use gradients::Gradients;
pub(crate) use kernel_transform::ElasticKernel;
pub(crate) use parameter::{Initialiser, ParameterId, Parameters};
pub use parameter::{Parameter, ParameterKind};
pub use tape::Tape;

use crate::graph::{Graph, interpreter};
use crate::ops::ChannelStatistics;
use crate::ranks::Ranks;
use candle_core::{Result, Tensor, Var};

/// Treatment of statistics and gradients by the layers of a forward pass.
pub(crate) struct Pass<'a> {
    /// The record for a backward pass, if one will follow.
    pub tape: Option<Tape>,
    /// Statistics to use instead of the batch's, layer by layer.
    pub given: Option<&'a [Moments]>,
    /// The processes whose batches' statistics are used together.
    pub ranks: Option<&'a Ranks>,
    /// The images that skip the block under way.
    pub drops: Option<BlockDrops>,
    /// Statistics used so far, in layer order.
    pub used: Vec<ChannelStatistics>,
}

impl Pass<'_> {
    /// Whether the first layers would use these statistics. A batch's own statistics depend only on images and layers.
    pub(crate) fn would_use(&self, used: &[ChannelStatistics]) -> bool {
        self.given.is_none_or(|given| {
            let same = |(used, given): (&ChannelStatistics, &Moments)| {
                used.mean == given.mean && used.variance == given.variance
            };
            given.len() >= used.len() && used.iter().zip(given).all(same)
        })
    }

    /// Records the backward pass of the next layer ([`Tape::push`]), if one will follow.
    pub(crate) fn record(
        &mut self,
        record: impl FnOnce(Tensor, &mut Gradients) -> Result<Option<Tensor>> + Send + Sync + 'static,
    ) {
        if let Some(tape) = &mut self.tape {
            tape.push(record);
        }
    }

    /// The output of `layers`, recorded on a tape of their own, and this tape.
    pub(crate) fn branch(
        &mut self,
        layers: impl FnOnce(&mut Self) -> Result<Tensor>,
    ) -> Result<(Tensor, Option<Tape>)> {
        let own = self.tape.as_ref().map(|_| Tape::default());
        let outer = std::mem::replace(&mut self.tape, own);
        let output = layers(self);
        let own = std::mem::replace(&mut self.tape, outer);
        Ok((output?, own))
    }

    /// The output of `operations`, candle's own, for `x` and the active parts of parameters. The record owns candle's
    /// graph of them.
    pub(crate) fn trace(
        &mut self,
        x: &Tensor,
        active: &[Vec<Active>],
        operations: impl FnOnce(&Tensor, &[Vec<Tensor>]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let tensors = tensors(active, self.tape.is_some())?;
        let Some(tape) = &mut self.tape else { return operations(x, &tensors) };
        let input = match tape.needs_input_gradient() {
            true => Var::from_tensor(x)?.into_inner(),
            false => x.clone(),
        };
        let output = operations(&input, &tensors)?;
        let value = output.detach();
        let active = active.to_vec();
        tape.push(move |gradient, gradients| {
            let mut found = active::backward(output, gradient)?;
            active::add_found(&active, &mut found, gradients)?;
            Ok(found.remove(&input).map(|gradient| gradient.detach()))
        });
        Ok(value)
    }

    /// Output of `graph` for `x`: by kernels for dense and depthwise convolutions where there are, otherwise in
    /// candle's own operations, which work on any device and in any number type.
    pub(crate) fn interpret(&mut self, graph: &Graph, x: &Tensor, active: &[Vec<Active>]) -> Result<Tensor> {
        let given: Option<Vec<ChannelStatistics>> = match self.given {
            Some(_) => {
                let widths = graph.norm_widths();
                let mut given = Vec::new();
                for width in widths {
                    let next = self.given_at(self.used.len() + given.len(), width)?;
                    given.extend(next);
                }
                Some(given)
            }
            None => None,
        };
        let mut used = Vec::new();
        let output = self.trace(x, active, |x, tensors| {
            let (output, statistics) =
                interpreter::run_with(graph, x, tensors, given.as_deref(), |region, x, tensors, given| {
                    dense::region(graph, region, x, tensors, given)
                })?;
            used = statistics;
            Ok(output)
        })?;
        self.used.extend(used);
        Ok(output)
    }

    /// The given statistics of the next `N` batch norms; `None` for batch statistics.
    pub(crate) fn next_given<const N: usize>(&self, channels: [usize; N]) -> Result<Option<[ChannelStatistics; N]>> {
        if self.given.is_none() {
            return Ok(None);
        }
        let mut out = std::array::from_fn(|_| ChannelStatistics::default());
        let present = out.iter_mut().zip(channels).filter(|(_, channels)| *channels > 0);
        for (index, (out, channels)) in present.enumerate() {
            if let Some(given) = self.given_at(self.used.len() + index, channels)? {
                *out = given;
            }
        }
        Ok(Some(out))
    }

    /// The given statistics of batch norm number `index`, which has `channels` channels; `None` for batch statistics.
    fn given_at(&self, index: usize, channels: usize) -> Result<Option<ChannelStatistics>> {
        let Some(given) = self.given else { return Ok(None) };
        match given.get(index) {
            Some(given) if given.fit(channels) => {
                let Moments { mean, variance } = given.clone();
                Ok(Some(ChannelStatistics { mean, variance, count: 1 }))
            }
            _ => candle_core::bail!(
                "batch norm {index}: the given statistics do not belong to this subnet ({channels} channels expected)"
            ),
        }
    }
}
