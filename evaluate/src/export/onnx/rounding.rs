//! Where the values of an int8 model are rounded, for each engine.
//!
//! This runtime rounds the values that it writes to memory. Engines differ in what they fuse: ONNX Runtime computes an
//! operator in integers only if all its inputs and its output are rounded, so that a convolution before hard-swish or a
//! sum needs a rounding of its own, and squeeze-excite is faster in integers too; OpenVINO fuses sums and activations into the convolution, and rounding in between
//! keeps it from that; TensorRT adds in integers if both inputs are rounded.

use super::super::Engine;
use super::proto::Element;
use crate::quantise::{QuantisedNetwork, Scale, factors, node_names};
use ofa_supernet::graph::{Graph, Node, Op};
use ofa_supernet::space::Activation;
use std::collections::BTreeMap;

/// The integers of a value in a file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid {
    pub scale: f32,
    /// In the element type.
    pub zero_point: i16,
    pub element: Element,
}

impl Grid {
    fn of(scale: Scale, engine: Engine) -> Self {
        let zero_point = i16::from(scale.zero_point);
        match engine {
            // The same numbers, and without a zero point faster.
            Engine::OpenVino if zero_point == 128 => Grid { scale: scale.scale, zero_point: 0, element: Element::Int8 },
            Engine::OpenVino | Engine::OnnxRuntime => Grid { scale: scale.scale, zero_point, element: Element::Uint8 },
            Engine::TensorRt => {
                let largest = zero_point.max(255 - zero_point);
                Grid { scale: scale.scale * (f32::from(largest) / 127.0), zero_point: 0, element: Element::Int8 }
            }
        }
    }
}

/// The integers of each node's output; none where it stays f32.
pub fn grids(
    graph: &Graph,
    network: &QuantisedNetwork,
    engine_values: &BTreeMap<String, Scale>,
    engine: Engine,
) -> Vec<Option<Grid>> {
    let (names, consumers, squeezed) = (node_names(graph), graph.consumers(), factors(graph));
    let grid = |index: usize| {
        let reader = match consumers[index][..] {
            [reader] => Some(graph.node(reader)),
            _ => None,
        };
        let own = network.values.get(&names[index]);
        let scale = own.or_else(|| {
            let wanted =
                reader.is_some_and(|reader| is_rounded(engine, &graph.nodes()[index], reader, squeezed[index]));
            engine_values.get(&names[index]).filter(|_| wanted)
        });
        scale.map(|scale| Grid::of(*scale, engine))
    };
    (0..names.len()).map(grid).collect()
}

/// Whether an engine rounds a value that this runtime keeps in f32. `squeezed` values are those of squeeze-excite.
fn is_rounded(engine: Engine, node: &Node, reader: &Node, squeezed: bool) -> bool {
    match (engine, reader.op) {
        // Taken along by the convolution.
        (Engine::OnnxRuntime, Op::Activation(Activation::Relu | Activation::Relu6)) | (Engine::OpenVino, _) => false,
        (Engine::OnnxRuntime, Op::Activation(_) | Op::Add) => {
            squeezed || matches!(node.op, Op::Convolution { .. } | Op::BatchNorm | Op::Add)
        }
        (Engine::OnnxRuntime, _) => squeezed,
        (Engine::TensorRt, reader) => reader == Op::Add,
    }
}

/// Whether each layer that stays f32 here is written in integers: those of squeeze-excite, for ONNX Runtime.
pub fn rounded_layers(graph: &Graph, engine: Engine) -> Vec<bool> {
    match engine {
        Engine::OnnxRuntime => factors(graph),
        Engine::OpenVino | Engine::TensorRt => vec![false; graph.nodes().len()],
    }
}
