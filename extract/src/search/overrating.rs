//! By how much a search overrates what it chooses: the best of very many uncertain predictions is an overrated one.
//!
//! Two predictors are fitted to the halves of the samples. What a search with one of them chooses is judged by the
//! other, whose errors are independent of that choice. The difference is counted in standard deviations of the
//! prediction: these shrink as the samples grow, the number of them by which a choice is overrated hardly does. A judge
//! of fewer samples would be biased: it draws all predictions to their mean.

use super::{Limit, Memetic, Problem, SearchSettings, search_all};
use crate::predictor::{Predictor, Sample};
use crate::{Constraint, Error, Measures, Result};
use ofa_supernet::Subnet;
use ofa_supernet::seed::{Stream, generator};
use rand::seq::SliceRandom;

/// Random splits into halves.
const SPLITS: u64 = 4;
/// Most samples of a half: with more the fits take longer, and say nothing else.
const HALF: usize = 250;
/// Limits on multiply-accumulates, and most evaluations of each search for all of them.
const LIMITS: usize = 8;
const EVALUATIONS: usize = 20_000;
/// Largest overrating that is believed: the deviations of a predictor of few samples may be far too small.
const LARGEST: f64 = 4.0;

/// Mean overrating of the subnets that searches with `predictor` choose, in standard deviations of the prediction;
/// `None` where predictions have no deviation, or a half of `samples` has no predictor. `progress` gets the halves done
/// and all. Equal input and seed give equal bits.
///
/// # Errors
/// A subnet outside the predictor's space.
pub fn overrating(
    predictor: &Predictor,
    samples: &[Sample],
    seed: u64,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Option<f64>> {
    overrating_of(predictor, samples, seed, EVALUATIONS, progress)
}

/// [`overrating`] by searches of at most `evaluations`.
fn overrating_of(
    predictor: &Predictor,
    samples: &[Sample],
    seed: u64,
    evaluations: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Option<f64>> {
    if !predictor.has_deviation() {
        return Ok(None);
    }
    let fit = |part: &[Sample]| match predictor.refit(part, seed) {
        Ok(predictor) => Ok(Some(predictor)),
        Err(Error::Predictor(_)) => Ok(None),
        Err(error) => Err(error),
    };
    let (mut differences, mut doubts) = (0.0, 0.0);
    for split in 0..SPLITS {
        let mut samples = samples.to_vec();
        samples.shuffle(&mut generator(seed, Stream::HeldOut, &[1, split]));
        let half = HALF.min(samples.len() / 2);
        let (Some(one), Some(other)) = (fit(&samples[..half])?, fit(&samples[half..2 * half])?) else {
            return Ok(None);
        };
        for (half, (chooses, judges)) in [(&one, &other), (&other, &one)].into_iter().enumerate() {
            let chosen = chosen(chooses, seed, evaluations)?;
            for (said, judged) in chooses.predict_with_deviation(&chosen)?.iter().zip(judges.predict(&chosen)?) {
                differences += said.accuracy - judged;
                doubts += said.doubt;
            }
            progress(2 * split as usize + half + 1, 2 * SPLITS as usize);
        }
    }
    Ok((doubts > 0.0).then(|| (differences / doubts).clamp(0.0, LARGEST)))
}

/// The best subnets according to `predictor` within limits on multiply-accumulates, evenly spaced between the smallest
/// subnet's and the largest's.
fn chosen(predictor: &Predictor, seed: u64, evaluations: usize) -> Result<Vec<Subnet>> {
    let space = &predictor.known_part(predictor.space());
    // All subnets have the same classes.
    let measures = Measures::new(space, 10, Vec::new());
    let macs: Constraint = "any:macs=1".parse()?;
    let (least, most) = (measures.value(&macs, &space.smallest())?, measures.value(&macs, &space.largest())?);
    let limits = (1..=LIMITS).map(|step| {
        let bound = least + (most - least) * step as f64 / (LIMITS + 1) as f64;
        vec![Limit::new("macs", bound, |subnet: &Subnet| measures.value(&macs, subnet))]
    });
    let limits: Vec<Vec<Limit>> = limits.collect();
    let effects = |subnets: &[Subnet]| predictor.effects(space, subnets);
    let problem = Problem {
        effects: Some(&effects),
        evaluations: Some(evaluations),
        others: &limits[1..],
        ..Problem::new(space, &limits[0], seed)
    };
    let settings = SearchSettings::Memetic(Memetic::default());
    let results = search_all(&problem, &settings, &mut |subnets| predictor.predict(subnets), &mut |_| ())?;
    Ok(results.into_iter().map(|result| result.best).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predictor::{FitSettings, Method, Prediction};
    use ofa_supernet::SearchSpace;
    use ofa_supernet::space::BlockChoice;
    use rand::Rng;

    /// [`overrating`] by short searches, which choose overrated subnets too.
    fn quick(
        predictor: &Predictor,
        samples: &[Sample],
        seed: u64,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Option<f64> {
        overrating_of(predictor, samples, seed, SHORT, progress).unwrap()
    }

    /// Evaluations of a short search.
    const SHORT: usize = 4_000;

    /// Samples of `cifar-k5` with errors between plus and minus `noise`.
    fn samples(space: &SearchSpace, noise: f64) -> Vec<Sample> {
        let mut rng = generator(5, Stream::Samples, &[]);
        let sample = |_| {
            let subnet = space.sample(&mut rng);
            let accuracy = truth(&subnet) + noise * rng.random_range(-1.0..1.0);
            Sample::new(subnet, accuracy)
        };
        (0..120).map(sample).collect()
    }

    /// Some blocks gain from a larger kernel, others from a larger expand ratio.
    fn truth(subnet: &Subnet) -> f64 {
        let gains = [[2.0, 0.0], [0.0, 1.0], [0.5, 0.0], [0.0, 3.0], [0.0, 0.0]];
        let blocks = subnet.blocks().zip(gains.iter().cycle());
        let gain = |(block, [kernel, expand]): (&BlockChoice, &[f64; 2])| {
            1.0 + kernel * (block.kernel as f64 - 3.0) + expand * (block.expand.value() - 2.0)
        };
        0.5 + 0.0003 * blocks.map(gain).sum::<f64>()
    }

    #[test]
    fn winners_of_noisy_samples_are_overrated_and_corrected() {
        let space = SearchSpace::named("cifar-k5").unwrap();
        let samples = samples(&space, 0.02);
        let fit = |method| {
            let settings = FitSettings { method, members: 1, ..FitSettings::default() };
            Predictor::fit(&space, &samples, &settings, 3, &mut |_, _, _| ()).unwrap().0
        };
        let mut predictor = fit(Method::GaussianProcess);
        let mut steps = Vec::new();
        let found = quick(&predictor, &samples, 3, &mut |done, all| steps.push((done, all)));
        assert_eq!(steps, (1..=8).map(|done| (done, 8)).collect::<Vec<_>>());
        assert_eq!(quick(&predictor, &samples, 3, &mut |_, _| ()), found);
        assert!(found.is_some_and(|found| found > 0.2), "{found:?}");

        predictor.set_overrating(found);
        let chosen = chosen(&predictor, 3, SHORT).unwrap();
        let said = predictor.predict_with_deviation(&chosen).unwrap();
        let overrated: f64 = said.iter().zip(&chosen).map(|(said, chosen)| said.accuracy - truth(chosen)).sum();
        assert!(overrated > 0.0, "{overrated}");
        let holds = |(said, chosen): &(&Prediction, &Subnet)| {
            let (low, high) = predictor.of_chosen(**said).interval();
            (low..=high).contains(&truth(chosen))
        };
        let within = said.iter().zip(&chosen).filter(holds).count();
        assert!(within >= 7, "{within} of {}", chosen.len());

        // A single network does not know how sure it is.
        assert_eq!(quick(&fit(Method::Ensemble), &samples, 3, &mut |_, _| ()), None);
    }

    #[test]
    fn few_or_equal_samples_are_no_error() {
        let space = SearchSpace::named("cifar-k5").unwrap();
        for (count, noise) in [(10, 0.02), (11, 0.0)] {
            let samples = &samples(&space, noise)[..count];
            let predictor = Predictor::fit(&space, samples, &FitSettings::default(), 0, &mut |_, _, _| ()).unwrap().0;
            let found = quick(&predictor, samples, 0, &mut |_, _| ());
            assert!(found.is_none_or(|found| (0.0..=LARGEST).contains(&found)), "{count}: {found:?}");
            if noise > 0.0 {
                let equal: Vec<Sample> = samples.iter().map(|s| Sample { accuracy: 0.5, ..s.clone() }).collect();
                quick(&predictor, &equal, 0, &mut |_, _| ());
            }
        }
    }
}
