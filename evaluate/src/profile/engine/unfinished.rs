//! A measurement with another engine in progress, which resumes after its last measured network.

use super::{EngineCommand, EngineOptions, Network, Reader};
use crate::Result;
use crate::profile::conditions::allowed_cores;
use crate::profile::{Hardware, ProfileOptions};
use ofa_supernet::files;
use ofa_supernet::space::SearchSpace;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Results so far, and the measurement that they belong to.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Unfinished {
    hardware: Hardware,
    space: SearchSpace,
    /// All options, the command, what reads its output, and the cores that it may use, as text: others make another
    /// measurement.
    options: String,
    /// Version that the engine printed.
    pub version: Option<String>,
    /// Subnets in the order of the measurement, with the milliseconds of each round.
    pub networks: Vec<Network>,
    /// Milliseconds of the fixed network, between all others.
    pub fixed: Vec<f64>,
}

impl Unfinished {
    /// A measurement without results.
    pub fn new(space: &SearchSpace, options: &ProfileOptions, engine: &EngineOptions, networks: Vec<Network>) -> Self {
        let EngineCommand { words, convert, folder, rounding, opset, .. } = &engine.command;
        let command = (words, convert, folder, rounding, opset);
        let readers: Vec<String> = engine.command.readers.iter().map(Reader::to_string).collect();
        let cores = allowed_cores();
        let ProfileOptions { name, classes, threads, batch, seed, number_type, .. } = options;
        Unfinished {
            hardware: Hardware::detect(options.threads),
            space: space.clone(),
            options: format!(
                "{command:?} {readers:?} {name} {classes} {threads} {batch} {seed} {number_type} {cores:?}"
            ),
            version: None,
            networks,
            fixed: Vec::new(),
        }
    }

    /// The times in the file at `path`, if it holds the same measurement; otherwise `self`. A damaged file is not an
    /// error, since it costs no more than measuring again. Networks that the file lacks, or has besides, follow from
    /// other numbers of networks: the measurement goes on with what both have.
    pub fn or_saved(mut self, path: &Path) -> Self {
        let Ok(saved) = files::read_json::<Unfinished>(path) else { return self };
        let positive = |times: &Vec<f64>| times.iter().all(|ms| ms.is_finite() && *ms > 0.0);
        let same = (&saved.hardware, &saved.space, &saved.options) == (&self.hardware, &self.space, &self.options)
            && positive(&saved.fixed)
            && saved.networks.iter().all(|network| positive(&network.ms));
        if same {
            for network in &mut self.networks {
                let measured = saved.networks.iter().find(|other| other.subnet == network.subnet);
                network.ms = measured.map(|other| other.ms.clone()).unwrap_or_default();
            }
            (self.version, self.fixed) = (saved.version, saved.fixed);
        }
        self
    }

    /// Writes the measurement to `path`.
    ///
    /// # Errors
    /// The operating system's error with the path.
    pub fn save(&self, path: &Path) -> Result<()> {
        Ok(files::write_json(path, self)?)
    }
}
