//! Several networks instead of one. Each is fitted without another fold of the samples, so that one set of fits gives
//! both the ensemble and honest figures over all samples; where the members disagree, the prediction is less sure.

use super::features::Features;
use super::fit::{FitSettings, Table, fit};
use super::linear::Basis;
use super::mlp::Mlp;
use super::{Predictor, Sample};
use crate::Result;
use ofa_supernet::{SearchSpace, Subnet};
use rayon::prelude::*;
use std::sync::Mutex;

/// Mean over members of their predictions of subnet number `subnet`.
pub(super) fn mean(members: &[Vec<f64>], subnet: usize) -> f64 {
    members.iter().map(|member| member[subnet]).sum::<f64>() / members.len() as f64
}

/// Unbiased variance over members; there are two at least.
pub(super) fn variance(members: &[Vec<f64>], subnet: usize) -> f64 {
    let mean = mean(members, subnet);
    members.iter().map(|member| (member[subnet] - mean).powi(2)).sum::<f64>() / (members.len() - 1) as f64
}

/// Fits all members to `samples`, whose order is random: member `m` does not see the samples `m`, `m + members`, ...
/// The second result is each sample's prediction by the member that did not see it; a single member sees all.
///
/// The noise of the measurements is what remains of those predictions' squared error without the members' variance.
/// Members disagree less on samples that most of them saw than on new ones, so that it is rather too large than too
/// small.
pub(super) fn fit_members(
    space: &SearchSpace,
    samples: &[Sample],
    settings: &FitSettings,
    seed: u64,
    progress: &mut (dyn FnMut(usize, usize, f64) + Send),
) -> Result<(Predictor, Option<Vec<f64>>)> {
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
            fit(&table, settings, seed, member as u64, &mut |_, steps, rmse| {
                if let Ok(mut done) = done.lock() {
                    done.0 += 1;
                    let so_far = done.0;
                    (done.1)(so_far, steps * folds, rmse);
                }
            })
        })
        .collect::<Result<Vec<Mlp>>>()?;
    let mut predictor = Predictor { space: space.clone(), members, noise: 0.0, origin: None };
    if folds == 1 {
        return Ok((predictor, None));
    }
    let subnets: Vec<Subnet> = samples.iter().map(|s| s.subnet.clone()).collect();
    let predictions = predictor.by_member(&subnets)?;
    let unseen: Vec<f64> = (0..samples.len()).map(|index| predictions[index % folds][index]).collect();
    let squares = samples.iter().zip(&unseen).map(|(sample, p)| (sample.accuracy - p).powi(2));
    let variances = (0..samples.len()).map(|index| variance(&predictions, index));
    let rest: f64 = squares.zip(variances).map(|(square, variance)| square - variance).sum();
    predictor.noise = (rest / samples.len() as f64).max(0.0).sqrt() as f32;
    Ok((predictor, Some(unseen)))
}
