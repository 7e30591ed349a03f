//! The linear part of a predictor: the separate contribution of each choice, before the network learns interactions of
//! choices.
//!
//! A sum over choices explains most of a subnet's accuracy, and the contributions mostly have the order of the choices'
//! sizes. A ridge regression with this prior needs fewer samples than the network, which would have to learn it.

use super::features::{Features, Group};
use crate::cholesky::{Cholesky, dot};
use ofa_supernet::SearchSpace;

/// Expected contribution of a block's presence, a resolution or a width, relative to that of a kernel size or expand
/// ratio.
const LARGE: f64 = 2.0;
/// Expected deviation of a middle choice from the line between its neighbours, relative to the contribution of a kernel
/// size or expand ratio.
const BENT: f64 = 0.5;
/// Candidate strengths of the prior, in units of the targets' variance.
const PRIORS: [f64; 7] = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0];

/// The prior: a vector per one-hot feature. Weights of unit variance for the entries of these vectors give features
/// weights with the expected variances and correlations.
pub(super) struct Basis {
    width: usize,
    /// `[features, width]`
    rows: Vec<f64>,
}

impl Basis {
    pub(super) fn new(space: &SearchSpace) -> Self {
        let mut columns: Vec<Vec<(usize, f64)>> = Vec::new();
        let features = Features::new(space);
        for Group { features: group, of_slot, is_first } in features.groups() {
            if of_slot && is_first {
                columns.push(group.clone().map(|feature| (feature, LARGE)).collect());
            }
            let scale = if of_slot { 1.0 } else { LARGE };
            let (choices, last) = (group.len() as f64, group.len().saturating_sub(1).max(1) as f64);
            let places = || group.clone().enumerate();
            columns
                .push(places().map(|(place, feature)| (feature, scale * (2.0 * place as f64 / last - 1.0))).collect());
            for middle in 1..group.len().saturating_sub(1) {
                let off = |place| BENT * (f64::from(u8::from(place == middle)) - 1.0 / choices);
                columns.push(places().map(|(place, feature)| (feature, off(place))).collect());
            }
        }
        let width = columns.len();
        let mut rows = vec![0.0; features.count() * width];
        for (column, entries) in columns.into_iter().enumerate() {
            entries.into_iter().for_each(|(feature, value)| rows[feature * width + column] = value);
        }
        Basis { width, rows }
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    fn row(&self, feature: usize) -> &[f64] {
        &self.rows[feature * self.width..][..self.width]
    }

    /// Sum of the rows of a subnet's features, `[width]`.
    pub(super) fn of(&self, active: &[usize]) -> Vec<f64> {
        let mut sum = vec![0.0; self.width];
        for &feature in active {
            sum.iter_mut().zip(self.row(feature)).for_each(|(sum, value)| *sum += value);
        }
        sum
    }
}

/// Adds the outer product of `row` with itself to the lower triangle of `matrix`.
pub(super) fn add_square(matrix: &mut [f64], row: &[f64]) {
    for (i, line) in matrix.chunks_exact_mut(row.len()).enumerate() {
        line[..=i].iter_mut().zip(row).for_each(|(sum, value)| *sum += row[i] * value);
    }
}

/// A linear function of one-hot features.
pub(super) struct Linear {
    /// Weight of each feature.
    pub weights: Vec<f64>,
    pub bias: f64,
}

impl Linear {
    /// Ridge regression with the strength of the prior that best predicts each sample from the others (leave-one-out,
    /// in closed form: Golub, Heath and Wahba, Technometrics 1979).
    pub(super) fn fit(basis: &Basis, inputs: &[Vec<usize>], targets: &[f64]) -> Self {
        let (count, width) = (targets.len() as f64, basis.width);
        let mean = targets.iter().sum::<f64>() / count;
        let variance = targets.iter().map(|t| (t - mean).powi(2)).sum::<f64>() / count;
        let mut rows: Vec<Vec<f64>> = inputs.iter().map(|active| basis.of(active)).collect();
        let mut centre = vec![0.0; width];
        rows.iter().for_each(|row| centre.iter_mut().zip(row).for_each(|(c, v)| *c += v / count));
        rows.iter_mut().for_each(|row| row.iter_mut().zip(&centre).for_each(|(v, c)| *v -= c));
        let (mut square, mut product) = (vec![0.0; width * width], vec![0.0; width]);
        for (row, target) in rows.iter().zip(targets) {
            add_square(&mut square, row);
            product.iter_mut().zip(row).for_each(|(sum, value)| *sum += value * (target - mean));
        }
        let fit = |prior: f64| -> Option<(f64, Vec<f64>)> {
            let mut regular = square.clone();
            regular.iter_mut().step_by(width + 1).for_each(|diagonal| *diagonal += prior);
            let factor = Cholesky::new(regular, width)?;
            let solution = factor.solve(product.clone());
            let unseen = rows.iter().zip(targets).map(|(row, target)| {
                let known = factor.forward(row.clone());
                (target - mean - dot(row, &solution)) / (1.0 - dot(&known, &known) - 1.0 / count).max(1e-9)
            });
            Some((unseen.map(|error| error * error).sum(), solution))
        };
        // Without spread there is nothing to explain, and no prior is better than another.
        let fits = PRIORS.into_iter().filter(|_| variance > 0.0).filter_map(fit);
        let best = fits.reduce(|best, next| if next.0 < best.0 { next } else { best });
        let solution = best.map_or_else(|| vec![0.0; width], |(_, solution)| solution);
        let features = basis.rows.len() / width;
        let weights = (0..features).map(|feature| dot(basis.row(feature), &solution)).collect();
        Linear { weights, bias: mean - dot(&centre, &solution) }
    }

    pub(super) fn predict(&self, active: &[usize]) -> f64 {
        self.bias + active.iter().map(|&feature| self.weights[feature]).sum::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofa_supernet::seed::{Stream, generator};
    use rand::Rng;

    #[test]
    fn finds_a_sum_over_choices_from_few_samples_despite_noise() {
        for (name, count) in [("mbv3-w1.0", 90), ("resnet-tiny", 40)] {
            let space = SearchSpace::named(name).unwrap();
            let basis = Basis::new(&space);
            let features = Features::new(&space);
            let inputs = |from: u64, count: u64| -> Vec<Vec<usize>> {
                let subnet = |i| space.sample(&mut generator(3, Stream::Sampling, &[from + i]));
                (0..count).map(|i| features.of(&subnet(i)).unwrap()).collect()
            };
            let mut rng = generator(0, Stream::Weights, &[]);
            let truth: Vec<f64> = (0..basis.width()).map(|_| rng.random_range(-0.01..0.01)).collect();
            let accuracy = |active: &Vec<usize>| 0.7 + dot(&basis.of(active), &truth);
            let (seen, unseen) = (inputs(0, count), inputs(10_000, 300));
            let spread = |values: &[f64]| {
                let mean = values.iter().sum::<f64>() / values.len() as f64;
                (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
            };
            let expected: Vec<f64> = unseen.iter().map(accuracy).collect();
            for noise in [0.0, 0.02] {
                let mut noisy = || noise * (rng.random::<f64>() - 0.5);
                let targets: Vec<f64> = seen.iter().map(|active| accuracy(active) + noisy()).collect();
                let linear = Linear::fit(&basis, &seen, &targets);
                let errors: Vec<f64> =
                    unseen.iter().zip(&expected).map(|(active, expected)| linear.predict(active) - expected).collect();
                assert!(
                    spread(&errors) < 0.5 * spread(&expected),
                    "{name} {noise}: {} {}",
                    spread(&errors),
                    spread(&expected)
                );
            }
        }
    }

    #[test]
    fn equal_targets_have_no_weights() {
        let space = SearchSpace::named("tiny").unwrap();
        let inputs = [space.smallest(), space.largest()].map(|s| Features::new(&space).of(&s).unwrap());
        let linear = Linear::fit(&Basis::new(&space), &inputs, &[0.5, 0.5]);
        assert!(linear.weights.iter().all(|&w| w == 0.0) && linear.predict(&inputs[0]) == 0.5);
    }
}
