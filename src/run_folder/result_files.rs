//! Files of search results: no search overwrites the result of another.

use crate::output::terminal;
use crate::run_folder::RunFolder;
use anyhow::{Error, Result, anyhow, bail};
use ofa_extract::SearchResult;
use ofa_supernet::files::{make_folder, read_json, write_atomic, write_json};
use ofa_supernet::lock::{self, Sharing};
use std::path::Path;

/// Fails if a search has the name, unless it is the same one as far as `is_same` can tell before it has a result.
pub fn check_free(folder: &RunFolder, name: &str, is_same: impl FnOnce(&SearchResult) -> Result<bool>) -> Result<()> {
    let path = folder.join(&format!("search/{name}.json"));
    match read_json::<SearchResult>(&path) {
        Ok(other) if other.scoring.is_some() && !is_same(&other)? => Err(taken(&path)),
        Err(error) if path.exists() => Err(anyhow!("{error}; remove the file, or give another --name")),
        _ => Ok(()),
    }
}

fn taken(path: &Path) -> Error {
    anyhow!("{}: holds the result of another search; give another --name", path.display())
}

/// Writes `result` to `search/NAME.json`, and its front to `search/NAME.csv`; returns the name. The result of the same
/// search, perhaps with another predictor, is replaced. Where another search has the name, `explicit` refuses it, and
/// otherwise a number is appended.
pub fn write(folder: &RunFolder, name: &str, explicit: bool, result: &SearchResult) -> Result<String> {
    // Other searches run beside this one: a name that is free stays free until it is taken.
    let searches = folder.join("search");
    make_folder(&searches)?;
    let _lock = lock::wait(&searches, Sharing::Alone);
    for number in 1.. {
        let name = if number == 1 { name.to_string() } else { format!("{name}-{number}") };
        let path = folder.join(&format!("search/{name}.json"));
        let is_free = !path.exists()
            || read_json::<SearchResult>(&path)
                .is_ok_and(|other| other.scoring.is_none() || other.is_same_search(result));
        if is_free {
            if number > 1 {
                terminal::note(format!("another search has the name of this one's limits, so it is named '{name}'"));
            }
            if !result.front.is_empty() {
                write_atomic(&folder.join(&format!("search/{name}.csv")), result.front_csv().as_bytes())?;
            }
            write_json(&path, result)?;
            return Ok(name);
        }
        if explicit {
            return Err(taken(&path));
        }
    }
    bail!("search/{name}.json: there is no free name")
}

/// Sentence that tells which search a model comes from.
pub fn sentence(name: &str, result: &SearchResult) -> String {
    let limits: Vec<&str> = result.constraints.iter().map(|limit| limit.constraint.as_str()).collect();
    let limits = if limits.is_empty() { "no limit".to_string() } else { limits.join(", ") };
    let (strategy, seed) = (result.settings.name(), result.seed);
    let source = result.scoring.as_ref().map_or("predictor", |scoring| scoring.score.as_str());
    format!("{SENTENCE}`{name}` ({limits}; {strategy}, accuracies from {source}, seed {seed}).")
}

/// Start of every [`sentence`].
pub const SENTENCE: &str = "Result of the search ";
