//! `ofa search`

use crate::arguments::strategy_options::{self, StrategyOptions};
use crate::arguments::{numbers, shell};
use crate::output::{next_steps, progress, table, terminal};
use crate::run_folder::RunFolder;
use crate::run_folder::freshness::{flags_of_limits, judgement_of_profile, load_predictor};
use crate::run_folder::kept_samples::conditions;
use crate::search::compare::{self, compare};
use crate::search::measured::{Images, Measured};
use crate::search::scorer::Scorer;
use crate::search::searches::{Options, Task, search_groups};
use anyhow::{Result, anyhow};
use clap::ValueEnum;
use ofa_evaluate::model::NumberType;
use ofa_extract::search::{SearchSettings, of_batch};
use ofa_extract::{Constraint, Measures, Metric, SearchResult};
use ofa_supernet::Supernet;
use ofa_supernet::data::Dataset;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Default of `--evaluations` in a search by measured accuracies.
const MEASURED_EVALUATIONS: usize = 200;

/// Images per batch when accuracies are measured.
const MEASURED_BATCH: usize = 100;

/// Find the best subnet within each limit: accuracies come from the predictor, costs from device profiles and counting.
#[derive(clap::Args)]
pub struct Args {
    /// Run folder.
    #[arg(long, default_value = "run")]
    run: PathBuf,
    /// Limit of a cost, DEVICE:METRIC=VALUE: laptop:latency=12ms, any:macs=50M, any:params=3M, any:memory=1MB,
    /// any:size=2MB (weights in f32), any:size-f16=1MB, any:size-int8=500KB, any:memory-int8=300KB. Each limit is a
    /// separate search.
    #[arg(long = "limit", required_unless_present_any = ["against", "at_least"])]
    limits: Vec<Constraint>,
    /// Find the cheapest subnet (--minimise) whose predicted accuracy is at least accuracy=VALUE: accuracy=90% or
    /// accuracy=0.9. Up to 0.05 points may be missing where repeated searches find no better one. All limits hold
    /// together.
    #[arg(long, value_name = "accuracy=VALUE", requires = "minimise", conflicts_with_all = ["against", "compare", "together"], value_parser = least_accuracy)]
    at_least: Option<f64>,
    /// Cost that --at-least makes small, DEVICE:METRIC: phone:latency.
    #[arg(long, requires = "at_least", value_name = "DEVICE:METRIC", value_parser = Constraint::unlimited)]
    minimise: Option<Constraint>,
    /// File name of the result, search/NAME.json, and name of its model (default: made from the limit).
    #[arg(long, conflicts_with = "compare")]
    name: Option<String>,
    /// Search for one subnet within all limits together.
    #[arg(long)]
    together: bool,
    /// Search strategy (default: memetic, with --score measured rounds; evolution if only that has the given settings).
    #[arg(long, value_parser = strategy_options::strategy())]
    strategy: Option<SearchSettings>,
    /// Cost of the front that `--strategy pareto` draws, DEVICE:METRIC: laptop:latency; may be repeated.
    #[arg(long, value_parser = Constraint::unlimited)]
    against: Vec<Constraint>,
    /// Largest number of subnets to score (default: the strategy's own number; 200 with --score measured, 1000 with
    /// --compare). With --at-least each of its many searches has this number.
    #[arg(long, value_parser = numbers::evaluations)]
    evaluations: Option<usize>,
    /// Run every strategy with its default settings and the same number of evaluations, and print a table instead of
    /// writing results.
    #[arg(long, conflicts_with_all = ["strategy", "against", strategy_options::GROUP, "verify"])]
    compare: bool,
    /// Runs of each strategy for --compare, each with its own seed.
    #[arg(long, default_value_t = 5, requires = "compare", value_parser = numbers::seeds)]
    seeds: u64,
    /// Seed of the search.
    #[arg(long, default_value_t = 0, value_parser = numbers::seed)]
    seed: u64,
    #[command(flatten)]
    strategy_options: StrategyOptions,
    #[command(flatten)]
    scoring: Scoring,
}

/// Score of a subnet.
#[derive(clap::Args)]
struct Scoring {
    /// Source of accuracies.
    #[arg(long, value_enum, default_value_t = Score::Predictor)]
    score: Score,
    /// Rank subnets by predicted accuracy less K of its standard deviations, so that uncertain predictions count less.
    #[arg(long, value_name = "K", default_value_t = 0.0, conflicts_with = "compare", value_parser = numbers::deviations)]
    pessimism: f64,
    /// Measure the K best subnets on the supernet after the search, and return the best of them.
    #[arg(long, value_name = "K", value_parser = numbers::subnets)]
    verify: Option<usize>,
    /// Images to measure on, in place of the run's.
    #[arg(long, help_heading = "Measuring (--score measured, --verify)")]
    data: Option<String>,
    /// Skip unreadable images with a count instead of failing.
    #[arg(long, help_heading = "Measuring (--score measured, --verify)")]
    skip_bad: bool,
    /// Training images that recalibrate batch norm for each subnet [default: with --verify as many as for the
    /// predictor's samples, otherwise 500].
    #[arg(long, help_heading = "Measuring (--score measured, --verify)", value_parser = numbers::images)]
    recalibration: Option<usize>,
    /// Validation images; 0 for all [default: with --verify those of the predictor's samples, otherwise all].
    #[arg(long, help_heading = "Measuring (--score measured, --verify)", value_parser = numbers::images_or_none)]
    images: Option<usize>,
}

impl Scoring {
    /// Measurements of the kind that is asked for: those of --verify as the predictor's samples were measured, as far
    /// as the command line leaves it open, so that the predictor can be fitted to both.
    fn measured<'a>(
        &self,
        folder: &RunFolder,
        net: &'a Supernet,
        data: &'a Dataset,
        seed: u64,
    ) -> Result<Measured<'a>> {
        let kept = match self.score {
            Score::Predictor => conditions(folder, net.space())?,
            Score::Measured => None,
        };
        let (batch, seed) = kept.as_ref().map_or((MEASURED_BATCH, seed), |kept| (kept.batch, kept.seed));
        let images = Images {
            recalibration: self.recalibration.or(kept.as_ref().map(|kept| kept.recalibration)).unwrap_or(500),
            images: self.images.or(kept.map(|kept| kept.images)).unwrap_or(0),
        };
        Measured::new(net, data, &images, batch, seed)
    }
}

/// Source of accuracies.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum Score {
    /// The fitted predictor.
    Predictor,
    /// The supernet itself, on validation images: seconds per subnet instead of microseconds.
    Measured,
}

impl Args {
    /// The chosen strategy with the settings that were given.
    fn settings(&self) -> Result<SearchSettings> {
        let defaults = match (&self.strategy, self.scoring.score) {
            (Some(strategy), _) => vec![strategy.clone()],
            (None, Score::Predictor) => named(["memetic", "evolution"]),
            (None, Score::Measured) => named(["rounds", "evolution"]),
        };
        let given = |mut settings: SearchSettings| self.strategy_options.apply(&mut settings).map(|()| settings);
        let mut all = defaults.into_iter().map(given);
        let first = all.next().ok_or_else(|| anyhow!("there is no strategy"))?;
        first.or_else(|error| all.next().unwrap_or(Err(error)))
    }

    /// All limits, and the costs of fronts.
    fn constraints(&self) -> impl Iterator<Item = &Constraint> {
        self.limits.iter().chain(&self.against).chain(&self.minimise)
    }

    /// Groups of limits, one search per group.
    fn groups(&self) -> Vec<Vec<Constraint>> {
        if let Some(minimised) = &self.minimise {
            return vec![self.limits.iter().chain([minimised]).cloned().collect()];
        }
        if self.together || self.limits.is_empty() {
            return vec![self.limits.clone()];
        }
        self.limits.iter().map(|limit| vec![limit.clone()]).collect()
    }
}

fn named<const N: usize>(names: [&str; N]) -> Vec<SearchSettings> {
    names.into_iter().filter_map(SearchSettings::named).collect()
}

/// Reads `accuracy=90%` or `accuracy=0.9`.
fn least_accuracy(text: &str) -> Result<f64, String> {
    let fail = || format!("'{text}' is not accuracy=VALUE, for example accuracy=90% or accuracy=0.9");
    let value = text.trim().strip_prefix("accuracy").and_then(|rest| rest.trim_start().strip_prefix('='));
    let value = value.ok_or_else(fail)?.trim();
    let accuracy = match value.strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().map(|percent| percent / 100.0),
        None => value.parse(),
    };
    accuracy.ok().filter(|accuracy| *accuracy > 0.0 && *accuracy <= 1.0).ok_or_else(fail)
}

pub fn run(args: &Args) -> Result<Value> {
    let measuring = args.scoring.score == Score::Measured || args.scoring.verify.is_some();
    // Checked before any file is read.
    let settings = if args.compare { None } else { Some(args.settings()?) };
    let folder = RunFolder::new(&args.run);
    // A comparison writes nothing.
    let _lock = if args.compare { folder.lock_to_read()? } else { Some(folder.lock_shared()?) };
    if !measuring {
        let (space, classes) = folder.space()?;
        let scorer = Scorer::Predictor(Box::new(load_predictor(&folder, &space)?), args.scoring.pessimism);
        let measures = Measures::new(&space, classes.len(), folder.devices(args.constraints())?);
        return with_scorer(args, settings, &folder, &measures, &scorer, None);
    }
    let (net, classes) = folder.supernet()?;
    let data = folder.data(args.scoring.data.as_deref(), args.scoring.skip_bad)?;
    let data = folder.in_class_order(&classes, &data)?;
    let measured = args.scoring.measured(&folder, &net, &data, args.seed)?;
    let measures = Measures::new(net.space(), classes.len(), folder.devices(args.constraints())?);
    match args.scoring.score {
        Score::Measured => {
            with_scorer(args, settings, &folder, &measures, &Scorer::Measured(&measured), Some(&measured))
        }
        Score::Predictor => {
            let predictor = load_predictor(&folder, net.space())?;
            let scorer = Scorer::Predictor(Box::new(predictor), args.scoring.pessimism);
            with_scorer(args, settings, &folder, &measures, &scorer, Some(&measured))
        }
    }
}

fn with_scorer(
    args: &Args,
    settings: Option<SearchSettings>,
    folder: &RunFolder,
    measures: &Measures,
    scorer: &Scorer,
    measured: Option<&Measured>,
) -> Result<Value> {
    note_devices(measures, args.constraints())?;
    let Some(settings) = settings else {
        let options = compare::Options { evaluations: args.evaluations, seed: args.seed, seeds: args.seeds };
        let groups = args.groups();
        let tables = groups.iter().map(|group| compare(folder, measures, group, scorer, &options));
        return Ok(json!({ "comparisons": tables.collect::<Result<Vec<Value>>>()? }));
    };
    let evaluations = match scorer {
        Scorer::Measured(_) => Some(args.evaluations.unwrap_or(MEASURED_EVALUATIONS)),
        Scorer::Predictor(..) => args.evaluations,
    };
    let options = Options {
        settings,
        evaluations,
        against: args.against.clone(),
        at_least: args.at_least,
        name: args.name.clone(),
        seed: args.seed,
        verify: args.scoring.verify.unwrap_or(0),
    };
    let task = Task { folder, measures, scorer, measured, options: &options };
    let results = search_groups(&task, &args.groups())?;
    print_results(&results);
    results.iter().for_each(|(_, result)| print_front(result));
    say!();
    let judgements = judgements(measures, args.constraints(), scorer)?;
    judgements.iter().for_each(|sentence| say!("{sentence}"));
    // Without a supernet there is nothing to extract from.
    if !folder.is_foreign() {
        let flags = flags_of_limits(args.constraints(), measures);
        // The options are for these results: models of others would be made again with them.
        let mut names: Vec<String> = results.iter().map(|(name, _)| name.clone()).collect();
        if folder.json_files("search")?.len() == names.len() {
            names.clear();
        }
        terminal::next([next_steps::extract(&folder.config()?, &shell::path(&args.run), &names, &flags)]);
    }
    Ok(json!({ "results": named_results(&results), "judgements": judgements }))
}

/// A result with its name, for JSON.
#[derive(Serialize)]
pub struct NamedResult<'a> {
    name: &'a str,
    #[serde(flatten)]
    result: &'a SearchResult,
}

/// The results with their names.
pub fn named_results(results: &[(String, SearchResult)]) -> Vec<NamedResult<'_>> {
    results.iter().map(|(name, result)| NamedResult { name, result }).collect()
}

/// A sentence about the predictor, and one about each device of a limit.
fn judgements<'c>(
    measures: &Measures,
    constraints: impl Iterator<Item = &'c Constraint>,
    scorer: &Scorer,
) -> Result<Vec<String>> {
    let mut sentences = Vec::new();
    if let Scorer::Predictor(predictor, _) = scorer {
        sentences.extend(predictor.judgement());
    }
    let latencies = constraints.filter(|constraint| constraint.metric == Metric::Latency);
    for name in latencies.map(|constraint| constraint.device.as_str()).collect::<BTreeSet<_>>() {
        sentences.push(judgement_of_profile(measures.device(name)?));
    }
    Ok(sentences)
}

/// Prints a note for each device whose latencies are for several images, or of int8 models.
fn note_devices<'c>(measures: &Measures, constraints: impl Iterator<Item = &'c Constraint>) -> Result<()> {
    let latencies = constraints.filter(|constraint| constraint.metric == Metric::Latency);
    for name in latencies.map(|constraint| constraint.device.as_str()).collect::<BTreeSet<_>>() {
        let profile = measures.device(name)?;
        if profile.batch > 1 {
            terminal::note(format!(
                "{name}:latency is for one run of {} images together, the batch that the profile was measured with",
                profile.batch
            ));
        }
        if profile.number_type == NumberType::Int8 {
            terminal::note(format!(
                "{name}:latency is of int8 models, as the profile was measured; extract the result with --int8"
            ));
        }
    }
    Ok(())
}

/// Prints limit, value, accuracy and subnet of each result.
pub fn print_results(results: &[(String, SearchResult)]) {
    let measured = results.iter().any(|(_, result)| result.measured_accuracy.is_some());
    let percent = |accuracy: f64| format!("{:.2} %", 100.0 * accuracy);
    let predicted = results.iter().any(|(_, result)| result.is_predicted());
    let mut header = vec!["limit", "value"];
    header.extend(predicted.then_some("predicted"));
    header.extend(measured.then_some("measured"));
    header.extend(["evaluations", "time", "subnet"]);
    let rows: Vec<Vec<String>> = results
        .iter()
        .map(|(name, result)| {
            let join = |f: &dyn Fn(&ofa_extract::search::ConstraintValue) -> String| {
                result.constraints.iter().map(f).collect::<Vec<_>>().join(" ")
            };
            let limit = if result.constraints.is_empty() { name.clone() } else { join(&|c| c.constraint.clone()) };
            let mut row = vec![limit, join(&|c| show_value(c))];
            row.extend(predicted.then(|| match result.predicted_deviation {
                Some(deviation) => format!("{:.2} ± {:.2} %", 100.0 * result.predicted_accuracy, 100.0 * deviation),
                None => percent(result.predicted_accuracy),
            }));
            row.extend(measured.then(|| result.measured_accuracy.map(percent).unwrap_or_default()));
            row.extend([result.evaluations.to_string(), progress::duration(result.seconds), result.best.to_string()]);
            row
        })
        .collect();
    table::print_some(&header, &rows, &["time", "evaluations"]);
}

fn show_value(value: &ofa_extract::search::ConstraintValue) -> String {
    // A cost that was made small has no limit.
    match value.constraint.parse::<Constraint>().or_else(|_| Constraint::unlimited(&value.constraint)) {
        Ok(constraint) => constraint.metric.show(value.value) + &of_batch(value.batch),
        Err(_) => format!("{}", value.value),
    }
}

/// Prints the front, if there is one: costs, accuracy and subnet.
fn print_front(result: &SearchResult) {
    if result.front.is_empty() {
        return;
    }
    let metrics: Vec<_> = result.against.iter().map(|text| Constraint::unlimited(text).map(|c| c.metric)).collect();
    let rows: Vec<Vec<String>> = result
        .front
        .iter()
        .map(|point| {
            let costs = point.values.iter().zip(&metrics).map(|(value, metric)| match metric {
                Ok(metric) => metric.show(*value),
                Err(_) => value.to_string(),
            });
            let rest = [format!("{:.2} %", 100.0 * point.score), point.subnet.to_string()];
            costs.chain(rest).collect()
        })
        .collect();
    say!();
    if let Some(volume) = result.hypervolume {
        say!("hypervolume {volume:.4}: the part of the box of all costs and accuracies that the front dominates");
    }
    let accuracy = if result.is_predicted() { "predicted" } else { "measured" };
    let header: Vec<&str> = result.against.iter().map(String::as_str).chain([accuracy, "subnet"]).collect();
    table::print(&header, &rows);
}
