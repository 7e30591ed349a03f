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
/// Limits on multiply-accumulates, and evaluations of each search for all of them.
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
            let chosen = chosen(chooses, seed)?;
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
fn chosen(predictor: &Predictor, seed: u64) -> Result<Vec<Subnet>> {
    let space = predictor.space();
    // All subnets have the same classes.
    let measures = Measures::new(space, 10, Vec::new());
    let macs: Constraint = "any:macs=1".parse()?;
    let (least, most) = (measures.value(&macs, &space.smallest())?, measures.value(&macs, &space.largest())?);
    let limits = (1..=LIMITS).map(|step| {
        let bound = least + (most - least) * step as f64 / (LIMITS + 1) as f64;
        vec![Limit::new("macs", bound, |subnet: &Subnet| measures.value(&macs, subnet))]
    });
    let limits: Vec<Vec<Limit>> = limits.collect();
    let effects = |subnets: &[Subnet]| predictor.effects(subnets);
    let problem = Problem {
        effects: Some(&effects),
        evaluations: Some(EVALUATIONS),
        others: &limits[1..],
        ..Problem::new(space, &limits[0], seed)
    };
    let settings = SearchSettings::Memetic(Memetic::default());
    let results = search_all(&problem, &settings, &mut |subnets| predictor.predict(subnets), &mut |_| ())?;
    Ok(results.into_iter().map(|result| result.best).collect())
}
