//! Searches of groups of limits, with their measurements and their files.

use crate::output::progress::Bar;
use crate::output::terminal;
use crate::run_folder::freshness::{basis_of, load_predictor};
use crate::run_folder::kept_samples::{SAMPLES, conditions, keep_samples};
use crate::run_folder::{RunFolder, names, result_files};
use crate::search::measured::Measured;
use crate::search::scorer::{Scorer, limits_of, searched_space};
use anyhow::{Result, anyhow};
use ofa_extract::effects::EffectsOf;
use ofa_extract::predictor::{FEWEST_SAMPLES, Prediction, read_samples};
use ofa_extract::search::cheapest::WARM;
use ofa_extract::search::{self, Basis, Candidate, Cheapest, SearchSettings};
use ofa_extract::{Constraint, Measures, Predictor, Problem, Sample, SearchResult};
use ofa_supernet::{Subnet, Supernet};

/// Most corrections of the accuracy that a cheapest subnet is asked for, and the error that is accepted after the last.
const CORRECTIONS: usize = 8;
const CLOSE_ENOUGH: f64 = 5e-4;
/// Fewest measurements of the best subnets of which half follow from a new fit.
const FEWEST_REFIT: usize = 4;

/// Settings of [`search_groups`].
pub struct Options {
    pub settings: SearchSettings,
    pub evaluations: Option<usize>,
    pub against: Vec<Constraint>,
    /// Least accuracy for which the last limit is made small.
    pub at_least: Option<f64>,
    /// Name of the result, in place of the limits.
    pub name: Option<String>,
    pub seed: u64,
    /// Number of best subnets to measure afterwards.
    pub verify: usize,
}

/// Groups of limits that are searched.
#[derive(Clone, Copy)]
pub struct Task<'a> {
    pub folder: &'a RunFolder,
    pub measures: &'a Measures,
    pub scorer: &'a Scorer<'a>,
    /// Measures the best subnets, or gives the scores.
    pub measured: Option<&'a Measured<'a>>,
    pub options: &'a Options,
}

/// Searches with the run's predictor, once per group of limits.
pub fn search_limits(
    folder: &RunFolder,
    net: &Supernet,
    groups: &[Vec<Constraint>],
    settings: SearchSettings,
    seed: u64,
) -> Result<Vec<(String, SearchResult)>> {
    let measures = Measures::new(net.space(), net.classes(), folder.devices(groups.iter().flatten())?);
    let options =
        Options { settings, evaluations: None, against: Vec::new(), at_least: None, name: None, seed, verify: 0 };
    let scorer = Scorer::Predictor(Box::new(load_predictor(folder, net.space())?), 0.0);
    search_groups(&Task { folder, measures: &measures, scorer: &scorer, measured: None, options: &options }, groups)
}

/// Searches each group of limits and writes `search/NAME.json`; returns names and results in the order of the groups.
/// Limits of one cost are searched together if the strategy does so.
pub fn search_groups(task: &Task, groups: &[Vec<Constraint>]) -> Result<Vec<(String, SearchResult)>> {
    let options = task.options;
    let subject = |group: &[Constraint]| match group {
        [one] => Some((one.metric.name(), one.device.clone())),
        _ => None,
    };
    let is_same = |a: usize, b: usize| subject(&groups[a]).is_some() && subject(&groups[a]) == subject(&groups[b]);
    let mut order: Vec<usize> = (0..groups.len()).collect();
    order.sort_by(|&a, &b| {
        let bound = |index: usize| groups[index].first().map_or(0.0, |constraint| constraint.limit);
        subject(&groups[a]).cmp(&subject(&groups[b])).then(bound(b).total_cmp(&bound(a)))
    });
    // Before the search, so that a bad or taken name loses nothing.
    let names = groups.iter().map(|group| name_of(task, group, groups.len() == 1)).collect::<Result<Vec<_>>>()?;
    let shares = options.settings.strategy().shares_scores();
    let mut results: Vec<Option<(String, SearchResult)>> = groups.iter().map(|_| None).collect();
    for together in order.chunk_by(|&a, &b| shares && is_same(a, b)) {
        let constraints: Vec<&[Constraint]> = together.iter().map(|&index| groups[index].as_slice()).collect();
        let found = search_group(task, &constraints, &[])?;
        for (&index, mut result) in together.iter().zip(found) {
            complete(task, &groups[index], &mut result)?;
            result.elite = Vec::new();
            let name = result_files::write(task.folder, &names[index], options.name.is_some(), &result)?;
            results[index] = Some((name, result));
        }
    }
    Ok(results.into_iter().flatten().collect())
}

/// Searches within each of `groups`, which are the same limits with several bounds.
fn search_group(task: &Task, groups: &[&[Constraint]], starts: &[Subnet]) -> Result<Vec<SearchResult>> {
    let Task { folder, measures, scorer, options, .. } = *task;
    let against = limits_of(&options.against, measures)?;
    let mut limits = limits_of(groups[0], measures)?;
    let others = groups[1..].iter().map(|group| limits_of(group, measures)).collect::<Result<Vec<_>, _>>()?;
    let space = searched_space(folder, measures, scorer, groups[0].iter().chain(&options.against))?;
    let strategy = options.settings.strategy();
    let mut evaluations = options.evaluations.map(|evaluations| evaluations * groups.len());
    if !starts.is_empty() && evaluations.is_none() {
        evaluations = Some(strategy.evaluations() / WARM);
    }
    let effects = |subnets: &[Subnet]| scorer.effects(&space, subnets);
    let effects = scorer.has_effects().then_some(&effects as &EffectsOf);
    let keep = options.verify;
    let most = evaluations.unwrap_or_else(|| search::evaluations(strategy, others.len()));
    let bar = Bar::new(searching(groups), most, "evaluations");
    let score = |subnets: &[Subnet]| {
        let scores = scorer.score(subnets);
        bar.add(subnets.len());
        scores
    };
    let results = match options.at_least {
        Some(least) => {
            let cheapest = |least: f64| {
                let (space, settings, seed) = (&space, &options.settings, options.seed);
                Cheapest { space, least, settings, evaluations, seed, keep, effects, score: &score }
            };
            // Accuracies are corrected for having been chosen, and the corrected one has to be good enough.
            let accuracy = |result: &SearchResult| -> Result<f64> {
                Ok(corrected(scorer, result)?.map_or(result.predicted_accuracy, |found| found.accuracy))
            };
            let best = cheapest(least).best(&mut limits)?;
            if least - accuracy(&best)? > CLOSE_ENOUGH {
                return Err(cheapest(least).impossible(accuracy(&best)?, &best).into());
            }
            let (mut asked, mut result) = (least.min(best.predicted_accuracy), None);
            let (mut evaluations, mut seconds) = (best.evaluations, best.seconds);
            for _ in 0..=CORRECTIONS {
                let found = cheapest(asked).find(&best, &mut limits)?;
                (evaluations, seconds) = (evaluations + found.evaluations, seconds + found.seconds);
                let missing = least - accuracy(&found)?;
                let is_last = missing <= 0.0 || asked == best.predicted_accuracy;
                // The next one has to be more accurate than this one, not only than what was asked.
                asked = (found.predicted_accuracy + missing).min(best.predicted_accuracy);
                if missing <= CLOSE_ENOUGH {
                    result = Some(found);
                }
                if is_last {
                    break;
                }
            }
            if result.is_none() {
                terminal::note("no cheaper subnet was found that is good enough: the most accurate one is taken");
            }
            let mut result = result.unwrap_or(best);
            (result.evaluations, result.seconds) = (evaluations, seconds);
            vec![result]
        }
        None => {
            let problem = Problem {
                against: &against,
                evaluations,
                keep,
                effects,
                starts,
                others: &others,
                ..Problem::new(&space, &limits, options.seed)
            };
            search::search_all(&problem, &options.settings, &mut |subnets| score(subnets), &mut |generation| {
                bar.details([format!("best {:.2} %", 100.0 * generation.score.clamp(0.0, 1.0))]);
            })?
        }
    };
    Ok(results)
}

/// Name of the work of a search.
fn searching(groups: &[&[Constraint]]) -> String {
    let limits: Vec<String> = groups.concat().iter().map(Constraint::to_string).collect();
    format!("searching {}", limits.join(" ")).trim_end().to_string()
}

/// Predicted accuracy of the best subnet, corrected for having been chosen; `None` if it has no deviation.
fn corrected(scorer: &Scorer, result: &SearchResult) -> Result<Option<Prediction>> {
    let Scorer::Predictor(predictor, _) = scorer else { return Ok(None) };
    if !predictor.has_deviation() {
        return Ok(None);
    }
    let prediction = predictor.predict_with_deviation(std::slice::from_ref(&result.best))?[0];
    // The best of a measured few was not chosen for its prediction.
    if result.measured_accuracy.is_some() {
        return Ok(Some(prediction));
    }
    Ok(Some(predictor.of_chosen(prediction)))
}

/// Measures the best subnets if that is asked for, corrects the predicted accuracy, and notes how the result was found.
fn complete(task: &Task, constraints: &[Constraint], result: &mut SearchResult) -> Result<()> {
    let Task { folder, scorer, measured, options, .. } = *task;
    match (measured, scorer) {
        (Some(_), Scorer::Measured(_)) => result.measured_accuracy = Some(result.predicted_accuracy),
        (Some(measured), Scorer::Predictor(predictor, pessimism)) => {
            verify(task, constraints, measured, predictor, *pessimism, result)?;
        }
        (None, _) => {}
    }
    result.top.truncate(options.verify);
    if let (Some(prediction), Scorer::Predictor(_, pessimism)) = (corrected(scorer, result)?, scorer) {
        result.predicted_accuracy = prediction.accuracy;
        result.predicted_deviation = Some(prediction.deviation);
        result.pessimism = *pessimism;
    }
    result.basis = Some(match scorer {
        Scorer::Predictor(predictor, _) => basis_of(predictor)?,
        Scorer::Measured(_) => Basis { weights: Some(folder.weights_checksum()?), predictor: None },
    });
    result.scoring = Some(scoring(task)?);
    result.limit_predictions();
    Ok(())
}

/// How the subnets of a search are scored.
fn scoring(task: &Task) -> Result<search::Scoring> {
    let Task { folder, scorer, measured, options, .. } = task;
    Ok(search::Scoring {
        score: if matches!(scorer, Scorer::Measured(_)) { "measured" } else { "predictor" }.into(),
        evaluations: options.evaluations,
        verify: options.verify,
        at_least: options.at_least,
        measured_with: measured.map(|measured| measured.provenance(folder.weights_checksum()?)).transpose()?,
    })
}

/// Name of a group's result: the given one, followed by the limits where it is not the only one.
fn name_of(task: &Task, group: &[Constraint], is_only: bool) -> Result<String> {
    let options = task.options;
    let name = result_name(&options.against, group, options.at_least)?;
    let Some(given) = &options.name else { return Ok(name) };
    let name = if is_only { given.clone() } else { names::short(&format!("{given}-{name}")) };
    names::check(&name).map_err(|reason| anyhow!("--name '{given}': {reason}"))?;
    let is_same = |other: &SearchResult| -> Result<bool> {
        let limits = group.iter().map(Constraint::to_string);
        let limits = limits.eq(other.constraints.iter().map(|limit| limit.constraint.clone()));
        let against = options.against.iter().map(Constraint::to_string).eq(other.against.iter().cloned());
        let pessimism = match task.scorer {
            Scorer::Predictor(predictor, pessimism) if predictor.has_deviation() => *pessimism,
            _ => 0.0,
        };
        let is_alike = (&other.settings, other.seed, other.pessimism) == (&options.settings, options.seed, pessimism);
        Ok(limits && against && is_alike && other.scoring.as_ref() == Some(&scoring(task)?))
    };
    result_files::check_free(task.folder, &name, is_same)?;
    Ok(name)
}

/// File name of a result, which also names the extracted model.
fn result_name(against: &[Constraint], constraints: &[Constraint], at_least: Option<f64>) -> Result<String> {
    let front = (!against.is_empty()).then(|| "front".to_string());
    // Without the digits that a product in binary adds.
    let least = at_least.map(|least| format!("accuracy-{}", (1e8 * least).round() / 1e6));
    let parts = front.into_iter().chain(least).chain(against.iter().chain(constraints).map(Constraint::file_stem));
    let name = names::short(&parts.collect::<Vec<_>>().join("+"));
    names::check(&name).map_err(|reason| anyhow!("search result '{name}': {reason}"))?;
    Ok(name)
}

/// Measures the best subnets. After half of them the predictor is fitted again with what was measured, and its search
/// names the other half. The best measured subnet becomes the result.
fn verify(
    task: &Task,
    constraints: &[Constraint],
    measured: &Measured,
    predictor: &Predictor,
    pessimism: f64,
    result: &mut SearchResult,
) -> Result<()> {
    let Task { folder, measures, options, .. } = task;
    let path = folder.join(SAMPLES);
    let known = match path.exists() {
        true => read_samples(&path, measures.space())?,
        false => Vec::new(),
    };
    let bar = Bar::new("measuring the best subnets", options.verify, "subnets");
    let measure = |candidates: &mut [Candidate]| -> Result<Vec<Sample>> {
        let mut samples = Vec::new();
        for candidate in candidates {
            let sample = measured.samples(std::slice::from_ref(&candidate.subnet))?.swap_remove(0);
            candidate.measured_accuracy = Some(sample.accuracy);
            samples.push(sample);
            bar.add(1);
        }
        Ok(samples)
    };
    // A published predictor has no samples to be fitted on again, and accuracies under other conditions, or of other
    // weights, do not go together.
    let alike = conditions(folder, measures.space())? == Some(measured.provenance(folder.weights_checksum()?)?);
    let many = options.verify >= FEWEST_REFIT && known.len() >= FEWEST_SAMPLES;
    let refits = alike && many;
    if many && !alike {
        terminal::note(
            "the predictor is not fitted again: its samples were measured with other images, or of other weights",
        );
    }
    let first = if refits { options.verify.div_ceil(2) } else { options.verify };
    let mut top: Vec<Candidate> = result.top.iter().take(first).cloned().collect();
    let mut samples = measure(&mut top)?;
    if refits {
        terminal::note(format!("the predictor is fitted again with {} measured subnets", samples.len()));
        // Those that were measured before are the same again.
        let fresh = samples.iter().filter(|sample| known.iter().all(|other| other.subnet != sample.subnet));
        let all: Vec<Sample> = known.iter().chain(fresh).cloned().collect();
        let refitted = predictor.refit(&all, options.seed)?;
        let scorer = Scorer::Predictor(Box::new(refitted), pessimism);
        let task = Task { scorer: &scorer, ..*task };
        let again = search_group(&task, &[constraints], &result.elite)?.swap_remove(0);
        let fresh = |candidate: &Candidate| top.iter().all(|other| other.subnet != candidate.subnet);
        let mut fresh: Vec<Candidate> = again.top.into_iter().filter(fresh).take(options.verify - first).collect();
        samples.extend(measure(&mut fresh)?);
        top.extend(fresh);
    }
    drop(bar);
    keep_samples(folder, measures.space(), measured, &samples)?;
    result.top = top;
    Ok(result.choose_measured(&limits_of(constraints, measures)?)?)
}
