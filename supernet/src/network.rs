//! The weight-sharing network.

use crate::Result;
use crate::space::{SearchSpace, Subnet};
use candle_core::{DType, Device, Tensor, Var};
use rand::rngs::StdRng;
use std::collections::HashMap;

/// One trainable tensor.
pub struct Parameter {
    /// Unique name, as in checkpoints.
    pub name: String,
    /// The values.
    pub var: Var,
    /// Whether weight decay applies (not on batch norm and biases).
    pub decay: bool,
}

/// How batch norm and dropout behave in a forward pass.
pub enum Mode<'a> {
    /// Batch statistics, which also move the running statistics; dropout at this rate; gradients are kept.
    Train {
        /// Dropout rate before the classifier.
        dropout: f64,
        /// Generator of the dropout mask.
        rng: &'a mut StdRng,
    },
    /// Batch statistics, nothing is changed or kept for gradients: the teacher.
    BatchStatistics,
    /// Batch statistics, averaged into the collector: batch-norm recalibration.
    Collect(&'a mut StatisticsCollector),
    /// The given statistics.
    Evaluate(&'a Statistics),
}

/// Mean and variance of every batch norm of one subnet, in the order of the layers.
#[derive(Debug, Clone)]
pub struct Statistics {
    /// `(mean, variance)` of each batch norm, active channels only.
    pub layers: Vec<(Vec<f32>, Vec<f32>)>,
}

/// Averages batch means and biased batch variances over images.
#[derive(Debug, Default)]
pub struct StatisticsCollector {
    _layers: Vec<(Vec<f64>, Vec<f64>)>,
}

impl StatisticsCollector {
    /// The averages.
    pub fn finish(self) -> Statistics {
        todo!()
    }
}

/// The weight-sharing network.
pub struct Supernet {}

impl Supernet {
    /// A new network with seeded weights, f32 on the CPU, batch-norm momentum 0.1 and eps 1e-5.
    pub fn new(_space: &SearchSpace, _classes: usize, _seed: u64) -> Result<Self> {
        todo!()
    }
    /// The same with another number type or device.
    pub fn on_device(
        _space: &SearchSpace,
        _classes: usize,
        _seed: u64,
        _dtype: DType,
        _device: &Device,
    ) -> Result<Self> {
        todo!()
    }
    /// Its space.
    pub fn space(&self) -> &SearchSpace {
        todo!()
    }
    /// Number of classes.
    pub fn classes(&self) -> usize {
        todo!()
    }
    /// Where its tensors live.
    pub fn device(&self) -> &Device {
        todo!()
    }
    /// All trainable tensors in a fixed order.
    pub fn parameters(&self) -> &[Parameter] {
        todo!()
    }
    /// How far a training step moves the running statistics (default 0.1).
    pub fn set_batch_norm_momentum(&mut self, _momentum: f64) {}
    /// Logits `[batch, classes]` of `subnet` for `images` `[batch, r, r, 3]`. The images' size need not equal the subnet's resolution.
    pub fn forward(&self, _images: &Tensor, _subnet: &Subnet, _mode: Mode) -> Result<Tensor> {
        todo!()
    }
    /// Running statistics of the subnet's layers (as training left them; recalibrate before you trust them).
    pub fn running_statistics(&self, _subnet: &Subnet) -> Result<Statistics> {
        todo!()
    }
    /// Parameters and running statistics by name (deep copies).
    pub fn state(&self) -> Result<HashMap<String, Tensor>> {
        todo!()
    }
    /// Sets parameters and running statistics; every tensor must be present with its shape.
    pub fn load_state(&self, _state: &HashMap<String, Tensor>) -> Result<()> {
        todo!()
    }
    /// Sorts the middle channels of every elastic block by importance before width stage `stage` (1, 2, ...).
    /// The largest subnet's function does not change.
    pub fn sort_channels(&self, _stage: usize) -> Result<()> {
        todo!()
    }
}
