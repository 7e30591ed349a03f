//! Rounding with gradients.

use rayon::prelude::*;

/// Values whose derivatives are added up by one thread.
const CHUNK: usize = 1 << 14;

/// The numbers `scale * q` for the integers `q` from `least` to `most`.
///
/// Rounding to them has no useful derivative, so the straight-through estimator takes that of `round` as 1 (Bengio et
/// al., 2013). Inside the range the derivative of `scale * round(x / scale)` is then 1 by `x` and
/// `round(x / scale) - x / scale` by the scale; outside it is 0 by `x` and the bound by the scale (Esser et al., ICLR
/// 2020).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid {
    pub scale: f32,
    pub least: f32,
    pub most: f32,
}

impl Grid {
    /// The nearest number of the grid.
    pub fn round(self, x: f32) -> f32 {
        (x * (1.0 / self.scale)).round_ties_even().clamp(self.least, self.most) * self.scale
    }

    /// Derivatives of [`round`](Self::round) by `x` and by the logarithm of the scale.
    fn slopes(self, x: f32) -> (f32, f32) {
        let real = x * (1.0 / self.scale);
        let q = real.round_ties_even().clamp(self.least, self.most);
        let inside = (self.least..=self.most).contains(&real);
        let (by_x, by_scale) = if inside { (1.0, q - real) } else { (0.0, q) };
        (by_x, self.scale * by_scale)
    }

    /// Turns the gradients at the rounded values into those at `values`, and returns the gradient at the logarithm of
    /// the scale. Sums do not depend on the number of threads.
    pub fn backward(self, values: &[f32], gradients: &mut [f32]) -> f32 {
        let parts = gradients.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).map(|(gradients, values)| {
            let mut at_scale = 0.0f64;
            for (gradient, value) in gradients.iter_mut().zip(values) {
                let (by_x, by_scale) = self.slopes(*value);
                at_scale += f64::from(*gradient * by_scale);
                *gradient *= by_x;
            }
            at_scale
        });
        parts.collect::<Vec<f64>>().into_iter().sum::<f64>() as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The function whose exact derivatives the estimator uses at `x0` and `scale0`: rounding adds what it adds there.
    fn straight_through(grid: Grid, x0: f32) -> impl Fn(f64, f64) -> f64 {
        let real = f64::from(x0) / f64::from(grid.scale);
        let added = real.round_ties_even() - real;
        let (least, most) = (f64::from(grid.least), f64::from(grid.most));
        move |x: f64, scale: f64| {
            let real = x / scale;
            if (least..=most).contains(&real) { scale * (real + added) } else { scale * real.clamp(least, most) }
        }
    }

    #[test]
    fn gradients_are_those_of_the_straight_through_definition() {
        for (least, most) in [(-127.0, 127.0), (0.0, 255.0), (-63.0, 63.0), (-113.0, 142.0)] {
            for scale in [0.02f32, 0.7] {
                let grid = Grid { scale, least, most };
                // Not near the steps of `round`.
                let values: Vec<f32> = (-4000..4000).map(|i| scale * (i as f32 / 10.0 + 0.0217)).collect();
                assert!(values.iter().any(|x| x / scale < least) && values.iter().any(|x| x / scale > most));
                let mut gradients = vec![2.0; values.len()];
                let total = grid.backward(&values, &mut gradients);
                let (step, mut expected_total) = (1e-6, 0.0);
                for (&x, gradient) in values.iter().zip(gradients) {
                    let f = straight_through(grid, x);
                    let (at, scale) = (f64::from(x), f64::from(scale));
                    assert!((f(at, scale) - f64::from(grid.round(x))).abs() < 1e-4 * scale * 255.0);
                    let by_x = (f(at + step, scale) - f(at - step, scale)) / (2.0 * step);
                    let by_log = |sign: f64| f(at, scale * (sign * step).exp());
                    expected_total += 2.0 * (by_log(1.0) - by_log(-1.0)) / (2.0 * step);
                    assert!((f64::from(gradient) - 2.0 * by_x).abs() < 1e-4, "{x} {grid:?}: {gradient} {by_x}");
                    // Where the true function is differentiable in the scale, the estimator adds the slope of `round`.
                    let true_value = |sign: f64| {
                        let scale = scale * (sign * step).exp();
                        scale * (at / scale).round_ties_even().clamp(f64::from(least), f64::from(most))
                    };
                    let exact = (true_value(1.0) - true_value(-1.0)) / (2.0 * step);
                    let estimated = f64::from(grid.slopes(x).1) + f64::from(gradient) / 2.0 * at;
                    assert!(
                        (exact - estimated).abs() < 1e-3 * (1.0 + exact.abs()),
                        "{x} {grid:?}: {exact} {estimated}"
                    );
                }
                assert!((f64::from(total) - expected_total).abs() < 1e-3 * (1.0 + expected_total.abs()), "{grid:?}");
            }
        }
    }
}
