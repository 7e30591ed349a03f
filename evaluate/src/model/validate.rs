//! Checks of a network specification that was read from a file.

use crate::{Error, Result};
use ofa_supernet::graph::{MAX_CHANNELS, MAX_KERNEL, MAX_SIZE};
use ofa_supernet::space::{BlockSpec, NetworkSpec};

const MAX_BLOCKS: usize = 4096;

/// Checks that a specification describes a network: sizes within bounds, each layer fitting the one before.
///
/// # Errors
/// The first layer that does not fit, with what was found and what was expected.
pub fn validate(network: &NetworkSpec) -> Result<()> {
    within("resolution", network.resolution, 1, MAX_SIZE)?;
    let mut map = Map { channels: 3, size: network.resolution };
    stem(network, &mut map)?;
    within("number of blocks", network.blocks().count(), 1, MAX_BLOCKS)?;
    for (s, blocks) in network.stages.iter().enumerate() {
        for (b, spec) in blocks.iter().enumerate() {
            block(&format!("block {s}.{b}"), spec, &mut map)?;
        }
    }
    head(network, &map)?;
    if !(network.batch_norm_epsilon > 0.0 && network.batch_norm_epsilon <= 1.0) {
        return Err(Error::Network(format!(
            "batch_norm_epsilon is {}, it must be above 0 and at most 1",
            network.batch_norm_epsilon
        )));
    }
    within("classes", network.classes, 1, MAX_CHANNELS)
}

/// Extent of the map between two layers.
struct Map {
    channels: usize,
    size: usize,
}

impl Map {
    /// Checks that a layer reads this map.
    fn is_input_of(&self, layer: &str, in_channels: usize, input_size: usize) -> Result<()> {
        equal(&format!("number of input channels of {layer}"), in_channels, self.channels)?;
        equal(&format!("input size of {layer}"), input_size, self.size)
    }
}

fn stem(network: &NetworkSpec, map: &mut Map) -> Result<()> {
    if !(1..=3).contains(&network.stem.len()) {
        return Err(Error::Network(format!("the stem has {} convolutions, it must have 1 to 3", network.stem.len())));
    }
    for (index, conv) in network.stem.iter().enumerate() {
        let name =
            if network.stem.len() == 1 { "the stem".into() } else { format!("the stem's convolution {}", index + 1) };
        map.is_input_of(&name, conv.in_channels, conv.input_size)?;
        within(&format!("number of output channels of {name}"), conv.out_channels, 1, MAX_CHANNELS)?;
        kernel(&name, conv.kernel, conv.stride)?;
        // Names of tensors depend on this.
        let inner = network.stem.len() == 3 && index == 1;
        if conv.residual != inner || (inner && (conv.in_channels, conv.stride) != (conv.out_channels, 1)) {
            return Err(Error::Network(format!(
                "{name}: the second of three convolutions has a residual and keeps its input's shape, no other has one"
            )));
        }
        *map = Map { channels: conv.out_channels, size: conv.output_size() };
    }
    if let Some(pool) = &network.max_pool {
        equal("number of channels of the max pool", pool.channels, map.channels)?;
        equal("input size of the max pool", pool.input_size, map.size)?;
        map.size = pool.output_size();
    }
    Ok(())
}

fn block(name: &str, block: &BlockSpec, map: &mut Map) -> Result<()> {
    map.is_input_of(name, block.in_channels(), block.input_size())?;
    // Before the output, whose extent is divided by the stride.
    if let Some((size, stride)) = block.window() {
        kernel(name, size, stride)?;
    }
    for (what, count) in block.inner_channels().into_iter().chain([("output", block.out_channels())]) {
        within(&format!("number of {what} channels of {name}"), count, 1, MAX_CHANNELS)?;
    }
    block.check().map_err(|fault| Error::Network(format!("{name} {fault}")))?;
    *map = Map { channels: block.out_channels(), size: block.output_size() };
    Ok(())
}

fn head(network: &NetworkSpec, map: &Map) -> Result<()> {
    if let Some(feature) = &network.feature {
        let name = "the feature convolution";
        map.is_input_of(name, feature.in_channels, feature.input_size)?;
        within(&format!("number of output channels of {name}"), feature.out_channels, 1, MAX_CHANNELS)?;
        within(&format!("kernel of {name}"), feature.kernel, 1, 1)?;
        within(&format!("stride of {name}"), feature.stride, 1, 1)?;
        if feature.residual {
            return Err(Error::Network(format!("{name} cannot have a residual")));
        }
    }
    match network.hidden_channels {
        Some(_) if network.feature.is_none() => {
            Err(Error::Network("a hidden layer needs a feature convolution before it".into()))
        }
        Some(hidden) => within("hidden_channels", hidden, 1, MAX_CHANNELS),
        None => Ok(()),
    }
}

fn kernel(name: &str, kernel: usize, stride: usize) -> Result<()> {
    within(&format!("stride of {name}"), stride, 1, 2)?;
    within(&format!("kernel of {name}"), kernel, 1, MAX_KERNEL)?;
    if kernel.is_multiple_of(2) {
        return Err(Error::Network(format!("kernel of {name} is {kernel}, it must be odd")));
    }
    Ok(())
}

fn within(what: &str, value: usize, low: usize, high: usize) -> Result<()> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(Error::Network(format!("{what} is {value}, it must be between {low} and {high}")))
}

fn equal(what: &str, value: usize, expected: usize) -> Result<()> {
    if value == expected {
        return Ok(());
    }
    Err(Error::Network(format!("{what} is {value}, the layer before it gives {expected}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofa_supernet::space::{BottleneckSpec, InvertedResidualSpec, preset};

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
                _ => unreachable!("tiny has no others"),
            }
        }
        broken(|n| block(n, 1, 1).in_channels += 1, "input channels of block 1.1");
        broken(|n| block(n, 1, 0).kernel = 4, "odd");
        broken(|n| block(n, 1, 0).stride = 0, "stride of block 1.0");
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
                _ => unreachable!("a ResNet has no others"),
            }
        }
        broken(|n| first(n).projection = false, "residual");
        broken(|n| first(n).stride = 3, "stride of block 0.0");
        broken(|n| n.stem[1].residual = false, "second of three");
        broken(|n| n.max_pool.as_mut().unwrap().channels = 5, "max pool");
        broken(|n| n.hidden_channels = Some(5), "feature");
    }
}
