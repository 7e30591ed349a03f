//! Calibration: from the sum of layer times to a network's latency, with the error of the result.

use crate::latency::{median, quantile};
use ofa_supernet::Subnet;
use serde::{Deserialize, Serialize};

/// The line `latency = overhead_ms + scale * sum of layer times`. It accounts for the cost of a run outside its layers,
/// and for the effect of timing each layer separately.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Time of an empty network in milliseconds, not negative.
    pub overhead_ms: f64,
    /// Factor on the sum of layer times, positive.
    pub scale: f64,
}

impl Calibration {
    /// Fits pairs of (sum of layer times, measured latency), all positive; `None` without pairs.
    ///
    /// The line has the least sum of absolute *relative* errors, so that one disturbed measurement does not move it and
    /// small networks count as much as large ones. The method is iteratively reweighted least squares. If the overhead
    /// would be negative, or the pairs do not determine the line, the overhead is 0 and the scale the median ratio.
    pub fn fit(pairs: &[(f64, f64)]) -> Option<Self> {
        let ratios: Vec<f64> = pairs.iter().map(|(sum, measured)| measured / sum).collect();
        let proportional = Calibration { overhead_ms: 0.0, scale: median(&ratios)? };
        let mut fitted = proportional;
        for _ in 0..50 {
            // Normal equations of sum w (overhead + scale * x - y)^2.
            let (mut w0, mut wx, mut wxx, mut wy, mut wxy) = (0.0, 0.0, 0.0, 0.0, 0.0);
            for &(x, y) in pairs {
                let relative_error = ((fitted.predict(x) - y) / y).abs();
                let w = 1.0 / (y * y * relative_error.max(1e-4));
                w0 += w;
                wx += w * x;
                wxx += w * x * x;
                wy += w * y;
                wxy += w * x * y;
            }
            let determinant = w0 * wxx - wx * wx;
            if determinant <= 1e-9 * w0 * wxx {
                return Some(proportional);
            }
            fitted = Calibration {
                overhead_ms: (wxx * wy - wx * wxy) / determinant,
                scale: (w0 * wxy - wx * wy) / determinant,
            };
        }
        let usable = fitted.overhead_ms >= 0.0 && fitted.scale > 0.0;
        Some(if usable { fitted } else { proportional })
    }

    /// Latency of a network whose layer times sum up to `layers_ms`.
    pub fn predict(&self, layers_ms: f64) -> f64 {
        self.overhead_ms + self.scale * layers_ms
    }
}

/// A subnet with predicted and measured latency.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckedSubnet {
    /// The subnet.
    pub subnet: Subnet,
    /// The profile's prediction in milliseconds.
    pub predicted_ms: f64,
    /// Median of the measured end-to-end runs in milliseconds.
    pub measured_ms: f64,
}

/// Error of a profile's predictions, on random subnets that were not used to fit the calibration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// The subnets.
    pub subnets: Vec<CheckedSubnet>,
    /// Median of `|predicted - measured| / measured`.
    pub median_error: f64,
    /// 95th percentile of `|predicted - measured| / measured`.
    pub p95_error: f64,
    /// Share of the subnets whose prediction is within 5 % of the measurement; older files have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within_5: Option<f64>,
    /// Share of the subnets whose prediction is within 10 % of the measurement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within_10: Option<f64>,
}

impl Check {
    /// Computes the errors of measured subnets; `None` for an empty list.
    pub fn of(subnets: Vec<CheckedSubnet>) -> Option<Self> {
        let errors: Vec<f64> =
            subnets.iter().map(|s| ((s.predicted_ms - s.measured_ms) / s.measured_ms).abs()).collect();
        let within = |most: f64| {
            let share = errors.iter().filter(|error| **error <= most).count() as f64 / errors.len() as f64;
            Some(share)
        };
        Some(Check {
            median_error: median(&errors)?,
            p95_error: quantile(&errors, 0.95)?,
            within_5: within(0.05),
            within_10: within(0.1),
            subnets,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofa_supernet::space::preset;

    #[test]
    fn a_line_is_found_despite_a_disturbed_measurement() {
        let mut pairs: Vec<(f64, f64)> = (1..=20).map(|x| (f64::from(x), 0.3 + 1.1 * f64::from(x))).collect();
        pairs[7].1 *= 3.0;
        let fitted = Calibration::fit(&pairs).unwrap();
        assert!((fitted.overhead_ms - 0.3).abs() < 0.01 && (fitted.scale - 1.1).abs() < 0.01, "{fitted:?}");
    }

    #[test]
    fn what_no_line_explains_is_a_ratio() {
        let flat = Calibration::fit(&[(2.0, 3.0), (2.0, 3.0)]).unwrap();
        assert_eq!(flat, Calibration { overhead_ms: 0.0, scale: 1.5 });
        let negative = Calibration::fit(&[(1.0, 1.0), (2.0, 3.0), (3.0, 5.0)]).unwrap();
        assert_eq!((negative.overhead_ms, negative.scale), (0.0, 1.5));
        assert_eq!(Calibration::fit(&[]), None);
    }

    #[test]
    fn errors_are_relative_to_the_measurement() {
        let subnet = preset("tiny").unwrap().smallest();
        let checked = |predicted_ms, measured_ms| CheckedSubnet { subnet: subnet.clone(), predicted_ms, measured_ms };
        let check = Check::of(vec![checked(1.1, 1.0), checked(4.0, 5.0), checked(2.0, 2.0)]).unwrap();
        assert!((check.median_error - 0.1).abs() < 1e-12);
        assert!((check.p95_error - 0.19).abs() < 1e-12);
        assert_eq!((check.within_5, check.within_10), (Some(1.0 / 3.0), Some(1.0 / 3.0)));
    }
}
