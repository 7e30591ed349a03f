//! Import of the accuracy predictor that the authors of once-for-all published (`acc_predictor.pth`).
//!
//! The published network has our layers (three hidden ones with ReLU), but its input lists the choices in another
//! order: the kernel sizes of all block slots, then the expand ratios of all slots, then eight resolutions, 112 to 224
//! in steps of 16. The first layer is linear in a one-hot input, so importing only reorders the rows of its weight
//! ([`features`](super::features)).

use super::ensemble::Ensemble;
use super::features::Features;
use super::mlp::{Layer, Mlp};
use super::{Model, Origin, Predictor};
use crate::{Error, Result};
use ofa_supernet::SearchSpace;
use ofa_supernet::import::CheckpointFile;
use std::path::Path;

/// Kernel sizes of each block slot in the published network's input.
const KERNEL_SIZES: [usize; 3] = [3, 5, 7];
/// Expand ratios of each block slot in the published network's input.
const EXPAND_RATIOS: [f64; 3] = [3.0, 4.0, 6.0];
/// Resolutions in the published network's input.
const RESOLUTIONS: [usize; 8] = [112, 128, 144, 160, 176, 192, 208, 224];
/// Largest accepted width of a hidden layer.
const MAX_HIDDEN: usize = 4096;

impl Predictor {
    /// Reads the published predictor for subnets of `space`. The predictor's space is `space` with only the resolutions
    /// that the predictor knows.
    ///
    /// # Errors
    /// A file that [`CheckpointFile::open`] refuses, a space with other choices than the published MobileNetV3 spaces,
    /// a tensor that is missing, unknown, of another shape or not finite.
    pub fn import(path: &Path, space: &SearchSpace) -> Result<Self> {
        let fail = |message: String| Err(Error::format(path, message));
        space.validate()?;
        let is_known = |stage| {
            let ratios = space.stage_expand_ratios(stage).iter().map(|ratio| ratio.value());
            space.stage_kernel_sizes(stage) == KERNEL_SIZES
                && ratios.eq(EXPAND_RATIOS)
                && space.stage_depths(stage) == [2, 3, 4]
        };
        let known = space.stages.len() == 5 && (0..5).all(is_known);
        let mut narrowed = space.clone();
        narrowed.resolutions.retain(|resolution| RESOLUTIONS.contains(resolution));
        if !known || narrowed.resolutions.is_empty() {
            return fail(format!(
                "the published predictor is for five stages of kernel sizes 3, 5, 7, expand ratios 3, 4, 6 and depths 2, 3, 4 at \
                 resolutions {RESOLUTIONS:?}; the space '{}' differs",
                space.name
            ));
        }
        let mut file = CheckpointFile::open(path)?;
        let (slots, kernels, expands) = (space.slots(), KERNEL_SIZES.len(), EXPAND_RATIOS.len());
        let inputs = slots * (kernels + expands) + RESOLUTIONS.len();
        let hidden = match file.tensors().find(|(name, _)| *name == "0.bias") {
            Some((_, &[hidden])) if (1..=MAX_HIDDEN).contains(&hidden) => hidden,
            Some((_, shape)) => return fail(format!("the tensor '0.bias' has shape {shape:?}, expected [400]")),
            None => return fail("the tensor '0.bias' is missing; is it the published predictor?".into()),
        };
        let widths = [inputs, hidden, hidden, hidden, 1];
        // The layers between these are ReLU.
        let names = ["0", "2", "4", "6"];
        let expected: Vec<(String, Vec<usize>)> = names
            .iter()
            .zip(widths.windows(2))
            .flat_map(|(name, pair)| {
                [(format!("{name}.weight"), vec![pair[1], pair[0]]), (format!("{name}.bias"), vec![pair[1]])]
            })
            .collect();
        if let Some((name, _)) = file.tensors().find(|(name, _)| !expected.iter().any(|(known, _)| known == name)) {
            return fail(format!("the tensor '{name}' is not part of the published predictor"));
        }
        for (name, dims) in &expected {
            match file.tensors().find(|(found, _)| found == name) {
                Some((_, shape)) if shape == dims => {}
                Some((_, shape)) => return fail(format!("the tensor '{name}' has shape {shape:?}, expected {dims:?}")),
                None => return fail(format!("the tensor '{name}' is missing")),
            }
        }
        let mut layer = |index: usize| -> Result<Layer> {
            let (from, to) = (widths[index], widths[index + 1]);
            let weight = file.values(&format!("{}.weight", names[index]))?;
            let weight = (0..from * to).map(|i| weight[i % to * from + i / to]).collect();
            Ok(Layer { weight, bias: file.values(&format!("{}.bias", names[index]))? })
        };
        let (mut first, second, third, last) = (layer(0)?, layer(1)?, layer(2)?, layer(3)?);
        // Row `i` of our weight is row `rows[i]` of the published one.
        let mut rows = Vec::with_capacity(Features::new(&narrowed).count());
        for slot in 0..slots {
            rows.extend((0..kernels).map(|choice| slot * kernels + choice));
            rows.extend((0..expands).map(|choice| slots * kernels + slot * expands + choice));
        }
        let places = RESOLUTIONS.iter().enumerate().filter(|(_, resolution)| narrowed.resolutions.contains(resolution));
        rows.extend(places.map(|(place, _)| slots * (kernels + expands) + place));
        first.weight = rows.iter().flat_map(|row| &first.weight[row * hidden..][..hidden]).copied().collect();
        let no_linear = vec![0.0; rows.len()];
        let members = vec![Mlp::new([first, second, third, last], no_linear)];
        let model = Model::Ensemble(Box::new(Ensemble::new(&narrowed, members, 0.0)));
        Ok(Predictor { origin: Some(Origin::Published), ..Predictor::new(narrowed, model) })
    }
}
