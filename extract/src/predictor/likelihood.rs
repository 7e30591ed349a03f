//! How much each group of a subnet's numbers counts in the covariance of a Gaussian process.
//!
//! The logarithms of all weights have normal priors; the posterior density's gradient is known in closed form, and
//! resilient steps (iRprop-: Igel and Hüsken, Neurocomputing 2003) climb it. They need no line search, and their path
//! does not depend on the scale of the density.

use crate::cholesky::{Cholesky, dot};
use rayon::prelude::*;

/// Weights of the covariance; one of `linear` and `scale` for each group.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shape {
    /// Variances of the linear function's slopes.
    pub linear: Vec<f64>,
    /// Weights of squared distances.
    pub scale: Vec<f64>,
    /// Variance of what choices do together.
    pub together: f64,
    /// Variance of the noise.
    pub noise: f64,
}

/// Centres of the priors of `linear` and of `scale`: for columns, and for totals, which explain more by themselves.
/// With a larger centre for `linear`, the many slopes fit noise, which a search then chooses.
const COLUMN: [f64; 2] = [0.0003, 0.02];
const TOTAL: [f64; 2] = [0.02, 0.03];
/// Centres of the priors of `together` and of `noise`.
const TOGETHER: f64 = 0.3;
const NOISE: f64 = 0.05;
/// Standard deviations of the logarithms of `linear`, which differs more from space to space, and of all other weights.
const LINEAR_DEVIATION: f64 = 1.5;
const OTHER_DEVIATION: f64 = 1.0;
/// First value of `linear`, as a multiple of its prior's centre. From a smaller one, what choices do together would
/// explain what slopes can.
const LINEAR_START: f64 = 16.0;
/// Steps, which are enough on all data that was tried: with 80 no figure is better.
const STEPS: usize = 30;
/// First step of a logarithm, and the smallest and the largest.
const FIRST: f64 = 0.3;
const SMALLEST: f64 = 1e-3;
const LARGEST: f64 = 1.0;

impl Shape {
    fn of_logarithms(logarithms: &[f64]) -> Self {
        let values: Vec<f64> = logarithms.iter().map(|value| value.exp()).collect();
        let groups = (values.len() - 2) / 2;
        let (linear, rest) = values.split_at(groups);
        let (scale, rest) = rest.split_at(groups);
        Shape { linear: linear.to_vec(), scale: scale.to_vec(), together: rest[0], noise: rest[1] }
    }

    /// All weights in one list: those of `linear`, of `scale`, `together` and `noise`.
    pub(super) fn to_list(&self) -> Vec<f64> {
        [&self.linear[..], &self.scale, &[self.together, self.noise]].concat()
    }

    /// The weights of `groups` groups in the order of [`to_list`](Self::to_list); `None` for another number of them, or
    /// one that is not positive.
    pub(super) fn from_list(list: &[f64], groups: usize) -> Option<Self> {
        let usable = list.len() == 2 * groups + 2 && list.iter().all(|value| value.is_finite() && *value > 0.0);
        usable.then(|| Shape {
            linear: list[..groups].to_vec(),
            scale: list[groups..2 * groups].to_vec(),
            together: list[2 * groups],
            noise: list[2 * groups + 1],
        })
    }
}

/// A number of each sample, and the group it belongs to.
pub(super) struct Feature {
    pub group: usize,
    /// Whether the number is a sum over many choices.
    pub is_total: bool,
    pub of_samples: Vec<f64>,
}

/// Covariance of all pairs of samples without noise, `[samples, samples]`.
pub(super) fn covariance(features: &[Feature], shape: &Shape, samples: usize) -> Vec<f64> {
    let mut rows = vec![0.0; samples * samples];
    rows.par_chunks_exact_mut(samples).enumerate().for_each(|(i, row)| {
        let mut distances = vec![0.0; samples];
        row.fill(1.0);
        for Feature { group, of_samples, .. } in features {
            let (linear, scale, own) = (shape.linear[*group], shape.scale[*group], of_samples[i]);
            for ((sum, distance), other) in row.iter_mut().zip(&mut distances).zip(of_samples) {
                *sum += linear * own * other;
                *distance += scale * (own - other) * (own - other);
            }
        }
        row.iter_mut().zip(distances).for_each(|(sum, distance)| *sum += shape.together * (-0.5 * distance).exp());
    });
    rows
}

/// The most likely shape, given the scaled accuracies `targets` of the first samples; `progress` gets the steps done,
/// all steps, and the root mean squared leave-one-out error. Same input, same bits.
pub(super) fn most_likely(
    features: &[Feature],
    groups: usize,
    targets: &[f64],
    progress: &mut dyn FnMut(usize, usize, f64),
) -> Shape {
    let products = Products::new(features, groups, targets.len());
    let mut centres = vec![COLUMN; groups];
    features.iter().filter(|feature| feature.is_total).for_each(|feature| centres[feature.group] = TOTAL);
    let of_groups = [0, 1].map(|part| centres.iter().map(|centre| centre[part].ln()).collect::<Vec<f64>>());
    let centre = [of_groups.concat(), vec![TOGETHER.ln(), NOISE.ln()]].concat();
    let mut point = centre.clone();
    point[..groups].iter_mut().for_each(|logarithm| *logarithm += LINEAR_START.ln());
    let mut deviations = vec![OTHER_DEVIATION; point.len()];
    deviations[..groups].fill(LINEAR_DEVIATION);
    let mut steps = vec![FIRST; point.len()];
    let mut before = vec![0.0; point.len()];
    let mut best: Option<(f64, Vec<f64>)> = None;
    for done in 1..=STEPS {
        let Some(mut density) = products.density(&Shape::of_logarithms(&point), targets) else { break };
        let prior = point.iter().zip(&centre).zip(&deviations);
        for (gradient, ((value, centre), deviation)) in density.gradient.iter_mut().zip(prior) {
            let away = (value - centre) / deviation;
            density.negative_logarithm += 0.5 * away * away;
            *gradient += away / deviation;
        }
        progress(done, STEPS, density.error);
        if best.as_ref().is_none_or(|(least, _)| density.negative_logarithm < *least) {
            best = Some((density.negative_logarithm, point.clone()));
        }
        for (((value, step), before), gradient) in
            point.iter_mut().zip(&mut steps).zip(&mut before).zip(density.gradient)
        {
            let turn = *before * gradient;
            *step = (*step
                * if turn > 0.0 {
                    1.2
                } else if turn < 0.0 {
                    0.5
                } else {
                    1.0
                })
            .clamp(SMALLEST, LARGEST);
            *before = if turn < 0.0 { 0.0 } else { gradient };
            *value -= if *before == 0.0 { 0.0 } else { before.signum() * *step };
        }
    }
    Shape::of_logarithms(&best.map_or(centre, |(_, point)| point))
}

/// Inner products of samples within each group, `[samples, samples]` each.
struct Products {
    samples: usize,
    groups: Vec<Vec<f64>>,
}

/// Density of the targets for a shape.
struct Density {
    negative_logarithm: f64,
    /// By the logarithm of each weight, in the order of [`Shape::to_list`].
    gradient: Vec<f64>,
    /// Root mean squared leave-one-out error.
    error: f64,
}

impl Products {
    fn new(features: &[Feature], groups: usize, samples: usize) -> Self {
        let of_group = |group: usize| {
            let mut product = vec![0.0; samples * samples];
            for feature in features.iter().filter(|feature| feature.group == group) {
                let values = &feature.of_samples[..samples];
                for (row, own) in product.chunks_exact_mut(samples).zip(values) {
                    row.iter_mut().zip(values).for_each(|(sum, other)| *sum += own * other);
                }
            }
            product
        };
        Products { samples, groups: (0..groups).into_par_iter().map(of_group).collect() }
    }

    /// `None` where the covariance has no Cholesky factor.
    fn density(&self, shape: &Shape, targets: &[f64]) -> Option<Density> {
        let count = self.samples;
        let mut covariance = vec![0.0; count * count];
        let mut together = vec![0.0; count * count];
        let rows = covariance.par_chunks_exact_mut(count).zip(together.par_chunks_exact_mut(count));
        rows.enumerate().for_each(|(i, (sum, together))| {
            sum.fill(1.0);
            for (product, (linear, scale)) in self.groups.iter().zip(shape.linear.iter().zip(&shape.scale)) {
                let own = product[i * count + i];
                for (j, (sum, together)) in sum.iter_mut().zip(&mut *together).enumerate() {
                    let inner = product[i * count + j];
                    *sum += linear * inner;
                    *together += scale * (own + product[j * count + j] - 2.0 * inner);
                }
            }
            for (sum, together) in sum.iter_mut().zip(together) {
                *together = shape.together * (-0.5 * *together).exp();
                *sum += *together;
            }
            sum[i] += shape.noise;
        });
        let cholesky = Cholesky::new(covariance, count)?;
        let weights = cholesky.solve(targets.to_vec());
        // Half of the inverse less the weights' outer product: the density's gradient by the covariance.
        let mut by_covariance = cholesky.inverse();
        let diagonal: Vec<f64> = by_covariance.iter().step_by(count + 1).copied().collect();
        for (row, own) in by_covariance.chunks_exact_mut(count).zip(&weights) {
            row.iter_mut().zip(&weights).for_each(|(value, other)| *value = 0.5 * (*value - own * other));
        }
        let by_noise = shape.noise * by_covariance.iter().step_by(count + 1).sum::<f64>();
        together.iter_mut().zip(&by_covariance).for_each(|(together, by)| *together *= by);
        let row_sums: Vec<f64> = together.chunks_exact(count).map(|row| row.iter().sum()).collect();
        let of_group = |(group, product): (usize, &Vec<f64>)| {
            let diagonal: f64 = product.iter().step_by(count + 1).zip(&row_sums).map(|(own, sum)| own * sum).sum();
            let distances = 2.0 * (diagonal - dot(&together, product));
            (shape.linear[group] * dot(&by_covariance, product), -0.5 * shape.scale[group] * distances)
        };
        let (by_linear, by_scale): (Vec<f64>, Vec<f64>) = self.groups.par_iter().enumerate().map(of_group).unzip();
        let errors = weights.iter().zip(&diagonal).map(|(weight, precision)| (weight / precision).powi(2));
        Some(Density {
            negative_logarithm: 0.5 * dot(targets, &weights) + 0.5 * cholesky.log_determinant(),
            gradient: [by_linear, by_scale, vec![row_sums.iter().sum(), by_noise]].concat(),
            error: (errors.sum::<f64>() / count as f64).sqrt(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofa_supernet::seed::{Stream, generator};
    use rand::Rng;

    fn problem(samples: usize) -> (Vec<Feature>, Vec<f64>) {
        let mut rng = generator(3, Stream::Weights, &[]);
        let mut feature = |group| Feature {
            group,
            is_total: false,
            of_samples: (0..samples).map(|_| rng.random_range(-1.5..1.5)).collect(),
        };
        let features: Vec<Feature> = [0, 0, 1, 2].map(&mut feature).into();
        let target = |i: usize| {
            let [a, b, c] = [0, 1, 2].map(|f: usize| features[f].of_samples[i]);
            0.8 * a + 0.3 * (b * c).sin()
        };
        let targets = (0..samples).map(target).collect();
        (features, targets)
    }

    #[test]
    fn the_gradient_is_that_of_finite_differences() {
        let (features, targets) = problem(23);
        let products = Products::new(&features, 3, 23);
        let point: Vec<f64> = (0..8).map(|i| -1.0 + 0.1 * f64::from(i)).collect();
        let density = |point: &[f64]| products.density(&Shape::of_logarithms(point), &targets).unwrap();
        let gradient = density(&point).gradient;
        for (index, found) in gradient.iter().enumerate() {
            let at = |step: f64| {
                let mut moved = point.clone();
                moved[index] += step;
                density(&moved).negative_logarithm
            };
            let expected = (at(1e-4) - at(-1e-4)) / 2e-4;
            assert!((found - expected).abs() < 1e-6 * (1.0 + expected.abs()), "{index}: {found} for {expected}");
        }
    }

    #[test]
    fn both_covariances_are_one_and_a_group_without_influence_is_found() {
        let (features, targets) = problem(60);
        let shape = most_likely(&features, 3, &targets, &mut |_, _, _| {});
        // What a group counts in both parts together.
        let counts = |group: usize| shape.linear[group] + shape.together * shape.scale[group];
        assert!(counts(0) > 8.0 * counts(2) && counts(1) > 8.0 * counts(2), "{shape:?}");
        assert_eq!(Shape::from_list(&shape.to_list(), 3), Some(shape.clone()));
        assert_eq!(Shape::from_list(&shape.to_list(), 2), None);
        let whole = covariance(&features, &shape, 60);
        let noisy = Shape { noise: 0.1, ..shape };
        let mut rows = whole.clone();
        rows.iter_mut().step_by(61).for_each(|diagonal| *diagonal += noisy.noise);
        let cholesky = Cholesky::new(rows, 60).unwrap();
        let products = Products::new(&features, 3, 60);
        let expected = 0.5 * (dot(&targets, &cholesky.solve(targets.clone())) + cholesky.log_determinant());
        let found = products.density(&noisy, &targets).unwrap().negative_logarithm;
        assert!((found - expected).abs() < 1e-9 * expected.abs(), "{found} {expected}");
    }
}
