//! From an f32 network to integers, on images.
//!
//! 1. The f32 network runs on all images, and a histogram of each value gives its scale ([`Histogram`]).
//! 2. Both networks run side by side, layer by layer: each layer's bias takes up what rounding, up to there, shifts the
//!    mean of its output channels by.
//! 3. For each layer, the network with that layer alone in integers tells how much its rounding disturbs the logits.

use super::forward::{Folded, Kernel, Values};
use super::histogram::Histogram;
use super::weights::int8_layer;
use super::{Engine, QuantisedLayer, QuantisedNetwork, Rule, Scale, hard_sigmoid, largest_weight};
use crate::model::{ModelConfig, NumberType, Quantisation};
use crate::runtime::{Weights, check_weights};
use crate::{Error, Result};
use half::f16;
use ofa_supernet::graph::Op;
use rayon::prelude::*;
use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;

/// Fewer images say too little about the ranges of values.
pub const LEAST_IMAGES: usize = 32;

/// Images per batch of the first pass.
const BATCH: usize = 16;

/// Bytes of values that the second pass may keep.
const BYTES: u64 = 1 << 30;

/// Images of the third pass.
const SENSITIVITY_IMAGES: usize = 16;

/// Settings of a quantisation.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Engine that the model is for.
    pub engine: Engine,
    /// Bits of the weights: 8, or 7 for engines that add products in 16 bits.
    pub weight_bits: u8,
    /// Layers that stay f32 besides those of the rule, by name.
    pub keep_f32: HashSet<String>,
}

/// A step of a quantisation: steps done, and steps in all.
pub type Progress<'a> = dyn FnMut(usize, usize) -> ControlFlow<()> + 'a;

/// A quantised model.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantised {
    /// Configuration of its folder.
    pub config: ModelConfig,
    /// The network.
    pub network: QuantisedNetwork,
    /// Share of each int8 layer in the disturbance of the logits, largest first: squared error with that layer alone in
    /// integers over the squares of the logits about their mean.
    pub sensitivity: Vec<(String, f64)>,
}

/// Quantises a model on `images` `[count, resolution, resolution, 3]`, normalised as its configuration says.
///
/// # Errors
/// Weights that do not fit the network, fewer than [`LEAST_IMAGES`] images, an unknown layer name, or an interruption.
pub fn quantise(
    config: &ModelConfig,
    weights: &Weights,
    images: &[f32],
    options: &Options,
    progress: &mut Progress,
) -> Result<Quantised> {
    check_weights(&config.network, weights)?;
    let size = config.network.resolution * config.network.resolution * 3;
    let count = images.len() / size;
    if count < LEAST_IMAGES || images.len() != count * size {
        let message = format!("{count} calibration images; give at least {LEAST_IMAGES} training images");
        return Err(Error::Input(message));
    }
    if !(7..=8).contains(&options.weight_bits) {
        return Err(Error::Input(format!("weights of {} bits; choose 8 or 7", options.weight_bits)));
    }
    let folded = Folded::new(&config.network, weights);
    check_names(&folded, &options.keep_f32)?;
    let rule = Rule::for_engine(&folded.graph, &options.keep_f32, options.engine);
    let layers = rule.int8.iter().filter(|int8| **int8).count();
    let mut steps = Steps { done: 0, all: count.div_ceil(BATCH) + folded.graph.nodes().len() + layers, progress };
    let mut calibration = Calibration { folded: &folded, rule: &rule, options, steps: &mut steps };
    let scales = calibration.scales(images, size)?;
    let at_once = (BYTES / (8 * folded.graph.peak_values()).max(1)).max(LEAST_IMAGES as u64) as usize;
    let (layers, values) = calibration.layers(&images[..size * count.min(at_once)], count.min(at_once), &scales)?;
    let sensitivity = calibration.sensitivity(&images[..size * SENSITIVITY_IMAGES], &layers, &scales)?;
    let engine_values = (0..scales.len()).filter(|&index| !rule.rounded[index]);
    let engine_values = engine_values.filter_map(|index| Some((folded.names[index].clone(), scales[index]?)));
    let quantisation = Quantisation {
        engine: options.engine,
        images: count,
        weight_bits: options.weight_bits,
        values: values.clone(),
        engine_values: engine_values.collect(),
    };
    let network = QuantisedNetwork { spec: config.network.clone(), layers, values };
    network.check()?;
    let config = ModelConfig { dtype: NumberType::Int8, quantisation: Some(quantisation), ..config.clone() };
    Ok(Quantised { config, network, sensitivity })
}

/// Fails for a name that is no layer's.
fn check_names(folded: &Folded, names: &HashSet<String>) -> Result<()> {
    let layers: Vec<&str> = (0..folded.names.len())
        .filter(|&index| folded.layers[index].is_some())
        .map(|index| folded.names[index].as_str())
        .collect();
    let mut unknown: Vec<&String> = names.iter().filter(|name| !layers.contains(&name.as_str())).collect();
    unknown.sort();
    match unknown.first() {
        None => Ok(()),
        Some(name) => Err(Error::tensor(*name, format!("is no layer; the layers are {}", layers.join(", ")))),
    }
}

struct Steps<'a, 'b> {
    done: usize,
    all: usize,
    progress: &'a mut Progress<'b>,
}

impl Steps<'_, '_> {
    fn step(&mut self) -> Result<()> {
        self.done += 1;
        match (self.progress)(self.done, self.all) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(ofa_supernet::Error::Interrupted.into()),
        }
    }
}

type Layers = (BTreeMap<String, QuantisedLayer>, BTreeMap<String, Scale>);

struct Calibration<'a, 'b, 'c> {
    folded: &'a Folded,
    rule: &'a Rule,
    options: &'a Options,
    steps: &'a mut Steps<'b, 'c>,
}

impl Calibration<'_, '_, '_> {
    /// Scales of all values that this or another engine rounds.
    fn scales(&mut self, images: &[f32], size: usize) -> Result<Vec<Option<Scale>>> {
        let (folded, graph) = (self.folded, &self.folded.graph);
        let kernels = folded.kernels();
        let mut histograms = vec![Histogram::new(); graph.nodes().len()];
        for batch in images.chunks(BATCH * size) {
            self.steps.step()?;
            let mut values = Values::new(graph, batch.to_vec());
            histograms[0].add(batch);
            for index in folded.indices() {
                let inputs = values.inputs(index);
                let output = folded.output(index, kernels[index].as_ref(), &inputs, batch.len() / size)?;
                histograms[index].add(&output);
                values.store(index, output);
            }
        }
        let consumers = graph.consumers();
        let scale = |index: usize| {
            // Batch norm is a part of the convolution before it.
            let part = matches!(consumers[index][..], [reader] if graph.node(reader).op == Op::BatchNorm);
            if part || index + 1 == graph.nodes().len() {
                return None;
            }
            let after = match consumers[index][..] {
                [reader] => graph.node(reader).op,
                _ => Op::Add,
            };
            let symmetric = self.options.engine == Engine::TensorRt;
            Some(match after {
                Op::Activation(activation) => histograms[index].scale(symmetric, |x| activation.apply(x)),
                Op::HardSigmoid => histograms[index].scale(symmetric, hard_sigmoid),
                _ => histograms[index].scale(symmetric, |x| x),
            })
        };
        let mut scales: Vec<Option<Scale>> = (0..histograms.len()).into_par_iter().map(scale).collect();
        for index in folded.indices() {
            // The largest of several integers is one of them.
            if let Op::MaxPool { .. } = graph.nodes()[index].op {
                scales[index] = scales[graph.nodes()[index].inputs()[0].index()];
            }
        }
        Ok(scales)
    }

    /// Integers of all layers with corrected biases, and the scales of the rounded values.
    fn layers(&mut self, images: &[f32], count: usize, scales: &[Option<Scale>]) -> Result<Layers> {
        let (folded, rule) = (self.folded, self.rule);
        let scale = |index: usize| scales[index].filter(|_| rule.rounded[index]);
        let kernels = folded.kernels();
        let mut real = Values::new(&folded.graph, images.to_vec());
        let mut rounded = Values::new(&folded.graph, round(images.to_vec(), scale(0)));
        let mut layers = BTreeMap::new();
        for index in folded.indices() {
            self.steps.step()?;
            let exact = folded.output(index, kernels[index].as_ref(), &real.inputs(index), count)?;
            let output = match &folded.layers[index] {
                None => folded.output(index, None, &rounded.inputs(index), count)?,
                Some((weight, bias)) => {
                    let input = scale(folded.graph.nodes()[index].inputs()[0].index());
                    let make = |bias: &[f32]| self.layer(index, weight, bias, input);
                    let (_, kernel) = make(bias);
                    let mut output = folded.output(index, Some(&kernel), &rounded.inputs(index), count)?;
                    let shift = channel_means(&exact, &output, bias.len());
                    let corrected: Vec<f32> = bias.iter().zip(&shift).map(|(bias, shift)| bias + shift).collect();
                    let (layer, _) = make(&corrected);
                    layers.insert(folded.names[index].clone(), layer);
                    output.iter_mut().zip(shift.iter().cycle()).for_each(|(value, shift)| *value += shift);
                    output
                }
            };
            real.store(index, exact);
            rounded.store(index, round(output, scale(index)));
        }
        let names = folded.names.iter().enumerate();
        let values = names.filter_map(|(index, name)| Some((name.clone(), scale(index)?))).collect();
        Ok((layers, values))
    }

    /// A layer as the rule wants it, and its kernel in f32.
    fn layer(&self, index: usize, weight: &[f32], bias: &[f32], input: Option<Scale>) -> (QuantisedLayer, Kernel) {
        match input.filter(|_| self.rule.int8[index]) {
            Some(input) => {
                let layer = int8_layer(weight, bias, input.scale, largest_weight(self.options.weight_bits));
                let kernel = self.folded.kernel(index, &layer.dequantised(), &layer.dequantised_bias(input.scale));
                (QuantisedLayer::Int8(layer), kernel)
            }
            None => {
                let weight = halves(weight);
                let kernel = self.folded.kernel(index, &weight, bias);
                (QuantisedLayer::F32 { weight, bias: bias.to_vec() }, kernel)
            }
        }
    }

    /// [`Quantised::sensitivity`].
    fn sensitivity(
        &mut self,
        images: &[f32],
        layers: &BTreeMap<String, QuantisedLayer>,
        scales: &[Option<Scale>],
    ) -> Result<Vec<(String, f64)>> {
        let folded = self.folded;
        let kernels = folded.kernels();
        let nodes = folded.graph.nodes();
        // Outputs of all nodes: a changed layer leaves those before it as they are.
        let mut exact: Vec<Vec<f32>> = vec![images.to_vec()];
        for index in folded.indices() {
            let inputs: Vec<&[f32]> = nodes[index].inputs().iter().map(|input| &exact[input.index()][..]).collect();
            exact.push(folded.output(index, kernels[index].as_ref(), &inputs, SENSITIVITY_IMAGES)?);
        }
        let logits = exact.last().cloned().unwrap_or_default();
        let mean = logits.iter().sum::<f32>() / logits.len() as f32;
        let power: f64 = logits.iter().map(|logit| f64::from(logit - mean).powi(2)).sum();
        let mut sensitivity = Vec::new();
        for changed in folded.indices().filter(|&index| self.rule.int8[index]) {
            self.steps.step()?;
            let input = nodes[changed].inputs()[0].index();
            let (Some(QuantisedLayer::Int8(layer)), Some(scale)) = (layers.get(&folded.names[changed]), scales[input])
            else {
                continue;
            };
            let Some((_, bias)) = &folded.layers[changed] else { continue };
            let kernel = folded.kernel(changed, &layer.dequantised(), bias);
            let mut values: Vec<Option<Vec<f32>>> = vec![None; nodes.len()];
            let input = round(exact[input].clone(), Some(scale));
            let mut output = folded.output(changed, Some(&kernel), &[&input], SENSITIVITY_IMAGES)?;
            // What its own bias takes up.
            let shift = channel_means(&exact[changed], &output, bias.len());
            output.iter_mut().zip(shift.iter().cycle()).for_each(|(value, shift)| *value += shift);
            values[changed] = Some(output);
            for index in changed + 1..nodes.len() {
                let inputs = nodes[index].inputs();
                if inputs.iter().any(|input| values[input.index()].is_some()) {
                    let value = |input: usize| values[input].as_ref().unwrap_or(&exact[input]).as_slice();
                    let inputs: Vec<&[f32]> = inputs.iter().map(|input| value(input.index())).collect();
                    values[index] = Some(folded.output(index, kernels[index].as_ref(), &inputs, SENSITIVITY_IMAGES)?);
                }
            }
            let found = values.pop().flatten().unwrap_or_default();
            let noise: f64 = found.iter().zip(&logits).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            sensitivity.push((folded.names[changed].clone(), noise / power.max(f64::MIN_POSITIVE)));
        }
        sensitivity.sort_by(|a, b| b.1.total_cmp(&a.1));
        Ok(sensitivity)
    }
}

/// The weights of a layer that stays f32, as 2 bytes hold them, unless one is too large.
fn halves(weight: &[f32]) -> Vec<f32> {
    let halves: Vec<f32> = weight.iter().map(|&weight| f16::from_f32(weight).to_f32()).collect();
    if halves.iter().all(|half| half.is_finite()) { halves } else { weight.to_vec() }
}

/// The values as their integers represent them.
fn round(mut values: Vec<f32>, scale: Option<Scale>) -> Vec<f32> {
    if let Some(scale) = scale {
        values.par_iter_mut().for_each(|value| *value = scale.dequantise(scale.quantise(*value)));
    }
    values
}

/// Mean of `exact - found` in each channel.
fn channel_means(exact: &[f32], found: &[f32], channels: usize) -> Vec<f32> {
    let mut sums = vec![0.0f64; channels];
    for (exact, found) in exact.chunks_exact(channels).zip(found.chunks_exact(channels)) {
        let pairs = exact.iter().zip(found);
        sums.iter_mut().zip(pairs).for_each(|(sum, (exact, found))| *sum += f64::from(exact - found));
    }
    let rows = (exact.len() / channels).max(1) as f64;
    sums.into_iter().map(|sum| (sum / rows) as f32).collect()
}
