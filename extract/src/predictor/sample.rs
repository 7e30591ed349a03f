//! Measured accuracies: `samples.jsonl`, one `{"subnet": "r32 d2,...", "accuracy": 0.83}` a line, after a first line
//! `{"measured_with": {"weights": "9bc4f2a1", ...}}`.
//!
//! The file grows by one line a measurement, so that a crash loses at most the measurement under way. It is the one file of
//! this crate that is appended to instead of replaced; a line that a crash tore is recognised by its missing line end and
//! dropped.
//!
//! All samples of a file were measured with what the first line says ([`Provenance`]): a file is made with that line, atomically,
//! and only accuracies that were measured alike are appended.

use super::Provenance;
use crate::{Error, Result};
use ofa_supernet::{SearchSpace, Subnet, files};
use serde::{Deserialize, Serialize};
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
}

/// First line of a file of samples.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    measured_with: Provenance,
}

/// Reads all samples of `path`; each must be a subnet of `space`.
///
/// # Errors
/// An unreadable file, or the first bad line as `path:line`.
pub fn read_samples(path: &Path, space: &SearchSpace) -> Result<Vec<Sample>> {
    let bytes = files::read_bytes(path)?;
    Ok(parse(path, &bytes, space)?.0)
}

/// Reads what the samples of `path` were measured with; `None` if the file does not say.
///
/// # Errors
/// An unreadable file, or a first line that says it in another form.
pub fn read_provenance(path: &Path) -> Result<Option<Provenance>> {
    let bytes = files::read_bytes(path)?;
    parse_header(path, &bytes)
}

/// Appends samples to a file.
#[derive(Debug)]
pub struct SampleWriter {
    path: PathBuf,
    file: File,
}

impl SampleWriter {
    /// Opens `path` for appending samples that are measured with `provenance`, and returns what it already holds. The file and
    /// its folder are made when they are missing, a torn last line is cut off. Samples that were measured with anything else
    /// are refused, or dropped if `discard` says so; those that were measured alike stay in either case.
    ///
    /// # Errors
    /// As [`read_samples`]; samples that were measured with something else, or that do not say with what; a file that cannot be
    /// made or written.
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
        let is_new = !bytes.contains(&b'\n') && parse(path, &bytes, space)?.0.is_empty();
        if is_new || !is_measured_with(path, &bytes, provenance, discard)? {
            bytes = serde_json::to_vec(&Header { measured_with: provenance.clone() })
                .map_err(|e| Error::format(path, e.to_string()))?;
            bytes.push(b'\n');
            files::write_atomic(path, &bytes)?;
        }
        let (samples, whole) = parse(path, &bytes, space)?;
        let file = OpenOptions::new().append(true).open(path).map_err(|e| Error::file(path, e))?;
        let mut writer = SampleWriter { path: path.to_path_buf(), file };
        if whole < bytes.len() {
            writer.file.set_len(whole as u64).map_err(|e| Error::file(path, e))?;
        } else if bytes.last().is_some_and(|&b| b != b'\n') {
            writer.write(b"\n")?;
        }
        Ok((writer, samples))
    }

    /// Appends one sample and makes it durable.
    ///
    /// # Errors
    /// An accuracy outside 0..1, or a failed write.
    pub fn append(&mut self, sample: &Sample) -> Result<()> {
        check_accuracy(sample.accuracy).map_err(|message| Error::format(&self.path, message))?;
        let mut line = serde_json::to_vec(sample).map_err(|e| Error::format(&self.path, e.to_string()))?;
        line.push(b'\n');
        self.write(&line)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).and_then(|()| self.file.sync_data()).map_err(|e| Error::file(&self.path, e))
    }
}

/// Whether the samples in `bytes` were measured with `provenance`; if not, an error unless they may be discarded.
fn is_measured_with(path: &Path, bytes: &[u8], provenance: &Provenance, discard: bool) -> Result<bool> {
    let difference = match parse_header(path, bytes) {
        Ok(Some(saved)) => saved.difference(provenance).map(|difference| {
            let Provenance { recalibration, images, batch, seed, .. } = saved;
            let repeat = if (&saved.weights, &saved.data) == (&provenance.weights, &provenance.data) {
                format!(
                    "add to them with --recalibration {recalibration} --images {images} --batch {batch} --seed {seed}, or "
                )
            } else {
                String::new()
            };
            format!(
                "its samples were measured with {difference}; {repeat}measure anew with --discard, which drops them"
            )
        }),
        Ok(None) => Some(
            "its samples do not say which weights and images they were measured with, as those of earlier versions; measure \
             anew with --discard, which drops them"
                .to_string(),
        ),
        Err(error) if discard => Some(error.to_string()),
        Err(error) => return Err(error),
    };
    match difference {
        None => Ok(true),
        Some(_) if discard => Ok(false),
        Some(message) => Err(Error::format(path, message)),
    }
}

/// What the first line says; `None` if it is a sample.
fn parse_header(path: &Path, bytes: &[u8]) -> Result<Option<Provenance>> {
    let line = bytes.split(|&b| b == b'\n').next().unwrap_or_default();
    let text = String::from_utf8_lossy(line);
    let text = text.trim_start_matches('\u{feff}').trim();
    if !is_header(text) {
        return Ok(None);
    }
    let header: Header = files::parse_json_line(text).map_err(|e| {
        Error::line(
            path,
            1,
            format!("what the samples were measured with cannot be read: {e}; measure anew with --discard"),
        )
    })?;
    Ok(Some(header.measured_with))
}

fn is_header(line: &str) -> bool {
    line.contains("\"measured_with\"")
}

/// The samples in `bytes`, and how many bytes are whole lines.
fn parse(path: &Path, bytes: &[u8], space: &SearchSpace) -> Result<(Vec<Sample>, usize)> {
    let mut samples = Vec::new();
    let mut whole = 0;
    for (index, line) in bytes.split_inclusive(|&b| b == b'\n').enumerate() {
        let text = String::from_utf8_lossy(line);
        // Some editors begin a file with a byte order mark.
        let text = if index == 0 { text.trim_start_matches('\u{feff}') } else { &text[..] };
        if !(text.trim().is_empty() || index == 0 && is_header(text)) {
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

fn parse_line(text: &str, space: &SearchSpace) -> Result<Sample, String> {
    let sample: Sample = files::parse_json_line(text.trim())
        .map_err(|e| format!(r#"{e}; expected {{"subnet": "r32 d2,... k... e...", "accuracy": 0.83}}"#))?;
    check_accuracy(sample.accuracy)?;
    space.check(&sample.subnet).map_err(|e| format!("{e}; these samples belong to another search space"))?;
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
        Sample { subnet: "r24 d1,2 k5|3,5 e2|4,3".parse().unwrap(), accuracy }
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
        let empty = std::fs::read(&path).unwrap();
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
            // A file that holds nothing whole is as good as none.
            std::fs::write(&path, torn).unwrap();
            assert!(open(&path).unwrap().1.is_empty());
            assert_eq!(std::fs::read(&path).unwrap(), empty);
        }
        // A whole last line that lacks only its end is kept, and the next one starts on a line of its own.
        std::fs::write(&path, whole.trim_end()).unwrap();
        open(&path).unwrap().0.append(&sample(0.25)).unwrap();
        assert_eq!(read_samples(&path, &space).unwrap(), [sample(0.5), sample(0.25)]);
        assert_eq!(read_provenance(&path).unwrap(), Some(provenance()));
    }

    #[test]
    fn samples_that_were_measured_otherwise_are_refused_or_discarded() {
        let space = SearchSpace::named("tiny").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.jsonl");
        let file = |header: Option<&Provenance>| {
            let header = header.map(|header| serde_json::to_string(&Header { measured_with: header.clone() }).unwrap());
            let lines = [header, Some(serde_json::to_string(&sample(0.5)).unwrap())];
            lines.into_iter().flatten().map(|line| format!("{line}\n")).collect::<String>()
        };
        let damaged = file(Some(&provenance())).replace("recalibration", "colours");
        for (text, reason) in [
            (file(Some(&Provenance { weights: "02cd".into(), ..provenance() })), "other weights (checksum 02cd"),
            (
                file(Some(&Provenance { batch: 50, ..provenance() })),
                "add to them with --recalibration 9 --images 8 --batch 50",
            ),
            (file(None), "do not say which weights"),
            (damaged, "samples.jsonl:1: "),
        ] {
            std::fs::write(&path, &text).unwrap();
            let error = open(&path).unwrap_err().to_string();
            assert!(
                error.contains("samples.jsonl") && error.contains(reason) && error.contains("--discard"),
                "{error}"
            );
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
            let (_, found) = SampleWriter::open(&path, &space, &provenance(), true).unwrap();
            assert!(found.is_empty());
            assert_eq!(read_provenance(&path).unwrap(), Some(provenance()));
            assert!(read_samples(&path, &space).unwrap().is_empty());
        }
        // What was measured alike is not discarded: a stopped command is repeated as it was.
        std::fs::write(&path, file(Some(&provenance()))).unwrap();
        assert_eq!(SampleWriter::open(&path, &space, &provenance(), true).unwrap().1, [sample(0.5)]);
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
        // A line of any length gives an error of one.
        let long = good.replace("r24", &format!("r24 d{}", "9".repeat(50_000)));
        std::fs::write(&path, format!("{good}\n{long}\n")).unwrap();
        let error = read_samples(&path, &space).unwrap_err().to_string();
        assert!(error.contains("samples.jsonl:2: ") && error.len() < 1200, "{error}");
    }
}
