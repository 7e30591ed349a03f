//! What an observer of training is told, and how fast it goes.

use super::config::StagePlan;
use super::step::StepReport;
use crate::Subnet;
use std::path::{Path, PathBuf};

/// What the observer wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Go on.
    Continue,
    /// Write a checkpoint and return.
    Stop,
}

/// What an observer of training is told.
#[derive(Debug)]
pub enum Event<'a> {
    /// Training resumes from a checkpoint.
    Resumed {
        /// The checkpoint.
        checkpoint: &'a Path,
        /// Steps since the start of training, at the checkpoint.
        step: usize,
        /// Newer checkpoints that cannot be read: an error message each.
        damaged: &'a [String],
        /// The next step's learning rate as the run was configured before and as it is now, where they differ.
        rates: Option<(f64, f64)>,
    },
    /// A stage begins (or is resumed).
    Stage {
        /// Name of the stage.
        name: &'a str,
        /// Index of the stage, from 0.
        index: usize,
        /// Number of stages.
        stages: usize,
        /// Steps of the stage.
        steps: usize,
    },
    /// A step is done.
    Step(StepEvent<'a>),
    /// A step was skipped because a value was not finite.
    Skipped {
        /// What and where.
        reason: &'a str,
        /// Steps skipped so far.
        skipped: usize,
        /// Steps that may be skipped.
        allowed: usize,
    },
    /// The probes were validated.
    Probes {
        /// Name of the stage.
        stage: &'a str,
        /// Steps since the start of training.
        step: usize,
        /// Smallest, middle, largest.
        results: &'a [ProbeResult],
    },
    /// A checkpoint was written.
    Checkpoint {
        /// The file.
        path: &'a Path,
    },
}

/// Validation of one probe.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeResult {
    /// `smallest`, `middle` or `largest`; `subnet` where only one is trained.
    pub name: &'static str,
    /// The subnet.
    pub subnet: Subnet,
    /// Top-1 accuracy on validation images after recalibration, 0 to 1.
    pub accuracy: f64,
}

/// How training ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// All stages are done, and the weights written.
    Finished {
        /// `checkpoints/supernet.safetensors`.
        supernet: PathBuf,
        /// The probes with the final weights.
        probes: Vec<ProbeResult>,
        /// Steps of training.
        steps: usize,
        /// Seconds of training, over all sessions.
        seconds: f64,
    },
    /// The observer asked to stop; the checkpoint resumes.
    Interrupted {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// Steps done.
        step: usize,
    },
}

/// A finished step.
#[derive(Debug)]
pub struct StepEvent<'a> {
    /// Name of the stage.
    pub stage: &'a str,
    /// Index of the stage, from 0.
    pub stage_index: usize,
    /// Number of stages.
    pub stages: usize,
    /// Epochs done in the stage.
    pub epoch: f64,
    /// Epochs of the stage.
    pub epochs: f64,
    /// Steps done in the stage.
    pub stage_step: usize,
    /// Steps of the stage.
    pub stage_steps: usize,
    /// Steps done.
    pub step: usize,
    /// Steps of all stages.
    pub steps: usize,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// What the step computed.
    pub report: &'a StepReport,
    /// Training images per second, smoothed over recent steps.
    pub images_per_second: f64,
    /// Estimated seconds to the end of training, validation and checkpoints not counted.
    pub eta_seconds: f64,
}

/// Smoothed seconds a step, and the time that remains.
#[derive(Debug, Default)]
pub struct Pace {
    steps: usize,
    seconds_per_step: f64,
}

impl Pace {
    /// Adds a step. The first steps are averaged, later ones smoothed over about fifty.
    pub fn add(&mut self, seconds: f64) {
        self.steps += 1;
        let weight = (1.0 / self.steps as f64).max(0.02);
        self.seconds_per_step += weight * (seconds - self.seconds_per_step);
    }

    /// Images per second at `batch` images per step.
    pub fn images_per_second(&self, batch: usize) -> f64 {
        batch as f64 / self.seconds_per_step.max(1e-9)
    }

    /// Seconds until `plan` is done, of which `stage_step` steps of stage `stage` are; the steps of later stages are
    /// assumed to take time in proportion to their work.
    pub fn remaining(&self, plan: &[StagePlan], stage: usize, stage_step: usize) -> f64 {
        let here = &plan[stage];
        let later: f64 = plan[stage + 1..].iter().map(|p| p.steps as f64 * p.work).sum();
        self.seconds_per_step * (here.steps.saturating_sub(stage_step) as f64 + later / here.work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remaining_time_counts_later_stages_by_their_work() {
        let stage = |steps, work| StagePlan {
            batch: 8,
            steps_per_epoch: 1,
            steps,
            warmup_steps: 0,
            ramp_steps: 0,
            first_epoch: 0,
            first_step: 0,
            work,
        };
        let mut pace = Pace::default();
        pace.add(1.0);
        pace.add(3.0);
        assert_eq!(pace.images_per_second(8), 4.0);
        // Two seconds a step: 6 steps here, then 10 of 2.5 times the work.
        assert_eq!(pace.remaining(&[stage(10, 2.0), stage(10, 5.0)], 0, 4), 2.0 * 6.0 + 2.0 * 25.0);
    }
}
