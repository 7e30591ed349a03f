//! One subnet, and its one-line text form.
//!
//! `r160 d2,3,... k3,5|7,3,3|... e4,6|3,3,4|...`: resolution, depth a stage, then kernel and expand ratio of every active
//! block, stages separated by `|`. Inactive blocks have no place in it, so two equal networks have one [`Subnet`] and one text.
//!
//! With elastic widths (ResNets) it is `r160 w0.65,1,... s1 d2,3,... e0.2,0.35|...`: after the resolution the width multipliers (stem's
//! first convolutions, its last, each stage) and the number of residual convolutions in the stem; kernels are left out where all are 3.

use super::{ExpandRatio, Ratio};
use crate::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;

/// Kernel size and expand ratio of one active block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockChoice {
    /// Depthwise kernel size; of a bottleneck that of its middle convolution.
    pub kernel: usize,
    /// Middle channels over input channels (inverted residuals) or output channels (bottlenecks).
    pub expand: ExpandRatio,
}

/// A choice of every elastic dimension. Only active blocks are stored, so the value is canonical.
///
/// A subnet has a text form of one line: resolution, depth of each stage, then kernel size and expand ratio of each block,
/// with `|` between stages.
///
/// ```
/// use ofa_supernet::{SearchSpace, Subnet};
///
/// let subnet: Subnet = "r24 d1,2 k3|5,3 e2|4,2".parse()?;
/// assert_eq!(subnet.resolution, 24);
/// assert_eq!(subnet.to_string(), "r24 d1,2 k3|5,3 e2|4,2");
///
/// let space = SearchSpace::named("tiny")?;
/// space.check(&subnet)?;
/// let outside: Subnet = "r24 d1,2 k3|5,9 e2|4,2".parse()?;
/// assert!(space.check(&outside).is_err());
/// # Ok::<(), ofa_supernet::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subnet {
    /// Input resolution in pixels.
    pub resolution: usize,
    /// Width multipliers of the stem's first convolutions, its last, and each stage; empty where widths are not elastic.
    pub widths: Vec<Ratio>,
    /// Number of residual convolutions in the stem (ResNet-D: 0 or 1; others: 0).
    pub stem_blocks: usize,
    /// The active blocks of each stage; their number is the stage's depth.
    pub stages: Vec<Vec<BlockChoice>>,
}

impl Subnet {
    /// All active blocks in order.
    pub fn blocks(&self) -> impl Iterator<Item = &BlockChoice> {
        self.stages.iter().flatten()
    }
}

/// Kernel size of the blocks of a text with widths and without kernels.
const BOTTLENECK_KERNEL: usize = 3;

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let depths: Vec<String> = self.stages.iter().map(|s| s.len().to_string()).collect();
        let column = |text: fn(&BlockChoice) -> String| -> String {
            let stages: Vec<String> =
                self.stages.iter().map(|s| s.iter().map(text).collect::<Vec<_>>().join(",")).collect();
            stages.join("|")
        };
        write!(f, "r{}", self.resolution)?;
        if !self.widths.is_empty() {
            let widths: Vec<String> = self.widths.iter().map(Ratio::to_string).collect();
            write!(f, " w{} s{}", widths.join(","), self.stem_blocks)?;
        }
        write!(f, " d{}", depths.join(","))?;
        if self.widths.is_empty() || self.blocks().any(|b| b.kernel != BOTTLENECK_KERNEL) {
            write!(f, " k{}", column(|b| b.kernel.to_string()))?;
        }
        write!(f, " e{}", column(|b| b.expand.to_string()))
    }
}

impl FromStr for Subnet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fail = |message: String| {
            Err(Error::Subnet(format!(
                "'{text}': {message}; expected the form 'r160 d2,3 k3,5|7,3,3 e4,6|3,3,4' (resolution, depths, kernels, expand ratios), or for \
                 ResNets 'r160 w1,0.8,0.65 s1 d2 e0.2,0.35' (with widths and stem blocks after the resolution)"
            )))
        };
        let words: Vec<&str> = text.split_whitespace().collect();
        let (resolution, widths, stem, depths, kernels, expands) = match words[..] {
            [resolution, widths, stem, depths, expands] => (resolution, Some(widths), stem, depths, None, expands),
            [resolution, widths, stem, depths, kernels, expands] => {
                (resolution, Some(widths), stem, depths, Some(kernels), expands)
            }
            [resolution, depths, kernels, expands] => (resolution, None, "s0", depths, Some(kernels), expands),
            _ => return fail(format!("{} words instead of 4 (with widths: 5 or 6)", words.len())),
        };
        let Some(resolution) = resolution.strip_prefix('r').and_then(|r| r.parse().ok()) else {
            return fail(format!("'{resolution}' is no resolution"));
        };
        let Some(stem_blocks) = stem.strip_prefix('s').and_then(|s| s.parse().ok()) else {
            return fail(format!("'{stem}' is no number of stem blocks"));
        };
        let mut ratios = Vec::new();
        if let Some(widths) = widths {
            let Some(values) = widths.strip_prefix('w').and_then(numbers::<f64>) else {
                return fail(format!("'{widths}' is no list of width multipliers"));
            };
            match values.into_iter().map(Ratio::try_from).collect::<Result<_, _>>() {
                Ok(values) => ratios = values,
                Err(message) => return fail(message),
            }
        }
        let Some(depths) = depths.strip_prefix('d').and_then(numbers::<usize>) else {
            return fail(format!("'{depths}' is no list of depths"));
        };
        let Some(expands) = expands.strip_prefix('e').and_then(table::<f64>) else {
            return fail(format!("'{expands}' is no list of expand ratios"));
        };
        let kernels = match kernels {
            Some(kernels) => match kernels.strip_prefix('k').and_then(table::<usize>) {
                Some(kernels) => kernels,
                None => return fail(format!("'{kernels}' is no list of kernels")),
            },
            // As many as there are expand ratios, which the text holds: a depth is only a number, and could ask for any
            // amount of memory.
            None => expands.iter().map(|stage| vec![BOTTLENECK_KERNEL; stage.len()]).collect(),
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
        Ok(Subnet { resolution, widths: ratios, stem_blocks, stages })
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
    use crate::seed::{Stream, generator};

    #[test]
    fn text_form_round_trips() {
        for name in PRESETS {
            let space = preset(name).unwrap();
            for position in 0..100 {
                let subnet = space.sample(&mut generator(5, Stream::Sampling, &[position]));
                assert_eq!(subnet.to_string().parse::<Subnet>().unwrap(), subnet);
                let json = serde_json::to_string(&subnet).unwrap();
                assert_eq!(serde_json::from_str::<Subnet>(&json).unwrap(), subnet);
            }
        }
    }

    #[test]
    fn a_resnet_is_one_readable_line() {
        let space = preset("resnet50d").unwrap();
        let text = "r224 w0.65,1,0.8,0.65,1,0.8 s1 d2,2,4,3 e0.2,0.35|0.25,0.2|0.2,0.2,0.2,0.2|0.35,0.2,0.2";
        let subnet: Subnet = text.parse().unwrap();
        space.check(&subnet).unwrap();
        assert_eq!(subnet.to_string(), text);
        assert_eq!((subnet.stem_blocks, subnet.widths.len()), (1, 6));
        let with_kernels = "r32 w1,1,1 s0 d1 k5 e0.25";
        assert_eq!(with_kernels.parse::<Subnet>().unwrap().to_string(), with_kernels);
        assert_eq!("r32 w1,1,1 s0 d1 k3 e0.25".parse::<Subnet>().unwrap().to_string(), "r32 w1,1,1 s0 d1 e0.25");
    }

    #[test]
    fn the_error_of_a_long_text_is_a_line() {
        let depths = ["4000000000"; 10_000].join(",");
        let ratios = ["1"; 10_000].join("|");
        for text in [
            format!("r32 w1 s0 d{depths} e{ratios}"),
            format!("r32 w1 s0 d{depths} e1"),
            format!("r32 d{depths} k{ratios} e{ratios}"),
            format!("r32 d{depths}x k3 e3"),
            "x".repeat(100_000),
            "r32 ".repeat(100_000),
        ] {
            let error = text.parse::<Subnet>().unwrap_err().to_string();
            assert!(error.len() < 600 && error.contains("expected the form"), "{error}");
            let error = serde_json::from_value::<Subnet>(text.into()).unwrap_err().to_string();
            assert!(error.len() < 600, "{error}");
        }
    }

    #[test]
    fn broken_texts_are_refused_with_the_reason() {
        for (text, reason) in [
            ("", "0 words"),
            ("r32 d1 k3", "3 words"),
            ("x32 d1 k3 e3", "no resolution"),
            ("r32 d0 k e", "no list of expand ratios"),
            ("r32 d1 k e3", "no list of kernels"),
            ("r32 d2 k3 e3", "stage 1 has depth 2"),
            ("r32 d1,1 k3 e3|4", "kernels for 1 stages"),
            ("r32 d1 k3 e-1", "not between"),
            ("r32 d1 k3 enan", "not between"),
            ("r32 w1,x s1 d1 e1", "no list of width"),
            ("r32 w1 t1 d1 e1", "no number of stem"),
            ("r32 w0 s1 d1 e1", "not between"),
            ("r32 w1 s1 d999999999999 e1", "stage 1 has depth"),
        ] {
            let error = text.parse::<Subnet>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
