//! `graph.json` of an extracted model: the network as primitive operations, which `load.py` turns into torch modules.

use ofa_supernet::graph::{Graph, Node, NodeId, Op};
use ofa_supernet::space::NetworkSpec;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// The file's text, a line per node. Inputs are indices of earlier nodes; `name` is that of a node's tensors.
pub fn text(network: &NetworkSpec) -> String {
    let graph = Graph::of(network);
    let names: HashMap<NodeId, String> = graph.slots().iter().map(|slot| (slot.node, graph.name(slot))).collect();
    let schedule = graph.schedule();
    let places: HashMap<NodeId, usize> = schedule.iter().enumerate().map(|(place, id)| (*id, place)).collect();
    let line = |id: &NodeId| {
        let node = graph.node(*id);
        let mut fields = operation(&graph, node);
        fields.insert("inputs".into(), node.inputs().iter().map(|input| places[input]).collect());
        if let Some(name) = names.get(id) {
            fields.insert("name".into(), name.as_str().into());
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
        Op::AveragePool { window } => json!({"op": "average_pool", "window": window}),
        Op::MaxPool { window, stride, padding } => {
            json!({"op": "max_pool", "window": window, "stride": stride, "padding": padding})
        }
        Op::Add => json!({"op": "add"}),
        Op::Gate => json!({"op": "gate"}),
    };
    if let Value::Object(fields) = fields { fields } else { Map::new() }
}
