//! Batch norm as numbers per channel: statistics, the affine map that they define, and the affine map of the gradient.

use super::buffers::Aligned;
use super::simd::{Simd, vectors};

/// Adds values over all processes, in place; every process must call it with as many values.
pub type SumOverProcesses<'a> = &'a (dyn Fn(&mut [f64]) + Sync);

/// Source of the normalisation's mean and variance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Normalise {
    /// Statistics of the batch.
    Batch,
    /// Running or recalibrated statistics, passed in.
    Given,
}

/// Mean and biased variance of each channel.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChannelStatistics {
    /// Means.
    pub mean: Vec<f32>,
    /// Biased variances.
    pub variance: Vec<f32>,
    /// Number of values behind each mean (pixels x images).
    pub count: usize,
}

/// Sums of values and of squares per channel, in f64, because the variance is a difference of two large numbers.
#[derive(Debug, Clone)]
pub(crate) struct Sums {
    pub sum: Vec<f64>,
    pub square: Vec<f64>,
}

impl Sums {
    pub(crate) fn new(channels: usize) -> Self {
        Sums { sum: vec![0.0; channels], square: vec![0.0; channels] }
    }

    /// Adds partial sums of the channels from `first` on.
    #[inline(always)]
    pub(crate) fn add_block(&mut self, first: usize, sum: &[f32], square: &[f32]) {
        for (total, &v) in self.sum[first..].iter_mut().zip(sum) {
            *total += f64::from(v);
        }
        for (total, &v) in self.square[first..].iter_mut().zip(square) {
            *total += f64::from(v);
        }
    }

    /// The total of the parts, added in their order.
    pub(crate) fn total(parts: impl IntoIterator<Item = Sums>) -> Sums {
        let mut parts = parts.into_iter();
        let mut total = parts.next().unwrap_or_else(|| Sums::new(0));
        for part in parts {
            for (a, b) in total.sum.iter_mut().zip(&part.sum).chain(total.square.iter_mut().zip(&part.square)) {
                *a += b;
            }
        }
        total
    }

    /// The sums over all processes, and the total of their counts.
    fn over(&self, processes: SumOverProcesses, count: usize) -> (Sums, usize) {
        let mut values = [&self.sum[..], &self.square[..], &[count as f64][..]].concat();
        processes(&mut values);
        let (sum, square) = values[..2 * self.sum.len()].split_at(self.sum.len());
        let sums = Sums { sum: sum.to_vec(), square: square.to_vec() };
        (sums, values[2 * self.sum.len()] as usize)
    }

    /// Mean and biased variance over `count` values per channel, or over the values of all processes if statistics are
    /// synchronised.
    pub(crate) fn statistics_over(&self, over_processes: Option<SumOverProcesses>, count: usize) -> ChannelStatistics {
        match over_processes {
            None => self.statistics(count),
            Some(processes) => {
                let (sums, count) = self.over(processes, count);
                sums.statistics(count)
            }
        }
    }

    /// Mean and biased variance over `count` values per channel.
    pub(crate) fn statistics(&self, count: usize) -> ChannelStatistics {
        let n = count.max(1) as f64;
        let mean: Vec<f32> = self.sum.iter().map(|s| (s / n) as f32).collect();
        let variance = self.sum.iter().zip(&self.square).map(|(s, q)| ((q - s * s / n) / n).max(0.0) as f32).collect();
        ChannelStatistics { mean, variance, count }
    }
}

/// Partial sums in f32 over one block of rows.
#[derive(Debug, Clone)]
pub(crate) struct SumBlock {
    pub sum: Aligned,
    pub square: Aligned,
}

impl SumBlock {
    pub(crate) fn new(channels: usize) -> Self {
        SumBlock { sum: Aligned::zeros(channels), square: Aligned::zeros(channels) }
    }

    /// Sets the sums of `rows` and of their squares, per channel.
    #[inline(always)]
    pub(crate) fn set_squares<S: Simd>(&mut self, s: S, rows: &[f32]) {
        self.set_products(s, rows, rows);
    }

    /// Sets the sums over rows of `g` and of `g * y`, per channel.
    #[inline(always)]
    pub(crate) fn set_products<S: Simd>(&mut self, s: S, g: &[f32], y: &[f32]) {
        let n = self.sum.len();
        assert!(g.len() == y.len() && g.len().is_multiple_of(n));
        for channels in vectors(s, n) {
            let mut sums = RunningSums::new(s);
            for (g, y) in g.chunks(TURNS * n).zip(y.chunks(TURNS * n)) {
                for (turn, (g, y)) in g.chunks_exact(n).zip(y.chunks_exact(n)).enumerate() {
                    sums.add(turn, s.read(&g[channels.clone()]), s.read(&y[channels.clone()]));
                }
            }
            let (sum, square) = sums.totals();
            s.write(&mut self.sum[channels.clone()], sum);
            s.write(&mut self.square[channels], square);
        }
    }
}

/// Independent running sums per channel: consecutive additions to one sum would wait for each other's latency.
pub(crate) const TURNS: usize = 4;

/// Running sums of a vector of channels: of values, and of their products with other values.
pub(crate) struct RunningSums<S: Simd> {
    s: S,
    sums: [S::V; TURNS],
    products: [S::V; TURNS],
}

impl<S: Simd> RunningSums<S> {
    /// Running sums that start at zero.
    #[inline(always)]
    pub(crate) fn new(s: S) -> Self {
        let zeros = [s.splat(0.0); TURNS];
        RunningSums { s, sums: zeros, products: zeros }
    }

    /// Adds a value, and its product with another, to the sums number `turn`.
    #[inline(always)]
    pub(crate) fn add(&mut self, turn: usize, value: S::V, other: S::V) {
        self.sums[turn] = self.s.add(self.sums[turn], value);
        self.products[turn] = self.s.mul_add(value, other, self.products[turn]);
    }

    /// Totals of the values and of the products.
    #[inline(always)]
    pub(crate) fn totals(&self) -> (S::V, S::V) {
        let s = self.s;
        let [[a, b, c, d], [p, q, r, t]] = [self.sums, self.products];
        (s.add(s.add(a, b), s.add(c, d)), s.add(s.add(p, q), s.add(r, t)))
    }
}

/// The map `y -> scale * y + shift` per channel.
#[derive(Debug, Clone)]
pub(crate) struct Affine {
    pub scale: Aligned,
    pub shift: Aligned,
}

impl Affine {
    /// Batch norm with these statistics: `scale = weight / sqrt(variance + eps)`, `shift = bias - mean * scale`.
    pub(crate) fn new(statistics: &ChannelStatistics, weight: &[f32], bias: &[f32], eps: f64) -> Self {
        let scale: Aligned = statistics
            .variance
            .iter()
            .zip(weight)
            .map(|(&v, &w)| (f64::from(w) / (f64::from(v) + eps).sqrt()) as f32)
            .collect();
        let shift = statistics.mean.iter().zip(bias).zip(scale.iter()).map(|((&m, &b), &s)| b - m * s).collect();
        Affine { scale, shift }
    }
}

/// Gradient of batch norm: `dy = by_gradient * g + by_value * y + constant` per channel, with the gradients of weight
/// and bias.
#[derive(Debug, Clone)]
pub(crate) struct Backward {
    pub by_gradient: Aligned,
    pub by_value: Aligned,
    pub constant: Aligned,
    pub weight_gradient: Vec<f32>,
    pub bias_gradient: Vec<f32>,
}

impl Backward {
    /// Gradient where processes synchronised the statistics: the input gradient depends on the sums of all processes,
    /// while the gradients of weight and bias are this process's share, like those of every other parameter.
    pub(crate) fn over(
        over_processes: Option<SumOverProcesses>,
        sums: &Sums,
        statistics: &ChannelStatistics,
        weight: &[f32],
        eps: f64,
        normalise: Normalise,
    ) -> Self {
        let own = Self::new(sums, statistics, weight, eps, normalise);
        let Some(processes) = over_processes.filter(|_| normalise == Normalise::Batch) else { return own };
        let (weight_gradient, bias_gradient) = (own.weight_gradient, own.bias_gradient);
        let (all, _) = sums.over(processes, 0);
        Backward { weight_gradient, bias_gradient, ..Self::new(&all, statistics, weight, eps, normalise) }
    }

    /// Gradient from the sums over pixels of `g` and of `g * y` (`sums.sum` and `sums.square`), where `y` is the raw
    /// value before batch norm.
    ///
    /// With batch statistics, mean and variance depend on `y` too (Ioffe & Szegedy, ICML 2015, §3); given statistics do
    /// not.
    pub(crate) fn new(
        sums: &Sums,
        statistics: &ChannelStatistics,
        weight: &[f32],
        eps: f64,
        normalise: Normalise,
    ) -> Self {
        let channels = weight.len();
        let n = statistics.count.max(1) as f64;
        let mut out = Backward {
            by_gradient: Aligned::zeros(channels),
            by_value: Aligned::zeros(channels),
            constant: Aligned::zeros(channels),
            weight_gradient: vec![0.0; channels],
            bias_gradient: vec![0.0; channels],
        };
        for (c, &weight) in weight.iter().enumerate() {
            let mean = f64::from(statistics.mean[c]);
            let inverse = 1.0 / (f64::from(statistics.variance[c]) + eps).sqrt();
            let (g, gy) = (sums.sum[c], sums.square[c]);
            let weight_gradient = (gy - mean * g) * inverse;
            let scale = f64::from(weight) * inverse;
            out.by_gradient[c] = scale as f32;
            if normalise == Normalise::Batch {
                let by_value = -scale * inverse * weight_gradient / n;
                out.by_value[c] = by_value as f32;
                out.constant[c] = (-scale * g / n - by_value * mean) as f32;
            }
            out.weight_gradient[c] = weight_gradient as f32;
            out.bias_gradient[c] = g as f32;
        }
        out
    }
}
