//! `ofa train`

use crate::commands::speed::stage_times;
use crate::processes::on_this_machine;
use crate::progress::{self, note};
use crate::run_folder::{DataConfig, RunConfig, RunFolder, absolute, data_flag};
use crate::starting_weights::StartingWeights;
use crate::{interrupt, memory, numbers, shell, table, training_summary};
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use ofa_supernet::data::Dataset;
use ofa_supernet::train::checkpoint::Folder;
use ofa_supernet::train::progress::StepEvent;
use ofa_supernet::train::{Control, Event, Outcome, ProbeResult, TrainConfig, is_unbegun, train_with_teacher};
use ofa_supernet::{Ranks, SearchSpace, Supernet};
use std::path::{Path, PathBuf};

/// Train a supernet by progressive shrinking.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    settings: Settings,
    /// Run folder.
    #[arg(long, default_value = "run")]
    out: PathBuf,
    /// Resume from the newest checkpoint of the run folder, with its configuration; --data names images that have
    /// moved.
    #[arg(long)]
    resume: bool,
    /// Leave out up to N steps whose loss or gradient is NaN or infinite before stopping with an error.
    #[arg(long, value_name = "N", value_parser = numbers::skipped)]
    skip_nonfinite: Option<usize>,
    /// Hours that the training may take: epochs are scaled by a measurement of some steps, with the stages' shares.
    #[arg(long, value_parser = numbers::hours, conflicts_with_all = ["epochs", "resume"])]
    hours: Option<f64>,
    /// Where to compute: cpu, cuda:N or metal.
    #[arg(long, default_value = "cpu")]
    device: String,
}

/// What decides a training; flags override the configuration file.
#[derive(clap::Args)]
pub struct Settings {
    /// Configuration file with [data], [space] and [train]; `ofa config` prints one.
    #[arg(long, conflicts_with_all = ["space", "preset"])]
    config: Option<PathBuf>,
    /// Training preset: cifar, imagenet, progressive, tiny, or transfer (default: cifar; with --from transfer).
    #[arg(long)]
    preset: Option<String>,
    /// Search space: a preset such as cifar-k5, tiny or mbv3-w1.0, or a .toml file (default: the training preset's, or
    /// that of --from).
    #[arg(long)]
    space: Option<String>,
    /// Images: a folder (ImageFolder, CIFAR binary, IDX) or `builtin`.
    #[arg(long)]
    data: Option<String>,
    /// Start from this supernet instead of random weights: a run folder (trained or imported) or a file of its
    /// checkpoints. Classes may be others.
    #[arg(long, value_name = "RUN|CHECKPOINT")]
    from: Option<PathBuf>,
    /// Learn from the largest subnet of this other supernet (of the same images, and any space) in all stages without a
    /// teacher of their own: a run folder or a file of its checkpoints.
    #[arg(long, value_name = "RUN|CHECKPOINT")]
    teacher: Option<PathBuf>,
    /// Train only this subnet, for as many epochs as all stages have: its text, smallest, middle or largest. What it
    /// reaches alone is the yardstick for what it reaches in the supernet.
    #[arg(long, value_name = "TEXT")]
    subnet: Option<String>,
    /// Images carved from the training images for validation.
    #[arg(long, value_parser = numbers::images_or_none)]
    validation: Option<usize>,
    /// Skip unreadable images with a count instead of failing.
    #[arg(long)]
    skip_bad: bool,
    /// Total epochs over all stages; the stages keep their shares.
    #[arg(long, value_parser = numbers::epochs)]
    epochs: Option<f64>,
    /// Images per step, of each process where mpirun starts several.
    #[arg(long, value_parser = numbers::batch)]
    batch: Option<usize>,
    /// Multiply learning rates by the number of processes that start the run.
    #[arg(long)]
    scale_learning_rate: bool,
    /// Batch norm uses the statistics of all processes' images in training, in place of each one's own.
    #[arg(long)]
    sync_batch_norm: bool,
    /// Seed of every random decision.
    #[arg(long, value_parser = numbers::seed)]
    seed: Option<u64>,
}

impl Settings {
    /// File, presets and flags as one checked configuration.
    pub fn resolve(&self) -> Result<RunConfig> {
        let start = self.from.as_deref().map(StartingWeights::read).transpose()?;
        let mut config = match &self.config {
            Some(path) => RunConfig::read(path)?,
            None => {
                let preset = self.preset.as_deref().unwrap_or(if self.from.is_some() { "transfer" } else { "cifar" });
                let default = match preset {
                    "imagenet" => "mbv3-w1.0",
                    "cifar" => "cifar-k5",
                    "progressive" => "cifar-mbv3",
                    _ => "tiny",
                };
                let space = match (&self.space, &start) {
                    (None, Some(start)) => start.space.clone(),
                    (space, _) => SearchSpace::named(space.as_deref().unwrap_or(default))?,
                };
                let train = TrainConfig::preset(preset, &space)?;
                RunConfig { from: None, data: DataConfig::default(), space, train }
            }
        };
        if let (Some(path), Some(start)) = (&self.from, start) {
            config.from = Some(path.to_str().context("--from: the path is not UTF-8")?.to_string());
            // A preset is for random weights; that of a file is refused.
            config.train.zero_last_scale &= self.config.is_some();
            // The weights expect images normalised as theirs were.
            config.data.normalisation = config.data.normalisation.or(start.normalisation);
        }
        if let Some(source) = &self.data {
            config.data.source = data_flag(source)?;
        }
        if let Some(validation) = self.validation {
            config.data.validation = Some(validation);
        }
        config.data.skip_bad |= self.skip_bad;
        if let Some(epochs) = self.epochs {
            config.train = config.train.with_epochs(epochs);
        }
        if let Some(batch) = self.batch {
            config.train.batch = batch;
        }
        config.train.scale_learning_rate |= self.scale_learning_rate;
        config.train.sync_batch_norm |= self.sync_batch_norm;
        if let Some(seed) = self.seed {
            config.train.seed = seed;
        }
        config.space.validate()?;
        if let Some(text) = &self.subnet {
            let subnet = match text.as_str() {
                "smallest" => config.space.smallest(),
                "middle" => config.space.middle(),
                "largest" => config.space.largest(),
                text => text.parse()?,
            };
            (config.space, config.train) = config.train.alone(&config.space, &subnet)?;
            if let Some(from) = &config.from {
                bail!(
                    "--subnet has a space of its own, which the supernet of '{from}' does not fit; leave one of them out"
                );
            }
        }
        if let Some(path) = &self.teacher {
            config.train.teacher_from = Some(path.to_str().context("--teacher: the path is not UTF-8")?.to_string());
            let untaught = config.train.stages.iter_mut().filter(|stage| stage.kd_ratio == 0.0);
            untaught.for_each(|stage| stage.kd_ratio = 1.0);
            let known = StartingWeights::read(path)?.normalisation;
            config.data.normalisation = config.data.normalisation.or(known);
        }
        // As the run folder has it, which resuming compares with.
        config.train.teacher_from = config.train.teacher_from.as_deref().map(absolute);
        config.train.validate(&config.space)?;
        config.check_start()?;
        Ok(config)
    }
}

pub fn run(args: &Args, ranks: &Ranks) -> Result<()> {
    let folder = RunFolder::new(&args.out);
    let mut config = if args.resume {
        let mut config = folder.config()?;
        match &args.settings.data {
            Some(source) => config.data.source = data_flag(source)?,
            None => folder.check_source(&config.data)?,
        }
        config
    } else {
        args.settings.resolve()?
    };
    if ranks.is_distributed() && !args.resume {
        config.train.ranks.get_or_insert(ranks.count());
    }
    if let Some(steps) = args.skip_nonfinite {
        config.train.skip_nonfinite = steps;
    }
    let device = device(&args.device)?;
    // One for all ranks.
    let _lock = ranks.is_first().then(|| folder.lock()).transpose()?;
    let checkpoints = Folder::of_run(&args.out, 1);
    let resume = args.resume && !checkpoints.list()?.is_empty();
    if args.resume && !resume {
        if !is_unbegun(&args.out)? {
            bail!("{}", without_checkpoints(&checkpoints, &args.out));
        }
        note(format!("{} holds no checkpoint yet: training starts at its beginning", args.out.display()));
    }
    let mut begun = false;
    let hours = args.hours;
    let outcome = match train_run(&folder, &config, hours, ranks, resume, &device, &mut begun) {
        Err(error) if begun && matches!(checkpoints.latest(), Ok(Some(_))) => {
            note(format!(
                "training stopped; its checkpoints are whole. When the cause is mended, resume with: ofa train --out {} --resume",
                shell::path(&args.out)
            ));
            return Err(error);
        }
        outcome => outcome?,
    };
    match outcome {
        Outcome::Finished { .. } if !ranks.is_first() => Ok(()),
        Outcome::Finished { supernet, probes, steps, seconds } => {
            print_probes(&probes);
            if let Some(peak) = memory::peak() {
                say!("\npeak memory {}", memory::mib(peak));
            }
            say!(
                "\n{} written after {steps} steps in {}. Next: ofa profile --run {run} --name this, ofa predictor --run {run}",
                supernet.display(),
                progress::duration(seconds),
                run = shell::path(&args.out)
            );
            Ok(())
        }
        Outcome::Interrupted { checkpoint, step } => Err(interrupt::stopped(format!(
            "stopped at step {step}, saved {}; resume with: ofa train --out {} --resume",
            checkpoint.display(),
            shell::path(&args.out)
        ))),
    }
}

/// Why a run that has begun cannot be resumed without checkpoints.
fn without_checkpoints(checkpoints: &Folder, out: &std::path::Path) -> String {
    let supernet = checkpoints.supernet_path();
    if supernet.exists() {
        return format!(
            "{}: there is nothing to resume from: step-*.safetensors beside it are missing; the supernet can be used as it is, \
             or bring them back from a copy to train it further",
            supernet.display()
        );
    }
    format!(
        "{}: steps were trained, but the checkpoints step-*.safetensors are missing in {}; bring one back from a copy, or start \
         anew in another folder",
        out.join("metrics.jsonl").display(),
        out.join("checkpoints").display()
    )
}

/// Trains in `folder` with a progress bar. `begun` is set as soon as there is something to resume.
pub fn train_run(
    folder: &RunFolder,
    config: &RunConfig,
    hours: Option<f64>,
    ranks: &Ranks,
    resume: bool,
    device: &Device,
    begun: &mut bool,
) -> Result<Outcome> {
    let out = folder.path();
    let data = config.data.open()?;
    let config = &match hours {
        Some(hours) => within_hours(config, &data, hours, ranks)?,
        None => config.clone(),
    };
    if !resume {
        training_summary::print(config, &data)?;
    }
    let estimate = memory::check(&config.space, &data, &of_one_rank(&config.train, ranks), on_this_machine(ranks))?;
    let each = if ranks.is_distributed() { " for each process" } else { "" };
    note(format!("about {} of memory at the peak{each}", memory::mib(estimate)));
    let mut net = Supernet::on_device(&config.space, data.classes.len(), config.train.seed, DType::F32, device)?;
    let teacher = if resume { None } else { from_other_runs(config, &data, &net)? };
    if ranks.is_first() && !resume && is_unbegun(out)? {
        folder.write_config(config)?;
    }
    let mut steps = 0;
    let bar = progress::plain_bar(0);
    let outcome =
        train_with_teacher(&mut net, teacher.as_ref(), &data, &config.train, ranks, out, resume, &mut |event| {
            *begun = true;
            match event {
                Event::Resumed { checkpoint, step, damaged } => {
                    for message in *damaged {
                        bar.suspend(|| note(format!("skipped a checkpoint that cannot be read: {message}")));
                    }
                    bar.suspend(|| note(format!("resumed from {} at step {step}", checkpoint.display())));
                    // The images are known to be the run's by now: later commands find them where they have moved to.
                    if ranks.is_first()
                        && let Err(error) = folder.move_source(&config.data.source)
                    {
                        bar.suspend(|| note(format!("the images' folder was not written down: {error:#}")));
                    }
                }
                Event::Stage { name, index, stages, steps } => {
                    bar.suspend(|| note(format!("stage {}/{stages} '{name}': {steps} steps", index + 1)));
                }
                Event::Step(step) => {
                    bar.set_length(step.steps as u64);
                    bar.set_position(step.step as u64);
                    steps += 1;
                    if steps == STEPS_UNTIL_ESTIMATE && step.eta_seconds > 60.0 {
                        bar.suspend(|| note(format!("about {} to go", progress::duration(step.eta_seconds))));
                    }
                    bar.set_message(message(step));
                }
                Event::Probes { stage, step, results } => {
                    let accuracies: Vec<String> =
                        results.iter().map(|r| format!("{} {:.1} %", r.name, 100.0 * r.accuracy)).collect();
                    bar.suspend(|| note(format!("step {step} ({stage}): validation {}", accuracies.join(", "))));
                }
                Event::Skipped { reason, skipped, allowed } => {
                    bar.suspend(|| note(format!("left out a step ({skipped} of at most {allowed}): {reason}")));
                }
                Event::Checkpoint { .. } => {}
            }
            if interrupt::requested() { Control::Stop } else { Control::Continue }
        })?;
    bar.finish_and_clear();
    Ok(outcome)
}

/// Puts the weights that training starts from into `net`, if it starts from any; the network of another run that
/// teaches, if there is one.
fn from_other_runs(config: &RunConfig, data: &Dataset, net: &Supernet) -> Result<Option<Supernet>> {
    if let Some(from) = &config.from {
        StartingWeights::read(Path::new(from))?.load_into(net, &data.classes)?;
    }
    let Some(from) = &config.train.teacher_from else { return Ok(None) };
    StartingWeights::read(Path::new(from))?.teacher(&data.classes, &data.normalisation).map(Some)
}

/// What the progress bar shows of a step.
fn message(step: &StepEvent) -> String {
    let distillation = step.report.distillation.map(|d| format!(" kd {d:.3}")).unwrap_or_default();
    format!(
        "{} {:.1}/{:.1}  loss {:.3}{distillation}  acc {:.1} %  lr {:.4}  {} img/s  ETA {}",
        step.stage,
        step.epoch,
        step.epochs,
        step.report.loss,
        100.0 * step.report.accuracy,
        step.learning_rate,
        progress::rate(step.images_per_second),
        progress::duration(step.eta_seconds)
    )
}

/// Steps of which the remaining time is told.
const STEPS_UNTIL_ESTIMATE: usize = 30;

/// The configuration with as many epochs as `hours` have room for, by steps that are measured now.
fn within_hours(config: &RunConfig, data: &Dataset, hours: f64, ranks: &Ranks) -> Result<RunConfig> {
    note(format!("measuring how many epochs {hours} hours have room for"));
    let times = stage_times(config, data.classes.len(), data.train.len(), ranks.count())?;
    let seconds: f64 = times.iter().map(|stage| stage.seconds).sum();
    // All ranks train for what the first one measured.
    let epochs = ranks.broadcast_f64(config.train.total_epochs() * 3600.0 * hours / seconds);
    let train = config.train.clone().with_epochs(epochs);
    train.validate(&config.space)?;
    Ok(RunConfig { train, ..config.clone() })
}

/// The configuration with the images that one of `ranks` has of a step.
fn of_one_rank(config: &TrainConfig, ranks: &Ranks) -> TrainConfig {
    let mut own = config.clone();
    let batches = own.stages.iter_mut().filter_map(|stage| stage.batch.as_mut()).chain([&mut own.batch]);
    batches.for_each(|batch| *batch = (*batch * config.ranks.unwrap_or(1)).div_ceil(ranks.count()));
    own
}

/// The validation accuracies of smallest, middle and largest subnet.
pub fn print_probes(probes: &[ProbeResult]) {
    let rows: Vec<Vec<String>> = probes
        .iter()
        .map(|p| vec![p.name.to_string(), format!("{:.1} %", 100.0 * p.accuracy), p.subnet.to_string()])
        .collect();
    table::print(&["subnet", "validation", "choices"], &rows);
}

fn device(name: &str) -> Result<Device> {
    match name {
        "cpu" => Ok(Device::Cpu),
        "metal" => Device::new_metal(0).context("--device metal: build with `--features metal` on a Mac"),
        _ => {
            let Some(index) =
                name.strip_prefix("cuda:").or(name.eq("cuda").then_some("0")).and_then(|i| i.parse().ok())
            else {
                bail!("--device {name}: expected cpu, cuda:N or metal");
            };
            Device::new_cuda(index).with_context(|| format!("--device {name}: build with `--features cuda`"))
        }
    }
}
