//! From a graph to a program: nodes fused into the calls of kernels, with batch norm folded into the convolution before
//! it.
//!
//! A convolution takes along the batch norm, the sum with a value that exists already, and the activation after it, as
//! long as each has no other reader. A gate is applied as its reader loads the map; a global average after a depthwise
//! convolution is computed with it. A depthwise convolution takes along the 1x1 convolution before it, if no other node
//! reads that: the map between the two never exists.
//!
//! In a quantised network a value is `u8` where its node is rounded, otherwise f32; a convolution takes nothing along
//! behind a rounded node. Steps between layers convert where a reader needs the other type.

use crate::quantise::{QuantisedLayer, QuantisedNetwork, Scale, node_names};
use crate::{Error, Result};
use ofa_supernet::graph::{Graph, Node, NodeId, Op, Shape, Slot};
use ofa_supernet::space::Activation;
use std::collections::{BTreeMap, HashSet};

/// A value that steps write and read: index into [`Program::values`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Value(pub usize);

/// A convolution or linear layer whose weights become a kernel; nothing in it depends on the size of the image.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Layer {
    pub kind: LayerKind,
    /// Name of the convolution's or linear layer's tensors.
    pub name: String,
    /// Whether the layer has a bias of its own.
    pub bias: bool,
    /// Name of the batch norm that is folded into it.
    pub norm: Option<String>,
    pub in_channels: usize,
    pub out_channels: usize,
    /// Scale of the input of an int8 layer.
    pub input: Option<Scale>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum LayerKind {
    Pointwise,
    Depthwise { kernel: usize, stride: usize },
    Dense { kernel: usize, stride: usize },
}

/// A call of a kernel.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Step {
    pub work: Work,
    /// `None` for the images.
    pub input: Option<Value>,
    /// The input itself for work in place.
    pub output: Value,
    /// Extents of the input.
    pub shape: Shape,
    /// Layer of the graph that the step belongs to.
    pub layer: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Work {
    /// A layer with the activation after it.
    Layer {
        /// Index into [`Program::layers`].
        layer: usize,
        /// The 1x1 convolution before it, and the activation between the two; depthwise only.
        expand: Option<(usize, Activation)>,
        activation: Activation,
        /// Factors of the input's channels; pointwise only.
        gate: Option<Value>,
        /// Added before the activation; pointwise only.
        residual: Option<Value>,
        /// Means of the output over its pixels; depthwise only.
        pooled: Option<Value>,
    },
    GlobalAveragePool,
    AveragePool {
        window: usize,
        padding: usize,
    },
    MaxPool,
    /// In place: the other value, or the images, is added.
    Add(Option<Value>),
    /// In place.
    HardSigmoid,
    /// In place.
    Activation(Activation),
    /// In place: each channel is multiplied by its factor.
    Gate(Value),
    /// The input as it is, for work in place on a map that others read too.
    Copy,
    /// Rounding of f32 values, or of the images, to the output's scale.
    Quantise,
    /// The f32 values of rounded ones.
    Dequantise,
    /// Each channel of rounded values multiplied by its factor.
    GateRounded(Value),
}

impl Step {
    /// Values that the step reads.
    pub fn reads(&self) -> impl Iterator<Item = Value> {
        let more = match self.work {
            Work::Layer { gate, residual, .. } => [gate, residual],
            Work::Add(other) => [other, None],
            Work::Gate(factors) | Work::GateRounded(factors) => [Some(factors), None],
            _ => [None, None],
        };
        [self.input].into_iter().chain(more).flatten()
    }

    /// Values that the step writes.
    pub fn writes(&self) -> impl Iterator<Item = Value> {
        let pooled = if let Work::Layer { pooled, .. } = self.work { pooled } else { None };
        [self.output].into_iter().chain(pooled)
    }
}

/// The steps of a network at one image size.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Program {
    pub layers: Vec<Layer>,
    pub steps: Vec<Step>,
    pub values: Vec<Stored>,
    /// Whether the network is quantised, which defines the order of f32 sums.
    pub quantised: bool,
}

/// Size and type of a value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Stored {
    /// Numbers per image.
    pub numbers: usize,
    /// Scale of a `u8` value; `None` for f32.
    pub scale: Option<Scale>,
}

impl Stored {
    /// Bytes per number.
    pub fn width(self) -> usize {
        if self.scale.is_some() { 1 } else { 4 }
    }
}

/// The parts of a quantised network that a program depends on.
#[derive(Debug, Clone)]
pub(super) struct Rounding {
    values: BTreeMap<String, Scale>,
    /// Names of the int8 layers.
    int8: HashSet<String>,
}

impl Rounding {
    pub fn of(network: &QuantisedNetwork) -> Self {
        let int8 = network.layers.iter().filter(|(_, layer)| matches!(layer, QuantisedLayer::Int8(_)));
        Rounding { values: network.values.clone(), int8: int8.map(|(name, _)| name.clone()).collect() }
    }
}

/// Compiles a graph, of a quantised network with its `rounding`. Its layers do not depend on the size of the image.
///
/// # Errors
/// A node that no kernel computes where it stands.
pub(super) fn compile(graph: &Graph, rounding: Option<&Rounding>) -> Result<Program> {
    let count = graph.nodes().len();
    let names = rounding.map_or_else(|| vec![String::new(); count], |_| node_names(graph));
    let mut compiler = Compiler {
        graph,
        consumers: graph.consumers(),
        found: vec![None; count],
        scales: names.iter().map(|name| rounding?.values.get(name).copied()).collect(),
        int8: names.iter().map(|name| rounding.is_some_and(|rounding| rounding.int8.contains(name))).collect(),
        program: Program { layers: Vec::new(), steps: Vec::new(), values: Vec::new(), quantised: rounding.is_some() },
    };
    for id in graph.schedule() {
        if compiler.found[id.index()].is_none() {
            compiler.node(id)?;
        }
    }
    Ok(compiler.program)
}

/// Location of a node's output.
#[derive(Debug, Clone, Copy)]
enum Place {
    Images,
    Value(Value),
    /// A map and the factors of its channels.
    Gated(Option<Value>, Value),
}

struct Compiler<'a> {
    graph: &'a Graph,
    consumers: Vec<Vec<NodeId>>,
    /// Outputs of the nodes that are compiled.
    found: Vec<Option<Place>>,
    /// Scale of each node that is rounded.
    scales: Vec<Option<Scale>>,
    /// Whether each node is an int8 layer.
    int8: Vec<bool>,
    program: Program,
}

impl Compiler<'_> {
    fn node(&mut self, id: NodeId) -> Result<()> {
        let node = *self.graph.node(id);
        let place = match node.op {
            Op::Input => Place::Images,
            Op::Convolution { .. } | Op::Linear => return self.layer(id, &node),
            Op::Gate => {
                let factors = self.factors(&node)?;
                match (self.consumers[id.index()][..].first(), self.input(&node, 0)?) {
                    (Some(&reader), map) if self.gates_on_load(id, reader, map) => Place::Gated(map, factors),
                    (_, Some(map)) if self.scale(map).is_some() => {
                        let output = self.value(&node, self.scales[id.index()]);
                        self.step(&node, Work::GateRounded(factors), Some(map), output);
                        Place::Value(output)
                    }
                    _ => self.in_place(&node, Work::Gate(factors))?,
                }
            }
            Op::GlobalAveragePool => self.push(&node, Work::GlobalAveragePool)?,
            Op::AveragePool { window, padding } => self.push(&node, Work::AveragePool { window, padding })?,
            Op::MaxPool { window: 3, stride: 2, padding: 1 } => {
                // Rounding keeps the order of values.
                let input = self.input(&node, 0)?;
                let scale = input.and_then(|input| self.scale(input));
                let same = scale.is_some() && scale == self.scales[id.index()];
                let input = if same { input } else { self.floats(&node, input) };
                let output = self.value(&node, scale.filter(|_| same));
                self.step(&node, Work::MaxPool, input, output);
                Place::Value(output)
            }
            Op::HardSigmoid => self.in_place(&node, Work::HardSigmoid)?,
            Op::Activation(function) => self.in_place(&node, Work::Activation(function))?,
            Op::Add => {
                let other = self.input(&node, 1)?;
                let other = self.floats(&node, other);
                self.in_place(&node, Work::Add(other))?
            }
            Op::MaxPool { .. } | Op::BatchNorm => return Err(no_kernel(&node)),
        };
        let place = self.rounded(id, &node, place);
        self.found[id.index()] = Some(place);
        Ok(())
    }

    /// A convolution or linear layer with all that it takes along.
    fn layer(&mut self, id: NodeId, node: &Node) -> Result<()> {
        let in_channels = self.graph.node(node.inputs()[0]).shape.channels;
        let out_channels = node.shape.channels;
        let (kind, bias) = match node.op {
            Op::Convolution { kernel: 1, stride: 1, padding: 0, groups: 1, bias } => (LayerKind::Pointwise, bias),
            Op::Convolution { kernel, stride, padding, groups, bias } if padding == kernel / 2 => {
                if groups == 1 {
                    (LayerKind::Dense { kernel, stride }, bias)
                } else if groups == in_channels && groups == out_channels {
                    (LayerKind::Depthwise { kernel, stride }, bias)
                } else {
                    return Err(no_kernel(node));
                }
            }
            Op::Linear => (LayerKind::Pointwise, true),
            _ => return Err(no_kernel(node)),
        };
        let (input, gate) = match self.found[node.inputs()[0].index()] {
            Some(Place::Images) => (None, None),
            Some(Place::Value(value)) => (Some(value), None),
            Some(Place::Gated(map, factors)) if kind == LayerKind::Pointwise => (map, Some(factors)),
            _ => return Err(no_kernel(node)),
        };
        let int8 = self.int8[id.index()];
        let input = if int8 || gate.is_some() { input } else { self.floats(node, input) };
        let (mut last, mut norm, mut residual, mut activation) = (id, None, None, Activation::Identity);
        while let [next] = self.consumers[last.index()][..] {
            let after = self.graph.node(next);
            if after.layer != node.layer || self.scales[last.index()].is_some() {
                // Each layer has steps of its own, by which it is timed.
                break;
            }
            match after.op {
                Op::BatchNorm if last == id => norm = Some(self.name(next)),
                Op::Add if kind == LayerKind::Pointwise && residual.is_none() => {
                    let other = after.inputs().iter().find(|&&input| input != last);
                    let Some(Some(Place::Value(value))) = other.map(|input| self.found[input.index()]) else { break };
                    if self.program.quantised && !(int8 && self.scale(value).is_some()) {
                        break;
                    }
                    residual = Some(value);
                }
                Op::Activation(function) => {
                    activation = function;
                    last = next;
                    break;
                }
                _ => break,
            }
            last = next;
        }
        let pool = self.pool_after(last, node, kind);
        let before = match kind {
            LayerKind::Depthwise { .. } => self.expand_before(node, input),
            _ => None,
        };
        let (expand, input) = before.map_or((None, input), |(expand, input)| (Some(expand), input));
        let pooled = pool.map(|pool| self.value(self.graph.node(pool), None));
        let output = self.value(node, self.scales[last.index()].filter(|_| int8));
        let layer = self.program.layers.len();
        let scale = self.scales[node.inputs()[0].index()].filter(|_| int8);
        let name = self.name(id);
        self.program.layers.push(Layer { kind, name, bias, norm, in_channels, out_channels, input: scale });
        let work = Work::Layer { layer, expand, activation, gate, residual, pooled };
        self.step(node, work, input, output);
        let place = self.rounded(last, node, Place::Value(output));
        self.found[last.index()] = Some(place);
        // Nodes on the way there have no other reader.
        let mut inside = id;
        while inside != last {
            self.found[inside.index()] = Some(Place::Value(output));
            inside = self.consumers[inside.index()][0];
        }
        if let (Some(pool), Some(pooled)) = (pool, pooled) {
            self.found[pool.index()] = Some(Place::Value(pooled));
        }
        Ok(())
    }

    /// The global average pool of a depthwise convolution's values, which its step computes, too. `last` is the step's
    /// last node.
    fn pool_after(&self, last: NodeId, node: &Node, kind: LayerKind) -> Option<NodeId> {
        if !matches!(kind, LayerKind::Depthwise { .. }) || self.program.quantised {
            return None;
        }
        let is_pool = |reader: &Node| reader.op == Op::GlobalAveragePool && reader.layer == node.layer;
        self.consumers[last.index()].iter().copied().find(|&reader| is_pool(self.graph.node(reader)))
    }

    /// Takes back the last step, if it is a 1x1 convolution that the depthwise convolution `node` can take along: its
    /// layer and its input.
    fn expand_before(&mut self, node: &Node, input: Option<Value>) -> Option<((usize, Activation), Option<Value>)> {
        let step = self.program.steps.last()?;
        let Work::Layer { layer, activation, gate: None, residual: None, .. } = step.work else { return None };
        let only_reader = self.consumers[node.inputs()[0].index()].len() == 1;
        let newest = Some(step.output) == input && step.output.0 + 1 == self.program.values.len();
        let same_layer = Some(step.layer) == node.layer;
        let pointwise = self.program.layers[layer].kind == LayerKind::Pointwise;
        if self.program.quantised || !(only_reader && newest && same_layer && pointwise) {
            return None;
        }
        let before = step.input;
        self.program.steps.pop();
        self.program.values.pop();
        Some(((layer, activation), before))
    }

    /// A step from the first input of `node` to a new value.
    fn push(&mut self, node: &Node, work: Work) -> Result<Place> {
        let input = self.input(node, 0)?;
        let output = self.value(node, None);
        self.step(node, work, input, output);
        Ok(Place::Value(output))
    }

    /// The f32 values of `input` of `node`.
    fn floats(&mut self, node: &Node, input: Option<Value>) -> Option<Value> {
        let rounded = input.filter(|&input| self.scale(input).is_some());
        rounded.map_or(input, |rounded| {
            let numbers = self.program.values[rounded.0].numbers;
            let output = self.stored(Stored { numbers, scale: None });
            self.step(node, Work::Dequantise, Some(rounded), output);
            Some(output)
        })
    }

    /// The output of `node` rounded, if it has a scale and is not rounded yet.
    fn rounded(&mut self, id: NodeId, node: &Node, place: Place) -> Place {
        let input = match place {
            Place::Images => None,
            Place::Value(value) if self.scale(value).is_none() => Some(value),
            _ => return place,
        };
        let Some(scale) = self.scales[id.index()] else { return place };
        let output = self.value(node, Some(scale));
        self.step(node, Work::Quantise, input, output);
        Place::Value(output)
    }

    /// A step on the first input of `node`, or on a copy of it if other nodes read it too.
    fn in_place(&mut self, node: &Node, work: Work) -> Result<Place> {
        let input = match self.input(node, 0)? {
            Some(input) if self.scale(input).is_some() => match self.floats(node, Some(input)) {
                Some(floats) => floats,
                None => return Err(no_kernel(node)),
            },
            Some(input) if self.consumers[node.inputs()[0].index()].len() == 1 => input,
            _ => match self.push(node, Work::Copy)? {
                Place::Value(copy) => copy,
                _ => return Err(no_kernel(node)),
            },
        };
        self.step(node, work, Some(input), input);
        Ok(Place::Value(input))
    }

    /// Whether a node computes a 1x1 convolution in the layer of `before`.
    fn is_pointwise(&self, id: NodeId, before: &Node) -> bool {
        let node = self.graph.node(id);
        let convolution = Op::Convolution { kernel: 1, stride: 1, padding: 0, groups: 1, bias: false };
        let biased = Op::Convolution { kernel: 1, stride: 1, padding: 0, groups: 1, bias: true };
        (node.op == convolution || node.op == biased) && node.layer == before.layer
    }

    /// Whether the only reader of the gate `id` multiplies the map `map` as it loads it.
    fn gates_on_load(&self, id: NodeId, reader: NodeId, map: Option<Value>) -> bool {
        let integers = (self.scales[id.index()].is_some(), self.int8[reader.index()], map.map(|map| self.scale(map)));
        self.consumers[id.index()].len() == 1
            && self.is_pointwise(reader, self.graph.node(id))
            && (!self.program.quantised || matches!(integers, (true, true, Some(Some(_)))))
    }

    fn step(&mut self, node: &Node, work: Work, input: Option<Value>, output: Value) {
        let shape = node.inputs().first().map_or(node.shape, |input| self.graph.node(*input).shape);
        self.program.steps.push(Step { work, input, output, shape, layer: node.layer.unwrap_or(0) });
    }

    /// Input `place` of `node`; `None` for the images.
    fn input(&self, node: &Node, place: usize) -> Result<Option<Value>> {
        match self.found[node.inputs()[place].index()] {
            Some(Place::Images) => Ok(None),
            Some(Place::Value(value)) => Ok(Some(value)),
            _ => Err(no_kernel(node)),
        }
    }

    /// Factors of the channels of a gate.
    fn factors(&mut self, node: &Node) -> Result<Value> {
        let factors = self.input(node, 1)?;
        self.floats(node, factors).ok_or_else(|| no_kernel(node))
    }

    /// Scale of a rounded value.
    fn scale(&self, value: Value) -> Option<Scale> {
        self.program.values[value.0].scale
    }

    /// A new value for the output of `node`.
    fn value(&mut self, node: &Node, scale: Option<Scale>) -> Value {
        self.stored(Stored { numbers: node.shape.values() as usize, scale })
    }

    fn stored(&mut self, stored: Stored) -> Value {
        self.program.values.push(stored);
        Value(self.program.values.len() - 1)
    }

    fn name(&self, id: NodeId) -> String {
        let slot = self.graph.slots().iter().find(|slot| slot.node == id);
        slot.map_or_else(String::new, |slot: &Slot| self.graph.name(slot))
    }
}

fn no_kernel(node: &Node) -> Error {
    Error::Network(format!("no kernel computes {:?} where it stands in the network", node.op))
}
