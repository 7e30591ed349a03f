//! The learning rate of a step: linear warm-up, then a fall to zero, in each stage or over all stages.

use super::checks::{LARGE, fail};
use crate::Result;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// One learning-rate schedule over all stages, in place of one in each stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Epochs of linear warm-up at the start of training (default 0).
    #[serde(default)]
    pub warmup_epochs: f64,
    /// How the rate falls from the peak to zero at the last step of the last stage (default: cosine).
    #[serde(default)]
    pub decay: Decay,
}

/// How a learning rate falls from its peak to zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Half a period of a cosine.
    #[default]
    Cosine,
    /// A straight line.
    Linear,
}

impl Schedule {
    /// Checks every value, for a training of `epochs`.
    pub(super) fn validate(&self, epochs: f64) -> Result<()> {
        let Schedule { learning_rate, warmup_epochs, .. } = *self;
        if !(learning_rate > 0.0 && learning_rate <= LARGE) {
            return fail(format!("schedule.learning_rate = {learning_rate} must be above 0 and at most 1e9"));
        }
        if !(0.0..=epochs).contains(&warmup_epochs) {
            return fail(format!(
                "schedule.warmup_epochs = {warmup_epochs} must lie between 0 and the {epochs} epochs of all stages"
            ));
        }
        Ok(())
    }
}

/// Learning rate of step `step` (from 0) of `steps`, of which the first `warmup` rise linearly to `peak`.
///
/// The rise ends with `peak` at its last step; the fall starts at `peak` and would be zero at step `steps`. A warm-up
/// as long as the schedule is all rise.
pub fn learning_rate(decay: Decay, peak: f64, step: usize, steps: usize, warmup: usize) -> f64 {
    if step < warmup {
        return peak * (step + 1) as f64 / warmup as f64;
    }
    if step >= steps {
        return 0.0;
    }
    let done = (step - warmup) as f64 / (steps - warmup) as f64;
    match decay {
        Decay::Cosine => 0.5 * peak * (1.0 + (PI * done).cos()),
        Decay::Linear => peak * (1.0 - done),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_linearly_then_falls_to_zero() {
        let rates: Vec<f64> = (0..10).map(|s| learning_rate(Decay::Cosine, 0.8, s, 10, 4)).collect();
        for (rate, expected) in rates.iter().zip([0.2, 0.4, 0.6, 0.8, 0.8]) {
            assert!((rate - expected).abs() < 1e-12, "{rates:?}");
        }
        assert!(rates[4..].windows(2).all(|w| w[1] < w[0]), "{rates:?}");
        // Half of the cosine is done three steps after the warm-up.
        assert!((rates[7] - 0.4).abs() < 1e-12);
        assert_eq!(learning_rate(Decay::Cosine, 0.8, 10, 10, 4), 0.0);
        let linear: Vec<f64> = (0..=8).map(|s| learning_rate(Decay::Linear, 0.8, s, 8, 4)).collect();
        for (rate, expected) in linear.iter().zip([0.2, 0.4, 0.6, 0.8, 0.8, 0.6, 0.4, 0.2, 0.0]) {
            assert!((rate - expected).abs() < 1e-12, "{linear:?}");
        }
    }

    #[test]
    fn edges() {
        for decay in [Decay::Cosine, Decay::Linear] {
            assert_eq!(learning_rate(decay, 1.0, 0, 5, 0), 1.0);
            assert_eq!(learning_rate(decay, 1.0, 4, 5, 5), 1.0);
            assert_eq!(learning_rate(decay, 1.0, 0, 1, 0), 1.0);
        }
    }
}
