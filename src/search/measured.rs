//! Measured accuracies of subnets of the supernet: batch norm is recalibrated on training images, then the subnet is
//! evaluated on validation images.

use crate::arguments::numbers;
use crate::process::interrupt;
use anyhow::{Result, bail};
use ofa_extract::Sample;
use ofa_extract::predictor::Provenance;
use ofa_supernet::data::Dataset;
use ofa_supernet::files::checksum;
use ofa_supernet::train::EvaluationSet;
use ofa_supernet::train::validation::{Answers, accuracies_on, answers_on};
use ofa_supernet::{Subnet, Supernet};

/// Numbers of images for measuring accuracies.
#[derive(clap::Args, Clone)]
pub struct Images {
    /// Training images that recalibrate batch norm for each subnet.
    #[arg(long, default_value_t = 500, value_parser = numbers::images)]
    pub recalibration: usize,
    /// Validation images; 0 for all.
    #[arg(long, default_value_t = 0, value_parser = numbers::images_or_none)]
    pub images: usize,
}

/// Measures subnets of one supernet on the same images.
pub struct Measured<'a> {
    net: &'a Supernet,
    recalibration: EvaluationSet<'a>,
    validation: EvaluationSet<'a>,
    data: &'a Dataset,
    batch: usize,
    seed: u64,
}

impl<'a> Measured<'a> {
    /// Prepares measurements with `batch` images at a time; `seed` draws the recalibration images.
    pub fn new(net: &'a Supernet, data: &'a Dataset, images: &Images, batch: usize, seed: u64) -> Result<Self> {
        if data.validation.is_empty() {
            bail!(
                "data '{}': there are no validation images to measure accuracies on; name others with --data",
                data.name
            );
        }
        let limit = (images.images > 0).then_some(images.images);
        Ok(Measured {
            net,
            recalibration: EvaluationSet::for_recalibration(data, images.recalibration, batch, seed)?
                .with_control(&interrupt::control),
            validation: EvaluationSet::of_split(data, &data.validation, limit, batch, seed)?
                .with_control(&interrupt::control),
            data,
            batch,
            seed,
        })
    }

    /// Conditions of the measurements; `weights` is the checksum of the supernet's weights.
    pub fn provenance(&self, weights: String) -> Result<Provenance> {
        let normalisation = checksum(&serde_json::to_vec(&self.data.normalisation)?);
        Ok(Provenance {
            weights,
            data: format!("{}-{normalisation:08x}", self.data.digest()),
            recalibration: self.recalibration.len(),
            images: self.validation.len(),
            batch: self.batch,
            seed: self.seed,
        })
    }

    /// Answers of `subnets` on the validation images; otherwise as [`accuracies`](Self::accuracies).
    pub fn answers(&self, subnets: &[Subnet]) -> ofa_supernet::Result<Vec<Answers>> {
        answers_on(self.net, subnets, &self.recalibration, &self.validation, &mut interrupt::control)
    }

    /// The sample of a subnet that gave `answers`.
    pub fn sample(&self, subnet: &Subnet, answers: Answers) -> Sample {
        let images = self.validation.len() as f64;
        let correct: f64 = answers.correct.iter().map(|&count| f64::from(count)).sum();
        let log_likelihood = Some(answers.log_likelihood / images).filter(|mean| mean.is_finite());
        Sample { correct: answers.correct, log_likelihood, ..Sample::new(subnet.clone(), correct / images) }
    }

    /// Samples of `subnets`.
    pub fn samples(&self, subnets: &[Subnet]) -> ofa_supernet::Result<Vec<Sample>> {
        let answers = self.answers(subnets)?;
        Ok(subnets.iter().zip(answers).map(|(subnet, answers)| self.sample(subnet, answers)).collect())
    }

    /// The validation images.
    pub fn validation(&self) -> &EvaluationSet<'a> {
        &self.validation
    }

    /// Validation accuracies of `subnets`, from 0 to 1; a requested stop is an error. Layers that subnets have in
    /// common at their beginning are computed once.
    pub fn accuracies(&self, subnets: &[Subnet]) -> ofa_supernet::Result<Vec<f64>> {
        accuracies_on(self.net, subnets, &self.recalibration, &self.validation, &mut interrupt::control)
    }
}
