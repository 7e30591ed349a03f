//! Where a model's time goes, layer by layer.

use super::BenchOptions;
use crate::latency::{measure, median, milliseconds};
use crate::{Error, Model, Result};
use ofa_supernet::ops::Activation;
use ofa_supernet::ops::inference::Pointwise;
use ofa_supernet::ops::inference::int8::{self, Affine, Int8Weights, Target};
use ofa_supernet::seed::{Stream, generator};
use rand::Rng;
use serde::Serialize;
use std::time::Instant;

/// Time of one layer, or of one operation between layers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerTime {
    /// Name of the layer's tensors, or the operation.
    pub name: String,
    /// Shapes.
    pub shape: String,
    /// Multiply-accumulates of the batch.
    pub macs: u64,
    /// Median time in milliseconds.
    pub ms: f64,
    /// Time of as many multiply-accumulates in a large product whose operands are in the caches.
    pub floor_ms: f64,
}

/// Times of the layers of `model`, at the first number of threads and batch of `options`. Layers run in their network,
/// so that each finds the caches as the one before leaves them.
///
/// # Errors
/// Impossible options.
pub fn layers(model: &mut Model, options: &BenchOptions) -> Result<Vec<LayerTime>> {
    let (threads, batch) =
        (options.threads.first().copied().unwrap_or(1), options.batches.first().copied().unwrap_or(1));
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| Error::Measurement(format!("{threads} threads cannot be started: {e}")))?;
    pool.install(|| {
        let network = model.network();
        let mut rng = generator(0, Stream::RandomImages, &[]);
        let values = batch * network.spec().resolution * network.spec().resolution * 3;
        let images: Vec<f32> = (0..values).map(|_| rng.random_range(-2.0..2.0)).collect();
        let steps = network.steps();
        let (mut samples, mut passes) = (vec![Vec::new(); steps.len()], 0);
        let mut times = Vec::new();
        measure(options.warmup, &options.budget, || {
            network.run_steps(&images, batch, &mut times)?;
            passes += 1;
            if passes > options.warmup {
                samples.iter_mut().zip(&times).for_each(|(samples, time)| samples.push(*time));
            }
            Ok(())
        })?;
        let rate = multiply_accumulates_per_ms(network.is_quantised());
        let row = |(step, samples): (crate::runtime::StepInfo, Vec<f64>)| {
            let macs = step.macs * batch as u64;
            let ms = median(&samples).unwrap_or(0.0);
            LayerTime { name: step.name, shape: step.shape, macs, ms, floor_ms: macs as f64 / rate }
        };
        Ok(steps.into_iter().zip(samples).map(row).collect())
    })
}

/// The best rate of a product of matrices that stay in the caches, with the threads of the caller's pool.
fn multiply_accumulates_per_ms(integers: bool) -> f64 {
    let (rows, inputs, outputs) = (384, 256, 192);
    let best = |run: &mut dyn FnMut()| {
        let time = |_| {
            let start = Instant::now();
            run();
            milliseconds(start.elapsed())
        };
        let best = (0..100).map(time).fold(f64::INFINITY, f64::min);
        (rows * inputs * outputs) as f64 / best.max(1e-9)
    };
    if integers {
        let (weight, bias, multipliers) = (vec![1; inputs * outputs], vec![0; outputs], vec![1e-4; outputs]);
        let weights = Int8Weights { weight: &weight, bias: &bias, multipliers: &multipliers, zero_point: 0 };
        let layer = int8::Pointwise::new(weights, inputs);
        let (input, mut output) = (vec![1; rows * inputs], vec![0; rows * outputs]);
        let affine = Affine { scale: 0.01, zero_point: 0 };
        best(&mut || {
            let target = Target::Bytes(&mut output, affine);
            layer.run(&input, 1, rows, Activation::Identity, None, None, target);
        })
    } else {
        let layer = Pointwise::new(&vec![1.0; inputs * outputs], &vec![0.0; outputs], inputs, outputs);
        let (input, mut output) = (vec![1.0; rows * inputs], vec![0.0; rows * outputs]);
        best(&mut || layer.run(&input, 1, rows, Activation::Identity, None, None, &mut output))
    }
}
