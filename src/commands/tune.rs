//! `ofa tune`

use super::train::Settings;
use crate::arguments::{choice, numbers, shell};
use crate::output::progress::{self, Bar};
use crate::output::{table, terminal};
use crate::process::{interrupt, memory};
use crate::run_folder::{RunConfig, RunFolder};
use anyhow::{Context, Result, bail};
use ofa_extract::tune::{
    self, Outcome, Point, Ranges, Trial, TrialStrategy, TrialWriter, Values, read_trials, suggest,
};
use ofa_supernet::data::Dataset;
use ofa_supernet::files;
use ofa_supernet::train::checkpoint::Folder;
use ofa_supernet::train::{Control, Event, MetricsLine, metrics, train};
use ofa_supernet::{Error, Ranks, Supernet};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Try hyperparameters of training on shortened runs, and stop bad trials early. Repeat the command to resume after a
/// stop, or with more trials.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    settings: Settings,
    /// Ranges to search, a TOML file: a table such as [learning_rate] with low, high and log, or with values (default:
    /// learning rate and weight decay by a factor of ten either way, and half and twice the batch).
    #[arg(long)]
    ranges: Option<PathBuf>,
    /// Strategy that suggests trials.
    #[arg(long, value_parser = choice::one_of(TrialStrategy::TABLE), default_value = "bayes")]
    strategy: TrialStrategy,
    /// Total number of trials.
    #[arg(long, default_value_t = 20, value_parser = numbers::repetitions)]
    trials: usize,
    /// Epochs of a trial over all stages (default: a quarter of the configuration's).
    #[arg(long, value_parser = numbers::epochs)]
    trial_epochs: Option<f64>,
    /// Run every trial to its end, however bad it is.
    #[arg(long)]
    no_pruning: bool,
    /// Folder for the trials.
    #[arg(long, default_value = "tune")]
    out: PathBuf,
}

pub fn run(args: &Args) -> Result<Value> {
    let config = args.settings.resolve()?;
    if args.settings.is_transfer() {
        bail!("--preset transfer is for trained weights, and trials start from random ones; take another preset");
    }
    if let Some(from) = config.from.as_ref().or(config.train.teacher_from.as_ref()) {
        bail!("'{from}': trials start from random weights and without a teacher of another run; leave it out");
    }
    let epochs = args.trial_epochs.unwrap_or(config.train.total_epochs() / 4.0);
    let ranges = match &args.ranges {
        Some(path) => Ranges::read(path, &config.train, &config.space)?,
        None => Ranges::about(&config.train, &config.space)?,
    };
    let folder = RunFolder::new(&args.out);
    if let (Some((name, reason)), false) = (ranges.idle(&config.train), folder.join("ranges.toml").exists()) {
        bail!("[{name}] {reason}, so the hyperparameter has no effect; remove it from the ranges");
    }
    let _lock = folder.lock()?;
    let shortened = RunConfig { train: config.train.clone().with_epochs(epochs), ..config.clone() };
    write_or_compare_settings(&folder, &shortened, &ranges)?;

    let path = folder.join("trials.jsonl");
    let mut trials = read_trials(&path, &ranges)?;
    // A trial is recorded before its folder is removed: a kill in between leaves a folder that is no longer needed.
    (0..trials.len()).try_for_each(|number| files::remove_folder(&trial_folder(&folder, number)))?;
    let data = config.data.open()?;
    write_or_compare_data(&folder, &data, &config.data.source)?;
    if trials.len() < args.trials {
        let mut largest = shortened.train.clone();
        let varied = ranges.apply_largest_batch(&mut largest);
        memory::check_trials(&config.space, &data, &largest, varied)?;
    }
    let strategy = args.strategy;
    let bar = Bar::new("tuning", 0, "steps");
    while trials.len() < args.trials {
        // An unfinished trial is finished first, whatever this command's strategy would suggest.
        let unfinished = unfinished_values(&folder, trials.len(), &ranges)?;
        let Some(values) = unfinished.or_else(|| suggest(strategy, &ranges, &trials, config.train.seed)) else {
            let of = if strategy == TrialStrategy::Grid { "the grid" } else { "the ranges" };
            terminal::note(format_args!("every combination of {of} has been tried"));
            break;
        };
        let earlier = if args.no_pruning { &[][..] } else { &trials[..] };
        let trial =
            Run { config: &shortened, ranges: &ranges, data: &data, folder: &folder, bar: &bar, trials: args.trials }
                .trial(trials.len(), values, earlier)?;
        terminal::note(outcome_sentence(&trial));
        trials.push(trial);
        TrialWriter::new(&path).write(&trials, &ranges)?;
        files::remove_folder(&trial_folder(&folder, trials.len() - 1))?;
    }
    drop(bar);
    let (header, rows) = tune::table(&trials, &ranges);
    table::print(&header.iter().map(String::as_str).collect::<Vec<_>>(), &rows);
    let Some(best) = tune::best(&trials) else {
        bail!(
            "{}: all {} trials diverged (loss or weights became NaN or infinite), so none is the best; give lower learning rates with --ranges, or \
             set clip_norm in the configuration, and name another folder with --out",
            args.out.display(),
            trials.len()
        );
    };
    let mut chosen = config.clone();
    ranges.apply(&best.values, &mut chosen.train);
    let text = chosen.to_toml()?;
    let written = folder.join("best.toml");
    files::write_atomic(&written, text.as_bytes())?;
    say!("\nbest: {}, {}", tune::name(best.trial), describe(&best.values));
    say!(
        "{} written, with all {} epochs; every validation is in {}",
        written.display(),
        tune::significant(chosen.train.total_epochs()),
        folder.join("trials.csv").display()
    );
    terminal::next([format!("ofa train --config {} --out run", shell::path(&written))]);
    Ok(json!({ "trials": trials, "best": best.trial, "config": written }))
}

/// Says how a trial ended.
fn outcome_sentence(trial: &Trial) -> String {
    let (name, values) = (tune::name(trial.trial), describe(&trial.values));
    let accuracy = format!("accuracy {:.1} %", 100.0 * trial.objective);
    let steps = |point: &Point| format!("{:.0} % of its steps", 100.0 * point.progress);
    match trial.outcome {
        Outcome::Finished => format!("{name} finished: {values}: {accuracy}"),
        Outcome::Stopped => {
            let done = trial.curve.last().map_or("some steps".into(), steps);
            format!("{name} stopped early, after {done}: {values}: {accuracy}")
        }
        Outcome::Diverged => format!("{name} diverged: {values}"),
    }
}

fn describe(values: &Values) -> String {
    let parts: Vec<String> =
        values.iter().map(|(name, value)| format!("{name} {}", tune::significant(*value))).collect();
    parts.join(", ")
}

/// Writes configuration and ranges of a new tuning; those of a tuning that continues must be the same, so that its
/// trials can be compared.
fn write_or_compare_settings(folder: &RunFolder, config: &RunConfig, ranges: &Ranges) -> Result<()> {
    let text = toml::to_string(ranges).context("the ranges have no TOML form")?;
    let path = folder.join("ranges.toml");
    if !folder.join("config.toml").exists() {
        files::write_atomic(&path, text.as_bytes())?;
        return folder.write_config(config);
    }
    // Compared as written and read, since the file rounds numbers.
    let same_config = folder.config()?.to_toml()? == config.to_toml()?;
    if !same_config || !path.exists() || files::read_text(&path)? != text {
        bail!(
            "{}: the trials in this folder have another configuration or other ranges; name another folder with --out",
            folder.join("config.toml").display()
        );
    }
    Ok(())
}

/// Records the digest of a new tuning's images; the images of a tuning that continues must have the same digest. A
/// tuning of an earlier version recorded none and gets that of the present images.
fn write_or_compare_data(folder: &RunFolder, data: &Dataset, source: &str) -> Result<()> {
    let (path, digest) = (folder.join(DATA_FILE), data.digest());
    if !path.exists() {
        return Ok(files::write_json(&path, &TrialData { digest })?);
    }
    let written: TrialData = files::read_json(&path)?;
    if written.digest != digest {
        bail!(
            "{}: the trials in this folder were trained on other images than '{source}' now holds (files, labels or splits differ); give those images again, \
             or name another folder with --out",
            path.display()
        );
    }
    Ok(())
}

/// File with the digest of the images that the trials are trained on.
const DATA_FILE: &str = "data.json";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TrialData {
    digest: String,
}

/// Folder of an unfinished trial, with its checkpoints and metrics.
fn trial_folder(folder: &RunFolder, number: usize) -> PathBuf {
    folder.join(&tune::name(number))
}

/// File with the hyperparameters of a trial, in the trial's folder.
const VALUES_FILE: &str = "values.json";

/// Hyperparameters of trial `number`, if it has begun.
fn unfinished_values(folder: &RunFolder, number: usize, ranges: &Ranges) -> Result<Option<Values>> {
    let path = trial_folder(folder, number).join(VALUES_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let values: Values = files::read_json(&path)?;
    if !values.keys().copied().eq(ranges.names()) {
        bail!(
            "{}: this trial varies other hyperparameters than the ranges; name another folder with --out",
            path.display()
        );
    }
    Ok(Some(values))
}

/// Context that all trials share.
struct Run<'a> {
    config: &'a RunConfig,
    ranges: &'a Ranges,
    data: &'a Dataset,
    folder: &'a RunFolder,
    bar: &'a Bar,
    trials: usize,
}

impl Run<'_> {
    /// Runs or resumes trial `number`, and stops it early if it is worse than the median of `earlier` trials.
    fn trial(&self, number: usize, values: Values, earlier: &[Trial]) -> Result<Trial> {
        let mut config = self.config.train.clone();
        self.ranges.apply(&values, &mut config);
        let (space, classes) = (&self.config.space, self.data.classes.len());
        let steps: usize = config.plan(space, self.data.train.len()).iter().map(|stage| stage.steps).sum();
        let folder = trial_folder(self.folder, number);
        let resume = !Folder::of_run(&folder, 1).list()?.is_empty();
        files::write_json(&folder.join(VALUES_FILE), &values)?;
        let mut net = Supernet::new(space, classes, config.seed)?;
        let (mut curve, mut pruned, mut unreadable) = (Vec::new(), false, None);
        let begun = Instant::now();
        let name = format!("{} ({} of {}): {}", tune::name(number), number + 1, self.trials, describe(&values));
        let trained = train(&mut net, self.data, &config, &Ranks::alone(), &folder, resume, &mut |event| {
            match event {
                Event::Resumed { step, .. } => match points_of(&folder, *step, steps) {
                    Ok(points) => {
                        curve = points;
                        // The trial may have been pruned and killed before that was recorded.
                        pruned = *step < steps && tune::should_prune(&curve, earlier);
                    }
                    Err(error) => unreadable = Some(error),
                },
                Event::Probes { step, results, .. } => {
                    let accuracy = results.iter().map(|r| r.accuracy).sum::<f64>() / results.len().max(1) as f64;
                    curve.push(Point { progress: *step as f64 / steps as f64, accuracy });
                    pruned = *step < steps && tune::should_prune(&curve, earlier);
                }
                Event::Step(step) => {
                    self.bar.pace(format!("{} images/s", progress::rate(step.images_per_second)), step.eta_seconds);
                    let loss = format!("loss {:.3}", step.report.loss);
                    self.bar.advance(step.step, step.steps, [name.clone(), loss, step.stage.to_string()]);
                }
                _ => {}
            }
            if pruned || unreadable.is_some() || interrupt::requested() { Control::Stop } else { Control::Continue }
        });
        if let Some(error) = unreadable {
            return Err(error.into());
        }
        let mut seconds = begun.elapsed().as_secs_f64();
        let outcome = match trained {
            Err(Error::NotFinite(_)) => Outcome::Diverged,
            Err(error) => return Err(error.into()),
            Ok(_) if pruned => Outcome::Stopped,
            Ok(ofa_supernet::train::Outcome::Finished { seconds: of_all, .. }) => {
                // All sessions count.
                seconds = of_all;
                Outcome::Finished
            }
            Ok(ofa_supernet::train::Outcome::Interrupted { .. }) => {
                let message =
                    format!("stopped in {}, which is saved; run the same command to resume", tune::name(number));
                return Err(interrupt::stopped(message));
            }
        };
        let objective = match outcome {
            Outcome::Diverged => 0.0,
            _ => curve.last().map_or(0.0, |point| point.accuracy),
        };
        Ok(Trial { trial: number, values, curve, objective, outcome, seconds })
    }
}

/// Validations up to step `step` in the metrics of a stopped trial.
fn points_of(folder: &Path, step: usize, steps: usize) -> Result<Vec<Point>, Error> {
    let mut points: Vec<(usize, Vec<f64>)> = Vec::new();
    for line in metrics::read(&folder.join("metrics.jsonl"))? {
        if let MetricsLine::Probe { step: at, accuracy, .. } = line
            && at <= step
        {
            match points.last_mut() {
                Some((last, accuracies)) if *last == at => accuracies.push(accuracy),
                _ => points.push((at, vec![accuracy])),
            }
        }
    }
    let point = |(at, accuracies): (usize, Vec<f64>)| Point {
        progress: at as f64 / steps as f64,
        accuracy: accuracies.iter().sum::<f64>() / accuracies.len() as f64,
    };
    Ok(points.into_iter().map(point).collect())
}
