//! Search of the best subnet within limits.
//!
//! [`search`] takes a [`Problem`] (space, [`Limit`]s, budget, seed), a scorer (a predictor, or any other function that
//! gives each subnet a number, larger being better) and a [`Strategy`], and returns a [`SearchResult`]. A strategy is a
//! file with a struct of its settings; all strategies work on a [`Task`], which counts evaluations and keeps history
//! and best.
//!
//! | module | concern |
//! | --- | --- |
//! | [`random`], [`grid`] | baselines |
//! | [`evolution`] | evolutionary search (paper §3.4) |
//! | [`pareto`] | NSGA-II: a whole front in one run |
//! | [`bayes`] | a Gaussian process of the scores and expected improvement |
//! | [`ppo`] | MnasNet's controller |
//! | [`gradient`] | ProxylessNAS's gates |
//! | [`strategies`] | the table of strategies |
//! | [`result`] | result of a search |
//! | `variation` | mutation and crossover |
//! | [`climb`] | local search |
//! | [`task`] | working state of a search: limits, scores, budget, history |
//! | [`genome`] | a subnet as a row of small numbers |
//! | [`limit`], [`table`], [`feasible`] | limits, their tables, smallest reachable values, repair |

pub mod bayes;
pub mod climb;
pub mod evolution;
pub mod feasible;
pub mod genome;
pub mod gradient;
pub mod grid;
pub mod limit;
pub mod pareto;
pub mod ppo;
pub mod random;
pub mod result;
pub mod strategies;
pub mod table;
pub mod task;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod variation;

pub use limit::{Limit, Limits, of_batch};
pub use result::{Basis, Candidate, ConstraintValue, FrontPoint, SearchResult};
pub use strategies::*;
pub use task::{Generation, Problem, Scorer, Task};

use crate::{Error, Result};
use std::time::Instant;

/// Finds the subnet with the largest score among those that meet all limits.
///
/// `progress` is called with every generation. Equal input and seed give equal results with any number of threads, if
/// the scorer does not depend on that number.
///
/// ```
/// use ofa_extract::search::Evolution;
/// use ofa_extract::{Limit, Problem, SearchSettings, search};
/// use ofa_supernet::{SearchSpace, Subnet};
///
/// let space = SearchSpace::named("tiny")?;
/// let blocks = |subnet: &Subnet| subnet.stages.iter().map(Vec::len).sum::<usize>() as f64;
/// let limits = [Limit::new("blocks", 3.0, |subnet| Ok(blocks(subnet)))];
/// let problem = Problem { evaluations: Some(200), ..Problem::new(&space, &limits, 0) };
/// let settings = SearchSettings::Evolution(Evolution::default());
///
/// // Any function of subnets can be the score; a predictor would give accuracies.
/// let mut scorer = |subnets: &[Subnet]| Ok(subnets.iter().map(|s| blocks(s) + s.resolution as f64 / 100.0).collect());
/// let result = search(&problem, &settings, &mut scorer, &mut |_| ())?;
/// assert_eq!((blocks(&result.best), result.best.resolution), (3.0, 32));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// An invalid space, impossible settings, limits that no subnet meets ([`Error::Impossible`]), and errors of measures
/// or scorer.
pub fn search<'a>(
    problem: &Problem<'a>,
    settings: &SearchSettings,
    scorer: &'a mut Scorer<'a>,
    progress: &'a mut dyn FnMut(&Generation),
) -> Result<SearchResult> {
    let start = Instant::now();
    let strategy = settings.strategy();
    settings.validate()?;
    let budget = problem.evaluations.unwrap_or(strategy.evaluations());
    if budget == 0 {
        return Err(Error::Search("evaluations must be at least 1".into()));
    }
    let mut task = Task::new(problem, budget, scorer, progress)?;
    // The witness meets the limits, so no strategy can end without an answer.
    task.evaluate(&[task.rules.witness.clone()])?;
    strategy.run(&mut task)?;
    let top = task.top(problem.keep)?;
    let Task { rules, known, history, best, front, .. } = task;
    let (score, genes) = best.ok_or_else(|| Error::Internal("no feasible subnet was scored".into()))?;
    let best = rules.genome.decode(&genes);
    let mut constraints = Vec::new();
    for limit in problem.limits {
        let value = limit.value(&best)?;
        constraints.push(ConstraintValue {
            constraint: limit.name.clone(),
            limit: limit.bound,
            value,
            batch: limit.batch,
        });
    }
    let mut points = Vec::with_capacity(front.len());
    for (score, genes) in front {
        let subnet = rules.genome.decode(&genes);
        let values = problem.against.iter().map(|cost| cost.value(&subnet)).collect::<Result<_>>()?;
        points.push(FrontPoint { subnet, score, values });
    }
    Ok(SearchResult {
        constraints,
        settings: settings.clone(),
        seed: problem.seed,
        best,
        predicted_accuracy: score,
        predicted_deviation: None,
        pessimism: 0.0,
        measured_accuracy: None,
        evaluations: known.len(),
        history,
        top,
        against: problem.against.iter().map(|cost| cost.name.clone()).collect(),
        front: points,
        basis: None,
        seconds: start.elapsed().as_secs_f64(),
    })
}
