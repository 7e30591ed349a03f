//! `graph.json` of an extracted model: the network as primitive operations, which `load.py` turns into torch modules.

use super::ModelConfig;
use crate::quantise::node_names;
use ofa_supernet::graph::{Graph, Node, NodeId, Op};
use serde_json::{Map, Value, json};
use std::collections::{HashMap, HashSet};

/// The file's text, a line per node. Inputs are indices of earlier nodes; `name` is that of a node's tensors.
///
/// An int8 model has no batch norms, since these are folded into its layers: each layer has a bias, and `input_scale`
/// where its input is rounded, by which its integers become real numbers.
pub fn text(config: &ModelConfig) -> String {
    let graph = Graph::of(&config.network);
    let names = node_names(&graph);
    let with_tensors: HashSet<NodeId> = graph.slots().iter().map(|slot| slot.node).collect();
    let mut schedule = graph.schedule();
    let folded = |id: &NodeId| config.quantisation.is_some() && graph.node(*id).op == Op::BatchNorm;
    schedule.retain(|id| !folded(id));
    let mut places: HashMap<NodeId, usize> = schedule.iter().enumerate().map(|(place, id)| (*id, place)).collect();
    let norms = graph.slots().iter().map(|slot| slot.node).filter(folded);
    let convolutions = norms.map(|norm| (norm, places[&graph.node(norm).inputs()[0]])).collect::<Vec<_>>();
    places.extend(convolutions);
    let line = |id: &NodeId| {
        let node = graph.node(*id);
        let mut fields = operation(&graph, node);
        fields.insert("inputs".into(), node.inputs().iter().map(|input| places[input]).collect());
        if with_tensors.contains(id) {
            fields.insert("name".into(), names[id.index()].as_str().into());
        }
        if let (Some(quantisation), Op::Convolution { .. } | Op::Linear) = (&config.quantisation, node.op) {
            fields.insert("bias".into(), true.into());
            let scale = node.inputs().first().and_then(|input| quantisation.values.get(&names[input.index()]));
            scale.map(|scale| fields.insert("input_scale".into(), scale.scale.into()));
        }
        Value::Object(fields).to_string()
    };
    let lines: Vec<String> = schedule.iter().map(line).collect();
    format!("{{\"format\": \"ofa-graph\", \"version\": 1, \"nodes\": [\n{}\n]}}\n", lines.join(",\n"))
}

/// Name and attributes of a node's operation.
fn operation(graph: &Graph, node: &Node) -> Map<String, Value> {
    let inputs = node.inputs().first().map_or(0, |&input| graph.node(input).shape.channels);
    let fields = match node.op {
        Op::Input => json!({"op": "input", "height": node.shape.height, "width": node.shape.width}),
        Op::Convolution { kernel, stride, padding, groups, bias } => json!({
            "op": "convolution", "in": inputs, "out": node.shape.channels, "kernel": kernel, "stride": stride,
            "padding": padding, "groups": groups, "bias": bias,
        }),
        Op::Linear => json!({"op": "linear", "in": inputs, "out": node.shape.channels}),
        Op::BatchNorm => json!({"op": "batch_norm", "out": node.shape.channels, "epsilon": graph.batch_norm_epsilon()}),
        // Serialised by name, as in config.json.
        Op::Activation(activation) => json!({"op": activation}),
        Op::HardSigmoid => json!({"op": "hard_sigmoid"}),
        Op::GlobalAveragePool => json!({"op": "global_average_pool"}),
        Op::AveragePool { window, padding: 0 } => json!({"op": "average_pool", "window": window}),
        Op::AveragePool { window, padding } => json!({"op": "average_pool", "window": window, "padding": padding}),
        Op::MaxPool { window, stride, padding } => {
            json!({"op": "max_pool", "window": window, "stride": stride, "padding": padding})
        }
        Op::Add => json!({"op": "add"}),
        Op::Gate => json!({"op": "gate"}),
    };
    if let Value::Object(fields) = fields { fields } else { Map::new() }
}
