//! `ofa predict`, `ofa completions` and `ofa man` through the binary.

mod common;

use common::{fails, finished_run, misused, succeeds, write_images};
use std::fs;

#[test]
fn images_are_classified_with_probabilities() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    finished_run(folder);
    write_images(&folder.join("pictures"), 2, 120);
    let model = "run/models/largest";
    let images = ["pictures/0.png", "pictures/1.png"];
    let out = succeeds(folder, &["predict", model, images[0], images[1], "--json", "--top", "100"]);
    let rows: serde_json::Value = serde_json::from_str(&out).unwrap();
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
    fails(folder, &["predict", model, "pictures/2.png"], &["pictures/2.png"]);
    fs::write(folder.join("x.png"), "text").unwrap();
    fails(folder, &["predict", model, "x.png"], &["x.png", "not an image"]);
    fails(folder, &["predict", "run", images[0]], &["run/config.json"]);
    misused(folder, &["predict", model], &["required"]);
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
