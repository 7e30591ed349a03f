//! The network: layers built from weights, buffers, and one forward pass.

use super::block::Block;
use super::weights::{Checked, Weights, check_weights, random_weights};
use crate::latency::milliseconds;
use crate::model::{block_prefix, classifier_name, feature_names, stem_names};
use crate::{Error, Result};
use ofa_supernet::ops::inference::{DenseConv, Pointwise, average_pool, max_pool};
use ofa_supernet::space::{Activation, BlockSpec, NetworkSpec};
use std::time::Instant;

/// A static network ready to run.
///
/// ```
/// use ofa_evaluate::StaticNetwork;
/// use ofa_supernet::SearchSpace;
///
/// let space = SearchSpace::named("tiny")?;
/// let spec = space.network(&space.smallest(), 10)?;
/// let mut network = StaticNetwork::random(&spec, 0)?;
/// let images = vec![0.5; 2 * spec.resolution * spec.resolution * 3];
/// let logits = network.run(&images, 2)?;
/// assert_eq!(logits.len(), 2 * 10);
/// assert!(logits.iter().all(|logit| logit.is_finite()));
/// # Ok::<(), ofa_evaluate::Error>(())
/// ```
pub struct StaticNetwork {
    spec: NetworkSpec,
    stem: Vec<DenseConv>,
    blocks: Vec<Block>,
    feature: Option<Pointwise>,
    hidden: Option<Pointwise>,
    classifier: Pointwise,
    buffers: Buffers,
}

/// All activations; each as large as the largest use of it so far.
#[derive(Default)]
pub(super) struct Buffers {
    /// A layer's input and output maps, which trade places after every layer.
    pub current: Vec<f32>,
    pub next: Vec<f32>,
    /// After a block's first or the feature convolution, and before that a bottleneck's pooled input.
    pub expanded: Vec<f32>,
    /// After a block's depthwise or second convolution.
    pub filtered: Vec<f32>,
    /// After the convolution of a bottleneck's shortcut.
    pub shortcut: Vec<f32>,
    /// `[batch, channels]`: means over the pixels, squeeze-excite's reduced vector, its gate.
    pub pooled: Vec<f32>,
    pub reduced: Vec<f32>,
    pub gate: Vec<f32>,
    logits: Vec<f32>,
}

impl StaticNetwork {
    /// Builds the network of `spec` from `weights`, named and shaped as
    /// [`tensor_shapes`](crate::model::tensor_shapes) says.
    ///
    /// # Errors
    /// An impossible network, or a tensor that is missing, superfluous, of the wrong shape or not finite, by name.
    pub fn new(spec: &NetworkSpec, weights: &Weights) -> Result<Self> {
        check_weights(spec, weights)?;
        let weights = Checked { weights, epsilon: spec.batch_norm_epsilon };
        let stem = spec.stem.iter().zip(stem_names(spec)).map(|(conv, (name, norm))| {
            let (weight, bias) = weights.folded(&name, &norm);
            DenseConv::new(&weight, &bias, conv.in_channels, conv.out_channels, conv.kernel, conv.stride)
        });
        let stem = stem.collect();
        let mut blocks = Vec::with_capacity(spec.blocks().count());
        for (s, stage) in spec.stages.iter().enumerate() {
            for (b, block) in stage.iter().enumerate() {
                blocks.push(Block::new(block, &weights, &block_prefix(block, s, b)));
            }
        }
        let feature = spec.feature.as_ref().map(|conv| {
            let (name, norm) = feature_names(spec);
            let (weight, bias) = weights.folded(&name, &norm);
            Pointwise::new(&weight, &bias, conv.in_channels, conv.out_channels)
        });
        let hidden = spec.hidden_channels.map(|width| {
            let weight = weights.get("conv_head.weight");
            Pointwise::new(weight, &vec![0.0; width], spec.pooled_map().0, width)
        });
        let name = classifier_name(spec);
        let (weight, bias) = (weights.get(&format!("{name}.weight")), weights.get(&format!("{name}.bias")));
        let classifier = Pointwise::new(weight, bias, spec.classifier_channels(), spec.classes);
        Ok(StaticNetwork { spec: spec.clone(), stem, blocks, feature, hidden, classifier, buffers: Buffers::default() })
    }

    /// The network of `spec` with seeded random weights, for measuring.
    ///
    /// # Errors
    /// An impossible network.
    pub fn random(spec: &NetworkSpec, seed: u64) -> Result<Self> {
        StaticNetwork::new(spec, &random_weights(spec, seed)?)
    }

    /// What it computes.
    pub fn spec(&self) -> &NetworkSpec {
        &self.spec
    }

    /// Makes it take images of another size; the weights do not depend on it.
    ///
    /// # Errors
    /// A resolution that is 0 or larger than 4096.
    pub fn set_resolution(&mut self, resolution: usize) -> Result<()> {
        let mut spec = self.spec.clone();
        spec.set_resolution(resolution);
        crate::model::validate(&spec)?;
        self.spec = spec;
        Ok(())
    }

    /// Logits `[batch, classes]` of `images` `[batch, resolution, resolution, 3]`, normalised.
    ///
    /// # Errors
    /// A number of values that is not that of the batch.
    pub fn run(&mut self, images: &[f32], batch: usize) -> Result<&[f32]> {
        self.forward(images, batch, &mut || ())?;
        Ok(&self.buffers.logits[..batch * self.spec.classes])
    }

    /// As [`run`](Self::run), and replaces `times` with each layer's time in milliseconds: the stem's convolutions, max pool,
    /// blocks, head (feature convolution, pool, hidden layer and classifier), as far as it has them.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_timed(&mut self, images: &[f32], batch: usize, times: &mut Vec<f64>) -> Result<&[f32]> {
        times.clear();
        let mut last = Instant::now();
        self.forward(images, batch, &mut || {
            let now = Instant::now();
            times.push(milliseconds(now - last));
            last = now;
        })?;
        Ok(&self.buffers.logits[..batch * self.spec.classes])
    }

    /// Bytes of the buffers that one image of a batch takes while it runs.
    pub fn activation_bytes(spec: &NetworkSpec) -> u64 {
        let Extents { output, expanded, filtered, shortcut, pooled, reduced, gate } = Extents::of(spec);
        let values = [output, output, expanded, filtered, shortcut, pooled, reduced, gate, spec.classes];
        4 * values.into_iter().map(|values| values as u64).sum::<u64>()
    }

    /// Fills the logits; calls `layer_done` after each of [`layers`](crate::profile::layers).
    fn forward(&mut self, images: &[f32], batch: usize, layer_done: &mut impl FnMut()) -> Result<()> {
        let spec = &self.spec;
        let expected = batch * spec.resolution * spec.resolution * 3;
        if batch == 0 || images.len() != expected {
            return Err(Error::Input(format!(
                "{} values given for a batch of {batch}; {expected} = {batch} x {r} x {r} x 3 were expected, and a batch holds at \
                 least one image",
                images.len(),
                r = spec.resolution
            )));
        }
        self.buffers.reserve(spec, batch);
        let buffers = &mut self.buffers;

        for (index, (conv, layer)) in spec.stem.iter().zip(&self.stem).enumerate() {
            let (size, out_size) = (conv.input_size, conv.output_size());
            let input = if index == 0 { images } else { &buffers.current[..batch * size * size * conv.in_channels] };
            let output = &mut buffers.next[..batch * out_size * out_size * conv.out_channels];
            layer.run(input, batch, size, size, conv.activation, output);
            if conv.residual {
                output.iter_mut().zip(input).for_each(|(out, x)| *out += x);
            }
            std::mem::swap(&mut buffers.current, &mut buffers.next);
            layer_done();
        }
        if let Some(pool) = &spec.max_pool {
            let (size, out_size) = (pool.input_size, pool.output_size());
            let input = &buffers.current[..batch * size * size * pool.channels];
            let output = &mut buffers.next[..batch * out_size * out_size * pool.channels];
            max_pool(input, size, size, pool.channels, output);
            std::mem::swap(&mut buffers.current, &mut buffers.next);
            layer_done();
        }
        for (block, spec) in self.blocks.iter().zip(spec.blocks()) {
            block.run(spec, batch, buffers);
            std::mem::swap(&mut buffers.current, &mut buffers.next);
            layer_done();
        }

        let (channels, size) = spec.pooled_map();
        let map = match (&self.feature, &spec.feature) {
            (Some(layer), Some(conv)) => {
                let input = &buffers.current[..batch * size * size * conv.in_channels];
                let map = &mut buffers.expanded[..batch * size * size * channels];
                layer.run(input, batch, size * size, conv.activation, None, None, map);
                &*map
            }
            _ => &buffers.current[..batch * size * size * channels],
        };
        let pooled = &mut buffers.pooled[..batch * channels];
        average_pool(map, batch, size * size, channels, pooled);
        let features = match &self.hidden {
            Some(layer) => {
                let hidden = &mut buffers.reduced[..batch * spec.classifier_channels()];
                layer.run(pooled, batch, 1, spec.hidden_activation, None, None, hidden);
                &*hidden
            }
            None => &*pooled,
        };
        let logits = &mut buffers.logits[..batch * spec.classes];
        self.classifier.run(features, batch, 1, Activation::Identity, None, None, logits);
        layer_done();
        Ok(())
    }
}

impl Buffers {
    /// Grows every buffer to what `batch` images of `spec` need.
    fn reserve(&mut self, spec: &NetworkSpec, batch: usize) {
        let extents = Extents::of(spec);
        let grow = |buffer: &mut Vec<f32>, per_image: usize| {
            if buffer.len() < batch * per_image {
                buffer.resize(batch * per_image, 0.0);
            }
        };
        grow(&mut self.current, extents.output);
        grow(&mut self.next, extents.output);
        grow(&mut self.expanded, extents.expanded);
        grow(&mut self.filtered, extents.filtered);
        grow(&mut self.shortcut, extents.shortcut);
        grow(&mut self.pooled, extents.pooled);
        grow(&mut self.reduced, extents.reduced);
        grow(&mut self.gate, extents.gate);
        grow(&mut self.logits, spec.classes);
    }
}

/// Values an image needs in each buffer.
#[derive(Default)]
struct Extents {
    output: usize,
    expanded: usize,
    filtered: usize,
    shortcut: usize,
    pooled: usize,
    reduced: usize,
    gate: usize,
}

impl Extents {
    /// The largest that a layer of `spec` needs.
    fn of(spec: &NetworkSpec) -> Self {
        let map = |size: usize, channels: usize| size * size * channels;
        let mut maps = Extents::default();
        for conv in &spec.stem {
            maps.output = maps.output.max(map(conv.output_size(), conv.out_channels));
        }
        let (features, size) = spec.pooled_map();
        (maps.pooled, maps.reduced) = (features, spec.hidden_channels.unwrap_or(0));
        if spec.feature.is_some() {
            maps.expanded = map(size, features);
        }
        for block in spec.blocks() {
            let (size, out_size) = (block.input_size(), block.output_size());
            let output = map(out_size, block.out_channels());
            maps.output = maps.output.max(output);
            let middle = match block {
                BlockSpec::InvertedResidual(block) => {
                    if let Some(reduced) = block.squeeze_excite {
                        maps.gate = maps.gate.max(block.middle_channels);
                        maps.reduced = maps.reduced.max(reduced);
                    }
                    block.middle_channels
                }
                BlockSpec::Bottleneck(block) => {
                    if block.projection {
                        maps.shortcut = maps.shortcut.max(output);
                        maps.expanded = maps.expanded.max(map(out_size, block.in_channels));
                    }
                    block.middle_channels
                }
            };
            maps.expanded = maps.expanded.max(map(size, middle));
            maps.filtered = maps.filtered.max(map(out_size, middle));
        }
        maps.pooled = maps.pooled.max(maps.gate);
        maps
    }
}

#[cfg(test)]
mod tests {
    use super::super::plain;
    use super::*;
    use ofa_supernet::seed::{Stream, generator};
    use ofa_supernet::space::{ConvSpec, Subnet, preset};
    use rand::Rng;

    fn images(spec: &NetworkSpec, batch: usize) -> Vec<f32> {
        let mut rng = generator(9, Stream::Builtin, &[]);
        (0..batch * spec.resolution * spec.resolution * 3).map(|_| rng.random_range(-2.0..2.0)).collect()
    }

    /// The network as PyTorch would run it: plain convolutions, then batch norm with the running statistics.
    fn expected_logits(spec: &NetworkSpec, weights: &Weights, images: &[f32], batch: usize) -> Vec<f32> {
        let get = |name: &str| weights[name].1.as_slice();
        let norm = |values: &mut [f32], prefix: &str, activation: Activation| {
            let part = |name: &str| get(&format!("{prefix}.{name}"));
            let (gamma, beta, mean, variance) =
                (part("weight"), part("bias"), part("running_mean"), part("running_var"));
            for (index, value) in values.iter_mut().enumerate() {
                let c = index % gamma.len();
                let x = (*value - mean[c]) / (variance[c] + spec.batch_norm_epsilon as f32).sqrt() * gamma[c] + beta[c];
                *value = match activation {
                    Activation::Identity => x,
                    Activation::Relu => x.max(0.0),
                    Activation::Relu6 => x.clamp(0.0, 6.0),
                    Activation::HardSwish => x * (x + 3.0).clamp(0.0, 6.0) / 6.0,
                };
            }
        };
        let linear = |input: &[f32], name: &str, bias: &[f32], batch: usize, pixels: usize, activation| {
            let shape = &weights[name].0;
            let mut output = vec![0.0; batch * pixels * shape[0]];
            let layer = plain::Pointwise::new(get(name), bias, shape[1], shape[0]);
            layer.run(input, batch, pixels, activation, None, None, &mut output);
            output
        };
        let zeros = vec![0.0; 10_000];
        let identity = Activation::Identity;
        let dense = |input: &[f32], conv: &ConvSpec, name: &str, bn: &str| {
            let mut output = vec![0.0; batch * conv.output_size() * conv.output_size() * conv.out_channels];
            let weight = get(&format!("{name}.weight"));
            let bias = &zeros[..conv.out_channels];
            plain::DenseConv::new(weight, bias, conv.in_channels, conv.out_channels, conv.kernel, conv.stride).run(
                input,
                batch,
                conv.input_size,
                conv.input_size,
                identity,
                &mut output,
            );
            norm(&mut output, bn, conv.activation);
            output
        };

        let mut x = images.to_vec();
        for (conv, (name, bn)) in spec.stem.iter().zip(stem_names(spec)) {
            let y = dense(&x, conv, &name, &bn);
            x = if conv.residual { y.iter().zip(&x).map(|(y, x)| y + x).collect() } else { y };
        }
        if let Some(pool) = &spec.max_pool {
            x = plain::pool(&x, pool.input_size, pool.channels, 3, 2, 1, |seen| {
                seen.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b))
            });
        }
        for (s, stage) in spec.stages.iter().enumerate() {
            for (b, block) in stage.iter().enumerate() {
                let p = block_prefix(block, s, b);
                let block = match block {
                    BlockSpec::InvertedResidual(block) => block,
                    BlockSpec::Bottleneck(block) => {
                        let shortcut = block.shortcut().map_or(x.clone(), |conv| {
                            let mean = |seen: &[f32]| seen.iter().sum::<f32>() / seen.len() as f32;
                            let pooled = plain::pool(
                                &x,
                                block.input_size,
                                block.in_channels,
                                block.stride,
                                block.stride,
                                0,
                                mean,
                            );
                            dense(&pooled, &conv, &format!("{p}.downsample.1"), &format!("{p}.downsample.2"))
                        });
                        for (index, conv) in block.convolutions().iter().enumerate() {
                            x = dense(&x, conv, &format!("{p}.conv{}", index + 1), &format!("{p}.bn{}", index + 1));
                        }
                        x = x.iter().zip(&shortcut).map(|(y, s)| (y + s).max(0.0)).collect();
                        continue;
                    }
                };
                let (size, middle) = (block.input_size, block.middle_channels);
                let pixels = block.output_size() * block.output_size();
                let mut y = x.clone();
                let (dw_norm, pw, pw_norm) =
                    if block.expand { ("bn2", "conv_pwl", "bn3") } else { ("bn1", "conv_pw", "bn2") };
                if block.expand {
                    y = linear(&y, &format!("{p}.conv_pw.weight"), &zeros[..middle], batch, size * size, identity);
                    norm(&mut y, &format!("{p}.bn1"), block.activation);
                }
                let depthwise = plain::Depthwise::new(
                    get(&format!("{p}.conv_dw.weight")),
                    &zeros[..middle],
                    middle,
                    block.kernel,
                    block.stride,
                );
                let mut z = vec![0.0; batch * pixels * middle];
                depthwise.run(&y, batch, size, size, identity, &mut z, None);
                norm(&mut z, &format!("{p}.{dw_norm}"), block.activation);
                if block.squeeze_excite.is_some() {
                    let mut pooled = vec![0.0; batch * middle];
                    plain::average_pool(&z, pixels, middle, &mut pooled);
                    let se = format!("{p}.se.conv");
                    let r = linear(
                        &pooled,
                        &format!("{se}_reduce.weight"),
                        get(&format!("{se}_reduce.bias")),
                        batch,
                        1,
                        Activation::Relu,
                    );
                    let gate = linear(
                        &r,
                        &format!("{se}_expand.weight"),
                        get(&format!("{se}_expand.bias")),
                        batch,
                        1,
                        identity,
                    );
                    for (index, value) in z.iter_mut().enumerate() {
                        let gate = gate[index / (pixels * middle) * middle + index % middle];
                        *value *= (gate + 3.0).clamp(0.0, 6.0) / 6.0;
                    }
                }
                let mut out =
                    linear(&z, &format!("{p}.{pw}.weight"), &zeros[..block.out_channels], batch, pixels, identity);
                norm(&mut out, &format!("{p}.{pw_norm}"), identity);
                if block.residual {
                    out.iter_mut().zip(&x).for_each(|(out, x)| *out += x);
                }
                x = out;
            }
        }
        if let Some(conv) = &spec.feature {
            let (name, bn) = feature_names(spec);
            x = dense(&x, conv, &name, &bn);
        }
        let (features, size) = spec.pooled_map();
        let mut pooled = vec![0.0; batch * features];
        plain::average_pool(&x, size * size, features, &mut pooled);
        let hidden = match spec.hidden_channels {
            Some(width) => linear(&pooled, "conv_head.weight", &zeros[..width], batch, 1, spec.hidden_activation),
            None => pooled,
        };
        let name = classifier_name(spec);
        linear(&hidden, &format!("{name}.weight"), get(&format!("{name}.bias")), batch, 1, identity)
    }

    fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
        assert_eq!(found.len(), expected.len());
        let size = expected.iter().fold(0.0f32, |a, &b| a.max(b.abs()));
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= tolerance * size, "{found} instead of {expected} (largest {size})");
        }
    }

    #[test]
    fn logits_equal_the_unfolded_network() {
        // Odd sizes, both strides, with and without squeeze-excite and residual.
        let mut space = preset("tiny").unwrap();
        space.resolutions = vec![15, 21];
        space.depths = vec![1, 2];
        for (position, batch) in [(0, 1), (1, 3), (2, 2), (3, 3)] {
            // As in ProxylessNAS: no hidden layer, a last stage of one block; another epsilon.
            if position >= 2 {
                let head = space.head.as_mut().unwrap();
                (head.hidden_channels, head.activation) = (None, Activation::Relu6);
                space.stages[1].depths = vec![1];
                space.batch_norm_epsilon = 1e-2;
            }
            let subnet = space.sample(&mut generator(4, Stream::Sampling, &[position]));
            let spec = space.network(&subnet, 5).unwrap();
            let weights = random_weights(&spec, 11).unwrap();
            let images = images(&spec, batch);
            let mut network = StaticNetwork::new(&spec, &weights).unwrap();
            let expected = expected_logits(&spec, &weights, &images, batch);
            assert_close(network.run(&images, batch).unwrap(), &expected, 1e-4);
            // Again with the buffers of the first run, through the timed path, and after another batch size.
            network.run(&images[..images.len() / batch], 1).unwrap();
            let mut times = vec![1.0];
            assert_close(network.run_timed(&images, batch, &mut times).unwrap(), &expected, 1e-4);
            assert_eq!(times.len(), spec.blocks().count() + 2);
            assert!(times.iter().all(|t| *t >= 0.0));
        }
    }

    #[test]
    fn resnet_logits_equal_the_unfolded_network() {
        // Odd sizes: windows over the border, in both pools.
        let mut space = preset("resnet-tiny").unwrap();
        space.resolutions = vec![15, 21];
        for (position, batch) in [(0, 1), (1, 3), (2, 2), (3, 3)] {
            let subnet = space.sample(&mut generator(3, Stream::Sampling, &[position]));
            let spec = space.network(&subnet, 6).unwrap();
            let weights = random_weights(&spec, position).unwrap();
            let images = images(&spec, batch);
            let mut network = StaticNetwork::new(&spec, &weights).unwrap();
            let expected = expected_logits(&spec, &weights, &images, batch);
            assert_close(network.run(&images, batch).unwrap(), &expected, 1e-4);
            let mut times = vec![];
            assert_close(network.run_timed(&images, batch, &mut times).unwrap(), &expected, 1e-4);
            assert_eq!(times.len(), crate::profile::layers(&spec).count());
        }
    }

    #[test]
    fn another_resolution_is_the_same_as_a_network_built_for_it() {
        for name in ["resnet-tiny", "tiny"] {
            let space = preset(name).unwrap();
            let at = |resolution| Subnet { resolution, ..space.largest() };
            let small = space.network(&at(space.resolutions[0]), 4).unwrap();
            let large = space.network(&at(space.resolutions[1]), 4).unwrap();
            let mut network = StaticNetwork::random(&small, 1).unwrap();
            network.set_resolution(large.resolution).unwrap();
            assert_eq!(*network.spec(), large);
            let images = images(&large, 2);
            let expected = StaticNetwork::random(&large, 1).unwrap().run(&images, 2).unwrap().to_vec();
            assert_eq!(network.run(&images, 2).unwrap(), expected);
        }
        let space = preset("tiny").unwrap();
        let large = space.network(&space.smallest(), 4).unwrap();
        let mut network = StaticNetwork::random(&large, 1).unwrap();
        let images = images(&large, 2);
        assert!(network.set_resolution(0).is_err());
        assert!(network.run(&images, 3).unwrap_err().to_string().contains("batch of 3"));
        assert!(network.run(&[], 0).is_err());
    }

    #[test]
    fn wrong_tensors_are_named() {
        let space = preset("tiny").unwrap();
        let spec = space.network(&space.smallest(), 3).unwrap();
        let good = random_weights(&spec, 0).unwrap();
        let refused = |change: &dyn Fn(&mut Weights), name: &str, part: &str| {
            let mut weights = good.clone();
            change(&mut weights);
            let message = StaticNetwork::new(&spec, &weights).err().unwrap().to_string();
            assert!(message.contains(name) && message.contains(part), "{message}");
        };
        let name = "blocks.1.0.conv_dw.weight";
        refused(&|w| drop(w.remove(name)), name, "missing");
        refused(&|w| w.get_mut(name).unwrap().0 = vec![1], name, "shape [1]");
        refused(&|w| w.get_mut(name).unwrap().1[3] = f32::NAN, name, "value 3 is NaN");
        refused(&|w| w.get_mut("bn1.running_var").unwrap().1[0] = -1.0, "bn1.running_var", "negative");
        refused(&|w| drop(w.insert("extra".into(), (vec![1], vec![0.0]))), "extra", "does not belong");
    }
}
