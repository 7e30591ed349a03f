//! What the rounding of each layer costs: the quantised network with that layer in f32.

use super::forward::{Folded, Kernel, Values, round};
use super::{QuantisedLayer, QuantisedNetwork};
use crate::Result;

/// Images on which errors are measured.
pub(super) const IMAGES: usize = 16;

/// Errors of the logits: squared differences from the f32 network's over the squares of these about their mean.
#[derive(Debug, Clone, PartialEq)]
pub struct Sensitivity {
    /// Error of the quantised network.
    pub error: f64,
    /// Error that is left if one int8 layer alone is computed in f32, by the layer's name; the least first. Empty for
    /// fine-tuned networks.
    pub without: Vec<(String, f64)>,
}

/// Measures `network`, whose f32 network is `folded`, on [`IMAGES`] images; `step` is called once per int8 layer.
pub(super) fn sensitivity(
    folded: &Folded,
    network: &QuantisedNetwork,
    images: &[f32],
    step: &mut dyn FnMut() -> Result<()>,
) -> Result<Sensitivity> {
    let measured = Measured::new(folded, network, images)?;
    let error = measured.own_error();
    let mut without = Vec::new();
    for index in folded.indices() {
        if let Some(QuantisedLayer::Int8(_)) = network.layers.get(&folded.names[index]) {
            step()?;
            without.push((folded.names[index].clone(), measured.error(&measured.logits_without(index)?)));
        }
    }
    without.sort_by(|a, b| a.1.total_cmp(&b.1));
    Ok(Sensitivity { error, without })
}

/// Measures the error of `network` as [`sensitivity`] does, without that of its layers.
pub(super) fn error(folded: &Folded, network: &QuantisedNetwork, images: &[f32]) -> Result<Sensitivity> {
    Ok(Sensitivity { error: Measured::new(folded, network, images)?.own_error(), without: Vec::new() })
}

/// Outputs of a quantised network.
struct Measured<'a> {
    folded: &'a Folded,
    network: &'a QuantisedNetwork,
    /// Layers with their integers as real numbers.
    kernels: Vec<Option<Kernel>>,
    /// Outputs of all nodes as their readers see them: a changed layer leaves those before it as they are.
    values: Vec<Vec<f32>>,
    /// Means of the channels of each layer's outputs in the f32 network, and its logits.
    exact_means: Vec<Option<Vec<f64>>>,
    exact_logits: Vec<f32>,
}

impl<'a> Measured<'a> {
    fn new(folded: &'a Folded, network: &'a QuantisedNetwork, images: &[f32]) -> Result<Self> {
        let nodes = folded.graph.nodes();
        let kernel = |index: usize| {
            Some(match network.layers.get(&folded.names[index])? {
                QuantisedLayer::F32 { weight, bias } => folded.kernel(index, weight, bias),
                QuantisedLayer::Int8(layer) => {
                    let input = network.values.get(&folded.names[nodes[index].inputs()[0].index()])?;
                    folded.kernel(index, &layer.dequantised(), &layer.dequantised_bias(input.scale))
                }
            })
        };
        let kernels: Vec<Option<Kernel>> = (0..nodes.len()).map(kernel).collect();
        let scale = |index: usize| network.values.get(&folded.names[index]).copied();
        let mut values = vec![round(images.to_vec(), scale(0))];
        let (mut exact, exact_kernels) = (Values::new(&folded.graph, images.to_vec()), folded.kernels());
        let (mut exact_means, mut exact_logits) = (vec![None], Vec::new());
        for index in folded.indices() {
            let inputs: Vec<&[f32]> = nodes[index].inputs().iter().map(|input| &values[input.index()][..]).collect();
            let output = folded.output(index, kernels[index].as_ref(), &inputs, IMAGES)?;
            values.push(round(output, scale(index)));
            let output = folded.output(index, exact_kernels[index].as_ref(), &exact.inputs(index), IMAGES)?;
            exact_means.push(kernels[index].is_some().then(|| means(&output, nodes[index].shape.channels)));
            if index + 1 == nodes.len() {
                exact_logits.clone_from(&output);
            }
            exact.store(index, output);
        }
        Ok(Measured { folded, network, kernels, values, exact_means, exact_logits })
    }

    /// Logits with the layer of node `changed` in f32.
    fn logits_without(&self, changed: usize) -> Result<Vec<f32>> {
        let folded = self.folded;
        let nodes = folded.graph.nodes();
        let mut values: Vec<Option<Vec<f32>>> = vec![None; nodes.len()];
        for index in changed..nodes.len() {
            let inputs = nodes[index].inputs();
            if index > changed && inputs.iter().all(|input| values[input.index()].is_none()) {
                continue;
            }
            let value = |input: usize| values[input].as_ref().unwrap_or(&self.values[input]).as_slice();
            let inputs: Vec<&[f32]> = inputs.iter().map(|input| value(input.index())).collect();
            let output = match &folded.layers[index] {
                Some((weight, bias)) if index == changed => {
                    let kernel = folded.kernel(index, weight, bias);
                    let mut output = folded.output(index, Some(&kernel), &inputs, IMAGES)?;
                    self.correct(index, &mut output);
                    output
                }
                _ => folded.output(index, self.kernels[index].as_ref(), &inputs, IMAGES)?,
            };
            values[index] = Some(round(output, self.network.values.get(&folded.names[index]).copied()));
        }
        Ok(values.pop().flatten().unwrap_or_default())
    }

    /// Gives each channel of a layer's output the mean that it has in the f32 network, as calibration does by the bias.
    fn correct(&self, index: usize, output: &mut [f32]) {
        if let Some(exact) = &self.exact_means[index] {
            let shifts = exact.iter().zip(means(output, exact.len())).map(|(exact, found)| (exact - found) as f32);
            let shifts: Vec<f32> = shifts.collect();
            output.iter_mut().zip(shifts.iter().cycle()).for_each(|(value, shift)| *value += shift);
        }
    }

    /// Error of the quantised network.
    fn own_error(&self) -> f64 {
        self.error(self.values.last().map_or(&[], |logits| logits))
    }

    fn error(&self, logits: &[f32]) -> f64 {
        let mean = self.exact_logits.iter().sum::<f32>() / self.exact_logits.len() as f32;
        let power: f64 = self.exact_logits.iter().map(|logit| f64::from(logit - mean).powi(2)).sum();
        let noise: f64 = logits.iter().zip(&self.exact_logits).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        noise / power.max(f64::MIN_POSITIVE)
    }
}

/// Mean of each channel.
fn means(values: &[f32], channels: usize) -> Vec<f64> {
    let mut sums = vec![0.0; channels];
    for pixel in values.chunks_exact(channels) {
        sums.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    let pixels = (values.len() / channels).max(1) as f64;
    sums.into_iter().map(|sum| sum / pixels).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ModelConfig, NumberType};
    use crate::quantise::{Engine, Options, int8_layer, quantise, reference};
    use crate::runtime::{StaticNetwork, random_weights};
    use ofa_supernet::data::Normalisation;
    use ofa_supernet::seed::{Stream, generator};
    use ofa_supernet::space::preset;
    use rand::Rng;
    use std::ops::ControlFlow;

    #[test]
    fn a_coarse_layer_is_the_first_and_errors_are_those_of_the_integers() {
        for (name, layer) in [("tiny", "blocks.1.1.conv_pwl"), ("resnet-tiny", "layer1.0.conv2")] {
            let space = preset(name).unwrap();
            let subnet = space.largest();
            let spec = space.network(&subnet, 5).unwrap();
            let weights = random_weights(&spec, 3).unwrap();
            let labels = (0..5).map(|class| class.to_string()).collect();
            let normalisation = Normalisation::IMAGENET;
            let config = ModelConfig::new(name, &subnet, spec.clone(), labels, normalisation, NumberType::F32);
            let mut rng = generator(9, Stream::Builtin, &[]);
            let size = 3 * spec.resolution * spec.resolution;
            let images: Vec<f32> = (0..32 * size).map(|_| rng.random_range(-2.0..2.0)).collect();
            let options = Options { engine: Engine::Ofa, weight_bits: 8, keep_f32: [].into() };
            let good = quantise(&config, &weights, &images, &options, &mut |_, _| ControlFlow::Continue(())).unwrap();
            let folded = Folded::new(&spec, &weights);
            let index = folded.names.iter().position(|name| name == layer).unwrap();
            let input = &folded.names[folded.graph.nodes()[index].inputs()[0].index()];
            let (weight, bias) = folded.layers[index].as_ref().unwrap();
            let mut coarse = good.network.clone();
            let rounded = int8_layer(weight, bias, coarse.values[input].scale, 3);
            coarse.layers.insert(layer.into(), QuantisedLayer::Int8(rounded));
            let images = &images[..IMAGES * size];
            let mut steps = 0;
            let count = |steps: &mut usize| -> Result<()> {
                *steps += 1;
                Ok(())
            };
            let found = sensitivity(&folded, &coarse, images, &mut || count(&mut steps)).unwrap();
            assert_eq!(steps, found.without.len(), "{name}");
            assert_eq!(found.without[0].0, layer, "{name}: {found:?}");
            assert!(found.without[0].1 < 0.5 * found.error && found.error > 2.0 * good.sensitivity.error, "{found:?}");
            let exact = StaticNetwork::new(&spec, &weights).unwrap().run(images, IMAGES).unwrap().to_vec();
            let measured = Measured::new(&folded, &coarse, images).unwrap();
            let error = measured.error(&reference::run(&coarse, images, IMAGES).unwrap());
            assert!((error - found.error).abs() < 0.02 * error, "{name}: {error} {}", found.error);
            assert!(measured.error(&exact) < 1e-6 * error, "{name}");
        }
    }
}
