//! `ofa bench`

use crate::arguments::{numbers, shell};
use crate::output::progress::{self, Bar, counted};
use crate::output::table;
use crate::process::processes::hint_at_cores;
use crate::process::{interrupt, memory};
use crate::remote::{Remote, RemoteArgs};
use crate::run_folder::{DataConfig, class_names, data_flag};
use anyhow::{Context, Result, bail};
use ofa_evaluate::Model;
use ofa_evaluate::bench::{
    BENCH_FILE, BenchOptions, BenchRecord, BenchRow, BenchStep, Confusion, DeviceRecord, Latency, LayerTime, bench,
    confusions, csv, layers, memory as memory_of_bench, update_card, worst_first,
};
use ofa_evaluate::model::{CONFIG_FILE, WEIGHTS_FILE};
use ofa_supernet::data::{Dataset, Normalisation, Splits};
use ofa_supernet::files;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Measure accuracy on test images, size and latency of extracted models.
#[derive(clap::Args)]
pub struct Args {
    /// Model folders.
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// Images whose test split is used: a folder or `builtin`. Without images no accuracy is measured.
    #[arg(long)]
    data: Option<String>,
    /// Seed of the built-in data, as in training.
    #[arg(long, default_value_t = 0, value_parser = numbers::seed, requires = "data")]
    data_seed: u64,
    /// Skip unreadable images with a count instead of failing.
    #[arg(long, requires = "data")]
    skip_bad: bool,
    /// Numbers of threads to measure with.
    #[arg(long = "model-threads", value_delimiter = ',', default_value = "1", value_parser = numbers::threads)]
    model_threads: Vec<usize>,
    /// Batch sizes to measure with.
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = numbers::batch)]
    batch: Vec<usize>,
    /// Also print each layer's time, GFLOP/s and share of the floor, with the first number of threads and batch: the
    /// floor is the time that its operations would take in a large matrix product from the caches.
    #[arg(long, conflicts_with_all = ["csv", "on"])]
    layers: bool,
    /// Also print the accuracy of every class and the most frequent confusions; with --json the whole confusion matrix,
    /// which --update-card writes to bench.json too.
    #[arg(long, requires = "data", conflicts_with = "csv")]
    per_class: bool,
    /// Write the figures into each model folder: its card README.md, and bench.json.
    #[arg(long)]
    update_card: bool,
    /// Print CSV.
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

pub fn run(args: &Args) -> Result<Value> {
    args.models.iter().try_for_each(|folder| check_folder(folder, "bench"))?;
    if args.update_card {
        // Before anything is measured.
        args.models.iter().try_for_each(|folder| BenchRecord::read(folder).map(drop))?;
    }
    let remote = args.remote.machine()?;
    if let (Some(&threads), None) = (args.model_threads.iter().max(), &remote) {
        hint_at_cores("--model-threads", threads);
    }
    let data = match &args.data {
        Some(source) => Some(
            DataConfig {
                source: data_flag(source)?,
                seed: args.data_seed,
                skip_bad: args.skip_bad,
                // Replaced by each model's own.
                normalisation: Some(Normalisation::IMAGENET),
                ..DataConfig::default()
            }
            .open_splits(Splits::Test)?,
        ),
        None => None,
    };
    let options =
        BenchOptions { threads: args.model_threads.clone(), batches: args.batch.clone(), ..BenchOptions::default() };
    // Without the folders that only their owner knows.
    let name = args.data.as_ref().map(|data| Path::new(data).file_name().unwrap_or(data.as_ref()).to_string_lossy());
    let records = match &remote {
        None => {
            let rows = bench_models(&args.models, data.as_ref(), &options)?.into_iter();
            rows.map(|row| DeviceRecord::of_this_machine(row, name.as_deref())).collect()
        }
        Some(remote) => {
            // Accuracies are the same everywhere, so that the images stay here.
            let here = BenchOptions { threads: Vec::new(), batches: Vec::new(), ..options.clone() };
            let rows = bench_models(&args.models, data.as_ref(), &here)?.into_iter();
            let here = rows.map(|row| DeviceRecord::of_this_machine(row, name.as_deref())).collect();
            bench_remotely(remote, &args.models, &options, here)?
        }
    };
    // Tables are shown also where a card cannot be written.
    let written = match args.update_card {
        true => args.models.iter().zip(&records).try_for_each(|(folder, record)| update_card(folder, record.clone())),
        false => Ok(()),
    };
    let mut rows: Vec<BenchRow> = records.into_iter().map(|record| record.row).collect();
    if !args.per_class {
        rows.iter_mut().for_each(|row| row.classes.clear());
    }
    if args.csv {
        say!("{}", csv(&rows).trim_end());
    } else {
        print_rows(&rows);
    }
    if args.per_class {
        rows.iter().for_each(print_classes);
    }
    let mut value = json!({ "models": rows });
    if args.layers {
        let layers = |(folder, row): (&PathBuf, &BenchRow)| -> Result<Value> {
            Ok(json!({ "model": row.model, "layers": print_layers(folder, &options)? }))
        };
        value["layers"] = args.models.iter().zip(&rows).map(layers).collect::<Result<Value>>()?;
    }
    written?;
    Ok(value)
}

/// Measures latencies on another machine, by this program there. Figures that are the same everywhere come from `here`.
fn bench_remotely(
    remote: &Remote,
    folders: &[PathBuf],
    options: &BenchOptions,
    here: Vec<DeviceRecord>,
) -> Result<Vec<DeviceRecord>> {
    let list = |numbers: &[usize]| numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let mut contents = Vec::new();
    for (index, folder) in folders.iter().enumerate() {
        for file in [CONFIG_FILE, WEIGHTS_FILE] {
            contents.push((format!("models/{index}/{file}"), files::read_bytes(&folder.join(file))?));
        }
    }
    let checksums: Vec<u8> = contents.iter().flat_map(|(_, bytes)| files::checksum(bytes).to_le_bytes()).collect();
    let place = remote.open(&format!("bench-{:08x}", files::checksum(&checksums)))?;
    for (name, bytes) in &contents {
        place.put(name, bytes)?;
    }
    let models = (0..folders.len()).map(|index| format!("models/{index}"));
    let settings = ["--model-threads".into(), list(&options.threads), "--batch".into(), list(&options.batches)];
    let arguments = std::iter::once("bench".to_string()).chain(models).chain(settings);
    let arguments: Vec<String> = arguments.chain(["--update-card".into()]).collect();
    place.run(&arguments, &mut |_| {})?;
    let mut records = Vec::with_capacity(here.len());
    for (index, mut record) in here.into_iter().enumerate() {
        let file = format!("models/{index}/{BENCH_FILE}");
        let there = BenchRecord::from_json(&place.get(&file)?, Path::new(&file))?.devices.pop();
        let there = there.with_context(|| format!("{file} came back without a measurement"))?;
        record.row.latencies = there.row.latencies;
        // A command that was interrupted may have left others there.
        let is_asked_for = |l: &Latency| options.threads.contains(&l.threads) && options.batches.contains(&l.batch);
        record.row.latencies.retain(is_asked_for);
        records.push(DeviceRecord { cpu: there.cpu, instruction_set: there.instruction_set, ..record });
    }
    place.close();
    Ok(records)
}

/// Confusions that are printed for a model.
const CONFUSIONS: usize = 10;

/// Prints the accuracy of every class of a model, the worst first, and the most frequent confusions.
fn print_classes(row: &BenchRow) {
    let share = |part: u64, of: u64| format!("{:.1} %", 100.0 * part as f64 / of.max(1) as f64);
    let line = |number: usize| {
        let class = &row.classes[number];
        vec![class.class.clone(), class.images.to_string(), share(class.right(number), class.images)]
    };
    say!("\n{}: accuracy by class, the worst first", row.model);
    let lines: Vec<Vec<String>> = worst_first(&row.classes).into_iter().map(line).collect();
    table::print(&["class", "images", "accuracy"], &lines);
    let wrong = confusions(&row.classes);
    if wrong.is_empty() {
        return say!("\n{}: every image is right", row.model);
    }
    let shown = &wrong[..wrong.len().min(CONFUSIONS)];
    say!("\n{}: most frequent confusions ({} of {})", row.model, shown.len(), wrong.len());
    let line = |c: &Confusion| vec![c.class.into(), c.answer.into(), c.images.to_string(), share(c.images, c.of)];
    table::print(&["class", "taken for", "images", "of the class"], &shown.iter().map(line).collect::<Vec<_>>());
}

/// Measures, prints and returns the layers of a model.
fn print_layers(folder: &Path, options: &BenchOptions) -> Result<Vec<LayerTime>> {
    let rows = layers(&mut Model::load(folder)?, options)?;
    let total: f64 = rows.iter().map(|row| row.ms).sum();
    let line = |row: &LayerTime| {
        let percent = |part: f64, whole: f64| format!("{:.0} %", 100.0 * part / whole.max(1e-9));
        let of_products = |text: String| if row.macs > 0 { text } else { "-".into() };
        vec![
            row.name.clone(),
            row.shape.clone(),
            format!("{:.3}", row.ms),
            percent(row.ms, total),
            of_products(format!("{:.0}", 2e-6 * row.macs as f64 / row.ms.max(1e-9))),
            of_products(percent(row.floor_ms, row.ms)),
        ]
    };
    say!("\n{}", folder.display());
    table::print(&["layer", "shape", "ms", "of all", "GFLOP/s", "floor"], &rows.iter().map(line).collect::<Vec<_>>());
    Ok(rows)
}

/// Fails for a folder that is no model's but has such folders in it, and says how to name them.
pub fn check_folder(folder: &Path, command: &str) -> Result<()> {
    let is_model = |folder: &Path| folder.join(CONFIG_FILE).is_file();
    if is_model(folder) {
        return Ok(());
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut models: Vec<PathBuf> = entries.filter(|path| is_model(path)).collect();
    models.sort();
    let Some(first) = models.first().and_then(|path| path.file_name()) else {
        bail!(
            "{}: No such file; expected a model folder, as `ofa extract` writes it to run/models",
            folder.join(CONFIG_FILE).display()
        );
    };
    bail!(
        "{}: this is no model folder, but it holds {} of them, such as {}; give them all with: ofa {command} {}/*",
        folder.display(),
        models.len(),
        first.to_string_lossy(),
        shell::path(folder).trim_end_matches('/')
    )
}

/// Loads and measures the models, with progress.
pub fn bench_models(folders: &[PathBuf], data: Option<&Dataset>, options: &BenchOptions) -> Result<Vec<BenchRow>> {
    let load = |folder: &PathBuf| {
        interrupt::check()?;
        Ok(Model::load(folder)?)
    };
    let mut models = folders.iter().map(load).collect::<Result<Vec<_>>>()?;
    let need = |batch| Ok(memory_of_bench(&models, batch));
    if let Some(&batch) = options.batches.iter().max() {
        memory::check_batch("running these models", batch, &need, 1)?;
    }
    // The images with their classes in the order of each model's outputs, once per order.
    let mut ordered = BTreeMap::new();
    if let Some(data) = data {
        if data.test.is_empty() {
            bail!("data '{}': there are no test images (a folder test/CLASS)", data.name);
        }
        for model in &models {
            let labels = &model.config().labels;
            if !ordered.contains_key(labels) {
                let whose = format!("{}: the model", model.folder().display());
                ordered.insert(labels.clone(), class_names::in_order_of(labels, data, &whose)?);
            }
        }
    }
    let bar = Bar::new("benchmarking", 0, "");
    let mut test_set = data.map(|data| {
        let ordered = &ordered;
        move |config: &ofa_evaluate::model::ModelConfig, take: &mut ofa_evaluate::bench::TakeBatch| {
            let Some(data) = ordered.get(&config.labels) else {
                return Err(
                    ofa_supernet::Error::Data(format!("'{}': its classes are in no model's order", data.name)).into()
                );
            };
            // The model's own normalisation, not that of these images.
            let data = Dataset { normalisation: config.normalisation.clone(), ..data.clone() };
            for indices in (0..data.test.len()).collect::<Vec<_>>().chunks(100) {
                let batch = data.evaluation_batch(&data.test, indices, config.network.resolution)?;
                take(&batch.images, &batch.labels)?;
            }
            Ok(())
        }
    });
    let rows =
        bench(&mut models, test_set.as_mut().map(|t| t as &mut ofa_evaluate::bench::TestSet), options, &mut |step| {
            if let Some(message) = describe(&step) {
                bar.details([message]);
            }
            interrupt::control()
        })?;
    Ok(rows)
}

/// Message of the progress bar; `None` if a run is about to be timed, which drawing would disturb.
fn describe(step: &BenchStep) -> Option<String> {
    match step {
        BenchStep::Accuracy { model, images } => Some(format!("model {}: {images} test images", model + 1)),
        BenchStep::Latency { threads, batch } => {
            Some(format!("latency with {} at batch {batch}", counted(*threads, "thread")))
        }
        BenchStep::Run => None,
    }
}

/// Columns of [`print_rows`] in the order in which narrow terminals lose them.
const DISPENSABLE: &[&str] =
    &["buffers (kB)", "p99 ms", "memory (kB)", "top-5", "images/s", "p90 ms", "file (kB)", "params (k)"];

/// Prints one line per model, number of threads and batch.
pub fn print_rows(rows: &[BenchRow]) {
    let mut lines = Vec::new();
    for row in rows {
        let percent = |v: f64| format!("{:.2} %", 100.0 * v);
        let (top1, top5) = match &row.accuracy {
            Some(accuracy) => (percent(accuracy.top1), percent(accuracy.top5)),
            None => ("-".into(), "-".into()),
        };
        for latency in &row.latencies {
            lines.push(vec![
                row.model.clone(),
                top1.clone(),
                top5.clone(),
                format!("{:.2}", row.macs as f64 / 1e6),
                format!("{:.1}", row.parameters as f64 / 1e3),
                format!("{:.0}", row.file_bytes as f64 / 1e3),
                format!("{:.0}", row.peak_activation_bytes as f64 / 1e3),
                format!("{:.0}", row.buffer_bytes as f64 / 1e3),
                format!("{}x{}", latency.threads, latency.batch),
                format!("{:.3}", latency.ms.p50),
                format!("{:.3}", latency.ms.p90),
                format!("{:.3}", latency.ms.p99),
                progress::rate(latency.images_per_second),
            ]);
        }
    }
    let header = &[
        "model",
        "top-1",
        "top-5",
        "MACs (M)",
        "params (k)",
        "file (kB)",
        "memory (kB)",
        "buffers (kB)",
        "threads x batch",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "images/s",
    ];
    table::print_some(header, &lines, DISPENSABLE);
}
