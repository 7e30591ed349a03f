//! `ofa predict`

use crate::commands::bench::check_folder;
use crate::{interrupt, numbers};
use anyhow::Result;
use ofa_evaluate::Model;
use ofa_supernet::data::image_input;
use serde::Serialize;
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
    /// Print JSON.
    #[arg(long)]
    json: bool,
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

pub fn run(args: &Args) -> Result<()> {
    check_folder(&args.model, "predict")?;
    let mut model = Model::load(&args.model)?;
    let (resolution, labels) = (model.config().network.resolution, model.config().labels.clone());
    let normalisation = model.config().normalisation.clone();
    let mut predictions = Vec::with_capacity(args.images.len());
    for path in &args.images {
        interrupt::check()?;
        let input = image_input(path, resolution, &normalisation)?;
        let probabilities = softmax(model.network().run(&input, 1)?);
        let mut order: Vec<usize> = (0..probabilities.len()).collect();
        // A stable sort: equal probabilities stay in the order of the classes.
        order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
        let class =
            |&index: &usize| ClassProbability { class: labels[index].clone(), probability: probabilities[index] };
        let classes = order.iter().take(args.top).map(class).collect();
        predictions.push(Prediction { image: path.display().to_string(), classes });
    }
    if args.json {
        say!("{}", serde_json::to_string_pretty(&predictions)?);
        return Ok(());
    }
    for Prediction { image, classes } in predictions {
        let classes = classes.iter().map(|class| format!("{} {:.1} %", class.class, 100.0 * class.probability));
        say!("{image}: {}", classes.collect::<Vec<_>>().join(", "));
    }
    Ok(())
}

/// Probabilities of the classes.
fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - largest).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.into_iter().map(|value| value / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_add_up_and_do_not_overflow() {
        let found = softmax(&[1000.0, 1000.0 - 2f32.ln(), -1000.0]);
        let expected = [2.0 / 3.0, 1.0 / 3.0, 0.0];
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4), "{found:?}");
    }
}
