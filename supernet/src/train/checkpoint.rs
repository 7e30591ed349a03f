//! Checkpoints: what they hold, which are kept, which one a run resumes from, and the final weights.
//!
//! A checkpoint is one file, `checkpoints/step-00001234.safetensors`. Generators are derived from seed and position
//! ([`crate::seed`]), so the position is all that randomness needs.

mod identity;

use super::metrics::Window;
use super::tensor_file;
use crate::data::TrainedOn;
use crate::{Error, Result, SearchSpace, files};
use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

pub use identity::Identity;

/// Where training stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Index of the stage that comes next or is under way; the number of stages when training is done.
    pub stage: usize,
    /// Steps done in it.
    pub stage_step: usize,
    /// Whether what comes before its first step is done.
    #[serde(default)]
    pub entered: bool,
    /// Steps done since the start of training.
    pub step: usize,
    /// The step after which the probes were last validated.
    pub probed: Option<usize>,
    /// Seconds of training so far, over all sessions.
    pub seconds: f64,
    /// Lines of `metrics.jsonl`; those behind them were written after this checkpoint.
    #[serde(default)]
    pub metrics_lines: u64,
    /// Updates of the moving average in this stage.
    pub average_updates: u64,
    /// Sums for the next step line.
    pub window: Window,
    /// Steps that were skipped because a loss or gradient was not finite.
    #[serde(default)]
    pub skipped: usize,
    /// The best checkpoint so far.
    #[serde(default)]
    pub best: Option<Best>,
}

impl Progress {
    /// Number of stages that have begun.
    pub fn begun(&self) -> usize {
        self.stage + usize::from(self.entered || self.stage_step > 0)
    }
}

/// The checkpoint whose probes were best.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Steps since the start of training, at the checkpoint.
    pub step: usize,
    /// Mean of the probes' accuracies.
    pub accuracy: f64,
}

/// Version of checkpoints. Version 2 derives random streams in another way, so that an older run cannot
/// continue as it began, and records its images.
const FORMAT: u32 = 2;

/// The part of a note that every version has.
#[derive(Deserialize)]
struct Version {
    #[serde(default)]
    format: u32,
}

#[derive(Serialize, Deserialize)]
struct Note {
    #[serde(default)]
    format: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    teacher_space: Option<SearchSpace>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    earlier: Vec<TrainedOn>,
    progress: Progress,
    identity: Identity,
}

/// All that training needs to resume as if it had not stopped.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Where training stands.
    pub progress: Progress,
    /// What it was trained on and how.
    pub identity: Identity,
    /// Parameters and running statistics.
    pub weights: HashMap<String, Tensor>,
    /// What the optimizer keeps of each parameter: momentum and the like.
    pub momentum: HashMap<String, Tensor>,
    /// The moving average, if there is one (empty: none).
    pub average: HashMap<String, Tensor>,
    /// The teacher's weights, once it is trained (empty: none).
    pub teacher: HashMap<String, Tensor>,
    /// The teacher's space, if it is not the run's.
    pub teacher_space: Option<SearchSpace>,
    /// Images that the starting weights were trained on.
    pub earlier: Vec<TrainedOn>,
}

impl Checkpoint {
    /// A number that differs (but for one chance in 2^64 or so) when a bit of a tensor or the step does.
    ///
    /// # Errors
    /// A tensor operation failed.
    pub fn fingerprint(&self) -> Result<u64> {
        // FNV-1a, a word at a time.
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        let mut add = |word: u64| hash = (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3);
        add(self.progress.step as u64);
        for part in [&self.weights, &self.momentum, &self.average, &self.teacher] {
            for (name, tensor) in part.iter().collect::<BTreeMap<_, _>>() {
                name.bytes().for_each(|byte| add(u64::from(byte)));
                let values = tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
                values.iter().for_each(|value| add(u64::from(value.to_bits())));
            }
        }
        Ok(hash)
    }
}

const PARTS: [&str; 4] = ["weights.", "momentum.", "average.", "teacher."];

/// The newest checkpoint that can be read.
#[derive(Debug)]
pub struct Latest {
    /// Content.
    pub checkpoint: Checkpoint,
    /// File.
    pub path: PathBuf,
    /// Newer checkpoints that cannot be read: an error message each.
    pub damaged: Vec<String>,
}

/// The checkpoints of one run.
pub struct Folder {
    path: PathBuf,
    keep: usize,
}

impl Folder {
    /// `checkpoints/` of a run folder; the newest `keep` and the best are kept.
    pub fn of_run(run: &Path, keep: usize) -> Self {
        Folder { path: run.join("checkpoints"), keep }
    }

    /// Writes a checkpoint and removes those that are no longer kept.
    ///
    /// # Errors
    /// The operating system's error with the path; older checkpoints are then untouched.
    pub fn save(&self, checkpoint: &Checkpoint) -> Result<PathBuf> {
        let parts = [&checkpoint.weights, &checkpoint.momentum, &checkpoint.average, &checkpoint.teacher];
        let mut tensors = BTreeMap::new();
        for (prefix, part) in PARTS.iter().zip(parts) {
            tensors.extend(part.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone())));
        }
        let note = Note {
            format: FORMAT,
            teacher_space: checkpoint.teacher_space.clone(),
            earlier: checkpoint.earlier.clone(),
            progress: checkpoint.progress.clone(),
            identity: checkpoint.identity.clone(),
        };
        let path = self.checkpoint_path(checkpoint.progress.step);
        tensor_file::write(&path, &tensors, &note)?;
        self.prune(checkpoint.progress.step, checkpoint.progress.best.map(|best| best.step))?;
        Ok(path)
    }

    /// Reads one checkpoint.
    ///
    /// # Errors
    /// A missing or damaged file, named.
    pub fn read(path: &Path) -> Result<Checkpoint> {
        // Before the rest, which another format may have otherwise.
        let Version { format } = tensor_file::read_note(path)?;
        if format != FORMAT {
            return Err(Error::refused(
                path,
                format!(
                    "the checkpoint has format {} and this program reads format {FORMAT}, with other random streams; finish \
                     the run with the version that began it, or start anew in another folder",
                    format.max(1)
                ),
            ));
        }
        let (tensors, note): (_, Note) = tensor_file::read(path)?;
        for space in [Some(&note.identity.space), note.teacher_space.as_ref()].into_iter().flatten() {
            space.validate().map_err(|e| e.at(path))?;
        }
        let mut parts: [HashMap<String, Tensor>; 4] = Default::default();
        for (name, tensor) in tensors {
            let Some(part) = PARTS.iter().position(|prefix| name.starts_with(prefix)) else {
                return Err(Error::format(path, format!("tensor '{name}' belongs to no part of a checkpoint")));
            };
            parts[part].insert(name[PARTS[part].len()..].to_string(), tensor);
        }
        let [weights, momentum, average, teacher] = parts;
        let Note { progress, identity, teacher_space, earlier, .. } = note;
        Ok(Checkpoint { progress, identity, weights, momentum, average, teacher, teacher_space, earlier })
    }

    /// The newest checkpoint that can be read; `None` if there is no checkpoint at all.
    ///
    /// # Errors
    /// There are checkpoints, but none can be read.
    pub fn latest(&self) -> Result<Option<Latest>> {
        let mut damaged = Vec::new();
        for (_, path) in self.list()?.into_iter().rev() {
            match Self::read(&path) {
                Ok(checkpoint) => return Ok(Some(Latest { checkpoint, path, damaged })),
                // Neither damaged nor usable: an older one would silently be another training.
                Err(error @ Error::Refused { .. }) => return Err(error),
                // Nor known to be damaged: it would be removed when a later one is written.
                Err(Error::File { path, source }) if source.kind() != ErrorKind::NotFound => {
                    return Err(Error::File { path, source });
                }
                Err(error) => damaged.push(error.to_string()),
            }
        }
        if damaged.is_empty() {
            return Ok(None);
        }
        Err(Error::format(
            &self.path,
            format!(
                "no checkpoint can be read: {}; bring one back from a copy, or start anew in another folder",
                damaged.join("; ")
            ),
        ))
    }

    /// Space of the frozen teacher that the newest checkpoint holds, if it is not the run's own. Reads the header only.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn teacher_space(&self) -> Result<Option<SearchSpace>> {
        // A damaged checkpoint is for `latest` to tell of.
        let note = |(_, path): &(usize, PathBuf)| tensor_file::read_note::<Note>(path).ok();
        Ok(self.list()?.last().and_then(note).and_then(|note| note.teacher_space))
    }

    /// Number of stages that have begun at the newest checkpoint; 0 if there is none. Reads headers only.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn begun_stages(&self) -> Result<usize> {
        let position = |(_, path): &(usize, PathBuf)| read_position(path).ok();
        Ok(self.list()?.iter().rev().find_map(position).map_or(0, |(progress, _)| progress.begun()))
    }

    /// `(step, path)` of all checkpoints, oldest first; empty if the folder does not exist.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self) -> Result<Vec<(usize, PathBuf)>> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::file(&self.path, e)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(|e| Error::file(&self.path, e))?.path();
            let step = path
                .file_name()
                .and_then(|n| n.to_str())
                .and_then(|n| n.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok());
            if let Some(step) = step {
                found.push((step, path));
            }
        }
        found.sort();
        Ok(found)
    }

    /// After step `newest` was saved: keeps the last ones up to it, and the best. A later step can only be a damaged
    /// file that the run did not resume from.
    pub(super) fn prune(&self, newest: usize, best: Option<usize>) -> Result<()> {
        let (current, mut leftover): (Vec<_>, Vec<_>) = self.list()?.into_iter().partition(|(step, _)| *step <= newest);
        leftover.extend_from_slice(&current[..current.len().saturating_sub(self.keep)]);
        leftover.retain(|(step, _)| Some(*step) != best);
        leftover.iter().try_for_each(|(_, path)| files::remove_file(path))
    }

    /// Removes what killed writes left.
    pub fn remove_temporaries(&self) {
        files::remove_all_abandoned(&self.path);
    }

    /// Where the checkpoint of a step is written.
    pub fn checkpoint_path(&self, step: usize) -> PathBuf {
        self.path.join(format!("step-{step:08}.safetensors"))
    }

    /// Where the trained supernet is written.
    pub fn supernet_path(&self) -> PathBuf {
        self.path.join("supernet.safetensors")
    }
}

/// Where training stands at a checkpoint, and the number of its training images. Reads the header only.
///
/// # Errors
/// A missing or damaged file, named.
pub fn read_position(path: &Path) -> Result<(Progress, usize)> {
    let note: Note = tensor_file::read_note(path)?;
    Ok((note.progress, note.identity.images))
}

/// What a trained supernet's file says of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SupernetNote {
    /// The search space.
    pub space: SearchSpace,
    /// Class names.
    pub classes: Vec<String>,
    /// Steps of training.
    pub steps: usize,
    /// The images it was trained on; not known of an imported supernet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained_on: Option<TrainedOn>,
    /// Other images that the weights it started from were trained on, as far as that is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<TrainedOn>,
}

/// Writes a supernet's parameters and running statistics.
///
/// # Errors
/// The operating system's error with the path.
pub fn write_supernet(path: &Path, state: HashMap<String, Tensor>, note: &SupernetNote) -> Result<()> {
    tensor_file::write(path, &state.into_iter().collect(), note)
}

/// Reads a supernet's file: its state (for [`Supernet::load_state`](crate::Supernet::load_state)) and what it says of
/// it.
///
/// # Errors
/// A missing or damaged file, named.
pub fn read_supernet(path: &Path) -> Result<(HashMap<String, Tensor>, SupernetNote)> {
    let (state, note) = tensor_file::read(path)?;
    Ok((state, checked(path, note)?))
}

/// What a supernet's file says of it. Reads the header only.
///
/// # Errors
/// A missing file, one that [`write_supernet`] has not written.
pub fn read_supernet_note(path: &Path) -> Result<SupernetNote> {
    checked(path, tensor_file::read_note(path)?)
}

fn checked(path: &Path, note: SupernetNote) -> Result<SupernetNote> {
    note.space.validate().map_err(|e| e.at(path))?;
    if note.classes.is_empty() {
        return Err(Error::format(path, "it has no classes; expected the supernet of a run"));
    }
    Ok(note)
}

/// Checksum of a supernet's weights, space and class names, as eight hexadecimal digits: what was measured with the
/// supernet carries the checksum, so that it can be told from what another supernet gives. Reads the file's header
/// only.
///
/// # Errors
/// A missing file, one that [`write_supernet`] has not written.
pub fn supernet_checksum(path: &Path) -> Result<String> {
    Ok(format!("{:08x}", tensor_file::checksum(path)?))
}

#[cfg(test)]
mod tests;
