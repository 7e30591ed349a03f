//! `ofa predict`

use crate::arguments::numbers;
use crate::commands::bench::check_folder;
use crate::output::progress::Bar;
use crate::process::interrupt;
use anyhow::Result;
use ofa_evaluate::Model;
use ofa_evaluate::runtime::softmax;
use ofa_supernet::quote::visible;
use serde::Serialize;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Classify images with an extracted model; each image is read exactly as in bench.
#[derive(clap::Args)]
pub struct Args {
    /// Model folder.
    model: PathBuf,
    /// JPEG or PNG files.
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// Classes to print for each image, the most probable first.
    #[arg(long, default_value_t = 3, value_parser = numbers::shown_classes)]
    top: usize,
}

/// Classes of an image, the most probable first.
#[derive(Serialize)]
struct Prediction {
    image: String,
    classes: Vec<ClassProbability>,
}

#[derive(Serialize)]
struct ClassProbability {
    class: String,
    probability: f64,
}

pub fn run(args: &Args) -> Result<Value> {
    check_folder(&args.model, "predict")?;
    let mut model = Model::load(&args.model)?;
    let labels = model.config().labels.clone();
    let mut predictions = Vec::with_capacity(args.images.len());
    let bar = Bar::new("classifying", args.images.len(), "images");
    for path in &args.images {
        interrupt::check()?;
        let input = model.read_image(path)?;
        let probabilities = softmax(model.network().run(&input, 1)?);
        let mut order: Vec<usize> = (0..probabilities.len()).collect();
        // A stable sort: equal probabilities stay in the order of the classes.
        order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
        let class =
            |&index: &usize| ClassProbability { class: labels[index].clone(), probability: probabilities[index] };
        let classes = order.iter().take(args.top).map(class).collect();
        predictions.push(Prediction { image: path.display().to_string(), classes });
        bar.add(1);
    }
    drop(bar);
    for Prediction { image, classes } in &predictions {
        let class = |class: &ClassProbability| format!("{} {:.1} %", visible(&class.class), 100.0 * class.probability);
        let classes = classes.iter().map(class);
        say!("{}: {}", visible(image), classes.collect::<Vec<_>>().join(", "));
    }
    Ok(json!({ "images": predictions }))
}
