//! The network that is fine-tuned: integers as rounded real numbers, with gradients.

use super::grid::Grid;
use super::parameter::Parameter;
use crate::quantise::calibrate::f32_weight;
use crate::quantise::forward::Folded;
use crate::quantise::weights::with_scales;
use crate::quantise::{QuantisedLayer, QuantisedNetwork, Scale, largest_weight};
use crate::{Error, Result};
use ofa_supernet::graph::{Node, Op, Shape};
use ofa_supernet::ops::{Activation, ChannelStatistics};
use ofa_supernet::ops::{DenseSaved, DenseShape, Windows, average_pool_gradient, dense, max_pool_gradient};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A network with batch norm folded in, whose weights and values are rounded.
pub struct Student<'a> {
    /// The graph; the layers' weights are those of the f32 network.
    folded: &'a Folded,
    layers: Vec<Option<Layer>>,
    /// Logarithm of the scale and zero point of each rounded value.
    scales: Vec<Option<(Parameter, u8)>>,
    most_weight: i8,
}

/// Learned values of a layer.
struct Layer {
    /// `[out, in / groups, kernel, kernel]`
    weight: Parameter,
    bias: Parameter,
    /// Logarithm of the scale of each channel's weights; none if the layer stays f32.
    scales: Option<Parameter>,
}

type Values = Arc<Vec<f32>>;

/// A forward pass.
pub struct Pass {
    batch: usize,
    /// Outputs of all nodes before they are rounded, and what their readers see.
    exact: Vec<Values>,
    rounded: Vec<Values>,
    layers: Vec<Option<Convolution>>,
}

/// A layer's forward pass.
struct Convolution {
    shape: DenseShape,
    /// Weight, ones and bias: the kernel's batch norm adds the bias only.
    packed: Vec<f32>,
    saved: DenseSaved,
}

impl Pass {
    /// The logits.
    pub fn logits(&self) -> &[f32] {
        self.exact.last().map_or(&[], |logits| logits)
    }
}

impl<'a> Student<'a> {
    /// The network `start` with the f32 weights of `folded`.
    pub fn new(folded: &'a Folded, start: &QuantisedNetwork, weight_bits: u8) -> Self {
        let layer = |index: usize| {
            let weight = folded.layers[index].as_ref()?.0.clone();
            let (scales, bias) = match start.layers.get(&folded.names[index])? {
                QuantisedLayer::Int8(layer) => {
                    let input = folded.graph.nodes()[index].inputs()[0].index();
                    let input = start.values.get(&folded.names[input])?.scale;
                    (Some(Parameter::logarithms(&layer.scales)), layer.dequantised_bias(input))
                }
                QuantisedLayer::F32 { bias, .. } => (None, bias.clone()),
            };
            let sizes = weight.chunks(weight.len() / bias.len().max(1)).map(root_mean_square).collect();
            Some(Layer { weight: Parameter::new(weight, sizes), bias: Parameter::new(bias, vec![0.0]), scales })
        };
        let scale = |name: &String| {
            let scale = start.values.get(name)?;
            Some((Parameter::logarithms(&[scale.scale]), scale.zero_point))
        };
        Student {
            folded,
            layers: (0..folded.names.len()).map(layer).collect(),
            scales: folded.names.iter().map(scale).collect(),
            most_weight: largest_weight(weight_bits),
        }
    }

    /// Makes each bias move by shares of its layer's outputs, which are those of `pass`.
    pub fn set_sizes_of_biases(&mut self, pass: &Pass) {
        for (layer, output) in self.layers.iter_mut().zip(&pass.exact) {
            layer.iter_mut().for_each(|layer| layer.bias.sizes = vec![root_mean_square(output)]);
        }
    }

    /// The grid of a node's rounded output. The largest of several rounded values is one of them.
    fn grid(&self, index: usize) -> Option<Grid> {
        let node = &self.folded.graph.nodes()[index];
        if matches!(node.op, Op::MaxPool { .. }) && self.scales[node.inputs()[0].index()].is_some() {
            return None;
        }
        let (scale, zero_point) = self.scales[index].as_ref()?;
        let zero = f32::from(*zero_point);
        Some(Grid { scale: scale.values[0].exp(), least: -zero, most: 255.0 - zero })
    }

    /// Grid of the weights of a channel of a layer.
    fn weight_grid(&self, scales: &Parameter, channel: usize) -> Grid {
        let most = f32::from(self.most_weight);
        Grid { scale: scales.values[channel].exp(), least: -most, most }
    }

    /// Runs `batch` images.
    ///
    /// # Errors
    /// An operation without a kernel.
    pub fn forward(&self, images: Vec<f32>, batch: usize) -> Result<Pass> {
        let images = Arc::new(images);
        let mut pass = Pass { batch, exact: Vec::new(), rounded: Vec::new(), layers: Vec::new() };
        for (index, node) in self.folded.graph.nodes().iter().enumerate() {
            let inputs = node.inputs().iter().map(|input| &pass.rounded[input.index()]);
            let inputs: Vec<&Values> = inputs.collect();
            let mut convolution = None;
            let exact = match (node.op, &self.layers[index]) {
                (Op::Input, _) => images.clone(),
                // Folded into the convolution before it.
                (Op::BatchNorm, _) => inputs[0].clone(),
                (_, Some(layer)) => {
                    let (output, saved) = self.convolve(node, layer, inputs[0], batch)?;
                    convolution = Some(saved);
                    Arc::new(output)
                }
                _ => {
                    let inputs: Vec<&[f32]> = inputs.iter().map(|input| &input[..]).collect();
                    Arc::new(self.folded.output(index, None, &inputs, batch)?)
                }
            };
            let rounded = match self.grid(index) {
                Some(grid) => Arc::new(exact.par_iter().map(|&value| grid.round(value)).collect()),
                None => exact.clone(),
            };
            pass.exact.push(exact);
            pass.rounded.push(rounded);
            pass.layers.push(convolution);
        }
        Ok(pass)
    }

    fn convolve(&self, node: &Node, layer: &Layer, x: &[f32], batch: usize) -> Result<(Vec<f32>, Convolution)> {
        let input = self.folded.graph.node(node.inputs()[0]).shape;
        let (kernel, stride, groups) = match node.op {
            Op::Convolution { kernel, stride, groups, .. } => (kernel, stride, groups),
            _ => (1, 1, 1),
        };
        if groups > 1 && groups != input.channels {
            return Err(Error::Network(format!("fine-tuning knows no convolution of {groups} groups")));
        }
        let out_channels = node.shape.channels;
        let shape = DenseShape {
            batch,
            height: input.height,
            width: input.width,
            in_channels: input.channels,
            out_channels,
            kernel,
            stride,
            depthwise: groups > 1,
            activation: Activation::Identity,
            pool: false,
            eps: 0.0,
        };
        let mut packed = layer.weight.values.clone();
        if let Some(scales) = &layer.scales {
            let per_output = packed.len() / out_channels;
            packed.par_chunks_mut(per_output).enumerate().for_each(|(channel, weights)| {
                let grid = self.weight_grid(scales, channel);
                weights.iter_mut().for_each(|weight| *weight = grid.round(*weight));
            });
        }
        packed.extend(std::iter::repeat_n(1.0, out_channels).chain(layer.bias.values.iter().copied()));
        let (mean, variance) = (vec![0.0; out_channels], vec![1.0; out_channels]);
        let identity = ChannelStatistics { mean, variance, count: 1 };
        let computed = dense(x, &packed, &shape, Some(&identity), None);
        let (output, saved) = computed.map_err(|error| Error::Network(error.to_string()))?;
        Ok((output, Convolution { shape, packed, saved }))
    }

    /// Sets all gradients, given those at the logits of `pass`.
    pub fn backward(&mut self, mut pass: Pass, at_logits: Vec<f32>) {
        let folded = self.folded;
        let nodes = folded.graph.nodes();
        let mut gradients: Vec<Option<Vec<f32>>> = vec![None; nodes.len()];
        gradients[nodes.len() - 1] = Some(at_logits);
        for index in folded.indices().rev() {
            let Some(mut gradient) = gradients[index].take() else { continue };
            if let (Some(grid), Some((scale, _))) = (self.grid(index), &mut self.scales[index]) {
                scale.gradients[0] = grid.backward(&pass.exact[index], &mut gradient);
            }
            let at_inputs = match pass.layers[index].take() {
                Some(convolution) => self.backward_of_layer(index, convolution, &pass, &gradient),
                None => at_inputs(folded, index, &pass, gradient),
            };
            // The images, and their scale, stay as they are.
            let inputs = nodes[index].inputs().iter().map(|input| input.index());
            for (input, gradient) in inputs.zip(at_inputs).filter(|(input, _)| *input > 0) {
                match &mut gradients[input] {
                    Some(sum) => sum.par_iter_mut().zip(gradient).for_each(|(sum, gradient)| *sum += gradient),
                    sum => *sum = Some(gradient),
                }
            }
            // Nothing reads them any more.
            (pass.exact[index], pass.rounded[index]) = Default::default();
        }
    }

    /// Sets the gradients of a layer, and returns those at its input; none at the images.
    fn backward_of_layer(&mut self, index: usize, convolution: Convolution, pass: &Pass, g: &[f32]) -> Vec<Vec<f32>> {
        let Convolution { shape, packed, saved } = convolution;
        let input = self.folded.graph.nodes()[index].inputs()[0].index();
        let computed = saved.backward(&shape, &pass.rounded[input], &packed, None, g, input > 0);
        let Some(mut layer) = self.layers[index].take() else { return Vec::new() };
        let channels = layer.bias.values.len();
        let (weight, rest) = computed.parameters.split_at(layer.weight.values.len());
        layer.weight.gradients.copy_from_slice(weight);
        layer.bias.gradients.copy_from_slice(&rest[channels..]);
        if let Some(scales) = &mut layer.scales {
            let per_output = layer.weight.values.len() / channels;
            let filters = layer.weight.values.chunks(per_output).zip(layer.weight.gradients.chunks_mut(per_output));
            for (channel, (weights, gradients)) in filters.enumerate() {
                scales.gradients[channel] = self.weight_grid(scales, channel).backward(weights, gradients);
            }
        }
        self.layers[index] = Some(layer);
        computed.input.into_iter().collect()
    }

    /// Moves all numbers against their gradients; `step` counts from 1.
    pub fn step(&mut self, rate: f64, step: i32) {
        for layer in self.layers.iter_mut().flatten() {
            layer.weight.step(rate, step);
            layer.bias.step(rate, step);
            layer.scales.iter_mut().for_each(|scales| scales.step(rate, step));
        }
        self.scales.iter_mut().flatten().for_each(|(scale, _)| scale.step(rate, step));
    }

    /// Scale of a node's output, as the integers have it.
    fn scale(&self, index: usize) -> Option<Scale> {
        let (scale, zero_point) = self.scales[index].as_ref()?;
        let scale = Scale { scale: scale.values[0].exp(), zero_point: *zero_point };
        match self.folded.graph.nodes()[index] {
            node if matches!(node.op, Op::MaxPool { .. }) => self.scale(node.inputs()[0].index()).or(Some(scale)),
            _ => Some(scale),
        }
    }

    /// Weight and bias of each layer before they are rounded.
    pub fn weights(&self) -> Vec<Option<(Vec<f32>, Vec<f32>)>> {
        let weights = |layer: &Layer| (layer.weight.values.clone(), layer.bias.values.clone());
        self.layers.iter().map(|layer| layer.as_ref().map(weights)).collect()
    }

    /// The integers. Layers named in `keep_f32` keep all bits of their weights.
    pub fn quantised(&self, start: &QuantisedNetwork, keep_f32: &BTreeSet<String>) -> QuantisedNetwork {
        let names = &self.folded.names;
        let layer = |index: usize| {
            let layer = self.layers[index].as_ref()?;
            let input = self.scale(self.folded.graph.nodes()[index].inputs()[0].index());
            let (weight, bias) = (&layer.weight.values, &layer.bias.values);
            let layer = match (&layer.scales, input) {
                (Some(scales), Some(input)) => {
                    let scales: Vec<f32> = scales.values.iter().map(|scale| scale.exp()).collect();
                    QuantisedLayer::Int8(with_scales(weight, bias, &scales, input.scale, self.most_weight))
                }
                _ => {
                    let weight = f32_weight(weight, keep_f32.contains(&names[index]));
                    QuantisedLayer::F32 { weight, bias: bias.clone() }
                }
            };
            Some((names[index].clone(), layer))
        };
        QuantisedNetwork {
            spec: start.spec.clone(),
            layers: (0..names.len()).filter_map(layer).collect(),
            values: (0..names.len()).filter_map(|index| Some((names[index].clone(), self.scale(index)?))).collect(),
        }
    }
}

/// Gradients at the inputs of a node without weights, given the one at its output.
fn at_inputs(folded: &Folded, index: usize, pass: &Pass, g: Vec<f32>) -> Vec<Vec<f32>> {
    let node = &folded.graph.nodes()[index];
    let input = |number: usize| &pass.rounded[node.inputs()[number].index()][..];
    let Shape { height, width, channels } = node.inputs().first().map_or(node.shape, |id| folded.graph.node(*id).shape);
    let times = |slope: &(dyn Fn(f32) -> f32 + Sync)| {
        vec![g.par_iter().zip(input(0)).map(|(g, &x)| g * slope(x)).collect::<Vec<f32>>()]
    };
    match node.op {
        Op::Activation(activation) => times(&|x| activation.slope(x)),
        Op::HardSigmoid => times(&|x| if x.abs() < 3.0 { 1.0 / 6.0 } else { 0.0 }),
        Op::GlobalAveragePool => {
            let windows = Windows::side_by_side(height, width, channels, (height, width), 0);
            vec![average_pool_gradient(&windows, &g)]
        }
        Op::AveragePool { window, padding } => {
            let windows = Windows::side_by_side(height, width, channels, (window, window), padding);
            vec![average_pool_gradient(&windows, &g)]
        }
        Op::MaxPool { .. } => {
            let windows = Windows::max_pool(height, width, channels);
            vec![max_pool_gradient(&windows, input(0), &pass.exact[index], &g)]
        }
        Op::Add => vec![g.clone(), g],
        Op::Gate => {
            let (map, mut at_factors) = (height * width * channels, vec![0.0; pass.batch * channels]);
            let mut at_map = g;
            let images = at_map.par_chunks_mut(map).zip(input(0).par_chunks(map));
            let factors = input(1).par_chunks(channels).zip(at_factors.par_chunks_mut(channels));
            images.zip(factors).for_each(|((g, x), (factors, at_factors))| {
                for (g, x) in g.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
                    for channel in 0..channels {
                        at_factors[channel] += g[channel] * x[channel];
                        g[channel] *= factors[channel];
                    }
                }
            });
            vec![at_map, at_factors]
        }
        // Batch norm is a part of the convolution before it.
        Op::BatchNorm | Op::Input | Op::Convolution { .. } | Op::Linear => vec![g],
    }
}

fn root_mean_square(values: &[f32]) -> f32 {
    let sum: f64 = values.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
    (sum / values.len().max(1) as f64).sqrt() as f32
}

#[cfg(test)]
impl Student<'_> {
    /// Names of all weights and biases, with their numbers.
    pub fn parameters(&self) -> Vec<(String, Vec<f32>)> {
        let layers = self.folded.names.iter().zip(&self.layers);
        let layers = layers.filter_map(|(name, layer)| Some((name, layer.as_ref()?)));
        let both = |(name, layer): (&String, &Layer)| {
            let [weight, bias] = [&layer.weight, &layer.bias].map(|parameter| parameter.values.clone());
            [(format!("{name}.weight"), weight), (format!("{name}.bias"), bias)]
        };
        layers.flat_map(both).collect()
    }

    /// A weight or bias by name.
    pub fn parameter(&mut self, name: &str) -> &mut Parameter {
        let (layer, part) = name.rsplit_once('.').unwrap();
        let index = self.folded.names.iter().position(|name| name == layer).unwrap();
        let layer = self.layers[index].as_mut().unwrap();
        if part == "weight" { &mut layer.weight } else { &mut layer.bias }
    }
}
