//! Numbers equal to those of the AttentiveNAS code in PyTorch, for a small supernet whose space `cases.json` describes
//! in that code's words.

use super::{close, norm, values};
use candle_core::{DType, Device, Tensor, Var};
use ofa_supernet::import::{CheckpointFile, Setting, common, published, read_supernet_from};
use ofa_supernet::network::{Gradients, Mode, Tape};
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::space::{ExpandRatio, Stage, preset};
use ofa_supernet::train::loss;
use ofa_supernet::{SearchSpace, Subnet, Supernet};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

struct Attentive {
    cases: Value,
    space: SearchSpace,
    net: Supernet,
    /// What the import skipped.
    skipped: Vec<String>,
    tensors: HashMap<String, Tensor>,
}

fn numbers(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|number| number.as_u64().unwrap() as usize).collect()
}

/// The space of `cases.json`, whose blocks are `mb1`, `mb2`, ...
fn space(cases: &Value) -> SearchSpace {
    let listed = &cases["space"];
    let mut space = preset("attentive").unwrap();
    space.resolutions = numbers(&listed["resolutions"]);
    space.batch_norm_epsilon = cases["bn"]["eps"].as_f64().unwrap();
    space.stem.widths = numbers(&listed["first_conv"]["c"]);
    space.stem.channels = *space.stem.widths.last().unwrap();
    space.stem.stride = listed["first_conv"]["s"].as_u64().unwrap() as usize;
    let activation = space.stem.activation;
    let stages = (1..).map_while(|number| listed.get(format!("mb{number}"))).map(|stage| {
        let widths = numbers(&stage["c"]);
        let ratios = numbers(&stage["t"]).into_iter().map(|ratio| ExpandRatio::try_from(ratio as f64).unwrap());
        Stage {
            channels: *widths.last().unwrap(),
            stride: stage["s"].as_u64().unwrap() as usize,
            activation,
            squeeze_excite: stage["se"].as_bool().unwrap(),
            block: None,
            depths: numbers(&stage["d"]),
            kernel_sizes: numbers(&stage["k"]),
            expand_ratios: ratios.collect(),
            widths,
        }
    });
    space.stages = stages.collect();
    let head = space.head.as_mut().unwrap();
    head.widths = numbers(&listed["last_conv"]["c"]);
    head.hidden_channels = head.widths.last().copied();
    head.feature_channels = 6 * space.stages.last().unwrap().channels;
    space.validate().unwrap();
    space
}

impl Attentive {
    fn read() -> Self {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/reference/attentive_mini"));
        let cases: Value = ofa_supernet::files::read_json(&folder.join("cases.json")).unwrap();
        let space = space(&cases);
        let mut file = CheckpointFile::open(&folder.join("supernet.pth")).unwrap();
        let (net, skipped) = read_supernet_from(&mut file, &space).unwrap();
        assert_eq!(net.classes() as u64, cases["classes"].as_u64().unwrap());
        let tensors = candle_core::safetensors::load(folder.join("tensors.safetensors"), &Device::Cpu).unwrap();
        Attentive { cases, space, net, skipped, tensors }
    }

    fn subnet(&self, setting: &Value) -> Subnet {
        let setting: Setting = serde_json::from_value(setting.clone()).unwrap();
        setting.subnet(&self.space, setting.resolution().unwrap()).unwrap()
    }

    /// `[batch, 3, height, width]` in the file, `[batch, height, width, 3]` here.
    fn images(&self, name: &str) -> Tensor {
        self.tensors[name].permute((0, 2, 3, 1)).unwrap().contiguous().unwrap()
    }

    /// Losses of the step's subnets in `net`, and their gradients' sum.
    fn step(&self, net: &Supernet) -> (Vec<f64>, Gradients) {
        let step = &self.cases["step"];
        let labels: Vec<u32> = self.tensors["step.labels"].to_dtype(DType::U32).unwrap().to_vec1().unwrap();
        let smoothing = step["label_smoothing"].as_f64().unwrap();
        let targets = loss::smoothed_targets(&labels, net.classes(), smoothing, &Device::Cpu).unwrap();
        let mut gradients = Gradients::none(net.parameters().len());
        let mut losses = Vec::new();
        for (index, listed) in step["subnets"].as_array().unwrap().iter().enumerate() {
            let mut rng = generator(0, Stream::Dropout, &[]);
            let mut tape = Tape::default();
            let mode = Mode::Train { dropout: 0.0, rng: &mut rng, first: 0, drop_path: None, tape: &mut tape };
            let logits = net.forward(&self.images("step.images"), &self.subnet(&listed["setting"]), mode).unwrap();
            let logits = Var::from_tensor(&logits).unwrap();
            close(&logits, &self.tensors[&format!("step.logits{index}")], &format!("logits of subnet {index}"));
            let loss = loss::cross_entropy(&loss::log_softmax(&logits).unwrap(), &targets).unwrap();
            losses.push(f64::from(values(&loss)[0]));
            tape.backward(loss::gradient_at(&logits, &loss).unwrap(), &mut gradients).unwrap();
        }
        (losses, gradients)
    }

    /// The same network in f64, which the interpreter computes.
    fn exact(&self) -> Supernet {
        let exact = Supernet::on_device(&self.space, self.net.classes(), 0, DType::F64, &Device::Cpu).unwrap();
        exact.load_state(&self.net.state().unwrap()).unwrap();
        exact
    }
}

#[test]
#[ignore = "needs the reference data"]
fn logits_and_costs_of_attentive_subnets() {
    let reference = Attentive::read();
    let exact = reference.exact();
    for case in reference.cases["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let subnet = reference.subnet(&case["setting"]);
        let images = reference.images(&format!("images.{}", subnet.resolution));
        for net in [&reference.net, &exact] {
            let statistics = net.running_statistics(&subnet).unwrap();
            let logits = net.forward(&images, &subnet, Mode::Evaluate(&statistics)).unwrap();
            close(&logits, &reference.tensors[&format!("{name}.logits")], name);
        }
        let network = reference.space.network(&subnet, reference.net.classes()).unwrap();
        let graph = ofa_supernet::graph::Graph::of(&network);
        assert_eq!(graph.parameters(), case["params"].as_u64().unwrap(), "{name}");
        let macs = (case["macs_millions"].as_f64().unwrap() * 1e6).round() as u64;
        assert_eq!(graph.macs(), macs, "{name}");
    }
}

#[test]
#[ignore = "needs the reference data"]
fn a_training_step_of_attentive_subnets() {
    let reference = Attentive::read();
    let listed = reference.cases["step"]["subnets"].as_array().unwrap();
    for net in [&reference.net, &reference.exact()] {
        let (losses, gradients) = reference.step(net);
        for (found, listed) in losses.into_iter().zip(listed) {
            let expected = listed["loss"].as_f64().unwrap();
            assert!((found - expected).abs() <= 1e-4 * expected, "loss {found}, expected {expected}");
        }
        let named = |(name, tensor)| Some((common(str::strip_prefix(name, "step.grad.")?), tensor));
        let mut expected: HashMap<String, &Tensor> =
            reference.tensors.iter().filter_map(|(name, tensor)| named((name, tensor))).collect();
        for (parameter, gradient) in net.parameters().iter().zip(gradients.tensors()) {
            let name = published(&parameter.name, &reference.space).unwrap();
            // PyTorch has no gradient for what no subnet of the step used.
            let (found, expected) = match (gradient, expected.remove(&name)) {
                (Some(found), Some(expected)) => (values(found), values(expected)),
                (None, None) => continue,
                (found, _) => panic!("{name}: a gradient is there: {}", found.is_some()),
            };
            assert_eq!(found.len(), expected.len(), "{name}");
            let difference = norm(found.iter().zip(&expected).map(|(a, b)| a - b));
            // If the next batch norm removes a shift again, the gradient is zero except for rounding.
            let size = norm(expected);
            assert!(difference <= 1e-3 * size.max(5e-3), "{name}: {difference} of {size}");
        }
        assert!(expected.is_empty(), "{:?}", expected.keys());
    }
}

#[test]
#[ignore = "needs the reference data"]
fn the_import_of_an_attentive_supernet_says_what_it_skips() {
    let Attentive { skipped, space, .. } = Attentive::read();
    assert_eq!(skipped.len(), 2, "{skipped:?}");
    assert!(skipped[0].contains("statistics of single subnets (bn_tracking)"), "{}", skipped[0]);
    // Every block has a shortcut in the file, and only the first of a stage can use it.
    let unused = space.slots() - space.stages.len();
    assert!(skipped[1].starts_with(&format!("{unused} convolutions of shortcuts")), "{}", skipped[1]);
}
