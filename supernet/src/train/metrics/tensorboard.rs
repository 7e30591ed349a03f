//! Event files of TensorBoard with the numbers of `metrics.jsonl`.
//!
//! A file is a sequence of records: length, its checksum, a protobuf message, its checksum. Field numbers are those of
//! TensorFlow's `event.proto` and `summary.proto`. Every session of a run writes a file of its own that starts with all
//! lines so far, after a mark at which TensorBoard drops what it knows of earlier files.

use super::MetricsLine;
use crate::{Error, Result, files};
use prost::{Message, Oneof};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// What is between the prefix and the suffix of a file's name is the time of its creation in seconds, by which
/// TensorBoard orders files.
const PREFIX: &str = "events.out.tfevents.";
const SUFFIX: &str = ".ofa";

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    Session(Session),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    /// Kind of value, of which the format has several: only an optional field is written where it is zero.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// Mark in a file; a status of 1 drops earlier events from the mark's step on.
#[derive(Clone, PartialEq, Message)]
struct Session {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Appends events to a file.
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
    /// Time at which the training would have begun without interruptions.
    began: f64,
}

impl EventFile {
    /// Writes a file with the events of `lines` to `folder`, and removes those of earlier sessions.
    pub(super) fn create(folder: &Path, lines: &[MetricsLine]) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        let earlier: Vec<(u64, PathBuf)> =
            files::list_folder(folder)?.into_iter().filter_map(|path| Some((number_of(&path)?, path))).collect();
        let number = earlier.iter().map(|(number, _)| number + 1).chain([now as u64]).max().unwrap_or(0);
        let path = folder.join(format!("{PREFIX}{number:010}{SUFFIX}"));
        let began = now - lines.last().map_or(0.0, seconds_of);
        let start = |what| Event { wall_time: began, step: 0, what: Some(what) };
        let mut bytes = record(&start(What::FileVersion("brain.Event:2".into())));
        bytes.extend(record(&start(What::Session(Session { status: 1 }))));
        bytes.extend(lines.iter().filter_map(|line| event(line, began)).flat_map(|event| record(&event)));
        files::write_atomic(&path, &bytes)?;
        earlier.iter().try_for_each(|(_, path)| files::remove_file(path))?;
        let file = OpenOptions::new().append(true).open(&path).map_err(|e| Error::file(&path, e))?;
        Ok(EventFile { path, file, began })
    }

    /// Appends the event of a line, if it has numbers to draw.
    pub(super) fn write(&mut self, line: &MetricsLine) -> Result<()> {
        let Some(event) = event(line, self.began) else { return Ok(()) };
        self.file.write_all(&record(&event)).map_err(|e| Error::file(&self.path, e))
    }

    /// Makes all events durable.
    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::file(&self.path, e))
    }
}

/// The number in the name of an event file that this program wrote.
fn number_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok()
}

fn seconds_of(line: &MetricsLine) -> f64 {
    match line {
        MetricsLine::Step { seconds, .. }
        | MetricsLine::Probe { seconds, .. }
        | MetricsLine::Stage { seconds, .. }
        | MetricsLine::Skipped { seconds, .. }
        | MetricsLine::Finished { seconds, .. } => *seconds,
    }
}

/// The event of a line; `None` for lines without curves.
fn event(line: &MetricsLine, began: f64) -> Option<Event> {
    let (step, values) = match line {
        MetricsLine::Step {
            step,
            epoch,
            learning_rate,
            loss,
            cross_entropy,
            distillation,
            accuracy,
            gradient_norm,
            images_per_second,
            ..
        } => {
            let values = [
                ("epoch", Some(*epoch)),
                ("learning_rate", Some(*learning_rate)),
                ("loss", Some(*loss)),
                ("cross_entropy", Some(*cross_entropy)),
                ("distillation", *distillation),
                ("accuracy", Some(*accuracy)),
                ("gradient_norm", Some(*gradient_norm)),
                ("images_per_second", Some(*images_per_second)),
            ];
            let value = |(name, value)| Some((format!("train/{name}"), value?));
            (step, values.into_iter().filter_map(value).collect())
        }
        MetricsLine::Probe { step, probe, accuracy, .. } => (step, vec![(format!("validation/{probe}"), *accuracy)]),
        MetricsLine::Stage { .. } | MetricsLine::Skipped { .. } | MetricsLine::Finished { .. } => return None,
    };
    let value = |(tag, value): (String, f64)| Value { tag, simple_value: Some(value as f32) };
    let summary = Summary { value: values.into_iter().map(value).collect() };
    Some(Event { wall_time: began + seconds_of(line), step: *step as i64, what: Some(What::Summary(summary)) })
}

/// A message with length and checksums.
fn record(event: &Event) -> Vec<u8> {
    let message = event.encode_to_vec();
    let length = (message.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), &message, &masked(&message)].concat()
}

/// CRC-32C, rotated and shifted so that a checksum of data that holds checksums is a good one too.
fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::preset;

    /// The events of the only file in `folder`, each record checked.
    fn events(folder: &Path) -> Vec<Event> {
        let [path] = &files::list_folder(folder).unwrap()[..] else { panic!("one file expected") };
        let bytes = std::fs::read(path).unwrap();
        let (mut rest, mut events) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let message = &rest[12..12 + length];
            assert_eq!(rest[8..12], masked(&rest[..8]));
            assert_eq!(rest[12 + length..][..4], masked(message));
            events.push(Event::decode(message).unwrap());
            rest = &rest[16 + length..];
        }
        events
    }

    #[test]
    fn a_session_writes_all_events_of_the_run_to_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let probe = |step, accuracy| MetricsLine::Probe {
            step,
            stage: "full".into(),
            probe: "largest".into(),
            subnet: preset("tiny").unwrap().largest(),
            accuracy,
            seconds: step as f64,
        };
        let finished = MetricsLine::Finished { step: 9, seconds: 9.0 };
        let mut file = EventFile::create(folder.path(), &[]).unwrap();
        [probe(3, 0.25), probe(5, 0.5)].iter().for_each(|line| file.write(line).unwrap());
        // The second session resumes from a checkpoint after step 3.
        let mut file = EventFile::create(folder.path(), &[probe(3, 0.25)]).unwrap();
        [probe(5, 0.75), probe(7, 0.0), finished].iter().for_each(|line| file.write(line).unwrap());
        let events = events(folder.path());
        assert_eq!(events[0].what, Some(What::FileVersion("brain.Event:2".into())));
        assert_eq!(events[1].what, Some(What::Session(Session { status: 1 })));
        let drawn: Vec<(i64, Option<What>)> =
            events[2..].iter().map(|event| (event.step, event.what.clone())).collect();
        let expected = |value| {
            Some(What::Summary(Summary {
                value: vec![Value { tag: "validation/largest".into(), simple_value: Some(value) }],
            }))
        };
        assert_eq!(drawn, [(3, expected(0.25)), (5, expected(0.75)), (7, expected(0.0))]);
        assert_eq!(events[3].wall_time - events[2].wall_time, 2.0);
    }

    #[test]
    fn checksums_are_those_of_the_format() {
        // The checksum of "123456789" is the check value of CRC-32C's specification.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        let unmasked = u32::from_le_bytes(masked(b"123456789")).wrapping_sub(0xa282_ead8).rotate_left(15);
        assert_eq!(unmasked, 0xe306_9283);
    }
}
