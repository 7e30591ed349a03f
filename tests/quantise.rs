//! `ofa quantise` through the binary: an int8 model of each family classifies as its f32 model does.

mod common;

use common::{fails, finished_resnet_run, finished_run, misused, succeeds};
use ofa_evaluate::Model;
use ofa_evaluate::model::{NumberType, load_config, load_quantised};
use ofa_evaluate::quantise::{QuantisedLayer, reference};
use ofa_supernet::data::{DataOptions, Dataset};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Test images of the built-in data as the model takes them.
fn images(model: &Path, count: usize) -> Vec<f32> {
    let options = DataOptions { builtin_train: 40, builtin_test: count, ..DataOptions::default() };
    let config = load_config(model).unwrap();
    let data = Dataset { normalisation: config.normalisation.clone(), ..Dataset::open("builtin", &options).unwrap() };
    let indices: Vec<usize> = (0..count).collect();
    data.evaluation_batch(&data.test, &indices, config.network.resolution).unwrap().images
}

/// Share of images to which both models give the same class.
fn agreement(a: &Path, b: &Path, count: usize) -> f64 {
    let images = images(a, count);
    let [a, b] = [a, b].map(|folder| {
        let mut model = Model::load(folder).unwrap();
        let classes = model.config().network.classes;
        let logits = model.network().run(&images, count).unwrap().chunks(classes);
        let largest = |logits: &[f32]| (0..classes).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        logits.map(largest).collect::<Vec<_>>()
    });
    a.iter().zip(&b).filter(|(a, b)| a == b).count() as f64 / count as f64
}

#[test]
fn int8_models_classify_as_their_f32_models_do() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let models = ["smallest", "largest"].map(|name| folder.join("run/models").join(name));
    let quantise = ["quantise", "run/models/smallest", "run/models/largest", "--data", "builtin", "--images", "200"];
    let out = succeeds(folder, &quantise);
    for (name, model) in ["smallest", "largest"].into_iter().zip(&models) {
        assert!(out.contains(&format!("run/models/{name}-int8: ")), "{out}");
        let int8 = model.with_file_name(format!("{name}-int8"));
        let (config, network) = load_quantised(&int8).unwrap();
        assert_eq!((config.dtype, config.quantisation.unwrap().images), (NumberType::Int8, 200));
        assert!(network.layers.values().filter(|layer| matches!(layer, QuantisedLayer::F32 { .. })).count() >= 2);
        let bytes = |folder: &Path| fs::metadata(folder.join("model.safetensors")).unwrap().len();
        assert!(2 * bytes(&int8) < bytes(model), "{} {}", bytes(&int8), bytes(model));
        // The file adds a header.
        let tensors = ofa_evaluate::cost::int8_bytes(&config.network);
        assert!((tensors..tensors + 20_000).contains(&bytes(&int8)), "{} {tensors}", bytes(&int8));
        let same = agreement(model, &int8, 300);
        assert!(same > 0.85, "{name}: {same}");
        let images = images(&int8, 20);
        let expected = reference::run(&network, &images, 20).unwrap();
        assert_eq!(Model::load(&int8).unwrap().network().run(&images, 20).unwrap(), expected);
        let card = fs::read_to_string(int8.join("README.md")).unwrap();
        assert!(card.contains("| weights | int8, "), "{card}");
    }
    // Any number of threads gives the same file.
    let weights = models[1].with_file_name("largest-int8").join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    succeeds(folder, &[&["--threads", "1"], &quantise[..]].concat());
    assert!(fs::read(&weights).unwrap() == bytes);
    let bench = ["bench", "run/models/largest-int8", "run/models/largest", "--data", "builtin", "--csv"];
    let out = succeeds(folder, &bench);
    assert!(out.lines().count() == 3 && out.contains("int8"), "{out}");
}

#[test]
fn a_resnet_is_quantised_too_and_options_do_what_they_say() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_resnet_run(folder);
    let extract = ["extract", "--run", "run", "--subnet", "largest", "--int8", "--recalibration", "50"];
    succeeds(folder, &extract);
    let models = folder.join("run/models");
    assert!(agreement(&models.join("largest"), &models.join("largest-int8"), 200) > 0.85);
    let quantise = ["quantise", "run/models/largest", "--data", "builtin", "--images", "100", "--out", "small/seven"];
    succeeds(folder, &[&quantise[..], &["--weight-bits", "7", "--keep-f32", "fc"]].concat());
    let (config, network) = load_quantised(&folder.join("small/seven")).unwrap();
    assert_eq!(config.quantisation.unwrap().weight_bits, 7);
    for (name, layer) in &network.layers {
        match layer {
            QuantisedLayer::Int8(layer) => assert!(layer.weight.iter().all(|weight| weight.abs() <= 63), "{name}"),
            QuantisedLayer::F32 { .. } => assert_eq!(name, "fc"),
        }
    }
    assert!(network.layers.contains_key("fc"));
}

#[test]
fn exports_follow_the_engine_and_come_with_images() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    succeeds(folder, &["quantise", "run/models/largest", "--data", "builtin", "--images", "100"]);
    let int8 = folder.join("run/models/largest-int8");
    let (batch, size) = (60, load_config(&int8).unwrap().network.resolution);
    let images = images(&int8, batch);
    let expected = Model::load(&int8).unwrap().network().run(&images, batch).unwrap().to_vec();
    let plane = size * size;
    let planes = planes(&images, size);
    let mut files = Vec::new();
    for engine in ["onnxruntime", "openvino", "tensorrt"] {
        succeeds(folder, &["export", "run/models/largest-int8", "--for", engine, "--dynamic-batch"]);
        files.push(fs::read(int8.join("model.onnx")).unwrap());
        let model = rten::Model::load_file(int8.join("model.onnx")).unwrap();
        let input = rten::Value::from_shape([batch, 3, size, size], planes.clone()).unwrap();
        let (_, found) = model.run_one(input.into(), None).unwrap().into_shape_vec::<f32, 2>().unwrap();
        let power: f32 = expected.iter().map(|x| x * x).sum();
        let noise: f32 = expected.iter().zip(&found).map(|(x, y)| (x - y) * (x - y)).sum();
        assert!(noise < 0.1 * power, "{engine}: {noise} of {power}");
    }
    assert!(files[0] != files[1] && files[1] != files[2]);
    let calibration = ["export", "run/models/largest", "--calibration", "40", "--data", "builtin"];
    let out = succeeds(folder, &calibration);
    assert!(out.contains("run/models/largest/calibration.npy"), "{out}");
    let bytes = fs::read(folder.join("run/models/largest/calibration.npy")).unwrap();
    assert_eq!(bytes.len(), 128 + 40 * 3 * plane * 4);
    assert!(bytes.starts_with(b"\x93NUMPY"));
}

/// Runs `tests/int8.py` in the Python that `OFA_PYTHON` names, on the models of the quickstart or on the model folders
/// that `OFA_INT8_MODELS` lists, separated by commas, with the test images of `OFA_INT8_DATA`.
#[test]
#[ignore = "needs Python with onnx, onnxruntime, openvino, torch and timm"]
fn other_engines_classify_as_this_program_does() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let given = std::env::var("OFA_INT8_MODELS").ok();
    let models: Vec<PathBuf> = match &given {
        Some(list) => list.split(',').map(PathBuf::from).collect(),
        None => ["smallest", "largest"].map(|name| folder.join("run/models").join(name)).to_vec(),
    };
    let data = std::env::var("OFA_INT8_DATA").unwrap_or("builtin".into());
    let images = Dataset::open(&data, &DataOptions { builtin_test: 1000, ..DataOptions::default() }).unwrap();
    for (index, model) in models.iter().enumerate() {
        let case = folder.join("cases").join(format!("{index}-{}", model.file_name().unwrap().to_string_lossy()));
        write_case(folder, &case, model, &data, &images);
    }
    let python = std::env::var("OFA_PYTHON").unwrap_or("python3".into());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/int8.py");
    let output = Command::new(python).arg(script).arg(folder.join("cases")).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    println!("{out}");
    let compared = format!("{} int8 models agree", models.len());
    assert!(out.lines().last().is_some_and(|line| line == compared), "{out}\n{err}");
}

/// Quantises and exports a model, and writes its input and output where `tests/int8.py` finds them.
fn write_case(folder: &Path, case: &Path, model: &Path, data: &str, images: &Dataset) {
    let path = |name: &str| case.join(name).to_str().unwrap().to_string();
    let copy = case.join("f32");
    fs::create_dir_all(&copy).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(model.join(file), copy.join(file)).unwrap();
    }
    let export = ["export", &path("f32"), "--calibration", "300", "--data", data, "--out", &path("f32.onnx")];
    succeeds(folder, &export);
    fs::rename(copy.join("calibration.npy"), case.join("calibration.npy")).unwrap();
    for engine in ["onnxruntime", "openvino"] {
        let target = path(engine);
        let quantise = ["quantise", &path("f32"), "--data", data, "--images", "300", "--for", engine, "--out", &target];
        println!("{}", succeeds(folder, &quantise));
        succeeds(folder, &["export", &target, "--out", &path(&format!("{engine}.onnx"))]);
    }
    let config = load_config(&copy).unwrap();
    let resolution = config.network.resolution;
    let images = Dataset { normalisation: config.normalisation, ..images.clone() };
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    let mut models =
        ["f32", "onnxruntime", "openvino"].map(|name| (name, Model::load(case.join(name)).unwrap(), vec![]));
    for indices in (0..images.test.len()).collect::<Vec<_>>().chunks(100) {
        let batch = images.evaluation_batch(&images.test, indices, resolution).unwrap();
        pixels.extend(planes(&batch.images, resolution).iter().flat_map(|value| value.to_le_bytes()));
        labels.extend(batch.labels.iter().flat_map(|label| label.to_le_bytes()));
        for (_, model, bytes) in &mut models {
            let logits = model.network().run(&batch.images, indices.len()).unwrap();
            bytes.extend(logits.iter().flat_map(|value| value.to_le_bytes()));
        }
    }
    fs::write(case.join("images.bin"), pixels).unwrap();
    fs::write(case.join("labels.bin"), labels).unwrap();
    for (name, _, bytes) in models {
        fs::write(case.join(format!("{name}.bin")), bytes).unwrap();
    }
    let description = serde_json::json!({ "resolution": resolution, "agreement": 0.995 });
    fs::write(case.join("case.json"), description.to_string()).unwrap();
}

/// Images `[batch, height, width, 3]` as `[batch, 3, height, width]`.
fn planes(images: &[f32], resolution: usize) -> Vec<f32> {
    let plane = resolution * resolution;
    let of_image = |image: &[f32]| (0..3 * plane).map(|i| image[i % plane * 3 + i / plane]).collect::<Vec<f32>>();
    images.chunks(3 * plane).flat_map(of_image).collect()
}

#[test]
fn bad_input_is_one_sentence_and_leaves_the_old_folder() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let quantise = ["quantise", "run/models/smallest", "--data", "builtin"];
    succeeds(folder, &[&quantise[..], &["--images", "64"]].concat());
    let int8 = folder.join("run/models/smallest-int8/model.safetensors");
    let good = fs::read(&int8).unwrap();
    fails(folder, &[&quantise[..], &["--images", "31"]].concat(), &["--images 31", "at least 32"]);
    fails(folder, &[&quantise[..], &["--keep-f32", "conv_x"]].concat(), &["'conv_x': is no layer", "conv_stem"]);
    misused(folder, &[&quantise[..], &["--weight-bits", "4"]].concat(), &["--weight-bits"]);
    let both = ["quantise", "run/models/smallest", "run/models/largest", "--data", "builtin", "--out", "x"];
    fails(folder, &both, &["--out x", "there are 2"]);
    fails(folder, &["quantise", "run/models/smallest-int8", "--data", "builtin"], &["the model is int8"]);
    fails(folder, &["quantise", "none", "--data", "builtin"], &["none/config.json"]);
    common::write_two_classes(&folder.join("few"), 5, 1);
    fails(folder, &["quantise", "run/models/smallest", "--data", "few"], &["8 calibration images", "at least 32"]);
    let weights = folder.join("run/models/smallest/model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    let mut broken = bytes.clone();
    let end = broken.len();
    broken[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, &broken).unwrap();
    fails(folder, &quantise, &["model.safetensors", "finite"]);
    assert!(fs::read(&int8).unwrap() == good);
    fs::write(&int8, &good[..good.len() - 9]).unwrap();
    fails(folder, &["bench", "run/models/smallest-int8"], &["smallest-int8/model.safetensors", "safetensors"]);
    fails(folder, &["export", "run/models/smallest-int8"], &["smallest-int8/model.safetensors", "safetensors"]);
}
