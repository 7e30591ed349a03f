//! Writing checkpoints and starting from them.

use super::Run;
use crate::network::Supernet;
use crate::train::average::Average;
use crate::train::checkpoint::{Checkpoint, Latest, Progress};
use crate::train::config::TrainConfig;
use crate::train::progress::Event;
use crate::{Error, Result, SearchSpace};
use candle_core::{DType, Tensor};
use serde::Deserialize;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A checkpoint that is due by time waits at least this many times as long as the last one took to write: 2 % of the
/// time.
const WRITES_APART: f64 = 50.0;

impl Run<'_> {
    pub(super) fn checkpoint_due(&self) -> bool {
        let wait = (self.config.checkpoint_minutes * 60.0).max(WRITES_APART * self.write_seconds);
        self.config.checkpoint_steps.is_some_and(|steps| self.progress.step - self.saved_step >= steps)
            || self.saved_at.elapsed().as_secs_f64() >= wait
    }

    pub(super) fn checkpoint(&mut self) -> Result<PathBuf> {
        let start = Instant::now();
        let weights = self.net.state()?;
        if let Some(name) = not_finite(&weights)? {
            return Err(Error::NotFinite(format!(
                "step {}: the weights '{name}' hold NaN or infinite values, so no checkpoint is written and earlier ones are \
                 kept; lower learning_rate or set clip_norm",
                self.progress.step
            )));
        }
        let mut average = HashMap::new();
        if let Some(running) = &self.average {
            average.clone_from(running.state());
            self.progress.average_updates = running.updates();
        }
        if let Some(metrics) = &mut self.metrics {
            self.progress.metrics_lines = metrics.sync()?;
        }
        let checkpoint = Checkpoint {
            progress: self.progress.clone(),
            identity: self.identity.clone(),
            weights,
            momentum: self.optimizer.state(self.net.parameters())?,
            average,
            teacher: self.teacher.as_ref().map_or(Ok(HashMap::new()), Supernet::state)?,
            teacher_space: self.teacher.as_ref().map(Supernet::space).filter(|space| **space != self.space).cloned(),
            earlier: self.earlier.clone(),
        };
        self.compare(&checkpoint, "no checkpoint is written; go on from the last one with --resume, and if it happens again look for a machine with faulty memory or another build of the program")?;
        let path = match self.ranks.is_first() {
            true => self.folder.save(&checkpoint)?,
            false => self.folder.checkpoint_path(self.progress.step),
        };
        self.write_seconds = start.elapsed().as_secs_f64();
        (self.saved_at, self.saved_step) = (Instant::now(), self.progress.step);
        self.tell(&Event::Checkpoint { path: &path });
        Ok(path)
    }

    /// Fails on all ranks if one of them holds other values than the rest.
    fn compare(&self, checkpoint: &Checkpoint, advice: &str) -> Result<()> {
        if !self.ranks.is_distributed() {
            return Ok(());
        }
        let what = format!("the weights at step {}", checkpoint.progress.step);
        self.ranks.check_equal(checkpoint.fingerprint()?, &what, advice)
    }

    pub(super) fn restore(&mut self, found: Latest) -> Result<()> {
        let Latest { checkpoint, path, damaged } = found;
        let path: &Path = &path;
        self.compare(&checkpoint, "the run folder must be one that all machines share")?;
        let rates = self.changed_rates(&checkpoint)?;
        let Checkpoint { progress, weights, momentum, average, teacher, teacher_space, earlier, .. } = checkpoint;
        let fits = progress.stage <= self.plan.len()
            && self.plan.get(progress.stage).is_none_or(|plan| progress.stage_step <= plan.steps);
        if !fits {
            let least = self.plan.get(progress.stage).map_or(String::new(), |plan| {
                let epochs = progress.stage_step as f64 / plan.steps_per_epoch as f64;
                format!("; give the stage {:.2} epochs or more", (100.0 * epochs).ceil() / 100.0)
            });
            return Err(Error::format(
                path,
                format!(
                    "it stands at step {} of stage {}, which the configuration does not have{least}",
                    progress.stage_step,
                    progress.stage + 1
                ),
            ));
        }
        self.net.load_state(&weights).map_err(|e| e.at(path))?;
        self.optimizer.load_state(self.net.parameters(), &momentum).map_err(|e| e.at(path))?;
        if let Some(decay) = self.config.ema.filter(|_| !average.is_empty()) {
            self.net.check_state(&average).map_err(|e| e.at(path))?;
            self.average = Some(Average::new(decay, average, progress.average_updates));
        }
        if !teacher.is_empty() {
            let space = teacher_space.as_ref().unwrap_or(&self.space);
            self.teacher = Some(self.frozen(space, &teacher).map_err(|e| e.at(path))?);
        }
        self.earlier = earlier;
        self.saved_step = progress.step;
        self.progress = progress;
        self.tell(&Event::Resumed { checkpoint: path, step: self.progress.step, damaged: &damaged, rates });
        Ok(())
    }

    /// The next step's learning rate by the configuration of `checkpoint` and by that of the run, where they differ.
    fn changed_rates(&self, checkpoint: &Checkpoint) -> Result<Option<(f64, f64)>> {
        let Progress { stage, stage_step, .. } = checkpoint.progress;
        let identity = &checkpoint.identity;
        if identity.config == self.identity.config {
            return Ok(None);
        }
        let saved = TrainConfig::deserialize(&identity.config).map_err(|e| Error::Internal(e.to_string()))?;
        let plan = saved.plan(&self.space, identity.images);
        // A stage that is done has no next step.
        if [&plan, &self.plan].iter().any(|plan| plan.get(stage).is_none_or(|stage| stage_step >= stage.steps)) {
            return Ok(None);
        }
        let before = saved.learning_rate(&plan, stage, stage_step);
        let now = self.config.learning_rate(&self.plan, stage, stage_step);
        Ok((before != now).then_some((before, now)))
    }

    /// A second network with the given weights.
    pub(super) fn frozen(&self, space: &SearchSpace, state: &HashMap<String, Tensor>) -> Result<Supernet> {
        let dtype = self.net.parameters().first().map_or(DType::F32, |p| p.var.dtype());
        let mut teacher = Supernet::on_device(space, self.net.classes(), self.config.seed, dtype, self.net.device())?;
        if self.config.sync_batch_norm {
            teacher.share_batch_statistics(self.ranks)?;
        }
        teacher.load_state(state)?;
        Ok(teacher)
    }
}

/// The first tensor by name with a value that is not finite.
fn not_finite(state: &HashMap<String, Tensor>) -> Result<Option<&str>> {
    let mut found: Option<&str> = None;
    for (name, tensor) in state {
        // A sum of absolute values in f64 overflows for no f32 values that are finite themselves.
        let finite = tensor.to_dtype(DType::F64)?.abs()?.sum_all()?.to_scalar::<f64>()?.is_finite();
        if !finite && found.is_none_or(|first| name.as_str() < first) {
            found = Some(name);
        }
    }
    Ok(found)
}
