//! Which networks to measure: those that tell most about the latency of all others.

use super::additive::Prior;
use super::layer_costs::Sum;
use rayon::prelude::*;

/// Relative noise of a measured time.
const NOISE: f64 = 0.02;

/// Indices of `count` networks of `pool` in the order in which they should be measured: each lowers the variance of the
/// relative errors of all networks of the pool most, given those before it (greedy A-optimal design).
pub fn order(prior: &Prior, pool: &[Sum], count: usize) -> Vec<usize> {
    let size = pool.len();
    let means: Vec<f64> = pool.iter().map(|sum| prior.mean(sum)).collect();
    let row = |i: usize| (0..size).map(|j| prior.covariance(&pool[i], &pool[j]) / (means[i] * means[j])).collect();
    let mut covariance: Vec<Vec<f64>> = (0..size).into_par_iter().map(row).collect();
    let mut chosen = Vec::with_capacity(count.min(size));
    let mut free = vec![true; size];
    while chosen.len() < count.min(size) {
        let gain = |&i: &usize| {
            let squares: f64 = covariance[i].iter().map(|value| value * value).sum();
            squares / (covariance[i][i] + NOISE * NOISE)
        };
        let gains: Vec<(usize, f64)> = (0..size).into_par_iter().filter(|&i| free[i]).map(|i| (i, gain(&i))).collect();
        let Some(&(best, _)) = gains.iter().max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0))) else { break };
        free[best] = false;
        chosen.push(best);
        let known = covariance[best].clone();
        let scale = 1.0 / (known[best] + NOISE * NOISE);
        covariance.par_iter_mut().enumerate().for_each(|(i, row)| {
            row.iter_mut().zip(&known).for_each(|(value, across)| *value -= known[i] * across * scale);
        });
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_with_unknown_layers_come_before_copies_of_known_ones() {
        let costs: Vec<_> =
            (1..7).map(|i| [1e6 * f64::from(i * i), 0.0, 1e4, 0.0, 2.0, 1.0]).chain([[0.0; 6]]).collect();
        let prior = Prior::guess(&costs);
        let network = |layers: [usize; 2]| vec![(layers[0], 1.0), (layers[1], 1.0), (6, 1.0)];
        let pool = [[0, 1], [0, 1], [0, 1], [2, 3], [4, 5], [2, 3]].map(network);
        let chosen = order(&prior, &pool, 6);
        let mut first: Vec<_> = chosen[..3].iter().map(|&index| pool[index][0].0).collect();
        first.sort_unstable();
        assert_eq!(first, [0, 2, 4], "{chosen:?}");
        let mut all = chosen.clone();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4, 5]);
        assert_eq!(order(&prior, &pool, 2), chosen[..2]);
    }
}
