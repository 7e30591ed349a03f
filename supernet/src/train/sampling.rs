//! What a step draws: its resolution and its subnets. All follows from seed and step.

use super::stage::{Role, Sampling, StageConfig};
use crate::seed::{Stream, generator};
use crate::{Result, SearchSpace, Subnet};
use rand::Rng;

/// How far the work of two candidates may be apart, as a part of it.
const LIKE_WORK: f64 = 0.05;
/// Draws for each further candidate; the nearest is taken where none is like enough.
const DRAWS: u64 = 40;

/// The resolution of the batch of step `step`, the same for all subnets of the step: drawn uniformly from `choices`, or
/// from the stage's own list.
pub fn resolution_of(stage: &StageConfig, choices: &SearchSpace, seed: u64, step: usize) -> usize {
    let mut rng = generator(seed, Stream::Resolution, &[step as u64]);
    if let Some(images) = &stage.images {
        return images.resolution_at(rng.random());
    }
    choices.resolutions[rng.random_range(0..choices.resolutions.len())]
}

/// Subnet `index` of step `step` at the batch's resolution, as the stage's sampling has it; with `best_up` and
/// `worst_up` the first of its candidates.
pub fn subnet_of(
    stage: &StageConfig,
    choices: &SearchSpace,
    seed: u64,
    step: usize,
    index: usize,
    resolution: usize,
) -> Subnet {
    if let Some(subnet) = &stage.subnet {
        return Subnet { resolution, ..subnet.clone() };
    }
    let subnet = match stage.role(index) {
        Role::Largest => choices.largest(),
        Role::Smallest => choices.smallest(),
        Role::Random => choices.sample(&mut generator(seed, Stream::Sampling, &[step as u64, index as u64])),
    };
    Subnet { resolution, ..subnet }
}

/// The subnets among which subnet `index` of step `step` is chosen: only that of [`subnet_of`], or with it others of
/// like work (AttentiveNAS, §4.1: candidates of one target). The target work is as random as that of a uniform
/// draw.
///
/// # Errors
/// None in practice: the stage's choices lie in its space.
pub fn candidates_of(
    stage: &StageConfig,
    choices: &SearchSpace,
    seed: u64,
    step: usize,
    index: usize,
    resolution: usize,
) -> Result<Vec<Subnet>> {
    let first = subnet_of(stage, choices, seed, step, index, resolution);
    let several = matches!(stage.sampling, Sampling::BestUp | Sampling::WorstUp) && stage.role(index) == Role::Random;
    if !several {
        return Ok(vec![first]);
    }
    // Resolution is the batch's, which need not be one of the space's: work is compared at the smallest.
    let work = |subnet: &Subnet| -> Result<f64> {
        let subnet = Subnet { resolution: choices.resolutions[0], ..subnet.clone() };
        Ok(choices.network(&subnet, 1)?.macs() as f64)
    };
    let target = work(&first)?;
    let mut candidates = vec![first];
    for candidate in 1..stage.candidates() as u64 {
        let mut nearest: Option<(f64, Subnet)> = None;
        for draw in 0..DRAWS {
            let position = [step as u64, index as u64, candidate, draw];
            let subnet = choices.sample(&mut generator(seed, Stream::Candidates, &position));
            let apart = (work(&subnet)? / target - 1.0).abs();
            if nearest.as_ref().is_none_or(|(other, _)| apart < *other) {
                nearest = Some((apart, subnet));
            }
            if apart <= LIKE_WORK {
                break;
            }
        }
        candidates.extend(nearest.map(|(_, subnet)| Subnet { resolution, ..subnet }));
    }
    Ok(candidates)
}

#[cfg(test)]
mod tests {
    use super::super::config::TrainConfig;
    use super::super::taught::Teacher;
    use super::*;
    use crate::space::preset;

    #[test]
    fn draws_depend_on_seed_step_and_index_only_and_stay_in_the_stage() {
        let space = preset("cifar-mbv3").unwrap();
        let config = TrainConfig::preset("progressive", &space).unwrap();
        for stage in &config.stages {
            let choices = stage.choices(&space);
            let mut seen = std::collections::HashSet::new();
            for step in 0..60 {
                let resolution = resolution_of(stage, &choices, 1, step);
                for index in 0..stage.subnets_per_step {
                    let subnet = subnet_of(stage, &choices, 1, step, index, resolution);
                    choices.check(&subnet).unwrap();
                    assert_eq!(subnet.resolution, resolution);
                    assert_eq!(subnet, subnet_of(stage, &choices, 1, step, index, resolution));
                    seen.insert(subnet);
                }
            }
            if stage.name == "largest" {
                assert_eq!(seen.len(), space.resolutions.len());
            } else {
                assert!(seen.len() > 50, "{}: {}", stage.name, seen.len());
            }
        }
    }

    #[test]
    fn a_sandwich_holds_the_largest_and_the_smallest() {
        let space = preset("cifar-mbv3").unwrap();
        let mut stage = TrainConfig::preset("progressive", &space).unwrap().stages.pop().unwrap();
        let of = |stage: &StageConfig, step, index| subnet_of(stage, &space, 1, step, index, 28);
        let extreme = |subnet: Subnet| Subnet { resolution: 28, ..subnet };
        let uniform: Vec<_> = (0..4).map(|index| of(&stage, 5, index)).collect();
        stage.sampling = Sampling::Sandwich;
        let sandwich: Vec<_> = (0..4).map(|index| of(&stage, 5, index)).collect();
        assert_eq!(sandwich[..2], [extreme(space.largest()), extreme(space.smallest())]);
        assert_eq!(sandwich[2..], uniform[2..]);
        let four = stage.relative_cost(&space);
        stage.subnets_per_step = 2;
        assert_eq!((of(&stage, 5, 0), of(&stage, 5, 1)), (extreme(space.largest()), uniform[1].clone()));
        let two = stage.relative_cost(&space);
        stage.teacher = Teacher::InPlace;
        assert!((two - stage.relative_cost(&space) - 1.0).abs() < 1e-12, "the frozen teacher's forward pass");
        assert!(two < four);
    }

    #[test]
    fn candidates_are_of_like_work_and_differ() {
        let space = preset("cifar-mbv3").unwrap();
        let mut stage = TrainConfig::preset("progressive", &space).unwrap().stages.pop().unwrap();
        let cost = stage.relative_cost(&space);
        (stage.sampling, stage.candidates, stage.subnets_per_step) = (Sampling::WorstUp, Some(4), 4);
        let of = |step, index| candidates_of(&stage, &space, 1, step, index, 28).unwrap();
        assert_eq!((of(3, 0).len(), of(3, 1).len()), (1, 1), "the largest and the smallest have no others");
        let work = |subnet: &Subnet| space.network(subnet, 1).unwrap().macs() as f64;
        let (mut near, mut all) = (0, 0);
        for step in 0..30 {
            let candidates = of(step, 2);
            assert_eq!(candidates, of(step, 2));
            assert_eq!((candidates.len(), &candidates[0]), (4, &subnet_of(&stage, &space, 1, step, 2, 28)));
            for other in &candidates[1..] {
                assert!(*other != candidates[0] && other.resolution == 28);
                all += 1;
                near += usize::from((work(other) / work(&candidates[0]) - 1.0).abs() < 2.0 * LIKE_WORK);
            }
        }
        assert!(near * 10 > all * 9, "{near} of {all}");
        let attentive = stage.relative_cost(&space);
        stage.sampling = Sampling::Sandwich;
        assert!(attentive > stage.relative_cost(&space) + 2.0, "{cost} {attentive}");
    }
}
