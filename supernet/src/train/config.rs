//! The training configuration: everything that decides the weights, and how often to look and save. Stages are data.

use crate::data::Augmentation;
use crate::space::{ExpandRatio, Ratio, SearchSpace, Stage, Stem};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// How a supernet is trained. Presets: [`TrainConfig::preset`]. Missing keys take the defaults named here; unknown keys are
/// errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Seed of every random decision (default 0).
    pub seed: u64,
    /// Images a step (default 64). A dataset with fewer images is one batch.
    pub batch: usize,
    /// Label smoothing of the cross-entropy, 0 up to 1 (default 0.1).
    pub label_smoothing: f64,
    /// Nesterov momentum (default 0.9).
    pub momentum: f64,
    /// Weight decay, not applied to batch norm and biases (default 3e-5).
    pub weight_decay: f64,
    /// How far a step moves the running statistics of batch norm (default 0.1).
    pub batch_norm_momentum: f64,
    /// Dropout rate before the classifier (default 0.1).
    pub dropout: f64,
    /// Decay of a moving average of the weights, e.g. 0.999; each stage hands its average on (default: none).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// Largest allowed norm of the gradient over all parameters (default: none).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Steps between two step lines of `metrics.jsonl`; a line is the mean over them (default 20).
    pub log_every: usize,
    /// Minutes between two checkpoints (default 10), or more where writing one would take over 2 % of the time; one is written
    /// at each stage's end in any case.
    pub checkpoint_minutes: f64,
    /// Also write a checkpoint every so many steps (default: none).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_steps: Option<usize>,
    /// Newest checkpoints that are kept (default 3), besides the one with the best mean accuracy of the probes.
    pub keep_checkpoints: usize,
    /// Steps of the run that may be left out because their loss or gradient is NaN or infinite, before training stops with an
    /// error (default 0).
    pub skip_nonfinite: usize,
    /// Random changes of training images.
    pub augmentation: Augmentation,
    /// Validation of fixed subnets during training.
    pub probe: ProbeConfig,
    /// The stages in order. The network as it stands before the first stage that distils is the teacher of that and all later ones.
    pub stages: Vec<StageConfig>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            seed: 0,
            batch: 64,
            label_smoothing: 0.1,
            momentum: 0.9,
            weight_decay: 3e-5,
            batch_norm_momentum: 0.1,
            dropout: 0.1,
            ema: None,
            clip_norm: None,
            log_every: 20,
            checkpoint_minutes: 10.0,
            checkpoint_steps: None,
            keep_checkpoints: 3,
            skip_nonfinite: 0,
            augmentation: Augmentation::default(),
            probe: ProbeConfig::default(),
            stages: Vec::new(),
        }
    }
}

/// When and how the smallest, middle and largest subnet are validated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProbeConfig {
    /// Epochs of a stage between two validations; 0: only at the end of stages (default 5).
    pub every_epochs: usize,
    /// Training images that recalibrate batch norm before each (default 500).
    pub recalibration_images: usize,
    /// Validation images, spread evenly over the split; 0: all (default 0).
    pub images: usize,
    /// Images a batch (default 100).
    pub batch: usize,
}

impl Default for ProbeConfig {
    fn default() -> Self {
        ProbeConfig { every_epochs: 5, recalibration_images: 500, images: 0, batch: 100 }
    }
}

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
    #[serde(default = "three", skip_serializing_if = "is_three")]
    pub candidates: usize,
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

fn one() -> usize {
    1
}

fn three() -> usize {
    3
}

fn is_three(candidates: &usize) -> bool {
    *candidates == 3
}

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
        let candidates = match self.sampling {
            Sampling::Uniform | Sampling::Sandwich => 0.0,
            Sampling::BestUp | Sampling::WorstUp => {
                let random = (0..self.subnets_per_step).filter(|&index| self.role(index) == Role::Random).count();
                (random * self.candidates) as f64 * depth * expand * mean_area
            }
        };
        let teacher = if self.has_frozen_teacher() { 1.0 } else { 0.0 };
        teacher + candidates + 3.0 * subnets
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

/// A stage in steps, for a given number of training images.
#[derive(Debug, Clone, PartialEq)]
pub struct StagePlan {
    /// Images a step.
    pub batch: usize,
    /// Steps an epoch; images that fill no batch wait for the next epoch's order.
    pub steps_per_epoch: usize,
    /// Steps of the stage.
    pub steps: usize,
    /// Of these, steps of warm-up.
    pub warmup_steps: usize,
    /// Number of the stage's first epoch, counted from the start of training.
    pub first_epoch: usize,
    /// Number of the stage's first step, counted from the start of training.
    pub first_step: usize,
    /// Work of a step, in forward passes of the largest subnet over one image.
    pub work: f64,
}

impl TrainConfig {
    /// Reads a configuration from TOML (not yet checked against a space: see [`validate`](Self::validate)).
    ///
    /// # Errors
    /// Unknown keys and wrong types, named.
    pub fn from_toml(text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|e| Error::Config(e.message().to_string()))
    }

    /// Sum of the stages' epochs.
    pub fn total_epochs(&self) -> f64 {
        self.stages.iter().map(|s| s.epochs).sum()
    }

    /// The stages in steps for `images` training images.
    pub fn plan(&self, space: &SearchSpace, images: usize) -> Vec<StagePlan> {
        let (mut first_epoch, mut first_step) = (0, 0);
        self.stages
            .iter()
            .map(|stage| {
                let batch = stage.batch.unwrap_or(self.batch).clamp(1, images.max(1));
                let steps_per_epoch = (images / batch).max(1);
                let steps = ((stage.epochs * steps_per_epoch as f64).round() as usize).max(1);
                let warmup_steps = ((stage.warmup_epochs * steps_per_epoch as f64).round() as usize).min(steps);
                let work = stage.relative_cost(space) * batch as f64;
                let plan = StagePlan { batch, steps_per_epoch, steps, warmup_steps, first_epoch, first_step, work };
                first_epoch += steps.div_ceil(steps_per_epoch);
                first_step += steps;
                plan
            })
            .collect()
    }

    /// Checks every value, also against the space.
    ///
    /// # Errors
    /// The first impossible value, with its key, what was found and what is allowed.
    pub fn validate(&self, space: &SearchSpace) -> Result<()> {
        within("label_smoothing", self.label_smoothing, 0.0, 1.0)?;
        within("momentum", self.momentum, 0.0, 1.0)?;
        within("weight_decay", self.weight_decay, 0.0, 1.0)?;
        within("dropout", self.dropout, 0.0, 1.0)?;
        if !(self.batch_norm_momentum > 0.0 && self.batch_norm_momentum <= 1.0) {
            return fail(format!("batch_norm_momentum = {} must be above 0 and at most 1", self.batch_norm_momentum));
        }
        if let Some(ema) = self.ema {
            within("ema", ema, 0.0, 1.0)?;
        }
        if let Some(clip) = self.clip_norm
            && !(clip > 0.0 && clip.is_finite())
        {
            return fail(format!("clip_norm = {clip} must be above 0; leave it out for no clipping"));
        }
        if !(self.checkpoint_minutes > 0.0 && self.checkpoint_minutes.is_finite()) {
            return fail(format!("checkpoint_minutes = {} must be above 0", self.checkpoint_minutes));
        }
        if i64::try_from(self.seed).is_err() {
            return fail(format!("seed = {} must be below 2^63, the largest number TOML can hold", self.seed));
        }
        self.augmentation.check()?;
        counted("batch", self.batch, 1, 65_536)?;
        counted("log_every", self.log_every, 1, usize::MAX)?;
        counted("keep_checkpoints", self.keep_checkpoints, 1, usize::MAX)?;
        counted("checkpoint_steps", self.checkpoint_steps.unwrap_or(1), 1, usize::MAX)?;
        counted("probe.recalibration_images", self.probe.recalibration_images, 1, usize::MAX)?;
        counted("probe.batch", self.probe.batch, 1, 65_536)?;
        if self.stages.is_empty() {
            return fail(
                "there are no stages; take a preset (imagenet, cifar, tiny) or write [[stages]] tables".into(),
            );
        }
        for (index, stage) in self.stages.iter().enumerate() {
            stage.validate(index, space)?;
        }
        self.sorted_in_order("sort_channels", |stage| stage.sort_channels)?;
        self.sorted_in_order("sort_outer_channels", |stage| stage.sort_outer_channels)
    }

    /// Stages that sort channels must be numbered 1, 2, ...
    fn sorted_in_order(&self, key: &str, of: impl Fn(&StageConfig) -> Option<usize>) -> Result<()> {
        let mut sorted = 0;
        for stage in &self.stages {
            if let Some(width_stage) = of(stage) {
                if width_stage != sorted + 1 {
                    return fail(format!(
                        "stage '{}': {key} = {width_stage}, but {sorted} stages before it sort channels, so it must be {}",
                        stage.name,
                        sorted + 1
                    ));
                }
                sorted = width_stage;
            }
        }
        Ok(())
    }
}

impl StageConfig {
    fn validate(&self, index: usize, space: &SearchSpace) -> Result<()> {
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
        if !(self.learning_rate > 0.0 && self.learning_rate.is_finite()) {
            return fail(format!("learning_rate = {} must be above 0", self.learning_rate));
        }
        if !(self.kd_ratio >= 0.0 && self.kd_ratio.is_finite()) {
            return fail(format!("kd_ratio = {} must not be negative", self.kd_ratio));
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
            Sampling::Uniform | Sampling::Sandwich if self.candidates != three() => {
                return fail("candidates is for sampling = \"best_up\" and \"worst_up\" alone; leave it out".into());
            }
            Sampling::BestUp | Sampling::WorstUp if !(2..=64).contains(&self.candidates) => {
                return fail(format!("candidates = {} must lie between 2 and 64", self.candidates));
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

fn fail<T>(message: String) -> Result<T> {
    Err(Error::Config(message))
}

/// `low <= value < high`
fn within(key: &str, value: f64, low: f64, high: f64) -> Result<()> {
    if (low..high).contains(&value) {
        return Ok(());
    }
    fail(format!("{key} = {value} must be at least {low} and below {high}"))
}

fn counted(key: &str, value: usize, low: usize, high: usize) -> Result<()> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    let most = if high == usize::MAX { String::new() } else { format!(" and at most {high}") };
    fail(format!("{key} = {value} must be at least {low}{most}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::preset;

    fn tiny() -> (SearchSpace, TrainConfig) {
        let space = preset("tiny").unwrap();
        let config = TrainConfig::preset("tiny", &space).unwrap();
        (space, config)
    }

    #[test]
    fn survives_toml_and_names_unknown_keys() {
        let (_, mut config) = tiny();
        config.ema = Some(0.99);
        let text = toml::to_string(&config).unwrap();
        assert_eq!(TrainConfig::from_toml(&text).unwrap(), config);
        let error = TrainConfig::from_toml("momentun = 0.9").unwrap_err().to_string();
        assert!(error.contains("momentun"), "{error}");
        let error =
            TrainConfig::from_toml("[[stages]]\nname='a'\nepochs=1\nlearning_rate=1.0\nkernels=[3]").unwrap_err();
        assert!(error.to_string().contains("kernels"), "{error}");
    }

    #[test]
    fn faults_are_named_with_key_and_allowed_values() {
        let (space, good) = tiny();
        good.validate(&space).unwrap();
        let check = |change: &dyn Fn(&mut TrainConfig), expected: &[&str]| {
            let mut config = good.clone();
            change(&mut config);
            let error = config.validate(&space).unwrap_err().to_string();
            assert!(expected.iter().all(|part| error.contains(part)), "{error}");
        };
        check(&|c| c.stages.clear(), &["no stages", "preset"]);
        check(&|c| c.momentum = 1.0, &["momentum = 1", "below 1"]);
        check(&|c| c.dropout = f64::NAN, &["dropout"]);
        check(&|c| c.batch = 0, &["batch = 0"]);
        check(&|c| c.clip_norm = Some(0.0), &["clip_norm"]);
        check(&|c| c.seed = u64::MAX, &["seed", "2^63"]);
        check(&|c| c.stages[0].kd_ratio = 1.0, &["largest", "kd_ratio must be 0"]);
        check(&|c| c.stages[1].teacher = Teacher::InPlace, &["kernel", "sandwich"]);
        check(&|c| c.stages[1].kernel_sizes.push(9), &["kernel", "holds 9", "3, 5"]);
        check(&|c| c.stages[1].kernel_sizes.push(3), &["3 twice"]);
        check(&|c| c.stages[1].warmup_epochs = 1e3, &["warmup_epochs = 1000"]);
        check(&|c| c.stages[1].sort_channels = Some(3), &["sort_channels = 3", "2 width stages"]);
        check(&|c| c.stages[0].sort_channels = Some(2), &["must be 1"]);
    }

    #[test]
    fn plans_steps_epochs_and_warm_up() {
        let (space, mut config) = tiny();
        config.batch = 10;
        config.stages.truncate(2);
        (config.stages[0].epochs, config.stages[0].warmup_epochs) = (1.5, 0.5);
        (config.stages[1].epochs, config.stages[1].warmup_epochs, config.stages[1].batch) = (2.0, 0.0, Some(500));
        let plan = config.plan(&space, 47);
        let steps = |p: &StagePlan| (p.batch, p.steps_per_epoch, p.steps, p.warmup_steps, p.first_epoch, p.first_step);
        assert_eq!(steps(&plan[0]), (10, 4, 6, 2, 0, 0));
        // Fewer images than a batch: all of them are the batch.
        assert_eq!(steps(&plan[1]), (47, 1, 2, 0, 2, 6));
        assert_eq!(plan[0].work, 30.0);
        assert_eq!(plan[1].work, 4.0 * 47.0);
    }

    #[test]
    fn choices_default_to_the_largest_but_to_every_resolution() {
        let (space, config) = tiny();
        let choices = config.stages[0].choices(&space);
        assert_eq!(choices.resolutions, space.resolutions);
        assert_eq!(choices.kernel_sizes, [space.max_kernel()]);
        assert_eq!(choices.depths, space.depths[space.depths.len() - 1..]);
        assert_eq!(choices.expand_ratios, [space.max_expand()]);
    }
}
