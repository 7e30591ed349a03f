//! The training loop: stages, epochs, probes, checkpoints, resuming.
//!
//! | file | concern |
//! | --- | --- |
//! | `steps` | the steps of a stage |
//! | `probes` | validation of fixed subnets |
//! | `saving` | writing checkpoints, and starting from them |

mod probes;
mod saving;
mod steps;

use super::average::Average;
use super::checkpoint::{Folder, Identity, Latest, Progress, SupernetNote, write_supernet};
use super::class_balance::class_weights;
use super::config::{StagePlan, TrainConfig};
use super::metrics::{self, MetricsFile, MetricsLine};
use super::optimizer::Optimizer;
use super::progress::{Control, Event, Outcome, ProbeResult};
use super::stage::StageConfig;
use super::validation::EvaluationSet;
use super::whitening;
use crate::data::{Dataset, TrainedOn};
use crate::network::Supernet;
use crate::ranks::Ranks;
use crate::{Error, Result, SearchSpace, files};
use std::path::Path;
use std::time::Instant;

pub use steps::AHEAD;

/// Trains `net` on `data` as `config` says, in the run folder `run_dir` (`metrics.jsonl`, `checkpoints/`).
///
/// Several ranks share the images of each step. The first rank writes the files, all read them, and at each checkpoint
/// all compare their values. A run may resume with another number of ranks: the images of a step stay those of
/// `config.batch` times `config.ranks`.
///
/// With `resume`, training resumes from the newest readable checkpoint and gives, bit for bit, the weights of an
/// uninterrupted run with the same number of ranks and threads. At the end `net` holds the final weights (the moving
/// average, if there is one).
///
/// # Errors
/// An impossible configuration; a run folder that already holds checkpoints without `resume`, or none with it; a
/// checkpoint of other settings; a loss that is not finite; ranks that differ in what they hold; files or images that
/// cannot be read or written.
pub fn train(
    net: &mut Supernet,
    data: &Dataset,
    config: &TrainConfig,
    ranks: &Ranks,
    run_dir: &Path,
    resume: bool,
    observer: &mut dyn FnMut(&Event) -> Control,
) -> Result<Outcome> {
    train_from(net, Origin::default(), data, config, ranks, run_dir, resume, observer)
}

/// What a new run takes from others. Checkpoints hold it, so that a resumed run takes nothing.
#[derive(Debug, Default)]
pub struct Origin {
    /// The network of another run as the frozen teacher ([`TrainConfig::teacher_from`]).
    pub teacher: Option<Supernet>,
    /// Images that the weights of `net` were trained on.
    pub trained_on: Vec<TrainedOn>,
}

/// As [`train`], with what the run takes from others.
///
/// # Errors
/// As [`train`]; a teacher where the configuration has none, or the other way round.
#[allow(clippy::too_many_arguments, reason = "those of `train`, and the origin")]
pub fn train_from(
    net: &mut Supernet,
    origin: Origin,
    data: &Dataset,
    config: &TrainConfig,
    ranks: &Ranks,
    run_dir: &Path,
    resume: bool,
    observer: &mut dyn FnMut(&Event) -> Control,
) -> Result<Outcome> {
    let space = net.space().clone();
    config.validate(&space)?;
    check_data(net, data)?;
    let folder = Folder::of_run(run_dir, config.keep_checkpoints);
    let identity = Identity::new(&space, data, config)?;
    let images_of_rank = serde_json::to_vec(&identity.data).map_err(|e| Error::Internal(e.to_string()))?;
    ranks.check_equal(
        files::checksum(&images_of_rank).into(),
        "images, their splits and normalisation",
        "give all processes the same images and [data] settings",
    )?;
    let settings_of_rank = serde_json::to_vec(&identity.config).map_err(|e| Error::Internal(e.to_string()))?;
    ranks.check_equal(
        files::checksum(&settings_of_rank).into(),
        "training configurations",
        "give all processes the same config.toml: the run folder must be one that all machines share",
    )?;
    let found = checkpoint_to_start_from(&folder, &identity, run_dir, resume)?;
    net.set_batch_norm_momentum(config.batch_norm_momentum);
    if config.sync_batch_norm {
        net.share_batch_statistics(ranks)?;
    }
    if config.drop_path > 0.0 && !net.has_kernels() {
        return Err(Error::Config("drop_path works on the CPU only; use --device cpu, or leave drop_path out".into()));
    }
    let plan = config.plan(&space, data.train.len());
    check_batches(&plan, ranks)?;
    if ranks.is_first() {
        folder.remove_temporaries();
    }
    let metrics_lines = found.as_ref().map_or(0, |found| found.checkpoint.progress.metrics_lines);
    let probe_images = (config.probe.images > 0).then_some(config.probe.images);
    let mut run = Run {
        optimizer: config.optimizer(net.parameters()),
        net,
        data,
        config,
        ranks,
        space,
        plan,
        folder,
        identity,
        metrics: match ranks.is_first() {
            true => Some(MetricsFile::open(&run_dir.join("metrics.jsonl"), metrics_lines)?),
            false => None,
        },
        recalibration: EvaluationSet::for_recalibration(
            data,
            config.probe.recalibration_images,
            config.probe.batch,
            config.seed,
        )?
        .shared_over(ranks),
        validation: EvaluationSet::of_split(data, &data.validation, probe_images, config.probe.batch, config.seed)?
            .shared_over(ranks),
        teacher: None,
        average: None,
        earlier: Vec::new(),
        class_weights: class_weights(config.class_balance.as_ref(), data)?,
        progress: Progress::default(),
        probes: Vec::new(),
        stop: false,
        observer,
        saved_at: Instant::now(),
        saved_step: 0,
        write_seconds: 0.0,
    };
    match found {
        Some(found) => run.restore(found)?,
        None => run.begin(origin)?,
    }
    run.stages()
}

/// Fails where a step has fewer images than there are ranks.
fn check_batches(plan: &[StagePlan], ranks: &Ranks) -> Result<()> {
    let Some(small) = plan.iter().find(|plan| plan.batch < ranks.count()) else { return Ok(()) };
    Err(Error::Config(format!(
        "a step has {} images, too few for {} processes; raise batch, or start fewer",
        small.batch,
        ranks.count()
    )))
}

/// Fails where `net` cannot be trained on `data`.
fn check_data(net: &Supernet, data: &Dataset) -> Result<()> {
    let images = data.train.len();
    if images == 0 || data.validation.is_empty() {
        return Err(Error::Data(format!(
            "training needs training and validation images, but there are {images} and {}; give it more images, or a larger \
             validation split",
            data.validation.len()
        )));
    }
    if data.classes.len() != net.classes() {
        return Err(Error::Data(format!("the data has {} classes, the network {}", data.classes.len(), net.classes())));
    }
    Ok(())
}

/// The newest readable checkpoint with `resume`; without it `None`, for a new run.
///
/// # Errors
/// Nothing to resume from, a checkpoint of other settings, or a new run where there is one already.
fn checkpoint_to_start_from(
    folder: &Folder,
    identity: &Identity,
    run_dir: &Path,
    resume: bool,
) -> Result<Option<Latest>> {
    let found = if resume { folder.latest()? } else { None };
    match (&found, resume) {
        (None, true) => {
            return Err(Error::refused(
                run_dir,
                "it holds no checkpoint to resume from; start without --resume, or name the right run folder",
            ));
        }
        (Some(Latest { checkpoint, path, .. }), _) => {
            identity.check(&checkpoint.identity, &checkpoint.progress, path)?;
        }
        (None, false) if !is_unbegun(run_dir)? => {
            let reason = match (folder.list()?.is_empty(), folder.supernet_path().exists()) {
                (false, _) => "it already holds checkpoints; resume with --resume, or choose another run folder",
                (true, true) => "it already holds a supernet; choose another run folder",
                (true, false) => {
                    "metrics.jsonl has steps of a run whose checkpoints are gone; bring one back from a copy, or choose \
                     another run folder"
                }
            };
            return Err(Error::refused(run_dir, reason));
        }
        (None, false) => {}
    }
    Ok(found)
}

/// Whether no step is known to be done in a run folder: it has no supernet, no checkpoint but that of the start, and no
/// line about a step in `metrics.jsonl`. Nothing is then lost by starting again.
///
/// # Errors
/// A folder or a `metrics.jsonl` that cannot be read.
pub fn is_unbegun(run_dir: &Path) -> Result<bool> {
    let folder = Folder::of_run(run_dir, 1);
    if folder.supernet_path().exists() || folder.list()?.iter().any(|&(step, _)| step > 0) {
        return Ok(false);
    }
    let path = run_dir.join("metrics.jsonl");
    let lines = if path.exists() { metrics::read(&path)? } else { Vec::new() };
    Ok(lines.iter().all(|line| matches!(line, MetricsLine::Stage { .. })))
}

struct Run<'a> {
    net: &'a Supernet,
    data: &'a Dataset,
    config: &'a TrainConfig,
    ranks: &'a Ranks,
    space: SearchSpace,
    plan: Vec<StagePlan>,
    folder: Folder,
    identity: Identity,
    /// Of the first rank.
    metrics: Option<MetricsFile>,
    recalibration: EvaluationSet<'a>,
    validation: EvaluationSet<'a>,
    optimizer: Optimizer,
    teacher: Option<Supernet>,
    average: Option<Average>,
    /// Images that the starting weights were trained on.
    earlier: Vec<TrainedOn>,
    class_weights: Vec<f32>,
    progress: Progress,
    probes: Vec<ProbeResult>,
    stop: bool,
    observer: &'a mut dyn FnMut(&Event) -> Control,
    /// When and at which step the last checkpoint was written, and how long that took.
    saved_at: Instant,
    saved_step: usize,
    write_seconds: f64,
}

impl Run<'_> {
    /// The start of a new run, before its first stage.
    fn begin(&mut self, origin: Origin) -> Result<()> {
        let Origin { teacher, trained_on } = origin;
        self.earlier = trained_on;
        if teacher.is_some() != self.config.teacher_from.is_some() {
            return Err(Error::Internal("teacher_from and the teacher of another run go together".into()));
        }
        if let Some(teacher) = teacher {
            self.teacher = Some(self.frozen(teacher.space(), &teacher.state()?)?);
        }
        if self.config.zero_last_scale {
            self.net.zero_last_scales()?;
        }
        if self.config.whitening_stem {
            self.net.set_stem_filters(&whitening::filters(self.data, &self.space, self.config.seed)?)?;
        }
        // So that a run killed early can be resumed like any other.
        self.checkpoint().map(drop)
    }

    fn stages(mut self) -> Result<Outcome> {
        let config = self.config;
        while let Some(stage) = config.stages.get(self.progress.stage) {
            let index = self.progress.stage;
            let steps = self.plan[index].steps;
            self.tell(&Event::Stage { name: &stage.name, index, stages: config.stages.len(), steps });
            // Checkpoints of earlier versions do not say `entered`.
            if !self.progress.entered && self.progress.stage_step == 0 {
                self.enter(stage, steps)?;
                self.progress.entered = true;
            }
            self.steps(stage)?;
            if self.stop {
                return Ok(Outcome::Interrupted { checkpoint: self.checkpoint()?, step: self.progress.step });
            }
            self.leave(stage)?;
        }
        if self.probes.is_empty() {
            // Resumed after the last stage's end.
            self.probes = self.measure_probes()?;
        }
        let (steps, seconds) = (self.progress.step, self.progress.seconds);
        let supernet = self.folder.supernet_path();
        if let Some(metrics) = &mut self.metrics {
            // A run that was killed while the last checkpoint's predecessors were removed resumes here.
            self.folder.prune(steps, self.progress.best.map(|best| best.step))?;
            let (classes, own) = (self.data.classes.clone(), TrainedOn::new(self.data)?);
            self.earlier.retain(|earlier| earlier.digest != own.digest);
            let (trained_on, earlier) = (Some(own), self.earlier);
            let note = SupernetNote { space: self.space, classes, steps, trained_on, earlier };
            write_supernet(&supernet, self.net.state()?, &note)?;
            metrics.write(&MetricsLine::Finished { step: steps, seconds })?;
            metrics.sync()?;
        }
        // No rank reads the supernet before it is written.
        self.ranks.barrier();
        Ok(Outcome::Finished { supernet, probes: self.probes, steps, seconds })
    }

    /// What comes before the first step of a stage. The teacher is the network as it stands before the first stage that
    /// distils from it.
    ///
    /// Optimizer and moving average are reset: each stage is a training of its own that starts from the weights of the
    /// stage before. With one schedule over all stages both are kept, except where channels are sorted: the average
    /// then becomes the weights, and momentum, whose channels are in the old order, is reset.
    fn enter(&mut self, stage: &StageConfig, steps: usize) -> Result<()> {
        let sorts = stage.sort_channels.is_some() || stage.sort_outer_channels.is_some();
        let goes_on = self.config.schedule.is_some() && self.progress.stage > 0 && !sorts;
        let mut updates = 0;
        if let Some(average) = &self.average {
            updates = average.updates();
            if sorts {
                self.net.load_state(average.state())?;
            }
        }
        if stage.has_frozen_teacher() && self.teacher.is_none() {
            let state =
                self.average.as_ref().map_or_else(|| self.net.state(), |average| Ok(average.state().clone()))?;
            self.teacher = Some(self.frozen(&self.space, &state)?);
        }
        if let Some(width_stage) = stage.sort_channels {
            self.net.sort_channels(width_stage)?;
        }
        if let Some(outer_stage) = stage.sort_outer_channels {
            self.net.sort_outer_channels(outer_stage)?;
        }
        if !goes_on {
            self.optimizer = self.config.optimizer(self.net.parameters());
            self.average = match self.config.ema {
                Some(decay) => Some(Average::new(decay, self.net.state()?, updates)),
                None => None,
            };
        }
        self.log(&MetricsLine::Stage {
            step: self.progress.step,
            stage: stage.name.clone(),
            steps,
            seconds: self.progress.seconds,
        })
    }

    /// What comes after the last step of a stage.
    fn leave(&mut self, stage: &StageConfig) -> Result<()> {
        let goes_on = self.config.schedule.is_some() && self.progress.stage + 1 < self.plan.len();
        if let Some(average) = self.average.take_if(|_| !goes_on) {
            self.net.load_state(average.state())?;
        }
        self.probe(stage)?;
        self.progress.stage += 1;
        self.progress.stage_step = 0;
        self.progress.entered = false;
        if !goes_on {
            self.progress.average_updates = 0;
            self.optimizer = self.config.optimizer(self.net.parameters());
        }
        self.checkpoint().map(drop)
    }

    fn log(&mut self, line: &MetricsLine) -> Result<()> {
        self.metrics.as_mut().map_or(Ok(()), |metrics| metrics.write(line))
    }

    fn tell(&mut self, event: &Event) {
        self.stop |= (self.observer)(event) == Control::Stop;
    }
}
