//! Predicts a subnet's accuracy from its choices (paper §3.4), so that a search can ask about many thousand subnets.
//!
//! | module | concern |
//! | --- | --- |
//! | [`sample`] | measured accuracies and their file |
//! | [`features`] | a subnet as a one-hot vector |
//! | [`metrics`] | how good predictions are |
//! | `fit`, `mlp`, `store` | fitting, the fast forward pass, the file |
//! | `published` | importing the predictor that the authors published |

pub mod features;
mod fit;
pub mod metrics;
mod mlp;
mod published;
pub mod sample;
mod store;

pub use fit::FitSettings;
pub use sample::{Sample, SampleWriter, read_samples};

use crate::{Error, Result};
use features::{active_features, feature_count};
use fit::{Table, fit};
use mlp::Mlp;
use ofa_supernet::seed::{Purpose, generator};
use ofa_supernet::{SearchSpace, Subnet};
use rand::seq::SliceRandom;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Fewest different subnets a predictor is fitted on: with less, the held-out fifth says nothing.
pub const FEWEST_SAMPLES: usize = 10;
/// First position of the generator that draws the held-out part.
const SPLIT: u64 = 0x68;

/// A fitted accuracy predictor.
#[derive(Debug, Clone)]
pub struct Predictor {
    space: SearchSpace,
    mlp: Mlp,
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
    /// Seed of split, weights and order.
    pub seed: u64,
    /// How it was fitted.
    pub settings: FitSettings,
    /// Each held-out subnet.
    pub pairs: Vec<HeldOut>,
}

/// A held-out subnet, measured and predicted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeldOut {
    /// The subnet.
    pub subnet: Subnet,
    /// Measured accuracy.
    pub measured: f64,
    /// Predicted accuracy.
    pub predicted: f64,
}

impl Predictor {
    /// Fits a predictor on four fifths of `samples` and judges it on the rest. The judged predictor is the one returned.
    ///
    /// Several samples of one subnet count as one with their mean, so that none is on both sides. `progress` gets the steps
    /// done, all steps, and the step's root mean squared error. Same input, seed and number of threads: same bits.
    ///
    /// # Errors
    /// Fewer than [`FEWEST_SAMPLES`] different subnets, a subnet outside `space`, an accuracy outside 0..1, impossible
    /// settings, or a loss that is no number.
    pub fn fit(
        space: &SearchSpace,
        samples: &[Sample],
        settings: &FitSettings,
        seed: u64,
        progress: &mut dyn FnMut(usize, usize, f64),
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
        let inputs = train.iter().map(|s| active_features(space, &s.subnet)).collect::<Result<Vec<_>>>()?;
        let targets: Vec<f64> = train.iter().map(|s| s.accuracy).collect();
        let table = Table { width: feature_count(space), inputs: &inputs, targets: &targets };
        let predictor = Predictor { space: space.clone(), mlp: fit(&table, settings, seed, progress)? };

        let subnets: Vec<Subnet> = held_out.iter().map(|s| s.subnet.clone()).collect();
        let measured: Vec<f64> = held_out.iter().map(|s| s.accuracy).collect();
        let predicted = predictor.predict(&subnets)?;
        let report = FitReport {
            samples: samples.len(),
            held_out: held_out.len(),
            rmse: metrics::rmse(&measured, &predicted).expect("a fifth of ten or more is not empty"),
            pearson: metrics::pearson(&measured, &predicted),
            kendall_tau: metrics::kendall_tau(&measured, &predicted),
            seed,
            settings: settings.clone(),
            pairs: subnets
                .into_iter()
                .zip(measured.iter().zip(&predicted))
                .map(|(subnet, (&measured, &predicted))| HeldOut { subnet, measured, predicted })
                .collect(),
        };
        Ok((predictor, report))
    }

    /// The space whose subnets it knows.
    pub fn space(&self) -> &SearchSpace {
        &self.space
    }

    /// Predicted accuracy (about 0 to 1; not clipped, so that order is kept) of each subnet.
    ///
    /// # Errors
    /// A subnet outside the space.
    pub fn predict(&self, subnets: &[Subnet]) -> Result<Vec<f64>> {
        let inputs: Vec<Vec<usize>> =
            subnets.par_iter().map(|s| active_features(&self.space, s)).collect::<Result<_>>()?;
        Ok(self.mlp.forward(&inputs))
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
            assert_eq!((report.held_out, steps), ((report.samples as f64 / 5.0).round() as usize, 100));
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
            let subnets: Vec<Subnet> = report.pairs.iter().map(|p| p.subnet.clone()).collect();
            let predicted: Vec<f64> = report.pairs.iter().map(|p| p.predicted).collect();
            assert_eq!(loaded.predict(&subnets).unwrap(), predicted);
            assert_eq!(*loaded.space(), space);
        }
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
        let quick = FitSettings { hidden: 8, steps: Some(1), ..FitSettings::default() };
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
        let settings = FitSettings { hidden: 8, steps: Some(1), ..FitSettings::default() };
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
            (replaced("[16,24,32]", "[16,24   ]"), "layer0.weight is F32 [23, 8], expected F32 [22, 8]"),
            (replaced("layer2.bias", "layer9.bias"), "layer2.bias"),
        ] {
            std::fs::write(&path, &bytes).unwrap();
            let error = Predictor::load(&path).unwrap_err().to_string();
            assert!(error.contains("predictor.safetensors") && error.contains(reason), "{error}");
        }
    }
}
