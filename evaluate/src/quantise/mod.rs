//! Networks in 8-bit integers: what they consist of, what they compute, and how they are made from f32 networks.
//!
//! Weights are `i8` with a scale per output channel, symmetric. Values between layers are `u8` with a scale and a zero
//! point each. [`QuantisedNetwork`] is plain data; [`mod@reference`] computes it, and its results are the definition:
//!
//! - A node whose name ([`node_names`]) is in [`QuantisedNetwork::values`] has its output rounded to `u8`
//!   ([`Scale::quantise`]; [`Rule`] says which). All other nodes give f32, so that additions and activations after a
//!   convolution work on f32. Readers of a rounded value see `(q - zero_point) * scale` ([`Scale::dequantise`]).
//! - An int8 layer sums `(q - zero_point) * weight` and its bias in `i32`; pixels of the border add nothing. The sum,
//!   converted to f32, is multiplied by `multiplier = input scale * weight scale` of the output channel.
//! - A layer that stays f32 starts with its bias and adds `weight * input` for the rows of the kernel, its columns, and
//!   input channels, in this order.
//! - The average over all pixels of a rounded value is the sum of its integers as f32, times `scale / count`; averages
//!   over windows alike, with the number of pixels that count there.
//! - A gate multiplies `(q - zero_point)` by the product `scale * factor` of the channel.
//!
//! No product and sum are contracted, and the order of f32 sums is given: every machine, instruction set and number of
//! threads computes the same bits.
//!
//! | file | concern |
//! | --- | --- |
//! | `arithmetic` | scales, rounding, activations |
//! | `calibrate` | from an f32 network to integers, on images |
//! | `check` | checks of a network that was read from a file |
//! | `finetune` | training of a network that is rounded as the integers will be |
//! | `forward` | the f32 network node by node |
//! | `histogram` | distributions of values, and their scales |
//! | `random` | networks with random weights |
//! | `reference` | the network computed as plainly as possible |
//! | `rule` | which layers become integers, which values are rounded |
//! | `sensitivity` | what the rounding of each layer costs |
//! | `weights` | integers of a layer |

mod arithmetic;
mod calibrate;
mod check;
mod finetune;
mod forward;
mod histogram;
mod random;
pub mod reference;
mod rule;
mod sensitivity;
mod weights;

pub use arithmetic::{Scale, activate, hard_sigmoid};
pub use calibrate::{LEAST_IMAGES, Options, Progress, Quantised, quantise};
pub use finetune::{FinetuneOptions, finetune};
pub use rule::{Engine, Rule};
pub use sensitivity::Sensitivity;
pub(crate) use weights::int8_layer;

use ofa_supernet::graph::{Graph, Node, Op};
use ofa_supernet::space::{Activation, NetworkSpec};
use std::collections::{BTreeMap, HashSet};

/// Largest size of a quantised weight: -128 is not used, so that the grid is symmetric.
pub const MAX_WEIGHT: i8 = 127;

/// Largest size of a bias, and of a sum of products: both together fit `i32`.
pub const MAX_SUM: i64 = 1 << 30;

/// Largest weight of so many bits.
pub(crate) fn largest_weight(bits: u8) -> i8 {
    if bits == 7 { MAX_WEIGHT / 2 } else { MAX_WEIGHT }
}

/// A static network in 8-bit integers.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantisedNetwork {
    /// The f32 network.
    pub spec: NetworkSpec,
    /// Every convolution and linear layer by the name of its slot, with batch norm folded in.
    pub layers: BTreeMap<String, QuantisedLayer>,
    /// Scales of the values that are rounded, by the names of the nodes that make them ([`node_names`]).
    pub values: BTreeMap<String, Scale>,
}

/// Weights of a layer, `[out, in / groups, kernel, kernel]`.
#[derive(Debug, Clone, PartialEq)]
pub enum QuantisedLayer {
    /// Integers.
    Int8(Int8Layer),
    /// A layer that stays f32.
    F32 {
        /// Weight.
        weight: Vec<f32>,
        /// Bias of each output channel; zeros where the layer has none.
        bias: Vec<f32>,
    },
}

/// Integer weights of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Int8Layer {
    /// Weight, at most [`MAX_WEIGHT`] in size.
    pub weight: Vec<i8>,
    /// Scale of each output channel's weights.
    pub scales: Vec<f32>,
    /// Bias of each output channel in units of `input scale * weight scale`, at most [`MAX_SUM`] in size.
    pub bias: Vec<i32>,
}

/// Name of each node's output, in the order of the nodes: the name of the slot for nodes with tensors
/// (`blocks.1.0.bn1`); otherwise the name of the first input and the operation (`blocks.1.0.bn1.hard_swish`).
/// Names do not depend on the size of the image.
pub fn node_names(graph: &Graph) -> Vec<String> {
    let mut names = vec![String::new(); graph.nodes().len()];
    for slot in graph.slots() {
        names[slot.node.index()] = graph.name(slot);
    }
    let mut taken: HashSet<String> = names.iter().cloned().collect();
    for (index, node) in graph.nodes().iter().enumerate() {
        if names[index].is_empty() {
            let wanted = match node.inputs().first() {
                Some(input) => format!("{}.{}", names[input.index()], operation(node)),
                None => operation(node).to_string(),
            };
            let numbered = (2..).map(|number| format!("{wanted}_{number}"));
            let free = std::iter::once(wanted.clone()).chain(numbered).find(|name| !taken.contains(name));
            names[index] = free.unwrap_or(wanted);
            taken.insert(names[index].clone());
        }
    }
    names
}

fn operation(node: &Node) -> &'static str {
    match node.op {
        Op::Input => "input",
        Op::Convolution { .. } => "convolution",
        Op::BatchNorm => "norm",
        Op::Activation(Activation::Identity) => "identity",
        Op::Activation(Activation::Relu) => "relu",
        Op::Activation(Activation::Relu6) => "relu6",
        Op::Activation(Activation::HardSwish) => "hard_swish",
        Op::Activation(Activation::Swish) => "swish",
        Op::HardSigmoid => "hard_sigmoid",
        Op::GlobalAveragePool => "mean",
        Op::AveragePool { .. } | Op::MaxPool { .. } => "pool",
        Op::Add => "sum",
        Op::Gate => "gated",
        Op::Linear => "linear",
    }
}
