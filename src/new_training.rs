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
                // Rank of the smallest value, from the largest down, that a stage trains.
                let rank = |other: &StageConfig| -> usize {
                    let listed = self.space.listed(key);
                    let values = other.narrowing.values(key);
                    let drawn = values.iter().filter_map(|value| {
                        let place = listed.iter().position(|known| known == value)?;
                        Some(listed.len() - 1 - place)
                    });
                    let places = self.space.places();
                    let of_subnet = other.subnet.iter().flat_map(|subnet| {
                        let of_key = places.iter().filter(|place| place.dimension.key == key);
                        of_key.filter_map(|place| Some(place.values.len() - 1 - place.choice(subnet)?))
                    });
                    drawn.chain(of_subnet).max().unwrap_or(0)
                };
                if let Some(other) = self.train.stages[..index].iter().find(|other| rank(other) >= number) {
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
        let smallest = SearchSpace::named("tiny").unwrap().smallest();
        refused(
            &|stages| (stages[0].subnet, stages[1].sort_channels) = (Some(smallest.clone()), Some(1)),
            "sorts channels for width stage 1",
        );
    }
}
