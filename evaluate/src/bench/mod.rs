//! Extracted models side by side: accuracy, size, speed.
//!
//! Latencies are measured on random images with all models interleaved (see [`latency`](crate::latency)), for each
//! number of threads and each batch; accuracy is measured on a test set that the caller reads.
//!
//! | file | concern |
//! | --- | --- |
//! | `score` | correct answers, in all and by class |
//! | `layers` | times of a model's layers |
//! | `record` | `bench.json` of a model folder |
//! | `csv` | results as comma-separated values |

mod csv;
mod layers;
mod record;
mod score;

pub use csv::csv;
pub use layers::{LayerTime, layers};
pub(crate) use record::figures;
pub use record::{BENCH_FILE, BenchRecord, DeviceRecord, update_card};
pub use score::{Answer, ClassAnswers, Confusion, Score, confusions, worst_first};

use crate::latency::{Budget, Percentiles, SystemClock, measure_interleaved};
use crate::model::{Model, ModelConfig, NumberType};
use crate::{Error, Result, cost};
use ofa_supernet::Subnet;
use ofa_supernet::seed::{Stream, generator};
use rand::Rng;
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;

/// Settings of a benchmark.
#[derive(Debug, Clone, PartialEq)]
pub struct BenchOptions {
    /// Numbers of threads.
    pub threads: Vec<usize>,
    /// Batch sizes.
    pub batches: Vec<usize>,
    /// Runs before each measurement that do not count.
    pub warmup: usize,
    /// Duration of measuring; `time` is per model, number of threads and batch.
    pub budget: Budget,
}

impl Default for BenchOptions {
    /// Defaults: one thread, one image per run, 5 warm-up runs, the default budget.
    fn default() -> Self {
        BenchOptions { threads: vec![1], batches: vec![1], warmup: 5, budget: Budget::default() }
    }
}

/// Results of one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BenchRow {
    /// Name of the model's folder, or its path if other rows have the same name.
    pub model: String,
    /// Name of the model's search space.
    pub space: String,
    /// The subnet.
    pub subnet: Subnet,
    /// Input resolution in pixels.
    pub resolution: usize,
    /// Number type of the stored weights.
    pub dtype: NumberType,
    /// Accuracy on the test images, if a test set was given.
    pub accuracy: Option<TestAccuracy>,
    /// The confusion matrix of the test images, a row per class in the order of the model's classes; empty without a
    /// test set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<ClassAnswers>,
    /// Multiply-accumulates per image ([`cost::macs`]).
    pub macs: u64,
    /// Number of trainable parameters ([`cost::parameters`]).
    pub parameters: u64,
    /// Size of the weights file in bytes.
    pub file_bytes: u64,
    /// Peak activation memory in bytes ([`cost::peak_activation_bytes`]).
    pub peak_activation_bytes: u64,
    /// Bytes of the buffers that this runtime plans for the activations of one image, without the images.
    #[serde(default)]
    pub buffer_bytes: u64,
    /// Latencies for each number of threads and batch, in the order of the options.
    pub latencies: Vec<Latency>,
}

/// Accuracy on test images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestAccuracy {
    /// Number of test images.
    pub images: u64,
    /// Fraction of images whose label has the largest logit, 0 to 1.
    pub top1: f64,
    /// Fraction of images whose label is among the five largest logits (1 with at most five classes).
    pub top5: f64,
}

/// Latency for one number of threads and one batch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    /// Number of threads.
    pub threads: usize,
    /// Images per run.
    pub batch: usize,
    /// Percentiles of one run's time in milliseconds.
    pub ms: Percentiles,
    /// Images per second, from the median time.
    pub images_per_second: f64,
    /// Number of measured runs.
    pub samples: usize,
}

/// Callback for a batch: images `[batch, resolution, resolution, 3]`, normalised, and their labels.
pub type TakeBatch<'a> = dyn FnMut(&[f32], &[u32]) -> Result<()> + 'a;

/// Reader of the test set for a model: passes on every image once, at the model's resolution (`network.resolution`) and
/// with its normalisation, with labels in the order of its `labels`.
pub type TestSet<'a> = dyn FnMut(&ModelConfig, &mut TakeBatch) -> Result<()> + 'a;

/// A step of a benchmark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BenchStep {
    /// Test images went through a model.
    Accuracy {
        /// Index of the model.
        model: usize,
        /// Number of images so far.
        images: u64,
    },
    /// The latency of all models is about to be measured in this setting.
    Latency {
        /// Threads.
        threads: usize,
        /// Images per run.
        batch: usize,
    },
    /// A model is about to run in the setting announced last. Nothing is timed at this moment, but long work would
    /// change the contents of the caches.
    Run,
}

/// Callback for every step; `Break` ends the benchmark with [`ofa_supernet::Error::Interrupted`].
pub type Progress<'a> = dyn FnMut(BenchStep) -> ControlFlow<()> + Send + 'a;

/// Measures `models`; without a test set the accuracy stays empty. Rows have the order of the models.
///
/// # Errors
/// Impossible options, an empty test set or one whose batches do not fit the model, or an interruption.
pub fn bench(
    models: &mut [Model],
    test: Option<&mut TestSet>,
    options: &BenchOptions,
    progress: &mut Progress,
) -> Result<Vec<BenchRow>> {
    for (name, list) in [("threads", &options.threads), ("batches", &options.batches)] {
        if list.contains(&0) {
            return Err(Error::Measurement(format!("{name} {list:?} contains 0; all values must be at least 1")));
        }
    }
    let mut rows = rows_of(models);
    if let Some(test) = test {
        for (index, (model, row)) in models.iter_mut().zip(&mut rows).enumerate() {
            let score = score(index, model, test, progress)?;
            row.accuracy = Some(TestAccuracy { images: score.images, top1: score.top1(), top5: score.top5() });
            row.classes = score.by_class(&model.config().labels);
        }
    }
    for &threads in &options.threads {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .map_err(|e| Error::Measurement(format!("{threads} threads cannot be started: {e}")))?;
        for &batch in &options.batches {
            report(progress, BenchStep::Latency { threads, batch })?;
            for (row, times) in rows.iter_mut().zip(pool.install(|| measure(models, batch, options, progress))?) {
                let ms = Percentiles::of(&times).expect("a budget asks for at least one run");
                let images_per_second = batch as f64 / (ms.p50 / 1e3).max(1e-9);
                row.latencies.push(Latency { threads, batch, ms, images_per_second, samples: times.len() });
            }
        }
    }
    Ok(rows)
}

/// Rows with everything that needs no measurement. Models in different folders of one name are identified by their
/// paths.
fn rows_of(models: &[Model]) -> Vec<BenchRow> {
    let mut rows: Vec<BenchRow> = models.iter().map(row).collect();
    let names: Vec<String> = rows.iter().map(|row| row.model.clone()).collect();
    for (row, model) in rows.iter_mut().zip(models) {
        if names.iter().filter(|name| **name == row.model).count() > 1 {
            row.model = model.folder().display().to_string();
        }
    }
    rows
}

fn row(model: &Model) -> BenchRow {
    let config = model.config();
    let folder = model.folder();
    BenchRow {
        model: folder.file_name().map_or_else(|| folder.display().to_string(), |n| n.to_string_lossy().into_owned()),
        space: config.space.clone(),
        subnet: config.subnet.clone(),
        resolution: config.network.resolution,
        dtype: config.dtype,
        accuracy: None,
        classes: Vec::new(),
        macs: cost::macs(&config.network),
        parameters: cost::parameters(&config.network),
        file_bytes: model.file_bytes(),
        peak_activation_bytes: match config.dtype {
            NumberType::Int8 => cost::peak_int8_activation_bytes(&config.network),
            _ => cost::peak_activation_bytes(&config.network),
        },
        buffer_bytes: model.buffer_bytes(),
        latencies: Vec::new(),
    }
}

fn score(index: usize, model: &mut Model, test: &mut TestSet, progress: &mut Progress) -> Result<Score> {
    let config = model.config().clone();
    let mut score = Score::new(config.network.classes);
    test(&config, &mut |images, labels| {
        let logits = model.network().run(images, labels.len())?;
        score.add(logits, labels)?;
        report(progress, BenchStep::Accuracy { model: index, images: score.images })
    })?;
    if score.images == 0 {
        return Err(Error::Input("the test set has no images".into()));
    }
    Ok(score)
}

/// Bytes that suffice to measure the models at `batch`: the images, and the activations of all models as if all images
/// of a batch were computed at once.
pub fn memory(models: &[Model], batch: usize) -> u64 {
    let largest = models.iter().map(|model| model.config().network.resolution).max().unwrap_or(0) as u64;
    let images = 4 * 3 * largest * largest;
    let activations = models.iter().map(Model::buffer_bytes);
    (images + activations.sum::<u64>()).saturating_mul(batch as u64)
}

/// Times of every model's runs in milliseconds, on the current thread pool.
fn measure(
    models: &mut [Model],
    batch: usize,
    options: &BenchOptions,
    progress: &mut Progress,
) -> Result<Vec<Vec<f64>>> {
    let largest = models.iter().map(|m| m.config().network.resolution).max().unwrap_or(0);
    let mut rng = generator(0, Stream::RandomImages, &[]);
    let images: Vec<f32> = (0..batch * largest * largest * 3).map(|_| rng.random_range(-2.0..2.0)).collect();
    let budget = Budget { time: options.budget.time * models.len() as u32, ..options.budget };
    let mut between = || report(progress, BenchStep::Run);
    measure_interleaved(&mut SystemClock::new(), models.len(), options.warmup, &budget, &mut between, |index| {
        let network = models[index].network();
        let resolution = network.spec().resolution;
        network.run(&images[..batch * resolution * resolution * 3], batch)?;
        Ok(())
    })
}

fn report(progress: &mut Progress, step: BenchStep) -> Result<()> {
    match progress(step) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(ofa_supernet::Error::Interrupted.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Normalisation, save};
    use crate::runtime::random_weights;
    use ofa_supernet::space::preset;
    use std::path::Path;
    use std::time::Duration;

    fn model(folder: &Path, large: bool) -> Model {
        let space = preset("tiny").unwrap();
        let subnet = if large { space.largest() } else { space.smallest() };
        let network = space.network(&subnet, 2).unwrap();
        let weights = random_weights(&network, 1).unwrap();
        let labels = vec!["a".to_string(), "b".to_string()];
        let normalisation = Normalisation { mean: [0.5; 3], std: [0.5; 3] };
        let config = ModelConfig::new("tiny", &subnet, network, labels, normalisation, NumberType::F32);
        save(folder, &config, &weights).unwrap();
        Model::load(folder).unwrap()
    }

    fn quick() -> BenchOptions {
        let budget = Budget { min_samples: 3, max_samples: 3, time: Duration::ZERO, visit: 1 };
        BenchOptions { threads: vec![1, 2], batches: vec![1, 3], warmup: 1, budget }
    }

    #[test]
    fn every_model_gets_a_full_row() {
        let folder = tempfile::tempdir().unwrap();
        let mut models = [model(&folder.path().join("small"), false), model(&folder.path().join("large"), true)];
        // Three batches whose labels are the model's own answers, except for one image: 5 of 6 are correct.
        let mut copy = model(&folder.path().join("copy"), false);
        let network = copy.network();
        let mut test = |config: &ModelConfig, take: &mut TakeBatch| {
            let pixels = config.network.resolution * config.network.resolution * 3;
            for batch in 0..3 {
                let images: Vec<f32> =
                    (0..2 * pixels).map(|i| ((i * 7 + batch * 13) % 11) as f32 / 5.0 - 1.0).collect();
                network.set_resolution(config.network.resolution)?;
                let mut labels: Vec<u32> = network.run(&images, 2)?.chunks(2).map(|l| u32::from(l[1] > l[0])).collect();
                if batch == 0 {
                    labels[0] = 1 - labels[0];
                }
                take(&images, &labels)?;
            }
            Ok(())
        };
        let rows = bench(&mut models, Some(&mut test), &quick(), &mut |_| ControlFlow::Continue(())).unwrap();
        let accuracy = rows[0].accuracy.unwrap();
        assert_eq!((accuracy.images, accuracy.top5), (6, 1.0));
        assert!((accuracy.top1 - 5.0 / 6.0).abs() < 1e-12);
        let classes = &rows[0].classes;
        assert_eq!(classes.iter().map(|class| class.class.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(classes.iter().map(|class| class.images).sum::<u64>(), 6);
        assert_eq!(confusions(classes).iter().map(|confusion| confusion.images).sum::<u64>(), 1);
        assert_eq!((rows[0].model.as_str(), rows[1].model.as_str()), ("small", "large"));
        for row in &rows {
            let settings: Vec<_> = row.latencies.iter().map(|l| (l.threads, l.batch, l.samples)).collect();
            assert_eq!(settings, [(1, 1, 3), (1, 3, 3), (2, 1, 3), (2, 3, 3)]);
            assert!(row.latencies.iter().all(|l| l.ms.p50 > 0.0 && l.ms.p50 <= l.ms.p99));
        }
        assert!(rows[0].macs < rows[1].macs && rows[0].file_bytes < rows[1].file_bytes);
        let json = serde_json::to_string(&rows).unwrap();
        let read: Vec<BenchRow> = serde_json::from_str(&json).unwrap();
        // Times may lose their last bit in JSON.
        assert_eq!((read.len(), &read[1].subnet, read[1].accuracy), (2, &rows[1].subnet, rows[1].accuracy));
        assert_eq!(csv(&rows).lines().count(), 1 + 2 * 4);
    }

    #[test]
    fn the_layers_times_cover_the_network() {
        let folder = tempfile::tempdir().unwrap();
        let mut model = model(folder.path(), true);
        for batch in [1, 2] {
            let rows = layers(&mut model, &BenchOptions { batches: vec![batch], ..quick() }).unwrap();
            let macs: u64 = rows.iter().map(|row| row.macs).sum();
            assert_eq!(macs, batch as u64 * cost::macs(&model.config().network));
            assert!(rows.iter().all(|row| row.ms >= 0.0 && row.floor_ms.is_finite() && !row.shape.is_empty()));
            assert!(rows.iter().any(|row| row.name == "classifier" && row.macs > 0));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut models = [model(folder.path(), false)];
        let mut go = |test: &mut TestSet, options: &BenchOptions| {
            bench(&mut models, Some(test), options, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string()
        };
        assert!(go(&mut |_, _| Ok(()), &quick()).contains("no images"));
        assert!(go(&mut |_, take| take(&[0.0; 5], &[0]), &quick()).contains("5 values"));
        assert!(go(&mut |_, take| take(&[0.0; 768], &[2]), &quick()).contains("label 2"));
        let none = BenchOptions { threads: vec![0], ..quick() };
        assert!(go(&mut |_, _| Ok(()), &none).contains("threads"));
        for last in [BenchStep::Latency { threads: 1, batch: 1 }, BenchStep::Run] {
            let mut control = |step| if step == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
            let stopped = bench(&mut models, None, &quick(), &mut control).unwrap_err();
            assert_eq!(stopped.to_string(), "interrupted");
        }
    }

    #[test]
    fn models_of_one_name_are_told_apart_by_their_paths() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a/models/small", "b/models/small", "b/models/large"].map(|path| folder.path().join(path));
        let models = paths.clone().map(|path| model(&path, false));
        let names: Vec<String> = rows_of(&models).into_iter().map(|row| row.model).collect();
        assert_eq!(names, [paths[0].display().to_string(), paths[1].display().to_string(), "large".into()]);
    }
}
