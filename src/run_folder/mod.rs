//! The run folder: `config.toml`, `checkpoints/`, `predictor/`, `devices/`, `search/`, `models/`. Each command reads
//! files that earlier commands wrote.
//!
//! | module | concern |
//! | --- | --- |
//! | `new_folder`, `quickstart_folder` | a folder that a failed command made, and that of a quickstart |
//! | `new_training`, `starting_weights` | what a new training is refused for, and what it starts from |
//! | `freshness` | whether predictor, profiles and results still belong to the weights |
//! | `names`, `result_files`, `kept_samples` | names of results and models, files of results, measurements to keep |
//! | `model_folders`, `model_origin` | where models are written, and what their folders tell of them |
//! | `class_names` | outputs of a network and classes of images |

pub mod class_names;
pub mod freshness;
pub mod kept_samples;
pub mod model_folders;
pub mod model_origin;
pub mod names;
pub mod new_folder;
pub mod new_training;
pub mod quickstart_folder;
pub mod result_files;
pub mod starting_weights;

use crate::arguments::shell;
use crate::output::progress::Bar;
use crate::output::terminal;
use crate::process::{interrupt, memory};
use anyhow::{Context, Result, bail};
use ofa_evaluate::DeviceProfile;
use ofa_extract::{Constraint, Metric};
use ofa_supernet::data::{DataOptions, Dataset, Normalisation, OpenProgress, Split, Splits, TrainedOn, is_pattern};
use ofa_supernet::files::{list_folder, read_json, read_toml, remove_all_abandoned, write_atomic, write_json};
use ofa_supernet::graph::Graph;
use ofa_supernet::lock::{Lock, Sharing};
use ofa_supernet::train::TrainConfig;
use ofa_supernet::train::checkpoint::{Folder, read_supernet, read_supernet_note, supernet_checksum};
use ofa_supernet::{SearchSpace, Supernet};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Content of `config.toml`: everything that is needed to repeat the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Run folder or checkpoint whose supernet the training starts from (default: random weights).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Where the images come from.
    pub data: DataConfig,
    /// The search space.
    pub space: SearchSpace,
    /// Training of the supernet.
    pub train: TrainConfig,
}

/// Content of `space.json` in a run folder without a supernet, whose accuracies were measured elsewhere.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ForeignSpace {
    space: SearchSpace,
    classes: Vec<String>,
}

/// File of [`ForeignSpace`].
pub const FOREIGN_SPACE: &str = "space.json";

/// Source of the images, and how they are split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// A folder (ImageFolder, tar or Parquet shards, CIFAR binary, IDX), a pattern of shards, or `builtin`; empty in a
    /// run that was imported without images.
    pub source: String,
    /// Images carved from training for validation; 5000, but at most a fifth, if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<usize>,
    /// Seed of the validation split and of the built-in data.
    pub seed: u64,
    /// Skip unreadable images with a count instead of failing.
    pub skip_bad: bool,
    /// MiB of decoded images that are held in memory; a larger data set is read from its files for each batch (default:
    /// 4096, or half of the free memory if that is less).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_mib: Option<usize>,
    /// Training images of the built-in data.
    pub builtin_train: usize,
    /// Test images of the built-in data.
    pub builtin_test: usize,
    /// Mean and standard deviation of the colours; measured on the training images if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalisation: Option<Normalisation>,
}

impl Default for DataConfig {
    fn default() -> Self {
        let options = DataOptions::default();
        DataConfig {
            source: "builtin".into(),
            validation: options.validation,
            seed: options.seed,
            skip_bad: options.skip_bad,
            cache_mib: None,
            builtin_train: options.builtin_train,
            builtin_test: options.builtin_test,
            normalisation: None,
        }
    }
}

impl DataConfig {
    /// Bytes of decoded images to hold in memory.
    fn cache_bytes(&self) -> usize {
        match self.cache_mib {
            Some(mib) => mib.saturating_mul(1 << 20),
            None => {
                let half = memory::available().map_or(usize::MAX, |free| (free / 2) as usize);
                DataOptions::default().cache_bytes.min(half)
            }
        }
    }

    /// Checks every value, without looking for images.
    fn validate(&self) -> Result<()> {
        for (key, value, most) in [
            ("validation", self.validation.unwrap_or(0), 1_000_000_000),
            ("builtin_train", self.builtin_train, 1_000_000),
            ("builtin_test", self.builtin_test, 1_000_000),
        ] {
            if value > most {
                bail!("[data] {key} = {value} must be at most {most}");
            }
        }
        if let Some(normalisation) = &self.normalisation {
            normalisation.check()?;
        }
        Ok(())
    }

    /// Opens all splits of the dataset, as [`DataConfig::open_splits`] does.
    pub fn open(&self) -> Result<Dataset> {
        self.open_splits(Splits::All)
    }

    /// Opens splits of the dataset with a progress bar and prints a summary. A signal interrupts the reading.
    pub fn open_splits(&self, splits: Splits) -> Result<Dataset> {
        if self.source.is_empty() {
            bail!("[data] source is empty (the run was imported without images); name a folder of images with --data");
        }
        let options = DataOptions {
            cache_bytes: self.cache_bytes(),
            validation: self.validation,
            seed: self.seed,
            skip_bad: self.skip_bad,
            normalisation: self.normalisation.clone(),
            builtin_train: self.builtin_train,
            builtin_test: self.builtin_test,
        };
        let bar = Bar::new("reading images", 0, "images");
        let data = Dataset::open_splits(&self.source, &options, splits, &|progress: OpenProgress| {
            // Drawing every count would take longer than some of the counted work.
            if progress.done.is_multiple_of(64) {
                bar.advance(progress.done, progress.total, [progress.work.to_string()]);
            }
            interrupt::control()
        });
        drop(bar);
        let data = data?;
        data.notes.iter().for_each(terminal::note);
        let streamed = if data.train.in_memory() { "" } else { " (read from files for each batch)" };
        let skipped = if data.skipped > 0 { format!(", {} skipped", data.skipped) } else { String::new() };
        let trained_on = match splits {
            Splits::All => format!("{} training, {} validation, ", data.train.len(), data.validation.len()),
            Splits::Test => String::new(),
        };
        terminal::note(format!(
            "data '{}': {} classes, {trained_on}{} test images{skipped}{streamed}",
            data.name,
            data.classes.len(),
            data.test.len()
        ));
        Ok(data)
    }
}

impl RunConfig {
    /// Text of the configuration file. A relative path of images becomes absolute, since later commands may start in
    /// another folder.
    pub fn to_toml(&self) -> Result<String> {
        let mut config = self.clone();
        config.data.source = absolute(&config.data.source);
        config.from = config.from.as_deref().map(absolute);
        toml::to_string(&config).context("the configuration has no TOML form")
    }

    /// Reads and checks a configuration file.
    pub fn read(path: &Path) -> Result<Self> {
        let config: RunConfig = read_toml(path)?;
        config.space.validate().map_err(|e| e.at(path))?;
        config.train.validate(&config.space).map_err(|e| e.at(path))?;
        config.data.validate().with_context(|| path.display().to_string())?;
        Ok(config)
    }
}

/// Command line as typed, shown to whoever finds the folder locked.
fn command_line() -> String {
    let words = std::env::args_os().skip(1).map(|word| shell::quote(&word.to_string_lossy()));
    [String::from("ofa")].into_iter().chain(words).collect::<Vec<_>>().join(" ")
}

/// A run folder.
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// The folder at `path`, which need not exist yet.
    pub fn new(path: &Path) -> Self {
        RunFolder { path: path.to_path_buf() }
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Locks the folder for a command that changes what others read, for as long as the result lives.
    pub fn lock(&self) -> Result<Lock> {
        self.take(Sharing::Alone)
    }

    /// Locks the folder together with other readers, for a command that reads it and adds files of its own. Fails if
    /// the folder is not a run folder.
    pub fn lock_shared(&self) -> Result<Lock> {
        self.config()?;
        self.take(Sharing::Shared)
    }

    /// Locks the folder together with other readers, for a command that adds device profiles to any folder.
    pub fn lock_for_devices(&self) -> Result<Lock> {
        self.take(Sharing::Shared)
    }

    /// Takes the lock and removes temporary files of killed commands. A shared lock suffices: a temporary file in use
    /// is locked by its writer.
    fn take(&self, sharing: Sharing) -> Result<Lock> {
        let lock = Lock::take(&self.path, sharing, &command_line())?;
        let models = subfolders(&self.join("models"));
        let own = ["", "checkpoints", "predictor", "devices", "search", "models"].map(|name| self.join(name));
        own.iter().chain(&models).for_each(|folder| remove_all_abandoned(folder));
        Ok(lock)
    }

    /// Locks the folder for a command that writes nothing; a read-only folder will do. Fails if the folder is not a run
    /// folder.
    pub fn lock_to_read(&self) -> Result<Option<Lock>> {
        self.config()?;
        Ok(Lock::take_to_read(&self.path)?)
    }

    /// Path of a file or folder in the run folder.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes `config.toml`.
    pub fn write_config(&self, config: &RunConfig) -> Result<()> {
        Ok(write_atomic(&self.join("config.toml"), config.to_toml()?.as_bytes())?)
    }

    /// Reads `config.toml`.
    pub fn config(&self) -> Result<RunConfig> {
        let path = self.join("config.toml");
        if self.path.exists() && !self.path.is_dir() {
            bail!("{}: expected a run folder, but this is a file", self.path.display());
        }
        if !path.exists() {
            bail!(
                "{}: not found, so this is not a run folder; make one with `ofa train --out {}`",
                path.display(),
                shell::path(&self.path)
            );
        }
        RunConfig::read(&path)
    }

    /// Changes the source of the images in `config.toml`.
    pub fn move_source(&self, source: &str) -> Result<()> {
        let mut config = self.config()?;
        if absolute(&config.data.source) == absolute(source) {
            return Ok(());
        }
        config.data.source = source.to_string();
        self.write_config(&config)
    }

    /// Fails if the source of images in `config.toml` does not exist.
    pub fn check_source(&self, config: &DataConfig) -> Result<()> {
        let source = &config.source;
        if source.is_empty() || source == BUILTIN || is_pattern(source) || Path::new(source).exists() {
            return Ok(());
        }
        bail!(
            "{}: [data] source = '{source}' does not exist; if the images have moved, name their folder with --data",
            self.join("config.toml").display()
        )
    }

    /// Opens the run's data, or another source of the same classes, normalised as in the supernet's training. If
    /// validation images were training images of the supernet, the validation split becomes empty, with a note.
    /// `skip_bad` adds to the run's setting.
    pub fn data(&self, source: Option<&str>, skip_bad: bool) -> Result<Dataset> {
        let mut config = self.config()?.data;
        config.skip_bad |= skip_bad;
        match source {
            Some(source) => config.source = data_flag(source)?,
            None => self.check_source(&config)?,
        }
        let supernet = read_supernet_note(&self.supernet_path()?)?;
        let Some(trained_on) = &supernet.trained_on else {
            // An imported supernet was not trained here.
            if supernet.steps > 0 {
                terminal::warning(format!(
                    "{}: this supernet of an earlier version, which drew other validation splits, does not record its training \
                     images, so accuracies may be those of training images; name images with an unseen split val/CLASS, or train again",
                    self.supernet_path()?.display()
                ));
            }
            return config.open();
        };
        config.normalisation = Some(trained_on.normalisation.clone());
        let mut data = config.open()?;
        // The run's own validation images were compared with those of its starting weights when it began.
        let seen = match trained_on.digest == data.digest() {
            true => 0,
            false => TrainedOn::largest_contamination([trained_on].into_iter().chain(&supernet.earlier), &data)?,
        };
        if seen > 0 {
            terminal::note(format!(
                "about {seen} of the {} validation images of '{}' are training images of the supernet, so none of them is used; for \
                 validation accuracies name images with an unseen split val/CLASS",
                data.validation.len(),
                data.name
            ));
            data.validation = Split::empty();
        }
        Ok(data)
    }

    /// Makes a run folder of `space` without a supernet, for accuracies that were measured elsewhere; the same folder
    /// may be there already, and keeps its number of classes.
    pub fn create_foreign(&self, space: &SearchSpace, classes: Option<usize>) -> Result<()> {
        let data = DataConfig { source: String::new(), ..DataConfig::default() };
        let config =
            RunConfig { from: None, data, space: space.clone(), train: TrainConfig::preset("imagenet", space)? };
        let there = self.join("config.toml").exists();
        if there && !(self.join(FOREIGN_SPACE).exists() && self.config()?.space == *space) {
            bail!("{}: already holds another run; name another folder with --out", self.path.display());
        }
        let known = if there { Some(self.space()?.1.len()) } else { None };
        if let (Some(known), Some(classes)) = (known, classes.filter(|classes| known.is_some_and(|k| k != *classes))) {
            bail!("{}: its networks have {known} classes, not {classes}", self.path.display());
        }
        let classes = class_names::numbered_classes(known.or(classes).unwrap_or(CLASSES));
        write_json(&self.join(FOREIGN_SPACE), &ForeignSpace { space: space.clone(), classes })?;
        self.write_config(&config)
    }

    /// The run's space and class names: those of the supernet, or of accuracies measured elsewhere.
    pub fn space(&self) -> Result<(SearchSpace, Vec<String>)> {
        let foreign = self.join(FOREIGN_SPACE);
        if !Folder::of_run(&self.path, 1).supernet_path().exists() && foreign.exists() {
            let ForeignSpace { space, classes } = read_json(&foreign)?;
            space.validate().map_err(|e| e.at(&foreign))?;
            return Ok((space, classes));
        }
        let (_, note) = read_supernet(&self.supernet_path()?)?;
        Ok((note.space, note.classes))
    }

    /// Whether the run has no supernet: its accuracies were measured elsewhere.
    pub fn is_foreign(&self) -> bool {
        self.join(FOREIGN_SPACE).exists()
    }

    /// Checksum of the supernet's weights, recorded in all files that are made with them.
    pub fn weights_checksum(&self) -> Result<String> {
        Ok(supernet_checksum(&self.supernet_path()?)?)
    }

    fn supernet_path(&self) -> Result<PathBuf> {
        let path = Folder::of_run(&self.path, 1).supernet_path();
        if !path.exists() && self.join(FOREIGN_SPACE).exists() {
            bail!(
                "{}: this run has accuracies that were measured elsewhere, and no supernet to measure or to extract from",
                self.path.display()
            );
        }
        if !path.exists() {
            bail!(
                "{}: the supernet is not trained yet; finish it with `ofa train --out {} --resume`",
                path.display(),
                shell::path(&self.path)
            );
        }
        Ok(path)
    }

    /// The trained supernet with its class names.
    pub fn supernet(&self) -> Result<(Supernet, Vec<String>)> {
        let path = self.supernet_path()?;
        let (state, note) = read_supernet(&path)?;
        // Weights that are missing would be asked for before they are missed.
        let largest = note.space.network(&note.space.largest(), note.classes.len())?;
        let held: u64 = state.values().map(|tensor| tensor.elem_count() as u64).sum();
        if Graph::of(&largest).stored_numbers() > held.saturating_mul(2) {
            bail!("{}: holds {held} numbers, fewer than its space '{}' has", path.display(), note.space.name);
        }
        let net = Supernet::new(&note.space, note.classes.len(), 0)?;
        net.load_state(&state).map_err(|e| e.at(&path))?;
        Ok((net, note.classes))
    }

    /// `data` with its classes in the order of the supernet's classes `known`.
    pub fn in_class_order(&self, known: &[String], data: &Dataset) -> Result<Dataset> {
        class_names::in_order_of(known, data, &format!("{}: the supernet", self.path.display()))
    }

    /// Loads the device profiles. An unreadable profile is an error if `constraints` name it; otherwise it is skipped
    /// with a note.
    pub fn devices<'c>(&self, constraints: impl Iterator<Item = &'c Constraint>) -> Result<Vec<DeviceProfile>> {
        let needed: Vec<&str> =
            constraints.filter(|c| c.metric == Metric::Latency).map(|c| c.device.as_str()).collect();
        let mut profiles = Vec::new();
        for path in self.json_files("devices")? {
            match DeviceProfile::load(&path) {
                Ok(profile) if path.file_stem().is_none_or(|stem| stem != profile.name.as_str()) => {
                    terminal::warning(format!(
                        "skipped {}: the profile in it is named '{}', expected the name of the file",
                        path.display(),
                        profile.name
                    ));
                }
                Ok(profile) => profiles.push(profile),
                Err(error) if path.file_stem().is_some_and(|name| needed.iter().any(|device| name == *device)) => {
                    return Err(error.into());
                }
                Err(error) => terminal::warning(format!("skipped a device profile: {error}")),
            }
        }
        Ok(profiles)
    }

    /// JSON files of the subfolder `name`, in order.
    pub fn json_files(&self, name: &str) -> Result<Vec<PathBuf>> {
        let mut paths = list_folder(&self.join(name))?;
        paths.retain(|path| path.extension().is_some_and(|e| e == "json"));
        Ok(paths)
    }
}

/// Classes of networks whose accuracies were measured elsewhere, unless their number is given.
const CLASSES: usize = 1000;

/// Source name of the built-in images.
const BUILTIN: &str = "builtin";

/// A folder of images, from any folder that a command is started in.
pub fn absolute(source: &str) -> String {
    if source.is_empty() || source == BUILTIN {
        return source.to_string();
    }
    let path = std::path::absolute(source).ok();
    path.and_then(|path| path.to_str().map(String::from)).unwrap_or_else(|| source.to_string())
}

/// Checks the value of `--data`.
pub fn data_flag(source: &str) -> Result<String> {
    if source.is_empty() {
        bail!("--data is empty; expected a folder of images, or `builtin`");
    }
    Ok(source.to_string())
}

/// Subfolders of `folder`; none if it cannot be read.
pub fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}
