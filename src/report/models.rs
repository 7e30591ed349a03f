//! The table that decides: each extracted model with what was predicted and measured of it.

use super::{Device, Search};
use crate::run_folder::{RunFolder, subfolders};
use anyhow::{Context, Result};
use ofa_evaluate::bench::{BenchRecord, ClassAnswers, Latency};
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
    /// Measured times, one per device: of one image on one thread, or of the first setting that was measured.
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
    /// Name of the images.
    pub data: Option<String>,
    pub standard_error: f64,
}

impl Test {
    /// Whether both accuracies are of the same images, as far as name and number tell.
    pub fn is_of_images_of(&self, other: &Test) -> bool {
        (&self.data, self.images) == (&other.data, other.images)
    }

    /// Number and name of the images.
    pub fn images(&self) -> String {
        format!("{} images of '{}'", self.images, self.data.as_deref().unwrap_or("unknown"))
    }
}

/// Time of a run on a device.
#[derive(Debug, Clone, Serialize)]
pub struct Time {
    /// The device, with threads and batch where these are not 1.
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
    // An int8 model has the name of the model that it was made of, with a suffix; that of an f32 model is its search's.
    let suffix = if config.dtype == NumberType::Int8 { "-int8" } else { "" };
    let searched = name.strip_suffix(suffix).unwrap_or(&name);
    let search = searches.iter().find(|search| search.name == searched && search.result.best == config.subnet);
    // The newest measurement on test images.
    let tested = record.devices.iter().rev().find(|device| device.row.accuracy.is_some());
    let test = tested.and_then(|device| Some((device, device.row.accuracy?))).map(|(device, accuracy)| Test {
        top1: accuracy.top1,
        images: accuracy.images,
        data: device.data.clone(),
        standard_error: (accuracy.top1 * (1.0 - accuracy.top1) / accuracy.images.max(1) as f64).sqrt(),
    });
    let one = |device: &ofa_evaluate::bench::DeviceRecord| {
        let latencies = &device.row.latencies;
        let is_single = |latency: &&Latency| (latency.threads, latency.batch) == (1, 1);
        let latency = latencies.iter().find(is_single).or(latencies.first())?;
        let setting = setting(latency.threads, latency.batch);
        Some(Time { device: format!("{}, {}{setting}", device.cpu, device.instruction_set), ms: latency.ms.p50 })
    };
    let expected = |device: &Device| {
        let same = (config.dtype == NumberType::Int8) == (device.profile.number_type == NumberType::Int8);
        let ms = device.profile.latency_ms(&config.network).ok().filter(|_| same)?;
        Some(Time { device: device.heading(), ms })
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
        classes: tested.map_or(Vec::new(), |device| device.row.classes.clone()),
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

/// Addition to the name of a device for times with these `threads` and `batch`; empty where both are 1.
pub fn setting(threads: usize, batch: usize) -> String {
    let threads = if threads == 1 { String::new() } else { format!(", {threads} threads") };
    let batch = if batch == 1 { String::new() } else { format!(", batch {batch}") };
    threads + &batch
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

    /// Whether `other` is at least as good in accuracy, time and size, and better in one.
    fn is_dominated_by(&self, other: &ModelRow) -> bool {
        let (Some(test), Some(others_test)) = (&self.test, &other.test) else { return false };
        let (Some(time), Some(others_time)) = (self.time(), other.time()) else { return false };
        if time.device != others_time.device || !test.is_of_images_of(others_test) {
            return false;
        }
        let (accuracy, others) = (test.top1, others_test.top1);
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
        return vec![
            "There are no models yet: run ofa search --run RUN, then ofa extract --run RUN --search-results.".into(),
        ];
    }
    let tested: Vec<(&ModelRow, &Test)> = rows.iter().filter_map(|row| Some((row, row.test.as_ref()?))).collect();
    // Only accuracies on the same images can be compared: those that most models have, the first of equals.
    let models = |test: &Test| tested.iter().filter(|(_, other)| other.is_of_images_of(test)).count();
    let common = tested.iter().rev().max_by_key(|one| models(one.1)).map(|(_, test)| *test);
    let (tested, others): (Vec<_>, Vec<_>) =
        tested.iter().copied().partition(|(_, test)| common.is_some_and(|common| test.is_of_images_of(common)));
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
    if !others.is_empty() {
        let names: Vec<String> =
            others.iter().map(|(row, test)| format!("{} (on {})", row.name, test.images())).collect();
        sentences.push(format!(
            "Not compared with it, as they were tested on other images: {}; run ofa bench on all models with one \
             --data and --update-card.",
            names.join(", ")
        ));
    }
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
        let data = Some("a".into());
        let test = Test { top1, images, data, standard_error: (top1 * (1.0 - top1) / 2000.0).sqrt() };
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
    fn accuracies_on_other_images_are_not_compared() {
        let mut rows = [row("a", 0.9, 4.0, 50), row("b", 0.95, 3.0, 40), row("c", 0.8, 5.0, 60)];
        // Fewer images of the same name.
        rows[1].test.as_mut().unwrap().images = 1000;
        mark_dominated(&mut rows);
        assert_eq!(rows.each_ref().map(|row| row.dominated_by.as_deref()), [None, None, Some("a")]);
        let sentences = advice(&rows);
        assert!(sentences[0].starts_with("a is the most accurate"), "{sentences:?}");
        assert!(sentences[1].contains("tested on other images: b (on 1000 images of 'a')"), "{sentences:?}");
        rows[1].test = None;
        assert_eq!(advice(&rows).len(), 1);
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
