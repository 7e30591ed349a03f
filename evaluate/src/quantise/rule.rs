//! Which layers become integers, and which values are rounded: a rule over the graph, so that search can price it.

use super::node_names;
use ofa_supernet::graph::{Graph, Node, NodeId, Op};
use ofa_supernet::ops::inference::int8::Depthwise;
use ofa_supernet::space::Activation;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// An engine that int8 models are made for: each is fast with values rounded at other places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// The runtime of `ofa`: rounding where values are written to memory.
    Ofa,
    /// Rounding at the places of `Ofa`, since OpenVINO fuses the same operations.
    OpenVino,
    /// Operators are computed in integers only if all inputs and the output are rounded: directly after each
    /// convolution, before hard-swish and sums, and in squeeze-excite.
    OnnxRuntime,
    /// Both inputs of a sum are rounded, and zero is in the middle of all integers.
    TensorRt,
}

/// What a quantised network rounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Whether each node is a layer of integers.
    pub int8: Vec<bool>,
    /// Whether the output of each node is rounded.
    pub rounded: Vec<bool>,
}

impl Rule {
    /// The rule for `graph`, where the layers named in `keep_f32` stay f32.
    ///
    /// Layers become integers, but for depthwise convolutions without a kernel for them, and for the two of
    /// squeeze-excite: these work on a single pixel, and their factors multiply every pixel. Rounded is each value that
    /// a step of the runtime writes to memory: the output of a convolution with its batch norm, sum and activation, of
    /// a pool, sum or gate, and the images where an int8 layer reads them. The logits and all values inside
    /// squeeze-excite stay f32.
    pub fn of(graph: &Graph, keep_f32: &HashSet<String>) -> Self {
        Rule::for_engine(graph, keep_f32, Engine::Ofa)
    }

    /// The rule with the values that `engine` rounds besides.
    pub fn for_engine(graph: &Graph, keep_f32: &HashSet<String>, engine: Engine) -> Self {
        let (nodes, names, consumers) = (graph.nodes(), node_names(graph), graph.consumers());
        let (factors, fused) = (factors(graph), fused(graph));
        let is_layer = |node: &Node| match node.op {
            Op::Convolution { kernel, stride, groups, .. } => groups == 1 || Depthwise::supports(kernel, stride),
            Op::Linear => true,
            _ => false,
        };
        let int8: Vec<bool> = (0..nodes.len())
            .map(|index| {
                let by_rule = engine == Engine::OnnxRuntime || !factors[index];
                is_layer(&nodes[index]) && by_rule && !keep_f32.contains(&names[index])
            })
            .collect();
        let images_are_read = consumers[0].iter().any(|reader| int8[reader.index()]);
        let rounded = (0..nodes.len()).map(|index| match (nodes[index].op, &consumers[index][..]) {
            (Op::Input, _) => images_are_read,
            (_, []) => false,
            (_, [reader]) if factors[index] || fused[index] => {
                engine.rounds(&nodes[index], graph.node(*reader), factors[index])
            }
            _ => !factors[index] && !fused[index],
        });
        Rule { rounded: rounded.collect(), int8 }
    }
}

impl Engine {
    /// Every engine with its name and a line of help. This program's own comes first.
    pub const TABLE: &[(Engine, &str, &str)] = &[
        (Engine::Ofa, "ofa", "This program: nothing between a convolution, its sum and its activation is rounded"),
        (Engine::OnnxRuntime, "onnxruntime", "Rounds directly after each convolution, and inside squeeze-excite"),
        (Engine::OpenVino, "openvino", "Rounds where this program does"),
        (Engine::TensorRt, "tensorrt", "Rounds both inputs of a sum; zero is in the middle of all integers"),
    ];

    /// The engines that read files in formats of their own.
    pub const OTHERS: &[(Engine, &str, &str)] = Engine::TABLE.split_at(1).1;

    /// Name on the command line and in files.
    pub fn name(self) -> &'static str {
        Engine::TABLE.iter().find(|row| row.0 == self).map_or("", |row| row.1)
    }

    /// Whether the engine rounds a value that this runtime keeps in f32, with a single reader. `squeezed` values are
    /// those of squeeze-excite.
    fn rounds(self, node: &Node, reader: &Node, squeezed: bool) -> bool {
        match (self, reader.op) {
            (Engine::Ofa | Engine::OpenVino, _) => false,
            // Taken along by the convolution.
            (Engine::OnnxRuntime, Op::Activation(Activation::Relu | Activation::Relu6) | Op::BatchNorm) => false,
            (Engine::OnnxRuntime, Op::Activation(_) | Op::Add) => {
                squeezed || matches!(node.op, Op::Convolution { .. } | Op::BatchNorm | Op::Add)
            }
            (Engine::OnnxRuntime, _) => squeezed,
            (Engine::TensorRt, reader) => reader == Op::Add,
        }
    }
}

/// Nodes between an average over all pixels and the factors of a gate, both included: squeeze-excite. Whatever the
/// factors are made with, the map that they multiply is none of them.
pub fn factors(graph: &Graph) -> Vec<bool> {
    let mut inside = vec![false; graph.nodes().len()];
    let mut outside = inside.clone();
    for (index, node) in graph.nodes().iter().enumerate().rev() {
        let (reads_factors, inputs) = (node.op == Op::Gate, node.inputs());
        if reads_factors {
            inside[inputs[1].index()] = true;
            outside[inputs[0].index()] = true;
        }
        if outside[index] {
            inside[index] = false;
            let maps = if reads_factors { &inputs[..1] } else { inputs };
            maps.iter().for_each(|input| outside[input.index()] = true);
        } else if inside[index] && node.op != Op::GlobalAveragePool && !reads_factors {
            inputs.iter().for_each(|input| inside[input.index()] = true);
        }
    }
    inside
}

/// Nodes whose output only goes on to the next node of a convolution's chain: batch norm, sum with a value that exists
/// already, activation.
fn fused(graph: &Graph) -> Vec<bool> {
    let consumers = graph.consumers();
    let schedule = graph.schedule();
    let mut turn = vec![0; schedule.len()];
    schedule.iter().enumerate().for_each(|(place, id)| turn[id.index()] = place);
    let mut fused = vec![false; graph.nodes().len()];
    for &id in &schedule {
        let node = graph.node(id);
        let pointwise = match node.op {
            Op::Convolution { kernel, stride, groups, .. } => (kernel, stride, groups) == (1, 1, 1),
            Op::Linear => true,
            _ => continue,
        };
        let (mut last, mut added) = (id, false);
        while let [next] = consumers[last.index()][..] {
            let after = graph.node(next);
            let exists = |other: &NodeId| *other != last && turn[other.index()] < turn[id.index()];
            let continues = after.layer == node.layer
                && match after.op {
                    Op::BatchNorm => last == id,
                    Op::Add => pointwise && !added && after.inputs().iter().any(exists),
                    Op::Activation(_) => true,
                    _ => false,
                };
            if !continues {
                break;
            }
            fused[last.index()] = true;
            (added, last) = (added || after.op == Op::Add, next);
            if matches!(after.op, Op::Activation(_)) {
                break;
            }
        }
    }
    fused
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofa_supernet::space::preset;

    fn rounded(space: &str, keep: &[&str]) -> (Vec<String>, usize) {
        let space = preset(space).unwrap();
        let graph = Graph::of(&space.network(&space.largest(), 10).unwrap());
        let rule = Rule::of(&graph, &keep.iter().map(|name| name.to_string()).collect());
        let names = node_names(&graph).into_iter().zip(&rule.rounded);
        let names = names.filter(|(_, rounded)| **rounded).map(|(name, _)| name).collect();
        (names, rule.int8.iter().filter(|int8| **int8).count())
    }

    #[test]
    fn values_in_memory_are_rounded_and_those_of_squeeze_excite_are_not() {
        let (names, layers) = rounded("tiny", &[]);
        for name in ["input", "bn1.hard_swish", "blocks.0.0.bn2.sum", "blocks.1.0.bn3", "blocks.3.0.bn1.hard_swish"] {
            assert!(names.iter().any(|found| found == name), "{name} is not in {names:?}");
        }
        let ends = |part: &str| names.iter().any(|name| name.ends_with(part));
        assert!(ends(".gated") && ends("hard_swish.mean") && ends("conv_head.hard_swish"), "{names:?}");
        assert!(!ends("classifier") && !ends("relu.mean") && !ends("hard_sigmoid") && !ends("bn1"), "{names:?}");
        assert!(!names.iter().any(|name| name.contains("se.")), "{names:?}");
        let (kept, fewer) = rounded("tiny", &["conv_stem", "classifier"]);
        assert_eq!((fewer, kept.len()), (layers - 2, names.len() - 1));
        assert!(!kept.contains(&"input".to_string()));
    }

    #[test]
    fn depthwise_convolutions_without_a_kernel_for_integers_stay_f32() {
        let mut space = preset("tiny").unwrap();
        let layers = |space: &ofa_supernet::SearchSpace| {
            let graph = Graph::of(&space.network(&space.largest(), 10).unwrap());
            let int8 = Rule::of(&graph, &HashSet::new()).int8;
            let depthwise = |node: &Node| matches!(node.op, Op::Convolution { groups, .. } if groups > 1);
            let int8 = graph.nodes().iter().zip(int8).filter(|(_, int8)| *int8).map(|(node, _)| depthwise(node));
            int8.fold((0, 0), |(depthwise, all), is| (depthwise + usize::from(is), all + 1))
        };
        let (depthwise, all) = layers(&space);
        space.kernel_sizes = vec![9];
        // The first block's kernel is always 3.
        let (left, rest) = layers(&space);
        assert!(depthwise > 1 && left == 1 && all - depthwise == rest - left, "{depthwise} {left}");
    }

    #[test]
    fn files_and_the_command_line_name_engines_alike() {
        for engine in [Engine::Ofa, Engine::OpenVino, Engine::OnnxRuntime, Engine::TensorRt] {
            assert_eq!(serde_json::to_value(engine).unwrap(), engine.name());
            assert_eq!(Engine::OTHERS.iter().any(|row| row.0 == engine), engine != Engine::Ofa);
        }
    }

    #[test]
    fn engines_round_besides() {
        let space = preset("tiny").unwrap();
        let graph = Graph::of(&space.network(&space.largest(), 10).unwrap());
        let (names, keep) = (node_names(&graph), HashSet::new());
        let own = Rule::of(&graph, &keep);
        assert_eq!(Rule::for_engine(&graph, &keep, Engine::OpenVino), own);
        let besides = |engine| {
            let rule = Rule::for_engine(&graph, &keep, engine);
            let indices = (0..names.len()).filter(|&index| rule.rounded[index] && !own.rounded[index]);
            assert!((0..names.len()).all(|index| rule.rounded[index] || !own.rounded[index]));
            (indices.map(|index| names[index].clone()).collect::<Vec<_>>(), rule.int8 != own.int8)
        };
        let (names, squeezed) = besides(Engine::OnnxRuntime);
        for name in
            ["bn1", "blocks.0.0.bn2", "blocks.2.0.se.conv_expand", "blocks.2.0.bn2.hard_swish.mean", "conv_head"]
        {
            assert!(squeezed && names.iter().any(|found| found == name), "{name} is not in {names:?}");
        }
        assert!(!names.iter().any(|name| name == "blocks.1.0.bn1" || name == "blocks.2.0.se.conv_reduce"), "{names:?}");
        let (names, squeezed) = besides(Engine::TensorRt);
        assert!(!squeezed && names.iter().all(|name| name.ends_with("bn2") || name.ends_with("bn3")), "{names:?}");
    }

    #[test]
    fn a_sum_in_the_chain_of_a_convolution_is_rounded_once() {
        let (names, _) = rounded("resnet-tiny", &[]);
        let has = |name: &str| names.iter().any(|found| found == name);
        // The shortcut's convolution is computed first, the main path's takes the sum along.
        assert!(has("layer1.0.downsample.2") && has("layer1.0.bn3.sum.relu"), "{names:?}");
        assert!(!has("layer1.0.bn3") && !has("layer1.0.bn3.sum"), "{names:?}");
    }
}
