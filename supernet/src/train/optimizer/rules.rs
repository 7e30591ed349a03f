//! Optimizers as a configuration has them.

use crate::Result;
use crate::network::ParameterKind;
use crate::train::checks::{LARGE, fail};
use serde::{Deserialize, Serialize};

/// The rule by which weights are updated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum OptimizerKind {
    /// SGD with Nesterov momentum.
    #[default]
    #[serde(rename = "sgd")]
    Sgd,
    /// Muon for pointwise convolutions before a batch norm, SGD with Nesterov momentum for all other weights.
    #[serde(rename = "muon")]
    Muon,
    /// Adam with decoupled weight decay.
    #[serde(rename = "adamw")]
    AdamW,
}

/// Settings of Muon (Jordan et al. 2024).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Muon {
    /// What the learning rate is multiplied by for Muon's weights (default 0.4: of batches of 64 images, as in
    /// docs/accuracy.md; the authors' 2.4 is for batches of 2,000).
    pub rate_factor: f64,
    /// Nesterov momentum of Muon's weights (default 0.9; the authors' is 0.6).
    pub momentum: f64,
}

impl Default for Muon {
    fn default() -> Self {
        Muon { rate_factor: 0.4, momentum: 0.9 }
    }
}

impl Muon {
    pub(in crate::train) fn validate(&self) -> Result<()> {
        if !(self.rate_factor > 0.0 && self.rate_factor <= LARGE) {
            return fail(format!("muon.rate_factor = {} must be above 0 and at most {LARGE}", self.rate_factor));
        }
        match (0.0..1.0).contains(&self.momentum) {
            true => Ok(()),
            false => fail(format!("muon.momentum = {} must be at least 0 and below 1", self.momentum)),
        }
    }
}

/// Settings of AdamW (Loshchilov and Hutter 2019).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamW {
    /// Decay of the running means of gradients and of their squares (default 0.9 and 0.999).
    pub betas: [f64; 2],
    /// Summand of the divisor (default 1e-8).
    pub epsilon: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        AdamW { betas: [0.9, 0.999], epsilon: 1e-8 }
    }
}

impl AdamW {
    pub(in crate::train) fn validate(&self) -> Result<()> {
        if let Some(beta) = self.betas.iter().find(|beta| !(0.0..1.0).contains(*beta)) {
            return fail(format!("adamw.betas holds {beta}; each must be at least 0 and below 1"));
        }
        match self.epsilon > 0.0 && self.epsilon <= 1.0 {
            true => Ok(()),
            false => fail(format!("adamw.epsilon = {} must be above 0 and at most 1", self.epsilon)),
        }
    }
}

/// Weights without decay, besides batch norm and biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Undecayed {
    /// Depthwise kernels: few weights per channel, which decay drives to zero (MobileNet, §3.2).
    Depthwise,
    /// Matrices that make smaller kernels of larger ones, which decay draws away from the identity.
    KernelTransforms,
}

impl Undecayed {
    pub(super) fn has(self, kind: ParameterKind) -> bool {
        match self {
            Undecayed::Depthwise => kind == ParameterKind::Depthwise,
            Undecayed::KernelTransforms => kind == ParameterKind::KernelTransform,
        }
    }
}
