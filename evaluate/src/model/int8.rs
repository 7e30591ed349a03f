//! Model folders in int8: the layers' weights in `model.safetensors`, the values' scales in `config.json`.
//!
//! An int8 layer NAME has `NAME.weight` (I8, `[out, in / groups, kernel, kernel]`), `NAME.scales` (F32) and `NAME.bias`
//! (I32); a layer that stays f32 has `NAME.weight` (F16 if that holds each exactly, otherwise F32) and `NAME.bias`
//! (F32). Batch norm is folded into all of them.

use super::tensors::serialized;
use super::{ModelConfig, NumberType, WEIGHTS_FILE, load_config, write};
use crate::quantise::{Int8Layer, QuantisedLayer, QuantisedNetwork};
use crate::{Error, Result};
use half::f16;
use ofa_supernet::files;
use ofa_supernet::graph::Graph;
use ofa_supernet::lock::{self, Sharing};
use safetensors::tensor::{Dtype, SafeTensors};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Reads the configuration and the network of an int8 model's folder.
///
/// # Errors
/// A missing file, an invalid configuration or header, a model of another number type, or tensors that do not fit the
/// network; each with the file's path.
pub fn load_quantised(folder: &Path) -> Result<(ModelConfig, QuantisedNetwork)> {
    let _lock = lock::wait(folder, Sharing::Shared);
    read_quantised(folder)
}

/// [`load_quantised`] for callers that hold the folder's lock.
pub(crate) fn read_quantised(folder: &Path) -> Result<(ModelConfig, QuantisedNetwork)> {
    let config = load_config(folder)?;
    let path = folder.join(WEIGHTS_FILE);
    let Some(quantisation) = &config.quantisation else {
        let message = format!("the model is {}; quantise it with: ofa quantise", config.dtype);
        return Err(ofa_supernet::Error::format(&path, message).into());
    };
    let bytes = files::read_bytes(&path)?;
    let layers = decode(&bytes, &config).map_err(|e| e.at(&path))?;
    let network = QuantisedNetwork { spec: config.network.clone(), layers, values: quantisation.values.clone() };
    network.check().map_err(|e| e.at(&path))?;
    Ok((config, network))
}

/// Writes an int8 model's folder, as [`save`](super::save) does. The configuration's network and scales are those of
/// `network`.
///
/// # Errors
/// As for [`save`](super::save).
pub fn save_quantised(folder: &Path, config: &ModelConfig, network: &QuantisedNetwork) -> Result<()> {
    network.check()?;
    let path = folder.join(WEIGHTS_FILE);
    let held = config.quantisation.as_ref().is_some_and(|quantisation| quantisation.values == network.values);
    if !held || config.network != network.spec || config.dtype != NumberType::Int8 {
        return Err(Error::Network("the configuration is not that of the quantised network".into()));
    }
    let bytes = encode(network).map_err(|message| ofa_supernet::Error::format(&path, message))?;
    write(folder, config, &bytes)
}

fn decode(bytes: &[u8], config: &ModelConfig) -> Result<BTreeMap<String, QuantisedLayer>> {
    let broken = |e| Error::tensor("model.safetensors", format!("not a valid safetensors file: {e}"));
    let file = SafeTensors::deserialize(bytes).map_err(broken)?;
    let graph = Graph::of(&config.network);
    let shapes: HashMap<String, Vec<usize>> = graph.tensor_shapes().into_iter().collect();
    let (mut layers, mut read) = (BTreeMap::new(), 0);
    for slot in graph.slots() {
        let name = graph.name(slot);
        let Some(shape) = shapes.get(&format!("{name}.weight")).filter(|shape| shape.len() > 1) else { continue };
        let stored = file.tensor(&format!("{name}.weight")).map(|view| view.dtype());
        let int8 = stored.as_ref().is_ok_and(|dtype| *dtype == Dtype::I8);
        let tensor = |part: &str, dtype: Dtype, shape: &[usize]| {
            let name = format!("{name}.{part}");
            let view = file.tensor(&name).map_err(|_| Error::tensor(&name, "is missing"))?;
            if view.dtype() != dtype || view.shape() != shape {
                let found = format!("{:?} {:?}", view.dtype(), view.shape());
                return Err(Error::tensor(&name, format!("is {found}; the network needs {dtype:?} {shape:?}")));
            }
            Ok(view.data())
        };
        let out = &shape[..1];
        let layer = if int8 {
            QuantisedLayer::Int8(Int8Layer {
                weight: tensor("weight", Dtype::I8, shape)?.iter().map(|&byte| byte.cast_signed()).collect(),
                scales: floats(tensor("scales", Dtype::F32, out)?),
                bias: tensor("bias", Dtype::I32, out)?.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b)).collect(),
            })
        } else {
            QuantisedLayer::F32 {
                weight: match stored {
                    Ok(Dtype::F16) => halves(tensor("weight", Dtype::F16, shape)?),
                    _ => floats(tensor("weight", Dtype::F32, shape)?),
                },
                bias: floats(tensor("bias", Dtype::F32, out)?),
            }
        };
        read += if int8 { 3 } else { 2 };
        layers.insert(name, layer);
    }
    if file.len() > read {
        let own = |name: &&str| match name.rsplit_once('.') {
            Some((layer, "weight" | "bias")) => layers.contains_key(layer),
            Some((layer, "scales")) => matches!(layers.get(layer), Some(QuantisedLayer::Int8(_))),
            _ => false,
        };
        let mut unknown: Vec<&str> = file.names().into_iter().filter(|name| !own(name)).collect();
        unknown.sort_unstable();
        return Err(Error::tensor(unknown.first().copied().unwrap_or_default(), "does not belong to the network"));
    }
    Ok(layers)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

fn halves(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect()
}

fn encode(network: &QuantisedNetwork) -> Result<Vec<u8>, String> {
    let shapes: HashMap<String, Vec<usize>> = Graph::of(&network.spec).tensor_shapes().into_iter().collect();
    let mut tensors = Vec::with_capacity(3 * network.layers.len());
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    for (name, layer) in &network.layers {
        let shape = shapes.get(&format!("{name}.weight")).cloned().unwrap_or_default();
        let out = vec![shape[0]];
        let mut push = |part: &str, dtype, shape: &[usize], data| {
            tensors.push((format!("{name}.{part}"), dtype, shape.to_vec(), data));
        };
        match layer {
            QuantisedLayer::Int8(layer) => {
                push("weight", Dtype::I8, &shape, layer.weight.iter().map(|weight| weight.cast_unsigned()).collect());
                push("scales", Dtype::F32, &out, bytes(&layer.scales));
                push("bias", Dtype::I32, &out, layer.bias.iter().flat_map(|bias| bias.to_le_bytes()).collect());
            }
            QuantisedLayer::F32 { weight, bias } => {
                if weight.iter().all(|&weight| f16::from_f32(weight).to_f32() == weight) {
                    let halves = weight.iter().flat_map(|&weight| f16::from_f32(weight).to_le_bytes());
                    push("weight", Dtype::F16, &shape, halves.collect());
                } else {
                    push("weight", Dtype::F32, &shape, bytes(weight));
                }
                push("bias", Dtype::F32, &out, bytes(bias));
            }
        }
    }
    serialized(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Model;
    use crate::model::{CONFIG_FILE, Normalisation, Quantisation, load_weights};
    use crate::quantise::{Engine, Scale, reference};
    use ofa_supernet::space::preset;
    use std::collections::BTreeSet;
    use std::fs;

    fn example() -> (ModelConfig, QuantisedNetwork) {
        let space = preset("tiny").unwrap();
        let subnet = space.smallest();
        let spec = space.network(&subnet, 2).unwrap();
        let network = QuantisedNetwork::random(&spec, &["conv_stem".to_string()].into(), 5).unwrap();
        let labels = ["cat", "dog"].map(String::from).to_vec();
        let normalisation = Normalisation { mean: [0.5; 3], std: [0.25; 3] };
        let mut config = ModelConfig::new(&space.name, &subnet, spec, labels, normalisation, NumberType::Int8);
        config.quantisation = Some(Quantisation {
            engine: Engine::Ofa,
            images: 100,
            weight_bits: 8,
            keep_f32: BTreeSet::new(),
            f32_model: None,
            finetuned: None,
            tried_finetuning: None,
            values: network.values.clone(),
            engine_values: BTreeMap::from([("blocks.1.0.bn1".to_string(), Scale { scale: 0.1, zero_point: 3 })]),
        });
        (config, network)
    }

    #[test]
    fn a_saved_folder_loads_and_computes_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (config, mut network) = example();
        // Weights that 2 bytes hold.
        if let Some(QuantisedLayer::F32 { weight, .. }) = network.layers.get_mut("conv_stem") {
            weight.iter_mut().for_each(|weight| *weight = f16::from_f32(*weight).to_f32());
        }
        save_quantised(folder.path(), &config, &network).unwrap();
        assert_eq!(load_quantised(folder.path()).unwrap(), (config, network.clone()));
        let images = vec![0.5; 2 * 16 * 16 * 3];
        let expected = reference::run(&network, &images, 2).unwrap();
        assert_eq!(Model::load(folder.path()).unwrap().network().run(&images, 2).unwrap(), expected);
        let message = load_weights(folder.path()).unwrap_err().to_string();
        assert!(message.contains("the model is int8"), "{message}");
    }

    #[test]
    fn bad_folders_are_one_sentence_with_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let (config, network) = example();
        let save = |network: &QuantisedNetwork| {
            let config = ModelConfig {
                quantisation: config.quantisation.clone().map(|q| Quantisation { values: network.values.clone(), ..q }),
                ..config.clone()
            };
            save_quantised(folder.path(), &config, network)
        };
        let mut broken = network.clone();
        broken.layers.remove("classifier");
        assert!(save(&broken).unwrap_err().to_string().contains("classifier.weight"));
        assert!(
            save_quantised(folder.path(), &ModelConfig { dtype: NumberType::F32, ..config.clone() }, &network).is_err()
        );
        save(&network).unwrap();
        let refused = |file: &str, part: &str| {
            let message = Model::load(folder.path()).err().expect(part).to_string();
            assert!(message.contains(file) && message.contains(part) && !message.contains('\n'), "{message}");
        };
        let (config_path, weights_path) = (folder.path().join(CONFIG_FILE), folder.path().join(WEIGHTS_FILE));
        let (text, bytes) = (fs::read_to_string(&config_path).unwrap(), fs::read(&weights_path).unwrap());
        for (old, new, part) in [
            ("\"int8\"", "\"f32\"", "'quantisation' belongs to int8 models"),
            ("\"images\": 100", "\"images\": 100, \"colour\": 3", "colour"),
            ("\"scale\": 0.1", "\"scale\": -0.1", "blocks.1.0.bn1"),
        ] {
            assert!(text.contains(old), "{old}");
            fs::write(&config_path, text.replacen(old, new, 1)).unwrap();
            refused(CONFIG_FILE, part);
        }
        fs::write(&config_path, text.replacen("\"blocks.1.0.bn3\"", "\"nothing\"", 1)).unwrap();
        refused(WEIGHTS_FILE, "'blocks.1.0.bn3' has no scale");
        fs::write(&config_path, &text).unwrap();
        for (old, new, part) in [
            ("classifier.scales", "classifier.scalez", "classifier.scales"),
            ("\"I32\"", "\"F32\"", "the network needs I32"),
        ] {
            let place = bytes.windows(old.len()).position(|window| window == old.as_bytes()).unwrap();
            let mut broken = bytes.clone();
            broken[place..place + old.len()].copy_from_slice(new.as_bytes());
            fs::write(&weights_path, &broken).unwrap();
            refused(WEIGHTS_FILE, part);
        }
        let file = SafeTensors::deserialize(&bytes).unwrap();
        // The first convolution is in f32, so that it has no scales.
        for surplus in ["classifier.zero_point", "conv_stem.scales", "nothing.weight"] {
            let held = file
                .iter()
                .map(|(name, view)| (name.to_string(), view.dtype(), view.shape().to_vec(), view.data().to_vec()));
            let more = held.chain([(surplus.to_string(), Dtype::U8, vec![1], vec![0])]).collect();
            fs::write(&weights_path, serialized(more).unwrap()).unwrap();
            refused(WEIGHTS_FILE, &format!("'{surplus}'"));
        }
        fs::write(&weights_path, &bytes[..50]).unwrap();
        refused(WEIGHTS_FILE, "safetensors");
    }
}
