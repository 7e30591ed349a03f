//! Finished trials, their file, and early stopping.

use super::ranges::{Ranges, Values};
use crate::{Error, Result};
use ofa_supernet::files;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Number of earlier trials that must have come as far before a trial is compared with them.
const JUDGES: usize = 3;

/// Validation of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Fraction of the trial's steps that were done, 0 to 1: trials of other batch sizes have other numbers of steps.
    pub progress: f64,
    /// Mean validation accuracy of smallest, middle and largest subnet.
    pub accuracy: f64,
}

/// Outcome of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All steps were done.
    Finished,
    /// The trial was stopped early, since half of the earlier ones were better at the same point.
    Stopped,
    /// The loss was not finite.
    Diverged,
}

/// A trial that has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Number of the trial, from 0.
    pub trial: usize,
    /// Values that were tried.
    pub values: Values,
    /// Validations during the trial.
    pub curve: Vec<Point>,
    /// Accuracy of the last validation; 0 if the trial diverged.
    pub objective: f64,
    /// How the trial ended.
    pub outcome: Outcome,
    /// Duration in seconds.
    pub seconds: f64,
}

/// The best trial that did not diverge; finished trials are preferred to others.
pub fn best(trials: &[Trial]) -> Option<&Trial> {
    let rank = |trial: &&Trial| (trial.outcome == Outcome::Finished, trial.objective);
    trials
        .iter()
        .filter(|trial| trial.outcome != Outcome::Diverged)
        .max_by(|a, b| rank(a).0.cmp(&rank(b).0).then(rank(a).1.total_cmp(&rank(b).1)))
}

/// Whether a trial with this `curve` should be stopped early: its best validation is below the median of the best
/// validations that the earlier trials had reached by then (the median rule of Golovin et al., *Google Vizier*, KDD
/// 2017). False if fewer than three trials have come as far.
pub fn should_prune(curve: &[Point], earlier: &[Trial]) -> bool {
    let Some(last) = curve.last() else { return false };
    let reached = |points: &[Point]| {
        let until = points.iter().filter(|point| point.progress <= last.progress + 1e-9);
        until.map(|point| point.accuracy).fold(f64::NEG_INFINITY, f64::max)
    };
    // A trial that ended before says nothing about this point; a diverged one has reached nothing.
    let as_far = |trial: &&Trial| {
        trial.outcome == Outcome::Diverged || trial.curve.last().is_some_and(|p| p.progress >= last.progress - 1e-9)
    };
    let mut others: Vec<f64> = earlier.iter().filter(as_far).map(|trial| reached(&trial.curve)).collect();
    if others.len() < JUDGES {
        return false;
    }
    others.sort_unstable_by(f64::total_cmp);
    reached(curve) < others[others.len() / 2]
}

/// Reads `trials.jsonl`. A last line that a kill cut short is skipped; an absent file holds no trials.
///
/// # Errors
/// An unreadable file, a line that is not a trial, or trials out of order.
pub fn read_trials(path: &Path, ranges: &Ranges) -> Result<Vec<Trial>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = files::read_text(path)?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut trials: Vec<Trial> = Vec::new();
    for (index, line) in whole.lines().enumerate() {
        let fail = |message: String| Error::Line { path: path.to_path_buf(), line: index + 1, message };
        let trial: Trial = files::parse_json_line(line).map_err(|e| fail(format!("not a trial of `ofa tune`: {e}")))?;
        if trial.trial != index {
            return Err(fail(format!("this is trial {}, expected {index}", trial.trial)));
        }
        if !trial.values.keys().copied().eq(ranges.names()) {
            return Err(fail(
                "this trial varies other hyperparameters than the ranges; name another folder with --out".into(),
            ));
        }
        if !trial.objective.is_finite() {
            return Err(fail("the objective is not a finite number".into()));
        }
        trials.push(trial);
    }
    Ok(trials)
}

/// Writer of the trials' files: `trials.jsonl`, one JSON object per line, and beside it `trials.csv` for plotting.
pub struct TrialWriter {
    path: PathBuf,
}

impl TrialWriter {
    /// Writer for the JSON lines at `path`.
    pub fn new(path: &Path) -> Self {
        TrialWriter { path: path.to_path_buf() }
    }

    /// Replaces both files with all `trials`.
    ///
    /// # Errors
    /// A failed write.
    pub fn write(&self, trials: &[Trial], ranges: &Ranges) -> Result<()> {
        let mut lines = String::new();
        for trial in trials {
            lines += &serde_json::to_string(trial).map_err(|e| Error::format(&self.path, e.to_string()))?;
            lines.push('\n');
        }
        files::write_atomic(&self.path.with_extension("csv"), csv(trials, ranges).as_bytes())?;
        Ok(files::write_atomic(&self.path, lines.as_bytes())?)
    }
}

/// One line per validation: trial, values, progress, accuracy, outcome.
fn csv(trials: &[Trial], ranges: &Ranges) -> String {
    let names: Vec<String> = ranges.names().map(|name| name.to_string()).collect();
    let mut text = format!("trial,{},progress,accuracy,outcome\n", names.join(","));
    for trial in trials {
        let values: Vec<String> = trial.values.values().map(f64::to_string).collect();
        for point in &trial.curve {
            let (progress, accuracy) = (point.progress, point.accuracy);
            let outcome = outcome(trial.outcome);
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{},{},{progress},{accuracy},{outcome}", trial.trial, values.join(","));
        }
    }
    text
}

fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Finished => "finished",
        Outcome::Stopped => "stopped",
        Outcome::Diverged => "diverged",
    }
}

/// Name of trial `number`, also that of its folder while it runs.
pub fn name(number: usize) -> String {
    format!("trial-{number:03}")
}

/// Header and rows of a table of all trials, best first.
pub fn table(trials: &[Trial], ranges: &Ranges) -> (Vec<String>, Vec<Vec<String>>) {
    let mut header = vec!["trial".to_string()];
    header.extend(ranges.names().map(|name| name.to_string()));
    header.extend(["accuracy", "steps done", "outcome", "seconds"].map(String::from));
    let mut order: Vec<&Trial> = trials.iter().collect();
    let finished = |trial: &Trial| trial.outcome == Outcome::Finished;
    order.sort_by(|a, b| finished(b).cmp(&finished(a)).then(b.objective.total_cmp(&a.objective)));
    let row = |trial: &Trial| {
        let mut row = vec![name(trial.trial)];
        row.extend(trial.values.values().map(|value| significant(*value)));
        row.push(format!("{:.1} %", 100.0 * trial.objective));
        row.push(format!("{:.0} %", 100.0 * trial.curve.last().map_or(0.0, |point| point.progress)));
        row.push(outcome(trial.outcome).into());
        row.push(format!("{:.0}", trial.seconds));
        row
    };
    (header, order.into_iter().map(row).collect())
}

/// `value` as text with three significant digits.
pub fn significant(value: f64) -> String {
    if value.abs() >= 1e7 {
        return format!("{value:.2e}");
    }
    if value.fract() == 0.0 {
        return value.to_string();
    }
    let digits = (2.0 - value.abs().log10().floor()).clamp(0.0, 12.0) as usize;
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::super::ranges::Hyperparameter;
    use super::*;

    fn ranges() -> Ranges {
        Ranges::of_text("[learning_rate]\nlow = 0.001\nhigh = 1.0\nlog = true\n")
    }

    fn trial(number: usize, accuracies: &[f64], outcome: Outcome) -> Trial {
        let count = accuracies.len() as f64;
        let point = |(i, &accuracy): (usize, &f64)| Point { progress: (i + 1) as f64 / count.max(4.0), accuracy };
        Trial {
            trial: number,
            values: Values::from([(Hyperparameter::LearningRate, 0.0123)]),
            curve: accuracies.iter().enumerate().map(point).collect(),
            objective: accuracies.last().copied().unwrap_or(0.0),
            outcome,
            seconds: 1.5,
        }
    }

    #[test]
    fn a_trial_below_the_median_is_stopped_early() {
        let earlier = vec![
            trial(0, &[0.1, 0.3, 0.4, 0.5], Outcome::Finished),
            trial(1, &[0.2, 0.4, 0.5, 0.6], Outcome::Finished),
            trial(2, &[0.3, 0.5, 0.6, 0.7], Outcome::Finished),
        ];
        let curve = |accuracies: &[f64]| trial(3, accuracies, Outcome::Finished).curve;
        assert!(should_prune(&curve(&[0.19]), &earlier));
        assert!(!should_prune(&curve(&[0.21]), &earlier));
        // The best validation counts, at the same point.
        assert!(!should_prune(&curve(&[0.45, 0.35]), &earlier));
        assert!(should_prune(&curve(&[0.3, 0.39]), &earlier));
        // Too few trials to compare with: two, or three of which one was stopped before.
        assert!(!should_prune(&curve(&[0.0]), &earlier[..2]));
        let short = [&earlier[..2], &[trial(2, &[0.3], Outcome::Stopped)]].concat();
        assert!(should_prune(&curve(&[0.1]), &short) && !should_prune(&curve(&[0.1, 0.1]), &short));
        assert!(!should_prune(&[], &earlier));
    }

    #[test]
    fn trials_survive_their_file_and_a_cut_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trials.jsonl");
        let trials = vec![trial(0, &[0.25, 0.5], Outcome::Finished), trial(1, &[], Outcome::Diverged)];
        assert!(read_trials(&path, &ranges()).unwrap().is_empty());
        TrialWriter::new(&path).write(&trials, &ranges()).unwrap();
        assert_eq!(read_trials(&path, &ranges()).unwrap(), trials);
        let csv = std::fs::read_to_string(folder.path().join("trials.csv")).unwrap();
        let expected =
            "trial,learning_rate,progress,accuracy,outcome\n0,0.0123,0.25,0.25,finished\n0,0.0123,0.5,0.5,finished\n";
        assert_eq!(csv, expected);
        let whole = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{whole}{{\"trial\": 2")).unwrap();
        assert_eq!(read_trials(&path, &ranges()).unwrap(), trials);
        for (text, reason) in [
            (whole.replace("\"trial\":1", "\"trial\":7"), "trials.jsonl:2: this is trial 7"),
            (whole.replace("learning_rate", "dropout"), "other hyperparameters"),
            (whole.replace("finished", "done"), "not a trial"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = read_trials(&path, &ranges()).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn the_table_begins_with_the_best() {
        let trials = vec![
            trial(0, &[0.5], Outcome::Finished),
            trial(1, &[0.9], Outcome::Stopped),
            trial(2, &[0.7], Outcome::Finished),
        ];
        assert_eq!(best(&trials).unwrap().trial, 2);
        assert_eq!(best(&[trial(0, &[0.5], Outcome::Diverged)]), None);
        let (header, rows) = table(&trials, &ranges());
        assert_eq!(header[..2], ["trial", "learning_rate"]);
        assert_eq!(rows.iter().map(|row| row[0].as_str()).collect::<Vec<_>>(), ["trial-002", "trial-000", "trial-001"]);
        assert_eq!(rows[0][1], "0.0123");
        assert_eq!([1e30, 128.0, 0.0, 1e-6].map(significant), ["1.00e30", "128", "0", "0.00000100"]);
    }
}
