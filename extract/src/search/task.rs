//! Working state of a search: the space, the limits, the scorer, and all scores so far.

use super::Candidate;
use super::feasible::{repair, witness};
use super::genome::{Genes, Genome};
use super::limit::{Limit, Limits, Tables};
use crate::effects::{Effects, EffectsOf};
use crate::{Error, Result};
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::{SearchSpace, Subnet};
use rand::Rng;
use rand::rngs::StdRng;
use rayon::prelude::*;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

/// Search problem.
pub struct Problem<'a> {
    /// Search space.
    pub space: &'a SearchSpace,
    /// Limits that the answer must meet; none means no limit.
    pub limits: &'a [Limit<'a>],
    /// Costs that a front is drawn against (their bounds do not count); only strategies that draw a front read them.
    pub against: &'a [Limit<'a>],
    /// Most subnets to score, in all; `None` for the strategy's own number.
    pub evaluations: Option<usize>,
    /// Seed.
    pub seed: u64,
    /// Number of best subnets that the result lists.
    pub keep: usize,
    /// Derivatives of the scorer, if it has them.
    pub effects: Option<&'a EffectsOf<'a>>,
    /// Subnets known to be good, from which a search may start; the others are ignored.
    pub starts: &'a [Subnet],
    /// The same limits with other bounds, in ascending or descending order with `limits` first, which a
    /// [strategy](super::Strategy::shares_scores) searches at the same time.
    pub others: &'a [Vec<Limit<'a>>],
}

impl<'a> Problem<'a> {
    /// Problem of the best subnet of `space` within `limits`.
    pub fn new(space: &'a SearchSpace, limits: &'a [Limit<'a>], seed: u64) -> Self {
        Problem {
            space,
            limits,
            against: &[],
            evaluations: None,
            seed,
            keep: 0,
            effects: None,
            starts: &[],
            others: &[],
        }
    }
}

/// Function that gives each subnet a number, larger being better.
pub type Scorer<'a> = dyn FnMut(&[Subnet]) -> Result<Vec<f64>> + Send + 'a;

/// Best subnet after a generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// Number of the generation, from 0; strategies without generations count the batches that they score.
    pub generation: usize,
    /// Distinct subnets scored so far.
    pub evaluations: usize,
    /// Best subnet so far.
    pub best: Subnet,
    /// Score of that subnet.
    pub score: f64,
}

/// A candidate and its score.
pub type Scored = (f64, Genes);

/// The best comes first; equal scores are ordered by their genes, so that no result depends on the order before.
pub fn order(a: &Scored, b: &Scored) -> Ordering {
    b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1))
}

/// Sorts the best first.
pub fn rank(scored: &mut [Scored]) {
    scored.sort_unstable_by(order);
}

/// Genome and limits of candidates: the part of a task that threads share.
pub struct Rules<'a> {
    /// The space's genome.
    pub genome: Genome,
    /// Limits that must hold.
    pub limits: Limits<'a>,
    /// Costs that a front is drawn against.
    pub against: Limits<'a>,
    /// A candidate that meets the limits.
    pub witness: Genes,
    /// Seed.
    pub seed: u64,
}

impl<'a> Rules<'a> {
    /// The rules for other bounds of the limits.
    fn with_bounds(&self, limits: &'a [Limit<'a>]) -> Result<Self> {
        let (genome, against) = (self.genome.clone(), self.against.clone());
        let limits = self.limits.with_bounds(limits)?;
        let witness = witness(&genome, &limits)?;
        Ok(Rules { genome, limits, against, witness, seed: self.seed })
    }

    /// Random generator for a position of this search.
    pub fn rng(&self, position: &[u64]) -> StdRng {
        generator(self.seed, Stream::Search, position)
    }

    /// Whether all limits hold.
    ///
    /// # Errors
    /// Errors of measures.
    pub fn feasible(&self, genes: &[u16]) -> Result<bool> {
        Ok(self.limits.violation(&self.genome, genes)? == 0.0)
    }

    /// Changes `genes` so that they meet the limits.
    ///
    /// # Errors
    /// Errors of measures.
    pub fn repair(&self, genes: Genes, rng: &mut impl Rng) -> Result<Genes> {
        repair(&self.genome, &self.limits, genes, &self.witness, rng)
    }
}

/// State of the search within one group of limits.
pub struct Level<'a> {
    /// Genome and limits of candidates.
    pub rules: Rules<'a>,
    pub(super) best: Option<Scored>,
    pub(super) history: Vec<Generation>,
    /// Good subnets that differ from one another, best first, if the strategy has some.
    pub(super) elite: Vec<Genes>,
}

impl<'a> Level<'a> {
    fn new(rules: Rules<'a>) -> Self {
        Level { rules, best: None, history: Vec::new(), elite: Vec::new() }
    }

    /// Keeps a candidate if it is the best so far that meets the limits.
    fn offer(&mut self, score: f64, genes: &Genes) -> Result<()> {
        let better = |(best, holder): &Scored| score > *best || (score == *best && genes < holder);
        if self.best.as_ref().is_none_or(better) && self.rules.feasible(genes)? {
            self.best = Some((score, genes.clone()));
        }
        Ok(())
    }
}

/// State of the search while a strategy works on it.
pub struct Task<'a> {
    /// One level for each group of limits, in the order of the problem.
    pub levels: Vec<Level<'a>>,
    /// Scores of all candidates so far.
    pub(super) known: FxHashMap<Genes, f64>,
    /// Front, if the strategy draws one.
    pub(super) front: Vec<Scored>,
    /// Subnets to start from.
    pub(super) starts: Vec<Genes>,
    effects: Option<&'a EffectsOf<'a>>,
    budget: usize,
    scorer: &'a mut Scorer<'a>,
    progress: &'a mut (dyn FnMut(&Generation) + Send),
}

impl<'a> Task<'a> {
    /// The start of a search; `tables` are those of an earlier one with the same measures.
    ///
    /// # Errors
    /// An invalid space, limits that no subnet meets ([`Error::Impossible`]), and errors of measures.
    pub(super) fn new(
        problem: &Problem<'a>,
        tables: Option<Tables>,
        budget: usize,
        scorer: &'a mut Scorer<'a>,
        progress: &'a mut (dyn FnMut(&Generation) + Send),
    ) -> Result<Self> {
        let genome = Genome::new(problem.space)?;
        let (limits, against) = match tables {
            Some(tables) => (
                Limits::with_tables(problem.limits, tables.limits)?,
                Limits::with_tables(problem.against, tables.against)?,
            ),
            None => (Limits::new(&genome, problem.limits)?, Limits::new(&genome, problem.against)?),
        };
        let witness = witness(&genome, &limits)?;
        let starts = problem.starts.iter().filter_map(|subnet| genome.encode(subnet).ok()).collect();
        let rules = Rules { genome, limits, against, witness, seed: problem.seed };
        let others = problem.others.iter().map(|limits| rules.with_bounds(limits)).collect::<Result<Vec<_>>>()?;
        Ok(Task {
            levels: std::iter::once(rules).chain(others).map(Level::new).collect(),
            known: FxHashMap::default(),
            front: Vec::new(),
            starts,
            effects: problem.effects,
            budget,
            scorer,
            progress,
        })
    }

    /// Genome and limits of candidates, for strategies that search one group of limits at a time.
    pub fn rules(&self) -> &Rules<'a> {
        &self.levels[0].rules
    }

    /// The best feasible candidate so far, for such strategies.
    pub fn best(&self) -> Option<&Scored> {
        self.levels[0].best.as_ref()
    }

    /// Number of subnets that may be scored in all.
    pub fn budget(&self) -> usize {
        self.budget
    }

    /// Number of subnets that may still be scored.
    pub fn remaining(&self) -> usize {
        self.budget.saturating_sub(self.known.len())
    }

    /// Whether nothing is left to score: the budget is spent, or the space has no other subnets.
    pub fn is_over(&self) -> bool {
        self.remaining() == 0 || self.known.len() as f64 >= self.rules().genome.space().count()
    }

    /// Scores `candidates` and returns them with their scores, without those that exceed the budget.
    ///
    /// # Errors
    /// Errors of [`evaluate`](Self::evaluate).
    pub fn score(&mut self, candidates: Vec<Genes>) -> Result<Vec<Scored>> {
        self.evaluate(&candidates)?;
        Ok(self.scored(candidates).collect())
    }

    /// A candidate with its score, if it has one.
    pub fn score_of(&self, genes: Genes) -> Option<Scored> {
        self.known.get(&genes).map(|&score| (score, genes))
    }

    /// The scored ones among `candidates`.
    pub fn scored(&self, candidates: impl IntoIterator<Item = Genes>) -> impl Iterator<Item = Scored> {
        candidates.into_iter().filter_map(|genes| self.score_of(genes))
    }

    /// Scores `candidates`. A candidate may occur several times or have been scored before: that costs nothing, and no
    /// subnet reaches the scorer twice. Candidates beyond the budget are skipped. Each level keeps its best.
    ///
    /// # Errors
    /// Errors of scorer and measures, and scores that are not finite.
    pub fn evaluate<'g>(&mut self, candidates: impl IntoIterator<Item = &'g Genes>) -> Result<()> {
        let mut fresh = Vec::new();
        for genes in candidates {
            if self.budget <= self.known.len() {
                break;
            }
            if !self.known.contains_key(genes) {
                // Reserves the entry, so that a second occurrence is not scored.
                self.known.insert(genes.clone(), f64::NAN);
                fresh.push(genes);
            }
        }
        if fresh.is_empty() {
            return Ok(());
        }
        let genome = &self.levels[0].rules.genome;
        let subnets: Vec<Subnet> = fresh.par_iter().map(|genes| genome.decode(genes)).collect();
        let scores = (self.scorer)(&subnets)?;
        if scores.len() != fresh.len() {
            let (given, asked) = (scores.len(), fresh.len());
            return Err(Error::Internal(format!("the scorer gave {given} scores for {asked} subnets")));
        }
        for ((genes, score), subnet) in fresh.into_iter().zip(scores).zip(&subnets) {
            if !score.is_finite() {
                return Err(Error::Search(format!("the scorer gave {score} for '{subnet}'; expected a number")));
            }
            for level in &mut self.levels {
                level.offer(score, genes)?;
            }
            if let Some(known) = self.known.get_mut(genes) {
                *known = score;
            }
        }
        Ok(())
    }

    /// By how much each value of each gene raises the score of each candidate, from the scorer's derivatives or else
    /// from scoring all single changes.
    ///
    /// # Errors
    /// Errors of scorer and measures.
    pub(super) fn effects(&mut self, candidates: &[Genes]) -> Result<Vec<Effects>> {
        if let Some(effects) = self.effects {
            let genome = &self.rules().genome;
            let subnets: Vec<Subnet> = candidates.par_iter().map(|genes| genome.decode(genes)).collect();
            let effects = effects(&subnets)?;
            return match effects.iter().all(|effects| effects.len() == genome.value_count()) {
                true => Ok(effects),
                false => Err(Error::Internal("the scorer's derivatives are those of another space".into())),
            };
        }
        let genome = &self.rules().genome;
        let mut neighbours = candidates.to_vec();
        neighbours.extend(candidates.iter().flat_map(|genes| {
            genome.changes(genes).into_iter().map(|(place, choice)| {
                let mut other = genes.clone();
                genome.set(&mut other, place, choice);
                other
            })
        }));
        self.evaluate(&neighbours)?;
        let genome = &self.rules().genome;
        Ok(candidates.iter().map(|genes| genome.effects(genes, &self.known)).collect())
    }

    /// The `count` best feasible candidates of each level, best first.
    pub(super) fn top(&self, count: usize) -> Result<Vec<Vec<Candidate>>> {
        if count == 0 {
            return Ok(vec![Vec::new(); self.levels.len()]);
        }
        let mut all: Vec<Scored> = self.known.iter().map(|(genes, &score)| (score, genes.clone())).collect();
        rank(&mut all);
        let of_level = |level: &Level| {
            let mut top = Vec::with_capacity(count.min(all.len()));
            for (score, genes) in &all {
                if level.rules.feasible(genes)? {
                    let subnet = level.rules.genome.decode(genes);
                    top.push(Candidate { subnet, score: *score, measured_accuracy: None });
                    if top.len() == count {
                        break;
                    }
                }
            }
            Ok(top)
        };
        self.levels.iter().map(of_level).collect()
    }

    /// Ends a generation: records the best subnet so far of each level, and reports that of the first.
    pub fn record(&mut self) {
        for (number, level) in self.levels.iter_mut().enumerate() {
            let Some((score, genes)) = &level.best else { continue };
            let entry = Generation {
                generation: level.history.len(),
                evaluations: self.known.len(),
                best: level.rules.genome.decode(genes),
                score: *score,
            };
            if number == 0 {
                (self.progress)(&entry);
            }
            level.history.push(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_scored_twice_and_the_budget_holds() {
        let space = SearchSpace::named("tiny").unwrap();
        let mut seen = Vec::new();
        let mut scorer = |subnets: &[Subnet]| {
            seen.extend_from_slice(subnets);
            Ok(subnets.iter().map(|s| s.resolution as f64).collect())
        };
        let limit = [Limit::new("resolution", 24.0, |s| Ok(s.resolution as f64))];
        let problem = Problem::new(&space, &limit, 0);
        let mut nothing = |_: &Generation| ();
        let mut task = Task::new(&problem, None, 3, &mut scorer, &mut nothing).unwrap();
        let genes: Vec<Genes> =
            ["r16 d1,1 k3|3 e2|2", "r32 d1,1 k3|3 e2|2", "r24 d1,1 k3|3 e2|2", "r24 d1,1 k5|3 e2|2"]
                .map(|text| task.rules().genome.encode(&text.parse().unwrap()).unwrap())
                .to_vec();
        let scores = |scored: Vec<Scored>| scored.into_iter().map(|s| s.0).collect::<Vec<_>>();
        let twice = vec![genes[0].clone(), genes[1].clone(), genes[0].clone()];
        assert_eq!(scores(task.score(twice).unwrap()), [16.0, 32.0, 16.0]);
        assert_eq!(task.best().unwrap().0, 16.0, "the best must meet the limit");
        assert_eq!(scores(task.score(genes).unwrap()), [16.0, 32.0, 24.0]);
        assert_eq!((task.remaining(), task.best().unwrap().0), (0, 24.0));
        drop(task);
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn bad_scores_are_refused() {
        let space = SearchSpace::named("tiny").unwrap();
        let problem = Problem::new(&space, &[], 0);
        for bad in [vec![], vec![f64::NAN]] {
            let mut scorer = |_: &[Subnet]| Ok(bad.clone());
            let mut nothing = |_: &Generation| ();
            let mut task = Task::new(&problem, None, 3, &mut scorer, &mut nothing).unwrap();
            assert!(task.score(vec![task.rules().witness.clone()]).is_err());
        }
    }

    #[test]
    fn derivatives_of_another_space_are_refused() {
        let space = SearchSpace::named("tiny").unwrap();
        let effects = |subnets: &[Subnet]| Ok(vec![vec![0.0; 7]; subnets.len()]);
        let problem = Problem { effects: Some(&effects), ..Problem::new(&space, &[], 0) };
        let mut scorer = |subnets: &[Subnet]| Ok(vec![0.5; subnets.len()]);
        let mut nothing = |_: &Generation| ();
        let mut task = Task::new(&problem, None, 3, &mut scorer, &mut nothing).unwrap();
        let witness = task.rules().witness.clone();
        assert!(task.effects(&[witness]).unwrap_err().to_string().contains("another space"));
    }
}
