//! `ofa train`

use crate::arguments::{numbers, shell, subnet_text};
use crate::commands::speed::stage_times;
use crate::output::progress::{self, counted};
use crate::output::terminal::{note, warning};
use crate::output::training_progress::TrainingProgress;
use crate::output::{next_steps, terminal, training_summary};
use crate::process::processes::on_this_machine;
use crate::process::{interrupt, memory};
use crate::run_folder::new_folder::NewFolder;
use crate::run_folder::starting_weights::StartingWeights;
use crate::run_folder::{DataConfig, FOREIGN_SPACE, RunConfig, RunFolder, absolute, data_flag};
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use ofa_supernet::data::Dataset;
use ofa_supernet::train::checkpoint::Folder;
use ofa_supernet::train::metrics::TENSORBOARD;
use ofa_supernet::train::{Control, Event, Origin, Outcome, TrainConfig, is_unbegun, train_from};
use ofa_supernet::{Ranks, SearchSpace, Supernet, files};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Train a supernet: the largest subnet first, then all others with it.
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
    /// Skip up to N steps whose loss or gradient is NaN or infinite before stopping with an error.
    #[arg(long, value_name = "N", value_parser = numbers::skipped)]
    skip_nonfinite: Option<usize>,
    /// Hours that the training may take: some steps are timed, then the epochs of all stages are scaled.
    #[arg(long, value_parser = numbers::hours, conflicts_with_all = ["epochs", "resume"])]
    hours: Option<f64>,
    /// Write event files of TensorBoard too, to the run folder's tensorboard/; a resumed run continues them.
    #[arg(long)]
    tensorboard: bool,
    /// Where to compute: cpu, cuda:N or metal.
    #[arg(long, default_value = "cpu")]
    device: String,
}

/// What decides a training; flags override the configuration file.
#[derive(clap::Args)]
pub struct Settings {
    /// Configuration file with [data], [space] and [train]; `ofa config` prints one.
    #[arg(long, conflicts_with_all = ["space", "preset"])]
    pub config: Option<PathBuf>,
    /// Training preset: cifar, imagenet, progressive, tiny or, with trained weights only, transfer (default: cifar;
    /// with --from of a supernet transfer).
    #[arg(long)]
    preset: Option<String>,
    /// Search space: a preset such as cifar-k5, tiny or mbv3-w1.0, or a .toml file (default: the training preset's, or
    /// that of --from).
    #[arg(long)]
    space: Option<String>,
    /// Images: a folder (ImageFolder, tar or Parquet shards, CIFAR binary, IDX), a pattern of shards such as
    /// 'DIR/train-{000..011}.tar', or `builtin`.
    #[arg(long)]
    data: Option<String>,
    /// Start from these weights instead of random ones: a run folder (trained or imported), a file of its checkpoints,
    /// or the folder of a model that is a subnet of the space. The classes may differ.
    #[arg(long, value_name = "RUN|CHECKPOINT|MODEL")]
    from: Option<PathBuf>,
    /// Learn from the largest subnet of this other supernet (of the same images, and any space) in all stages but those
    /// whose teacher is in_place: a run folder or a file of its checkpoints.
    #[arg(long, value_name = "RUN|CHECKPOINT")]
    teacher: Option<PathBuf>,
    /// Train only this subnet, for as many epochs as all stages have: its text, smallest, middle or largest, or
    /// once-for-all's form as JSON. Its accuracy alone is what the same subnet should reach in the supernet.
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
    /// Seed of weights, order of images, augmentation and subnets (data.seed chooses the validation split).
    #[arg(long, value_parser = numbers::seed)]
    seed: Option<u64>,
}

impl Settings {
    /// Whether the preset is that for weights which are trained already.
    pub fn is_transfer(&self) -> bool {
        self.preset.as_deref() == Some("transfer")
    }

    /// [`Settings::resolve`], refusing the preset for trained weights where none are named.
    fn resolve_for_training(&self) -> Result<RunConfig> {
        let config = self.resolve()?;
        if self.is_transfer() && config.from.is_none() {
            bail!("--preset transfer is for trained weights; name their run with --from, or take another preset");
        }
        Ok(config)
    }

    /// File, presets and flags as one checked configuration.
    pub fn resolve(&self) -> Result<RunConfig> {
        let mut start = self.from.as_deref().map(StartingWeights::read).transpose()?;
        let mut config = match &self.config {
            Some(path) => {
                let config = RunConfig::read(path)?;
                config.check_new().with_context(|| path.display().to_string())?;
                if start.is_none() {
                    start = config.from.as_deref().map(|from| StartingWeights::read(Path::new(from))).transpose()?;
                }
                config
            }
            None => {
                let preset = self.preset.as_deref().unwrap_or(start.as_ref().map_or("cifar", StartingWeights::preset));
                let default = match preset {
                    "imagenet" => "mbv3-w1.0",
                    "cifar" => "cifar-k5",
                    "progressive" => "cifar-mbv3",
                    _ => "tiny",
                };
                let space = match (&self.space, &start) {
                    (None, Some(start)) => start.space()?,
                    (space, _) => SearchSpace::named(space.as_deref().unwrap_or(default))?,
                };
                let train = TrainConfig::preset(preset, &space)?;
                RunConfig { from: None, data: DataConfig::default(), space, train }
            }
        };
        if let Some(path) = &self.from {
            config.from = Some(path.to_str().context("--from: the path is not UTF-8")?.to_string());
            // A preset is for random weights; what a file says is refused.
            if self.config.is_none() {
                config.train.zero_last_scale = false;
                config.sort_untrained_only();
            }
        }
        if let Some(start) = start {
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
        // Before a subnet is chosen, which learns as much from its teacher as in the stages.
        if let Some(path) = &self.teacher {
            config.train.teacher_from = Some(path.to_str().context("--teacher: the path is not UTF-8")?.to_string());
        }
        if let Some(text) = &self.subnet {
            let subnet = subnet_text::read(&config.space, text)?;
            (config.space, config.train) = config.train.alone(&config.space, &subnet)?;
            if let Some(from) = &config.from
                && !StartingWeights::read(Path::new(from))?.is_model()
            {
                bail!(
                    "--subnet has a space of its own, which the supernet of '{from}' does not fit; leave one of them out"
                );
            }
        }
        if self.teacher.is_some() {
            let untaught = config.train.stages.iter_mut().filter(|stage| stage.kd_ratio == 0.0);
            untaught.for_each(|stage| stage.kd_ratio = 1.0);
        }
        if let Some(teacher) = &config.train.teacher_from
            && config.data.normalisation.is_none()
        {
            let known = StartingWeights::read(Path::new(teacher))?.normalisation;
            config.data.normalisation = known;
        }
        // As the run folder has it, which resuming compares with.
        config.train.teacher_from = config.train.teacher_from.as_deref().map(absolute);
        config.train.validate(&config.space)?;
        config.check_new()?;
        Ok(config)
    }
}

pub fn run(args: &Args, ranks: &Ranks) -> Result<Value> {
    let folder = RunFolder::new(&args.out);
    let mut config = if args.resume {
        let mut config = folder.config()?;
        match &args.settings.data {
            Some(source) => config.data.source = data_flag(source)?,
            None => folder.check_source(&config.data)?,
        }
        config
    } else {
        args.settings.resolve_for_training()?
    };
    for (file, what) in [("trials.jsonl", "trials of `ofa tune`"), (FOREIGN_SPACE, "accuracies from elsewhere")] {
        if folder.join(file).exists() {
            bail!("{}: this folder holds {what}; choose another run folder", args.out.display());
        }
    }
    if ranks.is_distributed() && !args.resume {
        config.train.ranks.get_or_insert(ranks.count());
    }
    if let Some(steps) = args.skip_nonfinite {
        config.train.skip_nonfinite = steps;
    }
    let device = device(&args.device)?;
    if args.hours.is_some() && !device.is_cpu() {
        bail!("--hours measures steps on the processor, not on '{}'; give --epochs", args.device);
    }
    let made = NewFolder::of(&args.out);
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
    if args.resume {
        let path = folder.join("config.toml");
        config.check_resumed(checkpoints.begun_stages()?).with_context(|| path.display().to_string())?;
    }
    if args.tensorboard && ranks.is_first() {
        files::make_folder(&folder.join(TENSORBOARD))?;
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
        Err(error) => {
            if !begun && ranks.is_first() {
                made.discard();
            }
            return Err(error);
        }
        Ok(outcome) => outcome,
    };
    match outcome {
        Outcome::Finished { .. } if !ranks.is_first() => Ok(Value::Null),
        Outcome::Finished { supernet, probes, steps, seconds } => {
            training_summary::print_probes(&probes);
            let peak = memory::peak();
            if let Some(peak) = peak {
                say!("\npeak memory {}", memory::mib(peak));
            }
            say!(
                "\n{} written after {} in {}",
                supernet.display(),
                counted(steps, "step"),
                progress::duration(seconds)
            );
            terminal::next(next_steps::with_supernet(&config, &shell::path(&args.out)));
            Ok(json!({
                "run": args.out,
                "supernet": supernet,
                "steps": steps,
                "seconds": seconds,
                "peak_memory_bytes": peak,
                "accuracies": training_summary::probes_json(&probes),
            }))
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
    let data = agreed(ranks, config.data.open())?;
    let start = config.from.as_ref().filter(|_| !resume);
    let start = start.map(|from| StartingWeights::read_for(&data, Path::new(from))).transpose()?;
    let config = &match hours {
        Some(hours) => within_hours(config, &data, hours, ranks)?,
        None => config.clone(),
    };
    if !resume {
        training_summary::print(config, &data)?;
    }
    let from = config.train.teacher_from.as_ref().filter(|_| !resume);
    let teacher = from.map(|from| StartingWeights::read(Path::new(from))).transpose()?;
    let teacher_space = match &teacher {
        Some(teacher) => Some(teacher.space()?),
        None => Folder::of_run(out, 1).teacher_space()?,
    };
    let of_one_rank = of_one_rank(&config.train, ranks);
    let machine = (on_this_machine(ranks), resume);
    let estimate = memory::check(&config.space, teacher_space.as_ref(), &data, &of_one_rank, machine)?;
    let each = if ranks.is_distributed() { " for each process" } else { "" };
    note(format!("about {} of memory at the peak{each}", memory::mib(estimate)));
    let mut net = Supernet::on_device(&config.space, data.classes.len(), config.train.seed, DType::F32, device)?;
    let mut origin = Origin::default();
    if let Some(start) = start {
        start.load_into(&net, &data.classes)?;
        origin.trained_on = start.trained_on;
    }
    origin.teacher = teacher.map(|teacher| teacher.teacher(&data)).transpose()?;
    if ranks.is_first() && !resume && is_unbegun(out)? {
        folder.write_config(config)?;
    }
    let mut shown = TrainingProgress::new(config);
    let outcome = train_from(&mut net, origin, &data, &config.train, ranks, out, resume, &mut |event| {
        *begun = true;
        shown.show(event);
        // The images are known to be the run's by now: later commands find them where they have moved to.
        if matches!(event, Event::Resumed { .. })
            && ranks.is_first()
            && let Err(error) = folder.move_source(&config.data.source)
        {
            warning(format!("the images' folder was not written down: {error:#}"));
        }
        if interrupt::requested() { Control::Stop } else { Control::Continue }
    })?;
    Ok(outcome)
}

/// `result`, unless a signal has stopped one of `ranks`: then all of them stop, since the others would wait for it.
fn agreed<T>(ranks: &Ranks, result: Result<T>) -> Result<T> {
    let [stopped] = ranks.any([interrupt::requested()]);
    if stopped { Err(ofa_supernet::Error::Interrupted.into()) } else { result }
}

/// Images that are read to measure how long that takes.
const READ: usize = 64;

/// The configuration with as many epochs as `hours` have room for, by steps that are measured now.
fn within_hours(config: &RunConfig, data: &Dataset, hours: f64, ranks: &Ranks) -> Result<RunConfig> {
    note(format!("measuring how many epochs {hours} hours have room for"));
    let times = agreed(ranks, stage_times(config, data.classes.len(), data.train.len(), ranks))?;
    let mut seconds: f64 = times.iter().map(|stage| stage.seconds).sum();
    if !data.train.in_memory() {
        // Images are prepared on the same cores.
        let resolution = config.space.resolutions[config.space.resolutions.len() - 1];
        let draws: Vec<usize> = (0..data.train.len().min(READ)).collect();
        let start = Instant::now();
        let (augmentation, seed) = (&config.train.augmentation, config.train.seed);
        data.training_batch(&draws, 0..draws.len(), resolution, augmentation, seed, 0)?;
        let each = start.elapsed().as_secs_f64() / draws.len().max(1) as f64;
        let plan = config.train.plan(&config.space, data.train.len());
        let images: usize = plan.iter().map(|stage| stage.steps * stage.batch.div_ceil(ranks.count())).sum();
        seconds += each * images as f64;
    }
    // All ranks train for what the first one measured.
    let epochs = ranks.broadcast_f64(config.train.total_epochs() * 3600.0 * hours / seconds);
    let train = config.train.clone().with_epochs(epochs);
    train.validate(&config.space)?;
    Ok(RunConfig { train, ..config.clone() })
}

/// The configuration with the images that one of `ranks` has of a step.
pub fn of_one_rank(config: &TrainConfig, ranks: &Ranks) -> TrainConfig {
    let mut own = config.clone();
    let batches = own.stages.iter_mut().filter_map(|stage| stage.batch.as_mut()).chain([&mut own.batch]);
    batches.for_each(|batch| *batch = (*batch * config.ranks.unwrap_or(1)).div_ceil(ranks.count()));
    own
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
