//! One step of progressive shrinking. A step computes; the caller logs.

use super::config::TrainConfig;
use super::gradients::{Gradients, clip_factor};
use super::loss;
use super::optimizer::Sgd;
use super::sampling::candidates_of;
use super::stage::{Sampling, StageConfig, Teacher};
use crate::network::{Mode, Statistics, Supernet};
use crate::network_seam::{Seam, Trunk};
use crate::ranks::Ranks;
use crate::seed::{Purpose, generator};
use crate::{Error, Result, SearchSpace, Subnet};
use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor};
use std::time::Instant;

/// What decides a step, besides weights and images.
pub struct StepInput<'a> {
    /// The configuration.
    pub config: &'a TrainConfig,
    /// The stage.
    pub stage: &'a StageConfig,
    /// The space narrowed to what the stage may draw ([`StageConfig::choices`]).
    pub choices: &'a SearchSpace,
    /// Number of the step since the start of training, from 0; with the seed it decides what is drawn.
    pub step: usize,
    /// Learning rate.
    pub learning_rate: f64,
    /// Images of this process `[own, r, r, 3]`: its [part](Ranks::part) of the step's.
    pub images: &'a Tensor,
    /// Class of each image.
    pub labels: &'a [u32],
    /// The processes that do the step together.
    pub ranks: &'a Ranks,
    /// Images of all of them.
    pub batch: usize,
}

/// What a step computed; means over its subnets (of the distillation: over those that have a teacher).
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// `cross_entropy + kd_ratio x distillation`.
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

/// What several ranks exchange in a step: two buckets, of the parameters of the later and of the earlier half of the network. The gradients of the
/// later half are final when backward of the last subnet is at its middle, and go their way while it goes on.
///
/// In one bucket, all after the computation, if batch norm shares its statistics: backward then sums over the ranks itself, and its many small
/// sums, each of which all wait for, would stand behind a large one.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Exchange {
    /// Gradient values that are summed while the computation goes on.
    pub hidden_values: usize,
    /// Seconds of this rank's computation meanwhile.
    pub hiding_seconds: f64,
    /// Gradient values that are summed after it.
    pub exposed_values: usize,
}

/// Trains `net` by one step: the teacher's soft labels (if the stage distils), forward and backward passes of the sampled
/// subnets with summed gradients, one optimizer step (paper §3.3, algorithm 1).
///
/// Several ranks do it together, each on its part of the images: the gradient is that of the mean loss over all images, and afterwards weights
/// and running statistics are the same bits on each rank.
///
/// # Errors
/// [`Error::NotFinite`] with stage, step and subnet if a loss, the gradient or a running statistic is NaN or infinite, before
/// any weight changes (running statistics have moved by then);
/// a stage that distils without a teacher; a failed tensor operation.
pub fn train_step(
    net: &Supernet,
    teacher: Option<&Supernet>,
    optimizer: &mut Sgd,
    input: &StepInput,
) -> Result<StepReport> {
    // On one of rayon's threads, as a forward pass is: the backward passes have as many of candle's operations.
    rayon::scope(|_| step_on_this_thread(net, teacher, optimizer, input))
}

fn step_on_this_thread(
    net: &Supernet,
    teacher: Option<&Supernet>,
    optimizer: &mut Sgd,
    input: &StepInput,
) -> Result<StepReport> {
    let StepInput { config, stage, step, images, labels, ranks, batch, .. } = *input;
    let resolution = images.dim(1)?;
    // What this rank's mean over its images counts in the mean over all.
    let part = labels.len() as f64 / batch as f64;
    let count = stage.subnets_per_step;
    let mut soft_targets = match (stage.has_frozen_teacher(), teacher) {
        (false, _) => None,
        (true, Some(teacher)) => {
            let largest = Subnet { resolution, ..teacher.space().largest() };
            Some(loss::soft_targets(&teacher.forward(images, &largest, Mode::BatchStatistics)?)?)
        }
        (true, None) => {
            return Err(Error::Config(format!(
                "stage '{}' distils (kd_ratio > 0) but there is no teacher",
                stage.name
            )));
        }
    };
    let targets = loss::smoothed_targets(labels, net.classes(), config.label_smoothing, images.device())?;

    let mut gradients = Gradients::none(net.parameters().len());
    let mut report = StepReport {
        loss: 0.0,
        cross_entropy: 0.0,
        distillation: None,
        accuracy: 0.0,
        gradient_norm: 0.0,
        exchange: Exchange::default(),
        resolution,
        subnets: Vec::new(),
    };
    let mut sums: Vec<[f64; 5]> = Vec::with_capacity(count);
    let in_place = stage.kd_ratio > 0.0 && stage.teacher == Teacher::InPlace;
    let distilled = if in_place { count - 1 } else { count };
    let subnets = (0..count).map(|index| chosen(net, input, &targets, index, resolution));
    report.subnets = subnets.collect::<Result<_>>()?;
    let mut trunk = net.trunk(images, &report.subnets)?;
    let mut at_trunk: Option<Tensor> = None;
    for (index, subnet) in report.subnets.iter().enumerate() {
        let mut rng = generator(config.seed, Purpose::Dropout, &[step as u64, index as u64]);
        let mode = Mode::Train { dropout: config.dropout, rng: &mut rng, first: ranks.part(batch).start };
        let (logits, halves) = match index + 1 == count {
            false => (net.forward_from(images, trunk.as_ref(), subnet, mode)?, None),
            true => {
                let (logits, seam, middle) = net.forward_in_halves(images, trunk.as_ref(), subnet, mode)?;
                (logits, Some((seam, middle)))
            }
        };
        let log_probabilities = loss::log_softmax(&logits)?;
        let cross_entropy = loss::cross_entropy(&log_probabilities, &targets)?;
        let distillation =
            soft_targets.as_ref().map(|soft| loss::cross_entropy(&log_probabilities, soft)).transpose()?;
        let mut total = match &distillation {
            None => cross_entropy.clone(),
            Some(distillation) => (&cross_entropy + (distillation * stage.kd_ratio)?)?,
        };
        if distillation.is_some() {
            report.distillation = Some(0.0);
        }
        let taught = distillation.as_ref().map_or(Ok(0.0), scalar)?;
        // Activations can overflow and still leave a finite loss: divided by an infinite deviation they are zero.
        let statistic = first_not_finite(&net.running_statistics(subnet)?).unwrap_or(0.0);
        let correct = loss::correct(&logits, labels)? as f64;
        sums.push([part * scalar(&total)?, part * scalar(&cross_entropy)?, part * taught, correct, statistic]);
        if ranks.are_many() {
            total = (total * part)?;
        }
        let mut found = total.backward()?;
        gradients.add(net.parameters(), &mut found)?;
        match halves {
            Some(halves) => {
                let trunk = trunk.take().zip(at_trunk.take());
                report.exchange = finish_backward(net, &mut gradients, halves, found, trunk, ranks, part)?;
            }
            None => {
                if let Some(trunk) = &trunk {
                    let own = trunk.seam.gradient(&mut found)?;
                    at_trunk = Some(at_trunk.map_or(Ok(own.clone()), |sum| sum + own)?);
                }
            }
        }
        if in_place && index == 0 {
            soft_targets = Some(loss::soft_targets(&logits.detach())?);
        }
    }
    // What follows is decided by all ranks alike.
    ranks.sum_f64(sums.as_flattened_mut());
    for (subnet, [value, hard, taught, correct, statistic]) in report.subnets.iter().zip(sums) {
        if !statistic.is_finite() {
            return Err(not_finite(
                input,
                "a running statistic of batch norm",
                statistic,
                std::slice::from_ref(subnet),
            ));
        }
        if !value.is_finite() {
            return Err(not_finite(input, "the loss", value, std::slice::from_ref(subnet)));
        }
        report.loss += value / count as f64;
        report.cross_entropy += hard / count as f64;
        report.accuracy += correct / (batch * count) as f64;
        if let Some(distillation) = &mut report.distillation {
            *distillation += taught / distilled as f64;
        }
    }
    report.gradient_norm = gradients.norm()?;
    if !report.gradient_norm.is_finite() {
        return Err(not_finite(input, "the gradient's norm", report.gradient_norm, &report.subnets));
    }
    let scale = clip_factor(report.gradient_norm, config.clip_norm);
    optimizer.step(net.parameters(), &gradients, input.learning_rate, scale)?;
    Ok(report)
}

/// The earlier half of the last backward pass, from what the later half found, and the trunk's, to which the other subnets' gradients go; meanwhile
/// and afterwards gradients become those of all images.
/// Where batch norm has each rank's own statistics, the running ones become their mean: they depend linearly on the batches', so this is as if all
/// had been averaged with every batch.
fn finish_backward(
    net: &Supernet,
    gradients: &mut Gradients,
    (seam, middle): (Seam, usize),
    mut later: GradStore,
    trunk: Option<(Trunk, Tensor)>,
    ranks: &Ranks,
    part: f64,
) -> Result<Exchange> {
    let end = net.parameters().len();
    let backward = || -> Result<Vec<GradStore>> {
        let gradient = seam.gradient(&mut later)?;
        let mut earlier = seam.backward(&gradient)?;
        let Some((trunk, others)) = trunk else { return Ok(vec![earlier]) };
        let gradient = (others + trunk.seam.gradient(&mut earlier)?)?;
        Ok(vec![earlier, trunk.seam.backward(&gradient)?])
    };
    if net.shares_batch_statistics() {
        for mut found in backward()? {
            gradients.add(net.parameters(), &mut found)?;
        }
        gradients.sum_over(ranks, 0..end)?;
        return Ok(Exchange { exposed_values: gradients.values(0..end), ..Exchange::default() });
    }
    let mut running = if ranks.are_many() { net.running_values() } else { Vec::new() };
    running.iter_mut().for_each(|value| *value *= part as f32);
    let earlier_half = || {
        let start = Instant::now();
        (backward(), start.elapsed().as_secs_f64())
    };
    let (earlier, hiding_seconds) = gradients.sum_during(ranks, middle..end, &mut running, earlier_half)?;
    for mut found in earlier? {
        gradients.add(net.parameters(), &mut found)?;
    }
    gradients.sum_over(ranks, 0..middle)?;
    if ranks.are_many() {
        net.set_running_values(&running);
    }
    let (hidden_values, exposed_values) = (gradients.values(middle..end), gradients.values(0..middle));
    Ok(Exchange { hidden_values, hiding_seconds, exposed_values })
}

/// Subnet `index` of the step: the only candidate, or the one with the lowest (highest, for `worst_up`) loss on the step's images.
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
    best.map(|(_, subnet)| subnet).ok_or_else(|| Error::Config("a step without candidates".into()))
}

fn scalar(tensor: &Tensor) -> Result<f64> {
    Ok(f64::from(tensor.to_dtype(DType::F32)?.to_scalar::<f32>()?))
}

fn first_not_finite(statistics: &Statistics) -> Option<f64> {
    let values = statistics.layers.iter().flat_map(|(mean, variance)| mean.iter().chain(variance));
    values.copied().find(|value| !value.is_finite()).map(f64::from)
}

fn not_finite(input: &StepInput, what: &str, value: f64, subnets: &[Subnet]) -> Error {
    let subnets: Vec<String> = subnets.iter().map(|subnet| format!("'{subnet}'")).collect();
    let subnets = subnets.join(" or ");
    Error::NotFinite(format!(
        "stage '{}', step {}: {what} is {value} for subnet {subnets} at learning rate {}; lower learning_rate, lengthen \
         warmup_epochs or set clip_norm, or go on with --skip-nonfinite N if it is rare",
        input.stage.name, input.step, input.learning_rate
    ))
}
