//! The fitted network and its linear part as plain numbers, and its fast forward pass.
//!
//! The input is one-hot and more than half of what ReLU leaves is zero, so every product skips zeros. Every subnet's
//! sums run in the same order whatever the batch and the threads, so a prediction does not depend on them.

use ofa_supernet::ops::{SparseLayer, SparseRows};
use rayon::prelude::*;

/// Most subnets that pass through a layer at a time on one thread.
const BATCH: usize = 128;
/// Fewest subnets that are worth a thread of their own.
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
}

impl Mlp {
    /// Layers of shapes `[inputs, hidden]`, `[hidden, hidden]` twice and `[hidden, 1]`; what each input adds to the
    /// output, `[inputs]`.
    pub fn new(layers: [Layer; 4], linear: Vec<f32>) -> Self {
        let hidden = [0, 1, 2].map(|index| SparseLayer::new(&layers[index].weight, &layers[index].bias));
        Mlp { layers, linear, hidden }
    }

    /// The layers in order.
    pub fn layers(&self) -> &[Layer; 4] {
        &self.layers
    }

    /// What each input adds to the output.
    pub fn linear(&self) -> &[f32] {
        &self.linear
    }

    /// One output for each of `inputs`; `features` writes the active features of one.
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
    fn forward_equals_the_definition_for_every_batch() {
        // 110 is no multiple of a vector's length, 70 subnets no multiple of what passes together.
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
