//! Numbers that are learned, with Adam (Kingma & Ba, ICLR 2015).

/// Decay of the mean gradient and of the mean squared gradient.
const DECAYS: (f64, f64) = (0.9, 0.999);

/// Keeps a step finite where all gradients were zero.
const EPSILON: f64 = 1e-12;

/// Numbers in groups of equal length, such as the weights of output channels. A step moves them by a share of their
/// group's size: weights with batch norm folded in differ by orders of magnitude from channel to channel.
#[derive(Debug, Clone)]
pub struct Parameter {
    pub values: Vec<f32>,
    /// Size of the numbers of each group.
    pub sizes: Vec<f32>,
    /// Gradients for the next step.
    pub gradients: Vec<f32>,
    /// Means of the gradients and of their squares.
    means: Vec<(f32, f32)>,
}

impl Parameter {
    /// `values` in as many groups as there are `sizes`.
    pub fn new(values: Vec<f32>, sizes: Vec<f32>) -> Self {
        let count = values.len();
        Parameter { values, sizes, gradients: vec![0.0; count], means: vec![(0.0, 0.0); count] }
    }

    /// Logarithms of positive numbers.
    pub fn logarithms(values: &[f32]) -> Self {
        Parameter::new(values.iter().map(|value| value.ln()).collect(), vec![1.0])
    }

    /// Step number `step`, from 1.
    pub fn step(&mut self, rate: f64, step: i32) {
        let (first, second) = DECAYS;
        let (unbiased, unbiased_square) = (1.0 - first.powi(step), 1.0 - second.powi(step));
        let group = self.values.len().div_ceil(self.sizes.len().max(1)).max(1);
        let numbers = self.values.iter_mut().zip(&self.gradients).zip(&mut self.means).enumerate();
        for (index, ((value, &gradient), means)) in numbers {
            let (size, gradient) = (f64::from(self.sizes[index / group]), f64::from(gradient));
            // The gradient by the number in units of its size.
            let gradient = gradient * size;
            let mean = first * f64::from(means.0) + (1.0 - first) * gradient;
            let square = second * f64::from(means.1) + (1.0 - second) * gradient * gradient;
            *means = (mean as f32, square as f32);
            let direction = mean / unbiased / ((square / unbiased_square).sqrt() + EPSILON);
            *value -= (rate * size * direction) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_a_share_of_the_size_whatever_the_gradient() {
        let mut parameter = Parameter::new(vec![1.0, 2.0, 300.0, 400.0], vec![1.0, 200.0]);
        parameter.gradients = vec![1e-3, -50.0, 0.0, 7.0];
        parameter.step(0.01, 1);
        let expected = [0.99, 2.01, 300.0, 398.0];
        for (value, expected) in parameter.values.iter().zip(expected) {
            assert!((value - expected).abs() < 1e-4 * expected, "{:?}", parameter.values);
        }
    }

    #[test]
    fn it_finds_the_least_of_a_parabola() {
        let mut parameter = Parameter::new(vec![3.0, -2.0], vec![1.0, 1.0]);
        for step in 1..=2000 {
            parameter.gradients = vec![2.0 * (parameter.values[0] - 1.0), 8.0 * (parameter.values[1] + 0.5)];
            parameter.step(0.01, step);
        }
        assert!((parameter.values[0] - 1.0).abs() < 1e-3 && (parameter.values[1] + 0.5).abs() < 1e-3, "{parameter:?}");
    }
}
