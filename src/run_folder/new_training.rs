//! What a new training is refused for, though runs that were trained so are read.

use crate::output::terminal::note;
use crate::run_folder::RunConfig;
use crate::run_folder::starting_weights::TrainedIn;
use anyhow::{Result, bail};
use ofa_supernet::data::Normalisation;
use ofa_supernet::train::{Sampling, StageConfig, Teacher};
use std::path::Path;

impl RunConfig {
    /// Refuses what has no use in a new training, though runs that were trained so are read.
    pub fn check_new(&self) -> Result<()> {
        self.check_start()?;
        self.check_stages(0, self.from.as_deref())?;
        if let Some(Normalisation { mean, .. }) = self.data.normalisation.as_ref().filter(|own| !own.has_colours()) {
            bail!(
                "[data.normalisation] mean = {mean:?}: means must lie between 0 and 1; divide levels of 0 to 255 by 255, \
                 and std too"
            );
        }
        Ok(())
    }

    /// Refuses the same in the stages of a run that come after the first `begun`, which may have been changed or added.
    pub fn check_resumed(&self, begun: usize) -> Result<()> {
        // The run at `from` may be another by now.
        self.check_stages(begun, None)
    }

    /// Refuses what has no use in the stages after the first `begun` of a training from the weights at `from`.
    fn check_stages(&self, begun: usize, from: Option<&str>) -> Result<()> {
        let stages = || self.train.stages.iter().skip(begun);
        let idle = |stage: &&StageConfig| stage.teacher == Teacher::InPlace && stage.kd_ratio == 0.0;
        if let Some(stage) = stages().find(idle) {
            bail!(
                "stage '{}': teacher = \"in_place\" teaches nothing while kd_ratio is 0; set kd_ratio or leave teacher out",
                stage.name
            );
        }
        let alone = |stage: &&StageConfig| stage.sampling != Sampling::Uniform && stage.subnets_per_step < 2;
        if let Some(stage) = stages().find(alone) {
            bail!(
                "stage '{}': its sampling begins with the largest subnet, so that no other would be trained; set \
                 subnets_per_step to 2 or more (from 3 on the smallest is among them)",
                stage.name
            );
        }
        let twice = |stage: &&StageConfig| stage.images.is_some() && !stage.narrowing.values("resolutions").is_empty();
        if let Some(stage) = stages().find(twice) {
            bail!("stage '{}': images have resolutions of their own; leave out resolutions or images", stage.name);
        }
        self.check_sorting(begun, from)
    }

    /// Leaves out the sorting of channels that would take them from trained subnets.
    pub fn sort_untrained_only(&mut self) {
        if let Some(from) = &self.from
            && self.check_sorting(0, Some(from)).is_err()
        {
            note(format!("channels are not sorted, since '{from}' has trained narrow widths, or may have"));
            for stage in &mut self.train.stages {
                (stage.sort_channels, stage.sort_outer_channels) = (None, None);
            }
        }
    }

    /// Fails where a stage after the first `begun` sorts channels of widths that an earlier stage or the starting
    /// weights have trained already: sorting for width stage N keeps only the N - 1 largest of the smaller widths
    /// together.
    fn check_sorting(&self, begun: usize, from: Option<&str>) -> Result<()> {
        for (index, stage) in self.train.stages.iter().enumerate().skip(begun) {
            let sorts = [("expand_ratios", stage.sort_channels), ("width_multipliers", stage.sort_outer_channels)];
            for (key, number) in sorts.into_iter().filter_map(|(key, number)| Some((key, number?))) {
                if let Some(from) = from
                    && self.rank_of_start(key, from) >= number
                {
                    bail!(
                        "stage '{}' sorts channels for width stage {number}, but the supernet of from = '{from}' has \
                         trained {key} below the {number} largest, and sorting would take channels from them; leave the \
                         sorting out",
                        stage.name
                    );
                }
                let trains = |other: &&StageConfig| self.rank(key, other) >= number;
                if let Some(other) = self.train.stages[..index].iter().find(trains) {
                    bail!(
                        "stage '{}' sorts channels for width stage {number}, but the stage '{}' before it trains {key} \
                         below the {number} largest, and sorting would take channels from them; leave the sorting out, or \
                         draw these later",
                        stage.name,
                        other.name
                    );
                }
            }
        }
        Ok(())
    }

    /// Rank of the smallest value of `key`, from the largest (0) down, that a stage trains.
    fn rank(&self, key: &str, stage: &StageConfig) -> usize {
        let (listed, places) = (self.space.listed(key), self.space.places());
        let values = stage.narrowing.values(key);
        let drawn = values.iter().filter_map(|value| {
            let place = listed.iter().position(|known| known == value)?;
            Some(listed.len() - 1 - place)
        });
        let of_subnet = stage.subnet.iter().flat_map(|subnet| {
            let of_key = places.iter().filter(|place| place.dimension.key == key);
            of_key.filter_map(|place| Some(place.values.len() - 1 - place.choice(subnet)?))
        });
        drawn.chain(of_subnet).max().unwrap_or(0)
    }

    /// Rank of the smallest value of `key` that the supernet of `from` has trained; 0 for a model, around which no
    /// subnets are trained.
    fn rank_of_start(&self, key: &str, from: &str) -> usize {
        match TrainedIn::of(Path::new(from)) {
            None => 0,
            Some(TrainedIn::Stages(stages)) => stages.iter().map(|stage| self.rank(key, stage)).max().unwrap_or(0),
            Some(TrainedIn::Unknown) => self.space.listed(key).len().saturating_sub(1),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_folder::DataConfig;
    use ofa_supernet::SearchSpace;
    use ofa_supernet::train::{StageImages, TrainConfig};

    #[test]
    fn presets_are_accepted_and_what_has_no_use_is_refused() {
        let config = |name: &str| {
            let space = SearchSpace::named("tiny").unwrap();
            let train = TrainConfig::preset(name, &space).unwrap();
            RunConfig { data: DataConfig::default(), space, train, from: None }
        };
        TrainConfig::PRESETS.iter().for_each(|name| config(name).check_new().unwrap());
        let ratios = |stage: &mut StageConfig, ratios: &[f64]| {
            stage.narrowing.expand_ratios = ratios.iter().map(|&ratio| ratio.try_into().unwrap()).collect();
        };
        let refused = |change: &dyn Fn(&mut Vec<StageConfig>), part: &str| {
            let mut config = config("tiny");
            change(&mut config.train.stages);
            let error = config.check_new().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        for sampling in [Sampling::Sandwich, Sampling::BestUp, Sampling::WorstUp] {
            refused(
                &|stages| (stages[1].sampling, stages[1].subnets_per_step) = (sampling, 1),
                "no other would be trained",
            );
        }
        refused(
            &|stages| {
                stages[1].images = Some(StageImages { resolutions: vec![16], weights: Vec::new() });
                stages[1].narrowing.resolutions = vec![32];
            },
            "resolutions of their own",
        );
        // The smallest of three ratios, or the smallest subnet, is trained before its channels are sorted.
        refused(
            &|stages| {
                ratios(&mut stages[1], &[2.0, 4.0]);
                (stages[1].sort_channels, stages[2].sort_channels) = (Some(1), Some(2));
            },
            "sorts channels for width stage 2",
        );
        // So is a stage that is added to a run; those that have begun are as they are.
        let mut added = config("tiny");
        ratios(&mut added.train.stages[2], &[2.0, 3.0, 4.0]);
        added.train.stages[2].sort_channels = Some(1);
        added.train.stages.truncate(3);
        added.check_resumed(0).unwrap();
        added.train.stages.push(StageConfig { sort_channels: Some(2), ..added.train.stages[2].clone() });
        let error = added.check_resumed(3).unwrap_err().to_string();
        assert!(error.contains("sorts channels for width stage 2"), "{error}");
        added.check_resumed(4).unwrap();
        let smallest = SearchSpace::named("tiny").unwrap().smallest();
        refused(
            &|stages| (stages[0].subnet, stages[1].sort_channels) = (Some(smallest.clone()), Some(1)),
            "sorts channels for width stage 1",
        );
    }
}
