//! A static network as a graph of primitive operations: the one description that costs, names, execution and export
//! read.
//!
//! Three orders stay apart. *Nodes* are topologically ordered, a block's main path before its shortcut. *Slots* (nodes
//! with tensors) keep the order of the nodes: tensors are stored and batch-norm statistics are listed in it. The
//! [schedule](Graph::schedule) is the order of execution, in which a shortcut comes first.
//!
//! | file | concern |
//! | --- | --- |
//! | `builder` | emits nodes and regions; works out shapes |
//! | `fragment` | a part of a network as data: checks, and a text that parses |
//! | `network` | from a network's layers to its graph |
//! | [`names`] | names of tensors in three schemes |
//! | `cost` | multiply-accumulates, parameters, memory: folds over nodes |
//! | `interpreter` | runs a graph in candle's own operations: any device and number type, with gradients |

mod builder;
mod cost;
mod fragment;
pub mod interpreter;
pub mod names;
mod network;

pub use builder::Builder;
pub use fragment::{Fragment, MAX_CHANNELS, MAX_KERNEL, MAX_SIZE};

use crate::space::Activation;
use names::Location;
use std::borrow::Cow;
use std::ops::Range;

/// Index of a node in its graph; inputs of a node have smaller indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

impl NodeId {
    /// Place of the node in [`Graph::nodes`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Extent of one image's map. A vector is a map of one pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Channels.
    pub channels: usize,
}

impl Shape {
    /// Number of values. It saturates: a hostile file can name any extent.
    pub fn values(self) -> u64 {
        (self.height as u64).saturating_mul(self.width as u64).saturating_mul(self.channels as u64)
    }
}

/// A primitive operation. Maps are `[batch, height, width, channels]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// The images.
    Input,
    /// Convolution with square kernels and zero padding.
    Convolution {
        /// Height and width of the kernel.
        kernel: usize,
        /// Step between two outputs in both directions.
        stride: usize,
        /// Zeros on every side.
        padding: usize,
        /// Groups of channels that do not mix; as many as channels for a depthwise convolution.
        groups: usize,
        /// Whether a bias is added.
        bias: bool,
    },
    /// Batch norm: scale, shift, running mean and variance of each channel.
    BatchNorm,
    /// An activation function of each value.
    Activation(Activation),
    /// `relu6(x + 3) / 6` of each value: the gate of squeeze-excite.
    HardSigmoid,
    /// Mean over all pixels.
    GlobalAveragePool,
    /// Mean over windows side by side, those at the right and lower border over the pixels that they hold.
    AveragePool {
        /// Height, width and step of the windows.
        window: usize,
        /// Rows and columns of zeros before the first, which count in the mean.
        padding: usize,
    },
    /// Largest value of each window; padding never wins.
    MaxPool {
        /// Height and width of the windows.
        window: usize,
        /// Step between two windows.
        stride: usize,
        /// Pixels outside the map on every side.
        padding: usize,
    },
    /// Sum of two maps of one shape.
    Add,
    /// Product of a map and a vector that holds a factor for each channel.
    Gate,
    /// Fully connected layer with bias.
    Linear,
}

/// A node: an operation with its inputs and the extent of its output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Node {
    /// Operation.
    pub op: Op,
    inputs: [NodeId; 2],
    arity: u8,
    /// Extent of the output.
    pub shape: Shape,
    /// Index of the top-level region ([`Graph::layers`]) that holds the node; none for the input.
    pub layer: Option<u32>,
}

impl Node {
    /// Nodes whose outputs this one reads.
    pub fn inputs(&self) -> &[NodeId] {
        &self.inputs[..usize::from(self.arity)]
    }
}

/// A node with tensors. [`names`] says how these are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The node.
    pub node: NodeId,
    location: u32,
    name: Cow<'static, str>,
}

impl Slot {
    /// Name inside the layer: `expand`.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Kind of a run of nodes that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RegionKind {
    /// Convolution, batch norm, activation (which may be missing).
    ConvolutionNormActivation,
    /// A convolution of the stem with its norm, activation and residual sum.
    Stem,
    /// The max pool after the stem.
    MaxPool,
    /// A block of a stage.
    Block {
        /// Whether its backward pass recomputes the activations inside it.
        recomputes: bool,
    },
    /// All nodes after the last block.
    Head,
}

/// A run of nodes, recorded by the code that emitted them. Regions nest and never overlap otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// Kind.
    pub kind: RegionKind,
    /// Indices of the nodes.
    pub nodes: Range<usize>,
}

impl Region {
    /// Whether all nodes of `other` belong to this region.
    pub fn contains(&self, other: &Region) -> bool {
        self.nodes.start <= other.nodes.start && other.nodes.end <= self.nodes.end
    }
}

/// A static network, or a part of one, as primitive operations.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    nodes: Vec<Node>,
    slots: Vec<Slot>,
    /// Parts of the network that hold the slots.
    locations: Vec<Location>,
    /// Top-level regions, in the order of the nodes.
    layers: Vec<Region>,
    /// Regions inside those, in the order in which they end.
    inner: Vec<Region>,
    batch_norm_epsilon: f64,
}

impl Graph {
    /// Nodes in topological order. The first is the input, the last is the output.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// The output.
    pub fn output(&self) -> NodeId {
        NodeId(self.nodes.len() as u32 - 1)
    }

    /// Nodes with tensors, in the order in which these are stored.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Parts of the network that are run, timed and counted as one, in order: convolutions of the stem, pool, blocks,
    /// head. Each reads only the output of the one before.
    pub fn layers(&self) -> &[Region] {
        &self.layers
    }

    /// Regions inside the layers.
    pub fn inner_regions(&self) -> &[Region] {
        &self.inner
    }

    /// Epsilon of every batch norm.
    pub fn batch_norm_epsilon(&self) -> f64 {
        self.batch_norm_epsilon
    }

    /// Parts and shapes of a slot's tensors in PyTorch's layout: `weight` `[out, in / groups, kernel, kernel]`, `bias`
    /// `[out]`; batch norm's four vectors; a linear layer's `weight` `[out, in]` and `bias`.
    pub fn tensors(&self, slot: &Slot) -> Vec<(&'static str, Vec<usize>)> {
        let node = self.node(slot.node);
        let out = node.shape.channels;
        let inputs = node.inputs().first().map_or(0, |&input| self.node(input).shape.channels);
        match node.op {
            Op::Convolution { kernel, groups, bias, .. } => {
                let weight = ("weight", vec![out, inputs / groups.max(1), kernel, kernel]);
                [weight].into_iter().chain(bias.then(|| ("bias", vec![out]))).collect()
            }
            Op::BatchNorm => ["weight", "bias", "running_mean", "running_var"].map(|part| (part, vec![out])).to_vec(),
            Op::Linear => vec![("weight", vec![out, inputs]), ("bias", vec![out])],
            _ => Vec::new(),
        }
    }

    /// Names and shapes of all tensors, in the order of the slots.
    pub fn tensor_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let of_slot = |slot: &Slot| {
            let name = self.name(slot);
            self.tensors(slot).into_iter().map(move |(part, shape)| (format!("{name}.{part}"), shape))
        };
        self.slots.iter().flat_map(of_slot).collect()
    }

    /// Channels of all batch norms, in the order in which statistics are listed.
    pub fn norm_widths(&self) -> impl Iterator<Item = usize> + '_ {
        self.nodes.iter().filter(|node| node.op == Op::BatchNorm).map(|node| node.shape.channels)
    }

    /// Order of execution: each node after its inputs, a later input before an earlier one, so that a block's shortcut
    /// (the second input of its sum) is computed, and its scratch memory freed, before the wide maps of the main path
    /// exist.
    pub fn schedule(&self) -> Vec<NodeId> {
        let mut order = Vec::with_capacity(self.nodes.len());
        let mut visited = vec![false; self.nodes.len()];
        let mut pending = vec![(self.output(), false)];
        while let Some((id, inputs_done)) = pending.pop() {
            if inputs_done {
                order.push(id);
            } else if !std::mem::replace(&mut visited[id.index()], true) {
                pending.push((id, true));
                // The last pushed is visited first.
                pending.extend(self.node(id).inputs().iter().map(|&input| (input, false)));
            }
        }
        order
    }

    /// Numbers of nodes that read each node's output.
    pub(crate) fn reader_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.nodes.len()];
        self.nodes.iter().flat_map(Node::inputs).for_each(|input| counts[input.index()] += 1);
        counts
    }

    /// Nodes that read each node's output.
    pub fn consumers(&self) -> Vec<Vec<NodeId>> {
        let mut consumers = vec![Vec::new(); self.nodes.len()];
        for (index, node) in self.nodes.iter().enumerate() {
            for input in node.inputs() {
                consumers[input.index()].push(NodeId(index as u32));
            }
        }
        consumers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::{PRESETS, preset};
    use std::collections::HashSet;

    fn graphs() -> impl Iterator<Item = (String, Graph)> {
        PRESETS.iter().flat_map(|name| {
            let space = preset(name).unwrap();
            let subnets = [space.smallest(), space.middle(), space.largest()];
            subnets.map(|subnet| (format!("{name} {subnet}"), Graph::of(&space.network(&subnet, 10).unwrap())))
        })
    }

    #[test]
    fn nodes_and_schedule_come_after_their_inputs() {
        for (name, graph) in graphs() {
            let schedule = graph.schedule();
            assert_eq!(schedule.len(), graph.nodes().len(), "{name}: every node is run once");
            let mut done = HashSet::new();
            for id in schedule {
                assert!(graph.node(id).inputs().iter().all(|input| *input < id && done.contains(input)), "{name}");
                assert!(done.insert(id), "{name}");
            }
        }
    }

    #[test]
    fn layers_hold_every_node_and_read_only_the_layer_before() {
        for (name, graph) in graphs() {
            let mut next = 1;
            for layer in graph.layers() {
                assert_eq!(layer.nodes.start, next, "{name}");
                for node in &graph.nodes()[layer.nodes.clone()] {
                    assert!(node.inputs().iter().all(|input| input.index() + 1 >= next), "{name}");
                }
                next = layer.nodes.end;
            }
            assert_eq!(next, graph.nodes().len(), "{name}");
            for inner in graph.inner_regions() {
                assert!(graph.layers().iter().any(|layer| layer.contains(inner)), "{name}");
            }
            let macs: u64 = graph.layers().iter().map(|layer| graph.layer_macs(layer)).sum();
            assert_eq!(macs, graph.macs(), "{name}");
        }
    }

    #[test]
    fn a_shortcut_is_run_before_the_main_path() {
        let space = preset("resnet-tiny").unwrap();
        let graph = Graph::of(&space.network(&space.largest(), 10).unwrap());
        let name = |slot: &Slot| graph.name(slot);
        let place = |wanted: &str| {
            let slot = graph.slots().iter().find(|slot| name(slot) == wanted).unwrap();
            graph.schedule().iter().position(|id| *id == slot.node).unwrap()
        };
        assert!(place("layer1.0.downsample.1") < place("layer1.0.conv1"));
        let listed: Vec<String> = graph.slots().iter().map(name).filter(|name| name.starts_with("layer1.0")).collect();
        assert_eq!(listed[0], "layer1.0.conv1");
        assert_eq!(listed[6], "layer1.0.downsample.1");
    }
}
