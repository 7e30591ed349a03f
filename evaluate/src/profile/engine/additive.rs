//! Times of layers from times of whole networks.
//!
//! A network takes the sum of its layers' times and the overhead of a run. There are more layers than measured
//! networks, so a layer's time starts from what its costs suggest, and moves away from there as the measurements ask:
//!
//! 1. *Prior.* Non-negative factors of the costs ([`Costs`]), common to all layers, explain the networks' times as well
//!    as they can (least squared relative error).
//! 2. *Posterior.* Deviations from the prior are a Gaussian process over layers: relative to the prior, alike for
//!    layers of like costs, with a part of their own for each layer. A sum of layers is then Gaussian too, so that the
//!    measured networks give the expected time of each layer. The sizes of the parts and of the noise are those that
//!    predict each network best from all others; a time that contradicts all others counts less.
//! 3. *No layer takes less than nothing.* Layers whose expected time is negative are set to zero and the others solved
//!    again.

use super::layer_costs::{COSTS, Costs, Sum};
use crate::cholesky::Cholesky;
use crate::latency::median;

/// Relative deviation of layers from the prior, the share of it that each layer has by itself, and the relative noise
/// of measured times, each to choose from.
const DEVIATIONS: [f64; 4] = [0.05, 0.15, 0.4, 1.0];
const OWN_SHARES: [f64; 3] = [0.05, 0.3, 0.8];
const NOISES: [f64; 4] = [0.005, 0.015, 0.03, 0.08];

/// Deviations from the prediction of all other networks beyond which a time is doubted, and how often that is asked.
const CONTRADICTION: f64 = 2.5;
const REWEIGHTINGS: usize = 2;

/// Milliseconds per unit of each cost where nothing is measured yet, and of the overhead.
const GUESS: [f64; COSTS + 1] = [3e-8, 2e-7, 4e-7, 1e-7, 4e-3, 2e-3, 0.02];

/// Expected times of layers before a network is measured, and which layers deviate alike.
pub struct Prior {
    /// Milliseconds of each layer, positive.
    means: Vec<f64>,
    /// Logarithms of each layer's costs; none for the overhead, which is like no layer.
    places: Vec<Option<[f64; COSTS]>>,
}

/// Covariance of two sums of layers in its two parts: of like layers, and of each layer by itself.
#[derive(Clone, Copy, Default)]
struct Parts {
    alike: f64,
    own: f64,
}

/// Sizes of deviations and noise.
#[derive(Clone, Copy)]
struct Sizes {
    deviation: f64,
    own_share: f64,
    noise: f64,
}

impl Sizes {
    fn of(&self, parts: Parts) -> f64 {
        self.deviation.powi(2) * ((1.0 - self.own_share) * parts.alike + self.own_share * parts.own)
    }
}

impl Prior {
    /// The prior without measurements.
    pub fn guess(costs: &[Costs]) -> Self {
        Prior::with_factors(costs, &GUESS)
    }

    /// The prior whose factors explain the times of `sums` best.
    fn fitted(costs: &[Costs], sums: &[Sum], times: &[f64]) -> Self {
        let row = |(sum, ms): (&Sum, &f64)| {
            let mut row = [0.0; COSTS + 1];
            for &(layer, count) in sum {
                row.iter_mut().zip(&costs[layer]).for_each(|(total, cost)| *total += count * cost / ms);
            }
            row[COSTS] = 1.0 / ms;
            row
        };
        let rows: Vec<[f64; COSTS + 1]> = sums.iter().zip(times).map(row).collect();
        Prior::with_factors(costs, &non_negative_factors(&rows))
    }

    fn with_factors(costs: &[Costs], factors: &[f64; COSTS + 1]) -> Self {
        let mut means: Vec<f64> =
            costs.iter().map(|costs| costs.iter().zip(factors).map(|(cost, factor)| cost * factor).sum()).collect();
        let typical = median(&means).unwrap_or(0.0).max(1e-6);
        if let Some(overhead) = means.last_mut() {
            *overhead = factors[COSTS];
        }
        // A layer without a time could not deviate.
        means.iter_mut().for_each(|mean| *mean = mean.max(0.02 * typical));
        let last = costs.len().saturating_sub(1);
        let place = |(index, costs): (usize, &Costs)| (index < last).then(|| costs.map(|cost| (1.0 + cost).ln()));
        Prior { means, places: costs.iter().enumerate().map(place).collect() }
    }

    /// Expected milliseconds of a sum.
    pub fn mean(&self, sum: &Sum) -> f64 {
        sum.iter().map(|&(layer, count)| count * self.means[layer]).sum()
    }

    /// Covariance of two sums with deviations and shares of middle size, for choosing networks.
    pub fn covariance(&self, a: &Sum, b: &Sum) -> f64 {
        Sizes { deviation: DEVIATIONS[1], own_share: OWN_SHARES[1], noise: NOISES[1] }.of(self.parts(a, b))
    }

    fn parts(&self, a: &Sum, b: &Sum) -> Parts {
        let mut parts = Parts::default();
        for &(first, count) in a {
            for &(second, other) in b {
                let product = count * other * self.means[first] * self.means[second];
                if first == second {
                    parts.own += product;
                    parts.alike += product;
                } else if let (Some(a), Some(b)) = (&self.places[first], &self.places[second]) {
                    let distance: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
                    parts.alike += product * (-0.5 * distance).exp();
                }
            }
        }
        parts
    }
}

/// Milliseconds of each layer (and of the overhead, the last) from the times of `sums`; `None` without any.
pub fn layer_times(costs: &[Costs], sums: &[Sum], times: &[f64]) -> Option<Vec<f64>> {
    if sums.is_empty() {
        return None;
    }
    let prior = Prior::fitted(costs, sums, times);
    let parts: Vec<Vec<Parts>> =
        (0..sums.len()).map(|i| (0..=i).map(|j| prior.parts(&sums[i], &sums[j])).collect()).collect();
    let residuals: Vec<f64> = sums.iter().zip(times).map(|(sum, ms)| ms - prior.mean(sum)).collect();
    let mut doubts = vec![0.0; times.len()];
    for _ in 0..REWEIGHTINGS {
        let sizes = best_sizes(&parts, &residuals, times, &doubts)?;
        let cholesky = factor(&parts, &sizes, &noises(&sizes, times, &doubts))?;
        doubts = doubts_of(&cholesky, &residuals, &doubts);
    }
    let sizes = best_sizes(&parts, &residuals, times, &doubts)?;
    let noises = noises(&sizes, times, &doubts);
    let mut found = Solver { prior: &prior, sizes, sums: sums.to_vec(), parts, residuals, noises };
    loop {
        let solved = found.solve()?;
        let zeroed = |layer: usize| found.sums[sums.len()..].iter().any(|sum| sum[0].0 == layer);
        let negative: Vec<usize> = (0..costs.len()).filter(|&layer| solved[layer] < 0.0 && !zeroed(layer)).collect();
        if negative.is_empty() {
            return Some(solved.into_iter().map(|ms| ms.max(0.0)).collect());
        }
        negative.into_iter().for_each(|layer| found.set_to_zero(layer));
    }
}

/// The sizes that predict each network best from all others.
fn best_sizes(parts: &[Vec<Parts>], residuals: &[f64], times: &[f64], doubts: &[f64]) -> Option<Sizes> {
    let settings = DEVIATIONS.iter().flat_map(|&deviation| {
        let shares = OWN_SHARES.iter().map(move |&own_share| (deviation, own_share));
        shares.flat_map(|(deviation, own_share)| NOISES.map(|noise| Sizes { deviation, own_share, noise }))
    });
    let scored = settings.filter_map(|sizes| {
        let cholesky = factor(parts, &sizes, &noises(&sizes, times, doubts))?;
        Some((likelihood_of_each(&cholesky, residuals), sizes))
    });
    Some(scored.max_by(|a, b| a.0.total_cmp(&b.0))?.1)
}

/// Variances of the noise of each network's time.
fn noises(sizes: &Sizes, times: &[f64], doubts: &[f64]) -> Vec<f64> {
    times.iter().zip(doubts).map(|(ms, doubt)| (sizes.noise * ms).powi(2) + doubt).collect()
}

/// Variances besides of networks whose times contradict all others: the square of the contradiction. `before` are those
/// in `cholesky`.
fn doubts_of(cholesky: &Cholesky, residuals: &[f64], before: &[f64]) -> Vec<f64> {
    let weights = cholesky.solve(residuals.to_vec());
    let doubt = |((weight, precision), before): ((&f64, f64), &f64)| {
        let (square, variance) = ((weight / precision).powi(2), 1.0 / precision - before);
        if square > CONTRADICTION.powi(2) * variance { square } else { 0.0 }
    };
    weights.iter().zip(cholesky.inverse_diagonal()).zip(before).map(doubt).collect()
}

struct Solver<'a> {
    prior: &'a Prior,
    sizes: Sizes,
    /// The networks, and behind them layers that are set to zero.
    sums: Vec<Sum>,
    /// Lower triangle of their covariances.
    parts: Vec<Vec<Parts>>,
    /// Differences from the prior.
    residuals: Vec<f64>,
    /// Variances of their noise.
    noises: Vec<f64>,
}

impl Solver<'_> {
    /// Expected times of all layers.
    fn solve(&self) -> Option<Vec<f64>> {
        let weights = factor(&self.parts, &self.sizes, &self.noises)?.solve(self.residuals.clone());
        let expected = |layer: usize| {
            let single = vec![(layer, 1.0)];
            let across = self.sums.iter().map(|sum| self.sizes.of(self.prior.parts(&single, sum)));
            self.prior.means[layer] + across.zip(&weights).map(|(across, weight)| across * weight).sum::<f64>()
        };
        Some((0..self.prior.means.len()).map(expected).collect())
    }

    /// Adds the equation that a layer takes no time.
    fn set_to_zero(&mut self, layer: usize) {
        let sum = vec![(layer, 1.0)];
        self.residuals.push(-self.prior.means[layer]);
        self.noises.push((1e-3 * self.prior.means[layer]).powi(2));
        self.sums.push(sum);
        let last = &self.sums[self.sums.len() - 1];
        self.parts.push(self.sums.iter().map(|other| self.prior.parts(last, other)).collect());
    }
}

fn factor(parts: &[Vec<Parts>], sizes: &Sizes, noises: &[f64]) -> Option<Cholesky> {
    let size = parts.len();
    let mut rows = vec![0.0; size * size];
    for (i, row) in parts.iter().enumerate() {
        row.iter().enumerate().for_each(|(j, parts)| rows[i * size + j] = sizes.of(*parts));
        rows[i * size + i] += noises[i];
    }
    Cholesky::new(rows, size)
}

/// Logarithm of the likelihood of each value given all others, summed up.
fn likelihood_of_each(cholesky: &Cholesky, residuals: &[f64]) -> f64 {
    let weights = cholesky.solve(residuals.to_vec());
    let of_one = |(weight, precision): (&f64, f64)| 0.5 * (precision.ln() - weight * weight / precision);
    weights.iter().zip(cholesky.inverse_diagonal()).map(of_one).sum()
}

/// Factors of the columns of `rows`, none of them negative, whose sum is as close to 1 in every row as possible (least
/// squares by coordinate descent).
fn non_negative_factors<const N: usize>(rows: &[[f64; N]]) -> [f64; N] {
    // Columns of one size, so that all converge alike.
    let sizes: [f64; N] = std::array::from_fn(|k| rows.iter().map(|row| row[k].powi(2)).sum::<f64>().sqrt());
    let scaled = |row: &[f64; N], k: usize| if sizes[k] > 0.0 { row[k] / sizes[k] } else { 0.0 };
    let products: [[f64; N]; N] = std::array::from_fn(|i| {
        std::array::from_fn(|j| rows.iter().map(|row| scaled(row, i) * scaled(row, j)).sum::<f64>())
    });
    let targets: [f64; N] = std::array::from_fn(|k| rows.iter().map(|row| scaled(row, k)).sum::<f64>());
    let mut factors = [0.0; N];
    for _ in 0..20_000 {
        let mut change = 0.0f64;
        for k in 0..N {
            if products[k][k] == 0.0 {
                continue;
            }
            let others: f64 = (0..N).map(|j| products[k][j] * factors[j]).sum::<f64>() - products[k][k] * factors[k];
            let new = ((targets[k] - others) / products[k][k]).max(0.0);
            change = change.max((new - factors[k]).abs());
            factors[k] = new;
        }
        if change < 1e-9 {
            break;
        }
    }
    std::array::from_fn(|k| if sizes[k] > 0.0 { factors[k] / sizes[k] } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_found_and_never_negative() {
        let rows: Vec<[f64; 3]> = (1..30)
            .map(|i| {
                let (a, b) = (f64::from(i % 7) + 1.0, f64::from(i % 5) + 1.0);
                let ms = 2.0 * a + 3.0 * b;
                [a / ms, b / ms, 0.0]
            })
            .collect();
        let factors = non_negative_factors(&rows);
        assert!((factors[0] - 2.0).abs() < 1e-4 && (factors[1] - 3.0).abs() < 1e-4 && factors[2] == 0.0, "{factors:?}");
        // Times that fall with the second column.
        let rows: Vec<[f64; 2]> =
            (1..10).map(|i| [1.0 / (10.0 - f64::from(i)), f64::from(i) / (10.0 - f64::from(i))]).collect();
        assert_eq!(non_negative_factors(&rows)[1], 0.0);
    }

    /// Costs of layers of which every fourth takes double the time that its costs suggest, and one takes none.
    fn example() -> (Vec<Costs>, Vec<f64>) {
        let costs: Vec<Costs> =
            (0..24).map(|i| [1e6 * f64::from(1 + i % 8), 0.0, 1e4 * f64::from(1 + i / 8), 0.0, 3.0, 1.0]).collect();
        let time = |(index, costs): (usize, &Costs)| match index {
            5 => 0.0,
            _ => (costs[0] * 1e-7 + costs[2] * 1e-6 + 0.01 * costs[4]) * if index % 4 == 0 { 2.0 } else { 1.0 },
        };
        let mut times: Vec<f64> = costs.iter().enumerate().map(time).collect();
        times.push(0.3);
        (costs.into_iter().chain([[0.0; COSTS]]).collect(), times)
    }

    #[test]
    fn times_of_layers_follow_from_those_of_networks() {
        let (costs, truth) = example();
        // Networks of nine layers, as a small generator draws them.
        let mut state = 1u64;
        let mut draw = |count: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % count
        };
        let mut network = || {
            let mut sum: Sum = (0..8).map(|place| (3 * place + draw(3) as usize, 1.0 + draw(2) as f64)).collect();
            sum.push((24, 1.0));
            sum
        };
        let networks: Vec<Sum> = (0..120).map(|_| network()).collect();
        let ms = |sum: &Sum| sum.iter().map(|&(layer, count)| count * truth[layer]).sum::<f64>();
        let times: Vec<f64> =
            networks.iter().enumerate().map(|(i, sum)| ms(sum) * (1.0 + 0.01 * (i as f64 * 1.7).sin())).collect();
        let mut disturbed = times.clone();
        [7, 20, 33, 51].into_iter().for_each(|place| disturbed[place] *= 1.5);
        let found = layer_times(&costs, &networks[..80], &disturbed[..80]).unwrap();
        assert!(found.iter().all(|ms| *ms >= 0.0));
        for sum in &networks[80..] {
            let predicted: f64 = sum.iter().map(|&(layer, count)| count * found[layer]).sum();
            assert!((predicted / ms(sum) - 1.0).abs() < 0.03, "{predicted} {}", ms(sum));
        }
        // The layer without a time is found, and another of equal costs keeps its time.
        assert!(found[5] < 0.25 * found[21], "{} {}", found[5], found[21]);
        assert!(layer_times(&costs, &[], &[]).is_none());
    }
}
