//! A measurement under way: one that was stopped goes on after its last whole round.

use super::{Hardware, ProfileOptions};
use crate::Result;
use ofa_supernet::files;
use ofa_supernet::space::SearchSpace;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What has been measured, and of what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Unfinished {
    hardware: Hardware,
    space: SearchSpace,
    /// All options in words: a measurement with others is another one.
    options: String,
    /// Rounds of the layer phase that are done.
    pub rounds: usize,
    /// Milliseconds of each distinct layer, in the order of the layers' first occurrence.
    pub layers: Vec<Vec<f64>>,
    /// Median milliseconds of each subnet, once they are measured.
    pub subnets: Option<Vec<f64>>,
}

impl Unfinished {
    /// Nothing measured yet of `layers` distinct layers.
    pub fn new(space: &SearchSpace, options: &ProfileOptions, layers: usize) -> Self {
        Unfinished {
            hardware: Hardware::detect(options.threads),
            space: space.clone(),
            options: format!("{options:?}"),
            rounds: 0,
            layers: vec![Vec::new(); layers],
            subnets: None,
        }
    }

    /// What the file at `path` holds, if it is of the same measurement of so many rounds and subnets, and whole; else `self`. Nothing is lost
    /// by starting anew but a minute, so that a damaged file is no error.
    pub fn or_saved(self, path: &Path, rounds: usize, subnets: usize) -> Self {
        let same = |saved: &Unfinished| {
            let positive = |times: &Vec<f64>| times.iter().all(|ms| ms.is_finite() && *ms >= 0.0);
            (&saved.hardware, &saved.space, &saved.options) == (&self.hardware, &self.space, &self.options)
                && saved.rounds <= rounds
                && saved.layers.len() == self.layers.len()
                && saved.layers.iter().all(|times| times.is_empty() == (saved.rounds == 0))
                && saved.layers.iter().chain(&saved.subnets).all(positive)
                && saved.subnets.as_ref().is_none_or(|times| times.len() == subnets)
        };
        files::read_json(path).ok().filter(same).unwrap_or(self)
    }

    /// Writes it to `path`.
    ///
    /// # Errors
    /// The operating system's, with the path.
    pub fn save(&self, path: &Path) -> Result<()> {
        Ok(files::write_json(path, self)?)
    }
}
