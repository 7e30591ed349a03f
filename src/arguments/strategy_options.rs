//! Options of the search strategies: the command line's view of the table of strategies.

use crate::arguments::numbers;
use anyhow::{Result, anyhow, bail};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command, Id};
use ofa_extract::Error;
use ofa_extract::search::{SearchSettings, SettingValue};
use std::ops::RangeInclusive;

/// Name of the group of all strategy options, for `conflicts_with`.
pub const GROUP: &str = "strategy-options";

/// Parser of a strategy's name; its value is the strategy's default settings.
pub fn strategy() -> impl TypedValueParser<Value = SearchSettings> {
    let all = SearchSettings::all();
    let names = all.iter().map(|each| PossibleValue::new(each.name()).help(each.strategy().description()));
    PossibleValuesParser::new(names).try_map(|name| SearchSettings::named(&name).ok_or("expected a strategy"))
}

/// Settings of strategies that were given on the command line.
#[derive(Clone)]
pub struct StrategyOptions(ArgMatches);

impl StrategyOptions {
    fn is_given(&self, name: &str) -> bool {
        self.0.value_source(name) == Some(ValueSource::CommandLine)
    }

    /// Overwrites `settings` with the values that were given.
    ///
    /// # Errors
    /// A value for a setting that the strategy does not have, or outside the strategy's range.
    pub fn apply(&self, settings: &mut SearchSettings) -> Result<()> {
        let strategy = settings.name();
        let mut names = Vec::new();
        for setting in settings.strategy_mut().settings() {
            names.push(setting.name);
            match setting.value {
                SettingValue::Whole(value, _) => {
                    self.0.get_one(setting.name).into_iter().for_each(|&given| *value = given)
                }
                SettingValue::Number(value, _) | SettingValue::Positive(value, _) => {
                    self.0.get_one(setting.name).into_iter().for_each(|&given| *value = given);
                }
                SettingValue::Flag(value) => *value |= self.0.get_flag(setting.name),
            }
        }
        let foreign = options().into_iter().find(|option| !names.contains(&option.name) && self.is_given(option.name));
        if let Some(foreign) = foreign {
            bail!("--strategy {strategy} has no setting {}", flag(foreign.name));
        }
        settings.validate().map_err(|error| match error {
            Error::Setting { name, value, expected } => {
                anyhow!("--strategy {strategy}: {} {value} is not {expected}", flag(name))
            }
            error => error.into(),
        })
    }
}

impl clap::Args for StrategyOptions {
    fn augment_args(command: Command) -> Command {
        let arguments: Vec<Arg> = options().into_iter().map(StrategyOption::argument).collect();
        let group = ArgGroup::new(GROUP).multiple(true).args(arguments.iter().map(Arg::get_id));
        command.args(arguments).group(group)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }

    fn group_id() -> Option<Id> {
        Some(GROUP.into())
    }
}

impl clap::FromArgMatches for StrategyOptions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(StrategyOptions(matches.clone()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0 = matches.clone();
        Ok(())
    }
}

/// Command-line option of a setting; strategies with a setting of the same name share the option.
struct StrategyOption {
    name: &'static str,
    description: &'static str,
    /// Smallest range that covers the ranges of all users.
    range: Range,
    users: Vec<User>,
}

/// A strategy that has a setting.
struct User {
    strategy: &'static str,
    /// The default value as text; empty for a switch.
    default: String,
}

/// Kind and range of an option's values.
enum Range {
    Whole(RangeInclusive<usize>),
    Number(RangeInclusive<f64>),
    Positive(f64),
    Flag,
}

impl Range {
    /// The smallest range that covers both.
    fn hull(&self, other: &Range) -> Range {
        match (self, other) {
            (Range::Whole(a), Range::Whole(b)) => Range::Whole(*a.start().min(b.start())..=*a.end().max(b.end())),
            (Range::Number(a), Range::Number(b)) => Range::Number(a.start().min(*b.start())..=a.end().max(*b.end())),
            (Range::Positive(a), Range::Positive(b)) => Range::Positive(a.max(*b)),
            (Range::Flag, Range::Flag) => Range::Flag,
            _ => unreachable!("settings of one name have values of one kind"),
        }
    }
}

/// Options of all settings of all strategies, in the order of the table.
fn options() -> Vec<StrategyOption> {
    let mut options: Vec<StrategyOption> = Vec::new();
    for settings in &mut SearchSettings::all() {
        let strategy = settings.name();
        for setting in settings.strategy_mut().settings() {
            let (default, range) = match setting.value {
                SettingValue::Whole(value, range) => (value.to_string(), Range::Whole(range)),
                SettingValue::Number(value, range) => (value.to_string(), Range::Number(range)),
                SettingValue::Positive(value, most) => (value.to_string(), Range::Positive(most)),
                SettingValue::Flag(_) => (String::new(), Range::Flag),
            };
            let user = User { strategy, default };
            match options.iter_mut().find(|option| option.name == setting.name) {
                Some(option) => {
                    option.range = option.range.hull(&range);
                    option.users.push(user);
                }
                None => {
                    let (name, description) = (setting.name, setting.description);
                    options.push(StrategyOption { name, description, range, users: vec![user] });
                }
            }
        }
    }
    options
}

impl StrategyOption {
    /// Help text: the description, the strategies that have the setting, and their defaults.
    fn help(&self) -> String {
        let names: Vec<&str> = self.users.iter().map(|user| user.strategy).collect();
        let first = &self.users[0].default;
        let users = if first.is_empty() {
            names.join(", ")
        } else if self.users.iter().all(|user| user.default == *first) {
            format!("{}; default {first}", names.join(", "))
        } else {
            let each = self.users.iter().map(|user| format!("{}, default {}", user.strategy, user.default));
            each.collect::<Vec<_>>().join("; ")
        };
        format!("{} ({users})", self.description)
    }

    fn argument(self) -> Arg {
        let help = self.help();
        let argument = Arg::new(self.name).long(self.name.replace('_', "-")).help(help);
        let argument = argument.value_name(self.name.to_uppercase());
        match self.range {
            Range::Whole(range) => argument.value_parser(move |text: &str| numbers::whole(text, range.clone())),
            Range::Number(range) => argument.value_parser(move |text: &str| numbers::within(text, range.clone())),
            Range::Positive(most) => argument.value_parser(move |text: &str| numbers::above_zero(text, most)),
            Range::Flag => argument.value_name(None).action(ArgAction::SetTrue),
        }
    }
}

/// Command-line spelling of the setting `name`.
fn flag(name: &str) -> String {
    format!("--{}", name.replace('_', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args as _, FromArgMatches as _};

    fn read(arguments: &[&str]) -> Result<StrategyOptions, clap::Error> {
        let command = StrategyOptions::augment_args(Command::new("search").no_binary_name(true));
        StrategyOptions::from_arg_matches(&command.try_get_matches_from(arguments)?)
    }

    #[test]
    fn every_setting_has_an_option_and_options_change_the_settings_they_name() {
        assert!(options().len() > 10);
        for mut settings in SearchSettings::all() {
            let defaults = settings.clone();
            read(&[]).unwrap().apply(&mut settings).unwrap();
            assert_eq!(settings, defaults);
        }
        let given = read(&["--population", "7", "--parent-ratio", "0.5"]).unwrap();
        let mut settings = SearchSettings::named("evolution").unwrap();
        given.apply(&mut settings).unwrap();
        let written = serde_json::to_value(&settings).unwrap();
        assert_eq!((&written["population"], &written["parent_ratio"]), (&7.into(), &0.5.into()));
        let mut settings = SearchSettings::named("ppo").unwrap();
        read(&["--hard"]).unwrap().apply(&mut settings).unwrap();
        assert_eq!(serde_json::to_value(&settings).unwrap()["hard"], true);
    }

    #[test]
    fn an_option_takes_what_one_of_its_strategies_takes_and_the_chosen_one_decides() {
        let fewest = read(&["--batch", "1"]).unwrap();
        let mut settings = SearchSettings::named("bayes").unwrap();
        fewest.apply(&mut settings).unwrap();
        let mut settings = SearchSettings::named("ppo").unwrap();
        let error = fewest.apply(&mut settings).unwrap_err().to_string();
        assert_eq!(error, "--strategy ppo: --batch 1 is not between 2 and 10000");
        let mut settings = SearchSettings::named("grid").unwrap();
        let error = fewest.apply(&mut settings).unwrap_err().to_string();
        assert_eq!(error, "--strategy grid has no setting --batch");
        assert!(read(&["--batch", "0"]).is_err());
    }

    #[test]
    fn help_names_strategies_and_defaults() {
        let help = |name: &str| options().iter().find(|option| option.name == name).unwrap().help();
        assert!(help("population").ends_with("(evolution, pareto; default 100)"));
        assert!(help("batch").ends_with("(bayes, default 5; ppo, default 50; gradient, default 50)"));
        assert!(help("hard").ends_with("(ppo)"));
    }
}
