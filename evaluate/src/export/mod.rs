//! Extracted models in the file formats of other engines.
//!
//! An exporter is a line of [`FORMATS`]: it turns the configuration and the weights of a model folder into the bytes of
//! one file. Reading, locking and writing are done here.
//!
//! | file | concern |
//! | --- | --- |
//! | `onnx` | ONNX, which most engines read or convert |
//! | `npy` | images for engines that quantise by themselves |

mod onnx;

mod npy;

pub use onnx::{DEFAULT_OPSET, OPSETS};

use crate::model::{self, FileRole, ModelConfig, NumberType};
use crate::quantise::{Engine, QuantisedNetwork};
use crate::runtime::Weights;
use crate::{Error, Result};
use ofa_supernet::files;
use ofa_supernet::lock::{self, Sharing};
use std::path::{Path, PathBuf};

/// A file format.
#[derive(Debug)]
pub struct Format {
    /// Name on the command line.
    pub name: &'static str,
    /// File inside the model's folder; one of the files that [`model::save`] removes when the model changes.
    pub file: &'static str,
    /// Converter from a checked model to the content of the file.
    pub convert: fn(&ModelConfig, &Parameters, &Options) -> Result<Vec<u8>>,
}

/// Numbers of a model.
#[derive(Debug)]
pub enum Parameters {
    /// Tensors of an f32 network.
    F32(Weights),
    /// Integers.
    Int8(QuantisedNetwork),
}

/// Every format.
pub const FORMATS: &[Format] = &[onnx::FORMAT];

/// The format of this name.
pub fn format(name: &str) -> Option<&'static Format> {
    FORMATS.iter().find(|format| format.name == name)
}

/// Settings of an export.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Version of ONNX's operators, one of [`OPSETS`]; [`DEFAULT_OPSET`] if absent. Other formats refuse it.
    pub opset: Option<usize>,
    /// Images per run.
    pub batch: Batch,
    /// Whether probabilities are computed from the logits and returned in their place.
    pub softmax: bool,
    /// Whether the input is an image of bytes `[batch, height, width, 3]`, which the model normalises itself.
    pub preprocessing: bool,
    /// The engine that an int8 model is written for.
    pub engine: Engine,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            opset: None,
            batch: Batch::Fixed(1),
            softmax: false,
            preprocessing: false,
            engine: Engine::OnnxRuntime,
        }
    }
}

/// First extent of input and output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batch {
    /// A number.
    Fixed(usize),
    /// Chosen at each run.
    Dynamic,
}

/// Converts the model in `folder`, and writes it to `out` or to the format's file in the folder. Returns the path and
/// the number of bytes.
///
/// # Errors
/// A folder that is no complete model, options that the format does not have, or a failed write; an old file is then
/// unchanged.
pub fn export(folder: &Path, format: &Format, options: &Options, out: Option<&Path>) -> Result<(PathBuf, usize)> {
    // Held until the file is written, so that no other process replaces the weights in the meantime.
    let _lock = lock::wait(folder, Sharing::Alone);
    let (config, parameters) = match model::load_config(folder)?.dtype {
        NumberType::Int8 => {
            let (config, network) = model::read_quantised(folder)?;
            (config, Parameters::Int8(network))
        }
        _ => {
            let (config, weights) = model::read_weights(folder)?;
            (config, Parameters::F32(weights))
        }
    };
    let bytes = (format.convert)(&config, &parameters, options)?;
    let path = out.map_or_else(|| folder.join(format.file), Path::to_path_buf);
    if is_of_a_model(&path)? {
        return Err(Error::Export(format!("{}: this file is the model itself; name another one", path.display())));
    }
    files::write_atomic(&path, &bytes)?;
    Ok((path, bytes.len()))
}

/// Whether `path` is one of the files that make up the model in its folder, which is made if there is none: only then
/// does the system follow a path such as `new/../config.json`.
fn is_of_a_model(path: &Path) -> Result<bool> {
    let parent = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    if path.file_name().and_then(|name| model::file_role(name.to_str()?)) != Some(FileRole::Saved) {
        return Ok(false);
    }
    files::make_folder(parent)?;
    Ok(parent.join(model::CONFIG_FILE).exists())
}

/// Writes `images` `[count, height, width, 3]` as `[count, 3, height, width]` in NumPy's format beside the exported
/// file, for quantisers of other engines. Returns the path.
///
/// # Errors
/// A folder without a valid configuration, a number of values that is not that of whole images, or a failed write.
pub fn write_calibration(folder: &Path, images: &[f32]) -> Result<PathBuf> {
    let _lock = lock::wait(folder, Sharing::Alone);
    let config = model::load_config(folder)?;
    let path = folder.join(model::CALIBRATION_FILE);
    files::write_atomic(&path, &npy::images(images, config.network.resolution)?)?;
    Ok(path)
}
