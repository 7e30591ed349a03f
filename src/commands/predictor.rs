//! `ofa predictor`

use crate::arguments::{choice, numbers, shell};
use crate::output::predictor_report::print_report;
use crate::output::progress::Bar;
use crate::output::{table, terminal};
use crate::process::interrupt;
use crate::run_folder::RunFolder;
use crate::run_folder::freshness::{load_predictor, predictor_path, warn_of_doubts};
use crate::run_folder::kept_samples::SAMPLES;
use crate::search::measured::{Images, Measured};
use anyhow::{Result, bail};
use ofa_extract::predictor::active::{self, Acquisition, CurvePoint, FEWEST_CURVE_SAMPLES};
use ofa_extract::predictor::{
    FEWEST_SAMPLES, Method, Prediction, SampleWriter, add_samples, attainable_tau, check_space, has_imported,
    import_accuracies, other_weights, read_provenance, read_samples, read_subnets,
};
use ofa_extract::search::overrating;
use ofa_extract::{FitReport, FitSettings, Predictor, Sample};
use ofa_supernet::data::Dataset;
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::train::validation::Answers;
use ofa_supernet::{Ranks, SearchSpace, Subnet, Supernet, files};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Measure accuracies of random subnets and fit the accuracy predictor. Measured samples are kept; repeat the command
/// with more --samples to add some.
#[derive(clap::Args)]
pub struct Args {
    /// Run folder.
    #[arg(long, default_value = "run")]
    run: PathBuf,
    #[command(flatten)]
    pub sampling: Sampling,
    /// Images to use in place of the run's.
    #[arg(long)]
    data: Option<String>,
    /// Skip unreadable images with a count instead of failing.
    #[arg(long)]
    skip_bad: bool,
    /// Measure nothing, and show the quality of predictors that are fitted on fewer of the measured samples: drawn at
    /// random, and chosen (--active, by default by deviation).
    #[arg(long, conflicts_with_all = ["discard", "data", "skip_bad", "samples", "recalibration", "images", "batch", "seed"])]
    curve: bool,
    /// Instead of measuring: accuracies that were measured elsewhere (.jsonl or .csv, with a subnet and its accuracy
    /// per line), or the accuracy predictor that the authors of once-for-all published (acc_predictor.pth).
    #[arg(long, value_name = "FILE", conflicts_with_all = ["samples", "recalibration", "images", "batch", "data", "skip_bad", "active", "discard", "curve"])]
    import: Option<PathBuf>,
    /// With --import: the search space of the accuracies, for a new run folder without a supernet (--out).
    #[arg(long, requires_all = ["import", "out"], conflicts_with = "run")]
    space: Option<String>,
    /// Run folder to make for --space.
    #[arg(long, requires = "space")]
    out: Option<PathBuf>,
    /// With --space: resolutions to choose from, in place of the space's.
    #[arg(long, value_delimiter = ',', requires = "space", value_parser = numbers::resolution)]
    resolutions: Vec<usize>,
    /// With --space: classes of the networks, for their costs [default: those of the run folder, otherwise 1000].
    #[arg(long, requires = "space", value_parser = numbers::classes)]
    classes: Option<usize>,
    /// Print the predicted accuracy of each subnet of a file as JSON lines: with its standard deviation, and the
    /// interval that should hold 90 % of measured accuracies.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["import", "samples", "recalibration", "images", "batch", "seed", "data", "skip_bad", "members", "method", "active", "discard", "curve"])]
    predict: Option<PathBuf>,
}

/// Settings of sampling and fitting.
#[derive(clap::Args, Clone)]
pub struct Sampling {
    /// Total number of samples: subnets are measured until the run has as many, imported accuracies included.
    #[arg(long, default_value_t = 1000, value_parser = numbers::subnets)]
    pub samples: usize,
    #[command(flatten)]
    pub images: Images,
    /// Images per batch.
    #[arg(long, default_value_t = 100, value_parser = numbers::batch)]
    pub batch: usize,
    /// Seed of subnets, split and fit.
    #[arg(long, default_value_t = 0, value_parser = numbers::seed)]
    pub seed: u64,
    /// Kind of predictor.
    #[arg(long, value_parser = choice::one_of(Method::TABLE), default_value = "automatic")]
    pub method: Method,
    /// Number of networks of an ensemble: their mean is the prediction, their spread tells how sure it is (default with
    /// --method ensemble: 5).
    #[arg(long, value_parser = numbers::members)]
    pub members: Option<usize>,
    /// Choose what to measure in place of drawing at random: for a predictor that is as good after somewhat fewer
    /// measurements, or for more of them among the best subnets.
    #[arg(long, value_parser = choice::one_of(Acquisition::TABLE))]
    pub active: Option<Acquisition>,
    /// Drop samples that were measured with other weights, images or settings, and measure again; without this option
    /// they are refused.
    #[arg(long)]
    pub discard: bool,
}

impl Sampling {
    fn fit_settings(&self) -> FitSettings {
        let method = if self.members.is_some() { Method::Ensemble } else { self.method };
        let default = FitSettings::default();
        FitSettings { method, members: self.members.unwrap_or(default.members), ..default }
    }

    /// Refuses settings with which no predictor of `space` can be fitted, before anything is measured.
    pub fn check(&self, space: &SearchSpace) -> Result<()> {
        check_space(space)?;
        if self.samples < FEWEST_SAMPLES {
            bail!(
                "--samples {}: a predictor needs {FEWEST_SAMPLES} different subnets or more (1,000 are advisable)",
                self.samples
            );
        }
        Ok(())
    }
}

pub fn run(args: &Args, ranks: &Ranks) -> Result<Value> {
    if !ranks.is_first() && (args.curve || args.import.is_some() || args.predict.is_some()) {
        return Ok(Value::Null); // The first rank has all the work.
    }
    if let Some(file) = &args.import {
        return import(args, file);
    }
    let folder = RunFolder::new(&args.run);
    if let Some(file) = &args.predict {
        let _lock = folder.lock_to_read()?;
        return predict(&folder, file);
    }
    let config = folder.config()?;
    if args.curve {
        let _lock = folder.lock_to_read()?;
        return curve(&folder, &folder.space()?.0, &args.sampling);
    }
    args.sampling.check(&config.space)?;
    let _lock = ranks.is_first().then(|| folder.lock()).transpose()?;
    let (net, classes) = folder.supernet()?;
    let path = predictor_path(&folder);
    let data = folder.data(args.data.as_deref(), args.skip_bad)?;
    let data = folder.in_class_order(&classes, &data)?;
    sample(&folder, &net, &data, &args.sampling, ranks)?;
    if !ranks.is_first() {
        return Ok(Value::Null);
    }
    let (predictor, report) = fit(&folder, net.space(), &args.sampling)?;
    print_report(&report);
    warn_of_doubts(&folder, &predictor)?;
    say!("{} written", path.display());
    Ok(json!({ "predictor": path, "fit": report }))
}

/// Imports a published predictor, or accuracies that were measured elsewhere and a predictor that is fitted to them.
fn import(args: &Args, file: &Path) -> Result<Value> {
    let folder = RunFolder::new(args.out.as_deref().unwrap_or(&args.run));
    if args.space.is_none() {
        folder.config()?;
    }
    let is_accuracies =
        file.extension().is_some_and(|e| ["jsonl", "json", "csv"].iter().any(|known| e.eq_ignore_ascii_case(known)));
    let Sampling { method, members, seed, .. } = &args.sampling;
    if !is_accuracies && (*method != Method::default() || members.is_some() || *seed != 0) {
        bail!(
            "{}: a published predictor is not fitted again; --method, --members and --seed are for accuracies (.jsonl, \
             .csv)",
            file.display()
        );
    }
    let named = |name: &String| -> Result<SearchSpace> {
        let mut space = SearchSpace::named(name)?;
        if !args.resolutions.is_empty() {
            space.resolutions = args.resolutions.clone();
        }
        space.validate()?;
        Ok(space)
    };
    let space = args.space.as_ref().map(named).transpose()?;
    // What is imported is read before anything is written.
    let read = |space: &SearchSpace| is_accuracies.then(|| import_accuracies(file, space)).transpose();
    let samples = space.as_ref().map(read).transpose()?.flatten();
    let published = match &space {
        Some(space) if !is_accuracies => Some(Predictor::import(file, space)?),
        _ => None,
    };
    let _lock = folder.lock()?;
    if let Some(space) = &space {
        folder.create_foreign(space, args.classes)?;
    }
    let space = folder.space()?.0;
    let path = predictor_path(&folder);
    let Some(samples) = samples.map_or_else(|| read(&space), |samples| Ok(Some(samples)))? else {
        let predictor = published.map_or_else(|| Predictor::import(file, &space), Ok)?;
        replace_predictor(&folder, &predictor, None)?;
        say!("predictor for resolutions {:?} imported; {} written", predictor.space().resolutions, path.display());
        return Ok(json!({ "predictor": path, "resolutions": predictor.space().resolutions }));
    };
    let source = file.file_name().unwrap_or_default().to_string_lossy();
    let count = add_samples(&folder.join(SAMPLES), &space, &samples, &source)?;
    say!("{}: {} accuracies imported; the run has {count} samples", file.display(), samples.len());
    let (predictor, report) = fit(&folder, &space, &args.sampling)?;
    print_report(&report);
    warn_of_doubts(&folder, &predictor)?;
    say!("{} written", path.display());
    let run = shell::path(folder.path());
    terminal::next([
        format!("ofa search --run {run} --limit any:macs=..."),
        format!("ofa profile --run {run} --name NAME [--import TABLE]"),
    ]);
    Ok(json!({ "predictor": path, "imported": samples.len(), "samples": count, "fit": report }))
}

/// A prediction, which `--predict` prints as a line of JSON.
#[derive(Serialize)]
struct PredictedLine {
    subnet: Subnet,
    accuracy: f64,
    /// Standard deviation of a measured accuracy about the prediction, and the interval of 90 %; absent if not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    deviation: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    low: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    high: Option<f64>,
}

fn predict(folder: &RunFolder, file: &Path) -> Result<Value> {
    let (space, _) = folder.space()?;
    let predictor = load_predictor(folder, &space)?;
    let subnets = read_subnets(file, &space)?;
    let known = predictor.known_part(&space);
    let guessed = subnets.iter().filter(|subnet| known.check(subnet).is_err()).count();
    if guessed > 0 {
        terminal::note(format_args!(
            "{guessed} of {} subnets have values that no sample of the predictor has: their accuracies are guesses, and \
             the intervals do not tell",
            subnets.len()
        ));
    }
    let line = |subnet: Subnet, accuracy: f64, interval: Option<(f64, f64, f64)>| {
        let (deviation, low, high) =
            interval.map_or((None, None, None), |(d, low, high)| (Some(d), Some(low), Some(high)));
        PredictedLine { subnet, accuracy: accuracy.clamp(0.0, 1.0), deviation, low, high }
    };
    let lines: Vec<PredictedLine> = if predictor.has_deviation() {
        let predictions = predictor.predict_with_deviation(&subnets)?;
        let with_interval = |(subnet, prediction): (Subnet, Prediction)| {
            let (low, high) = prediction.interval();
            line(subnet, prediction.accuracy, Some((prediction.deviation, low, high)))
        };
        subnets.into_iter().zip(predictions).map(with_interval).collect()
    } else {
        let accuracies = predictor.predict(&subnets)?;
        subnets.into_iter().zip(accuracies).map(|(subnet, accuracy)| line(subnet, accuracy, None)).collect()
    };
    for line in &lines {
        say!("{}", serde_json::to_string(line)?);
    }
    Ok(json!({ "predictions": lines }))
}

/// File of the quality of the fit.
pub const REPORT: &str = "predictor/fit.json";

/// Random splits over which the learning curve is averaged.
const CURVE_REPETITIONS: u64 = 3;

fn curve(folder: &RunFolder, space: &SearchSpace, sampling: &Sampling) -> Result<Value> {
    let path = folder.join(SAMPLES);
    let samples = read_samples(&path, space)?;
    if space.count() < FEWEST_CURVE_SAMPLES as f64 {
        bail!(
            "the space '{}' has only {} subnets; a learning curve needs {FEWEST_CURVE_SAMPLES} samples or more",
            space.name,
            space.count()
        );
    }
    // Accuracies that were measured elsewhere have no provenance, and need no supernet.
    if let Some(provenance) = read_provenance(&path, space)?
        && let Some(other) = other_weights(&provenance.weights, &folder.weights_checksum()?)
    {
        terminal::warning(format!("{}: the samples are of {other}", path.display()));
    }
    let acquisition = sampling.active.unwrap_or(Acquisition::Deviation);
    let bar = Bar::new("fitting predictors", 0, "fits");
    let settings = sampling.fit_settings();
    let points = active::curve(space, &samples, acquisition, &settings, CURVE_REPETITIONS, &mut |done, total| {
        bar.set(done, total);
    })?;
    drop(bar);
    let row = |p: &CurvePoint| vec![p.samples.to_string(), format!("{:.3}", p.random), format!("{:.3}", p.chosen)];
    let rows: Vec<Vec<String>> = points.iter().map(row).collect();
    table::print(&["samples", "tau, random", "tau, chosen"], &rows);
    let point = |p: &CurvePoint| json!({ "samples": p.samples, "tau_random": p.random, "tau_chosen": p.chosen });
    Ok(json!({ "curve": points.iter().map(point).collect::<Vec<_>>() }))
}

/// Measures missing samples, then fits the predictor; both with progress.
pub fn fit_predictor(folder: &RunFolder, net: &Supernet, data: &Dataset, sampling: &Sampling) -> Result<FitReport> {
    sample(folder, net, data, sampling, &Ranks::alone())?;
    Ok(fit(folder, net.space(), sampling)?.1)
}

fn fit(folder: &RunFolder, space: &SearchSpace, sampling: &Sampling) -> Result<(Predictor, FitReport)> {
    let path = folder.join(SAMPLES);
    let samples = read_samples(&path, space)?;
    let bar = Bar::new("fitting the predictor", 0, "steps");
    let (mut predictor, mut report) =
        Predictor::fit(space, &samples, &sampling.fit_settings(), sampling.seed, &mut |done, total, rmse| {
            bar.advance(done, total, [format!("RMSE {:.2} points", 100.0 * rmse)]);
        })?;
    drop(bar);
    let bar = Bar::new("judging searches", 0, "halves");
    predictor.set_overrating(overrating(&predictor, &samples, sampling.seed, &mut |done, total| bar.set(done, total))?);
    drop(bar);
    report.measured_with = read_provenance(&path, space)?;
    let of_subnet: HashMap<&Subnet, &Sample> = samples.iter().map(|sample| (&sample.subnet, sample)).collect();
    let held_out: Vec<&[u32]> = report.pairs.iter().map(|pair| &of_subnet[&pair.subnet].correct[..]).collect();
    report.attainable_tau = attainable_tau(&held_out, sampling.seed);
    predictor.set_provenance(report.measured_with.clone());
    if has_imported(&path, space)? {
        predictor.set_imported();
    }
    replace_predictor(folder, &predictor, Some(&report))?;
    Ok((predictor, report))
}

/// Writes a predictor and its report. A kill between the two files leaves no report, never that of another predictor.
fn replace_predictor(folder: &RunFolder, predictor: &Predictor, report: Option<&FitReport>) -> Result<()> {
    let path = folder.join(REPORT);
    files::remove_file(&path)?;
    predictor.save(&predictor_path(folder))?;
    if let Some(report) = report {
        files::write_json(&path, report)?;
    }
    Ok(())
}

/// Distinct subnets of a seed, always in the same order: the smallest, the largest, then random ones.
fn subnets(net: &Supernet, count: usize, seed: u64) -> Vec<Subnet> {
    let space = net.space();
    let ends = [space.smallest(), space.largest()].into_iter();
    let random = (0..(count as u64).saturating_mul(100))
        .map(|position| space.sample(&mut generator(seed, Stream::Samples, &[position])));
    let mut seen = HashSet::new();
    // A space with fewer subnets would otherwise be searched for more in vain.
    let count = (count as f64).min(space.count()) as usize;
    ends.chain(random).filter(|subnet| seen.insert(subnet.clone())).take(count).collect()
}

/// Divisor of the samples that gives the number drawn at random before any is chosen by expected improvement.
const RANDOM_PART: usize = 4;
/// Divisor of the samples that gives the number chosen per round.
const ROUND_PART: usize = 16;

/// Number of subnets that are sorted and measured as a block. Sorted neighbours have a fifth of their work in common in
/// a block of a hundred, a quarter in one of a thousand; but the samples of a stopped run should be close to random
/// ones.
const BLOCK: usize = 128;

/// Subnets to measure next, given the measured samples in their order: all missing ones, or with active sampling the
/// rest of a round. The result depends on these samples only, so that a stopped run resumes as if it had not stopped.
/// Each block is sorted, so that neighbours have their first layers in common.
fn next(net: &Supernet, known: &[Sample], sampling: &Sampling) -> Result<Vec<Subnet>> {
    let measured: HashSet<&Subnet> = known.iter().map(|s| &s.subnet).collect();
    let missing = |mut wanted: Vec<Subnet>, most: usize| -> Vec<Subnet> {
        wanted.chunks_mut(BLOCK).for_each(<[Subnet]>::sort);
        wanted.into_iter().filter(|s| !measured.contains(s)).take(most.saturating_sub(known.len())).collect()
    };
    let random = match sampling.active {
        Some(Acquisition::Deviation) => 2,
        _ => (sampling.samples / RANDOM_PART).max(FEWEST_SAMPLES),
    };
    match sampling.active {
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

/// Most subnets that a rank measures together before their accuracies are written. Layers that they have in common at
/// their beginning are computed once; eight neighbours share nearly as much as a whole block.
const TOGETHER: usize = 8;

/// Seconds that measuring subnets together may take: a stopped process loses that work.
const SECONDS_TOGETHER: f64 = 20.0;

/// Measures missing samples. Ranks divide the subnets; the first rank chooses them and writes the file, which is the
/// same for any number of ranks.
fn sample(folder: &RunFolder, net: &Supernet, data: &Dataset, sampling: &Sampling, ranks: &Ranks) -> Result<()> {
    let path = folder.join(SAMPLES);
    let measured = Measured::new(net, data, &sampling.images, sampling.batch, sampling.seed)?;
    let open = || -> Result<_> {
        let provenance = measured.provenance(folder.weights_checksum()?)?;
        Ok(SampleWriter::open(&path, net.space(), &provenance, sampling.discard)?)
    };
    let mut file = ranks.is_first().then(open).transpose()?;
    let unattributed = file.as_ref().map_or(0, |(writer, _)| writer.unattributed());
    if unattributed > 0 {
        terminal::warning(format!(
            "{}: {unattributed} samples do not record the weights and images they were measured with, and are used \
             nevertheless; to measure them again, give --discard",
            path.display()
        ));
    }
    let count = (sampling.samples as f64).min(net.space().count()) as usize;
    if ranks.is_first() && count < sampling.samples {
        terminal::note(format!("the space '{}' has only {count} subnets; all of them are measured", net.space().name));
    }
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
    let bar = Bar::new("measuring subnets", count, "subnets");
    bar.set(file.as_ref().map_or(0, |(_, known)| known.len()), count);
    while !missing.is_empty() {
        let (mut rest, mut together) = (&missing[..], 1);
        while !rest.is_empty() {
            let (subnets, later) = rest.split_at(rest.len().min(together * ranks.count()));
            let start = Instant::now();
            let own = ranks.shard(subnets.len());
            let of_own = match measured.answers(&subnets[own.clone()]) {
                Err(ofa_supernet::Error::Interrupted) => None,
                answers => Some(answers?),
            };
            let stopped = ranks.any([of_own.is_none()]);
            let (Some(of_own), [false]) = (of_own, stopped) else {
                return Err(interrupt::stopped(format!(
                    "stopped; measured samples are kept in {}; run the same command to resume",
                    path.display()
                )));
            };
            // Of each subnet its correct answers in each batch, then its log-likelihood.
            let numbers = measured.validation().batches() + 1;
            let mut answers = vec![0.0; subnets.len() * numbers];
            for (Answers { correct, log_likelihood }, row) in
                of_own.iter().zip(answers[own.start * numbers..].chunks_exact_mut(numbers))
            {
                let values = correct.iter().map(|&count| f64::from(count)).chain([*log_likelihood]);
                row.iter_mut().zip(values).for_each(|(place, value)| *place = value);
            }
            ranks.sum_f64(&mut answers);
            let mut seconds = [start.elapsed().as_secs_f64()];
            ranks.sum_f64(&mut seconds);
            together = ((SECONDS_TOGETHER * subnets.len() as f64 / seconds[0]) as usize).clamp(1, TOGETHER);
            rest = later;
            let Some((writer, known)) = &mut file else { continue };
            for (subnet, row) in subnets.iter().zip(answers.chunks_exact(numbers)) {
                let correct = row[..numbers - 1].iter().map(|&count| count as u32).collect();
                let sample = measured.sample(subnet, Answers { correct, log_likelihood: row[numbers - 1] });
                writer.append(&sample)?;
                let accuracy = sample.accuracy;
                known.push(sample);
                bar.advance(known.len(), count, [format!("last accuracy {:.1} %", 100.0 * accuracy)]);
            }
        }
        missing = wanted(&file)?;
    }
    Ok(())
}
