//! Evolutionary search (paper §3.4; Real et al., AAAI 2019): the best quarter of each generation are the parents of the
//! next.
//!
//! Differences from the reference: a child that breaks the limits is repaired instead of drawn again, the last
//! generation's scores count, no subnet is scored twice, parents are distinct, several populations (islands) evolve
//! separately before their best are merged, and a local search follows whenever the evolution stagnates; when neither
//! finds anything better, the run ends.

use super::climb::climb;
use super::genome::Genes;
use super::strategies::{Setting, SettingValue, Strategy};
use super::task::{Scored, Task, rank};
use super::variation::{cross, mutate};
use crate::Result;
use rand::Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Fewest generations of an island: a shorter evolution has fewer islands.
const SHORTEST_TERM: usize = 60;
/// Generations for which a small budget should last: more generations are better than a large population.
const FEWEST_GENERATIONS: usize = 30;
/// Fewest children of a generation, even for a small budget.
const FEWEST_CHILDREN: usize = 10;
/// Approximate evaluations of a local search: a small budget has fewer searches.
const CLIMB: usize = 400;

/// Settings of the evolution. Population, generations and parents default to the reference's values; the reference has
/// one population and mutates with probability 0.1 per gene and 0.5 for the resolution, which finds worse subnets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Evolution {
    /// Random subnets at the start, and children of each generation; fewer if the budget would not last for 30
    /// generations.
    pub population: usize,
    /// Generations of children.
    pub generations: usize,
    /// Parents, as a fraction of the population. They stay in the next generation.
    pub parent_ratio: f64,
    /// Fraction of the children that are mutations of one parent; the others are crossovers of two.
    pub mutation_ratio: f64,
    /// Probability with which a mutation draws a gene again: each stage's depth, each block's kernel and expand ratio,
    /// each width.
    pub mutation_probability: f64,
    /// Probability with which a mutation draws the resolution again.
    pub resolution_mutation_probability: f64,
    /// Populations that evolve separately, each on its own share of the generations, before their parents are merged
    /// for a last share: they settle on different optima, and crossing these finds better ones.
    pub islands: usize,
    /// Rounds without improvement in any population after which the populations are merged early; once they are merged,
    /// a local search follows, and the evolution ends if that finds nothing either. 0: neither happens before all
    /// generations are done. More rounds if a small budget makes generations small.
    pub patience: usize,
    /// Choices that the local search may change at once: 0 (no local search), 1 or 2. With 2, one block can shrink to
    /// pay for another.
    pub local_search: usize,
}

impl Default for Evolution {
    fn default() -> Self {
        Evolution {
            population: 100,
            generations: 500,
            parent_ratio: 0.25,
            mutation_ratio: 0.5,
            mutation_probability: 0.05,
            resolution_mutation_probability: 0.1,
            islands: 5,
            patience: 5,
            local_search: 2,
        }
    }
}

impl Strategy for Evolution {
    fn description(&self) -> &'static str {
        "Evolutionary search, with a local search whenever it stagnates"
    }

    fn settings(&mut self) -> Vec<Setting<'_>> {
        use SettingValue::{Number, Whole};
        vec![
            Setting::new("population", "Subnets in each generation", Whole(&mut self.population, 2..=10_000)),
            Setting::new("generations", "Generations", Whole(&mut self.generations, 0..=10_000_000)),
            Setting::new(
                "parent_ratio",
                "Fraction of the population that has children",
                Number(&mut self.parent_ratio, 0.0..=1.0),
            ),
            Setting::new(
                "mutation_ratio",
                "Fraction of the children that are mutations; the others are crossovers",
                Number(&mut self.mutation_ratio, 0.0..=1.0),
            ),
            Setting::new(
                "mutation_probability",
                "Probability of a mutation of each gene",
                Number(&mut self.mutation_probability, 0.0..=1.0),
            ),
            Setting::new(
                "resolution_mutation_probability",
                "Probability of a mutation of the resolution",
                Number(&mut self.resolution_mutation_probability, 0.0..=1.0),
            ),
            Setting::new(
                "islands",
                "Populations that evolve separately before their best are merged",
                Whole(&mut self.islands, 1..=1000),
            ),
            Setting::new(
                "patience",
                "Rounds without improvement after which the populations are merged or the evolution ends; 0: never early",
                Whole(&mut self.patience, 0..=10_000_000),
            ),
            Setting::new(
                "local_search",
                "Choices that the local search changes at once: 0, 1 or 2",
                Whole(&mut self.local_search, 0..=2),
            ),
        ]
    }

    fn evaluations(&self) -> usize {
        self.population.saturating_mul(self.generations.saturating_add(1))
    }

    fn run(&self, task: &mut Task) -> Result<()> {
        let small_budget = task.budget() < self.evaluations();
        let mut generation = 0;
        loop {
            let before = task.remaining();
            self.evolve(task, &mut generation)?;
            // Budget that is left of a user's limit goes to further evolutions from other random subnets.
            let nothing_new = task.remaining() == before;
            if !small_budget || nothing_new || task.remaining() == 0 || generation > self.generations {
                return Ok(());
            }
        }
    }
}

impl Evolution {
    /// Runs an evolution, from random subnets to the last local search.
    fn evolve(&self, task: &mut Task, generation: &mut usize) -> Result<()> {
        let affordable = (task.remaining() / self.generations.clamp(1, FEWEST_GENERATIONS)).max(FEWEST_CHILDREN);
        let population = self.population.min(affordable);
        let parent_count = ((population as f64 * self.parent_ratio).round() as usize).max(1);
        let mutations = (population as f64 * self.mutation_ratio).round() as usize;
        // Evaluations that a small budget reserves for the local search.
        let reserve = if self.local_search > 0 { task.remaining() / 5 } else { 0 };
        let generations = self.generations.min(task.remaining().div_ceil(population));
        let islands = self.islands.min(generations / SHORTEST_TERM).max(1);
        let term = if islands > 1 { generations / (islands + 1) } else { self.generations + 1 };
        // The patience is a number of children, so smaller generations mean more rounds.
        let patience = self.patience.saturating_mul(self.population).div_ceil(population);
        // Islands advance together: one large batch of children is scored faster than several small ones.
        let mut parents: Vec<Vec<Scored>> = vec![Vec::new(); islands];
        let (start, mut rounds_without_gain) = (*generation, 0);
        while *generation <= self.generations && task.remaining() > reserve {
            let stagnates = patience > 0 && rounds_without_gain >= patience;
            let apart = parents.len() > 1;
            if stagnates || (apart && *generation - start >= islands * term) {
                let share = parent_count.div_ceil(parents.len());
                let best: Vec<Scored> = parents.into_iter().flat_map(|island| island.into_iter().take(share)).collect();
                let before = task.best().map(|best| best.0);
                let mut best = self.climbed(task, best)?;
                best.truncate(parent_count);
                let gains = task.best().map(|best| best.0) > before;
                parents = vec![best];
                rounds_without_gain = 0;
                if !apart && !gains {
                    break;
                }
            }
            let rules = task.rules();
            let children = (0..parents.len() * population).into_par_iter().map(|index| {
                let mut rng = rules.rng(&[*generation as u64, index as u64]);
                let island = &parents[index / population];
                let parent = |rng: &mut _| &island[Rng::random_range(rng, 0..island.len())].1;
                let child = if island.is_empty() {
                    rules.genome.sample(&mut rng)
                } else if index % population < mutations {
                    let (p, resolution) = (self.mutation_probability, self.resolution_mutation_probability);
                    mutate(&rules.genome, parent(&mut rng), p, resolution, &mut rng)
                } else {
                    cross(&rules.genome, parent(&mut rng), parent(&mut rng), &mut rng)
                };
                rules.repair(child, &mut rng)
            });
            let children = children.collect::<Result<Vec<Genes>>>()?;
            task.evaluate(&children)?;
            let mut children = children.into_iter();
            rounds_without_gain += 1;
            for island in &mut parents {
                let before = island.first().map(|best| best.0);
                island.extend(task.scored(children.by_ref().take(population)));
                rank(island);
                island.dedup();
                island.truncate(parent_count);
                if island.first().map(|best| best.0) > before {
                    rounds_without_gain = 0;
                }
            }
            *generation += parents.len();
            task.record();
        }
        self.climbed(task, parents.concat())?;
        task.record();
        Ok(())
    }

    /// `scored` with the results of a local search from the best of them (from all of them, if the budget is large),
    /// best first.
    fn climbed(&self, task: &mut Task, mut scored: Vec<Scored>) -> Result<Vec<Scored>> {
        rank(&mut scored);
        if self.local_search > 0 {
            let starts = (task.remaining() / CLIMB).max(1).min(scored.len());
            scored.extend(climb(task, 0, scored[..starts].to_vec(), self.local_search)?);
            rank(&mut scored);
        }
        scored.dedup();
        Ok(scored)
    }
}
