//! `ofa quantise`

use crate::commands::bench::check_folder;
use crate::run_folder::{DataConfig, data_flag};
use crate::{interrupt, numbers, progress};
use anyhow::{Result, bail};
use clap::builder::PossibleValuesParser;
use ofa_evaluate::Model;
use ofa_evaluate::model::{ModelConfig, load_weights, save_quantised};
use ofa_evaluate::quantise::{Engine, LEAST_IMAGES, Options, Quantised, quantise};
use ofa_supernet::data::{Dataset, Normalisation};
use ofa_supernet::seed::{Stream, generator};
use std::path::{Path, PathBuf};

/// Images on which the int8 model is compared with the f32 model.
const COMPARED: usize = 128;

/// Smallest disturbance of the logits by one layer for which an exception is worth its time. A layer that disturbs them
/// by half of it was kept in f32, and the error of the whole network stayed as it was.
const WORTH_KEEPING: f64 = 0.02;

/// Make 8-bit integer models of extracted models, calibrated on training images.
#[derive(clap::Args)]
pub struct Args {
    /// Model folders, extracted or imported; each gets the folder NAME-int8 beside it.
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// Images whose training split calibrates the integers: a folder or `builtin`.
    #[arg(long)]
    data: String,
    /// Seed of the built-in data, as in training.
    #[arg(long, default_value_t = 0, value_parser = numbers::seed)]
    data_seed: u64,
    /// Skip unreadable images with a count instead of failing.
    #[arg(long)]
    skip_bad: bool,
    /// Folder to write, for a single model.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Training images to calibrate on, at least 32.
    #[arg(long, default_value_t = QuantiseOptions::default().images, value_parser = numbers::images)]
    images: usize,
    /// Engine that will run the models: each rounds values at other places. The default is this program's runtime, and
    /// the same as for openvino; for tensorrt, zero is in the middle of the integers. `ofa bench` runs all of them.
    #[arg(long = "for", default_value = "ofa", value_parser = PossibleValuesParser::new(ENGINES.iter().map(|engine| engine.0)))]
    engine: String,
    /// Bits of the weights: 8, or 7 for other engines on x86 processors without VNNI, which add products in 16 bits.
    #[arg(long, default_value_t = 8, value_parser = numbers::weight_bits)]
    weight_bits: u8,
    /// Layer that stays in f32, by the name of its tensors (blocks.1.0.conv_dw); may be repeated.
    #[arg(long)]
    keep_f32: Vec<String>,
}

/// Names of the engines.
const ENGINES: [(&str, Engine); 4] = [
    ("ofa", Engine::Ofa),
    ("onnxruntime", Engine::OnnxRuntime),
    ("openvino", Engine::OpenVino),
    ("tensorrt", Engine::TensorRt),
];

/// The engine of this name.
pub fn engine(name: &str) -> Result<Engine> {
    match ENGINES.iter().find(|engine| engine.0 == name) {
        Some((_, engine)) => Ok(*engine),
        None => bail!("the engine '{name}' is not known; choose one of {}", ENGINES.map(|engine| engine.0).join(", ")),
    }
}

/// Settings of a quantisation.
pub struct QuantiseOptions {
    /// Training images.
    pub images: usize,
    /// Settings of the integers.
    pub integers: Options,
}

impl Default for QuantiseOptions {
    fn default() -> Self {
        let integers = Options { engine: Engine::Ofa, weight_bits: 8, keep_f32: [].into() };
        QuantiseOptions { images: 512, integers }
    }
}

pub fn run(args: &Args) -> Result<()> {
    if let (Some(out), [_, _, ..]) = (&args.out, &args.models[..]) {
        bail!(
            "--out {} names the folder of a single model, and there are {}; leave it out",
            out.display(),
            args.models.len()
        );
    }
    if args.images < LEAST_IMAGES {
        bail!("--images {}: calibration needs at least {LEAST_IMAGES} images", args.images);
    }
    args.models.iter().try_for_each(|folder| check_folder(folder, "quantise"))?;
    let data = open_data(&args.data, args.data_seed, args.skip_bad)?;
    let keep_f32 = args.keep_f32.iter().cloned().collect();
    let integers = Options { engine: engine(&args.engine)?, weight_bits: args.weight_bits, keep_f32 };
    let options = QuantiseOptions { images: args.images, integers };
    args.models.iter().try_for_each(|folder| quantise_folder(folder, &data, &options, args.out.as_deref()))
}

/// Opens images whose training split calibrates models, each with its own normalisation.
pub fn open_data(source: &str, seed: u64, skip_bad: bool) -> Result<Dataset> {
    let normalisation = Some(Normalisation::IMAGENET);
    DataConfig { source: data_flag(source)?, seed, skip_bad, normalisation, ..DataConfig::default() }.open()
}

/// At most `count` training images as the model takes them, without augmentation. Equal data give equal images.
pub fn calibration_images(config: &ModelConfig, data: &Dataset, count: usize) -> Result<Vec<f32>> {
    let data = Dataset { normalisation: config.normalisation.clone(), ..data.clone() };
    let drawn = data.train.draw(count, &mut generator(0, Stream::Recalibration, &[]));
    Ok(data.evaluation_batch(&data.train, &drawn, config.network.resolution)?.images)
}

/// Quantises the model in `folder` on training images of `data`, and prints how much of it is left.
pub fn quantise_folder(folder: &Path, data: &Dataset, options: &QuantiseOptions, out: Option<&Path>) -> Result<()> {
    interrupt::check()?;
    let (config, weights) = load_weights(folder)?;
    let out = out.map_or_else(|| int8_folder(folder), Path::to_path_buf);
    let images = calibration_images(&config, data, options.images)?;
    let bar = progress::plain_bar(0);
    let quantised = quantise(&config, &weights, &images, &options.integers, &mut |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
        interrupt::control()
    })?;
    bar.finish_and_clear();
    save_quantised(&out, &quantised.config, &quantised.network)?;
    let mut models = [Model::load(folder)?, Model::load(&out)?];
    let bytes = models.each_ref().map(|model| model.file_bytes() as f64 / 1e3);
    let size = config.network.resolution;
    let compared = COMPARED.min(images.len() / (3 * size * size));
    let same = agreement(&mut models, &images, compared)?;
    say!(
        "{}: {:.1} kB (before: {:.1} kB); {:.1} % of {compared} training images at {size} px keep their class",
        out.display(),
        bytes[1],
        bytes[0],
        100.0 * same
    );
    print_exceptions(&quantised);
    Ok(())
}

/// The folder NAME-int8 beside `folder`.
fn int8_folder(folder: &Path) -> PathBuf {
    let folder = folder.canonicalize().map_or_else(
        |_| folder.to_path_buf(),
        |path| {
            // As it was named, unless the name is in the path only.
            if folder.file_name().is_some() { folder.to_path_buf() } else { path }
        },
    );
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    folder.with_file_name(format!("{name}-int8"))
}

/// Share of the first `count` images to which both models give the same class.
fn agreement(models: &mut [Model; 2], images: &[f32], count: usize) -> Result<f64> {
    let spec = models[0].config().network.clone();
    let images = &images[..count * spec.resolution * spec.resolution * 3];
    let [exact, rounded] = models.each_mut().map(|model| {
        let logits = model.network().run(images, count)?.chunks(spec.classes);
        let largest = |logits: &[f32]| (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        Ok::<Vec<_>, ofa_evaluate::Error>(logits.map(largest).collect())
    });
    Ok(exact?.iter().zip(rounded?).filter(|(a, b)| **a == *b).count() as f64 / count as f64)
}

/// Names the layers that disturb the logits most.
fn print_exceptions(quantised: &Quantised) {
    let worth = quantised.sensitivity.iter().filter(|(_, share)| *share > WORTH_KEEPING).take(5);
    let worth: Vec<String> = worth.map(|(name, share)| format!("{name} {:.1} %", 100.0 * share)).collect();
    if !worth.is_empty() {
        say!(
            "  squared error of the logits by a layer alone in int8: {}; leave one in f32 with --keep-f32",
            worth.join(", ")
        );
    }
}
