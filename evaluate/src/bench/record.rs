//! `bench.json` of a model folder: what `ofa bench --update-card` measured, one entry per device.

use super::{BenchRow, Latency};
use crate::Result;
pub use crate::model::BENCH_FILE;
use crate::model::{self, DeviceFigures};
use crate::profile::Hardware;
use ofa_supernet::files;
use ofa_supernet::lock::{self, Sharing};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Value of the `format` field.
const FORMAT: &str = "ofa-bench";
/// Version of the format that this program writes and reads.
const VERSION: u32 = 1;

/// Content of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BenchRecord {
    format: String,
    version: u32,
    /// Measurements, that of the newest accuracy after those of older ones.
    pub devices: Vec<DeviceRecord>,
}

/// Measurements on one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceRecord {
    /// The processor.
    pub cpu: String,
    /// Vector instruction set that the kernels used.
    pub instruction_set: String,
    /// Name of the test images' folder, if accuracy was measured.
    pub data: Option<String>,
    /// The figures.
    pub row: BenchRow,
}

impl BenchRecord {
    /// Reads the file of a model folder; empty without one.
    ///
    /// # Errors
    /// A file of another format or version, with its path.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(BENCH_FILE);
        if !path.exists() {
            return Ok(BenchRecord { format: FORMAT.into(), version: VERSION, devices: Vec::new() });
        }
        Self::from_json(&files::read_text(&path)?, &path)
    }

    /// Reads the content of the file at `path`.
    ///
    /// # Errors
    /// As [`BenchRecord::read`].
    pub fn from_json(text: &str, path: &Path) -> Result<Self> {
        let record: BenchRecord = files::parse_json(text, path)?;
        if (record.format.as_str(), record.version) != (FORMAT, VERSION) {
            let found = format!("the format is '{}', version {}", record.format, record.version);
            let message = format!("{found}; expected '{FORMAT}', version {VERSION}: remove the file and measure again");
            return Err(ofa_supernet::Error::format(path, message).into());
        }
        Ok(record)
    }

    /// Replaces the entry of the same device. Without a new accuracy that entry's stays, and is as old as it was; so do
    /// latencies with other threads or batches. Latencies are in the order of threads and batches.
    fn add(&mut self, mut new: DeviceRecord) {
        let same = |old: &DeviceRecord| (&old.cpu, &old.instruction_set) == (&new.cpu, &new.instruction_set);
        let mut end = self.devices.len();
        if let Some(place) = self.devices.iter().position(same) {
            let old = self.devices.remove(place);
            end -= 1;
            if new.row.accuracy.is_none() {
                (new.row.accuracy, new.row.classes, new.data) = (old.row.accuracy, old.row.classes, old.data);
                end = place;
            }
            let latencies = &mut new.row.latencies;
            for latency in old.row.latencies {
                if latencies.iter().all(|other| setting(other) != setting(&latency)) {
                    latencies.push(latency);
                }
            }
        }
        new.row.latencies.sort_by_key(setting);
        self.devices.insert(end, new);
    }
}

/// Threads and batch of a latency.
fn setting(latency: &Latency) -> (usize, usize) {
    (latency.threads, latency.batch)
}

impl DeviceRecord {
    /// Figures of this machine. `data` is the name of the test images.
    pub fn of_this_machine(row: BenchRow, data: Option<&str>) -> Self {
        let Hardware { cpu, instruction_set, .. } = Hardware::detect(1);
        DeviceRecord { cpu, instruction_set, data: data.map(String::from), row }
    }
}

/// Adds figures to the model folder: `bench.json` and the card.
///
/// # Errors
/// A folder or a record that cannot be read, or a failed write.
pub fn update_card(folder: &Path, figures: DeviceRecord) -> Result<()> {
    let _lock = lock::wait(folder, Sharing::Alone);
    let mut record = BenchRecord::read(folder)?;
    record.add(figures);
    let figures: Vec<DeviceFigures> = record.devices.iter().map(figures_of).collect();
    // The card can be written again from the record.
    files::write_json(&folder.join(BENCH_FILE), &record)?;
    model::write_figures(folder, &figures)
}

/// Figures of the record in `folder`; none if there is no record, or one that cannot be read.
pub(crate) fn figures(folder: &Path) -> Vec<DeviceFigures> {
    BenchRecord::read(folder).map_or(Vec::new(), |record| record.devices.iter().map(figures_of).collect())
}

fn figures_of(record: &DeviceRecord) -> DeviceFigures {
    let row = &record.row;
    let accuracy = row.accuracy.map(|accuracy| {
        let percent = |share: f64| format!("{:.2} %", 100.0 * share);
        let (top1, top5) = (percent(accuracy.top1), percent(accuracy.top5));
        let data = record.data.as_deref().map_or(String::new(), |name| format!(" of {name}"));
        format!("{top1} top-1, {top5} top-5, on {} test images{data}", accuracy.images)
    });
    let latency = |l: &Latency| (l.threads, l.batch, l.ms.p50, l.ms.p90, l.images_per_second);
    DeviceFigures {
        device: format!("{}, {}", record.cpu, record.instruction_set),
        accuracy,
        latencies: row.latencies.iter().map(latency).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::TestAccuracy;
    use crate::model::NumberType;
    use ofa_supernet::space::preset;

    fn measured(cpu: &str, top1: Option<f64>) -> DeviceRecord {
        let row = BenchRow {
            model: "m".into(),
            space: "tiny".into(),
            subnet: preset("tiny").unwrap().smallest(),
            resolution: 16,
            dtype: NumberType::F32,
            accuracy: top1.map(|top1| TestAccuracy { images: 10, top1, top5: 1.0 }),
            classes: Vec::new(),
            macs: 1,
            parameters: 1,
            file_bytes: 1,
            peak_activation_bytes: 1,
            buffer_bytes: 1,
            latencies: Vec::new(),
        };
        DeviceRecord { cpu: cpu.into(), instruction_set: "portable".into(), data: None, row }
    }

    #[test]
    fn an_accuracy_that_stays_is_as_old_as_it_was() {
        let mut record = BenchRecord { format: FORMAT.into(), version: VERSION, devices: Vec::new() };
        let mut newest_after = |cpu: &str, top1: Option<f64>| {
            record.add(measured(cpu, top1));
            record.devices.iter().rev().find_map(|device| device.row.accuracy).map(|accuracy| accuracy.top1)
        };
        assert_eq!(newest_after("a", Some(0.5)), Some(0.5));
        assert_eq!(newest_after("b", Some(0.6)), Some(0.6));
        assert_eq!(newest_after("a", None), Some(0.6));
        assert_eq!(newest_after("a", Some(0.7)), Some(0.7));
        assert_eq!(record.devices.len(), 2);
    }
}
