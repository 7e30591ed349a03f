//! Classifies images with an extracted model, f32 or int8.
//!
//! `cargo run --release --example classify -- FOLDER IMAGE...`, where FOLDER is a model folder of `ofa extract` or
//! `ofa quantise`. A program of one's own needs only the crate `ofa-evaluate`.

use ofa_evaluate::{Model, Result, runtime};
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut model = Model::load(arguments.next().expect("a model folder, then images"))?;
    for image in arguments {
        let (class, probability) = classify(&mut model, &image)?;
        println!("{image}: {class} {:.1} %", 100.0 * probability);
    }
    Ok(())
}

/// The most probable class of an image, and its probability.
pub fn classify(model: &mut Model, image: &str) -> Result<(String, f64)> {
    let input = model.read_image(image)?;
    let probabilities = runtime::softmax(model.network().run(&input, 1)?);
    let class = (0..probabilities.len()).max_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b]));
    let class = class.expect("a network has classes");
    Ok((model.config().labels[class].clone(), probabilities[class]))
}
