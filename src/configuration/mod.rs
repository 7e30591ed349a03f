//! The configuration file as people read it: every key explained, figures rounded, comments of the input kept.
//!
//! | module | concern |
//! | --- | --- |
//! | `keys` | the tables of all keys |
//! | `comments` | comments of a file, by key |
//! | `page` | docs/configuration.md |

mod comments;
mod keys;
mod page;
#[cfg(test)]
mod tests;

pub use keys::keys;
pub use page::page;

use crate::run_folder::RunConfig;
use anyhow::{Context, Result};
use comments::{keep_comments, names_of};
use ofa_supernet::space::Key;
use std::collections::HashSet;
use toml_edit::{DocumentMut, Item, Table, TableLike, Value};

/// Longest line of a comment.
const WIDTH: usize = 110;

/// A key that is absent by default, with the line that shows it.
const ABSENT: &[(&str, &str, &str)] = &[(
    "data.validation",
    "data.seed",
    "# validation = 2000  # images carved from training (default: 5000, but at most a fifth)",
)];

/// The configuration as a file to edit: comments for every key, and the comments of the file that it was read from,
/// whose text is `input`.
pub fn explained(config: &RunConfig, input: Option<&str>) -> Result<String> {
    let text = toml::to_string(config).context("the configuration has no TOML form")?;
    let mut document: DocumentMut = text.parse().context("the configuration has no TOML form")?;
    round(document.as_table_mut());
    explain(document.as_table_mut(), "", &mut HashSet::new());
    let Some(input) = input else { return Ok(document.to_string()) };
    let input: DocumentMut = input.parse().context("the configuration is not TOML")?;
    // Keys at their defaults are not written, but stay where they have a comment.
    let mut whole = document.clone();
    keep_comments(&mut whole, &input, true);
    let read = |document: &DocumentMut| toml::from_str::<RunConfig>(&document.to_string()).ok();
    if read(&whole).is_some_and(|whole| read(&document) == Some(whole)) {
        return Ok(whole.to_string());
    }
    // Keys that flags took away leave their comments at the end.
    let lost = keep_comments(&mut document, &input, false);
    let end: String = lost.iter().map(|comment| format!("{comment}\n")).collect();
    let trailing = document.trailing().as_str().unwrap_or_default().to_string();
    document.set_trailing(format!("{trailing}{end}"));
    Ok(document.to_string())
}

/// The description of a key. Those of a stage's own augmentation are those of all stages.
fn description(path: &str) -> Option<&'static Key> {
    let path = path.replace("train.stages.augmentation.", "train.augmentation.");
    keys().find(|key| key.path == path)
}

/// Rounds every number of a table to nine digits: sums and products of decimal fractions have more.
fn round(table: &mut dyn TableLike) {
    for (_, item) in table.iter_mut() {
        match item {
            Item::Value(value) => round_value(value),
            Item::Table(table) => round(table),
            Item::ArrayOfTables(tables) => tables.iter_mut().for_each(|table| round(table)),
            Item::None => {}
        }
    }
}

fn round_value(value: &mut Value) {
    match value {
        Value::Float(number) => {
            let rounded = rounded(*number.value());
            let decor = number.decor().clone();
            *value = rounded.into();
            *value.decor_mut() = decor;
        }
        Value::Array(values) => values.iter_mut().for_each(round_value),
        Value::InlineTable(table) => round(table),
        _ => {}
    }
}

/// The number with nine significant digits; one that was stored in 32 bits with as many as these hold.
fn rounded(number: f64) -> f64 {
    let short = number as f32;
    let text = if f64::from(short) == number { format!("{short:e}") } else { format!("{number:.8e}") };
    text.parse().unwrap_or(number)
}

/// Puts the description of each key and table above it, where it stands for the first time.
fn explain(table: &mut Table, path: &str, seen: &mut HashSet<String>) {
    for name in names_of(table) {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let first = seen.insert(path.clone());
        let header = keys::table(&path).map(|what| format!("{}\n", wrapped(what)));
        match table.get_mut(&name) {
            Some(Item::Table(inner)) => {
                if let Some(header) = header.filter(|_| first && !inner.is_implicit()) {
                    put_above(inner, &header);
                }
                explain(inner, &path, seen);
            }
            Some(Item::ArrayOfTables(tables)) => {
                for inner in tables.iter_mut() {
                    if let Some(header) = header.as_ref().filter(|_| !seen.contains(&format!("{path}."))) {
                        put_above(inner, header);
                        seen.insert(format!("{path}."));
                    }
                    explain(inner, &path, seen);
                }
            }
            Some(Item::Value(_)) if first => {
                let missing = ABSENT.iter().filter(|(key, before, _)| *before == path && !seen.contains(*key));
                let examples: String = missing.map(|(_, _, example)| format!("{example}\n")).collect();
                let comment = description(&path).map_or(String::new(), |key| format!("{}\n", comment(key)));
                if let Some(mut key) = table.key_mut(&name) {
                    key.leaf_decor_mut().set_prefix(format!("{examples}{comment}"));
                }
            }
            _ => {}
        }
    }
}

/// Puts a comment between a table's header and the lines before it.
fn put_above(table: &mut Table, comment: &str) {
    let prefix = table.decor().prefix().and_then(|prefix| prefix.as_str()).unwrap_or_default().to_string();
    table.decor_mut().set_prefix(format!("{prefix}{comment}"));
}

fn comment(key: &Key) -> String {
    let default = if key.default.is_empty() { String::new() } else { format!(", default {}", key.default) };
    wrapped(&format!("{} ({}{default}); change: {}", key.what, key.unit, key.change))
}

/// The text as lines of a comment.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::from("#")];
    for word in text.split(' ') {
        if lines.last().is_some_and(|line| line.len() + 1 + word.len() > WIDTH) {
            lines.push("#".into());
        }
        let last = lines.len() - 1;
        lines[last] += &format!(" {word}");
    }
    lines.join("\n")
}
