//! The learning rate of a step: linear warm-up, then a cosine to zero.

use std::f64::consts::PI;

/// Learning rate of step `step` (from 0) of `steps`, of which the first `warmup` rise linearly to `peak`.
///
/// The rise ends with `peak` at its last step; the cosine starts at `peak` and would be zero at step `steps`. A warm-up
/// as long as the stage is all rise.
pub fn learning_rate(peak: f64, step: usize, steps: usize, warmup: usize) -> f64 {
    if step < warmup {
        return peak * (step + 1) as f64 / warmup as f64;
    }
    if step >= steps {
        return 0.0;
    }
    let done = (step - warmup) as f64 / (steps - warmup) as f64;
    0.5 * peak * (1.0 + (PI * done).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_linearly_then_falls_to_zero() {
        let rates: Vec<f64> = (0..10).map(|s| learning_rate(0.8, s, 10, 4)).collect();
        for (rate, expected) in rates.iter().zip([0.2, 0.4, 0.6, 0.8, 0.8]) {
            assert!((rate - expected).abs() < 1e-12, "{rates:?}");
        }
        assert!(rates[4..].windows(2).all(|w| w[1] < w[0]), "{rates:?}");
        // Half of the cosine is done three steps after the warm-up.
        assert!((rates[7] - 0.4).abs() < 1e-12);
        assert_eq!(learning_rate(0.8, 10, 10, 4), 0.0);
    }

    #[test]
    fn edges() {
        assert_eq!(learning_rate(1.0, 0, 5, 0), 1.0);
        assert_eq!(learning_rate(1.0, 4, 5, 5), 1.0);
        assert_eq!(learning_rate(1.0, 0, 1, 0), 1.0);
    }
}
