//! From a space and a subnet to the static network.

use super::network_spec::middle_channels;
use super::{
    Activation, BlockSpec, Blocks, BottleneckSpec, ConvSpec, Head, InvertedResidualSpec, MaxPoolSpec, NetworkSpec,
    SearchSpace, Shortcuts, SmallerKernels, Subnet, Value, Widths, make_divisible,
};
use crate::blocks::{BlockSettings, CustomSpec};
use crate::{Error, Result};

/// Channels of a network of inverted residuals, between its parts.
struct MobileNetWidths {
    stem: usize,
    stages: Vec<usize>,
    feature: usize,
    hidden: Option<usize>,
}

impl SearchSpace {
    /// The static network of `subnet` for `classes` classes.
    ///
    /// # Errors
    /// A subnet outside this space, or no classes.
    pub fn network(&self, subnet: &Subnet, classes: usize) -> Result<NetworkSpec> {
        self.check(subnet)?;
        if classes == 0 {
            return Err(Error::Space("a network needs at least one class".into()));
        }
        match (self.family.rules().blocks, &self.head) {
            (Blocks::InvertedResiduals, Some(head)) => self.mobile_net(subnet, head, classes),
            (Blocks::InvertedResiduals, None) => Err(Error::Space("a space of inverted residuals needs a head".into())),
            (Blocks::Bottlenecks, _) => self.bottlenecks(subnet, classes),
        }
    }

    /// Kernel sizes of `stage` that have a transform of their own, and the largest. Without transforms a smaller kernel
    /// is the centre of the largest.
    pub(crate) fn transformed_kernel_sizes(&self, stage: usize) -> &[usize] {
        let sizes = self.stage_kernel_sizes(stage);
        match self.family.rules().smaller_kernels {
            SmallerKernels::Transformed => sizes,
            SmallerKernels::Centre => &sizes[sizes.len() - 1..],
        }
    }

    /// A network of inverted residuals between convolutions.
    fn mobile_net(&self, subnet: &Subnet, head: &Head, classes: usize) -> Result<NetworkSpec> {
        let (rules, widths) = (self.family.rules(), self.mobile_net_widths(subnet, head));
        let stem = self.stem_convolution(subnet, widths.stem);
        let first = self.first_block.as_ref().map(|first| InvertedResidualSpec {
            in_channels: stem.out_channels,
            middle_channels: stem.out_channels,
            out_channels: self.width(first.channels),
            kernel: 3,
            stride: 1,
            activation: first.activation,
            expand: false,
            squeeze_excite: None,
            residual: rules.first_block_shortcut && stem.out_channels == self.width(first.channels),
            projection: false,
            input_size: stem.output_size(),
        });
        let channels = first.as_ref().map_or(stem.out_channels, |first| first.out_channels);
        let stages = self.blocks(subnet, (channels, stem.output_size()), &widths.stages, |stage, _, settings| {
            let residual = match rules.shortcuts {
                Shortcuts::WhereShapeIsKept => settings.keeps_shape(),
                Shortcuts::Everywhere => true,
            };
            BlockSpec::InvertedResidual(InvertedResidualSpec::of(settings, self.expands(stage), residual))
        })?;
        let first = first.map(|first| vec![BlockSpec::InvertedResidual(first)]);
        let stages: Vec<Vec<BlockSpec>> = first.into_iter().chain(stages).collect();
        let last = stages.iter().flatten().last();
        let feature = ConvSpec {
            in_channels: last.map_or(channels, BlockSpec::out_channels),
            out_channels: widths.feature,
            kernel: 1,
            stride: 1,
            activation: head.activation,
            residual: false,
            input_size: last.map_or(stem.output_size(), BlockSpec::output_size),
        };
        Ok(NetworkSpec {
            resolution: subnet.resolution,
            stem: vec![stem],
            max_pool: None,
            stages,
            feature: Some(feature),
            hidden_channels: widths.hidden,
            hidden_activation: head.activation,
            batch_norm_epsilon: self.batch_norm_epsilon,
            classes,
        })
    }

    fn mobile_net_widths(&self, subnet: &Subnet, head: &Head) -> MobileNetWidths {
        match self.family.rules().widths {
            Widths::Fixed | Widths::Multipliers => MobileNetWidths {
                stem: self.width(self.stem.channels),
                stages: self.stages.iter().map(|stage| self.width(stage.channels)).collect(),
                feature: self.width(head.feature_channels),
                hidden: head.hidden_channels.map(|channels| self.width(channels)),
            },
            Widths::Lists => {
                // The subnet was checked: it has a width for each boundary.
                let width = |boundary: usize| subnet.widths[boundary].count();
                let stages = self.stages.len();
                MobileNetWidths {
                    stem: width(0),
                    stages: (1..=stages).map(width).collect(),
                    feature: self.feature_channels(width(stages)),
                    hidden: Some(width(stages + 1)),
                }
            }
        }
    }

    /// Whether the blocks of `stage` have expand convolutions.
    fn expands(&self, stage: usize) -> bool {
        let ratios = self.stage_expand_ratios(stage);
        self.family.rules().expands_by_one || ratios.iter().any(|ratio| ratio.value() != 1.0)
    }

    /// The first convolution.
    fn stem_convolution(&self, subnet: &Subnet, out_channels: usize) -> ConvSpec {
        ConvSpec {
            in_channels: 3,
            out_channels,
            kernel: 3,
            stride: self.stem.stride,
            activation: self.stem.activation,
            residual: false,
            input_size: subnet.resolution,
        }
    }

    /// The blocks of all stages, which have `widths` channels, after a map of `channels` and `size`.
    ///
    /// `family_block` describes a block of the family's own kind by its stage, its index in it, and its settings.
    fn blocks(
        &self,
        subnet: &Subnet,
        (mut channels, mut size): (usize, usize),
        widths: &[usize],
        family_block: impl Fn(usize, usize, &BlockSettings) -> BlockSpec,
    ) -> Result<Vec<Vec<BlockSpec>>> {
        let mut stages = Vec::with_capacity(self.stages.len());
        for (number, (stage, choices)) in self.stages.iter().zip(&subnet.stages).enumerate() {
            let mut blocks = Vec::with_capacity(choices.len());
            for (index, choice) in choices.iter().enumerate() {
                let settings = BlockSettings {
                    in_channels: channels,
                    out_channels: widths[number],
                    kernel: choice.kernel,
                    expand: choice.expand,
                    stride: if index == 0 { stage.stride } else { 1 },
                    activation: stage.activation,
                    squeeze_excite: stage.squeeze_excite,
                    input_size: size,
                };
                let block = match &stage.block {
                    Some(kind) => BlockSpec::Custom(CustomSpec::new(kind, &settings)?),
                    None => family_block(number, index, &settings),
                };
                (channels, size) = (block.out_channels(), block.output_size());
                blocks.push(block);
            }
            stages.push(blocks);
        }
        Ok(stages)
    }

    /// A network of bottlenecks after a deep stem.
    fn bottlenecks(&self, subnet: &Subnet, classes: usize) -> Result<NetworkSpec> {
        let first = self.stem_convolution(subnet, self.stem_middle_width(subnet.widths[0]));
        let optional = ConvSpec {
            in_channels: first.out_channels,
            stride: 1,
            residual: true,
            input_size: first.output_size(),
            ..first.clone()
        };
        let last = ConvSpec {
            out_channels: self.elastic_width(self.stem.channels, subnet.widths[1]),
            residual: false,
            ..optional.clone()
        };
        let pool = MaxPoolSpec { channels: last.out_channels, input_size: last.output_size() };
        let mut stem = vec![first];
        stem.extend(vec![optional; subnet.stem_blocks]);
        stem.push(last);
        let stage_widths = self.stages.iter().zip(&subnet.widths[2..]);
        let widths: Vec<usize> =
            stage_widths.map(|(stage, &width)| self.elastic_width(stage.channels, width)).collect();
        let stages = self.blocks(subnet, (pool.channels, pool.output_size()), &widths, |_, index, settings| {
            BlockSpec::Bottleneck(BottleneckSpec::of(settings, index == 0))
        })?;
        Ok(NetworkSpec {
            resolution: subnet.resolution,
            stem,
            max_pool: Some(pool),
            stages,
            feature: None,
            hidden_channels: None,
            hidden_activation: Activation::Identity,
            batch_norm_epsilon: self.batch_norm_epsilon,
            classes,
        })
    }

    /// Channels of the last 1x1 convolution after a last stage of `width` channels, where stages have lists of
    /// channels.
    pub(super) fn feature_channels(&self, width: usize) -> usize {
        let at_largest = self.head.as_ref().map_or(0, |head| head.feature_channels) as f64;
        let largest = self.stages.last().map_or(1, |stage| stage.channels) as f64;
        middle_channels(width, at_largest / largest)
    }

    /// `base` channels at the width multiplier `ratio` of a subnet.
    pub(crate) fn elastic_width(&self, base: usize, ratio: Value) -> usize {
        make_divisible(base as f64 * self.width_multiplier * ratio.number())
    }

    /// Width multipliers that the outer stages before outer stage `stage` freed, descending, without the largest.
    pub(crate) fn outer_ratios(&self, stage: usize) -> impl Iterator<Item = Value> + '_ {
        self.width_multipliers.iter().rev().take(stage.max(1)).skip(1).map(|&ratio| ratio.into())
    }

    /// Channels of the first convolutions of a deep stem: half of its output's at the same width multiplier.
    pub(crate) fn stem_middle_width(&self, ratio: Value) -> usize {
        make_divisible((self.elastic_width(self.stem.channels, ratio) / 2) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::super::preset;
    use super::*;

    /// Channels worked out with the reference's rules (64, 256, 512, 1024, 2048 at 0.65, 0.8, 1).
    #[test]
    fn a_resnet_of_mixed_widths_has_the_published_channels() {
        let space = preset("resnet50d").unwrap();
        let text = "r224 w0.65,0.8,1,0.65,0.8,1 s1 d2,2,4,2 e0.2,0.35|0.25,0.2|0.2,0.2,0.2,0.2|0.35,0.2";
        let network = space.network(&text.parse().unwrap(), 1000).unwrap();
        let stem: Vec<_> = network.stem.iter().map(|c| (c.in_channels, c.out_channels, c.stride, c.residual)).collect();
        assert_eq!(stem, [(3, 24, 2, false), (24, 24, 1, true), (24, 48, 1, false)]);
        assert_eq!(network.max_pool, Some(MaxPoolSpec { channels: 48, input_size: 112 }));
        let found: Vec<Vec<(usize, usize, usize, usize)>> = network
            .stages
            .iter()
            .map(|blocks| {
                blocks.iter().map(|b| match b {
                    BlockSpec::Bottleneck(b) => (b.in_channels, b.middle_channels, b.out_channels, b.input_size),
                    _ => unreachable!(),
                })
            })
            .map(Iterator::collect)
            .collect();
        assert_eq!(found[0], [(48, 48, 256, 56), (256, 88, 256, 56)]);
        assert_eq!(found[1], [(256, 88, 336, 56), (336, 64, 336, 28)]);
        assert_eq!(found[2], [(336, 160, 816, 28), (816, 160, 816, 14), (816, 160, 816, 14), (816, 160, 816, 14)]);
        assert_eq!(found[3], [(816, 720, 2048, 14), (2048, 408, 2048, 7)]);
        assert_eq!((network.pooled_map(), network.classifier_channels()), ((2048, 7), 2048));
        // Without the stem's block the others stay what they are.
        let skipped = space.network(&text.replace("s1", "s0").parse().unwrap(), 1000).unwrap();
        assert_eq!(skipped.stem, [network.stem[0].clone(), network.stem[2].clone()]);
        assert_eq!(skipped.stages, network.stages);
    }

    #[test]
    fn resizing_gives_the_network_of_that_resolution() {
        for name in super::super::PRESETS {
            let space = preset(name).unwrap();
            let (small, large) = (space.resolutions[0], space.resolutions[space.resolutions.len() - 1]);
            let at = |resolution| space.network(&Subnet { resolution, ..space.largest() }, 5).unwrap();
            let mut network = at(large);
            network.set_resolution(small);
            assert_eq!(network, at(small), "{name}");
        }
    }
}
