//! The lines of `metrics.jsonl`, one JSON object each, and the other files that hold them.
//!
//! | file | concern |
//! | --- | --- |
//! | `csv` | `metrics.csv`, for spreadsheets |
//! | `tensorboard` | event files of TensorBoard |

mod csv;
mod tensorboard;

use super::step::StepReport;
use crate::{Error, Result, Subnet};
use csv::CsvFile;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tensorboard::EventFile;

/// Folder beside `metrics.jsonl` for event files of TensorBoard; they are written where it exists.
pub const TENSORBOARD: &str = "tensorboard";

/// Line of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum MetricsLine {
    /// Means over the steps since the line before.
    Step {
        /// Steps since the start of training.
        step: usize,
        /// Name of the stage.
        stage: String,
        /// Epochs since the start of the stage.
        epoch: f64,
        /// Learning rate of the last of these steps.
        learning_rate: f64,
        /// Mean loss of a subnet.
        loss: f64,
        /// Cross-entropy part of the loss.
        cross_entropy: f64,
        /// Distillation part of the loss before the stage's weight, if there is a teacher.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        distillation: Option<f64>,
        /// Training accuracy on the batches, 0 to 1.
        accuracy: f64,
        /// Norm of the summed gradient before clipping.
        gradient_norm: f64,
        /// Training images per second.
        images_per_second: f64,
        /// Seconds of training so far.
        seconds: f64,
    },
    /// Validation of a fixed subnet after recalibration.
    Probe {
        /// Steps since the start of training.
        step: usize,
        /// Name of the stage.
        stage: String,
        /// `smallest`, `middle` or `largest`; `subnet` where only one is trained.
        probe: String,
        /// The subnet.
        subnet: Subnet,
        /// Top-1 accuracy on validation images, 0 to 1.
        accuracy: f64,
        /// Seconds of training so far.
        seconds: f64,
    },
    /// A stage begins.
    Stage {
        /// Steps since the start of training.
        step: usize,
        /// Name of the stage.
        stage: String,
        /// Steps of the stage.
        steps: usize,
        /// Seconds of training so far.
        seconds: f64,
    },
    /// A step whose loss or gradient was not finite was skipped (`skip_nonfinite`).
    Skipped {
        /// Number of the step, from 0.
        step: usize,
        /// Name of the stage.
        stage: String,
        /// What was not finite.
        reason: String,
        /// Seconds of training so far.
        seconds: f64,
    },
    /// Training is done.
    Finished {
        /// Steps since the start of training.
        step: usize,
        /// Seconds of training.
        seconds: f64,
    },
}

/// Sums over the steps since the last step line.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    steps: usize,
    loss: f64,
    cross_entropy: f64,
    distillation: Option<f64>,
    accuracy: f64,
    gradient_norm: f64,
    images: usize,
    seconds: f64,
}

impl Window {
    /// Adds a step over `images` images that took `seconds`.
    pub fn add(&mut self, report: &StepReport, images: usize, seconds: f64) {
        self.steps += 1;
        self.loss += report.loss;
        self.cross_entropy += report.cross_entropy;
        if let Some(distillation) = report.distillation {
            *self.distillation.get_or_insert(0.0) += distillation;
        }
        self.accuracy += report.accuracy;
        self.gradient_norm += report.gradient_norm;
        self.images += images;
        self.seconds += seconds;
    }

    /// Steps in it.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// The line of means; the window is empty afterwards.
    pub fn line(&mut self, step: usize, stage: &str, epoch: f64, learning_rate: f64, seconds: f64) -> MetricsLine {
        let window = std::mem::take(self);
        let n = window.steps.max(1) as f64;
        MetricsLine::Step {
            step,
            stage: stage.to_string(),
            epoch,
            learning_rate,
            loss: window.loss / n,
            cross_entropy: window.cross_entropy / n,
            distillation: window.distillation.map(|d| d / n),
            accuracy: window.accuracy / n,
            gradient_norm: window.gradient_norm / n,
            images_per_second: window.images as f64 / window.seconds.max(1e-9),
            seconds,
        }
    }
}

/// Appends lines to a file, and the same to `metrics.csv` and TensorBoard's event file beside it.
pub struct MetricsFile {
    path: PathBuf,
    file: File,
    lines: u64,
    csv: CsvFile,
    events: Option<EventFile>,
}

impl MetricsFile {
    /// Opens `path` and keeps its first `lines` lines: what a killed run wrote after the checkpoint that is resumed
    /// from will be written again. A file with fewer lines (lost by hand) continues after its last whole line. Lines
    /// are counted, not bytes, since an editor may have changed line ends.
    ///
    /// # Errors
    /// The operating system's error with the path.
    pub fn open(path: &Path, lines: u64) -> Result<Self> {
        let fail = |e| Error::file(path, e);
        if let Some(folder) = path.parent() {
            crate::files::make_folder(folder)?;
        }
        let file = OpenOptions::new().create(true).read(true).write(true).truncate(false).open(path).map_err(fail)?;
        if let Some(folder) = path.parent() {
            crate::files::sync_folder(folder);
        }
        let (mut kept, mut length, mut line, mut parsed) = (0, 0, Vec::new(), Vec::new());
        let mut reader = BufReader::new(&file);
        while kept < lines {
            line.clear();
            reader.read_until(b'\n', &mut line).map_err(fail)?;
            if !line.ends_with(b"\n") {
                break;
            }
            kept += 1;
            length += line.len() as u64;
            // A line that somebody damaged stays in this file and is in no other.
            parsed.extend(serde_json::from_slice::<MetricsLine>(&line));
        }
        file.set_len(length).map_err(fail)?;
        (&file).seek(SeekFrom::End(0)).map_err(fail)?;
        let csv = CsvFile::create(&path.with_extension("csv"), &parsed)?;
        let folder = path.with_file_name(TENSORBOARD);
        let events = folder.is_dir().then(|| EventFile::create(&folder, &parsed)).transpose()?;
        Ok(MetricsFile { path: path.to_path_buf(), file, lines: kept, csv, events })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// The operating system's error with the path.
    pub fn write(&mut self, line: &MetricsLine) -> Result<()> {
        let mut text = serde_json::to_string(line).map_err(|e| Error::format(&self.path, e.to_string()))?;
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(|e| Error::file(&self.path, e))?;
        self.lines += 1;
        self.csv.write(line)?;
        self.events.as_mut().map_or(Ok(()), |events| events.write(line))
    }

    /// Makes all lines durable and returns their number.
    ///
    /// # Errors
    /// The operating system's error with the path.
    pub fn sync(&mut self) -> Result<u64> {
        self.file.sync_data().map_err(|e| Error::file(&self.path, e))?;
        self.csv.sync()?;
        self.events.as_ref().map_or(Ok(()), EventFile::sync)?;
        Ok(self.lines)
    }
}

/// Reads all lines of a `metrics.jsonl`; a last line that was cut by a kill is skipped.
///
/// # Errors
/// A missing file or a line that is none of [`MetricsLine`], with its number.
pub fn read(path: &Path) -> Result<Vec<MetricsLine>> {
    let text = crate::files::read_text(path)?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .enumerate()
        .map(|(index, line)| {
            crate::files::parse_json_line(line).map_err(|message| Error::line(path, index + 1, message))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(loss: f64, distillation: Option<f64>) -> StepReport {
        StepReport {
            loss,
            cross_entropy: loss / 2.0,
            distillation,
            accuracy: 0.5,
            gradient_norm: 3.0,
            exchange: Default::default(),
            resolution: 32,
            subnets: Vec::new(),
        }
    }

    #[test]
    fn lines_are_means_and_survive_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/metrics.jsonl");
        let mut window = Window::default();
        window.add(&report(1.0, Some(4.0)), 64, 0.5);
        window.add(&report(3.0, Some(2.0)), 64, 0.5);
        let line = window.line(10, "kernel", 0.5, 0.1, 7.0);
        assert_eq!(window, Window::default());
        let MetricsLine::Step { loss, distillation, images_per_second, .. } = &line else { panic!() };
        assert_eq!((*loss, *distillation, *images_per_second), (2.0, Some(3.0), 128.0));

        let mut file = MetricsFile::open(&path, 0).unwrap();
        file.write(&line).unwrap();
        let lines = file.sync().unwrap();
        file.write(&MetricsLine::Finished { step: 1, seconds: 2.0 }).unwrap();
        assert_eq!(read(&path).unwrap().len(), 2);
        // A resumed run drops what came after the checkpoint.
        let mut file = MetricsFile::open(&path, lines).unwrap();
        let stage = MetricsLine::Stage { step: 1, stage: "a".into(), steps: 3, seconds: 0.0 };
        file.write(&stage).unwrap();
        file.file.write_all(b"{\"type\":\"st").unwrap();
        assert_eq!(read(&path).unwrap(), [line, stage]);
    }

    #[test]
    fn other_line_ends_cut_no_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let stage = |step| MetricsLine::Stage { step, stage: "a".into(), steps: 3, seconds: 0.0 };
        let mut file = MetricsFile::open(&path, 0).unwrap();
        (0..4).for_each(|step| file.write(&stage(step)).unwrap());
        let text = std::fs::read_to_string(&path).unwrap().replace('\n', "\r\n");
        std::fs::write(&path, text).unwrap();
        let mut file = MetricsFile::open(&path, 3).unwrap();
        file.write(&stage(9)).unwrap();
        assert_eq!(read(&path).unwrap(), [0, 1, 2, 9].map(stage));
        // A last line that was cut does not count.
        file.file.write_all(b"{\"type\"").unwrap();
        let mut file = MetricsFile::open(&path, 100).unwrap();
        file.write(&stage(10)).unwrap();
        assert_eq!(file.sync().unwrap(), 5);
        assert_eq!(read(&path).unwrap(), [0, 1, 2, 9, 10].map(stage));
    }
}
