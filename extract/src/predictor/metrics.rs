//! Metrics of the agreement between predictions and measurements, as pure functions of two equally long lists.

/// Root mean squared error; `None` for empty lists.
pub fn rmse(measured: &[f64], predicted: &[f64]) -> Option<f64> {
    assert_eq!(measured.len(), predicted.len());
    if measured.is_empty() {
        return None;
    }
    let sum: f64 = measured.iter().zip(predicted).map(|(m, p)| (m - p).powi(2)).sum();
    Some((sum / measured.len() as f64).sqrt())
}

/// Pearson correlation, between -1 and 1; `None` (undefined) if a list is constant or shorter than two.
pub fn pearson(measured: &[f64], predicted: &[f64]) -> Option<f64> {
    assert_eq!(measured.len(), predicted.len());
    let count = measured.len() as f64;
    let mean = |list: &[f64]| list.iter().sum::<f64>() / count;
    let (mean_m, mean_p) = (mean(measured), mean(predicted));
    let (mut both, mut square_m, mut square_p) = (0.0, 0.0, 0.0);
    for (m, p) in measured.iter().zip(predicted) {
        both += (m - mean_m) * (p - mean_p);
        square_m += (m - mean_m).powi(2);
        square_p += (p - mean_p).powi(2);
    }
    let scale = square_m.sqrt() * square_p.sqrt();
    (scale > 0.0).then(|| (both / scale).clamp(-1.0, 1.0))
}

/// Kendall's tau-b, between -1 and 1: concordant less discordant pairs, corrected for ties (Kendall, Biometrika 1945);
/// `None` (undefined) if all pairs of a list are tied.
///
/// All pairs are compared, which takes milliseconds for a few thousand held-out subnets.
pub fn kendall_tau(measured: &[f64], predicted: &[f64]) -> Option<f64> {
    assert_eq!(measured.len(), predicted.len());
    // Both zeros are equal.
    let order = |a: f64, b: f64| (a + 0.0).total_cmp(&(b + 0.0)) as i64;
    let (mut balance, mut untied_m, mut untied_p) = (0i64, 0u64, 0u64);
    for i in 0..measured.len() {
        for j in 0..i {
            let m = order(measured[i], measured[j]);
            let p = order(predicted[i], predicted[j]);
            balance += m * p;
            untied_m += m.unsigned_abs();
            untied_p += p.unsigned_abs();
        }
    }
    let scale = (untied_m as f64).sqrt() * (untied_p as f64).sqrt();
    (scale > 0.0).then(|| (balance as f64 / scale).clamp(-1.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(value: Option<f64>, expected: f64) {
        assert!((value.unwrap() - expected).abs() < 1e-12, "{value:?} instead of {expected}");
    }

    #[test]
    fn values_worked_out_by_hand() {
        let (x, y) = ([1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 4.0, 3.0]);
        close(rmse(&x, &y), 1.0);
        // Covariance sum: 0.75 + 0.75 + 0.75 + 0.75 = 3; both squares: 5.
        close(pearson(&x, &y), 0.6);
        // Of 6 pairs, (1,2) and (3,4) are discordant: (4 - 2) / 6.
        close(kendall_tau(&x, &y), 1.0 / 3.0);
    }

    #[test]
    fn ties_count_for_neither_side() {
        // Pairs: (0,1) tied in x; (1,2) tied in y; (0,2) concordant. tau-b = 1 / sqrt(2 * 2).
        close(kendall_tau(&[1.0, 1.0, 2.0], &[1.0, 2.0, 2.0]), 0.5);
        close(kendall_tau(&[1.0, 2.0, 3.0], &[30.0, 20.0, 10.0]), -1.0);
    }

    #[test]
    fn undefined_metrics_are_none() {
        assert_eq!(rmse(&[], &[]), None);
        assert_eq!(pearson(&[1.0, 2.0], &[5.0, 5.0]), None);
        assert_eq!(pearson(&[], &[]), None);
        assert_eq!(kendall_tau(&[1.0], &[1.0]), None);
    }
}
