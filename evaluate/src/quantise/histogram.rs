//! Distribution of a value, and the scale that keeps most of it.

use super::Scale;

/// Bins on each side of zero.
const HALF: usize = 4096;

/// Steps in which a bound of the range is moved towards zero.
const STEPS: usize = 50;

/// Counts of numbers in bins of equal width on both sides of zero. Zeros are not counted: every scale represents them
/// exactly.
#[derive(Debug, Clone)]
pub struct Histogram {
    /// From `-range` to `range`.
    bins: Vec<u64>,
    range: f32,
}

impl Histogram {
    /// A histogram without numbers.
    pub fn new() -> Self {
        Histogram { bins: vec![0; 2 * HALF], range: 0.0 }
    }

    /// Counts `values`. The range doubles, with two bins becoming one, until it holds them.
    pub fn add(&mut self, values: &[f32]) {
        let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        if largest == 0.0 {
            return;
        }
        if self.range == 0.0 {
            self.range = largest;
        }
        while self.range < largest {
            let mut merged = vec![0; 2 * HALF];
            let places = self.bins.iter().enumerate();
            places.for_each(|(bin, count)| merged[HALF / 2 + bin / 2] += count);
            (self.bins, self.range) = (merged, 2.0 * self.range);
        }
        let factor = HALF as f32 / self.range;
        for value in values.iter().filter(|value| **value != 0.0) {
            let bin = (value * factor + HALF as f32) as usize;
            self.bins[bin.min(2 * HALF - 1)] += 1;
        }
    }

    /// The scale with the least mean squared error of `after(value)`, where `after` is what follows the rounding: the
    /// part of a value that an activation cuts off needs no integers. Both bounds of the range move towards zero from
    /// the extremes as long as this pays; those of a `symmetric` scale move together.
    pub fn scale(&self, symmetric: bool, after: impl Fn(f32) -> f32) -> Scale {
        let width = f64::from(self.range) / HALF as f64;
        let centre = |bin: usize| ((bin as f64 + 0.5 - HALF as f64) * width) as f32;
        let bins = self.bins.iter().enumerate().filter(|(_, count)| **count > 0);
        let bins: Vec<(f32, f64, f32)> =
            bins.map(|(bin, &count)| (centre(bin), count as f64, after(centre(bin)))).collect();
        let edge = (0.5 * width) as f32;
        let low = bins.first().map_or(0.0, |bin| (bin.0 - edge).min(0.0));
        let high = bins.last().map_or(0.0, |bin| (bin.0 + edge).max(0.0));
        if low == high {
            return Scale { scale: 1.0 / 255.0, zero_point: 0 };
        }
        let scale_of = |low: f32, high: f32| if symmetric { middle(low, high) } else { scale_of(low, high) };
        let error = |low: f32, high: f32| {
            let scale = scale_of(low, high);
            let of_bin = |&(centre, count, exact): &(f32, f64, f32)| {
                let error = f64::from(after(scale.dequantise(scale.quantise(centre))) - exact);
                count * error * error
            };
            bins.iter().map(of_bin).sum::<f64>()
        };
        let (mut best, mut least) = ((low, high), error(low, high));
        for _ in 0..2 {
            for step in 1..STEPS {
                let part = 1.0 - step as f32 / STEPS as f32;
                for bounds in [(best.0, high * part), (low * part, best.1)] {
                    let error = error(bounds.0, bounds.1);
                    if error < least {
                        (best, least) = (bounds, error);
                    }
                }
            }
        }
        scale_of(best.0, best.1)
    }
}

/// The scale of a range that holds zero.
fn scale_of(low: f32, high: f32) -> Scale {
    let scale = ((high - low) / 255.0).clamp(1e-12, 1e12);
    Scale { scale, zero_point: (-low / scale).round_ties_even().clamp(0.0, 255.0) as u8 }
}

/// The scale of a range with its zero in the middle of the integers.
fn middle(low: f32, high: f32) -> Scale {
    Scale { scale: (high.max(-low) / 127.0).clamp(1e-12, 1e12), zero_point: 128 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofa_supernet::seed::{Stream, generator};
    use ofa_supernet::space::Activation;
    use rand::Rng;

    #[test]
    fn an_outlier_is_cut_off_where_this_pays() {
        let mut rng = generator(1, Stream::Builtin, &[]);
        let values: Vec<f32> = (0..20_000).map(|_| rng.random_range(-1.0..2.0)).collect();
        let mut histogram = Histogram::new();
        histogram.add(&values);
        let close = histogram.scale(false, |x| x);
        assert!((close.scale - 3.0 / 255.0).abs() < 1e-3 && (80..90).contains(&close.zero_point), "{close:?}");
        (0..100).for_each(|_| histogram.add(&values));
        histogram.add(&[12.0]);
        let cut = histogram.scale(false, |x| x);
        assert!(cut.dequantise(255) < 4.0 && cut.dequantise(0) < -0.9, "{cut:?}");
        let symmetric = histogram.scale(true, |x| x);
        assert_eq!(symmetric.zero_point, 128);
        assert!((0.01..0.04).contains(&symmetric.scale), "{symmetric:?}");
        // A few zeros change nothing.
        histogram.add(&[0.0; 100]);
        assert_eq!(histogram.scale(false, |x| x), cut);
    }

    #[test]
    fn positive_values_have_zero_point_0_and_all_zeros_a_scale() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.scale(false, |x| x).zero_point, 0);
        histogram.add(&[0.0; 5]);
        assert!(histogram.scale(false, |x| x).scale > 0.0);
        histogram.add(&(0..1000).map(|i| i as f32 / 100.0).collect::<Vec<_>>());
        assert_eq!(histogram.scale(false, |x| x).zero_point, 0);
    }

    #[test]
    fn values_that_the_activation_cuts_off_get_no_integers() {
        let mut histogram = Histogram::new();
        histogram.add(&(-2000..1000).map(|i| i as f32 / 100.0).collect::<Vec<_>>());
        let scale = histogram.scale(false, |x| Activation::HardSwish.apply(x));
        let low = scale.dequantise(0);
        assert!((-3.5..-2.5).contains(&low), "{scale:?} begins at {low}");
    }
}
