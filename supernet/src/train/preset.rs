//! Training presets: the paper's schedule, and short ones for small images.

use super::config::{ProbeConfig, TrainConfig};
use super::optimizer::Undecayed;
use super::schedule::{Decay, Schedule};
use super::stage::{Sampling, StageConfig};
use super::stage_images::StageImages;
use super::taught::Taught;
use super::taught::Teacher;
use crate::data::{Augmentation, Border, CENTRAL_FROM, Crop, Flip};
use crate::space::{Channels, Narrowing, SHRINKING, SearchSpace};
use crate::{Error, Result};

/// Numbers that differ between presets, a stage kind each.
struct Rows {
    largest: Row,
    /// A stage that frees all values of a dimension.
    at_once: Row,
    /// A stage that frees one more value, not the last of its dimension.
    early: Row,
    /// A stage that frees the last value of a dimension.
    last: Row,
}

struct Row {
    epochs: f64,
    warmup: f64,
    learning_rate: f64,
}

const fn row(epochs: f64, warmup: f64, learning_rate: f64) -> Row {
    Row { epochs, warmup, learning_rate }
}

/// Paper, appendix B and §4.1; learning rates are those of a batch of 64.
const IMAGENET: Rows = Rows {
    largest: row(180.0, 5.0, 0.08),
    at_once: row(120.0, 5.0, 0.03),
    early: row(25.0, 0.0, 0.0025),
    last: row(120.0, 5.0, 0.0075),
};

/// Stages with fewer epochs. The largest network gets a larger share, since it teaches all others and its epochs
/// are the cheapest; the later stages have too few steps for the paper's small rates.
const SHORT: Rows = Rows {
    largest: row(24.0, 1.0, 0.1),
    at_once: row(8.0, 0.5, 0.03),
    early: row(3.0, 0.25, 0.01),
    last: row(8.0, 0.5, 0.02),
};

impl TrainConfig {
    /// Names of the presets.
    pub const PRESETS: &'static [&'static str] = &["imagenet", "progressive", "tiny", "cifar", "transfer"];

    /// A preset with the stages that `space` needs; [`with_epochs`](Self::with_epochs) stretches any.
    ///
    /// `imagenet`, `progressive` and `tiny` train the largest network, then free dimensions one after another
    /// ([`SHRINKING`]): the paper's schedule, and two short ones. `cifar` and `transfer` free all dimensions at once,
    /// with one learning-rate schedule.
    ///
    /// # Errors
    /// An unknown name, with the known ones.
    pub fn preset(name: &str, space: &SearchSpace) -> Result<Self> {
        match name {
            "imagenet" => Ok(TrainConfig {
                augmentation: Augmentation {
                    crop: Crop::Resized { min_area: 0.08 },
                    colour_jitter: 0.4,
                    ..Augmentation::default()
                },
                probe: ProbeConfig { recalibration_images: 2000, ..ProbeConfig::default() },
                stages: stages(&IMAGENET, space),
                ..TrainConfig::default()
            }),
            "progressive" => Ok(TrainConfig {
                weight_decay: 1e-4,
                probe: ProbeConfig { recalibration_images: 1000, ..ProbeConfig::default() },
                stages: stages(&SHORT, space),
                ..TrainConfig::default()
            }),
            "tiny" => Ok(TrainConfig {
                batch: 32,
                dropout: 0.0,
                probe: ProbeConfig { every_epochs: 0, recalibration_images: 200, ..ProbeConfig::default() },
                stages: stages(&SHORT, space),
                ..TrainConfig::default()
            }
            .with_epochs(30.0)),
            "cifar" => Ok(small_images(space)),
            "transfer" => Ok(transfer(space)),
            _ => Err(Error::Config(format!("no preset is named '{name}'; known are {}", Self::PRESETS.join(", ")))),
        }
    }

    /// Stretches or shrinks all stages, warm-ups included, to `total` epochs together.
    pub fn with_epochs(mut self, total: f64) -> Self {
        let factor = total / self.total_epochs();
        for stage in &mut self.stages {
            stage.epochs *= factor;
            stage.warmup_epochs.iter_mut().for_each(|epochs| *epochs *= factor);
            stage.taught.ramp_epochs *= factor;
        }
        self.schedule.iter_mut().for_each(|schedule| schedule.warmup_epochs *= factor);
        self
    }
}

/// Epochs of the preset `cifar`; shares of them are in [`small_images`].
const SMALL_IMAGES_EPOCHS: f64 = 40.0;

/// For small images: only the largest network, at first at three quarters of the resolution, then all dimensions at
/// once, taught by the largest network of the same step.
fn small_images(space: &SearchSpace) -> TrainConfig {
    let part = |share: f64| share * SMALL_IMAGES_EPOCHS;
    let side = space.resolutions[space.resolutions.len() - 1];
    let images = |resolution| Some(StageImages { resolutions: vec![resolution], weights: Vec::new() });
    let alone =
        |name: &str, share, resolution| StageConfig { images: images(resolution), ..without_rate(name, part(share)) };
    TrainConfig {
        weight_decay: 4e-4,
        undecayed: vec![Undecayed::Depthwise, Undecayed::KernelTransforms],
        zero_last_scale: true,
        dropout: 0.0,
        ema: Some(0.999),
        schedule: Some(Schedule { learning_rate: 0.1, warmup_epochs: part(0.02), decay: Decay::Linear }),
        augmentation: Augmentation {
            crop: Crop::Padded { pixels: 4, border: Border::Reflect },
            flip: Flip::Alternating,
            cutout: 0.25,
            ..Augmentation::default()
        },
        probe: ProbeConfig { recalibration_images: 1000, ..ProbeConfig::default() },
        stages: vec![
            alone("largest-small", 0.4, (side * 3 / 4).max(1)),
            alone("largest", 0.15, side),
            StageConfig {
                label_smoothing: Some(0.05),
                images: mostly_largest(space),
                taught: Taught { labels: 0.0, ramp_epochs: part(0.025), ..Taught::default() },
                ..elastic(space, part(0.45), true)
            },
        ],
        ..TrainConfig::default()
    }
}

/// For a supernet that is trained already, on other images: all dimensions at once, at a low rate.
fn transfer(space: &SearchSpace) -> TrainConfig {
    let epochs = 20.0;
    // Small images are seen whole; of photographs evaluation sees a part, and so does training.
    let is_small = space.resolutions.iter().all(|&resolution| resolution < CENTRAL_FROM);
    let crop = if is_small { Augmentation::default().crop } else { Crop::Resized { min_area: 0.35 } };
    TrainConfig {
        augmentation: Augmentation { crop, ..Augmentation::default() },
        weight_decay: 1e-4,
        dropout: 0.0,
        ema: Some(0.999),
        schedule: Some(Schedule { learning_rate: 0.02, warmup_epochs: 1.0, decay: Decay::Linear }),
        probe: ProbeConfig { recalibration_images: 1000, ..ProbeConfig::default() },
        stages: vec![elastic(space, epochs, false)],
        ..TrainConfig::default()
    }
}

/// A stage that trains only the largest subnet, with the schedule of all stages.
fn without_rate(name: &str, epochs: f64) -> StageConfig {
    let stage = stage(name.into(), &row(epochs, 0.0, 0.0), 1, 0.0);
    StageConfig { learning_rate: None, warmup_epochs: None, ..stage }
}

/// A stage that draws from the whole space, with the largest and the smallest subnet in each step.
fn elastic(space: &SearchSpace, epochs: f64, sorts: bool) -> StageConfig {
    let mut narrowing = Narrowing::default();
    let mut sorted = [Channels::Middle, Channels::Outer].map(|_| None);
    for step in &SHRINKING {
        let values = space.listed(step.key);
        if values.len() > 1 {
            narrowing.set(step.key, &values);
            if let Some(channels) = step.sorts.filter(|&channels| sorts && space.sorts(channels)) {
                sorted[usize::from(channels == Channels::Outer)] = Some(1);
            }
        }
    }
    let [sort_channels, sort_outer_channels] = sorted;
    StageConfig {
        narrowing,
        subnets_per_step: 3,
        sampling: Sampling::Sandwich,
        kd_ratio: 1.0,
        teacher: Teacher::InPlace,
        sort_channels,
        sort_outer_channels,
        ..without_rate("elastic", epochs)
    }
}

/// The space's resolutions, of which the largest is drawn for 60 % of the steps.
fn mostly_largest(space: &SearchSpace) -> Option<StageImages> {
    let others = space.resolutions.len() - 1;
    let weights = (0..others).map(|_| 0.4 / others as f64).chain([0.6]);
    (others > 0).then(|| StageImages { resolutions: space.resolutions.clone(), weights: weights.collect() })
}

fn stage(name: String, row: &Row, subnets_per_step: usize, kd_ratio: f64) -> StageConfig {
    StageConfig {
        name,
        epochs: row.epochs,
        learning_rate: Some(row.learning_rate),
        warmup_epochs: Some(row.warmup),
        batch: None,
        label_smoothing: None,
        narrowing: Narrowing::default(),
        subnet: None,
        subnets_per_step,
        sampling: Sampling::Uniform,
        candidates: None,
        kd_ratio,
        teacher: Teacher::Frozen,
        taught: Taught::default(),
        sort_channels: None,
        sort_outer_channels: None,
        images: None,
        augmentation: None,
    }
}

fn stages(schedule: &Rows, space: &SearchSpace) -> Vec<StageConfig> {
    let mut stages = vec![stage("largest".into(), &schedule.largest, 1, 0.0)];
    // What the stages before have freed.
    let mut freed = Narrowing::default();
    for step in &SHRINKING {
        let values = space.listed(step.key);
        let count = values.len().saturating_sub(1);
        let first = if step.at_once { count } else { 1 };
        for index in first.max(1)..=count {
            freed.set(step.key, &values[count - index..]);
            let (name, row) = match (step.at_once, index == count) {
                (true, _) => (step.stage.to_string(), &schedule.at_once),
                (false, false) => (format!("{}-{index}", step.stage), &schedule.early),
                (false, true) => (format!("{}-{index}", step.stage), &schedule.last),
            };
            let sorts = |channels| (step.sorts == Some(channels) && space.sorts(channels)).then_some(index);
            stages.push(StageConfig {
                narrowing: freed.clone(),
                sort_channels: sorts(Channels::Middle),
                sort_outer_channels: sorts(Channels::Outer),
                ..stage(name, row, step.subnets, 1.0)
            });
        }
    }
    stages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::preset;

    #[test]
    fn the_published_space_gets_the_papers_stages() {
        let space = preset("mbv3-w1.0").unwrap();
        let config = TrainConfig::preset("imagenet", &space).unwrap();
        config.validate(&space).unwrap();
        let found: Vec<_> = config
            .stages
            .iter()
            .map(|s| (s.name.as_str(), s.epochs, s.learning_rate.unwrap(), s.subnets_per_step))
            .collect();
        assert_eq!(
            found,
            [
                ("largest", 180.0, 0.08, 1),
                ("kernel", 120.0, 0.03, 1),
                ("depth-1", 25.0, 0.0025, 2),
                ("depth-2", 120.0, 0.0075, 2),
                ("width-1", 25.0, 0.0025, 4),
                ("width-2", 120.0, 0.0075, 4),
            ]
        );
        assert_eq!(config.stages[2].narrowing.depths, [3, 4]);
        assert_eq!(config.stages[4].narrowing.expand_ratios.len(), 2);
        // The last stage draws from the whole space.
        assert_eq!(config.stages[5].choices(&space), space);
    }

    #[test]
    fn every_preset_is_valid_for_every_space_and_ends_with_all_of_it() {
        for name in TrainConfig::PRESETS {
            for space in crate::space::PRESETS.iter().map(|s| preset(s).unwrap()) {
                let config = TrainConfig::preset(name, &space).unwrap().with_epochs(7.0);
                config.validate(&space).unwrap();
                assert!((config.total_epochs() - 7.0).abs() < 1e-9);
                assert_eq!(config.stages.last().unwrap().choices(&space), space);
            }
        }
        let fixed = SearchSpace { kernel_sizes: vec![3], depths: vec![2], ..preset("tiny").unwrap() };
        let config = TrainConfig::preset("tiny", &fixed).unwrap();
        let names: Vec<_> = config.stages.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["largest", "width-1", "width-2"]);
        let error = TrainConfig::preset("mnist", &fixed).unwrap_err().to_string();
        assert!(error.contains("imagenet, progressive, tiny, cifar, transfer"), "{error}");
    }
}
