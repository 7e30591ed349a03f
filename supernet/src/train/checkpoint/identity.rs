//! What a checkpoint and the run that resumes from it have in common, and which settings may change.

use super::Progress;
use crate::data::{DataIdentity, Dataset};
use crate::train::config::TrainConfig;
use crate::{Error, Result, SearchSpace};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// What must agree between a checkpoint and the run that resumes from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// The search space.
    pub space: SearchSpace,
    /// Class names.
    pub classes: Vec<String>,
    /// Number of training images.
    pub images: usize,
    /// Images, their splits and their normalisation.
    #[serde(default)]
    pub data: Option<DataIdentity>,
    /// The training configuration as JSON.
    pub config: Value,
}

/// Keys of the configuration that may change on resuming: they do not decide the weights.
const FREE_KEYS: &[&str] = &[
    "subnets_at_once",
    "log_every",
    "checkpoint_minutes",
    "checkpoint_steps",
    "keep_checkpoints",
    "skip_nonfinite",
    "probe",
];

impl Identity {
    /// The identity of a run with `config`.
    ///
    /// # Errors
    /// None in practice; a value without a JSON form.
    pub fn new(space: &SearchSpace, data: &Dataset, config: &TrainConfig) -> Result<Self> {
        let config = serde_json::to_value(config).map_err(|e| Error::Internal(e.to_string()))?;
        Ok(Identity {
            space: space.clone(),
            classes: data.classes.clone(),
            images: data.train.len(),
            data: Some(DataIdentity::of(data)),
            config,
        })
    }

    /// Checks that a run with identity `self` may resume from a checkpoint with identity `saved` that stands at
    /// `progress`: stages that have not begun may be changed, added or dropped, since nothing done so far depends on
    /// them, and the stage that is under way may become longer or shorter.
    ///
    /// # Errors
    /// What differs, and what to do.
    pub fn check(&self, saved: &Identity, progress: &Progress, path: &Path) -> Result<()> {
        let fail = |what: String| {
            let way_out = "resume with the settings of the run, or start a new one in another folder";
            Err(Error::refused(path, format!("cannot resume from it: {what}; {way_out}")))
        };
        if self.space != saved.space {
            return fail(format!(
                "its search space is '{}', not this '{}' (or values in it differ)",
                saved.space.name, self.space.name
            ));
        }
        if self.classes != saved.classes {
            return fail(format!(
                "it has {} classes, the data has {} (or their names differ)",
                saved.classes.len(),
                self.classes.len()
            ));
        }
        if self.images != saved.images {
            return fail(format!("it was trained on {} images, the data has {}", saved.images, self.images));
        }
        if let (Some(data), Some(saved)) = (&self.data, &saved.data)
            && let Some(difference) = data.difference(saved)
        {
            return fail(difference);
        }
        let empty = serde_json::Map::new();
        let (new, old) = (self.config.as_object().unwrap_or(&empty), saved.config.as_object().unwrap_or(&empty));
        let mut changed: Vec<&str> = new
            .keys()
            .chain(old.keys())
            .map(String::as_str)
            .filter(|key| !FREE_KEYS.contains(key) && *key != "stages" && new.get(*key) != old.get(*key))
            .collect();
        changed.sort_unstable();
        changed.dedup();
        if !changed.is_empty() {
            return fail(format!("the training configuration differs in {}", changed.join(", ")));
        }
        let (new_stages, old_stages) = (stages(&self.config), stages(&saved.config));
        let differs = |index: usize| match (new_stages.get(index), old_stages.get(index)) {
            (Some(new), Some(old)) if index == progress.stage => without_epochs(new) != without_epochs(old),
            (new, old) => new != old,
        };
        if let Some(index) = (0..progress.begun()).find(|&index| differs(index)) {
            let epochs = if index == progress.stage { " and only its epochs may change" } else { "" };
            return fail(format!("stage {} differs, but it has begun{epochs}", index + 1));
        }
        // With one schedule momentum and moving average are handed on from stage to stage, and end with the last.
        if new.contains_key("schedule") && new_stages.len() != old_stages.len() {
            if progress.stage >= old_stages.len() {
                return fail("its stages are over, and [train.schedule] has ended with the last".into());
            }
            if progress.stage >= new_stages.len() {
                return fail(format!("stage {} is missing, but [train.schedule] goes on with it", progress.stage + 1));
            }
        }
        Ok(())
    }
}

fn stages(config: &Value) -> &[Value] {
    config.get("stages").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// A stage of a configuration without its length.
fn without_epochs(stage: &Value) -> Value {
    let mut stage = stage.clone();
    if let Some(keys) = stage.as_object_mut() {
        keys.remove("epochs");
    }
    stage
}
