//! `ofa extract`

use crate::arguments::{numbers, shell, subnet_text};
use crate::commands::quantise::{QuantiseOptions, quantise_folder};
use crate::output::progress::{Bar, counted};
use crate::output::{next_steps, table, terminal};
use crate::process::interrupt;
use crate::run_folder::freshness::predictor_path;
use crate::run_folder::model_folders::{
    check_all, check_int8_replaceable, check_twins, int8_folder, is_current, is_twin_current, model_folder,
};
use crate::run_folder::model_origin::{Wanted, origin, provenance, search_results};
use crate::run_folder::{RunConfig, RunFolder, absolute, kept_samples, names};
use crate::search::measured::{Images, Measured};
use anyhow::{Result, anyhow, bail};
use ofa_evaluate::model::{CONFIG_FILE, Finetuned, NumberType, load_config};
use ofa_evaluate::quantise;
use ofa_extract::Predictor;
use ofa_extract::predictor::read_samples;
use ofa_extract::subnet::{Record, compare, extract};
use ofa_supernet::data::Dataset;
use ofa_supernet::network::Statistics;
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::train::checkpoint::{Folder, read_supernet};
use ofa_supernet::train::finetune::{FinetuneOptions, finetune};
use ofa_supernet::train::validation::{EvaluationSet, accuracy_on, recalibrate_on};
use ofa_supernet::train::{Control, TrainConfig};
use ofa_supernet::{SearchSpace, Subnet, Supernet, files};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Images on which every extracted model is compared with the supernet.
const COMPARED: usize = 64;

/// Images per batch when accuracies are measured.
const BATCH: usize = 100;

/// Subnets that are measured together: layers that they have in common at their beginning are computed once.
const TOGETHER: usize = 8;

/// Extract subnets from the supernet as stand-alone models, recalibrated and checked.
#[derive(clap::Args)]
pub struct Args {
    /// Run folder; models are written to its models/NAME.
    #[arg(long, default_value = "run")]
    run: PathBuf,
    /// Extract the results in the run folder's search/ with these names, or all. Models that are up to date are
    /// skipped.
    #[arg(long, value_name = "NAME", num_args = 0..)]
    search_results: Option<Vec<String>>,
    /// Subnet to extract: its text, smallest, middle or largest, or once-for-all's form as JSON ({"ks": [...], "e":
    /// [...], "d": [...], "r": 160}); may be repeated.
    #[arg(long)]
    subnet: Vec<String>,
    /// Folder name for a single --subnet (default: made from its text).
    #[arg(long)]
    name: Option<String>,
    /// Replace models that are fine-tuned, in integers or of another subnet, and extract again what is up to date.
    #[arg(long)]
    overwrite: bool,
    /// Epochs of fine-tuning on the training images, with the largest subnet as teacher. The weights with the better
    /// validation accuracy are stored. With --int8 the int8 twin is then fine-tuned for as many epochs, with
    /// quantisation in the loop.
    #[arg(long, value_parser = numbers::epochs)]
    finetune: Option<f64>,
    /// Learning rate of fine-tuning.
    #[arg(long, default_value_t = 0.005, value_parser = numbers::learning_rate, requires = "finetune")]
    finetune_rate: f64,
    /// Number type of the stored weights: f32, f16 or bf16.
    #[arg(long, default_value = "f32", value_parser = number_type)]
    dtype: NumberType,
    /// Also make the int8 twin NAME-int8 of each model, as `ofa quantise` does.
    #[arg(long)]
    int8: bool,
    /// Training images that recalibrate batch norm.
    #[arg(long, default_value_t = 2000, value_parser = numbers::images)]
    recalibration: usize,
    /// Images to use in place of the run's.
    #[arg(long)]
    data: Option<String>,
    /// Skip unreadable images with a count instead of failing.
    #[arg(long)]
    skip_bad: bool,
    /// Do not measure the models under the conditions of the predictor's samples too, to add them to these.
    #[arg(long)]
    no_sample: bool,
}

fn number_type(text: &str) -> Result<NumberType, String> {
    match text {
        "f32" => Ok(NumberType::F32),
        "f16" => Ok(NumberType::F16),
        "bf16" => Ok(NumberType::Bf16),
        _ => Err("expected f32, f16 or bf16".into()),
    }
}

/// Settings of an extraction.
pub struct Options {
    /// Epochs and learning rate of fine-tuning.
    pub finetune: Option<FinetuneOptions>,
    /// Stored number type.
    pub dtype: NumberType,
    /// Training images that recalibrate batch norm.
    pub recalibration: usize,
    /// Whether fine-tuned models, and models of other subnets or searches, may be replaced.
    pub overwrite: bool,
    /// Whether each model's subnet is measured as the predictor's samples were, and kept as one.
    pub sample: bool,
    /// Whether the images are not the run's.
    pub other_data: bool,
}

pub fn run(args: &Args) -> Result<Value> {
    let folder = RunFolder::new(&args.run);
    let _lock = folder.lock_shared()?;
    let config = folder.config()?;
    let wanted = wanted(args, &folder, &config)?;
    let finetune =
        args.finetune.map(|epochs| FinetuneOptions { epochs, learning_rate: args.finetune_rate, kd_ratio: 1.0 });
    let options = Options {
        finetune,
        dtype: args.dtype,
        recalibration: args.recalibration,
        overwrite: args.overwrite,
        sample: !args.no_sample,
        other_data: args.data.as_ref().is_some_and(|data| absolute(data) != config.data.source),
    };
    let (current, wanted) = part_current(args, &folder, wanted, &options)?;
    check_all(&folder, &wanted, options.overwrite)?;
    if args.int8 {
        check_twins(&folder, &current, &wanted)?;
    }
    let next = || {
        let images = next_steps::test_images(args.data.as_deref().unwrap_or(&config.data.source));
        terminal::next([format!("ofa bench {}/models/* --data {images}", shell::path(&args.run))]);
    };
    let of_int8 = |folder: &Path| {
        args.int8.then(|| int8_folder(folder)).filter(|twin| !is_twin_current(folder, twin, args.finetune))
    };
    let stale: Vec<&PathBuf> = current.iter().filter(|folder| of_int8(folder).is_some()).collect();
    if wanted.is_empty() && stale.is_empty() {
        next();
        return Ok(json!({ "models": [], "up_to_date": current, "int8": [] }));
    }
    if args.int8 && !args.overwrite {
        for Wanted { name, subnet, .. } in &wanted {
            check_int8_replaceable(&int8_folder(&model_folder(&folder, name)), subnet)?;
        }
        for folder in &stale {
            check_int8_replaceable(&int8_folder(folder), &load_config(folder)?.subnet)?;
        }
    }
    let data = folder.data(args.data.as_deref(), args.skip_bad)?;
    let rows = extract_all(&folder, &args.run, &config, &data, &wanted, &options)?;
    print_rows(&rows);
    let mut twins = Vec::new();
    if args.int8 {
        let finetune = args.finetune.map(|epochs| quantise::FinetuneOptions {
            epochs,
            learning_rate: quantise::FinetuneOptions::LEARNING_RATE,
            augmentation: config.train.augmentation.clone(),
            seed: config.train.seed,
        });
        let options = QuantiseOptions { finetune, ..QuantiseOptions::default() };
        for folder in stale.into_iter().chain(rows.iter().map(|row| &row.folder)) {
            twins.push(quantise_folder(folder, &data, &options, None)?);
        }
    }
    next();
    let models: Vec<Value> = rows.iter().map(Extracted::json).collect();
    Ok(json!({ "models": models, "up_to_date": current, "int8": twins }))
}

/// Folders of the search results' models that are up to date, each with a line about it, and what is left to extract.
/// With other images, or with `--overwrite`, all is extracted.
fn part_current(
    args: &Args,
    folder: &RunFolder,
    wanted: Vec<Wanted>,
    options: &Options,
) -> Result<(Vec<PathBuf>, Vec<Wanted>)> {
    if args.overwrite || args.data.is_some() {
        return Ok((Vec::new(), wanted));
    }
    let origin = origin(folder, options.recalibration, None)?;
    let finetuned = options.finetune.as_ref().map(finetuned);
    let (mut current, mut left) = (Vec::new(), Vec::new());
    for wanted in wanted {
        let path = model_folder(folder, &wanted.name);
        if wanted.search.is_some() && is_current(&path, &wanted, &origin, finetuned, options.dtype) {
            say!("{}: up to date, skipped (--overwrite extracts it again)", path.display());
            current.push(path);
        } else {
            left.push(wanted);
        }
    }
    Ok((current, left))
}

fn finetuned(options: &FinetuneOptions) -> Finetuned {
    Finetuned { epochs: options.epochs, learning_rate: options.learning_rate }
}

/// The subnets to extract.
fn wanted(args: &Args, folder: &RunFolder, config: &RunConfig) -> Result<Vec<Wanted>> {
    if let Some(name) = &args.name {
        names::check(name).map_err(|reason| anyhow!("--name '{name}': {reason}"))?;
        if args.subnet.len() != 1 {
            bail!(
                "--name '{name}' names the model of a single --subnet, but {} are given; omit --name",
                args.subnet.len()
            );
        }
    }
    let mut wanted: Vec<Wanted> = Vec::new();
    if let Some(names) = &args.search_results {
        wanted.extend(search_results(folder, &args.run, config, names, args.dtype, args.int8)?);
    }
    for text in &args.subnet {
        let subnet = subnet_text::read(&config.space, text)?;
        let name = match subnet_text::named(&config.space, text) {
            Some(_) => text.clone(),
            None => names::short(&subnet.to_string().replace([' ', ',', '|'], "-")),
        };
        wanted.push(Wanted { name: args.name.clone().unwrap_or(name), subnet, search: None });
    }
    if wanted.is_empty() {
        bail!(
            "nothing to extract: give --search-results or --subnet 'r32 d2,... k... e...' (or smallest, middle, largest)"
        );
    }
    Ok(wanted)
}

/// Extracted model with the results of its checks.
pub struct Extracted {
    pub folder: PathBuf,
    pub subnet: Subnet,
    /// Accuracy that the search or the predictor predicts; `None` if there is none.
    pub predicted: Option<f64>,
    /// Validation accuracy inside the supernet, before any fine-tuning; `None` without validation images.
    pub accuracy: Option<f64>,
    /// Validation accuracy after fine-tuning; `None` without fine-tuning or validation images.
    pub finetuned_accuracy: Option<f64>,
    /// Whether fine-tuning was asked for.
    pub tuned: bool,
    /// Largest difference of a logit between model and supernet, and the largest logit.
    pub difference: (f64, f64),
}

impl Extracted {
    /// Whether the fine-tuned weights are stored: the weights with the better accuracy are.
    fn is_finetuned(&self) -> bool {
        self.tuned && self.finetuned_accuracy >= self.accuracy
    }

    /// Validation accuracy of the stored weights.
    fn validated(&self) -> Option<f64> {
        if self.is_finetuned() { self.finetuned_accuracy } else { self.accuracy }
    }

    /// Says that fine-tuning at this rate did not help.
    fn warn_of_finetuning(&self, learning_rate: f64) {
        terminal::warning(format!(
            "{}: fine-tuning took validation accuracy from {:.2} to {:.2} %, so the earlier weights are stored; \
             give a lower --finetune-rate than {learning_rate}",
            self.folder.display(),
            100.0 * self.accuracy.unwrap_or_default(),
            100.0 * self.finetuned_accuracy.unwrap_or_default(),
        ));
    }

    fn json(&self) -> Value {
        json!({
            "model": self.folder,
            "subnet": self.subnet,
            "predicted": self.predicted,
            "accuracy": self.accuracy,
            "finetuned_accuracy": self.finetuned_accuracy,
            "stored": if self.is_finetuned() { "fine-tuned" } else { "before" },
            "logit_difference": self.difference.0,
            "largest_logit": self.difference.1,
        })
    }

    /// Fails if a model in f32 computes other logits than the supernet.
    fn check(&self, dtype: NumberType) -> Result<()> {
        let (difference, largest) = self.difference;
        if !largest.is_finite() || !difference.is_finite() {
            bail!(
                "{}: the network computes NaN or infinity for training images; its weights are of no use",
                self.folder.display()
            );
        }
        if dtype == NumberType::F32 && difference > 1e-3 * largest {
            bail!(
                "{}: the model's logits differ from the supernet's by {difference:.2e} (largest logit {largest:.2e}); please report this",
                self.folder.display(),
            );
        }
        Ok(())
    }
}

/// Extracts and checks each subnet.
pub fn extract_all(
    folder: &RunFolder,
    run: &Path,
    config: &RunConfig,
    data: &Dataset,
    wanted: &[Wanted],
    options: &Options,
) -> Result<Vec<Extracted>> {
    let path = Folder::of_run(run, 1).supernet_path();
    let (state, note) = read_supernet(&path)?;
    let digest = data.digest();
    let data = &folder.in_class_order(&note.classes, data)?;
    let copy = || -> Result<Supernet> {
        let net = Supernet::new(&note.space, note.classes.len(), 0)?;
        net.load_state(&state).map_err(|error| error.at(&path))?;
        Ok(net)
    };
    let supernet = copy()?;
    let is_other = options.other_data && note.trained_on.as_ref().is_none_or(|trained_on| trained_on.digest != digest);
    let origin = origin(folder, options.recalibration, is_other.then_some(data.name.as_str()))?;
    let (bar, batches) = (Bar::new("extracting", wanted.len(), "models"), AtomicUsize::new(0));
    let control = || {
        let batch = batches.fetch_add(1, Ordering::Relaxed);
        bar.details(["recalibrating and measuring".into(), format!("batch {batch}")]);
        interrupt::control()
    };
    let (seed, count) = (config.train.seed, options.recalibration);
    let recalibration = EvaluationSet::for_recalibration(data, count, BATCH, seed)?.with_control(&control);
    let of_split = || EvaluationSet::of_split(data, &data.validation, None, BATCH, seed);
    let validation = (!data.validation.is_empty()).then(of_split).transpose()?.map(|set| set.with_control(&control));
    let measure = |net: &Supernet, subnet: &Subnet| -> Result<(Statistics, Option<f64>)> {
        let statistics = recalibrate_on(net, subnet, &recalibration)?;
        let accuracy = validation.as_ref().map(|set| accuracy_on(net, subnet, &statistics, set)).transpose()?;
        Ok((statistics, accuracy))
    };
    if options.sample && validation.is_some() {
        sample(folder, &supernet, data, wanted)?;
    }
    let (predictor, mut rows) = (predictor(folder, supernet.space()), Vec::new());
    for one in wanted {
        interrupt::check()?;
        let Wanted { name, subnet, search } = one;
        let path = model_folder(folder, name);
        batches.store(0, Ordering::Relaxed);
        let (mut statistics, accuracy) = measure(&supernet, subnet)?;
        let mut row = Extracted {
            folder: path.clone(),
            subnet: subnet.clone(),
            predicted: predicted(one, predictor.as_ref()),
            accuracy,
            finetuned_accuracy: None,
            tuned: options.finetune.is_some(),
            difference: (0.0, 0.0),
        };
        let mut tuned = None;
        if let Some(options) = &options.finetune {
            let net = copy()?;
            finetune_subnet(&net, &supernet, subnet, data, &config.train, options)?;
            let (tuned_statistics, finetuned_accuracy) = measure(&net, subnet)?;
            row.finetuned_accuracy = finetuned_accuracy;
            if row.is_finetuned() {
                (tuned, statistics) = (Some((net, finetuned(options))), tuned_statistics);
            } else {
                row.warn_of_finetuning(options.learning_rate);
            }
        }
        let (net, how) = tuned.as_ref().map_or((&supernet, None), |(net, how)| (net, Some(*how)));
        let record = Record {
            dtype: options.dtype,
            origin: Some(one.origin(&origin)),
            finetuned: how,
            tried_finetuning: options.finetune.as_ref().map(finetuned).filter(|_| how.is_none()),
            provenance: Some(provenance(run, search.as_ref(), row.predicted, row.validated())),
        };
        extract(net, subnet, &statistics, &data.classes, &data.normalisation, record, &path)?;
        let images = compared_images(data, seed, subnet.resolution)?;
        row.difference = compare(net, subnet, &statistics, &path, &images)?;
        row.check(options.dtype).inspect_err(|_| {
            // Otherwise it would count as up to date.
            let _ = files::remove_file(&path.join(CONFIG_FILE));
        })?;
        rows.push(row);
        bar.add(1);
    }
    Ok(rows)
}

/// Images on which a model is compared with the supernet.
fn compared_images(data: &Dataset, seed: u64, resolution: usize) -> Result<Vec<f32>> {
    let drawn = data.train.draw(COMPARED, &mut generator(seed, Stream::Compare, &[]));
    Ok(data.evaluation_batch(&data.train, &drawn, resolution)?.images)
}

/// Accuracy that the search predicted, or else the predictor.
fn predicted(wanted: &Wanted, predictor: Option<&Predictor>) -> Option<f64> {
    match &wanted.search {
        Some(found) => found.predicted,
        None => predictor?.predict(std::slice::from_ref(&wanted.subnet)).ok()?.first().map(|a| a.clamp(0.0, 1.0)),
    }
}

/// The run's predictor, if there is one for its space and weights.
fn predictor(folder: &RunFolder, space: &SearchSpace) -> Option<Predictor> {
    let predictor = Predictor::load(&predictor_path(folder)).ok()?;
    let is_own = |weights: &str| folder.weights_checksum().is_ok_and(|own| own == weights);
    let is_of_run = predictor.space().difference_in_weights(space).is_none() && predictor.weights().is_none_or(is_own);
    is_of_run.then_some(predictor)
}

/// Measures the subnets as the predictor's samples were measured, and keeps that as samples: `ofa predictor` then fits
/// what was chosen, too.
fn sample(folder: &RunFolder, net: &Supernet, data: &Dataset, wanted: &[Wanted]) -> Result<()> {
    let space = net.space();
    let Some(conditions) = kept_samples::conditions(folder, space)? else { return Ok(()) };
    let known = read_samples(&folder.join(kept_samples::SAMPLES), space)?;
    let mut fresh: Vec<Subnet> = wanted.iter().map(|wanted| wanted.subnet.clone()).collect();
    fresh.retain(|subnet| known.iter().all(|sample| sample.subnet != *subnet));
    fresh.sort_unstable();
    fresh.dedup();
    let images = Images { recalibration: conditions.recalibration, images: conditions.images };
    let measured = Measured::new(net, data, &images, conditions.batch, conditions.seed)?;
    // Other weights or images: the samples are outdated.
    if fresh.is_empty() || measured.provenance(folder.weights_checksum()?)? != conditions {
        return Ok(());
    }
    let bar = Bar::new("measuring the subnets as samples", fresh.len(), "subnets");
    let mut samples = Vec::new();
    for subnets in fresh.chunks(TOGETHER) {
        samples.extend(measured.samples(subnets)?);
        bar.add(subnets.len());
    }
    kept_samples::keep_samples(folder, space, &measured, &samples)
}

fn finetune_subnet(
    net: &Supernet,
    teacher: &Supernet,
    subnet: &Subnet,
    data: &Dataset,
    config: &TrainConfig,
    options: &FinetuneOptions,
) -> Result<()> {
    let bar = Bar::new(format!("fine-tuning '{subnet}'"), 0, "steps");
    let mut begun = false;
    finetune(net, teacher, subnet, data, config, options, &mut |at| {
        if !std::mem::replace(&mut begun, true) {
            terminal::note(format!("fine-tuning '{subnet}': {}", counted(at.steps, "step")));
        }
        bar.advance(at.step, at.steps, [format!("loss {:.3}", at.loss)]);
        if interrupt::requested() { Control::Stop } else { Control::Continue }
    })?;
    Ok(())
}

/// Prints folder, accuracy and difference of each model; with fine-tuning also the accuracy after it, and which weights
/// are stored.
pub fn print_rows(rows: &[Extracted]) {
    if rows.is_empty() {
        return;
    }
    let tuning = rows.iter().any(|row| row.tuned);
    let predicting = rows.iter().any(|row| row.predicted.is_some());
    let percent = |accuracy: Option<f64>| accuracy.map_or("-".into(), |accuracy| format!("{:.2} %", 100.0 * accuracy));
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let mut cells = vec![row.folder.display().to_string()];
            cells.extend(predicting.then(|| percent(row.predicted)));
            cells.push(percent(row.accuracy));
            if tuning {
                let stored = if row.is_finetuned() { "fine-tuned" } else { "before" };
                cells.extend([percent(row.finetuned_accuracy), stored.into()]);
            }
            let (difference, largest) = row.difference;
            let share = difference / largest.max(f64::MIN_POSITIVE);
            cells.extend([format!("{share:.0e}"), row.subnet.to_string()]);
            cells
        })
        .collect();
    let accuracies: &[&str] = if tuning { &["before", "fine-tuned", "stored"] } else { &["validation"] };
    let predicted: &[&str] = if predicting { &["predicted"] } else { &[] };
    let header = [&["model"], predicted, accuracies, &["relative logit error", "subnet"]].concat();
    table::print_some(&header, &cells, &["relative logit error"]);
}
