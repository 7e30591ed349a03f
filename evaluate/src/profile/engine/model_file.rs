//! Networks with random weights as files for another engine.

use super::EngineCommand;
use crate::export::{self, Batch, Options, Parameters};
use crate::model::{self, ModelConfig, NumberType, Quantisation};
use crate::profile::ProfileOptions;
use crate::quantise::{Engine, QuantisedNetwork, Rule, Scale, node_names};
use crate::runtime::random_weights;
use crate::{Error, Result};
use ofa_supernet::data::Normalisation;
use ofa_supernet::graph::{Graph, Op};
use ofa_supernet::space::{Activation, NetworkSpec, SearchSpace, Subnet};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Scale of values that only another engine rounds.
const SCALE: Scale = Scale { scale: 0.03, zero_point: 128 };

/// Writes the network of `subnet` into `folder`, as the file or the folder that `engine` reads. Returns its path.
///
/// # Errors
/// A network that cannot be exported, or a failed write.
pub fn write(
    folder: &Path,
    space: &SearchSpace,
    subnet: &Subnet,
    options: &ProfileOptions,
    engine: &EngineCommand,
) -> Result<PathBuf> {
    let spec = space.network(subnet, options.classes)?;
    let labels = (0..options.classes).map(|class| class.to_string()).collect();
    let mut config =
        ModelConfig::new(&space.name, subnet, spec.clone(), labels, Normalisation::IMAGENET, options.number_type);
    let parameters = match options.number_type {
        NumberType::Int8 => {
            let rounding = if engine.folder { Engine::Ofa } else { engine.rounding };
            let (network, engine_values) = quantised(&spec, options.seed, rounding)?;
            config.quantisation = Some(Quantisation {
                // Its layers follow this rule; that of the file is among the options.
                engine: Engine::Ofa,
                images: 0,
                weight_bits: 8,
                keep_f32: BTreeSet::new(),
                f32_model: None,
                finetuned: None,
                tried_finetuning: None,
                values: network.values.clone(),
                engine_values,
            });
            Parameters::Int8(network)
        }
        _ => Parameters::F32(random_weights(&spec, options.seed)?),
    };
    if engine.folder {
        let path = folder.join("model");
        match &parameters {
            Parameters::F32(weights) => model::save(&path, &config, weights)?,
            Parameters::Int8(network) => model::save_quantised(&path, &config, network)?,
        }
        return Ok(path);
    }
    let Some(format) = export::format("onnx") else { return Err(Error::Export("the format onnx is missing".into())) };
    let file = Options {
        batch: Batch::Fixed(options.batch),
        engine: engine.rounding,
        opset: Some(engine.opset),
        ..Options::default()
    };
    let path = folder.join(model::ONNX_FILE);
    let bytes = (format.convert)(&config, &parameters, &file)?;
    fs::write(&path, bytes).map_err(|error| ofa_supernet::Error::file(&path, error))?;
    Ok(path)
}

/// A quantised network with random weights, and scales of the values that only `engine` rounds. Zero is the smallest
/// integer of values that are never negative, as after a calibration: ONNX Runtime then takes a ReLU along with the
/// convolution before it.
fn quantised(spec: &NetworkSpec, seed: u64, engine: Engine) -> Result<(QuantisedNetwork, BTreeMap<String, Scale>)> {
    let mut network = QuantisedNetwork::random(spec, &HashSet::new(), seed)?;
    let graph = Graph::of(spec);
    let rounded = Rule::for_engine(&graph, &HashSet::new(), engine).rounded;
    let mut besides = BTreeMap::new();
    let mut is_positive = vec![false; rounded.len()];
    for (index, name) in node_names(&graph).into_iter().enumerate() {
        let node = graph.nodes()[index];
        is_positive[index] = match node.op {
            Op::Activation(Activation::Relu | Activation::Relu6) => true,
            // Pools have the scale of their input.
            Op::MaxPool { .. } => node.inputs().iter().all(|input| is_positive[input.index()]),
            _ => false,
        };
        let scale = match network.values.get_mut(&name) {
            Some(scale) => scale,
            None if rounded[index] => besides.entry(name).or_insert(SCALE),
            None => continue,
        };
        if is_positive[index] {
            scale.zero_point = 0;
        }
    }
    Ok((network, besides))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Preset;
    use ofa_supernet::space::preset;

    #[test]
    fn squeeze_excite_is_of_integers_for_an_engine_that_makes_it_so() {
        let space = preset("tiny").unwrap();
        let options = ProfileOptions { number_type: NumberType::Int8, ..ProfileOptions::new("engine", 10) };
        let folder = tempfile::tempdir().unwrap();
        for (name, integers) in [("onnxruntime-python", true), ("openvino-benchmark", false)] {
            let engine = Preset::named(name).unwrap().command(None, NumberType::Int8).unwrap();
            let path = write(folder.path(), &space, &space.largest(), &options, &engine).unwrap();
            let bytes = fs::read(path).unwrap();
            let scale = b"se.conv_reduce.weight.scale";
            assert_eq!(bytes.windows(scale.len()).any(|window| window == scale), integers, "{name}");
        }
    }

    #[test]
    fn values_after_a_relu_begin_at_zero_and_those_of_the_engine_are_all_there() {
        for name in ["tiny", "resnet-tiny"] {
            let space = preset(name).unwrap();
            let spec = space.network(&space.largest(), 10).unwrap();
            let (network, besides) = quantised(&spec, 3, Engine::OnnxRuntime).unwrap();
            network.check().unwrap();
            let graph = Graph::of(&spec);
            let rounded = Rule::for_engine(&graph, &HashSet::new(), Engine::OnnxRuntime).rounded;
            let mut relus = 0;
            for ((node, name), rounded) in graph.nodes().iter().zip(node_names(&graph)).zip(rounded) {
                let scale = network.values.get(&name).or(besides.get(&name));
                assert_eq!(scale.is_some(), rounded, "{name}");
                if let (Op::Activation(Activation::Relu), Some(scale)) = (node.op, scale) {
                    assert_eq!(scale.zero_point, 0, "{name}");
                    relus += 1;
                }
            }
            assert!(relus > 2);
        }
    }
}
