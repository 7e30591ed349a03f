//! Limits as text (`laptop:latency=12ms`, `any:macs=50M`), and the measures of subnets that they limit.

use crate::{Error, Result};
use ofa_evaluate::cost;
use ofa_evaluate::profile::{DeviceProfile, check_plain};
use ofa_supernet::{SearchSpace, Subnet};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;

/// Measure of a subnet that can be limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Metric {
    /// Predicted time of one run on a device, in milliseconds.
    Latency,
    /// Multiply-accumulates for one image.
    Macs,
    /// Number of weights.
    Parameters,
    /// Peak activation memory for one image, in bytes.
    Memory,
    /// Bytes of the extracted model's tensors in f32, batch-norm statistics included; the file adds a header.
    Size,
    /// Bytes of the extracted model's tensors in f16.
    SizeF16,
    /// Peak activation memory of the int8 model for one image, in bytes.
    MemoryInt8,
    /// Bytes of the int8 model's tensors.
    SizeInt8,
}

/// Names of units and their sizes in the metric's base unit; largest first.
type Units = &'static [(&'static str, f64)];

impl Metric {
    const ALL: [Metric; 8] = [
        Metric::Latency,
        Metric::Macs,
        Metric::Parameters,
        Metric::Memory,
        Metric::Size,
        Metric::SizeF16,
        Metric::MemoryInt8,
        Metric::SizeInt8,
    ];

    /// Name in limits.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Latency => "latency",
            Metric::Macs => "macs",
            Metric::Parameters => "params",
            Metric::Memory => "memory",
            Metric::Size => "size",
            Metric::SizeF16 => "size-f16",
            Metric::MemoryInt8 => "memory-int8",
            Metric::SizeInt8 => "size-int8",
        }
    }

    fn units(self) -> Units {
        const COUNT: Units = &[("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0)];
        match self {
            Metric::Latency => &[("s", 1e3), ("ms", 1.0), ("us", 1e-3)],
            Metric::Macs | Metric::Parameters => COUNT,
            Metric::Memory | Metric::Size | Metric::SizeF16 | Metric::MemoryInt8 | Metric::SizeInt8 => &[
                ("GiB", 1_073_741_824.0),
                ("GB", 1e9),
                ("MiB", 1_048_576.0),
                ("MB", 1e6),
                ("KiB", 1024.0),
                ("KB", 1e3),
                ("B", 1.0),
            ],
        }
    }

    /// Examples of values, for messages.
    fn example(self) -> &'static str {
        match self {
            Metric::Latency => "12ms, 800us or 0.5s",
            Metric::Macs => "50M, 1.2G, 800k or 50000000",
            Metric::Parameters => "3.5M, 800k or 3500000",
            Metric::Memory | Metric::Size | Metric::SizeF16 | Metric::MemoryInt8 | Metric::SizeInt8 => {
                "512KB, 1MB (decimal), 2MiB, 512KiB (binary) or 65536B"
            }
        }
    }

    /// `value` (in the base unit: ms, count, bytes) as text with three or four digits and a decimal unit.
    pub fn show(self, value: f64) -> String {
        self.text(value, f64::round)
    }

    /// `value` as [`show`](Self::show) writes it, but rounded up, so that `value` meets the shown number as a limit.
    pub fn show_above(self, value: f64) -> String {
        let text = self.text(value, f64::ceil);
        // Reading multiplies by the unit, which may round down.
        match parse_value(self, &text) {
            Some((shown, _)) if shown < value => self.text(value * (1.0 + 1e-12), f64::ceil),
            _ => text,
        }
    }

    fn text(self, value: f64, round: fn(f64) -> f64) -> String {
        let mut units = self.units().iter().filter(|(name, _)| !name.ends_with("iB"));
        let (name, size) = units
            .clone()
            .find(|(_, size)| value >= *size)
            .or(units.next_back())
            .expect("every metric has a decimal unit");
        let value = value / size;
        let (digits, scale) = if value >= 1000.0 { (0, 1.0) } else { (2, 100.0) };
        let text = format!("{:.digits$}", round(value * scale) / scale);
        let text = if digits > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
        format!("{text}{name}")
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Limit of a metric on a device.
///
/// Text form: `DEVICE:METRIC=VALUE`. Units: latency `us`, `ms`, `s`; MACs and parameters plain or with `k`, `M`, `G`
/// (thousand, million, thousand million); memory and sizes `B`, decimal `KB`, `MB`, `GB`, binary `KiB`, `MiB`, `GiB`.
/// Case does not matter. DEVICE is the name of a device profile for latency; the other metrics are equal on every
/// device, so that DEVICE is only a label, usually `any`.
#[derive(Debug, Clone, PartialEq)]
pub struct Constraint {
    /// Name of a device profile, or a label such as `any`.
    pub device: String,
    /// The limited metric.
    pub metric: Metric,
    /// Largest allowed value: milliseconds, count or bytes.
    pub limit: f64,
    /// Unit that the limit is written in; `None` for the one with the shortest text.
    pub unit: Option<&'static str>,
}

impl Constraint {
    /// Parses `DEVICE:METRIC`, without a limit, as the cost of a front.
    ///
    /// # Errors
    /// A text of another form, with the reason.
    pub fn unlimited(text: &str) -> Result<Self> {
        let (device, metric) = parse_subject(text, text)?;
        Ok(Constraint { device, metric, limit: f64::INFINITY, unit: None })
    }

    /// Name for files: `laptop-latency-12ms`.
    pub fn file_stem(&self) -> String {
        if self.limit.is_infinite() {
            return format!("{}-{}", self.device, self.metric);
        }
        format!("{}-{}-{}", self.device, self.metric, self.value_text())
    }

    /// The limit in the unit that it was given in, otherwise in the one with the shortest text, among texts that read
    /// back exactly.
    fn value_text(&self) -> String {
        let units = self.metric.units();
        let in_unit = |(name, size): &(&'static str, f64)| {
            let value = self.limit / size;
            // The division's rounding is cut off where the text still reads back.
            let short = format!("{value:.9}").trim_end_matches('0').trim_end_matches('.').to_string();
            let texts = [format!("{short}{name}"), format!("{value}{name}")];
            texts.into_iter().find(|text| parse_value(self.metric, text).map(|value| value.0) == Some(self.limit))
        };
        let given = units.iter().find(|(name, _)| Some(*name) == self.unit).and_then(in_unit);
        let shortest = || units.iter().filter(|unit| self.limit >= unit.1).filter_map(in_unit).min_by_key(String::len);
        let plain = || {
            let (name, _) = units.iter().find(|(_, size)| *size == 1.0).expect("every metric has a base unit");
            format!("{}{name}", self.limit)
        };
        given.or_else(shortest).unwrap_or_else(plain)
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.limit.is_infinite() {
            return write!(f, "{}:{}", self.device, self.metric);
        }
        write!(f, "{}:{}={}", self.device, self.metric, self.value_text())
    }
}

/// Splits a value into number and unit. The micro sign has two code points; `u` replaces both.
fn split_value(text: &str) -> (&str, String) {
    let split = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '_'))).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    (number, unit.trim().replace(['\u{b5}', '\u{3bc}'], "u"))
}

/// The value of a text, and its unit.
fn parse_value(metric: Metric, text: &str) -> Option<(f64, &'static str)> {
    let (number, unit) = split_value(text);
    let (name, size) = metric.units().iter().find(|(name, _)| name.eq_ignore_ascii_case(&unit))?;
    let number: f64 = number.replace('_', "").parse().ok()?;
    let value = number * size;
    (value > 0.0 && value.is_finite()).then_some((value, *name))
}

/// Whether `text` would be a value of `metric` with a unit after it.
fn lacks_unit(metric: Metric, text: &str) -> bool {
    split_value(text).1.is_empty()
        && metric.units().last().is_some_and(|(unit, _)| parse_value(metric, &format!("{text}{unit}")).is_some())
}

/// Device and metric in `subject` (`DEVICE:METRIC`), a part of `text`.
fn parse_subject(text: &str, subject: &str) -> Result<(String, Metric)> {
    let fail = |message: String| Err(Error::Constraint(format!("'{text}': {message}")));
    let Some((device, name)) = subject.split_once(':') else {
        return fail("expected the form DEVICE:METRIC, for example laptop:latency or any:macs".into());
    };
    let (device, name) = (device.trim(), name.trim());
    if let Err(expected) = check_plain(device, "") {
        return fail(format!("'{device}' is not a device name; {expected}"));
    }
    let Some(metric) = Metric::ALL.into_iter().find(|m| m.name().eq_ignore_ascii_case(name)) else {
        let known = Metric::ALL.map(Metric::name).join(", ");
        return fail(format!("'{name}' is not a metric; known are {known}"));
    };
    if metric == Metric::Latency && device == "any" {
        return fail("latency depends on the device; name a device profile instead of 'any'".into());
    }
    Ok((device.to_string(), metric))
}

impl FromStr for Constraint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fail = |message: String| Err(Error::Constraint(format!("'{text}': {message}")));
        let Some((subject, value)) = text.split_once('=').filter(|(subject, _)| subject.contains(':')) else {
            return fail(
                "expected the form DEVICE:METRIC=VALUE, for example laptop:latency=12ms, any:macs=50M, any:params=3.5M, any:memory=512KB or any:size=1MB"
                    .into(),
            );
        };
        let (device, metric) = parse_subject(text, subject)?;
        let value = value.trim();
        let Some((limit, unit)) = parse_value(metric, value) else {
            let fault = match lacks_unit(metric, value) {
                true => "has no unit".to_string(),
                false => format!("is not a value of {metric} above zero"),
            };
            return fail(format!("'{value}' {fault}; expected for example {}", metric.example()));
        };
        // A latency prints as it was given.
        Ok(Constraint { device, metric, limit, unit: (metric == Metric::Latency).then_some(unit) })
    }
}

impl Serialize for Constraint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Constraint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Measures subnets of one space: cost by counting, latency by device profiles.
pub struct Measures {
    space: SearchSpace,
    classes: usize,
    devices: Vec<DeviceProfile>,
}

impl Measures {
    /// Measures of subnets of `space` with `classes` classes; `devices` are the profiles that latency limits may name.
    pub fn new(space: &SearchSpace, classes: usize, devices: Vec<DeviceProfile>) -> Self {
        Measures { space: space.clone(), classes, devices }
    }

    /// The space.
    pub fn space(&self) -> &SearchSpace {
        &self.space
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The device profile `name`.
    ///
    /// # Errors
    /// An unknown name, with the known ones.
    pub fn device(&self, name: &str) -> Result<&DeviceProfile> {
        self.devices.iter().find(|d| d.name == name).ok_or_else(|| {
            let known: Vec<&str> = self.devices.iter().map(|d| d.name.as_str()).collect();
            let known =
                if known.is_empty() { "there is none yet".into() } else { format!("known: {}", known.join(", ")) };
            Error::Constraint(format!(
                "no device profile is named '{name}' ({known}); make one with `ofa profile --run RUN --name {name}`"
            ))
        })
    }

    /// Value of the metric of `constraint` for `subnet`: milliseconds, count or bytes.
    ///
    /// # Errors
    /// A subnet outside the space, an unknown device, or a profile that lacks one of the subnet's blocks.
    pub fn value(&self, constraint: &Constraint, subnet: &Subnet) -> Result<f64> {
        let network = self.space.network(subnet, self.classes)?;
        Ok(match constraint.metric {
            Metric::Latency => self.device(&constraint.device)?.latency_ms(&network)?,
            Metric::Macs => cost::macs(&network) as f64,
            Metric::Parameters => cost::parameters(&network) as f64,
            Metric::Memory => cost::peak_activation_bytes(&network) as f64,
            Metric::Size => 4.0 * cost::stored_numbers(&network) as f64,
            Metric::SizeF16 => 2.0 * cost::stored_numbers(&network) as f64,
            Metric::MemoryInt8 => cost::peak_int8_activation_bytes(&network) as f64,
            Metric::SizeInt8 => cost::int8_bytes(&network) as f64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_and_written() {
        for (text, metric, limit, written) in [
            ("laptop:latency=12ms", Metric::Latency, 12.0, "laptop:latency=12ms"),
            ("laptop:latency=0.8 ms", Metric::Latency, 0.8, "laptop:latency=0.8ms"),
            ("laptop:latency=0.35ms", Metric::Latency, 0.35, "laptop:latency=0.35ms"),
            ("laptop:latency=350us", Metric::Latency, 350.0 * 1e-3, "laptop:latency=350us"),
            ("pi-4:latency=1.5s", Metric::Latency, 1500.0, "pi-4:latency=1.5s"),
            ("any:MACs=50M", Metric::Macs, 5e7, "any:macs=50M"),
            ("pi:latency=800 µs", Metric::Latency, 0.8, "pi:latency=800us"),
            ("pi:latency=800\u{3bc}s", Metric::Latency, 0.8, "pi:latency=800us"),
            ("any:macs=12_345_678", Metric::Macs, 12_345_678.0, "any:macs=12345678"),
            ("any:params=3.5m", Metric::Parameters, 3.5e6, "any:params=3.5M"),
            ("any:memory=512KB", Metric::Memory, 512e3, "any:memory=512KB"),
            ("any:memory=2MiB", Metric::Memory, 2097152.0, "any:memory=2MiB"),
            ("any:memory=1MB", Metric::Memory, 1e6, "any:memory=1MB"),
            ("any:size=1MB", Metric::Size, 1e6, "any:size=1MB"),
            ("any:size-f16=64KiB", Metric::SizeF16, 65536.0, "any:size-f16=64KiB"),
            ("any:size-int8=64KiB", Metric::SizeInt8, 65536.0, "any:size-int8=64KiB"),
            ("any:memory-int8=20KB", Metric::MemoryInt8, 20e3, "any:memory-int8=20KB"),
        ] {
            let constraint: Constraint = text.parse().unwrap();
            assert_eq!((constraint.metric, constraint.limit), (metric, limit), "{text}");
            assert_eq!(constraint.to_string(), written);
            assert_eq!(written.parse::<Constraint>().unwrap(), constraint);
        }
        for limit in [1.0 / 3.0, 0.1 + 0.2, 1e-5, 123456.789] {
            let constraint = Constraint { device: "d".into(), metric: Metric::Latency, limit, unit: None };
            assert_eq!(constraint.to_string().parse::<Constraint>().unwrap().limit, limit, "{constraint}");
        }
        let front = Constraint::unlimited("laptop:latency").unwrap();
        assert_eq!((front.to_string(), front.file_stem()), ("laptop:latency".into(), "laptop-latency".into()));
        assert!(Constraint::unlimited("any:latency").unwrap_err().to_string().contains("name a device profile"));
        assert!(Constraint::unlimited("latency").unwrap_err().to_string().contains("DEVICE:METRIC"));
        assert_eq!("a:latency=12ms".parse::<Constraint>().unwrap().file_stem(), "a-latency-12ms");
    }

    #[test]
    fn bad_limits_are_explained() {
        for (text, reason) in [
            ("12ms", "expected the form DEVICE:METRIC=VALUE"),
            ("laptop:latency", "expected the form"),
            ("../x:macs=5M", "is not a device name"),
            (":macs=5M", "is not a device name"),
            ("any:flops=5M", "known are latency, macs, params, memory, size, size-f16, memory-int8, size-int8"),
            ("any:latency=5ms", "name a device profile"),
            ("laptop:latency=12", "'12' has no unit; expected for example 12ms"),
            ("any:size=60", "'60' has no unit; expected for example 512KB"),
            ("any:memory=0", "'0' is not a value of memory above zero"),
            ("any:size=60M", "'60M' is not a value of size above zero"),
            ("laptop:latency=-1ms", "above zero"),
            ("any:macs=0", "above zero"),
            ("any:macs=5ms", "'5ms' is not a value of macs"),
            ("any:memory=1.5.5KB", "512KiB (binary)"),
            ("any:macs=inf", "above zero"),
        ] {
            let error = text.parse::<Constraint>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn values_are_shown_shortly() {
        for (metric, value, text) in [
            (Metric::Macs, 12_345_678.0, "12.35M"),
            (Metric::Macs, 950.0, "950"),
            (Metric::Latency, 3.4, "3.4ms"),
            (Metric::Latency, 0.0004, "0.4us"),
            (Metric::Memory, 65536.0, "65.54KB"),
        ] {
            assert_eq!(metric.show(value), text);
        }
        assert_eq!(Metric::Macs.show_above(12_341_000.0), "12.35M");
        assert_eq!(Metric::Macs.show_above(12_340_000.0), "12.34M");
        assert_eq!(Metric::Latency.show_above(1234.56), "1.24s");
        // 240 us are 0.24 ms, which is less.
        assert_eq!(Metric::Latency.show_above(0.240_000_000_000_000_02), "240.01us");
        for value in (1..4000).map(|value| f64::from(value) / 4000.0 + 1e-16) {
            let (shown, _) = parse_value(Metric::Latency, &Metric::Latency.show_above(value)).unwrap();
            assert!(shown >= value, "{value}");
        }
    }

    #[test]
    fn counts_come_from_cost_and_unknown_devices_are_named() {
        let space = SearchSpace::named("tiny").unwrap();
        let measures = Measures::new(&space, 10, Vec::new());
        let value = |text: &str, subnet: &Subnet| measures.value(&text.parse().unwrap(), subnet);
        for limit in ["any:macs=1M", "any:params=1M", "any:memory=1MB"] {
            assert!(value(limit, &space.smallest()).unwrap() < value(limit, &space.largest()).unwrap());
        }
        let macs = cost::macs(&space.network(&space.middle(), 10).unwrap());
        assert_eq!(value("any:macs=1M", &space.middle()).unwrap(), macs as f64);
        let error = value("phone:latency=1ms", &space.middle()).unwrap_err().to_string();
        assert!(error.contains("'phone'") && error.contains("ofa profile"), "{error}");
    }
}
