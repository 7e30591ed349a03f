//! Published once-for-all supernets (paper §4; Cai et al. publish them for MobileNetV3 spaces of width 1.0 and 1.2,
//! among others) and AttentiveNAS supernets, read as the state of a [`Supernet`].
//!
//! | file | concern |
//! | --- | --- |
//! | `checkpoint_file` | PyTorch's files and safetensors as named tensors |
//! | `pickle` | the restricted reader of the pickle inside |
//! | `names` | spellings of published names of tensors |
//! | `setting` | subnets in the notation of the published code |
//!
//! Layouts need no change: both sides store a convolution's weight as `[out, in, height, width]` and a kernel transform
//! as `y = W x`.

mod checkpoint_file;
mod names;
mod pickle;
mod setting;

pub use crate::graph::names::published;
pub use checkpoint_file::CheckpointFile;
pub use names::common;
pub use setting::{Choices, Setting};

use crate::graph::names::Published;
use crate::{Error, Result, SearchSpace, Supernet};
use candle_core::{Device, Tensor};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

/// Largest number of classes of a checkpoint.
const MAX_CLASSES: usize = 1_000_000;

/// Reads a published checkpoint of a supernet of `space`; the classifier determines the number of classes.
///
/// # Errors
/// Errors of [`CheckpointFile::open`]; a tensor that is missing, unknown, not of the shape that the space requires, or
/// not finite (the first one is named); a negative running variance.
pub fn read_supernet(path: &Path, space: &SearchSpace) -> Result<Supernet> {
    read_supernet_from(&mut CheckpointFile::open(path)?, space).map(|(net, _)| net)
}

/// Reads a published checkpoint, like [`read_supernet`], from an open file, and says what of it no subnet uses.
///
/// # Errors
/// As for [`read_supernet`].
pub fn read_supernet_from(file: &mut CheckpointFile, space: &SearchSpace) -> Result<(Supernet, Vec<String>)> {
    space.validate()?;
    let path = file.path().to_path_buf();
    let at_path = |message: String| Error::format(&path, message);
    let mut tensors = Tensors::of(file, space).map_err(at_path)?;
    let classes = tensors.classes().map_err(at_path)?;
    let net = Supernet::new(space, classes, 0)?;
    let published = Published::of(space)?;
    let mut state = HashMap::new();
    for (own, dims) in tensors_of(&net)? {
        let Some(published) = published.tensor(&own) else {
            let message = format!("the published networks have no tensor for '{own}' of the space '{}'", space.name);
            return Err(at_path(message));
        };
        let theirs = tensors.take(&published, &own, &dims, &net).map_err(at_path)?;
        let values = file.values(&theirs)?;
        if own.ends_with(".running_var") && values.iter().any(|&v| v < 0.0) {
            return Err(at_path(format!("the tensor '{theirs}' holds a negative variance")));
        }
        state.insert(own, Tensor::from_vec(values, dims, &Device::Cpu)?);
    }
    let skipped = tensors.skipped(space).map_err(at_path)?;
    net.load_state(&state).map_err(|e| e.at(&path))?;
    Ok((net, skipped))
}

/// Names and extents of a network's tensors: parameters in its order, so that the first error is about the first layer
/// that differs, then running statistics.
fn tensors_of(net: &Supernet) -> Result<Vec<(String, Vec<usize>)>> {
    let parameters = net.parameters().iter().map(|parameter| (parameter.name.clone(), parameter.var.dims().to_vec()));
    let parameters: Vec<(String, Vec<usize>)> = parameters.collect();
    let listed: HashSet<&String> = parameters.iter().map(|(name, _)| name).collect();
    let others = net.state()?.into_iter().filter(|(name, _)| !listed.contains(name));
    let mut statistics: Vec<_> = others.map(|(name, tensor)| (name, tensor.dims().to_vec())).collect();
    statistics.sort();
    Ok([parameters, statistics].concat())
}

/// The tensors of a published checkpoint that no layer has taken yet.
struct Tensors {
    /// Names in the file by common names.
    names: BTreeMap<String, String>,
    /// Extents by names in the file.
    shapes: HashMap<String, Vec<usize>>,
    /// Number of statistics of single subnets.
    subnet_statistics: usize,
}

impl Tensors {
    fn of(file: &CheckpointFile, space: &SearchSpace) -> std::result::Result<Self, String> {
        let mut tensors = Tensors { names: BTreeMap::new(), shapes: HashMap::new(), subnet_statistics: 0 };
        for (name, shape) in file.tensors().filter(|(name, _)| !name.ends_with(".num_batches_tracked")) {
            if names::is_subnet_statistic(name, space) {
                tensors.subnet_statistics += 1;
                continue;
            }
            if let Some(other) = tensors.names.insert(common(name), name.to_string()) {
                return Err(format!("the tensors '{other}' and '{name}' are one tensor in two spellings"));
            }
            tensors.shapes.insert(name.to_string(), shape.to_vec());
        }
        Ok(tensors)
    }

    /// Number of classes, as the classifier has it.
    fn classes(&self) -> std::result::Result<usize, String> {
        match self.names.get("classifier.linear.bias").map(|name| &self.shapes[name][..]) {
            Some(&[classes]) if (1..=MAX_CLASSES).contains(&classes) => Ok(classes),
            Some(shape) => Err(format!("the tensor 'classifier.linear.bias' has shape {shape:?}, expected [classes]")),
            None => Err("the tensor 'classifier.linear.bias' is missing; is it a once-for-all supernet?".into()),
        }
    }

    /// Takes the tensor of a common name, which must fit our tensor `own`; returns its name in the file.
    fn take(&mut self, common: &str, own: &str, dims: &[usize], net: &Supernet) -> std::result::Result<String, String> {
        let space = &net.space().name;
        let theirs = self.names.remove(common).ok_or_else(|| {
            format!(
                "the tensor '{common}' is missing (in every known spelling); is the checkpoint of the space '{space}'?"
            )
        })?;
        let shape = &self.shapes[&theirs];
        // The layer between pool and classifier is a 1x1 convolution in published checkpoints and a matrix here.
        if *shape == dims || (own == "hidden.weight" && *shape == [dims, &[1, 1]].concat()) {
            return Ok(theirs);
        }
        Err(format!(
            "the tensor '{theirs}' has shape {shape:?}, expected {dims:?} for the space '{space}' with {} classes; is the checkpoint \
             of another width or space (--space)?",
            net.classes()
        ))
    }

    /// Says which of the remaining tensors no subnet uses.
    ///
    /// # Errors
    /// A tensor that is not part of such a supernet.
    fn skipped(mut self, space: &SearchSpace) -> std::result::Result<Vec<String>, String> {
        let mut skipped = Vec::new();
        if self.subnet_statistics > 0 {
            skipped.push(format!(
                "{} statistics of single subnets (bn_tracking) were skipped: each subnet's are recalibrated",
                self.subnet_statistics
            ));
        }
        let remaining = self.names.len();
        self.names.retain(|name, _| !names::is_shortcut(name, space));
        if self.names.len() < remaining {
            skipped.push(format!(
                "{} convolutions of shortcuts were skipped: no subnet uses them, since both sides always have equal widths",
                remaining - self.names.len()
            ));
        }
        match self.names.pop_first() {
            None => Ok(skipped),
            Some((_, extra)) => Err(format!(
                "the tensor '{extra}' is not part of a supernet of the space '{}'; is the checkpoint of another space (--space)?",
                space.name
            )),
        }
    }
}
