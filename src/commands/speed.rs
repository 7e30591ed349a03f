//! `ofa speed`

use crate::arguments::numbers;
use crate::commands::train::of_one_rank;
use crate::output::progress::{self, Bar, counted};
use crate::output::{table, terminal};
use crate::process::memory;
use crate::process::processes::on_this_machine;
use crate::process::ranks_model::{Network, Prediction, Step, predict};
use crate::run_folder::RunConfig;
use crate::run_folder::starting_weights::StartingWeights;
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use ofa_evaluate::latency::median;
use ofa_evaluate::memory::TrainingMemory;
use ofa_supernet::network::Mode;
use ofa_supernet::ops::InstructionSet;
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::train::sampling::resolution_of;
use ofa_supernet::train::step::{Exchange, StepInput, train_step};
use ofa_supernet::train::{StageConfig, TrainConfig};
use ofa_supernet::{Error, Ranks, SearchSpace, Supernet};
use rand::Rng;
use serde::Serialize;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Measure images per second and peak memory of training and evaluation steps on random images.
#[derive(clap::Args)]
pub struct Args {
    /// Search space: a preset or a .toml file (default: cifar-mbv3, or that of --config).
    #[arg(long, conflicts_with = "config")]
    space: Option<String>,
    /// Use the strides for small images: 1 in the first convolution and the first stage.
    #[arg(long, conflicts_with = "config")]
    small: bool,
    /// Height and width of the images (default: 32, or the largest of --config, whose schedule keeps its own).
    #[arg(long, value_parser = numbers::resolution)]
    resolution: Option<usize>,
    /// Images per step (default: 64, or those of --config).
    #[arg(long, value_parser = numbers::batch)]
    batch: Option<usize>,
    /// Number of classes (default: 10; with --config and without --images that of its data).
    #[arg(long, value_parser = numbers::classes)]
    classes: Option<usize>,
    /// max: a step of the largest subnet; elastic: teacher and 4 subnets; eval: forward pass of the largest subnet.
    #[arg(long, default_value = "max", value_parser = ["max", "elastic", "eval"])]
    mode: String,
    /// Steps to measure, after one warm-up step.
    #[arg(long, default_value_t = 6, value_parser = numbers::repetitions)]
    steps: usize,
    /// Also estimate the time of this configuration's schedule, with as many processes as this command has; its space
    /// is measured.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Training images of the schedule of --config (default: those of its data, which is opened for that).
    #[arg(long, value_parser = numbers::images, requires = "config")]
    images: Option<usize>,
    /// Also predict images per second for 1 to 1,024 processes, each as fast as this one.
    #[arg(long)]
    ranks_model: bool,
    /// For --ranks-model: gigabytes per second between two processes.
    #[arg(long, default_value_t = 1.25, value_parser = numbers::bandwidth, requires = "ranks_model")]
    bandwidth: f64,
    /// For --ranks-model: microseconds until a message arrives.
    #[arg(long, default_value_t = 20.0, value_parser = numbers::microseconds, requires = "ranks_model")]
    latency: f64,
}

/// What is measured: the arguments, completed from the configuration and its data.
struct Setting {
    space: SearchSpace,
    resolution: usize,
    batch: usize,
    classes: usize,
    mode: String,
    steps: usize,
    /// Configuration and training images of the schedule.
    schedule: Option<(RunConfig, usize)>,
}

impl Setting {
    fn of(args: &Args, ranks: &Ranks) -> Result<Self> {
        let mut config = args.config.as_deref().map(RunConfig::read).transpose()?;
        if let Some(config) = &mut config {
            // As a training with these flags and processes has them.
            config.train.batch = args.batch.unwrap_or(config.train.batch);
            if ranks.is_distributed() {
                config.train.ranks.get_or_insert(ranks.count());
            }
        }
        let mut space = match (&config, &args.space) {
            (Some(config), _) => config.space.clone(),
            (None, name) => SearchSpace::named(name.as_deref().unwrap_or("cifar-mbv3"))?,
        };
        if args.small {
            space.stem.stride = 1;
            space.stages[0].stride = 1;
        }
        let largest = space.resolutions.iter().max().copied();
        let resolution = args.resolution.or(config.as_ref().and(largest)).unwrap_or(32);
        space.resolutions = vec![resolution];
        let mut classes = args.classes;
        let schedule = match config {
            Some(config) => {
                let images = match args.images {
                    Some(images) => images,
                    None => {
                        let data = config.data.open()?;
                        classes.get_or_insert(data.classes.len());
                        data.train.len()
                    }
                };
                Some((config, images))
            }
            None => None,
        };
        let batch = args.batch.or(schedule.as_ref().map(|(config, _)| config.train.batch)).unwrap_or(64);
        let (mode, steps) = (args.mode.clone(), args.steps);
        Ok(Setting { space, resolution, batch, classes: classes.unwrap_or(10), mode, steps, schedule })
    }
}

#[derive(Serialize)]
struct Report {
    space: String,
    mode: String,
    resolution: usize,
    batch: usize,
    classes: usize,
    /// Training images of the schedule.
    #[serde(skip_serializing_if = "Option::is_none")]
    training_images: Option<usize>,
    threads: usize,
    instruction_set: &'static str,
    images_per_second: f64,
    step_seconds: f64,
    /// Seconds of the shortest and the longest step.
    spread: [f64; 2],
    peak_mib: Option<f64>,
    /// MB of gradients that several processes exchange per step.
    gradient_megabytes: f64,
    /// MB of the gradients that are exchanged during the last backward pass.
    hidden_megabytes: f64,
    /// Seconds of that backward pass during which gradients are exchanged.
    hiding_seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    ranks: Option<Exchanged>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ranks_model: Option<Vec<Prediction>>,
    schedule: Option<Vec<StageTime>>,
}

/// Measured communication between several processes.
#[derive(Serialize)]
struct Exchanged {
    ranks: usize,
    /// Seconds to sum the gradients that a step exchanges during its computation, measured without computation.
    hidden_seconds: f64,
    /// Seconds to sum the gradients that a step exchanges after its computation.
    exposed_seconds: f64,
    /// Seconds per step that computation waits for exchanges and thereby for other ranks: minimum and maximum over all
    /// ranks.
    seconds: [f64; 2],
    /// Microseconds of an all-reduce of 8 bytes.
    latency_microseconds: f64,
    /// Gigabytes per second of an all-reduce of 64 MiB.
    gigabytes_per_second: f64,
}

/// How long a stage takes.
#[derive(Serialize)]
pub struct StageTime {
    stage: String,
    steps: usize,
    step_seconds: f64,
    /// Seconds of all steps.
    pub seconds: f64,
}

pub fn run(args: &Args, ranks: &Ranks) -> Result<Value> {
    let setting = Setting::of(args, ranks)?;
    let need = |batch| memory_of_step(&setting, batch);
    memory::check_batch("this step", setting.batch, &need, on_this_machine(ranks))?;
    let net = Supernet::new(&setting.space, setting.classes, 0)?;
    let Measured { times, exchange: step_exchange, waited } = measure(&net, &setting, ranks)?;
    let step_seconds = median(&times).context("no step was measured")?;
    let exchange = ranks.is_distributed().then(|| exchange(ranks, waited / times.len() as f64, &step_exchange));
    let schedule = match &setting.schedule {
        Some((config, images)) => Some(stage_times(config, setting.classes, *images, ranks)?),
        None => None,
    };
    let report = Report {
        space: args.space.clone().unwrap_or_else(|| setting.space.name.clone()),
        mode: args.mode.clone(),
        resolution: setting.resolution,
        batch: setting.batch,
        classes: setting.classes,
        training_images: setting.schedule.as_ref().map(|(_, images)| *images),
        threads: rayon::current_num_threads(),
        instruction_set: InstructionSet::active().name(),
        images_per_second: (setting.batch * ranks.count()) as f64 / step_seconds,
        step_seconds,
        spread: [times.iter().copied().fold(f64::MAX, f64::min), times.iter().copied().fold(0.0, f64::max)],
        peak_mib: memory::peak().map(|bytes| bytes as f64 / (1 << 20) as f64),
        gradient_megabytes: megabytes(step_exchange.hidden_values + step_exchange.exposed_values),
        hidden_megabytes: megabytes(step_exchange.hidden_values),
        hiding_seconds: step_exchange.hiding_seconds,
        ranks: exchange,
        ranks_model: args.ranks_model.then(|| model(args, setting.batch, step_seconds, &step_exchange)),
        schedule,
    };
    if ranks.is_first() {
        print_report(args, &report);
    }
    Ok(serde_json::to_value(&report)?)
}

fn print_report(args: &Args, report: &Report) {
    let memory = report.peak_mib.map_or("unknown".into(), |m| format!("{m:.0} MiB"));
    say!(
        "{} {} at {} px, batch {}, {} ({}): {} images/s, {:.4} s per step, peak memory {memory}",
        report.space,
        report.mode,
        report.resolution,
        report.batch,
        counted(report.threads, "thread"),
        report.instruction_set,
        progress::rate(report.images_per_second),
        report.step_seconds
    );
    if let Some(exchange) = &report.ranks {
        say!(
            "{} ranks together; {:.2} MB of gradients per step, of which {:.2} are summed during {:.1} ms of computation ({:.2} ms \
             without it) and the others afterwards in {:.2} ms, {:.2} % of the step; computation waits {:.1} to {:.1} ms for \
             exchanges and other ranks; a sum of 8 bytes over all ranks takes {:.1} us, one of 64 MiB runs at {:.2} GB/s",
            exchange.ranks,
            report.gradient_megabytes,
            report.hidden_megabytes,
            1e3 * report.hiding_seconds,
            1e3 * exchange.hidden_seconds,
            1e3 * exchange.exposed_seconds,
            100.0 * exchange.exposed_seconds / report.step_seconds,
            1e3 * exchange.seconds[0],
            1e3 * exchange.seconds[1],
            exchange.latency_microseconds,
            exchange.gigabytes_per_second
        );
    }
    if let Some(predictions) = &report.ranks_model {
        print_model(args, report, predictions);
    }
    if let Some(stages) = &report.schedule {
        for stage in stages {
            say!(
                "  {}: {} steps of {:.4} s, {}",
                stage.stage,
                stage.steps,
                stage.step_seconds,
                progress::duration(stage.seconds)
            );
        }
        let total: f64 = stages.iter().map(|s| s.seconds).sum();
        say!(
            "the schedule takes about {} on {} training images",
            progress::duration(total),
            report.training_images.unwrap_or_default()
        );
    }
}

/// Measures exchanges without computation, for gradients as in `step`; `seconds` is the time per step that this rank
/// waited for exchanges.
fn exchange(ranks: &Ranks, seconds: f64, step: &Exchange) -> Exchanged {
    let all = ranks.gather((seconds * 1e9) as u64);
    let of = |nanoseconds: Option<&u64>| nanoseconds.map_or(0.0, |&n| n as f64 * 1e-9);
    let time = |values: usize, repetitions: usize| -> f64 {
        let mut values = vec![0.0f32; values];
        ranks.sum(&mut values);
        let start = Instant::now();
        (0..repetitions).for_each(|_| ranks.sum(&mut values));
        start.elapsed().as_secs_f64() / repetitions as f64
    };
    const LARGE: usize = 1 << 24;
    Exchanged {
        ranks: ranks.count(),
        hidden_seconds: time(step.hidden_values, 20),
        exposed_seconds: time(step.exposed_values, 20),
        seconds: [of(all.iter().min()), of(all.iter().max())],
        latency_microseconds: 1e6 * time(2, 1000),
        gigabytes_per_second: (LARGE * size_of::<f32>()) as f64 / 1e9 / time(LARGE, 5),
    }
}

/// All-reduces of a few values per step: of the losses, and of the decision to continue.
const SMALL_SUMS: usize = 2;

/// Predictions for 1, 2, 4, ... 1,024 ranks.
fn model(args: &Args, images: usize, step_seconds: f64, exchange: &Exchange) -> Vec<Prediction> {
    let step = Step {
        compute: step_seconds,
        images,
        hidden_bytes: 1e6 * megabytes(exchange.hidden_values),
        hiding: exchange.hiding_seconds,
        exposed_bytes: 1e6 * megabytes(exchange.exposed_values),
        small_sums: SMALL_SUMS,
    };
    let network = Network { bandwidth: 1e9 * args.bandwidth, latency: 1e-6 * args.latency };
    (0..=10).map(|power| predict(step, network, 1 << power)).collect()
}

fn print_model(args: &Args, report: &Report, predictions: &[Prediction]) {
    say!(
        "\nmodel: every rank computes as measured here; ring all-reduce of {:.2} MB per step during the last {:.1} ms of \
         computation and of {:.2} MB after it; {} GB/s and {} us between ranks",
        report.hidden_megabytes,
        1e3 * report.hiding_seconds,
        report.gradient_megabytes - report.hidden_megabytes,
        args.bandwidth,
        args.latency
    );
    let row = |p: &Prediction| {
        vec![
            p.ranks.to_string(),
            format!("{:.1}", 1e3 * p.communication_seconds),
            format!("{:.1}", 1e3 * p.exposed_seconds),
            progress::rate(p.images_per_second),
            format!("{:.1} %", 100.0 * p.efficiency),
            progress::rate(p.images_per_second_in_turn),
        ]
    };
    let rows: Vec<Vec<String>> = predictions.iter().map(row).collect();
    table::print(&["ranks", "exchange ms", "waited for", "images/s", "of ideal", "images/s if not hidden"], &rows);
}

fn megabytes(values: usize) -> f64 {
    (values * size_of::<f32>()) as f64 / 1e6
}

/// Subnets of a step with `--mode elastic`.
const ELASTIC_SUBNETS: usize = 4;

struct Measured {
    /// Seconds of each measured step.
    times: Vec<f64>,
    /// Mean exchange of these steps.
    exchange: Exchange,
    /// Seconds that all these steps together waited for exchanges.
    waited: f64,
}

/// Configuration and stage of the measured steps.
fn configuration(space: &SearchSpace, mode: &str) -> Result<(TrainConfig, StageConfig)> {
    let config = TrainConfig { dropout: 0.0, ..TrainConfig::preset("progressive", space)? };
    let last = config.stages[config.stages.len() - 1].clone();
    let stage = match mode {
        "elastic" => StageConfig { subnets_per_step: ELASTIC_SUBNETS, kd_ratio: 1.0, ..last },
        _ => config.stages[0].clone(),
    };
    Ok((config, stage))
}

/// Bytes that a step of `batch` images takes; an evaluation counts as a training step, which takes more.
fn memory_of_step(setting: &Setting, batch: usize) -> Result<u64> {
    let (space, classes) = (&setting.space, setting.classes);
    let (config, stage) = configuration(space, &setting.mode)?;
    let mut config = TrainConfig { batch, stages: vec![stage], ..config };
    config.subnets_at_once = config.subnets_at_once.min(rayon::current_num_threads());
    (config.probe.batch, config.probe.recalibration_images) = (1, 1);
    let step = TrainingMemory::estimate(space, None, classes, &config, batch, 0)?;
    let logits = 16 * batch as u64 * classes as u64;
    Ok(step.total().saturating_add(logits))
}

fn measure(net: &Supernet, setting: &Setting, ranks: &Ranks) -> Result<Measured> {
    let space = net.space();
    let (images, labels) = random_batch(setting.batch, setting.resolution, setting.classes)?;
    let (config, stage) = configuration(space, &setting.mode)?;
    let teacher = if setting.mode == "elastic" { Some(Supernet::new(space, setting.classes, 1)?) } else { None };
    let statistics = net.running_statistics(&space.largest())?;
    let mut optimizer = config.optimizer(net.parameters());
    let choices = stage.choices(space);
    let (mut times, mut exchanges, mut before) = (Vec::new(), Vec::new(), 0.0);
    let bar = Bar::new("measuring steps", setting.steps + 1, "steps");
    for step in 0..=setting.steps {
        if let [true] = ranks.any([crate::process::interrupt::requested()]) {
            return Err(Error::Interrupted.into());
        }
        if step == 1 {
            before = ranks.traffic().seconds;
        }
        let start = Instant::now();
        if setting.mode == "eval" {
            net.forward(&images, &space.largest(), Mode::Evaluate(&statistics))?;
        } else {
            let input = StepInput {
                config: &config,
                stage: &stage,
                choices: &choices,
                step,
                ramp: 1.0,
                learning_rate: 0.01,
                images: &images,
                labels: &labels,
                targets: None,
                ranks,
                batch: labels.len() * ranks.count(),
            };
            exchanges.push(train_step(net, teacher.as_ref(), &mut optimizer, &input)?.exchange);
        }
        if step > 0 {
            times.push(start.elapsed().as_secs_f64());
        }
        bar.add(1);
    }
    let waited = ranks.traffic().seconds - before;
    Ok(Measured { times, exchange: mean(exchanges.get(1..).unwrap_or_default()), waited })
}

/// Mean of exchanges; zero for no steps.
fn mean(exchanges: &[Exchange]) -> Exchange {
    let steps = exchanges.len().max(1);
    let values = |of: fn(&Exchange) -> usize| exchanges.iter().map(of).sum::<usize>() / steps;
    Exchange {
        hidden_values: values(|e| e.hidden_values),
        hiding_seconds: exchanges.iter().map(|e| e.hiding_seconds).sum::<f64>() / steps as f64,
        exposed_values: values(|e| e.exposed_values),
    }
}

/// Measures a few steps of each stage at the resolutions that training would draw, on one of `ranks`, which share the
/// images of a step; those on this machine also share its memory.
pub fn stage_times(config: &RunConfig, classes: usize, images: usize, ranks: &Ranks) -> Result<Vec<StageTime>> {
    // Its weights make no difference to times.
    let mut teacher = config.space.clone();
    if let Some(from) = &config.train.teacher_from {
        match StartingWeights::read(Path::new(from)).and_then(|weights| weights.space()) {
            Ok(space) => teacher = space,
            Err(error) => terminal::note(format!("a teacher of the run's own space is timed: {error:#}")),
        }
    }
    let own = of_one_rank(&config.train, ranks);
    let machine = (on_this_machine(ranks), false);
    memory::check_training(&config.space, Some(&teacher), classes, [images, 0], &own, machine)?;
    let net = Supernet::new(&config.space, classes, 0)?;
    let teacher = Supernet::new(&teacher, classes, 1)?;
    let mut stages = Vec::new();
    let bar = Bar::new("measuring the stages", config.train.stages.len(), "stages");
    for (stage, plan) in config.train.stages.iter().zip(config.train.plan(&config.space, images)) {
        let choices = stage.choices(&config.space);
        let mut optimizer = config.train.optimizer(net.parameters());
        let mut times = Vec::new();
        let resolutions = stage.images.as_ref().map_or(choices.resolutions.len(), |images| images.resolutions.len());
        for step in 0..=3 * resolutions.min(4) {
            crate::process::interrupt::check()?;
            let resolution = resolution_of(stage, &choices, config.train.seed, step);
            let (images, labels) = random_batch(plan.batch.div_ceil(ranks.count()), resolution, classes)?;
            let start = Instant::now();
            let input = StepInput {
                config: &config.train,
                stage,
                choices: &choices,
                step,
                ramp: 1.0,
                learning_rate: 0.001,
                images: &images,
                labels: &labels,
                targets: None,
                ranks: &Ranks::alone(),
                batch: labels.len(),
            };
            train_step(&net, Some(&teacher), &mut optimizer, &input)?;
            if step > 0 {
                times.push(start.elapsed().as_secs_f64());
            }
        }
        // The mean, not the median: resolutions and subnets differ from step to step.
        let step_seconds = times.iter().sum::<f64>() / times.len() as f64;
        stages.push(StageTime {
            stage: stage.name.clone(),
            steps: plan.steps,
            step_seconds,
            seconds: step_seconds * plan.steps as f64,
        });
        bar.add(1);
    }
    Ok(stages)
}

fn random_batch(batch: usize, resolution: usize, classes: usize) -> Result<(Tensor, Vec<u32>)> {
    let mut rng = generator(0, Stream::RandomImages, &[resolution as u64]);
    let pixels: Vec<f32> = (0..batch * resolution * resolution * 3).map(|_| rng.random_range(-2.0f32..2.0)).collect();
    let labels = (0..batch).map(|_| rng.random_range(0..classes as u32)).collect();
    Ok((Tensor::from_vec(pixels, (batch, resolution, resolution, 3), &Device::Cpu)?, labels))
}
