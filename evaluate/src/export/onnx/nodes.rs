//! From the nodes of a graph to ONNX operators, one by one.

use super::super::Options;
use super::proto::{Attribute, Element};
use super::writer::{LOGITS, PROBABILITIES, Writer, float, int, ints};
use crate::model::{ModelConfig, Normalisation};
use crate::runtime::{Checked, Weights};
use crate::{Error, Result};
use ofa_supernet::graph::{Graph, Node, NodeId, Op, Shape};
use ofa_supernet::space::Activation;
use std::collections::HashMap;

/// Writes all nodes of `graph`, with the nodes that `options` put before and after it.
///
/// # Errors
/// A node that has no counterpart.
pub fn write(
    graph: &Graph,
    config: &ModelConfig,
    weights: &Weights,
    options: &Options,
    writer: &mut Writer,
) -> Result<()> {
    let weights = Checked { weights, epsilon: graph.batch_norm_epsilon() };
    let consumers = graph.consumers();
    let names = graph.slots().iter().map(|slot| (slot.node, graph.name(slot))).collect();
    let values = vec![String::new(); graph.nodes().len()];
    let mut emitter = Emitter { graph, consumers, names, weights, values, options, writer };
    // In the order of execution, which engines that run a file as it stands need for their memory.
    for id in graph.schedule() {
        let value = match graph.node(id).op {
            Op::Input => emitter.input(&config.normalisation, graph.node(id).shape),
            _ => emitter.node(id)?,
        };
        emitter.values[id.index()] = value;
    }
    let logits = writer.rename_last(LOGITS);
    if options.softmax {
        let classes = graph.node(graph.output()).shape.channels;
        writer.node("Softmax", "softmax", &[&logits], vec![int("axis", 1)], &[classes]);
        writer.rename_last(PROBABILITIES);
    }
    Ok(())
}

struct Emitter<'a> {
    graph: &'a Graph,
    consumers: Vec<Vec<NodeId>>,
    /// Names of the nodes with tensors.
    names: HashMap<NodeId, String>,
    weights: Checked<'a>,
    /// Name of the value that holds each node's output.
    values: Vec<String>,
    options: &'a Options,
    writer: &'a mut Writer,
}

impl Emitter<'_> {
    /// The normalised image.
    fn input(&mut self, normalisation: &Normalisation, shape: Shape) -> String {
        let writer = &mut *self.writer;
        if !self.options.preprocessing {
            return writer.input(Element::Float, &extents(shape));
        }
        let pixels = [shape.height, shape.width, shape.channels];
        let bytes = writer.input(Element::Uint8, &pixels);
        let channel = |value: fn(f64, f64) -> f64| -> Vec<f32> {
            let pairs = normalisation.mean.iter().zip(&normalisation.std);
            pairs.map(|(&mean, &std)| value(f64::from(mean), f64::from(std)) as f32).collect()
        };
        // Bytes feed a cast and nothing else: TensorRT takes them nowhere else.
        let numbers = writer.node("Cast", "image.cast", &[&bytes], vec![int("to", Element::Float as i64)], &pixels);
        let mean = writer.floats("image.mean", &[3], &channel(|mean, _| 255.0 * mean));
        let centred = writer.node("Sub", "image.centred", &[&numbers, &mean], vec![], &pixels);
        let std = writer.floats("image.std", &[3], &channel(|_, std| 255.0 * std));
        let normalised = writer.node("Div", "image.normalised", &[&centred, &std], vec![], &pixels);
        let order = vec![ints("perm", &[0, 3, 1, 2])];
        writer.node("Transpose", "image.transposed", &[&normalised], order, &extents(shape))
    }

    fn node(&mut self, id: NodeId) -> Result<String> {
        let node = self.graph.node(id);
        let [input, other] = [0, 1].map(|place| node.inputs().get(place).copied());
        let x = input.map_or(String::new(), |input| self.values[input.index()].clone());
        let shape = extents(node.shape);
        let name = |operation: &str| format!("{x}.{operation}");
        Ok(match node.op {
            Op::Convolution { .. } => self.convolution(id, &x),
            Op::Linear => self.linear(id, &x),
            // Folded into the convolution before it.
            Op::BatchNorm if input.is_some_and(|input| self.norm_after(input).is_some()) => x,
            Op::BatchNorm => return Err(no_operator(node)),
            Op::Activation(activation) => self.activation(activation, &x, &shape),
            Op::HardSigmoid => self.hard_sigmoid(&x, &shape),
            Op::GlobalAveragePool => self.writer.node("GlobalAveragePool", &name("mean"), &[&x], vec![], &shape),
            Op::AveragePool { window } => {
                let size = input.map_or(node.shape, |input| self.graph.node(input).shape);
                // The last windows reach over the border, whose zeros do not count.
                let below = (node.shape.height * window).saturating_sub(size.height);
                let right = (node.shape.width * window).saturating_sub(size.width);
                let mut attributes = windows(window, window, [0, 0, below, right]);
                attributes.push(int("count_include_pad", 0));
                self.writer.node("AveragePool", &name("pool"), &[&x], attributes, &shape)
            }
            Op::MaxPool { window, stride, padding } => {
                self.writer.node("MaxPool", &name("pool"), &[&x], windows(window, stride, [padding; 4]), &shape)
            }
            Op::Add | Op::Gate => {
                let other = other.map_or(String::new(), |other| self.values[other.index()].clone());
                let (operator, operation) = if node.op == Op::Add { ("Add", "sum") } else { ("Mul", "gated") };
                self.writer.node(operator, &name(operation), &[&x, &other], vec![], &shape)
            }
            Op::Input => return Err(no_operator(node)),
        })
    }

    /// Name of the batch norm that is the only reader of a convolution.
    fn norm_after(&self, id: NodeId) -> Option<&str> {
        let [reader] = self.consumers[id.index()][..] else { return None };
        let convolution = matches!(self.graph.node(id).op, Op::Convolution { .. });
        let norm = convolution && self.graph.node(reader).op == Op::BatchNorm;
        self.names.get(&reader).filter(|_| norm).map(String::as_str)
    }

    fn convolution(&mut self, id: NodeId, x: &str) -> String {
        let node = self.graph.node(id);
        let Op::Convolution { kernel, stride, padding, groups, bias } = node.op else { return x.into() };
        let name = self.name(id);
        let norm = self.norm_after(id).map(str::to_string);
        let (out, inputs) = (node.shape.channels, self.graph.node(node.inputs()[0]).shape.channels);
        let (weight, offsets) = self.weights.weight_and_bias(&name, bias, norm.as_deref(), out);
        let weight = self.writer.floats(&format!("{name}.weight"), &[out, inputs / groups, kernel, kernel], &weight);
        let offsets = (bias || norm.is_some()).then(|| self.writer.floats(&format!("{name}.bias"), &[out], &offsets));
        let inputs: Vec<&str> = [x, &weight].into_iter().chain(offsets.as_deref()).collect();
        let mut attributes = windows(kernel, stride, [padding; 4]);
        attributes.extend([ints("dilations", &[1, 1]), int("group", groups as i64)]);
        self.writer.node("Conv", &name, &inputs, attributes, &extents(node.shape))
    }

    fn linear(&mut self, id: NodeId, x: &str) -> String {
        let (node, name) = (self.graph.node(id), self.name(id));
        let (out, inputs) = (node.shape.channels, self.graph.node(node.inputs()[0]).shape.channels);
        let flat = self.writer.node("Flatten", &format!("{x}.flat"), &[x], vec![int("axis", 1)], &[inputs]);
        let (weight, bias) = self.weights.weight_and_bias(&name, true, None, out);
        let weight = self.writer.floats(&format!("{name}.weight"), &[out, inputs], &weight);
        let bias = self.writer.floats(&format!("{name}.bias"), &[out], &bias);
        self.writer.node("Gemm", &name, &[&flat, &weight, &bias], vec![int("transB", 1)], &[out])
    }

    fn activation(&mut self, activation: Activation, x: &str, shape: &[usize]) -> String {
        match activation {
            Activation::Identity => x.into(),
            Activation::Relu => self.writer.node("Relu", &format!("{x}.relu"), &[x], vec![], shape),
            Activation::Relu6 => self.clip(&format!("{x}.relu6"), x, shape),
            Activation::HardSwish if self.has_hard_operators() => {
                self.writer.node("HardSwish", &format!("{x}.hard_swish"), &[x], vec![], shape)
            }
            Activation::HardSwish => {
                let clipped = self.shifted_and_clipped(x, shape);
                let product = self.writer.node("Mul", &format!("{x}.product"), &[x, &clipped], vec![], shape);
                self.sixth(&format!("{x}.hard_swish"), &product, shape)
            }
        }
    }

    fn hard_sigmoid(&mut self, x: &str, shape: &[usize]) -> String {
        let name = format!("{x}.hard_sigmoid");
        if self.has_hard_operators() {
            let line = vec![float("alpha", 1.0 / 6.0), float("beta", 0.5)];
            return self.writer.node("HardSigmoid", &name, &[x], line, shape);
        }
        let clipped = self.shifted_and_clipped(x, shape);
        self.sixth(&name, &clipped, shape)
    }

    /// Whether hard-swish and hard-sigmoid are written as operators: parsers that stop at opset 13 know only one of
    /// them, so there both are written in parts.
    fn has_hard_operators(&self) -> bool {
        self.options.opset >= 14
    }

    /// `min(max(x + 3, 0), 6)`
    fn shifted_and_clipped(&mut self, x: &str, shape: &[usize]) -> String {
        let three = self.writer.floats(&format!("{x}.three"), &[], &[3.0]);
        let shifted = self.writer.node("Add", &format!("{x}.shifted"), &[x, &three], vec![], shape);
        self.clip(&format!("{x}.clipped"), &shifted, shape)
    }

    /// `min(max(x, 0), 6)`
    fn clip(&mut self, name: &str, x: &str, shape: &[usize]) -> String {
        let low = self.writer.floats(&format!("{name}.low"), &[], &[0.0]);
        let high = self.writer.floats(&format!("{name}.high"), &[], &[6.0]);
        self.writer.node("Clip", name, &[x, &low, &high], vec![], shape)
    }

    /// `x / 6`
    fn sixth(&mut self, name: &str, x: &str, shape: &[usize]) -> String {
        let six = self.writer.floats(&format!("{name}.six"), &[], &[6.0]);
        self.writer.node("Div", name, &[x, &six], vec![], shape)
    }

    /// Name of a node with tensors.
    fn name(&self, id: NodeId) -> String {
        self.names.get(&id).cloned().unwrap_or_default()
    }
}

/// Extents in ONNX's order, without the batch.
fn extents(shape: Shape) -> [usize; 3] {
    [shape.channels, shape.height, shape.width]
}

/// Attributes of a square window: padding above, left, below and right.
fn windows(window: usize, stride: usize, padding: [usize; 4]) -> Vec<Attribute> {
    vec![ints("kernel_shape", &[window; 2]), ints("strides", &[stride; 2]), ints("pads", &padding)]
}

fn no_operator(node: &Node) -> Error {
    Error::Export(format!("{:?} cannot be exported where it stands in the network", node.op))
}
