//! Memetic search: an evolution of local optima. It is the default with a predictor.
//!
//! Local search: around a candidate the score is nearly linear in the choices, so the best choices within the limits of
//! the linear model ([`super::linear`]) change many blocks at once. Candidates at several distances are scored, and the
//! best replaces the candidate, until none is better. The effects of the choices come from the scorer's derivatives if
//! it has them ([`Problem::effects`](super::Problem::effects)), otherwise from scoring each single change. Children of
//! local optima take parts from both parents; they may break the limits, since the local search returns to them.
//!
//! The draws do not depend on the seed: several seeds would be several answers. More evaluations give a better one.

use super::climb::climb;
use super::genome::{Genes, Genome};
use super::linear::{Linear, Structure};
use super::strategies::{Setting, SettingValue, Strategy};
use super::task::{Scored, Task, rank};
use super::variation::{cross_by, mutate};
use crate::Result;
use ofa_supernet::seed::{Stream, generator};
use rand::Rng;
use rand::rngs::StdRng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Local searches from random candidates at the start.
const STARTS: usize = 10;
/// Probability that a child is mutated after its crossover.
const MUTATED: f64 = 0.3;
/// Probabilities of a mutation of each gene, and of the images' genes.
const MUTATION: f64 = 0.05;
const INPUT_MUTATION: f64 = 0.1;
/// Divisor of the number of groups of genes that gives the smallest number of them in which two members differ.
const CLOSENESS: usize = 6;
/// Best members from which all single changes and promising pairs are scored at the end.
const POLISHED: usize = 4;
/// Divisor of the budget that remains for this.
const RESERVE: usize = 8;

/// Settings of the memetic search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Memetic {
    /// Local optima that are kept, different from one another.
    pub optima: usize,
    /// Local searches between two selections.
    pub children: usize,
    /// Selections without a better subnet after which the search ends.
    pub patience: usize,
}

impl Default for Memetic {
    fn default() -> Self {
        Memetic { optima: 30, children: 20, patience: 25 }
    }
}

impl Strategy for Memetic {
    fn description(&self) -> &'static str {
        "Evolution of local optima, found with a linear model of the score and exact costs"
    }

    fn settings(&mut self) -> Vec<Setting<'_>> {
        use SettingValue::Whole;
        vec![
            Setting::new("optima", "Local optima that are kept", Whole(&mut self.optima, 2..=10_000)),
            Setting::new("children", "Local searches between two selections", Whole(&mut self.children, 1..=10_000)),
            Setting::new(
                "patience",
                "Rounds without improvement after which the populations are merged or the evolution ends; 0: never early",
                Whole(&mut self.patience, 0..=10_000_000),
            ),
        ]
    }

    fn evaluations(&self) -> usize {
        15_000
    }

    fn run(&self, task: &mut Task) -> Result<()> {
        let structure = Structure::new(&task.rules.genome);
        let mut visited = HashSet::new();
        let reserve = task.remaining() / RESERVE;
        let starts = match task.starts.is_empty() {
            true => (0..STARTS).map(|index| random(&task.rules.genome, index)).collect(),
            false => task.starts.clone(),
        };
        let optima = ascend(task, &structure, starts, &mut visited, &mut draws(&[0]))?;
        let mut members = self.select(&task.rules.genome, optima);
        let (mut round, mut rounds_without_gain) = (0u64, 0);
        while task.remaining() > reserve && !task.is_over() {
            round += 1;
            let mut rng = draws(&[1, round]);
            let children = (0..self.children).map(|_| child(&task.rules.genome, &structure, &members, &mut rng));
            let children = children.collect();
            let before = task.best.as_ref().map(|best| best.0);
            members.extend(ascend(task, &structure, children, &mut visited, &mut rng)?);
            members = self.select(&task.rules.genome, members);
            task.record();
            rounds_without_gain += 1;
            if task.best.as_ref().map(|best| best.0) > before {
                rounds_without_gain = 0;
            }
            if self.patience > 0 && rounds_without_gain >= self.patience {
                break;
            }
        }
        let polished = climb(task, members.iter().take(POLISHED).cloned().collect(), 2)?;
        members.extend(polished);
        task.elite = self.select(&task.rules.genome, members).into_iter().map(|(_, genes)| genes).collect();
        task.record();
        Ok(())
    }
}

impl Memetic {
    /// The best members, of which no two are close.
    fn select(&self, genome: &Genome, mut members: Vec<Scored>) -> Vec<Scored> {
        rank(&mut members);
        let closest = genome.groups().len() / CLOSENESS;
        let mut kept: Vec<Scored> = Vec::new();
        for member in members {
            let distance = |(_, other): &Scored| {
                genome.groups().iter().filter(|group| other[(*group).clone()] != member.1[(*group).clone()]).count()
            };
            if kept.iter().all(|other| distance(other) > closest) {
                kept.push(member);
                if kept.len() == self.optima {
                    break;
                }
            }
        }
        kept
    }
}

/// Random generator that does not depend on the search's seed.
fn draws(position: &[u64]) -> StdRng {
    generator(0, Stream::Search, position)
}

/// A random candidate; the sizes of images take turns.
fn random(genome: &Genome, index: usize) -> Genes {
    let mut genes = genome.sample(&mut draws(&[2, index as u64]));
    genome.set_number(&mut genes, genome.input(), index % genome.numbers(genome.input()));
    genes
}

/// A child of two members, which may break the limits.
fn child(genome: &Genome, structure: &Structure, members: &[Scored], rng: &mut StdRng) -> Genes {
    let mut member = || &members[rng.random_range(0..members.len())].1;
    let (first, second) = (member(), member());
    // Whole parts come from one parent, or each block from either.
    let mut from_first = vec![true; genome.size()];
    for group in genome.groups() {
        let side: bool = rng.random();
        group.clone().for_each(|place| from_first[place] = side);
    }
    for part in &structure.parts {
        let whole = [Some(true), Some(false), None][rng.random_range(0..3)];
        if let Some(side) = whole {
            let blocks = part.blocks.iter().flat_map(|(places, _)| places.clone());
            part.own.clone().chain(blocks).for_each(|place| from_first[place] = side);
        }
    }
    let crossed = cross_by(genome, first, second, &from_first);
    if first == second || rng.random_bool(MUTATED) {
        return mutate(genome, &crossed, MUTATION, INPUT_MUTATION, rng);
    }
    crossed
}

/// Local searches from `starts`, which advance together. The results meet the limits.
fn ascend(
    task: &mut Task,
    structure: &Structure,
    starts: Vec<Genes>,
    visited: &mut HashSet<Genes>,
    rng: &mut StdRng,
) -> Result<Vec<Scored>> {
    let mut climbers = starts;
    let mut optima = Vec::new();
    loop {
        climbers.sort_unstable();
        climbers.dedup();
        climbers.retain(|genes| visited.insert(genes.clone()));
        if climbers.is_empty() || task.remaining() == 0 {
            return Ok(optima);
        }
        let effects = task.effects(&climbers)?;
        let rules = &task.rules;
        let candidates = |(genes, effects): (&Genes, &_)| Linear::new(rules, structure, genes, effects).candidates();
        let mut candidates: Vec<Vec<Genes>> = climbers.par_iter().zip(&effects).map(candidates).collect();
        for (climber, candidates) in climbers.iter().zip(&mut candidates) {
            candidates.push(climber.clone());
            for genes in candidates.iter_mut() {
                // Measures without a table.
                if !rules.feasible(genes)? {
                    *genes = rules.repair(genes.clone(), rng)?;
                }
            }
        }
        task.evaluate(&candidates.concat())?;
        let mut higher = Vec::new();
        for (climber, candidates) in climbers.into_iter().zip(candidates) {
            let mut scored: Vec<Scored> = task.scored(candidates).collect();
            rank(&mut scored);
            match scored.into_iter().next() {
                Some(best) if best.1 == climber => optima.push(best),
                Some(best) => higher.push(best.1),
                None => {}
            }
        }
        climbers = higher;
    }
}
