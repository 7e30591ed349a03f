//! `ofa extract`

use crate::run_folder::{RunConfig, RunFolder};
use crate::{interrupt, names, progress, table};
use anyhow::{Result, bail};
use ofa_evaluate::model::NumberType;
use ofa_extract::SearchResult;
use ofa_extract::subnet::{compare, extract};
use ofa_supernet::data::Dataset;
use ofa_supernet::files::read_json;
use ofa_supernet::import::Setting;
use ofa_supernet::train::checkpoint::{Folder, read_supernet};
use ofa_supernet::train::finetune::{FinetuneOptions, finetune};
use ofa_supernet::train::validation::{accuracy, recalibrate};
use ofa_supernet::train::{Control, TrainConfig};
use ofa_supernet::{SearchSpace, Subnet, Supernet};
use std::path::PathBuf;

/// Images on which every extracted model is compared with the supernet.
const COMPARED: usize = 64;

/// Cut subnets out of the supernet as models of their own, recalibrated and checked.
#[derive(clap::Args)]
pub struct Args {
    /// Run folder; models go to its models/NAME.
    #[arg(long, default_value = "run")]
    run: PathBuf,
    /// Every result in the run folder's search/.
    #[arg(long)]
    search_results: bool,
    /// A subnet's text, `smallest`, `largest`, or the published code's form as JSON ({"ks": [...], "e": [...], "d": [...], "r": 160});
    /// may be repeated.
    #[arg(long)]
    subnet: Vec<String>,
    /// Folder name for a single --subnet (default: made from its text).
    #[arg(long)]
    name: Option<String>,
    /// Epochs of fine-tuning on the training images, with the largest subnet as teacher.
    #[arg(long)]
    finetune: Option<f64>,
    /// Learning rate of fine-tuning.
    #[arg(long, default_value_t = 0.005)]
    finetune_rate: f64,
    /// Number type of the stored weights: f32, f16 or bf16.
    #[arg(long, default_value = "f32", value_parser = number_type)]
    dtype: NumberType,
    /// Training images that recalibrate batch norm.
    #[arg(long, default_value_t = 2000)]
    recalibration: usize,
    /// Other images than the run's.
    #[arg(long)]
    data: Option<String>,
    /// Skip unreadable images with a count instead of failing.
    #[arg(long)]
    skip_bad: bool,
}

fn number_type(text: &str) -> Result<NumberType, String> {
    match text {
        "f32" => Ok(NumberType::F32),
        "f16" => Ok(NumberType::F16),
        "bf16" => Ok(NumberType::Bf16),
        _ => Err("expected f32, f16 or bf16".into()),
    }
}

/// What to do with each subnet.
pub struct Options {
    /// Epochs and learning rate of fine-tuning.
    pub finetune: Option<FinetuneOptions>,
    /// Stored number type.
    pub dtype: NumberType,
    /// Training images that recalibrate batch norm.
    pub recalibration: usize,
}

pub fn run(args: &Args) -> Result<()> {
    let folder = RunFolder::new(&args.run);
    let _lock = folder.lock_shared()?;
    let config = folder.config()?;
    let mut wanted: Vec<(String, Subnet)> = Vec::new();
    if args.search_results {
        wanted.extend(search_results(&folder, &config.space)?);
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
        wanted.push((args.name.clone().filter(|_| args.subnet.len() == 1).unwrap_or(name), subnet));
    }
    if wanted.is_empty() {
        bail!("nothing to extract: give --search-results or --subnet 'r32 d2,... k... e...' (or smallest, largest)");
    }
    let data = folder.data(args.data.as_deref(), args.skip_bad)?;
    let finetune =
        args.finetune.map(|epochs| FinetuneOptions { epochs, learning_rate: args.finetune_rate, kd_ratio: 1.0 });
    let options = Options { finetune, dtype: args.dtype, recalibration: args.recalibration };
    let rows = extract_all(&folder, &args.run, &config, &data, &wanted, &options)?;
    print_rows(&rows);
    let source = args.data.as_deref().unwrap_or(&config.data.source);
    println!("\nNext: ofa bench {}/models/* --data {source}", args.run.display());
    Ok(())
}

/// Every result of the run folder's `search/`, by file name.
fn search_results(folder: &RunFolder, space: &SearchSpace) -> Result<Vec<(String, Subnet)>> {
    let files = folder.json_files("search")?;
    if files.is_empty() {
        bail!("{}: no search results; run `ofa search` first", folder.join("search").display());
    }
    let mut found = Vec::new();
    for file in files {
        let result: SearchResult = read_json(&file)?;
        space.check(&result.best).map_err(|e| e.at(&file))?;
        let name = file.file_stem().and_then(|n| n.to_str()).unwrap_or("model").to_string();
        found.push((name, result.best));
    }
    Ok(found)
}

/// One extracted model.
pub struct Extracted {
    pub folder: PathBuf,
    pub subnet: Subnet,
    /// Validation accuracy inside the supernet (after fine-tuning, if any).
    pub accuracy: f64,
    /// Largest difference of a logit, and the largest logit.
    pub difference: (f64, f64),
}

/// Extracts and checks each subnet.
pub fn extract_all(
    folder: &RunFolder,
    run: &std::path::Path,
    config: &RunConfig,
    data: &Dataset,
    wanted: &[(String, Subnet)],
    options: &Options,
) -> Result<Vec<Extracted>> {
    let path = Folder::of_run(run, 1).supernet_path();
    let (state, note) = read_supernet(&path)?;
    let data = &folder.in_class_order(&note.classes, data)?;
    let mut rows = Vec::new();
    for (name, subnet) in wanted {
        interrupt::check()?;
        // A copy for each, since fine-tuning changes it.
        let net = Supernet::new(&note.space, note.classes.len(), 0)?;
        net.load_state(&state).map_err(|e| e.at(&path))?;
        if let Some(options) = &options.finetune {
            finetune_subnet(&net, folder, subnet, data, &config.train, options)?;
        }
        let seed = config.train.seed;
        let statistics = recalibrate(&net, subnet, data, options.recalibration, 100, seed)?;
        let accuracy = accuracy(&net, subnet, &statistics, data, &data.validation, None, 100)?;
        let path = folder.join(&format!("models/{name}"));
        extract(&net, subnet, &statistics, &data.classes, &data.normalisation, options.dtype, &path)?;
        let indices: Vec<usize> = (0..COMPARED.min(data.validation.len())).collect();
        let batch = data.evaluation_batch(&data.validation, &indices, subnet.resolution)?;
        let difference = compare(&net, subnet, &statistics, &path, &batch.images)?;
        if options.dtype == NumberType::F32 && difference.0 > 1e-3 * difference.1 {
            bail!(
                "{}: its logits differ from the supernet's by {:.2e} (largest logit {:.2e}); please report this",
                path.display(),
                difference.0,
                difference.1
            );
        }
        rows.push(Extracted { folder: path, subnet: subnet.clone(), accuracy, difference });
    }
    Ok(rows)
}

fn finetune_subnet(
    net: &Supernet,
    folder: &RunFolder,
    subnet: &Subnet,
    data: &Dataset,
    config: &TrainConfig,
    options: &FinetuneOptions,
) -> Result<()> {
    let (teacher, _) = folder.supernet()?;
    let bar = progress::bar(0, "steps");
    finetune(net, &teacher, subnet, data, config, options, &mut |at| {
        bar.set_length(at.steps as u64);
        bar.set_position(at.step as u64);
        bar.set_message(format!("fine-tuning, loss {:.3}", at.loss));
        if interrupt::requested() { Control::Stop } else { Control::Continue }
    })?;
    bar.finish_and_clear();
    Ok(())
}

/// Folder, accuracy and difference of each model.
pub fn print_rows(rows: &[Extracted]) {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                row.folder.display().to_string(),
                format!("{:.2} %", 100.0 * row.accuracy),
                format!("{:.1e} of {:.1}", row.difference.0, row.difference.1),
                row.subnet.to_string(),
            ]
        })
        .collect();
    table::print(&["model", "validation", "largest logit difference", "subnet"], &rows);
}
