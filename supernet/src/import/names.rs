//! The spellings of published names of tensors.
//!
//! Published checkpoints have two spellings. Both are converted to one *common* form, without the repetitions that the
//! published dynamic layers introduce; [`graph::names`](crate::graph::names) has the names in it:
//!
//! | newer | published checkpoints | common |
//! | --- | --- | --- |
//! | `blocks.1.conv.depth_conv.conv.conv.weight` | `blocks.1.mobile_inverted_conv.depth_conv.conv.weight` | `blocks.1.conv.depth_conv.conv.weight` |
//! | `blocks.1.conv.depth_conv.bn.bn.bias` | `blocks.1.mobile_inverted_conv.depth_conv.bn.bias` | `blocks.1.conv.depth_conv.bn.bias` |
//! | `classifier.linear.weight` | `classifier.linear.weight` | `classifier.linear.weight` |
//! | `input_stem.1.conv.conv.conv.weight` | `input_stem.1.conv.conv.weight` | `input_stem.1.residual.conv.weight` |

use crate::SearchSpace;
use crate::space::Publisher;

/// Converts a name of either spelling to the common form.
pub fn common(name: &str) -> String {
    name.strip_prefix("module.")
        .unwrap_or(name)
        .replace(".mobile_inverted_conv.", ".conv.")
        // Otherwise the residual block's layer would look like a repetition of its convolution.
        .replace("input_stem.1.conv.", "input_stem.1.residual.")
        .replace(".bn.bn.", ".bn.")
        .replace(".conv.conv.weight", ".conv.weight")
        .replace(".linear.linear.", ".linear.")
}

/// Whether a published tensor is a statistic of one subnet, which AttentiveNAS stores beside the supernet's.
pub(super) fn is_subnet_statistic(name: &str, space: &SearchSpace) -> bool {
    match space.family.rules().publisher {
        Publisher::OnceForAll => false,
        Publisher::AttentiveNas => name.contains(".bn_tracking."),
    }
}

/// Whether a tensor, by its common name, is the convolution of a shortcut. AttentiveNAS stores one for every block.
pub(super) fn is_shortcut(name: &str, space: &SearchSpace) -> bool {
    let block = name.strip_prefix("blocks.").and_then(|rest| rest.strip_suffix(".shortcut.conv.weight"));
    let number = block.and_then(|number| number.parse::<usize>().ok());
    match space.family.rules().publisher {
        Publisher::OnceForAll => false,
        Publisher::AttentiveNas => number.is_some_and(|number| number < space.slots()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortcuts_are_those_of_the_blocks_of_attentive_spaces() {
        let [space, attentive] = ["mbv3-w1.0", "attentive"].map(|name| SearchSpace::named(name).unwrap());
        assert!(is_shortcut("blocks.1.shortcut.conv.weight", &attentive));
        assert!(!is_shortcut("blocks.37.shortcut.conv.weight", &attentive));
        assert!(!is_shortcut("blocks.1.shortcut.conv.weight", &space));
    }
}
