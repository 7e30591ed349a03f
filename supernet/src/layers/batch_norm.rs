//! Batch norm's parameters and running statistics at full width. The normalisation itself is part of the fused ops.

use super::{Active, Initialiser, ParameterId, ParameterKind, Parameters};
use crate::ops::ChannelStatistics;
use candle_core::Result;
use std::sync::{Mutex, PoisonError};

/// Mean and variance of each channel.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Moments<T = f32> {
    /// Mean of each channel.
    pub mean: Vec<T>,
    /// Variance of each channel.
    pub variance: Vec<T>,
}

impl<T> Moments<T> {
    /// Whether both are of `channels` channels.
    pub(crate) fn fit(&self, channels: usize) -> bool {
        (self.mean.len(), self.variance.len()) == (channels, channels)
    }
}

#[derive(Debug)]
pub(crate) struct BatchNorm {
    pub name: String,
    pub weight: ParameterId,
    pub bias: ParameterId,
    /// A narrower subnet uses and updates the leading channels.
    running: Mutex<Moments>,
}

impl BatchNorm {
    pub(crate) fn new(parameters: &mut Parameters, name: String, channels: usize) -> Result<Self> {
        let weight =
            parameters.add(format!("{name}.weight"), &[channels], Initialiser::Constant(1.0), ParameterKind::Vector)?;
        let bias =
            parameters.add(format!("{name}.bias"), &[channels], Initialiser::Constant(0.0), ParameterKind::Vector)?;
        Ok(BatchNorm {
            name,
            weight,
            bias,
            running: Mutex::new(Moments { mean: vec![0.0; channels], variance: vec![1.0; channels] }),
        })
    }

    /// Active slices of scale and shift.
    pub(crate) fn active(&self, parameters: &Parameters, channels: usize) -> Vec<Active> {
        vec![parameters.leading(self.weight, channels), parameters.leading(self.bias, channels)]
    }

    /// Moves the running statistics towards a batch's, its variance made unbiased as PyTorch does.
    pub(crate) fn update(&self, batch: &ChannelStatistics, momentum: f64) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let n = batch.count as f64;
        let unbias = if batch.count > 1 { n / (n - 1.0) } else { 1.0 };
        let Moments { mean, variance } = &mut *running;
        for (running, &new) in mean.iter_mut().zip(&batch.mean) {
            *running = ((1.0 - momentum) * f64::from(*running) + momentum * f64::from(new)) as f32;
        }
        for (running, &new) in variance.iter_mut().zip(&batch.variance) {
            *running = ((1.0 - momentum) * f64::from(*running) + momentum * unbias * f64::from(new)) as f32;
        }
    }

    /// Running mean and variance, full width.
    pub(crate) fn running(&self) -> Moments {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_running(&self, running: Moments) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = running;
    }
}
