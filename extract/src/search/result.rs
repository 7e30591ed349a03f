//! Result of a search, as `search/NAME.json` stores it.

use super::{Generation, Limit, SearchSettings};
use crate::Result;
use crate::predictor::{Provenance, other_weights};
use ofa_supernet::Subnet;
use serde::{Deserialize, Serialize};

/// Result of a search, with its problem and settings. Equal input and seed give equal results except for `seconds`,
/// which is not written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SearchResult {
    /// Limits, with the best subnet's values.
    pub constraints: Vec<ConstraintValue>,
    /// Strategy and its settings.
    pub settings: SearchSettings,
    /// Seed.
    pub seed: u64,
    /// The best subnet that meets all limits.
    pub best: Subnet,
    /// Score of the best subnet: the predicted accuracy if the scorer is a predictor.
    pub predicted_accuracy: f64,
    /// Standard deviation of the prediction, if the predictor gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_deviation: Option<f64>,
    /// Number of deviations by which the search's scores (in `history`, `top` and `front`) are below the predicted
    /// accuracies.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub pessimism: f64,
    /// Accuracy on the supernet, if the scorer or a later measurement of [`top`](Self::top) gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_accuracy: Option<f64>,
    /// Number of distinct subnets that were scored.
    pub evaluations: usize,
    /// Best subnet after each generation.
    pub history: Vec<Generation>,
    /// Best distinct subnets that meet all limits, best first: as many as [`Problem::keep`](super::Problem::keep) asks
    /// for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<Candidate>,
    /// Costs that the front is drawn against, such as `laptop:latency`; empty without a front.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub against: Vec<String>,
    /// Subnets that do not dominate each other, by rising score.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub front: Vec<FrontPoint>,
    /// Good subnets that differ from one another, best first: starts for a search within another limit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub elite: Vec<Subnet>,
    /// Weights and predictor behind the scores; `None` if not recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basis: Option<Basis>,
    /// How subnets were scored; `None` in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scoring: Option<Scoring>,
    /// Fraction of the box of costs up to those of the largest subnet, and scores from 0 to 1, that the front
    /// dominates; `None` without a front.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hypervolume: Option<f64>,
    /// Duration of the search in seconds.
    #[serde(skip)]
    pub seconds: f64,
}

/// How the subnets of a search were scored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scoring {
    /// Source of accuracies: `predictor` or `measured`.
    pub score: String,
    /// Most subnets to score; `None` for the strategy's own number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluations: Option<usize>,
    /// Number of best subnets that were measured after the search.
    #[serde(default, skip_serializing_if = "no_subnets")]
    pub verify: usize,
    /// Least accuracy, if the last of the limits is the cost that was made small for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_least: Option<f64>,
    /// Conditions of measured accuracies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_with: Option<Provenance>,
}

/// Weights and predictor behind the scores of a search. The result is outdated as soon as one of them changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Basis {
    /// Checksum of the supernet's weights whose accuracies the scores are; `None` if the predictor does not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// Checksum of the predictor; `None` if accuracies were measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predictor: Option<String>,
}

impl Basis {
    /// Reason why a result on this basis is outdated, given the checksums `weights` of the supernet's weights and
    /// `predictor` of the predictor (`None` if there is none); `None` if it is not.
    pub fn outdated(&self, weights: &str, predictor: Option<&str>) -> Option<String> {
        let weights = self.weights.as_ref().and_then(|before| other_weights(before, weights));
        if let Some(other) = weights {
            return Some(format!("the result was found for {other}"));
        }
        match (&self.predictor, predictor) {
            (Some(before), Some(now)) if now != before => {
                Some("the result was found with an earlier predictor".to_string())
            }
            _ => None,
        }
    }
}

impl SearchResult {
    /// Whether both are results of one search: of equal limits and settings, perhaps with another predictor.
    pub fn is_same_search(&self, other: &SearchResult) -> bool {
        let problem = |result: &SearchResult| -> (Vec<String>, Vec<String>, u64, f64) {
            // The limit of a cost that is made small follows from the search.
            let names = result.constraints.iter().map(|limit| limit.constraint.clone()).collect();
            (names, result.against.clone(), result.seed, result.pessimism)
        };
        problem(self) == problem(other) && self.settings == other.settings && self.scoring == other.scoring
    }

    /// Whether a predictor gave the accuracies; otherwise they were measured.
    pub fn is_predicted(&self) -> bool {
        self.scoring.as_ref().is_none_or(|scoring| scoring.score != "measured")
    }

    /// The front as a table of comma-separated values, with a column for each cost in its base unit (ms, count, bytes).
    pub fn front_csv(&self) -> String {
        let mut text = self.against.iter().map(|cost| format!("{cost},")).collect::<String>() + "accuracy,subnet\n";
        for FrontPoint { subnet, score, values } in &self.front {
            values.iter().for_each(|value| text += &format!("{value},"));
            text += &format!("{score},\"{subnet}\"\n");
        }
        text
    }

    /// Clamps scores that are predicted accuracies to 0 to 1. The search itself ranks unclamped predictions, since
    /// clamping would make the best candidates equal. Pessimistic scores keep values below 0.
    pub fn limit_predictions(&mut self) {
        let least = if self.pessimism > 0.0 { f64::NEG_INFINITY } else { 0.0 };
        let scores = self.history.iter_mut().map(|generation| &mut generation.score);
        let scores = scores.chain(self.top.iter_mut().map(|candidate| &mut candidate.score));
        let scores = scores.chain(self.front.iter_mut().map(|point| &mut point.score));
        scores.for_each(|score| *score = score.clamp(least, 1.0));
        self.predicted_accuracy = self.predicted_accuracy.clamp(0.0, 1.0);
    }

    /// Makes the best measured subnet of [`top`](Self::top) the result (among equal ones that with the better score).
    ///
    /// # Errors
    /// Errors of the limits' measures.
    pub fn choose_measured(&mut self, limits: &[Limit]) -> Result<()> {
        let mut best: Option<(f64, usize)> = None;
        for (index, candidate) in self.top.iter().enumerate() {
            if let Some(accuracy) = candidate.measured_accuracy
                && best.is_none_or(|(highest, _)| accuracy > highest)
            {
                best = Some((accuracy, index));
            }
        }
        if let Some((accuracy, index)) = best {
            self.best = self.top[index].subnet.clone();
            self.predicted_accuracy = self.top[index].score;
            self.measured_accuracy = Some(accuracy);
            for (value, limit) in self.constraints.iter_mut().zip(limits) {
                value.value = limit.value(&self.best)?;
            }
        }
        Ok(())
    }
}

/// Limit, with the best subnet's value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConstraintValue {
    /// The limit's name, such as `laptop:latency=12ms`.
    pub constraint: String,
    /// Largest allowed value, in the metric's base unit (ms, count, bytes). Earlier versions wrote `null` for none.
    #[serde(deserialize_with = "number_or_infinity")]
    pub limit: f64,
    /// Value of the best subnet.
    pub value: f64,
    /// Images of one limited run: the batch of a latency's profile, otherwise 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub batch: usize,
}

fn number_or_infinity<'de, D: serde::Deserializer<'de>>(input: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(input)?.unwrap_or(f64::INFINITY))
}

/// Subnet among the best.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The subnet.
    pub subnet: Subnet,
    /// Score.
    pub score: f64,
    /// Accuracy on the supernet, if it was measured after the search.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_accuracy: Option<f64>,
}

/// Subnet on the front.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrontPoint {
    /// The subnet.
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

fn no_subnets(count: &usize) -> bool {
    *count == 0
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}
