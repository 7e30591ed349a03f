//! Checks of a quantised network that was read from a file.

use super::{Int8Layer, MAX_SUM, MAX_WEIGHT, QuantisedLayer, QuantisedNetwork, Scale, node_names};
use crate::model::validate;
use crate::{Error, Result};
use ofa_supernet::graph::{Graph, Op};
use std::collections::HashSet;

/// Most pixels whose bytes are averaged: their sum has 32 bits.
const MOST_AVERAGED: usize = i32::MAX as usize / 255;

/// Scales between these bounds, and products of two of them, are normal f32 numbers.
const SCALES: std::ops::RangeInclusive<f32> = 1e-15..=1e15;

impl QuantisedNetwork {
    /// Checks that the network can be computed: layers and values are those of its graph, numbers are in range.
    ///
    /// # Errors
    /// The first layer or value that is wrong, by name.
    pub fn check(&self) -> Result<()> {
        validate(&self.spec)?;
        let graph = Graph::of(&self.spec);
        let names = node_names(&graph);
        let mut known = HashSet::new();
        for (node, name) in graph.nodes().iter().zip(&names) {
            let largest = match node.op {
                Op::GlobalAveragePool => usize::MAX,
                Op::AveragePool { window, .. } => window,
                _ => 0,
            };
            if let (1.., Some(input)) = (largest, node.inputs().first()) {
                let map = graph.node(*input).shape;
                let (height, width) = (map.height.min(largest), map.width.min(largest));
                if self.values.contains_key(&names[input.index()]) && height * width > MOST_AVERAGED {
                    return Err(Error::tensor(name, format!("averages {height} x {width} bytes, whose sum overflows")));
                }
            }
            let (per_output, input) = match (node.op, node.inputs().first()) {
                (Op::Convolution { kernel, groups, .. }, Some(input)) => {
                    (graph.node(*input).shape.channels / groups.max(1) * kernel * kernel, input)
                }
                (Op::Linear, Some(input)) => (graph.node(*input).shape.channels, input),
                _ => continue,
            };
            let Some(layer) = self.layers.get(name) else {
                return Err(Error::tensor(format!("{name}.weight"), "is missing"));
            };
            known.insert(name);
            layer.check(name, node.shape.channels, per_output)?;
            if matches!(layer, QuantisedLayer::Int8(_)) && !self.values.contains_key(&names[input.index()]) {
                let message = format!("the layer is int8, but its input '{}' has no scale", names[input.index()]);
                return Err(Error::tensor(name, message));
            }
        }
        if let Some(name) = self.layers.keys().find(|name| !known.contains(name)) {
            return Err(Error::tensor(name, "does not belong to the network"));
        }
        let known: HashSet<&String> = names[..names.len() - 1].iter().collect();
        for (name, scale) in &self.values {
            if !known.contains(name) {
                return Err(Error::tensor(name, "has a scale, but the network has no such value between its layers"));
            }
            scale.check(name)?;
        }
        Ok(())
    }
}

impl Scale {
    /// Checks the range of the scale of the value `name`.
    pub(crate) fn check(self, name: &str) -> Result<()> {
        if SCALES.contains(&self.scale) {
            return Ok(());
        }
        let (low, high) = SCALES.into_inner();
        Err(Error::tensor(name, format!("has the scale {}, it must be between {low:e} and {high:e}", self.scale)))
    }
}

impl QuantisedLayer {
    fn check(&self, name: &str, out: usize, per_output: usize) -> Result<()> {
        let lengths = match self {
            QuantisedLayer::Int8(layer) => [layer.weight.len(), layer.scales.len(), layer.bias.len()],
            QuantisedLayer::F32 { weight, bias } => [weight.len(), out, bias.len()],
        };
        if lengths != [out * per_output, out, out] {
            let message = format!(
                "has {} weights, {} scales and {} biases; {out} outputs of {per_output} weights were expected",
                lengths[0], lengths[1], lengths[2]
            );
            return Err(Error::tensor(name, message));
        }
        match self {
            QuantisedLayer::Int8(layer) => layer.check_numbers(name, per_output),
            QuantisedLayer::F32 { weight, bias } => match weight.iter().chain(bias).find(|value| !value.is_finite()) {
                Some(value) => Err(Error::tensor(name, format!("holds {value}, it must be finite"))),
                None => Ok(()),
            },
        }
    }
}

impl Int8Layer {
    fn check_numbers(&self, name: &str, per_output: usize) -> Result<()> {
        let refused = |message: String| Err(Error::tensor(name, message));
        if per_output as i64 * 255 * i64::from(MAX_WEIGHT) > MAX_SUM {
            return refused(format!("has {per_output} weights per output, too many for sums in i32; keep it f32"));
        }
        if self.weight.contains(&i8::MIN) {
            return refused(format!("holds the weight {}, the smallest is -{MAX_WEIGHT}", i8::MIN));
        }
        if let Some(bias) = self.bias.iter().find(|bias| i64::from(**bias).abs() > MAX_SUM) {
            return refused(format!("holds the bias {bias}, the largest is {MAX_SUM}"));
        }
        self.scales.iter().try_for_each(|&scale| Scale { scale, zero_point: 0 }.check(name))
    }
}
