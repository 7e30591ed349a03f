//! One subnet, and its one-line text form.
//!
//! `r160 d2,3,... k3,5|7,3,3|... e4,6|3,3,4|...`: resolution, depth a stage, then kernel and expand ratio of every
//! active block, stages separated by `|`. Inactive blocks have no place in it, so two equal networks have one
//! [`Subnet`] and one text.
//!
//! With elastic widths it is `r160 w0.65,1,... s1 d2,3,... e0.2,0.35|...`: after the resolution the widths (ResNets:
//! multipliers of the stem's first convolutions, its last, each stage; AttentiveNAS: channels of the stem, each stage,
//! the head's hidden layer) and the number of residual convolutions in the stem; kernel sizes are omitted where all are
//! 3.

use super::ExpandRatio;
use super::dimension::{At, DIMENSIONS, Dimension, Scope, Value};
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
/// A subnet has a text form of one line: resolution, depth of each stage, then kernel size and expand ratio of each
/// block, with `|` between stages.
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
    /// Width of each elastic boundary; empty where widths are not elastic. ResNets: multipliers of the stem's first
    /// convolutions, its last, and each stage. AttentiveNAS: channels of the stem, each stage, and the hidden layer.
    pub widths: Vec<Value>,
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

/// Numbers of the dimensions in [`DIMENSIONS`], in the order of a text's words.
const WORDS: [usize; 6] = [0, 2, 1, 3, 4, 5];

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has_widths = !self.widths.is_empty();
        let with_kernels = !has_widths || self.blocks().any(|b| b.kernel != BOTTLENECK_KERNEL);
        for dimension in words(has_widths, with_kernels) {
            if dimension.scope != Scope::Input {
                f.write_str(" ")?;
            }
            write!(f, "{}", dimension.letter)?;
            for (index, at) in dimension.all_at(self).enumerate() {
                match at {
                    _ if index == 0 => {}
                    At::Block { block: 0, .. } => f.write_str("|")?,
                    _ => f.write_str(",")?,
                }
                dimension.value(self, at).expect("a place of the subnet").fmt(f)?;
            }
        }
        Ok(())
    }
}

/// The dimensions of a text's words.
fn words(widths: bool, kernels: bool) -> impl Iterator<Item = &'static Dimension> {
    let written = move |dimension: &&Dimension| match dimension.letter {
        'w' | 's' => widths,
        'k' => kernels,
        _ => true,
    };
    WORDS.iter().map(|&index| &DIMENSIONS[index]).filter(written)
}

/// The values of one word: a row, or one for each stage.
type Rows = Vec<Vec<Value>>;

impl FromStr for Subnet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse(text).map_err(|message| {
            Error::Subnet(format!(
                "'{text}': {message}; expected the form 'r160 d2,3 k3,5|7,3,3 e4,6|3,3,4' (resolution, depths, kernels, expand ratios), or for \
                 ResNets 'r160 w1,0.8,0.65 s1 d2 e0.2,0.35' (with widths and stem blocks after the resolution)"
            ))
        })
    }
}

fn parse(text: &str) -> Result<Subnet, String> {
    let count = text.split_whitespace().count();
    if !(4..=6).contains(&count) {
        return Err(format!("{count} words instead of 4 (with widths: 5 or 6)"));
    }
    let mut columns: Vec<(&Dimension, Rows)> = Vec::with_capacity(count);
    for (dimension, word) in words(count > 4, count != 5).zip(text.split_whitespace()) {
        columns.push((dimension, rows(dimension, word)?));
    }
    // The lists of blocks fit the depths. A depth is only a number, and could ask for any amount of memory: stages are
    // made after that.
    let of_scope = |scope| columns.iter().filter(move |(dimension, _)| dimension.scope == scope);
    let depths = of_scope(Scope::Stage).flat_map(|(_, rows)| &rows[0]).collect::<Vec<_>>();
    for (dimension, rows) in of_scope(Scope::Block) {
        let name = dimension.name;
        if rows.len() != depths.len() {
            return Err(format!("{} depths, but {name}s for {} stages", depths.len(), rows.len()));
        }
        for (stage, (&&depth, row)) in depths.iter().zip(rows).enumerate() {
            if depth != row.len().into() {
                return Err(format!("stage {} has depth {depth}, but {} {name}s", stage + 1, row.len()));
            }
        }
    }
    let mut subnet = Subnet { resolution: 0, widths: Vec::new(), stem_blocks: 0, stages: Vec::new() };
    for (dimension, rows) in &columns {
        for (stage, row) in rows.iter().enumerate() {
            for (index, &value) in row.iter().enumerate() {
                let at = match dimension.scope {
                    Scope::Input => At::Input,
                    Scope::Stem => At::Stem,
                    Scope::Boundary => At::Boundary(index),
                    Scope::Stage => At::Stage(index),
                    Scope::Block => At::Block { stage, block: index },
                };
                dimension.set(&mut subnet, at, value);
            }
        }
    }
    if count == 5 {
        subnet.stages.iter_mut().flatten().for_each(|block| block.kernel = BOTTLENECK_KERNEL);
    }
    Ok(subnet)
}

/// The values of a word, as many rows as the dimension's scope has.
fn rows(dimension: &Dimension, word: &str) -> Result<Rows, String> {
    let single = matches!(dimension.scope, Scope::Input | Scope::Stem);
    let unreadable = || format!("'{word}' is no {}{}", if single { "" } else { "list of " }, dimension.name);
    let unreadable = || if single { unreadable() } else { unreadable() + "s" };
    let numbers = word.strip_prefix(dimension.letter).ok_or_else(unreadable)?;
    let parse = |number: &str| {
        dimension.parse(number).map_err(|message| if message.is_empty() { unreadable() } else { message })
    };
    let rows = numbers.split('|').map(|row| row.split(',').map(parse).collect());
    let rows = rows.collect::<Result<Rows, String>>()?;
    let fits = (dimension.scope == Scope::Block || rows.len() == 1) && (!single || rows[0].len() == 1);
    if fits { Ok(rows) } else { Err(unreadable()) }
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
            ("r18446744073709551615 d1 k3 e3", "no resolution"),
            ("r32 d1|2 k3 e3", "no list of depths"),
            ("r32,32 d1 k3 e3", "no resolution"),
            ("r32 d0 k e", "no list of kernels"),
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
