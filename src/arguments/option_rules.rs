//! Options that need or exclude each other, where clap's `requires` and `conflicts_with` do not suffice: a value
//! decides, or the message gives a reason.

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Command, Error};
use ofa_extract::search::{SearchSettings, Strategy};

/// Condition on the options of a command. An option is written as people type it: `--option` holds if it was typed,
/// `--option value` also if the value is the default.
struct Condition {
    command: &'static str,
    option: String,
    rule: Rule,
    /// Explains the rule, for the message.
    reason: &'static str,
}

enum Rule {
    /// At least one of these options must hold as well.
    Needs(Vec<String>),
    /// None of these options may hold.
    Excludes(Vec<String>),
}

/// All conditions of all commands.
fn conditions() -> Vec<Condition> {
    let texts = |options: &[&str]| options.iter().map(|option| option.to_string()).collect::<Vec<_>>();
    let needs = |command, option: &str, others: &[&str], reason| Condition {
        command,
        option: option.into(),
        rule: Rule::Needs(texts(others)),
        reason,
    };
    let excludes = |command, option: &str, others: &[&str], reason| Condition {
        command,
        option: option.into(),
        rule: Rule::Excludes(texts(others)),
        reason,
    };
    let all = SearchSettings::all();
    let options = |holds: fn(&dyn Strategy) -> bool| -> Vec<String> {
        let strategies = all.iter().filter(|settings| holds(settings.strategy()));
        strategies.map(|settings| format!("--strategy {}", settings.name())).collect()
    };
    let fronts = options(|strategy| strategy.draws_front());
    let measuring = ["--score measured", "--verify"];
    let images = "images are for measuring accuracies; the predictor needs none";
    let mut conditions = vec![
        excludes("search", "--verify", &["--score measured"], "its accuracies are measured already"),
        excludes("search", "--pessimism", &["--score measured"], "only predictions have a deviation"),
        excludes("search", "--at-least", &["--score measured"], "it asks the predictor about many thousand subnets"),
        excludes("search", "--at-least", &["--verify"], "the measured accuracies would be of other costs"),
        needs("search", "--data", &measuring, images),
        needs("search", "--skip-bad", &measuring, images),
        needs("search", "--recalibration", &measuring, images),
        needs("search", "--images", &measuring, images),
        excludes(
            "predictor",
            "--active improvement",
            &["--members 1"],
            "the deviation of a prediction takes two members or more",
        ),
        excludes("predictor", "--members", &["--method gaussian-process"], "a Gaussian process is not an ensemble"),
        excludes(
            "train",
            "--resume",
            &[
                "--config",
                "--preset",
                "--space",
                "--validation",
                "--skip-bad",
                "--epochs",
                "--batch",
                "--scale-learning-rate",
                "--sync-batch-norm",
                "--seed",
                "--from",
                "--teacher",
                "--subnet",
            ],
            "a resumed run takes its settings from config.toml; only --data may be given, for images that have moved",
        ),
    ];
    for front in options(|strategy| strategy.needs_costs()) {
        conditions.push(needs("search", &front, &["--against"], "the front is drawn against these costs"));
    }
    conditions.push(Condition {
        command: "search",
        option: "--against".into(),
        rule: Rule::Needs(fronts),
        reason: "other strategies draw no front",
    });
    conditions
}

/// Checks the options of the chosen command.
///
/// # Errors
/// The first broken condition, as wrong usage.
pub fn check(program: &mut Command, matches: &ArgMatches) -> Result<(), Error> {
    let Some((name, given)) = matches.subcommand() else { return Ok(()) };
    let Some(command) = program.find_subcommand_mut(name) else { return Ok(()) };
    for condition in conditions().iter().filter(|condition| condition.command == name) {
        if !is_given(command, given, &condition.option) {
            continue;
        }
        let (kind, message) = match &condition.rule {
            Rule::Needs(others) if !others.iter().any(|other| is_given(command, given, other)) => {
                (ErrorKind::MissingRequiredArgument, format!("needs {}", others.join(" or ")))
            }
            Rule::Excludes(others) => match others.iter().find(|other| is_given(command, given, other)) {
                Some(other) => (ErrorKind::ArgumentConflict, format!("cannot be used with {other}")),
                None => continue,
            },
            Rule::Needs(_) => continue,
        };
        return Err(command.error(kind, format!("{} {message}: {}", condition.option, condition.reason)));
    }
    Ok(())
}

/// Whether `text`, an option or an option with its value, holds for the arguments `given`.
fn is_given(command: &Command, given: &ArgMatches, text: &str) -> bool {
    let (option, value) = text.split_once(' ').map_or((text, None), |(option, value)| (option, Some(value)));
    let mut arguments = command.get_arguments();
    let Some(argument) = arguments.find(|argument| argument.get_long() == option.strip_prefix("--")) else {
        return false;
    };
    let id = argument.get_id().as_str();
    match value {
        None => given.value_source(id) == Some(ValueSource::CommandLine),
        Some(value) => given.get_raw(id).is_some_and(|mut values| values.any(|given| given == value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::cli::Cli;
    use clap::CommandFactory;

    #[test]
    fn every_option_of_every_condition_exists() {
        let program = Cli::command();
        for condition in conditions() {
            let command = program.find_subcommand(condition.command).unwrap();
            let (Rule::Needs(others) | Rule::Excludes(others)) = condition.rule;
            for text in others.iter().chain([&condition.option]) {
                let option = text.split(' ').next().unwrap();
                let known = command.get_arguments().any(|argument| argument.get_long() == option.strip_prefix("--"));
                assert!(known, "{}: {text}", condition.command);
            }
        }
    }
}
