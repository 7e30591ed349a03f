//! The table that decides: each extracted model with what was predicted and measured of it.

use super::{Device, Search};
use crate::run_folder::{RunFolder, subfolders};
use anyhow::{Context, Result};
use ofa_evaluate::bench::{BenchRecord, ClassAnswers};
use ofa_evaluate::cost;
use ofa_evaluate::model::{self, NumberType, WEIGHTS_FILE};
use ofa_supernet::Subnet;
use serde::Serialize;

/// An extracted model.
#[derive(Debug, Clone, Serialize)]
pub struct ModelRow {
    pub name: String,
    pub subnet: Subnet,
    pub dtype: String,
    pub resolution: usize,
    /// Limits of the search that the model comes from.
    pub limits: Option<String>,
    pub predicted: Option<f64>,
    pub deviation: Option<f64>,
    /// Accuracy on validation images at the extraction, otherwise that of the search; not of an int8 model.
    pub validation: Option<f64>,
    pub test: Option<Test>,
    /// The confusion matrix of the test images, a row per class.
    pub classes: Vec<ClassAnswers>,
    pub macs: u64,
    pub parameters: u64,
    pub file_bytes: u64,
    /// Measured times of one image on one thread.
    pub measured: Vec<Time>,
    /// Predicted times, by device profile.
    pub expected: Vec<Time>,
    /// Another model that is at least as accurate, fast and small, and better in one of these.
    pub dominated_by: Option<String>,
}

/// Accuracy on test images.
#[derive(Debug, Clone, Serialize)]
pub struct Test {
    pub top1: f64,
    pub images: u64,
    pub standard_error: f64,
}

/// Time of one image on a device.
#[derive(Debug, Clone, Serialize)]
pub struct Time {
    pub device: String,
    pub ms: f64,
}

/// The models of the run, by rising work.
pub fn rows(folder: &RunFolder, searches: &[Search], devices: &[Device]) -> Result<Vec<ModelRow>> {
    let mut folders = subfolders(&folder.join("models"));
    folders.retain(|folder| !model::is_unfinished(folder));
    let mut rows = folders.iter().map(|path| row(path, searches, devices)).collect::<Result<Vec<_>>>()?;
    rows.sort_by(|a, b| a.macs.cmp(&b.macs).then_with(|| a.name.cmp(&b.name)));
    first_on_one_device(&mut rows);
    Ok(rows)
}

/// Puts the time on one device, the first of the first measured model, before those on others: only times on one device
/// can be compared.
fn first_on_one_device(rows: &mut [ModelRow]) {
    let Some(device) = rows.iter().find_map(|row| row.measured.first()).map(|time| time.device.clone()) else { return };
    rows.iter_mut().for_each(|row| row.measured.sort_by_key(|time| time.device != device));
}

fn row(path: &std::path::Path, searches: &[Search], devices: &[Device]) -> Result<ModelRow> {
    let config = model::load_config(path)?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let record = BenchRecord::read(path)?;
    let weights = path.join(WEIGHTS_FILE);
    let file_bytes = std::fs::metadata(&weights).with_context(|| weights.display().to_string())?.len();
    // An int8 model has the name of the model that it was made of, with a suffix.
    let searched = name.strip_suffix("-int8").unwrap_or(&name);
    let search = searches.iter().find(|search| search.name == searched && search.result.best == config.subnet);
    // The newest measurement on test images.
    let tested = record.devices.iter().rev().find(|device| device.row.accuracy.is_some()).map(|device| &device.row);
    let test = tested.and_then(|row| row.accuracy).map(|accuracy| Test {
        top1: accuracy.top1,
        images: accuracy.images,
        standard_error: (accuracy.top1 * (1.0 - accuracy.top1) / accuracy.images.max(1) as f64).sqrt(),
    });
    let one = |device: &ofa_evaluate::bench::DeviceRecord| {
        let latency = device.row.latencies.iter().find(|latency| (latency.threads, latency.batch) == (1, 1))?;
        Some(Time { device: format!("{}, {}", device.cpu, device.instruction_set), ms: latency.ms.p50 })
    };
    let expected = |device: &Device| {
        let same = (config.dtype == NumberType::Int8) == (device.profile.number_type == NumberType::Int8);
        let ms = device.profile.latency_ms(&config.network).ok().filter(|_| same)?;
        Some(Time { device: device.name.clone(), ms })
    };
    // What the model itself tells, where its search has gone or measured nothing.
    let provenance = config.provenance.as_ref();
    let recorded = provenance.and_then(|provenance| provenance.validation_accuracy);
    let validated = recorded.or_else(|| search.and_then(|search| search.result.measured_accuracy));
    Ok(ModelRow {
        limits: search.map(limits).or_else(|| {
            let limits = &provenance?.limits;
            (!limits.is_empty()).then(|| limits.join(", "))
        }),
        predicted: match search {
            Some(search) => search.result.is_predicted().then_some(search.result.predicted_accuracy),
            None => provenance.and_then(|provenance| provenance.predicted_accuracy),
        },
        deviation: search.and_then(|search| search.result.predicted_deviation),
        validation: validated.filter(|_| config.dtype != NumberType::Int8),
        test,
        classes: tested.map_or(Vec::new(), |row| row.classes.clone()),
        macs: cost::macs(&config.network),
        parameters: cost::parameters(&config.network),
        file_bytes,
        measured: record.devices.iter().filter_map(one).collect(),
        expected: devices.iter().filter_map(expected).collect(),
        dominated_by: None,
        resolution: config.network.resolution,
        dtype: config.dtype.to_string(),
        subnet: config.subnet,
        name,
    })
}

fn limits(search: &Search) -> String {
    let limits = search.result.constraints.iter().map(|limit| limit.constraint.clone()).collect::<Vec<_>>();
    if limits.is_empty() { "none".into() } else { limits.join(", ") }
}

impl ModelRow {
    /// The measured time on the device that the first measured model ran on; without one the first predicted time.
    pub fn time(&self) -> Option<&Time> {
        self.measured.first().or(self.expected.first())
    }

    /// The accuracy on test images.
    fn accuracy(&self) -> Option<f64> {
        self.test.as_ref().map(|test| test.top1)
    }

    /// Whether `other` is at least as good in accuracy, time and size, and better in one.
    fn is_dominated_by(&self, other: &ModelRow) -> bool {
        let (Some(accuracy), Some(others)) = (self.accuracy(), other.accuracy()) else { return false };
        let (Some(time), Some(others_time)) = (self.time(), other.time()) else { return false };
        if time.device != others_time.device {
            return false;
        }
        let no_worse = others >= accuracy && others_time.ms <= time.ms && other.file_bytes <= self.file_bytes;
        no_worse && (others > accuracy || others_time.ms < time.ms || other.file_bytes < self.file_bytes)
    }
}

/// Marks the models that another one makes superfluous.
pub fn mark_dominated(rows: &mut [ModelRow]) {
    for index in 0..rows.len() {
        let better = rows.iter().find(|other| rows[index].is_dominated_by(other));
        rows[index].dominated_by = better.map(|other| other.name.clone());
    }
}

/// Sentences about the choice among the models.
pub fn advice(rows: &[ModelRow]) -> Vec<String> {
    if rows.is_empty() {
        return vec!["There are no models yet: run ofa search, then ofa extract --search-results.".into()];
    }
    let tested: Vec<(&ModelRow, &Test)> = rows.iter().filter_map(|row| Some((row, row.test.as_ref()?))).collect();
    let Some(&(best, test)) = tested.iter().max_by(|a, b| a.1.top1.total_cmp(&b.1.top1)) else {
        return vec![
            "No model has test figures yet: run ofa bench on the models with --data and --update-card.".into(),
        ];
    };
    let mut sentences = vec![format!(
        "{} is the most accurate: {:.2} % of {} test images, with a standard error of {:.2} points.",
        best.name,
        100.0 * test.top1,
        test.images,
        100.0 * test.standard_error
    )];
    let Some(time) = best.time() else { return sentences };
    // Two accuracies on as many images differ by chance by up to two standard errors of their difference.
    let equal = tested.iter().filter(|(_, other)| {
        test.top1 - other.top1 <= 2.0 * (test.standard_error.powi(2) + other.standard_error.powi(2)).sqrt()
    });
    let fastest = equal
        .filter_map(|(row, other)| Some((row, other, row.time().filter(|other| other.device == time.device)?)))
        .min_by(|a, b| a.2.ms.total_cmp(&b.2.ms));
    if let Some((row, other, faster)) = fastest
        && row.name != best.name
        && faster.ms < 0.95 * time.ms
    {
        sentences.push(format!(
            "{} and {} cannot be told apart on {} test images ({:.2} and {:.2} %), and {} takes {:.0} % less time on \
             {}: take it where both fit.",
            row.name,
            best.name,
            other.images,
            100.0 * other.top1,
            100.0 * test.top1,
            row.name,
            100.0 * (1.0 - faster.ms / time.ms),
            time.device
        ));
    }
    sentences
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn row(name: &str, top1: f64, ms: f64, file_bytes: u64) -> ModelRow {
        let images = 2000;
        let test = Test { top1, images, standard_error: (top1 * (1.0 - top1) / 2000.0).sqrt() };
        ModelRow {
            name: name.into(),
            subnet: ofa_supernet::space::preset("tiny").unwrap().largest(),
            dtype: "f32".into(),
            resolution: 32,
            limits: None,
            predicted: None,
            deviation: None,
            validation: None,
            test: Some(test),
            classes: Vec::new(),
            macs: 1,
            parameters: 1,
            file_bytes,
            measured: vec![Time { device: "cpu".into(), ms }],
            expected: Vec::new(),
            dominated_by: None,
        }
    }

    #[test]
    fn times_on_one_device_come_first() {
        let mut rows = [row("a", 0.9, 4.0, 50), row("b", 0.8, 5.0, 50), row("c", 0.7, 6.0, 50)];
        rows[0].measured = Vec::new();
        rows[2].measured.insert(0, Time { device: "phone".into(), ms: 1.0 });
        first_on_one_device(&mut rows);
        assert_eq!(rows.each_ref().map(|row| row.time().map(|time| time.ms)), [None, Some(5.0), Some(6.0)]);
        assert_eq!(rows[2].measured[1].device, "phone");
    }

    #[test]
    fn a_model_that_is_no_better_in_anything_is_dominated_and_the_fastest_of_equals_is_advised() {
        let mut rows =
            [row("a", 0.900, 4.0, 50), row("b", 0.895, 3.0, 40), row("c", 0.850, 1.0, 60), row("d", 0.84, 1.0, 60)];
        mark_dominated(&mut rows);
        assert_eq!(rows.clone().map(|row| row.dominated_by), [None, None, None, Some("c".into())]);
        let sentences = advice(&rows);
        assert!(sentences[0].contains("a is the most accurate: 90.00 % of 2000"), "{sentences:?}");
        assert!(sentences[1].contains("b and a cannot be told apart") && sentences[1].contains("25 % less time"));
        // A difference beyond chance is no reason to advise the faster one.
        assert_eq!(advice(&[rows[0].clone(), rows[2].clone()]).len(), 1);
        rows.iter_mut().for_each(|row| row.test = None);
        assert!(advice(&rows)[0].contains("--update-card"));
        assert!(advice(&[])[0].contains("ofa extract"));
    }
}
