//! One stage of the training configuration: how long, what may be drawn, how, and who teaches.

use crate::space::{ExpandRatio, Ratio, SearchSpace, Stage, Stem};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// One stage of progressive shrinking. An empty list of choices means the largest value only; resolutions are the exception:
/// empty means all of the space, since resolution is elastic from the start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageConfig {
    /// Name in metrics and on the progress bar.
    pub name: String,
    /// Length in epochs, warm-up included; fractions are allowed.
    pub epochs: f64,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Epochs of linear warm-up (default 0).
    #[serde(default)]
    pub warmup_epochs: f64,
    /// Images a step, if not the configuration's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    /// Resolutions a batch is drawn at (default: all of the space).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resolutions: Vec<usize>,
    /// Kernel sizes to draw from (default: the largest).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernel_sizes: Vec<usize>,
    /// Depths to draw from (default: the largest).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depths: Vec<usize>,
    /// Expand ratios to draw from (default: the largest).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expand_ratios: Vec<ExpandRatio>,
    /// Width multipliers to draw from (default: the largest); ResNets only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub width_multipliers: Vec<Ratio>,
    /// Subnets whose gradients are summed in a step (default 1).
    #[serde(default = "one")]
    pub subnets_per_step: usize,
    /// How the subnets of a step are drawn (default: uniformly).
    #[serde(default)]
    pub sampling: Sampling,
    /// Subnets of like work among which `best_up` and `worst_up` choose each (default 3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidates: Option<usize>,
    /// Weight of the distillation loss (default 0: no teacher). The first stage has no frozen teacher.
    #[serde(default)]
    pub kd_ratio: f64,
    /// Whose soft labels are distilled (default: the frozen teacher's).
    #[serde(default)]
    pub teacher: Teacher,
    /// Sorts channels by importance before this stage, as width stage 1, 2, ... (default: not at all).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sort_channels: Option<usize>,
    /// Sorts the channels between blocks by importance before this stage, as outer stage 1, 2, ... (default: not at all); ResNets only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sort_outer_channels: Option<usize>,
}

/// Largest factor that is taken for meant; sums with it stay finite in f32.
const LARGE: f64 = 1e9;

fn one() -> usize {
    1
}

/// Candidates where a stage does not say.
const CANDIDATES: usize = 3;

/// How the subnets of a step are drawn from what a stage may draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampling {
    /// Each uniformly (Once-for-All, §3.3).
    #[default]
    Uniform,
    /// The first is the largest, from three subnets on the second is the smallest, the others are uniform (BigNAS, §3.1:
    /// the sandwich rule). The largest subnet goes on learning while the others catch up.
    Sandwich,
    /// As a sandwich, but each of the others is the best of `candidates` random subnets of like work, by its loss on the step's images
    /// (AttentiveNAS, §4: BestUp): what may end on the Pareto front is trained most.
    BestUp,
    /// The same with the worst of them (AttentiveNAS, §4: WorstUp): what lags behind is trained most.
    WorstUp,
}

/// Whose soft labels a stage distils.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Teacher {
    /// The network as it stood before the first stage that distils from it (Once-for-All, §3.3).
    #[default]
    Frozen,
    /// The largest subnet of the same step, which itself learns from the labels alone (BigNAS, §3.1: in-place distillation).
    /// It costs no forward pass of its own.
    InPlace,
}

impl StageConfig {
    /// Subnets among which `best_up` and `worst_up` choose each.
    pub fn candidates(&self) -> usize {
        self.candidates.unwrap_or(CANDIDATES)
    }

    /// `space` narrowed to what this stage may draw.
    pub fn choices(&self, space: &SearchSpace) -> SearchSpace {
        // In the space's ascending order, whatever the order in the stage.
        fn among<T: Copy + PartialEq>(list: &[T], all: &[T], default: &[T]) -> Vec<T> {
            if list.is_empty() { default.to_vec() } else { all.iter().copied().filter(|v| list.contains(v)).collect() }
        }
        SearchSpace {
            resolutions: among(&self.resolutions, &space.resolutions, &space.resolutions),
            kernel_sizes: among(&self.kernel_sizes, &space.kernel_sizes, &[space.max_kernel()]),
            depths: among(&self.depths, &space.depths, &space.depths[space.depths.len() - 1..]),
            expand_ratios: among(&self.expand_ratios, &space.expand_ratios, &[space.max_expand()]),
            width_multipliers: {
                let all = &space.width_multipliers;
                among(&self.width_multipliers, all, &all[all.len().saturating_sub(1)..])
            },
            stem: self.stem_choices(space),
            stages: (0..space.stages.len()).map(|stage| self.stage_choices(space, stage)).collect(),
            ..space.clone()
        }
    }

    /// The stem: its block is there where only the largest depth is drawn, not there where that is not drawn, else it is elastic.
    fn stem_choices(&self, space: &SearchSpace) -> Stem {
        let mut stem = space.stem.clone();
        let largest = space.depths.last();
        let with_largest = self.depths.is_empty() || self.depths.iter().any(|depth| Some(depth) == largest);
        if !self.depths.iter().any(|depth| Some(depth) != largest) {
            stem.depths.drain(..stem.depths.len().saturating_sub(1));
        } else if !with_largest {
            stem.depths.truncate(1);
        }
        stem
    }

    /// Stage `stage` of the space; its own depths, if it has some, narrowed as the space's are: by their place in the list.
    fn stage_choices(&self, space: &SearchSpace, stage: usize) -> Stage {
        let mut stage = space.stages[stage].clone();
        if stage.depths.len() > 1 {
            let chosen = |place: usize| match self.depths.is_empty() {
                true => place + 1 == space.depths.len(),
                false => self.depths.contains(&space.depths[place]),
            };
            let kept = stage.depths.iter().enumerate().filter(|(place, _)| chosen(*place));
            stage.depths = kept.map(|(_, &depth)| depth).collect();
        }
        stage
    }

    /// Work of one step for one image, in forward passes of the largest subnet. A backward pass counts as two forward passes,
    /// and a subnet's work is taken as proportional to mean depth times mean expand ratio times mean squared width. Good for remaining
    /// times only.
    pub fn relative_cost(&self, space: &SearchSpace) -> f64 {
        let choices = self.choices(space);
        let (slots, max_expand) = (space.slots() as f64, space.max_expand().value());
        // Blocks of all stages over all slots, with `of` the number of blocks in a stage.
        let blocks = |of: &dyn Fn(&[usize]) -> f64| -> f64 {
            (0..choices.stages.len()).map(|stage| of(choices.stage_depths(stage))).sum::<f64>() / slots
        };
        let depth = blocks(&|depths| depths.iter().sum::<usize>() as f64 / depths.len() as f64);
        let expand = choices.expand_ratios.iter().map(|e| e.value()).sum::<f64>()
            / (choices.expand_ratios.len() as f64 * max_expand);
        let area = |width: &Ratio| (width.value() / space.width_multipliers.last().map_or(1.0, |w| w.value())).powi(2);
        let widths = &choices.width_multipliers;
        let mean_area = widths.iter().map(area).sum::<f64>() / widths.len() as f64;
        let (mean_area, least_area) = widths.first().map_or((1.0, 1.0), |least| (mean_area, area(least)));
        let largest = blocks(&|depths| depths[depths.len() - 1] as f64) * choices.max_expand().value() / max_expand;
        let smallest = blocks(&|depths| depths[0] as f64) * choices.expand_ratios[0].value() / max_expand;
        let subnets: f64 = (0..self.subnets_per_step)
            .map(|index| match self.role(index) {
                Role::Largest => largest,
                Role::Smallest => smallest * least_area,
                Role::Random => depth * expand * mean_area,
            })
            .sum();
        let scoring = match self.sampling {
            Sampling::Uniform | Sampling::Sandwich => 0.0,
            Sampling::BestUp | Sampling::WorstUp => {
                let random = (0..self.subnets_per_step).filter(|&index| self.role(index) == Role::Random).count();
                (random * self.candidates()) as f64 * depth * expand * mean_area
            }
        };
        let teacher = if self.has_frozen_teacher() { 1.0 } else { 0.0 };
        teacher + scoring + 3.0 * subnets
    }

    /// Whether the stage distils from the frozen teacher.
    pub fn has_frozen_teacher(&self) -> bool {
        self.kd_ratio > 0.0 && self.teacher == Teacher::Frozen
    }

    /// What subnet `index` of a step is.
    pub(super) fn role(&self, index: usize) -> Role {
        match (self.sampling, index) {
            (Sampling::Uniform, _) => Role::Random,
            (_, 0) => Role::Largest,
            (_, 1) if self.subnets_per_step > 2 => Role::Smallest,
            _ => Role::Random,
        }
    }
}

/// What a subnet of a step is among those that its stage may draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Largest,
    Smallest,
    Random,
}

impl StageConfig {
    /// Checks every value of the stage number `index`, also against the space.
    pub(super) fn validate(&self, index: usize, space: &SearchSpace) -> Result<()> {
        let fail = |message: String| fail(format!("stage '{}': {message}", self.name));
        if self.name.trim().is_empty() {
            return Err(Error::Config(format!("stage {} has an empty name", index + 1)));
        }
        if !(self.epochs > 0.0 && self.epochs <= 1e6) {
            return fail(format!("epochs = {} must be above 0 and at most a million", self.epochs));
        }
        if !(0.0..=self.epochs).contains(&self.warmup_epochs) {
            return fail(format!(
                "warmup_epochs = {} must lie between 0 and epochs = {}",
                self.warmup_epochs, self.epochs
            ));
        }
        if !(self.learning_rate > 0.0 && self.learning_rate <= LARGE) {
            return fail(format!("learning_rate = {} must be above 0 and at most {LARGE}", self.learning_rate));
        }
        if !(0.0..=LARGE).contains(&self.kd_ratio) {
            return fail(format!("kd_ratio = {} must lie between 0 and {LARGE}", self.kd_ratio));
        }
        if index == 0 && self.has_frozen_teacher() {
            return fail("the first stage trains the teacher, so its kd_ratio must be 0".into());
        }
        if self.teacher == Teacher::InPlace && (self.sampling == Sampling::Uniform || self.subnets_per_step < 2) {
            return fail(
                "teacher = \"in_place\" needs the largest subnet in each step: set sampling = \"sandwich\" (or best_up, \
                 worst_up) and subnets_per_step to 2 or more"
                    .into(),
            );
        }
        match self.sampling {
            Sampling::Uniform | Sampling::Sandwich if self.candidates.is_some() => {
                return fail("candidates is for sampling = \"best_up\" and \"worst_up\" alone; leave it out".into());
            }
            Sampling::BestUp | Sampling::WorstUp if !(2..=64).contains(&self.candidates()) => {
                return fail(format!("candidates = {} must lie between 2 and 64", self.candidates()));
            }
            _ => {}
        }
        if !(1..=64).contains(&self.subnets_per_step) {
            return fail(format!("subnets_per_step = {} must lie between 1 and 64", self.subnets_per_step));
        }
        if let Some(batch) = self.batch
            && !(1..=65_536).contains(&batch)
        {
            return fail(format!("batch = {batch} must lie between 1 and 65536"));
        }
        let width_stages = space.expand_ratios.len() - 1;
        if let Some(width_stage) = self.sort_channels
            && !(1..=width_stages).contains(&width_stage)
        {
            return fail(format!(
                "sort_channels = {width_stage}, but the space '{}' has {width_stages} width stages (its expand ratios less one)",
                space.name
            ));
        }
        let outer_stages = space.width_multipliers.len().saturating_sub(1);
        if let Some(outer_stage) = self.sort_outer_channels
            && !(1..=outer_stages).contains(&outer_stage)
        {
            return fail(format!(
                "sort_outer_channels = {outer_stage}, but the space '{}' has {outer_stages} outer stages (its width multipliers less one)",
                space.name
            ));
        }
        self.known("width_multipliers", &self.width_multipliers, &space.width_multipliers)?;
        self.known("resolutions", &self.resolutions, &space.resolutions)?;
        self.known("kernel_sizes", &self.kernel_sizes, &space.kernel_sizes)?;
        self.known("depths", &self.depths, &space.depths)?;
        self.known("expand_ratios", &self.expand_ratios, &space.expand_ratios)
    }

    fn known<T: PartialEq + std::fmt::Display>(&self, key: &str, list: &[T], allowed: &[T]) -> Result<()> {
        let fail = |message: String| fail(format!("stage '{}': {key} {message}", self.name));
        for (index, value) in list.iter().enumerate() {
            if !allowed.contains(value) {
                let allowed: Vec<String> = allowed.iter().map(T::to_string).collect();
                return fail(format!("holds {value}; the space allows {}", allowed.join(", ")));
            }
            if list[..index].contains(value) {
                return fail(format!("holds {value} twice"));
            }
        }
        Ok(())
    }
}

/// An impossible configuration.
pub(super) fn fail<T>(message: String) -> Result<T> {
    Err(Error::Config(message))
}

#[cfg(test)]
mod tests {
    use super::super::config::TrainConfig;
    use crate::space::preset;

    #[test]
    fn choices_default_to_the_largest_but_to_every_resolution() {
        let space = preset("tiny").unwrap();
        let config = TrainConfig::preset("tiny", &space).unwrap();
        let choices = config.stages[0].choices(&space);
        assert_eq!(choices.resolutions, space.resolutions);
        assert_eq!(choices.kernel_sizes, [space.max_kernel()]);
        assert_eq!(choices.depths, space.depths[space.depths.len() - 1..]);
        assert_eq!(choices.expand_ratios, [space.max_expand()]);
    }
}
