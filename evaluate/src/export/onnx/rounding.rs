//! Where the values of an int8 model are rounded in a file, and with which integers.
//!
//! A model that was quantised for the engine is written as it is. For another engine, values that it rounds besides are
//! rounded with the scales that were calibrated for them ([`Rule::for_engine`]).

use super::proto::Element;
use crate::model::Quantisation;
use crate::quantise::{Engine, QuantisedLayer, QuantisedNetwork, Rule, Scale, node_names};
use ofa_supernet::graph::Graph;
use std::collections::HashSet;

/// The integers of a value in a file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid {
    pub scale: f32,
    /// In the element type.
    pub zero_point: i16,
    pub element: Element,
}

impl Grid {
    fn of(scale: Scale, engine: Engine) -> Self {
        let zero_point = i16::from(scale.zero_point);
        match engine {
            // The same numbers.
            Engine::OpenVino | Engine::TensorRt if zero_point == 128 => {
                Grid { scale: scale.scale, zero_point: 0, element: Element::Int8 }
            }
            Engine::TensorRt => {
                let largest = zero_point.max(255 - zero_point);
                Grid { scale: scale.scale * (f32::from(largest) / 127.0), zero_point: 0, element: Element::Int8 }
            }
            _ => Grid { scale: scale.scale, zero_point, element: Element::Uint8 },
        }
    }
}

/// Rounding in a file.
pub struct Rounding {
    /// The integers of each node's output; none where it stays f32.
    pub grids: Vec<Option<Grid>>,
    /// Whether each layer is written as integers.
    pub int8: Vec<bool>,
}

impl Rounding {
    /// The rounding of `network` for `engine`.
    pub fn of(graph: &Graph, network: &QuantisedNetwork, quantisation: &Quantisation, engine: Engine) -> Self {
        let Quantisation { engine_values, keep_f32, .. } = quantisation;
        let (names, own) = (node_names(graph), Rule::for_engine(graph, &HashSet::new(), quantisation.engine));
        let is_f32 = |index: usize| matches!(network.layers.get(&names[index]), Some(QuantisedLayer::F32 { .. }));
        // Models of earlier versions do not name them; layers that the rule would round were kept on purpose.
        let is_kept = |index: usize| keep_f32.contains(&names[index]) || (own.int8[index] && is_f32(index));
        let kept = (0..names.len()).filter(|&index| is_kept(index));
        let rule = Rule::for_engine(graph, &kept.map(|index| names[index].clone()).collect(), engine);
        let grid = |index: usize| {
            let besides = engine_values.get(&names[index]).filter(|_| rule.rounded[index]);
            network.values.get(&names[index]).or(besides).map(|scale| Grid::of(*scale, engine))
        };
        let grids: Vec<Option<Grid>> = (0..names.len()).map(grid).collect();
        let reads_integers = |index: usize| {
            let input = graph.nodes()[index].inputs().first();
            input.is_some_and(|input| grids[input.index()].is_some())
        };
        let int8 = (0..names.len()).map(|index| {
            let stored = network.layers.contains_key(&names[index]) && !is_f32(index);
            stored || (rule.int8[index] && reads_integers(index))
        });
        Rounding { int8: int8.collect(), grids }
    }
}
