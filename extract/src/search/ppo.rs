//! MnasNet's controller (Tan et al., CVPR 2019): a recurrent policy emits a candidate gene by gene and is trained by
//! proximal policy optimisation (Schulman et al., 2017) on `score x (value / limit)^w`.

use super::genome::{Genes, Genome};
use super::strategies::{Setting, SettingValue, Strategy};
use super::task::{Rules, Task};
use crate::Result;
use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::ops::{log_softmax, sigmoid};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use ofa_supernet::seed::{Stream, generator};
use rand::Rng;
use serde::{Deserialize, Serialize};

/// Width of the recurrent state.
const HIDDEN: usize = 32;
/// Largest relative change of a probability that the surrogate rewards.
const CLIP: f64 = 0.2;
/// Optimiser steps on each batch.
const PASSES: usize = 3;
/// Weight of the entropy, which keeps the policy from settling too early.
const ENTROPY: f64 = 0.002;

/// Settings of the controller.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ppo {
    /// The exponent `w`: it sets how much a value above its limit costs, and how much one below it pays.
    pub exponent: f64,
    /// Whether limits are hard: a subnet that breaks one is worth nothing, and a value below the limit earns nothing.
    pub hard: bool,
    /// Subnets per update of the policy.
    pub batch: usize,
    /// Learning rate of Adam.
    pub learning_rate: f64,
}

impl Default for Ppo {
    fn default() -> Self {
        Ppo { exponent: -0.07, hard: false, batch: 50, learning_rate: 5e-3 }
    }
}

impl Strategy for Ppo {
    fn description(&self) -> &'static str {
        "MnasNet's controller, trained by proximal policy optimisation"
    }

    fn settings(&mut self) -> Vec<Setting<'_>> {
        use SettingValue::{Flag, Number, Positive, Whole};
        vec![
            Setting::new(
                "exponent",
                "Exponent w of the reward accuracy x (value / limit)^w",
                Number(&mut self.exponent, -10.0..=0.0),
            ),
            Setting::new("hard", "A subnet that breaks a limit is worth nothing", Flag(&mut self.hard)),
            Setting::new(
                "batch",
                "Subnets scored between two updates of the model",
                Whole(&mut self.batch, 2..=10_000),
            ),
            Setting::new("learning_rate", "Learning rate", Positive(&mut self.learning_rate, 1.0)),
        ]
    }

    fn evaluations(&self) -> usize {
        10_000
    }

    fn run(&self, task: &mut Task) -> Result<()> {
        // A space of one subnet leaves the controller nothing to choose; the task has scored the subnet.
        if task.rules().genome.searched().next().is_none() {
            task.record();
            return Ok(());
        }
        let policy = Policy::new(task.rules())?;
        let parameters = ParamsAdamW { lr: self.learning_rate, weight_decay: 0.0, ..ParamsAdamW::default() };
        let mut optimizer = AdamW::new(policy.variables.clone(), parameters)?;
        // A converged policy emits subnets that are scored already, which costs no budget, so the number of batches is
        // bounded too.
        let batches = task.remaining().div_ceil(self.batch).saturating_mul(4);
        for batch in 0..batches as u64 {
            if task.is_over() {
                break;
            }
            let written = policy.write(task.rules(), self.batch, &mut task.rules().rng(&[batch]))?;
            let scored = task.score(written)?;
            task.record();
            if scored.len() < 2 {
                break;
            }
            let rewards = scored.iter().map(|(score, genes)| self.reward(task.rules(), *score, genes));
            let advantages = advantages(&rewards.collect::<Result<Vec<f64>>>()?);
            let genes: Vec<Genes> = scored.into_iter().map(|(_, genes)| genes).collect();
            let before = policy.probabilities(&task.rules().genome, &genes)?.0.detach();
            for _ in 0..PASSES {
                let loss = policy.loss(&task.rules().genome, &genes, &before, &advantages)?;
                optimizer.backward_step(&loss)?;
            }
        }
        Ok(())
    }
}

impl Ppo {
    fn reward(&self, rules: &Rules, score: f64, genes: &Genes) -> Result<f64> {
        let mut reward = score;
        for (index, limit) in rules.limits.limits().iter().enumerate() {
            let value = rules.limits.value(&rules.genome, index, genes)?;
            let ratio = (value / limit.bound).max(f64::MIN_POSITIVE);
            if !self.hard {
                reward *= ratio.powf(self.exponent);
            } else if value > limit.bound {
                // The excess still gives a slope, so that a first batch without any feasible subnet teaches something.
                reward = -ratio.min(1e6);
            }
        }
        Ok(reward)
    }
}

/// Rewards less their mean, divided by their standard deviation.
fn advantages(rewards: &[f64]) -> Vec<f32> {
    let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
    let variance = rewards.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / rewards.len() as f64;
    rewards.iter().map(|r| ((r - mean) / (variance.sqrt() + 1e-8)) as f32).collect()
}

/// A gated recurrent unit (Cho et al., 2014) that reads the choice of the last gene, with a linear layer per gene for
/// the next choice.
struct Policy {
    variables: Vec<Var>,
    /// From the input to the three gates, `[HIDDEN, 3 * HIDDEN]`.
    from_input: Tensor,
    /// From the state to the three gates, `[HIDDEN, 3 * HIDDEN]`.
    from_state: Tensor,
    bias: Tensor,
    /// Weight `[HIDDEN, choices]` and bias `[choices]` of each gene's linear layer.
    heads: Vec<(Tensor, Tensor)>,
    /// Input of the next step after each choice of each gene, `[choices, HIDDEN]`.
    embeddings: Vec<Tensor>,
}

impl Policy {
    fn new(rules: &Rules) -> Result<Self> {
        let mut variables = Vec::new();
        let mut variable = |shape: &[usize], bound: f32| -> Result<Tensor> {
            let mut rng = generator(rules.seed, Stream::PolicyWeights, &[variables.len() as u64]);
            let count = shape.iter().product();
            let values: Vec<f32> = (0..count).map(|_| rng.random_range(-1.0f32..1.0) * bound).collect();
            let var = Var::from_vec(values, shape, &Device::Cpu)?;
            let tensor = var.as_tensor().clone();
            variables.push(var);
            Ok(tensor)
        };
        let bound = 1.0 / (HIDDEN as f32).sqrt();
        let from_input = variable(&[HIDDEN, 3 * HIDDEN], bound)?;
        let from_state = variable(&[HIDDEN, 3 * HIDDEN], bound)?;
        let bias = variable(&[3 * HIDDEN], bound)?;
        let (mut heads, mut embeddings) = (Vec::new(), Vec::new());
        for place in 0..rules.genome.size() {
            let choices = usize::from(rules.genome.choices(place));
            // Small weights make the first candidates nearly uniform.
            heads.push((variable(&[HIDDEN, choices], 0.1 * bound)?, variable(&[choices], 0.01)?));
            embeddings.push(variable(&[choices, HIDDEN], 1.0)?);
        }
        Ok(Policy { variables, from_input, from_state, bias, heads, embeddings })
    }

    /// The state after reading `input`; both are `[batch, HIDDEN]`.
    fn step(&self, input: &Tensor, state: &Tensor) -> candle_core::Result<Tensor> {
        let from_input = input.matmul(&self.from_input)?.broadcast_add(&self.bias)?;
        let from_state = state.matmul(&self.from_state)?;
        let gate = |tensor: &Tensor, index: usize| tensor.narrow(D::Minus1, index * HIDDEN, HIDDEN);
        let update = sigmoid(&(gate(&from_input, 0)? + gate(&from_state, 0)?)?)?;
        let reset = sigmoid(&(gate(&from_input, 1)? + gate(&from_state, 1)?)?)?;
        let candidate = (gate(&from_input, 2)? + (reset * gate(&from_state, 2)?)?)?.tanh()?;
        // state + update * (candidate - state)
        state + (update * (candidate - state)?)?
    }

    fn log_probabilities(&self, place: usize, state: &Tensor) -> candle_core::Result<Tensor> {
        let (weight, bias) = &self.heads[place];
        log_softmax(&state.matmul(weight)?.broadcast_add(bias)?, D::Minus1)
    }

    /// Draws `count` candidates gene by gene; genes of absent blocks are skipped.
    fn write(&self, rules: &Rules, count: usize, rng: &mut impl Rng) -> Result<Vec<Genes>> {
        let genome = &rules.genome;
        let mut written: Vec<Genes> = vec![genome.zeros(); count];
        let mut state = Tensor::zeros((count, HIDDEN), DType::F32, &Device::Cpu)?;
        let mut input = state.clone();
        for place in genome.searched() {
            state = self.step(&input, &state)?.detach();
            let probabilities: Vec<Vec<f32>> = self.log_probabilities(place, &state)?.exp()?.to_vec2()?;
            let mut choices = Vec::with_capacity(count);
            for (genes, probabilities) in written.iter_mut().zip(&probabilities) {
                let drawn = pick(probabilities, rng);
                if genome.is_active(genes, place) {
                    genes[place] = drawn;
                }
                choices.push(u32::from(genes[place]));
            }
            input = self.embeddings[place].index_select(&Tensor::new(choices, &Device::Cpu)?, 0)?.detach();
        }
        Ok(written)
    }

    /// Log-probability and entropy of each candidate, both `[batch]`.
    fn probabilities(&self, genome: &Genome, genes: &[Genes]) -> Result<(Tensor, Tensor)> {
        let device = &Device::Cpu;
        let mut state = Tensor::zeros((genes.len(), HIDDEN), DType::F32, device)?;
        let mut input = state.clone();
        let (mut sums, mut entropies) = (Vec::new(), Vec::new());
        for place in genome.searched() {
            state = self.step(&input, &state)?;
            let log = self.log_probabilities(place, &state)?;
            let choices: Vec<u32> = genes.iter().map(|genes| u32::from(genes[place])).collect();
            let choices = Tensor::new(choices, device)?;
            let active: Vec<f32> =
                genes.iter().map(|genes| f32::from(u8::from(genome.is_active(genes, place)))).collect();
            let active = Tensor::new(active, device)?;
            let chosen = log.gather(&choices.unsqueeze(1)?, 1)?.squeeze(1)?;
            sums.push((chosen * &active)?);
            entropies.push(((log.exp()? * &log)?.sum(1)?.neg()? * &active)?);
            input = self.embeddings[place].index_select(&choices, 0)?;
        }
        Ok((Tensor::stack(&sums, 0)?.sum(0)?, Tensor::stack(&entropies, 0)?.sum(0)?))
    }

    /// Negative sum of the clipped surrogate of the expected advantage and the weighted entropy.
    fn loss(&self, genome: &Genome, genes: &[Genes], before: &Tensor, advantages: &[f32]) -> Result<Tensor> {
        let (log, entropy) = self.probabilities(genome, genes)?;
        let advantages = Tensor::new(advantages, &Device::Cpu)?;
        let ratio = (log - before)?.exp()?;
        let plain = (&ratio * &advantages)?;
        let clipped = (ratio.clamp(1.0 - CLIP, 1.0 + CLIP)? * &advantages)?;
        let gain = plain.minimum(&clipped)?.mean_all()?;
        Ok((gain + (entropy.mean_all()? * ENTROPY)?)?.neg()?)
    }
}

fn pick(probabilities: &[f32], rng: &mut impl Rng) -> u16 {
    let mut rest: f32 = rng.random();
    for (choice, probability) in probabilities.iter().enumerate() {
        rest -= probability;
        if rest < 0.0 {
            return choice as u16;
        }
    }
    probabilities.len() as u16 - 1
}
