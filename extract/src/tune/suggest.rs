//! Values of the next trial. They depend only on the seed and the earlier trials, so that a stopped tuning resumes as
//! if it had not stopped.

use super::ranges::{Ranges, Values};
use super::trials::Trial;
use crate::gaussian_process::{GaussianProcess, expected_improvement};
use ofa_supernet::seed::{Stream, generator};
use rand::Rng;
use std::cmp::Ordering;

/// Random points among which expected improvement chooses.
const RANDOM: usize = 500;
/// Points near the best trial among which expected improvement chooses.
const NEAR: usize = 200;
/// Largest distance of a point near the best from it in each hyperparameter, as a fraction of the range.
const STEP: f64 = 0.1;
/// Distance between the two ends of a range, in the Gaussian process's unit. Distances are squared, since the objective
/// is smooth in its numbers.
const RANGE_DISTANCE: f64 = 20.0;

/// Strategy that suggests trials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrialStrategy {
    /// All combinations of the ranges' steps, in order.
    Grid,
    /// Uniform draws from the ranges.
    Random,
    /// Random values first, then the largest expected improvement by a Gaussian process fitted to the earlier trials.
    Bayes,
}

impl TrialStrategy {
    /// Every strategy, with its name and a line of help.
    pub const TABLE: &[(TrialStrategy, &str, &str)] = &[
        (TrialStrategy::Grid, "grid", "All combinations of the ranges' steps"),
        (TrialStrategy::Random, "random", "Uniformly in the ranges"),
        (TrialStrategy::Bayes, "bayes", "A Gaussian process on the earlier trials, and expected improvement"),
    ];
}

/// Suggests the values of trial number `trials.len()`, which no earlier trial had; `None` if all values have been
/// tried.
pub fn suggest(strategy: TrialStrategy, ranges: &Ranges, trials: &[Trial], seed: u64) -> Option<Values> {
    let tried: Vec<&Values> = trials.iter().map(|trial| &trial.values).collect();
    if strategy == TrialStrategy::Grid {
        return ranges.grid().map(|units| ranges.values(&units)).find(|values| !tried.contains(&values));
    }
    let different = tried.iter().enumerate().filter(|(index, values)| !tried[..*index].contains(values)).count();
    if ranges.count().is_some_and(|count| different >= count) {
        return None;
    }
    let number = trials.len() as u64;
    let mut rng = generator(seed, Stream::Trial, &[number]);
    let dimensions = ranges.dimensions();
    let mut random = || -> Vec<f64> { (0..dimensions).map(|_| rng.random_range(0.0..1.0)).collect() };
    let first = random();
    if strategy == TrialStrategy::Bayes && trials.len() >= (2 * dimensions).max(4) {
        let pool = [vec![first], (1..RANDOM).map(|_| random()).collect()].concat();
        if let Some(values) = most_promising(ranges, trials, pool, seed).filter(|values| !tried.contains(&values)) {
            return Some(values);
        }
        // The whole pool has been tried, so few points are left: one of them at random.
        return untried(ranges, &tried, random);
    }
    match ranges.values(&first) {
        values if tried.contains(&&values) => untried(ranges, &tried, random),
        values => Some(values),
    }
}

/// Draws points until one is new; there must be a new one.
fn untried(ranges: &Ranges, tried: &[&Values], mut random: impl FnMut() -> Vec<f64>) -> Option<Values> {
    std::iter::repeat_with(|| ranges.values(&random())).find(|values| !tried.contains(&values))
}

/// The untried point of `pool` and of points near the best trial that has the largest expected improvement.
fn most_promising(ranges: &Ranges, trials: &[Trial], mut pool: Vec<Vec<f64>>, seed: u64) -> Option<Values> {
    let points: Vec<Vec<f64>> = trials.iter().map(|trial| ranges.units(&trial.values)).collect();
    let objectives: Vec<f64> = trials.iter().map(|trial| trial.objective).collect();
    let best = (0..trials.len()).max_by(|&a, &b| objectives[a].total_cmp(&objectives[b]))?;
    let mut rng = generator(seed, Stream::TrialNearBest, &[trials.len() as u64]);
    let dimensions = ranges.dimensions();
    pool.extend((0..NEAR).map(|_| {
        // One hyperparameter is drawn again, since a small step never changes a value of a list.
        let redrawn = rng.random_range(0..dimensions);
        let near = |(dimension, unit): (usize, &f64)| match dimension == redrawn {
            true => rng.random_range(0.0..1.0),
            false => (unit + rng.random_range(-STEP..STEP)).clamp(0.0, 1.0),
        };
        points[best].iter().enumerate().map(near).collect()
    }));
    // Each point moves to the position of its values, as the points of the trials did.
    pool.iter_mut().for_each(|units| *units = ranges.units(&ranges.values(units)));
    pool.retain(|units| !points.contains(units));
    let Some(process) = GaussianProcess::fit(points, &objectives, None, distance) else {
        return pool.into_iter().next().map(|units| ranges.values(&units));
    };
    if pool.is_empty() {
        return None;
    }
    let improvements = process
        .predict(&pool)
        .into_iter()
        .map(|(mean, deviation)| expected_improvement(mean, deviation, objectives[best]));
    let by_improvement = |a: &(f64, Vec<f64>), b: &(f64, Vec<f64>)| -> Ordering { a.0.total_cmp(&b.0) };
    let (_, units) = improvements.zip(pool).max_by(by_improvement)?;
    Some(ranges.values(&units))
}

#[allow(clippy::ptr_arg)] // Points of the process are vectors.
fn distance(a: &Vec<f64>, b: &Vec<f64>) -> f64 {
    RANGE_DISTANCE * a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::super::ranges::Hyperparameter;
    use super::super::trials::Outcome;
    use super::*;

    fn ranges() -> Ranges {
        Ranges::of_text(
            "[learning_rate]\nlow = 0.001\nhigh = 10.0\nlog = true\n[weight_decay]\nlow = 0.0\nhigh = 0.1\n[batch]\nvalues = [8, 16, 32]\n",
        )
    }

    /// Objective that is best at a learning rate of 0.3, little decay and a batch of 16.
    fn objective(values: &Values) -> f64 {
        let rate = (values[&Hyperparameter::LearningRate] / 0.3).ln() / 9.2;
        let decay = values[&Hyperparameter::WeightDecay] / 0.1;
        let batch = (values[&Hyperparameter::Batch] / 16.0).ln().abs();
        0.9 - rate.powi(2) - 0.2 * (decay - 0.1).powi(2) - 0.05 * batch
    }

    fn run(strategy: TrialStrategy, count: usize, seed: u64) -> Vec<Trial> {
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
            let (bayes, random) = (run(TrialStrategy::Bayes, 25, seed), run(TrialStrategy::Random, 25, seed));
            assert_eq!(bayes, run(TrialStrategy::Bayes, 25, seed), "the same seed, the same trials");
            assert_eq!(bayes[..3], random[..3]);
            won += usize::from(best(&bayes) > best(&random));
            assert!(best(&bayes) > 0.88, "{}", best(&bayes));
        }
        assert!(won >= 5, "{won} of 6");
    }

    fn trial(number: usize, values: Values) -> Trial {
        Trial { trial: number, values, curve: vec![], objective: 0.5, outcome: Outcome::Finished, seconds: 0.0 }
    }

    fn all_trials(strategy: TrialStrategy, ranges: &Ranges, mut trials: Vec<Trial>) -> Vec<Trial> {
        while let Some(values) = suggest(strategy, ranges, &trials, 3) {
            assert!(trials.iter().all(|other| other.values != values), "{values:?} twice");
            trials.push(trial(trials.len(), values));
        }
        trials
    }

    #[test]
    fn a_grid_tries_every_combination_once_and_ends() {
        assert_eq!(all_trials(TrialStrategy::Grid, &ranges(), vec![]).len(), 5 * 5 * 3);
        let large = "[dropout]\nlow = 0.0\nhigh = 0.1\nsteps = 1000\n[momentum]\nlow = 0.0\nhigh = 0.9\nsteps = 1000\n\
                     [label_smoothing]\nlow = 0.0\nhigh = 0.9\nsteps = 1000\n[weight_decay]\nlow = 0.0\nhigh = 0.1\nsteps = 1000\n";
        let first = suggest(TrialStrategy::Grid, &Ranges::of_text(large), &[], 0).unwrap();
        assert!(first.values().all(|value| *value == 0.0));
    }

    #[test]
    fn a_grid_after_other_trials_skips_those_and_nothing_else() {
        let ranges = Ranges::of_text("[batch]\nvalues = [8, 16, 32]\n[dropout]\nvalues = [0.0, 0.5]\n");
        let mut trials = Vec::new();
        for number in 0..3 {
            let values = suggest(TrialStrategy::Random, &ranges, &trials, 3).unwrap();
            trials.push(trial(number, values));
        }
        assert_eq!(all_trials(TrialStrategy::Grid, &ranges, trials.clone()).len(), 6);
        // A random point of an interval is not on the grid.
        let ranges = Ranges::of_text("[dropout]\nlow = 0.0\nhigh = 0.5\nsteps = 3\n");
        let trials = vec![trial(0, suggest(TrialStrategy::Random, &ranges, &[], 3).unwrap())];
        assert_eq!(all_trials(TrialStrategy::Grid, &ranges, trials).len(), 4);
        // Steps of a grid that round to the same whole number are tried once.
        let ranges = Ranges::of_text("[batch]\nlow = 8\nhigh = 10\n");
        assert_eq!(all_trials(TrialStrategy::Grid, &ranges, vec![]).len(), 3);
    }

    #[test]
    fn chance_and_a_gaussian_process_try_every_point_once_and_end() {
        let ranges = Ranges::of_text("[batch]\nlow = 8\nhigh = 11\n[dropout]\nvalues = [0.0, 0.25, 0.5]\n");
        for strategy in [TrialStrategy::Random, TrialStrategy::Bayes] {
            assert_eq!(all_trials(strategy, &ranges, vec![]).len(), 12);
        }
        let single = Ranges::of_text("[batch]\nvalues = [8]\n");
        assert_eq!(all_trials(TrialStrategy::Bayes, &single, vec![]).len(), 1);
        // Earlier versions tried values twice.
        let twice = vec![trial(0, single.values(&[0.5])), trial(1, single.values(&[0.5]))];
        assert_eq!(all_trials(TrialStrategy::Random, &single, twice).len(), 2);
    }
}
