//! Scores of subnets for a search, and the space and limits that are searched.

use crate::process::interrupt;
use crate::run_folder::RunFolder;
use crate::run_folder::freshness::predictor_path;
use crate::search::measured::Measured;
use anyhow::{Result, anyhow, bail};
use ofa_evaluate::DeviceProfile;
use ofa_extract::effects::Effects;
use ofa_extract::{Constraint, Limit, Measures, Metric, Predictor};
use ofa_supernet::space::{DIMENSIONS, Value};
use ofa_supernet::{SearchSpace, Subnet};
use std::collections::BTreeSet;
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

    /// Derivatives of the scores of `subnets` of the searched `space`, if these are predictions; the deviations' are
    /// left out.
    pub fn effects(&self, space: &SearchSpace, subnets: &[Subnet]) -> ofa_extract::Result<Vec<Effects>> {
        match self {
            Scorer::Predictor(predictor, _) => predictor.effects(space, subnets),
            Scorer::Measured(_) => Ok(Vec::new()),
        }
    }
}

/// Limits of the search for `constraints`.
pub fn limits_of<'a>(constraints: &[Constraint], measures: &'a Measures) -> ofa_extract::Result<Vec<Limit<'a>>> {
    constraints.iter().map(|constraint| Limit::from_constraint(constraint, measures)).collect()
}

/// The space, restricted to the values that the samples of the predictor have, and to the resolutions that it and all
/// named devices know (imported ones may know only some). The devices' profiles must have every layer of it.
pub fn searched_space<'c>(
    folder: &RunFolder,
    measures: &Measures,
    scorer: &Scorer,
    constraints: impl Iterator<Item = &'c Constraint>,
) -> Result<SearchSpace> {
    let space = measures.space();
    let mut searched = space.clone();
    let keep = |searched: &mut SearchSpace, known: SearchSpace, file: PathBuf| {
        if known.resolutions.is_empty() {
            let path = file.display();
            bail!("{path}: it knows none of the resolutions {:?}; measure or import those", searched.resolutions);
        }
        *searched = known;
        Ok(())
    };
    if let Scorer::Predictor(predictor, _) = scorer {
        let known = predictor.known_part(&searched);
        keep(&mut searched, known, predictor_path(folder))?;
    }
    let devices = constraints.filter(|c| c.metric == Metric::Latency).map(|c| measures.device(&c.device));
    let devices = devices.collect::<ofa_extract::Result<Vec<_>>>()?;
    let path = |device: &DeviceProfile| folder.join(&format!("devices/{}.json", device.name));
    for device in &devices {
        let mut known = searched.clone();
        known.keep_resolutions_of(&device.space);
        keep(&mut searched, known, path(device))?;
    }
    for device in &devices {
        let covers = device.check_covers(&searched, measures.classes());
        covers.map_err(|error| anyhow!("{}: {error}", path(device).display()))?;
    }
    let keys: BTreeSet<&str> = DIMENSIONS.iter().map(|dimension| dimension.key).collect();
    for key in keys {
        let kept = searched.listed(key);
        if kept != space.listed(key) {
            let kept: Vec<String> = kept.iter().map(Value::to_string).collect();
            crate::output::terminal::note(format_args!(
                "only the {} {} are searched, since the predictor's samples or a device have no others",
                key.replace('_', " "),
                kept.join(", ")
            ));
        }
    }
    Ok(searched)
}
