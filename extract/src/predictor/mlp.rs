//! The fitted network as plain numbers, and its fast forward pass.
//!
//! The input is one-hot, so the first layer is a sum of a few rows of its weight. About half of each hidden layer is zero
//! after ReLU, and zero inputs are skipped in the next layer. Weights of the later layers are packed into strips of
//! [`STRIP`] outputs, so that a strip stays in cache while a batch of subnets passes. Every subnet's sums run in the same order
//! whatever the batch, so a prediction does not depend on it.

use rayon::prelude::*;

/// Outputs of one strip: with 400 inputs 125 KiB of weights.
const STRIP: usize = 80;
/// Inputs that are added to a strip's sums in one pass over them, which saves loading and storing the sums.
const ROWS: usize = 4;
/// Subnets that pass through a strip while it is in cache.
const BATCH: usize = 32;

/// A fully connected layer, `y = x W + b`.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// `[inputs, outputs]`
    pub weight: Vec<f32>,
    /// `[outputs]`
    pub bias: Vec<f32>,
}

/// Three hidden layers with ReLU and a linear output (paper §3.4).
#[derive(Debug, Clone)]
pub struct Mlp {
    layers: [Layer; 4],
    strips: [Vec<f32>; 2],
}

impl Mlp {
    /// Layers of shapes `[inputs, hidden]`, `[hidden, hidden]` twice and `[hidden, 1]`.
    pub fn new(layers: [Layer; 4]) -> Self {
        let strips = [pack(&layers[1]), pack(&layers[2])];
        Mlp { layers, strips }
    }

    /// The layers in order.
    pub fn layers(&self) -> &[Layer; 4] {
        &self.layers
    }

    /// One output for each list of active features.
    pub fn forward(&self, inputs: &[Vec<usize>]) -> Vec<f64> {
        inputs.par_chunks(BATCH).flat_map_iter(|batch| self.forward_batch(batch)).collect()
    }

    fn forward_batch(&self, inputs: &[Vec<usize>]) -> Vec<f64> {
        let hidden = self.layers[0].bias.len();
        let mut values = vec![0.0f32; inputs.len() * hidden];
        for (row, active) in values.chunks_exact_mut(hidden).zip(inputs) {
            row.copy_from_slice(&self.layers[0].bias);
            for &feature in active {
                let weight = &self.layers[0].weight[feature * hidden..][..hidden];
                row.iter_mut().zip(weight).for_each(|(y, w)| *y += w);
            }
            row.iter_mut().for_each(|y| *y = y.max(0.0));
        }
        for (layer, strips) in self.layers[1..3].iter().zip(&self.strips) {
            values = hidden_layer(&values, hidden, strips, &layer.bias);
        }
        let last = &self.layers[3];
        let sum = |row: &[f32]| row.iter().zip(&last.weight).map(|(x, w)| x * w).sum::<f32>() + last.bias[0];
        values.chunks_exact(hidden).map(|row| f64::from(sum(row))).collect()
    }
}

/// `[strips, inputs, STRIP]`, the last strip filled up with zeros.
fn pack(layer: &Layer) -> Vec<f32> {
    let outputs = layer.bias.len();
    let inputs = layer.weight.len() / outputs;
    let mut packed = vec![0.0; outputs.div_ceil(STRIP) * inputs * STRIP];
    for (strip, packed) in packed.chunks_exact_mut(inputs * STRIP).enumerate() {
        let columns = strip * STRIP..((strip + 1) * STRIP).min(outputs);
        for (to, from) in packed.chunks_exact_mut(STRIP).zip(layer.weight.chunks_exact(outputs)) {
            to[..columns.len()].copy_from_slice(&from[columns.clone()]);
        }
    }
    packed
}

/// `relu(values W + b)` for `values` of shape `[batch, width]`.
fn hidden_layer(values: &[f32], width: usize, strips: &[f32], bias: &[f32]) -> Vec<f32> {
    let active: Vec<Vec<(usize, f32)>> = values
        .chunks_exact(width)
        .map(|row| {
            let mut active: Vec<(usize, f32)> = row.iter().copied().enumerate().filter(|&(_, x)| x != 0.0).collect();
            active.resize(active.len().next_multiple_of(ROWS), (0, 0.0));
            active
        })
        .collect();
    let outputs = bias.len();
    let mut result = vec![0.0; active.len() * outputs];
    for (strip, weight) in strips.chunks_exact(width * STRIP).enumerate() {
        let columns = strip * STRIP..((strip + 1) * STRIP).min(outputs);
        for (row, active) in result.chunks_exact_mut(outputs).zip(&active) {
            let mut sums = [0.0f32; STRIP];
            sums[..columns.len()].copy_from_slice(&bias[columns.clone()]);
            for inputs in active.as_chunks().0 {
                add_rows(&mut sums, inputs, weight);
            }
            let row = &mut row[columns.clone()];
            row.iter_mut().zip(&sums).for_each(|(y, sum)| *y = sum.max(0.0));
        }
    }
    result
}

/// `sums += x W` for some inputs. A function of its own, so that the compiler sees one plain loop and vectorises it.
#[inline(never)]
fn add_rows(sums: &mut [f32; STRIP], inputs: &[(usize, f32); ROWS], weight: &[f32]) {
    let row = |input: usize| -> &[f32; STRIP] {
        weight[input * STRIP..][..STRIP].try_into().expect("a slice of STRIP elements")
    };
    let [(a, xa), (b, xb), (c, xc), (d, xd)] = *inputs;
    let (a, b, c, d) = (row(a), row(b), row(c), row(d));
    for j in 0..STRIP {
        sums[j] += (xa * a[j] + xb * b[j]) + (xc * c[j] + xd * d[j]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofa_supernet::seed::{Purpose, generator};
    use rand::Rng;

    #[test]
    fn forward_equals_the_definition_for_every_batch() {
        // 110 is no multiple of STRIP, 70 subnets are no multiple of BATCH.
        let (inputs, hidden) = (11, 110);
        let mut rng = generator(1, Purpose::Weights, &[]);
        let mut layer = |inputs: usize, outputs: usize| Layer {
            weight: (0..inputs * outputs).map(|_| rng.random_range(-0.3..0.3)).collect(),
            bias: (0..outputs).map(|_| rng.random_range(-0.3..0.3)).collect(),
        };
        let mlp = Mlp::new([layer(inputs, hidden), layer(hidden, hidden), layer(hidden, hidden), layer(hidden, 1)]);
        let batch: Vec<Vec<usize>> = (0..70).map(|i| vec![i % 3, 3 + i % 5, 8 + i % 3]).collect();
        let found = mlp.forward(&batch);
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
            assert!((x[0] - found).abs() < 1e-5, "{} instead of {}", found, x[0]);
            assert_eq!(mlp.forward(std::slice::from_ref(active)), [found]);
        }
    }
}
