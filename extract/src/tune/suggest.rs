//! What to try next. It follows from the seed and the earlier trials alone, so that a stopped tuning goes on as if it had not been.

use super::ranges::{Ranges, Values};
use super::trials::Trial;
use crate::gaussian_process::{GaussianProcess, expected_improvement};
use ofa_supernet::seed::{Purpose, generator};
use rand::Rng;
use std::cmp::Ordering;

/// First position of the generators used here.
const TUNE: u64 = 0x74;
/// Points that expected improvement chooses from: random ones, and ones near the best trial.
const RANDOM: usize = 500;
const NEAR: usize = 200;
/// How far a point near the best may lie from it in each hyperparameter, as a part of the range.
const STEP: f64 = 0.1;
/// How many units of the Gaussian process's distance a whole range is. Distances are squared, as the objective is smooth in its numbers.
const RANGE_DISTANCE: f64 = 20.0;

/// How trials are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suggest {
    /// All combinations of the ranges' steps, in order.
    Grid,
    /// Uniformly in the ranges.
    Random,
    /// Random ones first, then the largest expected improvement by a Gaussian process on the earlier trials.
    Bayes,
}

/// The values of trial number `trials.len()`; `None` when a grid is exhausted.
pub fn suggest(strategy: Suggest, ranges: &Ranges, trials: &[Trial], seed: u64) -> Option<Values> {
    let number = trials.len() as u64;
    let mut rng = generator(seed, Purpose::Search, &[TUNE, number]);
    let dimensions = ranges.dimensions();
    let mut random = || -> Vec<f64> { (0..dimensions).map(|_| rng.random_range(0.0..1.0)).collect() };
    match strategy {
        Suggest::Grid => ranges.grid().get(trials.len()).map(|units| ranges.values(units)),
        Suggest::Random => Some(ranges.values(&random())),
        Suggest::Bayes if trials.len() < (2 * dimensions).max(4) => Some(ranges.values(&random())),
        Suggest::Bayes => {
            let points: Vec<Vec<f64>> = trials.iter().map(|trial| ranges.units(&trial.values)).collect();
            let objectives: Vec<f64> = trials.iter().map(|trial| trial.objective).collect();
            let best = (0..trials.len()).max_by(|&a, &b| objectives[a].total_cmp(&objectives[b]))?;
            let mut pool: Vec<Vec<f64>> = (0..RANDOM).map(|_| random()).collect();
            let mut rng = generator(seed, Purpose::Search, &[TUNE, number, 1]);
            pool.extend((0..NEAR).map(|_| {
                // One of them anew, as a small step never leads from one of several values to another.
                let anew = rng.random_range(0..dimensions);
                let near = |(dimension, unit): (usize, &f64)| match dimension == anew {
                    true => rng.random_range(0.0..1.0),
                    false => (unit + rng.random_range(-STEP..STEP)).clamp(0.0, 1.0),
                };
                points[best].iter().enumerate().map(near).collect()
            }));
            // Where a point's values lie, which is what the process has seen of the trials.
            pool.iter_mut().for_each(|units| *units = ranges.units(&ranges.values(units)));
            let Some(process) = GaussianProcess::fit(points.clone(), &objectives, None, distance) else {
                return pool.into_iter().next().map(|units| ranges.values(&units));
            };
            let improvements = process
                .predict(&pool)
                .into_iter()
                .map(|(mean, deviation)| expected_improvement(mean, deviation, objectives[best]));
            let by_improvement = |a: &(f64, Vec<f64>), b: &(f64, Vec<f64>)| -> Ordering { a.0.total_cmp(&b.0) };
            let (_, units) = improvements.zip(pool).max_by(by_improvement)?;
            Some(ranges.values(&units))
        }
    }
}

#[allow(clippy::ptr_arg)] // the process has points of one type, and theirs is a vector
fn distance(a: &Vec<f64>, b: &Vec<f64>) -> f64 {
    RANGE_DISTANCE * a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::super::ranges::Hyperparameter;
    use super::super::trials::Outcome;
    use super::*;

    fn ranges() -> Ranges {
        Ranges::from_toml(
            "[learning_rate]\nlow = 0.001\nhigh = 10.0\nlog = true\n[weight_decay]\nlow = 0.0\nhigh = 0.1\n[batch]\nvalues = [8, 16, 32]\n",
        )
        .unwrap()
    }

    /// Best at a learning rate of 0.3, little decay and a batch of 16.
    fn objective(values: &Values) -> f64 {
        let rate = (values[&Hyperparameter::LearningRate] / 0.3).ln() / 9.2;
        let decay = values[&Hyperparameter::WeightDecay] / 0.1;
        let batch = (values[&Hyperparameter::Batch] / 16.0).ln().abs();
        0.9 - rate.powi(2) - 0.2 * (decay - 0.1).powi(2) - 0.05 * batch
    }

    fn run(strategy: Suggest, count: usize, seed: u64) -> Vec<Trial> {
        let mut trials = Vec::new();
        while trials.len() < count {
            let Some(values) = suggest(strategy, &ranges(), &trials, seed) else { break };
            let objective = objective(&values);
            let trial = trials.len();
            trials.push(Trial { trial, values, curve: vec![], objective, outcome: Outcome::Finished, seconds: 0.0 });
        }
        trials
    }

    fn best(trials: &[Trial]) -> f64 {
        trials.iter().map(|trial| trial.objective).fold(f64::MIN, f64::max)
    }

    #[test]
    fn a_gaussian_process_finds_better_settings_than_chance() {
        let mut won = 0;
        for seed in 0..6 {
            let (bayes, random) = (run(Suggest::Bayes, 25, seed), run(Suggest::Random, 25, seed));
            assert_eq!(bayes, run(Suggest::Bayes, 25, seed), "the same seed, the same trials");
            assert_eq!(bayes[..3], random[..3]);
            won += usize::from(best(&bayes) > best(&random));
            assert!(best(&bayes) > 0.88, "{}", best(&bayes));
        }
        assert!(won >= 5, "{won} of 6");
    }

    #[test]
    fn a_grid_tries_every_combination_once_and_ends() {
        let trials = run(Suggest::Grid, 1000, 0);
        assert_eq!(trials.len(), 5 * 5 * 3);
        for (index, trial) in trials.iter().enumerate() {
            assert!(trials[..index].iter().all(|other| other.values != trial.values));
        }
    }
}
