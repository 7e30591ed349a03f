//! The report as Markdown, and the cells of the table that decides.

use super::models::ModelRow;
use super::{Report, classes};
use ofa_evaluate::model::cell;
use std::fmt::Write;

/// A fraction in percent.
pub fn percent(fraction: f64) -> String {
    format!("{:.2} %", 100.0 * fraction)
}

/// The report as Markdown, without pictures.
pub fn markdown(report: &Report) -> String {
    let mut text = format!("# Report of {}\n\n{}\n\n", report.run, report.summary());
    for sentence in &report.warnings {
        let _ = writeln!(text, "**Warning:** {}.\n", cell(sentence));
    }
    text += "## Models\n\n";
    for sentence in &report.advice {
        let _ = writeln!(text, "{sentence}\n");
    }
    if !report.models.is_empty() {
        let row =
            |cells: &[String]| format!("| {} |\n", cells.iter().map(|text| cell(text)).collect::<Vec<_>>().join(" | "));
        let header = report.columns();
        text += &row(&header);
        text += &row(&vec!["---".to_string(); header.len()]);
        report.models.iter().for_each(|model| text += &row(&report.cells(model)));
        for model in &report.models {
            let _ = write!(text, "\n- {}: `{}`", cell(&model.name), model.subnet);
        }
        let _ = write!(text, "\n\n{PLUS_MINUS}\n");
    }
    text += &classes::markdown(report);
    for device in &report.devices {
        let _ = write!(text, "\n## Device {}\n\n{}\n", device.name, report.device_sentence(device));
    }
    if let Some(sentence) = report.predictor_sentence() {
        let _ = write!(text, "\n## Predictor\n\n{sentence}\n");
        if report.predictor_growth.len() > 1 {
            text += "\n| samples | RMSE (points) | Kendall tau |\n| --- | --- | --- |\n";
        }
        for point in report.predictor_growth.iter().filter(|_| report.predictor_growth.len() > 1) {
            let tau = point.kendall_tau.map_or_else(|| UNKNOWN.to_string(), |tau| format!("{tau:.3}"));
            let _ = writeln!(text, "| {} | {:.2} | {tau} |", point.samples, 100.0 * point.rmse);
        }
    }
    text
}

/// The meaning of ± in the table of models, as in `ofa search`.
pub const PLUS_MINUS: &str = "± after a prediction: its standard deviation; after a test: the standard error.";

/// A cell of what is not known.
const UNKNOWN: &str = "–";

impl Report {
    /// Devices on which a model was measured, in order.
    fn measured_on(&self) -> Vec<&str> {
        let mut devices: Vec<&str> = Vec::new();
        for time in self.models.iter().flat_map(|model| &model.measured) {
            if !devices.contains(&time.device.as_str()) {
                devices.push(&time.device);
            }
        }
        devices
    }

    /// Whether another model makes one of the models superfluous.
    pub(super) fn has_dominated(&self) -> bool {
        self.models.iter().any(|model| model.dominated_by.is_some())
    }

    /// Whether all accuracies on test images are of the same images.
    fn has_one_test_set(&self) -> bool {
        let mut tests = self.models.iter().filter_map(|model| model.test.as_ref());
        let Some(first) = tests.next() else { return true };
        tests.all(|test| test.is_of_images_of(first))
    }

    /// Columns of the table of models.
    pub(super) fn columns(&self) -> Vec<String> {
        let mut columns: Vec<String> =
            ["model", "numbers", "limits", "predicted", "validation", "test"].map(String::from).into();
        columns.extend(self.measured_on().iter().map(|device| format!("ms on {device}")));
        columns.extend(self.devices.iter().map(|device| format!("ms predicted for {}", device.heading())));
        columns.extend(["MACs (M)", "parameters (k)", "file (kB)"].map(String::from));
        columns.extend(self.has_dominated().then(|| "dominated by".into()));
        columns
    }

    /// Cells of a model's row.
    pub(super) fn cells(&self, model: &ModelRow) -> Vec<String> {
        let unknown = || UNKNOWN.to_string();
        let predicted = model.predicted.map(|accuracy| match model.deviation {
            Some(deviation) => format!("{:.2} ± {:.2} %", 100.0 * accuracy, 100.0 * deviation),
            None => percent(accuracy),
        });
        let test = model.test.as_ref().map(|test| {
            let images = if self.has_one_test_set() { String::new() } else { format!(", {}", test.images()) };
            format!("{:.2} ± {:.2} %{images}", 100.0 * test.top1, 100.0 * test.standard_error)
        });
        let mut cells = vec![
            model.name.clone(),
            model.dtype.clone(),
            model.limits.clone().unwrap_or_else(unknown),
            predicted.unwrap_or_else(unknown),
            model.validation.map_or_else(unknown, percent),
            test.unwrap_or_else(unknown),
        ];
        let time = |times: &[super::models::Time], device: &str| {
            times.iter().find(|time| time.device == device).map_or_else(unknown, |time| format!("{:.3}", time.ms))
        };
        cells.extend(self.measured_on().iter().map(|device| time(&model.measured, device)));
        cells.extend(self.devices.iter().map(|device| time(&model.expected, &device.heading())));
        cells.extend([
            format!("{:.2}", model.macs as f64 / 1e6),
            format!("{:.1}", model.parameters as f64 / 1e3),
            format!("{:.0}", model.file_bytes as f64 / 1e3),
        ]);
        cells.extend(self.has_dominated().then(|| model.dominated_by.clone().unwrap_or_default()));
        cells
    }
}
