//! What may be varied and how far.

use crate::{Error, Result};
use ofa_supernet::files::{parse_toml_text, read_toml};
use ofa_supernet::train::TrainConfig;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// A number of the training configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hyperparameter {
    /// Peak learning rate of the first stage; those of the others keep their proportion to it.
    LearningRate,
    /// Images a step, of all stages.
    Batch,
    /// Weight decay.
    WeightDecay,
    /// Momentum.
    Momentum,
    /// Label smoothing.
    LabelSmoothing,
    /// Dropout before the classifier.
    Dropout,
    /// How far a step moves running statistics.
    BatchNormMomentum,
    /// Weight of the distillation, in all stages that distil.
    KdRatio,
    /// Largest norm of the gradient.
    ClipNorm,
}

impl Hyperparameter {
    /// Its value in `config`; `None` where the configuration does not use it.
    pub fn of(self, config: &TrainConfig) -> Option<f64> {
        match self {
            Hyperparameter::LearningRate => config.stages.first().map(|stage| stage.learning_rate),
            Hyperparameter::Batch => Some(config.batch as f64),
            Hyperparameter::WeightDecay => Some(config.weight_decay),
            Hyperparameter::Momentum => Some(config.momentum),
            Hyperparameter::LabelSmoothing => Some(config.label_smoothing),
            Hyperparameter::Dropout => Some(config.dropout),
            Hyperparameter::BatchNormMomentum => Some(config.batch_norm_momentum),
            Hyperparameter::KdRatio => config.stages.iter().map(|stage| stage.kd_ratio).find(|&ratio| ratio > 0.0),
            Hyperparameter::ClipNorm => config.clip_norm,
        }
    }

    /// Sets it in `config`.
    pub fn set(self, config: &mut TrainConfig, value: f64) {
        match self {
            Hyperparameter::LearningRate => {
                if let Some(first) = self.of(config) {
                    config.stages.iter_mut().for_each(|stage| stage.learning_rate *= value / first);
                }
            }
            Hyperparameter::Batch => {
                config.batch = value.round().max(1.0) as usize;
                config.stages.iter_mut().for_each(|stage| stage.batch = None);
            }
            Hyperparameter::WeightDecay => config.weight_decay = value,
            Hyperparameter::Momentum => config.momentum = value,
            Hyperparameter::LabelSmoothing => config.label_smoothing = value,
            Hyperparameter::Dropout => config.dropout = value,
            Hyperparameter::BatchNormMomentum => config.batch_norm_momentum = value,
            Hyperparameter::KdRatio => {
                let distilling = config.stages.iter_mut().filter(|stage| stage.kd_ratio > 0.0);
                distilling.for_each(|stage| stage.kd_ratio = value);
            }
            Hyperparameter::ClipNorm => config.clip_norm = Some(value),
        }
    }

    /// Whether only whole numbers make sense.
    fn is_whole(self) -> bool {
        self == Hyperparameter::Batch
    }
}

impl fmt::Display for Hyperparameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hyperparameter::LearningRate => "learning_rate",
            Hyperparameter::Batch => "batch",
            Hyperparameter::WeightDecay => "weight_decay",
            Hyperparameter::Momentum => "momentum",
            Hyperparameter::LabelSmoothing => "label_smoothing",
            Hyperparameter::Dropout => "dropout",
            Hyperparameter::BatchNormMomentum => "batch_norm_momentum",
            Hyperparameter::KdRatio => "kd_ratio",
            Hyperparameter::ClipNorm => "clip_norm",
        })
    }
}

/// What values it may take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Range {
    /// One of these, ascending.
    Values {
        /// The values.
        values: Vec<f64>,
    },
    /// Anything between two numbers.
    Interval {
        /// Lowest value.
        low: f64,
        /// Highest value.
        high: f64,
        /// Whether factors matter rather than differences, as of learning rates.
        #[serde(default)]
        log: bool,
        /// Values that a grid tries, ends included.
        #[serde(default = "five")]
        steps: usize,
    },
}

fn five() -> usize {
    5
}

impl Range {
    /// The value at `unit`, 0 to 1.
    fn at(&self, unit: f64) -> f64 {
        match self {
            Range::Values { values } => {
                let place = (unit * values.len() as f64) as usize;
                values[place.min(values.len() - 1)]
            }
            Range::Interval { low, high, log: true, .. } => (low.ln() + unit * (high.ln() - low.ln())).exp(),
            Range::Interval { low, high, .. } => low + unit * (high - low),
        }
    }

    /// Where `value` lies, 0 to 1: the middle of its part for one of several values.
    fn unit(&self, value: f64) -> f64 {
        match self {
            Range::Values { values } => {
                let place = values.iter().position(|v| *v >= value).unwrap_or(values.len() - 1);
                (place as f64 + 0.5) / values.len() as f64
            }
            Range::Interval { low, high, log: true, .. } => (value.ln() - low.ln()) / (high.ln() - low.ln()),
            Range::Interval { low, high, .. } => (value - low) / (high - low),
        }
    }

    /// The units that a grid tries.
    fn grid(&self) -> Vec<f64> {
        match self {
            Range::Values { values } => values.iter().map(|&value| self.unit(value)).collect(),
            Range::Interval { steps, .. } => {
                (0..*steps).map(|step| step as f64 / (*steps as f64 - 1.0).max(1.0)).collect()
            }
        }
    }

    fn validate(&self, name: Hyperparameter) -> Result<()> {
        let fail = |message: String| Err(Error::Tune(format!("[{name}] {message}")));
        match self {
            Range::Values { values } => {
                if values.is_empty() || values.iter().any(|v| !v.is_finite()) || values.windows(2).any(|w| w[0] >= w[1])
                {
                    return fail("values must be a non-empty, strictly ascending list of numbers".into());
                }
            }
            Range::Interval { low, high, log, steps } => {
                if !(low.is_finite() && high.is_finite() && low < high) {
                    return fail(format!("low = {low} must be below high = {high}"));
                }
                if *log && *low <= 0.0 {
                    return fail(format!("low = {low} must be above 0 with log = true"));
                }
                if !(2..=1000).contains(steps) {
                    return fail(format!("steps = {steps} must lie between 2 and 1000"));
                }
            }
        }
        Ok(())
    }
}

/// A value for each hyperparameter.
pub type Values = BTreeMap<Hyperparameter, f64>;

/// Every hyperparameter that is varied, with its range. In TOML a table each:
///
/// ```toml
/// [learning_rate]
/// low = 0.001
/// high = 1.0
/// log = true
/// [batch]
/// values = [32, 64, 128]
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ranges(BTreeMap<Hyperparameter, Range>);

impl Ranges {
    /// Reads ranges from a TOML file.
    ///
    /// # Errors
    /// As [`from_toml`](Self::from_toml), with the path; a missing file.
    pub fn read(path: &Path) -> Result<Self> {
        let ranges: Ranges = read_toml(path)?;
        ranges.validate().map_err(|e| e.at(path))?;
        Ok(ranges)
    }

    /// Reads ranges from TOML.
    ///
    /// # Errors
    /// An unknown hyperparameter, an impossible range, or none at all.
    pub fn from_toml(text: &str) -> Result<Self> {
        let ranges: Ranges = parse_toml_text(text).map_err(Error::Tune)?;
        ranges.validate()?;
        Ok(ranges)
    }

    fn validate(&self) -> Result<()> {
        if self.0.is_empty() {
            return Err(Error::Tune("no hyperparameter is given; write a table such as [learning_rate]".into()));
        }
        self.0.iter().try_for_each(|(&name, range)| range.validate(name))
    }

    /// Learning rate and weight decay by a factor of ten either way about those of `config`, and half, all and twice its batch.
    ///
    /// # Errors
    /// None in practice: a checked configuration has a learning rate.
    pub fn about(config: &TrainConfig) -> Result<Self> {
        let around = |value: f64| Range::Interval { low: value / 10.0, high: value * 10.0, log: true, steps: five() };
        let batch = config.batch.max(2) as f64;
        let mut ranges = BTreeMap::from([(
            Hyperparameter::Batch,
            Range::Values { values: vec![(batch / 2.0).floor(), batch, batch * 2.0] },
        )]);
        ranges.extend(Hyperparameter::LearningRate.of(config).map(|v| (Hyperparameter::LearningRate, around(v))));
        let decay = if config.weight_decay > 0.0 { config.weight_decay } else { 1e-5 };
        ranges.insert(Hyperparameter::WeightDecay, around(decay.min(0.1)));
        for (&name, range) in &ranges {
            range.validate(name)?;
        }
        Ok(Ranges(ranges))
    }

    /// Checks that each of them has an effect on `config`, and that both ends make valid configurations.
    ///
    /// # Errors
    /// The first that has none, or what the configuration's own checks say.
    pub fn check(&self, config: &TrainConfig, space: &ofa_supernet::SearchSpace) -> Result<()> {
        for &name in self.0.keys() {
            if name == Hyperparameter::KdRatio && name.of(config).is_none() {
                return Err(Error::Tune(format!(
                    "[{name}] no stage distils, so it would change nothing; leave it out"
                )));
            }
        }
        for unit in [0.0, 1.0] {
            let mut config = config.clone();
            self.apply(&self.values(&vec![unit; self.0.len()]), &mut config);
            config.validate(space)?;
        }
        Ok(())
    }

    /// Sets `values` in `config`.
    pub fn apply(&self, values: &Values, config: &mut TrainConfig) {
        values.iter().for_each(|(name, &value)| name.set(config, value));
    }

    /// Their names in order.
    pub fn names(&self) -> impl Iterator<Item = Hyperparameter> {
        self.0.keys().copied()
    }

    /// Number of hyperparameters.
    pub(super) fn dimensions(&self) -> usize {
        self.0.len()
    }

    /// The values at a point of the unit cube.
    pub(super) fn values(&self, units: &[f64]) -> Values {
        let value = |((&name, range), &unit): ((&Hyperparameter, &Range), &f64)| {
            let value = range.at(unit);
            (name, if name.is_whole() { value.round() } else { value })
        };
        self.0.iter().zip(units).map(value).collect()
    }

    /// The point of the unit cube of `values`.
    pub(super) fn units(&self, values: &Values) -> Vec<f64> {
        self.0.iter().map(|(name, range)| values.get(name).map_or(0.5, |&value| range.unit(value))).collect()
    }

    /// All points of the grid, the last hyperparameter changing fastest.
    pub(super) fn grid(&self) -> Vec<Vec<f64>> {
        self.0.values().fold(vec![Vec::new()], |points, range| {
            let longer = |point: &Vec<f64>| {
                let point = point.clone();
                range.grid().into_iter().map(move |unit| [&point[..], &[unit]].concat())
            };
            points.iter().flat_map(longer).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofa_supernet::SearchSpace;

    const TEXT: &str = "[learning_rate]\nlow = 0.01\nhigh = 1.0\nlog = true\nsteps = 3\n[batch]\nvalues = [8, 16]\n\
                        [label_smoothing]\nlow = 0.0\nhigh = 0.2\nsteps = 2\n";

    #[test]
    fn units_and_values_are_two_sides_of_one_thing() {
        let ranges = Ranges::from_toml(TEXT).unwrap();
        assert_eq!(
            ranges.names().map(|n| n.to_string()).collect::<Vec<_>>(),
            ["learning_rate", "batch", "label_smoothing"]
        );
        let values = ranges.values(&[0.5, 0.9, 0.25]);
        let get = |name| values[&name];
        assert!((get(Hyperparameter::LearningRate) - 0.1).abs() < 1e-12, "the middle of a logarithmic range");
        assert_eq!((get(Hyperparameter::Batch), get(Hyperparameter::LabelSmoothing)), (16.0, 0.05));
        let units = ranges.units(&values);
        assert!((units[0] - 0.5).abs() < 1e-12 && units[1] == 0.75 && (units[2] - 0.25).abs() < 1e-12);
        assert_eq!(ranges.values(&units), values);
        let grid = ranges.grid();
        assert_eq!(grid.len(), 3 * 2 * 2);
        assert_eq!((&grid[0][..], &grid[11][..]), (&[0.0, 0.25, 0.0][..], &[1.0, 0.75, 1.0][..]));
    }

    #[test]
    fn values_reach_the_configuration() {
        let space = SearchSpace::named("tiny").unwrap();
        let mut config = TrainConfig::preset("tiny", &space).unwrap();
        let rates: Vec<f64> = config.stages.iter().map(|stage| stage.learning_rate).collect();
        let ranges = Ranges::from_toml(TEXT).unwrap();
        ranges.check(&config, &space).unwrap();
        ranges.apply(&ranges.values(&[1.0, 0.0, 1.0]), &mut config);
        assert_eq!((config.batch, config.label_smoothing), (8, 0.2));
        for (stage, rate) in config.stages.iter().zip(&rates) {
            assert!((stage.learning_rate - rate / rates[0]).abs() < 1e-9, "{}", stage.name);
        }
        let about = Ranges::about(&config).unwrap();
        about.check(&config, &space).unwrap();
        assert_eq!(about.values(&[0.5, 0.5, 0.5])[&Hyperparameter::Batch], 8.0);
    }

    #[test]
    fn impossible_ranges_are_one_sentence() {
        let space = SearchSpace::named("tiny").unwrap();
        let config = TrainConfig::preset("tiny", &space).unwrap();
        for (text, reason) in [
            ("", "no hyperparameter"),
            ("[colour]\nlow = 1\nhigh = 2\n", "unknown variant `colour`"),
            ("[batch]\nvalues = []\n", "[batch] values"),
            ("[batch]\nvalues = [2, 1]\n", "ascending"),
            ("[dropout]\nlow = 0.5\nhigh = 0.1\n", "[dropout] low = 0.5"),
            ("[dropout]\nlow = 0.0\nhigh = 0.1\nlog = true\n", "above 0"),
            ("[dropout]\nlow = 0.0\nhigh = 0.1\nsteps = 1\n", "steps = 1"),
            ("[dropout]\nlow = 0.0\n", "data did not match"),
        ] {
            let error = Ranges::from_toml(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        let check = |text: &str| Ranges::from_toml(text).unwrap().check(&config, &space).unwrap_err().to_string();
        assert!(check("[momentum]\nlow = 0.5\nhigh = 1.5\n").contains("momentum = 1.5"));
    }
}
