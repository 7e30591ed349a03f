//! Where a predictor comes from, and what is to be thought of it.

use super::Predictor;
use super::provenance::{Provenance, other_weights};
use serde::{Deserialize, Serialize};

/// Where a predictor comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Published by the authors of once-for-all, for a supernet whose weights are not known here.
    Published,
    /// Fitted by [`Predictor::fit`].
    Fitted {
        /// Conditions of the samples' measurements; `None` if not recorded.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        measured_with: Option<Provenance>,
        /// Number of held-out subnets that the predictor was judged on.
        held_out: usize,
        /// Kendall's tau on the held-out subnets; `None` if undefined.
        kendall_tau: Option<f64>,
        /// Whether the accuracies were measured elsewhere, so that their conditions are not known.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        imported: bool,
    },
}

/// Kendall's tau below which a predictor's order is of no use for a search: fewer than two thirds of the pairs of
/// subnets are in the right order.
const POOR_TAU: f64 = 0.3;

/// Kendall's tau from which a predictor's ranking is good, and from which it is fair.
const GOOD_TAU: f64 = 0.85;
const FAIR_TAU: f64 = 0.6;

/// Fewest held-out subnets by whose order a predictor is judged: with 10 chance alone gives tau a deviation of 0.25.
const FEWEST_JUDGED: usize = 10;

/// Word for a ranking that can be trusted.
const GOOD: &str = "good";

/// Advice where all accuracies were measured elsewhere, perhaps without a supernet that could be measured.
const MORE_ACCURACIES: &str = "import more accuracies (`ofa predictor --run RUN --import`)";

/// Doubt about a predictor whose weights are not known.
const UNKNOWN_WEIGHTS: &str = "this predictor of an earlier version does not record the weights it was fitted for; fit it again with `ofa predictor --run RUN --discard`";

impl Predictor {
    /// Reasons to doubt a search of the supernet whose weights have the checksum `weights` with this predictor, each in
    /// a sentence.
    pub fn doubts(&self, weights: &str) -> Vec<String> {
        let mut doubts = Vec::new();
        match &self.origin {
            Some(Origin::Published) => {}
            Some(Origin::Fitted { measured_with, held_out, kendall_tau, imported }) => {
                match measured_with {
                    None if *imported => {}
                    Some(provenance) => doubts.extend(other_weights(&provenance.weights, weights).map(|other| {
                        format!(
                            "the predictor was fitted for {other}; fit it again with `ofa predictor --run RUN \
                             --discard`"
                        )
                    })),
                    None => doubts.push(UNKNOWN_WEIGHTS.to_string()),
                }
                // A few are no ground to doubt, unless they have no order at all.
                if kendall_tau.is_none_or(|tau| *held_out >= FEWEST_JUDGED && tau < POOR_TAU) {
                    let tau = kendall_tau.map_or("undefined".to_string(), |tau| format!("{tau:.2}"));
                    let advice = if *imported && measured_with.is_none() {
                        MORE_ACCURACIES
                    } else {
                        "measure more subnets (--samples) or on more images (--images), or search with \
                         `--score measured`"
                    };
                    doubts.push(format!(
                        "Kendall's tau is {tau} on {held_out} held-out subnets (1 is the right order, 0 chance), so predictions rank \
                         subnets poorly; {advice}"
                    ));
                }
            }
            None => doubts.push(UNKNOWN_WEIGHTS.to_string()),
        }
        doubts
    }

    /// A sentence about how well the predictor ranks subnets that it was not fitted on, and what to do; `None` if that
    /// is not known.
    pub fn judgement(&self) -> Option<String> {
        let Some(Origin::Fitted { held_out, kendall_tau, measured_with, imported }) = &self.origin else { return None };
        let (word, advice) = match kendall_tau {
            _ if *held_out < FEWEST_JUDGED => {
                ("too few to judge", "measure more subnets (`ofa predictor --run RUN --samples`)")
            }
            Some(tau) if *tau >= GOOD_TAU => (GOOD, "its ranking can be trusted"),
            Some(tau) if *tau >= FAIR_TAU => ("fair", "verify the best subnets (--verify 10)"),
            Some(tau) if *tau >= POOR_TAU => (
                "weak",
                "measure on more images (`ofa predictor --run RUN --images`), then more subnets (--samples), and verify the best (--verify 10)",
            ),
            _ => (
                "poor",
                "measure on more images (`ofa predictor --run RUN --images`), then more subnets (--samples), or search with --score measured",
            ),
        };
        // There need be no supernet to measure.
        let advice = if *imported && measured_with.is_none() && word != GOOD { MORE_ACCURACIES } else { advice };
        let tau = kendall_tau.map_or("undefined".to_string(), |tau| format!("{tau:.2}"));
        Some(format!("predictor: Kendall's tau {tau} on {held_out} held-out subnets: {word}; {advice}"))
    }
}
