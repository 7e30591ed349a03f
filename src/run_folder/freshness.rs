//! Checks that the files of a run folder still belong together: predictor, device profiles and search results can
//! outlive the weights and the space that they were made for.

use crate::arguments::shell;
use crate::output::terminal;
use crate::run_folder::RunFolder;
use anyhow::{Result, bail};
use ofa_evaluate::DeviceProfile;
use ofa_evaluate::model::NumberType;
use ofa_extract::predictor::check_space;
use ofa_extract::search::Basis;
use ofa_extract::{Constraint, Measures, Metric, Predictor, SearchResult};
use ofa_supernet::SearchSpace;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Path of the run's predictor.
pub fn predictor_path(folder: &RunFolder) -> PathBuf {
    folder.join("predictor/predictor.safetensors")
}

/// Loads the run's predictor, which must be for the subnets of `space`, and prints its doubts.
pub fn load_predictor(folder: &RunFolder, space: &SearchSpace) -> Result<Predictor> {
    let path = predictor_path(folder);
    if !path.exists() {
        check_space(space)?;
        bail!(
            "{}: there is no predictor yet; make one with `ofa predictor --run {}`",
            path.display(),
            shell::path(folder.path())
        );
    }
    let predictor = Predictor::load(&path)?;
    // A published predictor may know only some of the resolutions.
    if let Some(difference) = predictor.space().difference_in_weights(space) {
        bail!(
            "{}: the predictor is for another space than this run's: {difference}; fit one for this run with `ofa predictor --run {} --discard`",
            path.display(),
            shell::path(folder.path())
        );
    }
    warn_of_doubts(folder, &predictor)?;
    Ok(predictor)
}

/// Prints the reasons to doubt a search with `predictor`.
pub fn warn_of_doubts(folder: &RunFolder, predictor: &Predictor) -> Result<()> {
    // Without a supernet there are no weights that the predictor could be wrong for.
    doubts(folder, predictor, &folder.weights_checksum().unwrap_or_default()).for_each(terminal::warning);
    Ok(())
}

/// The reasons to doubt a search of the supernet with the checksum `weights` with `predictor`.
fn doubts(folder: &RunFolder, predictor: &Predictor, weights: &str) -> impl Iterator<Item = String> {
    let path = predictor_path(folder);
    predictor.doubts(weights).into_iter().map(move |doubt| format!("{}: {doubt}", path.display()))
}

/// Warns of each outdated search result: found for other weights, with an earlier predictor, or with an earlier device
/// profile while the current one puts the subnet above its limit.
pub fn warn_of_outdated(folder: &RunFolder, results: &[(PathBuf, SearchResult)]) -> Result<()> {
    let predictor = Predictor::load(&predictor_path(folder)).ok();
    outdated(folder, results, predictor.as_ref(), &folder.weights_checksum()?)?.into_iter().for_each(terminal::warning);
    Ok(())
}

/// Sentences about the run's predictor and `results` of searches that outlived the supernet they were made for, as a
/// search and an extraction print them; none while there is no supernet to compare with.
pub fn warnings(folder: &RunFolder, results: &[(PathBuf, SearchResult)]) -> Result<Vec<String>> {
    let weights = match folder.weights_checksum() {
        Ok(weights) => weights,
        // Accuracies from elsewhere are of no weights.
        Err(_) if folder.is_foreign() => String::new(),
        Err(_) => return Ok(Vec::new()),
    };
    let predictor = Predictor::load(&predictor_path(folder)).ok();
    let mut sentences: Vec<String> =
        predictor.iter().flat_map(|predictor| doubts(folder, predictor, &weights)).collect();
    sentences.extend(outdated(folder, results, predictor.as_ref(), &weights)?);
    Ok(sentences)
}

/// A sentence about each outdated search result, given the run's predictor and the checksum of its weights.
fn outdated(
    folder: &RunFolder,
    results: &[(PathBuf, SearchResult)],
    predictor: Option<&Predictor>,
    weights: &str,
) -> Result<Vec<String>> {
    let predictor = predictor.and_then(|predictor| predictor.checksum().ok());
    let sentence = |file: &Path, reason: String| format!("{}: {reason}; search again", file.display());
    let mut sentences = Vec::new();
    for (file, result) in results {
        let reason = match &result.basis {
            None => Some("this result of an earlier version does not record the weights it was found for".into()),
            Some(basis) => basis.outdated(weights, predictor.as_deref()),
        };
        sentences.extend(reason.map(|reason| sentence(file, reason)));
    }
    let limits = |result: &SearchResult| -> Vec<Constraint> {
        result.constraints.iter().filter_map(|limit| limit.constraint.parse().ok()).collect()
    };
    let all: Vec<Constraint> = results.iter().flat_map(|(_, result)| limits(result)).collect();
    if !all.iter().any(|constraint| constraint.metric == Metric::Latency) {
        return Ok(sentences);
    }
    let (space, classes) = folder.space()?;
    let measures = Measures::new(&space, classes.len(), folder.devices(std::iter::empty())?);
    for (file, result) in results {
        for limit in limits(result) {
            // Without the device's profile there is nothing to compare with.
            let Ok(value) = measures.value(&limit, &result.best) else { continue };
            if value > limit.limit {
                let value = limit.metric.show_above(value);
                let reason = format!("with the current profile the subnet has {value} for {limit}");
                sentences.push(sentence(file, reason));
            }
        }
    }
    Ok(sentences)
}

/// Number type of the models that `limit` is of; `None` if it is of all.
fn number_type(limit: &Constraint, measures: &Measures) -> Option<NumberType> {
    match limit.metric {
        Metric::Latency => Some(measures.device(&limit.device).ok()?.number_type),
        Metric::Memory | Metric::Size => Some(NumberType::F32),
        Metric::SizeF16 => Some(NumberType::F16),
        Metric::MemoryInt8 | Metric::SizeInt8 => Some(NumberType::Int8),
        Metric::Macs | Metric::Parameters => None,
    }
}

/// Options of `ofa extract` for models of these number types.
fn flags(types: impl Iterator<Item = NumberType>) -> String {
    let types: Vec<NumberType> = types.collect();
    let flags = [(NumberType::F16, " --dtype f16"), (NumberType::Int8, " --int8")];
    flags.iter().filter(|(of, _)| types.contains(of)).map(|(_, flag)| *flag).collect()
}

/// Options of `ofa extract` for results within these limits.
pub fn flags_of_limits<'c>(limits: impl Iterator<Item = &'c Constraint>, measures: &Measures) -> String {
    flags(limits.filter_map(|limit| number_type(limit, measures)))
}

/// Limits of a search, with the cost that was made small for an accuracy, and costs of its front.
fn costs_of(result: &SearchResult) -> impl Iterator<Item = Constraint> {
    let texts = result.constraints.iter().map(|limit| &limit.constraint).chain(&result.against);
    texts.filter_map(|text| text.parse::<Constraint>().or_else(|_| Constraint::unlimited(text)).ok())
}

/// Names of search results by the options of `ofa extract` that they need, which their limits and costs tell.
pub fn by_flags(folder: &RunFolder, results: &[(String, &SearchResult)]) -> Result<BTreeMap<String, Vec<String>>> {
    let (space, classes) = folder.space()?;
    let measures = Measures::new(&space, classes.len(), folder.devices(std::iter::empty())?);
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, result) in results {
        let costs: Vec<Constraint> = costs_of(result).collect();
        names.entry(flags_of_limits(costs.iter(), &measures)).or_default().push(name.clone());
    }
    Ok(names)
}

/// Prints a sentence for each limit and cost of `results` that is of another number type than the models that are
/// extracted: models of `dtype`, and their int8 twins with `int8`.
pub fn note_number_types(
    folder: &RunFolder,
    results: &[(PathBuf, SearchResult)],
    dtype: NumberType,
    int8: bool,
) -> Result<()> {
    let (space, classes) = folder.space()?;
    let measures = Measures::new(&space, classes.len(), folder.devices(std::iter::empty())?);
    for (file, result) in results {
        for limit in costs_of(result) {
            let file = file.display();
            let Some(of) = number_type(&limit, &measures) else { continue };
            let missing = match of {
                NumberType::Int8 if !int8 => Some("--int8"),
                NumberType::F16 if dtype == NumberType::F32 => Some("--dtype f16"),
                _ => None,
            };
            if let Some(flag) = missing {
                terminal::warning(format!(
                    "{file}: {limit} is of {of} models, but this model is extracted in {dtype}; give {flag}"
                ));
            }
            if int8 && of != NumberType::Int8 {
                let twin = match limit.metric {
                    Metric::Latency => "it says nothing about the int8 twin",
                    _ => "the int8 twin takes less",
                };
                terminal::note(format!("{file}: {limit} is of {of} models; {twin}"));
            }
        }
    }
    Ok(())
}

/// Checksums of the weights and the predictor behind the scores, for a search result.
pub fn basis_of(predictor: &Predictor) -> Result<Basis> {
    Ok(Basis { weights: predictor.weights().map(String::from), predictor: Some(predictor.checksum()?) })
}

/// A sentence about the errors of a device profile, and what to do.
pub fn judgement_of_profile(profile: &DeviceProfile) -> String {
    let name = &profile.name;
    let Some(check) = &profile.check else {
        return format!(
            "device '{name}': its table was imported, so its errors are not known; measure a model on the device"
        );
    };
    let (word, advice) = match check.median_error {
        error if error <= 0.05 => ("good", "its latencies can be trusted"),
        error if error <= 0.15 => ("fair", "leave room below the limit, or profile again with more --rounds"),
        _ => ("weak", "profile again on a quiet machine with more --rounds"),
    };
    format!(
        "device '{name}': latencies of {} random subnets err by {:.1} % (median; {:.1} % at most for 95 % of them): {word}; {advice}",
        check.subnets.len(),
        100.0 * check.median_error,
        100.0 * check.p95_error
    )
}
