//! Checks that the files of a run folder still belong together: predictor, device profiles and search results can
//! outlive the weights and the space that they were made for.

use crate::run_folder::RunFolder;
use crate::terminal;
use anyhow::{Result, bail};
use ofa_evaluate::DeviceProfile;
use ofa_evaluate::model::NumberType;
use ofa_extract::predictor::check_space;
use ofa_extract::search::Basis;
use ofa_extract::{Constraint, Measures, Metric, Predictor, SearchResult};
use ofa_supernet::SearchSpace;
use ofa_supernet::files::read_json;
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
        bail!("{}: there is no predictor yet; make one with `ofa predictor`", path.display());
    }
    let predictor = Predictor::load(&path)?;
    // A published predictor may know only some of the resolutions.
    if let Some(difference) = predictor.space().difference_in_weights(space) {
        bail!(
            "{}: the predictor is for another space than this run's: {difference}; fit one for this run with `ofa predictor --discard`",
            path.display()
        );
    }
    warn_of_doubts(folder, &predictor)?;
    Ok(predictor)
}

/// Prints the reasons to doubt a search with `predictor`.
pub fn warn_of_doubts(folder: &RunFolder, predictor: &Predictor) -> Result<()> {
    // Without a supernet there are no weights that the predictor could be wrong for.
    for doubt in predictor.doubts(&folder.weights_checksum().unwrap_or_default()) {
        terminal::warning(format!("{}: {doubt}", predictor_path(folder).display()));
    }
    Ok(())
}

/// Warns of each outdated search result: found for other weights, with an earlier predictor, or with an earlier device
/// profile while the current one puts the subnet above its limit.
pub fn warn_of_outdated(folder: &RunFolder, results: &[(PathBuf, SearchResult)]) -> Result<()> {
    let weights = folder.weights_checksum()?;
    let predictor = match predictor_path(folder) {
        path if path.exists() => Predictor::load(&path).and_then(|predictor| predictor.checksum()).ok(),
        _ => None,
    };
    let warn = |file: &Path, reason: String| {
        terminal::warning(format!("{}: {reason}; search again", file.display()));
    };
    for (file, result) in results {
        match &result.basis {
            None => warn(file, "this result of an earlier version does not record the weights it was found for".into()),
            Some(basis) => {
                if let Some(reason) = basis.outdated(&weights, predictor.as_deref()) {
                    warn(file, reason);
                }
            }
        }
    }
    let limits = |result: &SearchResult| -> Vec<Constraint> {
        result.constraints.iter().filter_map(|limit| limit.constraint.parse().ok()).collect()
    };
    let all: Vec<Constraint> = results.iter().flat_map(|(_, result)| limits(result)).collect();
    if !all.iter().any(|constraint| constraint.metric == Metric::Latency) {
        return Ok(());
    }
    let (space, classes) = folder.space()?;
    let measures = Measures::new(&space, classes.len(), folder.devices(std::iter::empty())?);
    for (file, result) in results {
        for limit in limits(result) {
            // Without the device's profile there is nothing to compare with.
            let Ok(value) = measures.value(&limit, &result.best) else { continue };
            if value > limit.limit {
                let metric = limit.metric;
                warn(file, format!("with the current profile the subnet has {} for {limit}", metric.show_above(value)));
            }
        }
    }
    Ok(())
}

/// Whether `limit` is one of int8 models (true) or of f32 models (false); `None` if it is of both.
fn is_of_int8(limit: &Constraint, measures: &Measures) -> Option<bool> {
    match limit.metric {
        Metric::Latency => Some(measures.device(&limit.device).ok()?.number_type == NumberType::Int8),
        Metric::MemoryInt8 | Metric::SizeInt8 => Some(true),
        _ => None,
    }
}

/// Whether one of the limits is of int8 models, so that their results should be extracted as such.
pub fn is_any_of_int8<'c>(mut limits: impl Iterator<Item = &'c Constraint>, measures: &Measures) -> bool {
    limits.any(|limit| is_of_int8(limit, measures) == Some(true))
}

/// Whether a search result of the run has a limit of int8 models.
pub fn has_results_of_int8(folder: &RunFolder) -> Result<bool> {
    let (space, classes) = folder.space()?;
    let measures = Measures::new(&space, classes.len(), folder.devices(std::iter::empty())?);
    for file in folder.json_files("search")? {
        // Other commands tell of a damaged one.
        let Ok(result) = read_json::<SearchResult>(&file) else { continue };
        let limits = result.constraints.iter().filter_map(|limit| limit.constraint.parse::<Constraint>().ok());
        if limits.into_iter().any(|limit| is_of_int8(&limit, &measures) == Some(true)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Prints a note for each limit of `results` that is of another number type than the models that are extracted: f32
/// models, and their int8 twins with `int8`.
pub fn note_number_types(folder: &RunFolder, results: &[(PathBuf, SearchResult)], int8: bool) -> Result<()> {
    let (space, classes) = folder.space()?;
    let measures = Measures::new(&space, classes.len(), folder.devices(std::iter::empty())?);
    for (file, result) in results {
        let limits = result.constraints.iter().filter_map(|limit| limit.constraint.parse::<Constraint>().ok());
        for limit in limits {
            let file = file.display();
            match (is_of_int8(&limit, &measures), int8) {
                (Some(true), false) => terminal::warning(format!(
                    "{file}: the limit {limit} is of int8 models, but this model is extracted in f32; give --int8"
                )),
                (Some(false), true) => terminal::note(format!(
                    "{file}: the limit {limit} is of f32 models; it says nothing about the int8 twin"
                )),
                _ => {}
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
