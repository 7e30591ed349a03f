//! Reads the checkpoint that belongs to a `net.config`.

use super::PublishedNetwork;
use crate::runtime::{Weights, check_weights};
use crate::{Error, Result};
use ofa_supernet::graph::{Graph, Slot};
use ofa_supernet::import::{CheckpointFile, common};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

impl PublishedNetwork {
    /// Reads the network's weights from a published checkpoint, under our names.
    ///
    /// # Errors
    /// Errors of [`CheckpointFile::open`]; a tensor that is missing, does not belong to the network, has the wrong
    /// shape, or is not finite (the first one is named).
    pub fn weights(&self, path: &Path) -> Result<Weights> {
        self.weights_from(&mut CheckpointFile::open(path)?)
    }

    /// Reads the network's weights, like [`weights`](Self::weights), from an open file.
    ///
    /// # Errors
    /// As for [`weights`](Self::weights).
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
        let layer = |slot: &Slot| Some((graph.name(slot), graph.published_name(slot, &self.numbers)?));
        let layers: HashMap<String, String> = graph.slots().iter().filter_map(layer).collect();
        let mut weights = Weights::new();
        for (name, shape) in graph.tensor_shapes() {
            let (ours, part) = name.rsplit_once('.').unwrap_or((&name, ""));
            let published = layers.get(ours).map_or_else(String::new, |theirs| format!("{theirs}.{part}"));
            let Some((theirs, their_shape)) = found.remove(&published) else {
                return fail(format!(
                    "the tensor '{published}' is missing; check that the weights belong to this network"
                ));
            };
            // The layer between pool and classifier is a matrix in some files and a 1x1 convolution in others.
            let fits = their_shape == shape || [&their_shape[..], &[1, 1]].concat() == shape;
            if !fits {
                return fail(format!(
                    "the tensor '{theirs}' has shape {their_shape:?}, but the network needs {shape:?}"
                ));
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
}
