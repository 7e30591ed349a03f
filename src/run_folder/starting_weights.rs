//! Networks that are trained already: weights that a training starts from, and teachers.

use crate::output::terminal::{note, warning};
use crate::run_folder::RunConfig;
use anyhow::{Context, Result, bail};
use candle_core::Tensor;
use ofa_evaluate::model::{CONFIG_FILE, load_weights};
use ofa_evaluate::runtime::Weights;
use ofa_supernet::data::{DataIdentity, Dataset, Normalisation, TrainedOn};
use ofa_supernet::files::read_toml;
use ofa_supernet::space::NetworkSpec;
use ofa_supernet::train::StageConfig;
use ofa_supernet::train::checkpoint::{Folder, read_position, read_supernet, read_supernet_note};
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
    /// The images that the weights were trained on, as far as they are recorded.
    pub trained_on: Vec<TrainedOn>,
    /// Whether these include the images of the run that the weights are of.
    is_recorded: bool,
    /// Images and splits of the run, if the weights are a checkpoint's.
    identity: Option<DataIdentity>,
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
        if is_checkpoint(path) {
            let checkpoint = Folder::read(path)?;
            let identity = checkpoint.identity;
            let state = if checkpoint.average.is_empty() { checkpoint.weights } else { checkpoint.average };
            let normalisation = identity.data.as_ref().map(|data| data.normalisation().clone());
            let weights = Trained::Supernet { space: identity.space, state };
            // A finished run has a record of the images in its supernet's file.
            let supernet = run_of(path).map(|run| Folder::of_run(&run, 1).supernet_path());
            let own = supernet.and_then(|file| read_supernet_note(&file).ok()?.trained_on);
            return Ok(StartingWeights {
                path: path.to_path_buf(),
                weights,
                classes: identity.classes,
                normalisation,
                is_recorded: own.is_some(),
                trained_on: own.into_iter().chain(checkpoint.earlier).collect(),
                identity: identity.data,
            });
        }
        let (state, note) = read_supernet(path)
            .with_context(|| format!("{}: expected a run folder or a file of its checkpoints", path.display()))?;
        // That of an imported supernet is in the run's configuration.
        let run = || config_of_run(path)?.data.normalisation;
        let normalisation = note.trained_on.as_ref().map(|own| own.normalisation.clone()).or_else(run);
        let weights = Trained::Supernet { space: note.space, state };
        Ok(StartingWeights {
            path: path.to_path_buf(),
            weights,
            classes: note.classes,
            normalisation,
            is_recorded: note.trained_on.is_some(),
            trained_on: note.trained_on.into_iter().chain(note.earlier).collect(),
            identity: None,
        })
    }

    /// [`Self::read`] for a training on `data`. Refuses weights that have seen validation images, on which accuracies
    /// would be those of training images.
    pub fn read_for(data: &Dataset, path: &Path) -> Result<Self> {
        let weights = Self::read(path)?;
        let path = path.display();
        match weights.seen(data)? {
            Some(0) => {}
            Some(seen) => bail!(
                "{path}: was trained on about {seen} of the {} validation images of '{}', so that accuracies would be those of \
                 training images; if these are the images of its run, split them as it did (--validation, and seed of \
                 [data]); if images were added, put unseen ones into val/CLASS",
                data.validation.len(),
                data.name
            ),
            None => note(format!(
                "{path}: the images that these weights were trained on are not recorded; if validation images are among them, \
                 accuracies are those of training images"
            )),
        }
        Ok(weights)
    }

    fn read_model(path: &Path) -> Result<Self> {
        let (config, weights) = load_weights(path)?;
        let weights = Trained::Model { space: config.space, subnet: config.subnet, network: config.network, weights };
        Ok(StartingWeights {
            path: path.to_path_buf(),
            weights,
            classes: config.labels,
            normalisation: Some(config.normalisation),
            is_recorded: false,
            trained_on: Vec::new(),
            identity: None,
        })
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

    /// Estimated number of validation images of `data` that the weights were trained on; `None` if none is known, but
    /// the images of their run are not recorded.
    fn seen(&self, data: &Dataset) -> Result<Option<usize>> {
        if self.identity.as_ref().is_some_and(|known| known.has_splits_of(&DataIdentity::of(data))) {
            return Ok(Some(0));
        }
        let seen = TrainedOn::largest_contamination(&self.trained_on, data)?;
        Ok((self.is_recorded || seen > 0).then_some(seen))
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

    /// The network, as a teacher of images of `data`.
    pub fn teacher(&self, data: &Dataset) -> Result<Supernet> {
        let path = self.path.display();
        if self.classes != data.classes {
            bail!("{path}: a teacher needs the classes of the data, in their order, and this one has others");
        }
        if self.normalisation.as_ref().is_some_and(|own| *own != data.normalisation) {
            bail!(
                "{path}: the teacher was trained on images with another normalisation; set [data] normalisation to that of its run"
            );
        }
        let Trained::Supernet { space, state } = &self.weights else {
            bail!(
                "{path}: this is a model's folder; a teacher is a supernet: give a run folder or a file of its checkpoints"
            );
        };
        let net = Supernet::new(space, data.classes.len(), 0)?;
        net.load_state(state).with_context(|| path.to_string())?;
        // It is never asked about them, but what it teaches tells a little of what it has learned by heart.
        if let Some(seen @ 1..) = self.seen(data)? {
            warning(format!(
                "{path}: the teacher was trained on about {seen} of the {} validation images of '{}', so that accuracies may be \
                 a little too high",
                data.validation.len(),
                data.name
            ));
        }
        note(format!("the largest subnet of {path} teaches"));
        Ok(net)
    }
}

/// The run folder of a supernet that a path names: that folder itself, or a file of its checkpoints.
fn run_of(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    if path.is_dir() { Some(path) } else { Some(path.parent()?.parent()?.to_path_buf()) }
}

/// Whether a path names a checkpoint, rather than a finished supernet.
fn is_checkpoint(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("step-"))
}

/// The configuration of a supernet's run.
fn config_of_run(path: &Path) -> Option<RunConfig> {
    read_toml(&run_of(path)?.join("config.toml")).ok()
}

/// The stages that trained the weights at a path, if they are a supernet's.
pub enum TrainedIn {
    /// The stages of its run that had begun, which started from random weights or a model's.
    Stages(Vec<StageConfig>),
    /// Unknown ones.
    Unknown,
}

impl TrainedIn {
    /// Reads the configuration of the run; `None` where there is no supernet.
    pub fn of(path: &Path) -> Option<TrainedIn> {
        if !path.exists() || path.join(CONFIG_FILE).exists() {
            return None;
        }
        let is_model = |from: &String| Path::new(from).join(CONFIG_FILE).exists();
        let config = config_of_run(path).filter(|config| config.from.as_ref().is_none_or(is_model));
        let Some(mut stages) = config.map(|config| config.train.stages) else { return Some(TrainedIn::Unknown) };
        if is_checkpoint(path) {
            let Ok((progress, _)) = read_position(path) else { return Some(TrainedIn::Unknown) };
            stages.truncate(progress.begun());
        }
        Some(TrainedIn::Stages(stages))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_folder::DataConfig;
    use ofa_supernet::data::DataOptions;
    use ofa_supernet::train::TrainConfig;
    use ofa_supernet::train::checkpoint::{Checkpoint, Identity, Progress, SupernetNote, write_supernet};

    fn data(validation: usize) -> Dataset {
        let options =
            DataOptions { validation: Some(validation), builtin_train: 60, builtin_test: 10, ..DataOptions::default() };
        Dataset::open("builtin", &options).unwrap()
    }

    #[test]
    fn validation_images_that_were_trained_on_are_counted_as_far_as_they_are_recorded() {
        let folder = tempfile::tempdir().unwrap();
        let space = SearchSpace::named("tiny").unwrap();
        let (own, other) = (data(10), data(12));
        let state = || Supernet::new(&space, own.classes.len(), 0).unwrap().state().unwrap();
        let checkpoints = Folder::of_run(folder.path(), 1);
        let write = |trained_on: Option<TrainedOn>, earlier: Vec<TrainedOn>| {
            let classes = own.classes.clone();
            let note = SupernetNote { space: space.clone(), classes, steps: 1, trained_on, earlier };
            write_supernet(&checkpoints.supernet_path(), state(), &note).unwrap();
        };
        let seen = |path: &Path, data: &Dataset| StartingWeights::read(path).unwrap().seen(data).unwrap();
        let of_own = TrainedOn::new(&own).unwrap();
        let of_other = of_own.contamination(&other).unwrap();
        assert!(of_other > 5, "{of_other}");

        write(Some(of_own.clone()), Vec::new());
        assert_eq!((seen(folder.path(), &own), seen(folder.path(), &other)), (Some(0), Some(of_other)));
        let refused = StartingWeights::read_for(&other, folder.path()).err().unwrap().to_string();
        assert!(refused.contains(&format!("about {of_other} of the 12 validation images")), "{refused}");
        // In an earlier run, whose images the later one does not have.
        let unlike = TrainedOn::new(&Dataset { train: own.test.clone(), ..own.clone() }).unwrap();
        write(Some(unlike), vec![of_own.clone()]);
        assert_eq!(seen(folder.path(), &other), Some(of_other));
        write(None, Vec::new());
        assert_eq!(seen(folder.path(), &other), None);

        // A checkpoint knows its images and splits, and of others what the finished run has recorded.
        let identity = Identity::new(&space, &own, &TrainConfig::preset("tiny", &space).unwrap()).unwrap();
        let nothing = HashMap::new;
        let checkpoint = Checkpoint {
            progress: Progress::default(),
            identity,
            weights: state(),
            momentum: nothing(),
            average: nothing(),
            teacher: nothing(),
            teacher_space: None,
            earlier: Vec::new(),
        };
        let step = checkpoints.save(&checkpoint).unwrap();
        assert_eq!((seen(&step, &own), seen(&step, &other)), (Some(0), None));
        write(Some(of_own), Vec::new());
        assert_eq!((seen(&step, &own), seen(&step, &other)), (Some(0), Some(of_other)));

        // Stages of its run count as far as they had begun.
        let train = TrainConfig::preset("tiny", &space).unwrap();
        let config = RunConfig { data: DataConfig::default(), space: space.clone(), train, from: None };
        std::fs::write(folder.path().join("config.toml"), toml::to_string(&config).unwrap()).unwrap();
        let stages = |path: &Path| match TrainedIn::of(path) {
            Some(TrainedIn::Stages(stages)) => stages.len(),
            _ => panic!("the stages of {} are not known", path.display()),
        };
        assert_eq!((stages(&step), stages(folder.path())), (0, config.train.stages.len()));
    }
}
