//! The pictures of a report.

use super::chart::{Chart, Point, Series};
use super::text::percent;
use super::{Device, Report};
use anyhow::Result;
use maud::Markup;
use ofa_extract::predictor::GrowthPoint;

/// Most points of a curve: more are not told apart.
const CURVE: usize = 400;
/// Most points of fronts on all pictures together, for the size of the page.
const FRONT: usize = 1600;

impl Report {
    /// Accuracies of the validated subnets, loss, and learning rate by step.
    pub(super) fn training_charts(&self) -> Result<Vec<Markup>> {
        let steps = &self.training.steps;
        let every = steps.len().div_ceil(CURVE).max(1);
        let curve = |name: &str, value: &dyn Fn(&super::Step) -> f64| {
            let points = thinned(steps, every).map(|step| plain(step.step as f64, value(step)));
            Series { name: name.into(), points: points.collect(), joined: true }
        };
        let mut probes: Vec<Series> = Vec::new();
        for name in ["smallest", "middle", "largest", "subnet"] {
            let of = self.training.probes.iter().filter(|probe| probe.probe == name);
            let points = of.map(|probe| Point {
                text: format!("{name} after {} steps: {}, {}", probe.step, percent(probe.accuracy), probe.subnet),
                copy: probe.subnet.to_string(),
                ..plain(probe.step as f64, 100.0 * probe.accuracy)
            });
            probes.push(Series { name: name.into(), points: points.collect(), joined: true });
        }
        if let Some(best) = self.training.best {
            let text = format!("best checkpoint: {} after {} steps", percent(best.accuracy), best.step);
            let is_mean = probes.iter().filter(|series| !series.points.is_empty()).count() > 1;
            let name = if is_mean { "best checkpoint, mean of all" } else { "best checkpoint" };
            let point = Point { text, ..plain(best.step as f64, 100.0 * best.accuracy) };
            probes.push(Series { name: name.into(), points: vec![point], joined: false });
        }
        probes.retain(|series| !series.points.is_empty());
        let lines: Vec<f64> = self.training.stages.iter().map(|stage| stage.start as f64).collect();
        let chart =
            |title, y, series| Chart { title, x: "step", y, series, diagonal: false, lines: lines.clone() }.draw();
        let charts = [
            chart("Accuracy on validation images", "accuracy (%)", probes)?,
            chart("Loss", "mean loss of a subnet", vec![curve("loss", &|step| step.loss)])?,
            chart("Learning rate", "learning rate", vec![curve("learning rate", &|step| step.learning_rate)])?,
        ];
        Ok(charts.into_iter().flatten().collect())
    }

    /// Measured and predicted accuracies of the held-out subnets.
    pub(super) fn predictor_chart(&self) -> Result<Option<Markup>> {
        let Some(fit) = &self.predictor else { return Ok(None) };
        let points = fit.pairs.iter().map(|pair| Point {
            // The interval that should hold 90 % of the accuracies.
            interval: 100.0 * 1.645 * pair.deviation.unwrap_or(0.0),
            text: format!(
                "{}: measured {}, predicted {}",
                pair.subnet,
                percent(pair.measured),
                percent(pair.predicted)
            ),
            copy: pair.subnet.to_string(),
            ..plain(100.0 * pair.measured, 100.0 * pair.predicted)
        });
        let series = vec![Series { name: "held-out subnets".into(), points: points.collect(), joined: false }];
        Chart {
            title: "Predicted and measured accuracy of held-out subnets, with the intervals of 90 %",
            x: "measured (%)",
            y: "predicted (%)",
            series,
            diagonal: true,
            lines: Vec::new(),
        }
        .draw()
    }

    /// Error and order of the predictor by number of samples; none with a single number.
    pub(super) fn growth_charts(&self) -> Result<Vec<Markup>> {
        let growth = &self.predictor_growth;
        if growth.len() < 2 {
            return Ok(Vec::new());
        }
        let chart = |title, y, value: &dyn Fn(&GrowthPoint) -> Option<f64>| {
            let points = growth.iter().filter_map(|point| {
                let tau = point.kendall_tau.map_or("undefined".into(), |tau| format!("{tau:.3}"));
                let text = format!(
                    "{} samples: error {:.2} points (RMSE), Kendall tau {tau}, mean of {} fits",
                    point.samples,
                    100.0 * point.rmse,
                    point.fits
                );
                Some(Point { text, ..plain(point.samples as f64, value(point)?) })
            });
            let series = vec![Series { name: "held-out subnets".into(), points: points.collect(), joined: true }];
            Chart { title, x: "samples of the fit", y, series, diagonal: false, lines: Vec::new() }.draw()
        };
        let charts = [
            chart("Error by number of samples", "RMSE (points)", &|point| Some(100.0 * point.rmse))?,
            chart("Order by number of samples", "Kendall tau", &|point| point.kendall_tau)?,
        ];
        Ok(charts.into_iter().flatten().collect())
    }

    /// Measured and predicted latencies of whole networks on a device.
    pub(super) fn latency_chart(&self, device: &Device) -> Result<Option<Markup>> {
        let points = device.checked.iter().map(|checked| Point {
            text: format!(
                "{}: measured {:.3} ms, predicted {:.3} ms",
                checked.subnet, checked.measured_ms, checked.predicted_ms
            ),
            copy: checked.subnet.to_string(),
            ..plain(checked.measured_ms, checked.predicted_ms)
        });
        let series = vec![Series { name: "random subnets".into(), points: points.collect(), joined: false }];
        let title = "Predicted and measured latency of random subnets";
        Chart { title, x: "measured (ms)", y: "predicted (ms)", series, diagonal: true, lines: Vec::new() }.draw()
    }

    /// Accuracies and latencies of fronts, searches and models on a device.
    pub(super) fn front_chart(&self, device: &Device) -> Result<Option<Markup>> {
        let point = |name: &str, subnet: String, ms: f64, accuracy: f64, interval: f64| Point {
            interval: 100.0 * interval,
            text: format!("{name}: {} in {ms:.3} ms, {subnet}", percent(accuracy)),
            copy: subnet,
            ..plain(ms, 100.0 * accuracy)
        };
        let points: usize = self.searches.iter().map(|search| search.result.front.len()).sum();
        let every = (points * self.devices.len()).div_ceil(FRONT).max(1);
        let (mut fronts, mut found) = (Vec::new(), Vec::new());
        for search in &self.searches {
            let result = &search.result;
            let name = &search.name;
            fronts.extend(thinned(&result.front, every).filter_map(|front| {
                let ms = self.latency(device, &front.subnet)?;
                Some(point(name, front.subnet.to_string(), ms, front.score, 0.0))
            }));
            if let Some(ms) = self.latency(device, &result.best) {
                let deviation = result.predicted_deviation.unwrap_or(0.0);
                found.push(point(name, result.best.to_string(), ms, result.predicted_accuracy, deviation));
            }
        }
        let heading = device.heading();
        let tested = self.models.iter().filter_map(|model| {
            let ms = model.expected.iter().find(|time| time.device == heading)?.ms;
            let test = model.test.as_ref()?;
            let name = format!("{} on {}", model.name, test.images());
            Some(point(&name, model.subnet.to_string(), ms, test.top1, test.standard_error))
        });
        let mut series = vec![
            Series { name: "models, on test images".into(), points: tested.collect(), joined: false },
            Series { name: "results of searches, for validation images".into(), points: found, joined: false },
            Series { name: "fronts of searches, for validation images".into(), points: fronts, joined: false },
        ];
        series.retain(|series| !series.points.is_empty());
        let title = "Accuracy and latency, with standard deviations and errors";
        Chart { title, x: "predicted latency (ms)", y: "accuracy (%)", series, diagonal: false, lines: Vec::new() }
            .draw()
    }
}

/// One of `every` values, with both ends.
fn thinned<T>(values: &[T], every: usize) -> impl Iterator<Item = &T> {
    let last = values.len().saturating_sub(1);
    let kept = values.iter().enumerate().filter(move |(index, _)| index.is_multiple_of(every) || *index == last);
    kept.map(|(_, value)| value)
}

fn plain(x: f64, y: f64) -> Point {
    Point { x, y, interval: 0.0, text: String::new(), copy: String::new() }
}

#[cfg(test)]
mod tests {
    use super::thinned;

    #[test]
    fn thinned_values_have_both_ends() {
        let kept = |len: usize, every: usize| {
            let values: Vec<usize> = (0..len).collect();
            thinned(&values, every).copied().collect::<Vec<_>>()
        };
        assert_eq!((kept(8, 3), kept(7, 3), kept(3, 1)), (vec![0, 3, 6, 7], vec![0, 3, 6], vec![0, 1, 2]));
        assert!(kept(0, 2).is_empty());
    }
}
