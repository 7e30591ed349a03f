//! What a static network costs on every device alike: multiply-accumulates, parameters, activation memory.
//!
//! All are closed formulas over the layer list; nothing runs.

use ofa_supernet::space::{BlockSpec, BottleneckSpec, ConvSpec, InvertedResidualSpec, NetworkSpec};

/// Multiply-accumulates of one image's forward pass: [`NetworkSpec::macs`].
pub fn macs(network: &NetworkSpec) -> u64 {
    network.macs()
}

/// Trainable numbers of the network: weights, biases, and batch norm's scale and shift. Running statistics are not
/// parameters and are not counted.
pub fn parameters(network: &NetworkSpec) -> u64 {
    let dense: u64 = network.stem.iter().chain(&network.feature).map(conv_parameters).sum();
    let blocks: u64 = network.blocks().map(block_parameters).sum();
    let hidden = network.hidden_channels.map_or(0, |width| product(&[network.pooled_map().0, width]));
    let classifier = product(&[network.classifier_channels() + 1, network.classes]);
    dense + blocks + hidden + classifier
}

fn conv_parameters(conv: &ConvSpec) -> u64 {
    product(&[conv.out_channels, conv.in_channels, conv.kernel, conv.kernel]) + 2 * conv.out_channels as u64
}

fn block_parameters(block: &BlockSpec) -> u64 {
    let block = match block {
        BlockSpec::InvertedResidual(block) => block,
        BlockSpec::Bottleneck(block) => {
            return block.convolutions().iter().chain(&block.shortcut()).map(conv_parameters).sum();
        }
    };
    let middle = block.middle_channels;
    let expand = if block.expand { product(&[block.in_channels + 2, middle]) } else { 0 };
    let depthwise = product(&[middle, block.kernel, block.kernel]) + 2 * middle as u64;
    let squeeze = block.squeeze_excite.map_or(0, |reduced| 2 * product(&[reduced, middle]) + (reduced + middle) as u64);
    let project = product(&[middle + 2, block.out_channels]);
    expand + depthwise + squeeze + project
}

/// Numbers in the tensors of the extracted model: its [`parameters`], and batch norm's running mean and variance.
pub fn stored_numbers(network: &NetworkSpec) -> u64 {
    parameters(network) + 2 * network.norm_widths().iter().map(|&width| width as u64).sum::<u64>()
}

/// Largest number of bytes of activations alive at once, for one f32 image executed layer by layer.
///
/// A layer's input and output are alive while it runs; nothing is computed in place except activations, batch norm, the
/// residual sum (into the projection's output) and the gate's product (into the projection's input). Per layer that is:
///
/// - stem: input + output of each convolution, the residual sum in place; max pool: input + output;
/// - expand: block input + expanded;
/// - depthwise: expanded (or the block input where there is no expand) + output, + block input if there is a residual;
/// - squeeze-excite: depthwise output + pooled (or gate) vector + reduced vector, + block input if there is a residual;
/// - project: depthwise output + gate vector + output, + block input if there is a residual;
/// - bottleneck: its shortcut first (input + pooled input, then input + pooled input + shortcut), which is kept to the end: then input +
///   first middle map, both middle maps (and the input where that is the shortcut), second middle map + output;
/// - feature convolution, average pool, hidden layer, classifier: input + output.
///
/// Weights and a runtime's own scratch memory are not counted.
pub fn peak_activation_bytes(network: &NetworkSpec) -> u64 {
    let conv = |conv: &ConvSpec| map(conv.input_size, conv.in_channels) + map(conv.output_size(), conv.out_channels);
    let dense = network.stem.iter().chain(&network.feature).map(conv).max().unwrap_or(0);
    let max_pool = network.max_pool.as_ref();
    let max_pool = max_pool.map_or(0, |p| map(p.input_size, p.channels) + map(p.output_size(), p.channels));
    let blocks = network.blocks().map(|block| match block {
        BlockSpec::InvertedResidual(block) => inverted_residual_memory(block),
        BlockSpec::Bottleneck(block) => bottleneck_memory(block),
    });
    let (features, size) = network.pooled_map();
    let (pooled, hidden) = (features as u64, network.hidden_channels.unwrap_or(0) as u64);
    let floats = blocks
        .fold(dense.max(max_pool), u64::max)
        .max(map(size, features) + pooled)
        .max(pooled + hidden)
        .max(network.classifier_channels() as u64 + network.classes as u64);
    4 * floats
}

/// Values of a square map.
fn map(size: usize, channels: usize) -> u64 {
    product(&[size, size, channels])
}

fn inverted_residual_memory(block: &InvertedResidualSpec) -> u64 {
    let input = map(block.input_size, block.in_channels);
    let kept = if block.residual { input } else { 0 };
    let expanded = map(block.input_size, block.middle_channels);
    let depthwise = map(block.output_size(), block.middle_channels);
    let output = map(block.output_size(), block.out_channels);
    let gate = block.squeeze_excite.map_or(0, |_| block.middle_channels as u64);
    let reduced = block.squeeze_excite.map_or(0, |reduced| reduced as u64);
    let depthwise_step = if block.expand { kept + expanded + depthwise } else { input + depthwise };
    let expand_step = if block.expand { input + expanded } else { 0 };
    expand_step.max(depthwise_step).max(kept + depthwise + gate + reduced).max(kept + depthwise + gate + output)
}

fn bottleneck_memory(block: &BottleneckSpec) -> u64 {
    let input = map(block.input_size, block.in_channels);
    let first = map(block.input_size, block.middle_channels);
    let second = map(block.output_size(), block.middle_channels);
    let output = map(block.output_size(), block.out_channels);
    if !block.projection {
        return input + first.max(first + second).max(second + output);
    }
    // The pool of a stride of 1 is no pool: the convolution reads the input itself.
    let pooled = if block.stride > 1 { map(block.output_size(), block.in_channels) } else { 0 };
    let shortcut = input + pooled + output;
    shortcut.max(input + output + first).max(output + first + second).max(output + second + output)
}

fn product(factors: &[usize]) -> u64 {
    factors.iter().map(|&f| f as u64).product()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofa_supernet::space::preset;

    #[test]
    fn stored_numbers_are_those_of_the_model_file() {
        for name in ["tiny", "mbv3-w1.0", "proxyless-w1.3", "resnet50d"] {
            let space = preset(name).unwrap();
            for subnet in [space.smallest(), space.middle(), space.largest()] {
                let network = space.network(&subnet, 10).unwrap();
                let shapes = crate::model::tensor_shapes(&network);
                let numbers: usize = shapes.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
                assert_eq!(stored_numbers(&network), numbers as u64, "{name}: {subnet}");
            }
        }
    }

    #[test]
    fn a_resnet_worked_out_by_hand() {
        // 24 px, all widths 0.5, expand 0.25 (8 channels at least everywhere), stem without its block.
        let space = preset("resnet-tiny").unwrap();
        let network = space.network(&space.smallest(), 10).unwrap();
        let stem = 576 * (27 * 8 + 9 * 8 * 8);
        let first = 144 * (8 * 8 + 9 * 8 * 8 + 8 * 16 + 8 * 16);
        let second = 144 * 16 * 8 + 36 * (9 * 8 * 8 + 8 * 32 + 16 * 32);
        assert_eq!(macs(&network), stem + first + second + 32 * 10);
        let weights = 27 * 8 + 9 * 64 + (64 + 9 * 64 + 128 + 128) + (128 + 9 * 64 + 256 + 512) + 320 + 10;
        let norms = 8 + 8 + (8 + 8 + 16 + 16) + (8 + 8 + 32 + 32);
        assert_eq!(parameters(&network), weights + 2 * norms);
        // Both maps of the stem's last convolution: 24 * 24 * 8 each.
        assert_eq!(peak_activation_bytes(&network), 4 * 2 * 4608);
        // Alone, a block without a projection keeps its input: 12 * 12 * 16 beside both middle maps of 12 * 12 * 8 or a middle map and
        // the output.
        let (mut alone, BlockSpec::Bottleneck(block)) = (network.clone(), network.stages[0][0].clone()) else {
            unreachable!()
        };
        let identity = BottleneckSpec { in_channels: 16, projection: false, ..block };
        (alone.stem, alone.max_pool, alone.stages) = (vec![], None, vec![vec![BlockSpec::Bottleneck(identity)]]);
        assert_eq!(peak_activation_bytes(&alone), 4 * 144 * (16 + 8 + 16));
    }

    #[test]
    fn parameters_equal_the_tensors_that_are_written() {
        for name in ["tiny", "cifar-mbv3", "resnet-tiny", "resnet50d"] {
            let space = preset(name).unwrap();
            for subnet in [space.smallest(), space.middle(), space.largest()] {
                let network = space.network(&subnet, 7).unwrap();
                let written: usize = crate::model::tensor_shapes(&network)
                    .iter()
                    .filter(|(name, _)| !name.contains("running_"))
                    .map(|(_, shape)| shape.iter().product::<usize>())
                    .sum();
                assert_eq!(parameters(&network), written as u64);
            }
        }
    }

    #[test]
    fn peak_memory_of_a_network_worked_out_by_hand() {
        let space = preset("tiny").unwrap();
        // 16 px: image 16*16*3 = 768; stem 8*8*8 = 512; first block (residual, no expand): 512 + 512 + 512 = 1536 at its
        // projection; stage 1, expand 2 of 8 -> 16 channels: expand 512 + 1024, depthwise (stride 2, no residual)
        // 1024 + 256; later layers are smaller.
        let network = space.network(&space.smallest(), 10).unwrap();
        let block = |network: &NetworkSpec, stage: usize| match &network.stages[stage][0] {
            BlockSpec::InvertedResidual(block) => block.clone(),
            BlockSpec::Bottleneck(_) => unreachable!("tiny has none"),
        };
        assert!(block(&network, 0).residual && !block(&network, 1).residual);
        assert_eq!(peak_activation_bytes(&network), 4 * 1536);
        // Expand 4 of 8 -> 32 channels at 8x8: 512 + 2048 = 2560 at the expand, 2048 + 512 at the depthwise.
        let wide = space.network(&"r16 d1,1 k3|3 e4|4".parse().unwrap(), 10).unwrap();
        assert_eq!(peak_activation_bytes(&wide), 4 * 2560);
        // With SE and a residual the block's input, both middle maps and nothing else are alive at the depthwise.
        let block = InvertedResidualSpec { residual: true, stride: 1, ..block(&wide, 1) };
        let network = NetworkSpec { stages: vec![vec![BlockSpec::InvertedResidual(block)]], ..wide };
        assert_eq!(peak_activation_bytes(&network), 4 * (512 + 2048 + 2048));
    }
}
