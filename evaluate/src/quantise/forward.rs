//! The f32 network node by node, with batch norm folded in: what calibration looks at.

use super::{Scale, node_names};
use crate::runtime::{Checked, Weights};
use crate::{Error, Result};
use ofa_supernet::graph::{Graph, NodeId, Op};
use ofa_supernet::ops::inference::{DenseConv, Depthwise, Pointwise, average_pool, average_windows, max_pool};
use ofa_supernet::space::{Activation, NetworkSpec};
use rayon::prelude::*;

/// A graph with the weights of its layers.
pub(super) struct Folded {
    pub graph: Graph,
    /// Names of the nodes.
    pub names: Vec<String>,
    /// Weight `[out, in / groups, kernel, kernel]` and bias of each convolution and linear layer.
    pub layers: Vec<Option<(Vec<f32>, Vec<f32>)>>,
}

/// Weights of a layer, laid out for its kernel.
pub(super) enum Kernel {
    Pointwise(Pointwise),
    Depthwise(Depthwise),
    Dense(DenseConv),
}

impl Folded {
    /// The network of `spec` with checked weights.
    pub fn new(spec: &NetworkSpec, weights: &Weights) -> Self {
        let graph = Graph::of(spec);
        let names = node_names(&graph);
        let consumers = graph.consumers();
        let checked = Checked { weights, epsilon: graph.batch_norm_epsilon() };
        let layer = |index: usize| {
            let node = graph.nodes()[index];
            let bias = match node.op {
                Op::Convolution { bias, .. } => bias,
                Op::Linear => true,
                _ => return None,
            };
            let norm = match consumers[index][..] {
                [reader] if graph.node(reader).op == Op::BatchNorm => Some(names[reader.index()].as_str()),
                _ => None,
            };
            let (weight, bias) = checked.weight_and_bias(&names[index], bias, norm, node.shape.channels);
            Some((weight.into_owned(), bias.into_owned()))
        };
        let layers = (0..graph.nodes().len()).map(layer).collect();
        Folded { graph, names, layers }
    }

    /// The kernel of a layer with other weights than its own.
    pub fn kernel(&self, index: usize, weight: &[f32], bias: &[f32]) -> Kernel {
        let node = self.graph.nodes()[index];
        let (input, output) = (self.graph.node(node.inputs()[0]).shape.channels, node.shape.channels);
        match node.op {
            Op::Convolution { kernel, stride, groups, .. } if groups > 1 => {
                Kernel::Depthwise(Depthwise::new(weight, bias, output, kernel, stride))
            }
            Op::Convolution { kernel, stride, .. } if (kernel, stride) != (1, 1) => {
                Kernel::Dense(DenseConv::new(weight, bias, input, output, kernel, stride))
            }
            _ => Kernel::Pointwise(Pointwise::new(weight, bias, input, output)),
        }
    }

    /// The kernel of each layer with its own weights.
    pub fn kernels(&self) -> Vec<Option<Kernel>> {
        let layers = self.layers.iter().enumerate();
        layers.map(|(index, layer)| layer.as_ref().map(|(weight, bias)| self.kernel(index, weight, bias))).collect()
    }

    /// Output of a node for a batch.
    ///
    /// # Errors
    /// An operation that no kernel computes.
    pub fn output(&self, index: usize, kernel: Option<&Kernel>, inputs: &[&[f32]], batch: usize) -> Result<Vec<f32>> {
        let node = self.graph.nodes()[index];
        let shape = node.inputs().first().map_or(node.shape, |input| self.graph.node(*input).shape);
        let (height, width, channels) = (shape.height, shape.width, shape.channels);
        let x = inputs.first().copied().unwrap_or_default();
        let mut output = vec![0.0; batch * node.shape.values() as usize];
        match (node.op, kernel) {
            (_, Some(Kernel::Pointwise(kernel))) => {
                kernel.run(x, batch, height * width, Activation::Identity, None, None, &mut output);
            }
            (_, Some(Kernel::Depthwise(kernel))) => {
                kernel.run(x, None, batch, height, width, Activation::Identity, &mut output, None);
            }
            (_, Some(Kernel::Dense(kernel))) => {
                kernel.run(x, batch, height, width, Activation::Identity, &mut output);
            }
            (Op::BatchNorm, _) => output.copy_from_slice(x),
            (Op::Activation(activation), _) => {
                output.iter_mut().zip(x).for_each(|(y, x)| *y = activation.apply(*x));
            }
            (Op::HardSigmoid, _) => output.iter_mut().zip(x).for_each(|(y, x)| *y = super::hard_sigmoid(*x)),
            (Op::GlobalAveragePool, _) => average_pool(x, batch, height * width, channels, &mut output),
            (Op::AveragePool { window, padding }, _) => {
                average_windows(x, (height, width, channels), window, padding, &mut output);
            }
            (Op::MaxPool { window: 3, stride: 2, padding: 1 }, _) => max_pool(x, height, width, channels, &mut output),
            (Op::Add, _) => output.iter_mut().zip(x).zip(inputs[1]).for_each(|((z, x), y)| *z = x + y),
            (Op::Gate, _) => {
                let factors = inputs[1].chunks_exact(channels);
                let maps = output.chunks_exact_mut(height * width * channels);
                for ((map, x), factors) in maps.zip(x.chunks_exact(height * width * channels)).zip(factors) {
                    let factors = factors.iter().cycle();
                    map.iter_mut().zip(x).zip(factors).for_each(|((y, x), factor)| *y = x * factor);
                }
            }
            (op, _) => return Err(Error::Network(format!("{op:?} cannot be quantised where it stands"))),
        }
        Ok(output)
    }

    /// Nodes in topological order, without the images.
    pub fn indices(&self) -> std::ops::Range<usize> {
        1..self.graph.nodes().len()
    }
}

/// Outputs of nodes, freed after their last reader.
pub(super) struct Values<'a> {
    graph: &'a Graph,
    readers: Vec<usize>,
    values: Vec<Vec<f32>>,
}

impl<'a> Values<'a> {
    /// The images.
    pub fn new(graph: &'a Graph, images: Vec<f32>) -> Self {
        let mut readers = vec![0; graph.nodes().len()];
        graph.nodes().iter().flat_map(|node| node.inputs()).for_each(|input| readers[input.index()] += 1);
        let mut values = vec![Vec::new(); graph.nodes().len()];
        values[0] = images;
        Values { graph, readers, values }
    }

    /// Inputs of a node.
    pub fn inputs(&self, index: usize) -> Vec<&[f32]> {
        let inputs = self.graph.nodes()[index].inputs().iter();
        inputs.map(|input: &NodeId| &self.values[input.index()][..]).collect()
    }

    /// Stores a node's output, and frees inputs that no other node reads.
    pub fn store(&mut self, index: usize, output: Vec<f32>) {
        for input in self.graph.nodes()[index].inputs() {
            self.readers[input.index()] -= 1;
            if self.readers[input.index()] == 0 {
                self.values[input.index()] = Vec::new();
            }
        }
        self.values[index] = output;
    }
}

/// The values as their integers represent them.
pub(super) fn round(mut values: Vec<f32>, scale: Option<Scale>) -> Vec<f32> {
    if let Some(scale) = scale {
        values.par_iter_mut().for_each(|value| *value = scale.dequantise(scale.quantise(*value)));
    }
    values
}
