//! Fitted network and linear part as plain numbers, with a fast forward pass.
//!
//! The input is one-hot and ReLU zeroes more than half of each hidden layer, so every product skips zeros. The sums of
//! a subnet run in the same order for any batch and number of threads, so its prediction does not depend on them.

use ofa_supernet::ops::{SparseLayer, SparseRows};
use rayon::prelude::*;
use std::sync::OnceLock;

/// Most subnets per pass on one thread.
const BATCH: usize = 128;
/// Fewest subnets for which another thread pays.
const FEWEST: usize = 16;

/// A fully connected layer, `y = x W + b`.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// `[inputs, outputs]`
    pub weight: Vec<f32>,
    /// `[outputs]`
    pub bias: Vec<f32>,
}

/// Three hidden layers with ReLU and a linear output (paper §3.4), and a linear function of the input beside them.
#[derive(Debug, Clone)]
pub struct Mlp {
    layers: [Layer; 4],
    linear: Vec<f32>,
    hidden: [SparseLayer; 3],
    /// Transposed layers for derivatives, made when these are asked for.
    backward: OnceLock<[SparseLayer; 3]>,
}

impl Mlp {
    /// Makes a network from layers of shapes `[inputs, hidden]`, `[hidden, hidden]` twice and `[hidden, 1]`, and the
    /// linear weights `[inputs]`.
    pub fn new(layers: [Layer; 4], linear: Vec<f32>) -> Self {
        let hidden = [0, 1, 2].map(|index| SparseLayer::new(&layers[index].weight, &layers[index].bias));
        Mlp { layers, linear, hidden, backward: OnceLock::new() }
    }

    /// The layers in order.
    pub fn layers(&self) -> &[Layer; 4] {
        &self.layers
    }

    /// Weight of each input in the linear part.
    pub fn linear(&self) -> &[f32] {
        &self.linear
    }

    /// Output for each of `inputs`; `features` appends the active features of an input.
    pub fn forward<T: Sync, E: Send>(
        &self,
        inputs: &[T],
        features: impl Fn(&T, &mut Vec<usize>) -> Result<(), E> + Sync,
    ) -> Result<Vec<f64>, E> {
        let share = inputs.len().div_ceil(rayon::current_num_threads()).clamp(FEWEST, BATCH);
        let share = share.next_multiple_of(SparseRows::GROUP);
        let batches = inputs.par_chunks(share).map(|batch| self.forward_batch(batch, &features));
        Ok(batches.collect::<Result<Vec<_>, E>>()?.concat())
    }

    /// Derivatives of the output by each input, `[subnets, inputs]`, where the inputs at the positions in `ones` are 1
    /// and the others 0.
    pub fn slopes(&self, ones: &[Vec<usize>]) -> Vec<f32> {
        let backward = self.backward.get_or_init(|| {
            [0, 1, 2].map(|index| {
                let Layer { weight, bias } = &self.layers[index];
                let (inputs, outputs) = (weight.len() / bias.len(), bias.len());
                let transposed = (0..weight.len()).map(|i| weight[i % inputs * outputs + i / inputs]);
                SparseLayer::new(&transposed.collect::<Vec<_>>(), &vec![0.0; inputs]).without_activation()
            })
        });
        let mut rows = SparseRows::ones(self.hidden[0].inputs(), ones.iter().map(Vec::as_slice));
        let mut hidden = Vec::with_capacity(3);
        for layer in &self.hidden {
            rows = layer.forward(&rows);
            hidden.push(rows.values());
        }
        let mut slopes = self.layers[3].weight.repeat(ones.len());
        for (layer, outputs) in backward.iter().zip(&hidden).rev() {
            // A ReLU that is off has no slope.
            for (slope, output) in slopes.iter_mut().zip(outputs) {
                *slope *= if *output == 0.0 { 0.0 } else { 1.0 };
            }
            slopes = layer.forward(&SparseRows::of_values(layer.inputs(), &slopes)).values();
        }
        for slopes in slopes.chunks_exact_mut(self.linear.len()) {
            slopes.iter_mut().zip(&self.linear).for_each(|(slope, linear)| *slope += linear);
        }
        slopes
    }

    fn forward_batch<T, E>(
        &self,
        inputs: &[T],
        features: &impl Fn(&T, &mut Vec<usize>) -> Result<(), E>,
    ) -> Result<Vec<f64>, E> {
        let (mut active, mut ends) = (Vec::new(), vec![0]);
        for input in inputs {
            features(input, &mut active)?;
            ends.push(active.len());
        }
        let ones = ends.windows(2).map(|ends| &active[ends[0]..ends[1]]);
        let rows = SparseRows::ones(self.hidden[0].inputs(), ones);
        let rows = self.hidden.iter().fold(rows, |rows, layer| layer.forward(&rows));
        let last = &self.layers[3];
        let ones = ends.windows(2).map(|ends| &active[ends[0]..ends[1]]);
        let sums = ones.map(|ones| ones.iter().map(|&one| self.linear[one]).sum::<f32>());
        Ok(rows
            .dot(&last.weight)
            .into_iter()
            .zip(sums)
            .map(|(product, sum)| f64::from(product + last.bias[0] + sum))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofa_supernet::seed::{Stream, generator};
    use rand::Rng;

    #[test]
    fn slopes_are_those_of_finite_differences() {
        let (inputs, hidden) = (9, 37);
        let mut rng = generator(2, Stream::Weights, &[]);
        let mut layer = |inputs: usize, outputs: usize| Layer {
            weight: (0..inputs * outputs).map(|_| rng.random_range(-0.5..0.5)).collect(),
            bias: (0..outputs).map(|_| rng.random_range(-0.5..0.5)).collect(),
        };
        let layers = [layer(inputs, hidden), layer(hidden, hidden), layer(hidden, hidden), layer(hidden, 1)];
        let ones = [1, 4, 8];
        let at = |layers: &[Layer; 4]| {
            let mlp = Mlp::new(layers.clone(), (0..inputs).map(|i| 0.1 * i as f32).collect());
            let output = mlp.forward(&[()], |(), active| {
                active.extend(ones);
                Ok::<(), ()>(())
            });
            (output.unwrap()[0], mlp.slopes(&[ones.to_vec(), vec![2, 3]])[..inputs].to_vec())
        };
        let (_, slopes) = at(&layers);
        for (input, &slope) in slopes.iter().enumerate() {
            // Moving an input moves the first layer's sums by a row of its weight.
            let moved = |step: f32| {
                let mut layers = layers.clone();
                let row = layers[0].weight[input * hidden..(input + 1) * hidden].to_vec();
                layers[0].bias.iter_mut().zip(row).for_each(|(bias, weight)| *bias += step * weight);
                at(&layers).0
            };
            let found = f64::from(slope) - 0.1 * input as f64;
            let expected = (moved(1e-3) - moved(-1e-3)) / 2e-3;
            assert!((found - expected).abs() < 2e-3, "{input}: {found} for {expected}");
        }
    }

    #[test]
    fn forward_equals_the_definition_for_every_batch() {
        // 110 is not a multiple of a vector's length, nor 70 subnets of the number that pass together.
        let (inputs, hidden) = (11, 110);
        let mut rng = generator(1, Stream::Weights, &[]);
        let mut layer = |inputs: usize, outputs: usize| Layer {
            weight: (0..inputs * outputs).map(|_| rng.random_range(-0.3..0.3)).collect(),
            bias: (0..outputs).map(|_| rng.random_range(-0.3..0.3)).collect(),
        };
        let layers = [layer(inputs, hidden), layer(hidden, hidden), layer(hidden, hidden), layer(hidden, 1)];
        let mlp = Mlp::new(layers, (0..inputs).map(|i| 0.1 * i as f32).collect());
        let batch: Vec<Vec<usize>> = (0..70).map(|i| vec![i % 3, 3 + i % 5, 8 + i % 3]).collect();
        let forward = |batch: &[Vec<usize>]| {
            let features = |input: &Vec<usize>, active: &mut Vec<usize>| {
                active.extend(input);
                Ok::<(), ()>(())
            };
            mlp.forward(batch, features).unwrap()
        };
        let found = forward(&batch);
        for (active, &found) in batch.iter().zip(&found) {
            let mut x: Vec<f64> = (0..inputs).map(|i| f64::from(u8::from(active.contains(&i)))).collect();
            for (index, layer) in mlp.layers().iter().enumerate() {
                let outputs = layer.bias.len();
                x = (0..outputs)
                    .map(|j| {
                        let products = x.iter().enumerate().map(|(i, x)| x * f64::from(layer.weight[i * outputs + j]));
                        let y = products.sum::<f64>() + f64::from(layer.bias[j]);
                        if index < 3 { y.max(0.0) } else { y }
                    })
                    .collect();
            }
            let linear: f64 = active.iter().map(|&i| 0.1 * i as f64).sum();
            assert!((x[0] + linear - found).abs() < 1e-5, "{} instead of {}", found, x[0] + linear);
            assert_eq!(forward(std::slice::from_ref(active)), [found]);
        }
    }
}
