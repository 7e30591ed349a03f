//! Subnets in the notation of the published code.

use crate::space::{BlockChoice, Blocks, ExpandRatio, Publisher};
use crate::{Error, Result, SearchSpace, Subnet};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::str::FromStr;

/// The published notation, for messages.
const FORM: &str =
    "{\"ks\": [3, 5, ...], \"e\": [3, 4, ...], \"d\": [2, 3, ...], \"r\": 160}, in JSON or as Python prints it";

/// A subnet as `{"ks": ..., "e": ..., "d": ..., "r": ...}`: kernel size and expand ratio per block slot, depth per
/// stage.
///
/// Slots are those of the largest subnet, so they include blocks that are not there, for which `null` is allowed. A
/// single number stands for the whole list.
///
/// ResNets have no `ks`. Their `w` lists indices (from 0) of width multipliers, for the stem's first convolutions, its
/// last, and each stage. Their `d` counts from the smallest depth of a stage, and starts with an entry for the stem,
/// whose block exists only at the largest number.
///
/// The published search also prints `"wid": null`, a width that no published space has.
///
/// AttentiveNAS writes the words out: `kernel_size`, `expand_ratio` and `depth` list an entry for each stage, and
/// `width` the channels of the stem, each stage, and the hidden layer.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Value")]
pub struct Setting {
    /// Kernel sizes; absent if the space has only one.
    pub ks: Option<Choices<usize>>,
    /// Expand ratios.
    pub e: Choices<ExpandRatio>,
    /// Depths.
    pub d: Choices<usize>,
    /// Indices of width multipliers, or channels; absent if widths are not elastic.
    pub w: Option<Choices<usize>>,
    /// Resolution, as a number or a list of one number; absent if it is given elsewhere.
    pub r: Option<Choices<usize>>,
}

/// A value for all entries, or a list.
#[derive(Debug, Clone, PartialEq)]
pub enum Choices<T> {
    /// A single value for all entries.
    All(T),
    /// A value per entry; `None` where nothing is chosen.
    Each(Vec<Option<T>>),
}

impl<T: Copy> Choices<T> {
    fn at(&self, name: &str, index: usize, count: usize) -> Result<T> {
        match self {
            Choices::All(value) => Ok(*value),
            Choices::Each(list) if list.len() == count => list[index].ok_or_else(|| {
                Error::Subnet(format!("entry {} of '{name}' is null, but the subnet uses it", index + 1))
            }),
            Choices::Each(list) => {
                Err(Error::Subnet(format!("'{name}' has {} entries; this space needs {count}", list.len())))
            }
        }
    }

    /// Reads entry `name`, with `read` for a single value; `None` if the entry is absent or null.
    fn of(map: &Map<String, Value>, name: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<Self>, String> {
        let wrong = |value: &Value| format!("'{name}' holds {value}, which is not allowed");
        match map.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(list)) => {
                let entry = |value: &Value| match value {
                    Value::Null => Ok(None),
                    value => read(value).map(Some).ok_or_else(|| wrong(value)),
                };
                Ok(Some(Choices::Each(list.iter().map(entry).collect::<Result<_, _>>()?)))
            }
            Some(value) => Ok(Some(Choices::All(read(value).ok_or_else(|| wrong(value))?))),
        }
    }
}

impl TryFrom<Value> for Setting {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let Value::Object(map) = &value else { return Err(format!("expected {FORM}")) };
        const KEYS: [&str; 7] = ["ks", "e", "d", "w", "wid", "r", "image_size"];
        const WORDS: [(&str, &str); 5] =
            [("kernel_size", "ks"), ("expand_ratio", "e"), ("depth", "d"), ("width", "w"), ("resolution", "r")];
        let mut short = Map::new();
        for (key, value) in map {
            let word = WORDS.iter().find(|(word, _)| word == key).map(|(_, short)| *short);
            let Some(name) = word.or_else(|| KEYS.into_iter().find(|known| known == key)) else {
                return Err(format!("'{key}' is not known; expected {FORM}"));
            };
            if short.insert(name.into(), value.clone()).is_some() {
                return Err(format!("'{name}' is given in two spellings; remove one"));
            }
        }
        let map = &short;
        if let Some(width) = map.get("wid").filter(|width| !width.is_null()) {
            return Err(format!(
                "'wid' is {width}; expected null, since the width of a space is fixed and named by --space"
            ));
        }
        let missing = |name: &str, what: &str| format!("'{name}', the {what}, is missing; expected {FORM}");
        let ratio = |value: &Value| value.as_f64().and_then(|value| ExpandRatio::try_from(value).ok());
        let resolution = match (Choices::of(map, "r", whole)?, Choices::of(map, "image_size", whole)?) {
            (Some(_), Some(_)) => {
                return Err("'r' and 'image_size' mean the same, but both are given; remove one".into());
            }
            (r, size) => r.or(size),
        };
        Ok(Setting {
            ks: Choices::of(map, "ks", whole)?,
            e: Choices::of(map, "e", ratio)?.ok_or_else(|| missing("e", "expand ratios"))?,
            d: Choices::of(map, "d", whole)?.ok_or_else(|| missing("d", "depths"))?,
            w: Choices::of(map, "w", whole)?,
            r: resolution,
        })
    }
}

/// Reads a whole number, which Python may have printed as a floating-point number.
fn whole(value: &Value) -> Option<usize> {
    match value.as_u64() {
        Some(value) => usize::try_from(value).ok(),
        None => value.as_f64().filter(|v| v.fract() == 0.0 && (0.0..1e9).contains(v)).map(|v| v as usize),
    }
}

impl FromStr for Setting {
    type Err = Error;

    /// Reads JSON, or such a dictionary as Python prints it.
    fn from_str(text: &str) -> Result<Self> {
        let fail = |message: String| Error::Subnet(format!("'{text}': {message}"));
        let value: Value = serde_json::from_str(text)
            .or_else(|_| serde_json::from_str(&json_of(text)))
            .map_err(|e| fail(format!("cannot be read from column {} on; expected {FORM}", e.column().max(1))))?;
        Setting::try_from(value).map_err(fail)
    }
}

/// Converts Python's text of a dictionary to JSON: quotes, `None`, `True` and `False`, tuples, and commas before a
/// closing bracket.
fn json_of(text: &str) -> String {
    let mut json = String::with_capacity(text.len());
    let mut rest = text.trim();
    while let Some(c) = rest.chars().next() {
        let word = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let length = match c {
            '\'' | '"' => {
                let inside = &rest[1..];
                let end = inside.find(c).unwrap_or(inside.len());
                json.push('"');
                json += &inside[..end].replace('"', "\\\"");
                json.push('"');
                // Text without a closing quote ends the input.
                (end + 2).min(rest.len())
            }
            _ if word > 0 => {
                json += match &rest[..word] {
                    "None" => "null",
                    "True" => "true",
                    "False" => "false",
                    other => other,
                };
                word
            }
            '(' | '[' | '{' => {
                json.push(if c == '(' { '[' } else { c });
                1
            }
            ')' | ']' | '}' => {
                json.truncate(json.trim_end().trim_end_matches(',').len());
                json.push(if c == ')' { ']' } else { c });
                1
            }
            _ => {
                json.push(c);
                c.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    json
}

impl Setting {
    /// The setting's resolution.
    ///
    /// # Errors
    /// The setting has no resolution, or several.
    pub fn resolution(&self) -> Result<usize> {
        let r = self.r.as_ref().ok_or_else(|| Error::Subnet("'r', the resolution, is missing".into()))?;
        r.at("r", 0, 1)
    }

    /// The subnet of `space` at `resolution`: entries of inactive blocks are dropped.
    ///
    /// # Errors
    /// A list has the wrong length, or a choice is outside the space.
    pub fn subnet(&self, space: &SearchSpace, resolution: usize) -> Result<Subnet> {
        match space.family.rules().publisher {
            Publisher::OnceForAll => self.once_for_all_subnet(space, resolution),
            Publisher::AttentiveNas => self.attentive_subnet(space, resolution),
        }
    }

    /// The subnet of a space of once-for-all, whose entries are those of blocks.
    fn once_for_all_subnet(&self, space: &SearchSpace, resolution: usize) -> Result<Subnet> {
        let bottlenecks = match space.family.rules().blocks {
            Blocks::Bottlenecks => true,
            Blocks::InvertedResiduals => false,
        };
        let count = space.stages.len() + usize::from(bottlenecks);
        let mut stages = Vec::with_capacity(count);
        for stage in 0..space.stages.len() {
            let depth = if bottlenecks {
                space.stage_depths(stage)[0].saturating_add(self.d.at("d", stage + 1, count)?)
            } else {
                self.d.at("d", stage, count)?
            };
            let most = space.max_stage_depth(stage);
            // A single number applies to all stages, and is limited to each stage's largest depth.
            if depth > most && matches!(self.d, Choices::Each(_)) {
                return Err(Error::Subnet(format!(
                    "'d' asks for {depth} blocks in stage {}, which has {most}",
                    stage + 1
                )));
            }
            let block = |index| -> Result<BlockChoice> {
                let (slot, slots) = (space.slot(stage, index), space.slots());
                let kernel = match (&self.ks, space.stage_kernel_sizes(stage)) {
                    (Some(ks), _) => ks.at("ks", slot, slots)?,
                    (None, &[only]) => only,
                    (None, _) => return Err(Error::Subnet("'ks', the kernel sizes, is missing".into())),
                };
                Ok(BlockChoice { kernel, expand: self.e.at("e", slot, slots)? })
            };
            stages.push((0..depth.min(most)).map(block).collect::<Result<_>>()?);
        }
        let mut subnet = Subnet { resolution, widths: Vec::new(), stem_blocks: 0, stages };
        if bottlenecks {
            let w = self.w.as_ref().ok_or_else(|| Error::Subnet("'w', the width multipliers, is missing".into()))?;
            for place in 0..space.width_choices() {
                let number = w.at("w", place, space.width_choices())?;
                let width = space.width_multipliers.get(number).ok_or_else(|| {
                    let known = space.width_multipliers.len();
                    Error::Subnet(format!("'w' holds {number}; the space '{}' has {known} widths, from 0", space.name))
                })?;
                subnet.widths.push((*width).into());
            }
            let skipped = self.d.at("d", 0, count)?.saturating_add(1) < space.depths.len();
            let stem = if skipped { space.stem.depths.first() } else { space.stem.depths.last() };
            subnet.stem_blocks = stem.copied().unwrap_or(0);
        }
        space.check(&subnet)?;
        Ok(subnet)
    }

    /// The subnet of a space of AttentiveNAS, whose entries are those of stages.
    fn attentive_subnet(&self, space: &SearchSpace, resolution: usize) -> Result<Subnet> {
        let count = space.stages.len();
        let missing = |name: &str| Error::Subnet(format!("'{name}' is missing"));
        let widths = self.w.as_ref().ok_or_else(|| missing("width"))?;
        let kernels = self.ks.as_ref().ok_or_else(|| missing("kernel_size"))?;
        let boundary = |place| Ok(widths.at("width", place, space.width_choices())?.into());
        let stage = |stage| {
            let depth = self.d.at("depth", stage, count)?.min(1 + space.max_stage_depth(stage));
            let kernel = kernels.at("kernel_size", stage, count)?;
            Ok(vec![BlockChoice { kernel, expand: self.e.at("expand_ratio", stage, count)? }; depth])
        };
        let widths = (0..space.width_choices()).map(boundary).collect::<Result<_>>()?;
        let stages = (0..count).map(stage).collect::<Result<_>>()?;
        let subnet = Subnet { resolution, widths, stem_blocks: 0, stages };
        space.check(&subnet)?;
        Ok(subnet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resnet_has_numbers_of_widths_and_depths_above_the_least() {
        let space = SearchSpace::named("resnet50d").unwrap();
        let read = |text: &str| text.parse::<Setting>().unwrap().subnet(&space, 224);
        let subnet = read(r#"{"d": [2, 0, 1, 0, 2], "e": 0.25, "w": [0, 1, 2, 2, 1, 0]}"#).unwrap();
        assert!(subnet.to_string().starts_with("r224 w0.65,0.8,1,1,0.8,0.65 s1 d2,3,4,4 e0.25,"), "{subnet}");
        assert_eq!(read(r#"{"d": 1, "e": 0.2, "w": 0}"#).unwrap().stem_blocks, 0);
        assert_eq!(read(r#"{"d": 2, "e": 0.35, "w": 2}"#).unwrap(), space.largest());
        for (text, reason) in [
            (r#"{"d": 2, "e": 0.35}"#, "'w'"),
            (r#"{"d": 2, "e": 0.35, "w": 3}"#, "'w' holds 3"),
            (r#"{"d": [2, 2, 2, 2], "e": 0.35, "w": 2}"#, "'d' has 4 entries"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn an_attentive_setting_has_an_entry_per_stage() {
        let space = SearchSpace::named("attentive-tiny").unwrap();
        let read = |text: &str| {
            let setting = text.parse::<Setting>()?;
            setting.subnet(&space, setting.resolution()?)
        };
        let text = r#"{"resolution": 28, "width": [8, 8, 24, 32, 64], "depth": [1, 2, 1],
            "kernel_size": [5, 3, 5], "expand_ratio": [1, 3, 2]}"#;
        assert_eq!(read(text).unwrap().to_string(), "r28 w8,8,24,32,64 s0 d1,2,1 k5|3,3|5 e1|3,3|2");
        for (old, new, reason) in [
            ("[8, 8, 24, 32, 64]", "[8, 8, 24, 32]", "'width' has 4 entries; this space needs 5"),
            ("[8, 8, 24, 32, 64]", "[8, 8, 20, 32, 64]", "width is 20; allowed are 16, 24"),
            ("[1, 2, 1]", "[1, 1000000000, 1]", "depth of stage 2 is 3; allowed are 1, 2"),
            ("\"resolution\"", "\"ks\": 3, \"resolution\"", "'ks' is given in two spellings"),
            ("\"kernel_size\": [5, 3, 5], ", "", "'kernel_size' is missing"),
            ("\"kernel_size\"", "\"kernel\"", "'kernel' is not known"),
        ] {
            let error = read(&text.replace(old, new)).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn inactive_slots_are_dropped() {
        let space = SearchSpace::named("tiny").unwrap();
        let read = |text: &str| text.parse::<Setting>().unwrap().subnet(&space, 24);
        let subnet = read(r#"{"ks": [3, 5, 5, 3], "e": [2, 3, 4, 2.0], "d": [1, 2]}"#).unwrap();
        assert_eq!(subnet.to_string(), "r24 d1,2 k3|5,3 e2|4,2");
        assert_eq!(read(r#"{"ks": 5, "e": 4, "d": 2}"#).unwrap().to_string(), "r24 d2,2 k5,5|5,5 e4,4|4,4");
        let setting: Setting = serde_json::from_str(r#"{"ks": 5, "e": 4, "d": 2, "r": [32]}"#).unwrap();
        assert_eq!(setting.resolution().unwrap(), 32);
        let setting: Setting = serde_json::from_str(r#"{"ks": 5, "e": 4, "d": 2}"#).unwrap();
        assert!(setting.resolution().unwrap_err().to_string().contains("missing"));
        for (text, reason) in [
            (r#"{"ks": [3, 5], "e": 2, "d": 2}"#, "'ks' has 2 entries"),
            (r#"{"ks": 7, "e": 2, "d": 2}"#, "allowed are 3, 5"),
            (r#"{"ks": 3, "e": 2, "d": [1, 2, 1]}"#, "'d' has 3 entries"),
            (r#"{"ks": 3, "e": 2, "d": [1, 3]}"#, "'d' asks for 3 blocks in stage 2, which has 2"),
            (r#"{"ks": [3, 3, null, 3], "e": 2, "d": [1, 2]}"#, "entry 3 of 'ks' is null"),
            (r#"{"ks": 3, "e": 2, "d": [1, null]}"#, "entry 2 of 'd' is null"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn settings_are_read_as_the_published_search_prints_them() {
        let space = SearchSpace::named("tiny").unwrap();
        for text in [
            r#"{"ks": [3, 5, 5, 3], "e": [2, 3, 4, 2], "d": [1, 2], "r": 24}"#,
            r#"{"wid": null, "ks": [3, null, 5, 3], "e": [2, null, 4, 2], "d": [1, 2], "r": [24]}"#,
            "{'wid': None, 'ks': [3, 5, 5, 3], 'e': [2, 3, 4, 2], 'd': [1, 2], 'r': [24]}",
            "  {'ks': (3, None, 5, 3,), 'e': [2.0, None, 4.0, 2.0], 'd': [1.0, 2], 'image_size': 24, }\n",
        ] {
            let setting: Setting = text.parse().unwrap();
            let subnet = setting.subnet(&space, setting.resolution().unwrap()).unwrap();
            assert_eq!(subnet.to_string(), "r24 d1,2 k3|5,3 e2|4,2", "{text}");
        }
    }

    #[test]
    fn what_is_no_setting_is_refused_in_our_words() {
        for (text, reason) in [
            ("{", "cannot be read from column"),
            ("{'ks': 'x", "cannot be read"),
            ("{'ks': 3, 'e': 2}", "'d', the depths, is missing"),
            ("{'ks': 3, 'd': 2}", "'e', the expand ratios, is missing"),
            ("{'kernel': 3, 'e': 2, 'd': 1}", "'kernel' is not known; expected {\"ks\""),
            ("{'ks': True, 'e': 2, 'd': 1}", "'ks' holds true"),
            ("{'ks': [3, -5], 'e': 2, 'd': 1}", "'ks' holds -5"),
            ("{'ks': 3, 'e': [2, 'a\"b'], 'd': 1}", "'e' holds \"a"),
            ("{'ks': 3, 'e': 1e9, 'd': 1}", "'e' holds"),
            ("{'ks': 3, 'e': 2, 'd': 1.5}", "'d' holds 1.5"),
            ("{'wid': 1, 'ks': 3, 'e': 2, 'd': 1}", "'wid' is 1; expected null"),
            ("{'ks': 3, 'e': 2, 'd': 1, 'r': 32, 'image_size': 32}", "both are given"),
            ("{'ks': [[3]], 'e': 2, 'd': 1}", "'ks' holds [3]"),
        ] {
            let error = text.parse::<Setting>().unwrap_err().to_string();
            assert!(error.starts_with("subnet: '{") && error.contains(reason), "{text}: {error}");
        }
        let long = format!("{{'ks': [{}], 'e': 2, 'd': 1}}", "3, ".repeat(40_000));
        let space = SearchSpace::named("tiny").unwrap();
        let error = long.parse::<Setting>().unwrap().subnet(&space, 24).unwrap_err().to_string();
        assert!(error.contains("'ks' has 40000 entries; this space needs 4"), "{error}");
        assert!(long.replace("'d'", "'x'").parse::<Setting>().unwrap_err().to_string().len() < 400);
    }
}
