//! The report of a run: what its folder tells, gathered once, for HTML, Markdown and JSON.
//!
//! | file | concern |
//! | --- | --- |
//! | `models` | the table of models |
//! | `page`, `text` | the report as HTML and as Markdown |
//! | `pictures`, `chart`, `classes` | its pictures, charts, and answers by class |

mod chart;
mod classes;
mod models;
mod page;
mod pictures;
mod text;

pub use page::page;
pub use text::markdown;

use crate::commands::predictor::REPORT as FIT;
use crate::run_folder::RunFolder;
use crate::run_folder::freshness::warnings;
use crate::run_folder::kept_samples::SAMPLES;
use anyhow::Result;
use models::ModelRow;
use ofa_evaluate::DeviceProfile;
use ofa_extract::predictor::{GrowthPoint, growth, read_samples};
use ofa_extract::{FitReport, SearchResult};
use ofa_supernet::files::read_json;
use ofa_supernet::train::metrics::{self, MetricsLine};
use ofa_supernet::{SearchSpace, Subnet};
use serde::Serialize;
use std::path::PathBuf;

/// File of the page in a run folder.
pub const PAGE: &str = "report.html";

/// Everything that a report shows.
#[derive(Serialize)]
pub struct Report {
    /// Path of the run folder.
    run: String,
    /// Version of the program that wrote the report.
    version: &'static str,
    space: String,
    /// Number of classes, once the supernet is there.
    classes: Option<usize>,
    /// Subnets of the space.
    subnets: f64,
    training: Training,
    /// Quality of the predictor; absent before it is fitted.
    predictor: Option<FitReport>,
    /// Quality of the predictor by number of samples.
    predictor_growth: Vec<GrowthPoint>,
    devices: Vec<Device>,
    searches: Vec<Search>,
    models: Vec<ModelRow>,
    /// Sentences about a predictor and search results that are not to be relied on.
    warnings: Vec<String>,
    /// Sentences that help to choose a model.
    advice: Vec<String>,
}

/// Training as `metrics.jsonl` records it.
#[derive(Default, Serialize)]
struct Training {
    stages: Vec<Stage>,
    steps: Vec<Step>,
    probes: Vec<Probe>,
    /// Validation with the best mean accuracy of the probes, whose checkpoint is kept.
    best: Option<BestProbes>,
    /// Length of the whole training, once it is finished.
    seconds: Option<f64>,
}

/// A stage of the training.
#[derive(Serialize)]
struct Stage {
    name: String,
    /// Step that it begins with.
    start: usize,
    steps: usize,
}

/// Means over some steps.
#[derive(Serialize)]
struct Step {
    step: usize,
    loss: f64,
    learning_rate: f64,
}

/// Validation of a fixed subnet.
#[derive(Serialize)]
struct Probe {
    step: usize,
    /// `smallest`, `middle` or `largest`.
    probe: String,
    subnet: Subnet,
    accuracy: f64,
}

/// Probes of one step together.
#[derive(Clone, Copy, Serialize)]
struct BestProbes {
    step: usize,
    /// Mean accuracy.
    accuracy: f64,
}

/// A measured or imported device.
#[derive(Serialize)]
struct Device {
    name: String,
    /// Processor and instruction set, if known.
    hardware: Option<String>,
    number_type: String,
    batch: usize,
    /// Median and 95th percentile of the relative error, if networks were measured.
    error: Option<[f64; 2]>,
    checked: Vec<Checked>,
    /// The slowest layers, the slowest first.
    layers: Vec<Layer>,
    #[serde(skip)]
    profile: DeviceProfile,
}

impl Device {
    /// Name of the device beside its times, with threads and batch where these are not 1.
    fn heading(&self) -> String {
        let DeviceProfile { hardware, engine, .. } = &self.profile;
        let threads = hardware.as_ref().map(|hardware| hardware.threads);
        let threads = threads.or_else(|| engine.as_ref().map(|engine| engine.threads));
        format!("{}{}", self.name, models::setting(threads.unwrap_or(1), self.batch))
    }
}

/// A network that was measured as a whole.
#[derive(Serialize)]
struct Checked {
    subnet: Subnet,
    predicted_ms: f64,
    measured_ms: f64,
}

/// Time of a layer.
#[derive(Serialize)]
struct Layer {
    layer: String,
    ms: f64,
}

/// Result of a search.
#[derive(Serialize)]
struct Search {
    name: String,
    result: SearchResult,
}

/// Advice for a run of accuracies that were measured elsewhere.
const NO_SUPERNET: &str =
    "There is no supernet to extract models from: train the subnets that searches find where accuracies were measured.";

/// Layers that are listed for a device.
const LAYERS: usize = 8;

impl Report {
    /// Gathers what the run folder holds; only its configuration is required.
    pub fn gather(folder: &RunFolder) -> Result<Self> {
        let space = folder.config()?.space;
        // While the supernet is trained, there is no checkpoint that names the classes.
        let classes = folder.space().ok().map(|(_, classes)| classes.len());
        let devices = devices(folder)?;
        let results = results(folder)?;
        let warnings = warnings(folder, &results)?;
        let searches: Vec<Search> = results.into_iter().map(Search::of).collect();
        let mut models = models::rows(folder, &searches, &devices)?;
        models::mark_dominated(&mut models);
        let (predictor, predictor_growth) = predictor(folder, &space)?;
        Ok(Report {
            run: folder.path().display().to_string(),
            version: env!("CARGO_PKG_VERSION"),
            subnets: space.count(),
            space: space.name,
            classes,
            training: training(folder)?,
            predictor,
            predictor_growth,
            advice: match models.is_empty() && folder.is_foreign() {
                true => vec![NO_SUPERNET.into()],
                false => models::advice(&models),
            },
            devices,
            searches,
            models,
            warnings,
        })
    }

    /// Predicted latency of a subnet on the device in milliseconds; `None` for a subnet of another space.
    fn latency(&self, device: &Device, subnet: &Subnet) -> Option<f64> {
        let network = device.profile.space.network(subnet, device.profile.classes).ok()?;
        device.profile.latency_ms(&network).ok()
    }

    /// Sentences that help to choose a model.
    pub fn advice(&self) -> &[String] {
        &self.advice
    }

    /// Sentences about a predictor and search results that are not to be relied on.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

impl Training {
    /// The last stage has ended at `step`: its epochs may have been changed since it began.
    fn end_stage(&mut self, step: usize) {
        if let Some(last) = self.stages.last_mut() {
            last.steps = step.saturating_sub(last.start);
        }
    }
}

fn training(folder: &RunFolder) -> Result<Training> {
    let path = folder.join("metrics.jsonl");
    let mut training = Training::default();
    if !path.exists() {
        return Ok(training);
    }
    for line in metrics::read(&path)? {
        match line {
            MetricsLine::Step { step, loss, learning_rate, .. } => {
                training.steps.push(Step { step, loss, learning_rate });
            }
            MetricsLine::Probe { step, probe, subnet, accuracy, .. } => {
                training.probes.push(Probe { step, probe, subnet, accuracy });
            }
            MetricsLine::Stage { step, stage, steps, .. } => {
                training.end_stage(step);
                training.stages.push(Stage { name: stage, start: step, steps });
            }
            MetricsLine::Finished { step, seconds } => {
                training.end_stage(step);
                training.seconds = Some(seconds);
            }
            MetricsLine::Skipped { .. } => {}
        }
    }
    training.best = best_probes(&training.probes);
    Ok(training)
}

/// The step with the best mean accuracy of its probes, the first of equals, as training chooses the checkpoint to keep.
fn best_probes(probes: &[Probe]) -> Option<BestProbes> {
    let mean = |group: &[Probe]| BestProbes {
        step: group[0].step,
        accuracy: group.iter().map(|probe| probe.accuracy).sum::<f64>() / group.len() as f64,
    };
    let groups = probes.chunk_by(|a, b| a.step == b.step).map(mean);
    groups.reduce(|best, next| if next.accuracy > best.accuracy { next } else { best })
}

/// Quality of the predictor, also by number of samples.
fn predictor(folder: &RunFolder, space: &SearchSpace) -> Result<(Option<FitReport>, Vec<GrowthPoint>)> {
    let [fit, samples] = [FIT, SAMPLES].map(|name| folder.join(name));
    if !fit.exists() {
        return Ok((None, Vec::new()));
    }
    let report: FitReport = read_json(&fit)?;
    report.validate().map_err(|reason| ofa_supernet::Error::format(&fit, reason))?;
    let samples = if samples.exists() { read_samples(&samples, space)? } else { Vec::new() };
    let growth = growth(space, &samples, &report)?;
    Ok((Some(report), growth))
}

fn devices(folder: &RunFolder) -> Result<Vec<Device>> {
    let device = |path| -> Result<Device> {
        let profile = DeviceProfile::load(path)?;
        let mut layers: Vec<Layer> =
            profile.table().iter().map(|time| Layer { layer: time.layer.to_string(), ms: time.ms }).collect();
        layers.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        layers.truncate(LAYERS);
        let of = |subnet: &ofa_evaluate::profile::CheckedSubnet| Checked {
            subnet: subnet.subnet.clone(),
            predicted_ms: subnet.predicted_ms,
            measured_ms: subnet.measured_ms,
        };
        Ok(Device {
            name: profile.name.clone(),
            hardware: profile.hardware.as_ref().map(|h| format!("{}, {}", h.cpu, h.instruction_set)),
            number_type: profile.number_type.to_string(),
            batch: profile.batch,
            error: profile.check.as_ref().map(|check| [check.median_error, check.p95_error]),
            checked: profile.check.iter().flat_map(|check| check.subnets.iter().map(of)).collect(),
            layers,
            profile,
        })
    };
    folder.json_files("devices")?.into_iter().map(device).collect()
}

/// Results of searches with their files.
fn results(folder: &RunFolder) -> Result<Vec<(PathBuf, SearchResult)>> {
    let result = |path: PathBuf| -> Result<_> {
        let result: SearchResult = read_json(&path)?;
        Ok((path, result))
    };
    folder.json_files("search")?.into_iter().map(result).collect()
}

impl Search {
    fn of((path, result): (PathBuf, SearchResult)) -> Self {
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        Search { name, result }
    }
}
