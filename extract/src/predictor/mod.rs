//! Accuracy predictor: predicts a subnet's accuracy from its choices (paper §3.4), so that a search can score many
//! thousand subnets.
//!
//! | module | concern |
//! | --- | --- |
//! | [`sample`] | measured accuracies and their file |
//! | `expected` | accuracies as log-likelihoods tell them |
//! | `import` | accuracies that were measured elsewhere |
//! | `provenance`, `origin` | conditions of the measurements; where a predictor comes from, and doubts about it |
//! | [`features`] | a subnet as a one-hot vector |
//! | [`metrics`], `attainable` | how good predictions are, and how good a perfect predictor's would be |
//! | `sampled` | values that samples have |
//! | `process` | a Gaussian process: its fit, its predictions and how sure they are |
//! | `encoding`, `likelihood` | a subnet as its numbers; how much each of them counts |
//! | `ensemble` | several networks: folds, spread, how sure a prediction is |
//! | `fit_report` | the quality of a fit |
//! | `linear`, `fit`, `mlp` | what each choice adds by itself, fitting one network, its fast forward pass |
//! | `store` | the file |
//! | [`active`] | which subnets to measure next |
//! | `growth` | quality by number of samples |
//! | `published` | importing the predictor that the authors published |

pub mod active;
mod attainable;
mod encoding;
mod ensemble;
mod expected;
pub mod features;
mod fit;
mod fit_report;
mod growth;
mod import;
mod likelihood;
mod linear;
pub mod metrics;
mod mlp;
mod origin;
mod process;
mod provenance;
mod published;
pub mod sample;
mod sampled;
mod store;
#[cfg(test)]
mod tests;

pub use attainable::attainable_tau;
pub use fit::{FitSettings, Method};
pub use fit_report::{Calibration, CrossValidation, FitReport, HeldOut};
pub use growth::{GrowthPoint, growth};
pub use import::{import_accuracies, read_subnets};
pub use origin::Origin;
pub use provenance::{Provenance, other_weights};
pub use sample::{Sample, SampleWriter, add_samples, has_imported, keep_samples, read_provenance, read_samples};

use crate::effects::{self, Effects};
use crate::{Error, Result};
use ensemble::Ensemble;
use expected::expected;
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::space::Narrowing;
use ofa_supernet::{SearchSpace, Subnet, files};
use process::Process;
use rand::seq::SliceRandom;
use std::collections::HashMap;

/// Fewest distinct subnets that a predictor is fitted to: with fewer, the held-out fifth says nothing.
pub const FEWEST_SAMPLES: usize = 10;

/// A fitted accuracy predictor.
#[derive(Debug, Clone)]
pub struct Predictor {
    space: SearchSpace,
    model: Model,
    origin: Option<Origin>,
    /// By how many standard deviations of the prediction a search overrates its choice; `None` if not known.
    overrating: Option<f64>,
    /// Values that its samples have; `None` if there are none.
    sampled: Option<Narrowing>,
    /// Standard deviation of measured accuracies about those that log-likelihoods tell; `None` if it was fitted to the
    /// measured ones.
    measuring: Option<f64>,
}

/// What predicts.
#[derive(Debug, Clone)]
enum Model {
    Process(Box<Process>),
    Ensemble(Box<Ensemble>),
}

/// Predicted accuracy with its deviation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// Predicted accuracy (about 0 to 1; not clipped, so that the order is kept).
    pub accuracy: f64,
    /// Standard deviation of a measured accuracy about the prediction.
    pub deviation: f64,
    /// Standard deviation of the prediction itself: `deviation` without the noise of a measurement.
    pub doubt: f64,
}

/// Overrating of a search's choice, in standard deviations of the prediction, where it was not measured: a typical
/// one of samples of ImageNet and CIFAR-10 subnets.
const OVERRATING: f64 = 2.0;
/// Standard deviation of the overrating, in the same unit. With it the intervals of winners hold 90 % in the
/// simulations of `tests/imagenet.rs`.
const OVERRATING_DEVIATION: f64 = 0.5;

impl Prediction {
    /// Interval that should hold 90 % of measured accuracies, within 0 to 1.
    pub fn interval(&self) -> (f64, f64) {
        let half = NORMAL_90 * self.deviation;
        ((self.accuracy - half).clamp(0.0, 1.0), (self.accuracy + half).clamp(0.0, 1.0))
    }
}

/// Half the width of the interval that holds 90 % of a normal distribution, in standard deviations.
const NORMAL_90: f64 = 1.645;

impl Predictor {
    /// A model of which nothing else is known.
    fn new(space: SearchSpace, model: Model) -> Self {
        Predictor { space, model, origin: None, overrating: None, sampled: None, measuring: None }
    }

    /// Fits a predictor to four fifths of `samples`, judges it on the rest, and returns it.
    ///
    /// Several samples of one subnet count as one with their mean, so that no subnet is on both sides. `progress` gets
    /// the steps done, all steps, and the step's root mean squared error. Equal input and seed give equal bits.
    ///
    /// # Errors
    /// Fewer than [`FEWEST_SAMPLES`] distinct subnets, a subnet outside `space`, an accuracy outside 0..1, impossible
    /// settings, or a loss that is not finite.
    pub fn fit(
        space: &SearchSpace,
        samples: &[Sample],
        settings: &FitSettings,
        seed: u64,
        progress: &mut (dyn FnMut(usize, usize, f64) + Send),
    ) -> Result<(Predictor, FitReport)> {
        check_space(space)?;
        settings.validate()?;
        let mut samples = distinct(samples)?;
        if samples.len() < FEWEST_SAMPLES {
            return Err(Error::Predictor(format!(
                "{} different subnets are measured, but at least {FEWEST_SAMPLES} are needed (1,000 or more are advisable); measure more",
                samples.len()
            )));
        }
        samples.shuffle(&mut generator(seed, Stream::HeldOut, &[]));
        let (held_out, train) = samples.split_at((samples.len() as f64 / 5.0).round() as usize);
        let (mut predictor, unseen) = Predictor::fit_all(space, train, settings, seed, progress)?;

        let subnets: Vec<Subnet> = held_out.iter().map(|s| s.subnet.clone()).collect();
        let measured: Vec<f64> = held_out.iter().map(|s| s.accuracy).collect();
        let predicted = predictor.predict(&subnets)?;
        let deviations = predictor.has_deviation().then(|| predictor.predict_with_deviation(&subnets)).transpose()?;
        let members = match &predictor.model {
            Model::Process(_) => 0,
            Model::Ensemble(ensemble) => ensemble.members.len(),
        };
        let cross_validation = unseen.map(|unseen| {
            let measured: Vec<f64> = train.iter().map(|s| s.accuracy).collect();
            CrossValidation {
                folds: if members == 0 { train.len() } else { members },
                rmse: metrics::rmse(&measured, &unseen).expect("four fifths of ten or more are not empty"),
                pearson: metrics::pearson(&measured, &unseen),
                kendall_tau: metrics::kendall_tau(&measured, &unseen),
            }
        });
        let calibration = deviations.as_ref().map(|predictions| {
            let within = |(p, m): &(&Prediction, &f64)| (*m - p.accuracy).abs() <= NORMAL_90 * p.deviation;
            let count = measured.len() as f64;
            Calibration {
                within_90: predictions.iter().zip(&measured).filter(within).count() as f64 / count,
                mean_deviation: predictions.iter().map(|p| p.deviation).sum::<f64>() / count,
            }
        });
        let pair = |(index, subnet): (usize, Subnet)| HeldOut {
            subnet,
            measured: measured[index],
            predicted: predicted[index].clamp(0.0, 1.0),
            deviation: deviations.as_ref().map(|d| d[index].deviation),
        };
        let report = FitReport {
            samples: samples.len(),
            held_out: held_out.len(),
            rmse: metrics::rmse(&measured, &predicted).expect("a fifth of ten or more is not empty"),
            pearson: metrics::pearson(&measured, &predicted),
            kendall_tau: metrics::kendall_tau(&measured, &predicted),
            attainable_tau: None,
            measuring: predictor.measuring,
            members,
            cross_validation,
            calibration,
            measured_with: None,
            seed,
            settings: settings.clone(),
            pairs: subnets.into_iter().enumerate().map(pair).collect(),
        };
        predictor.origin = Some(Origin::Fitted {
            measured_with: None,
            held_out: report.held_out,
            kendall_tau: report.kendall_tau,
            imported: false,
        });
        Ok((predictor, report))
    }

    /// Fits a predictor to all of `samples`, which are two or more different ones in random order, and does not judge
    /// it. The second result is each sample's prediction without being seen, if there is one.
    ///
    /// # Errors
    /// As [`fit`](Self::fit).
    fn fit_all(
        space: &SearchSpace,
        samples: &[Sample],
        settings: &FitSettings,
        seed: u64,
        progress: &mut (dyn FnMut(usize, usize, f64) + Send),
    ) -> Result<(Predictor, Option<Vec<f64>>)> {
        let expected = expected(samples);
        let measuring = expected.as_ref().map(|expected| expected.deviation);
        let fitted = expected.as_ref().map_or(samples, |expected| &expected.samples);
        let (model, unseen) = if settings.method.is_process(samples.len()) {
            let (process, unseen) = Process::fit(space, fitted, progress)?;
            (Model::Process(Box::new(process)), Some(unseen))
        } else {
            let (ensemble, unseen) = ensemble::fit(space, fitted, settings, seed, progress)?;
            (Model::Ensemble(Box::new(ensemble)), unseen)
        };
        let sampled = Some(sampled::sampled(space, samples));
        Ok((Predictor { sampled, measuring, ..Predictor::new(space.clone(), model) }, unseen))
    }

    /// A Gaussian process of scores of different subnets, which need not be accuracies; `None` for fewer than two, or
    /// if their covariance is singular.
    pub(crate) fn of_scores(samples: &[Sample], space: &SearchSpace) -> Result<Option<Predictor>> {
        if samples.len() < 2 {
            return Ok(None);
        }
        match Process::fit(space, samples, &mut |_, _, _| {}) {
            Ok((process, _)) => Ok(Some(Predictor::new(space.clone(), Model::Process(Box::new(process))))),
            Err(Error::Predictor(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A predictor of the same kind and origin, fitted to all of `samples`, of which none is held out.
    ///
    /// # Errors
    /// As for [`fit`](Self::fit).
    pub fn refit(&self, samples: &[Sample], seed: u64) -> Result<Predictor> {
        let settings = match &self.model {
            Model::Process(_) => FitSettings { method: Method::GaussianProcess, ..FitSettings::default() },
            Model::Ensemble(ensemble) => {
                FitSettings { method: Method::Ensemble, members: ensemble.members.len(), ..FitSettings::default() }
            }
        };
        let mut samples = distinct(samples)?;
        samples.shuffle(&mut generator(seed, Stream::HeldOut, &[]));
        let predictor = Predictor::fit_all(&self.space, &samples, &settings, seed, &mut |_, _, _| {})?.0;
        Ok(Predictor { origin: self.origin.clone(), overrating: self.overrating, ..predictor })
    }

    /// Notes by how many standard deviations of the prediction a search overrates its choice
    /// ([`overrating`](crate::search::overrating())).
    pub fn set_overrating(&mut self, overrating: Option<f64>) {
        self.overrating = overrating;
    }

    /// The prediction for a subnet that a search chose because its prediction is the best of very many: the largest of
    /// many uncertain numbers is an overrated one.
    pub fn of_chosen(&self, prediction: Prediction) -> Prediction {
        let overrating = self.overrating.unwrap_or(OVERRATING) * prediction.doubt;
        let deviation = prediction.deviation.hypot(OVERRATING_DEVIATION * prediction.doubt);
        Prediction { accuracy: prediction.accuracy - overrating, deviation, ..prediction }
    }

    /// Notes what the samples of a fitted predictor were measured with.
    pub fn set_provenance(&mut self, provenance: Option<Provenance>) {
        if let Some(Origin::Fitted { measured_with, .. }) = &mut self.origin {
            *measured_with = provenance;
        }
    }

    /// Notes that the samples of a fitted predictor were measured elsewhere.
    pub fn set_imported(&mut self) {
        if let Some(Origin::Fitted { imported, .. }) = &mut self.origin {
            *imported = true;
        }
    }

    /// Checksum of the weights of the supernet that the predictor was fitted for; `None` if not known.
    pub fn weights(&self) -> Option<&str> {
        match &self.origin {
            Some(Origin::Fitted { measured_with: Some(provenance), .. }) => Some(&provenance.weights),
            _ => None,
        }
    }

    /// Checksum of the predictor's file, as eight hexadecimal digits, which tells results of this predictor from those
    /// of another.
    ///
    /// # Errors
    /// A predictor that cannot be serialised.
    pub fn checksum(&self) -> Result<String> {
        Ok(format!("{:08x}", files::checksum(&self.content()?)))
    }

    /// The space whose subnets the predictor knows.
    pub fn space(&self) -> &SearchSpace {
        &self.space
    }

    /// Whether predictions have a deviation.
    pub fn has_deviation(&self) -> bool {
        match &self.model {
            Model::Process(_) => true,
            Model::Ensemble(ensemble) => ensemble.members.len() > 1,
        }
    }

    /// `space`, which has the predictor's weights, with the values that the predictor's samples have, and those between
    /// them. A prediction for any other value is a guess, though its deviation is no larger.
    pub fn known_part(&self, space: &SearchSpace) -> SearchSpace {
        let mut known = space.clone();
        known.keep_resolutions_of(&self.space);
        self.sampled.as_ref().map_or(known.clone(), |sampled| known.narrowed(sampled))
    }

    /// Predicted accuracy of each subnet (about 0 to 1; not clipped, so that the order is kept).
    ///
    /// # Errors
    /// A subnet outside the space.
    pub fn predict(&self, subnets: &[Subnet]) -> Result<Vec<f64>> {
        match &self.model {
            Model::Process(process) => process.predict(subnets),
            Model::Ensemble(ensemble) => ensemble.predict(subnets),
        }
    }

    /// By how much each value of each of the [places](SearchSpace::places) of `space`, a part of the predictor's,
    /// raises the prediction, to first order about each subnet; a place that the subnet lacks counts 0.
    ///
    /// # Errors
    /// A subnet outside the predictor's space.
    pub fn effects(&self, space: &SearchSpace, subnets: &[Subnet]) -> Result<Vec<Effects>> {
        let effects = match &self.model {
            Model::Process(process) => process.effects(subnets)?,
            Model::Ensemble(ensemble) => ensemble.effects(subnets)?,
        };
        if *space == self.space {
            return Ok(effects);
        }
        Ok(effects::of_places(&self.space.places(), &space.places(), &effects))
    }

    /// Predicted accuracy of each subnet, and how sure it is.
    ///
    /// # Errors
    /// A subnet outside the space, and a predictor that is a single network, which does not know.
    pub fn predict_with_deviation(&self, subnets: &[Subnet]) -> Result<Vec<Prediction>> {
        let mut predictions = match &self.model {
            Model::Process(process) => process.predict_with_deviation(subnets)?,
            Model::Ensemble(ensemble) => ensemble.predict_with_deviation(subnets)?,
        };
        if let Some(measuring) = self.measuring {
            predictions.iter_mut().for_each(|prediction| prediction.deviation = prediction.deviation.hypot(measuring));
        }
        Ok(predictions)
    }
}

/// Checks that `space` has enough subnets for a predictor.
///
/// # Errors
/// An invalid space, or one with fewer than [`FEWEST_SAMPLES`] subnets.
pub fn check_space(space: &SearchSpace) -> Result<()> {
    space.validate()?;
    let count = space.count();
    if count < FEWEST_SAMPLES as f64 {
        let only = if count == 1.0 { "one subnet".to_string() } else { format!("{count} subnets") };
        return Err(Error::Predictor(format!(
            "the space '{}' has only {only}, but a predictor needs {FEWEST_SAMPLES}; search with `--score measured`, which \
             can measure all of them",
            space.name
        )));
    }
    Ok(())
}

/// One sample per subnet, in order of first appearance, with the mean of its accuracies. One that was measured more
/// than once has no log-likelihood.
fn distinct(samples: &[Sample]) -> Result<Vec<Sample>> {
    let mut indices: HashMap<&Subnet, usize> = HashMap::new();
    let mut merged: Vec<(Sample, f64)> = Vec::new();
    for sample in samples {
        if !(0.0..=1.0).contains(&sample.accuracy) {
            return Err(Error::Predictor(format!(
                "'{}' has accuracy {}, which is not between 0 and 1",
                sample.subnet, sample.accuracy
            )));
        }
        match indices.get(&sample.subnet) {
            Some(&index) => {
                let (first, count) = &mut merged[index];
                *first = Sample::new(sample.subnet.clone(), first.accuracy + sample.accuracy);
                *count += 1.0;
            }
            None => {
                indices.insert(&sample.subnet, merged.len());
                merged.push((sample.clone(), 1.0));
            }
        }
    }
    Ok(merged.into_iter().map(|(sample, count)| Sample { accuracy: sample.accuracy / count, ..sample }).collect())
}
