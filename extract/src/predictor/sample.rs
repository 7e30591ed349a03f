//! Measured accuracies: `samples.jsonl`, a line `{"measured_with": "weights 9bc4f2a1 ...", "subnet": "r32 d2,...",
//! "correct": [84, 82], "log_likelihood": -0.61, "accuracy": 0.83}` per sample.
//!
//! The file grows by one line per measurement, so that a crash loses at most the current measurement. It is the only
//! file of this crate that is appended to instead of replaced; a torn last line is recognised by its missing line end
//! and dropped.
//!
//! Each sample records the conditions of its measurement ([`Provenance`]), and all samples of a file must have the
//! same. Samples without `measured_with`, from a user or from an earlier version, are accepted without this check.

use super::Provenance;
use crate::{Error, Result};
use ofa_supernet::lock::{self, Sharing};
use ofa_supernet::{SearchSpace, Subnet, files};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// A subnet and its measured accuracy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// The subnet.
    pub subnet: Subnet,
    /// Top-1 accuracy on the validation split after recalibration, between 0 and 1.
    pub accuracy: f64,
    /// Correct answers in each batch of images; empty where they were not counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub correct: Vec<u32>,
    /// Mean over the images of the logarithm of their own class's probability, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_likelihood: Option<f64>,
}

impl Sample {
    /// A sample of which no more than the accuracy is known.
    pub fn new(subnet: Subnet, accuracy: f64) -> Self {
        Sample { subnet, accuracy, correct: Vec::new(), log_likelihood: None }
    }
}

/// Line of the file. The accuracy is last, where people look for it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "Provenance::to_text",
        deserialize_with = "Provenance::from_text"
    )]
    measured_with: Option<Provenance>,
    /// File that an accuracy measured elsewhere was imported from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    imported_from: Option<String>,
    subnet: Subnet,
    /// Correct answers in each batch of images, where they were counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    correct: Vec<u32>,
    /// Mean over the images of the logarithm of their own class's probability, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log_likelihood: Option<f64>,
    accuracy: f64,
}

impl Line {
    fn new(sample: &Sample, measured_with: Option<Provenance>, imported_from: Option<String>) -> Self {
        let Sample { subnet, accuracy, correct, log_likelihood } = sample.clone();
        Line { measured_with, imported_from, subnet, correct, log_likelihood, accuracy }
    }

    fn sample(&self) -> Sample {
        let Line { subnet, accuracy, correct, log_likelihood, .. } = self.clone();
        Sample { subnet, accuracy, correct, log_likelihood }
    }

    fn to_json(&self, path: &Path) -> Result<Vec<u8>> {
        let mut line = serde_json::to_vec(self).map_err(|e| Error::format(path, e.to_string()))?;
        line.push(b'\n');
        Ok(line)
    }
}

/// Reads all samples of `path`; each must be a subnet of `space`.
///
/// # Errors
/// An unreadable file, or the first bad line as `path:line`.
pub fn read_samples(path: &Path, space: &SearchSpace) -> Result<Vec<Sample>> {
    let bytes = files::read_bytes(path)?;
    Ok(parse(path, &bytes, space)?.0.iter().map(Line::sample).collect())
}

/// Reads the conditions of the samples' measurements in `path`, without those that were measured elsewhere; `None` if
/// they are not all recorded and equal.
///
/// # Errors
/// Errors of [`read_samples`].
pub fn read_provenance(path: &Path, space: &SearchSpace) -> Result<Option<Provenance>> {
    let bytes = files::read_bytes(path)?;
    let (lines, _) = parse(path, &bytes, space)?;
    let mut own = lines.iter().filter(|line| line.imported_from.is_none()).map(|line| &line.measured_with);
    let Some(first) = own.next().cloned().flatten() else { return Ok(None) };
    Ok(own.all(|other| other.as_ref() == Some(&first)).then_some(first))
}

/// Whether samples of `path` were measured elsewhere.
///
/// # Errors
/// Errors of [`read_samples`].
pub fn has_imported(path: &Path, space: &SearchSpace) -> Result<bool> {
    let bytes = files::read_bytes(path)?;
    Ok(parse(path, &bytes, space)?.0.iter().any(|line| line.imported_from.is_some()))
}

/// Adds `samples`, which were measured elsewhere, to the file `path`, and notes that they come from `source`. Samples
/// that the file already holds from there are not added again. Returns the number of samples in the file.
///
/// # Errors
/// Errors of [`read_samples`], and a failed write.
pub fn add_samples(path: &Path, space: &SearchSpace, samples: &[Sample], source: &str) -> Result<usize> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(Error::file(path, e)),
    };
    let mut lines = parse(path, &bytes, space)?.0;
    for sample in samples {
        check_accuracy(sample.accuracy).map_err(|message| Error::format(path, message))?;
        lines.push(Line::new(sample, None, Some(source.to_string())));
    }
    let lines = lines.iter().map(|line| line.to_json(path)).collect::<Result<Vec<_>>>()?;
    let mut seen = HashSet::new();
    let kept: Vec<Vec<u8>> = lines.into_iter().filter(|line| seen.insert(line.clone())).collect();
    files::write_atomic(path, &kept.concat())?;
    Ok(kept.len())
}

/// Adds `samples`, measured under `provenance`, to the file `path`, which holds samples of these conditions.
///
/// A subnet that it has already is not added. Processes that add at the same time wait for each other.
///
/// # Errors
/// Errors of [`SampleWriter::open`] and [`SampleWriter::append`].
pub fn keep_samples(path: &Path, space: &SearchSpace, provenance: &Provenance, samples: &[Sample]) -> Result<()> {
    let _lock = path.parent().and_then(|folder| lock::wait(folder, Sharing::Alone));
    let (mut writer, known) = SampleWriter::open(path, space, provenance, false)?;
    for sample in samples.iter().filter(|own| known.iter().all(|other| other.subnet != own.subnet)) {
        writer.append(sample)?;
    }
    Ok(())
}

/// Writer that appends samples to a file.
#[derive(Debug)]
pub struct SampleWriter {
    path: PathBuf,
    file: File,
    provenance: Provenance,
    unattributed: usize,
}

impl SampleWriter {
    /// Opens `path` for appending samples that are measured under `provenance`, and returns the samples that it already
    /// holds. A missing file and folder are made, and a torn last line is cut off. Samples measured under other
    /// conditions are refused; with `discard` they are dropped, and so are samples that do not record their conditions.
    /// Samples measured under `provenance` stay in either case.
    ///
    /// # Errors
    /// Errors of [`read_samples`]; samples measured under other conditions; a file that cannot be made or written.
    pub fn open(
        path: &Path,
        space: &SearchSpace,
        provenance: &Provenance,
        discard: bool,
    ) -> Result<(Self, Vec<Sample>)> {
        let mut bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(Error::file(path, e)),
        };
        let alike = |line: &Line| line.measured_with.as_ref() == Some(provenance);
        let (mut lines, mut whole) = match parse(path, &bytes, space) {
            // Samples of another space or a damaged file: readable lines may be kept.
            Err(_) if discard => (readable(&bytes, space), 0),
            parsed => parsed?,
        };
        if !discard
            && let Some(other) = lines.iter().filter_map(|line| line.measured_with.as_ref()).find(|p| *p != provenance)
        {
            return Err(Error::format(path, refusal(other, provenance)));
        }
        if bytes.is_empty() || discard && (whole == 0 || !lines.iter().all(alike)) {
            lines.retain(alike);
            let kept = lines.iter().map(|line| line.to_json(path)).collect::<Result<Vec<_>>>()?;
            bytes = kept.concat();
            whole = bytes.len();
            files::write_atomic(path, &bytes)?;
        }
        let file = OpenOptions::new().append(true).open(path).map_err(|e| Error::file(path, e))?;
        let unattributed = lines.iter().filter(|l| l.measured_with.is_none() && l.imported_from.is_none()).count();
        let mut writer = SampleWriter { path: path.to_path_buf(), file, provenance: provenance.clone(), unattributed };
        if whole < bytes.len() {
            writer.file.set_len(whole as u64).map_err(|e| Error::file(path, e))?;
        } else if bytes.last().is_some_and(|&b| b != b'\n') {
            writer.write(b"\n")?;
        }
        Ok((writer, lines.iter().map(Line::sample).collect()))
    }

    /// Number of samples in the file that do not record the conditions of their measurement.
    pub fn unattributed(&self) -> usize {
        self.unattributed
    }

    /// Appends one sample and makes it durable.
    ///
    /// # Errors
    /// An accuracy outside 0..1, or a failed write.
    pub fn append(&mut self, sample: &Sample) -> Result<()> {
        check_accuracy(sample.accuracy).map_err(|message| Error::format(&self.path, message))?;
        let line = Line::new(sample, Some(self.provenance.clone()), None).to_json(&self.path)?;
        self.write(&line)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).and_then(|()| self.file.sync_data()).map_err(|e| Error::file(&self.path, e))
    }
}

/// Why samples measured under `saved` cannot be extended with measurements under `now`, and what to do.
fn refusal(saved: &Provenance, now: &Provenance) -> String {
    let Provenance { recalibration, images, batch, seed, .. } = saved;
    let repeat = if (&saved.weights, &saved.data) == (&now.weights, &now.data) {
        format!("add to them with --recalibration {recalibration} --images {images} --batch {batch} --seed {seed}, or ")
    } else {
        String::new()
    };
    let difference = saved.difference(now).unwrap_or_default();
    format!("the samples were measured with {difference}; {repeat}drop them and measure again with --discard")
}

/// The samples in `bytes`, and the number of bytes in whole lines.
fn parse(path: &Path, bytes: &[u8], space: &SearchSpace) -> Result<(Vec<Line>, usize)> {
    let mut samples = Vec::new();
    let mut whole = 0;
    for (index, line) in bytes.split_inclusive(|&b| b == b'\n').enumerate() {
        let text = String::from_utf8_lossy(line);
        // Some editors begin a file with a byte order mark.
        let text = if index == 0 { text.trim_start_matches('\u{feff}') } else { &text[..] };
        if !text.trim().is_empty() {
            match parse_line(text, space) {
                Ok(sample) => samples.push(sample),
                Err(_) if line.last() != Some(&b'\n') => break,
                Err(message) => return Err(Error::line(path, index + 1, message)),
            }
        }
        whole += line.len();
    }
    Ok((samples, whole))
}

/// The readable lines of `bytes`.
fn readable(bytes: &[u8], space: &SearchSpace) -> Vec<Line> {
    bytes.split(|&b| b == b'\n').filter_map(|line| parse_line(&String::from_utf8_lossy(line), space).ok()).collect()
}

fn parse_line(text: &str, space: &SearchSpace) -> Result<Line, String> {
    let sample: Line = files::parse_json_line(text.trim())
        .map_err(|e| format!(r#"{e}; expected {{"subnet": "r32 d2,... k... e...", "accuracy": 0.83}}"#))?;
    check_accuracy(sample.accuracy)?;
    space
        .check(&sample.subnet)
        .map_err(|e| format!("{e}; the sample belongs to another search space; measure again with --discard"))?;
    Ok(sample)
}

fn check_accuracy(accuracy: f64) -> Result<(), String> {
    if (0.0..=1.0).contains(&accuracy) {
        return Ok(());
    }
    Err(format!("accuracy {accuracy} is not between 0 and 1 (write 83 % as 0.83)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(accuracy: f64) -> Sample {
        Sample::new("r24 d1,2 k5|3,5 e2|4,3".parse().unwrap(), accuracy)
    }

    fn provenance() -> Provenance {
        Provenance { weights: "01ab".into(), data: "d".into(), recalibration: 9, images: 8, batch: 7, seed: 0 }
    }

    fn open(path: &Path) -> Result<(SampleWriter, Vec<Sample>)> {
        SampleWriter::open(path, &SearchSpace::named("tiny").unwrap(), &provenance(), false)
    }

    #[test]
    fn a_torn_last_line_is_dropped_and_appending_goes_on() {
        let space = SearchSpace::named("tiny").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("predictor/samples.jsonl");
        let (mut writer, found) = open(&path).unwrap();
        assert!(found.is_empty());
        writer.append(&sample(0.5)).unwrap();
        assert!(writer.append(&sample(83.0)).unwrap_err().to_string().contains("0.83"));
        let whole = std::fs::read_to_string(&path).unwrap();
        for torn in ["{\"subnet\": \"r24 d1,", "{\"subnet\": \"r24\",", "\u{fffd}"] {
            std::fs::write(&path, format!("{whole}{torn}")).unwrap();
            assert_eq!(read_samples(&path, &space).unwrap(), [sample(0.5)]);
            let (mut writer, found) = open(&path).unwrap();
            assert_eq!(found, [sample(0.5)]);
            writer.append(&sample(0.75)).unwrap();
            assert_eq!(read_samples(&path, &space).unwrap(), [sample(0.5), sample(0.75)]);
            // A file without a whole line counts as empty.
            std::fs::write(&path, torn).unwrap();
            assert!(open(&path).unwrap().1.is_empty());
            assert!(std::fs::read(&path).unwrap().is_empty());
        }
        // A whole last line that lacks only its line end is kept, and the next sample starts on a new line.
        std::fs::write(&path, whole.trim_end()).unwrap();
        open(&path).unwrap().0.append(&sample(0.25)).unwrap();
        assert_eq!(read_samples(&path, &space).unwrap(), [sample(0.5), sample(0.25)]);
        assert_eq!(read_provenance(&path, &space).unwrap(), Some(provenance()));
    }

    #[test]
    fn samples_measured_under_other_conditions_are_refused_or_discarded() {
        let space = SearchSpace::named("tiny").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.jsonl");
        let line = |measured_with: Option<&Provenance>| {
            let line = Line::new(&sample(0.5), measured_with.cloned(), None);
            String::from_utf8(line.to_json(&path).unwrap()).unwrap()
        };
        let good = line(Some(&provenance()));
        for (bad, reason) in [
            (line(Some(&Provenance { weights: "02cd".into(), ..provenance() })), "other weights (checksum 02cd"),
            (
                line(Some(&Provenance { batch: 50, ..provenance() })),
                "add to them with --recalibration 9 --images 8 --batch 50",
            ),
            (good.replace("recalibration", "colours"), "samples.jsonl:2: measured_with: expected"),
        ] {
            let text = format!("{good}{bad}");
            std::fs::write(&path, &text).unwrap();
            let error = open(&path).unwrap_err().to_string();
            assert!(error.contains("samples.jsonl") && error.contains(reason), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
            // Samples measured under the same conditions are not discarded: a stopped command is repeated as it was.
            let (_, found) = SampleWriter::open(&path, &space, &provenance(), true).unwrap();
            assert_eq!(found.len(), 1);
            assert_eq!(read_samples(&path, &space).unwrap(), found);
        }
        // Samples that do not record their conditions are accepted and counted.
        let own = line(None);
        std::fs::write(&path, format!("{good}{own}")).unwrap();
        assert_eq!(read_provenance(&path, &space).unwrap(), None);
        let (writer, found) = open(&path).unwrap();
        assert_eq!((writer.unattributed(), found.len()), (1, 2));
        let (writer, found) = SampleWriter::open(&path, &space, &provenance(), true).unwrap();
        assert_eq!((writer.unattributed(), found.len()), (0, 1));
        assert_eq!(read_provenance(&path, &space).unwrap(), Some(provenance()));
    }

    #[test]
    fn several_that_keep_samples_at_once_keep_each_subnet_once() {
        let space = SearchSpace::named("tiny").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.jsonl");
        open(&path).unwrap().0.append(&sample(0.5)).unwrap();
        let subnet =
            |resolution: usize, kernel: usize| format!("r{resolution} d1,2 k{kernel}|3,5 e2|4,3").parse().unwrap();
        let all: Vec<Sample> =
            [16, 24, 32].iter().flat_map(|&r| [3, 5].map(|k| Sample::new(subnet(r, k), 0.5))).collect();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| keep_samples(&path, &space, &provenance(), &all).unwrap());
            }
        });
        let mut found: Vec<String> =
            read_samples(&path, &space).unwrap().iter().map(|sample| sample.subnet.to_string()).collect();
        found.sort();
        let mut expected: Vec<String> = all.iter().map(|sample| sample.subnet.to_string()).collect();
        expected.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn bad_lines_are_named() {
        let space = SearchSpace::named("tiny").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.jsonl");
        let good = serde_json::to_string(&sample(0.5)).unwrap();
        for (bad, reason) in [
            ("{}".to_string(), "expected {\"subnet\""),
            (good.replace("0.5", "83"), "0.83"),
            (good.replace("r24", "r20"), "allowed are 16, 24, 32"),
            (good.replace("r24", "24"), "no resolution"),
        ] {
            std::fs::write(&path, format!("{good}\n{bad}\n{good}\n")).unwrap();
            let error = read_samples(&path, &space).unwrap_err().to_string();
            assert!(error.contains("samples.jsonl:2: ") && error.contains(reason), "{error}");
        }
        assert!(read_samples(&folder.path().join("none"), &space).is_err());
        std::fs::write(&path, format!("\u{feff}{good}\r\n{good}\r\n")).unwrap();
        assert_eq!(read_samples(&path, &space).unwrap(), [sample(0.5), sample(0.5)]);
        // A long line gives a short error.
        let long = good.replace("r24", &format!("r24 d{}", "9".repeat(50_000)));
        std::fs::write(&path, format!("{good}\n{long}\n")).unwrap();
        let error = read_samples(&path, &space).unwrap_err().to_string();
        assert!(error.contains("samples.jsonl:2: ") && error.len() < 1200, "{error}");
    }
}
