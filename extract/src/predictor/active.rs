//! Active sampling: choice of the subnets to measure next, either those that reduce the deviation of all predictions
//! most, or those that may be the best.

use super::features::Features;
use super::linear::{Basis, add_square};
use super::{FitSettings, Prediction, Predictor, Sample, metrics};
use crate::cholesky::{Cholesky, dot};
use crate::gaussian_process::expected_improvement;
use crate::{Error, Result};
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::{SearchSpace, Subnet};
use rand::Rng;
use rand::seq::SliceRandom;
use rayon::prelude::*;
use std::collections::HashSet;

/// Number of random subnets over which the deviation is averaged.
const TYPICAL: u64 = 1000;
/// Candidates per chosen subnet.
const CANDIDATES_EACH: usize = 30;

/// Acquisition function: the value of measuring a subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acquisition {
    /// Reduction of the deviation of predictions for random subnets, for a predictor that is right everywhere. It
    /// depends only on the subnets, so it can choose the very first ones.
    Deviation,
    /// Expected improvement over the best measured accuracy, for a predictor that is right about the best subnets.
    Improvement,
}

impl Acquisition {
    /// Every acquisition function, with its name and a line of help.
    pub const TABLE: &[(Acquisition, &str, &str)] = &[
        (
            Acquisition::Deviation,
            "deviation",
            "Largest reduction of the deviation of all predictions; from the third sample on",
        ),
        (
            Acquisition::Improvement,
            "improvement",
            "Expected improvement over the best measured accuracy; after a random quarter of the samples",
        ),
    ];
}

/// Chooses `count` subnets (fewer if there are no more) to measure next, none of them among `samples`, from random
/// candidates. Equal arguments give equal subnets.
///
/// # Errors
/// Errors of [`super::Predictor::fit`]; a single member, or fewer than two samples, for [`Acquisition::Improvement`].
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
        let subnet = space.sample(&mut generator(seed, Stream::ActiveCandidates, &[samples.len() as u64, position]));
        if seen.insert(subnet.clone()) {
            candidates.push(subnet);
        }
    }
    let chosen = choose(space, samples, &candidates, count, acquisition, settings, seed)?;
    Ok(chosen.into_iter().map(|index| candidates[index].clone()).collect())
}

/// Chooses `count` of the `candidates` and returns their indices.
fn choose(
    space: &SearchSpace,
    samples: &[Sample],
    candidates: &[Subnet],
    count: usize,
    acquisition: Acquisition,
    settings: &FitSettings,
    seed: u64,
) -> Result<Vec<usize>> {
    match acquisition {
        Acquisition::Deviation => least_deviation(space, samples, candidates, count, seed),
        Acquisition::Improvement => most_improvement(space, samples, candidates, count, settings, seed),
    }
}

/// State of a candidate `x` while others are chosen. `A` is the precision of the linear part's weights, `B B^T` the
/// second moment of random subnets.
struct Candidate {
    index: usize,
    row: Vec<f64>,
    /// `A^-1 x`
    solved: Vec<f64>,
    /// `B^T A^-1 x`
    seen_from_all: Vec<f64>,
}

/// Chooses, one after the other, the candidate whose measurement leaves the least mean variance of the predictions for
/// random subnets, under the linear part of the predictor (Cohn, Ghahramani and Jordan, JAIR 1996, §4; in experimental
/// design: I-optimality).
///
/// The spread of the network's members is less informative: they differ more by their initial weights than by the
/// samples that they have not seen.
fn least_deviation(
    space: &SearchSpace,
    samples: &[Sample],
    candidates: &[Subnet],
    count: usize,
    seed: u64,
) -> Result<Vec<usize>> {
    let (basis, features) = (Basis::new(space), Features::new(space));
    // The last entry stands for the mean accuracy, about which the prior says almost nothing.
    let row = |subnet: &Subnet| -> Result<Vec<f64>> {
        let mut row = basis.of(&features.of(subnet)?);
        row.push(10.0);
        Ok(row)
    };
    let width = basis.width() + 1;
    let unit = |value: f64| -> Vec<f64> {
        let mut matrix = vec![0.0; width * width];
        matrix.iter_mut().step_by(width + 1).for_each(|diagonal| *diagonal = value);
        matrix
    };
    let factor = |matrix| Cholesky::new(matrix, width).ok_or_else(|| Error::Internal("a singular design".into()));
    // Prior and noise: a measurement errs by as much as a kernel size may contribute.
    let mut precision = unit(1.0);
    for sample in samples {
        add_square(&mut precision, &row(&sample.subnet)?);
    }
    let precision = factor(precision)?;
    let mut moment = unit(1e-6);
    for position in 0..TYPICAL {
        let typical = space.sample(&mut generator(seed, Stream::ActiveTypical, &[position]));
        add_square(&mut moment, &row(&typical)?);
    }
    let moment = factor(moment)?;
    let seen_from_all = |solved: &[f64]| -> Vec<f64> {
        let mut product = vec![0.0; width];
        for (i, value) in solved.iter().enumerate() {
            product.iter_mut().zip(moment.row(i)).for_each(|(sum, entry)| *sum += value * entry);
        }
        product
    };
    let mut candidates = candidates
        .par_iter()
        .enumerate()
        .map(|(index, subnet)| {
            let row = row(subnet)?;
            let solved = precision.solve(row.clone());
            Ok(Candidate { index, seen_from_all: seen_from_all(&solved), row, solved })
        })
        .collect::<Result<Vec<Candidate>>>()?;
    let mut chosen = Vec::new();
    while chosen.len() < count && !candidates.is_empty() {
        let gain = |c: &Candidate| dot(&c.seen_from_all, &c.seen_from_all) / (1.0 + dot(&c.row, &c.solved));
        let gains: Vec<f64> = candidates.par_iter().map(gain).collect();
        let best = (0..gains.len()).reduce(|best, next| if gains[next] > gains[best] { next } else { best });
        let taken = candidates.swap_remove(best.unwrap_or(0));
        let scale = 1.0 / (1.0 + dot(&taken.row, &taken.solved));
        candidates.par_iter_mut().for_each(|candidate| {
            let shared = scale * dot(&candidate.row, &taken.solved);
            candidate.solved.iter_mut().zip(&taken.solved).for_each(|(v, t)| *v -= shared * t);
            candidate.seen_from_all.iter_mut().zip(&taken.seen_from_all).for_each(|(v, t)| *v -= shared * t);
        });
        chosen.push(taken.index);
    }
    Ok(chosen)
}

/// Draws candidates with probability proportional to the square of the expected improvement. The best ones are not
/// simply taken, since they are alike (stochastic batch acquisition: Kirsch et al., TMLR 2023).
fn most_improvement(
    space: &SearchSpace,
    samples: &[Sample],
    candidates: &[Subnet],
    count: usize,
    settings: &FitSettings,
    seed: u64,
) -> Result<Vec<usize>> {
    settings.validate()?;
    if samples.len() < 2 || (settings.members < 2 && !settings.method.is_process(samples.len())) {
        return Err(Error::Predictor("expected improvement needs two members and two samples at least".into()));
    }
    let mut samples = samples.to_vec();
    samples.shuffle(&mut generator(seed, Stream::ActiveOrder, &[]));
    let (predictor, _) = Predictor::fit_all(space, &samples, settings, seed, &mut |_, _, _| {})?;
    let best = samples.iter().map(|s| s.accuracy).fold(0.0, f64::max);
    let worth = |prediction: &Prediction| expected_improvement(prediction.accuracy, prediction.deviation, best);
    let mut rng = generator(seed, Stream::ActiveImprovement, &[samples.len() as u64]);
    let predictions = predictor.predict_with_deviation(candidates)?;
    let mut drawn: Vec<(f64, usize)> = predictions
        .iter()
        .enumerate()
        // Taking the largest sums of logarithm and Gumbel noise draws without replacement.
        .map(|(index, p)| (2.0 * worth(p).max(1e-12).ln() - (-(rng.random::<f64>().max(1e-300)).ln()).ln(), index))
        .collect();
    drawn.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    Ok(drawn.into_iter().take(count).map(|(_, index)| index).collect())
}

/// Fewest distinct samples for a learning curve.
pub const FEWEST_CURVE_SAMPLES: usize = 80;

/// Point of the learning curve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CurvePoint {
    /// Number of samples that the predictor is fitted to.
    pub samples: usize,
    /// Kendall's tau on the held-out fifth with random samples, mean over repetitions.
    pub random: f64,
    /// Kendall's tau on the held-out fifth with samples chosen round by round, mean over repetitions.
    pub chosen: f64,
}

/// Learning curve: quality of predictors fitted to one to eight eighths of four fifths of the measured `samples`, once
/// drawn at random and once chosen by `acquisition` from the others (by expected improvement only after the first
/// eighth), judged on the same held-out fifth; means over `repetitions` splits. Nothing is measured. `progress`
/// receives the number of finished fits and of all fits.
///
/// # Errors
/// Errors of [`super::Predictor::fit`]; fewer than [`FEWEST_CURVE_SAMPLES`] samples.
pub fn curve(
    space: &SearchSpace,
    samples: &[Sample],
    acquisition: Acquisition,
    settings: &FitSettings,
    repetitions: u64,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<CurvePoint>> {
    let samples = super::distinct(samples)?;
    if samples.len() < FEWEST_CURVE_SAMPLES {
        return Err(Error::Predictor(format!(
            "a learning curve needs at least {FEWEST_CURVE_SAMPLES} samples, but there are {}; measure more",
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
        all.shuffle(&mut generator(repetition, Stream::CurveOrder, &[]));
        let (held_out, pool) = all.split_at(samples.len() / 5);
        let subnets: Vec<Subnet> = held_out.iter().map(|s| s.subnet.clone()).collect();
        let measured: Vec<f64> = held_out.iter().map(|s| s.accuracy).collect();
        let mut tau = |part: &[Sample]| -> Result<f64> {
            let (predictor, _) = Predictor::fit_all(space, part, settings, repetition, &mut |_, _, _| {})?;
            done += 1;
            progress(done, total);
            Ok(metrics::kendall_tau(&measured, &predictor.predict(&subnets)?).unwrap_or(0.0))
        };
        // Indices in the pool, ascending: the same samples give the same predictor, whatever the order in which they
        // were chosen.
        let given = if acquisition == Acquisition::Improvement { round } else { 0 };
        let mut chosen: Vec<usize> = (0..given).collect();
        for (point, &size) in points.iter_mut().zip(&sizes) {
            let part =
                |indices: &[usize]| -> Vec<Sample> { indices.iter().map(|&index| pool[index].clone()).collect() };
            if chosen.len() < size {
                let rest: Vec<usize> = (0..pool.len()).filter(|index| !chosen.contains(index)).collect();
                let candidates: Vec<Subnet> = rest.iter().map(|&index| pool[index].subnet.clone()).collect();
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
    use super::super::Method;
    use super::*;

    /// Samples whose accuracy grows with size, of small subnets only.
    fn small_ones() -> (SearchSpace, Vec<Sample>) {
        let space = SearchSpace::named("tiny").unwrap();
        let size = |s: &Subnet| s.resolution as f64 / 32.0 + s.blocks().map(|b| b.expand.value()).sum::<f64>() / 16.0;
        let drawn = (0..400).map(|i| space.sample(&mut generator(2, Stream::Sampling, &[i])));
        let samples = drawn.map(|subnet| {
            let accuracy = 0.3 + 0.2 * size(&subnet);
            Sample::new(subnet, accuracy)
        });
        let samples = samples.filter(|s| s.subnet.resolution == 16 && s.subnet.blocks().count() <= 3).collect();
        (space, samples)
    }

    #[test]
    fn chooses_new_subnets_and_those_that_may_be_best() {
        let (space, samples) = small_ones();
        let settings =
            FitSettings { method: Method::Ensemble, hidden: 60, learning_rate: 3e-3, ..FitSettings::default() };
        let choose = |acquisition, seed| next(&space, &samples, 12, acquisition, &settings, seed).unwrap();
        let chosen = choose(Acquisition::Improvement, 1);
        assert_eq!(chosen, choose(Acquisition::Improvement, 1));
        assert_ne!(chosen, choose(Acquisition::Improvement, 2));
        assert!(chosen.iter().all(|subnet| samples.iter().all(|s| s.subnet != *subnet)));
        let blocks =
            |list: &[Subnet]| list.iter().map(|s| s.blocks().count()).sum::<usize>() as f64 / list.len() as f64;
        // Accuracy grew with blocks, so the best subnets have many; a random subnet has 3 on average.
        assert!(chosen.len() == 12 && blocks(&chosen) > 3.1, "{chosen:?}");
        let unsure = choose(Acquisition::Deviation, 1);
        // No resolution but 16 is known.
        let known = unsure.iter().filter(|s| s.resolution == 16).count();
        assert!(known <= 5, "{unsure:?}");
        let single = FitSettings { members: 1, ..settings };
        assert!(next(&space, &samples, 2, Acquisition::Improvement, &single, 0).is_err());
        assert_eq!(next(&space, &[], 2, Acquisition::Deviation, &single, 0).unwrap().len(), 2);
    }

    #[test]
    fn chosen_ones_leave_less_variance_than_any_random_ones() {
        let space = SearchSpace::named("mbv3-w1.0").unwrap();
        let (basis, features) = (Basis::new(&space), Features::new(&space));
        let row = |subnet: &Subnet| -> Vec<f64> {
            let mut row = basis.of(&features.of(subnet).unwrap());
            row.push(10.0);
            row
        };
        let drawn =
            |from: u64| (0..60).map(move |i| from + i).map(|i| space.sample(&mut generator(9, Stream::Sampling, &[i])));
        let judged: Vec<Vec<f64>> = drawn(0).map(|s| row(&s)).collect();
        // The definition: prior, noise and every measurement add up to the precision.
        let variance = |subnets: &[Subnet]| -> f64 {
            let width = basis.width() + 1;
            let mut precision = vec![0.0; width * width];
            precision.iter_mut().step_by(width + 1).for_each(|diagonal| *diagonal = 1.0);
            subnets.iter().for_each(|subnet| add_square(&mut precision, &row(subnet)));
            let factor = Cholesky::new(precision, width).unwrap();
            judged.iter().map(|row| factor.forward(row.clone())).map(|v| dot(&v, &v)).sum()
        };
        let settings = FitSettings::default();
        let known: Vec<Sample> = drawn(60).take(20).map(|subnet| Sample::new(subnet, 0.5)).collect();
        let with_known =
            |new: Vec<Subnet>| -> Vec<Subnet> { known.iter().map(|s| s.subnet.clone()).chain(new).collect() };
        let chosen = with_known(next(&space, &known, 60, Acquisition::Deviation, &settings, 1).unwrap());
        let least = (2..12).map(|i| variance(&with_known(drawn(60 * i).collect()))).fold(f64::INFINITY, f64::min);
        assert!(chosen.len() == 80 && variance(&chosen) < 0.8 * least, "{} {least}", variance(&chosen));
    }

    #[test]
    fn the_curve_rises_with_samples() {
        let space = SearchSpace::named("tiny").unwrap();
        let drawn = (0..240).map(|i| space.sample(&mut generator(2, Stream::Sampling, &[i])));
        let samples: Vec<Sample> = drawn
            .map(|subnet| {
                let size: f64 = subnet.blocks().map(|b| b.expand.value() + 0.5 * b.kernel as f64).sum();
                let accuracy = 0.3 + 0.02 * size + 0.002 * subnet.resolution as f64;
                Sample::new(subnet, accuracy)
            })
            .collect();
        let settings = FitSettings {
            method: Method::Ensemble,
            hidden: 40,
            learning_rate: 3e-3,
            members: 2,
            ..FitSettings::default()
        };
        let mut fits = 0;
        let points = curve(&space, &samples, Acquisition::Deviation, &settings, 1, &mut |_, total| {
            fits += 1;
            assert_eq!(total, 16);
        });
        let points = points.unwrap();
        assert_eq!((fits, points.len()), (16, 8));
        let (first, last) = (points[0], points[7]);
        assert!(last.random > first.random && last.chosen > first.chosen, "{points:?}");
        // All samples are the same, chosen or random.
        assert_eq!(last.random, last.chosen);
        assert!(curve(&space, &samples[..50], Acquisition::Deviation, &settings, 1, &mut |_, _| {}).is_err());
    }
}
