//! What a step of training starts from.

use super::config::TrainConfig;
use super::stage::StageConfig;
use crate::SearchSpace;
use crate::network::DropPath;
use crate::ranks::Ranks;
use candle_core::Tensor;

/// What decides a step, besides weights and images.
pub struct StepInput<'a> {
    /// The configuration.
    pub config: &'a TrainConfig,
    /// The stage.
    pub stage: &'a StageConfig,
    /// The space narrowed to what the stage may draw ([`StageConfig::choices`]).
    pub choices: &'a SearchSpace,
    /// Number of the step since the start of training, from 0; with the seed it decides what is drawn.
    pub step: usize,
    /// Factor of the losses of taught subnets, which rises from 0 to 1 ([`Taught::ramp_epochs`]).
    ///
    /// [`Taught::ramp_epochs`]: super::taught::Taught::ramp_epochs
    pub ramp: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Images of this process `[own, r, r, 3]`: its [share](Ranks::shard) of the step's.
    pub images: &'a Tensor,
    /// Class of each image.
    pub labels: &'a [u32],
    /// Targets of the cross-entropy `[own, classes]`, where they are not the smoothed labels.
    pub targets: Option<&'a Tensor>,
    /// The processes that do the step together.
    pub ranks: &'a Ranks,
    /// Images of all processes together.
    pub batch: usize,
}

impl StepInput<'_> {
    /// The images that skip blocks, if there are any.
    pub(super) fn drop_path(&self) -> Option<DropPath> {
        let TrainConfig { drop_path: rate, seed, .. } = *self.config;
        let first = self.ranks.shard(self.batch).start;
        (rate > 0.0).then_some(DropPath { rate, seed, step: self.step, first })
    }
}
