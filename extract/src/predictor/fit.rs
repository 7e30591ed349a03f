//! Fitting of one network to samples: first the linear part, then, by Adam on the squared error, the network to the
//! remainder.

use super::linear::{Basis, Linear};
use super::mlp::{Layer, Mlp};
use crate::{Error, Result};
use candle_core::{Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use ofa_supernet::seed::{Stream, generator};
use rand::Rng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

/// Most samples that a Gaussian process is fitted on unless it is asked for, without the held-out ones: the time of a
/// fit grows with their cube.
pub(super) const PROCESS_SAMPLES: usize = 2000;

/// What is fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// A Gaussian process on up to two thousand fitted samples, an ensemble on more.
    #[default]
    Automatic,
    /// A Gaussian process over the choices of the space: best on few and on precise samples.
    GaussianProcess,
    /// Several networks, whose mean is the prediction (paper §3.4: one network).
    Ensemble,
}

impl Method {
    /// Every method, with its name and a line of help.
    pub const TABLE: &[(Method, &str, &str)] = &[
        (
            Method::Automatic,
            "automatic",
            "A Gaussian process on up to 2,000 fitted samples (a fifth is held out), an ensemble on more",
        ),
        (Method::GaussianProcess, "gaussian-process", "A Gaussian process over the choices of the space"),
        (Method::Ensemble, "ensemble", "Networks whose mean is the prediction (--members)"),
    ];

    /// Whether a Gaussian process is fitted to `samples` samples.
    pub(super) fn is_process(self, samples: usize) -> bool {
        match self {
            Method::Automatic => samples <= PROCESS_SAMPLES,
            Method::GaussianProcess => true,
            Method::Ensemble => false,
        }
    }
}

/// How the predictor is fitted. All but the method is for an ensemble.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FitSettings {
    /// What is fitted.
    pub method: Method,
    /// Width of each of the three hidden layers.
    pub hidden: usize,
    /// Initial learning rate of Adam; it falls to zero along a cosine.
    pub learning_rate: f64,
    /// Weight decay, decoupled (AdamW; the reference adds it to the gradient, which at this size makes no difference).
    pub weight_decay: f64,
    /// Most samples per step; a small set takes a quarter of its samples, but at least 8.
    pub batch_size: usize,
    /// Optimizer steps. `None`: 100, and for more than 256 training samples 100 x sqrt(samples / 256).
    ///
    /// The number of steps regularises the fit: further steps fit the noise of the measured accuracies. On a synthetic
    /// accuracy over `cifar-mbv3` (spread 3 points, noise 1.2 points as of a thousand validation images), 1,600 samples
    /// ranked best after 200 steps (Kendall tau .90; .84 after 375, .81 after 625) and 24 to 200 samples after about
    /// 100; with a quarter of the noise more steps gained nothing. A fixed rule loses no samples to an inner validation
    /// split, which for 40 samples would be too small for early stopping.
    pub steps: Option<usize>,
    /// Networks whose mean is the prediction. With several, each is fitted without a different fold, and their spread
    /// gives the deviation of the prediction; a single network has no deviation.
    pub members: usize,
}

/// Most members, since each predicts every subnet of a search.
pub(super) const MOST_MEMBERS: usize = 64;

impl Default for FitSettings {
    fn default() -> Self {
        FitSettings {
            method: Method::default(),
            hidden: 400,
            learning_rate: 1e-3,
            weight_decay: 1e-4,
            batch_size: 64,
            steps: None,
            members: 5,
        }
    }
}

impl FitSettings {
    pub(super) fn validate(&self) -> Result<()> {
        let fail = |what: &str| Err(Error::Predictor(what.into()));
        if !(1..=4096).contains(&self.hidden) {
            return fail("hidden must be between 1 and 4096");
        }
        if !(self.learning_rate > 0.0 && self.learning_rate <= 1.0) {
            return fail("learning_rate must lie above 0 and up to 1");
        }
        if !(0.0..=10.0).contains(&self.weight_decay) {
            return fail("weight_decay must lie between 0 and 10");
        }
        if self.batch_size == 0 || self.steps == Some(0) {
            return fail("batch_size and steps must be at least 1");
        }
        if !(1..=MOST_MEMBERS).contains(&self.members) {
            return Err(Error::Predictor(format!("members must be between 1 and {MOST_MEMBERS}")));
        }
        Ok(())
    }

    /// Steps for `samples` training samples.
    pub(super) fn steps_for(&self, samples: usize) -> usize {
        self.steps.unwrap_or_else(|| (100.0 * (samples as f64 / 256.0).sqrt().max(1.0)).round() as usize)
    }
}

/// Training data: one-hot inputs (as positions of their ones) and accuracies.
pub(super) struct Table<'a> {
    /// The prior of the linear part.
    pub basis: &'a Basis,
    /// Number of features.
    pub width: usize,
    /// Positions of the ones, one list per sample.
    pub inputs: &'a [Vec<usize>],
    /// Accuracies.
    pub targets: &'a [f64],
}

/// Fits network number `member`; `progress` gets the steps done, all steps and the loss of the step (root mean squared
/// error in accuracy).
///
/// Targets are scaled while fitting, and the scale is folded into the output layer afterwards: the learning rate suits
/// accuracies that differ by a tenth of a point or by fifty.
pub(super) fn fit_network(
    table: &Table,
    settings: &FitSettings,
    seed: u64,
    member: u64,
    progress: &mut dyn FnMut(usize, usize, f64),
) -> Result<Mlp> {
    let device = Device::Cpu;
    let count = table.inputs.len();
    let linear = Linear::fit(table.basis, table.inputs, table.targets);
    let rest: Vec<f64> = table.inputs.iter().zip(table.targets).map(|(input, t)| t - linear.predict(input)).collect();
    // The remainder has mean zero: the linear part includes the mean.
    let spread = (rest.iter().map(|r| r * r).sum::<f64>() / count as f64).sqrt().max(1e-6);
    let mut dense = vec![0.0f32; count * table.width];
    for (row, active) in dense.chunks_exact_mut(table.width).zip(table.inputs) {
        active.iter().for_each(|&feature| row[feature] = 1.0);
    }
    let dense = Tensor::from_vec(dense, (count, table.width), &device)?;
    let targets: Vec<f32> = rest.iter().map(|r| (r / spread) as f32).collect();
    let targets = Tensor::from_vec(targets, (count, 1), &device)?;

    let variables = initial(table.width, settings.hidden, seed, member)?;
    let parameters =
        ParamsAdamW { lr: settings.learning_rate, weight_decay: settings.weight_decay, ..ParamsAdamW::default() };
    let mut optimizer = AdamW::new(variables.clone(), parameters)?;
    let batch_size = (count / 4).max(8).min(settings.batch_size);
    let steps = settings.steps_for(count);
    let mut order: Vec<u32> = (0..count as u32).collect();
    let mut used = count;
    for step in 0..steps {
        if used >= count {
            order.shuffle(&mut generator(seed, Stream::PredictorOrder, &[member, step as u64]));
            used = 0;
        }
        let rows = Tensor::new(&order[used..(used + batch_size).min(count)], &device)?;
        used += batch_size;
        let mut x = dense.index_select(&rows, 0)?;
        for (layer, pair) in variables.chunks_exact(2).enumerate() {
            x = x.matmul(&pair[0])?.broadcast_add(&pair[1])?;
            if layer < 3 {
                x = x.relu()?;
            }
        }
        let loss = (x - targets.index_select(&rows, 0)?)?.sqr()?.mean_all()?;
        let turn = std::f64::consts::PI * step as f64 / steps as f64;
        optimizer.set_learning_rate(settings.learning_rate * 0.5 * (1.0 + turn.cos()));
        optimizer.backward_step(&loss)?;
        let loss = f64::from(loss.to_scalar::<f32>()?).sqrt() * spread;
        if !loss.is_finite() {
            return Err(Error::Predictor(format!(
                "the loss is {loss} at step {}; use a smaller learning_rate",
                step + 1
            )));
        }
        progress(step + 1, steps, loss);
    }
    let mut layers = Vec::new();
    for pair in variables.chunks_exact(2) {
        layers.push(Layer { weight: pair[0].flatten_all()?.to_vec1()?, bias: pair[1].to_vec1()? });
    }
    let mut layers: [Layer; 4] = layers.try_into().expect("four layers were made");
    layers[3].weight.iter_mut().for_each(|w| *w *= spread as f32);
    layers[3].bias[0] = (f64::from(layers[3].bias[0]) * spread + linear.bias) as f32;
    Ok(Mlp::new(layers, linear.weights.iter().map(|&w| w as f32).collect()))
}

/// Weights and biases of the four layers in turn, uniform within 1 / sqrt(inputs); the output bias is zero.
fn initial(inputs: usize, hidden: usize, seed: u64, member: u64) -> Result<Vec<Var>> {
    let mut variables = Vec::new();
    for (layer, pair) in [inputs, hidden, hidden, hidden, 1].windows(2).enumerate() {
        let mut rng = generator(seed, Stream::PredictorWeights, &[member, layer as u64]);
        let bound = 1.0 / (pair[0] as f32).sqrt();
        let mut draw = |count: usize| -> Vec<f32> { (0..count).map(|_| rng.random_range(-bound..bound)).collect() };
        variables.push(Var::from_vec(draw(pair[0] * pair[1]), (pair[0], pair[1]), &Device::Cpu)?);
        let bias = if layer == 3 { vec![0.0] } else { draw(pair[1]) };
        variables.push(Var::from_vec(bias, pair[1], &Device::Cpu)?);
    }
    Ok(variables)
}
