//! `ofa quickstart`

use crate::commands::bench::{bench_models, print_rows};
use crate::commands::extract::{Options, extract_all};
use crate::commands::predictor::{Sampling, fit_predictor, print_report};
use crate::commands::profile::{print_check, profile_device};
use crate::commands::search::{print_results, search_limits};
use crate::commands::train::{print_probes, train_run};
use crate::measured::Images;
use crate::progress;
use crate::run_folder::{DataConfig, RunConfig, RunFolder};
use anyhow::{Context, Result, bail};
use candle_core::Device;
use ofa_evaluate::bench::BenchOptions;
use ofa_evaluate::model::NumberType;
use ofa_evaluate::profile::ProfileOptions;
use ofa_extract::search::{Evolution, SearchSettings};
use ofa_extract::{Constraint, FitSettings};
use ofa_supernet::Ranks;
use ofa_supernet::SearchSpace;
use ofa_supernet::lock::{LOCK_FILE, Lock};
use ofa_supernet::train::{Outcome, TrainConfig};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The whole path on built-in data: train, profile, predict, search, extract, benchmark.
#[derive(clap::Args)]
pub struct Args {
    /// Run folder; an earlier quickstart in it is replaced.
    #[arg(long, default_value = "quickstart-run")]
    out: PathBuf,
    /// Epochs of training over all stages (default: the preset's).
    #[arg(long)]
    epochs: Option<f64>,
    /// Training images to generate.
    #[arg(long)]
    images: Option<usize>,
    /// Subnets to measure for the predictor.
    #[arg(long, default_value_t = 80)]
    samples: usize,
    /// Seed of data, training and search.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Where the three limits lie between the smallest and the largest subnet's latency.
const LIMITS: [f64; 3] = [0.2, 0.45, 0.75];

pub fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    let folder = RunFolder::new(&args.out);
    let _lock = clear(&folder, args)?;
    let config = configuration(args)?;

    println!("1. Train a supernet ({:.1e} subnets) on generated images by progressive shrinking", config.space.count());
    match train_run(&folder, &args.out, &config, &Ranks::alone(), false, &Device::Cpu)? {
        Outcome::Finished { probes, .. } => print_probes(&probes),
        Outcome::Interrupted { .. } => return Err(ofa_supernet::Error::Interrupted.into()),
    }

    println!("\n2. Measure this machine");
    let (net, classes) = folder.supernet()?;
    let options = ProfileOptions::new("this", classes.len());
    let profile = profile_device(&folder, net.space(), &options)?;
    print_check(&profile);

    println!("\n3. Measure {} random subnets and fit the accuracy predictor", args.samples);
    let data = config.data.open()?;
    let sampling = Sampling {
        samples: args.samples,
        images: Images { recalibration: 300, images: 0 },
        batch: 100,
        seed: args.seed,
        members: FitSettings::default().members,
        active: None,
    };
    print_report(&fit_predictor(&folder, &net, &data, &sampling)?);

    println!("\n4. Search the best subnet for three latency limits of this machine");
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

    println!("\n5. Extract the models, the smallest and the largest subnet beside them");
    let mut wanted = vec![("smallest".to_string(), space.smallest())];
    wanted.extend(results.iter().map(|(name, result)| (name.clone(), result.best.clone())));
    wanted.push(("largest".into(), space.largest()));
    let options = Options { finetune: None, dtype: NumberType::F32, recalibration: 1000 };
    let extracted = extract_all(&folder, &args.out, &config, &data, &wanted, &options)?;
    let worst = extracted.iter().map(|e| e.difference.0 / e.difference.1).fold(0.0, f64::max);
    println!("{} models; loaded anew, their logits equal the supernet's to {worst:.0e}", extracted.len());

    println!("\n6. Benchmark on test images that nothing has seen yet");
    let folders: Vec<PathBuf> = extracted.into_iter().map(|e| e.folder).collect();
    print_rows(&bench_models(&folders, Some(&data), &BenchOptions::default())?);

    println!(
        "\nDone in {}; everything is in {run}/. Next, with your own images (DATA/train/CLASS/*.jpg, DATA/test/CLASS/*.jpg):\n\
         \x20 ofa train --preset cifar --data DATA --out run\n\
         \x20 ofa profile --run run --name this\n\
         \x20 ofa predictor --run run --samples 1000\n\
         \x20 ofa search --run run --limit this:latency=2ms --limit any:macs=10M\n\
         \x20 ofa extract --run run --search-results\n\
         \x20 ofa bench run/models/* --data DATA",
        progress::duration(start.elapsed().as_secs_f64()),
        run = args.out.display()
    );
    Ok(())
}

/// Locks the folder and removes an earlier quickstart from it, and nothing else.
fn clear(folder: &RunFolder, args: &Args) -> Result<Lock> {
    if !args.out.exists() {
        return folder.lock();
    }
    let ours = folder.config().is_ok_and(|config| config.data.source == "builtin" && config.space.name == "tiny");
    if !ours {
        bail!("{}: it exists and is not an earlier quickstart; name another folder with --out", args.out.display());
    }
    let lock = folder.lock()?;
    let at = |path: &Path| path.display().to_string();
    for entry in std::fs::read_dir(&args.out).with_context(|| at(&args.out))? {
        let path = entry.with_context(|| at(&args.out))?.path();
        // The configuration goes last: what an interruption leaves is still known as a quickstart.
        if path.is_dir() {
            std::fs::remove_dir_all(&path).with_context(|| at(&path))?;
        } else if !["config.toml", LOCK_FILE].iter().any(|kept| path.ends_with(kept)) {
            std::fs::remove_file(&path).with_context(|| at(&path))?;
        }
    }
    Ok(lock)
}

fn configuration(args: &Args) -> Result<RunConfig> {
    let space = SearchSpace::named("tiny")?;
    let mut train = TrainConfig::preset("tiny", &space)?;
    train.seed = args.seed;
    if let Some(epochs) = args.epochs {
        anyhow::ensure!(epochs > 0.0 && epochs.is_finite(), "--epochs {epochs}: expected a number above 0");
        train = train.with_epochs(epochs);
    }
    let mut data = DataConfig { seed: args.seed, ..DataConfig::default() };
    if let Some(images) = args.images {
        data.builtin_train = images;
    }
    data.validation = Some((data.builtin_train / 5).min(1000));
    Ok(RunConfig { data, space, train })
}
