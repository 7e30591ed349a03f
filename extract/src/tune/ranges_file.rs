//! TOML file of the ranges, with a table per hyperparameter. Every fault is one sentence with the line.

use super::ranges::{Hyperparameter, Range, Ranges, check};
use crate::{Error, Result};
use ofa_supernet::SearchSpace;
use ofa_supernet::files::{self, line_of};
use ofa_supernet::quote::quoted;
use ofa_supernet::train::TrainConfig;
use std::collections::BTreeMap;
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Fault of the text: its line (from 1), and what is wrong.
type Fault = (usize, String);

const FORMS: &str = "write low = ... and high = ... (and log = true, steps = 5), or values = [...]";

impl Ranges {
    /// Reads the ranges' TOML file for trials with `config`.
    ///
    /// # Errors
    /// An unreadable file; an unknown hyperparameter, an impossible range, a hyperparameter without effect on `config`,
    /// or a value that training would refuse, each with its line.
    pub fn read(path: &Path, config: &TrainConfig, space: &SearchSpace) -> Result<Self> {
        let fail = |(line, message)| Error::line(path, line, message);
        let ranges = parse(&files::read_text(path)?).map_err(fail)?;
        for (&name, (line, range)) in &ranges {
            check(name, range, config, space).map_err(|message| fail((*line, message)))?;
        }
        Ok(Ranges(ranges.into_iter().map(|(name, (_, range))| (name, range)).collect()))
    }

    /// Parses a correct text.
    #[cfg(test)]
    pub(super) fn of_text(text: &str) -> Self {
        Ranges(parse(text).unwrap().into_iter().map(|(name, (_, range))| (name, range)).collect())
    }
}

/// Reads each hyperparameter's range and the line of its table.
fn parse(text: &str) -> Result<BTreeMap<Hyperparameter, (usize, Range)>, Fault> {
    let line = |start: usize| line_of(text, start);
    let document = DeTable::parse(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        (line(start), format!("not valid TOML: {}", error.message().replace('\n', "; ")))
    })?;
    let mut ranges = BTreeMap::new();
    for (key, value) in document.get_ref().iter() {
        let at = line(key.span().start);
        let Some(name) = Hyperparameter::ALL.into_iter().find(|name| name.to_string() == key.get_ref().as_ref()) else {
            let known: Vec<String> = Hyperparameter::ALL.iter().map(Hyperparameter::to_string).collect();
            return Err((
                at,
                format!("unknown hyperparameter '{}'; known are {}", quoted(key.get_ref()), known.join(", ")),
            ));
        };
        let DeValue::Table(table) = value.get_ref() else {
            return Err((at, format!("{name} is not a table; write [{name}] on a line of its own, then {FORMS}")));
        };
        let range = range(name, table, at, &line)?;
        range.validate(name).map_err(|message| (at, format!("[{name}] {message}")))?;
        ranges.insert(name, (at, range));
    }
    match ranges.is_empty() {
        true => Err((1, "no hyperparameter is given; write a table such as [learning_rate]".into())),
        false => Ok(ranges),
    }
}

fn range(name: Hyperparameter, table: &DeTable, at: usize, line: &dyn Fn(usize) -> usize) -> Result<Range, Fault> {
    let fail = |at: usize, message: String| Err((at, format!("[{name}] {message}")));
    let (mut low, mut high, mut log, mut steps, mut values) = (None, None, None, None, None);
    for (key, value) in table.iter() {
        let at = line(key.span().start);
        match key.get_ref().as_ref() {
            "low" => low = number(value),
            "high" => high = number(value),
            "log" => log = value.get_ref().as_bool(),
            "steps" => steps = number(value).filter(|steps| steps.fract() == 0.0 && *steps >= 0.0),
            "values" => values = value.get_ref().as_array().and_then(|array| array.iter().map(number).collect()),
            other => return fail(at, format!("unknown key '{}'; {FORMS}", quoted(other))),
        }
        let (read, expected) = match key.get_ref().as_ref() {
            "log" => (log.is_some(), "true or false"),
            "steps" => (steps.is_some(), "a whole number"),
            "values" => (values.is_some(), "a list of numbers"),
            "low" => (low.is_some(), "a number"),
            _ => (high.is_some(), "a number"),
        };
        if !read {
            return fail(at, format!("{} is not {expected}", key.get_ref()));
        }
    }
    match (values, low, high) {
        (Some(values), None, None) if log.is_none() && steps.is_none() => Ok(Range::Values { values }),
        (Some(_), ..) => fail(at, format!("values excludes low, high, log and steps; {FORMS}")),
        (None, Some(low), Some(high)) => {
            let (log, steps) = (log.unwrap_or(false), steps.map_or(Range::STEPS, |steps| steps as usize));
            Ok(Range::Interval { low, high, log, steps })
        }
        (None, Some(_), None) => fail(at, "low without high; give both".into()),
        (None, None, Some(_)) => fail(at, "high without low; give both".into()),
        (None, None, None) => fail(at, format!("no range is given; {FORMS}")),
    }
}

fn number(value: &Spanned<DeValue>) -> Option<f64> {
    match value.get_ref() {
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok().map(|n| n as f64),
        DeValue::Float(number) => number.as_str().parse().ok(),
        _ => None,
    }
}
