//! ResNet-50D and ProxylessNAS against the published PyTorch code (mit-han-lab/once-for-all, commit f03b267), without
//! its files: weights and images come from a formula that both sides evaluate, and `fixtures/` holds the results of the
//! published code in f64. This test computes in f64 too; `network.rs` tests f32 against f64.

use candle_core::{DType, Device, Tensor, Var};
use ofa_supernet::import::{Setting, published};
use ofa_supernet::network::{Gradients, Mode, Tape};
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::space::Ratio;
use ofa_supernet::train::loss;
use ofa_supernet::{SearchSpace, Subnet, Supernet};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// `count` numbers in -1..1 that depend only on the name: CRC-32 of the name, then the mixing steps of splitmix64.
fn noise(name: &str, count: usize) -> Vec<f64> {
    let crc = !name.bytes().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| if c & 1 == 1 { (c >> 1) ^ 0xEDB8_8320 } else { c >> 1 })
    });
    let value = |place: u64| {
        let mut z = (place + (u64::from(crc) << 20)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 23) - 1.0
    };
    (0..count as u64).map(value).collect()
}

fn images(name: &str, batch: usize, size: usize) -> Tensor {
    let values: Vec<f32> = noise(name, batch * size * size * 3).into_iter().map(|v| v as f32 * 2.0).collect();
    Tensor::from_vec(values, (batch, size, size, 3), &Device::Cpu).unwrap()
}

const NAMES: [&str; 2] = ["resnet50d", "proxyless-w0.25"];

struct Reference {
    json: Value,
    space: SearchSpace,
    net: Supernet,
}

impl Reference {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/{name}.json"));
        let json: Value = ofa_supernet::files::read_json(&path).unwrap();
        let mut space = SearchSpace::named(name).unwrap();
        space.resolutions = vec![64, 81, 96];
        if let Some(widths) = json["widths"].as_array() {
            space.width_multipliers = widths.iter().map(|w| Ratio::try_from(w.as_f64().unwrap()).unwrap()).collect();
        }
        let classes = json["classes"].as_u64().unwrap() as usize;
        let net = Supernet::on_device(&space, classes, 0, DType::F64, &Device::Cpu).unwrap();
        let mut state: HashMap<String, Tensor> = HashMap::new();
        for (name, tensor) in net.state().unwrap() {
            let theirs = published(&name, &space).unwrap();
            let fan_in: usize = tensor.dims()[1..].iter().product();
            let of_norm = name.contains("norm.");
            let transform = name.contains("transform");
            // A kernel transform close to the identity.
            let diagonal = |place: usize| if place.is_multiple_of(fan_in + 1) { 1.0 } else { 0.0 };
            let scaled = |(place, v): (usize, f64)| match name.rsplit_once('.').unwrap().1 {
                _ if transform => diagonal(place) + 0.1 * v,
                "weight" if !of_norm => v * (3.0 / fan_in as f64).sqrt(),
                "weight" | "running_var" => 1.0 + 0.5 * v,
                _ => 0.2 * v,
            };
            let values = noise(&theirs, tensor.elem_count()).into_iter().enumerate();
            let values: Vec<f32> = values.map(|numbered| scaled(numbered) as f32).collect();
            state.insert(name, Tensor::from_vec(values, tensor.shape(), &Device::Cpu).unwrap());
        }
        net.load_state(&state).unwrap();
        Reference { json, space, net }
    }

    fn subnet(&self, setting: &Value, resolution: usize) -> Subnet {
        serde_json::from_value::<Setting>(setting.clone()).unwrap().subnet(&self.space, resolution).unwrap()
    }
}

#[test]
fn logits_of_largest_smallest_and_random_subnets() {
    for name in NAMES {
        logits_are_the_published_ones(&Reference::new(name));
    }
}

fn logits_are_the_published_ones(reference: &Reference) {
    for (index, case) in reference.json["cases"].as_array().unwrap().iter().enumerate() {
        let resolution = case["resolution"].as_u64().unwrap() as usize;
        let subnet = reference.subnet(&case["setting"], resolution);
        let statistics = reference.net.running_statistics(&subnet).unwrap();
        let images = images(&format!("images{index}"), 3, resolution);
        let logits = reference.net.forward(&images, &subnet, Mode::Evaluate(&statistics)).unwrap();
        let found: Vec<f64> = logits.flatten_all().unwrap().to_vec1().unwrap();
        let expected: Vec<f64> = case["logits"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= 1e-6 * largest, "{subnet}: {found} and {expected}");
        }
    }
}

#[test]
fn loss_gradients_and_statistics_of_two_subnets() {
    for name in NAMES {
        step_is_the_published_one(&Reference::new(name));
    }
}

fn step_is_the_published_one(reference: &Reference) {
    let Reference { json, space, net } = reference;
    let step = &json["step"];
    let images = images("step", 8, 64);
    let labels: Vec<u32> = (0..8).collect();
    let targets = loss::smoothed_targets(&labels, net.classes(), 0.1, &Device::Cpu).unwrap();
    let mut gradients = Gradients::none(net.parameters().len());
    for listed in step["subnets"].as_array().unwrap() {
        let subnet = reference.subnet(&listed["setting"], 64);
        let mut rng = generator(0, Stream::Dropout, &[]);
        let mut tape = Tape::default();
        let mode = Mode::Train { dropout: 0.0, rng: &mut rng, first: 0, drop_path: None, tape: &mut tape };
        let logits = Var::from_tensor(&net.forward(&images, &subnet, mode).unwrap()).unwrap();
        let loss = loss::cross_entropy(&loss::log_softmax(&logits).unwrap(), &targets).unwrap();
        let (found, expected) = (f64::from(loss.to_scalar::<f32>().unwrap()), listed["loss"].as_f64().unwrap());
        assert!((found - expected).abs() <= 1e-6 * expected, "{subnet}: {found} and {expected}");
        tape.backward(loss::gradient_at(&logits, &loss).unwrap(), &mut gradients).unwrap();
    }

    let mut expected = step["gradients"].as_object().unwrap().clone();
    for (parameter, gradient) in net.parameters().iter().zip(gradients.tensors()) {
        let name = published(&parameter.name, space).unwrap();
        let expected = expected.remove(&name);
        let (Some(gradient), Some(expected)) = (gradient, &expected) else {
            assert_eq!(gradient.is_some(), expected.is_some(), "{name}");
            continue;
        };
        let values: Vec<f64> = gradient.flatten_all().unwrap().to_vec1().unwrap();
        let norm = values.iter().map(|v| v * v).sum::<f64>().sqrt();
        // The product with a known vector, since a gradient of equal norm in another direction must not pass.
        let direction = noise(&format!("gradient of {name}"), values.len());
        let projection: f64 = values.iter().zip(&direction).map(|(v, d)| v * d).sum();
        let expected_norm = expected[0].as_f64().unwrap();
        let tolerance = 1e-5 * expected_norm.max(1e-6);
        assert!((norm - expected_norm).abs() <= tolerance, "{name}: norm {norm} and {expected_norm}");
        let expected = expected[1].as_f64().unwrap();
        let length = direction.iter().map(|d| d * d).sum::<f64>().sqrt();
        assert!((projection - expected).abs() <= tolerance * length, "{name}: projection {projection} and {expected}");
    }
    assert!(expected.is_empty(), "{:?}", expected.keys());

    let state = net.state().unwrap();
    let mut compared = 0;
    for (name, tensor) in state.iter().filter(|(name, _)| name.contains(".running_")) {
        let values: Vec<f32> = tensor.to_vec1().unwrap();
        let norm = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let expected = step["statistics"][&published(name, space).unwrap()][0].as_f64().unwrap();
        assert!((norm - expected).abs() <= 1e-4 * expected, "{name}: {norm} and {expected}");
        compared += 1;
    }
    assert_eq!(compared, step["statistics"].as_object().unwrap().len());
}
