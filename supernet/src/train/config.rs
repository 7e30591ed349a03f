//! The training configuration: everything that decides the weights, and how often to look and save. Stages are data.

use super::checks::fail;
use super::class_balance::ClassBalance;
use super::optimizer::{AdamW, Muon, Optimizer, OptimizerKind, Undecayed};
use super::schedule::{Decay, Schedule, learning_rate};
use super::stage::StageConfig;
use super::whitening;
use crate::data::Augmentation;
use crate::network::Parameter;
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
    /// Rule by which weights are updated (default: SGD with Nesterov momentum).
    #[serde(skip_serializing_if = "is_sgd")]
    pub optimizer: OptimizerKind,
    /// Settings of `optimizer = "muon"` (default: its own).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub muon: Option<Muon>,
    /// Settings of `optimizer = "adamw"` (default: its own).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adamw: Option<AdamW>,
    /// Nesterov momentum (default 0.9); AdamW has none.
    pub momentum: f64,
    /// Weight decay, not applied to batch norm and biases (default 3e-5).
    pub weight_decay: f64,
    /// Further weights without decay (default: none).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub undecayed: Vec<Undecayed>,
    /// Start with residual blocks that are the identity: the scale of their last batch norm is zero (default false).
    #[serde(skip_serializing_if = "is_false")]
    pub zero_last_scale: bool,
    /// Start with a first convolution that whitens patches of training images (default false).
    #[serde(skip_serializing_if = "is_false")]
    pub whitening_stem: bool,
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
    /// Probability that an image skips the last block in training; it rises linearly from the first block on, for blocks
    /// with a shortcut (default 0).
    #[serde(skip_serializing_if = "is_zero")]
    pub drop_path: f64,
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
            optimizer: OptimizerKind::Sgd,
            muon: None,
            adamw: None,
            momentum: 0.9,
            weight_decay: 3e-5,
            undecayed: Vec::new(),
            zero_last_scale: false,
            whitening_stem: false,
            teacher_from: None,
            class_balance: None,
            batch_norm_momentum: 0.1,
            dropout: 0.1,
            drop_path: 0.0,
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

    /// A fresh optimizer for `parameters`.
    pub fn optimizer(&self, parameters: &[Parameter]) -> Optimizer {
        let sgd = Optimizer::sgd(self.momentum, self.weight_decay, parameters.len()).without_decay_of(&self.undecayed);
        match self.optimizer {
            OptimizerKind::Sgd => sgd,
            OptimizerKind::Muon => sgd.with_muon(&self.muon.clone().unwrap_or_default(), parameters),
            OptimizerKind::AdamW => sgd.with_adamw(&self.adamw.clone().unwrap_or_default()),
        }
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
                let warmup = steps_of(schedule.warmup_epochs, plan).min(steps);
                let peak = schedule.learning_rate * self.rate_factor();
                learning_rate(schedule.decay, peak, here.first_step + stage_step, steps, warmup)
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
        within("drop_path", self.drop_path, 0.0, 1.0)?;
        self.can_drop_blocks(space)?;
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
        self.optimizer_settings()?;
        if self.whitening_stem {
            whitening::check(space)?;
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
            let presets = Self::PRESETS.join(", ");
            return fail(format!("there are no stages; take a preset ({presets}) or write [[stages]] tables"));
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

    /// Blocks of a custom kind are one layer to the network, whose branch cannot be skipped.
    fn can_drop_blocks(&self, space: &SearchSpace) -> Result<()> {
        match space.stages.iter().find_map(|stage| stage.block.as_ref()) {
            Some(kind) if self.drop_path > 0.0 => fail(format!(
                "drop_path = {}: blocks of the kind '{kind}' cannot be skipped; leave drop_path out",
                self.drop_path
            )),
            _ => Ok(()),
        }
    }

    /// Settings of an optimizer are for that optimizer.
    fn optimizer_settings(&self) -> Result<()> {
        for (table, kind, is_there) in
            [("muon", OptimizerKind::Muon, self.muon.is_some()), ("adamw", OptimizerKind::AdamW, self.adamw.is_some())]
        {
            if is_there && self.optimizer != kind {
                return fail(format!(
                    "[train.{table}] is for optimizer = \"{table}\"; set that, or leave the table out"
                ));
            }
        }
        self.muon.as_ref().map_or(Ok(()), Muon::validate)?;
        self.adamw.as_ref().map_or(Ok(()), AdamW::validate)
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
                        "stage '{}': {key} = {width_stage}, but {sorted} stages before it sort channels, so it must be {}; \
                         leave it out where all widths were trained before",
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

/// Steps of the first `epochs` epochs. An epoch has as many steps as its stage's batch asks for.
fn steps_of(epochs: f64, plan: &[StagePlan]) -> usize {
    let (mut left, mut steps) = (epochs, 0.0);
    for stage in plan {
        let per_epoch = stage.steps_per_epoch as f64;
        let taken = (stage.steps as f64 / per_epoch).min(left);
        (left, steps) = (left - taken, steps + taken * per_epoch);
    }
    steps.round() as usize
}

fn is_sgd(kind: &OptimizerKind) -> bool {
    *kind == OptimizerKind::Sgd
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
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
mod tests;
