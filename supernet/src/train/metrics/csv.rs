//! `metrics.csv`: the lines of `metrics.jsonl` as rows of one table, for spreadsheets.

use super::MetricsLine;
use crate::{Error, Result, files};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Columns, named as the keys of the lines; a row leaves those empty that its line does not have.
const COLUMNS: [&str; 16] = [
    "type",
    "step",
    "stage",
    "epoch",
    "learning_rate",
    "loss",
    "cross_entropy",
    "distillation",
    "accuracy",
    "gradient_norm",
    "images_per_second",
    "probe",
    "subnet",
    "steps",
    "reason",
    "seconds",
];

/// Appends rows to a file.
pub(super) struct CsvFile {
    path: PathBuf,
    file: File,
}

impl CsvFile {
    /// Writes the header and a row for each of `lines`, which replaces what the file held: rows after the checkpoint
    /// that is resumed from are gone, and those of a run of an earlier version are there.
    pub(super) fn create(path: &Path, lines: &[MetricsLine]) -> Result<Self> {
        let mut text = COLUMNS.join(",") + "\n";
        for line in lines {
            text += &row(path, line)?;
        }
        files::write_atomic(path, text.as_bytes())?;
        let file = OpenOptions::new().append(true).open(path).map_err(|e| Error::file(path, e))?;
        Ok(CsvFile { path: path.to_path_buf(), file })
    }

    /// Appends a row.
    pub(super) fn write(&mut self, line: &MetricsLine) -> Result<()> {
        self.file.write_all(row(&self.path, line)?.as_bytes()).map_err(|e| Error::file(&self.path, e))
    }

    /// Makes all rows durable.
    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::file(&self.path, e))
    }
}

fn row(path: &Path, line: &MetricsLine) -> Result<String> {
    let values = serde_json::to_value(line).map_err(|e| Error::format(path, e.to_string()))?;
    let field = |column: &&str| match values.get(column) {
        None | Some(serde_json::Value::Null) => String::new(),
        Some(serde_json::Value::String(text)) => files::csv_field(text),
        Some(value) => value.to_string(),
    };
    Ok(COLUMNS.iter().map(field).collect::<Vec<_>>().join(",") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::preset;

    #[test]
    fn rows_hold_every_value_of_every_kind_of_line() {
        let (stage, seconds) = ("width, 2".to_string(), 7.5);
        let lines = [
            MetricsLine::Stage { step: 0, stage: stage.clone(), steps: 3, seconds },
            MetricsLine::Step {
                step: 1,
                stage: stage.clone(),
                epoch: 0.5,
                learning_rate: 0.1,
                loss: 2.25,
                cross_entropy: 2.0,
                distillation: Some(0.25),
                accuracy: 0.5,
                gradient_norm: 3.0,
                images_per_second: 64.0,
                seconds,
            },
            MetricsLine::Probe {
                step: 1,
                stage: stage.clone(),
                probe: "largest".into(),
                subnet: preset("tiny").unwrap().largest(),
                accuracy: 0.75,
                seconds,
            },
            MetricsLine::Skipped { step: 2, stage, reason: "a \"NaN\"".into(), seconds },
            MetricsLine::Finished { step: 3, seconds },
        ];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.csv");
        let mut file = CsvFile::create(&path, &lines[..2]).unwrap();
        lines[2..].iter().for_each(|line| file.write(line).unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        let rows: Vec<Vec<String>> = text.lines().map(files::csv_fields).collect();
        assert_eq!(rows[0], COLUMNS);
        for (row, line) in rows[1..].iter().zip(&lines) {
            let line = serde_json::to_value(line).unwrap();
            assert!(line.as_object().unwrap().keys().all(|key| COLUMNS.contains(&key.as_str())), "{line}");
            for (field, column) in row.iter().zip(COLUMNS) {
                let expected = line.get(column).map_or(String::new(), |value| match value.as_str() {
                    Some(text) => text.to_string(),
                    None => value.to_string(),
                });
                assert_eq!(*field, expected, "{column} of {line}");
            }
        }
        assert_eq!(rows.len(), 6);
    }
}
