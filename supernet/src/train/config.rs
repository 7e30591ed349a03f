//! The training configuration: everything that decides the weights, and how often to look and save. Stages are data.

use super::checks::fail;
use super::class_balance::ClassBalance;
use super::optimizer::{Sgd, Undecayed};
use super::schedule::{Decay, Schedule, learning_rate};
use super::stage::StageConfig;
use crate::data::Augmentation;
use crate::space::SearchSpace;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// How a supernet is trained. Presets: [`TrainConfig::preset`]. Missing keys take the defaults named here; unknown keys
/// are errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Seed of every random decision (default 0).
    pub seed: u64,
    /// Images per step (default 64), of each process where there are several. A dataset with fewer images is one batch.
    pub batch: usize,
    /// Number of processes that `batch` is meant for: a step has `ranks` times `batch` images, however many processes
    /// share them (default: the number that starts the run).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ranks: Option<usize>,
    /// Multiply learning rates by `ranks` (Goyal et al. 2017, §2.1: the rate grows with the batch; default false).
    #[serde(skip_serializing_if = "is_false")]
    pub scale_learning_rate: bool,
    /// Batch norm in training uses the statistics of all processes' images in place of each one's own (default false).
    #[serde(skip_serializing_if = "is_false")]
    pub sync_batch_norm: bool,
    /// Label smoothing of the cross-entropy, 0 up to 1 (default 0.1).
    pub label_smoothing: f64,
    /// Nesterov momentum (default 0.9).
    pub momentum: f64,
    /// Weight decay, not applied to batch norm and biases (default 3e-5).
    pub weight_decay: f64,
    /// Further weights without decay (default: none).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub undecayed: Vec<Undecayed>,
    /// Start with residual blocks that are the identity: the scale of their last batch norm is zero (default false).
    #[serde(skip_serializing_if = "is_false")]
    pub zero_last_scale: bool,
    /// Run folder or checkpoint of another supernet, whose largest subnet is the frozen teacher of all stages that have
    /// one (default: the network itself, as it stands before the first of them).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_from: Option<String>,
    /// What makes up for classes with different numbers of images (default: nothing).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_balance: Option<ClassBalance>,
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
    /// Subnets of a step that are computed at one time, on CPUs (default 2). While one keeps a single thread busy
    /// others find work in the next; each takes memory of its own. The weights do not depend on it.
    pub subnets_at_once: usize,
    /// Steps between two step lines of `metrics.jsonl`; a line is the mean over them (default 20).
    pub log_every: usize,
    /// Minutes between two checkpoints (default 10), or more where writing one would take over 2 % of the time; one is
    /// written at each stage's end in any case.
    pub checkpoint_minutes: f64,
    /// Number of steps after which a checkpoint is written besides those by time (default: none).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_steps: Option<usize>,
    /// Newest checkpoints that are kept (default 3), besides the one with the best mean accuracy of the probes.
    pub keep_checkpoints: usize,
    /// Steps of the run that may be skipped because their loss or gradient is NaN or infinite, before training stops
    /// with an error (default 0).
    pub skip_nonfinite: usize,
    /// One learning-rate schedule over all stages, which also keeps momentum and moving average from stage to stage
    /// (default: each stage has a schedule of its own and resets both).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// Random changes of training images.
    pub augmentation: Augmentation,
    /// Validation of fixed subnets during training.
    pub probe: ProbeConfig,
    /// The stages in order. The network as it stands before the first stage that distils is the teacher of that and all
    /// later ones.
    pub stages: Vec<StageConfig>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            seed: 0,
            batch: 64,
            ranks: None,
            scale_learning_rate: false,
            sync_batch_norm: false,
            label_smoothing: 0.1,
            momentum: 0.9,
            weight_decay: 3e-5,
            undecayed: Vec::new(),
            zero_last_scale: false,
            teacher_from: None,
            class_balance: None,
            batch_norm_momentum: 0.1,
            dropout: 0.1,
            ema: None,
            clip_norm: None,
            subnets_at_once: 2,
            log_every: 20,
            checkpoint_minutes: 10.0,
            checkpoint_steps: None,
            keep_checkpoints: 3,
            skip_nonfinite: 0,
            schedule: None,
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
    /// Validation images, drawn by the seed with each class's share; 0: all (default 0).
    pub images: usize,
    /// Images per batch (default 100).
    pub batch: usize,
}

impl Default for ProbeConfig {
    fn default() -> Self {
        ProbeConfig { every_epochs: 5, recalibration_images: 500, images: 0, batch: 100 }
    }
}

/// A stage in steps, for a given number of training images.
#[derive(Debug, Clone, PartialEq)]
pub struct StagePlan {
    /// Images per step, of all processes together.
    pub batch: usize,
    /// Steps an epoch; images that fill no batch wait for the next epoch's order.
    pub steps_per_epoch: usize,
    /// Steps of the stage.
    pub steps: usize,
    /// Of these, steps of warm-up of the stage's own schedule.
    pub warmup_steps: usize,
    /// Steps in which the loss of taught subnets rises.
    pub ramp_steps: usize,
    /// Number of the stage's first epoch, counted from the start of training.
    pub first_epoch: usize,
    /// Number of the stage's first step, counted from the start of training.
    pub first_step: usize,
    /// Work of a step, in forward passes of the largest subnet over one image.
    pub work: f64,
}

impl TrainConfig {
    /// Most images per step.
    pub const LARGEST_BATCH: usize = 65_536;

    /// Reads a configuration from TOML (not yet checked against a space: see [`validate`](Self::validate)).
    ///
    /// # Errors
    /// Unknown keys and wrong types, named.
    pub fn from_toml(text: &str) -> Result<Self> {
        crate::files::parse_toml_text(text).map_err(Error::Config)
    }

    /// A fresh optimizer for `count` parameters.
    pub fn optimizer(&self, count: usize) -> Sgd {
        Sgd::new(self.momentum, self.weight_decay, count).without_decay_of(&self.undecayed)
    }

    /// What learning rates are multiplied by.
    pub fn rate_factor(&self) -> f64 {
        if self.scale_learning_rate { self.ranks.unwrap_or(1) as f64 } else { 1.0 }
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
                let batch = (stage.batch.unwrap_or(self.batch) * self.ranks.unwrap_or(1)).clamp(1, images.max(1));
                let steps_per_epoch = (images / batch).max(1);
                let steps = ((stage.epochs * steps_per_epoch as f64).round() as usize).max(1);
                let in_steps = |epochs: f64| ((epochs * steps_per_epoch as f64).round() as usize).min(steps);
                let warmup_steps = in_steps(stage.warmup_epochs.unwrap_or(0.0));
                let ramp_steps = in_steps(stage.taught.ramp_epochs);
                let work = stage.relative_cost(space) * batch as f64;
                let plan = StagePlan {
                    batch,
                    steps_per_epoch,
                    steps,
                    warmup_steps,
                    ramp_steps,
                    first_epoch,
                    first_step,
                    work,
                };
                first_epoch += steps.div_ceil(steps_per_epoch);
                first_step += steps;
                plan
            })
            .collect()
    }

    /// Learning rate of step `stage_step` of stage `stage` of `plan`.
    pub fn learning_rate(&self, plan: &[StagePlan], stage: usize, stage_step: usize) -> f64 {
        let here = &plan[stage];
        match &self.schedule {
            None => {
                let peak = self.stages[stage].learning_rate.unwrap_or(0.0) * self.rate_factor();
                learning_rate(Decay::Cosine, peak, stage_step, here.steps, here.warmup_steps)
            }
            Some(schedule) => {
                let steps = plan.iter().map(|stage| stage.steps).sum();
                let warmup = (schedule.warmup_epochs * plan[0].steps_per_epoch as f64).round() as usize;
                let peak = schedule.learning_rate * self.rate_factor();
                learning_rate(schedule.decay, peak, here.first_step + stage_step, steps, warmup.min(steps))
            }
        }
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
        if !(self.checkpoint_minutes > 0.0 && self.checkpoint_minutes <= MANY as f64) {
            return fail(format!(
                "checkpoint_minutes = {} must be above 0 and at most {MANY}",
                self.checkpoint_minutes
            ));
        }
        if i64::try_from(self.seed).is_err() {
            return fail(format!("seed = {} must be below 2^63, the largest number TOML can hold", self.seed));
        }
        self.augmentation.check()?;
        self.class_balance.as_ref().map_or(Ok(()), ClassBalance::validate)?;
        counted("batch", self.batch, 1, Self::LARGEST_BATCH)?;
        counted("ranks", self.ranks.unwrap_or(1), 1, 65_536)?;
        counted("subnets_at_once", self.subnets_at_once, 1, 64)?;
        counted("log_every", self.log_every, 1, MANY)?;
        counted("keep_checkpoints", self.keep_checkpoints, 1, MANY)?;
        counted("checkpoint_steps", self.checkpoint_steps.unwrap_or(1), 1, MANY)?;
        counted("skip_nonfinite", self.skip_nonfinite, 0, MANY)?;
        counted("probe.every_epochs", self.probe.every_epochs, 0, MANY)?;
        counted("probe.images", self.probe.images, 0, MANY)?;
        counted("probe.recalibration_images", self.probe.recalibration_images, 1, MANY)?;
        counted("probe.batch", self.probe.batch, 1, 65_536)?;
        if self.stages.is_empty() {
            return fail(
                "there are no stages; take a preset (cifar, imagenet, progressive, tiny) or write [[stages]] tables"
                    .into(),
            );
        }
        for (index, stage) in self.stages.iter().enumerate() {
            stage.validate(index, space, self.teacher_from.is_some())?;
            self.one_schedule(stage)?;
        }
        if let Some(from) = &self.teacher_from
            && !self.stages.iter().any(StageConfig::has_frozen_teacher)
        {
            return fail(format!(
                "teacher_from = '{from}', but no stage learns from a frozen teacher: set kd_ratio above 0 in a stage with \
                 teacher = \"frozen\", or leave teacher_from out"
            ));
        }
        if let Some(schedule) = &self.schedule {
            schedule.validate(self.total_epochs())?;
        }
        self.sorted_in_order("sort_channels", |stage| stage.sort_channels)?;
        self.sorted_in_order("sort_outer_channels", |stage| stage.sort_outer_channels)
    }

    /// A stage has a schedule of its own exactly if there is none over all stages.
    fn one_schedule(&self, stage: &StageConfig) -> Result<()> {
        let rate = stage.learning_rate.map(|_| "learning_rate");
        match (&self.schedule, rate.or(stage.warmup_epochs.map(|_| "warmup_epochs"))) {
            (None, Some("learning_rate")) | (Some(_), None) => Ok(()),
            (None, _) => fail(format!(
                "stage '{}': learning_rate is missing; give it, or one for all stages in [train.schedule]",
                stage.name
            )),
            (Some(_), Some(key)) => fail(format!(
                "stage '{}': {key} has no use, since [train.schedule] spans all stages; leave one of them out",
                stage.name
            )),
        }
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

fn is_false(value: &bool) -> bool {
    !value
}

/// Most steps, images or files: no run has more, and products of such numbers do not overflow.
const MANY: usize = 1_000_000_000;

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
    fail(format!("{key} = {value} must be at least {low} and at most {high}"))
}

#[cfg(test)]
mod tests {
    use super::super::stage_images::StageImages;
    use super::super::taught::Teacher;
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
        check(&|c| c.probe.every_epochs = usize::MAX, &["probe.every_epochs = 18446744073709551615", "at most"]);
        check(&|c| c.probe.recalibration_images = usize::MAX, &["probe.recalibration_images", "at most"]);
        check(&|c| c.keep_checkpoints = usize::MAX, &["keep_checkpoints", "at most"]);
        check(&|c| c.stages[0].learning_rate = Some(1e300), &["learning_rate = 1", "at most"]);
        check(&|c| c.stages[1].kd_ratio = 1e300, &["kd_ratio = 1", "must lie between"]);
        check(&|c| c.clip_norm = Some(0.0), &["clip_norm"]);
        check(&|c| c.seed = u64::MAX, &["seed", "2^63"]);
        check(&|c| c.stages[0].kd_ratio = 1.0, &["largest", "kd_ratio must be 0"]);
        check(&|c| c.stages[1].teacher = Teacher::InPlace, &["kernel", "sandwich"]);
        check(&|c| c.stages[1].narrowing.kernel_sizes.push(9), &["kernel", "holds 9", "3, 5"]);
        check(&|c| c.stages[1].narrowing.kernel_sizes.push(3), &["3 twice"]);
        check(&|c| c.stages[1].warmup_epochs = Some(1e3), &["warmup_epochs = 1000"]);
        check(&|c| c.stages[0].taught.labels = 0.0, &["largest", "taught", "kd_ratio"]);
        check(&|c| c.stages[1].taught.labels = -1.0, &["taught.labels = -1"]);
        check(&|c| c.stages[1].taught.ramp_epochs = 1e3, &["taught.ramp_epochs = 1000"]);
        check(&|c| c.stages[1].taught.ramp_epochs = 0.1, &["taught.ramp_epochs", "in_place"]);
        check(&|c| c.stages[1].label_smoothing = Some(1.0), &["kernel", "label_smoothing = 1"]);
        let images = |resolutions: &[usize], weights: &[f64]| {
            Some(StageImages { resolutions: resolutions.to_vec(), weights: weights.to_vec() })
        };
        check(&|c| c.stages[0].images = images(&[], &[]), &["largest", "images.resolutions is empty"]);
        check(&|c| c.stages[0].images = images(&[20, 40], &[]), &["holds 40", "at most the space's 32"]);
        check(&|c| c.stages[0].images = images(&[20], &[1.0, 1.0]), &["2 numbers for 1"]);
        check(&|c| c.stages[0].images = images(&[20, 24], &[1.0, 0.0]), &["images.weights holds 0"]);
        let jitter = Augmentation { colour_jitter: 2.0, ..Augmentation::default() };
        check(&|c| c.stages[0].augmentation = Some(jitter.clone()), &["largest", "colour_jitter is 2"]);
        check(&|c| c.stages[1].sort_channels = Some(3), &["sort_channels = 3", "2 width stages"]);
        check(&|c| c.stages[0].sort_channels = Some(2), &["must be 1"]);
    }

    #[test]
    fn a_stage_has_a_schedule_of_its_own_or_all_share_one() {
        let (space, mut config) = tiny();
        config.stages[1].learning_rate = None;
        let error = config.validate(&space).unwrap_err().to_string();
        assert!(error.contains("'kernel': learning_rate is missing") && error.contains("[train.schedule]"), "{error}");
        let schedule = Schedule { learning_rate: 0.4, warmup_epochs: 1.0, decay: Decay::Linear };
        config.schedule = Some(schedule);
        let error = config.validate(&space).unwrap_err().to_string();
        assert!(error.contains("'largest': learning_rate has no use"), "{error}");
        config.stages.iter_mut().for_each(|stage| stage.learning_rate = None);
        let error = config.validate(&space).unwrap_err().to_string();
        assert!(error.contains("'largest': warmup_epochs has no use"), "{error}");
        config.stages.iter_mut().for_each(|stage| stage.warmup_epochs = None);
        config.validate(&space).unwrap();
        // 4 steps an epoch; 2 epochs, then 1.
        config.stages.truncate(2);
        (config.batch, config.stages[0].epochs, config.stages[1].epochs) = (10, 2.0, 1.0);
        let plan = config.plan(&space, 40);
        let rates = [(0, 0), (0, 3), (0, 4), (0, 7), (1, 0), (1, 2)];
        let rates = rates.map(|(stage, step)| config.learning_rate(&plan, stage, step));
        for (rate, expected) in rates.iter().zip([0.1, 0.4, 0.4, 0.25, 0.2, 0.1]) {
            assert!((rate - expected).abs() < 1e-12, "{rates:?}");
        }
        let text = toml::to_string(&config).unwrap();
        assert_eq!(TrainConfig::from_toml(&text).unwrap(), config);
        let stretched = config.with_epochs(6.0);
        assert_eq!(stretched.schedule.unwrap().warmup_epochs, 2.0);
    }

    #[test]
    fn plans_steps_epochs_and_warm_up() {
        let (space, mut config) = tiny();
        config.batch = 10;
        config.stages.truncate(2);
        (config.stages[0].epochs, config.stages[0].warmup_epochs) = (1.5, Some(0.5));
        (config.stages[1].epochs, config.stages[1].warmup_epochs, config.stages[1].batch) = (2.0, None, Some(500));
        let plan = config.plan(&space, 47);
        let steps = |p: &StagePlan| (p.batch, p.steps_per_epoch, p.steps, p.warmup_steps, p.first_epoch, p.first_step);
        assert_eq!(steps(&plan[0]), (10, 4, 6, 2, 0, 0));
        // Fewer images than a batch: all of them are the batch.
        assert_eq!(steps(&plan[1]), (47, 1, 2, 0, 2, 6));
        assert_eq!(plan[0].work, 30.0);
        assert_eq!(plan[1].work, 4.0 * 47.0);
    }
}
