//! Measured accuracies: `samples.jsonl`, one `{"subnet": "r32 d2,...", "accuracy": 0.83}` a line.
//!
//! The file grows by one line a measurement, so that a crash loses at most the measurement under way. It is the one file of
//! this crate that is appended to instead of replaced; a line that a crash tore is recognised by its missing line end and
//! dropped.

use crate::{Error, Result};
use ofa_supernet::{SearchSpace, Subnet, files};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
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

/// Reads all samples of `path`; each must be a subnet of `space`.
///
/// # Errors
/// An unreadable file, or the first bad line as `path:line`.
pub fn read_samples(path: &Path, space: &SearchSpace) -> Result<Vec<Sample>> {
    let bytes = files::read_bytes(path)?;
    Ok(parse(path, &bytes, space)?.0)
}

/// Appends samples to a file.
#[derive(Debug)]
pub struct SampleWriter {
    path: PathBuf,
    file: File,
}

impl SampleWriter {
    /// Opens `path` for appending (making it and its folder when they are missing) and returns what it already holds.
    /// A torn last line is cut off.
    ///
    /// # Errors
    /// As [`read_samples`]; a file that cannot be made or written.
    pub fn open(path: &Path, space: &SearchSpace) -> Result<(Self, Vec<Sample>)> {
        let folder = path.parent().unwrap_or(Path::new("."));
        files::make_folder(folder)?;
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(Error::file(path, e)),
        };
        let (samples, whole) = parse(path, &bytes, space)?;
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(|e| Error::file(path, e))?;
        files::sync_folder(folder);
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

/// The samples in `bytes`, and how many bytes are whole lines.
fn parse(path: &Path, bytes: &[u8], space: &SearchSpace) -> Result<(Vec<Sample>, usize)> {
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

    #[test]
    fn a_torn_last_line_is_dropped_and_appending_goes_on() {
        let space = SearchSpace::named("tiny").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("predictor/samples.jsonl");
        let (mut writer, found) = SampleWriter::open(&path, &space).unwrap();
        assert!(found.is_empty());
        writer.append(&sample(0.5)).unwrap();
        assert!(writer.append(&sample(83.0)).unwrap_err().to_string().contains("0.83"));
        let whole = std::fs::read_to_string(&path).unwrap();
        for torn in ["{\"subnet\": \"r24 d1,", "{\"subnet\": \"r24\",", "\u{fffd}"] {
            std::fs::write(&path, format!("{whole}{torn}")).unwrap();
            assert_eq!(read_samples(&path, &space).unwrap(), [sample(0.5)]);
            let (mut writer, found) = SampleWriter::open(&path, &space).unwrap();
            assert_eq!(found, [sample(0.5)]);
            writer.append(&sample(0.75)).unwrap();
            assert_eq!(read_samples(&path, &space).unwrap(), [sample(0.5), sample(0.75)]);
        }
        // A whole last line that lacks only its end is kept, and the next one starts on a line of its own.
        std::fs::write(&path, whole.trim_end()).unwrap();
        SampleWriter::open(&path, &space).unwrap().0.append(&sample(0.25)).unwrap();
        assert_eq!(read_samples(&path, &space).unwrap(), [sample(0.5), sample(0.25)]);
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
