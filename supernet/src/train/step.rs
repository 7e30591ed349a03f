//! One step of progressive shrinking. A step computes; the caller logs.

use super::gradients::{clip_factor, norm, sum_during, sum_over, values};
use super::loss;
use super::optimizer::Optimizer;
use super::passes::{LastPass, Passes, SubnetSums, Sums, scalar};
use super::sampling::candidates_of;
use super::stage::Sampling;
pub use super::step_input::StepInput;
use super::taught::Teacher;
use crate::network::{Gradients, Mode, Supernet, Trunk};
use crate::ranks::Ranks;
use crate::{Error, Result, Subnet};
use candle_core::Tensor;
use std::time::Instant;

/// What a step computed; means over its subnets (of the distillation: over those that have a teacher).
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// What is minimised ([`loss::of_subnet`]).
    pub loss: f64,
    /// Smoothed cross-entropy with the labels.
    pub cross_entropy: f64,
    /// Cross-entropy with the teacher's soft labels, if there is a teacher.
    pub distillation: Option<f64>,
    /// Accuracy on the batch in training mode, 0 to 1.
    pub accuracy: f64,
    /// Norm of the summed gradient before clipping.
    pub gradient_norm: f64,
    /// How several ranks exchange the gradients.
    pub exchange: Exchange,
    /// Resolution of the batch.
    pub resolution: usize,
    /// The subnets that were trained.
    pub subnets: Vec<Subnet>,
}

/// What several ranks exchange in a step: two buckets, of the parameters of the later and of the earlier half of the
/// network. The gradients of the later half are final when the last subnet's backward pass is at its middle, and are
/// exchanged while it continues.
///
/// More buckets, closed at the borders of blocks, would not be waited for less (docs/distributed.md): the last bucket,
/// which nothing hides, is small already.
///
/// In one bucket, all after the computation, if batch norm shares its statistics: backward then sums over the ranks
/// itself, and its many small sums, each of which all wait for, would stand behind a large one.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Exchange {
    /// Gradient values that are summed while the computation continues.
    pub hidden_values: usize,
    /// Seconds of this rank's computation meanwhile.
    pub hiding_seconds: f64,
    /// Gradient values that are summed after it.
    pub exposed_values: usize,
}

/// Trains `net` by one step: the teacher's soft labels (if the stage distils), forward and backward passes of the
/// sampled subnets with summed gradients, one optimizer step (paper §3.3, algorithm 1).
///
/// Several ranks do it together, each on its part of the images: the gradient is that of the mean loss over all images,
/// and afterwards weights and running statistics are the same bits on each rank.
///
/// # Errors
/// [`Error::NotFinite`] with stage, step and subnet if a loss, the gradient or a running statistic is NaN or infinite,
/// before any weight changes (running statistics have moved by then); a stage that distils without a teacher; a failed
/// tensor operation.
pub fn train_step(
    net: &Supernet,
    teacher: Option<&Supernet>,
    optimizer: &mut Optimizer,
    input: &StepInput,
) -> Result<StepReport> {
    // On one of rayon's threads, as a forward pass is: the backward passes have as many of candle's operations.
    rayon::scope(|_| step_on_this_thread(net, teacher, optimizer, input))
}

fn step_on_this_thread(
    net: &Supernet,
    teacher: Option<&Supernet>,
    optimizer: &mut Optimizer,
    input: &StepInput,
) -> Result<StepReport> {
    let StepInput { config, stage, choices, images, labels, ranks, batch, .. } = *input;
    // Subnets are of the space, whatever the size of the images.
    let side = images.dim(1)?;
    let resolution = if choices.resolutions.contains(&side) { side } else { choices.resolutions[0] };
    // What this rank's mean over its images counts in the mean over all.
    let part = labels.len() as f64 / batch as f64;
    let count = stage.subnets_per_step;
    let soft_targets = match (stage.has_frozen_teacher(), teacher) {
        (false, _) => None,
        (true, Some(teacher)) => Some(soft_targets_of(teacher, images, resolution)?),
        (true, None) => {
            return Err(Error::Internal(format!(
                "stage '{}' distils (kd_ratio > 0) but there is no teacher",
                stage.name
            )));
        }
    };
    let smoothing = stage.label_smoothing.unwrap_or(config.label_smoothing);
    let targets = match input.targets {
        Some(targets) => targets.clone(),
        None => loss::smoothed_targets(labels, net.classes(), smoothing, images.device())?,
    };

    let mut report = StepReport {
        loss: 0.0,
        cross_entropy: 0.0,
        distillation: None,
        accuracy: 0.0,
        gradient_norm: 0.0,
        exchange: Exchange::default(),
        resolution: side,
        subnets: Vec::new(),
    };
    let in_place = stage.kd_ratio > 0.0 && stage.teacher == Teacher::InPlace;
    let distilled = if in_place { count - 1 } else { count };
    let subnets = (0..count).map(|index| chosen(net, input, &targets, index, resolution));
    report.subnets = subnets.collect::<Result<_>>()?;
    let trunk = net.trunk(images, &report.subnets, input.drop_path())?;
    let passes = Passes { net, input, subnets: &report.subnets, trunk: trunk.as_ref(), targets: &targets, part };
    let is_distilled = soft_targets.is_some() || (in_place && count > 1);
    let Sums { mut gradients, at_trunk, mut values, last } = passes.sum(soft_targets, in_place)?;
    if let Some(last) = last {
        report.exchange = finish_backward(net, &mut gradients, last, trunk.zip(at_trunk), ranks, part)?;
    }
    // What follows is decided by all ranks alike.
    SubnetSums::sum_over(ranks, &mut values);
    for (subnet, sums) in report.subnets.iter().zip(values) {
        let SubnetSums { loss, cross_entropy, distillation, correct, statistic } = sums;
        if !statistic.is_finite() {
            return Err(not_finite(
                input,
                "a running statistic of batch norm",
                statistic,
                std::slice::from_ref(subnet),
            ));
        }
        if !loss.is_finite() {
            return Err(not_finite(input, "the loss", loss, std::slice::from_ref(subnet)));
        }
        report.loss += loss / count as f64;
        report.cross_entropy += cross_entropy / count as f64;
        report.accuracy += correct / (batch * count) as f64;
        if is_distilled {
            *report.distillation.get_or_insert(0.0) += distillation / distilled as f64;
        }
    }
    report.gradient_norm = norm(&gradients)?;
    if !report.gradient_norm.is_finite() {
        return Err(not_finite(input, "the gradient's norm", report.gradient_norm, &report.subnets));
    }
    let scale = clip_factor(report.gradient_norm, config.clip_norm);
    optimizer.step(net.parameters(), &gradients, input.learning_rate, scale, ranks)?;
    Ok(report)
}

/// Soft labels of the largest subnet of `teacher`, whose space need not have the resolution.
fn soft_targets_of(teacher: &Supernet, images: &Tensor, resolution: usize) -> Result<Tensor> {
    let mut largest = teacher.space().largest();
    if teacher.space().resolutions.contains(&resolution) {
        largest.resolution = resolution;
    }
    loss::soft_targets(&teacher.forward(images, &largest, Mode::BatchStatistics)?)
}

/// The earlier half of the last backward pass, from what the later half found, and the trunk's, to which the other
/// subnets' gradients go; meanwhile and afterwards gradients become those of all images. Where batch norm has each
/// rank's own statistics, the running ones become their mean: they depend linearly on the batches', so this is as if
/// all had been averaged with every batch.
fn finish_backward(
    net: &Supernet,
    gradients: &mut Gradients,
    LastPass { mut tape, gradient, middle }: LastPass,
    trunk: Option<(Trunk, Tensor)>,
    ranks: &Ranks,
    part: f64,
) -> Result<Exchange> {
    let end = net.parameters().len();
    let backward = || -> Result<Gradients> {
        let mut earlier = Gradients::none(end);
        let gradient = tape.backward_to(0, gradient, &mut earlier)?;
        if let (Some((trunk, others)), Some(gradient)) = (trunk, gradient) {
            trunk.tape.backward((others + gradient)?, &mut earlier)?;
        }
        Ok(earlier)
    };
    if net.shares_batch_statistics() {
        gradients.add(backward()?)?;
        sum_over(ranks, gradients, 0..end)?;
        return Ok(Exchange { exposed_values: values(gradients, 0..end), ..Exchange::default() });
    }
    let mut running = if ranks.is_distributed() { net.running_values() } else { Vec::new() };
    running.iter_mut().for_each(|value| *value *= part as f32);
    let earlier_half = || {
        let start = Instant::now();
        (backward(), start.elapsed().as_secs_f64())
    };
    let (earlier, hiding_seconds) = sum_during(ranks, gradients, middle..end, &mut running, earlier_half)?;
    gradients.add(earlier?)?;
    sum_over(ranks, gradients, 0..middle)?;
    if ranks.is_distributed() {
        net.set_running_values(&running);
    }
    let (hidden_values, exposed_values) = (values(gradients, middle..end), values(gradients, 0..middle));
    Ok(Exchange { hidden_values, hiding_seconds, exposed_values })
}

/// Subnet `index` of the step: the only candidate, or the one with the lowest (highest, for `worst_up`) loss on the
/// step's images.
fn chosen(net: &Supernet, input: &StepInput, targets: &Tensor, index: usize, resolution: usize) -> Result<Subnet> {
    let StepInput { config, stage, choices, step, images, labels, ranks, batch, .. } = *input;
    let mut candidates = candidates_of(stage, choices, config.seed, step, index, resolution)?;
    if candidates.len() == 1 {
        return Ok(candidates.remove(0));
    }
    let mut best: Option<(f64, Subnet)> = None;
    for subnet in candidates {
        let log_probabilities = loss::log_softmax(&net.forward(images, &subnet, Mode::BatchStatistics)?)?;
        let own = scalar(&loss::cross_entropy(&log_probabilities, targets)?)?;
        let mut sum = [own * labels.len() as f64 / batch as f64];
        ranks.sum_f64(&mut sum);
        let [loss] = sum;
        let better = |other: f64| if stage.sampling == Sampling::WorstUp { loss > other } else { loss < other };
        // A loss that is not finite is chosen, so that training stops at it.
        if best.as_ref().is_none_or(|(other, _)| !loss.is_finite() || (other.is_finite() && better(*other))) {
            best = Some((loss, subnet));
        }
    }
    best.map(|(_, subnet)| subnet).ok_or_else(|| Error::Internal("a step without candidates".into()))
}

fn not_finite(input: &StepInput, what: &str, value: f64, subnets: &[Subnet]) -> Error {
    let subnets: Vec<String> = subnets.iter().map(|subnet| format!("'{subnet}'")).collect();
    let subnets = subnets.join(" or ");
    Error::NotFinite(format!(
        "stage '{}', step {}: {what} is {value} for subnet {subnets} at learning rate {}; lower learning_rate, lengthen \
         warmup_epochs or set clip_norm, or continue with --skip-nonfinite N if it is rare",
        input.stage.name, input.step, input.learning_rate
    ))
}
