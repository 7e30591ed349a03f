//! A subnet as the published code writes it.

use crate::space::{BlockChoice, ExpandRatio};
use crate::{Error, Result, SearchSpace, Subnet};
use serde::{Deserialize, Serialize};

/// `{"ks": ..., "e": ..., "d": ..., "r": ...}`: a kernel size and an expand ratio for each block slot (of the largest subnet, so also for
/// blocks that are not there) and a depth for each stage; one number stands for all of them.
///
/// ResNets have no `ks`, but `"w"`, the number (from 0) of a width multiplier for the stem's first convolutions, its last, and each stage. Their
/// `d` counts from the smallest depth of a stage, and begins with one for the stem, whose block is there at the largest number alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// Kernel sizes; absent where the space has but one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ks: Option<Choices<usize>>,
    /// Expand ratios.
    pub e: Choices<ExpandRatio>,
    /// Depths.
    pub d: Choices<usize>,
    /// Numbers of width multipliers; absent where widths are not elastic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub w: Option<Choices<usize>>,
    /// Resolution, as a number or a list of one; where it is told elsewhere, absent.
    #[serde(default, alias = "image_size", skip_serializing_if = "Option::is_none")]
    pub r: Option<Choices<usize>>,
}

/// One number for all, or a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Choices<T> {
    /// For all.
    All(T),
    /// One after the other.
    Each(Vec<T>),
}

impl<T: Copy> Choices<T> {
    fn at(&self, name: &str, index: usize, count: usize) -> Result<T> {
        match self {
            Choices::All(value) => Ok(*value),
            Choices::Each(list) if list.len() == count => Ok(list[index]),
            Choices::Each(list) => {
                Err(Error::Subnet(format!("'{name}' has {} entries, this space needs {count}", list.len())))
            }
        }
    }
}

impl Setting {
    /// The resolution.
    ///
    /// # Errors
    /// There is none, or several.
    pub fn resolution(&self) -> Result<usize> {
        let r = self.r.as_ref().ok_or_else(|| Error::Subnet("'r', the resolution, is missing".into()))?;
        r.at("r", 0, 1)
    }

    /// The subnet of `space` at `resolution`: entries of inactive blocks are dropped.
    ///
    /// # Errors
    /// Lists of another length than the space needs, a choice outside the space.
    pub fn subnet(&self, space: &SearchSpace, resolution: usize) -> Result<Subnet> {
        let bottlenecks = space.family.has_bottlenecks();
        let count = space.stages.len() + usize::from(bottlenecks);
        let mut stages = Vec::with_capacity(count);
        for stage in 0..space.stages.len() {
            let depth = if bottlenecks {
                space.stage_depths(stage)[0].saturating_add(self.d.at("d", stage + 1, count)?)
            } else {
                // A number meant for all stages counts as far as a stage has that many blocks.
                self.d.at("d", stage, count)?
            };
            let block = |index| -> Result<BlockChoice> {
                let (slot, slots) = (space.slot(stage, index), space.slots());
                let kernel = match (&self.ks, &space.kernel_sizes[..]) {
                    (Some(ks), _) => ks.at("ks", slot, slots)?,
                    (None, &[only]) => only,
                    (None, _) => return Err(Error::Subnet("'ks', the kernel sizes, is missing".into())),
                };
                Ok(BlockChoice { kernel, expand: self.e.at("e", slot, slots)? })
            };
            stages.push((0..depth.min(space.max_stage_depth(stage))).map(block).collect::<Result<_>>()?);
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
                subnet.widths.push(*width);
            }
            let skipped = self.d.at("d", 0, count)? + 1 < space.depths.len();
            let stem = if skipped { space.stem.depths.first() } else { space.stem.depths.last() };
            subnet.stem_blocks = stem.copied().unwrap_or(0);
        }
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
        let read = |text: &str| serde_json::from_str::<Setting>(text).unwrap().subnet(&space, 224);
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
    fn inactive_slots_are_dropped() {
        let space = SearchSpace::named("tiny").unwrap();
        let read = |text: &str| serde_json::from_str::<Setting>(text).unwrap().subnet(&space, 24);
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
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
