//! `ofa predictor`

use crate::run_folder::RunFolder;
use crate::{interrupt, progress};
use anyhow::{Context, Result};
use ofa_extract::predictor::{SampleWriter, read_samples};
use ofa_extract::{FitReport, FitSettings, Predictor, Sample};
use ofa_supernet::data::Dataset;
use ofa_supernet::seed::{Purpose, generator};
use ofa_supernet::train::EvaluationSet;
use ofa_supernet::train::validation::{accuracy_on, recalibrate_on};
use ofa_supernet::{Subnet, Supernet};
use std::collections::HashSet;
use std::path::PathBuf;

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
    /// Instead of measuring: the accuracy predictor that the authors of once-for-all published (acc_predictor.pth).
    #[arg(long, value_name = "FILE", conflicts_with_all = ["samples", "recalibration", "images", "batch", "seed", "data"])]
    import: Option<PathBuf>,
}

/// How accuracies are sampled.
#[derive(clap::Args, Clone)]
pub struct Sampling {
    /// Subnets to measure in all.
    #[arg(long, default_value_t = 1000)]
    pub samples: usize,
    /// Training images that recalibrate batch norm for each.
    #[arg(long, default_value_t = 500)]
    pub recalibration: usize,
    /// Validation images; 0 for all.
    #[arg(long, default_value_t = 0)]
    pub images: usize,
    /// Images a batch.
    #[arg(long, default_value_t = 100)]
    pub batch: usize,
    /// Seed of subnets, split and fit.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

pub fn run(args: &Args) -> Result<()> {
    let folder = RunFolder::new(&args.run);
    folder.config()?;
    let _lock = folder.lock()?;
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
    let data = folder.data(args.data.as_deref())?;
    folder.class_names(classes, &data)?;
    let report = fit_predictor(&folder, &net, &data, &args.sampling)?;
    print_report(&report);
    println!("{} written", path.display());
    Ok(())
}

/// RMSE, Pearson's correlation and Kendall's tau on the held-out fifth.
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
}

/// Measures what is missing, then fits; both with progress.
pub fn fit_predictor(folder: &RunFolder, net: &Supernet, data: &Dataset, sampling: &Sampling) -> Result<FitReport> {
    let path = folder.join("predictor/samples.jsonl");
    sample(net, data, sampling, &path)?;
    let samples = read_samples(&path, net.space())?;
    let bar = progress::bar(0, "steps");
    bar.set_message("fitting");
    let (predictor, report) =
        Predictor::fit(net.space(), &samples, &FitSettings::default(), sampling.seed, &mut |done, total, rmse| {
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

fn sample(net: &Supernet, data: &Dataset, sampling: &Sampling, path: &std::path::Path) -> Result<()> {
    let (mut writer, known) = SampleWriter::open(path, net.space())?;
    let known: HashSet<Subnet> = known.into_iter().map(|s| s.subnet).collect();
    let wanted = subnets(net, sampling.samples, sampling.seed);
    let mut missing: Vec<&Subnet> = wanted.iter().filter(|s| !known.contains(s)).collect();
    missing.truncate(sampling.samples.saturating_sub(known.len()));
    if missing.is_empty() {
        return Ok(());
    }
    let recalibration = EvaluationSet::for_recalibration(data, sampling.recalibration, sampling.batch, sampling.seed)?;
    let images = (sampling.images > 0).then_some(sampling.images);
    let validation = EvaluationSet::of_split(data, &data.validation, images, sampling.batch)?;
    let bar = progress::bar(sampling.samples, "subnets");
    bar.set_position(known.len() as u64);
    bar.reset_eta();
    for subnet in missing {
        if interrupt::requested() {
            bar.abandon();
            return Err(interrupt::stopped(format!(
                "stopped; measured samples are kept in {}: run the same command to go on",
                path.display()
            )));
        }
        let statistics = recalibrate_on(net, subnet, &recalibration)?;
        let accuracy = accuracy_on(net, subnet, &statistics, &validation)?;
        writer.append(&Sample { subnet: subnet.clone(), accuracy })?;
        bar.inc(1);
        bar.set_message(format!("last {:.1} %", 100.0 * accuracy));
    }
    bar.finish_and_clear();
    Ok(())
}
