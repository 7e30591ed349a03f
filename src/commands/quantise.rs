//! `ofa quantise`

use crate::arguments::{choice, numbers};
use crate::commands::bench::check_folder;
use crate::output::progress::{Bar, counted};
use crate::output::terminal;
use crate::process::interrupt;
use crate::run_folder::model_folders::{check_int8_replaceable, int8_folder, name_beside};
use crate::run_folder::{DataConfig, class_names, data_flag};
use anyhow::{Result, bail};
use ofa_evaluate::bench::Score;
use ofa_evaluate::model::{ModelConfig, load_config, load_weights, save_quantised};
use ofa_evaluate::quantise::{
    Engine, FinetuneOptions, LEAST_IMAGES, Options, Quantised, QuantisedNetwork, Sensitivity, finetune, quantise,
};
use ofa_evaluate::runtime::Weights;
use ofa_evaluate::{Model, StaticNetwork};
use ofa_supernet::data::{Augmentation, Dataset, Normalisation};
use ofa_supernet::files::make_folder;
use ofa_supernet::seed::{Stream, generator};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Images on which the int8 model is compared with the f32 model.
const COMPARED: usize = 128;

/// Images per batch when accuracies are measured.
const BATCH: usize = 100;

/// Error of the logits, as a share of their power, below which no exception is worth its time.
const SMALL_ERROR: f64 = 0.01;

/// Share of the error that must go with the rounding of a single layer, so that this layer is worth an exception.
const WORTH_KEEPING: f64 = 0.25;

/// Make 8-bit integer models of extracted models, calibrated on training images.
#[derive(clap::Args)]
pub struct Args {
    /// Model folders, extracted or imported; each gets the folder NAME-int8 beside it. Those that are int8 already are
    /// skipped.
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// Images whose training split calibrates the integers: a folder or `builtin`.
    #[arg(long)]
    data: String,
    /// With --finetune: images carved from the training images for validation; as many as in training, so that the
    /// model was not trained on them.
    #[arg(long, requires = "finetune", value_parser = numbers::images)]
    validation: Option<usize>,
    /// Seed of the built-in data and of the validation split, as in training.
    #[arg(long, default_value_t = 0, value_parser = numbers::seed)]
    data_seed: u64,
    /// Skip unreadable images with a count instead of failing.
    #[arg(long)]
    skip_bad: bool,
    /// Folder to write, for a single model.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Replace int8 models that are fine-tuned, and models of another subnet or number type.
    #[arg(long)]
    overwrite: bool,
    /// Training images to calibrate on, at least 32.
    #[arg(long, default_value_t = QuantiseOptions::default().images, value_parser = numbers::images)]
    images: usize,
    /// Engine that will run the models, since each rounds values at other places. Those of this program (`ofa`) and of
    /// openvino are the same; for tensorrt integers are symmetric about zero. `ofa bench` runs all of them.
    #[arg(long = "for", default_value = "ofa", value_parser = choice::one_of(Engine::TABLE))]
    engine: Engine,
    /// Bits of the weights: 8, or 7 for other engines on x86 processors without VNNI, which add products in 16 bits.
    #[arg(long, default_value_t = 8, value_parser = numbers::weight_bits)]
    weight_bits: u8,
    /// Layer that stays in f32, by the name of its tensors (blocks.1.0.conv_dw); may be repeated.
    #[arg(long)]
    keep_f32: Vec<String>,
    /// Epochs of fine-tuning with quantisation in the loop, on the training images with the f32 model as teacher. The
    /// integers with the better validation accuracy are stored.
    #[arg(long, value_name = "EPOCHS", value_parser = numbers::epochs)]
    finetune: Option<f64>,
    /// Learning rate of fine-tuning, relative to the size of each weight.
    #[arg(long, default_value_t = FinetuneOptions::LEARNING_RATE, value_parser = numbers::learning_rate, requires = "finetune")]
    finetune_rate: f64,
    /// Seed of the order and the augmentation of the images in fine-tuning.
    #[arg(long, default_value_t = 0, value_parser = numbers::seed, requires = "finetune")]
    finetune_seed: u64,
}

/// Settings of a quantisation.
pub struct QuantiseOptions {
    /// Training images.
    pub images: usize,
    /// Settings of the integers.
    pub integers: Options,
    /// Fine-tuning with quantisation in the loop.
    pub finetune: Option<FinetuneOptions>,
}

impl Default for QuantiseOptions {
    fn default() -> Self {
        let integers = Options { engine: Engine::Ofa, weight_bits: 8, keep_f32: [].into() };
        QuantiseOptions { images: 512, integers, finetune: None }
    }
}

pub fn run(args: &Args) -> Result<Value> {
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
    let folders = f32_models(&args.models)?;
    for folder in &folders {
        let out = args.out.clone().unwrap_or_else(|| int8_folder(folder));
        if out.components().any(|part| part == std::path::Component::ParentDir) {
            // Otherwise the system would not follow a path such as `new/..`.
            make_folder(&out)?;
        }
        let written = out.canonicalize().ok();
        let is_written = |folder: &Path| written.is_some() && folder.canonicalize().ok() == written;
        if is_written(folder) {
            bail!("--out {}: this is the f32 model itself; name another folder", out.display());
        }
        if folders.iter().any(|other| is_written(other)) {
            bail!(
                "{}: would be an f32 model to quantise and the int8 model of {} too; quantise that one alone, with --out",
                out.display(),
                folder.display()
            );
        }
        if !args.overwrite {
            check_int8_replaceable(&out, &load_config(folder)?.subnet)?;
        }
    }
    let data = open_data(&args.data, args.validation, args.data_seed, args.skip_bad)?;
    if args.finetune.is_some() && args.validation.is_none() {
        terminal::note(
            "validation accuracies are of images that the model may have been trained on, unless --validation and \
             --data-seed are those of its training; `ofa extract --int8 --finetune` knows them",
        );
    }
    let keep_f32 = args.keep_f32.iter().cloned().collect();
    let integers = Options { engine: args.engine, weight_bits: args.weight_bits, keep_f32 };
    let finetune = args.finetune.map(|epochs| FinetuneOptions {
        epochs,
        learning_rate: args.finetune_rate,
        augmentation: Augmentation::default(),
        seed: args.finetune_seed,
    });
    let options = QuantiseOptions { images: args.images, integers, finetune };
    let models = folders.iter().map(|folder| quantise_folder(folder, &data, &options, args.out.as_deref()));
    Ok(json!({ "models": models.collect::<Result<Vec<Value>>>()? }))
}

/// The f32 models among `folders`. A pattern such as `run/models/*` also names the int8 models that were made of them.
fn f32_models(folders: &[PathBuf]) -> Result<Vec<&PathBuf>> {
    let (mut models, mut int8) = (Vec::new(), Vec::new());
    for folder in folders {
        check_folder(folder, "quantise")?;
        match load_config(folder)?.quantisation {
            Some(_) => int8.push(folder.display().to_string()),
            None => models.push(folder),
        }
    }
    if models.is_empty() {
        bail!("{}: the model is int8 already; name an f32 model", int8.join(", "));
    }
    if !int8.is_empty() {
        terminal::note(format!("skipped, as they are int8 already: {}", int8.join(", ")));
    }
    Ok(models)
}

/// Opens images whose training split calibrates models, each with its own normalisation.
pub fn open_data(source: &str, validation: Option<usize>, seed: u64, skip_bad: bool) -> Result<Dataset> {
    let normalisation = Some(Normalisation::IMAGENET);
    DataConfig { source: data_flag(source)?, validation, seed, skip_bad, normalisation, ..DataConfig::default() }.open()
}

/// At most `count` training images as the model takes them, without augmentation. Equal data give equal images.
pub fn calibration_images(config: &ModelConfig, data: &Dataset, count: usize) -> Result<Vec<f32>> {
    let data = Dataset { normalisation: config.normalisation.clone(), ..data.clone() };
    let drawn = data.train.draw(count, &mut generator(0, Stream::Recalibration, &[]));
    if drawn.len() < count {
        terminal::note(format!("{count} training images were asked for, and there are {}", drawn.len()));
    }
    Ok(data.evaluation_batch(&data.train, &drawn, config.network.resolution)?.images)
}

/// Quantises the model in `folder` on training images of `data`, and prints how much of it is left.
pub fn quantise_folder(folder: &Path, data: &Dataset, options: &QuantiseOptions, out: Option<&Path>) -> Result<Value> {
    interrupt::check()?;
    let (config, weights) = load_weights(folder)?;
    let out = out.map_or_else(|| int8_folder(folder), Path::to_path_buf);
    let finetuning = options.finetune.as_ref().map(|options| Finetuning::new(folder, &config, data, options));
    let finetuning = finetuning.transpose()?;
    let images = calibration_images(&config, data, options.images)?;
    let bar = Bar::new(format!("quantising {}", folder.display()), 0, "passes");
    let mut quantised = quantise(&config, &weights, &images, &options.integers, &mut |done, all| {
        bar.set(done, all);
        interrupt::control()
    })?;
    drop(bar);
    let (mut comparison, mut tried) = (None, None);
    if let Some(finetuning) = finetuning {
        let finetuned = finetuning.run(&quantised, &weights, &images)?;
        let compared = finetuning.compare([&quantised.network, &finetuned.network], &weights)?;
        if compared.is_finetuned_better() {
            quantised = finetuned;
        } else {
            tried = finetuned.config.quantisation.and_then(|quantisation| quantisation.finetuned);
        }
        comparison = Some(compared);
    }
    if let Some(quantisation) = &mut quantised.config.quantisation {
        quantisation.f32_model = name_beside(folder, &out);
        quantisation.tried_finetuning = tried;
    }
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
    match &comparison {
        Some(comparison) => comparison.print(),
        None => print_exceptions(&quantised.sensitivity),
    }
    Ok(json!({
        "model": out,
        "f32_model": folder,
        "bytes": models[1].file_bytes(),
        "f32_bytes": models[0].file_bytes(),
        "compared_images": compared,
        "same_class": same,
        "logits_error": quantised.sensitivity.error,
        "finetuning": comparison.map(|comparison| comparison.json()),
    }))
}

/// Fine-tuning of one model, and the images that judge it.
struct Finetuning<'a> {
    folder: &'a Path,
    options: &'a FinetuneOptions,
    /// The images with the model's normalisation, and its classes in its order.
    data: Dataset,
    resolution: usize,
}

impl<'a> Finetuning<'a> {
    fn new(folder: &'a Path, config: &ModelConfig, data: &Dataset, options: &'a FinetuneOptions) -> Result<Self> {
        let data = class_names::in_order_of(&config.labels, data, &format!("{}: the model", folder.display()))?;
        let data = Dataset { normalisation: config.normalisation.clone(), ..data };
        Ok(Finetuning { folder, options, data, resolution: config.network.resolution })
    }

    fn run(&self, start: &Quantised, weights: &Weights, images: &[f32]) -> Result<Quantised> {
        let bar = Bar::new(format!("fine-tuning the integers of {}", self.folder.display()), 0, "steps");
        let mut begun = false;
        let finetuned = finetune(start, weights, images, &self.data, self.options, &mut |at| {
            if !std::mem::replace(&mut begun, true) {
                terminal::note(format!(
                    "fine-tuning the integers of {}: {}",
                    self.folder.display(),
                    counted(at.steps, "step")
                ));
            }
            bar.advance(at.step, at.steps, [format!("loss {:.4}", at.loss)]);
            interrupt::control()
        })?;
        Ok(finetuned)
    }

    /// Compares the integers before and after fine-tuning.
    fn compare(&self, [before, finetuned]: [&QuantisedNetwork; 2], weights: &Weights) -> Result<Comparison> {
        Ok(Comparison {
            images: self.data.validation.len(),
            exact: self.accuracy(StaticNetwork::new(&before.spec, weights)?)?,
            before: self.accuracy(StaticNetwork::quantised(before)?)?,
            finetuned: self.accuracy(StaticNetwork::quantised(finetuned)?)?,
        })
    }

    /// Validation accuracy, from 0 to 1.
    fn accuracy(&self, mut network: StaticNetwork) -> Result<f64> {
        let mut score = Score::new(network.spec().classes);
        for indices in (0..self.data.validation.len()).collect::<Vec<_>>().chunks(BATCH) {
            interrupt::check()?;
            let batch = self.data.evaluation_batch(&self.data.validation, indices, self.resolution)?;
            score.add(network.run(&batch.images, indices.len())?, &batch.labels)?;
        }
        Ok(score.top1())
    }
}

/// Validation accuracies of a model.
struct Comparison {
    images: usize,
    exact: f64,
    before: f64,
    finetuned: f64,
}

impl Comparison {
    /// Also of equals, such as all without validation images.
    fn is_finetuned_better(&self) -> bool {
        self.finetuned >= self.before
    }

    fn json(&self) -> Value {
        json!({
            "images": self.images,
            "f32_accuracy": self.exact,
            "accuracy_before": self.before,
            "finetuned_accuracy": self.finetuned,
            "stored": if self.is_finetuned_better() { "fine-tuned" } else { "before" },
        })
    }

    fn print(&self) {
        if self.images == 0 {
            say!("  there are no validation images to compare on; the fine-tuned integers are stored");
            return;
        }
        let percent = |accuracy: f64| format!("{:.2} %", 100.0 * accuracy);
        say!(
            "  accuracy on {} validation images: {} in f32, {} quantised after training, {} fine-tuned; the {} are stored",
            self.images,
            percent(self.exact),
            percent(self.before),
            percent(self.finetuned),
            if self.is_finetuned_better() { "fine-tuned integers" } else { "integers from before fine-tuning" }
        );
    }
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

/// Names the layers whose rounding causes a large part of the error.
fn print_exceptions(sensitivity: &Sensitivity) {
    let Sensitivity { error, without } = sensitivity;
    if *error < SMALL_ERROR {
        return;
    }
    let worth = without.iter().filter(|(_, left)| *left < (1.0 - WORTH_KEEPING) * error).take(5);
    let worth: Vec<String> = worth.map(|(name, left)| format!("{:.1} % with {name}", 100.0 * left)).collect();
    if !worth.is_empty() {
        say!(
            "  rounding changes the logits by {:.1} % of their power; with one layer in f32 by {}; keep it with --keep-f32",
            100.0 * error,
            worth.join(", ")
        );
    }
}
