//! Costs of a static network that are the same on every device: multiply-accumulates, parameters, activation memory.
//!
//! All are folds over the network's [`Graph`]; nothing runs. Where several are asked for, lower once and ask the graph.

use crate::quantise::Rule;
use ofa_supernet::graph::{Graph, Op};
use ofa_supernet::space::NetworkSpec;

/// Multiply-accumulates of one image's forward pass: [`Graph::macs`].
pub fn macs(network: &NetworkSpec) -> u64 {
    Graph::of(network).macs()
}

/// Trainable numbers of the network: [`Graph::parameters`].
pub fn parameters(network: &NetworkSpec) -> u64 {
    Graph::of(network).parameters()
}

/// Numbers in the tensors of the extracted model: [`Graph::stored_numbers`].
pub fn stored_numbers(network: &NetworkSpec) -> u64 {
    Graph::of(network).stored_numbers()
}

/// Largest number of bytes of activations alive at once, for one f32 image: 4 times [`Graph::peak_values`].
///
/// Weights and a runtime's own scratch memory are not counted.
pub fn peak_activation_bytes(network: &NetworkSpec) -> u64 {
    Graph::of(network).peak_values().saturating_mul(4)
}

/// Bytes of the tensors of the int8 model: a byte per weight of the layers that [`Rule`] rounds, a scale and a bias of
/// 4 bytes each per output channel; for all other layers 2 bytes per weight and 4 per bias. Batch norm is folded into
/// the layers. A model whose quantisation kept layers in f32 by name is larger.
pub fn int8_bytes(network: &NetworkSpec) -> u64 {
    let graph = Graph::of(network);
    let rule = Rule::of(&graph, &[].into());
    let of_node = |(index, int8): (usize, &bool)| {
        let node = graph.nodes()[index];
        let inputs = node.inputs().first().map_or(0, |input| graph.node(*input).shape.channels);
        let per_output = match node.op {
            Op::Convolution { kernel, groups, .. } => inputs / groups.max(1) * kernel * kernel,
            Op::Linear => inputs,
            _ => return 0,
        };
        let (out, per_output) = (node.shape.channels as u64, per_output as u64);
        out.saturating_mul(if *int8 {
            per_output.saturating_add(8)
        } else {
            per_output.saturating_mul(2).saturating_add(4)
        })
    };
    rule.int8.iter().enumerate().map(of_node).fold(0, u64::saturating_add)
}

/// Largest number of bytes of activations alive at once, for one image in int8: [`Graph::peak_values`].
pub fn peak_int8_activation_bytes(network: &NetworkSpec) -> u64 {
    Graph::of(network).peak_values()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofa_supernet::space::{BlockSpec, BottleneckSpec, InvertedResidualSpec, preset};

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
    fn int8_bytes_are_those_of_the_layers() {
        use crate::quantise::{QuantisedLayer, QuantisedNetwork};
        for name in ["tiny", "resnet-tiny", "attentive-tiny", "mbv3-w1.0"] {
            let space = preset(name).unwrap();
            let network = space.network(&space.middle(), 10).unwrap();
            let layers = QuantisedNetwork::random(&network, &[].into(), 1).unwrap().layers;
            let bytes = layers.values().map(|layer| match layer {
                QuantisedLayer::Int8(layer) => layer.weight.len() + 8 * layer.bias.len(),
                QuantisedLayer::F32 { weight, bias } => 2 * weight.len() + 4 * bias.len(),
            });
            assert_eq!(int8_bytes(&network), bytes.sum::<usize>() as u64, "{name}");
            assert!(int8_bytes(&network) < stored_numbers(&network) * 2);
        }
    }

    #[test]
    fn costs_of_the_largest_extents_that_a_file_can_name_saturate() {
        let space = preset("tiny").unwrap();
        let mut network = space.network(&space.largest(), 10).unwrap();
        let most = ofa_supernet::graph::MAX_CHANNELS;
        network.set_resolution(ofa_supernet::graph::MAX_SIZE);
        network.stem[0].out_channels = most;
        let wide = "wide 2048x2048x1048576: a=conv 1048576 k15 s1; b=norm";
        let wide: BlockSpec = serde_json::from_value(wide.into()).unwrap();
        network.stages = vec![vec![wide; 5]];
        let feature = network.feature.as_mut().unwrap();
        (feature.in_channels, feature.input_size, feature.out_channels) = (most, 2048, most);
        crate::model::validate(&network).unwrap();
        assert_eq!(macs(&network), u64::MAX);
        // Five blocks of 225 * 2^40 weights, and little besides.
        assert!(parameters(&network) > (5 * 225) << 40 && parameters(&network) < (5 * 226) << 40);
        assert_eq!(peak_activation_bytes(&network), (2 * 4) << 42);
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
        // Alone, a block without a projection keeps its input: 12 * 12 * 16 beside both middle maps of 12 * 12 * 8 or a
        // middle map and the output.
        let BlockSpec::Bottleneck(block) = network.stages[0][0].clone() else { unreachable!() };
        let identity = BottleneckSpec { in_channels: 16, projection: false, ..block };
        let alone = BlockSpec::Bottleneck(identity).graph(network.batch_norm_epsilon);
        assert_eq!(alone.peak_values(), 144 * (16 + 8 + 16));
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
        // 16 px: image 16*16*3 = 768; stem 8*8*8 = 512; first block (residual, no expand): 512 + 512 + 512 = 1536 at
        // its projection; stage 1, expand 2 of 8 -> 16 channels: expand 512 + 1024, depthwise (stride 2, no residual)
        // 1024 + 256; later layers are smaller.
        let network = space.network(&space.smallest(), 10).unwrap();
        let block = |network: &NetworkSpec, stage: usize| match &network.stages[stage][0] {
            BlockSpec::InvertedResidual(block) => block.clone(),
            _ => unreachable!("tiny has no others"),
        };
        assert!(block(&network, 0).residual && !block(&network, 1).residual);
        assert_eq!(peak_activation_bytes(&network), 4 * 1536);
        // Expand 4 of 8 -> 32 channels at 8x8: 512 + 2048 = 2560 at the expand, 2048 + 512 at the depthwise.
        let wide = space.network(&"r16 d1,1 k3|3 e4|4".parse().unwrap(), 10).unwrap();
        assert_eq!(peak_activation_bytes(&wide), 4 * 2560);
        // With SE and a residual the block's input, both middle maps and nothing else are alive at the depthwise.
        let block = InvertedResidualSpec { residual: true, stride: 1, ..block(&wide, 1) };
        let alone = BlockSpec::InvertedResidual(block).graph(wide.batch_norm_epsilon);
        assert_eq!(alone.peak_values(), 512 + 2048 + 2048);
    }
}
