//! Fine-tuning one subnet: a few epochs on its own weights, with the supernet's largest subnet as teacher.

use super::checks::LARGE;
use super::class_balance::{class_weights, order};
use super::config::TrainConfig;
use super::gradients::{Gradients, clip_factor, norm};
use super::loss;
use super::progress::Control;
use super::schedule::{Decay, learning_rate};
use super::validation::image_tensor;
use crate::data::{Dataset, Prefetch};
use crate::network::{Mode, Supernet, Tape};
use crate::ranks::Ranks;
use crate::seed::{Stream, generator};
use crate::{Error, Result, Subnet};
use candle_core::Var;

/// How long and how fast.
#[derive(Debug, Clone, PartialEq)]
pub struct FinetuneOptions {
    /// Epochs over the training images.
    pub epochs: f64,
    /// Learning rate at the start; cosine to zero.
    pub learning_rate: f64,
    /// Weight of the distillation loss; 0 for none.
    pub kd_ratio: f64,
}

/// How far fine-tuning is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FinetuneProgress {
    /// Steps done.
    pub step: usize,
    /// All steps.
    pub steps: usize,
    /// Loss of the last step.
    pub loss: f64,
}

/// Trains only `subnet` of `net`, a copy of the supernet, at its own resolution; batch, augmentation, momentum, weight
/// decay, label smoothing, dropout, clipping and seed are those of `config`. Other subnets of the copy are useless
/// afterwards.
///
/// # Errors
/// Impossible options, an interruption by `observer`, a loss that is not finite, images that cannot be read.
pub fn finetune(
    net: &Supernet,
    teacher: &Supernet,
    subnet: &Subnet,
    data: &Dataset,
    config: &TrainConfig,
    options: &FinetuneOptions,
    observer: &mut dyn FnMut(FinetuneProgress) -> Control,
) -> Result<()> {
    net.space().check(subnet)?;
    let positive = |v: f64| v > 0.0 && v.is_finite();
    if !positive(options.epochs) || !positive(options.learning_rate) {
        return Err(Error::Config(format!(
            "fine-tuning: epochs {} and learning rate {} must be above 0",
            options.epochs, options.learning_rate
        )));
    }
    if !(0.0..=LARGE).contains(&options.kd_ratio) {
        return Err(Error::Config(format!("fine-tuning: kd_ratio {} must lie between 0 and 1e9", options.kd_ratio)));
    }
    let class_weights = class_weights(config.class_balance.as_ref(), data)?;
    let count = data.train.len();
    let batch = config.batch.clamp(1, count.max(1));
    let steps_per_epoch = (count / batch).max(1);
    let steps = ((options.epochs * steps_per_epoch as f64).round() as usize).max(1);
    let mut optimizer = config.optimizer(net.parameters());
    let batches = {
        let (data, augmentation, seed, resolution) =
            (data.clone(), config.augmentation.clone(), config.seed, subnet.resolution);
        // Epochs beyond those of training, so that orders and augmentations are new.
        let first_epoch = config.total_epochs().ceil() as usize + config.stages.len();
        let (balance, classes) = (config.class_balance.clone(), net.classes());
        let mut known: Option<(u64, Vec<usize>)> = None;
        Prefetch::new(steps, 3, move |step| {
            let epoch = (first_epoch + step / steps_per_epoch) as u64;
            let images = match &known {
                Some((of, images)) if *of == epoch => images,
                _ => &known.insert((epoch, order(balance.as_ref(), &data.train, classes, seed, epoch))).1,
            };
            let first = step % steps_per_epoch * batch;
            data.training_batch(&images[first..first + batch], 0..batch, resolution, &augmentation, seed, epoch)
        })
    };
    for (step, loaded) in batches.enumerate() {
        let loaded = loaded?;
        let (classes, smoothing) = (net.classes(), config.label_smoothing);
        let targets = match loss::own_targets(&loaded, &class_weights, classes, smoothing, net.device())? {
            Some(targets) => targets,
            None => loss::smoothed_targets(&loaded.labels, classes, smoothing, net.device())?,
        };
        let images = image_tensor(loaded.images, loaded.labels.len(), loaded.resolution, net)?;
        let mut rng = generator(config.seed, Stream::FinetuneDropout, &[step as u64]);
        let mut tape = Tape::default();
        let mode = Mode::Train { dropout: config.dropout, rng: &mut rng, first: 0, drop_path: None, tape: &mut tape };
        let logits = Var::from_tensor(&net.forward(&images, subnet, mode)?)?;
        let log_probabilities = loss::log_softmax(&logits)?;
        let mut total = loss::cross_entropy(&log_probabilities, &targets)?;
        if options.kd_ratio > 0.0 {
            let largest = Subnet { resolution: subnet.resolution, ..teacher.space().largest() };
            let soft = loss::soft_targets(&teacher.forward(&images, &largest, Mode::BatchStatistics)?)?;
            total = (total + (loss::cross_entropy(&log_probabilities, &soft)? * options.kd_ratio)?)?;
        }
        let value = f64::from(total.to_dtype(candle_core::DType::F32)?.to_scalar::<f32>()?);
        let finite = |what: &str, value: f64| match value.is_finite() {
            true => Ok(value),
            false => Err(Error::NotFinite(format!(
                "fine-tuning, step {step}: {what} is {value} for subnet '{subnet}'; lower the learning rate {}",
                options.learning_rate
            ))),
        };
        finite("the loss", value)?;
        let mut gradients = Gradients::none(net.parameters().len());
        tape.backward(loss::gradient_at(&logits, &total)?, &mut gradients)?;
        let scale = clip_factor(finite("the gradient's norm", norm(&gradients)?)?, config.clip_norm);
        let rate = learning_rate(Decay::Cosine, options.learning_rate, step, steps, 0);
        optimizer.step(net.parameters(), &gradients, rate, scale, &Ranks::alone())?;
        if observer(FinetuneProgress { step: step + 1, steps, loss: value }) == Control::Stop {
            return Err(Error::Interrupted);
        }
    }
    Ok(())
}
