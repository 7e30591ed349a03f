//! Every strategy on small spaces whose answers are known.

use super::testing::{everything, macs, worth};
use super::*;
use ofa_supernet::{SearchSpace, Subnet};
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

fn score(subnets: &[Subnet]) -> Result<Vec<f64>> {
    Ok(subnets.iter().map(worth).collect())
}

/// `against` for the strategies that need costs; others would draw a front in place of what they do within limits.
fn costs<'p, 'l>(settings: &SearchSettings, against: &'p [Limit<'l>]) -> &'p [Limit<'l>] {
    if settings.strategy().needs_costs() { against } else { &[] }
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
                    against: costs(&settings, &against),
                    evaluations,
                    keep: usize::MAX,
                    ..Problem::new(&space, &limits, 0)
                };
                let found = search(&problem, &settings, &mut scorer, &mut |_| ()).unwrap();
                let name = settings.name();
                assert_eq!(found.evaluations, found.top.len(), "{name}");
                assert!(found.evaluations as f64 <= space.count(), "{name}");
                if evaluations.is_none() && name != "grid" {
                    assert_eq!(found.best, space.largest(), "{name}");
                }
            }
        }
    }
}

/// The limit leaves few of many subnets: they are all scored long before the budget is spent.
#[test]
fn a_search_without_patience_ends_when_nothing_is_left_within_the_limits() {
    let space = SearchSpace::named("tiny").unwrap();
    let limits = [Limit::new("macs", 1.02 * macs(&space, &space.smallest()), |s| Ok(macs(&space, s)))];
    for mut settings in strategies() {
        for setting in settings.strategy_mut().settings() {
            if let ("patience", SettingValue::Whole(value, _)) = (setting.name, setting.value) {
                *value = 0;
            }
        }
        let mut scorer = score;
        let against = [Limit::new("macs", f64::INFINITY, |s| Ok(macs(&space, s)))];
        // Two learn to draw what they have scored, and draw for seconds before the thousands of their budget are spent.
        let evaluations = matches!(settings.name(), "ppo" | "gradient").then_some(1_000);
        let problem = Problem { against: costs(&settings, &against), evaluations, ..Problem::new(&space, &limits, 0) };
        let found = search(&problem, &settings, &mut scorer, &mut |_| ()).unwrap();
        assert!(found.constraints[0].value <= limits[0].bound, "{}", settings.name());
    }
}

#[test]
fn one_search_finds_the_best_within_each_of_several_bounds() {
    let space = SearchSpace::named("tiny").unwrap();
    let all: Vec<(f64, f64)> = everything(&space).iter().map(|s| (worth(s), macs(&space, s))).collect();
    let (least, most) = (macs(&space, &space.smallest()), macs(&space, &space.largest()));
    let bounds: Vec<f64> = (1..=14).map(|part| least + f64::from(part) / 14.0 * (most - least)).collect();
    let limit = |bound: &f64| vec![Limit::new(format!("macs={bound}"), *bound, |s| Ok(macs(&space, s)))];
    let groups: Vec<Vec<Limit>> = bounds.iter().map(limit).collect();
    let memetic = SearchSettings::named("memetic").unwrap();
    let run = |threads: usize| {
        let mut seen = HashSet::new();
        let mut scorer = |subnets: &[Subnet]| {
            assert!(subnets.iter().all(|s| seen.insert(s.clone())), "a subnet is scored twice");
            score(subnets)
        };
        let problem = Problem { others: &groups[1..], keep: 2, ..Problem::new(&space, &groups[0], 0) };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut found = pool.install(|| search_all(&problem, &memetic, &mut scorer, &mut |_| ())).unwrap();
        found.iter_mut().for_each(|result| result.seconds = 0.0);
        assert!(found.iter().all(|result| result.evaluations == seen.len()));
        found
    };
    let found = run(1);
    assert_eq!(found.len(), bounds.len());
    for (result, bound) in found.iter().zip(&bounds) {
        let within = all.iter().filter(|pair| pair.1 <= *bound).map(|pair| pair.0);
        assert_eq!(result.predicted_accuracy, within.fold(0.0, f64::max), "{bound}");
        assert_eq!(result.constraints[0].constraint, format!("macs={bound}"));
        assert!(result.constraints[0].value <= *bound && result.top[0].subnet == result.best);
        assert!(result.top.iter().all(|other| macs(&space, &other.subnet) <= *bound));
    }
    assert_eq!(run(3), found);
    let mut scorer = score;
    let fail = |settings: &SearchSettings, evaluations, scorer: &mut Scorer| {
        let problem = Problem { others: &groups[1..], evaluations, ..Problem::new(&space, &groups[0], 0) };
        search_all(&problem, settings, &mut |subnets| scorer(subnets), &mut |_| ()).unwrap_err().to_string()
    };
    let random = SearchSettings::named("random").unwrap();
    assert!(fail(&random, None, &mut scorer).contains("one group of limits at a time"));
    assert!(fail(&memetic, Some(13), &mut scorer).contains("at least 14"));
}

#[test]
fn predictions_above_one_are_ranked_unclamped_and_shown_as_one() {
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
fn a_result_is_outdated_when_weights_or_predictor_change() {
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

/// Every strategy with settings that are quick enough for a test.
fn strategies() -> Vec<SearchSettings> {
    let mut all = SearchSettings::all();
    for settings in &mut all {
        for setting in settings.strategy_mut().settings() {
            match (setting.name, setting.value) {
                ("population" | "optima" | "initial" | "batch", SettingValue::Whole(value, _)) => *value = 20,
                ("generations", SettingValue::Whole(value, _)) => *value = 10,
                _ => {}
            }
        }
    }
    all
}

#[test]
fn every_strategy_keeps_limits_budget_and_seed() {
    for name in ["tiny", "proxyless-w1.3", "resnet-tiny"] {
        let mut space = SearchSpace::named(name).unwrap();
        if name.starts_with("proxyless") {
            // Each of its 25 sizes of images is tabulated in the same way.
            space.resolutions = vec![128, 176, 224];
        }
        let (least, most) = (macs(&space, &space.smallest()), macs(&space, &space.largest()));
        let blocks = |subnet: &Subnet| Ok(subnet.blocks().count() as f64);
        let limits = [
            Limit::new("macs", least + 0.3 * (most - least), |s| Ok(macs(&space, s))),
            Limit::new("blocks", space.slots() as f64 - 1.0, blocks),
        ];
        let against = [Limit::new("macs", f64::INFINITY, |s| Ok(macs(&space, s)))];
        let value = |s: &Subnet| s.blocks().map(|b| b.kernel as f64 * b.expand.value()).sum::<f64>().sqrt();
        for settings in strategies() {
            let strategy = settings.name();
            let run = |seed: u64, threads: usize| {
                let mut seen = HashSet::new();
                let mut scorer = |subnets: &[Subnet]| {
                    assert!(subnets.iter().all(|s| seen.insert(s.clone())), "{strategy} scores a subnet twice");
                    Ok(subnets.iter().map(value).collect())
                };
                let problem = Problem {
                    against: costs(&settings, &against),
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
            // Two strategies do not draw from the seed.
            let depends = !["grid", "memetic"].contains(&strategy);
            assert_eq!(run(2, 1).history != found.history, depends, "{strategy}");
        }
    }
}

/// Searches that search, for the same limits or for other bounds, do not build the tables again.
#[test]
fn a_limit_is_tabulated_once() {
    let space = SearchSpace::named("tiny").unwrap();
    let calls = AtomicUsize::new(0);
    let measure = |subnet: &Subnet| {
        calls.fetch_add(1, Relaxed);
        Ok(macs(&space, subnet))
    };
    let (least, most) = (macs(&space, &space.smallest()), macs(&space, &space.largest()));
    // So close to the bound that the measure has to decide lies no subnet: values are whole numbers.
    let mut limits = [Limit::new("macs", (least + 0.5 * (most - least)).floor() + 0.5, measure)];
    Limits::new(&genome::Genome::new(&space).unwrap(), &limits).unwrap();
    let once = calls.swap(0, Relaxed);
    let problem = Problem { evaluations: Some(150), ..Problem::new(&space, &limits, 0) };
    search(&problem, &SearchSettings::named("rounds").unwrap(), &mut score, &mut |_| ()).unwrap();
    let in_rounds = calls.swap(0, Relaxed);
    assert!((once..2 * once).contains(&in_rounds), "{in_rounds} calls, {once} for a table");
    let (least, settings) = (0.9 * worth(&space.largest()), SearchSettings::named("memetic").unwrap());
    let cheapest = Cheapest {
        space: &space,
        least,
        settings: &settings,
        evaluations: None,
        seed: 0,
        keep: 0,
        effects: None,
        score: &score,
    };
    // The best and the cheapest are two calls.
    let best = cheapest.best(&mut limits).unwrap();
    cheapest.find(&best, &mut limits).unwrap();
    let of_cheapest = calls.swap(0, Relaxed);
    assert!((2 * once..3 * once).contains(&of_cheapest), "{of_cheapest} calls, {once} for a table");
}

#[test]
fn guided_strategies_find_better_subnets_than_random_draws() {
    let space = SearchSpace::named("cifar-mbv3").unwrap();
    let bound = 9e6;
    let limits = [Limit::new("macs", bound, |s| Ok(macs(&space, s)))];
    let value = |s: &Subnet| {
        let blocks = s.blocks().enumerate();
        blocks.map(|(i, b)| (1.0 + (i % 3) as f64) * (b.kernel as f64 * b.expand.value()).sqrt()).sum::<f64>()
    };
    let best = |settings: SearchSettings, evaluations: usize| {
        let problem = Problem { evaluations: Some(evaluations), ..Problem::new(&space, &limits, 5) };
        let mut scorer = |subnets: &[Subnet]| Ok(subnets.iter().map(value).collect());
        search(&problem, &settings, &mut scorer, &mut |_| ()).unwrap().predicted_accuracy
    };
    let random = best(SearchSettings::Random(Random::default()), 1500);
    for (settings, evaluations) in [
        (SearchSettings::Evolution(Evolution { generations: 10, ..Evolution::default() }), 1500),
        (SearchSettings::Bayes(Bayes { batch: 50, ..Bayes::default() }), 1500),
        (SearchSettings::Ppo(Ppo::default()), 1500),
        (SearchSettings::Gradient(Gradient::default()), 1500),
        (SearchSettings::Rounds(Rounds::default()), 300),
    ] {
        let name = settings.name();
        let found = best(settings, evaluations);
        assert!(found > random, "{name}: {found}, random: {random}");
    }
}

#[test]
fn evolution_finds_the_optimum_of_exhaustive_search() {
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
            let problem = Problem {
                against: costs(&settings, &against),
                evaluations: Some(60),
                ..Problem::new(&space, &limits, 0)
            };
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
fn verifying_prefers_the_best_measured_subnet() {
    let space = SearchSpace::named("tiny").unwrap();
    let limits = [Limit::new("macs", 5e5, |s| Ok(macs(&space, s)))];
    let problem = Problem { keep: 5, ..Problem::new(&space, &limits, 0) };
    let settings = SearchSettings::Random(Random::default());
    let mut found = search(&problem, &settings, &mut score, &mut |_| ()).unwrap();
    let third = found.top[2].clone();
    for (index, candidate) in found.top.iter_mut().enumerate() {
        candidate.measured_accuracy = [Some(0.8), Some(0.8), Some(0.9), Some(0.9), None][index];
    }
    found.choose_measured(&limits).unwrap();
    assert_eq!((&found.best, found.measured_accuracy), (&third.subnet, Some(0.9)));
    assert_eq!((found.predicted_accuracy, found.constraints[0].value), (third.score, macs(&space, &third.subnet)));
}

#[test]
fn settings_have_defaults_and_impossible_values_are_refused() {
    let read = |text: &str| serde_json::from_str::<SearchSettings>(text);
    let settings = read(r#"{"strategy": "evolution", "generations": 7}"#).unwrap();
    assert_eq!(settings, SearchSettings::Evolution(Evolution { generations: 7, ..Evolution::default() }));
    assert!(read(r#"{"strategy": "evolution", "colour": 7}"#).is_err());
    assert!(read(r#"{"strategy": "random", "generations": 7}"#).is_err());
    let space = SearchSpace::named("tiny").unwrap();
    for (text, reason) in [
        (r#"{"strategy": "evolution", "parent_ratio": 1.5}"#, "parent_ratio 1.5"),
        (r#"{"strategy": "evolution", "local_search": 3}"#, "local_search 3 is not between 0 and 2"),
        (r#"{"strategy": "pareto", "population": 0}"#, "population 0"),
        (r#"{"strategy": "pareto"}"#, "against"),
        (r#"{"strategy": "bayes", "batch": 0}"#, "batch 0 is not between 1"),
        (r#"{"strategy": "ppo", "learning_rate": 0.0}"#, "learning_rate 0 is not above 0 and up to 1"),
        (r#"{"strategy": "ppo", "exponent": 1}"#, "exponent 1"),
    ] {
        let problem = Problem::new(&space, &[], 0);
        let error = search(&problem, &read(text).unwrap(), &mut score, &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains(reason), "{text}: {error}");
    }
}

#[test]
fn names_and_default_settings_of_the_table_are_those_that_files_hold() {
    for settings in SearchSettings::all() {
        settings.validate().unwrap();
        assert_eq!(SearchSettings::named(settings.name()), Some(settings.clone()));
        assert!(!settings.strategy().description().ends_with('.'), "{}", settings.name());
        let mut written = serde_json::to_value(&settings).unwrap();
        let fields = written.as_object_mut().unwrap();
        assert_eq!(fields.remove("strategy").unwrap(), settings.name());
        let mut listed: Vec<&str> =
            settings.clone().strategy_mut().settings().iter().map(|setting| setting.name).collect();
        listed.sort_unstable();
        let mut stored: Vec<&str> = fields.keys().map(String::as_str).collect();
        stored.sort_unstable();
        assert_eq!(listed, stored, "{}", settings.name());
    }
    assert_eq!(SearchSettings::named("annealing"), None);
}

#[test]
fn results_written_by_earlier_versions_are_read() {
    let text = r#"{"constraints":[{"constraint":"any:macs=1M","limit":1000000.0,"value":400000.0}],
        "settings":{"strategy":"ppo","exponent":-0.07,"hard":false,"batch":50,"learning_rate":0.005},"seed":0,
        "best":"r24 d1,1 k5|5 e3|3","predicted_accuracy":0.5,"evaluations":1,"history":[]}"#;
    let result: SearchResult = serde_json::from_str(text).unwrap();
    assert_eq!(result.settings, SearchSettings::Ppo(Ppo::default()));
}
