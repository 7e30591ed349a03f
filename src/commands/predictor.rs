//! `ofa predictor`

use crate::measured::{Images, Measured};
use crate::run_folder::RunFolder;
use crate::{interrupt, progress, table};
use anyhow::{Context, Result};
use ofa_extract::predictor::active::{self, Acquisition, CurvePoint};
use ofa_extract::predictor::{FEWEST_SAMPLES, SampleWriter, read_samples};
use ofa_extract::{FitReport, FitSettings, Predictor, Sample};
use ofa_supernet::data::Dataset;
use ofa_supernet::seed::{Purpose, generator};
use ofa_supernet::{Ranks, Subnet, Supernet};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Measure accuracies of random subnets and fit the accuracy predictor. Measured samples are kept: run it again to add more.
#[derive(clap::Args)]
pub struct Args {
    /// Run folder.
    #[arg(long, default_value = "run")]
    run: PathBuf,
    #[command(flatten)]
    pub sampling: Sampling,
    /// Other images than the run's.
    #[arg(long)]
    data: Option<String>,
    /// Skip unreadable images with a count instead of failing.
    #[arg(long)]
    skip_bad: bool,
    /// Instead of measuring: from the measured samples, how good a predictor fewer of them would have given, drawn at random and chosen
    /// (--active, by default by deviation).
    #[arg(long)]
    curve: bool,
    /// Instead of measuring: the accuracy predictor that the authors of once-for-all published (acc_predictor.pth).
    #[arg(long, value_name = "FILE", conflicts_with_all = ["samples", "recalibration", "images", "batch", "seed", "data", "members", "active", "curve"])]
    import: Option<PathBuf>,
}

/// How accuracies are sampled.
#[derive(clap::Args, Clone)]
pub struct Sampling {
    /// Subnets to measure in all.
    #[arg(long, default_value_t = 1000)]
    pub samples: usize,
    #[command(flatten)]
    pub images: Images,
    /// Images a batch.
    #[arg(long, default_value_t = 100)]
    pub batch: usize,
    /// Seed of subnets, split and fit.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Networks whose mean is the predictor; their spread tells how sure it is. One is fastest to search with.
    #[arg(long, default_value_t = FitSettings::default().members)]
    pub members: usize,
    /// Choose what to measure in place of drawing at random: for the same accuracy of the predictor with fewer measurements, or for more
    /// of them among the best subnets.
    #[arg(long, value_enum)]
    pub active: Option<Active>,
}

/// What makes a subnet worth measuring.
#[derive(clap::ValueEnum, Clone, Copy)]
pub enum Active {
    /// How much it lowers the deviation of all predictions; from the first sample on.
    Deviation,
    /// Expected improvement over the best measured accuracy; after a random quarter of the samples.
    Improvement,
}

impl Sampling {
    fn fit_settings(&self) -> FitSettings {
        FitSettings { members: self.members, ..FitSettings::default() }
    }

    fn acquisition(&self) -> Option<Acquisition> {
        self.active.map(|active| match active {
            Active::Deviation => Acquisition::Deviation,
            Active::Improvement => Acquisition::Improvement,
        })
    }
}

pub fn run(args: &Args, ranks: &Ranks) -> Result<()> {
    let folder = RunFolder::new(&args.run);
    folder.config()?;
    if !ranks.is_first() && (args.curve || args.import.is_some()) {
        return Ok(()); // nothing to share out
    }
    let _lock = ranks.is_first().then(|| folder.lock()).transpose()?;
    let (net, classes) = folder.supernet()?;
    let path = folder.join("predictor/predictor.safetensors");
    if let Some(file) = &args.import {
        let predictor = Predictor::import(file, net.space())?;
        predictor.save(&path)?;
        // It tells about a predictor that is now replaced.
        let report = folder.join("predictor/fit.json");
        if report.exists() {
            std::fs::remove_file(&report).with_context(|| report.display().to_string())?;
        }
        println!("predictor for resolutions {:?} imported; {} written", predictor.space().resolutions, path.display());
        return Ok(());
    }
    if args.curve {
        return curve(&folder, &net, &args.sampling);
    }
    let data = folder.data(args.data.as_deref(), args.skip_bad)?;
    let data = folder.in_class_order(&classes, &data)?;
    sample(&net, &data, &args.sampling, &folder.join(SAMPLES), ranks)?;
    if !ranks.is_first() {
        return Ok(());
    }
    print_report(&fit(&folder, &net, &args.sampling)?);
    println!("{} written", path.display());
    Ok(())
}

const SAMPLES: &str = "predictor/samples.jsonl";

/// Splits whose mean is the learning curve.
const CURVE_REPETITIONS: u64 = 3;

fn curve(folder: &RunFolder, net: &Supernet, sampling: &Sampling) -> Result<()> {
    let samples = read_samples(&folder.join(SAMPLES), net.space())?;
    let acquisition = sampling.acquisition().unwrap_or(Acquisition::Deviation);
    let bar = progress::bar(0, "fits");
    let settings = sampling.fit_settings();
    let points =
        active::curve(net.space(), &samples, acquisition, &settings, CURVE_REPETITIONS, &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        })?;
    bar.finish_and_clear();
    let row = |p: &CurvePoint| vec![p.samples.to_string(), format!("{:.3}", p.random), format!("{:.3}", p.chosen)];
    let rows: Vec<Vec<String>> = points.iter().map(row).collect();
    table::print(&["samples", "tau, random", "tau, chosen"], &rows);
    Ok(())
}

/// RMSE, Pearson's correlation and Kendall's tau on the held-out fifth and over all folds, and whether deviations are as they should be.
pub fn print_report(report: &FitReport) {
    let show = |v: Option<f64>| v.map_or("undefined".to_string(), |v| format!("{v:.3}"));
    println!(
        "predictor: {} subnets, {} held out: RMSE {:.2} points, Pearson {}, Kendall tau {}",
        report.samples,
        report.held_out,
        100.0 * report.rmse,
        show(report.pearson),
        show(report.kendall_tau)
    );
    if let (Some(folds), Some(calibration)) = (&report.cross_validation, &report.calibration) {
        println!(
            "{} members: in cross-validation RMSE {:.2} points, Pearson {}, Kendall tau {}; {:.0} % of the held-out accuracies lie in their \
             90 % interval, mean deviation {:.2} points",
            report.members,
            100.0 * folds.rmse,
            show(folds.pearson),
            show(folds.kendall_tau),
            100.0 * calibration.within_90,
            100.0 * calibration.mean_deviation
        );
    }
}

/// Measures what is missing, then fits; both with progress.
pub fn fit_predictor(folder: &RunFolder, net: &Supernet, data: &Dataset, sampling: &Sampling) -> Result<FitReport> {
    sample(net, data, sampling, &folder.join(SAMPLES), &Ranks::alone())?;
    fit(folder, net, sampling)
}

fn fit(folder: &RunFolder, net: &Supernet, sampling: &Sampling) -> Result<FitReport> {
    let samples = read_samples(&folder.join(SAMPLES), net.space())?;
    let bar = progress::bar(0, "steps");
    bar.set_message("fitting");
    let (predictor, report) =
        Predictor::fit(net.space(), &samples, &sampling.fit_settings(), sampling.seed, &mut |done, total, rmse| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            bar.set_message(format!("fitting, RMSE {:.2} points", 100.0 * rmse));
        })?;
    bar.finish_and_clear();
    predictor.save(&folder.join("predictor/predictor.safetensors"))?;
    ofa_supernet::files::write_json(&folder.join("predictor/fit.json"), &report)?;
    Ok(report)
}

/// The subnets of a seed, always in the same order: the smallest and the largest first, then different random ones.
fn subnets(net: &Supernet, count: usize, seed: u64) -> Vec<Subnet> {
    let space = net.space();
    let mut list = vec![space.smallest(), space.largest()];
    let mut seen: HashSet<Subnet> = list.iter().cloned().collect();
    let mut position = 0;
    // A space smaller than `count` ends the search for new ones.
    while list.len() < count && position < 100 * count as u64 {
        let subnet = space.sample(&mut generator(seed, Purpose::Predictor, &[2, position]));
        if seen.insert(subnet.clone()) {
            list.push(subnet);
        }
        position += 1;
    }
    list.truncate(count);
    list
}

/// The part of the samples that is drawn at random before any is chosen by expected improvement, and the part that is then chosen at a time.
const RANDOM_PART: usize = 4;
const ROUND_PART: usize = 16;

/// Subnets that are measured in order: those of a hundred in order have about a fifth of their work in common, those of a thousand a quarter, but if
/// such a run is stopped, what it measured should be little else than a random part.
const BLOCK: usize = 128;

/// What to measure next, given what was measured in that order: all that is missing, or with active sampling the rest of a round. It follows from
/// the measured ones alone, so that a stopped run goes on as if it had not been. Each block of them comes in order, so that neighbours begin alike.
fn next(net: &Supernet, known: &[Sample], sampling: &Sampling) -> Result<Vec<Subnet>> {
    let measured: HashSet<&Subnet> = known.iter().map(|s| &s.subnet).collect();
    let missing = |mut wanted: Vec<Subnet>, most: usize| -> Vec<Subnet> {
        wanted.chunks_mut(BLOCK).for_each(<[Subnet]>::sort);
        wanted.into_iter().filter(|s| !measured.contains(s)).take(most.saturating_sub(known.len())).collect()
    };
    let random = match sampling.active {
        Some(Active::Deviation) => 2,
        _ => (sampling.samples / RANDOM_PART).max(FEWEST_SAMPLES),
    };
    match sampling.acquisition() {
        Some(acquisition) if known.len() >= random => {
            let round = (sampling.samples / ROUND_PART).max(1);
            let start = known.len() - (known.len() - random) % round;
            let settings = sampling.fit_settings();
            let chosen = active::next(net.space(), &known[..start], round, acquisition, &settings, sampling.seed)?;
            Ok(missing(chosen, sampling.samples))
        }
        Some(_) => {
            let first = random.min(sampling.samples);
            Ok(missing(subnets(net, first, sampling.seed), first))
        }
        None => Ok(missing(subnets(net, sampling.samples, sampling.seed), sampling.samples)),
    }
}

/// Subnets that a rank measures together at most, before their accuracies are written down. What they have in common at their beginning is computed
/// once; eight neighbours share nearly as much as a whole block does.
const TOGETHER: usize = 8;

/// Seconds that measuring them may take, which are lost when the process is stopped.
const SECONDS_TOGETHER: f64 = 20.0;

/// Measures what is missing. Several ranks share the subnets out; the first one chooses them and writes the file, which is the same for any number.
fn sample(net: &Supernet, data: &Dataset, sampling: &Sampling, path: &Path, ranks: &Ranks) -> Result<()> {
    let mut file = ranks.is_first().then(|| SampleWriter::open(path, net.space())).transpose()?;
    let wanted = |file: &Option<(SampleWriter, Vec<Sample>)>| -> Result<Vec<Subnet>> {
        let wanted = match file {
            Some((_, known)) => serde_json::to_vec(&next(net, known, sampling)?)?,
            None => Vec::new(),
        };
        Ok(serde_json::from_slice(&ranks.broadcast(wanted))?)
    };
    let mut missing = wanted(&file)?;
    if missing.is_empty() {
        return Ok(());
    }
    let measured = Measured::new(net, data, &sampling.images, sampling.batch, sampling.seed)?;
    let bar = progress::bar(sampling.samples, "subnets");
    bar.set_position(file.as_ref().map_or(0, |(_, known)| known.len() as u64));
    bar.reset_eta();
    while !missing.is_empty() {
        let (mut rest, mut together) = (&missing[..], 1);
        while !rest.is_empty() {
            let (subnets, later) = rest.split_at(rest.len().min(together * ranks.count()));
            let start = Instant::now();
            let own = ranks.part(subnets.len());
            let of_own = match measured.accuracies(&subnets[own.clone()]) {
                Err(ofa_supernet::Error::Interrupted) => None,
                accuracies => Some(accuracies?),
            };
            let stopped = ranks.any([of_own.is_none()]);
            let (Some(of_own), [false]) = (of_own, stopped) else {
                bar.abandon();
                return Err(interrupt::stopped(format!(
                    "stopped; measured samples are kept in {}: run the same command to go on",
                    path.display()
                )));
            };
            let mut accuracies = vec![0.0; subnets.len()];
            accuracies[own].copy_from_slice(&of_own);
            ranks.sum_f64(&mut accuracies);
            let mut seconds = [start.elapsed().as_secs_f64()];
            ranks.sum_f64(&mut seconds);
            together = ((SECONDS_TOGETHER * subnets.len() as f64 / seconds[0]) as usize).clamp(1, TOGETHER);
            rest = later;
            let Some((writer, known)) = &mut file else { continue };
            for (subnet, accuracy) in subnets.iter().zip(accuracies) {
                let sample = Sample { subnet: subnet.clone(), accuracy };
                writer.append(&sample)?;
                known.push(sample);
                bar.inc(1);
                bar.set_message(format!("last {:.1} %", 100.0 * accuracy));
            }
        }
        missing = wanted(&file)?;
    }
    bar.finish_and_clear();
    Ok(())
}
