//! Who teaches subnets, and how they learn from a teacher.

use super::checks::LARGE;
use serde::{Deserialize, Serialize};

/// Whose soft labels a stage distils.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Teacher {
    /// The network as it stood before the first stage that distils from it (Once-for-All, §3.3).
    #[default]
    Frozen,
    /// The largest subnet of the same step, which itself learns only from the labels (BigNAS, §3.1: in-place
    /// distillation). It costs no forward pass of its own.
    InPlace,
}

/// How a subnet with a teacher learns: `ramp (labels x cross_entropy + kd_ratio x distillation)`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Taught {
    /// Weight of the cross-entropy with the labels (default 1; 0: the teacher only).
    pub labels: f64,
    /// Epochs at the stage's start in which the loss of these subnets rises linearly from zero (default 0).
    pub ramp_epochs: f64,
    /// What compares a subnet with its teacher (default: cross-entropy with the teacher's softmax).
    pub divergence: Divergence,
}

impl Default for Taught {
    fn default() -> Self {
        Taught { labels: 1.0, ramp_epochs: 0.0, divergence: Divergence::default() }
    }
}

/// Distance of a subnet's predictions from its teacher's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Divergence {
    /// Cross-entropy with the teacher's softmax (Hinton et al. 2015).
    #[default]
    CrossEntropy,
    /// For each image the larger of two alpha-divergences, one of which punishes a probability that is too low and one
    /// that is too high (AlphaNet: Wang et al., ICML 2021).
    Alpha,
}

impl Taught {
    /// Checks every value for a stage of `epochs` with this weight of distillation and this teacher.
    pub(super) fn validate(&self, kd_ratio: f64, teacher: Teacher, epochs: f64) -> Result<(), String> {
        let Taught { labels, ramp_epochs, .. } = *self;
        if kd_ratio == 0.0 && *self != Taught::default() {
            return Err("taught is for subnets with a teacher; set kd_ratio above 0, or leave it out".into());
        }
        if !(0.0..=LARGE).contains(&labels) {
            return Err(format!("taught.labels = {labels} must lie between 0 and {LARGE}"));
        }
        if !(0.0..=epochs).contains(&ramp_epochs) {
            return Err(format!("taught.ramp_epochs = {ramp_epochs} must lie between 0 and epochs = {epochs}"));
        }
        if ramp_epochs > 0.0 && teacher == Teacher::Frozen {
            return Err(
                "taught.ramp_epochs needs teacher = \"in_place\": with a frozen teacher all subnets are taught, and the \
                 ramp would only lengthen the warm-up"
                    .into(),
            );
        }
        Ok(())
    }
}
