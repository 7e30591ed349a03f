//! A measurement in progress, which resumes after its last complete round.

use super::conditions::allowed_cores;
use super::{Hardware, ProfileOptions};
use crate::Result;
use ofa_supernet::files;
use ofa_supernet::space::SearchSpace;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Results so far, and the measurement that they belong to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Unfinished {
    hardware: Hardware,
    space: SearchSpace,
    /// All options, and the cores that the program may use, as text: others make another measurement.
    options: String,
    /// Number of finished rounds of the layer phase.
    pub rounds: usize,
    /// Times in milliseconds of each distinct layer, in the order of the layers' first occurrence.
    pub layers: Vec<Vec<f64>>,
    /// Median milliseconds of the fixed network in each finished round.
    pub fixed: Vec<f64>,
    /// Median milliseconds of each subnet, once the subnets are measured.
    pub subnets: Option<Vec<f64>>,
}

impl Unfinished {
    /// A measurement of `layers` distinct layers without results.
    pub fn new(space: &SearchSpace, options: &ProfileOptions, layers: usize) -> Self {
        Unfinished {
            hardware: Hardware::detect(options.threads),
            space: space.clone(),
            options: format!("{options:?} {:?} {}", allowed_cores(), env!("CARGO_PKG_VERSION")),
            rounds: 0,
            layers: vec![Vec::new(); layers],
            fixed: Vec::new(),
            subnets: None,
        }
    }

    /// The measurement in the file at `path`, if it is complete and has the same settings and the given numbers of
    /// rounds and subnets; otherwise `self`. A damaged file is not an error, since starting again costs only a minute.
    pub fn or_saved(self, path: &Path, rounds: usize, subnets: usize) -> Self {
        let same = |saved: &Unfinished| {
            let positive = |times: &Vec<f64>| times.iter().all(|ms| ms.is_finite() && *ms >= 0.0);
            (&saved.hardware, &saved.space, &saved.options) == (&self.hardware, &self.space, &self.options)
                && saved.rounds <= rounds
                && saved.layers.len() == self.layers.len()
                && saved.fixed.len() == saved.rounds
                && saved.layers.iter().all(|times| times.is_empty() == (saved.rounds == 0))
                && saved.layers.iter().chain(&saved.subnets).chain([&saved.fixed]).all(positive)
                && saved.subnets.as_ref().is_none_or(|times| times.len() == subnets)
        };
        files::read_json(path).ok().filter(same).unwrap_or(self)
    }

    /// Writes the measurement to `path`.
    ///
    /// # Errors
    /// The operating system's error with the path.
    pub fn save(&self, path: &Path) -> Result<()> {
        Ok(files::write_json(path, self)?)
    }
}
