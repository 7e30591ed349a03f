//! What a new training is refused for, though runs that were trained so are read.

use crate::run_folder::RunConfig;
use anyhow::{Result, bail};
use ofa_supernet::data::Normalisation;
use ofa_supernet::train::{Sampling, StageConfig, Teacher};

impl RunConfig {
    /// Refuses what has no use in a new training, though runs that were trained so are read.
    pub fn check_new(&self) -> Result<()> {
        self.check_start()?;
        let idle = |stage: &&StageConfig| stage.teacher == Teacher::InPlace && stage.kd_ratio == 0.0;
        if let Some(stage) = self.train.stages.iter().find(idle) {
            bail!(
                "stage '{}': teacher = \"in_place\" teaches nothing while kd_ratio is 0; set kd_ratio or leave teacher out",
                stage.name
            );
        }
        let alone = |stage: &&StageConfig| stage.sampling != Sampling::Uniform && stage.subnets_per_step < 2;
        if let Some(stage) = self.train.stages.iter().find(alone) {
            bail!(
                "stage '{}': its sampling begins with the largest subnet, so that no other would be trained; set \
                 subnets_per_step to 2 or more (from 3 on the smallest is among them)",
                stage.name
            );
        }
        let twice = |stage: &&StageConfig| stage.images.is_some() && !stage.narrowing.values("resolutions").is_empty();
        if let Some(stage) = self.train.stages.iter().find(twice) {
            bail!("stage '{}': images have resolutions of their own; leave out resolutions or images", stage.name);
        }
        self.check_sorting()?;
        if let Some(Normalisation { mean, .. }) = self.data.normalisation.as_ref().filter(|own| !own.has_colours()) {
            bail!(
                "[data.normalisation] mean = {mean:?}: means must lie between 0 and 1; divide levels of 0 to 255 by 255, \
                 and std too"
            );
        }
        Ok(())
    }

    /// Fails where a stage sorts channels of widths that an earlier stage has trained already: sorting for width stage
    /// N keeps only the N - 1 largest of the smaller widths together.
    fn check_sorting(&self) -> Result<()> {
        for (index, stage) in self.train.stages.iter().enumerate() {
            let sorts = [("expand_ratios", stage.sort_channels), ("width_multipliers", stage.sort_outer_channels)];
            for (key, number) in sorts.into_iter().filter_map(|(key, number)| Some((key, number?))) {
                let most = |other: &&StageConfig| other.narrowing.values(key).len() > number;
                if let Some(other) = self.train.stages[..index].iter().find(most) {
                    bail!(
                        "stage '{}' sorts channels for width stage {number}, but the stage '{}' before it trains more {key} \
                         than the {number} largest, and sorting would take channels from them; leave the sorting out, or \
                         draw these later",
                        stage.name,
                        other.name
                    );
                }
            }
        }
        Ok(())
    }

    /// Fails where trained weights would be lost before the first step.
    fn check_start(&self) -> Result<()> {
        match &self.from {
            Some(from) if self.train.zero_last_scale || self.train.whitening_stem => {
                let key = if self.train.zero_last_scale { "zero_last_scale" } else { "whitening_stem" };
                bail!("{key} is for random weights and would undo those of from = '{from}'; leave one of them out")
            }
            _ => Ok(()),
        }
    }
}
