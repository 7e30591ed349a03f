//! The search space, one subnet of it, and the static network that a subnet stands for.
//!
//! A [`SearchSpace`] is data: a family's stages plus the choices of the four elastic dimensions (resolution, depth, kernel
//! size, expand ratio; paper §3.1). A [`Subnet`] is one choice of each. [`SearchSpace::network`] turns the pair into a
//! [`NetworkSpec`], the layer list that cost, latency, export and inference read.

mod network_spec;
mod presets;
mod subnet;

pub(crate) use network_spec::middle_channels;
pub use network_spec::{BlockSpec, ConvSpec, NetworkSpec};
pub use presets::{PRESETS, preset};
pub use subnet::{BlockChoice, Subnet};

use crate::{Error, Result};
use rand::Rng;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;

/// Activation functions of the supported families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x`
    Identity,
    /// `max(x, 0)`
    Relu,
    /// `min(max(x, 0), 6)`
    Relu6,
    /// `x * relu6(x + 3) / 6` (MobileNetV3)
    HardSwish,
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Activation::Identity => "identity",
            Activation::Relu => "relu",
            Activation::Relu6 => "relu6",
            Activation::HardSwish => "hswish",
        })
    }
}

/// Middle channels of a block as a multiple of its input channels, exact to a thousandth (so that it can be compared,
/// hashed and printed without rounding).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct ExpandRatio(u32);

impl ExpandRatio {
    /// The ratio as a number.
    pub fn value(self) -> f64 {
        f64::from(self.0) / 1000.0
    }
}

impl TryFrom<f64> for ExpandRatio {
    type Error = String;
    fn try_from(value: f64) -> Result<Self, String> {
        let thousandths = (value * 1000.0).round();
        if !(1.0..=100_000.0).contains(&thousandths) {
            return Err(format!("expand ratio {value} is not between 0.001 and 100"));
        }
        Ok(ExpandRatio(thousandths as u32))
    }
}

impl From<ExpandRatio> for f64 {
    fn from(ratio: ExpandRatio) -> f64 {
        ratio.value()
    }
}

impl fmt::Display for ExpandRatio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.value())
    }
}

/// The network family. Families are data plus the layers they need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Inverted residual blocks with squeeze-excite and hard-swish (Howard et al., ICCV 2019).
    MobileNetV3,
    /// MobileNetV2's inverted residual blocks with ReLU6, in ProxylessNAS's widths (Cai et al., ICLR 2019).
    ProxylessNas,
}

/// The first convolution (3x3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stem {
    /// Output channels before the width multiplier.
    pub channels: usize,
    /// Stride: 2 for ImageNet sizes, 1 for small images.
    pub stride: usize,
    /// Activation after batch norm.
    pub activation: Activation,
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

/// One stage of elastic inverted residual blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Output channels before the width multiplier.
    pub channels: usize,
    /// Stride of the stage's first block.
    pub stride: usize,
    /// Activation of expand and depthwise convolutions.
    pub activation: Activation,
    /// Whether the blocks have squeeze-excite.
    pub squeeze_excite: bool,
    /// Elastic numbers of blocks in place of the space's: as many choices, or a single one that is never elastic (the last stage
    /// of ProxylessNAS has one block). Empty: the space's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depths: Vec<usize>,
}

/// The layers after the last stage: 1x1 convolution, average pool, perhaps a hidden layer, classifier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Channels of the last 1x1 convolution before the width multiplier (MobileNetV3: 960).
    pub feature_channels: usize,
    /// Width of the layer between pool and classifier before the width multiplier (MobileNetV3: 1280; ProxylessNAS has none).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden_channels: Option<usize>,
    /// Activation of both.
    pub activation: Activation,
}

/// A family with its choices: every subnet of a supernet lies in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchSpace {
    /// Name shown to people.
    pub name: String,
    /// Network family.
    pub family: Family,
    /// Multiplier on all channel counts, applied with [`make_divisible`].
    pub width_multiplier: f64,
    /// Elastic input resolutions in pixels, ascending.
    pub resolutions: Vec<usize>,
    /// Elastic depthwise kernel sizes, ascending, odd; each smaller one is a transform of the next larger (paper §3.3).
    pub kernel_sizes: Vec<usize>,
    /// Elastic expand ratios, ascending.
    pub expand_ratios: Vec<ExpandRatio>,
    /// Elastic numbers of blocks a stage, ascending; the largest is the supernet's. A stage can have its own.
    pub depths: Vec<usize>,
    /// Epsilon of every batch norm (default 1e-5).
    #[serde(default = "default_epsilon")]
    pub batch_norm_epsilon: f64,
    /// First convolution.
    pub stem: Stem,
    /// First, fixed block.
    pub first_block: FirstBlock,
    /// Elastic stages.
    pub stages: Vec<Stage>,
    /// Layers after the last stage.
    pub head: Head,
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

impl SearchSpace {
    /// A preset by name (see [`PRESETS`]; `mbv3-w1.3` and every other width multiplier work as well), or a TOML file by path.
    ///
    /// # Errors
    /// An unknown name (with the known ones) or a file that is no valid space.
    pub fn named(name: &str) -> Result<Self> {
        if let Some(space) = preset(name) {
            space.validate()?;
            return Ok(space);
        }
        let path = Path::new(name);
        if path.extension().is_some_and(|e| e == "toml") {
            let text = crate::files::read_text(path)?;
            return Self::from_toml(&text).map_err(|e| Error::format(path, e.to_string()));
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
        let space: SearchSpace = toml::from_str(text).map_err(|e| Error::Space(e.message().to_string()))?;
        space.validate()?;
        Ok(space)
    }

    /// Checks that every value is usable.
    ///
    /// # Errors
    /// The first impossible value, with what is allowed.
    pub fn validate(&self) -> Result<()> {
        let fail = |message: String| Err(Error::Space(message));
        if !(0.05..=10.0).contains(&self.width_multiplier) {
            return fail(format!("width_multiplier {} is not between 0.05 and 10", self.width_multiplier));
        }
        ascending("resolutions", &self.resolutions, 1, 4096)?;
        ascending("kernel_sizes", &self.kernel_sizes, 1, 15)?;
        ascending("depths", &self.depths, 1, 64)?;
        if let Some(even) = self.kernel_sizes.iter().find(|k| *k % 2 == 0) {
            return fail(format!("kernel_sizes holds {even}; kernels must be odd"));
        }
        if self.expand_ratios.is_empty() || self.expand_ratios.windows(2).any(|w| w[0] >= w[1]) {
            return fail("expand_ratios must be a non-empty, strictly ascending list".into());
        }
        if self.stages.is_empty() || self.stages.len() > 64 {
            return fail("stages must hold between 1 and 64 stages".into());
        }
        for (index, stage) in self.stages.iter().enumerate().filter(|(_, stage)| !stage.depths.is_empty()) {
            let name = format!("depths of stage {}", index + 1);
            ascending(&name, &stage.depths, 1, 64)?;
            if stage.depths.len() != 1 && stage.depths.len() != self.depths.len() {
                return fail(format!(
                    "{name} = {:?} must hold one number, or as many as the space's depths = {:?}",
                    stage.depths, self.depths
                ));
            }
        }
        if !(self.batch_norm_epsilon > 0.0 && self.batch_norm_epsilon <= 1.0) {
            return fail(format!("batch_norm_epsilon {} must be above 0 and at most 1", self.batch_norm_epsilon));
        }
        let strides = [self.stem.stride].into_iter().chain(self.stages.iter().map(|s| s.stride));
        if let Some(stride) = strides.into_iter().find(|s| !(1..=2).contains(s)) {
            return fail(format!("stride {stride} is neither 1 nor 2"));
        }
        let channels = [self.stem.channels, self.first_block.channels, self.head.feature_channels];
        if let Some(channels) = channels
            .into_iter()
            .chain(self.head.hidden_channels)
            .chain(self.stages.iter().map(|s| s.channels))
            .find(|c| !(1..=65_536).contains(c))
        {
            return fail(format!("a channel count of {channels} is not between 1 and 65536"));
        }
        Ok(())
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

    /// Number of the slot of block `block` of stage `stage`: blocks are counted through all stages at their largest depth.
    pub fn slot(&self, stage: usize, block: usize) -> usize {
        (0..stage).map(|stage| self.max_stage_depth(stage)).sum::<usize>() + block
    }

    /// Largest kernel size.
    pub fn max_kernel(&self) -> usize {
        *self.kernel_sizes.last().expect("validated: kernel_sizes is not empty")
    }

    /// Largest expand ratio.
    pub fn max_expand(&self) -> ExpandRatio {
        *self.expand_ratios.last().expect("validated: expand_ratios is not empty")
    }

    /// `base` channels after the width multiplier.
    pub fn width(&self, base: usize) -> usize {
        make_divisible(base as f64 * self.width_multiplier)
    }

    /// Input channels of block `block` of stage `stage`.
    pub fn block_input_channels(&self, stage: usize, block: usize) -> usize {
        match (stage, block) {
            (0, 0) => self.width(self.first_block.channels),
            (_, 0) => self.width(self.stages[stage - 1].channels),
            _ => self.width(self.stages[stage].channels),
        }
    }

    /// The subnet in which every stage has its depth choice number `depth` (from 0; a stage with a single choice keeps it), and
    /// all blocks the same kernel and expand ratio.
    pub fn uniform(&self, resolution: usize, depth: usize, kernel: usize, expand: ExpandRatio) -> Subnet {
        let stage = |stage: usize| {
            let depths = self.stage_depths(stage);
            vec![BlockChoice { kernel, expand }; depths[depth.min(depths.len() - 1)]]
        };
        Subnet { resolution, stages: (0..self.stages.len()).map(stage).collect() }
    }

    /// The largest subnet: everything at its maximum.
    pub fn largest(&self) -> Subnet {
        self.uniform(
            *self.resolutions.last().expect("validated"),
            self.depths.len() - 1,
            self.max_kernel(),
            self.max_expand(),
        )
    }

    /// The smallest subnet: everything at its minimum.
    pub fn smallest(&self) -> Subnet {
        self.uniform(self.resolutions[0], 0, self.kernel_sizes[0], self.expand_ratios[0])
    }

    /// The subnet in the middle of every list of choices.
    pub fn middle(&self) -> Subnet {
        fn middle<T: Copy>(list: &[T]) -> T {
            list[list.len() / 2]
        }
        self.uniform(
            middle(&self.resolutions),
            self.depths.len() / 2,
            middle(&self.kernel_sizes),
            middle(&self.expand_ratios),
        )
    }

    /// A random subnet: every choice is drawn uniformly and alone (paper §3.3). Resolution and depth come first, then only
    /// the active blocks, so that equal networks are equally likely to be drawn whatever the inactive ones would be.
    pub fn sample(&self, rng: &mut impl Rng) -> Subnet {
        let resolution = pick(&self.resolutions, rng);
        let stages = (0..self.stages.len())
            .map(|stage| {
                let depth = pick(self.stage_depths(stage), rng);
                (0..depth).map(|_| self.sample_block(rng)).collect()
            })
            .collect();
        Subnet { resolution, stages }
    }

    /// A random kernel and expand ratio.
    pub fn sample_block(&self, rng: &mut impl Rng) -> BlockChoice {
        BlockChoice { kernel: pick(&self.kernel_sizes, rng), expand: pick(&self.expand_ratios, rng) }
    }

    /// All subnets that differ from `subnet` in one choice. A stage that grows repeats its last block's choice.
    pub fn neighbours(&self, subnet: &Subnet) -> Vec<Subnet> {
        let mut found = Vec::new();
        let mut add = |change: &dyn Fn(&mut Subnet)| {
            let mut other = subnet.clone();
            change(&mut other);
            if other != *subnet {
                found.push(other);
            }
        };
        for &resolution in &self.resolutions {
            add(&|s| s.resolution = resolution);
        }
        for stage in 0..subnet.stages.len() {
            for &depth in self.stage_depths(stage) {
                add(&|s| {
                    let last = *s.stages[stage].last().expect("a stage has at least one block");
                    s.stages[stage].resize(depth, last);
                });
            }
            for block in 0..subnet.stages[stage].len() {
                for &kernel in &self.kernel_sizes {
                    add(&|s| s.stages[stage][block].kernel = kernel);
                }
                for &expand in &self.expand_ratios {
                    add(&|s| s.stages[stage][block].expand = expand);
                }
            }
        }
        found
    }

    /// Number of different subnets (exact up to 2^53, then rounded as every `f64`).
    pub fn count(&self) -> f64 {
        let block = (self.kernel_sizes.len() * self.expand_ratios.len()) as f64;
        let stage = |stage| -> f64 { self.stage_depths(stage).iter().map(|&d| block.powi(d as i32)).sum() };
        self.resolutions.len() as f64 * (0..self.stages.len()).map(stage).product::<f64>()
    }

    /// Checks that `subnet` lies in this space.
    ///
    /// # Errors
    /// The first choice outside the space, with the allowed values.
    pub fn check(&self, subnet: &Subnet) -> Result<()> {
        allowed("resolution", &subnet.resolution, &self.resolutions)?;
        if subnet.stages.len() != self.stages.len() {
            return Err(Error::Subnet(format!(
                "{} stages given, the space '{}' has {}",
                subnet.stages.len(),
                self.name,
                self.stages.len()
            )));
        }
        for (index, stage) in subnet.stages.iter().enumerate() {
            allowed(&format!("depth of stage {}", index + 1), &stage.len(), self.stage_depths(index))?;
            for block in stage {
                allowed(&format!("kernel in stage {}", index + 1), &block.kernel, &self.kernel_sizes)?;
                allowed(&format!("expand ratio in stage {}", index + 1), &block.expand, &self.expand_ratios)?;
            }
        }
        Ok(())
    }
}

/// A uniformly drawn element.
fn pick<T: Copy>(list: &[T], rng: &mut impl Rng) -> T {
    list[rng.random_range(0..list.len())]
}

fn ascending(name: &str, list: &[usize], low: usize, high: usize) -> Result<()> {
    let ordered = list.windows(2).all(|w| w[0] < w[1]);
    if list.is_empty() || !ordered || list.iter().any(|v| !(low..=high).contains(v)) {
        return Err(Error::Space(format!(
            "{name} = {list:?} must be a non-empty, strictly ascending list of numbers between {low} and {high}"
        )));
    }
    Ok(())
}

fn allowed<T: PartialEq + fmt::Display>(what: &str, value: &T, choices: &[T]) -> Result<()> {
    if choices.contains(value) {
        return Ok(());
    }
    let choices: Vec<String> = choices.iter().map(T::to_string).collect();
    Err(Error::Subnet(format!("{what} is {value}; allowed are {}", choices.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::{Purpose, generator};

    #[test]
    fn channel_rule() {
        for (value, expected) in
            [(16.0, 16), (4.0, 8), (28.0, 32), (20.0, 24), (22.4, 24), (240.0, 240), (11.9, 16), (12.0, 16)]
        {
            assert_eq!(make_divisible(value), expected, "{value}");
        }
    }

    #[test]
    fn the_published_space_has_the_published_size() {
        // Paper §3.1: about 2 x 10^19 subnets, for 25 resolutions of the same weights.
        let count = preset("mbv3-w1.0").unwrap().count() / preset("mbv3-w1.0").unwrap().resolutions.len() as f64;
        assert!((2.0e19..2.5e19).contains(&count), "{count}");
    }

    #[test]
    fn samples_lie_in_the_space_and_repeat_by_seed() {
        for name in PRESETS {
            let space = preset(name).unwrap();
            space.validate().unwrap();
            for position in 0..50 {
                let draw = || space.sample(&mut generator(3, Purpose::Sampling, &[position]));
                space.check(&draw()).unwrap();
                assert_eq!(draw(), draw());
            }
        }
    }

    #[test]
    fn neighbours_differ_in_one_choice_and_are_distinct() {
        let space = preset("tiny").unwrap();
        let subnet = space.sample(&mut generator(1, Purpose::Sampling, &[]));
        let neighbours = space.neighbours(&subnet);
        for (index, neighbour) in neighbours.iter().enumerate() {
            space.check(neighbour).unwrap();
            assert_ne!(*neighbour, subnet);
            assert!(!neighbours[..index].contains(neighbour));
        }
        let expected = space.resolutions.len() - 1
            + (0..space.stages.len()).map(|stage| space.stage_depths(stage).len() - 1).sum::<usize>()
            + subnet.blocks().count() * (space.kernel_sizes.len() + space.expand_ratios.len() - 2);
        assert_eq!(neighbours.len(), expected);
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
        let outside = space.uniform(32, 0, 9, space.max_expand());
        assert!(space.check(&outside).unwrap_err().to_string().contains("allowed are 3, 5, 7"));
        assert!(SearchSpace::named("mbv4").unwrap_err().to_string().contains("cifar-mbv3"));
    }
}
