//! `ofa quickstart`

use crate::arguments::numbers;
use crate::commands::bench::{bench_models, print_rows};
use crate::commands::extract::{Options, extract_all};
use crate::commands::predictor::{Sampling, fit_predictor};
use crate::commands::profile::{Show, print_check, profile_device, profile_json};
use crate::commands::search::{named_results, print_results};
use crate::commands::train::train_run;
use crate::output::predictor_report::print_report;
use crate::output::progress;
use crate::output::training_summary::{print_probes, probes_json};
use crate::process::interrupt;
use crate::report::{PAGE, Report, page};
use crate::run_folder::model_origin::Wanted;
use crate::run_folder::quickstart_folder::QuickstartFolder;
use crate::run_folder::{DataConfig, RunConfig, RunFolder};
use crate::search::measured::Images;
use crate::search::searches::search_limits;
use anyhow::Result;
use candle_core::Device;
use ofa_evaluate::bench::{BenchOptions, DeviceRecord, update_card};
use ofa_evaluate::model::NumberType;
use ofa_evaluate::profile::ProfileOptions;
use ofa_extract::Constraint;
use ofa_extract::predictor::Method;
use ofa_extract::search::{Evolution, SearchSettings};
use ofa_supernet::Ranks;
use ofa_supernet::SearchSpace;
use ofa_supernet::files::write_atomic;
use ofa_supernet::train::{Outcome, TrainConfig};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Run every step on built-in data: train, profile, predict, search, extract, benchmark.
#[derive(clap::Args)]
pub struct Args {
    /// Run folder. An earlier quickstart in it is replaced, unless another command changed its files; other files are
    /// kept.
    #[arg(long, default_value = "quickstart-run")]
    out: PathBuf,
    /// Epochs of training over all stages (default: the preset's).
    #[arg(long, value_parser = numbers::epochs)]
    epochs: Option<f64>,
    /// Training images to generate.
    #[arg(long, value_parser = numbers::generated_images)]
    images: Option<usize>,
    /// Subnets to measure for the predictor.
    #[arg(long, default_value_t = 80, value_parser = numbers::subnets)]
    samples: usize,
    /// Seed of data, training and search.
    #[arg(long, default_value_t = 0, value_parser = numbers::seed)]
    seed: u64,
}

/// Positions of the three limits between the smallest and the largest subnet's latency.
const LIMITS: [f64; 3] = [0.2, 0.45, 0.75];

pub fn run(args: &Args) -> Result<Value> {
    let config = configuration(args)?;
    let sampling = Sampling {
        samples: args.samples,
        images: Images { recalibration: 300, images: 0 },
        batch: 100,
        seed: args.seed,
        method: Method::default(),
        members: None,
        active: None,
        discard: false,
    };
    sampling.check(&config.space)?;
    let claimed = QuickstartFolder::claim(&args.out)?;
    let done = all_steps(args, &config, &sampling).map_err(|error| match interrupt::message(&error) {
        Some(_) => interrupt::stopped("stopped; the same command starts from the beginning".into()),
        None => error,
    });
    // Listed after a stop or failure too, so that the next quickstart can replace the files.
    let listed = claimed.list();
    done.and_then(|value| listed.map(|()| value))
}

fn all_steps(args: &Args, config: &RunConfig, sampling: &Sampling) -> Result<Value> {
    let start = Instant::now();
    let folder = RunFolder::new(&args.out);

    say!("1. Train a supernet ({:.1e} subnets) on generated images by progressive shrinking", config.space.count());
    let probes = match train_run(&folder, config, None, &Ranks::alone(), false, &Device::Cpu, &mut false)? {
        Outcome::Finished { probes, .. } => probes,
        Outcome::Interrupted { .. } => return Err(ofa_supernet::Error::Interrupted.into()),
    };
    print_probes(&probes);

    say!("\n2. Measure this machine");
    let (net, classes) = folder.supernet()?;
    let options = ProfileOptions::new("this", classes.len());
    let profile = profile_device(&folder, net.space(), &options, None, Show::Bar)?;
    print_check(&profile);

    say!("\n3. Measure {} random subnets and fit the accuracy predictor", args.samples);
    let data = config.data.open()?;
    let fit = fit_predictor(&folder, &net, &data, sampling)?;
    print_report(&fit);

    say!("\n4. Search the best subnet for three latency limits of this machine");
    let space = net.space();
    let latency = |subnet| -> Result<f64> { Ok(profile.latency_ms(&space.network(subnet, classes.len())?)?) };
    let (low, high) = (latency(&space.smallest())?, latency(&space.largest())?);
    let mut groups: Vec<Vec<Constraint>> = Vec::new();
    for part in LIMITS {
        // Whole microseconds: the limit is also the model's name.
        groups.push(vec![format!("this:latency={:.0}us", 1000.0 * (low + part * (high - low))).parse()?]);
    }
    let settings = SearchSettings::Evolution(Evolution { generations: 50, ..Evolution::default() });
    let results = search_limits(&folder, &net, &groups, settings, args.seed)?;
    print_results(&results);

    say!("\n5. Extract the models, and the smallest and the largest subnet");
    let end = |name: &str, subnet| Wanted { name: name.into(), subnet, search: None };
    let mut wanted = vec![end("smallest", space.smallest())];
    wanted.extend(results.iter().map(|(name, result)| Wanted::of_search(name.clone(), result)));
    wanted.push(end("largest", space.largest()));
    let options = Options {
        finetune: None,
        dtype: NumberType::F32,
        recalibration: 1000,
        overwrite: false,
        sample: false,
        other_data: false,
    };
    let extracted = extract_all(&folder, &args.out, config, &data, &wanted, &options)?;
    let worst = extracted.iter().map(|e| e.difference.0 / e.difference.1).fold(0.0, f64::max);
    say!("{} models; reloaded, their logits equal the supernet's to {worst:.0e}", extracted.len());

    say!("\n6. Benchmark on unseen test images");
    let folders: Vec<PathBuf> = extracted.into_iter().map(|e| e.folder).collect();
    let rows = bench_models(&folders, Some(&data), &BenchOptions::default())?;
    print_rows(&rows);
    for (folder, row) in folders.iter().zip(&rows) {
        update_card(folder, DeviceRecord::of_this_machine(row.clone(), Some(&data.name)))?;
    }
    let report = Report::gather(&folder)?;
    write_atomic(&folder.join(PAGE), page(&report)?.as_bytes())?;
    say!();
    report.advice().iter().for_each(|sentence| say!("{sentence}"));

    let seconds = start.elapsed().as_secs_f64();
    print_end(&args.out, seconds);
    Ok(json!({
        "run": args.out,
        "seconds": seconds,
        "accuracies": probes_json(&probes),
        "device": profile_json(&profile, &folder.join("devices/this.json")),
        "fit": fit,
        "results": named_results(&results),
        "models": rows,
        "report": folder.join(PAGE),
        "advice": report.advice(),
    }))
}

/// Says where everything is, and the same way with images of one's own.
fn print_end(run: &Path, seconds: f64) {
    say!(
        "\nDone in {}; everything is in {run}/, pictures in {run}/{PAGE}. Next, with your own images (DATA/train/CLASS/*.jpg, DATA/test/CLASS/*.jpg):\n\
         \x20 ofa train --preset cifar --data DATA --out run\n\
         \x20 ofa profile --run run --name this\n\
         \x20 ofa predictor --run run --samples 1000\n\
         \x20 ofa search --run run --limit this:latency=2ms --limit any:macs=10M\n\
         \x20 ofa extract --run run --search-results\n\
         \x20 ofa bench run/models/* --data DATA",
        progress::duration(seconds),
        run = run.display()
    );
}

fn configuration(args: &Args) -> Result<RunConfig> {
    let space = SearchSpace::named("tiny")?;
    let mut train = TrainConfig::preset("tiny", &space)?;
    train.seed = args.seed;
    if let Some(epochs) = args.epochs {
        train = train.with_epochs(epochs);
    }
    let mut data = DataConfig { seed: args.seed, ..DataConfig::default() };
    if let Some(images) = args.images {
        data.builtin_train = images;
    }
    data.validation = Some((data.builtin_train / 5).min(1000));
    Ok(RunConfig { from: None, data, space, train })
}
