//! `ofa extract`

use crate::commands::quantise::{QuantiseOptions, quantise_folder};
use crate::freshness::{predictor_path, warn_of_outdated};
use crate::measured::{Images, Measured};
use crate::run_folder::{RunConfig, RunFolder};
use crate::{interrupt, kept_samples, names, numbers, progress, result_files, shell, table};
use anyhow::{Result, anyhow, bail};
use ofa_evaluate::model::{CONFIG_FILE, Finetuned, NumberType, load_config};
use ofa_extract::predictor::read_samples;
use ofa_extract::subnet::{compare, extract};
use ofa_extract::{Predictor, Sample, SearchResult};
use ofa_supernet::data::Dataset;
use ofa_supernet::files::read_json;
use ofa_supernet::import::Setting;
use ofa_supernet::network::Statistics;
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::train::checkpoint::{Folder, read_supernet};
use ofa_supernet::train::finetune::{FinetuneOptions, finetune};
use ofa_supernet::train::validation::{EvaluationSet, accuracy_on, recalibrate_on};
use ofa_supernet::train::{Control, TrainConfig};
use ofa_supernet::{SearchSpace, Subnet, Supernet};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Images on which every extracted model is compared with the supernet.
const COMPARED: usize = 64;

/// Images per batch when accuracies are measured.
const BATCH: usize = 100;

/// Extract subnets from the supernet as stand-alone models, recalibrated and checked.
#[derive(clap::Args)]
pub struct Args {
    /// Run folder; models are written to its models/NAME.
    #[arg(long, default_value = "run")]
    run: PathBuf,
    /// Extract every result in the run folder's search/.
    #[arg(long)]
    search_results: bool,
    /// Subnet to extract: its text, `smallest`, `largest`, or the published code's form as JSON ({"ks": [...], "e":
    /// [...], "d": [...], "r": 160}); may be repeated.
    #[arg(long)]
    subnet: Vec<String>,
    /// Folder name for a single --subnet (default: made from its text).
    #[arg(long)]
    name: Option<String>,
    /// Replace models that are fine-tuned or of another subnet.
    #[arg(long)]
    overwrite: bool,
    /// Epochs of fine-tuning on the training images, with the largest subnet as teacher. The weights with the better
    /// validation accuracy are stored.
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
    /// Do not measure the models as the predictor's samples were measured, and do not keep that as samples.
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
}

/// A subnet to extract.
pub struct Wanted {
    /// Name of its model.
    pub name: String,
    pub subnet: Subnet,
    /// Sentence about the search that found it, and the accuracy that it predicted.
    pub search: Option<(String, Option<f64>)>,
}

impl Wanted {
    /// The result `name` of a search.
    pub fn of_search(name: String, result: &SearchResult) -> Self {
        let is_predicted = result.basis.as_ref().is_some_and(|basis| basis.predictor.is_some());
        let predicted = is_predicted.then_some(result.predicted_accuracy);
        let search = Some((result_files::sentence(&name, result), predicted));
        Wanted { name, subnet: result.best.clone(), search }
    }
}

pub fn run(args: &Args) -> Result<()> {
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
    };
    check_all(&folder, &wanted, &options)?;
    let data = folder.data(args.data.as_deref(), args.skip_bad)?;
    let rows = extract_all(&folder, &args.run, &config, &data, &wanted, &options)?;
    print_rows(&rows);
    if args.int8 {
        rows.iter().try_for_each(|row| quantise_folder(&row.folder, &data, &QuantiseOptions::default(), None))?;
    }
    let source = args.data.as_deref().unwrap_or(&config.data.source);
    say!("\nNext: ofa bench {}/models/* --data {}", shell::path(&args.run), shell::quote(source));
    Ok(())
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
    if args.search_results {
        wanted.extend(search_results(folder, &args.run, config)?);
    }
    for text in &args.subnet {
        let (name, subnet) = match text.as_str() {
            "smallest" => (text.clone(), config.space.smallest()),
            "largest" => (text.clone(), config.space.largest()),
            _ => {
                let subnet = if text.trim_start().starts_with('{') {
                    let setting: Setting = text.parse()?;
                    setting.subnet(&config.space, setting.resolution()?)?
                } else {
                    text.parse()?
                };
                (names::short(&subnet.to_string().replace([' ', ',', '|'], "-")), subnet)
            }
        };
        config.space.check(&subnet)?;
        wanted.push(Wanted { name: args.name.clone().unwrap_or(name), subnet, search: None });
    }
    if wanted.is_empty() {
        bail!("nothing to extract: give --search-results or --subnet 'r32 d2,... k... e...' (or smallest, largest)");
    }
    Ok(wanted)
}

/// Fails before any work if two models would have the same name, or a model would be lost.
fn check_all(folder: &RunFolder, wanted: &[Wanted], options: &Options) -> Result<()> {
    let mut names: HashMap<&str, &Subnet> = HashMap::new();
    for Wanted { name, subnet, search } in wanted {
        if names.insert(name, subnet).is_some_and(|other| other != subnet) {
            bail!("two of the subnets would be the model '{name}'; extract one of them separately, with --name");
        }
        if !options.overwrite {
            check_replaceable(&model_folder(folder, name), subnet, search.as_ref().map(|(sentence, _)| sentence))?;
        }
    }
    Ok(())
}

/// Fails if extracting `subnet` to `path` would replace a fine-tuned model, another subnet's, or another search's. Any
/// other model can be extracted again at any time.
fn check_replaceable(path: &Path, subnet: &Subnet, search: Option<&String>) -> Result<()> {
    // Weights without a configuration are what an interrupted extraction left.
    if !path.join(CONFIG_FILE).exists() {
        return Ok(());
    }
    let way_out = "give --overwrite to replace it, or extract under another --name";
    let held = match load_config(path) {
        Ok(held) => held,
        // A damaged configuration still shows whether the model was fine-tuned; others can be extracted again.
        Err(error)
            if std::fs::read_to_string(path.join(CONFIG_FILE)).is_ok_and(|text| text.contains("\"finetuned\"")) =>
        {
            bail!("{error}; {way_out}")
        }
        Err(_) => return Ok(()),
    };
    if let Some(finetuned) = held.finetuned {
        let (epochs, rate) = (finetuned.epochs, finetuned.learning_rate);
        bail!(
            "{}: this folder holds a fine-tuned model (--finetune {epochs} --finetune-rate {rate}); {way_out}",
            path.display()
        );
    }
    let origin = held.origin.unwrap_or_default();
    if let (Some((_, found)), false) =
        (origin.split_once(result_files::SENTENCE), search.is_some_and(|search| origin.contains(search)))
    {
        bail!("{}: this folder holds the result of another search, {found} {way_out}", path.display());
    }
    if held.subnet != *subnet {
        bail!("{}: this folder holds another subnet ('{}'); {way_out}", path.display(), held.subnet);
    }
    Ok(())
}

fn model_folder(folder: &RunFolder, name: &str) -> PathBuf {
    folder.join(&format!("models/{name}"))
}

/// Every result of the run folder's `search/`, by file name.
fn search_results(folder: &RunFolder, run: &Path, config: &RunConfig) -> Result<Vec<Wanted>> {
    let files = folder.json_files("search")?;
    if files.is_empty() {
        bail!(
            "{}: there are no search results yet; make some with: ofa search --run {} --limit any:macs=50M",
            folder.join("search").display(),
            shell::path(run)
        );
    }
    let mut results: Vec<(PathBuf, SearchResult)> = Vec::new();
    for file in files {
        let result: SearchResult = read_json(&file)?;
        config.space.check(&result.best).map_err(|error| error.at(&file))?;
        results.push((file, result));
    }
    warn_of_outdated(folder, &results)?;
    let named = |(file, result): (PathBuf, SearchResult)| {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        names::check(&name)
            .map_err(|reason| anyhow!("{}: the file's name becomes the model's: {reason}", file.display()))?;
        Ok(Wanted::of_search(name, &result))
    };
    results.into_iter().map(named).collect()
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

    /// Says that fine-tuning at this rate did not help.
    fn warn_of_finetuning(&self, learning_rate: f64) {
        progress::note(format!(
            "warning: {}: fine-tuning took validation accuracy from {:.2} to {:.2} %, so the earlier weights are stored; \
             give a lower --finetune-rate than {learning_rate}",
            self.folder.display(),
            100.0 * self.accuracy.unwrap_or_default(),
            100.0 * self.finetuned_accuracy.unwrap_or_default(),
        ));
    }

    /// Fails if a model in f32 computes other logits than the supernet.
    fn check(&self, dtype: NumberType) -> Result<()> {
        let (difference, largest) = self.difference;
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
    let data = &folder.in_class_order(&note.classes, data)?;
    let copy = || -> Result<Supernet> {
        let net = Supernet::new(&note.space, note.classes.len(), 0)?;
        net.load_state(&state).map_err(|error| error.at(&path))?;
        Ok(net)
    };
    let supernet = copy()?;
    let origin = origin(note.steps, &note.space.name, options.recalibration);
    let recalibration = EvaluationSet::for_recalibration(data, options.recalibration, BATCH, config.train.seed)?;
    let recalibration = recalibration.with_control(interrupt::control);
    let of_split = || EvaluationSet::of_split(data, &data.validation, None, BATCH, config.train.seed);
    let validation = (!data.validation.is_empty()).then(of_split).transpose()?;
    let validation = validation.map(|set| set.with_control(interrupt::control));
    let measure = |net: &Supernet, subnet: &Subnet| -> Result<(Statistics, Option<f64>)> {
        let statistics = recalibrate_on(net, subnet, &recalibration)?;
        let accuracy = validation.as_ref().map(|set| accuracy_on(net, subnet, &statistics, set)).transpose()?;
        Ok((statistics, accuracy))
    };
    if options.sample && validation.is_some() {
        sample(folder, &supernet, data, wanted)?;
    }
    let predictor = predictor(folder, supernet.space());
    let mut rows = Vec::new();
    for Wanted { name, subnet, search } in wanted {
        interrupt::check()?;
        let path = model_folder(folder, name);
        let predict = |predictor: &Predictor| predictor.predict(std::slice::from_ref(subnet)).ok()?.first().copied();
        let predicted = match search {
            Some((_, predicted)) => *predicted,
            None => predictor.as_ref().and_then(predict),
        };
        let (mut statistics, accuracy) = measure(&supernet, subnet)?;
        let mut row = Extracted {
            folder: path.clone(),
            subnet: subnet.clone(),
            predicted,
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
                let how = Finetuned { epochs: options.epochs, learning_rate: options.learning_rate };
                (tuned, statistics) = (Some((net, how)), tuned_statistics);
            } else {
                row.warn_of_finetuning(options.learning_rate);
            }
        }
        let (net, how) = tuned.as_ref().map_or((&supernet, None), |(net, how)| (net, Some(*how)));
        let origin = Some(match search {
            Some((sentence, _)) => format!("{origin} {sentence}"),
            None => origin.clone(),
        });
        let dtype = options.dtype;
        extract(net, subnet, &statistics, &data.classes, &data.normalisation, dtype, origin, how, &path)?;
        let compared = data.train.draw(COMPARED, &mut generator(config.train.seed, Stream::Compare, &[]));
        let batch = data.evaluation_batch(&data.train, &compared, subnet.resolution)?;
        row.difference = compare(net, subnet, &statistics, &path, &batch.images)?;
        row.check(options.dtype)?;
        rows.push(row);
    }
    Ok(rows)
}

/// What a model card says about where the weights come from.
fn origin(steps: usize, space: &str, recalibration: usize) -> String {
    let trained = match steps {
        0 => "a published, imported supernet".into(),
        steps => format!("a supernet trained for {steps} steps by progressive shrinking"),
    };
    format!(
        "Cut out of {trained}, in the search space `{space}`. Batch norm was recalibrated on {recalibration} training images."
    )
}

/// The run's predictor, if there is one for its space.
fn predictor(folder: &RunFolder, space: &SearchSpace) -> Option<Predictor> {
    let predictor = Predictor::load(&predictor_path(folder)).ok()?;
    let known = SearchSpace { resolutions: predictor.space().resolutions.clone(), ..space.clone() };
    predictor.space().difference(&known).is_none().then_some(predictor)
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
    let accuracies = measured.accuracies(&fresh)?;
    let samples = fresh.into_iter().zip(accuracies).map(|(subnet, accuracy)| Sample { subnet, accuracy });
    kept_samples::keep_samples(folder, space, &measured, &samples.collect::<Vec<_>>())
}

fn finetune_subnet(
    net: &Supernet,
    teacher: &Supernet,
    subnet: &Subnet,
    data: &Dataset,
    config: &TrainConfig,
    options: &FinetuneOptions,
) -> Result<()> {
    let bar = progress::bar(0, "steps");
    finetune(net, teacher, subnet, data, config, options, &mut |at| {
        if bar.length() == Some(0) {
            bar.suspend(|| progress::note(format!("fine-tuning '{subnet}': {} steps", at.steps)));
        }
        bar.set_length(at.steps as u64);
        bar.set_position(at.step as u64);
        bar.set_message(format!("fine-tuning, loss {:.3}", at.loss));
        if interrupt::requested() { Control::Stop } else { Control::Continue }
    })?;
    bar.finish_and_clear();
    Ok(())
}

/// Prints folder, accuracy and difference of each model; with fine-tuning also the accuracy after it, and which weights
/// are stored.
pub fn print_rows(rows: &[Extracted]) {
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
            cells.extend([format!("{:.1e} of {:.1}", row.difference.0, row.difference.1), row.subnet.to_string()]);
            cells
        })
        .collect();
    let accuracies: &[&str] = if tuning { &["before", "fine-tuned", "stored"] } else { &["validation"] };
    let predicted: &[&str] = if predicting { &["predicted"] } else { &[] };
    table::print(&[&["model"], predicted, accuracies, &["largest logit difference", "subnet"]].concat(), &cells);
}
