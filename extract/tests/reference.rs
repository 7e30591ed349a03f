//! What the once-for-all code and its published files compute, from `../shared/reference` beside the checkout. Without the folder
//! these tests are skipped, and say so.

use candle_core::{Device, Tensor};
use ofa_evaluate::Model;
use ofa_evaluate::model::NumberType;
use ofa_evaluate::profile::import;
use ofa_extract::subnet::extract;
use ofa_extract::{Measures, Predictor};
use ofa_supernet::data::Normalisation;
use ofa_supernet::import::{Setting, read_supernet};
use ofa_supernet::network::{Mode, StatisticsCollector};
use ofa_supernet::{SearchSpace, Subnet};
use serde_json::Value;
use std::path::PathBuf;

/// A folder of the reference; `None` (with a printed reason) where it is absent.
fn reference(name: &str) -> Option<PathBuf> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/reference")).join(name);
    if !folder.exists() {
        eprintln!("skipped: no reference data in {}", folder.display());
        return None;
    }
    Some(folder)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn extracted_models_give_the_static_networks_logits() {
    for (folder, preset) in [("mbv3_w0.25", "mbv3-w0.25"), ("proxyless_w0.5", "proxyless-w0.5")] {
        let Some(folder) = reference(folder) else { continue };
        let cases: Value = ofa_supernet::files::read_json(&folder.join("cases.json")).unwrap();
        let mut space = SearchSpace::named(preset).unwrap();
        space.resolutions = vec![64, 96, 128];
        space.batch_norm_epsilon = cases["bn"]["eps"].as_f64().unwrap();
        let net = read_supernet(&folder.join("supernet.pth"), &space).unwrap();
        let tensors = candle_core::safetensors::load(folder.join("tensors.safetensors"), &Device::Cpu).unwrap();
        let labels: Vec<String> = (0..net.classes()).map(|i| i.to_string()).collect();
        for case in cases["cases"].as_array().unwrap() {
            let name = case["name"].as_str().unwrap();
            let setting: Setting = serde_json::from_value(case["setting"].clone()).unwrap();
            let subnet = setting.subnet(&space, case["resolution"].as_u64().unwrap() as usize).unwrap();
            let images = &tensors[&format!("images.{}", subnet.resolution)];
            let images = images.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap();
            let mut collector = StatisticsCollector::default();
            net.forward(&images, &subnet, Mode::Collect(&mut collector)).unwrap();
            for (statistics, logits) in [
                (net.running_statistics(&subnet).unwrap(), "extracted_logits"),
                (collector.finish(), "recalibrated_logits"),
            ] {
                let target = tempfile::tempdir().unwrap();
                let path = target.path().join("model");
                extract(&net, &subnet, &statistics, &labels, &Normalisation::IMAGENET, NumberType::F32, &path).unwrap();
                let mut model = Model::load(&path).unwrap();
                let found = model.network().run(&values(&images), 4).unwrap();
                let expected = values(&tensors[&format!("{name}.{logits}")]);
                let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                let difference = expected.iter().zip(found).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
                assert!(difference <= 1e-4 * largest, "{preset} {name} {logits}: {difference} of {largest}");
            }
        }
    }
}

#[test]
fn the_published_predictor_and_latency_tables() {
    let Some(folder) = reference("official") else { return };
    let space = SearchSpace::named("mbv3-w1.2").unwrap();
    let tables: Vec<PathBuf> =
        [160, 176, 192, 208, 224].iter().map(|r| folder.join(format!("note10_{r}_lookup_table.yaml"))).collect();
    let device = import(&space, 1000, "note10", &tables).unwrap();
    let written = tempfile::tempdir().unwrap();
    device.save(written.path().join("note10.json")).unwrap();
    let predictor = Predictor::import(&folder.join("acc_predictor.pth"), &space).unwrap();
    assert_eq!(predictor.space().resolutions, [128, 144, 160, 176, 192, 208, 224]);
    predictor.save(&written.path().join("predictor.safetensors")).unwrap();
    let predictor = Predictor::load(&written.path().join("predictor.safetensors")).unwrap();
    let measures = Measures::new(&space, 1000, vec![device]);
    let constraint = "note10:latency=20ms".parse().unwrap();
    for (ks, e, d, r, accuracy, latency) in [
        (
            "3,3,5,5,3,3,7,3,5,7,3,3,3,5,3,3,3,5,3,7",
            "3,3,3,3,4,6,6,6,4,3,3,4,4,4,4,3,4,6,3,4",
            "2,2,3,3,3",
            160,
            0.7853778600692749,
            14.934033693916856,
        ),
        (
            "3,3,3,5,3,3,3,7,5,7,5,7,3,5,3,7,3,3,5,5",
            "3,4,3,3,4,4,3,4,4,3,3,4,4,4,3,6,6,4,4,6",
            "2,2,3,3,3",
            192,
            0.8065392374992371,
            19.918497564919004,
        ),
        (
            "3,3,3,7,5,3,3,5,5,3,7,7,3,5,3,7,7,5,3,7",
            "4,3,3,3,4,4,3,6,4,4,3,3,4,4,4,4,6,6,6,3",
            "2,3,4,3,4",
            208,
            0.8244234919548035,
            29.82025766340295,
        ),
    ] {
        let setting = format!(r#"{{"ks": [{ks}], "e": [{e}], "d": [{d}]}}"#);
        let subnet: Subnet = serde_json::from_str::<Setting>(&setting).unwrap().subnet(&space, r).unwrap();
        let found = predictor.predict(std::slice::from_ref(&subnet)).unwrap()[0];
        assert!((found - accuracy).abs() <= 1e-5, "{subnet}: {found}");
        let found = measures.value(&constraint, &subnet).unwrap();
        assert!((found / latency - 1.0).abs() <= 1e-6, "{subnet}: {found}");
    }
    // A resolution between the tables' is no guess.
    let between = Subnet { resolution: 164, ..space.smallest() };
    assert!(predictor.predict(std::slice::from_ref(&between)).unwrap_err().to_string().contains("allowed are"));
    assert!(measures.value(&constraint, &between).unwrap_err().to_string().contains("note10"));
    // Other spaces and files.
    let other = SearchSpace::named("proxyless-w1.3").unwrap();
    let error = Predictor::import(&folder.join("acc_predictor.pth"), &other).unwrap_err().to_string();
    assert!(error.contains("five stages"), "{error}");
    if let Some(folder) = reference("mbv3_w0.25") {
        let error = Predictor::import(&folder.join("supernet.pth"), &space).unwrap_err().to_string();
        assert!(error.contains("'0.bias' is missing"), "{error}");
    }
}
