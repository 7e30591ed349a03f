//! Reads the checkpoint that belongs to a `net.config`.

use super::super::{
    BOTTLENECK_NAMES, BlockNames, block_prefix, classifier_name, feature_names, stem_names, tensor_shapes,
};
use super::PublishedNetwork;
use crate::runtime::{Weights, check_weights};
use crate::{Error, Result};
use ofa_supernet::import::{CheckpointFile, common};
use ofa_supernet::space::BlockSpec;
use std::collections::BTreeMap;
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
        let layers = self.layers();
        let mut weights = Weights::new();
        for (name, shape) in tensor_shapes(network) {
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

    /// Published name of each of our layers, in the spelling of [`common`].
    fn layers(&self) -> BTreeMap<String, String> {
        let network = &self.network;
        let mut layers = BTreeMap::new();
        let mut dense = |(conv, norm): (String, String), theirs: String| {
            layers.insert(conv, format!("{theirs}.conv"));
            layers.insert(norm, format!("{theirs}.bn"));
        };
        // Layers without batch norm, or with an irregular name.
        let mut special = Vec::new();
        for (index, (spec, names)) in network.stem.iter().zip(stem_names(network)).enumerate() {
            let theirs = match (network.max_pool.is_some(), spec.residual) {
                (false, _) => "first_conv".into(),
                (true, false) => format!("input_stem.{index}"),
                (true, true) => format!("input_stem.{index}.residual"),
            };
            // The common spelling always treats the second layer as the residual block, which this stem may lack.
            let skipped = (index == 1 && theirs == "input_stem.1").then(|| names.0.clone());
            dense(names, theirs);
            special.extend(skipped.map(|ours| (ours, "input_stem.1.residual".to_string())));
        }
        let mut numbers = self.numbers.iter();
        for (stage, blocks) in network.stages.iter().enumerate() {
            for (place, block) in blocks.iter().enumerate() {
                let number = numbers.next().copied().unwrap_or_default();
                let (ours, theirs) = (block_prefix(block, stage, place), format!("blocks.{number}"));
                let full = |(conv, norm): (&str, &str)| (format!("{ours}.{conv}"), format!("{ours}.{norm}"));
                match block {
                    BlockSpec::InvertedResidual(block) => {
                        let names = BlockNames::of(block);
                        if let Some(expand) = names.expand {
                            dense(full(expand), format!("{theirs}.conv.inverted_bottleneck"));
                        }
                        dense(full(names.depthwise), format!("{theirs}.conv.depth_conv"));
                        dense(full(names.project), format!("{theirs}.conv.point_linear"));
                        for part in ["reduce", "expand"].into_iter().filter(|_| block.squeeze_excite.is_some()) {
                            special.push((
                                format!("{ours}.se.conv_{part}"),
                                format!("{theirs}.conv.depth_conv.se.fc.{part}"),
                            ));
                        }
                    }
                    BlockSpec::Bottleneck(_) => {
                        for (names, part) in BOTTLENECK_NAMES.into_iter().zip(["conv1", "conv2", "conv3", "downsample"])
                        {
                            dense(full(names), format!("{theirs}.{part}"));
                        }
                    }
                }
            }
        }
        if network.feature.is_some() {
            let name = if network.hidden_channels.is_some() { "final_expand_layer" } else { "feature_mix_layer" };
            dense(feature_names(network), name.into());
        }
        layers.extend(special);
        if network.hidden_channels.is_some() {
            layers.insert("conv_head".into(), "feature_mix_layer.conv".into());
        }
        layers.insert(classifier_name(network).into(), "classifier.linear".into());
        layers
    }
}
