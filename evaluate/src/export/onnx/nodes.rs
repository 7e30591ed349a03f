//! From the nodes of a graph to ONNX operators, one by one.

use super::super::{Engine, Options, Parameters};
use super::proto::{Attribute, Element};
use super::rounding::{Grid, Rounding};
use super::writer::{LOGITS, PROBABILITIES, Writer, float, int, ints};
use crate::model::{ModelConfig, Normalisation};
use crate::quantise::{Int8Layer, QuantisedLayer, int8_layer, largest_weight, node_names};
use crate::runtime::Checked;
use crate::{Error, Result};
use ofa_supernet::graph::{Graph, Node, NodeId, Op, Shape};
use ofa_supernet::space::Activation;

/// Writes all nodes of `graph`, with the nodes that `options` put before and after it.
///
/// # Errors
/// A node that has no counterpart.
pub fn write(
    graph: &Graph,
    config: &ModelConfig,
    parameters: &Parameters,
    options: &Options,
    writer: &mut Writer,
) -> Result<()> {
    let consumers = graph.consumers();
    let names = node_names(graph);
    let values = vec![String::new(); graph.nodes().len()];
    let rounding = match (parameters, &config.quantisation) {
        (Parameters::Int8(network), Some(quantisation)) => Rounding::of(graph, network, quantisation, options.engine),
        _ => Rounding { grids: vec![None; values.len()], int8: vec![false; values.len()] },
    };
    let bits = config.quantisation.as_ref().map_or(8, |quantisation| quantisation.weight_bits);
    let largest_weight = largest_weight(bits);
    let mut emitter =
        Emitter { graph, consumers, names, parameters, values, rounding, largest_weight, options, writer };
    // In the order of execution, which engines that run a file as it stands need for their memory.
    for id in graph.schedule() {
        let value = match graph.node(id).op {
            Op::Input => emitter.input(&config.normalisation, graph.node(id).shape),
            _ => emitter.node(id)?,
        };
        emitter.values[id.index()] = match emitter.rounding.grids[id.index()] {
            Some(grid) => emitter.rounded(&value, grid, graph.node(id).shape),
            None => value,
        };
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
    /// Names of the nodes; those with tensors have the names of these.
    names: Vec<String>,
    parameters: &'a Parameters,
    /// Name of the value that holds each node's output: integers for nodes with a grid.
    values: Vec<String>,
    rounding: Rounding,
    /// Of layers that are f32 in the model and integers in the file.
    largest_weight: i8,
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
        let x = match (node.op, input) {
            // Flattened before it is converted.
            (Op::Linear, Some(input)) => self.values[input.index()].clone(),
            (_, Some(input)) => self.real(input, &extents(self.graph.node(input).shape)),
            (_, None) => String::new(),
        };
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
            Op::AveragePool { window, padding } => {
                let size = input.map_or(node.shape, |input| self.graph.node(input).shape);
                // The last windows reach over the border, whose zeros do not count.
                let below = (node.shape.height * window).saturating_sub(size.height + padding);
                let right = (node.shape.width * window).saturating_sub(size.width + padding);
                if padding > 0 && below + right > 0 {
                    // The operator counts the zeros on all sides or on none.
                    return Err(no_operator(node));
                }
                let mut attributes = windows(window, window, [padding, padding, below, right]);
                attributes.push(int("count_include_pad", i64::from(padding > 0)));
                self.writer.node("AveragePool", &name("pool"), &[&x], attributes, &shape)
            }
            Op::MaxPool { window, stride, padding } => {
                self.writer.node("MaxPool", &name("pool"), &[&x], windows(window, stride, [padding; 4]), &shape)
            }
            Op::Add | Op::Gate => {
                let other = other.map(|other| self.real(other, &extents(self.graph.node(other).shape)));
                let other = other.unwrap_or_default();
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
        norm.then(|| self.names[reader.index()].as_str())
    }

    fn convolution(&mut self, id: NodeId, x: &str) -> String {
        let node = self.graph.node(id);
        let Op::Convolution { kernel, stride, padding, groups, bias } = node.op else { return x.into() };
        let name = self.names[id.index()].clone();
        let norm = self.norm_after(id).map(str::to_string);
        let (out, inputs) = (node.shape.channels, self.graph.node(node.inputs()[0]).shape.channels);
        let (weight, offsets) = self.layer(id, &[out, inputs / groups, kernel, kernel], bias, norm.as_deref());
        let inputs: Vec<&str> = [x, &weight].into_iter().chain(offsets.as_deref()).collect();
        let mut attributes = windows(kernel, stride, [padding; 4]);
        attributes.extend([ints("dilations", &[1, 1]), int("group", groups as i64)]);
        self.writer.node("Conv", &name, &inputs, attributes, &extents(node.shape))
    }

    fn linear(&mut self, id: NodeId, x: &str) -> String {
        let (node, name) = (self.graph.node(id), self.names[id.index()].clone());
        let (out, inputs) = (node.shape.channels, self.graph.node(node.inputs()[0]).shape.channels);
        let (input, axis) = (node.inputs()[0], vec![int("axis", 1)]);
        let flat = match self.rounding.grids[input.index()] {
            None => self.writer.node("Flatten", &format!("{x}.flat"), &[x], axis, &[inputs]),
            Some(grid) => {
                let output = (grid.element, &[inputs][..]);
                let flat = self.writer.typed_node("Flatten", &format!("{x}.flat"), &[x], axis, output);
                self.converted(&flat, grid, &[inputs])
            }
        };
        let (weight, bias) = self.layer(id, &[out, inputs], true, None);
        let inputs: Vec<&str> = [&flat, &weight].into_iter().chain(&bias).map(String::as_str).collect();
        self.writer.node("Gemm", &name, &inputs, vec![int("transB", 1)], &[out])
    }

    /// Weight and bias of a layer. A layer without a bias of its own and batch norm has none.
    fn layer(&mut self, id: NodeId, shape: &[usize], has_bias: bool, norm: Option<&str>) -> (String, Option<String>) {
        let name = self.names[id.index()].clone();
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        match self.parameters {
            Parameters::F32(weights) => {
                let weights = Checked { weights, epsilon: self.graph.batch_norm_epsilon() };
                let (values, offsets) = weights.weight_and_bias(&name, has_bias, norm, shape[0]);
                let weight = self.writer.floats(&weight, shape, &values);
                let used = has_bias || norm.is_some();
                (weight, used.then(|| self.writer.floats(&bias, &shape[..1], &offsets)))
            }
            Parameters::Int8(network) => match network.layers.get(&name) {
                Some(QuantisedLayer::Int8(layer)) => {
                    let input = &self.names[self.graph.node(id).inputs()[0].index()];
                    let input = network.values.get(input).map_or(1.0, |scale| scale.scale);
                    self.int8_layer(&name, layer, input, shape)
                }
                Some(QuantisedLayer::F32 { weight: values, bias: offsets }) => {
                    let input = self.rounding.grids[self.graph.node(id).inputs()[0].index()];
                    if let Some(input) = input.filter(|_| self.rounding.int8[id.index()]) {
                        let layer = int8_layer(values, offsets, input.scale, self.largest_weight);
                        return self.int8_layer(&name, &layer, input.scale, shape);
                    }
                    let weight = self.writer.floats(&weight, shape, values);
                    (weight, Some(self.writer.floats(&bias, &shape[..1], offsets)))
                }
                None => (weight, None),
            },
        }
    }

    /// Weight and bias of a layer in integers, converted. `input` is the scale of the layer's input.
    fn int8_layer(&mut self, name: &str, layer: &Int8Layer, input: f32, shape: &[usize]) -> (String, Option<String>) {
        let writer = &mut *self.writer;
        let out = &shape[..1];
        let bytes = layer.weight.iter().map(|weight| weight.cast_unsigned()).collect();
        let integers = writer.constant(&format!("{name}.weight"), Element::Int8, shape, bytes);
        let scales = writer.floats(&format!("{name}.weight.scale"), out, &layer.scales);
        let zeros = writer.constant(&format!("{name}.weight.zero_point"), Element::Int8, out, vec![0; shape[0]]);
        let axis = || vec![int("axis", 0)];
        let inputs = [&integers[..], &scales, &zeros];
        let weight = writer.constant_node("DequantizeLinear", &format!("{name}.weight.real"), &inputs, axis(), shape);
        if self.options.engine != Engine::OnnxRuntime {
            let values = layer.dequantised_bias(input);
            return (weight, Some(self.writer.floats(&format!("{name}.bias"), out, &values)));
        }
        let bytes = layer.bias.iter().flat_map(|bias| bias.to_le_bytes()).collect();
        let integers = writer.constant(&format!("{name}.bias"), Element::Int32, out, bytes);
        let products: Vec<f32> = layer.scales.iter().map(|scale| input * scale).collect();
        let scales = writer.floats(&format!("{name}.bias.scale"), out, &products);
        let zeros = writer.constant(&format!("{name}.bias.zero_point"), Element::Int32, out, vec![0; 4 * shape[0]]);
        let inputs = [&integers[..], &scales, &zeros];
        (weight, Some(writer.constant_node("DequantizeLinear", &format!("{name}.bias.real"), &inputs, axis(), out)))
    }

    /// The value as integers.
    fn rounded(&mut self, x: &str, grid: Grid, shape: Shape) -> String {
        let (scale, zero_point) = self.grid(&format!("{x}.rounded"), grid);
        let output = (grid.element, &extents(shape)[..]);
        self.writer.typed_node("QuantizeLinear", &format!("{x}.rounded"), &[x, &scale, &zero_point], vec![], output)
    }

    /// A node's output in f32, for one reader.
    fn real(&mut self, id: NodeId, shape: &[usize]) -> String {
        let x = self.values[id.index()].clone();
        match self.rounding.grids[id.index()] {
            Some(grid) => self.converted(&x, grid, shape),
            None => x,
        }
    }

    /// Integers as f32.
    fn converted(&mut self, x: &str, grid: Grid, shape: &[usize]) -> String {
        let name = format!("{x}.real");
        let (scale, zero_point) = self.grid(&name, grid);
        self.writer.node("DequantizeLinear", &name, &[x, &scale, &zero_point], vec![], shape)
    }

    /// Constants of a scale without extents, and its zero point.
    fn grid(&mut self, name: &str, grid: Grid) -> (String, String) {
        let scale = self.writer.floats(&format!("{name}.scale"), &[], &[grid.scale]);
        let byte = vec![grid.zero_point.to_le_bytes()[0]];
        (scale, self.writer.constant(&format!("{name}.zero_point"), grid.element, &[], byte))
    }

    fn activation(&mut self, activation: Activation, x: &str, shape: &[usize]) -> String {
        match activation {
            Activation::Identity => x.into(),
            Activation::Relu => self.writer.node("Relu", &format!("{x}.relu"), &[x], vec![], shape),
            Activation::Relu6 => self.clip(&format!("{x}.relu6"), x, shape),
            Activation::HardSwish if self.has_hard_operators() => {
                self.writer.node("HardSwish", &format!("{x}.hard_swish"), &[x], vec![], shape)
            }
            Activation::Swish => {
                let sigmoid = self.writer.node("Sigmoid", &format!("{x}.sigmoid"), &[x], vec![], shape);
                self.writer.node("Mul", &format!("{x}.swish"), &[x, &sigmoid], vec![], shape)
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
        super::opset(self.options) >= 14
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
