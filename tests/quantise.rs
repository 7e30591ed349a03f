//! `ofa quantise` through the binary: an int8 model of each family classifies as its f32 model does.

mod common;

use common::{changed, fails, finished_resnet_run, finished_run, misused, succeeds};
use ofa_evaluate::Model;
use ofa_evaluate::model::{NumberType, load_config, load_quantised, load_weights};
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
    let quantisation = config.quantisation.unwrap();
    assert_eq!((quantisation.weight_bits, quantisation.keep_f32), (7, ["fc".to_string()].into()));
    for (name, layer) in &network.layers {
        match layer {
            QuantisedLayer::Int8(layer) => assert!(layer.weight.iter().all(|weight| weight.abs() <= 63), "{name}"),
            QuantisedLayer::F32 { .. } => assert_eq!(name, "fc"),
        }
    }
    // A layer that is kept loses nothing.
    let (_, weights) = load_weights(&models.join("largest")).unwrap();
    assert!(matches!(&network.layers["fc"], QuantisedLayer::F32 { weight, .. } if *weight == weights["fc.weight"].1));
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

/// The accuracies that fine-tuning prints: in f32, before and after it, and whether the fine-tuned integers are stored.
fn accuracies(out: &str) -> ([f64; 3], bool) {
    let line = out.lines().find(|line| line.contains("validation images")).expect(out);
    let numbers = line.split(" %").take(3).map(|part| part.rsplit(' ').next().unwrap().parse().unwrap());
    let numbers: Vec<f64> = numbers.collect();
    (numbers.try_into().unwrap(), line.ends_with("the fine-tuned integers are stored"))
}

#[test]
fn fine_tuned_integers_are_stored_if_they_are_as_accurate() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    // Long enough for an accuracy to lose.
    let config = succeeds(folder, &["config", "--preset", "tiny", "--epochs", "12", "--validation", "400"]);
    fs::write(folder.join("c.toml"), changed(&config, "builtin_train = 6000", "builtin_train = 2000")).unwrap();
    succeeds(folder, &["train", "--config", "c.toml", "--out", "run"]);
    let ends = ["--subnet", "smallest", "--subnet", "largest", "--recalibration", "300"];
    succeeds(folder, &[&["extract", "--run", "run"], &ends[..]].concat());
    let quantise = |model: &str, out: &str, rest: &[&str]| {
        let harsh = ["--images", "32", "--weight-bits", "7", "--for", "onnxruntime", "--overwrite", "--out", out];
        let harsh = [&["--data", "builtin"], &harsh[..]].concat();
        succeeds(folder, &[&["quantise", &format!("run/models/{model}")], &harsh[..], rest].concat())
    };
    let files =
        |name: &str| ["model.safetensors", "config.json"].map(|file| fs::read(folder.join(name).join(file)).unwrap());
    let tuning = ["--finetune", "0.5", "--finetune-seed", "4"];
    let mut stored = Vec::new();
    for (model, rate) in [("largest", "1e-3"), ("smallest", "1e-3"), ("smallest", "3")] {
        quantise(model, "plain", &[]);
        let out = quantise(model, "tuned", &[&tuning[..], &["--finetune-rate", rate]].concat());
        let ([exact, before, after], is_finetuned) = accuracies(&out);
        assert!(exact > 25.0 && is_finetuned == (after >= before), "{out}");
        stored.push(is_finetuned);
        let (config, network) = load_quantised(&folder.join("tuned")).unwrap();
        let quantisation = config.quantisation.unwrap();
        let epochs = [quantisation.finetuned, quantisation.tried_finetuning].map(|how| how.map(|how| how.epochs));
        assert_eq!(epochs, if is_finetuned { [Some(0.5), None] } else { [None, Some(0.5)] });
        assert_eq!(files("tuned")[0] == files("plain")[0], !is_finetuned);
        let card = fs::read_to_string(folder.join("tuned/README.md")).unwrap();
        let sentence = "fine-tuned with quantisation in the loop for 0.5 epochs";
        assert_eq!(card.contains(sentence), is_finetuned, "{card}");
        let images = images(&folder.join("tuned"), 20);
        let expected = reference::run(&network, &images, 20).unwrap();
        assert_eq!(Model::load(folder.join("tuned")).unwrap().network().run(&images, 20).unwrap(), expected);
        assert!(agreement(&folder.join("run/models").join(model), &folder.join("tuned"), 300) > 0.8);
    }
    // Steps of three times the size of each weight make nonsense.
    assert!((stored[0] || stored[1]) && !stored[2], "{stored:?}");
    for name in ["one", "two"] {
        quantise("smallest", name, &["--finetune", "0.05", "--finetune-seed", "4"]);
    }
    assert!(files("one") == files("two"));
}

#[test]
fn an_extraction_fine_tunes_the_int8_twin_too() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let extract = ["extract", "--run", "run", "--subnet", "smallest", "--int8", "--finetune", "0.5", "--overwrite"];
    let out = succeeds(folder, &extract);
    let ([_, before, after], is_finetuned) = accuracies(&out);
    let int8 = folder.join("run/models/smallest-int8");
    assert_eq!(after >= before, is_finetuned, "{out}");
    let quantisation = load_config(&int8).unwrap().quantisation.unwrap();
    let how = if is_finetuned { quantisation.finetuned } else { quantisation.tried_finetuning };
    assert_eq!(how.map(|how| how.epochs), Some(0.5));
}

#[cfg(unix)]
#[test]
fn interrupted_fine_tuning_leaves_the_old_folder() {
    use std::io::{BufRead, BufReader};
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let quantise = ["quantise", "run/models/smallest", "--data", "builtin"];
    for old in [None, Some(())] {
        if old.is_some() {
            succeeds(folder, &quantise);
        }
        let models = folder.join("run/models");
        let before = common::Snapshot::of(&models);
        let mut child = common::command(folder, &[&quantise[..], &["--finetune", "9000"]].concat()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("fine-tuning the integers of run/models/smallest")));
        assert!(common::signal("INT", child.id()));
        let rest: Vec<String> = lines.map(Result::unwrap).collect();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
        assert!(rest.iter().any(|line| line.contains("unfinished work is not written")), "{rest:?}");
        assert!(common::Snapshot::of(&models) == before);
    }
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
    for file in ["config.json", "graph.json", "model.safetensors"] {
        fs::copy(model.join(file), copy.join(file)).unwrap();
    }
    let export = ["export", &path("f32"), "--calibration", "300", "--data", data, "--out", &path("f32.onnx")];
    succeeds(folder, &export);
    fs::rename(copy.join("calibration.npy"), case.join("calibration.npy")).unwrap();
    for engine in ["onnxruntime", "openvino"] {
        let target = path(engine);
        let bits = if engines_have_dot_products() { "8" } else { "7" };
        let quantise = ["quantise", &path("f32"), "--data", data, "--images", "300", "--for", engine, "--out", &target];
        println!("{}", succeeds(folder, &[&quantise[..], &["--weight-bits", bits]].concat()));
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

/// Whether other engines sum products of bytes exactly on this processor. Otherwise those of 8-bit weights overflow in
/// 16 bits, and some images get another class.
fn engines_have_dot_products() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512vnni") || is_x86_feature_detected!("avxvnni");
    #[cfg(not(target_arch = "x86_64"))]
    true
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
    // Beside others a model that is int8 already is skipped.
    let both = ["quantise", "run/models/smallest-int8", "run/models/smallest", "--data", "builtin", "--images", "64"];
    let output = common::ofa(folder, &[&both[..], &["--json"]].concat());
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(err.contains("skipped, as they are int8 already: run/models/smallest-int8"), "{err}");
    let made = serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["models"].clone();
    assert_eq!((made.as_array().unwrap().len(), &made[0]["f32_model"]), (1, &"run/models/smallest".into()));
    // No model is written over one that is to be quantised, nor f32 over int8.
    for copy in ["copy", "copy-int8"] {
        fs::create_dir(folder.join(copy)).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(folder.join("run/models/smallest").join(file), folder.join(copy).join(file)).unwrap();
        }
    }
    let copies = ["quantise", "copy", "copy-int8", "--data", "builtin", "--overwrite"];
    fails(folder, &copies, &["copy-int8: would be an f32 model to quantise and the int8 model of copy", "--out"]);
    let f32_model = ["extract", "--run", "run", "--subnet", "smallest", "--name", "smallest-int8"];
    fails(folder, &f32_model, &["smallest-int8: this folder holds an int8 model", "--overwrite"]);
    fails(folder, &[&quantise[..], &["--images", "31"]].concat(), &["--images 31", "at least 32"]);
    fails(folder, &[&quantise[..], &["--keep-f32", "conv_x"]].concat(), &["'conv_x': is no layer", "conv_stem"]);
    misused(folder, &[&quantise[..], &["--weight-bits", "4"]].concat(), &["--weight-bits"]);
    misused(folder, &[&quantise[..], &["--finetune", "0"]].concat(), &["--finetune"]);
    misused(folder, &[&quantise[..], &["--finetune-rate", "1"]].concat(), &["the following required arguments"]);
    common::write_two_classes(&folder.join("two"), 50, 1);
    let others = ["quantise", "run/models/smallest", "--data", "two", "--finetune", "1"];
    fails(folder, &others, &["run/models/smallest: the model has the classes", "(dark, light)"]);
    let both = ["quantise", "run/models/smallest", "run/models/largest", "--data", "builtin", "--out", "x"];
    fails(folder, &both, &["--out x", "there are 2"]);
    fails(folder, &["quantise", "run/models/smallest-int8", "--data", "builtin"], &["the model is int8"]);
    fails(folder, &["quantise", "none", "--data", "builtin"], &["none/config.json"]);
    common::write_two_classes(&folder.join("few"), 5, 1);
    fails(folder, &["quantise", "run/models/smallest", "--data", "few"], &["8 calibration images", "at least 32"]);
    // Models that would be lost.
    let to = |out: &'static str| [&quantise[..], &["--out", out]].concat();
    fails(folder, &to("run/models/smallest"), &["--out run/models/smallest", "the f32 model itself"]);
    fails(folder, &to("run/models/largest"), &["run/models/largest: this folder holds an f32 model", "--overwrite"]);
    let other = ["quantise", "run/models/largest", "--data", "builtin", "--out", "run/models/smallest-int8"];
    fails(folder, &other, &["smallest-int8: this folder holds the int8 model of another subnet", "--overwrite"]);
    let config = folder.join("run/models/smallest-int8/config.json");
    let plain = fs::read_to_string(&config).unwrap();
    let mut tuned: serde_json::Value = serde_json::from_str(&plain).unwrap();
    tuned["quantisation"]["finetuned"] = serde_json::json!({ "epochs": 2.0, "learning_rate": 0.001 });
    fs::write(&config, tuned.to_string()).unwrap();
    let lost = ["smallest-int8: this folder holds a fine-tuned int8 model (--finetune 2 --finetune-rate 0.001)"];
    fails(folder, &quantise, &lost);
    let extract = ["extract", "--run", "run", "--subnet", "smallest", "--int8"];
    fails(folder, &extract, &lost);
    fs::write(&config, "{").unwrap();
    fails(folder, &quantise, &["smallest-int8/config.json", "--overwrite"]);
    fs::write(&config, &plain).unwrap();
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
