//! Checks on a network specification that came from a file.

use crate::{Error, Result};
use ofa_supernet::space::NetworkSpec;

/// Bounds far above every real network and far below what overflows a size computation or exhausts an address space.
const MAX_CHANNELS: usize = 1 << 20;
const MAX_SIZE: usize = 4096;
const MAX_KERNEL: usize = 15;
const MAX_BLOCKS: usize = 4096;

/// Checks that a specification describes a network: sizes within bounds, each layer fitting the one before.
///
/// # Errors
/// The first layer that does not fit, with what was found and what was expected.
pub fn validate(network: &NetworkSpec) -> Result<()> {
    let within = |what: String, value: usize, low: usize, high: usize| {
        if (low..=high).contains(&value) {
            Ok(())
        } else {
            Err(Error::Network(format!("{what} is {value}, it must be between {low} and {high}")))
        }
    };
    let equal = |what: String, value: usize, expected: usize| {
        if value == expected {
            Ok(())
        } else {
            Err(Error::Network(format!("{what} is {value}, the layer before it gives {expected}")))
        }
    };
    let kernel = |what: &str, kernel: usize, stride: usize| {
        within(format!("stride of {what}"), stride, 1, 2)?;
        within(format!("kernel of {what}"), kernel, 1, MAX_KERNEL)?;
        if kernel.is_multiple_of(2) {
            return Err(Error::Network(format!("kernel of {what} is {kernel}, it must be odd")));
        }
        Ok(())
    };

    within("resolution".into(), network.resolution, 1, MAX_SIZE)?;
    let stem = &network.stem;
    equal("input size of the stem".into(), stem.input_size, network.resolution)?;
    within("number of the stem's input channels".into(), stem.in_channels, 3, 3)?;
    within("number of the stem's output channels".into(), stem.out_channels, 1, MAX_CHANNELS)?;
    kernel("the stem", stem.kernel, stem.stride)?;

    within("number of blocks".into(), network.blocks().count(), 1, MAX_BLOCKS)?;
    let (mut channels, mut size) = (stem.out_channels, stem.output_size());
    for (s, blocks) in network.stages.iter().enumerate() {
        for (b, block) in blocks.iter().enumerate() {
            let name = format!("block {s}.{b}");
            equal(format!("number of input channels of {name}"), block.in_channels, channels)?;
            equal(format!("input size of {name}"), block.input_size, size)?;
            within(format!("number of middle channels of {name}"), block.middle_channels, 1, MAX_CHANNELS)?;
            within(format!("number of output channels of {name}"), block.out_channels, 1, MAX_CHANNELS)?;
            kernel(&name, block.kernel, block.stride)?;
            if let Some(reduced) = block.squeeze_excite {
                within(format!("number of squeeze-excite channels of {name}"), reduced, 1, MAX_CHANNELS)?;
            }
            if !block.expand {
                equal(
                    format!("number of middle channels of {name}, which has no expand convolution,"),
                    block.middle_channels,
                    channels,
                )?;
            }
            if block.residual && (block.stride != 1 || block.out_channels != block.in_channels) {
                return Err(Error::Network(format!(
                    "{name} has a residual, but its output ({} channels, stride {}) has not the shape of its input ({} channels)",
                    block.out_channels, block.stride, block.in_channels
                )));
            }
            (channels, size) = (block.out_channels, block.output_size());
        }
    }

    let feature = &network.feature;
    equal("number of input channels of the feature convolution".into(), feature.in_channels, channels)?;
    equal("input size of the feature convolution".into(), feature.input_size, size)?;
    within("number of output channels of the feature convolution".into(), feature.out_channels, 1, MAX_CHANNELS)?;
    within("kernel of the feature convolution".into(), feature.kernel, 1, 1)?;
    within("stride of the feature convolution".into(), feature.stride, 1, 1)?;
    if let Some(hidden) = network.hidden_channels {
        within("hidden_channels".into(), hidden, 1, MAX_CHANNELS)?;
    }
    if !(network.batch_norm_epsilon > 0.0 && network.batch_norm_epsilon <= 1.0) {
        return Err(Error::Network(format!(
            "batch_norm_epsilon is {}, it must be above 0 and at most 1",
            network.batch_norm_epsilon
        )));
    }
    within("classes".into(), network.classes, 1, MAX_CHANNELS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofa_supernet::space::preset;

    #[test]
    fn every_space_is_valid_and_broken_layers_are_named() {
        for name in ["mbv3-w1.2", "proxyless-w1.3", "cifar-mbv3", "tiny"] {
            let space = preset(name).unwrap();
            validate(&space.network(&space.largest(), 10).unwrap()).unwrap();
        }
        let space = preset("tiny").unwrap();
        let good = space.network(&space.largest(), 10).unwrap();
        let broken = |change: fn(&mut NetworkSpec), part: &str| {
            let mut network = good.clone();
            change(&mut network);
            let message = validate(&network).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        };
        broken(|n| n.stages[1][1].in_channels += 1, "input channels of block 1.1");
        broken(|n| n.stages[1][0].kernel = 4, "odd");
        broken(|n| n.stages[1][0].residual = true, "residual");
        broken(|n| n.stages[0][0].middle_channels = 16, "no expand");
        broken(|n| n.stages[2][0].middle_channels = usize::MAX, "middle channels of block 2.0");
        broken(|n| n.resolution = 1 << 40, "resolution");
        broken(|n| n.stages.clear(), "number of blocks");
        broken(|n| n.feature.kernel = 3, "feature");
        broken(|n| n.classes = 0, "classes");
    }
}
