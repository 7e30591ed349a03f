//! `ofa status`

use crate::arguments::shell;
use crate::commands::predictor::REPORT as FIT;
use crate::output::{next_steps, progress, terminal};
use crate::run_folder::freshness::{by_flags, predictor_path, warnings};
use crate::run_folder::model_folders::{int8_folder, model_folder};
use crate::run_folder::{RunConfig, RunFolder, subfolders};
use anyhow::{Result, bail};
use ofa_evaluate::bench::BENCH_FILE;
use ofa_evaluate::model::{CONFIG_FILE, ModelConfig, load_config};
use ofa_extract::{FitReport, SearchResult};
use ofa_supernet::Error;
use ofa_supernet::files::read_json;
use ofa_supernet::train::checkpoint::{Folder, Progress, read_position, read_supernet_note};
use ofa_supernet::train::metrics::{self, MetricsLine};
use ofa_supernet::train::progress::Pace;
use serde::Serialize;
use serde_json::Value;
use std::path::PathBuf;

/// Show where a run stands: stage, step, time left, accuracies, what its folder holds, and what to do next.
#[derive(clap::Args)]
pub struct Args {
    /// Run folder.
    #[arg(default_value = "run")]
    run: PathBuf,
    /// Run folder, as other commands take it.
    #[arg(long = "run", id = "RUN", value_name = "RUN", conflicts_with = "run")]
    named: Option<PathBuf>,
}

/// Everything that is shown.
#[derive(Serialize)]
struct Status {
    run: PathBuf,
    space: String,
    data: String,
    state: State,
    /// The command that works on the run alone, with its process.
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<String>,
    training: Option<Training>,
    /// Steps of the checkpoints from which training can resume.
    checkpoints: Vec<usize>,
    predictor: Option<FitReport>,
    /// Whether there is a predictor, perhaps a published one, whose quality is not known.
    has_predictor: bool,
    /// Names of device profiles.
    devices: Vec<String>,
    /// Names of search results.
    searches: Vec<String>,
    /// Names of model folders.
    models: Vec<String>,
    /// Sentences about a predictor and search results that are not to be relied on.
    warnings: Vec<String>,
    /// Commands to run next.
    next: Vec<String>,
}

/// State of the supernet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// No step is done.
    NotBegun,
    /// A process trains it.
    Training,
    /// Training was stopped or killed.
    Stopped,
    /// Training is done.
    Trained,
    /// The weights come from elsewhere.
    Imported,
    /// There is no supernet: accuracies were measured elsewhere.
    WithoutSupernet,
}

/// Position of the training.
#[derive(Serialize)]
struct Training {
    stage: String,
    /// Number of the stage, from 1.
    stage_number: usize,
    stages: usize,
    stage_step: usize,
    stage_steps: usize,
    step: usize,
    steps: usize,
    /// Seconds of training so far.
    seconds: f64,
    /// Estimated seconds to the end, by the last steps that were recorded.
    seconds_left: Option<f64>,
    /// Mean loss and training accuracy over the last steps that were recorded.
    loss: Option<f64>,
    accuracy: Option<f64>,
    /// The last validation.
    validation: Vec<Validation>,
}

/// Validation accuracy of a fixed subnet.
#[derive(Serialize)]
struct Validation {
    step: usize,
    name: String,
    subnet: ofa_supernet::Subnet,
    accuracy: f64,
}

pub fn run(args: &Args) -> Result<Value> {
    let status = Status::gather(&RunFolder::new(args.named.as_ref().unwrap_or(&args.run)))?;
    status.print();
    status.warnings.iter().for_each(terminal::warning);
    terminal::next(status.next.iter().cloned());
    Ok(serde_json::to_value(&status)?)
}

impl Status {
    fn gather(folder: &RunFolder) -> Result<Self> {
        let config = folder.config()?;
        let trials = folder.join("trials.jsonl");
        if trials.exists() {
            bail!(
                "{}: this folder holds trials of `ofa tune`, not a run; trials.csv beside it lists them",
                trials.display()
            );
        }
        // A command that trains or measures holds the lock alone; its files may be read all the same.
        let (command, _lock) = match folder.lock_to_read() {
            Ok(lock) => (None, lock),
            Err(error) => match error.downcast::<Error>() {
                Ok(Error::Busy { holder, .. }) => (Some(holder), None),
                Ok(error) => return Err(error.into()),
                Err(error) => return Err(error),
            },
        };
        let checkpoints = Folder::of_run(folder.path(), 1);
        let lines = match folder.join("metrics.jsonl") {
            path if path.exists() => metrics::read(&path)?,
            _ => Vec::new(),
        };
        // A finished run may have got more stages since, or lost its last checkpoints.
        let has_supernet = is_finished(&config, &checkpoints)?;
        let state = match (&command, has_supernet, checkpoints.list()?.len()) {
            (_, true, _) if lines.is_empty() => State::Imported,
            (_, true, _) => State::Trained,
            (_, false, 0) if folder.is_foreign() => State::WithoutSupernet,
            (Some(_), false, _) => State::Training,
            (None, false, 0) => State::NotBegun,
            (None, false, _) => State::Stopped,
        };
        let fit = folder.join(FIT);
        let names = |paths: Vec<PathBuf>| -> Vec<String> {
            let name = |path: &PathBuf| Some(path.file_stem()?.to_string_lossy().into_owned());
            paths.iter().filter_map(name).collect()
        };
        let models = subfolders(&folder.join("models")).into_iter().filter(|path| path.join(CONFIG_FILE).is_file());
        let mut models: Vec<String> =
            models.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect();
        models.sort();
        let searches = folder.json_files("search")?;
        // Other commands tell of a damaged one.
        let readable = |path: &PathBuf| Some((path.clone(), read_json::<SearchResult>(path).ok()?));
        let results: Vec<(PathBuf, SearchResult)> = searches.iter().filter_map(readable).collect();
        let mut status = Status {
            run: folder.path().to_path_buf(),
            space: config.space.name.clone(),
            data: config.data.source.clone(),
            state,
            command,
            training: training(&config, &checkpoints, &lines, state)?,
            checkpoints: checkpoints.list()?.into_iter().map(|(step, _)| step).collect(),
            predictor: if fit.exists() { Some(read_json(&fit)?) } else { None },
            has_predictor: predictor_path(folder).exists(),
            devices: names(folder.json_files("devices")?),
            searches: names(searches),
            models,
            warnings: warnings(folder, &results)?,
            next: Vec::new(),
        };
        status.next = status.next(folder, &config, &results)?;
        Ok(status)
    }

    /// The commands to run next.
    fn next(&self, folder: &RunFolder, config: &RunConfig, results: &[(PathBuf, SearchResult)]) -> Result<Vec<String>> {
        let run = shell::path(&self.run);
        if self.command.is_some() {
            return Ok(Vec::new());
        }
        if matches!(self.state, State::NotBegun | State::Stopped) {
            return Ok(vec![format!("ofa train --out {run} --resume")]);
        }
        let mut next = Vec::new();
        if self.devices.is_empty() {
            next.extend(next_steps::profile(config, &run));
        }
        if !self.has_predictor && self.state != State::WithoutSupernet {
            // Few subnets have no predictor, and are extracted once.
            let is_done = next_steps::are_few(config) && !self.models.is_empty();
            next.extend((!is_done).then(|| next_steps::after_training(config, &run)));
        }
        if self.is_of_other_weights(folder) {
            // Searches and models follow from the predictor.
            next.push(format!("{} --discard", next_steps::predictor(config, &run)));
            return Ok(next);
        }
        if self.has_predictor && self.searches.is_empty() {
            let limit = self.devices.first().map_or("any:macs=50M".into(), |device| format!("{device}:latency=10ms"));
            next.push(format!("ofa search --run {run} --limit {}", shell::quote(&limit)));
        }
        if self.state != State::WithoutSupernet {
            next.extend(self.extractions(folder, config, results)?);
        }
        let is_measured = |name: &String| folder.join(&format!("models/{name}/{BENCH_FILE}")).exists();
        if !self.models.iter().all(is_measured) {
            let images = next_steps::test_images(&self.data);
            next.push(format!("ofa bench {run}/models/* --data {images} --update-card"));
        } else if !self.models.is_empty() {
            next.push(format!("ofa report --run {run}"));
        }
        Ok(next)
    }

    /// Whether the predictor was fitted for other weights than the supernet's.
    fn is_of_other_weights(&self, folder: &RunFolder) -> bool {
        let measured_with = self.predictor.as_ref().and_then(|fit| fit.measured_with.as_ref());
        measured_with.is_some_and(|with| folder.weights_checksum().is_ok_and(|weights| weights != with.weights))
    }

    /// The commands that extract the results of searches without a model of the supernet's weights, or whose model an
    /// earlier result left.
    fn extractions(
        &self,
        folder: &RunFolder,
        config: &RunConfig,
        results: &[(PathBuf, SearchResult)],
    ) -> Result<Vec<String>> {
        let (mut replaced, mut missing) = (Vec::new(), Vec::new());
        for (file, result) in results {
            let Some(name) = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()) else { continue };
            let path = model_folder(folder, &name);
            let Ok(model) = load_config(&path) else {
                missing.push((name, result));
                continue;
            };
            let is_tuned = |model: &ModelConfig| {
                model.finetuned.is_some()
                    || model.quantisation.as_ref().is_some_and(|integers| integers.finetuned.is_some())
            };
            // Whether to replace a fine-tuned model, or one of another origin, is its owner's choice.
            let found_by = model.provenance.as_ref().and_then(|provenance| provenance.search.as_ref());
            // The int8 twin of a search's model may have the name of another search.
            let is_twin = model.quantisation.is_some();
            if is_tuned(&model)
                || load_config(&int8_folder(&path)).is_ok_and(|twin| is_tuned(&twin))
                || !(is_twin || found_by == Some(&name))
            {
                continue;
            }
            let weights = folder.weights_checksum()?;
            if is_twin || model.subnet != result.best {
                replaced.push((name, result));
            } else if model.origin.is_some_and(|origin| origin.contains("(checksum ") && !origin.contains(&weights)) {
                missing.push((name, result));
            }
        }
        let run = shell::path(&self.run);
        let commands = |chosen: &[(String, &SearchResult)], overwrite: &str| -> Result<Vec<String>> {
            let groups = by_flags(folder, chosen)?;
            let is_all = groups.len() == 1 && chosen.len() == results.len() && overwrite.is_empty();
            let command = |(flags, names): (&String, &Vec<String>)| {
                let names = if is_all { &[][..] } else { names };
                next_steps::extract(config, &run, names, flags) + overwrite
            };
            Ok(groups.iter().map(command).collect())
        };
        let mut all = Vec::new();
        if !replaced.is_empty() {
            all.extend(commands(&replaced, " --overwrite")?);
        }
        if !missing.is_empty() {
            all.extend(commands(&missing, "")?);
        }
        Ok(all)
    }

    fn print(&self) {
        let line = |name: &str, text: String| say!("{name:<12}{text}");
        let list = |names: &[String]| if names.is_empty() { "none".into() } else { names.join(", ") };
        line("run", format!("{}, space '{}', data '{}'", self.run.display(), self.space, self.data));
        if let Some(command) = &self.command {
            line("at work", command.clone());
        }
        line("supernet", self.supernet());
        if let Some(training) = self.training.as_ref().filter(|_| self.state != State::Trained) {
            training.print();
        }
        if let Some(training) = &self.training {
            let accuracy = |v: &Validation| format!("{} {:.1} %", v.name, 100.0 * v.accuracy);
            let accuracies: Vec<String> = training.validation.iter().map(accuracy).collect();
            let at = training.validation.first().map_or(String::new(), |v| format!(" (validation at step {})", v.step));
            line("accuracies", list(&accuracies) + &at);
        }
        let steps: Vec<String> = self.checkpoints.iter().map(|step| format!("step {step}")).collect();
        line("checkpoints", list(&steps));
        let tau = |fit: &FitReport| fit.kendall_tau.map_or(String::new(), |tau| format!(", Kendall tau {tau:.3}"));
        let fit = |fit: &FitReport| format!("{} subnets, RMSE {:.2} points{}", fit.samples, 100.0 * fit.rmse, tau(fit));
        let unknown = if self.has_predictor { "there, its quality is not known" } else { "none" };
        line("predictor", self.predictor.as_ref().map_or(unknown.into(), fit));
        line("devices", list(&self.devices));
        line("searches", list(&self.searches));
        line("models", list(&self.models));
    }

    fn supernet(&self) -> String {
        match (self.state, &self.training) {
            (State::NotBegun, _) => "training has not begun".into(),
            (State::Training, _) => "training".into(),
            (State::Stopped, _) => "training is stopped and can be resumed".into(),
            (State::Trained, Some(training)) => {
                format!("trained, {} steps in {}", training.step, progress::duration(training.seconds))
            }
            (State::Trained, None) => "trained".into(),
            (State::Imported, _) => "imported".into(),
            (State::WithoutSupernet, _) => "none, accuracies were measured elsewhere".into(),
        }
    }
}

impl Training {
    fn print(&self) {
        let line = |name: &str, text: String| say!("{name:<12}{text}");
        line("stage", format!("{} of {}, '{}'", self.stage_number, self.stages, self.stage));
        line(
            "step",
            format!("{} of {} ({} of {} in this stage)", self.step, self.steps, self.stage_step, self.stage_steps),
        );
        line("time so far", progress::duration(self.seconds));
        if let Some(left) = self.seconds_left {
            line("time left", format!("about {}", progress::duration(left)));
        }
        if let (Some(loss), Some(accuracy)) = (self.loss, self.accuracy) {
            line("loss", format!("{loss:.3}, training accuracy {:.1} %", 100.0 * accuracy));
        }
    }
}

/// Position and number of images of the newest checkpoint that can be read, which training would resume from.
fn newest_position(folder: &Folder) -> Result<Option<(Progress, usize)>> {
    let mut damaged = None;
    for (_, path) in folder.list()?.into_iter().rev() {
        match read_position(&path) {
            Ok(position) => return Ok(Some(position)),
            Err(error @ Error::File { .. }) => return Err(error.into()),
            Err(error) => damaged = damaged.or(Some(error)),
        }
    }
    damaged.map_or(Ok(None), |error| Err(error.into()))
}

/// Whether the supernet is that of the newest checkpoint, if there is one, and no stage follows. One schedule over all
/// stages ends with the supernet; stages that are added later are not trained.
fn is_finished(config: &RunConfig, folder: &Folder) -> Result<bool> {
    let supernet = folder.supernet_path();
    if !supernet.exists() {
        return Ok(false);
    }
    let Some((position, _)) = newest_position(folder)? else { return Ok(true) };
    // Other commands tell of a damaged one.
    let Ok(steps) = read_supernet_note(&supernet).map(|note| note.steps) else { return Ok(true) };
    let is_last = position.stage >= config.train.stages.len();
    Ok(steps >= position.step && (is_last || config.train.schedule.is_some() && steps == position.step))
}

/// Position of the training: where it is if a process works on it, otherwise where the newest checkpoint is.
fn training(config: &RunConfig, folder: &Folder, lines: &[MetricsLine], state: State) -> Result<Option<Training>> {
    let Some((position, images)) = newest_position(folder)? else { return Ok(None) };
    let plan = config.train.plan(&config.space, images);
    let steps: usize = plan.iter().map(|stage| stage.steps).sum();
    // Lines after the checkpoint are written again when training resumes.
    let known = match state {
        State::Training => lines,
        _ => &lines[..lines.len().min(position.metrics_lines as usize)],
    };
    let mut training = Training {
        stage: String::new(),
        stage_number: 0,
        stages: plan.len(),
        stage_step: 0,
        stage_steps: 0,
        step: position.step,
        steps,
        seconds: position.seconds,
        seconds_left: None,
        loss: None,
        accuracy: None,
        validation: Vec::new(),
    };
    let (mut before, mut last) = (None, None);
    for line in if state == State::Trained { lines } else { known } {
        match line {
            MetricsLine::Step { step, loss, accuracy, seconds, .. } => {
                (before, last) = (last.or(Some((0, 0.0))), Some((*step, *seconds)));
                (training.loss, training.accuracy) = (Some(*loss), Some(*accuracy));
                (training.step, training.seconds) = (training.step.max(*step), training.seconds.max(*seconds));
            }
            MetricsLine::Probe { step, probe, subnet, accuracy, .. } => {
                training.validation.retain(|other| other.step == *step);
                let (name, subnet) = (probe.clone(), subnet.clone());
                training.validation.push(Validation { step: *step, name, subnet, accuracy: *accuracy });
            }
            MetricsLine::Stage { seconds, .. }
            | MetricsLine::Skipped { seconds, .. }
            | MetricsLine::Finished { seconds, .. } => training.seconds = training.seconds.max(*seconds),
        }
    }
    let is_here = |stage: &ofa_supernet::train::StagePlan| training.step < stage.first_step + stage.steps;
    let index = plan.iter().position(is_here).unwrap_or(plan.len() - 1);
    training.stage = config.train.stages[index].name.clone();
    training.stage_number = index + 1;
    training.stage_steps = plan[index].steps;
    training.stage_step = (training.step - plan[index].first_step.min(training.step)).min(plan[index].steps);
    if let (Some((from, begun)), Some((to, now))) = (before, last)
        && to > from
        && state != State::Trained
    {
        let mut pace = Pace::default();
        pace.add((now - begun) / (to - from) as f64);
        training.seconds_left = Some(pace.remaining(&plan, index, training.stage_step));
    }
    Ok(Some(training))
}
