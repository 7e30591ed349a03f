//! Labels and normalisation as texts in the file. No standard exists, so each is written in the forms that tools read:
//! `names` (a Python dictionary from class number to label) and what else Ultralytics reads, OpenVINO's `model_info`,
//! and the `Image.*` keys of the ONNX specification.

use super::super::{Batch, Options};
use super::proto::Entry;
use crate::model::ModelConfig;

/// Metadata of the file.
pub fn entries(config: &ModelConfig, options: &Options) -> Vec<Entry> {
    let names = config.labels.iter().enumerate().map(|(class, label)| format!("{class}: {}", quoted(label)));
    let names = format!("{{{}}}", names.collect::<Vec<_>>().join(", "));
    // Labels are separated by spaces, so spaces inside a label are replaced.
    let words: Vec<String> = config.labels.iter().map(|label| label.replace(char::is_whitespace, "_")).collect();
    let pixels = |values: [f32; 3]| values.map(|value| (255.0 * f64::from(value)).to_string()).join(" ");
    let resolution = config.network.resolution;
    let batch = match options.batch {
        Batch::Fixed(batch) => batch,
        Batch::Dynamic => 1,
    };
    let mut entries = vec![
        ("names", names),
        ("imgsz", format!("[{resolution}, {resolution}]")),
        ("task", "classify".into()),
        // Ultralytics reads both, and ends without them.
        ("stride", "32".into()),
        ("batch", batch.to_string()),
        ("ofa.space", config.space.clone()),
        ("ofa.subnet", config.subnet.to_string()),
        ("model_info model_type", "Classification".into()),
        ("model_info labels", words.join(" ")),
        // The central square; by default the whole image would be squashed.
        ("model_info resize_type", "crop".into()),
        ("Image.BitmapPixelFormat", "Rgb8".into()),
        ("Image.ColorSpaceGamma", "SRGB".into()),
    ];
    // A model that normalises takes bytes as they are; for any other model the caller normalises.
    if options.preprocessing {
        entries.push(("Image.NominalPixelRange", "NominalRange_0_255".into()));
    } else {
        let list = |values: [f32; 3]| format!("{values:?}");
        entries.extend([
            ("mean", list(config.normalisation.mean)),
            ("std", list(config.normalisation.std)),
            ("model_info mean_values", pixels(config.normalisation.mean)),
            ("model_info scale_values", pixels(config.normalisation.std)),
        ]);
    }
    entries.into_iter().map(|(key, value)| Entry { key: key.into(), value }).collect()
}

/// The text in quotes, with escapes that JSON and Python share.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
