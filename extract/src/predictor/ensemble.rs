//! Several networks instead of one. Each is fitted without another fold of the samples, so that one set of fits gives
//! both the ensemble and honest figures over all samples; where the members disagree, the prediction is less sure.

use super::features::Features;
use super::fit::{FitSettings, Table, fit_network};
use super::linear::Basis;
use super::mlp::Mlp;
use super::{Prediction, Sample};
use crate::effects::Effects;
use crate::{Error, Result};
use ofa_supernet::{SearchSpace, Subnet};
use rayon::prelude::*;
use std::sync::Mutex;

/// Subnets whose derivatives a thread computes together.
const SLOPES: usize = 8;

/// Fitted networks, whose mean is the prediction.
#[derive(Debug, Clone)]
pub(super) struct Ensemble {
    pub members: Vec<Mlp>,
    /// Standard deviation of measured accuracies about what the members agree on.
    pub noise: f32,
    features: Features,
}

impl Ensemble {
    /// An ensemble of networks whose inputs are the features of `space`.
    pub(super) fn new(space: &SearchSpace, members: Vec<Mlp>, noise: f32) -> Self {
        Ensemble { members, noise, features: Features::new(space) }
    }

    /// Predicted accuracy of each subnet.
    ///
    /// # Errors
    /// A subnet outside the space.
    pub(super) fn predict(&self, subnets: &[Subnet]) -> Result<Vec<f64>> {
        let members = self.by_member(subnets)?;
        Ok((0..subnets.len()).map(|subnet| mean(&members, subnet)).collect())
    }

    /// Predicted accuracy of each subnet with the standard deviation of a measurement about it.
    ///
    /// # Errors
    /// A subnet outside the space; a single member.
    pub(super) fn predict_with_deviation(&self, subnets: &[Subnet]) -> Result<Vec<Prediction>> {
        if self.members.len() < 2 {
            return Err(Error::Predictor(
                "it is a single network, which does not know how sure it is; fit another one with \
                 `ofa predictor --run RUN`"
                    .into(),
            ));
        }
        let members = self.by_member(subnets)?;
        let prediction = |subnet| Prediction {
            accuracy: mean(&members, subnet),
            deviation: (variance(&members, subnet) + f64::from(self.noise).powi(2)).sqrt(),
            doubt: variance(&members, subnet).sqrt(),
        };
        Ok((0..subnets.len()).map(prediction).collect())
    }

    /// By how much each value of each choice raises the mean, to first order about each subnet; an absent choice counts
    /// 0.
    ///
    /// # Errors
    /// A subnet outside the space.
    pub(super) fn effects(&self, subnets: &[Subnet]) -> Result<Vec<Effects>> {
        let features = &self.features;
        let batches = subnets.par_chunks(SLOPES).map(|batch| {
            let ones = batch.iter().map(|subnet| features.of(subnet)).collect::<Result<Vec<_>>>()?;
            let members: Vec<Vec<f32>> = self.members.iter().map(|member| member.slopes(&ones)).collect();
            let of_subnet = |subnet: usize| {
                let slope = |member: &Vec<f32>, input: usize| f64::from(member[subnet * features.count() + input]);
                let sum = |input| members.iter().map(|member| slope(member, input)).sum::<f64>();
                features.effects(|input| sum(input) / members.len() as f64)
            };
            Ok((0..batch.len()).map(of_subnet).collect())
        });
        Ok(batches.collect::<Result<Vec<Vec<_>>>>()?.into_iter().flatten().collect())
    }

    /// Each member's prediction of each subnet.
    fn by_member(&self, subnets: &[Subnet]) -> Result<Vec<Vec<f64>>> {
        let push = |subnet: &Subnet, active: &mut Vec<usize>| self.features.push(subnet, active);
        self.members.iter().map(|member| member.forward(subnets, push)).collect()
    }
}

/// Mean over members of their predictions of subnet number `subnet`.
fn mean(members: &[Vec<f64>], subnet: usize) -> f64 {
    members.iter().map(|member| member[subnet]).sum::<f64>() / members.len() as f64
}

/// Unbiased variance over members; there are two at least.
fn variance(members: &[Vec<f64>], subnet: usize) -> f64 {
    let mean = mean(members, subnet);
    members.iter().map(|member| (member[subnet] - mean).powi(2)).sum::<f64>() / (members.len() - 1) as f64
}

/// Fits all members to `samples`, whose order is random: member `m` does not see the samples `m`, `m + members`, ...
/// The second result is each sample's prediction by the member that did not see it; a single member sees all.
///
/// The noise of the measurements is what remains of those predictions' squared error without the members' variance.
/// Members disagree less on samples that most of them saw than on new ones, so that it is rather too large than too
/// small.
pub(super) fn fit(
    space: &SearchSpace,
    samples: &[Sample],
    settings: &FitSettings,
    seed: u64,
    progress: &mut (dyn FnMut(usize, usize, f64) + Send),
) -> Result<(Ensemble, Option<Vec<f64>>)> {
    let features = Features::new(space);
    let inputs = samples.iter().map(|s| features.of(&s.subnet)).collect::<Result<Vec<_>>>()?;
    let basis = Basis::new(space);
    let folds = settings.members.min(samples.len());
    let done = Mutex::new((0, progress));
    let members = (0..folds)
        .into_par_iter()
        .map(|member| {
            let sees = |index: &usize| folds == 1 || index % folds != member;
            let part: Vec<usize> = (0..samples.len()).filter(sees).collect();
            let inputs: Vec<Vec<usize>> = part.iter().map(|&i| inputs[i].clone()).collect();
            let targets: Vec<f64> = part.iter().map(|&i| samples[i].accuracy).collect();
            let table = Table { basis: &basis, width: features.count(), inputs: &inputs, targets: &targets };
            fit_network(&table, settings, seed, member as u64, &mut |_, steps, rmse| {
                if let Ok(mut done) = done.lock() {
                    done.0 += 1;
                    let so_far = done.0;
                    (done.1)(so_far, steps * folds, rmse);
                }
            })
        })
        .collect::<Result<Vec<Mlp>>>()?;
    let mut ensemble = Ensemble::new(space, members, 0.0);
    if folds == 1 {
        return Ok((ensemble, None));
    }
    let subnets: Vec<Subnet> = samples.iter().map(|s| s.subnet.clone()).collect();
    let predictions = ensemble.by_member(&subnets)?;
    let unseen: Vec<f64> = (0..samples.len()).map(|index| predictions[index % folds][index]).collect();
    let squares = samples.iter().zip(&unseen).map(|(sample, p)| (sample.accuracy - p).powi(2));
    let variances = (0..samples.len()).map(|index| variance(&predictions, index));
    let rest: f64 = squares.zip(variances).map(|(square, variance)| square - variance).sum();
    ensemble.noise = (rest / samples.len() as f64).max(0.0).sqrt() as f32;
    Ok((ensemble, Some(unseen)))
}
