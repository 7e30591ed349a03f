//! Quantised networks with seeded random weights, for measuring and for tests of kernels.

use super::{Int8Layer, QuantisedLayer, QuantisedNetwork, Scale, node_names};
use super::{MAX_WEIGHT, rule::Rule};
use crate::Result;
use crate::model::validate;
use ofa_supernet::graph::{Graph, Op};
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::space::NetworkSpec;
use rand::Rng;
use std::collections::{BTreeMap, HashSet};

impl QuantisedNetwork {
    /// The network of `spec` with seeded random weights, the layers named in `keep_f32` in f32. Values keep their size
    /// through the layers.
    ///
    /// # Errors
    /// An impossible network.
    pub fn random(spec: &NetworkSpec, keep_f32: &HashSet<String>, seed: u64) -> Result<Self> {
        validate(spec)?;
        let graph = Graph::of(spec);
        let (names, rule) = (node_names(&graph), Rule::of(&graph, keep_f32));
        let mut rng = generator(seed, Stream::Weights, &[]);
        let (mut layers, mut values) = (BTreeMap::new(), BTreeMap::<String, Scale>::new());
        for (index, node) in graph.nodes().iter().enumerate() {
            let input = node.inputs().first().map(|input| &names[input.index()]);
            if rule.rounded[index] {
                // A pool of largest values has the scale of its input.
                let same = input.filter(|_| matches!(node.op, Op::MaxPool { .. })).and_then(|input| values.get(input));
                let positive = matches!(node.op, Op::Activation(_));
                let zero_point = if positive { rng.random_range(0..20) } else { rng.random_range(100..150) };
                let scale = same.copied().unwrap_or(Scale { scale: rng.random_range(0.02..0.04), zero_point });
                values.insert(names[index].clone(), scale);
            }
            let per_output = match (node.op, node.inputs().first()) {
                (Op::Convolution { kernel, groups, .. }, Some(input)) => {
                    graph.node(*input).shape.channels / groups * kernel * kernel
                }
                (Op::Linear, Some(input)) => graph.node(*input).shape.channels,
                _ => continue,
            };
            let (out, bound) = (node.shape.channels, (6.0 / per_output as f32).sqrt());
            let count = out * per_output;
            let layer = if rule.int8[index] {
                let input = input.and_then(|input| values.get(input)).map_or(1.0, |scale| scale.scale);
                let scales: Vec<f32> =
                    (0..out).map(|_| bound / f32::from(MAX_WEIGHT) * rng.random_range(0.8..1.0)).collect();
                let weight = (0..count).map(|_| rng.random_range(-MAX_WEIGHT..=MAX_WEIGHT)).collect();
                let bias = scales.iter().map(|scale| (rng.random_range(-0.3..0.3) / (scale * input)) as i32).collect();
                QuantisedLayer::Int8(Int8Layer { weight, scales, bias })
            } else {
                QuantisedLayer::F32 {
                    weight: (0..count).map(|_| rng.random_range(-bound..bound)).collect(),
                    bias: (0..out).map(|_| rng.random_range(-0.3..0.3)).collect(),
                }
            };
            layers.insert(names[index].clone(), layer);
        }
        Ok(QuantisedNetwork { spec: spec.clone(), layers, values })
    }
}
