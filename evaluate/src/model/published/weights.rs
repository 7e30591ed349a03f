//! The checkpoint beside `net.config`.

use super::PublishedNetwork;
use crate::runtime::{Weights, check_weights};
use crate::{Error, Result};
use ofa_supernet::graph::{Graph, Op, RegionKind, Slot};
use ofa_supernet::import::{CheckpointFile, common};
use std::collections::BTreeMap;
use std::path::Path;

impl PublishedNetwork {
    /// Its weights from a published checkpoint, under our names.
    ///
    /// # Errors
    /// As [`CheckpointFile::open`]; the first tensor that is missing, does not belong to the network, has another shape, or is not
    /// finite.
    pub fn weights(&self, path: &Path) -> Result<Weights> {
        self.weights_from(&mut CheckpointFile::open(path)?)
    }

    /// As [`weights`](Self::weights), from an open file.
    ///
    /// # Errors
    /// As [`weights`](Self::weights).
    pub fn weights_from(&self, file: &mut CheckpointFile) -> Result<Weights> {
        let network = &self.network;
        let path = file.path().to_path_buf();
        let fail = |message: String| Err(Error::Supernet(ofa_supernet::Error::format(&path, message)));
        let mut found: BTreeMap<String, (String, Vec<usize>)> = file
            .tensors()
            .filter(|(name, _)| !name.ends_with(".num_batches_tracked"))
            .map(|(name, shape)| (common(name), (name.to_string(), shape.to_vec())))
            .collect();
        let graph = Graph::of(network);
        let layers = self.layers(&graph);
        let mut weights = Weights::new();
        for (name, shape) in graph.tensor_shapes() {
            let (ours, part) = name.rsplit_once('.').unwrap_or((&name, ""));
            let published = layers.get(ours).map_or_else(String::new, |theirs| format!("{theirs}.{part}"));
            let Some((theirs, their_shape)) = found.remove(&published) else {
                return fail(format!("the tensor '{published}' is missing; are these the weights of that network?"));
            };
            // The layer between pool and classifier is a matrix in some files and a 1x1 convolution in others.
            let fits = their_shape == shape || [&their_shape[..], &[1, 1]].concat() == shape;
            if !fits {
                return fail(format!("the tensor '{theirs}' has shape {their_shape:?}, the network needs {shape:?}"));
            }
            weights.insert(name, (shape, file.values(&theirs)?));
        }
        if let Some((name, _)) = found.values().next() {
            return fail(format!("the tensor '{name}' does not belong to the network"));
        }
        match check_weights(network, &weights) {
            Ok(()) => Ok(weights),
            Err(e) => fail(e.to_string()),
        }
    }

    /// The published code's name of each of our layers, in the spelling of [`common`].
    fn layers(&self, graph: &Graph) -> BTreeMap<String, String> {
        let network = &self.network;
        let mut layers = BTreeMap::new();
        let mut numbers = self.numbers.iter();
        for (place, layer) in graph.layers().iter().enumerate() {
            let slots: Vec<&Slot> =
                graph.slots().iter().filter(|slot| layer.nodes.contains(&slot.node.index())).collect();
            let theirs: Vec<String> = match layer.kind {
                RegionKind::Block(kind) => {
                    let number = numbers.next().copied().unwrap_or_default();
                    let names = block_layers(kind, graph, &slots).into_iter();
                    names.map(|name| format!("blocks.{number}.{name}")).collect()
                }
                RegionKind::Stem => {
                    let stem = match (network.max_pool.is_some(), network.stem[place].residual) {
                        (false, _) => "first_conv".into(),
                        (true, false) => format!("input_stem.{place}"),
                        (true, true) => format!("input_stem.{place}.residual"),
                    };
                    // The common spelling takes the second layer for the residual block, which this stem may lack.
                    let convolution =
                        if stem == "input_stem.1" { "input_stem.1.residual".into() } else { format!("{stem}.conv") };
                    vec![convolution, format!("{stem}.bn")]
                }
                RegionKind::Head => {
                    let (feature, hidden) = (network.feature.is_some(), network.hidden_channels.is_some());
                    let convolution = if hidden { "final_expand_layer" } else { "feature_mix_layer" };
                    let convolution = ["conv", "bn"].map(|part| format!("{convolution}.{part}"));
                    let hidden = hidden.then(|| "feature_mix_layer.conv".to_string());
                    let convolution = convolution.into_iter().filter(|_| feature);
                    convolution.chain(hidden).chain(["classifier.linear".to_string()]).collect()
                }
                RegionKind::MaxPool | RegionKind::ConvolutionNormActivation => Vec::new(),
            };
            layers.extend(slots.into_iter().map(|slot| graph.name(slot)).zip(theirs));
        }
        layers
    }
}

/// The published names of a block's layers, in the order of its slots.
fn block_layers(kind: &str, graph: &Graph, slots: &[&Slot]) -> Vec<String> {
    let op = |slot: &Slot| graph.node(slot.node).op;
    let count = slots.iter().filter(|slot| matches!(op(slot), Op::Convolution { bias: false, .. })).count();
    let names: &[&str] = match kind {
        "bottleneck" => &["conv1", "conv2", "conv3", "downsample"],
        // A block without expansion lacks the first.
        _ => &["conv.inverted_bottleneck", "conv.depth_conv", "conv.point_linear"][3 - count.min(3)..],
    };
    let (mut names, mut gate) = (names.iter(), ["reduce", "expand"].iter());
    let mut current = "";
    let name = |slot: &&Slot| match op(slot) {
        Op::Convolution { bias: true, .. } => {
            format!("conv.depth_conv.se.fc.{}", gate.next().copied().unwrap_or_default())
        }
        Op::Convolution { .. } => {
            current = names.next().copied().unwrap_or_default();
            format!("{current}.conv")
        }
        _ => format!("{current}.bn"),
    };
    slots.iter().map(name).collect()
}
