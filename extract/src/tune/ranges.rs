//! Hyperparameters that can be varied, and their ranges.

use crate::{Error, Result};
use ofa_supernet::SearchSpace;
use ofa_supernet::train::{OptimizerKind, TrainConfig};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// A number of the training configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hyperparameter {
    /// Peak learning rate of the first stage; the rates of other stages keep their proportion to it.
    LearningRate,
    /// Images per step, in all stages.
    Batch,
    /// Weight decay.
    WeightDecay,
    /// Momentum.
    Momentum,
    /// Label smoothing.
    LabelSmoothing,
    /// Dropout before the classifier.
    Dropout,
    /// Fraction by which a step moves running statistics.
    BatchNormMomentum,
    /// Weight of the distillation, in all stages that distil.
    KdRatio,
    /// Largest norm of the gradient.
    ClipNorm,
}

impl Hyperparameter {
    /// All hyperparameters.
    pub(super) const ALL: [Hyperparameter; 9] = [
        Hyperparameter::LearningRate,
        Hyperparameter::Batch,
        Hyperparameter::WeightDecay,
        Hyperparameter::Momentum,
        Hyperparameter::LabelSmoothing,
        Hyperparameter::Dropout,
        Hyperparameter::BatchNormMomentum,
        Hyperparameter::KdRatio,
        Hyperparameter::ClipNorm,
    ];

    /// The value in `config`; `None` if the configuration does not use the hyperparameter.
    pub fn of(self, config: &TrainConfig) -> Option<f64> {
        match self {
            Hyperparameter::LearningRate => match &config.schedule {
                Some(schedule) => Some(schedule.learning_rate),
                None => config.stages.first().and_then(|stage| stage.learning_rate),
            },
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

    /// Sets the hyperparameter in `config`.
    pub fn set(self, config: &mut TrainConfig, value: f64) {
        match self {
            Hyperparameter::LearningRate => {
                if let Some(first) = self.of(config) {
                    // A rate equal to the first stage's becomes exactly `value`, without the rounding of a factor.
                    let scaled = |rate: f64| if rate == first { value } else { rate * (value / first) };
                    let rates = config.stages.iter_mut().filter_map(|stage| stage.learning_rate.as_mut());
                    let rates = rates.chain(config.schedule.as_mut().map(|schedule| &mut schedule.learning_rate));
                    rates.for_each(|rate| *rate = scaled(*rate));
                }
            }
            Hyperparameter::Batch => {
                config.batch = value as usize;
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

    /// Whether values must be whole numbers.
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

/// Values that a hyperparameter may take.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Range {
    /// A list of values, ascending.
    Values {
        /// The values.
        values: Vec<f64>,
    },
    /// All numbers between two ends.
    Interval {
        /// Lowest value.
        low: f64,
        /// Highest value.
        high: f64,
        /// Whether the scale is logarithmic, as suits learning rates.
        log: bool,
        /// Number of values in a grid, ends included.
        steps: usize,
    },
}

impl Range {
    /// Default number of an interval's values in a grid.
    pub(super) const STEPS: usize = 5;

    /// The value at `unit`, 0 to 1; 0 and 1 give exactly the ends of the range.
    fn at(&self, unit: f64) -> f64 {
        match self {
            Range::Values { values } => {
                let place = (unit * values.len() as f64) as usize;
                values[place.min(values.len() - 1)]
            }
            Range::Interval { low, .. } if unit <= 0.0 => *low,
            Range::Interval { high, .. } if unit >= 1.0 => *high,
            Range::Interval { low, high, log: true, .. } => {
                (low.ln() + unit * (high.ln() - low.ln())).exp().clamp(*low, *high)
            }
            Range::Interval { low, high, .. } => (low + unit * (high - low)).clamp(*low, *high),
        }
    }

    /// The whole number at `unit`: each has the same share of the interval, on a logarithmic scale of its logarithm.
    fn whole_at(&self, unit: f64) -> f64 {
        match self {
            Range::Interval { low, high, log, steps } => {
                let wider = Range::Interval { low: *low, high: high + 1.0, log: *log, steps: *steps };
                // The end of a share belongs to the next one, whatever its logarithm rounds to.
                (wider.at(unit) + 1e-9).floor().min(*high)
            }
            Range::Values { .. } => self.at(unit),
        }
    }

    /// Values that bound all others: those of a list, or the ends of an interval.
    fn bounds(&self) -> Vec<f64> {
        match self {
            Range::Values { values } => values.clone(),
            Range::Interval { low, high, .. } => vec![*low, *high],
        }
    }

    /// Number of different values; `None` if it is unlimited.
    fn count(&self, name: Hyperparameter) -> Option<usize> {
        match self {
            Range::Values { values } => Some(values.len()),
            Range::Interval { low, high, .. } => name.is_whole().then_some((high - low) as usize + 1),
        }
    }

    /// Position of `value` in the range, 0 to 1; each value of a list has an equal part of that, and its position is
    /// the middle of its part.
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

    /// Number of values in a grid.
    fn steps(&self) -> usize {
        match self {
            Range::Values { values } => values.len(),
            Range::Interval { steps, .. } => *steps,
        }
    }

    /// Position, 0 to 1, of value `step` of the grid.
    fn grid_unit(&self, step: usize) -> f64 {
        match self {
            Range::Values { values } => self.unit(values[step]),
            Range::Interval { steps, .. } => step as f64 / (*steps as f64 - 1.0).max(1.0),
        }
    }

    /// Checks everything that does not depend on the configuration.
    pub(super) fn validate(&self, name: Hyperparameter) -> Result<(), String> {
        match self {
            Range::Values { values } => {
                if values.is_empty() || values.iter().any(|v| !v.is_finite()) || values.windows(2).any(|w| w[0] >= w[1])
                {
                    return Err("values must be a non-empty, strictly ascending list of numbers".into());
                }
            }
            Range::Interval { low, high, log, steps } => {
                if !(low.is_finite() && high.is_finite() && low < high) {
                    return Err(format!("low = {low} must be below high = {high}"));
                }
                if *log && *low <= 0.0 {
                    return Err(format!("low = {low} must be above 0 with log = true"));
                }
                if !(2..=1000).contains(steps) {
                    return Err(format!("steps = {steps} must lie between 2 and 1000"));
                }
            }
        }
        match self.bounds().into_iter().find(|value| name.is_whole() && (value.fract() != 0.0 || *value < 1.0)) {
            Some(value) => Err(format!("{value} is not a possible {name}; expected a whole number, at least 1")),
            None => Ok(()),
        }
    }
}

/// A value for each hyperparameter.
pub type Values = BTreeMap<Hyperparameter, f64>;

/// The varied hyperparameters, each with its range. In TOML each is a table:
///
/// ```toml
/// [learning_rate]
/// low = 0.001
/// high = 1.0
/// log = true
/// [batch]
/// values = [32, 64, 128]
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Ranges(pub(super) BTreeMap<Hyperparameter, Range>);

impl Ranges {
    /// A hyperparameter that has no effect on `config`, with the reason. Earlier versions accepted it, so it is refused
    /// only where a tuning begins.
    pub fn idle(&self, config: &TrainConfig) -> Option<(Hyperparameter, &'static str)> {
        let reason = |name: &Hyperparameter| match name {
            Hyperparameter::Momentum if config.optimizer == OptimizerKind::AdamW => {
                Some("AdamW has [train.adamw] betas instead")
            }
            Hyperparameter::LabelSmoothing if config.stages.iter().all(|stage| stage.label_smoothing.is_some()) => {
                Some("every stage has its own")
            }
            _ => None,
        };
        self.0.keys().find_map(|name| Some((*name, reason(name)?)))
    }

    /// Default ranges: learning rate and weight decay by a factor of ten either way about those of `config`, and half,
    /// all and twice its batch.
    ///
    /// # Errors
    /// A value that training would refuse; a valid configuration gives none.
    pub fn about(config: &TrainConfig, space: &SearchSpace) -> Result<Self> {
        let around =
            |value: f64| Range::Interval { low: value / 10.0, high: value * 10.0, log: true, steps: Range::STEPS };
        let batch = config.batch.max(2);
        let batches = [batch / 2, batch, batch * 2].into_iter().filter(|&batch| batch <= TrainConfig::LARGEST_BATCH);
        let mut ranges = BTreeMap::from([(
            Hyperparameter::Batch,
            Range::Values { values: batches.map(|batch| batch as f64).collect() },
        )]);
        ranges.extend(Hyperparameter::LearningRate.of(config).map(|v| (Hyperparameter::LearningRate, around(v))));
        let decay = if config.weight_decay > 0.0 { config.weight_decay } else { 1e-5 };
        // Ten times the weight decay must still be below 1.
        ranges.insert(Hyperparameter::WeightDecay, around(decay.min(0.09)));
        for (&name, range) in &ranges {
            check(name, range, config, space).map_err(Error::Tune)?;
        }
        Ok(Ranges(ranges))
    }

    /// Sets `values` in `config`.
    pub fn apply(&self, values: &Values, config: &mut TrainConfig) {
        values.iter().for_each(|(name, &value)| name.set(config, value));
    }

    /// Sets the largest batch of all trials in `config`; returns whether the batch is varied.
    pub fn apply_largest_batch(&self, config: &mut TrainConfig) -> bool {
        let range = self.0.get(&Hyperparameter::Batch);
        if let Some(range) = range {
            Hyperparameter::Batch.set(config, range.bounds().into_iter().fold(1.0, f64::max));
        }
        range.is_some()
    }

    /// The hyperparameters, in order.
    pub fn names(&self) -> impl Iterator<Item = Hyperparameter> {
        self.0.keys().copied()
    }

    /// Number of hyperparameters.
    pub(super) fn dimensions(&self) -> usize {
        self.0.len()
    }

    /// Values at a point of the unit cube.
    pub(super) fn values(&self, units: &[f64]) -> Values {
        let value = |((&name, range), &unit): ((&Hyperparameter, &Range), &f64)| {
            (name, if name.is_whole() { range.whole_at(unit) } else { range.at(unit) })
        };
        self.0.iter().zip(units).map(value).collect()
    }

    /// Point of the unit cube that stands for `values`.
    pub(super) fn units(&self, values: &Values) -> Vec<f64> {
        self.0.iter().map(|(name, range)| values.get(name).map_or(0.5, |&value| range.unit(value))).collect()
    }

    /// Number of different points; `None` if it is unlimited.
    pub(super) fn count(&self) -> Option<usize> {
        self.0.iter().try_fold(1usize, |count, (&name, range)| Some(count.saturating_mul(range.count(name)?)))
    }

    /// All points of the grid, the last hyperparameter changing fastest.
    pub(super) fn grid(&self) -> impl Iterator<Item = Vec<f64>> {
        let points = self.0.values().fold(1usize, |count, range| count.saturating_mul(range.steps()));
        (0..points).map(|mut number| {
            let mut units: Vec<f64> = Vec::with_capacity(self.0.len());
            for range in self.0.values().rev() {
                units.push(range.grid_unit(number % range.steps()));
                number /= range.steps();
            }
            units.reverse();
            units
        })
    }
}

/// Checks that training accepts every value of the hyperparameter.
pub(super) fn check(
    name: Hyperparameter,
    range: &Range,
    config: &TrainConfig,
    space: &SearchSpace,
) -> Result<(), String> {
    if name == Hyperparameter::KdRatio && name.of(config).is_none() {
        return Err(format!("[{name}] no stage distils, so the hyperparameter has no effect; remove it"));
    }
    for value in range.bounds() {
        let mut config = config.clone();
        name.set(&mut config, value);
        config.validate(space).map_err(|error| match error {
            ofa_supernet::Error::Config(message) => format!("[{name}] {message}"),
            error => format!("[{name}] {error}"),
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
