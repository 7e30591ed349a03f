//! A subnet as the predictor's input: one-hot, so that no choice is assumed to be "more" than another (paper §3.4).
//!
//! The vector is, for each block slot (all blocks of all stages at their largest depth), a one-hot of the kernel size and a one-hot of the expand
//! ratio (all zeros when the slot is inactive), then a one-hot of the resolution; for ResNets then one of the number of stem blocks and one
//! of each width multiplier. Only the positions of its ones are kept.

use crate::Result;
use ofa_supernet::{SearchSpace, Subnet};
use std::ops::Range;

/// Number of features of `space`.
pub fn feature_count(space: &SearchSpace) -> usize {
    widths_start(space) + space.width_choices() * space.width_multipliers.len()
}

/// The positions of each one-hot, in order: for each block slot its kernel sizes and its expand ratios, then those that are there once.
pub fn groups(space: &SearchSpace) -> Vec<Range<usize>> {
    let slots = (0..space.slots()).flat_map(|_| [space.kernel_sizes.len(), space.expand_ratios.len()]);
    let widths = (0..space.width_choices()).map(|_| space.width_multipliers.len());
    let lengths = slots.chain([space.resolutions.len(), space.stem.depths.len()]).chain(widths);
    let mut end = 0;
    let group = |length| {
        end += length;
        end - length..end
    };
    lengths.map(group).filter(|group| !group.is_empty()).collect()
}

/// Position of the one-hot of the first width multiplier; those before it are of the stem blocks.
fn widths_start(space: &SearchSpace) -> usize {
    space.slots() * slot_width(space) + space.resolutions.len() + space.stem.depths.len()
}

/// Positions of the ones in the feature vector of `subnet`, ascending; each is below [`feature_count`].
///
/// # Errors
/// A subnet outside `space`.
pub fn active_features(space: &SearchSpace, subnet: &Subnet) -> Result<Vec<usize>> {
    let mut active = Vec::with_capacity(2 * space.slots() + 1);
    push_features(space, subnet, &mut active)?;
    Ok(active)
}

/// Appends those positions to `active`.
///
/// # Errors
/// A subnet outside `space`.
pub fn push_features(space: &SearchSpace, subnet: &Subnet, active: &mut Vec<usize>) -> Result<()> {
    // The search asks about many thousand subnets: the full check only words the error.
    match positions(space, subnet, active) {
        Some(()) => Ok(()),
        None => Ok(space.check(subnet)?),
    }
}

/// `None` if the subnet lies outside the space.
fn positions(space: &SearchSpace, subnet: &Subnet, active: &mut Vec<usize>) -> Option<()> {
    if subnet.stages.len() != space.stages.len() || subnet.widths.len() != space.width_choices() {
        return None;
    }
    for (stage, blocks) in subnet.stages.iter().enumerate() {
        position(space.stage_depths(stage), &blocks.len())?;
        for (index, block) in blocks.iter().enumerate() {
            let start = space.slot(stage, index) * slot_width(space);
            active.push(start + position(&space.kernel_sizes, &block.kernel)?);
            active.push(start + space.kernel_sizes.len() + position(&space.expand_ratios, &block.expand)?);
        }
    }
    let resolutions = space.slots() * slot_width(space);
    active.push(resolutions + position(&space.resolutions, &subnet.resolution)?);
    match &space.stem.depths[..] {
        [] if subnet.stem_blocks == 0 => {}
        depths => active.push(resolutions + space.resolutions.len() + position(depths, &subnet.stem_blocks)?),
    }
    for (place, width) in subnet.widths.iter().enumerate() {
        let start = widths_start(space) + place * space.width_multipliers.len();
        active.push(start + position(&space.width_multipliers, width)?);
    }
    Some(())
}

fn slot_width(space: &SearchSpace) -> usize {
    space.kernel_sizes.len() + space.expand_ratios.len()
}

fn position<T: PartialEq>(choices: &[T], value: &T) -> Option<usize> {
    choices.iter().position(|c| c == value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_of_a_known_subnet() {
        // tiny: resolutions 16,24,32; kernels 3,5; expand 2,3,4; depth up to 2; two stages. A slot has 5 features.
        let space = SearchSpace::named("tiny").unwrap();
        assert_eq!(feature_count(&space), 4 * 5 + 3);
        assert_eq!(groups(&space)[6..], [15..17, 17..20, 20..23]);
        let subnet = "r24 d1,2 k5|3,5 e2|4,3".parse().unwrap();
        assert_eq!(active_features(&space, &subnet).unwrap(), [1, 2, 10, 14, 16, 18, 21]);
        // resnet-tiny: resolutions 24,32; one kernel; expand 0.25,0.5; depth up to 2; two stages; widths 0.5,1 at four places.
        let resnet = SearchSpace::named("resnet-tiny").unwrap();
        assert_eq!(feature_count(&resnet), 4 * 3 + 2 + 2 + 4 * 2);
        assert_eq!(groups(&resnet)[7..], [10..12, 12..14, 14..16, 16..18, 18..20, 20..22, 22..24]);
        let subnet = "r32 w0.5,1,1,0.5 s1 d1,1 e0.25|0.5".parse().unwrap();
        assert_eq!(active_features(&resnet, &subnet).unwrap(), [0, 1, 6, 8, 13, 15, 16, 19, 21, 22]);
        let outside = "r20 d1,1 k3|3 e2|2".parse().unwrap();
        assert!(active_features(&space, &outside).unwrap_err().to_string().contains("allowed are 16, 24, 32"));
    }
}
