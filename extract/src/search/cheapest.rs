//! The cheapest subnet whose score is good enough: searches of the best score within limits that close in on it.

use super::feasible::smallest;
use super::genome::Genome;
use super::limit::{Limit, Limits, Tables};
use super::table::Table;
use super::{Problem, SearchResult, SearchSettings, search_with_tables};
use crate::effects::EffectsOf;
use crate::{Error, Result};
use ofa_supernet::{SearchSpace, Subnet};
use std::time::Instant;

/// Most searches while the limit is halved.
const HALVINGS: usize = 16;
/// Relative gap between a limit that is met and one that is not, at which halving ends.
const GAP: f64 = 0.002;
/// Most searches just below the cheapest subnet found.
const LAST: usize = 6;
/// Divisor of the budget for a search that starts from the results of another.
pub const WARM: usize = 4;

/// Problem of the cheapest subnet that is good enough.
pub struct Cheapest<'a> {
    /// Search space.
    pub space: &'a SearchSpace,
    /// Least score.
    pub least: f64,
    /// Settings of each search.
    pub settings: &'a SearchSettings,
    /// Most subnets that each search scores; `None` for the strategy's own number.
    pub evaluations: Option<usize>,
    /// Seed.
    pub seed: u64,
    /// Number of best subnets that the result lists.
    pub keep: usize,
    /// Derivatives of the scorer, if it has them.
    pub effects: Option<&'a EffectsOf<'a>>,
    /// Score of subnets, larger being better.
    pub score: &'a (dyn Fn(&[Subnet]) -> Result<Vec<f64>> + Sync),
}

impl Cheapest<'_> {
    /// The subnet with the best score, whatever its value of the last of `limits`.
    ///
    /// # Errors
    /// Errors of [`search`](super::search).
    pub fn best(&self, limits: &mut [Limit]) -> Result<SearchResult> {
        let mut best = self.within(limits, None, f64::INFINITY, &[])?;
        // A file of JSON has no infinity; what the subnet has is its bound.
        best.constraints
            .iter_mut()
            .filter(|limit| limit.limit.is_infinite())
            .for_each(|limit| limit.limit = limit.value);
        Ok(best)
    }

    /// The subnet with the smallest value of the last of `limits`, among those that meet the others and whose score is
    /// large enough; `best` is what [`best`](Self::best) found.
    ///
    /// # Errors
    /// [`Error::Impossible`] if the best has no such score, and errors of [`search`](super::search).
    pub fn find(&self, best: &SearchResult, limits: &mut [Limit]) -> Result<SearchResult> {
        let start = Instant::now();
        let (mut found, mut evaluations) = (best.clone(), 0);
        if best.predicted_accuracy < self.least {
            return Err(self.impossible(best.predicted_accuracy, best));
        }
        let genome = Genome::new(self.space)?;
        let (mut low, tables) = {
            let tabulated = Limits::new(&genome, limits)?;
            (smallest(&genome, &tabulated, limits.len() - 1)?.1, tabulated.tables().to_vec())
        };
        let cost = |result: &SearchResult| result.constraints.last().map_or(f64::INFINITY, |limit| limit.value);
        let mut starts = found.elite.clone();
        for _ in 0..HALVINGS {
            let high = cost(&found);
            if high - low <= GAP * high {
                break;
            }
            // Costs span orders of magnitude.
            let middle = if low > 0.0 { (low * high).sqrt() } else { 0.5 * (low + high) };
            match self.attempt(limits, &tables, middle, &starts, &mut evaluations)? {
                Some(cheaper) => {
                    starts.clone_from(&cheaper.elite);
                    found = cheaper;
                }
                None => low = middle,
            }
        }
        for _ in 0..LAST {
            let below = cost(&found) * (1.0 - 1e-6);
            match self.attempt(limits, &tables, below, &found.elite.clone(), &mut evaluations)? {
                Some(cheaper) => found = cheaper,
                None => break,
            }
        }
        found.evaluations = evaluations;
        found.seconds = start.elapsed().as_secs_f64();
        Ok(found)
    }

    /// The error that the best subnet, `best`, has only this score.
    pub fn impossible(&self, score: f64, best: &SearchResult) -> Error {
        Error::Impossible(format!(
            "no subnet of '{}' within the other limits was found with a score of {:.4}: the best has {score:.4} ('{}')",
            self.space.name, self.least, best.best
        ))
    }

    /// The best subnet within `bound` of the last limit if it is good enough.
    fn attempt(
        &self,
        limits: &mut [Limit],
        tables: &[Option<Table>],
        bound: f64,
        starts: &[Subnet],
        evaluations: &mut usize,
    ) -> Result<Option<SearchResult>> {
        match self.within(limits, Some(tables), bound, starts) {
            Ok(found) => {
                *evaluations += found.evaluations;
                Ok(Some(found).filter(|found| found.predicted_accuracy >= self.least))
            }
            // Other limits may leave no subnet that is so cheap.
            Err(Error::Impossible(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The best subnet within `bound` of the last limit; `tables` are those of the limits, if they are known.
    fn within(
        &self,
        limits: &mut [Limit],
        tables: Option<&[Option<Table>]>,
        bound: f64,
        starts: &[Subnet],
    ) -> Result<SearchResult> {
        if let Some(last) = limits.last_mut() {
            last.bound = bound;
        }
        let budget = self.evaluations.unwrap_or(self.settings.strategy().evaluations());
        let evaluations = Some(if starts.is_empty() { budget } else { (budget / WARM).max(1) });
        let (effects, keep) = (self.effects, self.keep);
        let problem = Problem { evaluations, effects, starts, keep, ..Problem::new(self.space, limits, self.seed) };
        let tables = tables.map(|limits| Tables { limits, against: &[] });
        let mut score = |subnets: &[Subnet]| (self.score)(subnets);
        Ok(search_with_tables(&problem, tables, self.settings, &mut score, &mut |_| ())?.swap_remove(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::testing::{everything, macs, worth};

    #[test]
    fn the_cheapest_of_all_subnets_that_are_good_enough_is_found() {
        let space = SearchSpace::named("tiny").unwrap();
        let all: Vec<(f64, f64)> = everything(&space).iter().map(|s| (worth(s), macs(&space, s))).collect();
        let most = all.iter().map(|pair| pair.0).fold(0.0, f64::max);
        for settings in ["memetic", "evolution"].map(|name| SearchSettings::named(name).unwrap()) {
            for least in [0.75 * most, 0.9 * most, most] {
                let problem = Cheapest {
                    space: &space,
                    least,
                    settings: &settings,
                    evaluations: None,
                    seed: 0,
                    keep: 0,
                    effects: None,
                    score: &|subnets| Ok(subnets.iter().map(worth).collect()),
                };
                let limits = &mut [Limit::new("macs", 1.0, |s| Ok(macs(&space, s)))];
                let best = problem.best(limits).unwrap();
                // A file has no infinity.
                assert_eq!(best.constraints[0].limit, best.constraints[0].value);
                let found = problem.find(&best, limits).unwrap();
                let expected =
                    all.iter().filter(|pair| pair.0 >= least).map(|pair| pair.1).fold(f64::INFINITY, f64::min);
                assert_eq!(
                    (found.constraints[0].value, found.predicted_accuracy >= least),
                    (expected, true),
                    "{least}"
                );
            }
            let problem = Cheapest {
                space: &space,
                least: 1.01 * most,
                settings: &settings,
                evaluations: None,
                seed: 0,
                keep: 0,
                effects: None,
                score: &|subnets| Ok(subnets.iter().map(worth).collect()),
            };
            let limits = &mut [Limit::new("macs", 1.0, |s| Ok(macs(&space, s)))];
            let error = problem.find(&problem.best(limits).unwrap(), limits).unwrap_err();
            assert!(error.to_string().contains("the best has"), "{error}");
        }
    }
}
