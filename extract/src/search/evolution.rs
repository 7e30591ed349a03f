//! Evolutionary search (paper §3.4; Real et al., AAAI 2019): the best quarter of each generation are the parents of the next.
//!
//! Beside the reference: no loop is unbounded (a child that keeps breaking the limits is repaired), the last generation's scores
//! count, no subnet is scored twice, parents are distinct, and a local search ends the run.

use super::feasible::{repair, witness};
use super::{ConstraintValue, Generation, Limit, Scores, SearchResult, SearchSettings, violation};
use crate::{Error, Result};
use ofa_supernet::seed::{Purpose, generator};
use ofa_supernet::space::BlockChoice;
use ofa_supernet::{SearchSpace, Subnet};
use rand::Rng;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::time::Instant;

/// Constants of the evolution; the defaults are the reference's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvolutionSettings {
    /// Random subnets at the start, and children of each generation.
    pub population: usize,
    /// Generations of children.
    pub generations: usize,
    /// Parents, as a part of the population. They stay in the next generation.
    pub parent_ratio: f64,
    /// Part of the children that are mutations of one parent; the others are crossovers of two.
    pub mutation_ratio: f64,
    /// Probability with which a mutation draws a gene anew: each stage's depth, each block's kernel, each block's expand ratio.
    pub mutation_probability: f64,
    /// Probability with which a mutation draws the resolution anew.
    pub resolution_mutation_probability: f64,
    /// How often a subnet that breaks a limit is drawn anew before it is repaired.
    pub redraws: usize,
    /// Choices that the final local search may change at once: 0 (no local search), 1 or 2. It scores all feasible
    /// subnets that far from the best, and goes on from a better one until there is none. 2 lets one block shrink to pay for
    /// another, for a few thousand scores.
    pub local_search: usize,
}

impl Default for EvolutionSettings {
    fn default() -> Self {
        EvolutionSettings {
            population: 100,
            generations: 500,
            parent_ratio: 0.25,
            mutation_ratio: 0.5,
            mutation_probability: 0.1,
            resolution_mutation_probability: 0.5,
            redraws: 100,
            local_search: 2,
        }
    }
}

impl EvolutionSettings {
    /// Checks that every value is usable.
    ///
    /// # Errors
    /// The first impossible value, with what is allowed.
    pub fn validate(&self) -> Result<()> {
        if !(1..=1_000_000).contains(&self.population) {
            return Err(Error::Search(format!("population {} is not between 1 and 1000000", self.population)));
        }
        for (name, value) in [
            ("parent_ratio", self.parent_ratio),
            ("mutation_ratio", self.mutation_ratio),
            ("mutation_probability", self.mutation_probability),
            ("resolution_mutation_probability", self.resolution_mutation_probability),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::Search(format!("{name} {value} is not between 0 and 1")));
            }
        }
        if self.local_search > 2 {
            return Err(Error::Search(format!("local_search {} is not 0, 1 or 2", self.local_search)));
        }
        Ok(())
    }
}

/// Finds the subnet of `space` with the largest score among those that meet all `limits` (none means no limit).
///
/// `scorer` gives each of the subnets it is handed a number, larger being better. `progress` sees every generation. Same input
/// and seed: same result.
///
/// # Errors
/// Impossible settings, limits that no subnet meets ([`Error::Impossible`]), and what limits or scorer say.
pub fn evolve(
    space: &SearchSpace,
    limits: &[Limit],
    scorer: &mut dyn FnMut(&[Subnet]) -> Result<Vec<f64>>,
    settings: &EvolutionSettings,
    seed: u64,
    progress: &mut dyn FnMut(&Generation),
) -> Result<SearchResult> {
    let start = Instant::now();
    space.validate()?;
    settings.validate()?;
    let draws = Draws { space, limits, redraws: settings.redraws, witness: witness(space, limits)? };
    let mut scores = Scores::new(scorer);
    let mut history: Vec<Generation> = Vec::new();
    let mut record = |generation, evaluations, (score, best): (f64, &Subnet)| {
        let entry = Generation { generation, evaluations, best: best.clone(), score };
        progress(&entry);
        history.push(entry);
    };

    let mut rng = generator(seed, Purpose::Search, &[0]);
    let mut population = Vec::with_capacity(settings.population);
    for _ in 0..settings.population {
        population.push(draws.feasible(&scores, &mut rng, |rng| space.sample(rng))?);
    }
    let parent_count = ((settings.population as f64 * settings.parent_ratio).round() as usize).max(1);
    let mutations = (settings.population as f64 * settings.mutation_ratio).round() as usize;
    let mut ranked = rank(population, &mut scores)?;
    record(0, scores.evaluations(), (ranked[0].0, &ranked[0].1));
    for generation in 1..=settings.generations {
        let mut rng = generator(seed, Purpose::Search, &[generation as u64]);
        ranked.truncate(parent_count);
        let parents: Vec<Subnet> = ranked.into_iter().map(|(_, subnet)| subnet).collect();
        let mut children = Vec::with_capacity(settings.population);
        for index in 0..settings.population {
            children.push(draws.feasible(&scores, &mut rng, |rng| {
                let parent = &parents[rng.random_range(0..parents.len())];
                if index < mutations {
                    mutate(space, parent, settings, rng)
                } else {
                    cross(space, parent, &parents[rng.random_range(0..parents.len())], rng)
                }
            })?);
        }
        children.extend(parents);
        ranked = rank(children, &mut scores)?;
        record(generation, scores.evaluations(), (ranked[0].0, &ranked[0].1));
    }
    let (mut score, mut best) = ranked.swap_remove(0);
    if settings.local_search > 0 {
        (score, best) = climb(space, limits, settings.local_search, &mut scores, (score, best))?;
        record(settings.generations + 1, scores.evaluations(), (score, &best));
    }

    let mut constraints = Vec::new();
    for limit in limits {
        let value = limit.value(&best)?;
        constraints.push(ConstraintValue { constraint: limit.name.clone(), limit: limit.bound, value });
    }
    Ok(SearchResult {
        constraints,
        settings: SearchSettings::Evolution(settings.clone()),
        seed,
        predicted_accuracy: score,
        best,
        evaluations: scores.evaluations(),
        history,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// How often a child that was scored before is drawn anew: enough to keep a converged population exploring, and few enough that a
/// small space that has been scored altogether costs no time.
const NOVELTY_REDRAWS: usize = 10;

/// Draws that always end in a subnet within the limits.
struct Draws<'a> {
    space: &'a SearchSpace,
    limits: &'a [Limit<'a>],
    redraws: usize,
    witness: Subnet,
}

impl Draws<'_> {
    fn feasible<R: Rng>(&self, scores: &Scores, rng: &mut R, mut draw: impl FnMut(&mut R) -> Subnet) -> Result<Subnet> {
        let mut subnet = draw(rng);
        for _ in 0..NOVELTY_REDRAWS {
            if !scores.knows(&subnet) {
                break;
            }
            subnet = draw(rng);
        }
        for _ in 0..self.redraws {
            if violation(self.limits, &subnet)? == 0.0 {
                return Ok(subnet);
            }
            subnet = draw(rng);
        }
        repair(self.space, self.limits, subnet, &self.witness, rng)
    }
}

/// Distinct subnets with their scores, best first; equal scores in the order of the subnets, so that no other order shows through.
fn rank(mut subnets: Vec<Subnet>, scores: &mut Scores) -> Result<Vec<(f64, Subnet)>> {
    let mut seen = HashSet::new();
    subnets.retain(|s| seen.insert(s.clone()));
    let mut ranked: Vec<(f64, Subnet)> = scores.of(&subnets)?.into_iter().zip(subnets).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    Ok(ranked)
}

/// Each gene drawn anew with its probability. A stage that grows gets random blocks.
fn mutate(space: &SearchSpace, parent: &Subnet, settings: &EvolutionSettings, rng: &mut impl Rng) -> Subnet {
    let mut child = parent.clone();
    if rng.random_bool(settings.resolution_mutation_probability) {
        child.resolution = space.resolutions[rng.random_range(0..space.resolutions.len())];
    }
    for (stage, blocks) in child.stages.iter_mut().enumerate() {
        if rng.random_bool(settings.mutation_probability) {
            let depths = space.stage_depths(stage);
            let depth = depths[rng.random_range(0..depths.len())];
            blocks.truncate(depth);
            blocks.resize_with(depth, || space.sample_block(rng));
        }
        for block in blocks {
            let other = space.sample_block(rng);
            if rng.random_bool(settings.mutation_probability) {
                block.kernel = other.kernel;
            }
            if rng.random_bool(settings.mutation_probability) {
                block.expand = other.expand;
            }
        }
    }
    child
}

/// Each gene from one of two parents; a block that only one of them has comes from that one.
fn cross(space: &SearchSpace, first: &Subnet, second: &Subnet, rng: &mut impl Rng) -> Subnet {
    let mut stages = Vec::with_capacity(space.stages.len());
    for (a, b) in first.stages.iter().zip(&second.stages) {
        let depth = if rng.random() { a.len() } else { b.len() };
        let mut blocks = Vec::with_capacity(depth);
        for index in 0..depth {
            blocks.push(match (a.get(index), b.get(index)) {
                (Some(a), Some(b)) => BlockChoice {
                    kernel: if rng.random() { a.kernel } else { b.kernel },
                    expand: if rng.random() { a.expand } else { b.expand },
                },
                (Some(&one), None) | (None, Some(&one)) => one,
                (None, None) => unreachable!("the depth is one of the two"),
            });
        }
        stages.push(blocks);
    }
    let resolution = if rng.random() { first.resolution } else { second.resolution };
    Subnet { resolution, stages, ..first.clone() }
}

/// From `best`, to the best feasible subnet within `changes` choices, until there is no better one. Single changes come
/// first, pairs when those are used up. The score rises strictly, so this ends.
fn climb(
    space: &SearchSpace,
    limits: &[Limit],
    changes: usize,
    scores: &mut Scores,
    (mut score, mut best): (f64, Subnet),
) -> Result<(f64, Subnet)> {
    let mut reach = 1;
    while reach <= changes {
        let mut around = space.neighbours(&best);
        if reach == 2 {
            around = around.iter().flat_map(|s| space.neighbours(s)).collect();
        }
        let mut feasible = Vec::new();
        let mut seen = HashSet::from([best.clone()]);
        for subnet in around {
            if seen.insert(subnet.clone()) && violation(limits, &subnet)? == 0.0 {
                feasible.push(subnet);
            }
        }
        match rank(feasible, scores)?.into_iter().next() {
            Some((higher, better)) if higher > score => {
                (score, best) = (higher, better);
                reach = 1;
            }
            _ => reach += 1,
        }
    }
    Ok((score, best))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Constraint, Measures};

    /// Separable, with blocks worth unlike amounts, so that a limit makes choosing hard.
    fn worth(subnet: &Subnet) -> f64 {
        let mut sum = (subnet.resolution as f64).sqrt();
        for (stage, blocks) in subnet.stages.iter().enumerate() {
            for (index, b) in blocks.iter().enumerate() {
                let weight = [1.0, 0.61, 0.83, 0.37][2 * stage + index];
                sum += weight * (b.expand.value().sqrt() + 0.23 * b.kernel as f64);
            }
        }
        sum
    }

    fn scorer(subnets: &[Subnet]) -> Result<Vec<f64>> {
        Ok(subnets.iter().map(worth).collect())
    }

    /// Every subnet of `space`, by walking along neighbours.
    fn everything(space: &SearchSpace) -> Vec<Subnet> {
        let mut seen = HashSet::from([space.smallest()]);
        let mut all = vec![space.smallest()];
        let mut next = 0;
        while next < all.len() {
            for neighbour in space.neighbours(&all[next]) {
                if seen.insert(neighbour.clone()) {
                    all.push(neighbour);
                }
            }
            next += 1;
        }
        all
    }

    #[test]
    fn finds_the_optimum_that_trying_everything_finds() {
        let space = SearchSpace::named("tiny").unwrap();
        let measures = Measures::new(&space, 10, Vec::new());
        let all = everything(&space);
        assert_eq!(all.len() as f64, space.count());
        let macs = |s: &Subnet| measures.value(&"any:macs=1".parse().unwrap(), s).unwrap();
        let (least, most) = (macs(&space.smallest()), macs(&space.largest()));
        for part in [0.05, 0.3, 0.6] {
            let bound = (least + part * (most - least)).round();
            let constraint: Constraint = format!("any:macs={bound}").parse().unwrap();
            let feasible = all.iter().filter(|s| macs(s) <= bound);
            let optimum = feasible.map(worth).max_by(f64::total_cmp).unwrap();
            let limits = [Limit::from_constraint(&constraint, &measures).unwrap()];
            let settings = EvolutionSettings { generations: 60, ..EvolutionSettings::default() };
            for seed in 0..4 {
                let found = evolve(&space, &limits, &mut scorer, &settings, seed, &mut |_| ()).unwrap();
                assert_eq!(found.predicted_accuracy, optimum, "seed {seed}, {constraint}: {}", found.best);
                assert_eq!(found.constraints[0].value, macs(&found.best));
                assert!(found.constraints[0].value <= bound);
                assert!(found.evaluations < all.len() / 2, "{} of {}", found.evaluations, all.len());
            }
        }
    }

    #[test]
    fn one_seed_one_result_and_no_subnet_twice() {
        let space = SearchSpace::named("cifar-mbv3").unwrap();
        let measures = Measures::new(&space, 10, Vec::new());
        let limits = ["any:macs=9M", "any:params=300k"]
            .map(|text| Limit::from_constraint(&text.parse().unwrap(), &measures).unwrap());
        let settings = EvolutionSettings { generations: 5, population: 20, ..EvolutionSettings::default() };
        let score = |s: &Subnet| s.blocks().map(|b| b.kernel as f64 * b.expand.value()).sum::<f64>();
        let run = |seed| {
            let mut seen = HashSet::new();
            let mut scorer = |subnets: &[Subnet]| {
                assert!(subnets.iter().all(|s| seen.insert(s.clone())));
                assert!(subnets.iter().all(|s| violation(&limits, s).unwrap() == 0.0));
                Ok(subnets.iter().map(score).collect())
            };
            let mut generations = 0;
            let found = evolve(&space, &limits, &mut scorer, &settings, seed, &mut |_| generations += 1).unwrap();
            assert_eq!((found.evaluations, generations), (seen.len(), 7));
            found
        };
        let found = run(1);
        assert!(found.history.windows(2).all(|w| w[0].score <= w[1].score));
        assert_eq!(found.history.last().unwrap().best, found.best);
        let written = serde_json::to_string(&found).unwrap();
        assert_eq!(written, serde_json::to_string(&run(1)).unwrap());
        assert_eq!(SearchResult { seconds: found.seconds, ..serde_json::from_str(&written).unwrap() }, found);
        assert_ne!(run(2).history, found.history);
    }

    #[test]
    fn the_last_generation_counts() {
        // The scorer knows a better subnet only in its last call.
        let space = SearchSpace::named("tiny").unwrap();
        let settings = EvolutionSettings { generations: 3, local_search: 0, ..EvolutionSettings::default() };
        let mut calls = 0;
        let mut scorer = |subnets: &[Subnet]| {
            calls += 1;
            Ok(vec![f64::from(calls); subnets.len()])
        };
        let found = evolve(&space, &[], &mut scorer, &settings, 0, &mut |_| ()).unwrap();
        assert_eq!(found.predicted_accuracy, 4.0);
    }

    #[test]
    fn the_tightest_limit_is_met_and_a_tighter_one_refused() {
        let space = SearchSpace::named("tiny").unwrap();
        let measures = Measures::new(&space, 10, Vec::new());
        let settings = EvolutionSettings { generations: 2, population: 10, ..EvolutionSettings::default() };
        let macs = measures.value(&"any:macs=1".parse().unwrap(), &space.smallest()).unwrap();
        let run = |bound: f64| {
            let constraint: Constraint = format!("any:macs={bound}").parse().unwrap();
            let limits = [Limit::from_constraint(&constraint, &measures)?];
            evolve(&space, &limits, &mut scorer, &settings, 0, &mut |_| ())
        };
        assert_eq!(run(macs).unwrap().best, space.smallest());
        let error = run(macs - 1.0).unwrap_err();
        let reached = crate::Metric::Macs.show(macs);
        assert!(matches!(&error, Error::Impossible(m) if m.contains(&format!("reach is {reached} ("))), "{error}");
        let settings = EvolutionSettings { parent_ratio: 1.5, ..settings };
        assert!(evolve(&space, &[], &mut scorer, &settings, 0, &mut |_| ()).is_err());
    }
}
