//! The best subnet within limits.
//!
//! [`search`] takes a [`Problem`] (space, [`Limit`]s, budget, seed), a scorer (a predictor, or anything else that gives each subnet
//! a number, larger being better) and a [`Strategy`], and returns a [`SearchResult`]. A strategy is a file with a struct of its
//! constants; all of them work on a [`Task`], which keeps the account.
//!
//! | module | concern |
//! | --- | --- |
//! | [`random`], [`grid`] | the yardsticks |
//! | [`evolution`] | evolutionary search (paper §3.4) |
//! | [`pareto`] | NSGA-II: a whole front in one run |
//! | [`bayes`] | a Gaussian process of the scores and expected improvement |
//! | [`ppo`] | MnasNet's controller |
//! | [`gradient`] | ProxylessNAS's gates |
//! | [`climb`] | local search |
//! | [`task`] | what a strategy works on: limits, scores, budget, history |
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
pub mod table;
pub mod task;
#[cfg(test)]
mod testing;

pub use bayes::Bayes;
pub use evolution::Evolution;
pub use gradient::Gradient;
pub use grid::Grid;
pub use limit::{Limit, Limits, of_batch};
pub use pareto::Pareto;
pub use ppo::Ppo;
pub use random::Random;
pub use task::{Generation, Problem, Scorer, Task};

use crate::{Error, Result};
use ofa_supernet::Subnet;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// A way to search.
pub trait Strategy {
    /// Most subnets that it scores when nothing else is asked.
    fn evaluations(&self) -> usize;

    /// Checks its constants.
    ///
    /// # Errors
    /// The first impossible value, with what is allowed.
    fn validate(&self) -> Result<()> {
        Ok(())
    }

    /// Scores candidates until the budget is spent or there is nothing left to try; the task keeps the best feasible one.
    ///
    /// # Errors
    /// What scorer and measures say.
    fn run(&self, task: &mut Task) -> Result<()>;
}

/// A strategy with its constants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "strategy", rename_all = "snake_case")]
pub enum SearchSettings {
    /// Random subnets.
    Random(Random),
    /// Uniform settings.
    Grid(Grid),
    /// Evolutionary search.
    Evolution(Evolution),
    /// NSGA-II.
    Pareto(Pareto),
    /// Gaussian process and expected improvement.
    Bayes(Bayes),
    /// MnasNet's controller.
    Ppo(Ppo),
    /// ProxylessNAS's gates.
    Gradient(Gradient),
}

impl SearchSettings {
    /// The strategy.
    pub fn strategy(&self) -> &dyn Strategy {
        match self {
            SearchSettings::Random(strategy) => strategy,
            SearchSettings::Grid(strategy) => strategy,
            SearchSettings::Evolution(strategy) => strategy,
            SearchSettings::Pareto(strategy) => strategy,
            SearchSettings::Bayes(strategy) => strategy,
            SearchSettings::Ppo(strategy) => strategy,
            SearchSettings::Gradient(strategy) => strategy,
        }
    }
}

/// What a search found, and how. Equal for equal input and seed but for `seconds`, which is not written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SearchResult {
    /// The limits, with the best subnet's values.
    pub constraints: Vec<ConstraintValue>,
    /// Strategy and constants.
    pub settings: SearchSettings,
    /// Seed.
    pub seed: u64,
    /// The best subnet that meets all limits.
    pub best: Subnet,
    /// Its score: the predicted accuracy when the scorer is a predictor.
    pub predicted_accuracy: f64,
    /// Standard deviation of the prediction, where the predictor knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_deviation: Option<f64>,
    /// The scores of the search (in `history`, `top` and `front`) are predicted accuracies less so many deviations.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub pessimism: f64,
    /// Its accuracy on the supernet, where the scorer or a later [`verify`](Self::verify) measured it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_accuracy: Option<f64>,
    /// Different subnets that were scored.
    pub evaluations: usize,
    /// The best of each generation.
    pub history: Vec<Generation>,
    /// The best different subnets that meet all limits, best first: as many as [`Problem::keep`] asks for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<Candidate>,
    /// What the front is drawn against, such as `laptop:latency`; empty without a front.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub against: Vec<String>,
    /// Subnets of which none is better in everything than another, by rising score.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub front: Vec<FrontPoint>,
    /// What the scores rest on; `None` if the result does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basis: Option<Basis>,
    /// How long it took.
    #[serde(skip)]
    pub seconds: f64,
}

/// What the scores of a search rest on. The result is out of date as soon as a part of it has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Basis {
    /// Checksum of the supernet's weights whose accuracies the scores are; `None` for a predictor that does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// Checksum of the predictor; `None` if accuracies were measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predictor: Option<String>,
}

impl Basis {
    /// Why a result on this basis is out of date beside the supernet with the weights' checksum `weights` and the predictor with
    /// the checksum `predictor` (`None`: there is none), in words; `None` if it is not.
    pub fn outdated(&self, weights: &str, predictor: Option<&str>) -> Option<String> {
        match (&self.weights, &self.predictor) {
            (Some(before), _) if before != weights => Some(format!(
                "it was found for other weights (checksum {before}) than the supernet now has ({weights})"
            )),
            (_, Some(before)) if predictor.is_some_and(|now| now != before) => {
                Some("it was found with an earlier predictor".to_string())
            }
            _ => None,
        }
    }
}

impl SearchResult {
    /// Limits scores that are predicted accuracies to 0 to 1. The search itself ranks what the predictor says, which may lie
    /// outside: limited before, the best candidates would be equal. Pessimistic scores keep values below 0.
    pub fn limit_predictions(&mut self) {
        let least = if self.pessimism > 0.0 { f64::NEG_INFINITY } else { 0.0 };
        let scores = self.history.iter_mut().map(|generation| &mut generation.score);
        let scores = scores.chain(self.top.iter_mut().map(|candidate| &mut candidate.score));
        let scores = scores.chain(self.front.iter_mut().map(|point| &mut point.score));
        scores.for_each(|score| *score = score.clamp(least, 1.0));
        self.predicted_accuracy = self.predicted_accuracy.clamp(0.0, 1.0);
    }

    /// Measures the subnets of [`top`](Self::top) and makes the best measured one the result (of equal ones that with the better score).
    ///
    /// # Errors
    /// What `measure` and the limits' measures say.
    pub fn verify(&mut self, limits: &[Limit], measure: &mut dyn FnMut(&Subnet) -> Result<f64>) -> Result<()> {
        let mut best: Option<(f64, usize)> = None;
        for (place, candidate) in self.top.iter_mut().enumerate() {
            let accuracy = measure(&candidate.subnet)?;
            candidate.measured_accuracy = Some(accuracy);
            if best.is_none_or(|(highest, _)| accuracy > highest) {
                best = Some((accuracy, place));
            }
        }
        if let Some((accuracy, place)) = best {
            self.best = self.top[place].subnet.clone();
            self.predicted_accuracy = self.top[place].score;
            self.measured_accuracy = Some(accuracy);
            for (value, limit) in self.constraints.iter_mut().zip(limits) {
                value.value = limit.value(&self.best)?;
            }
        }
        Ok(())
    }
}

/// A limit and the value of the subnet that was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConstraintValue {
    /// The limit's name, such as `laptop:latency=12ms`.
    pub constraint: String,
    /// Largest allowed value, in the metric's base unit (ms, count, bytes).
    pub limit: f64,
    /// The subnet's value.
    pub value: f64,
    /// Images of one run that is limited: the batch of a latency's profile, otherwise 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub batch: usize,
}

/// A subnet among the best.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Which.
    pub subnet: Subnet,
    /// Its score.
    pub score: f64,
    /// Its accuracy on the supernet, where it was measured after the search.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_accuracy: Option<f64>,
}

/// A subnet on the front.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrontPoint {
    /// Which.
    pub subnet: Subnet,
    /// Its score.
    pub score: f64,
    /// Its costs, in the order of [`SearchResult::against`], in their base units (ms, count, bytes).
    pub values: Vec<f64>,
}

/// Finds the subnet with the largest score among those that meet all limits.
///
/// `progress` sees every generation. Equal input and seed give equal results with any number of threads, as long as the
/// scorer does not depend on the number.
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
/// An invalid space, impossible constants, limits that no subnet meets ([`Error::Impossible`]), and what measures or scorer say.
pub fn search<'a>(
    problem: &Problem<'a>,
    settings: &SearchSettings,
    scorer: &'a mut Scorer<'a>,
    progress: &'a mut dyn FnMut(&Generation),
) -> Result<SearchResult> {
    let start = Instant::now();
    let strategy = settings.strategy();
    strategy.validate()?;
    let budget = problem.evaluations.unwrap_or(strategy.evaluations());
    if budget == 0 {
        return Err(Error::Search("evaluations must be at least 1".into()));
    }
    let mut task = Task::new(problem, budget, scorer, progress)?;
    // A subnet that meets the limits is known: no strategy can end without an answer.
    task.score(vec![task.rules.witness.clone()])?;
    strategy.run(&mut task)?;
    let top = task.top(problem.keep)?;
    let Task { rules, known, history, best, front, .. } = task;
    let (score, genes) = best.expect("the witness was scored");
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

fn one() -> usize {
    1
}

fn is_one(value: &usize) -> bool {
    *value == 1
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

fn check_population(population: usize) -> Result<()> {
    if (1..=1_000_000).contains(&population) {
        return Ok(());
    }
    Err(Error::Search(format!("population {population} is not between 1 and 1000000")))
}

fn check_ratio(name: &str, value: f64) -> Result<()> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(Error::Search(format!("{name} {value} is not between 0 and 1")))
}

#[cfg(test)]
mod tests {
    use super::testing::{everything, macs, worth};
    use super::*;
    use ofa_supernet::SearchSpace;
    use std::collections::HashSet;

    fn score(subnets: &[Subnet]) -> Result<Vec<f64>> {
        Ok(subnets.iter().map(worth).collect())
    }

    #[test]
    fn every_strategy_works_on_a_space_of_one_or_a_few_subnets() {
        let mut space = SearchSpace::named("tiny").unwrap();
        (space.resolutions, space.kernel_sizes, space.depths) = (vec![32], vec![3], vec![1]);
        for (ratios, kernels) in [(1, vec![3]), (2, vec![3]), (3, vec![3, 5])] {
            let space = SearchSpace {
                expand_ratios: space.expand_ratios[..ratios].to_vec(),
                kernel_sizes: kernels,
                ..space.clone()
            };
            let limits = [Limit::new("macs", macs(&space, &space.largest()), |s| Ok(macs(&space, s)))];
            let against = [Limit::new("macs", f64::INFINITY, |s| Ok(macs(&space, s)))];
            for settings in strategies() {
                for evaluations in [None, Some(1)] {
                    let mut scorer = score;
                    let problem = Problem {
                        against: &against,
                        evaluations,
                        keep: usize::MAX,
                        ..Problem::new(&space, &limits, 0)
                    };
                    let found = search(&problem, &settings, &mut scorer, &mut |_| ()).unwrap();
                    let name = name_of(&settings);
                    assert_eq!(found.evaluations, found.top.len(), "{name}");
                    assert!(found.evaluations as f64 <= space.count(), "{name}");
                    if evaluations.is_none() && name != "grid" {
                        assert_eq!(found.best, space.largest(), "{name}");
                    }
                }
            }
        }
    }

    #[test]
    fn predictions_above_one_are_ranked_as_they_are_and_told_as_one() {
        let space = SearchSpace::named("tiny").unwrap();
        let blocks = |subnet: &Subnet| subnet.blocks().count() as f64;
        let mut scorer = |subnets: &[Subnet]| Ok(subnets.iter().map(|s| 0.9 + 0.1 * blocks(s)).collect());
        let problem = Problem { keep: 9, ..Problem::new(&space, &[], 0) };
        let settings = SearchSettings::Random(Random::default());
        let mut found = search(&problem, &settings, &mut scorer, &mut |_| ()).unwrap();
        assert_eq!((found.predicted_accuracy, blocks(&found.best)), (1.3, 4.0));
        found.limit_predictions();
        assert_eq!((found.predicted_accuracy, blocks(&found.top[0].subnet)), (1.0, 4.0));
        assert!(found.top.iter().all(|c| c.score == 1.0) && found.history.iter().all(|g| g.score == 1.0));
        (found.history[0].score, found.predicted_accuracy) = (-0.1, -0.1);
        let mut pessimistic = SearchResult { pessimism: 1.0, ..found.clone() };
        pessimistic.limit_predictions();
        found.limit_predictions();
        assert_eq!((found.history[0].score, found.predicted_accuracy), (0.0, 0.0));
        assert_eq!((pessimistic.history[0].score, pessimistic.predicted_accuracy), (-0.1, 0.0));
    }

    #[test]
    fn a_result_is_out_of_date_with_its_weights_or_predictor() {
        let basis = |weights: Option<&str>, predictor: Option<&str>| Basis {
            weights: weights.map(String::from),
            predictor: predictor.map(String::from),
        };
        assert_eq!(basis(Some("w"), Some("p")).outdated("w", Some("p")), None);
        assert!(basis(Some("w"), Some("p")).outdated("v", Some("p")).unwrap().contains("checksum w"));
        assert!(basis(Some("w"), Some("p")).outdated("w", Some("q")).unwrap().contains("earlier predictor"));
        assert_eq!(basis(Some("w"), None).outdated("w", Some("q")), None);
        assert_eq!(basis(None, Some("p")).outdated("v", Some("p")), None);
        assert!(basis(None, Some("p")).outdated("v", Some("q")).is_some());
    }

    fn name_of(settings: &SearchSettings) -> String {
        serde_json::to_value(settings).unwrap()["strategy"].as_str().unwrap().into()
    }

    /// Every strategy, quick enough for a test.
    fn strategies() -> Vec<SearchSettings> {
        vec![
            SearchSettings::Random(Random::default()),
            SearchSettings::Grid(Grid::default()),
            SearchSettings::Evolution(Evolution { population: 20, generations: 10, ..Evolution::default() }),
            SearchSettings::Pareto(Pareto { population: 20, generations: 10, ..Pareto::default() }),
            SearchSettings::Bayes(Bayes { initial: 20, batch: 10 }),
            SearchSettings::Ppo(Ppo { batch: 20, ..Ppo::default() }),
            SearchSettings::Gradient(Gradient { batch: 20, ..Gradient::default() }),
        ]
    }

    #[test]
    fn every_strategy_keeps_limits_budget_and_seed() {
        for name in ["tiny", "proxyless-w1.3", "resnet-tiny"] {
            let space = SearchSpace::named(name).unwrap();
            let (least, most) = (macs(&space, &space.smallest()), macs(&space, &space.largest()));
            let blocks = |subnet: &Subnet| Ok(subnet.blocks().count() as f64);
            let limits = [
                Limit::new("macs", least + 0.3 * (most - least), |s| Ok(macs(&space, s))),
                Limit::new("blocks", space.slots() as f64 - 1.0, blocks),
            ];
            let against = [Limit::new("macs", f64::INFINITY, |s| Ok(macs(&space, s)))];
            let value = |s: &Subnet| s.blocks().map(|b| b.kernel as f64 * b.expand.value()).sum::<f64>().sqrt();
            for settings in strategies() {
                let strategy = name_of(&settings);
                let run = |seed: u64, threads: usize| {
                    let mut seen = HashSet::new();
                    let mut scorer = |subnets: &[Subnet]| {
                        assert!(subnets.iter().all(|s| seen.insert(s.clone())), "{strategy} scores a subnet twice");
                        Ok(subnets.iter().map(value).collect())
                    };
                    let problem = Problem {
                        against: &against,
                        evaluations: Some(150),
                        keep: 3,
                        ..Problem::new(&space, &limits, seed)
                    };
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let found = pool.install(|| search(&problem, &settings, &mut scorer, &mut |_| ())).unwrap();
                    assert_eq!(found.evaluations, seen.len());
                    found
                };
                let found = run(1, 1);
                assert!(found.evaluations <= 150, "{strategy}: {}", found.evaluations);
                assert!(found.constraints.iter().all(|c| c.value <= c.limit), "{strategy}: {:?}", found.constraints);
                assert_eq!(found.predicted_accuracy, value(&found.best));
                assert!(found.history.windows(2).all(|w| w[0].score <= w[1].score));
                assert_eq!(found.history.last().unwrap().best, found.best);
                assert_eq!((found.top[0].score, &found.top[0].subnet), (found.predicted_accuracy, &found.best));
                let written = serde_json::to_string(&found).unwrap();
                assert_eq!(written, serde_json::to_string(&run(1, 2)).unwrap(), "{strategy}");
                let read: SearchResult = serde_json::from_str(&written).unwrap();
                assert_eq!(SearchResult { seconds: found.seconds, ..read }, found);
                if strategy != "grid" {
                    assert_ne!(run(2, 1).history, found.history, "{strategy}");
                }
            }
        }
    }

    #[test]
    fn who_looks_finds_more_than_random_draws() {
        let space = SearchSpace::named("cifar-mbv3").unwrap();
        let bound = 9e6;
        let limits = [Limit::new("macs", bound, |s| Ok(macs(&space, s)))];
        let value = |s: &Subnet| {
            let blocks = s.blocks().enumerate();
            blocks.map(|(i, b)| (1.0 + (i % 3) as f64) * (b.kernel as f64 * b.expand.value()).sqrt()).sum::<f64>()
        };
        let best = |settings: SearchSettings| {
            let problem = Problem { evaluations: Some(1500), ..Problem::new(&space, &limits, 5) };
            let mut scorer = |subnets: &[Subnet]| Ok(subnets.iter().map(value).collect());
            search(&problem, &settings, &mut scorer, &mut |_| ()).unwrap().predicted_accuracy
        };
        let random = best(SearchSettings::Random(Random::default()));
        for settings in [
            SearchSettings::Evolution(Evolution { generations: 10, ..Evolution::default() }),
            SearchSettings::Bayes(Bayes { batch: 50, ..Bayes::default() }),
            SearchSettings::Ppo(Ppo::default()),
            SearchSettings::Gradient(Gradient::default()),
        ] {
            let name = name_of(&settings);
            let found = best(settings);
            assert!(found > random, "{name}: {found}, random: {random}");
        }
    }

    #[test]
    fn evolution_finds_the_optimum_that_trying_everything_finds() {
        let space = SearchSpace::named("tiny").unwrap();
        let all = everything(&space);
        assert_eq!(all.len() as f64, space.count());
        let (least, most) = (macs(&space, &space.smallest()), macs(&space, &space.largest()));
        for part in [0.05, 0.3, 0.6] {
            let bound = (least + part * (most - least)).round();
            let feasible = all.iter().filter(|s| macs(&space, s) <= bound);
            let optimum = feasible.map(worth).max_by(f64::total_cmp).unwrap();
            let limits = [Limit::new("macs", bound, |s| Ok(macs(&space, s)))];
            let settings = SearchSettings::Evolution(Evolution { generations: 60, ..Evolution::default() });
            for seed in 0..4 {
                let problem = Problem::new(&space, &limits, seed);
                let found = search(&problem, &settings, &mut score, &mut |_| ()).unwrap();
                assert_eq!(found.predicted_accuracy, optimum, "seed {seed}, {bound}: {}", found.best);
                assert_eq!(found.constraints[0].value, macs(&space, &found.best));
                assert!(found.evaluations < all.len() / 2, "{} of {}", found.evaluations, all.len());
            }
        }
    }

    #[test]
    fn an_evolution_without_progress_ends_early() {
        let space = SearchSpace::named("tiny").unwrap();
        let limits = [Limit::new("macs", 1.5e6, |s| Ok(testing::macs(&space, s)))];
        let generations = |patience| {
            let settings = SearchSettings::Evolution(Evolution { generations: 60, patience, ..Evolution::default() });
            let found = search(&Problem::new(&space, &limits, 0), &settings, &mut score, &mut |_| ()).unwrap();
            (found.history.len(), found.predicted_accuracy)
        };
        let ((all, best), (fewer, as_good)) = (generations(0), generations(5));
        // All generations, the random ones they start from, and the local search.
        assert_eq!(all, 62);
        assert!(fewer < 40, "{fewer}");
        assert_eq!(best, as_good);
    }

    #[test]
    fn the_tightest_limit_is_met_and_a_tighter_one_refused() {
        let space = SearchSpace::named("tiny").unwrap();
        let measures = crate::Measures::new(&space, 10, Vec::new());
        let least = macs(&space, &space.smallest());
        for settings in strategies() {
            let run = |bound: f64| {
                let constraint: crate::Constraint = format!("any:macs={bound}").parse().unwrap();
                let limits = [Limit::from_constraint(&constraint, &measures)?];
                let against = [Limit::new("blocks", 1.0, |s: &Subnet| Ok(s.blocks().count() as f64))];
                let problem = Problem { against: &against, evaluations: Some(60), ..Problem::new(&space, &limits, 0) };
                search(&problem, &settings, &mut score, &mut |_| ())
            };
            assert_eq!(run(least).unwrap().best, space.smallest());
            let error = run(least - 1.0).unwrap_err();
            let reached = crate::Metric::Macs.show_above(least);
            assert!(matches!(&error, Error::Impossible(m) if m.contains(&format!("reach is {reached} ("))), "{error}");
            let asked: crate::Constraint = format!("any:macs={reached}").parse().unwrap();
            assert!(asked.limit >= least, "{reached} is less than {least}");
        }
    }

    #[test]
    fn verifying_prefers_what_was_measured() {
        let space = SearchSpace::named("tiny").unwrap();
        let limits = [Limit::new("macs", 5e5, |s| Ok(macs(&space, s)))];
        let problem = Problem { keep: 5, ..Problem::new(&space, &limits, 0) };
        let mut found = search(&problem, &strategies()[0], &mut score, &mut |_| ()).unwrap();
        let third = found.top[2].clone();
        let mut asked = 0;
        let mut measure = |subnet: &Subnet| {
            asked += 1;
            Ok(if *subnet == third.subnet { 0.9 } else { 0.8 })
        };
        found.verify(&limits, &mut measure).unwrap();
        assert_eq!((asked, &found.best, found.measured_accuracy), (5, &third.subnet, Some(0.9)));
        assert_eq!((found.predicted_accuracy, found.constraints[0].value), (third.score, macs(&space, &third.subnet)));
    }

    #[test]
    fn settings_have_defaults_and_refuse_what_is_impossible() {
        let read = |text: &str| serde_json::from_str::<SearchSettings>(text);
        let settings = read(r#"{"strategy": "evolution", "generations": 7}"#).unwrap();
        assert_eq!(settings, SearchSettings::Evolution(Evolution { generations: 7, ..Evolution::default() }));
        assert!(read(r#"{"strategy": "evolution", "colour": 7}"#).is_err());
        assert!(read(r#"{"strategy": "random", "generations": 7}"#).is_err());
        let space = SearchSpace::named("tiny").unwrap();
        for (text, reason) in [
            (r#"{"strategy": "evolution", "parent_ratio": 1.5}"#, "parent_ratio 1.5"),
            (r#"{"strategy": "evolution", "local_search": 3}"#, "local_search 3"),
            (r#"{"strategy": "pareto", "population": 0}"#, "population 0"),
            (r#"{"strategy": "pareto"}"#, "against"),
            (r#"{"strategy": "bayes", "batch": 0}"#, "batch"),
            (r#"{"strategy": "ppo", "exponent": 1}"#, "exponent 1"),
        ] {
            let problem = Problem::new(&space, &[], 0);
            let error = search(&problem, &read(text).unwrap(), &mut score, &mut |_| ()).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
