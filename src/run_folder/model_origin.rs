//! Subnets to extract, and what their model folders tell about their origin.

use crate::arguments::shell;
use crate::run_folder::freshness::{note_number_types, warn_of_outdated};
use crate::run_folder::{RunConfig, RunFolder, names, result_files};
use anyhow::{Result, anyhow, bail};
use ofa_evaluate::model::{NumberType, Provenance};
use ofa_extract::SearchResult;
use ofa_supernet::Subnet;
use ofa_supernet::files::read_json;
use ofa_supernet::train::checkpoint::{Folder, read_supernet_note};
use std::path::{Path, PathBuf};

/// A subnet to extract.
pub struct Wanted {
    /// Name of its model.
    pub name: String,
    pub subnet: Subnet,
    /// The search that found it.
    pub search: Option<FoundBy>,
}

/// What a model tells about the search that found its subnet.
pub struct FoundBy {
    /// Sentence for the model card.
    pub sentence: String,
    /// Name of the search.
    pub name: String,
    /// Limits of the search.
    pub limits: Vec<String>,
    /// Predicted accuracy, if a predictor gave it.
    pub predicted: Option<f64>,
}

impl Wanted {
    /// The result `name` of a search.
    pub fn of_search(name: String, result: &SearchResult) -> Self {
        let predicted = result.is_predicted().then_some(result.predicted_accuracy);
        let search = FoundBy {
            sentence: result_files::sentence(&name, result),
            name: name.clone(),
            limits: result.constraints.iter().map(|limit| limit.constraint.clone()).collect(),
            predicted,
        };
        Wanted { name, subnet: result.best.clone(), search: Some(search) }
    }

    /// What the model card says about where the weights come from; `origin` is what it says of every subnet.
    pub fn origin(&self, origin: &str) -> String {
        match &self.search {
            Some(found) => format!("{origin} {}", found.sentence),
            None => origin.to_string(),
        }
    }
}

/// The results of the run folder's `search/` with these names, or all. Limits of another number type than those of the
/// models, `dtype` and perhaps int8, are noted.
pub fn search_results(
    folder: &RunFolder,
    run: &Path,
    config: &RunConfig,
    names: &[String],
    dtype: NumberType,
    int8: bool,
) -> Result<Vec<Wanted>> {
    let mut files = folder.json_files("search")?;
    if files.is_empty() {
        bail!(
            "{}: there are no search results yet; make some with: ofa search --run {} --limit any:macs=50M",
            folder.join("search").display(),
            shell::path(run)
        );
    }
    let name_of = |file: &PathBuf| file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let known: Vec<String> = files.iter().map(name_of).collect();
    if let Some(name) = names.iter().find(|name| !known.contains(name)) {
        bail!(
            "{}: there is no search result '{name}'; there are {}",
            folder.join("search").display(),
            known.join(", ")
        );
    }
    files.retain(|file| names.is_empty() || names.contains(&name_of(file)));
    let mut results: Vec<(PathBuf, SearchResult)> = Vec::new();
    for file in files {
        let result: SearchResult = read_json(&file)?;
        config.space.check(&result.best).map_err(|error| error.at(&file))?;
        results.push((file, result));
    }
    warn_of_outdated(folder, &results)?;
    note_number_types(folder, &results, dtype, int8)?;
    let named = |(file, result): (PathBuf, SearchResult)| {
        let name = name_of(&file);
        names::check(&name)
            .map_err(|reason| anyhow!("{}: the file's name becomes the model's: {reason}", file.display()))?;
        Ok(Wanted::of_search(name, &result))
    };
    results.into_iter().map(named).collect()
}

/// Where a model comes from, for its configuration. Folders are named without the path to them, which only their owner
/// knows. `predicted` and `validated` are accuracies.
pub fn provenance(run: &Path, search: Option<&FoundBy>, predicted: Option<f64>, validated: Option<f64>) -> Provenance {
    let run = run.canonicalize().unwrap_or_else(|_| run.to_path_buf());
    Provenance {
        ofa: format!("{} ({})", env!("CARGO_PKG_VERSION"), env!("OFA_COMMIT")),
        run: run.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        search: search.map(|found| found.name.clone()),
        limits: search.map_or(Vec::new(), |found| found.limits.clone()),
        predicted_accuracy: predicted,
        validation_accuracy: validated,
    }
}

/// What a model card says about where the weights of every subnet come from. The checksum is that of the supernet, so
/// that a model of other weights can be told; so are images that are not the run's, `data`.
pub fn origin(folder: &RunFolder, recalibration: usize, data: Option<&str>) -> Result<String> {
    let checksum = folder.weights_checksum()?;
    let note = read_supernet_note(&Folder::of_run(folder.path(), 1).supernet_path())?;
    let trained = match note.steps {
        0 => "a published, imported supernet".into(),
        steps => format!("a supernet trained for {steps} steps by progressive shrinking"),
    };
    Ok(format!(
        "Cut out of {trained} (checksum {checksum}), in the search space `{}`. Batch norm was recalibrated on \
         at most {recalibration} training images{}.",
        note.space.name,
        data.map_or(String::new(), |data| format!(" of other data, `{data}`"))
    ))
}
