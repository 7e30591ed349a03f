//! Published names of the tensors of a supernet.
//!
//! Published checkpoints have two spellings. Both are converted to one *common* form, without the repetitions that the
//! published dynamic layers introduce:
//!
//! | newer | published checkpoints | common |
//! | --- | --- | --- |
//! | `blocks.1.conv.depth_conv.conv.conv.weight` | `blocks.1.mobile_inverted_conv.depth_conv.conv.weight` | `blocks.1.conv.depth_conv.conv.weight` |
//! | `blocks.1.conv.depth_conv.bn.bn.bias` | `blocks.1.mobile_inverted_conv.depth_conv.bn.bias` | `blocks.1.conv.depth_conv.bn.bias` |
//! | `classifier.linear.weight` | `classifier.linear.weight` | `classifier.linear.weight` |
//! | `input_stem.1.conv.conv.conv.weight` | `input_stem.1.conv.conv.weight` | `input_stem.1.residual.conv.weight` |

use crate::SearchSpace;
use crate::space::Family;

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

/// The common name of our tensor `name` in a network of `space`; `None` if published networks have no such tensor.
pub fn published(name: &str, space: &SearchSpace) -> Option<String> {
    let (layer, rest) = name.split_once('.')?;
    let bottlenecks = space.family.has_bottlenecks();
    let attentive = space.family == Family::AttentiveNas;
    match layer {
        "stem" if bottlenecks => {
            let (index, rest) = rest.split_once('.')?;
            dense(&format!("input_stem.{index}{}", if index == "1" { ".residual" } else { "" }), rest)
        }
        "stem" => dense("first_conv", rest),
        "first" => block(0, rest),
        "stages" => {
            let mut parts = rest.splitn(3, '.');
            let (stage, index): (usize, usize) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            let (slot, rest) = (space.slot(stage, index), parts.next()?);
            match rest.strip_prefix("shortcut.") {
                _ if bottlenecks => bottleneck(slot, rest),
                Some(part) if attentive => Some(format!("blocks.{slot}.shortcut.conv.{part}")),
                _ => block(slot + usize::from(!attentive), rest),
            }
        }
        "feature" if attentive => dense("last_conv.final_expand_layer", rest),
        "hidden" if attentive => Some(format!("last_conv.feature_mix_layer.conv.{rest}")),
        // Without a hidden layer, the published name of the last convolution is the mixing layer.
        "feature" if space.head.as_ref().is_some_and(|head| head.hidden_channels.is_none()) => {
            dense("feature_mix_layer", rest)
        }
        "feature" => dense("final_expand_layer", rest),
        "hidden" => Some(format!("feature_mix_layer.conv.{rest}")),
        "classifier" => Some(format!("classifier.linear.{rest}")),
        _ => None,
    }
}

/// Whether a published tensor is a statistic of one subnet, which AttentiveNAS stores beside the supernet's.
pub(super) fn is_subnet_statistic(name: &str, space: &SearchSpace) -> bool {
    space.family == Family::AttentiveNas && name.contains(".bn_tracking.")
}

/// Whether a tensor, by its common name, is the convolution of a shortcut. AttentiveNAS stores one for every block.
pub(super) fn is_shortcut(name: &str, space: &SearchSpace) -> bool {
    let block = name.strip_prefix("blocks.").and_then(|rest| rest.strip_suffix(".shortcut.conv.weight"));
    let number = block.and_then(|number| number.parse::<usize>().ok());
    space.family == Family::AttentiveNas && number.is_some_and(|number| number < space.slots())
}

/// Name of a tensor of a convolution with batch norm.
fn dense(layer: &str, rest: &str) -> Option<String> {
    Some(match rest.strip_prefix("norm.") {
        Some(part) => format!("{layer}.bn.{part}"),
        None => format!("{layer}.conv.{rest}"),
    })
}

/// Name of a tensor of block `number`, counted through the network, where the fixed first block is 0.
fn block(number: usize, rest: &str) -> Option<String> {
    let (layer, part) = rest.split_once('.')?;
    let of = |layer: &str| dense(&format!("blocks.{number}.conv.{layer}"), part);
    match layer {
        "expand" => of("inverted_bottleneck"),
        "depthwise" => match part.strip_prefix("transform_") {
            Some(sizes) => Some(format!("blocks.{number}.conv.depth_conv.conv.{sizes}_matrix")),
            None => of("depth_conv"),
        },
        "squeeze" => Some(format!("blocks.{number}.conv.depth_conv.se.fc.reduce.{part}")),
        "excite" => Some(format!("blocks.{number}.conv.depth_conv.se.fc.expand.{part}")),
        "project" => of("point_linear"),
        _ => None,
    }
}

/// Name of a tensor of bottleneck `number`, counted through the network.
fn bottleneck(number: usize, rest: &str) -> Option<String> {
    let (layer, part) = rest.split_once('.')?;
    let layer = if layer == "shortcut" { "downsample" } else { layer };
    dense(&format!("blocks.{number}.{layer}"), part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_and_ours_meet() {
        let space = SearchSpace::named("mbv3-w1.0").unwrap();
        for (ours, newer, older) in [
            ("stem.weight", "first_conv.conv.weight", "first_conv.conv.weight"),
            ("stem.norm.running_var", "first_conv.bn.running_var", "first_conv.bn.running_var"),
            (
                "first.project.weight",
                "blocks.0.conv.point_linear.conv.weight",
                "blocks.0.mobile_inverted_conv.point_linear.conv.weight",
            ),
            (
                "stages.0.0.expand.norm.weight",
                "blocks.1.conv.inverted_bottleneck.bn.bn.weight",
                "blocks.1.mobile_inverted_conv.inverted_bottleneck.bn.weight",
            ),
            (
                "stages.1.2.depthwise.weight",
                "blocks.7.conv.depth_conv.conv.conv.weight",
                "blocks.7.mobile_inverted_conv.depth_conv.conv.weight",
            ),
            (
                "stages.1.2.depthwise.transform_7to5",
                "blocks.7.conv.depth_conv.conv.7to5_matrix",
                "blocks.7.mobile_inverted_conv.depth_conv.conv.7to5_matrix",
            ),
            (
                "stages.4.3.excite.bias",
                "blocks.20.conv.depth_conv.se.fc.expand.bias",
                "module.blocks.20.mobile_inverted_conv.depth_conv.se.fc.expand.bias",
            ),
            ("feature.norm.bias", "final_expand_layer.bn.bias", "final_expand_layer.bn.bias"),
            ("hidden.weight", "feature_mix_layer.conv.weight", "feature_mix_layer.conv.weight"),
            ("classifier.bias", "classifier.linear.linear.bias", "classifier.linear.bias"),
        ] {
            let expected = published(ours, &space).unwrap();
            assert_eq!((common(newer), common(older)), (expected.clone(), expected), "{ours}");
        }
        let resnet = SearchSpace::named("resnet50d").unwrap();
        for (ours, newer, older) in [
            ("stem.0.weight", "input_stem.0.conv.conv.weight", "input_stem.0.conv.weight"),
            ("stem.1.weight", "input_stem.1.conv.conv.conv.weight", "input_stem.1.conv.conv.weight"),
            ("stem.1.norm.bias", "input_stem.1.conv.bn.bn.bias", "input_stem.1.conv.bn.bias"),
            ("stem.2.norm.running_mean", "input_stem.2.bn.bn.running_mean", "input_stem.2.bn.running_mean"),
            ("stages.2.0.conv2.weight", "blocks.8.conv2.conv.conv.weight", "blocks.8.conv2.conv.weight"),
            ("stages.2.0.shortcut.norm.weight", "blocks.8.downsample.bn.bn.weight", "blocks.8.downsample.bn.weight"),
            ("classifier.weight", "classifier.linear.linear.weight", "classifier.linear.weight"),
        ] {
            let expected = published(ours, &resnet).unwrap();
            assert_eq!((common(newer), common(older)), (expected.clone(), expected), "{ours}");
        }
        let attentive = SearchSpace::named("attentive").unwrap();
        for (ours, theirs) in [
            ("stages.1.0.project.weight", "blocks.2.mobile_inverted_conv.point_linear.conv.conv.weight"),
            ("stages.1.0.shortcut.weight", "blocks.2.shortcut.conv.conv.weight"),
            ("feature.norm.bias", "last_conv.final_expand_layer.bn.bn.bias"),
            ("hidden.weight", "last_conv.feature_mix_layer.conv.conv.weight"),
        ] {
            assert_eq!(common(theirs), published(ours, &attentive).unwrap(), "{ours}");
        }
        assert!(is_shortcut("blocks.1.shortcut.conv.weight", &attentive));
        assert!(!is_shortcut("blocks.37.shortcut.conv.weight", &attentive));
        assert!(!is_shortcut("blocks.1.shortcut.conv.weight", &space));
        assert_eq!(published("other.weight", &space), None);
        let space = SearchSpace::named("proxyless-w1.3").unwrap();
        assert_eq!(published("feature.norm.bias", &space).unwrap(), "feature_mix_layer.bn.bias");
        assert_eq!(
            published("stages.5.0.expand.weight", &space).unwrap(),
            "blocks.21.conv.inverted_bottleneck.conv.weight"
        );
    }
}
