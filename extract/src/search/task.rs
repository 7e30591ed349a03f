//! What every strategy works on: the space, the limits, a scorer, and the account of what has been scored.

use super::Candidate;
use super::feasible::{repair, witness};
use super::genome::{Genes, Genome};
use super::limit::{Limit, Limits};
use crate::{Error, Result};
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::{SearchSpace, Subnet};
use rand::Rng;
use rand::rngs::StdRng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// What is asked.
pub struct Problem<'a> {
    /// The space.
    pub space: &'a SearchSpace,
    /// What the answer must meet; none means no limit.
    pub limits: &'a [Limit<'a>],
    /// What a front is drawn against (their bounds do not count); only strategies that give a front read it.
    pub against: &'a [Limit<'a>],
    /// Most subnets to score; `None` for the strategy's own number.
    pub evaluations: Option<usize>,
    /// Seed.
    pub seed: u64,
    /// How many of the best subnets the result lists.
    pub keep: usize,
}

impl<'a> Problem<'a> {
    /// The best subnet of `space` within `limits`.
    pub fn new(space: &'a SearchSpace, limits: &'a [Limit<'a>], seed: u64) -> Self {
        Problem { space, limits, against: &[], evaluations: None, seed, keep: 0 }
    }
}

/// Gives each of the subnets it is handed a number, larger being better.
pub type Scorer<'a> = dyn FnMut(&[Subnet]) -> Result<Vec<f64>> + 'a;

/// A generation's best.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// Number, from 0: a generation of an evolution, or what the strategy otherwise scores in one go.
    pub generation: usize,
    /// Different subnets scored until then.
    pub evaluations: usize,
    /// Best subnet until then.
    pub best: Subnet,
    /// Score.
    pub score: f64,
}

/// A candidate and its score.
pub type Scored = (f64, Genes);

/// Puts the best first; equal scores in the order of the genes, so that no other order shows through.
pub fn rank(scored: &mut [Scored]) {
    scored.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
}

/// What candidates are and must meet: the part of a task that threads share.
pub struct Rules<'a> {
    /// The space's genome.
    pub genome: Genome,
    /// What must hold.
    pub limits: Limits<'a>,
    /// What a front is drawn against.
    pub against: Limits<'a>,
    /// A candidate that meets the limits.
    pub witness: Genes,
    /// Seed.
    pub seed: u64,
}

impl Rules<'_> {
    /// The generator for a position of this search.
    pub fn rng(&self, position: &[u64]) -> StdRng {
        generator(self.seed, Stream::Search, position)
    }

    /// Whether all limits hold.
    ///
    /// # Errors
    /// What measures say.
    pub fn feasible(&self, genes: &[u16]) -> Result<bool> {
        Ok(self.limits.violation(&self.genome, genes)? == 0.0)
    }

    /// `genes`, changed so that they meet the limits.
    ///
    /// # Errors
    /// What measures say.
    pub fn repair(&self, genes: Genes, rng: &mut impl Rng) -> Result<Genes> {
        repair(&self.genome, &self.limits, genes, &self.witness, rng)
    }
}

/// The problem while a strategy works on it.
pub struct Task<'a> {
    /// What candidates are and must meet.
    pub rules: Rules<'a>,
    pub(super) known: HashMap<Genes, f64>,
    pub(super) history: Vec<Generation>,
    pub(super) best: Option<Scored>,
    /// A whole front, where the strategy draws one.
    pub(super) front: Vec<Scored>,
    budget: usize,
    scorer: &'a mut Scorer<'a>,
    progress: &'a mut dyn FnMut(&Generation),
}

impl<'a> Task<'a> {
    /// # Errors
    /// An invalid space, limits that no subnet meets ([`Error::Impossible`]), and what measures say.
    pub(super) fn new(
        problem: &Problem<'a>,
        budget: usize,
        scorer: &'a mut Scorer<'a>,
        progress: &'a mut dyn FnMut(&Generation),
    ) -> Result<Self> {
        let genome = Genome::new(problem.space)?;
        let limits = Limits::new(&genome, problem.limits)?;
        let against = Limits::new(&genome, problem.against)?;
        let witness = witness(&genome, &limits)?;
        Ok(Task {
            rules: Rules { genome, limits, against, witness, seed: problem.seed },
            known: HashMap::new(),
            history: Vec::new(),
            best: None,
            front: Vec::new(),
            budget,
            scorer,
            progress,
        })
    }

    /// How many subnets may be scored in all.
    pub fn budget(&self) -> usize {
        self.budget
    }

    /// How many more subnets may be scored.
    pub fn remaining(&self) -> usize {
        self.budget.saturating_sub(self.known.len())
    }

    /// Whether nothing is left to score: the budget is spent, or the space has no other subnets.
    pub fn is_over(&self) -> bool {
        self.remaining() == 0 || self.known.len() as f64 >= self.rules.genome.space().count()
    }

    /// Scores `candidates` and returns them with their scores, without those that the budget does not hold any more.
    ///
    /// # Errors
    /// As [`evaluate`](Self::evaluate).
    pub fn score(&mut self, candidates: Vec<Genes>) -> Result<Vec<Scored>> {
        self.evaluate(&candidates)?;
        Ok(self.scored(candidates).collect())
    }

    /// Those of `candidates` that have been scored.
    pub fn scored(&self, candidates: impl IntoIterator<Item = Genes>) -> impl Iterator<Item = Scored> {
        candidates.into_iter().filter_map(|genes| self.known.get(&genes).map(|&score| (score, genes)))
    }

    /// Scores `candidates`, of which each may occur several times or have been scored before: that costs nothing, and
    /// no subnet reaches the scorer twice. Candidates that the budget does not hold any more are left out. The best
    /// feasible one is kept.
    ///
    /// # Errors
    /// What scorer and measures say, and scores that are no numbers.
    pub fn evaluate(&mut self, candidates: &[Genes]) -> Result<()> {
        let mut fresh = Vec::new();
        for (place, genes) in candidates.iter().enumerate() {
            if self.budget <= self.known.len() {
                break;
            }
            if !self.known.contains_key(genes) {
                // Holds the place of one that occurs twice.
                self.known.insert(genes.clone(), f64::NAN);
                fresh.push(place);
            }
        }
        if !fresh.is_empty() {
            let genome = &self.rules.genome;
            let subnets: Vec<Subnet> = fresh.par_iter().map(|&place| genome.decode(&candidates[place])).collect();
            let scores = (self.scorer)(&subnets)?;
            if scores.len() != fresh.len() {
                let (given, asked) = (scores.len(), fresh.len());
                return Err(Error::Internal(format!("the scorer gave {given} scores for {asked} subnets")));
            }
            for ((place, score), subnet) in fresh.into_iter().zip(scores).zip(&subnets) {
                if !score.is_finite() {
                    return Err(Error::Search(format!("the scorer gave {score} for '{subnet}'; expected a number")));
                }
                let genes = &candidates[place];
                let better = |(best, holder): &Scored| score > *best || (score == *best && genes < holder);
                if self.best.as_ref().is_none_or(better) && self.rules.feasible(genes)? {
                    self.best = Some((score, genes.clone()));
                }
                if let Some(known) = self.known.get_mut(genes) {
                    *known = score;
                }
            }
        }
        Ok(())
    }

    /// The `count` best feasible candidates, best first.
    pub(super) fn top(&self, count: usize) -> Result<Vec<Candidate>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let mut all: Vec<Scored> = self.known.iter().map(|(genes, &score)| (score, genes.clone())).collect();
        rank(&mut all);
        let mut top = Vec::with_capacity(count.min(all.len()));
        for (score, genes) in all {
            if self.rules.feasible(&genes)? {
                let subnet = self.rules.genome.decode(&genes);
                top.push(Candidate { subnet, score, measured_accuracy: None });
                if top.len() == count {
                    break;
                }
            }
        }
        Ok(top)
    }

    /// Ends a generation: notes the best so far.
    pub fn record(&mut self) {
        if let Some((score, genes)) = &self.best {
            let entry = Generation {
                generation: self.history.len(),
                evaluations: self.known.len(),
                best: self.rules.genome.decode(genes),
                score: *score,
            };
            (self.progress)(&entry);
            self.history.push(entry);
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
        let mut task = Task::new(&problem, 3, &mut scorer, &mut nothing).unwrap();
        let genes: Vec<Genes> =
            ["r16 d1,1 k3|3 e2|2", "r32 d1,1 k3|3 e2|2", "r24 d1,1 k3|3 e2|2", "r24 d1,1 k5|3 e2|2"]
                .map(|text| task.rules.genome.encode(&text.parse().unwrap()).unwrap())
                .to_vec();
        let scores = |scored: Vec<Scored>| scored.into_iter().map(|s| s.0).collect::<Vec<_>>();
        let twice = vec![genes[0].clone(), genes[1].clone(), genes[0].clone()];
        assert_eq!(scores(task.score(twice).unwrap()), [16.0, 32.0, 16.0]);
        assert_eq!(task.best.as_ref().unwrap().0, 16.0, "the best must meet the limit");
        assert_eq!(scores(task.score(genes).unwrap()), [16.0, 32.0, 24.0]);
        assert_eq!((task.remaining(), task.best.as_ref().unwrap().0), (0, 24.0));
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
            let mut task = Task::new(&problem, 3, &mut scorer, &mut nothing).unwrap();
            assert!(task.score(vec![task.rules.witness.clone()]).is_err());
        }
    }
}
