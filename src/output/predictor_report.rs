//! What a fit of the accuracy predictor prints.

use ofa_extract::FitReport;

/// Prints RMSE, Pearson correlation and Kendall's tau on the held-out fifth and in cross-validation, and the
/// calibration of deviations.
pub fn print_report(report: &FitReport) {
    let show = |v: Option<f64>| v.map_or("undefined".to_string(), |v| format!("{v:.3}"));
    say!(
        "predictor: {} subnets, {} held out: RMSE {:.2} points, Pearson {}, Kendall tau {}{}",
        report.samples,
        report.held_out,
        100.0 * report.rmse,
        show(report.pearson),
        show(report.kendall_tau),
        report.attainable_tau.map_or(String::new(), |tau| format!(
            " (a perfect predictor would reach about {tau:.3}, since measurements have noise)"
        ))
    );
    if let Some(deviation) = report.measuring {
        say!(
            "fitted to accuracies estimated from log-likelihoods; measured ones deviate from these by {:.2} points",
            100.0 * deviation
        );
    }
    if let (Some(folds), Some(calibration)) = (&report.cross_validation, &report.calibration) {
        let model = match report.members {
            0 => "Gaussian process".to_string(),
            members => format!("{members} members"),
        };
        say!(
            "{model}: in cross-validation RMSE {:.2} points, Pearson {}, Kendall tau {}; {:.0} % of the held-out accuracies lie in their \
             90 % interval, mean deviation {:.2} points",
            100.0 * folds.rmse,
            show(folds.pearson),
            show(folds.kendall_tau),
            100.0 * calibration.within_90,
            100.0 * calibration.mean_deviation
        );
    }
}
