//! Elastic layers: each holds its parameters at full size and hands out the active slice.
//!
//! | file | concern |
//! | --- | --- |
//! | `parameter` | the list of trainable tensors |
//! | `batch_norm` | scale, shift and running statistics |
//! | `kernel_transform` | elastic kernel size |
//! | `inverted_residual`, `bottleneck` | the elastic blocks of MobileNets and ResNets |
//! | `block` | either of them |
//! | `dense` | a dense convolution, and the plain steps between: sum, pools |
//! | `channel_sorting` | the order of channels before a width stage |

mod batch_norm;
mod block;
mod bottleneck;
mod channel_sorting;
mod dense;
mod inverted_residual;
mod kernel_transform;
mod parameter;

pub(crate) use batch_norm::BatchNorm;
pub(crate) use block::Block;
pub(crate) use bottleneck::Bottleneck;
pub(crate) use channel_sorting::{Touch, sort_shared};
pub(crate) use dense::{Dense, average_pool, linear, max_pool};
pub(crate) use inverted_residual::InvertedResidual;
pub use parameter::Parameter;
pub(crate) use parameter::{Initialiser, ParameterId, Parameters};

use crate::ops::ChannelStatistics;
use crate::ranks::Ranks;

/// How the layers of one forward pass treat statistics and gradients.
pub(crate) struct Pass<'a> {
    /// Whether gradients will be asked for.
    pub keep_gradients: bool,
    /// Statistics to use instead of the batch's, layer by layer.
    pub given: Option<&'a [(Vec<f32>, Vec<f32>)]>,
    /// The processes whose batches' statistics are used together.
    pub ranks: Option<&'a Ranks>,
    /// Statistics used so far, in layer order.
    pub used: Vec<ChannelStatistics>,
}

impl Pass<'_> {
    /// Whether the first layers would use these statistics. The batch's follow from images and layers alone.
    pub(crate) fn would_use(&self, used: &[ChannelStatistics]) -> bool {
        self.given.is_none_or(|given| {
            let same = |(used, (mean, variance)): (&ChannelStatistics, &(Vec<f32>, Vec<f32>))| {
                used.mean == *mean && used.variance == *variance
            };
            given.len() >= used.len() && used.iter().zip(given).all(same)
        })
    }

    /// The given statistics of the next `N` batch norms; `None` for batch statistics.
    fn next_given<const N: usize>(&self, channels: [usize; N]) -> candle_core::Result<Option<[ChannelStatistics; N]>> {
        let Some(given) = self.given else { return Ok(None) };
        let mut next = self.used.len();
        let mut out = std::array::from_fn(|_| ChannelStatistics::default());
        for (out, &channels) in out.iter_mut().zip(&channels) {
            if channels == 0 {
                continue;
            }
            match given.get(next) {
                Some((mean, variance)) if mean.len() == channels && variance.len() == channels => {
                    *out = ChannelStatistics { mean: mean.clone(), variance: variance.clone(), count: 1 };
                }
                _ => candle_core::bail!(
                    "batch norm {next}: the given statistics do not belong to this subnet ({channels} channels expected)"
                ),
            }
            next += 1;
        }
        Ok(Some(out))
    }
}
