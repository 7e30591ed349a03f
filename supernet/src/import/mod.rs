//! Published once-for-all supernets (paper §4; Cai et al. publish them for MobileNetV3 spaces of width 1.0 and 1.2,
//! among others) and AttentiveNAS supernets, read as the state of a [`Supernet`].
//!
//! | file | concern |
//! | --- | --- |
//! | `checkpoint_file` | PyTorch's files and safetensors as named tensors |
//! | `pickle` | the restricted reader of the pickle inside |
//! | `names` | published names of tensors, and ours |
//! | `setting` | subnets in the notation of the published code |
//!
//! Layouts need no change: both sides store a convolution's weight as `[out, in, height, width]` and a kernel transform
//! as `y = W x`.

mod checkpoint_file;
mod names;
mod pickle;
mod setting;

pub use checkpoint_file::CheckpointFile;
pub use names::{common, published};
pub use setting::{Choices, Setting};

use crate::{Error, Result, SearchSpace, Supernet};
use candle_core::{Device, Tensor};
use std::collections::{BTreeMap, HashMap};
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
    let fail = |message: String| Err(Error::format(&path, message));
    // Maps common names to names in the file.
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let mut shapes: HashMap<String, Vec<usize>> = HashMap::new();
    let mut subnet_statistics = 0;
    for (name, shape) in file.tensors() {
        if names::is_subnet_statistic(name, space) {
            subnet_statistics += 1;
            continue;
        }
        if name.ends_with(".num_batches_tracked") {
            continue;
        }
        if let Some(other) = names.insert(names::common(name), name.to_string()) {
            return fail(format!("the tensors '{other}' and '{name}' are one tensor in two spellings"));
        }
        shapes.insert(name.to_string(), shape.to_vec());
    }
    let classes = match names.get("classifier.linear.bias").map(|name| &shapes[name][..]) {
        Some(&[classes]) if (1..=MAX_CLASSES).contains(&classes) => classes,
        Some(shape) => {
            return fail(format!("the tensor 'classifier.linear.bias' has shape {shape:?}, expected [classes]"));
        }
        None => return fail("the tensor 'classifier.linear.bias' is missing; is it a once-for-all supernet?".into()),
    };
    let net = Supernet::new(space, classes, 0)?;
    let mut state = HashMap::new();
    // In the order of the network, so that the first error is about the first layer that differs.
    let mut expected: Vec<(String, Vec<usize>)> =
        net.parameters().iter().map(|p| (p.name.clone(), p.var.dims().to_vec())).collect();
    let listed: std::collections::HashSet<String> = expected.iter().map(|(name, _)| name.clone()).collect();
    let mut statistics: Vec<(String, Vec<usize>)> = net
        .state()?
        .into_iter()
        .filter(|(name, _)| !listed.contains(name))
        .map(|(name, tensor)| (name, tensor.dims().to_vec()))
        .collect();
    statistics.sort();
    expected.append(&mut statistics);
    for (ours, dims) in expected {
        let Some(common) = names::published(&ours, space) else {
            return fail(format!("the published networks have no tensor for '{ours}' of the space '{}'", space.name));
        };
        let Some(theirs) = names.remove(&common) else {
            return fail(format!(
                "the tensor '{common}' is missing (in every known spelling); is the checkpoint of the space '{}'?",
                space.name
            ));
        };
        let shape = &shapes[&theirs];
        // The layer between pool and classifier is a 1x1 convolution in published checkpoints and a matrix here.
        let fits = *shape == dims || (ours == "hidden.weight" && *shape == [&dims[..], &[1, 1]].concat());
        if !fits {
            return fail(format!(
                "the tensor '{theirs}' has shape {shape:?}, expected {dims:?} for the space '{}' with {classes} classes; is the \
                 checkpoint of another width or space (--space)?",
                space.name
            ));
        }
        let values = file.values(&theirs)?;
        if ours.ends_with(".running_var") && values.iter().any(|&v| v < 0.0) {
            return fail(format!("the tensor '{theirs}' holds a negative variance"));
        }
        state.insert(ours, Tensor::from_vec(values, dims, &Device::Cpu)?);
    }
    let mut skipped = Vec::new();
    if subnet_statistics > 0 {
        skipped.push(format!(
            "{subnet_statistics} statistics of single subnets (bn_tracking) were skipped: each subnet's are recalibrated"
        ));
    }
    let listed = names.len();
    names.retain(|name, _| !names::is_shortcut(name, space));
    if names.len() < listed {
        skipped.push(format!(
            "{} convolutions of shortcuts were skipped: no subnet uses them, since both sides always have equal widths",
            listed - names.len()
        ));
    }
    if let Some((_, extra)) = names.pop_first() {
        return fail(format!(
            "the tensor '{extra}' is not part of a supernet of the space '{}'; is the checkpoint of another space (--space)?",
            space.name
        ));
    }
    net.load_state(&state).map_err(|e| e.at(&path))?;
    Ok((net, skipped))
}
