//! Static networks and costs compared with those of the published code. The tests need results of that code in
//! `../shared/reference` beside the checkout: `cargo test --release --test reference -- --ignored`.

use candle_core::{Device, Tensor};
use ofa_evaluate::StaticNetwork;
use ofa_evaluate::cost::{macs, parameters};
use ofa_evaluate::model::PublishedNetwork;
use ofa_supernet::import::{CheckpointFile, Setting};
use ofa_supernet::{SearchSpace, Subnet};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A network of the reference: its folder, its cases, and the space with the reference's epsilon.
struct Reference {
    folder: PathBuf,
    cases: Value,
    space: SearchSpace,
}

impl Reference {
    fn all() -> [Reference; 2] {
        [("mbv3_w0.25", "mbv3-w0.25"), ("proxyless_w0.5", "proxyless-w0.5")].map(|(folder, preset)| {
            let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/reference")).join(folder);
            let cases: Value = ofa_supernet::files::read_json(&folder.join("cases.json")).unwrap();
            let mut space = SearchSpace::named(preset).unwrap();
            space.resolutions = vec![64, 96, 128];
            space.batch_norm_epsilon = cases["bn"]["eps"].as_f64().unwrap();
            Reference { folder, cases, space }
        })
    }

    fn cases(&self) -> &[Value] {
        self.cases["cases"].as_array().unwrap()
    }

    fn classes(&self) -> usize {
        self.cases["classes"].as_u64().unwrap() as usize
    }

    fn subnet(&self, case: &Value) -> Subnet {
        let setting: Setting = serde_json::from_value(case["setting"].clone()).unwrap();
        setting.subnet(&self.space, case["resolution"].as_u64().unwrap() as usize).unwrap()
    }
}

#[test]
#[ignore = "needs the reference data"]
fn macs_and_parameters_equal_the_reference() {
    for reference in Reference::all() {
        for case in reference.cases() {
            let network = reference.space.network(&reference.subnet(case), reference.classes()).unwrap();
            assert_eq!(parameters(&network), case["params"].as_u64().unwrap(), "{}", case["name"]);
            assert_eq!(macs(&network), case["macs"].as_u64().unwrap(), "{}", case["name"]);
        }
    }
}

#[test]
#[ignore = "needs the reference data"]
fn descriptions_and_weights_give_the_reference_networks() {
    for reference in Reference::all() {
        for case in reference.cases() {
            let subnet = reference.subnet(case);
            let published = PublishedNetwork::new(&case["config"].to_string(), subnet.resolution).unwrap();
            let network = reference.space.network(&subnet, reference.classes()).unwrap();
            assert_eq!(published.network, network, "{}", case["name"]);
            assert_eq!(published.subnet, subnet);
        }

        // The largest subnet uses the supernet's weights unchanged, except for kernel transforms.
        let case = reference.cases().iter().find(|case| case["name"] == "max").unwrap();
        let resolution = case["resolution"].as_u64().unwrap() as usize;
        let published = PublishedNetwork::new(&case["config"].to_string(), resolution).unwrap();
        let mut file = CheckpointFile::open(&reference.folder.join("supernet.pth")).unwrap();
        let listed: Vec<(String, Vec<usize>)> =
            file.tensors().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect();
        let mut tensors: HashMap<String, Tensor> = HashMap::new();
        for (name, shape) in listed {
            if !name.contains("matrix") && !name.ends_with("num_batches_tracked") {
                let values = file.values(&name).unwrap();
                tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap());
            }
        }
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("init.safetensors");
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let weights = published.weights(&path).unwrap();
        let tensors =
            candle_core::safetensors::load(reference.folder.join("tensors.safetensors"), &Device::Cpu).unwrap();
        let images = tensors[&format!("images.{resolution}")].permute((0, 2, 3, 1)).unwrap();
        let images: Vec<f32> = images.flatten_all().unwrap().to_vec1().unwrap();
        let expected: Vec<f32> = tensors["max.logits"].flatten_all().unwrap().to_vec1().unwrap();
        let mut network = StaticNetwork::new(&published.network, &weights).unwrap();
        let found = network.run(&images, 4).unwrap();
        let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        for difference in expected.iter().zip(found).map(|(a, b)| (a - b).abs()) {
            assert!(difference <= 1e-4 * largest, "{}: {difference} of {largest}", reference.space.name);
        }
    }
}
