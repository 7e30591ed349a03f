//! From a space and a subnet to the static network.

use super::network_spec::{middle_channels, reduced_channels};
use super::{
    Activation, BlockChoice, BlockSpec, BottleneckSpec, ConvSpec, Family, FirstBlock, Head, InvertedResidualSpec,
    MaxPoolSpec, NetworkSpec, SearchSpace, Stage, Subnet, Value, make_divisible,
};
use crate::blocks::{BlockSettings, CustomSpec};
use crate::{Error, Result};

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
        match (self.family, &self.first_block, &self.head) {
            (Family::AttentiveNas, _, Some(head)) => self.attentive(subnet, head, classes),
            (_, Some(first), Some(head)) => self.inverted_residuals(subnet, first, head, classes),
            _ => self.bottlenecks(subnet, classes),
        }
    }

    /// Kernel sizes of `stage` that have a transform of their own, and the largest. Without transforms a smaller kernel
    /// is the centre of the largest.
    pub(crate) fn transformed_kernel_sizes(&self, stage: usize) -> &[usize] {
        let sizes = self.stage_kernel_sizes(stage);
        if self.family == Family::AttentiveNas { &sizes[sizes.len() - 1..] } else { sizes }
    }

    fn inverted_residuals(
        &self,
        subnet: &Subnet,
        first: &FirstBlock,
        head: &Head,
        classes: usize,
    ) -> Result<NetworkSpec> {
        let stem = ConvSpec {
            in_channels: 3,
            out_channels: self.width(self.stem.channels),
            kernel: 3,
            stride: self.stem.stride,
            activation: self.stem.activation,
            residual: false,
            input_size: subnet.resolution,
        };
        let mut channels = self.width(first.channels);
        let mut size = stem.output_size();
        let mut stages = vec![vec![BlockSpec::InvertedResidual(InvertedResidualSpec {
            in_channels: stem.out_channels,
            middle_channels: stem.out_channels,
            out_channels: channels,
            kernel: 3,
            stride: 1,
            activation: first.activation,
            expand: false,
            squeeze_excite: None,
            // The published ProxylessNAS has none here, not even at widths that make both sides equal.
            residual: self.family == Family::MobileNetV3 && stem.out_channels == channels,
            projection: false,
            input_size: size,
        })]];
        for (stage, choices) in self.stages.iter().zip(&subnet.stages) {
            let out_channels = self.width(stage.channels);
            let mut blocks = Vec::with_capacity(choices.len());
            for (index, choice) in choices.iter().enumerate() {
                if let Some(block) = custom(stage, choice, index, (channels, out_channels), size)? {
                    (channels, size) = (out_channels, block.output_size());
                    blocks.push(block);
                    continue;
                }
                let middle = middle_channels(channels, choice.expand.value());
                let block = InvertedResidualSpec {
                    in_channels: channels,
                    middle_channels: middle,
                    out_channels,
                    kernel: choice.kernel,
                    stride: if index == 0 { stage.stride } else { 1 },
                    activation: stage.activation,
                    expand: true,
                    squeeze_excite: stage.squeeze_excite.then(|| reduced_channels(middle)),
                    residual: channels == out_channels && (index > 0 || stage.stride == 1),
                    projection: false,
                    input_size: size,
                };
                size = block.output_size();
                channels = out_channels;
                blocks.push(BlockSpec::InvertedResidual(block));
            }
            stages.push(blocks);
        }
        let feature = ConvSpec {
            in_channels: channels,
            out_channels: self.width(head.feature_channels),
            kernel: 1,
            stride: 1,
            activation: head.activation,
            residual: false,
            input_size: size,
        };
        Ok(NetworkSpec {
            resolution: subnet.resolution,
            stem: vec![stem],
            max_pool: None,
            stages,
            feature: Some(feature),
            hidden_channels: head.hidden_channels.map(|channels| self.width(channels)),
            hidden_activation: head.activation,
            batch_norm_epsilon: self.batch_norm_epsilon,
            classes,
        })
    }

    fn attentive(&self, subnet: &Subnet, head: &Head, classes: usize) -> Result<NetworkSpec> {
        let mut widths = subnet.widths.iter().map(|width| width.count());
        let mut next_width = || widths.next().expect("checked: a width for each boundary");
        let stem = ConvSpec {
            in_channels: 3,
            out_channels: next_width(),
            kernel: 3,
            stride: self.stem.stride,
            activation: self.stem.activation,
            residual: false,
            input_size: subnet.resolution,
        };
        let (mut channels, mut size) = (stem.out_channels, stem.output_size());
        let mut stages = Vec::with_capacity(self.stages.len());
        for (number, (stage, choices)) in self.stages.iter().zip(&subnet.stages).enumerate() {
            let out_channels = next_width();
            // A stage that never expands has no expand convolutions.
            let expand = self.stage_expand_ratios(number).iter().any(|ratio| ratio.value() != 1.0);
            let mut blocks = Vec::with_capacity(choices.len());
            for (index, choice) in choices.iter().enumerate() {
                if let Some(block) = custom(stage, choice, index, (channels, out_channels), size)? {
                    (channels, size) = (out_channels, block.output_size());
                    blocks.push(block);
                    continue;
                }
                let middle = if expand { middle_channels(channels, choice.expand.value()) } else { channels };
                let block = InvertedResidualSpec {
                    in_channels: channels,
                    middle_channels: middle,
                    out_channels,
                    kernel: choice.kernel,
                    stride: if index == 0 { stage.stride } else { 1 },
                    activation: stage.activation,
                    expand,
                    squeeze_excite: stage.squeeze_excite.then(|| reduced_channels(middle)),
                    residual: true,
                    projection: channels != out_channels,
                    input_size: size,
                };
                (channels, size) = (out_channels, block.output_size());
                blocks.push(BlockSpec::InvertedResidual(block));
            }
            stages.push(blocks);
        }
        let feature = ConvSpec {
            in_channels: channels,
            out_channels: self.feature_channels(channels),
            kernel: 1,
            stride: 1,
            activation: head.activation,
            residual: false,
            input_size: size,
        };
        Ok(NetworkSpec {
            resolution: subnet.resolution,
            stem: vec![stem],
            max_pool: None,
            stages,
            feature: Some(feature),
            hidden_channels: Some(next_width()),
            hidden_activation: head.activation,
            batch_norm_epsilon: self.batch_norm_epsilon,
            classes,
        })
    }

    fn bottlenecks(&self, subnet: &Subnet, classes: usize) -> Result<NetworkSpec> {
        let middle = self.stem_middle_width(subnet.widths[0]);
        let first = ConvSpec {
            in_channels: 3,
            out_channels: middle,
            kernel: 3,
            stride: self.stem.stride,
            activation: self.stem.activation,
            residual: false,
            input_size: subnet.resolution,
        };
        let optional = ConvSpec {
            in_channels: middle,
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
        let (mut channels, mut size) = (pool.channels, pool.output_size());
        let mut stem = vec![first];
        stem.extend(vec![optional; subnet.stem_blocks]);
        stem.push(last);
        let mut stages = Vec::with_capacity(self.stages.len());
        for ((stage, choices), &width) in self.stages.iter().zip(&subnet.stages).zip(&subnet.widths[2..]) {
            let out_channels = self.elastic_width(stage.channels, width);
            let mut blocks = Vec::with_capacity(choices.len());
            for (index, choice) in choices.iter().enumerate() {
                if let Some(block) = custom(stage, choice, index, (channels, out_channels), size)? {
                    (channels, size) = (out_channels, block.output_size());
                    blocks.push(block);
                    continue;
                }
                let block = BottleneckSpec {
                    in_channels: channels,
                    middle_channels: middle_channels(out_channels, choice.expand.value()),
                    out_channels,
                    kernel: choice.kernel,
                    stride: if index == 0 { stage.stride } else { 1 },
                    activation: stage.activation,
                    projection: index == 0,
                    input_size: size,
                };
                (channels, size) = (out_channels, block.output_size());
                blocks.push(BlockSpec::Bottleneck(block));
            }
            stages.push(blocks);
        }
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

    /// Channels of the first convolutions of a deep stem: half of its output's at the same width multiplier.
    pub(crate) fn stem_middle_width(&self, ratio: Value) -> usize {
        make_divisible((self.elastic_width(self.stem.channels, ratio) / 2) as f64)
    }

    /// Middle channels of block `block` of stage `stage` at each expand ratio, descending, in the network of the
    /// largest widths.
    pub fn middle_widths(&self, stage: usize, block: usize) -> Vec<usize> {
        let stage_width = |stage: &Stage| match self.width_multipliers.last() {
            Some(&ratio) => self.elastic_width(stage.channels, ratio.into()),
            None if self.has_boundary_lists() => stage.channels,
            None => self.width(stage.channels),
        };
        let channels = match (&self.first_block, stage, block) {
            (None, 0, 0) if self.has_boundary_lists() => self.stem.channels,
            (Some(first), 0, 0) => self.width(first.channels),
            (_, 1.., 0) if !self.family.has_bottlenecks() => stage_width(&self.stages[stage - 1]),
            _ => stage_width(&self.stages[stage]),
        };
        self.stage_expand_ratios(stage).iter().rev().map(|ratio| middle_channels(channels, ratio.value())).collect()
    }
}

/// Block `index` of a stage that has a custom kind, from and to these numbers of channels.
fn custom(
    stage: &Stage,
    choice: &BlockChoice,
    index: usize,
    (in_channels, out_channels): (usize, usize),
    input_size: usize,
) -> Result<Option<BlockSpec>> {
    let Some(kind) = &stage.block else { return Ok(None) };
    let settings = BlockSettings {
        in_channels,
        out_channels,
        kernel: choice.kernel,
        expand: choice.expand,
        stride: if index == 0 { stage.stride } else { 1 },
        activation: stage.activation,
        squeeze_excite: stage.squeeze_excite,
        input_size,
    };
    Ok(Some(BlockSpec::Custom(CustomSpec::new(kind, &settings)?)))
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
