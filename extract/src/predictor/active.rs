//! Which subnets to measure next: those that the predictor is least sure about, or that may be the best.

use super::ensemble::fit_members;
use super::{FitSettings, Prediction, Sample, metrics};
use crate::gaussian_process::expected_improvement;
use crate::{Error, Result};
use ofa_supernet::seed::{Purpose, generator};
use ofa_supernet::{SearchSpace, Subnet};
use rand::Rng;
use rand::seq::SliceRandom;
use std::collections::HashSet;

/// First position of the generators used here.
const ORDER: u64 = 0x61;
const CANDIDATES: u64 = 0x63;
const DRAW: u64 = 0x64;
/// Candidates for each subnet that is chosen.
const CANDIDATES_EACH: usize = 30;

/// What makes a subnet worth measuring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acquisition {
    /// The deviation of its prediction: for a predictor that is right everywhere.
    Deviation,
    /// Expected improvement over the best measured accuracy: for one that is right about the best.
    Improvement,
}

/// `count` subnets (fewer if there are no more) to measure next, none of them among `samples`, chosen from random ones.
///
/// They are drawn with probability proportional to the square of what makes them worth it, and not the topmost taken, since those are alike
/// (stochastic batch acquisition: Kirsch et al., TMLR 2023). Same arguments, same subnets.
///
/// # Errors
/// As [`super::Predictor::fit`]; a single member.
pub fn next(
    space: &SearchSpace,
    samples: &[Sample],
    count: usize,
    acquisition: Acquisition,
    settings: &FitSettings,
    seed: u64,
) -> Result<Vec<Subnet>> {
    let mut seen: HashSet<Subnet> = samples.iter().map(|s| s.subnet.clone()).collect();
    let mut candidates = Vec::new();
    for position in 0..(CANDIDATES_EACH * count) as u64 {
        let subnet =
            space.sample(&mut generator(seed, Purpose::Predictor, &[CANDIDATES, samples.len() as u64, position]));
        if seen.insert(subnet.clone()) {
            candidates.push(subnet);
        }
    }
    let chosen = choose(space, samples, &candidates, count, acquisition, settings, seed)?;
    Ok(chosen.into_iter().map(|index| candidates[index].clone()).collect())
}

/// Indices of `count` of the `candidates`.
fn choose(
    space: &SearchSpace,
    samples: &[Sample],
    candidates: &[Subnet],
    count: usize,
    acquisition: Acquisition,
    settings: &FitSettings,
    seed: u64,
) -> Result<Vec<usize>> {
    settings.validate()?;
    if settings.members < 2 || samples.len() < 2 {
        return Err(Error::Predictor("choosing what to measure needs two members and two samples at least".into()));
    }
    let mut samples = samples.to_vec();
    samples.shuffle(&mut generator(seed, Purpose::Predictor, &[ORDER]));
    let (predictor, _) = fit_members(space, &samples, settings, seed, &mut |_, _, _| {})?;
    let best = samples.iter().map(|s| s.accuracy).fold(0.0, f64::max);
    let worth = |prediction: &Prediction| match acquisition {
        // The noise is the same for all; what can be learnt is the rest.
        Acquisition::Deviation => (prediction.deviation.powi(2) - f64::from(predictor.noise).powi(2)).max(0.0).sqrt(),
        Acquisition::Improvement => expected_improvement(prediction.accuracy, prediction.deviation, best),
    };
    let mut rng = generator(seed, Purpose::Predictor, &[DRAW, samples.len() as u64]);
    let predictions = predictor.predict_with_deviation(candidates)?;
    let mut drawn: Vec<(f64, usize)> = predictions
        .iter()
        .enumerate()
        // Largest of logarithm + Gumbel noise: a draw without replacement.
        .map(|(index, p)| (2.0 * worth(p).max(1e-12).ln() - (-(rng.random::<f64>().max(1e-300)).ln()).ln(), index))
        .collect();
    drawn.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    Ok(drawn.into_iter().take(count).map(|(_, index)| index).collect())
}

/// A point of the learning curve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CurvePoint {
    /// Samples fitted on.
    pub samples: usize,
    /// Kendall's tau on the held-out fifth when they are random, mean over repetitions.
    pub random: f64,
    /// The same when they were chosen, round by round.
    pub chosen: f64,
}

/// How good a predictor fewer of the measured `samples` would have given: from one to eight eighths of four fifths of them, once drawn at random
/// and once chosen by `acquisition` from what is left (but for the first eighth), judged on the same held-out fifth; means over `repetitions`
/// splits. Nothing is measured anew. `progress` gets fits done and all fits.
///
/// # Errors
/// As [`super::Predictor::fit`]; fewer than 80 samples.
pub fn curve(
    space: &SearchSpace,
    samples: &[Sample],
    acquisition: Acquisition,
    settings: &FitSettings,
    repetitions: u64,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<CurvePoint>> {
    let samples = super::distinct(samples)?;
    if samples.len() < 80 {
        return Err(Error::Predictor(format!(
            "a learning curve needs 80 samples or more, there are {}",
            samples.len()
        )));
    }
    let pool_size = samples.len() - samples.len() / 5;
    let round = pool_size / 8;
    let sizes: Vec<usize> = (1..=8).map(|eighth| if eighth == 8 { pool_size } else { eighth * round }).collect();
    let mut points: Vec<CurvePoint> =
        sizes.iter().map(|&samples| CurvePoint { samples, random: 0.0, chosen: 0.0 }).collect();
    let total = repetitions as usize * sizes.len() * 2;
    let mut done = 0;
    for repetition in 0..repetitions {
        let mut all = samples.clone();
        all.shuffle(&mut generator(repetition, Purpose::Predictor, &[ORDER, 1]));
        let (held_out, pool) = all.split_at(samples.len() / 5);
        let subnets: Vec<Subnet> = held_out.iter().map(|s| s.subnet.clone()).collect();
        let measured: Vec<f64> = held_out.iter().map(|s| s.accuracy).collect();
        let mut tau = |part: &[Sample]| -> Result<f64> {
            let (predictor, _) = fit_members(space, part, settings, repetition, &mut |_, _, _| {})?;
            done += 1;
            progress(done, total);
            Ok(metrics::kendall_tau(&measured, &predictor.predict(&subnets)?).unwrap_or(0.0))
        };
        // Places in the pool, ascending: the same samples in the same order give the same predictor, however they were found.
        let mut chosen: Vec<usize> = (0..round).collect();
        for (point, &size) in points.iter_mut().zip(&sizes) {
            let part = |places: &[usize]| -> Vec<Sample> { places.iter().map(|&place| pool[place].clone()).collect() };
            if chosen.len() < size {
                let rest: Vec<usize> = (0..pool.len()).filter(|place| !chosen.contains(place)).collect();
                let candidates: Vec<Subnet> = rest.iter().map(|&place| pool[place].subnet.clone()).collect();
                let count = size - chosen.len();
                let taken = choose(space, &part(&chosen), &candidates, count, acquisition, settings, repetition)?;
                chosen.extend(taken.into_iter().map(|index| rest[index]));
                chosen.sort_unstable();
            }
            point.random += tau(&pool[..size])? / repetitions as f64;
            point.chosen += tau(&part(&chosen))? / repetitions as f64;
        }
    }
    Ok(points)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Accuracy by size, known for small subnets alone.
    fn small_ones() -> (SearchSpace, Vec<Sample>) {
        let space = SearchSpace::named("tiny").unwrap();
        let size = |s: &Subnet| s.resolution as f64 / 32.0 + s.blocks().map(|b| b.expand.value()).sum::<f64>() / 16.0;
        let drawn = (0..400).map(|i| space.sample(&mut generator(2, Purpose::Sampling, &[i])));
        let samples = drawn.map(|subnet| Sample { accuracy: 0.3 + 0.2 * size(&subnet), subnet });
        let samples = samples.filter(|s| s.subnet.resolution == 16 && s.subnet.blocks().count() <= 3).collect();
        (space, samples)
    }

    #[test]
    fn chooses_new_subnets_and_those_that_may_be_best() {
        let (space, samples) = small_ones();
        let settings = FitSettings { hidden: 60, learning_rate: 3e-3, ..FitSettings::default() };
        let choose = |acquisition, seed| next(&space, &samples, 12, acquisition, &settings, seed).unwrap();
        let chosen = choose(Acquisition::Improvement, 1);
        assert_eq!(chosen, choose(Acquisition::Improvement, 1));
        assert_ne!(chosen, choose(Acquisition::Improvement, 2));
        assert!(chosen.iter().all(|subnet| samples.iter().all(|s| s.subnet != *subnet)));
        let blocks =
            |list: &[Subnet]| list.iter().map(|s| s.blocks().count()).sum::<usize>() as f64 / list.len() as f64;
        // Accuracy grew with blocks: the best are looked for where there are most. A random subnet has 3 blocks on average.
        assert!(chosen.len() == 12 && blocks(&chosen) > 3.1, "{chosen:?}");
        let unsure = choose(Acquisition::Deviation, 1);
        // Nothing is known of resolutions but 16.
        let known = unsure.iter().filter(|s| s.resolution == 16).count();
        assert!(known <= 5, "{unsure:?}");
        let single = FitSettings { members: 1, ..settings };
        assert!(next(&space, &samples, 2, Acquisition::Deviation, &single, 0).is_err());
    }

    #[test]
    fn the_curve_rises_with_samples() {
        let space = SearchSpace::named("tiny").unwrap();
        let drawn = (0..240).map(|i| space.sample(&mut generator(2, Purpose::Sampling, &[i])));
        let samples: Vec<Sample> = drawn
            .map(|subnet| {
                let size: f64 = subnet.blocks().map(|b| b.expand.value() + 0.5 * b.kernel as f64).sum();
                Sample { accuracy: 0.3 + 0.02 * size + 0.002 * subnet.resolution as f64, subnet }
            })
            .collect();
        let settings = FitSettings { hidden: 40, learning_rate: 3e-3, members: 2, ..FitSettings::default() };
        let mut fits = 0;
        let points = curve(&space, &samples, Acquisition::Deviation, &settings, 1, &mut |_, total| {
            fits += 1;
            assert_eq!(total, 16);
        });
        let points = points.unwrap();
        assert_eq!((fits, points.len()), (16, 8));
        let (first, last) = (points[0], points[7]);
        assert!(last.random > first.random && last.chosen > first.chosen, "{points:?}");
        // All samples are all samples.
        assert_eq!(last.random, last.chosen);
        assert!(curve(&space, &samples[..50], Acquisition::Deviation, &settings, 1, &mut |_, _| {}).is_err());
    }
}
