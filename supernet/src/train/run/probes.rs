//! Validation of fixed subnets during training.

use super::Run;
use crate::Result;
use crate::train::checkpoint::Best;
use crate::train::config::StagePlan;
use crate::train::metrics::MetricsLine;
use crate::train::progress::{Event, ProbeResult};
use crate::train::stage::StageConfig;
use crate::train::validation::{accuracy_on, recalibrate_on};

impl Run<'_> {
    pub(super) fn probe_due(&self, plan: &StagePlan) -> bool {
        let every = self.config.probe.every_epochs * plan.steps_per_epoch;
        let done = self.progress.stage_step;
        every > 0 && done > 0 && done.is_multiple_of(every) && self.progress.probed != Some(self.progress.step)
    }

    /// Validates the probes, with the moving average if there is one.
    pub(super) fn probe(&mut self, stage: &StageConfig) -> Result<()> {
        let results = match &self.average {
            None => self.measure_probes()?,
            Some(average) => {
                let current = self.net.state()?;
                self.net.load_state(average.state())?;
                let results = self.measure_probes();
                self.net.load_state(&current)?;
                results?
            }
        };
        let (step, seconds) = (self.progress.step, self.progress.seconds);
        for result in &results {
            self.log(&MetricsLine::Probe {
                step,
                stage: stage.name.clone(),
                probe: result.name.to_string(),
                subnet: result.subnet.clone(),
                accuracy: result.accuracy,
                seconds,
            })?;
        }
        self.progress.probed = Some(step);
        let accuracy = results.iter().map(|r| r.accuracy).sum::<f64>() / results.len() as f64;
        if self.progress.best.is_none_or(|best| accuracy > best.accuracy) {
            self.progress.best = Some(Best { step, accuracy });
        }
        self.tell(&Event::Probes { stage: &stage.name, step, results: &results });
        self.probes = results;
        Ok(())
    }

    pub(super) fn measure_probes(&self) -> Result<Vec<ProbeResult>> {
        let space = &self.space;
        let probes = match self.config.only_subnet() {
            Some(subnet) => vec![("subnet", subnet.clone())],
            None => vec![("smallest", space.smallest()), ("middle", space.middle()), ("largest", space.largest())],
        };
        probes
            .into_iter()
            .map(|(name, subnet)| {
                let statistics = recalibrate_on(self.net, &subnet, &self.recalibration)?;
                let accuracy = accuracy_on(self.net, &subnet, &statistics, &self.validation)?;
                // It decides about checkpoints. Where each rank measured by itself, another number of threads may have
                // rounded otherwise.
                let accuracy = self.ranks.broadcast_f64(accuracy);
                Ok(ProbeResult { name, subnet, accuracy })
            })
            .collect()
    }
}
