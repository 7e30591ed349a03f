//! One subnet, and its one-line text form.
//!
//! `r160 d2,3,... k3,5|7,3,3|... e4,6|3,3,4|...`: resolution, depth a stage, then kernel and expand ratio of every active
//! block, stages separated by `|`. Inactive blocks have no place in it, so two equal networks have one [`Subnet`] and one text.

use super::ExpandRatio;
use crate::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;

/// Kernel size and expand ratio of one active block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockChoice {
    /// Depthwise kernel size.
    pub kernel: usize,
    /// Middle channels over input channels.
    pub expand: ExpandRatio,
}

/// One choice of every elastic dimension. Only active blocks are stored, so the value is canonical.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subnet {
    /// Input resolution in pixels.
    pub resolution: usize,
    /// The active blocks of each stage; their number is the stage's depth.
    pub stages: Vec<Vec<BlockChoice>>,
}

impl Subnet {
    /// All active blocks in order.
    pub fn blocks(&self) -> impl Iterator<Item = &BlockChoice> {
        self.stages.iter().flatten()
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let depths: Vec<String> = self.stages.iter().map(|s| s.len().to_string()).collect();
        let column = |text: fn(&BlockChoice) -> String| -> String {
            let stages: Vec<String> =
                self.stages.iter().map(|s| s.iter().map(text).collect::<Vec<_>>().join(",")).collect();
            stages.join("|")
        };
        write!(
            f,
            "r{} d{} k{} e{}",
            self.resolution,
            depths.join(","),
            column(|b| b.kernel.to_string()),
            column(|b| b.expand.to_string())
        )
    }
}

impl FromStr for Subnet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fail = |message: String| {
            Err(Error::Subnet(format!(
                "'{text}': {message}; expected the form 'r160 d2,3 k3,5|7,3,3 e4,6|3,3,4' (resolution, depths, kernels, expand ratios)"
            )))
        };
        let words: Vec<&str> = text.split_whitespace().collect();
        let [resolution, depths, kernels, expands] = words[..] else {
            return fail(format!("{} words instead of 4", words.len()));
        };
        let Some(resolution) = resolution.strip_prefix('r').and_then(|r| r.parse().ok()) else {
            return fail(format!("'{resolution}' is no resolution"));
        };
        let Some(depths) = depths.strip_prefix('d').and_then(numbers::<usize>) else {
            return fail(format!("'{depths}' is no list of depths"));
        };
        let Some(kernels) = kernels.strip_prefix('k').and_then(table::<usize>) else {
            return fail(format!("'{kernels}' is no list of kernels"));
        };
        let Some(expands) = expands.strip_prefix('e').and_then(table::<f64>) else {
            return fail(format!("'{expands}' is no list of expand ratios"));
        };
        if kernels.len() != depths.len() || expands.len() != depths.len() {
            return fail(format!(
                "{} depths, but kernels for {} stages and expand ratios for {}",
                depths.len(),
                kernels.len(),
                expands.len()
            ));
        }
        let mut stages = Vec::with_capacity(depths.len());
        for (stage, ((&depth, kernels), expands)) in depths.iter().zip(&kernels).zip(&expands).enumerate() {
            if depth == 0 || kernels.len() != depth || expands.len() != depth {
                return fail(format!(
                    "stage {} has depth {depth}, but {} kernels and {} expand ratios",
                    stage + 1,
                    kernels.len(),
                    expands.len()
                ));
            }
            let mut blocks = Vec::with_capacity(depth);
            for (&kernel, &expand) in kernels.iter().zip(expands) {
                let expand = match ExpandRatio::try_from(expand) {
                    Ok(expand) => expand,
                    Err(message) => return fail(message),
                };
                blocks.push(BlockChoice { kernel, expand });
            }
            stages.push(blocks);
        }
        Ok(Subnet { resolution, stages })
    }
}

fn numbers<T: FromStr>(text: &str) -> Option<Vec<T>> {
    text.split(',').map(|part| part.parse().ok()).collect()
}

fn table<T: FromStr>(text: &str) -> Option<Vec<Vec<T>>> {
    text.split('|').map(numbers).collect()
}

impl Serialize for Subnet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subnet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{PRESETS, preset};
    use super::*;
    use crate::seed::{Purpose, generator};

    #[test]
    fn text_form_round_trips() {
        for name in PRESETS {
            let space = preset(name).unwrap();
            for position in 0..100 {
                let subnet = space.sample(&mut generator(5, Purpose::Sampling, &[position]));
                assert_eq!(subnet.to_string().parse::<Subnet>().unwrap(), subnet);
                let json = serde_json::to_string(&subnet).unwrap();
                assert_eq!(serde_json::from_str::<Subnet>(&json).unwrap(), subnet);
            }
        }
    }

    #[test]
    fn broken_texts_are_refused_with_the_reason() {
        for (text, reason) in [
            ("", "0 words"),
            ("r32 d1 k3", "3 words"),
            ("x32 d1 k3 e3", "no resolution"),
            ("r32 d0 k e", "no list of kernels"),
            ("r32 d2 k3 e3", "stage 1 has depth 2"),
            ("r32 d1,1 k3 e3|4", "kernels for 1 stages"),
            ("r32 d1 k3 e-1", "not between"),
            ("r32 d1 k3 enan", "not between"),
        ] {
            let error = text.parse::<Subnet>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
