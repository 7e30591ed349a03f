//! Optimism: by how much a predictor overrates the subnet that a search chose for its prediction.
//!
//! A search prefers what the predictor happens to overrate. How much that is follows from repetitions of the whole
//! procedure in which the truth is known: the predictor itself is the truth, accuracies of the same samples are
//! simulated with the noise of the measurements, a predictor is fitted to them, and a search chooses its best subnet
//! (a parametric bootstrap: Efron and Tibshirani, *An Introduction to the Bootstrap*, chapter 17).

use super::{Limit, Memetic, Problem, SearchSettings, search};
use crate::Result;
use crate::predictor::{Prediction, Predictor};
use ofa_supernet::{SearchSpace, Subnet};

/// Repetitions.
const REPETITIONS: usize = 8;
/// Most subnets that a repetition's search scores; it starts from the results of the search.
const EVALUATIONS: usize = 1_000;
/// Optimism per simulated one. The predictor, which is the truth of the simulation, holds spurious effects of its own,
/// so that a simulated search finds some of what it claims.
const UNDERRATED: f64 = 1.5;

/// Simulated optimism of a search.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Optimism {
    /// Mean over the repetitions.
    pub mean: f64,
    /// Standard deviation over the repetitions.
    pub deviation: f64,
}

/// Optimism of the search for the best subnet of `space` within `limits`, whose good subnets are `starts`; `None` if
/// the predictor is no Gaussian process, whose repetitions would take too long.
///
/// # Errors
/// Errors of predictor and measures.
pub fn optimism(
    predictor: &Predictor,
    space: &SearchSpace,
    limits: &[Limit],
    starts: &[Subnet],
) -> Result<Option<Optimism>> {
    let mut errors = Vec::with_capacity(REPETITIONS);
    for repetition in predictor.repetitions(REPETITIONS)? {
        let effects = |subnets: &[Subnet]| repetition.effects(subnets);
        let problem = Problem {
            evaluations: Some(EVALUATIONS),
            effects: Some(&effects),
            starts,
            ..Problem::new(space, limits, 0)
        };
        let settings = SearchSettings::Memetic(Memetic::default());
        let found = search(&problem, &settings, &mut |subnets| repetition.predict(subnets), &mut |_| ())?;
        errors.push(found.predicted_accuracy - predictor.predict(&[found.best])?[0]);
    }
    let count = errors.len() as f64;
    let mean = errors.iter().sum::<f64>() / count;
    let variance = errors.iter().map(|error| (error - mean).powi(2)).sum::<f64>() / count;
    Ok((!errors.is_empty()).then_some(Optimism { mean, deviation: variance.sqrt() }))
}

impl Optimism {
    /// `prediction` of the chosen subnet, corrected.
    pub fn correct(&self, prediction: Prediction) -> Prediction {
        let correction = UNDERRATED * self.mean.max(0.0);
        // The correction itself is not sure.
        let deviation = (prediction.deviation.powi(2) + self.deviation.powi(2) + (0.5 * correction).powi(2)).sqrt();
        Prediction { accuracy: prediction.accuracy - correction, deviation }
    }
}
