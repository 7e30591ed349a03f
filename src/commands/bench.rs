//! `ofa bench`

use crate::processes::hint_at_cores;
use crate::run_folder::{DataConfig, data_flag};
use crate::{class_names, interrupt, memory, numbers, progress, shell, table};
use anyhow::{Result, bail};
use ofa_evaluate::Model;
use ofa_evaluate::bench::{
    BenchOptions, BenchRow, BenchStep, LayerTime, bench, csv, layers, memory as memory_of_bench, update_card,
};
use ofa_evaluate::model::CONFIG_FILE;
use ofa_supernet::data::{Dataset, Normalisation, Splits};
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
    /// floor is the time of its operations in a large product in the caches.
    #[arg(long, conflicts_with_all = ["json", "csv"])]
    layers: bool,
    /// Write the figures into each model folder: its card README.md, and bench.json.
    #[arg(long)]
    update_card: bool,
    /// Print JSON.
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print CSV.
    #[arg(long)]
    csv: bool,
}

pub fn run(args: &Args) -> Result<()> {
    args.models.iter().try_for_each(|folder| check_folder(folder, "bench"))?;
    if let Some(&threads) = args.model_threads.iter().max() {
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
    let rows = bench_models(&args.models, data.as_ref(), &options)?;
    if args.update_card {
        // Without the folders that only their owner knows.
        let name =
            args.data.as_ref().map(|data| Path::new(data).file_name().unwrap_or(data.as_ref()).to_string_lossy());
        for (folder, row) in args.models.iter().zip(&rows) {
            update_card(folder, row, name.as_deref())?;
        }
    }
    if args.json {
        say!("{}", serde_json::to_string_pretty(&rows)?);
    } else if args.csv {
        say!("{}", csv(&rows).trim_end());
    } else {
        print_rows(&rows);
    }
    if args.layers {
        args.models.iter().try_for_each(|folder| print_layers(folder, &options))?;
    }
    Ok(())
}

/// Measures and prints the layers of a model.
fn print_layers(folder: &Path, options: &BenchOptions) -> Result<()> {
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
    Ok(())
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
    let Some(first) = models.first().and_then(|path| path.file_name()) else { return Ok(()) };
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
    let bar = progress::plain_bar(0);
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
                bar.set_message(message);
                bar.tick();
            }
            interrupt::control()
        })?;
    bar.finish_and_clear();
    Ok(rows)
}

/// Message of the progress bar; `None` if a run is about to be timed, which drawing would disturb.
fn describe(step: &BenchStep) -> Option<String> {
    match step {
        BenchStep::Accuracy { model, images } => Some(format!("model {}: {images} test images", model + 1)),
        BenchStep::Latency { threads, batch } => Some(format!("latency with {threads} threads at batch {batch}")),
        BenchStep::Run => None,
    }
}

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
    table::print(
        &[
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
        ],
        &lines,
    );
}
