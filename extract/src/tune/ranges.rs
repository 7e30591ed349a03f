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
mod tests {
    use super::*;
    use ofa_supernet::SearchSpace;

    const TEXT: &str = "[learning_rate]\nlow = 0.01\nhigh = 1.0\nlog = true\nsteps = 3\n[batch]\nvalues = [8, 16]\n\
                        [label_smoothing]\nlow = 0.0\nhigh = 0.2\nsteps = 2\n";

    fn of(text: &str) -> Ranges {
        Ranges::of_text(text)
    }

    #[test]
    fn hyperparameters_without_effect_are_refused() {
        let space = SearchSpace::named("tiny").unwrap();
        let config = TrainConfig::preset("progressive", &space).unwrap();
        let ranges = of("[momentum]\nvalues = [0.1, 0.9]\n[label_smoothing]\nvalues = [0.0, 0.1]\n");
        assert_eq!(ranges.idle(&config), None);
        let adamw = TrainConfig { optimizer: OptimizerKind::AdamW, ..config.clone() };
        assert_eq!(ranges.idle(&adamw).unwrap().0, Hyperparameter::Momentum);
        let mut own = config.clone();
        own.stages.iter_mut().for_each(|stage| stage.label_smoothing = Some(0.1));
        assert_eq!(ranges.idle(&own), Some((Hyperparameter::LabelSmoothing, "every stage has its own")));
    }

    #[test]
    fn units_and_values_are_two_sides_of_one_thing() {
        let ranges = of(TEXT);
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
        let grid: Vec<Vec<f64>> = ranges.grid().collect();
        assert_eq!(grid.len(), 3 * 2 * 2);
        assert_eq!((&grid[0][..], &grid[11][..]), (&[0.0, 0.25, 0.0][..], &[1.0, 0.75, 1.0][..]));
    }

    #[test]
    fn whole_numbers_are_drawn_alike_often_and_have_a_unit_each() {
        for (text, last) in [("[batch]\nlow = 8\nhigh = 10\n", 10), ("[batch]\nlow = 3\nhigh = 70\nlog = true\n", 70)] {
            let ranges = of(text);
            let value = |unit: f64| ranges.values(&[unit])[&Hyperparameter::Batch];
            assert_eq!((value(0.0), value(1.0)), (value(1e-9), f64::from(last)));
            for number in value(0.0) as u32..=last {
                let values = Values::from([(Hyperparameter::Batch, f64::from(number))]);
                assert_eq!(ranges.values(&ranges.units(&values)), values, "{text}");
            }
        }
        let ranges = of("[batch]\nlow = 8\nhigh = 10\n");
        let drawn = (0..300).map(|draw| ranges.values(&[(f64::from(draw) + 0.5) / 300.0])[&Hyperparameter::Batch]);
        assert_eq!(drawn.filter(|&value| value == 8.0).count(), 100);
    }

    #[test]
    fn values_reach_the_configuration() {
        let space = SearchSpace::named("tiny").unwrap();
        let mut config = TrainConfig::preset("tiny", &space).unwrap();
        let rates: Vec<f64> = config.stages.iter().filter_map(|stage| stage.learning_rate).collect();
        let ranges = of(TEXT);
        ranges.apply(&ranges.values(&[1.0, 0.0, 1.0]), &mut config);
        assert_eq!((config.batch, config.label_smoothing), (8, 0.2));
        for (stage, rate) in config.stages.iter().zip(&rates) {
            assert!((stage.learning_rate.unwrap() - rate / rates[0]).abs() < 1e-9, "{}", stage.name);
        }
        let about = Ranges::about(&config, &space).unwrap();
        assert_eq!(about.values(&[0.5, 0.5, 0.5])[&Hyperparameter::Batch], 8.0);
    }

    #[test]
    fn ends_are_those_of_the_file() {
        let ranges =
            of("[learning_rate]\nlow = 0.01\nhigh = 0.1\nlog = true\nsteps = 2\n[dropout]\nlow = 0.1\nhigh = 0.7\n");
        for (unit, ends) in [(0.0, [0.01, 0.1]), (1.0, [0.1, 0.7])] {
            let values = ranges.values(&[unit, unit]);
            assert_eq!([values[&Hyperparameter::LearningRate], values[&Hyperparameter::Dropout]], ends);
            assert_eq!(ranges.units(&values), [unit, unit]);
        }
        let space = SearchSpace::named("tiny").unwrap();
        let mut config = TrainConfig::preset("tiny", &space).unwrap();
        ranges.apply(&ranges.values(&[1.0, 1.0]), &mut config);
        assert_eq!(config.stages[0].learning_rate, Some(0.1));
    }

    #[test]
    fn points_are_counted_where_they_have_a_limit() {
        assert_eq!(of("[batch]\nlow = 8\nhigh = 12\n[dropout]\nvalues = [0, 0.5]\n").count(), Some(10));
        assert_eq!(of(TEXT).count(), None);
    }

    #[test]
    fn impossible_ranges_are_one_sentence_with_the_line() {
        let space = SearchSpace::named("tiny").unwrap();
        let config = TrainConfig::preset("tiny", &space).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.toml");
        for (text, reason) in [
            ("", "r.toml:1: no hyperparameter"),
            (
                "# the colour\n[colour]\nlow = 1\nhigh = 2\n",
                "r.toml:2: unknown hyperparameter 'colour'; known are learning_rate,",
            ),
            ("[batch]\nvalues = []\n", "r.toml:1: [batch] values"),
            ("[batch]\nvalues = [2, 1]\n", "ascending"),
            ("[batch]\nvalues = [8, 8]\n", "ascending"),
            ("\n\n[dropout]\nlow = 0.5\nhigh = 0.1\n", "r.toml:3: [dropout] low = 0.5"),
            ("[dropout]\nlow = 0.0\nhigh = 0.1\nlog = true\n", "above 0"),
            ("[dropout]\nlow = 0.0\nhigh = 0.1\nsteps = 1\n", "steps = 1"),
            ("[dropout]\nlow = 0.0\nhigh = 0.1\n\nsteps = 2.5\n", "r.toml:5: [dropout] steps is not a whole number"),
            ("[dropout]\nlow = 0.0\n", "r.toml:1: [dropout] low without high"),
            ("[dropout]\nhigh = 0.2\n", "high without low"),
            ("[dropout]\n", "no range is given; write low"),
            ("[dropout]\nlow = 0.0\nvalues = [0.1]\n", "r.toml:1: [dropout] values excludes low"),
            ("[dropout]\nvalues = [0.1]\nlog = true\n", "values excludes low, high, log"),
            ("[dropout]\nvalues = 0.1\n", "r.toml:2: [dropout] values is not a list of numbers"),
            ("[dropout]\nvalues = [\"a\"]\n", "values is not a list of numbers"),
            ("[dropout]\nlow = \"0\"\nhigh = 1\n", "r.toml:2: [dropout] low is not a number"),
            ("[dropout]\nlow = 0\nhigh = 0.5\nlog = 1\n", "r.toml:4: [dropout] log is not true or false"),
            ("[dropout]\nlow = 0\nhigh = 0.5\nstep = 1\n", "r.toml:4: [dropout] unknown key 'step'"),
            ("dropout = 0.1\n", "r.toml:1: dropout is not a table"),
            ("[dropout]\nlow = \n", "r.toml:2: not valid TOML"),
            ("[dropout]\nvalues = [0.1]\n[dropout]\nvalues = [0.2]\n", "r.toml:3: not valid TOML: duplicate key"),
            ("[batch]\nvalues = [0]\n", "r.toml:1: [batch] 0 is not a possible batch"),
            ("[batch]\nvalues = [8.5]\n", "8.5 is not a possible batch; expected a whole number"),
            ("[batch]\nlow = 8\nhigh = 16.5\n", "16.5 is not a possible batch"),
            ("[batch]\nvalues = [8, 100000]\n", "batch = 100000 must be at least 1 and at most 65536"),
            ("[batch]\nvalues = [8]\n[momentum]\nlow = 0.5\nhigh = 1.5\n", "r.toml:3: [momentum] momentum = 1.5"),
            ("[learning_rate]\nvalues = [-0.1, 0.1]\n", "learning_rate = -0.1 must be above 0"),
            ("[clip_norm]\nvalues = [0.0, 1.0]\n", "clip_norm = 0"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Ranges::read(&path, &config, &space).unwrap_err().to_string();
            assert!(error.contains(reason) && !error.contains('\n'), "{text}: {error}");
        }
    }

    #[test]
    fn the_largest_batch_is_that_of_training() {
        let space = SearchSpace::named("tiny").unwrap();
        let mut config = TrainConfig::preset("tiny", &space).unwrap();
        (config.batch, config.weight_decay) = (TrainConfig::LARGEST_BATCH, 0.9);
        Ranges::about(&config, &space).unwrap();
        config.batch += 1;
        assert!(config.validate(&space).is_err());
        config.batch = 1;
        Ranges::about(&config, &space).unwrap();
    }
}
