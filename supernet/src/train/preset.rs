//! Training presets: the paper's schedule, and short ones for small images.

use super::config::{ProbeConfig, TrainConfig};
use super::stage::{Sampling, StageConfig, Teacher};
use crate::data::{Augmentation, Crop};
use crate::space::{Channels, Narrowing, SHRINKING, SearchSpace};
use crate::{Error, Result};

/// Numbers that differ between presets, a stage kind each.
struct Schedule {
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
const IMAGENET: Schedule = Schedule {
    largest: row(180.0, 5.0, 0.08),
    at_once: row(120.0, 5.0, 0.03),
    early: row(25.0, 0.0, 0.0025),
    last: row(120.0, 5.0, 0.0075),
};

/// Stages with fewer epochs. The largest network gets a larger share, since it teaches all others and its epochs
/// are the cheapest; the later stages have too few steps for the paper's small rates.
const SHORT: Schedule = Schedule {
    largest: row(24.0, 1.0, 0.1),
    at_once: row(8.0, 0.5, 0.03),
    early: row(3.0, 0.25, 0.01),
    last: row(8.0, 0.5, 0.02),
};

impl TrainConfig {
    /// Names of the presets.
    pub const PRESETS: &'static [&'static str] = &["imagenet", "cifar", "tiny"];

    /// A preset with the stages that `space` needs: the largest network, then those of [`SHRINKING`].
    ///
    /// `imagenet` is the paper's schedule, `cifar` and `tiny` are short ones; [`with_epochs`](Self::with_epochs)
    /// stretches any.
    ///
    /// # Errors
    /// An unknown name, with the known ones.
    pub fn preset(name: &str, space: &SearchSpace) -> Result<Self> {
        match name {
            "imagenet" => Ok(TrainConfig {
                augmentation: Augmentation { crop: Crop::Resized { min_area: 0.08 }, flip: true, colour_jitter: 0.4 },
                probe: ProbeConfig { recalibration_images: 2000, ..ProbeConfig::default() },
                stages: stages(&IMAGENET, space),
                ..TrainConfig::default()
            }),
            "cifar" => Ok(TrainConfig {
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
            _ => Err(Error::Config(format!("no preset is named '{name}'; known are {}", Self::PRESETS.join(", ")))),
        }
    }

    /// The same configuration stretched or shrunk to `total` epochs over all stages; warm-ups shrink alike.
    pub fn with_epochs(mut self, total: f64) -> Self {
        let factor = total / self.total_epochs();
        for stage in &mut self.stages {
            stage.epochs *= factor;
            stage.warmup_epochs *= factor;
        }
        self
    }
}

fn stages(schedule: &Schedule, space: &SearchSpace) -> Vec<StageConfig> {
    let stage = |name: String, row: &Row, subnets_per_step, kd_ratio| StageConfig {
        name,
        epochs: row.epochs,
        learning_rate: row.learning_rate,
        warmup_epochs: row.warmup,
        batch: None,
        narrowing: Narrowing::default(),
        subnets_per_step,
        sampling: Sampling::Uniform,
        candidates: None,
        kd_ratio,
        teacher: Teacher::Frozen,
        sort_channels: None,
        sort_outer_channels: None,
    };
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
        let found: Vec<_> =
            config.stages.iter().map(|s| (s.name.as_str(), s.epochs, s.learning_rate, s.subnets_per_step)).collect();
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
        assert!(error.contains("imagenet, cifar, tiny"), "{error}");
    }
}
