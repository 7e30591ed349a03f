//! Quality of a predictor by the number of its samples.

use super::{FitReport, FitSettings, Method, Predictor, Sample, distinct, metrics};
use crate::Result;
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::{SearchSpace, Subnet};
use rand::seq::SliceRandom;
use rayon::prelude::*;
use serde::Serialize;

/// Shares of the samples that are fitted, as divisors, each with the number of disjoint parts that are averaged.
const SHARES: [(usize, usize); 3] = [(8, 4), (4, 4), (2, 2)];
/// Fewest samples of a part.
const FEWEST: usize = 5;
/// Most samples of a part: the time of a fit grows with their cube.
const MOST: usize = 500;

/// Quality of predictors that are fitted to a number of samples.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GrowthPoint {
    /// Number of samples of each fit.
    pub samples: usize,
    /// Number of fits, to disjoint samples, of which the figures are means.
    pub fits: usize,
    /// Root mean squared error on the held-out subnets, in accuracy.
    pub rmse: f64,
    /// Kendall's tau on the held-out subnets; `None` if undefined.
    pub kendall_tau: Option<f64>,
}

/// Quality of predictors fitted to parts of the samples of `report`, judged on the same held-out subnets; the last
/// point is the report's own. `samples` are those of the report, which later ones may follow; without them the report's
/// own point is the only one.
///
/// # Errors
/// An accuracy outside 0..1.
pub fn growth(space: &SearchSpace, samples: &[Sample], report: &FitReport) -> Result<Vec<GrowthPoint>> {
    let own = GrowthPoint {
        samples: report.samples - report.held_out.min(report.samples),
        fits: 1,
        rmse: report.rmse,
        kendall_tau: report.kendall_tau,
    };
    let mut samples = distinct(samples)?;
    samples.truncate(report.samples);
    samples.shuffle(&mut generator(report.seed, Stream::HeldOut, &[]));
    let held_out = report.pairs.iter().map(|pair| &pair.subnet);
    if samples.len() < report.samples || !held_out.eq(samples[..report.pairs.len()].iter().map(|sample| &sample.subnet))
    {
        return Ok(vec![own]);
    }
    let (held_out, train) = samples.split_at(report.pairs.len());
    let subnets: Vec<Subnet> = held_out.iter().map(|sample| sample.subnet.clone()).collect();
    let measured: Vec<f64> = held_out.iter().map(|sample| sample.accuracy).collect();
    // Parts of many samples are few: they are fitted as all of them are.
    let method = if report.members == 0 { Method::GaussianProcess } else { Method::Ensemble };
    let settings = FitSettings { method, ..report.settings.clone() };
    let mut points = Vec::new();
    for (divisor, parts) in SHARES {
        let size = train.len() / divisor;
        if !(FEWEST..=MOST).contains(&size) {
            continue;
        }
        // A part from which nothing can be fitted has no figures.
        let quality = |part: &[Sample]| {
            let fitted = Predictor::fit_all(space, part, &settings, report.seed, &mut |_, _, _| {});
            let predicted = fitted.ok()?.0.predict(&subnets).ok()?;
            Some((metrics::rmse(&measured, &predicted)?, metrics::kendall_tau(&measured, &predicted)))
        };
        let figures: Vec<(f64, Option<f64>)> =
            train.chunks_exact(size).take(parts).collect::<Vec<_>>().into_par_iter().filter_map(quality).collect();
        let taus: Vec<f64> = figures.iter().filter_map(|(_, tau)| *tau).collect();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        if !figures.is_empty() {
            points.push(GrowthPoint {
                samples: size,
                fits: figures.len(),
                rmse: mean(&figures.iter().map(|(rmse, _)| *rmse).collect::<Vec<_>>()),
                kendall_tau: (!taus.is_empty()).then(|| mean(&taus)),
            });
        }
    }
    points.push(own);
    Ok(points)
}

#[cfg(test)]
mod tests {
    use super::super::FitSettings;
    use super::*;

    #[test]
    fn the_error_falls_with_samples_and_the_last_point_is_the_report() {
        let space = SearchSpace::named("tiny").unwrap();
        let drawn = (0..240).map(|i| space.sample(&mut generator(2, Stream::Sampling, &[i])));
        let mut samples: Vec<Sample> = drawn
            .enumerate()
            .map(|(index, subnet)| {
                let noise = (index * 7919 % 101) as f64 / 101.0 - 0.5;
                let size: f64 = subnet.blocks().map(|b| b.expand.value() + 0.5 * b.kernel as f64).sum();
                let accuracy = 0.3 + 0.02 * size + 0.002 * subnet.resolution as f64 + 0.05 * noise;
                Sample::new(subnet, accuracy)
            })
            .collect();
        let (_, report) = Predictor::fit(&space, &samples, &FitSettings::default(), 3, &mut |_, _, _| {}).unwrap();
        let points = growth(&space, &samples, &report).unwrap();
        let train = report.samples - report.held_out;
        assert_eq!(points.iter().map(|p| p.samples).collect::<Vec<_>>(), [train / 8, train / 4, train / 2, train]);
        assert_eq!(points.iter().map(|p| p.fits).collect::<Vec<_>>(), [4, 4, 2, 1]);
        assert_eq!((points[3].rmse, points[3].kendall_tau), (report.rmse, report.kendall_tau));
        assert!(points[0].rmse > points[3].rmse && points[0].kendall_tau < points[3].kendall_tau, "{points:?}");
        // Samples that were added after the fit change nothing; other samples leave the report's own point.
        let mut more = (240..400).map(|i| space.sample(&mut generator(2, Stream::Sampling, &[i])));
        let later = more.find(|new| samples.iter().all(|sample| sample.subnet != *new)).unwrap();
        samples.push(Sample::new(later, 0.9));
        assert_eq!(growth(&space, &samples, &report).unwrap(), points);
        assert_eq!(growth(&space, &samples[20..], &report).unwrap(), points[3..]);
    }
}
