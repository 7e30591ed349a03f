//! The steps of a stage.

use super::Run;
use crate::data::{Batch, Prefetch};
use crate::train::class_balance::order;
use crate::train::config::StagePlan;
use crate::train::loss::own_targets;
use crate::train::metrics::MetricsLine;
use crate::train::progress::{Event, Pace, StepEvent};
use crate::train::sampling::resolution_of;
use crate::train::stage::StageConfig;
use crate::train::step::{StepInput, StepReport, train_step};
use crate::train::validation::image_tensor;
use crate::{Error, Result, SearchSpace};
use std::time::Instant;

/// Batches that are prepared while others are computed.
pub const AHEAD: usize = 3;

/// A step that is done.
struct Done {
    /// `None`: the step was skipped, since something was not finite.
    report: Option<StepReport>,
    learning_rate: f64,
    seconds: f64,
}

impl Run<'_> {
    /// The steps of a stage that are still to do, until the end or a stop.
    pub(super) fn steps(&mut self, stage: &StageConfig) -> Result<()> {
        let config = self.config;
        let plan = self.plan[self.progress.stage].clone();
        let choices = stage.choices(&self.space);
        let mut batches = self.batches(stage, &choices, &plan);
        let mut pace = Pace::default();
        loop {
            // The first rank's clock decides about checkpoints, a signal to any rank about the end.
            let due = self.ranks.is_first() && self.checkpoint_due();
            let [stop, checkpoint_due] = self.ranks.any([self.stop, due]);
            self.stop = stop;
            if stop {
                return Ok(());
            }
            let done = self.progress.stage_step;
            if done == plan.steps {
                return self.log_rest(stage, &plan);
            }
            if self.probe_due(&plan) {
                let best = self.progress.best;
                self.probe(stage)?;
                if self.progress.best != best {
                    self.checkpoint()?;
                }
                continue;
            }
            if checkpoint_due {
                self.checkpoint()?;
                continue;
            }
            let start = Instant::now();
            let batch = batches.next().ok_or_else(|| {
                Error::Internal(format!(
                    "the loader ended after {done} of {} batches of stage '{}'",
                    plan.steps, stage.name
                ))
            })??;
            let rate = config.learning_rate(&self.plan, self.progress.stage, done);
            let ramp = ((done + 1) as f64 / plan.ramp_steps.max(1) as f64).min(1.0);
            let smoothing = stage.label_smoothing.unwrap_or(config.label_smoothing);
            let classes = self.net.classes();
            let targets = own_targets(&batch, &self.class_weights, classes, smoothing, self.net.device())?;
            let images = image_tensor(batch.images, batch.labels.len(), batch.resolution, self.net)?;
            let input = StepInput {
                config,
                stage,
                choices: &choices,
                step: self.progress.step,
                ramp,
                learning_rate: rate,
                images: &images,
                labels: &batch.labels,
                targets: targets.as_ref(),
                ranks: self.ranks,
                batch: plan.batch,
            };
            let report = self.step(&input)?;
            if let (Some(average), Some(_)) = (&mut self.average, &report) {
                average.update(&self.net.shared_state()?)?;
            }
            let done = Done { report, learning_rate: rate, seconds: start.elapsed().as_secs_f64() };
            pace.add(done.seconds);
            self.record(stage, &plan, &done, &pace)?;
        }
    }

    /// Counts a step, logs the steps since the last line where a line is due, and tells the observer.
    fn record(&mut self, stage: &StageConfig, plan: &StagePlan, done: &Done, pace: &Pace) -> Result<()> {
        let Done { report, learning_rate, seconds } = done;
        let progress = &mut self.progress;
        progress.step += 1;
        progress.stage_step += 1;
        progress.seconds += seconds;
        if let Some(report) = report {
            progress.window.add(report, plan.batch, *seconds);
        }
        let epoch = progress.stage_step as f64 / plan.steps_per_epoch as f64;
        let (step, stage_step, stage_index) = (progress.step, progress.stage_step, progress.stage);
        let logged = progress.window.steps();
        if logged >= self.config.log_every || (stage_step == plan.steps && logged > 0) {
            let line = progress.window.line(step, &stage.name, epoch, *learning_rate, progress.seconds);
            self.log(&line)?;
        }
        let Some(report) = report else { return Ok(()) };
        let event = Event::Step(StepEvent {
            stage: &stage.name,
            stage_index,
            stages: self.plan.len(),
            epoch,
            epochs: stage.epochs,
            stage_step,
            stage_steps: plan.steps,
            step,
            steps: self.plan.iter().map(|p| p.steps).sum(),
            learning_rate: *learning_rate,
            report,
            images_per_second: pace.images_per_second(plan.batch),
            eta_seconds: pace.remaining(&self.plan, stage_index, stage_step),
        });
        self.tell(&event);
        Ok(())
    }

    /// Logs the steps since the last line, of a stage that was cut short to the steps that are done.
    fn log_rest(&mut self, stage: &StageConfig, plan: &StagePlan) -> Result<()> {
        let progress = &mut self.progress;
        if progress.window.steps() == 0 {
            return Ok(());
        }
        let done = progress.stage_step;
        let rate = self.config.learning_rate(&self.plan, progress.stage, done.saturating_sub(1));
        let epoch = done as f64 / plan.steps_per_epoch as f64;
        let line = progress.window.line(progress.step, &stage.name, epoch, rate, progress.seconds);
        self.log(&line)
    }

    /// Computes a step; `None` if it is skipped because a value was not finite: then no weight, momentum or running
    /// statistic changes.
    fn step(&mut self, input: &StepInput) -> Result<Option<StepReport>> {
        let may_skip = self.progress.skipped < self.config.skip_nonfinite;
        // All that changes before a step is found to be not finite: weights and momentum are written at its end, after
        // the checks.
        let running = may_skip.then(|| self.net.running_values());
        let result = train_step(self.net, self.teacher.as_ref(), &mut self.optimizer, input);
        let (Err(Error::NotFinite(reason)), Some(running)) = (&result, running) else { return result.map(Some) };
        self.net.set_running_values(&running);
        self.progress.skipped += 1;
        let (step, stage) = (self.progress.step, &input.stage.name);
        let line =
            MetricsLine::Skipped { step, stage: stage.clone(), reason: reason.clone(), seconds: self.progress.seconds };
        self.log(&line)?;
        let (skipped, allowed) = (self.progress.skipped, self.config.skip_nonfinite);
        self.tell(&Event::Skipped { reason, skipped, allowed });
        Ok(None)
    }

    /// The batches of the stage from the next step on, prepared beside the computation.
    fn batches(&self, stage: &StageConfig, choices: &SearchSpace, plan: &StagePlan) -> Prefetch<Batch> {
        let (data, stage, choices, plan) = (self.data.clone(), stage.clone(), choices.clone(), plan.clone());
        let augmentation = stage.augmentation.as_ref().unwrap_or(&self.config.augmentation).clone();
        let seed = self.config.seed;
        let (start, own) = (self.progress.stage_step, self.ranks.shard(plan.batch));
        let (balance, classes) = (self.config.class_balance.clone(), self.data.classes.len());
        let mut known: Option<(usize, Vec<usize>)> = None;
        Prefetch::new(plan.steps - start, AHEAD, move |index| {
            let stage_step = start + index;
            let epoch = plan.first_epoch + stage_step / plan.steps_per_epoch;
            let images = match &known {
                Some((of, images)) if *of == epoch => images,
                _ => &known.insert((epoch, order(balance.as_ref(), &data.train, classes, seed, epoch as u64))).1,
            };
            let first = stage_step % plan.steps_per_epoch * plan.batch;
            let resolution = resolution_of(&stage, &choices, seed, plan.first_step + stage_step);
            let images = &images[first..first + plan.batch];
            data.training_batch(images, own.clone(), resolution, &augmentation, seed, epoch as u64)
        })
    }
}
