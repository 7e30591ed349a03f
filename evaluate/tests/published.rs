//! Static networks as the published code describes them, against `../shared/reference` beside the checkout. Without the folder this is
//! skipped, and says so.

use candle_core::{Device, Tensor};
use ofa_evaluate::StaticNetwork;
use ofa_evaluate::model::PublishedNetwork;
use ofa_supernet::SearchSpace;
use ofa_supernet::import::{CheckpointFile, Setting};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

#[test]
fn descriptions_and_weights_give_the_reference_networks() {
    for (folder, preset) in [("mbv3_w0.25", "mbv3-w0.25"), ("proxyless_w0.5", "proxyless-w0.5")] {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/reference")).join(folder);
        if !folder.exists() {
            eprintln!("skipped: no reference data in {}", folder.display());
            continue;
        }
        let cases: Value = ofa_supernet::files::read_json(&folder.join("cases.json")).unwrap();
        let classes = cases["classes"].as_u64().unwrap() as usize;
        let mut space = SearchSpace::named(preset).unwrap();
        space.resolutions = vec![64, 96, 128];
        space.batch_norm_epsilon = cases["bn"]["eps"].as_f64().unwrap();
        for case in cases["cases"].as_array().unwrap() {
            let setting: Setting = serde_json::from_value(case["setting"].clone()).unwrap();
            let resolution = case["resolution"].as_u64().unwrap() as usize;
            let subnet = setting.subnet(&space, resolution).unwrap();
            let published = PublishedNetwork::new(&case["config"].to_string(), resolution).unwrap();
            assert_eq!(published.network, space.network(&subnet, classes).unwrap(), "{preset} {}", case["name"]);
            assert_eq!(published.subnet, subnet);
        }

        // The largest subnet uses the supernet's weights as they are, but for the kernel transforms.
        let case = cases["cases"].as_array().unwrap().iter().find(|case| case["name"] == "max").unwrap();
        let resolution = case["resolution"].as_u64().unwrap() as usize;
        let published = PublishedNetwork::new(&case["config"].to_string(), resolution).unwrap();
        let mut file = CheckpointFile::open(&folder.join("supernet.pth")).unwrap();
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
        let tensors = candle_core::safetensors::load(folder.join("tensors.safetensors"), &Device::Cpu).unwrap();
        let images = tensors[&format!("images.{resolution}")].permute((0, 2, 3, 1)).unwrap();
        let images: Vec<f32> = images.flatten_all().unwrap().to_vec1().unwrap();
        let expected: Vec<f32> = tensors["max.logits"].flatten_all().unwrap().to_vec1().unwrap();
        let mut network = StaticNetwork::new(&published.network, &weights).unwrap();
        let found = network.run(&images, 4).unwrap();
        let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let difference = expected.iter().zip(found).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(difference <= 1e-4 * largest, "{preset}: {difference} of {largest}");
    }
}
