//! Scores of subnets for a search, and the space and limits that are searched.

use crate::freshness::predictor_path;
use crate::interrupt;
use crate::measured::Measured;
use crate::run_folder::RunFolder;
use anyhow::{Result, anyhow, bail};
use ofa_evaluate::DeviceProfile;
use ofa_extract::effects::Effects;
use ofa_extract::{Constraint, Limit, Measures, Metric, Predictor};
use ofa_supernet::{SearchSpace, Subnet};
use std::path::PathBuf;

/// Source of scores.
pub enum Scorer<'a> {
    /// Predicted accuracy less this many of its standard deviations.
    Predictor(Box<Predictor>, f64),
    /// Measured accuracy.
    Measured(&'a Measured<'a>),
}

impl Scorer<'_> {
    /// Scores `subnets`; a requested stop is an error.
    pub fn score(&self, subnets: &[Subnet]) -> ofa_extract::Result<Vec<f64>> {
        if interrupt::requested() {
            return Err(ofa_supernet::Error::Interrupted.into());
        }
        match self {
            Scorer::Predictor(predictor, 0.0) => predictor.predict(subnets),
            Scorer::Predictor(predictor, pessimism) => {
                let predictions = predictor.predict_with_deviation(subnets)?;
                Ok(predictions.iter().map(|p| p.accuracy - pessimism * p.deviation).collect())
            }
            Scorer::Measured(measured) => Ok(measured.accuracies(subnets)?),
        }
    }

    /// Whether scores have derivatives.
    pub fn has_effects(&self) -> bool {
        matches!(self, Scorer::Predictor(..))
    }

    /// Derivatives of the scores of `subnets`, if these are predictions; the deviations' are left out.
    pub fn effects(&self, subnets: &[Subnet]) -> ofa_extract::Result<Vec<Effects>> {
        match self {
            Scorer::Predictor(predictor, _) => predictor.effects(subnets),
            Scorer::Measured(_) => Ok(Vec::new()),
        }
    }
}

/// Limits of the search for `constraints`.
pub fn limits_of<'a>(constraints: &[Constraint], measures: &'a Measures) -> ofa_extract::Result<Vec<Limit<'a>>> {
    constraints.iter().map(|constraint| Limit::from_constraint(constraint, measures)).collect()
}

/// The space, restricted to the resolutions that the predictor and all named devices know (imported ones may know only
/// some). The devices' profiles must have every layer of it.
pub fn searched_space<'c>(
    folder: &RunFolder,
    measures: &Measures,
    scorer: &Scorer,
    constraints: impl Iterator<Item = &'c Constraint>,
) -> Result<SearchSpace> {
    let space = measures.space();
    let mut searched = space.clone();
    let mut keep = |known: &SearchSpace, file: PathBuf| {
        let before = searched.resolutions.clone();
        searched.keep_resolutions_of(known);
        if searched.resolutions.is_empty() {
            bail!(
                "{}: it knows the resolutions {:?}, but the search needs one of {before:?}; measure or import those",
                file.display(),
                known.resolutions
            );
        }
        Ok(())
    };
    if let Scorer::Predictor(predictor, _) = scorer {
        keep(predictor.space(), predictor_path(folder))?;
    }
    let devices = constraints.filter(|c| c.metric == Metric::Latency).map(|c| measures.device(&c.device));
    let devices = devices.collect::<ofa_extract::Result<Vec<_>>>()?;
    let path = |device: &DeviceProfile| folder.join(&format!("devices/{}.json", device.name));
    for device in &devices {
        keep(&device.space, path(device))?;
    }
    for device in &devices {
        let covers = device.check_covers(&searched, measures.classes());
        covers.map_err(|error| anyhow!("{}: {error}", path(device).display()))?;
    }
    if searched.resolutions != space.resolutions {
        crate::terminal::note(format_args!(
            "only the resolutions {:?} are searched, since the predictor or a device knows no others",
            searched.resolutions
        ));
    }
    Ok(searched)
}
