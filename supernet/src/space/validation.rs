//! Whether the values of a space are usable.

use super::covering::MOST_COVERING;
use super::{ExpandRatio, Family, SearchSpace};
use crate::graph::{MAX_KERNEL, MAX_SIZE};
use crate::{Error, Result, blocks};

impl SearchSpace {
    /// Checks that every value is usable.
    ///
    /// # Errors
    /// The first impossible value, with what is allowed.
    pub fn validate(&self) -> Result<()> {
        let fail = |message: String| Err(Error::Space(message));
        if !(0.05..=10.0).contains(&self.width_multiplier) {
            return fail(format!("width_multiplier {} is not between 0.05 and 10", self.width_multiplier));
        }
        ascending("resolutions", &self.resolutions, 1, MAX_SIZE)?;
        check_lists("", &self.depths, &self.kernel_sizes, &self.expand_ratios)?;
        if self.stages.is_empty() || self.stages.len() > 64 {
            return fail("stages must hold between 1 and 64 stages".into());
        }
        for stage in 0..self.stages.len() {
            self.validate_stage_lists(stage)?;
        }
        if !(self.batch_norm_epsilon > 0.0 && self.batch_norm_epsilon <= 1.0) {
            return fail(format!("batch_norm_epsilon {} must be above 0 and at most 1", self.batch_norm_epsilon));
        }
        let strides = [self.stem.stride].into_iter().chain(self.stages.iter().map(|s| s.stride));
        if let Some(stride) = strides.into_iter().find(|s| !(1..=2).contains(s)) {
            return fail(format!("stride {stride} is neither 1 nor 2"));
        }
        let head = self.head.iter().flat_map(|h| [Some(h.feature_channels), h.hidden_channels]).flatten();
        if let Some(channels) = [self.stem.channels]
            .into_iter()
            .chain(self.first_block.iter().map(|b| b.channels))
            .chain(head)
            .chain(self.stages.iter().map(|s| s.channels))
            .find(|c| !(1..=65_536).contains(c))
        {
            return fail(format!("a channel count of {channels} is not between 1 and 65536"));
        }
        match self.family {
            Family::ResNetD => self.validate_bottlenecks(),
            Family::MobileNetV3 | Family::ProxylessNas => self.validate_inverted_residuals(),
            Family::AttentiveNas => self.validate_attentive(),
        }?;
        match self.covering_count() {
            0..=MOST_COVERING => Ok(()),
            count => fail(format!(
                "widths, kernel sizes and expand ratios have {count} combinations of values; at most {MOST_COVERING} are \
                 possible"
            )),
        }
    }

    fn validate_stage_lists(&self, stage: usize) -> Result<()> {
        if let Some(kind) = &self.stages[stage].block {
            blocks::find(kind)?;
        }
        let of_stage = format!(" of stage {}", stage + 1);
        let (depths, kernel_sizes) = (self.stage_depths(stage), self.stage_kernel_sizes(stage));
        let expand_ratios = self.stage_expand_ratios(stage);
        check_lists(&of_stage, depths, kernel_sizes, expand_ratios)?;
        for (name, own, of_space) in [
            ("depths", depths.len(), self.depths.len()),
            ("kernel_sizes", kernel_sizes.len(), self.kernel_sizes.len()),
            ("expand_ratios", expand_ratios.len(), self.expand_ratios.len()),
        ] {
            if own > 1 && of_space == 1 {
                return Err(Error::Space(format!(
                    "{name}{of_stage} holds {own} values, the space's {name} one; give that several, since training frees the two together"
                )));
            }
        }
        Ok(())
    }

    /// What only a family of bottlenecks has, and what it lacks.
    fn validate_bottlenecks(&self) -> Result<()> {
        let fail = |message: String| Err(Error::Space(format!("a space of the family resnet_d {message}")));
        ascending("depths of the stem", &self.stem.depths, 0, 1)?;
        not_too_many("width_multipliers", self.width_multipliers.len())?;
        if self.width_multipliers.is_empty() || self.width_multipliers.windows(2).any(|w| w[0] >= w[1]) {
            return fail(
                "needs width_multipliers, a non-empty, strictly ascending list ([1.0] for a fixed width)".into(),
            );
        }
        if self.kernel_sizes.len() != 1 {
            return fail(format!("has one kernel size, but kernel_sizes = {:?}", self.kernel_sizes));
        }
        if self.depths.len() == 1 && self.stem.depths.len() > 1 {
            return fail(
                "with a single depth has a stem of a single depth, since training frees the two together".into(),
            );
        }
        if self.first_block.is_some() || self.head.is_some() {
            return fail("has no first_block and no head; leave them out".into());
        }
        if self.boundaries().any(|(widths, _)| !widths.is_empty()) {
            return fail("has width_multipliers in place of lists of widths".into());
        }
        match self.stages.iter().position(|stage| stage.squeeze_excite) {
            Some(index) => fail(format!("has no squeeze-excite, but stage {} asks for it", index + 1)),
            None => Ok(()),
        }
    }

    /// A family with lists of channels at its boundaries.
    fn validate_attentive(&self) -> Result<()> {
        let fail = |message: &str| Err(Error::Space(format!("a space of the family attentive_nas {message}")));
        if !self.width_multipliers.is_empty() || self.width_multiplier != 1.0 || !self.stem.depths.is_empty() {
            return fail("has lists of channels (widths) in place of width multipliers, and no depths of the stem");
        }
        if self.first_block.is_some() || self.head.as_ref().and_then(|head| head.hidden_channels).is_none() {
            return fail("has no first_block, and a head with a hidden layer");
        }
        let no_expansion = |ratio: &ExpandRatio| ratio.value() == 1.0;
        let mixes = |stage: usize| {
            let ratios = self.stage_expand_ratios(stage);
            ratios.len() > 1 && ratios.iter().any(no_expansion)
        };
        if let Some(stage) = (0..self.stages.len()).find(|&stage| mixes(stage)) {
            return Err(Error::Space(format!(
                "expand_ratios of stage {} hold 1 beside others; a stage without expansion has [1.0] only",
                stage + 1
            )));
        }
        for (boundary, (widths, channels)) in self.boundaries().enumerate() {
            if widths.is_empty() {
                continue;
            }
            ascending(&format!("widths of boundary {}", boundary + 1), widths, 1, 65_536)?;
            if widths.last() != Some(channels) {
                return Err(Error::Space(format!(
                    "widths {widths:?} of boundary {} (stem, stages, head) must end with its channels, {channels}",
                    boundary + 1
                )));
            }
        }
        Ok(())
    }

    fn validate_inverted_residuals(&self) -> Result<()> {
        let fail = |message: &str| Err(Error::Space(format!("a space of inverted residuals {message}")));
        if !self.width_multipliers.is_empty() || !self.stem.depths.is_empty() {
            return fail(
                "has no elastic width_multipliers and no depths of the stem; these belong to the family resnet_d",
            );
        }
        if self.boundaries().any(|(widths, _)| !widths.is_empty()) {
            return fail("has no lists of widths; these belong to the family attentive_nas");
        }
        if self.first_block.is_none() || self.head.is_none() {
            return fail("needs a first_block and a head");
        }
        Ok(())
    }
}

/// Checks the values of blocks; `of` follows the lists' names in messages.
fn check_lists(of: &str, depths: &[usize], kernel_sizes: &[usize], expand_ratios: &[ExpandRatio]) -> Result<()> {
    ascending(&format!("kernel_sizes{of}"), kernel_sizes, 1, MAX_KERNEL)?;
    ascending(&format!("depths{of}"), depths, 1, 64)?;
    if let Some(even) = kernel_sizes.iter().find(|k| *k % 2 == 0) {
        return Err(Error::Space(format!("kernel_sizes{of} holds {even}; kernels must be odd")));
    }
    not_too_many(&format!("expand_ratios{of}"), expand_ratios.len())?;
    if expand_ratios.is_empty() || expand_ratios.windows(2).any(|w| w[0] >= w[1]) {
        return Err(Error::Space(format!("expand_ratios{of} must be a non-empty, strictly ascending list")));
    }
    Ok(())
}

/// Most values of a list: a predictor tells each by a byte.
const MOST_VALUES: usize = 128;

fn not_too_many(name: &str, count: usize) -> Result<()> {
    if count <= MOST_VALUES {
        return Ok(());
    }
    Err(Error::Space(format!("{name} holds {count} values; at most {MOST_VALUES} are possible")))
}

fn ascending(name: &str, list: &[usize], low: usize, high: usize) -> Result<()> {
    not_too_many(name, list.len())?;
    let ordered = list.windows(2).all(|w| w[0] < w[1]);
    if list.is_empty() || !ordered || list.iter().any(|v| !(low..=high).contains(v)) {
        return Err(Error::Space(format!(
            "{name} = {list:?} must be a non-empty, strictly ascending list of numbers between {low} and {high}"
        )));
    }
    Ok(())
}
