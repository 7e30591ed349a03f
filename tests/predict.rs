//! `ofa predict`, `ofa completions` and `ofa man` through the binary.

#[path = "../examples/classify.rs"]
#[allow(dead_code, reason = "its `main` is the example's")]
mod classify;
mod common;

use common::{fails, finished_run, misused, succeeds, write_images, write_two_classes};
use ofa_supernet::data::Dataset;
use ofa_supernet::files::list_folder;
use std::fs;
use std::ops::ControlFlow;

#[test]
fn images_are_classified_with_probabilities() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    write_images(&folder.join("pictures"), 2, 120);
    let model = "run/models/largest";
    let images = ["pictures/0.png", "pictures/1.png"];
    let out = succeeds(folder, &["predict", model, images[0], images[1], "--json", "--top", "100"]);
    let rows = &serde_json::from_str::<serde_json::Value>(&out).unwrap()["images"];
    assert_eq!((rows[0]["image"].as_str(), rows[1]["image"].as_str()), (Some(images[0]), Some(images[1])));
    let classes = rows[0]["classes"].as_array().unwrap();
    let probabilities: Vec<f64> = classes.iter().map(|class| class["probability"].as_f64().unwrap()).collect();
    assert!(probabilities.is_sorted_by(|a, b| a >= b), "{probabilities:?}");
    assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    let text = succeeds(folder, &["predict", model, images[0], "--top", "1"]);
    let percent = format!(
        "{images}: {} {:.1} %\n",
        classes[0]["class"].as_str().unwrap(),
        100.0 * probabilities[0],
        images = images[0]
    );
    assert_eq!(text, percent);
    let mut loaded = ofa_evaluate::Model::load(folder.join(model)).unwrap();
    let (class, probability) = classify::classify(&mut loaded, folder.join(images[0]).to_str().unwrap()).unwrap();
    assert_eq!(classes[0]["class"].as_str(), Some(class.as_str()));
    assert!((probability - probabilities[0]).abs() < 1e-4, "{probability} {probabilities:?}");
    fails(folder, &["predict", model, "pictures/2.png"], &["pictures/2.png"]);
    fs::write(folder.join("x.png"), "text").unwrap();
    fails(folder, &["predict", model, "x.png"], &["x.png", "not an image"]);
    fails(folder, &["predict", "run", images[0]], &["run/config.json"]);
    misused(folder, &["predict", model], &["required"]);
}

/// Images of any size and format give the same input values in `predict` as in `bench`, so the same classes.
#[test]
fn images_are_read_as_in_bench() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let images = folder.join("images");
    write_two_classes(&images, 24, 1);
    for (class, brightness) in [("dark", 40), ("light", 200)] {
        for (index, (width, height)) in
            [(20, 18), (7, 41), (64, 64), (33, 32), (120, 50), (16, 16)].into_iter().enumerate()
        {
            let pixel = |x: u32, y: u32| image::Rgb([brightness, (x * 7) as u8, (y * (index as u32 + 1)) as u8]);
            let format = ["png", "jpg"][index % 2];
            let path = images.join("test").join(class).join(format!("more-{index}.{format}"));
            image::RgbImage::from_fn(width, height, pixel).save(path).unwrap();
        }
    }
    let train = ["train", "--preset", "tiny", "--data", "images", "--epochs", "3", "--batch", "8", "--validation", "8"];
    succeeds(folder, &[&train[..], &["--out", "run"]].concat());
    succeeds(folder, &["extract", "--run", "run", "--subnet", "largest", "--recalibration", "20"]);
    let model = ofa_evaluate::Model::load(folder.join("run/models/largest")).unwrap();
    let options = ofa_supernet::data::DataOptions {
        normalisation: Some(model.config().normalisation.clone()),
        ..Default::default()
    };
    let splits = ofa_supernet::data::Splits::Test;
    let data =
        Dataset::open_splits(images.to_str().unwrap(), &options, splits, &|_| ControlFlow::Continue(())).unwrap();
    let paths: Vec<String> = ["dark", "light"]
        .iter()
        .flat_map(|class| list_folder(&images.join("test").join(class)).unwrap())
        .map(|path| path.to_str().unwrap().to_string())
        .collect();
    assert_eq!((paths.len(), data.test.len()), (14, 14));
    let all: Vec<usize> = (0..data.test.len()).collect();
    let batch = data.evaluation_batch(&data.test, &all, model.config().network.resolution).unwrap();
    let read: Vec<f32> = paths.iter().flat_map(|path| model.read_image(path).unwrap()).collect();
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    assert!(bits(&read) == bits(&batch.images));

    let json = |arguments: &[&str]| serde_json::from_str::<serde_json::Value>(&succeeds(folder, arguments)).unwrap();
    let bench = json(&["bench", "run/models/largest", "--data", "images", "--json"]);
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let predicted = json(&[&["predict", "run/models/largest", "--json", "--top", "1"], &paths[..]].concat());
    let right = predicted["images"].as_array().unwrap().iter().filter(|image| {
        let (path, class) = (image["image"].as_str().unwrap(), image["classes"][0]["class"].as_str().unwrap());
        path.contains(&format!("/test/{class}/"))
    });
    let accuracy = &bench["models"][0]["accuracy"];
    assert_eq!((accuracy["images"].as_u64(), accuracy["top1"].as_f64()), (Some(14), Some(right.count() as f64 / 14.0)));
}

#[test]
fn completions_and_man_pages_know_every_command() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    for shell in ["bash", "zsh", "fish"] {
        let script = succeeds(folder, &["completions", shell]);
        assert!(script.contains("predictor") && script.contains("model-threads"), "{shell}");
    }
    misused(folder, &["completions", "dos"], &["invalid value"]);
    succeeds(folder, &["man", "--out", "pages"]);
    let page = fs::read_to_string(folder.join("pages/ofa-train.1")).unwrap();
    assert!(page.contains("ofa\\-train") && page.contains("resume"), "{page}");
    assert!(folder.join("pages/ofa.1").exists());
}
