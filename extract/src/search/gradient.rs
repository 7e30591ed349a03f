//! ProxylessNAS's path gates (Cai et al., ICLR 2019): every gene is a gate with a probability for each choice. Binary
//! gates are drawn, and the scores of the drawn subnets move the gates by the REINFORCE rule (their §3.3, the form that
//! needs no gradient). The expected cost, which a table makes differentiable (their §3.2), moves the gates by its exact
//! gradient.
//!
//! The published code backpropagates the validation loss into two paths per layer. Here a supernet is already trained,
//! so the score of a whole drawn subnet (predicted, or measured on the supernet) takes the place of that loss.

use super::genome::{Genes, Genome};
use super::strategies::{Setting, SettingValue, Strategy};
use super::task::{Rules, Task};
use crate::Result;
use rand::Rng;
use serde::{Deserialize, Serialize};

/// Settings of the gates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gradient {
    /// Subnets drawn between two steps.
    pub batch: usize,
    /// Learning rate of the gates.
    pub learning_rate: f64,
}

impl Default for Gradient {
    fn default() -> Self {
        Gradient { batch: 50, learning_rate: 0.2 }
    }
}

/// Relative growth per step of the price of an exceeded limit.
const PRICE_STEP: f64 = 0.2;

impl Strategy for Gradient {
    fn description(&self) -> &'static str {
        "ProxylessNAS's gates: one distribution per choice, moved by scores and by the gradient of the expected cost"
    }

    fn settings(&mut self) -> Vec<Setting<'_>> {
        use SettingValue::{Positive, Whole};
        vec![
            Setting::new(
                "batch",
                "Subnets scored between two updates of the model",
                Whole(&mut self.batch, 2..=10_000),
            ),
            Setting::new("learning_rate", "Learning rate", Positive(&mut self.learning_rate, 10.0)),
        ]
    }

    fn evaluations(&self) -> usize {
        10_000
    }

    fn run(&self, task: &mut Task) -> Result<()> {
        let count = task.rules().genome.size();
        let choices = |place| usize::from(task.rules().genome.choices(place));
        let mut gates: Vec<Vec<f64>> = (0..count).map(|place| vec![0.0; choices(place)]).collect();
        // Price of a limit's relative excess, in deviations of the score.
        let mut prices = vec![1.0; task.rules().limits.limits().len()];
        // Settled gates draw subnets that are scored already, which costs no budget, so the number of steps is bounded
        // too.
        let steps = task.remaining().div_ceil(self.batch).saturating_mul(4);
        for step in 0..steps as u64 {
            if task.is_over() {
                break;
            }
            let rules = task.rules();
            let probabilities: Vec<Vec<f64>> = gates.iter().map(|gates| softmax(gates)).collect();
            let mut rng = rules.rng(&[step]);
            let drawn: Vec<Genes> = (0..self.batch).map(|_| draw(&rules.genome, &probabilities, &mut rng)).collect();
            // Subnets that break a limit are repaired, and the gates learn from the repaired ones. A limit whose
            // measure is not a sum is kept by this alone.
            let repaired = drawn.iter().map(|genes| rules.repair(genes.clone(), &mut rng));
            let repaired = repaired.collect::<Result<Vec<Genes>>>()?;
            let scored = task.score(repaired)?;
            task.record();
            if scored.len() < self.batch {
                break;
            }
            let rules = task.rules();
            let scores: Vec<f64> = scored.iter().map(|(score, _)| *score).collect();
            let genes: Vec<Genes> = scored.into_iter().map(|(_, genes)| genes).collect();
            let mut slope = reinforce(&rules.genome, &probabilities, &genes, &scores);
            for (index, price) in prices.iter_mut().enumerate() {
                let limit = &rules.limits.limits()[index];
                let mean = expected(rules, index, &probabilities, &drawn)?;
                let excess = mean / limit.bound - 1.0;
                *price = (*price * (1.0 + PRICE_STEP * excess.clamp(-1.0, 1.0))).clamp(1e-3, 1e3);
                descend(rules, index, *price / limit.bound.abs().max(f64::MIN_POSITIVE), &probabilities, &mut slope);
            }
            for (gates, slope) in gates.iter_mut().zip(&slope) {
                gates.iter_mut().zip(slope).for_each(|(gate, slope)| *gate += self.learning_rate * slope);
            }
        }
        Ok(())
    }
}

fn softmax(gates: &[f64]) -> Vec<f64> {
    let largest = gates.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = gates.iter().map(|gate| (gate - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// Draws one choice per gene; genes of absent blocks stay zero.
fn draw(genome: &Genome, probabilities: &[Vec<f64>], rng: &mut impl Rng) -> Genes {
    genome.build(|place| {
        let mut rest: f64 = rng.random();
        let chosen = probabilities[place].iter().position(|p| {
            rest -= p;
            rest < 0.0
        });
        chosen.unwrap_or(probabilities[place].len() - 1) as u16
    })
}

/// Slope of the expected score, in deviations of the score, with respect to the gates.
fn reinforce(genome: &Genome, probabilities: &[Vec<f64>], genes: &[Genes], scores: &[f64]) -> Vec<Vec<f64>> {
    let count = scores.len() as f64;
    let mean = scores.iter().sum::<f64>() / count;
    let deviation = (scores.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / count).sqrt() + 1e-12;
    let mut slope: Vec<Vec<f64>> = probabilities.iter().map(|p| vec![0.0; p.len()]).collect();
    for (genes, score) in genes.iter().zip(scores) {
        let advantage = (score - mean) / deviation / count;
        for place in genome.active(genes) {
            for (choice, p) in probabilities[place].iter().enumerate() {
                let chosen = f64::from(u8::from(usize::from(genes[place]) == choice));
                slope[place][choice] += advantage * (chosen - p);
            }
        }
    }
    slope
}

/// Expected value of limit `index`; without a table the mean over the drawn subnets.
fn expected(rules: &Rules, index: usize, probabilities: &[Vec<f64>], drawn: &[Genes]) -> Result<f64> {
    if let Some(value) = rules.limits.table(index).and_then(|table| table.expected(&rules.genome, probabilities)) {
        return Ok(value);
    }
    let values = drawn.iter().map(|genes| rules.limits.value(&rules.genome, index, genes));
    Ok(values.sum::<Result<f64>>()? / drawn.len() as f64)
}

/// Subtracts from `slope` the slope of the expected value of limit `index`, times `weight`. The slope at a gate is its
/// probability times the amount that choosing it adds to the expected value.
fn descend(rules: &Rules, index: usize, weight: f64, probabilities: &[Vec<f64>], slope: &mut [Vec<f64>]) {
    let Some(table) = rules.limits.table(index) else { return };
    let Some(mean) = table.expected(&rules.genome, probabilities) else { return };
    let mut fixed = probabilities.to_vec();
    for place in 0..probabilities.len() {
        for choice in 0..probabilities[place].len() {
            fixed[place].fill(0.0);
            fixed[place][choice] = 1.0;
            if let Some(value) = table.expected(&rules.genome, &fixed) {
                slope[place][choice] -= weight * probabilities[place][choice] * (value - mean);
            }
        }
        fixed[place].copy_from_slice(&probabilities[place]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::testing::macs;
    use crate::search::{Limit, Limits};
    use ofa_supernet::SearchSpace;

    #[test]
    fn the_slope_of_the_expected_cost_is_its_difference_quotient() {
        let space = SearchSpace::named("tiny").unwrap();
        let genome = Genome::new(&space).unwrap();
        let limits = [Limit::new("macs", 1.0, |s| Ok(macs(&space, s)))];
        let limits = Limits::new(&genome, &limits).unwrap();
        let against = Limits::new(&genome, &[]).unwrap();
        let witness = genome.zeros();
        let rules = Rules { genome, limits, against, witness, seed: 0 };
        let mut gates: Vec<Vec<f64>> = (0..rules.genome.size())
            .map(|place| (0..rules.genome.choices(place)).map(|c| 0.1 * (place as f64 - f64::from(c))).collect())
            .collect();
        let mean = |gates: &[Vec<f64>]| {
            let probabilities: Vec<Vec<f64>> = gates.iter().map(|g| softmax(g)).collect();
            expected(&rules, 0, &probabilities, &[]).unwrap()
        };
        let probabilities: Vec<Vec<f64>> = gates.iter().map(|g| softmax(g)).collect();
        let mut slope: Vec<Vec<f64>> = probabilities.iter().map(|p| vec![0.0; p.len()]).collect();
        descend(&rules, 0, 1.0, &probabilities, &mut slope);
        for (place, choice) in [(0, 0), (0, 2), (2, 1), (3, 0), (4, 2)] {
            let step = 1e-4;
            gates[place][choice] += step;
            let above = mean(&gates);
            gates[place][choice] -= 2.0 * step;
            let below = mean(&gates);
            gates[place][choice] += step;
            let quotient = (above - below) / (2.0 * step);
            let found = -slope[place][choice];
            assert!((quotient - found).abs() <= 1e-5 * quotient.abs().max(1.0), "{place} {choice}: {quotient} {found}");
        }
    }
}
