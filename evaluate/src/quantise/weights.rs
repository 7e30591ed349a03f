//! From f32 weights to integers with a scale per output channel.

use super::{Int8Layer, MAX_SUM};

/// Shares of the largest weight at which the range of a channel may end.
const SHARES: std::ops::RangeInclusive<u32> = 60..=100;

/// Smallest scale of weights: a channel of zeros has it too.
const LEAST: f64 = 1e-12;

/// Rounds a layer's weights: for each channel the scale with the least squared error, enlarged until the bias fits its
/// integer. `input` is the scale of the layer's input, `most` the largest weight.
pub fn int8_layer(weight: &[f32], bias: &[f32], input: f32, most: i8) -> Int8Layer {
    let channels = weight.chunks_exact(weight.len() / bias.len().max(1));
    let scales: Vec<f32> = channels.map(|channel| best_scale(channel, most)).collect();
    with_scales(weight, bias, &scales, input, most)
}

/// [`int8_layer`] with given `scales`, which are enlarged only where the bias needs it.
pub fn with_scales(weight: &[f32], bias: &[f32], scales: &[f32], input: f32, most: i8) -> Int8Layer {
    let per_output = weight.len() / bias.len().max(1);
    let mut layer = Int8Layer { weight: Vec::with_capacity(weight.len()), scales: Vec::new(), bias: Vec::new() };
    for ((channel, &bias), scale) in weight.chunks_exact(per_output).zip(bias).zip(scales) {
        // A little more, so that rounding to f32 keeps the bias in its range.
        let least = (f64::from(bias.abs()) / (f64::from(input) * MAX_SUM as f64) * 1.000_001).max(LEAST);
        let scale = scale.max(least as f32);
        let rounded = |weight: &f32| (weight / scale).round_ties_even().clamp(-f32::from(most), f32::from(most)) as i8;
        layer.weight.extend(channel.iter().map(rounded));
        layer.bias.push((f64::from(bias) / (f64::from(input) * f64::from(scale))).round_ties_even() as i32);
        layer.scales.push(scale);
    }
    layer
}

impl Int8Layer {
    /// The weights as real numbers.
    pub fn dequantised(&self) -> Vec<f32> {
        let per_output = self.weight.len() / self.scales.len().max(1);
        self.weight.iter().enumerate().map(|(i, &weight)| f32::from(weight) * self.scales[i / per_output]).collect()
    }

    /// The biases as real numbers; `input` is the scale of the layer's input.
    pub fn dequantised_bias(&self, input: f32) -> Vec<f32> {
        self.bias.iter().zip(&self.scales).map(|(&bias, scale)| bias as f32 * (input * scale)).collect()
    }
}

/// The scale of a channel with the least squared error.
fn best_scale(channel: &[f32], most: i8) -> f32 {
    let (largest, most) = (channel.iter().fold(0.0f32, |largest, weight| largest.max(weight.abs())), f32::from(most));
    let error = |scale: f32| {
        let of_weight = |weight: &f32| (weight - scale * (weight / scale).round_ties_even().clamp(-most, most)).powi(2);
        channel.iter().map(of_weight).sum::<f32>()
    };
    let scales = SHARES.rev().map(|share| (largest / most * share as f32 / 100.0).max(LEAST as f32));
    let errors = scales.map(|scale| (scale, error(scale)));
    errors.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(LEAST as f32, |(scale, _)| scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofa_supernet::seed::{Stream, generator};
    use rand::Rng;

    #[test]
    fn weights_and_biases_come_back_but_for_rounding() {
        let mut rng = generator(3, Stream::Weights, &[]);
        for most in [127, 63] {
            let weight: Vec<f32> = (0..10 * 9).map(|i| rng.random_range(-1.0..1.0) * (1 + i / 9) as f32).collect();
            let bias: Vec<f32> = (0..10).map(|_| rng.random_range(-3.0..3.0)).collect();
            let layer = int8_layer(&weight, &bias, 0.02, most);
            assert!(layer.weight.iter().all(|weight| weight.abs() <= most) && layer.weight.contains(&most));
            for (i, (back, exact)) in layer.dequantised().iter().zip(&weight).enumerate() {
                let step = (1 + i / 9) as f32 / f32::from(most);
                assert!((back - exact).abs() < 2.0 * step, "{back} {exact}");
            }
            for (back, exact) in layer.dequantised_bias(0.02).iter().zip(&bias) {
                assert!((back - exact).abs() < 0.01, "{back} {exact}");
            }
        }
    }

    #[test]
    fn biases_fit_their_integers_whatever_the_weights() {
        let layer = int8_layer(&[0.0, 0.0, 1e-30, -1e-30], &[5.0, -700.0], 0.02, 127);
        assert!(layer.bias.iter().all(|bias| i64::from(*bias).abs() <= MAX_SUM));
        let back = layer.dequantised_bias(0.02);
        assert!((back[0] - 5.0).abs() < 1e-3 && (back[1] + 700.0).abs() < 1e-2, "{back:?}");
    }
}
