//! Local search: from a candidate to a better neighbour, until there is none.
//!
//! Under a limit, most improvements need two changes: one block shrinks to pay for another. There are thousands of such
//! pairs, but the effects of single changes nearly add up. So each step scores all single changes (also those that
//! break a limit), ranks the pairs by the sum of their two effects, and scores only the most promising feasible pairs.

use super::genome::{Genes, Genome};
use super::task::{Rules, Scored, Task, rank};
use crate::Result;
use rayon::prelude::*;

/// Pairs scored per step.
const PAIRS: usize = 64;

/// Climbs from each of `starts` within the limits of a level, changing up to `reach` genes (1 or 2) at a time, and
/// returns the local optima. Scores rise strictly, so the climb ends. All climbers advance together: one large batch is
/// scored faster than several small ones.
///
/// # Errors
/// Errors of scorer and measures.
pub fn climb(task: &mut Task, level: usize, starts: Vec<Scored>, reach: usize) -> Result<Vec<Scored>> {
    let mut climbers = starts;
    let mut tops = Vec::new();
    while !climbers.is_empty() {
        let genome = &task.levels[level].rules.genome;
        let neighbours: Vec<Vec<Genes>> = climbers.par_iter().map(|(_, genes)| singles(genome, genes)).collect();
        task.evaluate(neighbours.iter().flatten())?;
        let mut pairs: Vec<Vec<Genes>> = vec![Vec::new(); climbers.len()];
        if reach > 1 {
            let gains = |((score, _), singles): (&Scored, &Vec<Genes>)| -> Vec<f64> {
                task.scored(singles.iter().cloned()).map(|(other, _)| other - score).collect()
            };
            let gains: Vec<Vec<f64>> = climbers.iter().zip(&neighbours).map(gains).collect();
            let rules = &task.levels[level].rules;
            let found = climbers.par_iter().zip(&gains).map(|((_, genes), gains)| promising(rules, genes, gains));
            pairs = found.collect::<Result<_>>()?;
            task.evaluate(pairs.iter().flatten())?;
        }
        let mut higher = Vec::new();
        for (climber, (pairs, singles)) in climbers.into_iter().zip(pairs.into_iter().zip(neighbours)) {
            let candidates = task.scored(pairs.into_iter().chain(singles));
            let mut candidates: Vec<Scored> = candidates.filter(|(other, _)| *other > climber.0).collect();
            rank(&mut candidates);
            let mut next = None;
            for candidate in candidates {
                if task.levels[level].rules.feasible(&candidate.1)? {
                    next = Some(candidate);
                    break;
                }
            }
            match next {
                Some(next) => higher.push(next),
                None => tops.push(climber),
            }
        }
        rank(&mut higher);
        higher.dedup();
        climbers = higher;
    }
    Ok(tops)
}

/// Candidates that differ from `genes` in one gene.
fn singles(genome: &Genome, genes: &Genes) -> Vec<Genes> {
    let changed = |(place, choice)| {
        let mut other = genes.clone();
        genome.set(&mut other, place, choice);
        other
    };
    genome.changes(genes).into_iter().map(changed).collect()
}

/// The feasible pairs of changes with the largest sums of gains, best first; none if the budget did not cover all
/// single changes.
fn promising(rules: &Rules, genes: &Genes, gains: &[f64]) -> Result<Vec<Genes>> {
    let genome = &rules.genome;
    let changes = genome.changes(genes);
    if gains.len() < changes.len() {
        return Ok(Vec::new());
    }
    let mut order: Vec<usize> = (0..changes.len()).collect();
    order.sort_unstable_by(|&a, &b| gains[b].total_cmp(&gains[a]).then(a.cmp(&b)));
    let mut pairs = Vec::new();
    for (rank, &first) in order.iter().enumerate() {
        for &second in &order[rank + 1..] {
            let gain = gains[first] + gains[second];
            if gain <= 0.0 {
                break;
            }
            if changes[first].0 != changes[second].0 {
                pairs.push((gain, first, second));
            }
        }
    }
    pairs.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let mut found = Vec::with_capacity(PAIRS);
    for (_, first, second) in pairs {
        // Depths come first: they reset the genes of their blocks.
        let (first, second) = (changes[first].min(changes[second]), changes[first].max(changes[second]));
        let mut other = genes.clone();
        genome.set(&mut other, first.0, first.1);
        if !genome.is_active(&other, second.0) {
            continue;
        }
        genome.set(&mut other, second.0, second.1);
        if rules.feasible(&other)? {
            found.push(other);
            if found.len() == PAIRS {
                break;
            }
        }
    }
    Ok(found)
}
