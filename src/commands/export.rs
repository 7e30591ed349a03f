//! `ofa export`

use crate::arguments::{choice, numbers};
use crate::commands::bench::check_folder;
use crate::commands::quantise::{calibration_images, open_data};
use crate::output::progress::Bar;
use crate::process::interrupt;
use anyhow::{Result, bail};
use clap::builder::PossibleValuesParser;
use ofa_evaluate::export::{self, Batch, FORMATS, Options};
use ofa_evaluate::model::load_config;
use ofa_evaluate::quantise::Engine;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Write models in the file formats of other engines, each into its model folder.
#[derive(clap::Args)]
pub struct Args {
    /// Model folders, extracted or imported.
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// File format.
    #[arg(long, default_value = "onnx", value_parser = PossibleValuesParser::new(FORMATS.iter().map(|format| format.name)))]
    format: String,
    /// File to write, for a single model (default: model.onnx in the model's folder).
    #[arg(long)]
    out: Option<PathBuf>,
    /// Version of ONNX's operators: 13 to 21. Before 14 hard-swish and hard-sigmoid are written in parts, for parsers
    /// that do not know them [default: 17].
    #[arg(long, value_parser = numbers::opset)]
    opset: Option<usize>,
    /// Images per run.
    #[arg(long, default_value_t = 1, value_parser = numbers::batch)]
    batch: usize,
    /// Leave the number of images per run open.
    #[arg(long, conflicts_with = "batch")]
    dynamic_batch: bool,
    /// Return probabilities in place of logits.
    #[arg(long)]
    with_softmax: bool,
    /// Take images of bytes [batch, height, width, 3] (RGB, at the model's resolution), and normalise them inside.
    #[arg(long)]
    with_preprocessing: bool,
    /// Engine that will run int8 models, since each is fast with values rounded at other places. Files of other models
    /// are the same for all [default: the engine that the model was quantised for, otherwise onnxruntime].
    #[arg(long = "for", value_parser = choice::one_of(Engine::OTHERS))]
    engine: Option<Engine>,
    /// Also write this many preprocessed training images to calibration.npy in the model's folder, f32 [images, 3,
    /// height, width], for engines that quantise the f32 file by themselves.
    #[arg(long, value_parser = numbers::images, requires = "data")]
    calibration: Option<usize>,
    /// Images for --calibration: a folder or `builtin`.
    #[arg(long, requires = "calibration")]
    data: Option<String>,
    /// Seed of the built-in data, as in training.
    #[arg(long, default_value_t = 0, value_parser = numbers::seed, requires = "data")]
    data_seed: u64,
    /// Skip unreadable images with a count instead of failing.
    #[arg(long, requires = "data")]
    skip_bad: bool,
}

pub fn run(args: &Args) -> Result<Value> {
    if let (Some(out), [_, _, ..]) = (&args.out, &args.models[..]) {
        bail!(
            "--out {} names the file of a single model, and there are {}; leave it out",
            out.display(),
            args.models.len()
        );
    }
    let Some(format) = export::format(&args.format) else { bail!("the format '{}' is not known", args.format) };
    let mut options = Options {
        opset: args.opset,
        batch: if args.dynamic_batch { Batch::Dynamic } else { Batch::Fixed(args.batch) },
        softmax: args.with_softmax,
        preprocessing: args.with_preprocessing,
        engine: Engine::OnnxRuntime,
    };
    let data = args.data.as_ref().map(|source| open_data(source, None, args.data_seed, args.skip_bad)).transpose()?;
    let bar = Bar::new("exporting", args.models.len(), "models");
    let mut files = Vec::new();
    for folder in &args.models {
        interrupt::check()?;
        check_folder(folder, "export")?;
        let quantisation = load_config(folder)?.quantisation;
        let own = quantisation.map(|quantisation| quantisation.engine).filter(|engine| *engine != Engine::Ofa);
        options.engine = args.engine.or(own).unwrap_or(Engine::OnnxRuntime);
        let (path, bytes) = export::export(folder, format, &options, args.out.as_deref())?;
        say!("{}: {:.1} kB", path.display(), bytes as f64 / 1e3);
        let mut file = json!({ "model": folder, "file": path, "bytes": bytes });
        if let (Some(data), Some(count)) = (&data, args.calibration) {
            let images = calibration_images(&load_config(folder)?, data, count)?;
            let path = export::write_calibration(folder, &images)?;
            say!("{}", path.display());
            file["calibration"] = json!(path);
        }
        files.push(file);
        bar.add(1);
    }
    Ok(json!({ "files": files }))
}
