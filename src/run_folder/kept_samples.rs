//! Measurements of chosen subnets that are kept as samples of the predictor.

use crate::run_folder::RunFolder;
use crate::search::measured::Measured;
use anyhow::Result;
use ofa_extract::Sample;
use ofa_extract::predictor::{self, Provenance, read_provenance};
use ofa_supernet::SearchSpace;

/// File of the predictor's samples in a run folder.
pub const SAMPLES: &str = "predictor/samples.jsonl";

/// Conditions of the run's samples; `None` if there are none, or if they are not recorded.
pub fn conditions(folder: &RunFolder, space: &SearchSpace) -> Result<Option<Provenance>> {
    let path = folder.join(SAMPLES);
    Ok(if path.exists() { read_provenance(&path, space)? } else { None })
}

/// Adds `samples` to the run's if they were measured under the same conditions; a subnet that is known is not added.
pub fn keep_samples(folder: &RunFolder, space: &SearchSpace, measured: &Measured, samples: &[Sample]) -> Result<()> {
    let now = measured.provenance(folder.weights_checksum()?)?;
    if conditions(folder, space)? != Some(now.clone()) {
        return Ok(());
    }
    Ok(predictor::keep_samples(&folder.join(SAMPLES), space, &now, samples)?)
}
