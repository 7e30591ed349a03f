//! Elastic layers: each holds its parameters at full size and hands out the active slice.
//!
//! | file | concern |
//! | --- | --- |
//! | `parameter` | the list of trainable tensors |
//! | `batch_norm` | scale, shift and running statistics |
//! | `kernel_transform` | elastic kernel size |
//! | `dense` | a dense convolution, as a layer and in a graph, and the plain steps between: sum, pools |
//! | `channel_sorting` | the order of channels before a width stage |

mod batch_norm;
pub(crate) mod channel_sorting;
mod dense;
mod kernel_transform;
mod parameter;

pub(crate) use batch_norm::BatchNorm;
pub use batch_norm::Moments;
pub(crate) use channel_sorting::{OuterChannels, Touch, sort_shared};
pub(crate) use dense::{Dense, activate, add, average_pool, fused, linear, max_pool};
pub(crate) use kernel_transform::ElasticKernel;
pub use parameter::Parameter;
pub(crate) use parameter::{Initialiser, ParameterId, Parameters};

use crate::graph::{Graph, interpreter};
use crate::ops::ChannelStatistics;
use crate::ranks::Ranks;
use candle_core::Tensor;

/// Treatment of statistics and gradients by the layers of a forward pass.
pub(crate) struct Pass<'a> {
    /// Whether gradients will be asked for.
    pub keep_gradients: bool,
    /// Statistics to use instead of the batch's, layer by layer.
    pub given: Option<&'a [Moments]>,
    /// The processes whose batches' statistics are used together.
    pub ranks: Option<&'a Ranks>,
    /// Statistics used so far, in layer order.
    pub used: Vec<ChannelStatistics>,
}

impl Pass<'_> {
    /// Whether the first layers would use these statistics. The batch's follow from images and layers alone.
    pub(crate) fn would_use(&self, used: &[ChannelStatistics]) -> bool {
        self.given.is_none_or(|given| {
            let same = |(used, given): (&ChannelStatistics, &Moments)| {
                used.mean == given.mean && used.variance == given.variance
            };
            given.len() >= used.len() && used.iter().zip(given).all(same)
        })
    }

    /// Output of `graph` for `x`: by the kernel for dense convolutions where there is one, otherwise in candle's own
    /// operations, which work on any device and in any number type.
    pub(crate) fn interpret(
        &mut self,
        graph: &Graph,
        x: &Tensor,
        active: &[Vec<Tensor>],
    ) -> candle_core::Result<Tensor> {
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
        let (output, used) = interpreter::run_with(graph, x, active, given.as_deref(), |region, x, tensors, given| {
            dense::region(graph, region, x, tensors, given, self.keep_gradients)
        })?;
        self.used.extend(used);
        Ok(output)
    }

    /// The given statistics of the next `N` batch norms; `None` for batch statistics.
    pub(crate) fn next_given<const N: usize>(
        &self,
        channels: [usize; N],
    ) -> candle_core::Result<Option<[ChannelStatistics; N]>> {
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
    fn given_at(&self, index: usize, channels: usize) -> candle_core::Result<Option<ChannelStatistics>> {
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
