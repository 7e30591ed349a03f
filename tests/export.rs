//! `ofa export` through the binary: other engines compute what we compute.

mod common;

use common::{fails, finished_run, misused, succeeds};
use ofa_evaluate::model::{Model, ModelConfig, NumberType, load_config, save};
use ofa_evaluate::runtime::random_weights;
use ofa_supernet::SearchSpace;
use ofa_supernet::blocks::{self, BlockSettings, CustomKind};
use ofa_supernet::data::{DataOptions, Dataset, Normalisation};
use ofa_supernet::graph::{Builder, NodeId};
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::space::{Activation, Family};
use rand::Rng;
use rten::Value;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

/// A model and the options that it is exported with.
#[derive(Clone, Copy)]
struct Case {
    space: &'static str,
    /// 0 smallest, 1 middle, 2 largest.
    subnet: usize,
    /// Another resolution than the subnet's.
    resolution: Option<usize>,
    options: &'static str,
    batch: usize,
}

impl Case {
    const fn of(space: &'static str, subnet: usize) -> Case {
        Case { space, subnet, resolution: None, options: "", batch: 1 }
    }

    const fn with(self, options: &'static str) -> Case {
        Case { options, ..self }
    }

    const fn at(self, resolution: usize) -> Case {
        Case { resolution: Some(resolution), ..self }
    }

    const fn batch(self, batch: usize) -> Case {
        Case { batch, ..self }
    }
}

/// A block kind that the exporter has never heard of.
fn gated(settings: &BlockSettings, builder: &mut Builder, x: NodeId) {
    let kernel = (settings.kernel, settings.stride);
    let names = ("conv1", "bn1");
    let y = builder.convolution_norm_activation(x, names, settings.out_channels, kernel, 1, settings.activation);
    let pooled = builder.global_average_pool(y);
    let factors = builder.pointwise(pooled, "gate", settings.out_channels, true);
    let factors = builder.hard_sigmoid(factors);
    let y = builder.gate(y, factors);
    if settings.keeps_shape() {
        let sum = builder.add(y, x);
        builder.activation(sum, Activation::Relu);
    }
}

/// The space of a case; `own` has blocks of the kind [`gated`].
fn space(name: &str) -> SearchSpace {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| blocks::register(CustomKind { name: "gated", lower: gated }).unwrap());
    let mut space = SearchSpace::named(if name == "own" { "tiny" } else { name }).unwrap();
    if name == "own" {
        space.stages[1].block = Some("gated".into());
    }
    space
}

/// Every family and size, odd resolutions, versions of the operators, options.
fn cases() -> Vec<Case> {
    let spaces = ["tiny", "resnet-tiny", "attentive-tiny", "cifar-mbv3", "mbv3-w1.0", "proxyless-w1.3", "resnet50d"];
    let sizes = spaces.iter().flat_map(|space| [0, 1, 2].map(|subnet| Case::of(space, subnet)));
    let (mobile, proxyless, resnet) = (Case::of("tiny", 2), Case::of("proxyless-w1.3", 0), Case::of("resnet-tiny", 2));
    sizes
        .chain([15, 21, 33].into_iter().flat_map(|size| [mobile.at(size), resnet.at(size), resnet.at(size + 1)]))
        .chain(
            ["--opset 13", "--opset 14", "--opset 18", "--opset 21"]
                .into_iter()
                .flat_map(|opset| [mobile.with(opset), proxyless.at(97).with(opset), resnet.at(27).with(opset)]),
        )
        .chain([
            Case::of("own", 2),
            mobile.with("--dynamic-batch").batch(3),
            resnet.with("--dynamic-batch").batch(2),
            mobile.with("--batch 4").batch(4),
            mobile.with("--with-softmax"),
            resnet.with("--with-preprocessing"),
            mobile.with("--with-softmax --with-preprocessing --opset 13 --batch 2").batch(2),
        ])
        .collect()
}

/// An exported model, an input for it, and the output that it must give.
struct Exported {
    folder: PathBuf,
    batch: usize,
    classes: usize,
    resolution: usize,
    input: Input,
    expected: Vec<f32>,
    /// Largest difference, relative to the largest output.
    tolerance: f32,
}

/// Input values in the order of the exported model.
enum Input {
    /// `[batch, 3, height, width]`
    Floats(Vec<f32>),
    /// `[batch, height, width, 3]`
    Bytes(Vec<u8>),
}

impl Exported {
    /// Makes a model with seeded weights in `folder`, and exports it.
    fn make(root: &Path, name: &str, case: Case) -> Exported {
        let space = space(case.space);
        let mut subnet = vec![space.smallest(), space.middle(), space.largest()].swap_remove(case.subnet);
        let labels: Vec<String> = (0..7).map(|class| format!("class {class}")).collect();
        let mut network = space.network(&subnet, labels.len()).unwrap();
        if let Some(resolution) = case.resolution {
            network.set_resolution(resolution);
            subnet.resolution = resolution;
        }
        let weights = random_weights(&network, 3).unwrap();
        let config = ModelConfig::new(&space.name, &subnet, network, labels, Normalisation::IMAGENET, NumberType::F32);
        save(&root.join(name), &config, &weights).unwrap();
        let options: Vec<&str> = case.options.split_whitespace().collect();
        succeeds(root, &[&["export", name][..], &options].concat());
        let bytes = case.options.contains("--with-preprocessing");
        // Rounding errors of all engines grow with the depth, faster with random weights than with trained ones.
        let tolerance = match (space.family, config.network.resolution) {
            (_, 128..) => 5e-4,
            (Family::ResNetD | Family::AttentiveNas, _) => 1e-4,
            _ => 1e-5,
        };
        let mut rng = generator(7, Stream::RandomImages, &[]);
        let pixels = case.batch * config.network.resolution.pow(2) * 3;
        let image: Vec<u8> = (0..pixels).map(|_| rng.random_range(0..=255)).collect();
        Exported::of(&root.join(name), &image, case.batch, bytes, case.options.contains("--with-softmax"), tolerance)
    }

    /// The exported model in `folder`, with images of bytes.
    fn of(folder: &Path, image: &[u8], batch: usize, bytes: bool, softmax: bool, tolerance: f32) -> Exported {
        let mut model = Model::load(folder).unwrap();
        let (resolution, classes) = (model.config().network.resolution, model.config().network.classes);
        let Normalisation { mean, std } = model.config().normalisation.clone();
        let normalised = |(index, byte): (usize, &u8)| (f32::from(*byte) / 255.0 - mean[index % 3]) / std[index % 3];
        let images: Vec<f32> = image.iter().enumerate().map(normalised).collect();
        let mut expected = model.network().run(&images, batch).unwrap().to_vec();
        if softmax {
            for logits in expected.chunks_mut(classes) {
                let largest = logits.iter().fold(f32::MIN, |a, &b| a.max(b));
                logits.iter_mut().for_each(|logit| *logit = (*logit - largest).exp());
                let sum: f32 = logits.iter().sum();
                logits.iter_mut().for_each(|share| *share /= sum);
            }
        }
        let input = if bytes { Input::Bytes(image.to_vec()) } else { Input::Floats(planes(&images, resolution)) };
        Exported { folder: folder.to_path_buf(), batch, classes, resolution, input, expected, tolerance }
    }

    fn shape(&self) -> [usize; 4] {
        match self.input {
            Input::Floats(_) => [self.batch, 3, self.resolution, self.resolution],
            Input::Bytes(_) => [self.batch, self.resolution, self.resolution, 3],
        }
    }

    /// Compares the output of rten, an engine in Rust.
    fn check(&self, name: &str) {
        let model = rten::Model::load_file(self.folder.join("model.onnx")).unwrap();
        let input = match &self.input {
            Input::Floats(values) => Value::from_shape(self.shape(), values.clone()).unwrap(),
            Input::Bytes(values) => Value::from_shape(self.shape(), values.clone()).unwrap(),
        };
        let output = model.run_one(input.into(), None).unwrap();
        let (shape, found) = output.into_shape_vec::<f32, 2>().unwrap();
        assert_eq!(shape, [self.batch, self.classes], "{name}");
        let largest = self.expected.iter().fold(0f32, |a, b| a.max(b.abs()));
        assert!(largest > 1e-3 && self.expected.iter().all(|value| value.is_finite()), "{name}");
        for (expected, found) in self.expected.iter().zip(&found) {
            let difference = (expected - found).abs();
            assert!(difference <= self.tolerance * largest, "{name}: {difference:e} of {largest:e}");
        }
    }

    /// Writes input and output where `tests/export.py` finds them.
    fn write(&self) {
        let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let input = match &self.input {
            Input::Floats(values) => bytes(values),
            Input::Bytes(values) => values.clone(),
        };
        fs::write(self.folder.join("input.bin"), input).unwrap();
        fs::write(self.folder.join("output.bin"), bytes(&self.expected)).unwrap();
        let case = json!({
            "shape": self.shape(), "bytes": matches!(self.input, Input::Bytes(_)), "classes": self.classes,
            "tolerance": self.tolerance,
        });
        fs::write(self.folder.join("case.json"), case.to_string()).unwrap();
    }
}

/// Images `[batch, height, width, 3]` as `[batch, 3, height, width]`.
fn planes(images: &[f32], resolution: usize) -> Vec<f32> {
    let plane = resolution * resolution;
    let of_image = |image: &[f32]| (0..3 * plane).map(|i| image[i % plane * 3 + i / plane]).collect::<Vec<f32>>();
    images.chunks(3 * plane).flat_map(of_image).collect()
}

/// Exports the trained models of `folder/run`, with images of the data that they were trained on.
fn trained(folder: &Path) -> Vec<Exported> {
    let data = Dataset::open("builtin", &DataOptions { builtin_train: 40, builtin_test: 20, ..DataOptions::default() });
    let data = data.unwrap();
    let models = ["smallest", "largest"].map(|name| folder.join("run/models").join(name));
    succeeds(folder, &["export", "run/models/smallest", "run/models/largest", "--dynamic-batch"]);
    let exported = models.iter().map(|model| {
        let config = load_config(model).unwrap();
        let data = Dataset { normalisation: Normalisation { mean: [0.0; 3], std: [1.0; 3] }, ..data.clone() };
        let batch = data.evaluation_batch(&data.test, &[0, 3, 5, 11], config.network.resolution).unwrap();
        let image: Vec<u8> = batch.images.iter().map(|value| (255.0 * value).round() as u8).collect();
        Exported::of(model, &image, 4, false, false, 1e-5)
    });
    exported.collect()
}

#[test]
fn an_engine_in_rust_computes_the_same() {
    let temporary = tempfile::tempdir().unwrap();
    for (index, case) in cases().into_iter().enumerate() {
        let name = format!("{index}");
        let exported = Exported::make(temporary.path(), &name, case);
        exported.check(&format!("{} {} {:?} {}", case.space, case.subnet, case.resolution, case.options));
        fs::remove_dir_all(&exported.folder).unwrap();
    }
}

#[test]
fn trained_models_compute_the_same_on_images() {
    let temporary = tempfile::tempdir().unwrap();
    finished_run(temporary.path());
    trained(temporary.path()).iter().for_each(|exported| exported.check("trained"));
}

/// Runs `tests/export.py` in the Python that `OFA_PYTHON` names.
#[test]
#[ignore = "needs Python with onnx, onnxruntime, openvino, torch and timm"]
fn onnx_runtime_openvino_and_pytorch_compute_the_same() {
    let python = std::env::var("OFA_PYTHON").unwrap_or("python3".into());
    let temporary = tempfile::tempdir().unwrap();
    finished_run(temporary.path());
    trained(temporary.path()).iter().for_each(Exported::write);
    for (index, case) in cases().into_iter().enumerate() {
        Exported::make(&temporary.path().join("run/models"), &index.to_string(), case).write();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/export.py");
    let output = Command::new(python).arg(script).arg(temporary.path().join("run/models")).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    let compared = format!("{} models", cases().len() + 2);
    assert!(out.lines().last().is_some_and(|line| line.starts_with(&compared)), "{out}\n{err}");
}

#[test]
fn bad_input_is_one_sentence_and_leaves_the_old_file() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let export = ["export", "run/models/smallest"];
    let out = succeeds(folder, &export);
    assert!(out.starts_with("run/models/smallest/model.onnx: "), "{out}");
    let file = folder.join("run/models/smallest/model.onnx");
    let good = fs::read(&file).unwrap();
    succeeds(folder, &export);
    assert!(fs::read(&file).unwrap() == good, "equal models give equal files");

    for opset in ["12", "22", "x"] {
        misused(folder, &[&export[..], &["--opset", opset]].concat(), &["--opset", "13 to 21"]);
    }
    misused(folder, &[&export[..], &["--format", "caffe"]].concat(), &["caffe"]);
    misused(folder, &[&export[..], &["--batch", "2", "--dynamic-batch"]].concat(), &["--batch"]);
    let both = ["export", "run/models/smallest", "run/models/largest", "--out", "one.onnx"];
    fails(folder, &both, &["--out one.onnx", "there are 2"]);
    fails(folder, &["export", "run/models"], &["run/models: this is no model folder", "ofa export run/models/*"]);
    fails(folder, &["export", "none"], &["none/config.json"]);
    let weights = folder.join("run/models/smallest/model.safetensors");
    let itself = ["export", "run/models/smallest", "--out", "run/models/smallest/model.safetensors"];
    fails(folder, &itself, &["model.safetensors: this file is the model itself"]);
    for file in [
        "models/./smallest/config.json",
        "models/smallest/new/../graph.json",
        "models/smallest/load.py",
        "models/largest/model.safetensors",
    ] {
        let out = format!("run/{file}");
        fails(folder, &["export", "run/models/smallest", "--out", &out], &[&out, "this file is the model itself"]);
    }
    let bytes = fs::read(&weights).unwrap();
    let mut broken = bytes.clone();
    let end = broken.len();
    broken[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, &broken).unwrap();
    fails(folder, &export, &["model.safetensors", "finite"]);
    let renamed = String::from_utf8_lossy(&bytes[..200]).into_owned();
    let name = renamed.split('"').find(|part| part.contains("weight") || part.contains("bias")).unwrap();
    let position = bytes.windows(name.len()).position(|window| window == name.as_bytes()).unwrap();
    let mut missing = bytes.clone();
    missing[position] = b'X';
    fs::write(&weights, &missing).unwrap();
    fails(folder, &export, &["model.safetensors", "tensor"]);
    assert!(fs::read(&file).unwrap() == good);

    fs::write(&weights, &bytes).unwrap();
    succeeds(folder, &[&export[..], &["--out", "elsewhere/one.onnx"]].concat());
    assert!(fs::read(folder.join("elsewhere/one.onnx")).unwrap() == good);
}

#[test]
fn another_model_in_the_folder_removes_what_was_made_of_the_old_one() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    let model = folder.join("run/models/smallest");
    succeeds(folder, &["export", "run/models/smallest"]);
    succeeds(folder, &["bench", "run/models/smallest", "--data", "builtin", "--update-card"]);
    let extract = |subnet: &str| {
        let name = ["--name", "smallest", "--overwrite"];
        succeeds(folder, &[&["extract", "--run", "run", "--subnet", subnet], &name[..]].concat());
        ["model.onnx", "bench.json"].map(|file| model.join(file).exists())
    };
    extract("smallest");
    succeeds(folder, &["export", "run/models/smallest"]);
    succeeds(folder, &["bench", "run/models/smallest", "--data", "builtin", "--update-card"]);
    let card = fs::read_to_string(model.join("README.md")).unwrap();
    // Equal weights: everything is still true.
    assert_eq!(extract("smallest"), [true, true]);
    assert_eq!(fs::read_to_string(model.join("README.md")).unwrap(), card);
    // So it is where they come from elsewhere.
    let moved = folder.join("moved/models/smallest");
    fs::rename(folder.join("run"), folder.join("moved")).unwrap();
    succeeds(folder, &["extract", "--run", "moved", "--subnet", "smallest"]);
    assert_eq!(load_config(&moved).unwrap().provenance.unwrap().run, "moved");
    assert!(["model.onnx", "bench.json"].iter().all(|file| moved.join(file).exists()));
    assert_eq!(fs::read_to_string(moved.join("README.md")).unwrap(), card);
    fs::rename(folder.join("moved"), folder.join("run")).unwrap();
    assert_eq!(extract("largest"), [false, false]);
    assert!(fs::read_to_string(model.join("README.md")).unwrap().contains("not measured yet"));
}
