//! Layers of a space as the columns of linear equations, with the costs that explain their times.

use super::super::measure::covering_networks;
use super::super::{LayerSpec, layers};
use crate::{Error, Result};
use ofa_supernet::SearchSpace;
use ofa_supernet::graph::{Graph, Op, Region};
use ofa_supernet::space::NetworkSpec;
use std::collections::{BTreeMap, HashMap};

/// Number of costs of a layer.
pub const COSTS: usize = 6;

/// Multiply-accumulates of dense convolutions and linear layers, those of depthwise convolutions, values that nodes
/// write, weights, layers with weights, and other operations.
pub type Costs = [f64; COSTS];

/// A sum of layers: numbers of layers with the times that each occurs. A network's sum holds the overhead once.
pub type Sum = Vec<(usize, f64)>;

/// Every distinct layer of a space, and behind them the overhead of a run as one more.
pub struct LayerCosts {
    /// The layers, without the overhead.
    pub layers: Vec<LayerSpec>,
    numbers: HashMap<LayerSpec, usize>,
    /// Costs of each layer; the overhead has none.
    pub costs: Vec<Costs>,
}

impl LayerCosts {
    /// The layers of `space`.
    ///
    /// # Errors
    /// The space is invalid.
    pub fn new(space: &SearchSpace, classes: usize) -> Result<Self> {
        let (mut found, mut numbers, mut costs) = (Vec::new(), HashMap::new(), Vec::new());
        for network in covering_networks(space, classes) {
            let network = network?;
            let graph = Graph::of(&network);
            for (layer, region) in layers(&network).zip(graph.layers()) {
                if !numbers.contains_key(&layer) {
                    numbers.insert(layer.clone(), found.len());
                    found.push(layer);
                    costs.push(costs_of(&graph, region));
                }
            }
        }
        costs.push([0.0; COSTS]);
        Ok(LayerCosts { layers: found, numbers, costs })
    }

    /// Number of the overhead.
    pub fn overhead(&self) -> usize {
        self.layers.len()
    }

    /// A network as the sum of its layers and the overhead.
    ///
    /// # Errors
    /// A network of another space.
    pub fn sum(&self, network: &NetworkSpec) -> Result<Sum> {
        let mut counts = BTreeMap::from([(self.overhead(), 1.0)]);
        for layer in layers(network) {
            let number = self.numbers.get(&layer);
            let number = number.ok_or_else(|| Error::Network(format!("'{layer}' is no layer of the space")))?;
            *counts.entry(*number).or_insert(0.0) += 1.0;
        }
        Ok(counts.into_iter().collect())
    }
}

/// Costs of a layer, a region of `graph`.
pub fn costs_of(graph: &Graph, layer: &Region) -> Costs {
    let mut costs = [0.0; COSTS];
    for node in &graph.nodes()[layer.nodes.clone()] {
        let values = node.shape.values() as f64;
        let inputs = node.inputs().first().map_or(0.0, |input| graph.node(*input).shape.channels as f64);
        let (per_value, groups) = match node.op {
            Op::Convolution { kernel, groups, .. } => ((kernel * kernel) as f64 * inputs / groups as f64, groups),
            Op::Linear => (inputs, 1),
            // Folded into the convolution.
            Op::BatchNorm => continue,
            _ => {
                costs[2] += values;
                costs[5] += 1.0;
                continue;
            }
        };
        costs[usize::from(groups > 1)] += values * per_value;
        costs[2] += values;
        costs[3] += node.shape.channels as f64 * per_value;
        costs[4] += 1.0;
    }
    costs
}
