//! A quantised network computed node by node, as plainly as possible: what every fast kernel is tested against.

use super::{QuantisedLayer, QuantisedNetwork, Scale, activate, hard_sigmoid, node_names};
use crate::{Error, Result};
use ofa_supernet::graph::{Graph, Node, Op, Shape};
use rayon::prelude::*;

/// Logits `[batch, classes]` of `images` `[batch, resolution, resolution, 3]`, normalised.
///
/// # Errors
/// A network that fails [`QuantisedNetwork::check`], or a number of values that is not that of the batch.
pub fn run(network: &QuantisedNetwork, images: &[f32], batch: usize) -> Result<Vec<f32>> {
    network.check()?;
    let graph = Graph::of(&network.spec);
    let expected = batch * network.spec.resolution * network.spec.resolution * 3;
    if batch == 0 || images.len() != expected {
        return Err(Error::Input(format!("{} values given for a batch of {batch}, {expected} expected", images.len())));
    }
    let names = node_names(&graph);
    let logits = images.par_chunks(images.len() / batch).map(|image| {
        let values = values_of_image(network, &graph, &names, image)?;
        Ok(values.last().map(Value::reals).unwrap_or_default())
    });
    Ok(logits.collect::<Result<Vec<Vec<f32>>>>()?.concat())
}

/// Output of a node for one image, `[height, width, channels]`.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Real numbers.
    Real(Vec<f32>),
    /// Integers of a scale.
    Rounded(Vec<u8>, Scale),
}

impl Value {
    /// The real numbers.
    pub fn reals(&self) -> Vec<f32> {
        match self {
            Value::Real(values) => values.clone(),
            Value::Rounded(values, scale) => values.iter().map(|&q| scale.dequantise(q)).collect(),
        }
    }

    /// Sum of the numbers at `places`, times `factor(scale)`. Integers are summed exactly.
    fn scaled_sum(&self, places: impl Iterator<Item = usize>, count: usize) -> f32 {
        match self {
            Value::Real(values) => places.fold(0.0, |sum: f32, place| sum + values[place]) * (1.0 / count as f32),
            Value::Rounded(values, scale) => {
                let zero = i64::from(scale.zero_point);
                let sum: i64 = places.map(|place| i64::from(values[place]) - zero).sum();
                sum as f32 * (scale.scale / count as f32)
            }
        }
    }
}

/// Outputs of all nodes for one image. `names` are the nodes' ([`node_names`]); the network passed its check.
///
/// # Errors
/// An operation where the network cannot have it.
pub fn values_of_image(
    network: &QuantisedNetwork,
    graph: &Graph,
    names: &[String],
    image: &[f32],
) -> Result<Vec<Value>> {
    let mut values: Vec<Value> = Vec::with_capacity(graph.nodes().len());
    for (node, name) in graph.nodes().iter().zip(names) {
        let inputs: Vec<(&Value, Shape)> =
            node.inputs().iter().map(|id| (&values[id.index()], graph.node(*id).shape)).collect();
        let reals = match node.op {
            Op::Input => image.to_vec(),
            _ => compute(network, node, name, &inputs)?,
        };
        let value = match network.values.get(name) {
            Some(scale) => Value::Rounded(reals.iter().map(|&value| scale.quantise(value)).collect(), *scale),
            None => Value::Real(reals),
        };
        values.push(value);
    }
    Ok(values)
}

/// Output of a node before it is rounded.
fn compute(network: &QuantisedNetwork, node: &Node, name: &str, inputs: &[(&Value, Shape)]) -> Result<Vec<f32>> {
    let Some(&(x, shape)) = inputs.first() else {
        return Err(Error::Network(format!("the node '{name}' has no input")));
    };
    let channels = node.shape.channels;
    Ok(match (node.op, inputs) {
        (Op::Convolution { kernel, stride, padding, groups, .. }, _) => {
            let window = Window { size: kernel, stride, padding, groups };
            convolution(network, name, x, shape, node.shape, window)?
        }
        (Op::Linear, _) => {
            let window = Window { size: 1, stride: 1, padding: 0, groups: 1 };
            convolution(network, name, x, shape, node.shape, window)?
        }
        // Folded into the convolution before it.
        (Op::BatchNorm, _) => x.reals(),
        (Op::Activation(activation), _) => x.reals().into_iter().map(|x| activate(activation, x)).collect(),
        (Op::HardSigmoid, _) => x.reals().into_iter().map(hard_sigmoid).collect(),
        (Op::GlobalAveragePool, _) => {
            let pixels = shape.height * shape.width;
            let places = |channel| (0..pixels).map(move |pixel| pixel * channels + channel);
            (0..channels).map(|channel| x.scaled_sum(places(channel), pixels)).collect()
        }
        (Op::AveragePool { window, padding }, _) => {
            let size = Window { size: window, stride: window, padding, groups: 1 };
            let mut means = Vec::with_capacity(node.shape.values() as usize);
            for (row, column, channel) in positions(node.shape) {
                // Zeros before the first row and column count, pixels behind the last ones do not exist.
                let extent = |start: usize, length: usize| window.min(length + padding - start * window);
                let count = extent(row, shape.height) * extent(column, shape.width);
                means.push(
                    x.scaled_sum(size.taps(shape, row, column).map(|(_, pixel)| pixel * channels + channel), count),
                );
            }
            means
        }
        (Op::MaxPool { window, stride, padding }, _) => {
            let (size, x) = (Window { size: window, stride, padding, groups: 1 }, x.reals());
            let largest = |(row, column, channel)| {
                let values = size.taps(shape, row, column).map(|(_, pixel)| x[pixel * channels + channel]);
                values.fold(f32::NEG_INFINITY, f32::max)
            };
            positions(node.shape).map(largest).collect()
        }
        (Op::Add, [_, (other, _)]) => x.reals().iter().zip(other.reals()).map(|(x, y)| x + y).collect(),
        (Op::Gate, [_, (factors, _)]) => {
            let factors = factors.reals();
            match x {
                Value::Real(x) => x.iter().enumerate().map(|(i, x)| x * factors[i % channels]).collect(),
                Value::Rounded(x, scale) => {
                    let factors: Vec<f32> = factors.iter().map(|factor| scale.scale * factor).collect();
                    let centred = |q: u8| f32::from(i16::from(q) - i16::from(scale.zero_point));
                    x.iter().enumerate().map(|(i, &q)| centred(q) * factors[i % channels]).collect()
                }
            }
        }
        (op, _) => return Err(Error::Network(format!("{op:?} cannot be computed where it stands in the network"))),
    })
}

/// Rows, columns and channels of a map, in the order of its values.
fn positions(shape: Shape) -> impl Iterator<Item = (usize, usize, usize)> {
    let Shape { height, width, channels } = shape;
    (0..height).flat_map(move |row| {
        (0..width).flat_map(move |column| (0..channels).map(move |channel| (row, column, channel)))
    })
}

/// A square window that moves over a map.
#[derive(Clone, Copy)]
struct Window {
    size: usize,
    stride: usize,
    padding: usize,
    groups: usize,
}

impl Window {
    /// Taps of the output at `(row, column)` that lie inside the map: index in the window, and pixel of the map.
    fn taps(self, map: Shape, row: usize, column: usize) -> impl Iterator<Item = (usize, usize)> {
        let inside = move |output: usize, tap: usize, length: usize| {
            (output * self.stride + tap).checked_sub(self.padding).filter(|&place| place < length)
        };
        (0..self.size * self.size).filter_map(move |tap| {
            let y = inside(row, tap / self.size, map.height)?;
            let x = inside(column, tap % self.size, map.width)?;
            Some((tap, y * map.width + x))
        })
    }
}

/// A convolution, or a linear layer as one of a single pixel, without rounding of the output.
fn convolution(
    network: &QuantisedNetwork,
    name: &str,
    x: &Value,
    map: Shape,
    output: Shape,
    window: Window,
) -> Result<Vec<f32>> {
    let inputs = map.channels / window.groups;
    let area = window.size * window.size;
    let per_group = output.channels / window.groups;
    // Index of the first input channel, and of the output's first weight.
    let starts = |channel: usize| (channel / per_group * inputs, channel * inputs * area);
    let mut sums = Vec::with_capacity(output.values() as usize);
    match (network.layers.get(name), x) {
        (Some(QuantisedLayer::Int8(layer)), Value::Rounded(x, scale)) => {
            let zero = i32::from(scale.zero_point);
            for (row, column, channel) in positions(output) {
                let (first, weights) = starts(channel);
                let mut sum = layer.bias[channel];
                for (tap, pixel) in window.taps(map, row, column) {
                    for input in 0..inputs {
                        let weight = i32::from(layer.weight[weights + input * area + tap]);
                        sum += (i32::from(x[pixel * map.channels + first + input]) - zero) * weight;
                    }
                }
                sums.push(sum as f32 * (scale.scale * layer.scales[channel]));
            }
        }
        (Some(QuantisedLayer::F32 { weight, bias }), x) => {
            let x = x.reals();
            for (row, column, channel) in positions(output) {
                let (first, weights) = starts(channel);
                let mut sum = bias[channel];
                for (tap, pixel) in window.taps(map, row, column) {
                    for input in 0..inputs {
                        sum += weight[weights + input * area + tap] * x[pixel * map.channels + first + input];
                    }
                }
                sums.push(sum);
            }
        }
        _ => return Err(Error::tensor(name, "has no weights of the number type of its input")),
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::super::Int8Layer;
    use super::super::forward::Folded;
    use super::*;
    use ofa_supernet::seed::{Stream, generator};
    use ofa_supernet::space::{NetworkSpec, PRESETS, preset};
    use rand::Rng;
    use std::collections::HashSet;

    fn images(spec: &NetworkSpec, batch: usize) -> Vec<f32> {
        let mut rng = generator(9, Stream::Builtin, &[]);
        (0..batch * spec.resolution * spec.resolution * 3).map(|_| rng.random_range(-2.0..2.0)).collect()
    }

    /// The layers of a network with their integers as real numbers.
    fn dequantised(network: &QuantisedNetwork) -> Folded {
        let graph = Graph::of(&network.spec);
        let names = node_names(&graph);
        let layer = |(node, name): (&Node, &String)| {
            Some(match network.layers.get(name)? {
                QuantisedLayer::F32 { weight, bias } => (weight.clone(), bias.clone()),
                QuantisedLayer::Int8(layer) => {
                    let input = network.values[&names[node.inputs()[0].index()]].scale;
                    (layer.dequantised(), layer.dequantised_bias(input))
                }
            })
        };
        let layers = graph.nodes().iter().zip(&names).map(layer).collect();
        Folded { graph, names, layers }
    }

    #[test]
    fn each_value_is_that_of_the_f32_operation_but_for_rounding() {
        for name in PRESETS.iter().filter(|name| name.contains("tiny")) {
            let space = preset(name).unwrap();
            let spec = space.network(&space.largest(), 5).unwrap();
            for keep in [HashSet::new(), ["conv_stem", "conv1.0", "classifier", "fc"].map(String::from).into()] {
                let network = QuantisedNetwork::random(&spec, &keep, 4).unwrap();
                let (folded, images) = (dequantised(&network), images(&spec, 3));
                let image = &images[images.len() / 3..2 * images.len() / 3];
                let values = values_of_image(&network, &folded.graph, &folded.names, image).unwrap();
                let kernels = folded.kernels();
                for index in folded.indices() {
                    let inputs = folded.graph.nodes()[index].inputs().iter();
                    let inputs: Vec<Vec<f32>> = inputs.map(|input| values[input.index()].reals()).collect();
                    let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
                    let expected = folded.output(index, kernels[index].as_ref(), &inputs, 1).unwrap();
                    assert_rounded(&values[index], &expected, &format!("{name}, {}", folded.names[index]));
                }
                // Images do not depend on their batch.
                let found = run(&network, &images, 3).unwrap();
                assert_eq!(found[5..10], values.last().unwrap().reals());
            }
        }
    }

    /// Asserts that `value` is `expected` but for its rounding.
    fn assert_rounded(value: &Value, expected: &[f32], what: &str) {
        let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        for (found, &expected) in value.reals().iter().zip(expected) {
            let (expected, step) = match value {
                Value::Real(_) => (expected, 0.0),
                Value::Rounded(_, scale) => (expected.clamp(scale.dequantise(0), scale.dequantise(255)), scale.scale),
            };
            let within = 0.5 * step + 1e-4 * largest;
            assert!((found - expected).abs() <= within, "{what}: {found} instead of {expected}");
        }
    }

    #[test]
    fn a_layer_worked_out_by_hand() {
        let space = preset("tiny").unwrap();
        let mut network =
            QuantisedNetwork::random(&space.network(&space.smallest(), 2).unwrap(), &HashSet::new(), 1).unwrap();
        let QuantisedLayer::Int8(layer) = network.layers.get_mut("classifier").unwrap() else { unreachable!() };
        let inputs = layer.weight.len() / 2;
        layer.weight = (0..2 * inputs).map(|i| if i % inputs < 2 { [3, -7][i % inputs] } else { 0 }).collect();
        (layer.scales, layer.bias) = (vec![0.5, 0.25], vec![10, -10]);
        let graph = Graph::of(&network.spec);
        let names = node_names(&graph);
        let image = images(&network.spec, 1);
        let values = values_of_image(&network, &graph, &names, &image).unwrap();
        let Value::Rounded(q, scale) = &values[graph.nodes().len() - 2] else { panic!("the hidden layer is rounded") };
        let centred = |i: usize| i32::from(q[i]) - i32::from(scale.zero_point);
        let sum = 3 * centred(0) - 7 * centred(1);
        let expected = [(sum + 10) as f32 * (scale.scale * 0.5), (sum - 10) as f32 * (scale.scale * 0.25)];
        assert_eq!(run(&network, &image, 1).unwrap(), expected);
        assert!(q.iter().any(|&q| q > 0));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let space = preset("tiny").unwrap();
        let good = QuantisedNetwork::random(&space.network(&space.smallest(), 2).unwrap(), &HashSet::new(), 1).unwrap();
        let refused = |change: &dyn Fn(&mut QuantisedNetwork), name: &str, part: &str| {
            let mut network = good.clone();
            change(&mut network);
            let message = network.check().unwrap_err().to_string();
            assert!(message.contains(name) && message.contains(part), "{message}");
        };
        fn layer<'a>(network: &'a mut QuantisedNetwork, name: &str) -> &'a mut Int8Layer {
            match network.layers.get_mut(name).unwrap() {
                QuantisedLayer::Int8(layer) => layer,
                QuantisedLayer::F32 { .. } => unreachable!("by rule an int8 layer"),
            }
        }
        refused(&|n| drop(n.layers.remove("conv_stem")), "conv_stem.weight", "missing");
        refused(&|n| layer(n, "conv_stem").scales.truncate(7), "conv_stem", "7 scales");
        refused(&|n| layer(n, "conv_stem").scales[0] = 0.0, "conv_stem", "the scale 0");
        refused(&|n| layer(n, "conv_stem").bias[1] = i32::MIN, "conv_stem", "bias");
        refused(&|n| layer(n, "classifier").weight[0] = -128, "classifier", "-128");
        refused(&|n| n.values.retain(|name, _| name != "input"), "conv_stem", "'input' has no scale");
        refused(&|n| n.values.extend([("x".into(), Scale { scale: 1.0, zero_point: 0 })]), "x", "no such value");
        refused(&|n| n.values.get_mut("input").unwrap().scale = f32::NAN, "input", "NaN");
        let extra = good.layers["classifier"].clone();
        refused(&|n| drop(n.layers.insert("extra".into(), extra.clone())), "extra", "does not belong");
        assert!(run(&good, &[0.0; 5], 1).unwrap_err().to_string().contains("5 values"));
    }
}
