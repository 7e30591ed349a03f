//! A subnet as the published code writes it.

use crate::space::{BlockChoice, ExpandRatio};
use crate::{Error, Result, SearchSpace, Subnet};
use serde::{Deserialize, Serialize};

/// `{"ks": ..., "e": ..., "d": ..., "r": ...}`: a kernel size and an expand ratio for each block slot (of the largest subnet, so also for
/// blocks that are not there) and a depth for each stage; one number stands for all of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// Kernel sizes.
    pub ks: Choices<usize>,
    /// Expand ratios.
    pub e: Choices<ExpandRatio>,
    /// Depths.
    pub d: Choices<usize>,
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
        let count = space.stages.len();
        let mut stages = Vec::with_capacity(count);
        for stage in 0..count {
            // A number meant for all stages counts as far as a stage has that many blocks.
            let depth = self.d.at("d", stage, count)?.min(space.max_stage_depth(stage));
            let block = |index| -> Result<BlockChoice> {
                let (slot, slots) = (space.slot(stage, index), space.slots());
                Ok(BlockChoice { kernel: self.ks.at("ks", slot, slots)?, expand: self.e.at("e", slot, slots)? })
            };
            stages.push((0..depth).map(block).collect::<Result<_>>()?);
        }
        let subnet = Subnet { resolution, stages };
        space.check(&subnet)?;
        Ok(subnet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
