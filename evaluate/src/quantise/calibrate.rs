//! From an f32 network to integers, on images.
//!
//! 1. The f32 network runs on all images, and a histogram of each value gives its scale ([`Histogram`]).
//! 2. Both networks run side by side, layer by layer: each layer's bias takes up what rounding, up to there, shifts the
//!    mean of its output channels by.
//! 3. For each layer, the network with that layer alone in f32 tells what its rounding costs ([`Sensitivity`]).

use super::forward::{Folded, Kernel, Values, round};
use super::histogram::Histogram;
use super::sensitivity::{IMAGES, Sensitivity, sensitivity};
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

/// Settings of a quantisation.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Engine that the model is for.
    pub engine: Engine,
    /// Bits of the weights: 8, or 7 for engines that add products in 16 bits.
    pub weight_bits: u8,
    /// Layers that stay f32 besides those of the rule, by name. They keep all bits of their weights.
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
    /// Cost of rounding; of each layer only before any fine-tuning.
    pub sensitivity: Sensitivity,
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
    let scales = value_scales(&folded, images, options.engine, &mut || steps.step())?;
    let at_once = (BYTES / (8 * folded.graph.peak_values()).max(1)).max(LEAST_IMAGES as u64) as usize;
    let mut calibration = Calibration { folded: &folded, rule: &rule, options, steps: &mut steps };
    let (layers, values) = calibration.layers(&images[..size * count.min(at_once)], count.min(at_once), &scales)?;
    let network = QuantisedNetwork { spec: config.network.clone(), layers, values };
    network.check()?;
    let sensitivity = sensitivity(&folded, &network, &images[..size * IMAGES], &mut || steps.step())?;
    let quantisation = Quantisation {
        engine: options.engine,
        images: count,
        weight_bits: options.weight_bits,
        keep_f32: options.keep_f32.iter().cloned().collect(),
        f32_model: None,
        finetuned: None,
        tried_finetuning: None,
        values: network.values.clone(),
        engine_values: others(&folded, &scales, &network.values),
    };
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

/// Scales of all values that this or another engine rounds; `step` is called once per [`BATCH`] images.
fn value_scales(
    folded: &Folded,
    images: &[f32],
    engine: Engine,
    step: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<Option<Scale>>> {
    let (graph, kernels) = (&folded.graph, folded.kernels());
    let size = graph.nodes()[0].shape.values() as usize;
    let mut histograms = vec![Histogram::new(); graph.nodes().len()];
    for batch in images.chunks(BATCH * size) {
        step()?;
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
        let symmetric = engine == Engine::TensorRt;
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

/// The scales by name of all values but those in `rounded`.
fn others(folded: &Folded, scales: &[Option<Scale>], rounded: &BTreeMap<String, Scale>) -> BTreeMap<String, Scale> {
    let names = folded.names.iter().zip(scales).filter(|(name, _)| !rounded.contains_key(*name));
    names.filter_map(|(name, scale)| Some((name.clone(), (*scale)?))).collect()
}

/// Scales of the values that other engines round besides those in `rounded`, on the calibration images.
pub(super) fn engine_values(
    folded: &Folded,
    images: &[f32],
    rounded: &BTreeMap<String, Scale>,
    engine: Engine,
) -> Result<BTreeMap<String, Scale>> {
    Ok(others(folded, &value_scales(folded, images, engine, &mut || Ok(()))?, rounded))
}

impl Calibration<'_, '_, '_> {
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
                let is_kept = self.options.keep_f32.contains(&self.folded.names[index]);
                let weight = f32_weight(weight, is_kept);
                let kernel = self.folded.kernel(index, &weight, bias);
                (QuantisedLayer::F32 { weight, bias: bias.to_vec() }, kernel)
            }
        }
    }
}

/// The weights of a layer that stays f32: as they are if the layer is kept by name, otherwise as 2 bytes hold them,
/// unless one is too large.
pub(super) fn f32_weight(weight: &[f32], is_kept: bool) -> Vec<f32> {
    if is_kept {
        return weight.to_vec();
    }
    let halves: Vec<f32> = weight.iter().map(|&weight| f16::from_f32(weight).to_f32()).collect();
    if halves.iter().all(|half| half.is_finite()) { halves } else { weight.to_vec() }
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
