//! Import of the latency tables that the authors of once-for-all published for phones.
//!
//! A table is a YAML file for one resolution. Its keys describe layers; below each stand the mean of the measured times
//! in milliseconds and their number. A network's latency is the sum of its layers' means. Tables of two resolutions can
//! hold one layer with different times, so an imported profile keeps the resolution of each time.

use super::{Calibration, DeviceProfile, FORMAT, HeadSpec, LayerSpec, LayerTime, VERSION, layers, measure};
use crate::model::NumberType;
use crate::{Error, Result};
use ofa_supernet::SearchSpace;
use ofa_supernet::files::read_text;
use ofa_supernet::space::{Activation, BlockSpec, InvertedResidualSpec};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Mean in milliseconds, and number of measured times.
type Measured = (f64, usize);

/// Builds a profile from published tables, one file per resolution, for `space` restricted to the resolutions of the
/// tables.
///
/// # Errors
/// A file that cannot be read or is not such a table (with the line), two tables of one resolution, a table of a
/// resolution that the space does not have, or a layer of the space that its table lacks.
pub fn import(space: &SearchSpace, classes: usize, name: &str, files: &[PathBuf]) -> Result<DeviceProfile> {
    let mut tables: HashMap<usize, (&Path, HashMap<String, Measured>)> = HashMap::new();
    for path in files {
        let foreign = |message: String| Error::from(ofa_supernet::Error::format(path, message));
        let table = parse(&read_text(path)?).map_err(foreign)?;
        let resolution = resolution(&table).map_err(foreign)?;
        if !space.resolutions.contains(&resolution) {
            return Err(foreign(format!(
                "the table is for resolution {resolution}, but the space '{}' has {:?}; leave it out",
                space.name, space.resolutions
            )));
        }
        if let Some((other, _)) = tables.insert(resolution, (path, table)) {
            return Err(foreign(format!(
                "the table is for resolution {resolution}, like {}; keep one of them",
                other.display()
            )));
        }
    }
    let mut space = space.clone();
    space.resolutions.retain(|resolution| tables.contains_key(resolution));
    let mut table = Vec::new();
    let mut seen = HashSet::new();
    for network in measure::covering_networks(&space, classes) {
        let network = network?;
        let (path, times) = &tables[&network.resolution];
        if let Some(layer) = layers(&network).find(|layer| keys(layer).is_none()) {
            let message = format!("published tables are of MobileNets and have no '{layer}'");
            return Err(ofa_supernet::Error::format(path, message).into());
        }
        for layer in layers(&network) {
            if !seen.insert((network.resolution, layer.clone())) {
                continue;
            }
            let (mut ms, mut samples) = (0.0, usize::MAX);
            for key in keys(&layer).unwrap_or_default() {
                let &(mean, count) = times.get(&key).ok_or_else(|| {
                    ofa_supernet::Error::format(
                        path,
                        format!(
                            "the table has no entry '{key}', which the space '{}' with {classes} classes needs",
                            space.name
                        ),
                    )
                })?;
                ms += mean;
                samples = samples.min(count);
            }
            table.push(LayerTime { layer, resolution: Some(network.resolution), ms, samples, estimated: false });
        }
    }
    let names: Vec<String> =
        files.iter().filter_map(|f| f.file_name()).map(|name| name.to_string_lossy().into_owned()).collect();
    Ok(DeviceProfile {
        number_type: NumberType::F32,
        format: FORMAT.into(),
        version: VERSION,
        name: name.into(),
        hardware: None,
        engine: None,
        conditions: None,
        space,
        classes,
        batch: 1,
        method: format!("Imported from {}: latency is the sum of the layers' published times.", names.join(", ")),
        table,
        calibration: Calibration { overhead_ms: 0.0, scale: 1.0 },
        check: None,
        index: OnceLock::new(),
    })
}

/// Keys of the entries that add up to a layer's time; `None` for families without published tables.
fn keys(layer: &LayerSpec) -> Option<Vec<String>> {
    let map = |size: usize, channels: usize| format!("{size}x{size}x{channels}");
    Some(match layer {
        LayerSpec::Stem(conv) => vec![format!(
            "Conv-input:{}-output:{}",
            map(conv.input_size, conv.in_channels),
            map(conv.output_size(), conv.out_channels)
        )],
        LayerSpec::Block(BlockSpec::InvertedResidual(block)) => vec![block_key(block)],
        LayerSpec::Block(_) | LayerSpec::MaxPool(_) | LayerSpec::Classifier(_) => return None,
        LayerSpec::Head(HeadSpec { feature, hidden_channels, classes, .. }) => {
            let (size, channels) = (feature.output_size(), feature.out_channels);
            let mut keys = vec![
                format!("Conv_1-input:{}-output:{}", map(size, feature.in_channels), map(size, channels)),
                format!("AvgPool2D-input:{}-output:{}", map(size, channels), map(1, channels)),
            ];
            if let Some(hidden) = hidden_channels {
                keys.push(format!("Conv_2-input:{}-output:{}", map(1, channels), map(1, *hidden)));
            }
            keys.push(format!("Logits-input:{}-output:{classes}", map(1, hidden_channels.unwrap_or(channels))));
            keys
        }
    })
}

fn block_key(block: &InvertedResidualSpec) -> String {
    let (input, output) = (block.input_size, block.output_size());
    format!(
        "expanded_conv-input:{input}x{input}x{}-output:{output}x{output}x{}-expand:{}-kernel:{}-stride:{}-idskip:{}-se:{}-hs:{}",
        block.in_channels,
        block.out_channels,
        block.middle_channels,
        block.kernel,
        block.stride,
        u8::from(block.residual),
        u8::from(block.squeeze_excite.is_some()),
        u8::from(block.activation == Activation::HardSwish)
    )
}

/// The resolution of a table: the input size of its first convolution.
fn resolution(table: &HashMap<String, Measured>) -> Result<usize, String> {
    let mut found = table.keys().filter_map(|key| key.strip_prefix("Conv-input:"));
    let (first, second) = (found.next(), found.next());
    match first.and_then(|shape| shape.split('x').next()?.parse().ok()) {
        Some(resolution) if second.is_none() => Ok(resolution),
        _ => Err("not a latency table of one resolution: expected one entry 'Conv-input:RxRx3-output:...'".into()),
    }
}

/// Parses the subset of YAML that such tables use, and refuses everything else: unindented `key:` lines, each followed
/// by indented `name: number` lines, including `mean`. A general YAML parser would be a large dependency for two kinds
/// of lines.
fn parse(text: &str) -> Result<HashMap<String, Measured>, String> {
    let mut entries: Vec<(String, usize, Option<f64>, usize)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let content = line.trim();
        if content.is_empty() || content.starts_with('#') || content == "---" {
            continue;
        }
        let Some((name, value)) = content.rsplit_once(':') else {
            return Err(format!("line {number}: '{}' is neither 'key:' nor 'name: number'", shorten(content)));
        };
        let value = value.trim();
        if !line.starts_with([' ', '\t']) {
            if !value.is_empty() || name.is_empty() {
                return Err(format!("line {number}: '{}' is not a layer; expected 'key:'", shorten(content)));
            }
            entries.push((name.to_string(), number, None, 1));
            continue;
        }
        let number_value = value.parse::<f64>().ok().filter(|v| v.is_finite());
        let (Some(value), Some(entry)) = (number_value, entries.last_mut()) else {
            return Err(format!("line {number}: '{}' is not a number that belongs to a layer", shorten(content)));
        };
        match name.trim() {
            "mean" if value > 0.0 => entry.2 = Some(value),
            "mean" => return Err(format!("line {number}: a mean of {value} ms; it must be positive")),
            "count" => entry.3 = value.max(0.0) as usize,
            // Other statistics, such as the standard deviation.
            _ => {}
        }
    }
    let mut table = HashMap::with_capacity(entries.len());
    for (name, number, mean, count) in entries {
        let mean = mean.ok_or_else(|| format!("line {number}: the layer '{}' has no mean", shorten(&name)))?;
        if table.insert(name.clone(), (mean, count)).is_some() {
            return Err(format!("line {number}: the layer '{}' is listed twice", shorten(&name)));
        }
    }
    Ok(table)
}

/// Shortens text for a message.
fn shorten(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofa_supernet::space::preset;

    /// A table of `space` at one resolution in which layer number i takes i + 1 ms.
    fn table(space: &SearchSpace, resolution: usize, classes: usize) -> String {
        let mut lines: Vec<String> = Vec::new();
        let space = SearchSpace { resolutions: vec![resolution], ..space.clone() };
        for network in measure::covering_networks(&space, classes).map(Result::unwrap) {
            for key in layers(&network).flat_map(|layer| keys(&layer).unwrap()) {
                if !lines.iter().any(|line| line.starts_with(&format!("{key}:"))) {
                    lines.push(format!("{key}:\n  count: {resolution}\n  mean: {}.0\n  std: 0.5\n", lines.len() + 1));
                }
            }
        }
        lines.concat()
    }

    #[test]
    fn sums_of_the_tables_entries_and_a_file_that_loads() {
        let space = preset("tiny").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let files: Vec<PathBuf> = [16, 32]
            .iter()
            .map(|&resolution| {
                let path = folder.path().join(format!("{resolution}.yaml"));
                // The second table is slower, also for layers of equal shape. The first table starts with a byte order
                // mark.
                let mark = if resolution == 16 { "\u{feff}" } else { "" };
                let text = table(&space, resolution, 4).replace(".0\n", &format!(".{resolution}\n"));
                std::fs::write(&path, format!("{mark}{text}")).unwrap();
                path
            })
            .collect();
        let profile = import(&space, 4, "phone", &files).unwrap();
        assert_eq!(profile.space.resolutions, [16, 32]);
        let network = space.network(&"r32 d1,1 k3|3 e2|2".parse().unwrap(), 4).unwrap();
        let times = parse(&std::fs::read_to_string(&files[1]).unwrap()).unwrap();
        let expected: f64 = layers(&network).flat_map(|layer| keys(&layer).unwrap()).map(|key| times[&key].0).sum();
        let path = folder.path().join("phone.json");
        profile.save(&path).unwrap();
        for profile in [profile, DeviceProfile::load(&path).unwrap()] {
            assert!((profile.latency_ms(&network).unwrap() - expected).abs() < 1e-9);
            assert!(profile.hardware.is_none() && profile.check.is_none());
            let between = space.network(&"r24 d1,1 k3|3 e2|2".parse().unwrap(), 4).unwrap();
            assert!(profile.latency_ms(&between).unwrap_err().to_string().contains("'phone'"));
        }
        for (files, classes, reason) in [
            (vec![files[0].clone(), files[0].clone()], 4, "for resolution 16"),
            (vec![files[0].clone()], 5, "no entry 'Logits-input:1x1x64-output:5'"),
            (vec![folder.path().join("none.yaml")], 4, "none.yaml"),
        ] {
            let error = import(&space, classes, "phone", &files).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        let resnet = SearchSpace { resolutions: vec![16, 32], ..preset("resnet-tiny").unwrap() };
        assert!(import(&resnet, 4, "phone", &files).unwrap_err().to_string().contains("MobileNets"));
        let narrow = SearchSpace { resolutions: vec![16], ..space };
        assert!(import(&narrow, 4, "phone", &files).unwrap_err().to_string().contains("leave it out"));
    }

    #[test]
    fn other_yaml_is_refused_with_the_line() {
        for (text, reason) in [
            ("a:\n  mean: 1\nb: 3\n", "line 3"),
            ("a:\n  mean: [1, 2]\n", "line 2"),
            ("  mean: 1\n", "line 1"),
            ("a:\n  mean: -1\n", "line 2"),
            ("a:\n  mean: .inf\n", "line 2"),
            ("a:\n  count: 3\n", "line 1: the layer 'a' has no mean"),
            ("a:\n  mean: 1\na:\n  mean: 1\n", "line 3: the layer 'a' is listed twice"),
            ("just text\n", "line 1"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
        assert_eq!(parse("# c\n---\na-b:1x1:\n  count: 7\n  mean: 0.5\n").unwrap()["a-b:1x1"], (0.5, 7));
        assert!(resolution(&HashMap::new()).unwrap_err().contains("Conv-input"));
    }
}
