//! Accuracies that were measured elsewhere, as JSON lines or CSV: a subnet as our text or in the published notation
//! (as DyNAS-T and others write it), and its accuracy.

use super::Sample;
use crate::{Error, Result};
use ofa_supernet::files::{csv_fields, read_text};
use ofa_supernet::import::Setting;
use ofa_supernet::{SearchSpace, Subnet};
use serde_json::Value;
use std::path::Path;

/// Names of the field of a subnet, and of an accuracy, without case and signs.
const SUBNET: [&str; 6] = ["subnet", "subnetwork", "config", "configuration", "arch", "setting"];
const ACCURACY: [&str; 7] = ["accuracy", "acc", "top1", "accuracytop1", "top1acc", "top1accuracy", "acctop1"];

/// A subnet of a file, with the number of its line and its other fields.
struct Row {
    line: usize,
    subnet: Subnet,
    fields: Vec<(String, Value)>,
}

/// Reads subnets with accuracies from `path`: CSV with a header if its name ends so, otherwise a JSON object per line.
/// If an accuracy exceeds 1 or has the sign, all are percentages.
///
/// # Errors
/// An unreadable file, or the first bad line, with what is expected.
pub fn import_accuracies(path: &Path, space: &SearchSpace) -> Result<Vec<Sample>> {
    let (mut samples, mut are_percentages) = (Vec::new(), false);
    for Row { line, subnet, fields } in rows(path, space)? {
        let found = fields.into_iter().find(|(name, _)| ACCURACY.contains(&plain(name).as_str()));
        let accuracy = found.and_then(|(_, value)| match value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => match text.trim().strip_suffix('%') {
                Some(percentage) => {
                    are_percentages = true;
                    percentage.trim_end().parse().ok()
                }
                None => text.trim().parse().ok(),
            },
            _ => None,
        });
        let Some(accuracy) = accuracy.filter(|accuracy| (0.0..=100.0).contains(accuracy)) else {
            return Err(Error::line(
                path,
                line,
                "has no accuracy; expected a field 'accuracy' from 0 to 1 or in percent",
            ));
        };
        are_percentages |= accuracy > 1.0;
        samples.push(Sample::new(subnet, accuracy));
    }
    if are_percentages {
        samples.iter_mut().for_each(|sample| sample.accuracy /= 100.0);
    }
    Ok(samples)
}

/// Reads subnets from `path`, in the forms of [`import_accuracies`], with or without accuracies.
///
/// # Errors
/// As for [`import_accuracies`].
pub fn read_subnets(path: &Path, space: &SearchSpace) -> Result<Vec<Subnet>> {
    Ok(rows(path, space)?.into_iter().map(|row| row.subnet).collect())
}

fn rows(path: &Path, space: &SearchSpace) -> Result<Vec<Row>> {
    let text = read_text(path)?;
    let text = text.trim_start_matches('\u{feff}');
    let is_csv = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
    let records = if is_csv { csv(path, text)? } else { json_lines(path, text)? };
    let row = |(line, fields): (usize, Vec<(String, Value)>)| {
        let subnet = subnet(&fields, space).map_err(|message| Error::line(path, line, message))?;
        Ok(Row { line, subnet, fields })
    };
    let rows: Vec<Row> = records.into_iter().map(row).collect::<Result<_>>()?;
    if rows.is_empty() {
        return Err(Error::format(path, "holds no subnet; expected a line for each"));
    }
    Ok(rows)
}

type Record = (usize, Vec<(String, Value)>);

fn json_lines(path: &Path, text: &str) -> Result<Vec<Record>> {
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    let record = |(line, number)| match serde_json::from_str(line) {
        Ok(Value::Object(fields)) => Ok((number, fields.into_iter().collect())),
        Ok(Value::String(text)) => Ok((number, vec![("subnet".to_string(), Value::String(text))])),
        Ok(_) => Err(Error::line(path, number, "is not a JSON object")),
        Err(error) => Err(Error::line(path, number, format!("{error}; expected a JSON object per line"))),
    };
    lines.map(record).collect()
}

fn csv(path: &Path, text: &str) -> Result<Vec<Record>> {
    let mut lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    let Some((header, _)) = lines.next() else { return Ok(Vec::new()) };
    let names = csv_fields(header);
    let record = |(line, number): (&str, usize)| {
        let values = csv_fields(line);
        if values.len() != names.len() {
            let (found, expected) = (values.len(), names.len());
            return Err(Error::line(path, number, format!("has {found} columns, the header {expected}")));
        }
        Ok((number, names.iter().cloned().zip(values.into_iter().map(Value::String)).collect()))
    };
    lines.map(record).collect()
}

/// A name without case, spaces and signs.
fn plain(name: &str) -> String {
    name.chars().filter(|c| c.is_ascii_alphanumeric()).collect::<String>().to_ascii_lowercase()
}

/// The subnet of a record: a field with it, or the published notation as the record's own fields.
fn subnet(fields: &[(String, Value)], space: &SearchSpace) -> Result<Subnet, String> {
    let named = fields.iter().find(|(name, _)| SUBNET.contains(&plain(name).as_str())).map(|(_, value)| value);
    let text = match named {
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
        None => Value::Object(
            fields.iter().filter(|(name, _)| !ACCURACY.contains(&plain(name).as_str())).cloned().collect(),
        )
        .to_string(),
    };
    let expected =
        r#"expected a field 'subnet' with "r32 d2,... k... e..." or {"ks": ..., "e": ..., "d": ..., "r": ...}"#;
    let subnet = if text.trim_start().starts_with('{') {
        let setting: Setting = text.parse().map_err(|error| format!("{error}; {expected}"))?;
        let resolution = match (&setting.r, &space.resolutions[..]) {
            (None, [only]) => *only,
            _ => setting.resolution().map_err(|error| error.to_string())?,
        };
        setting.subnet(space, resolution).map_err(|error| error.to_string())?
    } else {
        text.parse().map_err(|error| format!("{error}; {expected}"))?
    };
    space.check(&subnet).map_err(|error| error.to_string())?;
    Ok(subnet)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn import(name: &str, text: &str) -> Result<Vec<Sample>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        import_accuracies(&path, &SearchSpace::named("tiny").unwrap())
    }

    #[test]
    fn several_notations_give_one_subnet() {
        let expected = Sample::new("r24 d1,2 k5|3,5 e2|4,3".parse().unwrap(), 0.745);
        let python = "{'wid': None, 'ks': [5, 3, 3, 5], 'e': [2, 2, 4, 3], 'd': [1, 2], 'r': [24]}";
        for (name, text) in [
            ("a.jsonl", r#"{"subnet": "r24 d1,2 k5|3,5 e2|4,3", "accuracy": 0.745, "macs": 12}"#.to_string()),
            ("a.jsonl", r#"{"ks": [5, 3, 3, 5], "e": [2, 2, 4, 3], "d": [1, 2], "r": 24, "acc": 74.5}"#.into()),
            ("a.csv", "subnet,accuracy\n\"r24 d1,2 k5|3,5 e2|4,3\",74.5 %\n".into()),
            ("a.csv", format!("Sub-network,Date,Top-1 Acc (%)\n\"{python}\",2021-12-20 22:48:19,74.5\n\n")),
        ] {
            let found = import(name, &text).unwrap();
            assert_eq!(found[0].subnet, expected.subnet, "{text}");
            assert!((found[0].accuracy - expected.accuracy).abs() < 1e-12, "{text}");
        }
    }

    #[test]
    fn the_sign_of_percent_is_read() {
        let found = import("a.csv", "subnet,accuracy\n\"r24 d1,2 k5|3,5 e2|4,3\",0.5%\n").unwrap();
        assert!((found[0].accuracy - 0.005).abs() < 1e-12, "{found:?}");
    }

    #[test]
    fn bad_lines_are_named() {
        for (name, text, reason) in [
            ("a.jsonl", "{\"subnet\": \"r24 d1,2 k5|3,5 e2|4,3\"}", ":1: has no accuracy"),
            ("a.jsonl", "\n[1]", ":2: is not a JSON object"),
            ("a.jsonl", "{\"subnet\": \"r20 d1,1 k3|3 e2|2\", \"accuracy\": 0.5}", "allowed are 16, 24, 32"),
            ("a.jsonl", "{\"subnet\": \"x\", \"accuracy\": 0.5}", "expected a field 'subnet'"),
            ("a.csv", "subnet,accuracy\nr24,0.5,1", ":2: has 3 columns, the header 2"),
            ("a.csv", "subnet,accuracy\n", "holds no subnet"),
            ("a.jsonl", "{\"subnet\": \"r24 d1,2 k5|3,5 e2|4,3\", \"accuracy\": 101}", "has no accuracy"),
        ] {
            let error = import(name, text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
