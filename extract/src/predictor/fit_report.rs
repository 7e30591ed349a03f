//! Quality of a fit, as `predictor/fit.json` holds it.

#[cfg(doc)]
use super::attainable_tau;
use super::{FitSettings, Provenance};
use ofa_supernet::Subnet;
use serde::{Deserialize, Serialize};

/// Quality of a fit, judged on samples that it did not see.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FitReport {
    /// Number of distinct subnets given.
    pub samples: usize,
    /// Number of them that were held out (a fifth, drawn by seed); the figures below are of these.
    pub held_out: usize,
    /// Root mean squared error, in accuracy (0.01 is one point).
    pub rmse: f64,
    /// Pearson correlation; `None` (null) if undefined, since all measured or all predicted values are equal.
    pub pearson: Option<f64>,
    /// Kendall's tau-b, the agreement of the order, which a search needs; `None` as for `pearson`.
    pub kendall_tau: Option<f64>,
    /// Tau that the true accuracies would reach, given the noise of measuring ([`attainable_tau`]); `None` if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attainable_tau: Option<f64>,
    /// Standard deviation of measured accuracies about those that log-likelihoods tell; `None` if the fit is to the
    /// measured ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measuring: Option<f64>,
    /// Networks that were fitted; 0 for a Gaussian process.
    pub members: usize,
    /// Each sample that was not held out, predicted without being seen: by the member that did not, or by a Gaussian
    /// process of all others; `None` for a single member.
    pub cross_validation: Option<CrossValidation>,
    /// Agreement of the deviations with the held-out samples; `None` for a single member.
    pub calibration: Option<Calibration>,
    /// Conditions of the samples' measurements; `None` if not recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_with: Option<Provenance>,
    /// Seed of split, weights and order.
    pub seed: u64,
    /// Settings of the fit.
    pub settings: FitSettings,
    /// Measured and predicted accuracy of each held-out subnet.
    pub pairs: Vec<HeldOut>,
}

impl FitReport {
    /// Checks what a file may have damaged; the error is a part of a sentence.
    ///
    /// # Errors
    /// Numbers that do not belong together, or settings of no fit.
    pub fn validate(&self) -> Result<(), String> {
        let (pairs, held_out, samples) = (self.pairs.len(), self.held_out, self.samples);
        if pairs != held_out || held_out > samples {
            return Err(format!("holds {pairs} pairs of {held_out} held-out subnets among {samples} samples"));
        }
        self.settings.validate().map_err(|error| error.to_string())
    }
}

/// Figures over all folds, each predicted without being seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CrossValidation {
    /// Folds: as many as members, or for a Gaussian process as many as samples.
    pub folds: usize,
    /// Root mean squared error, in accuracy.
    pub rmse: f64,
    /// Pearson correlation; `None` if undefined.
    pub pearson: Option<f64>,
    /// Kendall's tau-b; `None` if undefined.
    pub kendall_tau: Option<f64>,
}

/// Calibration of a predictor's deviations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Fraction of the held-out accuracies within the interval that should hold 90 % of them: 1.645 deviations either
    /// way.
    pub within_90: f64,
    /// Mean deviation, in accuracy.
    pub mean_deviation: f64,
}

/// Held-out subnet, measured and predicted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeldOut {
    /// The subnet.
    pub subnet: Subnet,
    /// Measured accuracy.
    pub measured: f64,
    /// Predicted accuracy, clipped to 0 to 1; the figures of the report use unclipped predictions.
    pub predicted: f64,
    /// Deviation of the prediction; `None` for a single member.
    pub deviation: Option<f64>,
}
