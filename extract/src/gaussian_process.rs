//! A Gaussian process over points that have a distance (Rasmussen and Williams, *Gaussian Processes for Machine
//! Learning*, chapters 2 and 5).
//!
//! The covariance of two points is `exp(-distance / length)`. If the distance is a sum over choices or numbers, the
//! covariance is a product with one factor for each.
//!
//! The predictor's process (`predictor::process`) is another one: it needs the choices of a search space, which `tune`
//! does not have, and its fit of a weight for each group of choices takes a second, where `bayes` has milliseconds. The
//! strategy `rounds` uses that one.
//!
//! No crate is used for it: egobox-gp 0.37 fits a length for each of a few continuous inputs, and brings 35 more
//! crates. friedrich 0.6 accepts this covariance, but brings 15 more crates and second versions of rand, rand_core and
//! rand_distr (`deny.toml` allows one), multiplies the noise's deviation by a variance when it fits, and has the
//! likelihood with the covariance's diagonal in place of its determinant. Without a crate, one Cholesky factor of a few
//! hundred rows has to be written.

use crate::cholesky::{Cholesky, dot};
use rayon::prelude::*;

/// Candidate lengths of the covariance.
const LENGTHS: [f64; 6] = [2.0, 5.0, 12.0, 30.0, 80.0, 200.0];
/// Candidate variances of the noise, as fractions of the whole variance.
const NOISES: [f64; 3] = [1e-6, 1e-3, 5e-2];

/// Length and noise of a process, chosen by the likelihood.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    length: f64,
    noise: f64,
}

/// Gaussian process fitted to scores.
pub struct GaussianProcess<P> {
    points: Vec<P>,
    distance: fn(&P, &P) -> f64,
    mean: f64,
    variance: f64,
    shape: Shape,
    cholesky: Cholesky,
    /// Inverse covariance times centred scores.
    weights: Vec<f64>,
}

fn covariance(distance: f64, length: f64) -> f64 {
    (-distance / length).exp()
}

impl<P: Send + Sync> GaussianProcess<P> {
    /// Fits mean, variance and `shape` (if not given) to `scores` by the largest marginal likelihood; `None` for fewer
    /// than two points. Fitting the shape takes most of the time, and a few more points change it little.
    pub fn fit(points: Vec<P>, scores: &[f64], shape: Option<Shape>, distance: fn(&P, &P) -> f64) -> Option<Self> {
        let count = points.len();
        if count < 2 || count != scores.len() {
            return None;
        }
        let distances: Vec<f64> = points.iter().flat_map(|a| points.iter().map(move |b| distance(a, b))).collect();
        let all = LENGTHS.iter().flat_map(|&length| NOISES.map(|noise| Shape { length, noise }));
        let shapes: Vec<Shape> = shape.map_or_else(|| all.collect(), |shape| vec![shape]);

        let fit = |&shape: &Shape| {
            let mut rows: Vec<f64> = distances.iter().map(|&d| covariance(d, shape.length)).collect();
            rows.iter_mut().step_by(count + 1).for_each(|diagonal| *diagonal += shape.noise);
            let cholesky = Cholesky::new(rows, count)?;
            // Mean and variance have closed forms for a given shape.
            let solved = cholesky.solve(vec![1.0; count]);
            let mean = dot(&solved, scores) / solved.iter().sum::<f64>();
            let centred: Vec<f64> = scores.iter().map(|s| s - mean).collect();
            let weights = cholesky.solve(centred.clone());
            let variance = (dot(&weights, &centred) / count as f64).max(1e-16);
            let likelihood = -0.5 * (count as f64 * variance.ln() + cholesky.log_determinant());
            Some((
                likelihood,
                GaussianProcess { points: Vec::new(), distance, mean, variance, shape, cholesky, weights },
            ))
        };
        let fits: Vec<_> = shapes.par_iter().map(fit).collect();
        let best = fits.into_iter().flatten().reduce(|best, next| if next.0 > best.0 { next } else { best });
        best.map(|(_, process)| GaussianProcess { points, ..process })
    }

    /// The given or fitted shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Mean and standard deviation of the score of each candidate (without noise).
    pub fn predict(&self, candidates: &[P]) -> Vec<(f64, f64)> {
        let of = |candidate: &P| {
            let across: Vec<f64> = self
                .points
                .iter()
                .map(|point| covariance((self.distance)(point, candidate), self.shape.length))
                .collect();
            let mean = self.mean + dot(&across, &self.weights);
            let known = self.cholesky.forward(across);
            (mean, (self.variance * (1.0 - dot(&known, &known)).max(0.0)).sqrt())
        };
        candidates.par_iter().map(of).collect()
    }
}

/// Expected improvement of a normally distributed score over `best` (Jones et al., Journal of Global Optimization
/// 1998).
pub fn expected_improvement(mean: f64, deviation: f64, best: f64) -> f64 {
    if deviation <= 0.0 {
        return (mean - best).max(0.0);
    }
    let z = (mean - best) / deviation;
    let density = (-0.5 * z * z).exp() / (2.0 * std::f64::consts::PI).sqrt();
    deviation * (z * normal_below(z) + density)
}

/// Probability that a standard normal variable is below `z`, to 7e-7 (Abramowitz and Stegun 26.2.17).
fn normal_below(z: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * z.abs());
    let series =
        t * (0.319_381_530 + t * (-0.356_563_782 + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    let above = series * (-0.5 * z * z).exp() / (2.0 * std::f64::consts::PI).sqrt();
    if z >= 0.0 { 1.0 - above } else { above }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Point = [u16; 3];

    fn differences(a: &Point, b: &Point) -> f64 {
        a.iter().zip(b).filter(|(a, b)| a != b).count() as f64
    }

    #[test]
    fn passes_through_what_it_has_seen_and_doubts_the_rest() {
        let points: Vec<Point> = (0..27u16).map(|i| [i % 3, i / 3 % 3, i / 9]).collect();
        let score = |g: &Point| 0.5 + 0.1 * f64::from(g[0]) - 0.05 * f64::from(g[1] * g[2]);
        let (seen, hidden): (Vec<Point>, Vec<Point>) =
            points.iter().cloned().partition(|g| (g[0] + g[1] + g[2]) % 3 != 1);
        let scores: Vec<f64> = seen.iter().map(score).collect();
        let process = GaussianProcess::fit(seen.clone(), &scores, None, differences).unwrap();
        for ((mean, deviation), expected) in process.predict(&seen).into_iter().zip(&scores) {
            assert!((mean - expected).abs() < 0.01, "{mean} instead of {expected}");
            assert!(deviation < 0.03, "{deviation}");
        }
        for ((mean, deviation), genes) in process.predict(&hidden).into_iter().zip(&hidden) {
            assert!((mean - score(genes)).abs() < 3.0 * deviation && deviation > 0.001, "{mean} {deviation}");
        }
        let again = GaussianProcess::fit(seen.clone(), &scores, Some(process.shape()), differences).unwrap();
        assert_eq!(again.predict(&hidden), process.predict(&hidden));
        assert!(GaussianProcess::fit(seen[..1].to_vec(), &scores[..1], None, differences).is_none());
    }

    #[test]
    fn expected_improvement_worked_out_by_hand() {
        assert_eq!(expected_improvement(2.0, 0.0, 1.5), 0.5);
        assert_eq!(expected_improvement(1.0, 0.0, 1.5), 0.0);
        // With the mean at the best: deviation / sqrt(2 pi).
        assert!((expected_improvement(1.0, 2.0, 1.0) - 0.797_884_56).abs() < 1e-6);
        assert!((expected_improvement(3.0, 1.0, 1.0) - 2.008_490_7).abs() < 1e-5);
    }
}
