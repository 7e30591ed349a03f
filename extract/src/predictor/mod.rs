//! Predicts a subnet's accuracy from its choices (paper §3.4), so that a search can ask about many thousand subnets.
//!
//! | module | concern |
//! | --- | --- |
//! | [`sample`] | measured accuracies and their file |
//! | [`features`] | a subnet as a one-hot vector |
//! | [`metrics`] | how good predictions are |
//! | `linear` | what each choice adds by itself |
//! | `fit`, `mlp`, `store` | fitting one network, its fast forward pass, the file |
//! | `ensemble` | several networks: folds, spread, how sure a prediction is |
//! | [`active`] | which subnets to measure next |
//! | `published` | importing the predictor that the authors published |

pub mod active;
mod ensemble;
pub mod features;
mod fit;
mod linear;
pub mod metrics;
mod mlp;
mod published;
pub mod sample;
mod store;

pub use fit::FitSettings;
pub use sample::{Sample, SampleWriter, read_samples};

use crate::{Error, Result};
use features::push_features;
use mlp::Mlp;
use ofa_supernet::seed::{Purpose, generator};
use ofa_supernet::{SearchSpace, Subnet};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Fewest different subnets a predictor is fitted on: with less, the held-out fifth says nothing.
pub const FEWEST_SAMPLES: usize = 10;
/// First position of the generator that draws the held-out part.
const SPLIT: u64 = 0x68;

/// A fitted accuracy predictor: the mean of its members.
#[derive(Debug, Clone)]
pub struct Predictor {
    space: SearchSpace,
    members: Vec<Mlp>,
    /// Standard deviation of measured accuracies about what the members agree on.
    noise: f32,
}

/// A prediction, and how sure it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// Predicted accuracy (about 0 to 1; not clipped, so that order is kept).
    pub accuracy: f64,
    /// Standard deviation of a measured accuracy about it.
    pub deviation: f64,
}

/// How a fit went, judged on samples that it did not see.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FitReport {
    /// Different subnets given.
    pub samples: usize,
    /// How many of them (a fifth, drawn by seed) were held out; the figures below are theirs.
    pub held_out: usize,
    /// Root mean squared error, in accuracy (0.01 is one point).
    pub rmse: f64,
    /// Pearson's correlation; `None` (null) when it is undefined, as all measured or all predicted values are equal.
    pub pearson: Option<f64>,
    /// Kendall's tau-b: how well the order is kept, which is what a search needs; `None` as for `pearson`.
    pub kendall_tau: Option<f64>,
    /// Networks that were fitted.
    pub members: usize,
    /// Each sample that was not held out, predicted by the one member that did not see it; `None` for a single member.
    pub cross_validation: Option<CrossValidation>,
    /// How well the deviations fit the held-out samples; `None` for a single member.
    pub calibration: Option<Calibration>,
    /// Seed of split, weights and order.
    pub seed: u64,
    /// How it was fitted.
    pub settings: FitSettings,
    /// Each held-out subnet.
    pub pairs: Vec<HeldOut>,
}

/// Figures over all folds, each predicted by a network that did not see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CrossValidation {
    /// Folds, as many as members.
    pub folds: usize,
    /// As in [`FitReport`].
    pub rmse: f64,
    /// As in [`FitReport`].
    pub pearson: Option<f64>,
    /// As in [`FitReport`].
    pub kendall_tau: Option<f64>,
}

/// Whether a predictor is as sure as it should be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Share of the held-out accuracies within the interval that should hold 90 % of them: 1.645 deviations either way.
    pub within_90: f64,
    /// Mean deviation, in accuracy.
    pub mean_deviation: f64,
}

/// Half the width of the interval that holds 90 % of a normal distribution, in standard deviations.
const NORMAL_90: f64 = 1.645;

/// A held-out subnet, measured and predicted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeldOut {
    /// The subnet.
    pub subnet: Subnet,
    /// Measured accuracy.
    pub measured: f64,
    /// Predicted accuracy.
    pub predicted: f64,
    /// Its deviation; `None` for a single member.
    pub deviation: Option<f64>,
}

impl Predictor {
    /// Fits a predictor on four fifths of `samples` and judges it on the rest. The judged predictor is the one returned.
    ///
    /// Several samples of one subnet count as one with their mean, so that none is on both sides. `progress` gets the steps
    /// done, all steps, and the step's root mean squared error. Same input and seed: same bits.
    ///
    /// # Errors
    /// Fewer than [`FEWEST_SAMPLES`] different subnets, a subnet outside `space`, an accuracy outside 0..1, impossible
    /// settings, or a loss that is no number.
    pub fn fit(
        space: &SearchSpace,
        samples: &[Sample],
        settings: &FitSettings,
        seed: u64,
        progress: &mut (dyn FnMut(usize, usize, f64) + Send),
    ) -> Result<(Predictor, FitReport)> {
        space.validate()?;
        settings.validate()?;
        let mut samples = distinct(samples)?;
        if samples.len() < FEWEST_SAMPLES {
            return Err(Error::Predictor(format!(
                "{} different subnets are measured, at least {FEWEST_SAMPLES} are needed (1,000 or more are advisable); sample more",
                samples.len()
            )));
        }
        samples.shuffle(&mut generator(seed, Purpose::Predictor, &[SPLIT]));
        let (held_out, train) = samples.split_at((samples.len() as f64 / 5.0).round() as usize);
        let (predictor, unseen) = ensemble::fit_members(space, train, settings, seed, progress)?;

        let subnets: Vec<Subnet> = held_out.iter().map(|s| s.subnet.clone()).collect();
        let measured: Vec<f64> = held_out.iter().map(|s| s.accuracy).collect();
        let predicted = predictor.predict(&subnets)?;
        let deviations =
            if predictor.members.len() > 1 { Some(predictor.predict_with_deviation(&subnets)?) } else { None };
        let cross_validation = unseen.map(|unseen| {
            let measured: Vec<f64> = train.iter().map(|s| s.accuracy).collect();
            CrossValidation {
                folds: settings.members.min(train.len()),
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
            predicted: predicted[index],
            deviation: deviations.as_ref().map(|d| d[index].deviation),
        };
        let report = FitReport {
            samples: samples.len(),
            held_out: held_out.len(),
            rmse: metrics::rmse(&measured, &predicted).expect("a fifth of ten or more is not empty"),
            pearson: metrics::pearson(&measured, &predicted),
            kendall_tau: metrics::kendall_tau(&measured, &predicted),
            members: predictor.members.len(),
            cross_validation,
            calibration,
            seed,
            settings: settings.clone(),
            pairs: subnets.into_iter().enumerate().map(pair).collect(),
        };
        Ok((predictor, report))
    }

    /// The space whose subnets it knows.
    pub fn space(&self) -> &SearchSpace {
        &self.space
    }

    /// Whether it knows how sure it is.
    pub fn has_deviation(&self) -> bool {
        self.members.len() > 1
    }

    /// Predicted accuracy (about 0 to 1; not clipped, so that order is kept) of each subnet.
    ///
    /// # Errors
    /// A subnet outside the space.
    pub fn predict(&self, subnets: &[Subnet]) -> Result<Vec<f64>> {
        let members = self.by_member(subnets)?;
        Ok((0..subnets.len()).map(|subnet| ensemble::mean(&members, subnet)).collect())
    }

    /// The same with how sure it is.
    ///
    /// # Errors
    /// A subnet outside the space, and a predictor of a single member, which does not know.
    pub fn predict_with_deviation(&self, subnets: &[Subnet]) -> Result<Vec<Prediction>> {
        if !self.has_deviation() {
            return Err(Error::Predictor(
                "it is a single network, which does not know how sure it is; fit one of several with `ofa predictor --members 5`".into(),
            ));
        }
        let members = self.by_member(subnets)?;
        let prediction = |subnet| Prediction {
            accuracy: ensemble::mean(&members, subnet),
            deviation: (ensemble::variance(&members, subnet) + f64::from(self.noise).powi(2)).sqrt(),
        };
        Ok((0..subnets.len()).map(prediction).collect())
    }

    /// Each member's prediction of each subnet.
    fn by_member(&self, subnets: &[Subnet]) -> Result<Vec<Vec<f64>>> {
        let features = |subnet: &Subnet, active: &mut Vec<usize>| push_features(&self.space, subnet, active);
        self.members.iter().map(|member| member.forward(subnets, features)).collect()
    }
}

/// One sample a subnet, in order of first appearance, with the mean of its accuracies.
fn distinct(samples: &[Sample]) -> Result<Vec<Sample>> {
    let mut places: HashMap<&Subnet, usize> = HashMap::new();
    let mut sums: Vec<(&Subnet, f64, f64)> = Vec::new();
    for sample in samples {
        if !(0.0..=1.0).contains(&sample.accuracy) {
            return Err(Error::Predictor(format!(
                "'{}' has accuracy {}, which is not between 0 and 1",
                sample.subnet, sample.accuracy
            )));
        }
        let place = *places.entry(&sample.subnet).or_insert(sums.len());
        if place == sums.len() {
            sums.push((&sample.subnet, 0.0, 0.0));
        }
        sums[place].1 += sample.accuracy;
        sums[place].2 += 1.0;
    }
    Ok(sums.into_iter().map(|(subnet, sum, count)| Sample { subnet: subnet.clone(), accuracy: sum / count }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Accuracy with a mild interaction between size and resolution.
    fn samples(space: &SearchSpace, count: u64) -> Vec<Sample> {
        let accuracy = |subnet: &Subnet| {
            let size: f64 = subnet.blocks().map(|b| b.expand.value() + 0.5 * b.kernel as f64).sum();
            0.5 + 0.2 * (size.ln() - 2.0) * (0.6 + subnet.resolution as f64 / 80.0)
        };
        (0..count)
            .map(|i| space.sample(&mut generator(4, Purpose::Sampling, &[i])))
            .map(|subnet| Sample { accuracy: accuracy(&subnet), subnet })
            .collect()
    }

    #[test]
    fn ranks_held_out_subnets_and_survives_its_file() {
        let space = SearchSpace::named("tiny").unwrap();
        let settings = FitSettings { hidden: 100, learning_rate: 3e-3, ..FitSettings::default() };
        for (count, tau) in [(40, 0.6), (300, 0.85)] {
            let mut steps = 0;
            let fitted = Predictor::fit(&space, &samples(&space, count), &settings, 7, &mut |_, _, _| steps += 1);
            let (predictor, report) = fitted.unwrap();
            assert_eq!((report.held_out, steps), ((report.samples as f64 / 5.0).round() as usize, 500));
            let folds = report.cross_validation.as_ref().unwrap();
            assert!(folds.folds == 5 && folds.rmse < 0.05, "{report:?}");
            assert!(report.rmse < 0.05, "{report:?}");
            // Eight held-out subnets are too few for a firm tau: new ones judge.
            let new = samples(&space, 600).split_off(300);
            let measured: Vec<f64> = new.iter().map(|s| s.accuracy).collect();
            let predicted = predictor.predict(&new.into_iter().map(|s| s.subnet).collect::<Vec<_>>()).unwrap();
            let found = metrics::kendall_tau(&measured, &predicted).unwrap();
            assert!(found > tau, "{count} samples: Kendall tau {found}");

            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("predictor.safetensors");
            predictor.save(&path).unwrap();
            let loaded = Predictor::load(&path).unwrap();
            let sure = |p: &Predictor| p.predict_with_deviation(&[space.smallest(), space.largest()]).unwrap();
            assert_eq!(sure(&loaded), sure(&predictor));
            let subnets: Vec<Subnet> = report.pairs.iter().map(|p| p.subnet.clone()).collect();
            let predicted: Vec<f64> = report.pairs.iter().map(|p| p.predicted).collect();
            assert_eq!(loaded.predict(&subnets).unwrap(), predicted);
            assert_eq!(*loaded.space(), space);
        }
    }

    #[test]
    fn deviations_hold_what_they_promise() {
        use rand::Rng;
        let space = SearchSpace::named("tiny").unwrap();
        let mut noisy = samples(&space, 500);
        let mut rng = generator(1, Purpose::Builtin, &[]);
        // Uniform noise of a point either way: a standard deviation of 0.58 points.
        noisy.iter_mut().for_each(|s| s.accuracy += rng.random_range(-0.01..0.01));
        let settings = FitSettings { hidden: 100, learning_rate: 3e-3, ..FitSettings::default() };
        let (predictor, report) = Predictor::fit(&space, &noisy, &settings, 3, &mut |_, _, _| ()).unwrap();
        let calibration = report.calibration.unwrap();
        assert!((0.8..=1.0).contains(&calibration.within_90), "{calibration:?}");
        assert!((0.005..0.02).contains(&calibration.mean_deviation), "{calibration:?}");
        assert!(report.pairs.iter().all(|pair| pair.deviation.unwrap() >= f64::from(predictor.noise)));
        // What no sample is like is less sure than what many are like.
        let far = predictor.predict_with_deviation(&[space.largest(), space.smallest()]).unwrap();
        assert!(far.iter().any(|p| p.deviation > calibration.mean_deviation), "{far:?} {calibration:?}");

        let single = FitSettings { members: 1, steps: Some(2), ..settings };
        let (predictor, report) = Predictor::fit(&space, &noisy, &single, 3, &mut |_, _, _| ()).unwrap();
        assert_eq!((report.members, report.calibration, report.cross_validation), (1, None, None));
        assert!(predictor.predict_with_deviation(&[space.largest()]).unwrap_err().to_string().contains("--members"));
    }

    #[test]
    fn one_seed_one_predictor() {
        let space = SearchSpace::named("tiny").unwrap();
        let settings = FitSettings { hidden: 40, steps: Some(20), ..FitSettings::default() };
        let fit = |seed| Predictor::fit(&space, &samples(&space, 30), &settings, seed, &mut |_, _, _| ()).unwrap().1;
        assert_eq!(fit(1), fit(1));
        assert_ne!(fit(1).pairs, fit(2).pairs);
    }

    #[test]
    fn unusable_input_is_refused() {
        let space = SearchSpace::named("tiny").unwrap();
        let fit = |samples: &[Sample], settings: &FitSettings| {
            Predictor::fit(&space, samples, settings, 0, &mut |_, _, _| ()).unwrap_err().to_string()
        };
        let quick = FitSettings { hidden: 8, steps: Some(1), members: 2, ..FitSettings::default() };
        let same = vec![samples(&space, 1).remove(0); 50];
        assert!(fit(&same, &quick).contains("1 different subnets"));
        let mut percent = samples(&space, 20);
        percent[3].accuracy = 83.0;
        assert!(fit(&percent, &quick).contains("between 0 and 1"));
        let mut foreign = samples(&space, 20);
        foreign.iter_mut().for_each(|s| s.subnet.resolution = 20);
        assert!(fit(&foreign, &quick).contains("allowed are"));
        assert!(fit(&samples(&space, 20), &FitSettings { batch_size: 0, ..quick }).contains("batch_size"));
    }

    #[test]
    fn foreign_files_are_refused() {
        let space = SearchSpace::named("tiny").unwrap();
        let settings = FitSettings { hidden: 8, steps: Some(1), members: 2, ..FitSettings::default() };
        let (predictor, _) = Predictor::fit(&space, &samples(&space, 20), &settings, 0, &mut |_, _, _| ()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("predictor.safetensors");
        predictor.save(&path).unwrap();
        let good = std::fs::read(&path).unwrap();
        // Replacements of equal length keep the header's offsets right.
        let replaced = |from: &str, to: &str| {
            let at = good.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
            let mut bytes = good.clone();
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
            bytes
        };
        for (bytes, reason) in [
            (good[..good.len() - 1].to_vec(), "no predictor of this program"),
            (b"hello".to_vec(), "no predictor of this program"),
            (replaced("ofa-predictor", "ofa-transform"), "expected 'ofa-predictor'"),
            (replaced("[16,24,32]", "[16,24   ]"), "member0.layer0.weight is F32 [23, 8], expected F32 [22, 8]"),
            (replaced("member1.layer2.bias", "member1.layer9.bias"), "member1.layer2.bias"),
        ] {
            std::fs::write(&path, &bytes).unwrap();
            let error = Predictor::load(&path).unwrap_err().to_string();
            assert!(error.contains("predictor.safetensors") && error.contains(reason), "{error}");
        }
    }
}
