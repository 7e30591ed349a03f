//! Rounds of measuring and refitting, for few, expensive scores (Cummings et al., LINAS, arXiv 2205.10358): the
//! predictor's Gaussian process is fitted to all scores so far, a search of its predictions proposes subnets, and these
//! are scored. With costs to be drawn against, the proposals cover the predicted front.

use super::genome::Genes;
use super::limit::Tables;
use super::memetic::Memetic;
use super::pareto::{Pareto, first_front};
use super::search_with_tables;
use super::strategies::{SearchSettings, Setting, SettingValue, Strategy};
use super::task::{Problem, Scored, Task, rank};
use crate::Result;
use crate::gaussian_process::expected_improvement;
use crate::predictor::{Predictor, Sample};
use ofa_supernet::Subnet;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Most evaluations of the predictions that a round's search spends.
const PREDICTIONS: usize = 8_000;
/// Generations of a round's search for a front.
const GENERATIONS: usize = 80;
/// Best predicted subnets, as a multiple of those that are scored, among which expected improvement chooses.
const CHOICE: usize = 20;

/// Divisor of the scores so far that gives the smallest number of a round.
const GROWTH: usize = 8;

/// Settings of the rounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rounds {
    /// Random subnets at the start; at most a fifth of a small budget.
    pub first_round: usize,
    /// Subnets that are scored between two fits; at most a tenth of a small budget.
    pub round: usize,
}

impl Default for Rounds {
    fn default() -> Self {
        Rounds { first_round: 60, round: 40 }
    }
}

impl Strategy for Rounds {
    fn description(&self) -> &'static str {
        "Rounds of scoring, refitting the predictor and searching its predictions: for few, expensive evaluations"
    }

    fn settings(&mut self) -> Vec<Setting<'_>> {
        use SettingValue::Whole;
        vec![
            Setting::new("first_round", "Random subnets at the start", Whole(&mut self.first_round, 2..=100_000)),
            Setting::new(
                "round",
                "Subnets scored between two fits of the predictor",
                Whole(&mut self.round, 1..=10_000),
            ),
        ]
    }

    fn evaluations(&self) -> usize {
        500
    }

    fn draws_front(&self) -> bool {
        true
    }

    fn run(&self, task: &mut Task) -> Result<()> {
        let initial = self.first_round.min(task.budget() / 5).max(2);
        let batch = self.round.min(task.budget() / 10).max(1);
        let mut scored = task.score(random(task, 0, initial)?)?;
        task.record();
        for round in 1.. {
            if task.is_over() {
                break;
            }
            let before = task.remaining();
            let wanted = match Predictor::of_scores(&samples(task, &scored), task.rules().genome.space())? {
                // Many scores change little by a few more.
                Some(predictor) => self.proposals(task, &predictor, batch.max(scored.len() / GROWTH), round)?,
                None => Vec::new(),
            };
            scored.extend(task.score(wanted)?);
            if task.remaining() == before {
                // The search proposes nothing new: the space is small, or the scores are all equal.
                scored.extend(task.score(random(task, round, batch)?)?);
            }
            task.record();
            if task.remaining() == before {
                break;
            }
        }
        if !task.rules().against.limits().is_empty() {
            task.front = first_front(task.rules(), &scored)?;
        }
        Ok(())
    }
}

/// Random candidates that meet the limits.
fn random(task: &Task, round: u64, count: usize) -> Result<Vec<Genes>> {
    let rules = task.rules();
    let draw = |index: u64| {
        let mut rng = rules.rng(&[round, index]);
        rules.repair(rules.genome.sample(&mut rng), &mut rng)
    };
    (0..count as u64).into_par_iter().map(draw).collect()
}

fn samples(task: &Task, scored: &[Scored]) -> Vec<Sample> {
    let mut seen = HashSet::new();
    let fresh = scored.iter().filter(|(_, genes)| seen.insert(genes));
    fresh.map(|(score, genes)| Sample::new(task.rules().genome.decode(genes), *score)).collect()
}

impl Rounds {
    /// Subnets to score next.
    fn proposals(&self, task: &Task, predictor: &Predictor, count: usize, round: u64) -> Result<Vec<Genes>> {
        let rules = task.rules();
        let effects = |subnets: &[Subnet]| predictor.effects(rules.genome.space(), subnets);
        let problem = Problem {
            against: rules.against.limits(),
            evaluations: Some(PREDICTIONS),
            keep: CHOICE * count,
            effects: Some(&effects),
            ..Problem::new(rules.genome.space(), rules.limits.limits(), rules.seed.wrapping_add(round))
        };
        let draws_front = !problem.against.is_empty();
        let settings = match draws_front {
            true => SearchSettings::Pareto(Pareto { generations: GENERATIONS, ..Pareto::default() }),
            false => SearchSettings::Memetic(Memetic::default()),
        };
        let tables = Some(Tables { limits: rules.limits.tables(), against: rules.against.tables() });
        let mut score = |subnets: &[Subnet]| predictor.predict(subnets);
        let found = search_with_tables(&problem, tables, &settings, &mut score, &mut |_| ())?.swap_remove(0);
        let subnets: Vec<Subnet> = match draws_front {
            true => found.front.into_iter().map(|point| point.subnet).collect(),
            false => found.elite.into_iter().chain(found.top.into_iter().map(|candidate| candidate.subnet)).collect(),
        };
        let mut seen = HashSet::new();
        let mut fresh = Vec::with_capacity(subnets.len());
        for subnet in subnets {
            let genes = rules.genome.encode(&subnet)?;
            if !task.known.contains_key(&genes) && seen.insert(genes.clone()) {
                fresh.push((subnet, genes));
            }
        }
        if draws_front {
            // Evenly along the front, whose order is that of scores, with both its ends.
            let kept = count.min(fresh.len());
            return Ok((0..kept).map(|index| fresh[super::evenly(index, kept, fresh.len())].1.clone()).collect());
        }
        let best = task.best().map_or(f64::NEG_INFINITY, |best| best.0);
        let (subnets, genes): (Vec<Subnet>, Vec<Genes>) = fresh.into_iter().unzip();
        let predictions = predictor.predict_with_deviation(&subnets)?;
        let improvement = predictions.iter().map(|p| expected_improvement(p.accuracy, p.deviation, best));
        let mut ranked: Vec<Scored> = improvement.zip(genes).collect();
        rank(&mut ranked);
        Ok(ranked.into_iter().take(count).map(|(_, genes)| genes).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::testing::{macs, worth};
    use crate::search::{Limit, evenly, search};
    use ofa_supernet::SearchSpace;

    #[test]
    fn a_front_in_rounds_has_both_ends() {
        let space = SearchSpace::named("tiny").unwrap();
        let against = [Limit::new("macs", f64::INFINITY, |subnet| Ok(macs(&space, subnet)))];
        let problem = Problem { against: &against, evaluations: Some(60), ..Problem::new(&space, &[], 0) };
        let settings = SearchSettings::Rounds(Rounds::default());
        let mut scorer = |subnets: &[Subnet]| Ok(subnets.iter().map(worth).collect());
        let front = search(&problem, &settings, &mut scorer, &mut |_| ()).unwrap().front;
        let ends = [front.first(), front.last()].map(|point| point.unwrap().subnet.clone());
        assert_eq!(ends, [space.smallest(), space.largest()]);
    }

    #[test]
    fn even_places_have_both_ends() {
        let places = |count: usize, len: usize| (0..count).map(|index| evenly(index, count, len)).collect::<Vec<_>>();
        assert_eq!(places(1, 7), [6]);
        assert_eq!(places(3, 7), [0, 3, 6]);
        assert_eq!(places(4, 4), [0, 1, 2, 3]);
        let sizes = places(19, 25);
        assert_eq!((sizes[0], sizes[18]), (0, 24));
        assert!(sizes.is_sorted_by(|a, b| a < b), "{sizes:?}");
    }
}
