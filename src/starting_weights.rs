//! Supernets that are trained already: weights that a training starts from, and teachers.

use crate::progress::note;
use anyhow::{Context, Result, bail};
use candle_core::Tensor;
use ofa_supernet::data::Normalisation;
use ofa_supernet::files::read_toml;
use ofa_supernet::train::checkpoint::{Folder, read_supernet};
use ofa_supernet::{SearchSpace, Supernet};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Tensors that depend on the classes.
const CLASSIFIER: [&str; 2] = ["classifier.weight", "classifier.bias"];

/// A trained supernet.
pub struct StartingWeights {
    path: PathBuf,
    state: HashMap<String, Tensor>,
    /// The space that it was trained in.
    pub space: SearchSpace,
    classes: Vec<String>,
    /// How its images were normalised, if that is known.
    pub normalisation: Option<Normalisation>,
}

impl StartingWeights {
    /// Reads the supernet of a run folder (trained or imported), or a file of its checkpoints.
    pub fn read(path: &Path) -> Result<Self> {
        if path.is_dir() {
            let file = Folder::of_run(path, 1).supernet_path();
            if !file.exists() {
                bail!("{}: there is no supernet; expected a run folder with a trained or imported one", file.display());
            }
            let mut weights = Self::read(&file)?;
            if weights.normalisation.is_none() {
                weights.normalisation = normalisation_of_run(path);
            }
            return Ok(weights);
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with("step-") {
            let checkpoint = Folder::read(path)?;
            let identity = checkpoint.identity;
            let state = if checkpoint.average.is_empty() { checkpoint.weights } else { checkpoint.average };
            let normalisation = identity.data.map(|data| data.normalisation().clone());
            let (space, classes) = (identity.space, identity.classes);
            return Ok(StartingWeights { path: path.to_path_buf(), state, space, classes, normalisation });
        }
        let (state, note) = read_supernet(path)
            .with_context(|| format!("{}: expected a run folder or a file of its checkpoints", path.display()))?;
        let normalisation = note.trained_on.map(|trained_on| trained_on.normalisation);
        let path = path.to_path_buf();
        Ok(StartingWeights { path, state, space: note.space, classes: note.classes, normalisation })
    }

    /// Loads the weights into `net`, a network for images of `classes`. The classifier's weights are loaded only if the
    /// classes are equal.
    pub fn load_into(&self, net: &Supernet, classes: &[String]) -> Result<()> {
        // Resolutions have no weights.
        let own = SearchSpace { resolutions: net.space().resolutions.clone(), ..self.space.clone() };
        if let Some(difference) = net.space().difference(&own) {
            bail!(
                "{}: its supernet is of another space than this training: {difference}; train in the space '{}'",
                self.path.display(),
                self.space.name
            );
        }
        let mut state = net.state()?;
        let same = self.classes == classes;
        let kept = self.state.iter().filter(|(name, _)| same || !CLASSIFIER.contains(&name.as_str()));
        state.extend(kept.map(|(name, tensor)| (name.clone(), tensor.clone())));
        net.load_state(&state).with_context(|| self.path.display().to_string())?;
        let classifier = if same { "the same classes" } else { "a new classifier, since the classes differ" };
        note(format!("training starts from {}, with {classifier}", self.path.display()));
        Ok(())
    }

    /// The network, as a teacher of images of `classes` with this `normalisation`.
    pub fn teacher(&self, classes: &[String], normalisation: &Normalisation) -> Result<Supernet> {
        let path = self.path.display();
        if self.classes != classes {
            bail!("{path}: a teacher needs the classes of the data, in their order, and this one has others");
        }
        if self.normalisation.as_ref().is_some_and(|own| own != normalisation) {
            bail!(
                "{path}: the teacher was trained on images with another normalisation; set [data] normalisation to that of its run"
            );
        }
        let net = Supernet::new(&self.space, classes.len(), 0)?;
        net.load_state(&self.state).with_context(|| path.to_string())?;
        note(format!("the largest subnet of {path} teaches"));
        Ok(net)
    }
}

/// The normalisation that a run's configuration gives: that of an imported supernet.
fn normalisation_of_run(run: &Path) -> Option<Normalisation> {
    let config: crate::run_folder::RunConfig = read_toml(&run.join("config.toml")).ok()?;
    config.data.normalisation
}
