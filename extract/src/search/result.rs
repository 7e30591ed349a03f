//! What a search found, as `search/NAME.json` stores it.

use super::{Generation, Limit, SearchSettings};
use crate::Result;
use crate::predictor::other_weights;
use ofa_supernet::Subnet;
use serde::{Deserialize, Serialize};

/// What a search found, and how. Equal for equal input and seed but for `seconds`, which is not written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SearchResult {
    /// The limits, with the best subnet's values.
    pub constraints: Vec<ConstraintValue>,
    /// Strategy and constants.
    pub settings: SearchSettings,
    /// Seed.
    pub seed: u64,
    /// The best subnet that meets all limits.
    pub best: Subnet,
    /// Score: the predicted accuracy when the scorer is a predictor.
    pub predicted_accuracy: f64,
    /// Standard deviation of the prediction, where the predictor knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_deviation: Option<f64>,
    /// The scores of the search (in `history`, `top` and `front`) are predicted accuracies less so many deviations.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub pessimism: f64,
    /// Accuracy on the supernet, where the scorer or a later [`verify`](Self::verify) measured it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_accuracy: Option<f64>,
    /// Different subnets that were scored.
    pub evaluations: usize,
    /// The best of each generation.
    pub history: Vec<Generation>,
    /// The best different subnets that meet all limits, best first: as many as [`Problem::keep`] asks for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<Candidate>,
    /// What the front is drawn against, such as `laptop:latency`; empty without a front.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub against: Vec<String>,
    /// Subnets of which none is better in everything than another, by rising score.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub front: Vec<FrontPoint>,
    /// What the scores rest on; `None` if the result does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basis: Option<Basis>,
    /// How long it took.
    #[serde(skip)]
    pub seconds: f64,
}

/// What the scores of a search rest on. The result is out of date as soon as a part of it has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Basis {
    /// Checksum of the supernet's weights whose accuracies the scores are; `None` for a predictor that does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// Checksum of the predictor; `None` if accuracies were measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predictor: Option<String>,
}

impl Basis {
    /// Why a result on this basis is out of date beside the supernet with the weights' checksum `weights` and the
    /// predictor with the checksum `predictor` (`None`: there is none), in words; `None` if it is not.
    pub fn outdated(&self, weights: &str, predictor: Option<&str>) -> Option<String> {
        let weights = self.weights.as_ref().and_then(|before| other_weights(before, weights));
        if let Some(other) = weights {
            return Some(format!("it was found for {other}"));
        }
        match (&self.predictor, predictor) {
            (Some(before), Some(now)) if now != before => Some("it was found with an earlier predictor".to_string()),
            _ => None,
        }
    }
}

impl SearchResult {
    /// Limits scores that are predicted accuracies to 0 to 1. The search itself ranks what the predictor says, which
    /// may lie outside: limited before, the best candidates would be equal. Pessimistic scores keep values below 0.
    pub fn limit_predictions(&mut self) {
        let least = if self.pessimism > 0.0 { f64::NEG_INFINITY } else { 0.0 };
        let scores = self.history.iter_mut().map(|generation| &mut generation.score);
        let scores = scores.chain(self.top.iter_mut().map(|candidate| &mut candidate.score));
        let scores = scores.chain(self.front.iter_mut().map(|point| &mut point.score));
        scores.for_each(|score| *score = score.clamp(least, 1.0));
        self.predicted_accuracy = self.predicted_accuracy.clamp(0.0, 1.0);
    }

    /// Measures the subnets of [`top`](Self::top) and makes the best measured one the result (of equal ones that with
    /// the better score).
    ///
    /// # Errors
    /// What `measure` and the limits' measures say.
    pub fn verify(&mut self, limits: &[Limit], measure: &mut dyn FnMut(&Subnet) -> Result<f64>) -> Result<()> {
        let mut best: Option<(f64, usize)> = None;
        for (place, candidate) in self.top.iter_mut().enumerate() {
            let accuracy = measure(&candidate.subnet)?;
            candidate.measured_accuracy = Some(accuracy);
            if best.is_none_or(|(highest, _)| accuracy > highest) {
                best = Some((accuracy, place));
            }
        }
        if let Some((accuracy, place)) = best {
            self.best = self.top[place].subnet.clone();
            self.predicted_accuracy = self.top[place].score;
            self.measured_accuracy = Some(accuracy);
            for (value, limit) in self.constraints.iter_mut().zip(limits) {
                value.value = limit.value(&self.best)?;
            }
        }
        Ok(())
    }
}

/// A limit and the value of the subnet that was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConstraintValue {
    /// The limit's name, such as `laptop:latency=12ms`.
    pub constraint: String,
    /// Largest allowed value, in the metric's base unit (ms, count, bytes).
    pub limit: f64,
    /// The subnet's value.
    pub value: f64,
    /// Images of one run that is limited: the batch of a latency's profile, otherwise 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub batch: usize,
}

/// A subnet among the best.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Which.
    pub subnet: Subnet,
    /// Score.
    pub score: f64,
    /// Accuracy on the supernet, where it was measured after the search.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_accuracy: Option<f64>,
}

/// A subnet on the front.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrontPoint {
    /// Which.
    pub subnet: Subnet,
    /// Score.
    pub score: f64,
    /// Costs, in the order of [`SearchResult::against`], in their base units (ms, count, bytes).
    pub values: Vec<f64>,
}

fn one() -> usize {
    1
}

fn is_one(value: &usize) -> bool {
    *value == 1
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}
