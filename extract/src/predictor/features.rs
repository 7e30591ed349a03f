//! A subnet as the predictor's input: one-hot, so that no choice is assumed to be "more" than another (paper §3.4).
//!
//! The vector is, for each block slot (all blocks of all stages at their largest depth), a one-hot of the kernel size and a one-hot of the expand
//! ratio (all zeros when the slot is inactive), then a one-hot of the resolution. Only the positions of its ones are kept.

use crate::Result;
use ofa_supernet::{SearchSpace, Subnet};

/// Number of features of `space`.
pub fn feature_count(space: &SearchSpace) -> usize {
    space.slots() * slot_width(space) + space.resolutions.len()
}

/// Positions of the ones in the feature vector of `subnet`, ascending; each is below [`feature_count`].
///
/// # Errors
/// A subnet outside `space`.
pub fn active_features(space: &SearchSpace, subnet: &Subnet) -> Result<Vec<usize>> {
    space.check(subnet)?;
    let mut active = Vec::with_capacity(2 * space.slots() + 1);
    for (stage, blocks) in subnet.stages.iter().enumerate() {
        for (index, block) in blocks.iter().enumerate() {
            let start = space.slot(stage, index) * slot_width(space);
            active.push(start + position(&space.kernel_sizes, &block.kernel));
            active.push(start + space.kernel_sizes.len() + position(&space.expand_ratios, &block.expand));
        }
    }
    active.push(space.slots() * slot_width(space) + position(&space.resolutions, &subnet.resolution));
    Ok(active)
}

fn slot_width(space: &SearchSpace) -> usize {
    space.kernel_sizes.len() + space.expand_ratios.len()
}

fn position<T: PartialEq>(choices: &[T], value: &T) -> usize {
    choices.iter().position(|c| c == value).expect("checked: the subnet lies in the space")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_of_a_known_subnet() {
        // tiny: resolutions 16,24,32; kernels 3,5; expand 2,3,4; depth up to 2; two stages. A slot has 5 features.
        let space = SearchSpace::named("tiny").unwrap();
        assert_eq!(feature_count(&space), 4 * 5 + 3);
        let subnet = "r24 d1,2 k5|3,5 e2|4,3".parse().unwrap();
        assert_eq!(active_features(&space, &subnet).unwrap(), [1, 2, 10, 14, 16, 18, 21]);
        let outside = "r20 d1,1 k3|3 e2|2".parse().unwrap();
        assert!(active_features(&space, &outside).unwrap_err().to_string().contains("allowed are 16, 24, 32"));
    }
}
