//! Import of own measurements: a CSV file with a row for each layer.

use super::{Calibration, DeviceProfile, FORMAT, LayerSpec, LayerTime, VERSION, layers, measure};
use crate::Result;
use crate::model::NumberType;
use ofa_supernet::files::{csv_field, csv_fields, read_text};
use ofa_supernet::{Error, SearchSpace, quote};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A row of the file.
struct Row {
    layer: String,
    ms: Option<f64>,
    /// Number of measured times.
    samples: Option<usize>,
    /// Resolution of the network that the time holds in; in all networks if there is none.
    resolution: Option<usize>,
}

/// The text of a CSV file with a row for each distinct layer of `space`, whose times are to be filled in.
///
/// # Errors
/// The space is invalid.
pub fn layers_csv(space: &SearchSpace, classes: usize) -> Result<String> {
    let mut text = String::from("layer,ms\n");
    for layer in distinct(space, classes)? {
        text += &format!("{},\n", csv_field(&layer.to_string()));
    }
    Ok(text)
}

/// Builds a profile from CSV files with the columns `layer` and `ms`, and `samples` and `resolution` where known. The
/// texts of layers are those of [`layers_csv`].
///
/// # Errors
/// A file that cannot be read, a row that is no layer of the space or has no positive time (with the line), two rows of
/// one layer, or a layer of the space without a row.
pub fn import_csv(space: &SearchSpace, classes: usize, name: &str, files: &[PathBuf]) -> Result<DeviceProfile> {
    let known: HashMap<String, LayerSpec> =
        distinct(space, classes)?.into_iter().map(|layer| (layer.to_string(), layer)).collect();
    let mut table: Vec<LayerTime> = Vec::new();
    let mut seen = HashSet::new();
    for path in files {
        for (line, row) in rows(path)? {
            let fault = |message: String| Error::line(path, line, message);
            let Some(layer) = known.get(row.layer.trim()) else {
                let message = format!(
                    "{} is no layer of the space '{}' with {classes} classes; `ofa profile --layers` prints all of them",
                    quote::quoted(&row.layer),
                    space.name
                );
                return Err(fault(message).into());
            };
            let Some(ms) = row.ms.filter(|ms| ms.is_finite() && *ms > 0.0) else {
                let found = row.ms.map_or("missing".into(), |ms| ms.to_string());
                return Err(fault(format!("the time of '{layer}' is {found}; expected positive milliseconds")).into());
            };
            if let Some(resolution) = row.resolution.filter(|resolution| !space.resolutions.contains(resolution)) {
                let known = &space.resolutions;
                return Err(fault(format!("resolution {resolution} is not in the space, which has {known:?}")).into());
            }
            if !seen.insert((row.resolution, layer)) {
                return Err(fault(format!("'{layer}' has a second row; keep one of them")).into());
            }
            let samples = row.samples.unwrap_or(1);
            table.push(LayerTime { layer: layer.clone(), resolution: row.resolution, ms, samples, estimated: false });
        }
    }
    let names: Vec<String> =
        files.iter().filter_map(|file| file.file_name()).map(|name| name.to_string_lossy().into_owned()).collect();
    let profile = DeviceProfile {
        format: FORMAT.into(),
        version: VERSION,
        name: name.into(),
        hardware: None,
        engine: None,
        conditions: None,
        space: space.clone(),
        classes,
        batch: 1,
        number_type: NumberType::F32,
        method: format!("Imported from {}: latency is the sum of the layers' times.", names.join(", ")),
        table,
        calibration: Calibration { overhead_ms: 0.0, scale: 1.0 },
        check: None,
        index: OnceLock::new(),
    };
    profile.validate().map_err(|message| Error::format(&files[0], message))?;
    Ok(profile)
}

/// The distinct layers of all subnets, in the order of their first occurrence.
fn distinct(space: &SearchSpace, classes: usize) -> Result<Vec<LayerSpec>> {
    let (mut found, mut seen) = (Vec::new(), HashSet::new());
    for network in measure::covering_networks(space, classes) {
        found.extend(layers(&network?).filter(|layer| seen.insert(layer.clone())));
    }
    Ok(found)
}

/// The rows of a file with their lines, from 1. Empty lines and lines that begin with `#` are left out.
fn rows(path: &Path) -> Result<Vec<(usize, Row)>> {
    let text = read_text(path)?;
    let mut lines = text.lines().zip(1..).map(|(line, number)| (number, line.trim()));
    let mut lines = lines.by_ref().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let header = lines.next().map(|(_, line)| csv_fields(line)).unwrap_or_default();
    let column = |name: &str| header.iter().position(|column| column == name);
    let (Some(layer), Some(ms)) = (column("layer"), column("ms")) else {
        let message = "the first line must name the columns layer and ms (and samples and resolution where known)";
        return Err(Error::line(path, 1, message).into());
    };
    let (samples, resolution) = (column("samples"), column("resolution"));
    let row = |(number, line)| {
        let fields = csv_fields(line);
        let fault = |message: String| Error::line(path, number, message);
        if fields.len() != header.len() {
            return Err(fault(format!("{} fields where the first line names {}", fields.len(), header.len())));
        }
        let number_in = |column: usize| match fields[column].as_str() {
            "" => Ok(None),
            text => text
                .parse::<f64>()
                .map(Some)
                .map_err(|_| fault(format!("'{}' in the column {} is no number", quote::quoted(text), header[column]))),
        };
        let whole = |column: Option<usize>| {
            let number = column.map_or(Ok(None), number_in)?;
            match number {
                Some(value) if value.fract() != 0.0 || !(1.0..1e9).contains(&value) => {
                    Err(fault(format!("{value} is no positive whole number")))
                }
                value => Ok(value.map(|value| value as usize)),
            }
        };
        let row = Row {
            layer: fields[layer].clone(),
            ms: number_in(ms)?,
            samples: whole(samples)?,
            resolution: whole(resolution)?,
        };
        Ok((number, row))
    };
    Ok(lines.map(row).collect::<ofa_supernet::Result<_>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofa_supernet::space::{PRESETS, preset};

    #[test]
    fn every_layer_of_every_preset_has_a_text_of_its_own() {
        for name in PRESETS {
            let layers = distinct(&preset(name).unwrap(), 10).unwrap();
            let texts: HashSet<String> = layers.iter().map(LayerSpec::to_string).collect();
            assert_eq!(texts.len(), layers.len(), "{name}");
        }
    }

    #[test]
    fn a_filled_in_table_is_a_profile() {
        let folder = tempfile::tempdir().unwrap();
        let space = preset("tiny").unwrap();
        let template = layers_csv(&space, 4).unwrap();
        let path = folder.path().join("table.csv");
        let import = |text: &str| {
            std::fs::write(&path, text).unwrap();
            import_csv(&space, 4, "board", std::slice::from_ref(&path))
        };
        let filled = template.replace(",\n", ",0.5\n");
        let profile = import(&filled).unwrap();
        let network = space.network(&space.largest(), 4).unwrap();
        let count = layers(&network).count() as f64;
        assert!((profile.latency_ms(&network).unwrap() - 0.5 * count).abs() < 1e-9);
        let second = filled.lines().nth(1).unwrap();
        for (text, part) in [
            (template.clone(), "is missing; expected positive milliseconds"),
            (filled.replacen("0.5", "-1", 1), "is -1; expected positive"),
            (filled.replacen("0.5", "fast", 1), "table.csv:2"),
            (format!("{filled}{second}\n"), "has a second row"),
            (filled.replacen("0.5", "0.5,7", 1), "3 fields where the first line names 2"),
            (format!("{filled}block 1-2-3,1\n"), "is no layer of the space 'tiny'"),
            (filled.lines().take(3).map(|line| format!("{line}\n")).collect(), "has no time for"),
            ("name,time\n".into(), "must name the columns layer and ms"),
            (String::new(), "must name the columns"),
        ] {
            let message = import(&text).unwrap_err().to_string();
            assert!(message.contains(part) && message.contains("table.csv"), "{message}");
        }
    }
}
