//! The table of search strategies, read by command line, validation, dispatch and files. To add a strategy, write its
//! file and add its line to the table.

use super::Task;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// Search strategy: a struct of its settings, with the defaults of [`Default`].
pub trait Strategy {
    /// Describes the method in a line.
    fn description(&self) -> &'static str;

    /// The settings, each with its range.
    fn settings(&mut self) -> Vec<Setting<'_>> {
        Vec::new()
    }

    /// Most subnets that are scored if the problem sets no budget.
    fn evaluations(&self) -> usize;

    /// Whether the result is a front, if there are costs to draw it against.
    fn draws_front(&self) -> bool {
        self.needs_costs()
    }

    /// Whether the strategy can do nothing without costs to draw a front against.
    fn needs_costs(&self) -> bool {
        false
    }

    /// Whether the levels of a task are searched together, each score counting for all of them.
    fn shares_scores(&self) -> bool {
        false
    }

    /// Scores candidates until the budget is spent or nothing is left to try; the task keeps the best feasible
    /// candidate.
    ///
    /// # Errors
    /// Errors of the scorer and of measures.
    fn run(&self, task: &mut Task) -> Result<()>;
}

/// A setting of a strategy.
pub struct Setting<'a> {
    /// Name in files (`parent_ratio`); the command-line option has hyphens.
    pub name: &'static str,
    /// Describes the setting in a line.
    pub description: &'static str,
    /// The value, in place, with its range.
    pub value: SettingValue<'a>,
}

/// The value of a setting, in the strategy's struct.
pub enum SettingValue<'a> {
    /// A count.
    Whole(&'a mut usize, RangeInclusive<usize>),
    /// A number between two bounds.
    Number(&'a mut f64, RangeInclusive<f64>),
    /// A number above 0 and up to a bound.
    Positive(&'a mut f64, f64),
    /// A switch.
    Flag(&'a mut bool),
}

impl<'a> Setting<'a> {
    /// A setting `name`.
    pub fn new(name: &'static str, description: &'static str, value: SettingValue<'a>) -> Self {
        Setting { name, description, value }
    }

    /// Checks the value's range.
    fn check(&self) -> Result<()> {
        let (value, expected) = match &self.value {
            SettingValue::Whole(value, range) if !range.contains(value) => {
                (value.to_string(), format!("between {} and {}", range.start(), range.end()))
            }
            SettingValue::Number(value, range) if !range.contains(value) => {
                (value.to_string(), format!("between {} and {}", range.start(), range.end()))
            }
            SettingValue::Positive(value, most) if !(**value > 0.0 && **value <= *most) => {
                (value.to_string(), format!("above 0 and up to {most}"))
            }
            _ => return Ok(()),
        };
        Err(Error::Setting { name: self.name, value, expected })
    }
}

macro_rules! strategies {
    ($($name:literal => $module:ident::$strategy:ident),+ $(,)?) => {
        $(pub use super::$module::$strategy;)+

        /// A strategy with its settings, as search results store it.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "strategy")]
        pub enum SearchSettings {
            $(
                #[doc = concat!("The strategy `", $name, "`.")]
                #[serde(rename = $name)]
                $strategy($strategy),
            )+
        }

        impl SearchSettings {
            /// Every strategy with its default settings, in the order of the table.
            pub fn all() -> Vec<SearchSettings> {
                vec![$(SearchSettings::$strategy($strategy::default())),+]
            }

            /// Name of the strategy, on the command line and in files.
            pub fn name(&self) -> &'static str {
                match self {
                    $(SearchSettings::$strategy(_) => $name),+
                }
            }

            /// The strategy.
            pub fn strategy(&self) -> &dyn Strategy {
                match self {
                    $(SearchSettings::$strategy(strategy) => strategy),+
                }
            }

            /// The strategy, to change its settings.
            pub fn strategy_mut(&mut self) -> &mut dyn Strategy {
                match self {
                    $(SearchSettings::$strategy(strategy) => strategy),+
                }
            }
        }
    };
}

// The first strategy is the default.
strategies! {
    "memetic" => memetic::Memetic,
    "evolution" => evolution::Evolution,
    "pareto" => pareto::Pareto,
    "random" => random::Random,
    "grid" => grid::Grid,
    "rounds" => rounds::Rounds,
    "bayes" => bayes::Bayes,
    "ppo" => ppo::Ppo,
    "gradient" => gradient::Gradient,
}

impl SearchSettings {
    /// The strategy `name` with its default settings; `None` if there is no such strategy.
    pub fn named(name: &str) -> Option<SearchSettings> {
        SearchSettings::all().into_iter().find(|settings| settings.name() == name)
    }

    /// Checks the ranges of all settings.
    ///
    /// # Errors
    /// [`Error::Setting`]: the first impossible value, with what is allowed.
    pub fn validate(&self) -> Result<()> {
        self.clone().strategy_mut().settings().iter().try_for_each(Setting::check)
    }
}
