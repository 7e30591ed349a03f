//! Batch norm's statistics for one subnet, and how recalibration finds them.

use crate::layers::Moments;
use crate::ops::ChannelStatistics;
use crate::ranks::Ranks;

/// Mean and variance of every batch norm of one subnet, in the order of the layers.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Moments of each batch norm, active channels only.
    pub layers: Vec<Moments>,
}

/// Averages batch means and biased batch variances over images (paper §3.3: batch norm is recalibrated for a chosen
/// subnet).
#[derive(Debug, Default)]
pub struct StatisticsCollector {
    layers: Vec<Moments<f64>>,
    images: f64,
}

impl StatisticsCollector {
    pub(crate) fn add(&mut self, images: usize, used: &[ChannelStatistics]) {
        if self.layers.is_empty() {
            let zeros = |channels: usize| Moments { mean: vec![0.0; channels], variance: vec![0.0; channels] };
            self.layers = used.iter().map(|s| zeros(s.mean.len())).collect();
        }
        let weight = images as f64;
        self.images += weight;
        for (Moments { mean, variance }, used) in self.layers.iter_mut().zip(used) {
            for (sum, &v) in mean.iter_mut().zip(&used.mean) {
                *sum += weight * f64::from(v);
            }
            for (sum, &v) in variance.iter_mut().zip(&used.variance) {
                *sum += weight * f64::from(v);
            }
        }
    }

    /// The averages over the images of all ranks; each must have seen at least one batch of the same subnet.
    pub fn finish_over(mut self, ranks: &Ranks) -> Statistics {
        if ranks.is_distributed() {
            let mut sums = vec![self.images];
            for Moments { mean, variance } in &self.layers {
                sums.extend(mean.iter().chain(variance));
            }
            ranks.sum_f64(&mut sums);
            let mut sums = sums.into_iter();
            self.images = sums.next().unwrap_or(0.0);
            for Moments { mean, variance } in &mut self.layers {
                mean.iter_mut().chain(variance).zip(&mut sums).for_each(|(own, sum)| *own = sum);
            }
        }
        self.finish()
    }

    /// The averages.
    pub fn finish(self) -> Statistics {
        let n = self.images.max(1.0);
        let average = |sums: Vec<f64>| sums.into_iter().map(|s| (s / n) as f32).collect();
        let layer = |sums: Moments<f64>| Moments { mean: average(sums.mean), variance: average(sums.variance) };
        Statistics { layers: self.layers.into_iter().map(layer).collect() }
    }
}
