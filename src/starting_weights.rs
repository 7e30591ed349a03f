//! Networks that are trained already: weights that a training starts from, and teachers.

use crate::terminal::note;
use anyhow::{Context, Result, bail};
use candle_core::Tensor;
use ofa_evaluate::model::{CONFIG_FILE, load_weights};
use ofa_evaluate::runtime::Weights;
use ofa_supernet::data::Normalisation;
use ofa_supernet::files::read_toml;
use ofa_supernet::space::NetworkSpec;
use ofa_supernet::train::checkpoint::{Folder, read_supernet};
use ofa_supernet::{SearchSpace, Subnet, Supernet};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Tensors that depend on the classes.
const CLASSIFIER: [&str; 2] = ["classifier.weight", "classifier.bias"];

/// A trained supernet, or an extracted model.
pub struct StartingWeights {
    path: PathBuf,
    weights: Trained,
    classes: Vec<String>,
    /// How its images were normalised, if that is known.
    pub normalisation: Option<Normalisation>,
}

enum Trained {
    Supernet {
        space: SearchSpace,
        state: HashMap<String, Tensor>,
    },
    /// The space has this name, which need not be a preset's.
    Model {
        space: String,
        subnet: Subnet,
        network: NetworkSpec,
        weights: Weights,
    },
}

impl StartingWeights {
    /// Reads the supernet of a run folder (trained or imported), a file of its checkpoints, or a model's folder.
    pub fn read(path: &Path) -> Result<Self> {
        if path.join(CONFIG_FILE).exists() {
            return Self::read_model(path);
        }
        if path.is_dir() {
            let file = Folder::of_run(path, 1).supernet_path();
            if !file.exists() {
                bail!(
                    "{}: there is no supernet; expected a run folder with a trained or imported one, or a model's folder",
                    file.display()
                );
            }
            return Self::read(&file);
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with("step-") {
            let checkpoint = Folder::read(path)?;
            let identity = checkpoint.identity;
            let state = if checkpoint.average.is_empty() { checkpoint.weights } else { checkpoint.average };
            let normalisation = identity.data.map(|data| data.normalisation().clone());
            let weights = Trained::Supernet { space: identity.space, state };
            return Ok(StartingWeights { path: path.to_path_buf(), weights, classes: identity.classes, normalisation });
        }
        let (state, note) = read_supernet(path)
            .with_context(|| format!("{}: expected a run folder or a file of its checkpoints", path.display()))?;
        // That of an imported supernet is in the run's configuration.
        let run = || normalisation_of_run(path.parent()?.parent()?);
        let normalisation = note.trained_on.map(|trained_on| trained_on.normalisation).or_else(run);
        let weights = Trained::Supernet { space: note.space, state };
        Ok(StartingWeights { path: path.to_path_buf(), weights, classes: note.classes, normalisation })
    }

    fn read_model(path: &Path) -> Result<Self> {
        let (config, weights) = load_weights(path)?;
        let weights = Trained::Model { space: config.space, subnet: config.subnet, network: config.network, weights };
        let normalisation = Some(config.normalisation);
        Ok(StartingWeights { path: path.to_path_buf(), weights, classes: config.labels, normalisation })
    }

    /// The space to train in where none is named.
    pub fn space(&self) -> Result<SearchSpace> {
        match &self.weights {
            Trained::Supernet { space, .. } => Ok(space.clone()),
            Trained::Model { space, .. } => SearchSpace::named(space)
                .with_context(|| format!("{}: name the model's space with --space or --config", self.path.display())),
        }
    }

    /// The training preset where none is named: a supernet's subnets are trained already, those around a model are not.
    pub fn preset(&self) -> &'static str {
        match &self.weights {
            Trained::Supernet { .. } => "transfer",
            Trained::Model { .. } => "cifar",
        }
    }

    /// Whether they are those of one subnet.
    pub fn is_model(&self) -> bool {
        matches!(self.weights, Trained::Model { .. })
    }

    /// Loads the weights into `net`, a network for images of `classes`. The classifier's weights are loaded only if the
    /// classes are equal.
    pub fn load_into(&self, net: &Supernet, classes: &[String]) -> Result<()> {
        let path = self.path.display();
        let same = self.classes == classes;
        match &self.weights {
            Trained::Supernet { space, state } => {
                if let Some(difference) = net.space().difference_in_weights(space) {
                    bail!(
                        "{path}: its supernet is of another space than this training: {difference}; train in the space '{}'",
                        space.name
                    );
                }
                let mut all = net.state()?;
                let kept = state.iter().filter(|(name, _)| same || !CLASSIFIER.contains(&name.as_str()));
                all.extend(kept.map(|(name, tensor)| (name.clone(), tensor.clone())));
                net.load_state(&all).with_context(|| path.to_string())?;
            }
            Trained::Model { space, subnet, network, weights } => {
                let own = SearchSpace { resolutions: vec![subnet.resolution], ..net.space().clone() };
                if !own.network(subnet, self.classes.len()).is_ok_and(|held| held == *network) {
                    bail!(
                        "{path}: the space '{}' of this training does not hold the model's network, {subnet} of the space \
                         '{space}'; train in that space",
                        net.space().name
                    );
                }
                let held = Subnet { resolution: net.space().resolutions[0], ..subnet.clone() };
                net.paste(&held, weights, same).with_context(|| path.to_string())?;
            }
        }
        let classifier = if same { "the same classes" } else { "a new classifier, since the classes differ" };
        note(format!("training starts from {path}, with {classifier}"));
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
        let Trained::Supernet { space, state } = &self.weights else {
            bail!(
                "{path}: this is a model's folder; a teacher is a supernet: give a run folder or a file of its checkpoints"
            );
        };
        let net = Supernet::new(space, classes.len(), 0)?;
        net.load_state(state).with_context(|| path.to_string())?;
        note(format!("the largest subnet of {path} teaches"));
        Ok(net)
    }
}

/// The normalisation that a run's configuration gives: that of an imported supernet.
fn normalisation_of_run(run: &Path) -> Option<Normalisation> {
    let config: crate::run_folder::RunConfig = read_toml(&run.join("config.toml")).ok()?;
    config.data.normalisation
}
