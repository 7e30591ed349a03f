//! The training loop: stages, epochs, probes, checkpoints, resuming.

use super::average::Average;
use super::checkpoint::{Best, Checkpoint, Folder, Identity, Progress, SupernetNote, write_supernet};
use super::config::{StagePlan, TrainConfig};
use super::metrics::{self, MetricsFile, MetricsLine};
use super::optimizer::Sgd;
use super::progress::{Control, Event, Pace, StepEvent};
use super::sampling::resolution_of;
use super::schedule::learning_rate;
use super::stage::StageConfig;
use super::step::{StepInput, StepReport, train_step};
use super::validation::{EvaluationSet, accuracy_on, image_tensor, recalibrate_on};
use crate::data::{Batch, Dataset, Prefetch, TrainedOn, epoch_order};
use crate::network::Supernet;
use crate::ranks::Ranks;
use crate::{Error, Result, SearchSpace, Subnet, files};
use candle_core::{DType, Tensor};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Batches that are prepared while others are computed.
const AHEAD: usize = 3;

/// A checkpoint that is due by time waits at least this many times as long as the last one took to write: 2 % of the time.
const WRITES_APART: f64 = 50.0;

/// Validation of one probe.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeResult {
    /// `smallest`, `middle` or `largest`.
    pub name: &'static str,
    /// The subnet.
    pub subnet: Subnet,
    /// Top-1 accuracy on validation images after recalibration, 0 to 1.
    pub accuracy: f64,
}

/// How training ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// All stages are done, and the weights written.
    Finished {
        /// `checkpoints/supernet.safetensors`.
        supernet: PathBuf,
        /// The probes with the final weights.
        probes: Vec<ProbeResult>,
        /// Steps of training.
        steps: usize,
        /// Seconds of training, over all sessions.
        seconds: f64,
    },
    /// The observer asked to stop; the checkpoint resumes.
    Interrupted {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// Steps done.
        step: usize,
    },
}

/// Trains `net` on `data` as `config` says, in the run folder `run_dir` (`metrics.jsonl`, `checkpoints/`).
///
/// Several ranks share the images of each step out. The first one writes the files, all read them, and at each checkpoint all compare what they
/// hold. A run may go on with another number of ranks: the images of a step stay those of `config.batch` times `config.ranks`.
///
/// With `resume` it goes on from the newest readable checkpoint and gives, bit for bit, the weights of an uninterrupted run
/// with the same number of ranks and threads. At the end `net` holds the final weights (the moving average, if there is one).
///
/// # Errors
/// An impossible configuration; a run folder that already holds checkpoints without `resume`, or none with it; a checkpoint
/// of other settings; a loss that is not finite; ranks that differ in what they hold; files or images that cannot be read or written.
pub fn train(
    net: &mut Supernet,
    data: &Dataset,
    config: &TrainConfig,
    ranks: &Ranks,
    run_dir: &Path,
    resume: bool,
    observer: &mut dyn FnMut(&Event) -> Control,
) -> Result<Outcome> {
    let space = net.space().clone();
    config.validate(&space)?;
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
    let folder = Folder::of_run(run_dir, config.keep_checkpoints);
    let identity = Identity::new(&space, data, config)?;
    let images_of_rank = serde_json::to_vec(&identity.data).map_err(|e| Error::Internal(e.to_string()))?;
    ranks.check_equal(
        files::checksum(&images_of_rank).into(),
        "images, their splits and normalisation",
        "give all processes the same images and [data] settings",
    )?;
    let found = if resume { folder.latest()? } else { None };
    match (&found, resume) {
        (None, true) => {
            return Err(Error::refused(
                run_dir,
                "it holds no checkpoint to resume from; start without --resume, or name the right run folder",
            ));
        }
        (Some((checkpoint, path, _)), _) => {
            let progress = &checkpoint.progress;
            let begun = progress.stage + usize::from(progress.entered || progress.stage_step > 0);
            identity.check(&checkpoint.identity, begun, path)?;
        }
        (None, false) if !is_unbegun(run_dir)? => {
            let reason = match (folder.list()?.is_empty(), folder.supernet_path().exists()) {
                (false, _) => "it already holds checkpoints; go on with --resume, or choose another run folder",
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
    net.set_batch_norm_momentum(config.batch_norm_momentum);
    if config.sync_batch_norm {
        net.share_batch_statistics(ranks)?;
    }
    let plan = config.plan(&space, images);
    if let Some(small) = plan.iter().find(|plan| plan.batch < ranks.count()) {
        return Err(Error::Config(format!(
            "a step has {} images, too few for {} processes; raise batch, or start fewer",
            small.batch,
            ranks.count()
        )));
    }
    if ranks.is_first() {
        folder.remove_temporaries();
    }
    let metrics_lines = found.as_ref().map_or(0, |(c, ..)| c.progress.metrics_lines);
    let probe_images = (config.probe.images > 0).then_some(config.probe.images);
    let mut run = Run {
        optimizer: Sgd::new(config.momentum, config.weight_decay, net.parameters().len()),
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
        progress: Progress::default(),
        probes: Vec::new(),
        stop: false,
        observer,
        saved_at: Instant::now(),
        saved_step: 0,
        write_seconds: 0.0,
    };
    match found {
        Some((checkpoint, path, damaged)) => run.restore(checkpoint, &path, &damaged)?,
        // So that a run killed early can be resumed like any other.
        None => drop(run.checkpoint()?),
    }
    run.stages()
}

/// Whether no step is known to be done in a run folder: it has no supernet, no checkpoint but that of the start, and no line
/// about a step in `metrics.jsonl`. Nothing is then lost by starting again.
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
    optimizer: Sgd,
    teacher: Option<Supernet>,
    average: Option<Average>,
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
            let (classes, trained_on) = (self.data.classes.clone(), Some(TrainedOn::new(self.data)?));
            let note = SupernetNote { space: self.space, classes, steps, trained_on };
            write_supernet(&supernet, self.net.state()?, &note)?;
            metrics.write(&MetricsLine::Finished { step: steps, seconds })?;
            metrics.sync()?;
        }
        // No rank reads the supernet before it is written.
        self.ranks.barrier();
        Ok(Outcome::Finished { supernet, probes: self.probes, steps, seconds })
    }

    /// What comes before the first step of a stage. Optimizer and moving average start anew: each stage is a training of its
    /// own that starts from the weights of the one before.
    /// The teacher is the network as it stands before the first stage that distils from it.
    fn enter(&mut self, stage: &StageConfig, steps: usize) -> Result<()> {
        if stage.has_frozen_teacher() && self.teacher.is_none() {
            self.teacher = Some(self.frozen(&self.net.state()?)?);
        }
        if let Some(width_stage) = stage.sort_channels {
            self.net.sort_channels(width_stage)?;
        }
        if let Some(outer_stage) = stage.sort_outer_channels {
            self.net.sort_outer_channels(outer_stage)?;
        }
        self.optimizer = Sgd::new(self.config.momentum, self.config.weight_decay, self.net.parameters().len());
        self.average = match self.config.ema {
            Some(decay) => Some(Average::new(decay, self.net.state()?, 0)),
            None => None,
        };
        self.log(&MetricsLine::Stage {
            step: self.progress.step,
            stage: stage.name.clone(),
            steps,
            seconds: self.progress.seconds,
        })
    }

    /// The steps of a stage that are still to do, until the end or a stop.
    fn steps(&mut self, stage: &StageConfig) -> Result<()> {
        let config = self.config;
        let plan = self.plan[self.progress.stage].clone();
        let choices = stage.choices(&self.space);
        let mut batches = self.batches(&choices, &plan);
        let mut pace = Pace::default();
        loop {
            // The first rank's clock decides about checkpoints, a signal to any rank about the end.
            let due = self.ranks.is_first() && self.checkpoint_due();
            let [stop, checkpoint_due] = self.ranks.any([self.stop, due]);
            self.stop = stop;
            if stop {
                return Ok(());
            }
            let done = self.progress.stage_step;
            if done == plan.steps {
                return Ok(());
            }
            if self.probe_due(&plan) {
                let best = self.progress.best;
                self.probe(stage)?;
                if self.progress.best != best {
                    self.checkpoint()?;
                }
                continue;
            }
            if checkpoint_due {
                self.checkpoint()?;
                continue;
            }
            let start = Instant::now();
            let batch = batches.next().ok_or_else(|| {
                Error::Data(format!(
                    "the loader ended after {done} of {} batches of stage '{}'",
                    plan.steps, stage.name
                ))
            })??;
            let peak = stage.learning_rate * config.rate_factor();
            let rate = learning_rate(peak, done, plan.steps, plan.warmup_steps);
            let images = image_tensor(batch.images, batch.labels.len(), batch.resolution, self.net)?;
            let input = StepInput {
                config,
                stage,
                choices: &choices,
                step: self.progress.step,
                learning_rate: rate,
                images: &images,
                labels: &batch.labels,
                ranks: self.ranks,
                batch: plan.batch,
            };
            let report = self.step(&input)?;
            if let (Some(average), Some(_)) = (&mut self.average, &report) {
                average.update(&self.net.state()?)?;
            }
            let seconds = start.elapsed().as_secs_f64();
            pace.add(seconds);
            let progress = &mut self.progress;
            progress.step += 1;
            progress.stage_step += 1;
            progress.seconds += seconds;
            if let Some(report) = &report {
                progress.window.add(report, plan.batch, seconds);
            }
            let epoch = progress.stage_step as f64 / plan.steps_per_epoch as f64;
            let (step, stage_step, stage_index) = (progress.step, progress.stage_step, progress.stage);
            let logged = progress.window.steps();
            if logged >= config.log_every || (stage_step == plan.steps && logged > 0) {
                let line = progress.window.line(step, &stage.name, epoch, rate, progress.seconds);
                self.log(&line)?;
            }
            let Some(report) = report else { continue };
            let event = Event::Step(StepEvent {
                stage: &stage.name,
                stage_index,
                stages: self.plan.len(),
                epoch,
                epochs: stage.epochs,
                stage_step,
                stage_steps: plan.steps,
                step,
                steps: self.plan.iter().map(|p| p.steps).sum(),
                learning_rate: rate,
                report: &report,
                images_per_second: pace.images_per_second(plan.batch),
                eta_seconds: pace.remaining(&self.plan, stage_index, stage_step),
            });
            self.tell(&event);
        }
    }

    /// One step, or `None` for one that is left out because something was not finite: no weight, momentum or running
    /// statistic then changes.
    fn step(&mut self, input: &StepInput) -> Result<Option<StepReport>> {
        let may_skip = self.progress.skipped < self.config.skip_nonfinite;
        // All that changes before a step is found to be not finite: weights and momentum are written at its end, after the checks.
        let running = may_skip.then(|| self.net.running_values());
        let result = train_step(self.net, self.teacher.as_ref(), &mut self.optimizer, input);
        let (Err(Error::NotFinite(reason)), Some(running)) = (&result, running) else { return result.map(Some) };
        self.net.set_running_values(&running);
        self.progress.skipped += 1;
        let (step, stage) = (self.progress.step, &input.stage.name);
        let line =
            MetricsLine::Skipped { step, stage: stage.clone(), reason: reason.clone(), seconds: self.progress.seconds };
        self.log(&line)?;
        let (skipped, allowed) = (self.progress.skipped, self.config.skip_nonfinite);
        self.tell(&Event::Skipped { reason, skipped, allowed });
        Ok(None)
    }

    fn checkpoint_due(&self) -> bool {
        let wait = (self.config.checkpoint_minutes * 60.0).max(WRITES_APART * self.write_seconds);
        self.config.checkpoint_steps.is_some_and(|steps| self.progress.step - self.saved_step >= steps)
            || self.saved_at.elapsed().as_secs_f64() >= wait
    }

    /// What comes after the last step of a stage.
    fn leave(&mut self, stage: &StageConfig) -> Result<()> {
        if let Some(average) = self.average.take() {
            self.net.load_state(average.state())?;
        }
        self.probe(stage)?;
        self.progress.stage += 1;
        self.progress.stage_step = 0;
        self.progress.entered = false;
        self.progress.average_updates = 0;
        self.optimizer = Sgd::new(self.config.momentum, self.config.weight_decay, self.net.parameters().len());
        self.checkpoint().map(drop)
    }

    /// The batches of the stage from the next step on, prepared beside the computation.
    fn batches(&self, choices: &SearchSpace, plan: &StagePlan) -> Prefetch<Batch> {
        let (data, choices, plan) = (self.data.clone(), choices.clone(), plan.clone());
        let (seed, augmentation) = (self.config.seed, self.config.augmentation.clone());
        let (start, own) = (self.progress.stage_step, self.ranks.shard(plan.batch));
        let mut order: Option<(usize, Vec<usize>)> = None;
        Prefetch::new(plan.steps - start, AHEAD, move |index| {
            let stage_step = start + index;
            let epoch = plan.first_epoch + stage_step / plan.steps_per_epoch;
            let images = match &order {
                Some((of, images)) if *of == epoch => images,
                _ => &order.insert((epoch, epoch_order(data.train.len(), seed, epoch as u64))).1,
            };
            let first = stage_step % plan.steps_per_epoch * plan.batch;
            let resolution = resolution_of(&choices, seed, plan.first_step + stage_step);
            let images = &images[first..][own.clone()];
            data.training_batch(images, resolution, &augmentation, seed, epoch as u64)
        })
    }

    fn probe_due(&self, plan: &StagePlan) -> bool {
        let every = self.config.probe.every_epochs * plan.steps_per_epoch;
        let done = self.progress.stage_step;
        every > 0 && done > 0 && done.is_multiple_of(every) && self.progress.probed != Some(self.progress.step)
    }

    /// Validates the probes, with the moving average if there is one.
    fn probe(&mut self, stage: &StageConfig) -> Result<()> {
        let results = match &self.average {
            None => self.measure_probes()?,
            Some(average) => {
                let current = self.net.state()?;
                self.net.load_state(average.state())?;
                let results = self.measure_probes();
                self.net.load_state(&current)?;
                results?
            }
        };
        let (step, seconds) = (self.progress.step, self.progress.seconds);
        for result in &results {
            self.log(&MetricsLine::Probe {
                step,
                stage: stage.name.clone(),
                probe: result.name.to_string(),
                subnet: result.subnet.clone(),
                accuracy: result.accuracy,
                seconds,
            })?;
        }
        self.progress.probed = Some(step);
        let accuracy = results.iter().map(|r| r.accuracy).sum::<f64>() / results.len() as f64;
        if self.progress.best.is_none_or(|best| accuracy > best.accuracy) {
            self.progress.best = Some(Best { step, accuracy });
        }
        self.tell(&Event::Probes { stage: &stage.name, step, results: &results });
        self.probes = results;
        Ok(())
    }

    fn measure_probes(&self) -> Result<Vec<ProbeResult>> {
        [("smallest", self.space.smallest()), ("middle", self.space.middle()), ("largest", self.space.largest())]
            .into_iter()
            .map(|(name, subnet)| {
                let statistics = recalibrate_on(self.net, &subnet, &self.recalibration)?;
                let accuracy = accuracy_on(self.net, &subnet, &statistics, &self.validation)?;
                // It decides about checkpoints. Where each rank measured by itself, another number of threads may have rounded otherwise.
                let accuracy = self.ranks.broadcast_f64(accuracy);
                Ok(ProbeResult { name, subnet, accuracy })
            })
            .collect()
    }

    fn checkpoint(&mut self) -> Result<PathBuf> {
        let start = Instant::now();
        let weights = self.net.state()?;
        if let Some(name) = not_finite(&weights)? {
            return Err(Error::NotFinite(format!(
                "step {}: the weights '{name}' hold NaN or infinite values, so no checkpoint is written and earlier ones are \
                 kept; lower learning_rate or set clip_norm",
                self.progress.step
            )));
        }
        let mut average = HashMap::new();
        if let Some(running) = &self.average {
            average.clone_from(running.state());
            self.progress.average_updates = running.updates();
        }
        if let Some(metrics) = &mut self.metrics {
            self.progress.metrics_lines = metrics.sync()?;
        }
        let checkpoint = Checkpoint {
            progress: self.progress.clone(),
            identity: self.identity.clone(),
            weights,
            momentum: self.optimizer.state(self.net.parameters())?,
            average,
            teacher: self.teacher.as_ref().map_or(Ok(HashMap::new()), Supernet::state)?,
        };
        self.compare(&checkpoint, "no checkpoint is written; go on from the last one with --resume, and if it happens again look for a machine with faulty memory or another build of the program")?;
        let path = match self.ranks.is_first() {
            true => self.folder.save(&checkpoint)?,
            false => self.folder.checkpoint_path(self.progress.step),
        };
        self.write_seconds = start.elapsed().as_secs_f64();
        (self.saved_at, self.saved_step) = (Instant::now(), self.progress.step);
        self.tell(&Event::Checkpoint { path: &path });
        Ok(path)
    }

    /// Fails on all ranks if one holds anything else than the others.
    fn compare(&self, checkpoint: &Checkpoint, advice: &str) -> Result<()> {
        if !self.ranks.is_distributed() {
            return Ok(());
        }
        let what = format!("the weights at step {}", checkpoint.progress.step);
        self.ranks.check_equal(checkpoint.fingerprint()?, &what, advice)
    }

    fn restore(&mut self, checkpoint: Checkpoint, path: &Path, damaged: &[String]) -> Result<()> {
        self.compare(&checkpoint, "the run folder must be one that all machines share")?;
        let Checkpoint { progress, weights, momentum, average, teacher, .. } = checkpoint;
        let fits = progress.stage <= self.plan.len()
            && self.plan.get(progress.stage).is_none_or(|plan| progress.stage_step <= plan.steps);
        if !fits {
            return Err(Error::format(
                path,
                format!(
                    "it stands at step {} of stage {}, which the configuration does not have",
                    progress.stage_step,
                    progress.stage + 1
                ),
            ));
        }
        self.net.load_state(&weights).map_err(|e| e.at(path))?;
        self.optimizer.load_state(self.net.parameters(), &momentum).map_err(|e| e.at(path))?;
        if let Some(decay) = self.config.ema.filter(|_| !average.is_empty()) {
            self.net.check_state(&average).map_err(|e| e.at(path))?;
            self.average = Some(Average::new(decay, average, progress.average_updates));
        }
        if !teacher.is_empty() {
            self.teacher = Some(self.frozen(&teacher).map_err(|e| e.at(path))?);
        }
        self.saved_step = progress.step;
        self.progress = progress;
        self.tell(&Event::Resumed { checkpoint: path, step: self.progress.step, damaged });
        Ok(())
    }

    /// A second network with the given weights.
    fn frozen(&self, state: &HashMap<String, Tensor>) -> Result<Supernet> {
        let dtype = self.net.parameters().first().map_or(DType::F32, |p| p.var.dtype());
        let mut teacher =
            Supernet::on_device(&self.space, self.net.classes(), self.config.seed, dtype, self.net.device())?;
        if self.config.sync_batch_norm {
            teacher.share_batch_statistics(self.ranks)?;
        }
        teacher.load_state(state)?;
        Ok(teacher)
    }

    fn log(&mut self, line: &MetricsLine) -> Result<()> {
        self.metrics.as_mut().map_or(Ok(()), |metrics| metrics.write(line))
    }

    fn tell(&mut self, event: &Event) {
        self.stop |= (self.observer)(event) == Control::Stop;
    }
}

/// The first tensor by name with a value that is not finite.
fn not_finite(state: &HashMap<String, Tensor>) -> Result<Option<&str>> {
    let mut found: Option<&str> = None;
    for (name, tensor) in state {
        // A sum of absolute values in f64 overflows for no f32 values that are finite themselves.
        let finite = tensor.to_dtype(DType::F64)?.abs()?.sum_all()?.to_scalar::<f64>()?.is_finite();
        if !finite && found.is_none_or(|first| name.as_str() < first) {
            found = Some(name);
        }
    }
    Ok(found)
}
