//! Search of the best subnet within limits.
//!
//! [`search`] takes a [`Problem`] (space, [`Limit`]s, budget, seed), a scorer (a predictor, or any other function that
//! gives each subnet a number, larger being better) and [`SearchSettings`], which are those of one of this crate's
//! strategies, and returns a [`SearchResult`]. A [`Strategy`] is a file with a struct of its settings; all strategies
//! work on a [`Task`], which counts evaluations and keeps history and best.
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
//! | [`mod@overrating`] | by how much a search overrates what it chooses |
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
pub mod overrating;
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
pub use overrating::overrating;
pub use result::{Basis, Candidate, ConstraintValue, FrontPoint, Scoring, SearchResult};
pub use strategies::*;
pub use task::{Generation, Problem, Scorer, Task};

use crate::{Error, Result};
use genome::Genes;
use limit::Tables;
use std::time::Instant;
use task::Level;

/// Divisor of a strategy's own number of evaluations for each group of limits after the first of one search.
const SHARED: usize = 22;

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
    progress: &'a mut (dyn FnMut(&Generation) + Send),
) -> Result<SearchResult> {
    Ok(search_all(problem, settings, scorer, progress)?.swap_remove(0))
}

/// Finds the best subnet within the problem's limits, and within each of its [other bounds](Problem::others), in one
/// search: every score counts for all of them. The results are in the same order; each has the evaluations and the
/// seconds of the whole search.
///
/// # Errors
/// As [`search`]; also a [strategy](Strategy::shares_scores) that searches one group of limits at a time.
pub fn search_all<'a>(
    problem: &Problem<'a>,
    settings: &SearchSettings,
    scorer: &'a mut Scorer<'a>,
    progress: &'a mut (dyn FnMut(&Generation) + Send),
) -> Result<Vec<SearchResult>> {
    search_with_tables(problem, None, settings, scorer, progress)
}

/// [`search_all`] with the tables of an earlier search with the same measures: in a large space, building them takes
/// longer than searching.
fn search_with_tables<'a>(
    problem: &Problem<'a>,
    tables: Option<Tables>,
    settings: &SearchSettings,
    scorer: &'a mut Scorer<'a>,
    progress: &'a mut (dyn FnMut(&Generation) + Send),
) -> Result<Vec<SearchResult>> {
    // On a thread of the pool: another one would be woken after each of the many short parallel steps.
    rayon::scope(|_| search_here(problem, tables, settings, scorer, progress))
}

/// Searches on the calling thread.
fn search_here<'a>(
    problem: &Problem<'a>,
    tables: Option<Tables>,
    settings: &SearchSettings,
    scorer: &'a mut Scorer<'a>,
    progress: &'a mut (dyn FnMut(&Generation) + Send),
) -> Result<Vec<SearchResult>> {
    let start = Instant::now();
    let strategy = settings.strategy();
    settings.validate()?;
    let others = problem.others.len();
    if others > 0 && !strategy.shares_scores() {
        return Err(Error::Search(format!("'{}' searches one group of limits at a time", settings.name())));
    }
    let budget = problem.evaluations.unwrap_or_else(|| evaluations(strategy, others));
    if budget <= others {
        return Err(Error::Search(format!("evaluations must be at least {}", others + 1)));
    }
    let mut task = Task::new(problem, tables, budget, scorer, progress)?;
    // A witness meets the limits, so no strategy can end without an answer.
    let witnesses: Vec<Genes> = task.levels.iter().map(|level| level.rules.witness.clone()).collect();
    task.evaluate(&witnesses)?;
    strategy.run(&mut task)?;
    let top = task.top(problem.keep)?;
    let Task { levels, known, front, .. } = task;
    let mut points = Vec::with_capacity(front.len());
    for (score, genes) in front {
        let subnet = levels[0].rules.genome.decode(&genes);
        let values = problem.against.iter().map(|cost| cost.value(&subnet)).collect::<Result<_>>()?;
        points.push(FrontPoint { subnet, score, values });
    }
    let hypervolume = (!points.is_empty()).then(|| volume(problem, &points)).transpose()?;
    let result = |(level, top): (Level, Vec<Candidate>)| {
        let Level { rules, best, history, elite } = level;
        let (score, genes) = best.ok_or_else(|| Error::Internal("no feasible subnet was scored".into()))?;
        let best = rules.genome.decode(&genes);
        let value = |limit: &Limit| {
            let (constraint, value) = (limit.name.clone(), limit.value(&best)?);
            Ok(ConstraintValue { constraint, limit: limit.bound, value, batch: limit.batch })
        };
        Ok(SearchResult {
            constraints: rules.limits.limits().iter().map(value).collect::<Result<_>>()?,
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
            front: points.clone(),
            elite: elite.iter().map(|genes| rules.genome.decode(genes)).collect(),
            basis: None,
            scoring: None,
            hypervolume,
            seconds: start.elapsed().as_secs_f64(),
        })
    };
    levels.into_iter().zip(top).map(result).collect()
}

/// Most subnets that a strategy scores for one group of limits and `others` that share its scores, if the problem sets
/// no budget.
pub fn evaluations(strategy: &dyn Strategy, others: usize) -> usize {
    let own = strategy.evaluations();
    own + others * own / SHARED
}

/// Place number `index` of `count` places that lie evenly among `len`, from the first to the last; a single one is the
/// last.
fn evenly(index: usize, count: usize, len: usize) -> usize {
    if count > 1 { index * (len - 1) / (count - 1) } else { len - 1 }
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
