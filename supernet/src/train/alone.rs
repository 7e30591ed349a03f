//! One architecture trained alone: the yardstick of what it loses as a part of a supernet.

use super::config::TrainConfig;
use super::stage::{Sampling, StageConfig};
use super::taught::{Taught, Teacher};
use crate::space::{Narrowing, SearchSpace, Subnet};
use crate::{Error, Result};

impl TrainConfig {
    /// The space that holds no more than `subnet` needs, and the training of `subnet` alone: one stage as long as all
    /// stages together, at the subnet's own resolution, with the learning rate of the schedule (without one, that of
    /// the first stage) and the settings of the first stage.
    ///
    /// # Errors
    /// A subnet outside of `space`, or a configuration without stages.
    pub fn alone(&self, space: &SearchSpace, subnet: &Subnet) -> Result<(SearchSpace, TrainConfig)> {
        space.check(subnet)?;
        let Some(first) = self.stages.first() else {
            return Err(Error::Config("there are no stages, so there is no schedule for a subnet".into()));
        };
        let taught = self.stages.iter().find(|stage| stage.has_frozen_teacher());
        let stage = StageConfig {
            name: "alone".into(),
            epochs: self.total_epochs(),
            narrowing: Narrowing::default(),
            subnet: Some(subnet.clone()),
            subnets_per_step: 1,
            sampling: Sampling::Uniform,
            candidates: None,
            // The teacher of another run teaches it, too, as in the first stage that it teaches.
            kd_ratio: self.teacher_from.as_ref().and(taught).map_or(0.0, |stage| stage.kd_ratio),
            teacher: Teacher::Frozen,
            taught: Taught::default(),
            sort_channels: None,
            sort_outer_channels: None,
            images: None,
            ..first.clone()
        };
        Ok((space.only(subnet), TrainConfig { stages: vec![stage], ..self.clone() }))
    }

    /// The subnet that all stages train, if they train only one.
    pub fn only_subnet(&self) -> Option<&Subnet> {
        let subnet = self.stages.first()?.subnet.as_ref()?;
        self.stages.iter().all(|stage| stage.subnet.as_ref() == Some(subnet)).then_some(subnet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::preset;

    #[test]
    fn a_subnet_alone_is_the_same_network_in_a_space_that_holds_little_else() {
        for name in ["tiny", "cifar-mbv3", "resnet-tiny", "attentive-tiny", "mbv3-w1.0"] {
            let space = preset(name).unwrap();
            let config = TrainConfig::preset("tiny", &space).unwrap();
            let mut rng = crate::seed::generator(1, crate::seed::Stream::Sampling, &[]);
            let random: Vec<Subnet> = (0..20).map(|_| space.sample(&mut rng)).collect();
            for subnet in [space.smallest(), space.middle(), space.largest()].into_iter().chain(random) {
                let (own, config) = config.alone(&space, &subnet).unwrap();
                own.validate().unwrap();
                config.validate(&own).unwrap();
                own.check(&subnet).unwrap();
                assert_eq!(own.network(&subnet, 10).unwrap(), space.network(&subnet, 10).unwrap());
                assert_eq!(config.only_subnet(), Some(&subnet));
            }
            let (own, _) = config.alone(&space, &space.smallest()).unwrap();
            assert_eq!(own.count(), 1.0, "{name}");
        }
    }

    #[test]
    fn the_schedule_is_that_of_the_supernet() {
        let space = preset("tiny").unwrap();
        let config = TrainConfig::preset("tiny", &space).unwrap();
        let (_, alone) = config.alone(&space, &space.smallest()).unwrap();
        assert_eq!((alone.stages.len(), alone.only_subnet()), (1, Some(&space.smallest())));
        assert!((alone.total_epochs() - config.total_epochs()).abs() < 1e-9);
        let [own, first] = [&alone.stages[0], &config.stages[0]];
        assert_eq!((own.learning_rate, own.warmup_epochs), (first.learning_rate, first.warmup_epochs));
        let outside = Subnet { resolution: 17, ..space.smallest() };
        assert!(config.alone(&space, &outside).is_err());
        let mut taught = TrainConfig { teacher_from: Some("other".into()), ..config.clone() };
        (taught.stages[1].kd_ratio, taught.stages[1].teacher) = (0.5, Teacher::Frozen);
        let (own, alone) = taught.alone(&space, &space.smallest()).unwrap();
        assert!(alone.stages[0].kd_ratio == 0.5 && alone.validate(&own).is_ok());
        assert_eq!(config.only_subnet(), None);
    }
}
