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
    if !(1..=3).contains(&network.stem.len()) {
        return Err(Error::Network(format!("the stem has {} convolutions, it must have 1 to 3", network.stem.len())));
    }
    let (mut channels, mut size) = (3, network.resolution);
    for (index, conv) in network.stem.iter().enumerate() {
        let name =
            if network.stem.len() == 1 { "the stem".into() } else { format!("the stem's convolution {}", index + 1) };
        equal(format!("number of input channels of {name}"), conv.in_channels, channels)?;
        equal(format!("input size of {name}"), conv.input_size, size)?;
        within(format!("number of output channels of {name}"), conv.out_channels, 1, MAX_CHANNELS)?;
        kernel(&name, conv.kernel, conv.stride)?;
        // The names of the tensors rest on this.
        let inner = network.stem.len() == 3 && index == 1;
        if conv.residual != inner || (inner && (conv.in_channels, conv.stride) != (conv.out_channels, 1)) {
            return Err(Error::Network(format!(
                "{name}: the second of three convolutions has a residual and keeps its input's shape, no other has one"
            )));
        }
        (channels, size) = (conv.out_channels, conv.output_size());
    }
    if let Some(pool) = &network.max_pool {
        equal("number of channels of the max pool".into(), pool.channels, channels)?;
        equal("input size of the max pool".into(), pool.input_size, size)?;
        size = pool.output_size();
    }

    within("number of blocks".into(), network.blocks().count(), 1, MAX_BLOCKS)?;
    for (s, blocks) in network.stages.iter().enumerate() {
        for (b, block) in blocks.iter().enumerate() {
            let name = format!("block {s}.{b}");
            equal(format!("number of input channels of {name}"), block.in_channels(), channels)?;
            equal(format!("input size of {name}"), block.input_size(), size)?;
            for (what, count) in block.inner_channels().into_iter().chain([("output", block.out_channels())]) {
                within(format!("number of {what} channels of {name}"), count, 1, MAX_CHANNELS)?;
            }
            kernel(&name, block.kernel(), block.stride())?;
            block.check().map_err(|fault| Error::Network(format!("{name} {fault}")))?;
            (channels, size) = (block.out_channels(), block.output_size());
        }
    }

    if let Some(feature) = &network.feature {
        equal("number of input channels of the feature convolution".into(), feature.in_channels, channels)?;
        equal("input size of the feature convolution".into(), feature.input_size, size)?;
        within("number of output channels of the feature convolution".into(), feature.out_channels, 1, MAX_CHANNELS)?;
        within("kernel of the feature convolution".into(), feature.kernel, 1, 1)?;
        within("stride of the feature convolution".into(), feature.stride, 1, 1)?;
        if feature.residual {
            return Err(Error::Network("the feature convolution cannot have a residual".into()));
        }
    }
    match network.hidden_channels {
        Some(_) if network.feature.is_none() => {
            return Err(Error::Network("a hidden layer needs a feature convolution before it".into()));
        }
        Some(hidden) => within("hidden_channels".into(), hidden, 1, MAX_CHANNELS)?,
        None => {}
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
    use ofa_supernet::space::{BlockSpec, BottleneckSpec, InvertedResidualSpec, preset};

    #[test]
    fn every_space_is_valid_and_broken_layers_are_named() {
        for name in ["mbv3-w1.2", "proxyless-w1.3", "resnet50d", "cifar-mbv3", "tiny"] {
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
        fn block(network: &mut NetworkSpec, stage: usize, block: usize) -> &mut InvertedResidualSpec {
            match &mut network.stages[stage][block] {
                BlockSpec::InvertedResidual(block) => block,
                BlockSpec::Bottleneck(_) => unreachable!("tiny has none"),
            }
        }
        broken(|n| block(n, 1, 1).in_channels += 1, "input channels of block 1.1");
        broken(|n| block(n, 1, 0).kernel = 4, "odd");
        broken(|n| block(n, 1, 0).residual = true, "residual");
        broken(|n| block(n, 0, 0).middle_channels = 16, "no expand");
        broken(|n| block(n, 2, 0).middle_channels = usize::MAX, "middle channels of block 2.0");
        broken(|n| n.resolution = 1 << 40, "resolution");
        broken(|n| n.stages.clear(), "number of blocks");
        broken(|n| n.feature.as_mut().unwrap().kernel = 3, "feature");
        broken(|n| n.feature = None, "hidden layer");
        broken(|n| n.stem.clear(), "0 convolutions");
        broken(|n| n.stem[0].residual = true, "no other");
        broken(|n| n.classes = 0, "classes");

        let space = preset("resnet-tiny").unwrap();
        let good = space.network(&space.largest(), 10).unwrap();
        let broken = |change: fn(&mut NetworkSpec), part: &str| {
            let mut network = good.clone();
            change(&mut network);
            let message = validate(&network).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        };
        fn first(network: &mut NetworkSpec) -> &mut BottleneckSpec {
            match &mut network.stages[0][0] {
                BlockSpec::Bottleneck(block) => block,
                BlockSpec::InvertedResidual(_) => unreachable!("a ResNet has none"),
            }
        }
        broken(|n| first(n).projection = false, "residual");
        broken(|n| first(n).stride = 3, "stride of block 0.0");
        broken(|n| n.stem[1].residual = false, "second of three");
        broken(|n| n.max_pool.as_mut().unwrap().channels = 5, "max pool");
        broken(|n| n.hidden_channels = Some(5), "feature");
    }
}
