//! The folder of an extracted model: `config.json` (everything needed to rebuild the model and prepare its input) and
//! `model.safetensors`, whose tensors have timm's names ([`tensor_shapes`]).
//!
//! Beside them are, for others than this program: `load.py` and `graph.json`, from which it builds torch modules, and
//! the model card `README.md`. Other commands add `model.onnx` and `bench.json`; [`save`] removes these when the model
//! changes.
//!
//! | file | concern |
//! | --- | --- |
//! | `files` | the files of a folder |
//! | `config`, `facts`, `validate` | `config.json`, what a rebuild needs beside the layers, checks of the layers |
//! | `tensors`, `int8` | weights, and those of int8 models |
//! | `graph_file`, `card` | `graph.json`, and the model card |
//! | `published` | static networks that others published |

mod card;
mod config;
mod facts;
mod files;
mod graph_file;
mod int8;
mod published;
mod tensors;
mod validate;

pub use card::{DeviceFigures, cell};
pub use config::{FORMAT, Finetuned, ModelConfig, NumberType, Provenance, Quantisation, VERSION};
pub use facts::{
    Architecture, Colours, GateFunction, InnerActivation, Input, InputCrop, Padding, Resize, SqueezeExcite,
};
pub use files::{
    BENCH_FILE, CALIBRATION_FILE, CARD_FILE, CONFIG_FILE, FILES, FileRole, GRAPH_FILE, LOADER_FILE, ONNX_FILE,
    WEIGHTS_FILE, file_role,
};
pub(crate) use int8::read_quantised;
pub use int8::{load_quantised, save_quantised};
pub use ofa_supernet::data::Normalisation;
pub use published::PublishedNetwork;
pub use validate::validate;

use crate::Result;
use crate::runtime::{StaticNetwork, Weights, check_weights};
use ofa_supernet::data::{content_input, image_input, pixels_input};
use ofa_supernet::files::{
    is_temporary, make_folder, read_bytes, read_json, read_text, remove_all_abandoned, remove_file, to_json,
    write_all_atomic, write_atomic,
};
use ofa_supernet::graph::Graph;
use ofa_supernet::lock::{self, Sharing};
use ofa_supernet::space::NetworkSpec;
use std::fs;
use std::path::{Path, PathBuf};

/// Content of [`LOADER_FILE`].
const LOADER: &str = include_str!("load.py");

/// Every tensor of the network's model file with its shape: timm's names, PyTorch's layouts
/// ([`Graph::tensor_shapes`]).
pub fn tensor_shapes(network: &NetworkSpec) -> Vec<(String, Vec<usize>)> {
    Graph::of(network).tensor_shapes()
}

/// An extracted model, loaded and ready to run: f32 or int8, as its folder is.
///
/// ```
/// use ofa_evaluate::{Model, runtime};
/// use std::path::Path;
///
/// /// The most probable class of an image, and its probability.
/// fn classify(model: &mut Model, image: &Path) -> ofa_evaluate::Result<(String, f64)> {
///     let input = model.read_image(image)?;
///     let probabilities = runtime::softmax(model.network().run(&input, 1)?);
///     let class = (0..probabilities.len()).max_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b])).unwrap();
///     Ok((model.config().labels[class].clone(), probabilities[class]))
/// }
/// # use ofa_evaluate::model::{ModelConfig, Normalisation, NumberType, save};
/// # let temporary = tempfile::tempdir()?;
/// # let (folder, image) = (temporary.path().join("model"), temporary.path().join("cat.png"));
/// # let space = ofa_supernet::SearchSpace::named("tiny")?;
/// # let network = space.network(&space.smallest(), 2)?;
/// # let weights = runtime::random_weights(&network, 0)?;
/// # let labels = vec!["cat".into(), "dog".into()];
/// # let normalisation = Normalisation::IMAGENET;
/// # let config = ModelConfig::new("tiny", &space.smallest(), network, labels, normalisation, NumberType::F32);
/// # save(&folder, &config, &weights)?;
/// # image::RgbImage::new(40, 30).save(&image)?;
///
/// let mut model = Model::load(&folder)?;
/// let (class, probability) = classify(&mut model, &image)?;
/// println!("{class} {probability:.3}");
/// # assert!(["cat", "dog"].contains(&class.as_str()) && (0.5..=1.0).contains(&probability));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Model {
    config: ModelConfig,
    network: StaticNetwork,
    folder: PathBuf,
    file_bytes: u64,
}

impl Model {
    /// Loads a folder that [`save`] (or `ofa extract`) wrote.
    ///
    /// # Errors
    /// A missing file, an invalid configuration or header, or tensors that do not fit the network; each with the file's
    /// path.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let _lock = lock::wait(folder, Sharing::Shared);
        let path = folder.join(WEIGHTS_FILE);
        let (config, network) = if load_config(folder)?.dtype == NumberType::Int8 {
            let (config, network) = read_quantised(folder)?;
            (config, StaticNetwork::quantised(&network))
        } else {
            let (config, weights) = read_weights(folder)?;
            let network = StaticNetwork::new(&config.network, &weights);
            (config, network)
        };
        let network = network.map_err(|e| e.at(&path))?;
        let file_bytes = fs::metadata(&path).map_err(|e| ofa_supernet::Error::file(&path, e))?.len();
        Ok(Model { config, network, folder: folder.to_path_buf(), file_bytes })
    }

    /// The content of `config.json`.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// An image file as input of the network, exactly as benchmark and prediction read it.
    ///
    /// # Errors
    /// The file is missing, or no complete JPEG or PNG image; with the path.
    pub fn read_image(&self, path: impl AsRef<Path>) -> Result<Vec<f32>> {
        Ok(image_input(path.as_ref(), self.network.spec().resolution, &self.config.normalisation)?)
    }

    /// The content of a JPEG or PNG file as input of the network, as [`read_image`](Self::read_image) reads a file.
    ///
    /// # Errors
    /// No complete JPEG or PNG image.
    pub fn read_bytes(&self, content: &[u8]) -> Result<Vec<f32>> {
        Ok(content_input(content, self.network.spec().resolution, &self.config.normalisation)?)
    }

    /// RGB pixels `[height, width, 3]` as input of the network, as [`read_image`](Self::read_image) reads those of a
    /// file.
    ///
    /// # Errors
    /// A number of bytes that is not that of the image, or an impossible size.
    pub fn read_pixels(&self, pixels: &[u8], width: usize, height: usize) -> Result<Vec<f32>> {
        let resolution = self.network.spec().resolution;
        Ok(pixels_input(pixels, width, height, resolution, &self.config.normalisation)?)
    }

    /// The network, ready to run.
    pub fn network(&mut self) -> &mut StaticNetwork {
        &mut self.network
    }

    /// Bytes of activations of one image while it runs: [`StaticNetwork::buffer_bytes`].
    pub fn buffer_bytes(&self) -> u64 {
        self.network.buffer_bytes()
    }

    /// The folder that the model was loaded from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Size of `model.safetensors` in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }
}

/// Reads the configuration of a model's folder, without its weights.
///
/// # Errors
/// A missing file or an invalid configuration; each with the file's path.
pub fn load_config(folder: &Path) -> Result<ModelConfig> {
    let path = folder.join(CONFIG_FILE);
    let config: ModelConfig = read_json(&path)?;
    config.validate().map_err(|message| ofa_supernet::Error::format(&path, message))?;
    Ok(config)
}

/// Reads configuration and weights of a model's folder, to change or convert them. Weights become f32, whatever number
/// type they are stored in, and are checked against the network.
///
/// # Errors
/// As for [`Model::load`].
pub fn load_weights(folder: &Path) -> Result<(ModelConfig, Weights)> {
    // The lock keeps writers from replacing one of the two files between the reads.
    let _lock = lock::wait(folder, Sharing::Shared);
    read_weights(folder)
}

/// [`load_weights`] for callers that hold the folder's lock.
pub(crate) fn read_weights(folder: &Path) -> Result<(ModelConfig, Weights)> {
    let config = load_config(folder)?;
    let path = folder.join(WEIGHTS_FILE);
    let bytes = read_bytes(&path)?;
    let weights =
        tensors::decode(&bytes, &config.network, config.dtype).map_err(|m| ofa_supernet::Error::format(&path, m))?;
    check_weights(&config.network, &weights).map_err(|e| e.at(&path))?;
    Ok((config, weights))
}

/// Writes a model's folder: the weights, converted to `config.dtype`, the configuration, and the files for others.
/// Files that were derived from another model in the folder are removed first. Those of equal weights stay, whichever
/// run and version of the program wrote them, and so do the figures of the model card.
///
/// At every moment the configuration belongs to the weights, or is missing, which loading reports. If several processes
/// write one folder, both files are from the last of them.
///
/// # Errors
/// An invalid configuration or invalid weights, or errors of the operating system. If writing fails, the model is
/// unchanged, without the files that were derived from it; if renaming fails, the configuration is missing.
pub fn save(folder: &Path, config: &ModelConfig, weights: &Weights) -> Result<()> {
    check_weights(&config.network, weights)?;
    let path = folder.join(WEIGHTS_FILE);
    let bytes = tensors::encode(weights, config.dtype).map_err(|m| ofa_supernet::Error::format(&path, m))?;
    write(folder, config, &bytes)
}

/// Writes a model's folder as [`save`] does, with `bytes` as its weights.
fn write(folder: &Path, config: &ModelConfig, bytes: &[u8]) -> Result<()> {
    let [config_path, path] = [CONFIG_FILE, WEIGHTS_FILE].map(|name| folder.join(name));
    config.validate().map_err(|message| ofa_supernet::Error::format(&config_path, message))?;
    let text = to_json(&config_path, config)?;
    make_folder(folder)?;
    let _lock = lock::wait(folder, Sharing::Alone);
    remove_all_abandoned(folder);
    let [graph_path, loader_path, card_path] = [GRAPH_FILE, LOADER_FILE, CARD_FILE].map(|name| folder.join(name));
    let graph = graph_file::text(config);
    let mut written: Vec<(&Path, &[u8])> =
        vec![(&path, bytes), (&graph_path, graph.as_bytes()), (&loader_path, LOADER.as_bytes())];
    let is_same_model = fs::read(&path).is_ok_and(|old| old == bytes)
        && load_config(folder).is_ok_and(|old| old.without_records() == config.without_records());
    let figures = if is_same_model { crate::bench::figures(folder) } else { Vec::new() };
    let card = card::text(read_card(folder)?.as_deref(), &name_of(folder), config, bytes.len(), &figures);
    if !is_same_model {
        let mut derived = FILES.iter().filter(|(_, role)| *role == FileRole::Derived);
        derived.try_for_each(|(name, _)| remove_file(&folder.join(name)))?;
    }
    if let Some(card) = &card {
        written.push((&card_path, card.as_bytes()));
    }
    written.push((&config_path, text.as_bytes()));
    Ok(write_all_atomic(&written)?)
}

/// Writes `figures` into the model card of the folder, whose lock the caller holds.
pub(crate) fn write_figures(folder: &Path, figures: &[DeviceFigures]) -> Result<()> {
    let config = load_config(folder)?;
    let path = folder.join(WEIGHTS_FILE);
    let bytes = fs::metadata(&path).map_err(|e| ofa_supernet::Error::file(&path, e))?.len() as usize;
    let card_path = folder.join(CARD_FILE);
    match card::text(read_card(folder)?.as_deref(), &name_of(folder), &config, bytes, figures) {
        Some(card) => Ok(write_atomic(&card_path, card.as_bytes())?),
        None => Ok(()),
    }
}

/// The model card that is in the folder.
fn read_card(folder: &Path) -> Result<Option<String>> {
    let path = folder.join(CARD_FILE);
    Ok(if path.exists() { Some(read_text(&path)?) } else { None })
}

/// Name of a model: its folder's.
fn name_of(folder: &Path) -> String {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    folder.file_name().map_or("model".into(), |name| name.to_string_lossy().into_owned())
}

/// Whether `folder` holds nothing but leftovers of a killed [`save`] into a new folder.
pub fn is_unfinished(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    let names: Vec<String> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    // Weights without a configuration may be the user's own, unless a configuration was about to follow.
    let written = names.iter().any(|name| is_temporary(name) && name.contains(CONFIG_FILE));
    let is_own = |name: &str| name != CONFIG_FILE && file_role(name) == Some(FileRole::Saved);
    names.iter().all(|name| is_temporary(name) || (is_own(name) && written))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::random_weights;
    use ofa_supernet::space::preset;

    fn example(dtype: NumberType) -> (ModelConfig, Weights) {
        let space = preset("tiny").unwrap();
        let subnet = space.smallest();
        let network = space.network(&subnet, 3).unwrap();
        let weights = random_weights(&network, 5).unwrap();
        let labels = ["cat", "dog", "owl"].map(String::from).to_vec();
        let normalisation = Normalisation { mean: [0.5; 3], std: [0.25; 3] };
        (ModelConfig::new(&space.name, &subnet, network, labels, normalisation, dtype), weights)
    }

    #[test]
    fn a_saved_folder_loads_and_computes_the_same() {
        for (dtype, tolerance) in [(NumberType::F32, 0.0), (NumberType::F16, 0.02), (NumberType::Bf16, 0.2)] {
            let folder = tempfile::tempdir().unwrap();
            let (config, weights) = example(dtype);
            save(folder.path(), &config, &weights).unwrap();
            let mut model = Model::load(folder.path()).unwrap();
            assert_eq!(*model.config(), config);
            assert!(model.file_bytes() > crate::cost::parameters(&config.network) * dtype.bytes() as u64);
            let images = vec![0.5; 16 * 16 * 3];
            let expected = StaticNetwork::new(&config.network, &weights).unwrap().run(&images, 1).unwrap().to_vec();
            let size = expected.iter().fold(0.0f32, |a, &b| a.max(b.abs()));
            for (found, expected) in model.network().run(&images, 1).unwrap().iter().zip(&expected) {
                assert!((found - expected).abs() <= tolerance * size, "{dtype}: {found} {expected}");
            }
        }
    }

    #[test]
    fn two_writers_of_one_folder_leave_the_files_of_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        let write = |dtype| {
            let (config, weights) = example(dtype);
            for _ in 0..40 {
                save(&path, &config, &weights).unwrap();
                Model::load(&path).unwrap();
            }
        };
        std::thread::scope(|scope| {
            let writers = [NumberType::F32, NumberType::F16].map(|dtype| scope.spawn(move || write(dtype)));
            writers.into_iter().for_each(|writer| writer.join().unwrap());
        });
        let mut names: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [CARD_FILE, CONFIG_FILE, GRAPH_FILE, LOADER_FILE, WEIGHTS_FILE]);
    }

    #[test]
    fn what_was_made_of_a_model_stays_as_long_as_its_weights_do() {
        let folder = tempfile::tempdir().unwrap();
        let (config, weights) = example(NumberType::F32);
        let from = |run: &str| ModelConfig {
            provenance: Some(Provenance { run: run.into(), ..Provenance::default() }),
            origin: Some(format!("From {run}.")),
            ..config.clone()
        };
        let derived = FILES.iter().filter(|(_, role)| *role == FileRole::Derived);
        let derived: Vec<PathBuf> = derived.map(|(name, _)| folder.path().join(name)).collect();
        save(folder.path(), &from("here"), &weights).unwrap();
        derived.iter().for_each(|file| fs::write(file, "x").unwrap());
        save(folder.path(), &from("elsewhere"), &weights).unwrap();
        assert!(derived.iter().all(|file| file.exists()));
        assert_eq!(load_config(folder.path()).unwrap(), from("elsewhere"));
        assert!(read_card(folder.path()).unwrap().unwrap().contains("From elsewhere."));
        let others = random_weights(&config.network, 6).unwrap();
        save(folder.path(), &from("elsewhere"), &others).unwrap();
        assert!(derived.iter().all(|file| !file.exists()));
        // With other labels it is another model, too.
        derived.iter().for_each(|file| fs::write(file, "x").unwrap());
        let labels = ["cat", "dog", "emu"].map(String::from).to_vec();
        save(folder.path(), &ModelConfig { labels, ..from("elsewhere") }, &others).unwrap();
        assert!(derived.iter().all(|file| !file.exists()));
    }

    #[test]
    fn what_a_killed_write_left_is_told_from_what_others_put_there() {
        let folder = tempfile::tempdir().unwrap();
        let has = |names: &[&str]| {
            let path = folder.path().join(names.len().to_string());
            fs::create_dir(&path).unwrap();
            names.iter().for_each(|name| fs::write(path.join(name), "x").unwrap());
            let unfinished = is_unfinished(&path);
            fs::remove_dir_all(path).unwrap();
            unfinished
        };
        assert!(
            has(&[]) && has(&[".model.safetensors.7.tmp"]) && has(&[".model.safetensors.7.tmp", ".config.json.7.tmp"])
        );
        assert!(has(&["model.safetensors", ".config.json.7.tmp"]));
        assert!(!has(&["model.safetensors"]) && !has(&["model.safetensors", "config.json"]) && !has(&["notes.txt"]));
        assert!(!is_unfinished(&folder.path().join("absent")));
    }

    #[test]
    fn bad_folders_are_one_sentence_with_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let (config, weights) = example(NumberType::F32);
        let refused = |file: &str, part: &str| {
            let message = Model::load(folder.path()).err().expect(part).to_string();
            assert!(message.contains(file) && message.contains(part) && !message.contains('\n'), "{message}");
        };
        refused(CONFIG_FILE, "No such file");
        save(folder.path(), &config, &weights).unwrap();
        let (config_path, weights_path) = (folder.path().join(CONFIG_FILE), folder.path().join(WEIGHTS_FILE));
        let (text, bytes) = (fs::read_to_string(&config_path).unwrap(), fs::read(&weights_path).unwrap());
        for (old, new, part) in [
            ("\"version\": 1", "\"version\": 9", "version 9"),
            ("ofa-model", "onnx", "'onnx'"),
            ("\"dog\",", "", "2 labels"),
            ("0.25,", "0.0,", "std"),
            ("\"version\": 1", "\"version\": 1, \"colour\": 3", "colour"),
            ("\"middle_channels\": 8", "\"middle_channels\": 99", "middle channels"),
            ("\"f32\"", "\"f64\"", "f64"),
        ] {
            assert!(text.contains(old), "{old}");
            fs::write(&config_path, text.replacen(old, new, 1)).unwrap();
            refused(CONFIG_FILE, part);
        }
        fs::write(&config_path, text.replacen("\"f32\"", "\"f16\"", 1)).unwrap();
        refused(WEIGHTS_FILE, "f16");
        fs::write(&config_path, &text).unwrap();
        for cut in [0, 5, 100, bytes.len() - 1] {
            fs::write(&weights_path, &bytes[..cut]).unwrap();
            refused(WEIGHTS_FILE, "safetensors");
        }
        let mut broken = bytes.clone();
        let end = broken.len();
        broken[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        fs::write(&weights_path, &broken).unwrap();
        refused(WEIGHTS_FILE, "finite");
        fs::remove_file(&weights_path).unwrap();
        refused(WEIGHTS_FILE, "No such file");
    }
}
