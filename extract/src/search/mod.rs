//! The best subnet within limits.
//!
//! A strategy is a file with a function that takes the space, the [`Limit`]s, a scorer (a predictor, or anything else that gives each
//! subnet a number, larger being better), its settings and a seed, and returns a [`SearchResult`].
//!
//! | module | concern |
//! | --- | --- |
//! | [`evolution`] | evolutionary search (paper §3.4) |
//! | [`feasible`] | smallest reachable values, repair of subnets that break a limit |

pub mod evolution;
pub mod feasible;

pub use evolution::{EvolutionSettings, evolve};

use crate::{Constraint, Error, Measures, Result};
use ofa_supernet::Subnet;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Measures a subnet.
type Measure<'a> = Box<dyn Fn(&Subnet) -> Result<f64> + 'a>;

/// An upper limit on something that can be measured of a subnet.
pub struct Limit<'a> {
    /// What the limit is called in results; a constraint's text when it comes from one.
    pub name: String,
    /// Largest allowed value.
    pub bound: f64,
    measure: Measure<'a>,
    show: Box<dyn Fn(f64) -> String + 'a>,
}

impl<'a> Limit<'a> {
    /// An own limit: `measure(subnet) <= bound`. Measures are expected to be positive and to grow with the network, as costs do.
    pub fn new(name: impl Into<String>, bound: f64, measure: impl Fn(&Subnet) -> Result<f64> + 'a) -> Self {
        let show = Box::new(|value: f64| value.to_string());
        Limit { name: name.into(), bound, measure: Box::new(measure), show }
    }

    /// The limit that `constraint` asks for.
    ///
    /// # Errors
    /// A latency limit on a device that `measures` has no profile of.
    pub fn from_constraint(constraint: &Constraint, measures: &'a Measures) -> Result<Self> {
        if constraint.metric == crate::Metric::Latency {
            measures.device(&constraint.device)?;
        }
        let metric = constraint.metric;
        let asked = constraint.clone();
        Ok(Limit {
            name: constraint.to_string(),
            bound: constraint.limit,
            measure: Box::new(move |subnet| measures.value(&asked, subnet)),
            show: Box::new(move |value| metric.show(value)),
        })
    }

    /// The measured value of `subnet`.
    ///
    /// # Errors
    /// What the measure says, or a value that is no number.
    pub fn value(&self, subnet: &Subnet) -> Result<f64> {
        let value = (self.measure)(subnet)?;
        if value.is_finite() {
            return Ok(value);
        }
        Err(Error::Search(format!("the measure of '{}' gives {value} for '{subnet}'; expected a number", self.name)))
    }

    /// `value` with its unit.
    pub fn show(&self, value: f64) -> String {
        (self.show)(value)
    }
}

/// By how much `subnet` breaks the limits: the sum of the excesses, each as a fraction of its bound; 0 when all hold.
///
/// # Errors
/// As [`Limit::value`].
pub fn violation(limits: &[Limit], subnet: &Subnet) -> Result<f64> {
    let mut sum = 0.0;
    for limit in limits {
        let excess = limit.value(subnet)? - limit.bound;
        if excess > 0.0 {
            sum += excess / limit.bound.abs().max(f64::MIN_POSITIVE);
        }
    }
    Ok(sum)
}

/// A strategy with its settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "strategy", rename_all = "snake_case")]
pub enum SearchSettings {
    /// Evolutionary search.
    Evolution(EvolutionSettings),
}

/// What a search found, and how. Equal for equal input and seed but for `seconds`, which is not written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SearchResult {
    /// The limits, with the best subnet's values.
    pub constraints: Vec<ConstraintValue>,
    /// Strategy and settings.
    pub settings: SearchSettings,
    /// Seed.
    pub seed: u64,
    /// The best subnet that meets all limits.
    pub best: Subnet,
    /// Its score: the predicted accuracy when the scorer is a predictor.
    pub predicted_accuracy: f64,
    /// Different subnets that were scored.
    pub evaluations: usize,
    /// The best of each generation.
    pub history: Vec<Generation>,
    /// How long it took.
    #[serde(skip)]
    pub seconds: f64,
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
}

/// A generation's best.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// Number, from 0 (the random start). The final local search counts as one more.
    pub generation: usize,
    /// Different subnets scored until then.
    pub evaluations: usize,
    /// Best subnet until then.
    pub best: Subnet,
    /// Its score.
    pub score: f64,
}

/// A scorer that asks about each subnet once.
pub(crate) struct Scores<'s> {
    scorer: &'s mut dyn FnMut(&[Subnet]) -> Result<Vec<f64>>,
    known: HashMap<Subnet, f64>,
}

impl<'s> Scores<'s> {
    pub(crate) fn new(scorer: &'s mut dyn FnMut(&[Subnet]) -> Result<Vec<f64>>) -> Self {
        Scores { scorer, known: HashMap::new() }
    }

    /// Different subnets scored so far.
    pub(crate) fn evaluations(&self) -> usize {
        self.known.len()
    }

    /// Whether `subnet` has been scored.
    pub(crate) fn knows(&self, subnet: &Subnet) -> bool {
        self.known.contains_key(subnet)
    }

    /// The score of each subnet; the scorer sees only those that are new.
    pub(crate) fn of(&mut self, subnets: &[Subnet]) -> Result<Vec<f64>> {
        let mut fresh: Vec<Subnet> = Vec::new();
        for subnet in subnets {
            if !self.known.contains_key(subnet) {
                // Holds the place of a subnet that occurs twice in `subnets`.
                self.known.insert(subnet.clone(), f64::NAN);
                fresh.push(subnet.clone());
            }
        }
        if !fresh.is_empty() {
            let scores = (self.scorer)(&fresh)?;
            if scores.len() != fresh.len() {
                return Err(Error::Search(format!(
                    "the scorer gave {} scores for {} subnets",
                    scores.len(),
                    fresh.len()
                )));
            }
            for (subnet, score) in fresh.into_iter().zip(scores) {
                if !score.is_finite() {
                    return Err(Error::Search(format!("the scorer gave {score} for '{subnet}'; expected a number")));
                }
                self.known.insert(subnet, score);
            }
        }
        Ok(subnets.iter().map(|s| self.known[s]).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofa_supernet::SearchSpace;

    #[test]
    fn nothing_is_scored_twice_and_bad_scores_are_refused() {
        let space = SearchSpace::named("tiny").unwrap();
        let (a, b) = (space.smallest(), space.largest());
        let mut seen = Vec::new();
        let mut scorer = |subnets: &[Subnet]| {
            seen.extend_from_slice(subnets);
            Ok(subnets.iter().map(|s| s.resolution as f64).collect())
        };
        let mut scores = Scores::new(&mut scorer);
        assert_eq!(scores.of(&[a.clone(), b.clone(), a.clone()]).unwrap(), [16.0, 32.0, 16.0]);
        assert_eq!(scores.of(std::slice::from_ref(&b)).unwrap(), [32.0]);
        assert_eq!(scores.evaluations(), 2);
        assert_eq!(seen, [a.clone(), b]);
        assert!(Scores::new(&mut |_: &[Subnet]| Ok(vec![])).of(std::slice::from_ref(&a)).is_err());
        assert!(Scores::new(&mut |_: &[Subnet]| Ok(vec![f64::NAN])).of(std::slice::from_ref(&a)).is_err());
    }

    #[test]
    fn settings_have_defaults_and_refuse_unknown_keys() {
        let settings: SearchSettings = serde_json::from_str(r#"{"strategy": "evolution", "generations": 7}"#).unwrap();
        let expected = EvolutionSettings { generations: 7, ..EvolutionSettings::default() };
        assert_eq!(settings, SearchSettings::Evolution(expected));
        assert!(serde_json::from_str::<SearchSettings>(r#"{"strategy": "evolution", "colour": 7}"#).is_err());
    }
}
