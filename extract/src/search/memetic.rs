//! Memetic search: an evolution of local optima. It is the default with a predictor.
//!
//! Local search: around a candidate the score is nearly linear in the choices, so the best choices within the limits of
//! the linear model (`linear`) change many blocks at once. Candidates at several distances are scored, and the
//! best replaces the candidate, until none is better. The effects of the choices come from the scorer's derivatives if
//! it has them ([`Problem::effects`](super::Problem::effects)), otherwise from scoring each single change. Children of
//! local optima take parts from both parents; they may break the limits, since the local search returns to them. After
//! its first step, a local search looks only at distances like that of the step before.
//!
//! Levels (the same limits with several bounds) are searched together, each with local optima of its own. A good one is
//! also a start for both neighbouring levels, and some children take parts from a neighbouring level.
//!
//! The draws do not depend on the seed: several seeds would be several answers. More evaluations give a better one.

use super::climb::climb;
use super::evenly;
use super::genome::{Genes, Genome};
use super::linear::{Linear, Structure};
use super::strategies::{Setting, SettingValue, Strategy};
use super::task::{Scored, Task, order, rank};
use super::variation::{cross_by, mutate};
use crate::Result;
use crate::effects::Effects;
use ofa_supernet::seed::{Stream, generator};
use rand::Rng;
use rand::rngs::StdRng;
use rayon::prelude::*;
use rustc_hash::FxHashSet;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Local searches from random candidates at the start: within one group of limits, and at least as many within several,
/// which share what they find.
const STARTS: usize = 28;
const SHARED_STARTS: usize = 19;
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
/// Rounds that score no new subnet, after which the search ends.
const MOST_ROUNDS_WITHOUT_NEWS: usize = 50;

/// Levels that each start is used in.
const LEVELS_PER_START: usize = 4;
/// Fewest children per level and selection.
const FEWEST_CHILDREN: usize = 3;
/// Divisor of the number of optima that is kept per level, since levels share what they find.
const PARTS: usize = 2;
/// Probability that the parents of a child come from two levels.
const NEIGHBOURS: f64 = 0.3;
/// Best members of a level among which a new one is a start for both neighbours.
const HANDED_ON: usize = 10;
/// Members of each of several levels that are polished.
const POLISHED_OF_LEVEL: usize = 2;

/// A candidate to climb from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Climber {
    genes: Genes,
    /// The level whose limits count.
    level: usize,
    /// Number of the distance at which a step before found the candidate; the next step looks near it.
    found_at: Option<usize>,
}

impl Climber {
    /// The start of a local search.
    fn new(genes: Genes, level: usize) -> Self {
        Climber { genes, level, found_at: None }
    }
}

/// Local optima of a level, best first.
type Population = Vec<Scored>;

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
        Memetic { optima: 30, children: 20, patience: 50 }
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
                "Rounds without improvement after which the populations are merged or the evolution ends; 0: not before \
                 50 rounds have found no new subnet",
                Whole(&mut self.patience, 0..=10_000_000),
            ),
        ]
    }

    fn evaluations(&self) -> usize {
        20_000
    }

    fn shares_scores(&self) -> bool {
        true
    }

    fn run(&self, task: &mut Task) -> Result<()> {
        let levels = task.levels.len();
        let structure = Structure::new(&task.rules().genome);
        let mut visited = FxHashSet::default();
        let reserve = task.remaining() / RESERVE;
        let mut populations = vec![Vec::new(); levels];
        let first = ascend(task, &structure, starts(task), &mut visited, &mut draws(&[0]))?;
        let mut handed_on = self.add(&task.rules().genome, &mut populations, first);
        let (mut round, mut idle, mut rounds_without_news) = (0u64, vec![0; levels], 0);
        // Without news every subnet within the limits is probably known, even where the space has others.
        while task.remaining() > reserve && !task.is_over() && rounds_without_news < MOST_ROUNDS_WITHOUT_NEWS {
            let active = |&level: &usize| self.patience == 0 || idle[level] < self.patience;
            let active: Vec<usize> = (0..levels).filter(active).collect();
            if active.is_empty() {
                break;
            }
            round += 1;
            let mut rng = draws(&[1, round]);
            let count = self.children.max(FEWEST_CHILDREN * levels);
            let mut climbers = handed_on;
            for number in 0..count {
                let level = active[(round as usize * count + number) % active.len()];
                let parents = parents(&populations, level, &mut rng);
                climbers.push(Climber::new(child(&task.rules().genome, &structure, &parents, &mut rng), level));
            }
            let (before, remaining) = (scores(task), task.remaining());
            let optima = ascend(task, &structure, climbers, &mut visited, &mut rng)?;
            handed_on = self.add(&task.rules().genome, &mut populations, optima);
            task.record();
            rounds_without_news = if task.remaining() < remaining { 0 } else { rounds_without_news + 1 };
            for (idle, (before, after)) in idle.iter_mut().zip(before.into_iter().zip(scores(task))) {
                *idle = if after > before { 0 } else { *idle + 1 };
            }
        }
        for (level, mut members) in populations.into_iter().enumerate() {
            let best = members.iter().take(if levels > 1 { POLISHED_OF_LEVEL } else { POLISHED });
            let polished = climb(task, level, best.cloned().collect(), 2)?;
            members.extend(polished);
            let elite = self.select(&task.rules().genome, members, self.optima);
            task.levels[level].elite = elite.into_iter().map(|(_, genes)| genes).collect();
        }
        task.record();
        Ok(())
    }
}

impl Memetic {
    /// Adds local optima to the populations of their levels. The best are starts for both neighbours.
    fn add(&self, genome: &Genome, populations: &mut [Population], optima: Vec<(usize, Scored)>) -> Vec<Climber> {
        let levels = populations.len();
        let kept = if levels > 1 { self.optima.div_ceil(PARTS) } else { self.optima };
        for (level, population) in populations.iter_mut().enumerate() {
            let fresh = optima.iter().filter(|(of, _)| *of == level).map(|(_, optimum)| optimum.clone());
            let before = population.len();
            population.extend(fresh);
            if population.len() > before {
                *population = self.select(genome, std::mem::take(population), kept);
            }
        }
        let is_good = |(level, optimum): &(usize, Scored)| {
            populations[*level].iter().take(HANDED_ON).any(|member| member == optimum)
        };
        let neighbours = |(level, (_, genes)): (usize, Scored)| {
            let neighbours = [level.checked_sub(1), Some(level + 1).filter(|next| *next < levels)];
            neighbours.into_iter().flatten().map(move |level| Climber::new(genes.clone(), level))
        };
        optima.into_iter().filter(is_good).flat_map(neighbours).collect()
    }

    /// The best `count` members, of which no two are close.
    fn select(&self, genome: &Genome, mut members: Vec<Scored>, count: usize) -> Population {
        rank(&mut members);
        let closest = genome.groups().len() / CLOSENESS;
        let mut kept: Population = Vec::new();
        for member in members {
            let is_far = |(_, other): &Scored| {
                let differs = |group: &&Range<usize>| other[(*group).clone()] != member.1[(*group).clone()];
                genome.groups().iter().filter(differs).nth(closest).is_some()
            };
            if kept.iter().all(is_far) {
                kept.push(member);
                if kept.len() == count {
                    break;
                }
            }
        }
        kept
    }
}

/// The best score of each level.
fn scores(task: &Task) -> Vec<Option<f64>> {
    task.levels.iter().map(|level| level.best.as_ref().map(|best| best.0)).collect()
}

/// Random generator that does not depend on the search's seed.
fn draws(position: &[u64]) -> StdRng {
    generator(0, Stream::Search, position)
}

/// A random candidate with images of size number `size`.
fn random(genome: &Genome, index: usize, size: usize) -> Genes {
    let mut genes = genome.sample(&mut draws(&[2, index as u64]));
    genome.set_number(&mut genes, genome.input(), size);
    genes
}

/// The first climbers: the task's starts; or random ones, each in some of the levels, so that each level has some of
/// each size of images, or of evenly chosen ones.
fn starts(task: &Task) -> Vec<Climber> {
    let levels = task.levels.len();
    if !task.starts.is_empty() {
        return task
            .starts
            .iter()
            .flat_map(|genes| (0..levels).map(|level| Climber::new(genes.clone(), level)))
            .collect();
    }
    let genome = &task.rules().genome;
    let sizes = genome.numbers(genome.input());
    let together = if levels > 1 { sizes.min(SHARED_STARTS) } else { sizes };
    let stride = levels.div_ceil(LEVELS_PER_START);
    let climbers = |index: usize| {
        let genes = random(genome, index, evenly(index % together, together, sizes));
        let of_start = move |level: &usize| (index / together + level).is_multiple_of(stride);
        (0..levels).filter(of_start).map(move |level| Climber::new(genes.clone(), level))
    };
    let count = if levels > 1 { SHARED_STARTS.max(together * stride) } else { STARTS };
    (0..count).flat_map(climbers).collect()
}

/// Members from which the parents of a child are drawn: those of its level, sometimes also those of a neighbour.
fn parents<'p>(populations: &'p [Population], level: usize, rng: &mut StdRng) -> Vec<&'p Scored> {
    let mut members: Vec<&Scored> = populations[level].iter().collect();
    if populations.len() > 1 && (members.is_empty() || rng.random_bool(NEIGHBOURS)) {
        let is_below = level > 0 && (level + 1 == populations.len() || rng.random());
        members.extend(&populations[if is_below { level - 1 } else { level + 1 }]);
    }
    members
}

/// A child of two members, which may break the limits.
fn child(genome: &Genome, structure: &Structure, members: &[&Scored], rng: &mut StdRng) -> Genes {
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

/// Local searches from `climbers`, which advance together. The results, with their levels, meet the limits.
fn ascend(
    task: &mut Task,
    structure: &Structure,
    mut climbers: Vec<Climber>,
    visited: &mut FxHashSet<(Genes, usize)>,
    rng: &mut StdRng,
) -> Result<Vec<(usize, Scored)>> {
    let mut optima = Vec::new();
    loop {
        climbers.sort_unstable();
        climbers.retain(|climber| visited.insert((climber.genes.clone(), climber.level)));
        if climbers.is_empty() || task.remaining() == 0 {
            return Ok(optima);
        }
        let mut candidates = candidates(task, structure, &climbers)?;
        for (climber, candidates) in climbers.iter().zip(&mut candidates) {
            let rules = &task.levels[climber.level].rules;
            candidates.push((climber.genes.clone(), None));
            for (genes, _) in candidates.iter_mut() {
                // Measures without a table.
                if !rules.feasible(genes)? {
                    *genes = rules.repair(genes.clone(), rng)?;
                }
            }
        }
        task.evaluate(candidates.iter().flatten().map(|(genes, _)| genes))?;
        let mut higher = Vec::new();
        for (Climber { genes, level, .. }, candidates) in climbers.into_iter().zip(candidates) {
            let scored = candidates.into_iter().filter_map(|(genes, found_at)| Some((task.score_of(genes)?, found_at)));
            match scored.min_by(|(a, _), (b, _)| order(a, b)) {
                Some((best, _)) if best.1 == genes => optima.push((level, best)),
                Some(((_, genes), found_at)) => higher.push(Climber { genes, level, found_at }),
                None => {}
            }
        }
        climbers = higher;
    }
}

/// A candidate, and the number of its distance from where the step began.
type Candidate = (Genes, Option<usize>);

/// Candidates around each climber, according to the linear model. Equal genes, which come one after the other, share
/// their derivatives.
fn candidates(task: &mut Task, structure: &Structure, climbers: &[Climber]) -> Result<Vec<Vec<Candidate>>> {
    let of_genes: Vec<&[Climber]> = climbers.chunk_by(|a, b| a.genes == b.genes).collect();
    let genes: Vec<Genes> = of_genes.iter().map(|climbers| climbers[0].genes.clone()).collect();
    let effects = task.effects(&genes)?;
    let levels = &task.levels;
    let models: Vec<(&Climber, &Effects)> = of_genes
        .iter()
        .zip(&effects)
        .flat_map(|(climbers, effects)| climbers.iter().map(move |climber| (climber, effects)))
        .collect();
    let candidates = |(climber, effects): &(&Climber, &Effects)| {
        let model = Linear::new(&levels[climber.level].rules, structure, &climber.genes, effects);
        model.candidates(climber.found_at).into_iter().map(|(genes, distance)| (genes, Some(distance))).collect()
    };
    Ok(models.par_iter().map(candidates).collect())
}
