//! Arithmetic of quantised networks, value by value: the definition that every kernel has to match bit by bit.

use ofa_supernet::space::Activation;
use serde::{Deserialize, Serialize};

/// Map between `u8` and real numbers: `real = (q - zero_point) * scale`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// Distance of two neighbouring numbers; above 0.
    pub scale: f32,
    /// The integer of zero.
    pub zero_point: u8,
}

impl Scale {
    /// The integer of a real number: `round_ties_even(value * (1 / scale)) + zero_point`, at least 0 and at most 255.
    /// The reciprocal is rounded to f32 first, so that a kernel needs no division per value.
    pub fn quantise(self, value: f32) -> u8 {
        let zero = f32::from(self.zero_point);
        let rounded = (value * self.reciprocal()).round_ties_even();
        (rounded.clamp(-zero, 255.0 - zero) + zero) as u8
    }

    /// `1 / scale`
    pub fn reciprocal(self) -> f32 {
        1.0 / self.scale
    }

    /// The real number of an integer.
    pub fn dequantise(self, q: u8) -> f32 {
        f32::from(i16::from(q) - i16::from(self.zero_point)) * self.scale
    }
}

/// An activation of an f32 value.
pub fn activate(activation: Activation, x: f32) -> f32 {
    match activation {
        // The exponential of the system's library differs between systems.
        Activation::Swish => x * sigmoid(x),
        _ => activation.apply(x),
    }
}

/// `relu6(x + 3) / 6`
pub fn hard_sigmoid(x: f32) -> f32 {
    (x + 3.0).clamp(0.0, 6.0) / 6.0
}

/// Input below which [`sigmoid`] gives zero, and above whose negative it stays the same.
const SATURATED: f32 = -18.0;

/// `1 / (1 + exp(-x))` to 2e-7: 1/2 plus an odd rational function of degrees 9 and 8.
fn sigmoid(x: f32) -> f32 {
    const ABOVE: [f32; 5] = [1.304_183_1e-11, 8.050_477e-8, 5.461_870_4e-5, 8.363_146e-3, 2.5e-1];
    const BELOW: [f32; 5] = [3.037_747_2e-9, 5.133_826_6e-6, 1.617_313_6e-3, 1.167_858_8e-1, 1.0];
    let inside = x.clamp(SATURATED, -SATURATED);
    let square = inside * inside;
    let polynomial = |terms: [f32; 5]| terms.into_iter().reduce(|sum, term| sum * square + term).unwrap_or(0.0);
    let odd = inside * polynomial(ABOVE) / polynomial(BELOW);
    if x > SATURATED { odd + 0.5 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_even_and_stays_in_range() {
        let half = Scale { scale: 0.5, zero_point: 10 };
        for (value, q) in [(0.0, 10), (0.25, 10), (0.75, 12), (-0.25, 10), (-0.75, 8), (1e9, 255), (-1e9, 0)] {
            assert_eq!(half.quantise(value), q, "{value}");
        }
        assert_eq!((half.quantise(f32::INFINITY), half.quantise(f32::NEG_INFINITY)), (255, 0));
        let odd = Scale { scale: 0.0371, zero_point: 113 };
        for q in 0..=255 {
            assert_eq!(odd.quantise(odd.dequantise(q)), q);
        }
    }

    #[test]
    fn activations_are_those_of_the_f32_network() {
        for x in (-2400..2400).map(|step| step as f32 / 100.0) {
            let exact = f64::from(x) / (1.0 + (-f64::from(x)).exp());
            assert!((f64::from(activate(Activation::Swish, x)) - exact).abs() <= 3e-7 * (1.0 + f64::from(x.abs())));
            assert_eq!(activate(Activation::HardSwish, x), Activation::HardSwish.apply(x));
            assert!((hard_sigmoid(x) - (x / 6.0 + 0.5).clamp(0.0, 1.0)).abs() < 1e-6);
        }
    }
}
