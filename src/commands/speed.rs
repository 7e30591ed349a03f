//! `ofa speed`

use crate::run_folder::RunConfig;
use crate::{memory, progress};
use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use ofa_evaluate::latency::median;
use ofa_supernet::network::Mode;
use ofa_supernet::ops::InstructionSet;
use ofa_supernet::seed::{Purpose, generator};
use ofa_supernet::train::optimizer::Sgd;
use ofa_supernet::train::sampling::resolution_of;
use ofa_supernet::train::step::{StepInput, train_step};
use ofa_supernet::train::{StageConfig, TrainConfig};
use ofa_supernet::{Ranks, SearchSpace, Supernet};
use rand::Rng;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;

/// Images a second and peak memory of training and evaluation steps on random images.
#[derive(clap::Args)]
pub struct Args {
    /// Search space: a preset or a .toml file.
    #[arg(long, default_value = "cifar-mbv3")]
    space: String,
    /// Strides for small images: first convolution and first stage at 1.
    #[arg(long)]
    small: bool,
    /// Height and width of the images.
    #[arg(long, default_value_t = 32)]
    resolution: usize,
    /// Images a step.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Number of classes.
    #[arg(long, default_value_t = 10)]
    classes: usize,
    /// max: a step of the largest subnet; elastic: teacher and 4 subnets; eval: forward pass of the largest subnet.
    #[arg(long, default_value = "max", value_parser = ["max", "elastic", "eval"])]
    mode: String,
    /// Measured steps, after one that is not counted.
    #[arg(long, default_value_t = 6)]
    steps: usize,
    /// Also tell how long this configuration's schedule will take, on this many training images.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Training images of that schedule.
    #[arg(long, default_value_t = 50_000)]
    images: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    space: String,
    mode: String,
    resolution: usize,
    batch: usize,
    threads: usize,
    instruction_set: &'static str,
    images_per_second: f64,
    step_seconds: f64,
    /// Shortest and longest step.
    spread: [f64; 2],
    peak_mib: Option<f64>,
    schedule: Option<Vec<StageTime>>,
}

#[derive(Serialize)]
struct StageTime {
    stage: String,
    steps: usize,
    step_seconds: f64,
    seconds: f64,
}

pub fn run(args: &Args, ranks: &Ranks) -> Result<()> {
    if args.steps == 0 || args.batch == 0 || !(1..=4096).contains(&args.resolution) || args.classes < 2 {
        bail!("--steps and --batch must be at least 1, --resolution 1 to 4096, --classes at least 2");
    }
    let mut space = SearchSpace::named(&args.space)?;
    if args.small {
        space.stem.stride = 1;
        space.stages[0].stride = 1;
    }
    space.resolutions = vec![args.resolution];
    let net = Supernet::new(&space, args.classes, 0)?;
    let times = measure(&net, args, ranks)?;
    let step_seconds = median(&times).context("no step was measured")?;
    let schedule = match &args.config {
        Some(path) => Some(schedule(path, args.images)?),
        None => None,
    };
    let report = Report {
        space: args.space.clone(),
        mode: args.mode.clone(),
        resolution: args.resolution,
        batch: args.batch,
        threads: rayon::current_num_threads(),
        instruction_set: InstructionSet::active().name(),
        images_per_second: args.batch as f64 / step_seconds,
        step_seconds,
        spread: [times.iter().copied().fold(f64::MAX, f64::min), times.iter().copied().fold(0.0, f64::max)],
        peak_mib: memory::peak().map(|bytes| bytes as f64 / (1 << 20) as f64),
        schedule,
    };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    let memory = report.peak_mib.map_or("unknown".into(), |m| format!("{m:.0} MiB"));
    println!(
        "{} {} at {} px, batch {}, {} threads ({}): {:.1} images/s, {:.3} s a step, peak memory {memory}",
        report.space,
        report.mode,
        report.resolution,
        report.batch,
        report.threads,
        report.instruction_set,
        report.images_per_second,
        step_seconds
    );
    if let Some(stages) = &report.schedule {
        for stage in stages {
            println!(
                "  {}: {} steps of {:.3} s, {}",
                stage.stage,
                stage.steps,
                stage.step_seconds,
                progress::duration(stage.seconds)
            );
        }
        let total: f64 = stages.iter().map(|s| s.seconds).sum();
        println!("the schedule takes about {} on {} training images", progress::duration(total), args.images);
    }
    Ok(())
}

/// Seconds of each measured step.
fn measure(net: &Supernet, args: &Args, ranks: &Ranks) -> Result<Vec<f64>> {
    let space = net.space();
    let (images, labels) = random_batch(args.batch, args.resolution, args.classes)?;
    let config = TrainConfig { dropout: 0.0, ..TrainConfig::preset("cifar", space)? };
    let last = config.stages[config.stages.len() - 1].clone();
    let stage = match args.mode.as_str() {
        "elastic" => StageConfig { subnets_per_step: 4, kd_ratio: 1.0, ..last },
        _ => config.stages[0].clone(),
    };
    let teacher = if args.mode == "elastic" { Some(Supernet::new(space, args.classes, 1)?) } else { None };
    let statistics = net.running_statistics(&space.largest())?;
    let mut optimizer = Sgd::new(config.momentum, config.weight_decay, net.parameters().len());
    let choices = stage.choices(space);
    let mut times = Vec::new();
    for step in 0..=args.steps {
        crate::interrupt::check()?;
        let start = Instant::now();
        if args.mode == "eval" {
            net.forward(&images, &space.largest(), Mode::Evaluate(&statistics))?;
        } else {
            let input = StepInput {
                config: &config,
                stage: &stage,
                choices: &choices,
                step,
                learning_rate: 0.01,
                images: &images,
                labels: &labels,
                ranks,
                batch: labels.len() * ranks.count(),
            };
            train_step(net, teacher.as_ref(), &mut optimizer, &input)?;
        }
        if step > 0 {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    Ok(times)
}

/// Measures a few steps of each stage at the resolutions that training would draw.
fn schedule(path: &std::path::Path, images: usize) -> Result<Vec<StageTime>> {
    let config = RunConfig::read(path)?;
    let net = Supernet::new(&config.space, 10, 0)?;
    let teacher = Supernet::new(&config.space, 10, 1)?;
    let mut stages = Vec::new();
    for (stage, plan) in config.train.stages.iter().zip(config.train.plan(&config.space, images)) {
        let choices = stage.choices(&config.space);
        let mut optimizer = Sgd::new(config.train.momentum, config.train.weight_decay, net.parameters().len());
        let mut times = Vec::new();
        for step in 0..=3 * choices.resolutions.len().min(4) {
            crate::interrupt::check()?;
            let resolution = resolution_of(&choices, config.train.seed, step);
            let (images, labels) = random_batch(plan.batch, resolution, 10)?;
            let start = Instant::now();
            let input = StepInput {
                config: &config.train,
                stage,
                choices: &choices,
                step,
                learning_rate: 0.001,
                images: &images,
                labels: &labels,
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
    }
    Ok(stages)
}

fn random_batch(batch: usize, resolution: usize, classes: usize) -> Result<(Tensor, Vec<u32>)> {
    let mut rng = generator(0, Purpose::Builtin, &[resolution as u64]);
    let pixels: Vec<f32> = (0..batch * resolution * resolution * 3).map(|_| rng.random_range(-2.0f32..2.0)).collect();
    let labels = (0..batch).map(|_| rng.random_range(0..classes as u32)).collect();
    Ok((Tensor::from_vec(pixels, (batch, resolution, resolution, 3), &Device::Cpu)?, labels))
}
