//! Fine-tuning with quantisation in the loop.
//!
//! The network with batch norm folded in is trained while its weights and values are rounded as the integers will be,
//! with the straight-through estimator ([`grid`]). Learned are weights, biases, the scale of each channel's weights and
//! of each value; zero points, and the scale of the images, stay as calibrated. The f32 network is the teacher: the
//! loss is the Kullback-Leibler divergence from its class probabilities, so that no labels are needed.
//!
//! | file | concern |
//! | --- | --- |
//! | `grid` | rounding with gradients |
//! | `parameter` | learned numbers and their optimizer |
//! | `student` | forward and backward pass, and the integers |

mod grid;
mod parameter;
mod student;
#[cfg(test)]
mod tests;

use super::calibrate::{Quantised, engine_values};
use super::forward::Folded;
use super::sensitivity::{IMAGES, error};
use crate::model::{Finetuned, ModelConfig, Quantisation};
use crate::runtime::{StaticNetwork, Weights};
use crate::{Error, Result};
use ofa_supernet::data::{Augmentation, Dataset, Prefetch, epoch_order};
use ofa_supernet::train::Decay;
use ofa_supernet::train::finetune::FinetuneProgress;
use ofa_supernet::train::schedule::learning_rate;
use std::ops::ControlFlow;
use student::Student;

/// Images per step. Every node's output is in memory until the backward pass.
const BATCH: usize = 32;

/// How long, how fast, and on which images.
#[derive(Debug, Clone, PartialEq)]
pub struct FinetuneOptions {
    /// Epochs over the training images.
    pub epochs: f64,
    /// Share of its size by which a number moves per step, at the start; cosine to zero.
    pub learning_rate: f64,
    /// Random changes of the training images.
    pub augmentation: Augmentation,
    /// Seed of the order of the images and of their changes.
    pub seed: u64,
}

impl FinetuneOptions {
    /// Learning rate for every network, since it is relative to the size of what is learned.
    pub const LEARNING_RATE: f64 = 1e-3;
}

/// Fine-tunes `start`, whose f32 network has `weights`, on the training images of `data`, which are in the
/// normalisation of the model. `images` are those that it was calibrated on.
///
/// # Errors
/// Impossible options, fewer images than a calibration takes, images that cannot be read, a loss that is not finite, or
/// an interruption by `observer`.
pub fn finetune(
    start: &Quantised,
    weights: &Weights,
    images: &[f32],
    data: &Dataset,
    options: &FinetuneOptions,
    observer: &mut dyn FnMut(FinetuneProgress) -> ControlFlow<()>,
) -> Result<Quantised> {
    let positive = |value: f64| value > 0.0 && value.is_finite();
    if !positive(options.epochs) || !positive(options.learning_rate) || data.train.is_empty() {
        return Err(Error::Input(format!(
            "fine-tuning needs training images, and epochs {} and learning rate {} above 0",
            options.epochs, options.learning_rate
        )));
    }
    let spec = &start.network.spec;
    let Some(quantisation) = &start.config.quantisation else {
        return Err(Error::Network("only int8 models are fine-tuned with quantisation in the loop".into()));
    };
    let Some(compared) = images.get(..IMAGES * spec.resolution * spec.resolution * 3) else {
        return Err(Error::Input("fine-tuning needs the images that the model was calibrated on".into()));
    };
    let mut teacher = StaticNetwork::new(spec, weights)?;
    let mut folded = Folded::new(spec, weights);
    let mut student = Student::new(&folded, &start.network, quantisation.weight_bits);
    let batch = BATCH.min(data.train.len());
    let steps_per_epoch = data.train.len() / batch;
    let steps = ((options.epochs * steps_per_epoch as f64).round() as usize).max(1);
    for (step, loaded) in batches(data, spec.resolution, options, batch, steps).enumerate() {
        let images = loaded?;
        let expected = teacher.run(&images, batch)?.to_vec();
        let pass = student.forward(images, batch)?;
        if step == 0 {
            student.set_sizes_of_biases(&pass);
        }
        let (loss, gradient) = divergence(pass.logits(), &expected, spec.classes);
        if !loss.is_finite() {
            let rate = options.learning_rate;
            let message = format!("fine-tuning, step {step}: the loss is {loss}; lower the learning rate {rate}");
            return Err(ofa_supernet::Error::NotFinite(message).into());
        }
        student.backward(pass, gradient);
        let rate = learning_rate(Decay::Cosine, options.learning_rate, step, steps, 0);
        student.step(rate, step as i32 + 1);
        if observer(FinetuneProgress { step: step + 1, steps, loss }).is_break() {
            return Err(ofa_supernet::Error::Interrupted.into());
        }
    }
    let network = student.quantised(&start.network, &quantisation.keep_f32);
    network.check()?;
    let sensitivity = error(&folded, &network, compared)?;
    let layers = student.weights();
    folded.layers = layers;
    let how = Finetuned { epochs: options.epochs, learning_rate: options.learning_rate };
    let quantisation = Quantisation {
        values: network.values.clone(),
        engine_values: engine_values(&folded, images, &network.values, quantisation.engine)?,
        finetuned: Some(how),
        ..quantisation.clone()
    };
    let config = ModelConfig { quantisation: Some(quantisation), ..start.config.clone() };
    Ok(Quantised { config, network, sensitivity })
}

/// The training images of each step.
fn batches(
    data: &Dataset,
    resolution: usize,
    options: &FinetuneOptions,
    batch: usize,
    steps: usize,
) -> Prefetch<Vec<f32>> {
    let (data, augmentation, seed) = (data.clone(), options.augmentation.clone(), options.seed);
    let steps_per_epoch = data.train.len() / batch;
    let mut known: Option<(usize, Vec<usize>)> = None;
    Prefetch::new(steps, 3, move |step| {
        let epoch = step / steps_per_epoch;
        let order = match &known {
            Some((of, order)) if *of == epoch => order,
            _ => &known.insert((epoch, epoch_order(data.train.len(), seed, epoch as u64))).1,
        };
        let indices = &order[step % steps_per_epoch * batch..][..batch];
        Ok(data.training_batch(indices, 0..batch, resolution, &augmentation, seed, epoch as u64)?.images)
    })
}

/// Mean over the images of the Kullback-Leibler divergence of the predictions from those of the `teacher`, and its
/// gradient at the logits.
fn divergence(logits: &[f32], teacher: &[f32], classes: usize) -> (f64, Vec<f32>) {
    let log_softmax = |logits: &[f32]| -> Vec<f64> {
        let largest = logits.iter().fold(f32::NEG_INFINITY, |largest, &logit| largest.max(logit));
        let shifted = logits.iter().map(|logit| f64::from(logit - largest));
        let sum: f64 = shifted.clone().map(f64::exp).sum();
        shifted.map(|logit| logit - sum.ln()).collect()
    };
    let (images, mut loss) = ((logits.len() / classes) as f64, 0.0);
    let mut gradient = Vec::with_capacity(logits.len());
    for (logits, teacher) in logits.chunks_exact(classes).zip(teacher.chunks_exact(classes)) {
        for (log_q, log_p) in log_softmax(logits).into_iter().zip(log_softmax(teacher)) {
            loss += log_p.exp() * (log_p - log_q) / images;
            gradient.push(((log_q.exp() - log_p.exp()) / images) as f32);
        }
    }
    (loss, gradient)
}
