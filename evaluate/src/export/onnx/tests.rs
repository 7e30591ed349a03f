use super::proto::{Extent, Model, Value};
use super::*;
use crate::export::Parameters;
use crate::model::Quantisation;
use crate::model::{Normalisation, NumberType};
use crate::quantise::{Engine, QuantisedNetwork, Rule, Scale, node_names};
use crate::runtime::random_weights;
use ofa_supernet::space::{PRESETS, preset};
use std::collections::{BTreeSet, HashMap, HashSet};

fn example(space: &str, labels: &[&str]) -> (ModelConfig, Parameters) {
    let space = preset(space).unwrap();
    let subnet = space.middle();
    let network = space.network(&subnet, labels.len()).unwrap();
    let weights = random_weights(&network, 5).unwrap();
    let labels = labels.iter().map(|label| label.to_string()).collect();
    let normalisation = Normalisation { mean: [0.5, 0.25, 0.125], std: [0.5; 3] };
    let config = ModelConfig::new(&space.name, &subnet, network, labels, normalisation, NumberType::F32);
    (config, Parameters::F32(weights))
}

fn exported(space: &str, options: &Options) -> Model {
    let (config, weights) = example(space, &["cat", "dog"]);
    Model::decode(&convert(&config, &weights, options).unwrap()[..]).unwrap()
}

/// An int8 model with scales for all its values.
fn int8_example(space: &str) -> (ModelConfig, Parameters) {
    let (config, _) = example(space, &["cat", "dog"]);
    let network = QuantisedNetwork::random(&config.network, &["classifier".to_string()].into(), 5).unwrap();
    let graph = Graph::of(&config.network);
    let names = node_names(&graph).into_iter().zip(Rule::of(&graph, &Default::default()).rounded);
    let others = names.filter(|(_, rounded)| !rounded).map(|(name, _)| (name, Scale { scale: 0.1, zero_point: 128 }));
    let (values, engine_values) = (network.values.clone(), others.collect());
    let quantisation = Quantisation {
        engine: Engine::Ofa,
        images: 100,
        weight_bits: 8,
        keep_f32: BTreeSet::new(),
        f32_model: None,
        finetuned: None,
        tried_finetuning: None,
        values,
        engine_values,
    };
    let config = ModelConfig { dtype: NumberType::Int8, quantisation: Some(quantisation), ..config };
    (config, Parameters::Int8(network))
}

fn shape(value: &Value) -> Vec<String> {
    let shape = value.r#type.as_ref().unwrap().tensor_type.as_ref().unwrap().shape.as_ref().unwrap();
    let extent = |dim: &proto::Dimension| match dim.value.as_ref().unwrap() {
        Extent::Fixed(extent) => extent.to_string(),
        Extent::Named(name) => name.clone(),
    };
    shape.dim.iter().map(extent).collect()
}

/// Checks what [`super`] promises of every graph.
fn check(name: &str, model: &Model) {
    let graph = model.graph.as_ref().unwrap();
    let constants: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(constants.len(), graph.initializer.len(), "{name}");
    assert!(graph.input.iter().all(|input| !constants.contains(input.name.as_str())), "{name}");
    let mut names: HashSet<&str> = HashSet::new();
    let mut uses: HashMap<&str, usize> = HashMap::new();
    let mut known: HashSet<&str> = graph.input.iter().map(|input| input.name.as_str()).collect();
    for node in &graph.node {
        for input in &node.input {
            *uses.entry(input).or_default() += 1;
            assert!(constants.contains(input.as_str()) || known.contains(input.as_str()), "{name}: {input} comes late");
        }
        assert!(node.attribute.iter().all(|attribute| attribute.name != "ceil_mode"), "{name}");
        assert!(node.output.iter().all(|output| known.insert(output)), "{name}: {:?} twice", node.output);
        assert!(names.insert(node.name.as_str()), "{name}: two nodes {}", node.name);
        assert_ne!(node.op_type, "BatchNormalization", "{name}");
    }
    assert!(
        constants.iter().all(|constant| uses.get(constant) == Some(&1)),
        "{name}: a constant has other uses than one"
    );
    let typed: HashSet<&str> = graph.value_info.iter().chain(&graph.output).map(|value| value.name.as_str()).collect();
    assert!(graph.node.iter().all(|node| typed.contains(node.output[0].as_str())), "{name}: a value without a shape");
    let good = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "._".contains(c))
    };
    assert!(known.iter().chain(&constants).chain(&names).all(|name| good(name)), "{name}");
    // One table of names holds all of them.
    assert!(names.is_disjoint(&known) && names.is_disjoint(&constants) && known.is_disjoint(&constants), "{name}");
}

#[test]
fn graphs_keep_the_rules_that_engines_depend_on() {
    for space in PRESETS {
        for opset in [13, 14, 18, 21] {
            let (softmax, preprocessing) = (opset == 18, opset == 21);
            let options = Options { opset: Some(opset), softmax, preprocessing, ..Options::default() };
            let model = exported(space, &options);
            check(&format!("{space}, opset {opset}"), &model);
            let hard = model.graph.unwrap().node.iter().any(|node| node.op_type.starts_with("Hard"));
            let (config, _) = example(space, &["cat", "dog"]);
            assert_eq!(hard, opset > 13 && config.network.hidden_channels.is_some(), "{space}, opset {opset}");
        }
    }
}

#[test]
fn int8_graphs_keep_the_rules_too_and_round_where_their_engine_wants_it() {
    for space in ["tiny", "resnet-tiny", "attentive-tiny"] {
        for engine in [Engine::OnnxRuntime, Engine::OpenVino, Engine::TensorRt] {
            for opset in [13, 17, 21] {
                let (config, parameters) = int8_example(space);
                let options = Options { opset: Some(opset), engine, ..Options::default() };
                let model = Model::decode(&convert(&config, &parameters, &options).unwrap()[..]).unwrap();
                check(&format!("{space}, {engine:?}, opset {opset}"), &model);
                check_int8(&format!("{space}, {engine:?}, opset {opset}"), &model.graph.unwrap(), engine);
            }
        }
    }
}

#[test]
fn layers_that_were_kept_in_f32_are_so_for_every_engine() {
    let (mut config, parameters) = int8_example("tiny");
    let kept: BTreeSet<String> =
        ["blocks.2.0.se.conv_reduce", "blocks.2.0.se.conv_expand"].map(String::from).into_iter().collect();
    let Parameters::Int8(network) = &parameters else { panic!("the example is int8") };
    assert!(kept.iter().all(|name| network.layers.contains_key(name)), "{:?}", network.layers.keys());
    let integers = |config: &ModelConfig| {
        let options = Options { engine: Engine::OnnxRuntime, ..Options::default() };
        let graph = Model::decode(&convert(config, &parameters, &options).unwrap()[..]).unwrap().graph.unwrap();
        let is_kept = |name: &str| kept.iter().any(|layer| name.starts_with(layer.as_str()));
        let of_kept = graph.initializer.iter().filter(|tensor| is_kept(&tensor.name));
        of_kept.filter(|tensor| tensor.data_type == proto::Element::Int8 as i32).count()
    };
    assert!(integers(&config) > 0);
    config.quantisation.as_mut().unwrap().keep_f32 = kept.clone();
    assert_eq!(integers(&config), 0);
}

/// Checks what engines depend on in graphs with integers.
fn check_int8(name: &str, graph: &proto::Graph, engine: Engine) {
    let constants: HashMap<&str, &proto::Tensor> =
        graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let makers: HashMap<&str, &proto::Node> = graph.node.iter().map(|node| (node.output[0].as_str(), node)).collect();
    let readers = |value: &str| graph.node.iter().filter(|node| node.input.iter().any(|input| input == value)).count();
    let operator = |value: &str| makers.get(value).map_or("", |node| node.op_type.as_str());
    let mut convolutions = 0;
    for node in &graph.node {
        let axis = node.attribute.iter().find(|attribute| attribute.name == "axis").and_then(|axis| axis.i);
        match node.op_type.as_str() {
            "QuantizeLinear" | "DequantizeLinear" => {
                let [scale, zero] = [1, 2].map(|place| constants[node.input[place].as_str()]);
                assert_eq!(scale.dims, zero.dims, "{name}: {}", node.name);
                let of_weights = constants.contains_key(node.input[0].as_str());
                assert_eq!((axis, scale.dims.len()), if of_weights { (Some(0), 1) } else { (None, 0) }, "{name}");
                assert!(!of_weights || zero.raw_data.iter().all(|byte| *byte == 0), "{name}: {}", node.name);
                let int8 = zero.data_type == i32::from(proto::Element::Int8);
                if engine == Engine::TensorRt {
                    assert!(int8 && zero.raw_data.iter().all(|byte| *byte == 0), "{name}: {}", node.name);
                } else if engine == Engine::OnnxRuntime && !of_weights {
                    assert!(!int8, "{name}: {}", node.name);
                }
                // An activation in parts reads its input twice.
                assert!(node.op_type == "QuantizeLinear" || readers(&node.output[0]) <= 2, "{name}: {}", node.name);
            }
            "Conv" if operator(&node.input[1]) == "DequantizeLinear" => {
                convolutions += 1;
                assert_eq!(operator(&node.input[0]), "DequantizeLinear", "{name}: {}", node.name);
                let bias = if engine == Engine::OnnxRuntime { "DequantizeLinear" } else { "" };
                assert_eq!(operator(&node.input[2]), bias, "{name}: {}", node.name);
                let next = graph.node.iter().find(|next| next.input.contains(&node.output[0])).unwrap();
                match (engine, next.op_type.as_str()) {
                    (_, "QuantizeLinear" | "Relu" | "Clip") => {}
                    (Engine::OnnxRuntime, other) => panic!("{name}: {other} after {}", node.name),
                    (_, "HardSwish" | "Sigmoid" | "Add" | "Mul") => {}
                    (_, other) => panic!("{name}: {other} after {}", node.name),
                }
            }
            _ => {}
        }
    }
    assert!(convolutions > 5, "{name}: {convolutions}");
}

#[test]
fn input_and_output_are_as_asked() {
    let declared = |options: &Options| {
        let model = exported("tiny", options);
        let graph = model.graph.as_ref().unwrap();
        let [input, output] =
            [&graph.input[0], &graph.output[0]].map(|value| (value.name.clone(), shape(value).join("x")));
        (model.ir_version, model.opset_import[0].version, input.0, input.1, output.0, output.1)
    };
    let texts = |input: &str, shape: &str, output: &str, classes: &str| {
        (input.to_string(), shape.to_string(), output.to_string(), classes.to_string())
    };
    let default = declared(&Options::default());
    let resolution = preset("tiny").unwrap().middle().resolution;
    let map = format!("3x{resolution}x{resolution}");
    assert_eq!((default.0, default.1), (8, 17));
    assert_eq!((default.2, default.3, default.4, default.5), texts("input", &format!("1x{map}"), "logits", "1x2"));
    let fixed = declared(&Options { opset: Some(19), batch: Batch::Fixed(8), softmax: true, ..Options::default() });
    assert_eq!((fixed.0, fixed.1), (9, 19));
    assert_eq!((fixed.2, fixed.3, fixed.4, fixed.5), texts("input", &format!("8x{map}"), "probabilities", "8x2"));
    let open = declared(&Options { opset: Some(21), batch: Batch::Dynamic, preprocessing: true, ..Options::default() });
    let image = format!("batchx{resolution}x{resolution}x3");
    assert_eq!((open.0, open.1), (10, 21));
    assert_eq!((open.2, open.3, open.4, open.5), texts("input", &image, "logits", "batchx2"));
}

#[test]
fn labels_and_normalisation_are_in_the_metadata() {
    let (config, weights) = example("tiny", &["it's", "a \"b\" c"]);
    let model = model(&config, &weights, &Options::default()).unwrap();
    let entries: HashMap<&str, &str> =
        model.metadata_props.iter().map(|entry| (entry.key.as_str(), entry.value.as_str())).collect();
    assert_eq!(entries["names"], r#"{0: "it's", 1: "a \"b\" c"}"#);
    assert_eq!(entries["model_info labels"], "it's a_\"b\"_c");
    assert_eq!((entries["stride"], entries["batch"], entries["model_info resize_type"]), ("32", "1", "crop"));
    assert_eq!(entries["mean"], "[0.5, 0.25, 0.125]");
    assert_eq!(entries["model_info mean_values"], "127.5 63.75 31.875");
    assert_eq!(entries["Image.BitmapPixelFormat"], "Rgb8");
    // A caller that normalised as these say would normalise twice.
    let inside = super::model(&config, &weights, &Options { preprocessing: true, ..Options::default() }).unwrap();
    assert!(inside.metadata_props.iter().all(|entry| !entry.key.contains("mean") && !entry.key.contains("std")));
}

#[test]
fn the_file_is_little_larger_than_the_weights() {
    for space in ["tiny", "mbv3-w1.0", "resnet50d"] {
        let (config, weights) = example(space, &["cat", "dog"]);
        let bytes = convert(&config, &weights, &Options::default()).unwrap().len() as f64;
        let numbers = crate::cost::parameters(&config.network) as f64;
        assert!(bytes < 1.03 * 4.0 * numbers + 200e3, "{space}: {bytes} bytes for {numbers} numbers");
    }
}

#[test]
fn files_of_all_formats_go_with_the_model() {
    for format in crate::export::FORMATS {
        assert_eq!(crate::model::file_role(format.file), Some(crate::model::FileRole::Derived), "{}", format.name);
    }
}

#[test]
fn options_out_of_range_are_refused() {
    let (config, weights) = example("tiny", &["cat", "dog"]);
    let refused = |options: Options, part: &str| {
        let message = convert(&config, &weights, &options).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    };
    refused(Options { opset: Some(12), ..Options::default() }, "opset 12");
    refused(Options { opset: Some(22), ..Options::default() }, "from 13 to 21");
    refused(Options { batch: Batch::Fixed(0), ..Options::default() }, "batch of 0");
}
