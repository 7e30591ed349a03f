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
//! | [`memetic`] | evolution of local optima, each the best of a linear model of the score within the limits |
//! | [`pareto`] | NSGA-II: a whole front in one run |
//! | [`rounds`] | rounds of scoring, refitting the predictor and searching its predictions |
//! | [`bayes`] | a Gaussian process of the scores and expected improvement |
//! | [`ppo`] | MnasNet's controller |
//! | [`gradient`] | ProxylessNAS's gates |
//! | [`cheapest`] | the other direction: the smallest cost of a score |
//! | [`strategies`] | the table of strategies |
//! | [`result`] | result of a search |
//! | [`mod@hypervolume`] | how much a front dominates |
//! | `variation` | mutation and crossover |
//! | [`climb`] | local search |
//! | [`task`] | working state of a search: limits, scores, budget, history |
//! | [`genome`] | a subnet as a row of small numbers |
//! | `linear`, `parts` | best choices within the limits according to a linear model |
//! | [`limit`], [`table`], [`feasible`] | limits, their tables, smallest reachable values, repair |

pub mod bayes;
pub mod cheapest;
pub mod climb;
pub mod evolution;
pub mod feasible;
pub mod genome;
pub mod gradient;
pub mod grid;
pub mod hypervolume;
pub mod limit;
mod linear;
pub mod memetic;
pub mod pareto;
mod parts;
pub mod ppo;
pub mod random;
pub mod result;
pub mod rounds;
pub mod strategies;
pub mod table;
pub mod task;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod variation;

pub use cheapest::Cheapest;
pub use hypervolume::hypervolume;
pub use limit::{Limit, Limits, of_batch};
pub use result::{Basis, Candidate, ConstraintValue, FrontPoint, Scoring, SearchResult};
pub use strategies::*;
pub use task::{Effects, EffectsOf, Generation, Problem, Scorer, Task};

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
    let Task { rules, known, history, best, front, elite, .. } = task;
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
    let hypervolume = (!points.is_empty()).then(|| volume(problem, &points)).transpose()?;
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
        elite: elite.iter().map(|genes| rules.genome.decode(genes)).collect(),
        basis: None,
        scoring: None,
        hypervolume,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Fraction of the box of costs up to those of the largest subnet, and scores from 0 to 1, that a front dominates.
fn volume(problem: &Problem, front: &[FrontPoint]) -> Result<f64> {
    let largest = problem.space.largest();
    let most: Vec<f64> = problem.against.iter().map(|cost| cost.value(&largest)).collect::<Result<_>>()?;
    let goals = |point: &FrontPoint| -> Vec<f64> {
        let costs = point.values.iter().zip(&most).map(|(value, most)| value / most);
        costs.chain([-point.score.min(1.0)]).collect()
    };
    let mut reference = vec![1.0; most.len()];
    reference.push(0.0);
    Ok(hypervolume::hypervolume(&front.iter().map(goals).collect::<Vec<_>>(), &reference))
}
