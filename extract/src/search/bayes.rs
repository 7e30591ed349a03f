//! Bayesian optimisation for expensive scores such as measured accuracies: a Gaussian process models the scores, and
//! expected improvement chooses the candidates to score next.

use super::genome::Genes;
use super::strategies::{Setting, SettingValue, Strategy};
use super::task::{Scored, Task, rank};
use super::variation::mutate;
use crate::Result;
use crate::gaussian_process::{GaussianProcess, expected_improvement};
use rand::Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Most scored candidates that the process is fitted to: half of them the best, half the latest.
const POINTS: usize = 400;
/// Candidates among which expected improvement chooses.
const POOL: usize = 500;
/// Number of best candidates whose mutations are in the pool.
const PARENTS: usize = 10;

/// Settings of the Bayesian optimisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bayes {
    /// Random subnets at the start.
    pub initial: usize,
    /// Subnets that are scored between two fits; a larger batch takes less time and needs more scores.
    pub batch: usize,
}

impl Default for Bayes {
    fn default() -> Self {
        Bayes { initial: 30, batch: 5 }
    }
}

impl Strategy for Bayes {
    fn description(&self) -> &'static str {
        "Gaussian process and expected improvement: for few, expensive evaluations"
    }

    fn settings(&mut self) -> Vec<Setting<'_>> {
        use SettingValue::Whole;
        vec![
            Setting::new("initial", "Random subnets at the start", Whole(&mut self.initial, 2..=100_000)),
            Setting::new(
                "batch",
                "Subnets scored between two updates of the model",
                Whole(&mut self.batch, 1..=10_000),
            ),
        ]
    }

    fn evaluations(&self) -> usize {
        500
    }

    fn run(&self, task: &mut Task) -> Result<()> {
        let rules = task.rules();
        let draw = |index| {
            let mut rng = rules.rng(&[0, index]);
            rules.repair(rules.genome.sample(&mut rng), &mut rng)
        };
        let initial = (0..self.initial as u64).map(draw).collect::<Result<Vec<Genes>>>()?;
        let mut scored = task.score(initial)?;
        distinct(&mut scored);
        task.record();
        let mut shape = None;
        for round in 1u64.. {
            if task.is_over() {
                break;
            }
            let mut best = scored.clone();
            rank(&mut best);
            let pool = pool(task, &best, round)?;
            // A small space runs out of subnets.
            if pool.is_empty() {
                break;
            }
            let seen = points(&scored, best.clone());
            let (scores, genes): (Vec<f64>, Vec<Genes>) = seen.into_iter().unzip();
            // The shape is fitted again each time that there are a quarter more points.
            let known = shape.filter(|&(_, count)| 4 * genes.len() < 5 * count);
            let count = known.map_or(genes.len(), |(_, count)| count);
            let chosen = match GaussianProcess::fit(genes, &scores, known.map(|(shape, _)| shape), distance) {
                Some(process) => {
                    shape = Some((process.shape(), count));
                    let improvement = |(mean, deviation)| expected_improvement(mean, deviation, best[0].0);
                    let mut ranked: Vec<Scored> =
                        process.predict(&pool).into_iter().map(improvement).zip(pool).collect();
                    rank(&mut ranked);
                    ranked.into_iter().take(self.batch).map(|(_, genes)| genes).collect()
                }
                None => pool.into_iter().take(self.batch).collect(),
            };
            scored.extend(task.score(chosen)?);
            task.record();
        }
        Ok(())
    }
}

/// Number of genes in which two candidates differ. An absent block counts by the depth that removed it and by those of
/// its genes that were not the first choice.
fn distance(a: &Genes, b: &Genes) -> f64 {
    a.iter().zip(b.iter()).filter(|(a, b)| a != b).count() as f64
}

fn distinct(scored: &mut Vec<Scored>) {
    let mut seen = HashSet::new();
    scored.retain(|(_, genes)| seen.insert(genes.clone()));
}

/// Feasible candidates that are not scored yet: random ones, and mutations of the best.
fn pool(task: &Task, best: &[Scored], round: u64) -> Result<Vec<Genes>> {
    let rules = task.rules();
    let draw = |index: usize| {
        let mut rng = rules.rng(&[round, index as u64]);
        let drawn = if index.is_multiple_of(4) {
            rules.genome.sample(&mut rng)
        } else {
            let parent = &best[rng.random_range(0..best.len().min(PARENTS))].1;
            // About one to a few genes: mutations of many genes are as good as random draws.
            let probability = [0.02, 0.05, 0.1][rng.random_range(0..3)];
            mutate(&rules.genome, parent, probability, probability, &mut rng)
        };
        rules.repair(drawn, &mut rng)
    };
    let mut pool = (0..POOL).into_par_iter().map(draw).collect::<Result<Vec<Genes>>>()?;
    let mut seen = HashSet::new();
    pool.retain(|genes| !task.known.contains_key(genes) && seen.insert(genes.clone()));
    Ok(pool)
}

/// Points that the process is fitted to: all scored candidates, or the best and the latest of many.
fn points(scored: &[Scored], best: Vec<Scored>) -> Vec<Scored> {
    if scored.len() <= POINTS {
        return scored.to_vec();
    }
    let mut kept: Vec<Scored> = best.into_iter().take(POINTS / 2).collect();
    kept.extend_from_slice(&scored[scored.len() - POINTS / 2..]);
    distinct(&mut kept);
    kept
}
