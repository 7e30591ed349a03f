//! The search space, one subnet of it, and the static network that a subnet stands for.
//!
//! A [`SearchSpace`] is data: a family's stages plus the choices of the elastic dimensions (resolution, depth, kernel
//! size, expand ratio; paper §3.1; ResNets and AttentiveNAS also widths between blocks). A [`Subnet`] is one choice of
//! each.
//! [`SearchSpace::network`] turns the pair into a [`NetworkSpec`], the layer list that cost, latency, export and
//! inference read.
//!
//! | file | concern |
//! | --- | --- |
//! | `family` | network families, and the rules in which they differ |
//! | `subnet` | one subnet and its text form |
//! | `dimension` | the elastic dimensions, and every choice of a space's subnets |
//! | `choices` | subnets of a space: extremes, samples, neighbours, their number, membership |
//! | `covering` | few subnets that hold every distinct block |
//! | `narrowing` | a space with some of its values, and how training frees them |
//! | `difference` | the first setting in which two spaces differ |
//! | `keys` | descriptions of the keys that define or narrow a space |
//! | `network_spec` | a static network, layer by layer |
//! | `validation` | whether the values of a space are usable |
//! | `layout` | from space and subnet to the static network |
//! | `presets` | the spaces that have a name |
//! | `ratio` | ratios of channel counts, exact to a thousandth |

mod choices;
mod covering;
mod difference;
pub mod dimension;
mod family;
mod keys;
mod layout;
mod narrowing;
mod network_spec;
mod presets;
mod ratio;
mod subnet;
mod validation;

pub use crate::blocks::{BlockSpec, BottleneckSpec, InvertedResidualSpec};
pub use dimension::{DIMENSIONS, Dimension, Place, Scope, Value};
pub use family::{Blocks, Family, Publisher, Rules, Shortcuts, SmallerKernels, Widths};
pub use keys::{Key, NARROWING_KEYS, SPACE_KEYS, SPACE_TABLES};
pub(crate) use narrowing::table_with_narrowing;
pub use narrowing::{Channels, Narrowing, SHRINKING, Shrinking};
pub(crate) use network_spec::middle_channels;
pub use network_spec::{ConvSpec, MaxPoolSpec, NetworkSpec, reduced_channels};
pub use presets::{PRESETS, preset};
pub use ratio::{ExpandRatio, Ratio};
pub use subnet::{BlockChoice, Subnet};

pub use crate::ops::Activation;

use crate::{Error, Result, files};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The first convolution (3x3); in ResNet-D three of them, of which the middle one may be skipped, and a max pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stem {
    /// Output channels before the width multiplier. ResNet-D: of the last convolution; the first two have half of it.
    pub channels: usize,
    /// Stride of the first convolution: 2 for ImageNet sizes, 1 for small images.
    pub stride: usize,
    /// Activation after batch norm.
    pub activation: Activation,
    /// ResNet-D: elastic numbers (0, 1) of residual convolutions between the first and the last. Empty for the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depths: Vec<usize>,
    /// AttentiveNAS: elastic output channels, ascending, `channels` the largest. Empty: `channels` only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub widths: Vec<usize>,
}

/// The first, fixed block: depthwise 3x3 and projection, no expansion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirstBlock {
    /// Output channels before the width multiplier.
    pub channels: usize,
    /// Activation of the depthwise convolution.
    pub activation: Activation,
}

/// One stage of elastic blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Output channels before the width multiplier.
    pub channels: usize,
    /// Stride of the stage's first block.
    pub stride: usize,
    /// Activation of expand and depthwise convolutions; ResNet-D: of all convolutions and the block's output.
    pub activation: Activation,
    /// Whether the blocks have squeeze-excite (inverted residuals only).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub squeeze_excite: bool,
    /// Kind of the blocks, of those that the program [registers](crate::blocks::register); without one the family's
    /// own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<String>,
    /// Elastic numbers of blocks in place of the space's; a single one is never elastic (the last stage of ProxylessNAS
    /// has one block). [`SearchSpace::narrowed`] says how training narrows them. Empty: the space's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depths: Vec<usize>,
    /// Elastic kernel sizes in place of the space's. Empty: the space's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernel_sizes: Vec<usize>,
    /// Elastic expand ratios in place of the space's. Empty: the space's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expand_ratios: Vec<ExpandRatio>,
    /// AttentiveNAS: elastic output channels, ascending, `channels` the largest. Empty: `channels` only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub widths: Vec<usize>,
}

/// The layers after the last stage: 1x1 convolution, average pool, perhaps a hidden layer, classifier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Channels of the last 1x1 convolution before the width multiplier (MobileNetV3: 960). AttentiveNAS: at the last
    /// stage's largest width, in proportion at others.
    pub feature_channels: usize,
    /// Width of the layer between pool and classifier before the width multiplier (MobileNetV3: 1280; ProxylessNAS has
    /// none).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden_channels: Option<usize>,
    /// Activation of both.
    pub activation: Activation,
    /// AttentiveNAS: elastic widths of the hidden layer, ascending, `hidden_channels` the largest. Empty: that only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub widths: Vec<usize>,
}

/// A network family with the choices of its elastic dimensions; every subnet of a supernet lies in its search space.
///
/// ```
/// use ofa_supernet::SearchSpace;
/// use ofa_supernet::seed::{Stream, generator};
///
/// let space = SearchSpace::named("tiny")?;
/// let subnet = space.sample(&mut generator(0, Stream::Search, &[]));
/// space.check(&subnet)?;
/// assert!(space.resolutions.contains(&subnet.resolution));
///
/// // The static network of a subnet for ten classes, layer by layer.
/// let network = space.network(&space.largest(), 10)?;
/// assert_eq!((network.resolution, network.classes), (32, 10));
/// # Ok::<(), ofa_supernet::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchSpace {
    /// Name shown to people.
    pub name: String,
    /// Network family.
    pub family: Family,
    /// Multiplier on all channel counts, applied with [`make_divisible`].
    pub width_multiplier: f64,
    /// Elastic multipliers beside that one, ascending: one is chosen for the stem's first convolutions, one for its
    /// last, and one for each stage. ResNet-D only, empty for the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub width_multipliers: Vec<Ratio>,
    /// Elastic input resolutions in pixels, ascending.
    pub resolutions: Vec<usize>,
    /// Elastic depthwise kernel sizes, ascending, odd; each smaller one is a transform of the next larger (paper §3.3).
    /// ResNet-D: the one size of its bottlenecks. A stage can have its own.
    pub kernel_sizes: Vec<usize>,
    /// Elastic expand ratios, ascending. A stage can have its own.
    pub expand_ratios: Vec<ExpandRatio>,
    /// Elastic numbers of blocks a stage, ascending; the largest is the supernet's. A stage can have its own.
    pub depths: Vec<usize>,
    /// Whether all blocks of a stage have one kernel size and one expand ratio (AttentiveNAS); otherwise each block has
    /// its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub uniform_stages: bool,
    /// Epsilon of every batch norm (default 1e-5).
    #[serde(default = "default_epsilon")]
    pub batch_norm_epsilon: f64,
    /// First convolution.
    pub stem: Stem,
    /// First, fixed block; ResNet-D has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_block: Option<FirstBlock>,
    /// Elastic stages.
    pub stages: Vec<Stage>,
    /// Layers after the last stage; ResNet-D has only pool and classifier there, which need no description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<Head>,
}

/// Epsilon of batch norm unless a space says otherwise.
pub const DEFAULT_EPSILON: f64 = 1e-5;

pub(crate) fn default_epsilon() -> f64 {
    DEFAULT_EPSILON
}

/// The nearest multiple of 8 that is at least 8 and never below 0.9 x `value` (the families' channel rule).
pub fn make_divisible(value: f64) -> usize {
    let rounded = (((value + 4.0) / 8.0).floor() as usize * 8).max(8);
    if (rounded as f64) < 0.9 * value { rounded + 8 } else { rounded }
}

/// The part of a configuration that holds the space.
#[derive(Deserialize)]
struct Configuration {
    space: SearchSpace,
}

impl SearchSpace {
    /// A preset by name (see [`PRESETS`]; `mbv3-w1.3` and every other width multiplier work as well), or a TOML file by
    /// path: a space, or a whole configuration with the table `[space]`.
    ///
    /// # Errors
    /// An unknown name (with the known ones) or a file that is not a valid space.
    pub fn named(name: &str) -> Result<Self> {
        if let Some(space) = preset(name) {
            space.validate()?;
            return Ok(space);
        }
        let path = Path::new(name);
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("toml")) {
            let whole = files::read_text(path)?.parse::<toml::Table>().is_ok_and(|table| table.contains_key("space"));
            let space: SearchSpace =
                if whole { files::read_toml::<Configuration>(path)?.space } else { files::read_toml(path)? };
            space.validate().map_err(|e| e.at(path))?;
            return Ok(space);
        }
        Err(Error::Space(format!(
            "no preset is named '{name}'; known are {} (any width multiplier in mbv3-wX and proxyless-wX), or give the path of a .toml file",
            PRESETS.join(", ")
        )))
    }

    /// Reads a space from TOML.
    ///
    /// # Errors
    /// Unknown keys, wrong types and impossible values, each named.
    pub fn from_toml(text: &str) -> Result<Self> {
        let space: SearchSpace = files::parse_toml_text(text).map_err(Error::Space)?;
        space.validate()?;
        Ok(space)
    }

    /// Elastic numbers of blocks in `stage`, ascending.
    pub fn stage_depths(&self, stage: usize) -> &[usize] {
        let own = &self.stages[stage].depths;
        if own.is_empty() { &self.depths } else { own }
    }

    /// Largest number of blocks in `stage`.
    pub fn max_stage_depth(&self, stage: usize) -> usize {
        *self.stage_depths(stage).last().expect("validated: depths is not empty")
    }

    /// Number of blocks of the largest subnet: each has a slot, see [`slot`](Self::slot).
    pub fn slots(&self) -> usize {
        (0..self.stages.len()).map(|stage| self.max_stage_depth(stage)).sum()
    }

    /// Number of the slot of block `block` of stage `stage`: blocks are counted through all stages at their largest
    /// depth.
    pub fn slot(&self, stage: usize, block: usize) -> usize {
        (0..stage).map(|stage| self.max_stage_depth(stage)).sum::<usize>() + block
    }

    /// Elastic kernel sizes of the blocks in `stage`, ascending.
    pub fn stage_kernel_sizes(&self, stage: usize) -> &[usize] {
        let own = &self.stages[stage].kernel_sizes;
        if own.is_empty() { &self.kernel_sizes } else { own }
    }

    /// Elastic expand ratios of the blocks in `stage`, ascending.
    pub fn stage_expand_ratios(&self, stage: usize) -> &[ExpandRatio] {
        let own = &self.stages[stage].expand_ratios;
        if own.is_empty() { &self.expand_ratios } else { own }
    }

    /// Whether each boundary has a list of channels rather than a width multiplier.
    pub(crate) fn has_boundary_lists(&self) -> bool {
        match self.family.rules().widths {
            Widths::Lists => true,
            Widths::Fixed | Widths::Multipliers => false,
        }
    }

    /// Elastic channels and largest channels of stem, stages and hidden layer.
    fn boundaries(&self) -> impl Iterator<Item = (&[usize], &usize)> {
        let head = self.head.iter().filter_map(|head| Some((&head.widths[..], head.hidden_channels.as_ref()?)));
        let stages = self.stages.iter().map(|stage| (&stage.widths[..], &stage.channels));
        [(&self.stem.widths[..], &self.stem.channels)].into_iter().chain(stages).chain(head)
    }

    /// Channels to choose from at a boundary of [`boundaries`](Self::boundaries), ascending.
    pub(crate) fn boundary_widths(&self, boundary: usize) -> &[usize] {
        match self.boundaries().nth(boundary) {
            Some(([], only)) => std::slice::from_ref(only),
            Some((widths, _)) => widths,
            None => &[],
        }
    }

    /// The first of the longest lists of channels at a boundary.
    fn longest_boundary_list(&self) -> &[usize] {
        let lists = (0..self.width_choices()).map(|boundary| self.boundary_widths(boundary));
        lists.rev().max_by_key(|list| list.len()).unwrap_or_default()
    }

    /// `base` channels after the width multiplier.
    pub fn width(&self, base: usize) -> usize {
        make_divisible(base as f64 * self.width_multiplier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channel_rule() {
        for (value, expected) in
            [(16.0, 16), (4.0, 8), (28.0, 32), (20.0, 24), (22.4, 24), (240.0, 240), (11.9, 16), (12.0, 16)]
        {
            assert_eq!(make_divisible(value), expected, "{value}");
        }
    }

    #[test]
    fn a_space_survives_toml_and_names_its_faults() {
        let space = preset("cifar-mbv3").unwrap();
        let text = toml::to_string(&space).unwrap();
        assert_eq!(SearchSpace::from_toml(&text).unwrap(), space);
        let unknown = SearchSpace::from_toml(&format!("colour = 3\n{text}")).unwrap_err().to_string();
        assert!(unknown.contains("colour"), "{unknown}");
        let mut even = space.clone();
        even.kernel_sizes = vec![3, 4];
        assert!(even.validate().unwrap_err().to_string().contains("odd"));
        let mut outside = space.smallest();
        outside.stages[1][0].kernel = 9;
        assert!(space.check(&outside).unwrap_err().to_string().contains("kernel in stage 2 is 9; allowed are 3, 5, 7"));
        let mut own = space.clone();
        (own.stages[1].kernel_sizes, own.stages[1].depths) = (vec![3, 5, 7, 9], vec![1]);
        own.stages[2].expand_ratios = own.expand_ratios[..2].to_vec();
        assert_eq!(SearchSpace::from_toml(&toml::to_string(&own).unwrap()).unwrap(), own);
        outside.stages[1].truncate(1);
        own.check(&outside).unwrap();
        outside.stages[2][1].expand = own.expand_ratios[2];
        let error = own.check(&outside).unwrap_err().to_string();
        assert!(error.contains("expand ratio in stage 3 is 4; allowed are 2, 3"), "{error}");
        let resnet = preset("resnet-tiny").unwrap();
        assert_eq!(SearchSpace::from_toml(&toml::to_string(&resnet).unwrap()).unwrap(), resnet);
        for (change, part) in [
            ((|s: &mut SearchSpace| s.kernel_sizes = vec![3, 5]) as fn(&mut SearchSpace), "one kernel size"),
            (|s| s.width_multipliers.clear(), "needs width_multipliers"),
            (|s| s.stem.depths = vec![0, 2], "between 0 and 1"),
            (|s| s.stages[1].squeeze_excite = true, "stage 2"),
            (|s| s.family = Family::MobileNetV3, "belong to the family resnet_d"),
            (|s| s.depths = vec![2], "single depth"),
            (|s| s.stages[1].kernel_sizes = vec![3, 5], "kernel_sizes of stage 2 holds 2 values"),
            (|s| s.stages[1].expand_ratios = vec![s.expand_ratios[0]; 2], "expand_ratios of stage 2 must be"),
        ] {
            let mut space = resnet.clone();
            change(&mut space);
            let error = space.validate().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let without = SearchSpace { head: None, ..space };
        assert!(without.validate().unwrap_err().to_string().contains("head"));
        assert!(SearchSpace::named("mbv4").unwrap_err().to_string().contains("cifar-mbv3"));
    }
}
