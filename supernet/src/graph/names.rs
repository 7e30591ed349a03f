//! Names of tensors: functions from a slot to its name in each of three schemes.
//!
//! A slot has a *role*, the name of its layer inside the part of the network that holds it, and that part a
//! `Location`. Everything that reads or writes tensors by name asks here.
//!
//! | scheme | where | an expand convolution in `mbv3-w1.0` |
//! | --- | --- | --- |
//! | own | checkpoints of supernets | `stages.1.2.expand.weight` |
//! | timm's | model folders, exported models | `blocks.2.2.conv_pw.weight` |
//! | published | checkpoints of once-for-all and AttentiveNAS | `blocks.7.conv.inverted_bottleneck.conv.weight` |
//!
//! Published names are in the common form of the two published spellings ([`common`](crate::import::common)).

use super::{Graph, RegionKind, Slot};
use crate::Result;
use crate::space::{Publisher, SearchSpace};
use std::collections::HashMap;

/// A layer of a block: its role and, without the block's own name, timm's and the published one.
type LayerNames = (&'static str, &'static str, &'static str);

/// Names of the layers that blocks of a kind can have.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BlockNames {
    /// timm's word before the numbers of stage and block, and its number of the first stage.
    timm: (&'static str, usize),
    /// Layers in the order of the slots. A layer that is not listed has its role as timm's name and no published one.
    layers: &'static [LayerNames],
}

pub(crate) static INVERTED_RESIDUAL: BlockNames = BlockNames {
    timm: ("blocks.", 0),
    layers: &[
        ("expand", "conv_pw", "conv.inverted_bottleneck.conv"),
        ("expand.norm", "bn1", "conv.inverted_bottleneck.bn"),
        ("depthwise", "conv_dw", "conv.depth_conv.conv"),
        ("depthwise.norm", "bn2", "conv.depth_conv.bn"),
        ("squeeze", "se.conv_reduce", "conv.depth_conv.se.fc.reduce"),
        ("excite", "se.conv_expand", "conv.depth_conv.se.fc.expand"),
        ("project", "conv_pwl", "conv.point_linear.conv"),
        ("project.norm", "bn3", "conv.point_linear.bn"),
        ("shortcut", "shortcut", "shortcut.conv"),
    ],
};

/// An inverted residual without expand convolution, which timm names otherwise.
pub(crate) static DEPTHWISE_SEPARABLE: BlockNames = BlockNames {
    timm: ("blocks.", 0),
    layers: &[
        ("depthwise", "conv_dw", "conv.depth_conv.conv"),
        ("depthwise.norm", "bn1", "conv.depth_conv.bn"),
        ("squeeze", "se.conv_reduce", "conv.depth_conv.se.fc.reduce"),
        ("excite", "se.conv_expand", "conv.depth_conv.se.fc.expand"),
        ("project", "conv_pw", "conv.point_linear.conv"),
        ("project.norm", "bn2", "conv.point_linear.bn"),
        ("shortcut", "shortcut", "shortcut.conv"),
    ],
};

pub(crate) static BOTTLENECK: BlockNames = BlockNames {
    timm: ("layer", 1),
    layers: &[
        ("conv1", "conv1", "conv1.conv"),
        ("conv1.norm", "bn1", "conv1.bn"),
        ("conv2", "conv2", "conv2.conv"),
        ("conv2.norm", "bn2", "conv2.bn"),
        ("conv3", "conv3", "conv3.conv"),
        ("conv3.norm", "bn3", "conv3.bn"),
        ("shortcut", "downsample.1", "downsample.conv"),
        ("shortcut.norm", "downsample.2", "downsample.bn"),
    ],
};

/// Kinds from outside name their layers themselves.
pub(crate) static CUSTOM: BlockNames = BlockNames { timm: ("blocks.", 0), layers: &[] };

/// Roles of a convolution of the stem, and of its norm.
pub(super) const STEM: (&str, &str) = ("convolution", "norm");
/// Roles of the last convolution, and of its norm.
pub(super) const FEATURE: (&str, &str) = ("feature", "feature.norm");
/// Role of the layer between pool and classifier.
pub(super) const HIDDEN: &str = "hidden";
/// Role of the classifier.
pub(super) const CLASSIFIER: &str = "classifier";

/// The part of a network that holds a slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Location {
    /// A graph that is not a network's: names are roles.
    #[default]
    Alone,
    /// Convolution `index` of a stem of `count`.
    Stem { index: usize, count: usize, residual: bool, before_pool: bool },
    /// A block.
    Block { names: &'static BlockNames, stage: usize, block: usize },
    /// The layers after the last of `stages` stages.
    Head { stages: usize, has_feature: bool, has_hidden: bool },
}

impl Location {
    /// Roles of the layers that may be there.
    fn roles(self) -> Vec<&'static str> {
        match self {
            Location::Alone => Vec::new(),
            Location::Stem { .. } => vec![STEM.0, STEM.1],
            Location::Block { names, .. } => names.layers.iter().map(|(role, ..)| *role).collect(),
            Location::Head { .. } => vec![FEATURE.0, FEATURE.1, HIDDEN, CLASSIFIER],
        }
    }

    fn own(self, role: &str, has_first_block: bool) -> String {
        match self {
            Location::Alone | Location::Head { .. } => role.into(),
            Location::Stem { index, count, residual, .. } => {
                // The optional convolution is the second of three.
                let stem = own_stem(if residual { 1 } else { index.max(2 * usize::from(index + 1 == count)) }, count);
                if role == STEM.1 { format!("{stem}.norm") } else { stem }
            }
            Location::Block { stage, block, .. } => format!("{}.{role}", own_block(stage, block, has_first_block)),
        }
    }

    fn timm(self, role: &str) -> String {
        match self {
            Location::Alone => role.into(),
            Location::Stem { index, count, residual, .. } => {
                let (convolution, norm) = match (count, residual) {
                    (1, _) => ("conv_stem", "bn1"),
                    (count, _) if index + 1 == count => ("conv1.6", "bn1"),
                    (_, true) => ("conv1.3", "conv1.4"),
                    (_, false) => ("conv1.0", "conv1.1"),
                };
                if role == STEM.1 { norm } else { convolution }.into()
            }
            Location::Block { names, stage, block } => {
                let layer = names.layers.iter().find(|(known, ..)| *known == role);
                let (word, first) = names.timm;
                format!("{word}{}.{block}.{}", first + stage, layer.map_or(role, |(_, timm, _)| timm))
            }
            Location::Head { stages, has_feature, has_hidden } => match (role, has_hidden) {
                ("feature", true) => format!("blocks.{stages}.0.conv"),
                ("feature.norm", true) => format!("blocks.{stages}.0.bn1"),
                ("feature", false) | (HIDDEN, _) => "conv_head".into(),
                ("feature.norm", false) => "bn2".into(),
                _ => if has_feature { "classifier" } else { "fc" }.into(),
            },
        }
    }

    /// The published name; the location's block, if it is one, is number `number` of the file.
    fn published(self, role: &str, number: usize, publisher: Publisher) -> Option<String> {
        let head = |layer: &str| match publisher {
            Publisher::OnceForAll => layer.to_string(),
            Publisher::AttentiveNas => format!("last_conv.{layer}"),
        };
        Some(match self {
            Location::Alone => return None,
            Location::Stem { before_pool: false, .. } => {
                format!("first_conv.{}", if role == STEM.1 { "bn" } else { "conv" })
            }
            Location::Stem { index, residual, .. } => {
                let layer = format!("input_stem.{index}{}", if residual { ".residual" } else { "" });
                match (role == STEM.1, residual, index) {
                    (true, ..) => format!("{layer}.bn"),
                    // The common form takes the second convolution for the residual one, which this stem may lack.
                    (_, false, 1) => format!("{layer}.residual"),
                    _ => format!("{layer}.conv"),
                }
            }
            Location::Block { names, .. } => {
                let (.., published) = names.layers.iter().find(|(known, ..)| *known == role)?;
                format!("blocks.{number}.{published}")
            }
            Location::Head { has_hidden, .. } => {
                // Without a hidden layer the last convolution is called the mixing layer.
                let feature = if has_hidden { "final_expand_layer" } else { "feature_mix_layer" };
                match role {
                    "feature" => head(&format!("{feature}.conv")),
                    "feature.norm" => head(&format!("{feature}.bn")),
                    HIDDEN => head("feature_mix_layer.conv"),
                    _ => "classifier.linear".into(),
                }
            }
        })
    }
}

/// Own name of convolution `index` of a stem of `count`.
pub(crate) fn own_stem(index: usize, count: usize) -> String {
    if count == 1 { "stem".into() } else { format!("stem.{index}") }
}

/// Own name of a block. Stages are counted without the fixed first block.
pub(crate) fn own_block(stage: usize, block: usize, has_first_block: bool) -> String {
    match (has_first_block, stage) {
        (true, 0) => "first".into(),
        _ => format!("stages.{}.{block}", stage - usize::from(has_first_block)),
    }
}

impl Graph {
    fn location(&self, slot: &Slot) -> Location {
        self.locations[slot.location as usize]
    }

    /// timm's name of a slot, without the part of its tensors: `blocks.1.0.conv_pw`.
    ///
    /// MobileNets: the first fixed block is `blocks.0.0`, and the stages follow. With a hidden layer the names are
    /// those of timm's MobileNetV3: the feature convolution is one more stage and the hidden layer `conv_head`; without
    /// one they are those of timm's EfficientNet (MobileNetV2, ProxylessNAS), whose feature convolution is `conv_head`
    /// with `bn2`.
    ///
    /// ResNets: those of timm's ResNet-D. The stem is `conv1.0`, `conv1.1` (batch norm), `conv1.3`, `conv1.4`,
    /// `conv1.6`, `bn1`; a stem without its block has no `conv1.3` and `conv1.4`, and one with it adds the block's
    /// input to its output, which timm's does not.
    pub fn name(&self, slot: &Slot) -> String {
        self.location(slot).timm(slot.name())
    }

    /// Own name of a slot, as checkpoints of a supernet have it.
    pub(crate) fn own_name(&self, slot: &Slot, has_first_block: bool) -> String {
        self.location(slot).own(slot.name(), has_first_block)
    }

    /// Published name of a slot of a once-for-all network, where the network's blocks have these numbers in the file;
    /// none for blocks of a custom kind.
    pub fn published_name(&self, slot: &Slot, numbers: &[usize]) -> Option<String> {
        let layer = self.node(slot.node).layer.unwrap_or_default() as usize;
        let blocks = self.layers[..layer].iter().filter(|layer| matches!(layer.kind, RegionKind::Block { .. }));
        let number = numbers.get(blocks.count()).copied().unwrap_or_default();
        self.location(slot).published(slot.name(), number, Publisher::OnceForAll)
    }
}

/// The published name of each layer that a supernet of a space can have, by its own name.
pub(crate) struct Published(HashMap<String, String>);

impl Published {
    /// # Errors
    /// An invalid space.
    pub(crate) fn of(space: &SearchSpace) -> Result<Self> {
        let graph = Graph::of(&space.network(&space.largest(), 1)?);
        let (has_first_block, publisher) = (space.first_block.is_some(), space.family.rules().publisher);
        let mut layers = HashMap::new();
        let mut number = 0;
        for location in &graph.locations {
            for role in location.roles() {
                let published = location.published(role, number, publisher);
                layers.extend(published.map(|published| (location.own(role, has_first_block), published)));
            }
            number += usize::from(matches!(location, Location::Block { .. }));
        }
        Ok(Published(layers))
    }

    /// The published name of the tensor that has the own name `name`.
    pub(crate) fn tensor(&self, name: &str) -> Option<String> {
        let (layer, part) = name.rsplit_once('.')?;
        let layer = self.0.get(layer)?;
        Some(match part.strip_prefix("transform_") {
            Some(sizes) => format!("{layer}.{sizes}_matrix"),
            None => format!("{layer}.{part}"),
        })
    }
}

/// The published name of the tensor that a supernet of `space` calls `name`; `None` if published networks have no such
/// tensor.
pub fn published(name: &str, space: &SearchSpace) -> Option<String> {
    Published::of(space).ok()?.tensor(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::common;
    use crate::space::{PRESETS, preset};
    use crate::{NetworkSpec, Supernet};
    use std::collections::HashSet;

    /// timm's names with shapes.
    fn shapes(network: &NetworkSpec) -> HashMap<String, Vec<usize>> {
        let shapes = Graph::of(network).tensor_shapes();
        let distinct: HashMap<_, _> = shapes.iter().cloned().collect();
        assert_eq!(distinct.len(), shapes.len(), "two tensors have one name");
        distinct
    }

    #[test]
    fn own_names_are_those_of_the_supernets_tensors() {
        for name in PRESETS {
            let space = preset(name).unwrap();
            let graph = Graph::of(&space.network(&space.largest(), 10).unwrap());
            let of_slot = |slot: &Slot| {
                let name = graph.own_name(slot, space.first_block.is_some());
                graph.tensors(slot).into_iter().map(move |(part, _)| format!("{name}.{part}"))
            };
            let mut expected: HashSet<String> = graph.slots().iter().flat_map(of_slot).collect();
            for tensor in Supernet::new(&space, 10, 0).unwrap().state().unwrap().into_keys() {
                // The largest subnet has the largest kernels and may have no projection.
                let others = tensor.contains(".transform_") || tensor.ends_with(".shortcut.weight");
                assert!(expected.remove(&tensor) || others, "{name}: {tensor}");
            }
            assert!(expected.is_empty(), "{name}: {expected:?}");
        }
    }

    #[test]
    fn a_mobile_net_has_timms_names() {
        let space = preset("mbv3-w1.0").unwrap();
        let shapes = shapes(&space.network(&space.largest(), 1000).unwrap());
        assert_eq!(shapes["blocks.0.0.conv_pw.weight"], [16, 16, 1, 1]);
        assert_eq!(shapes["blocks.1.0.conv_pw.weight"], [96, 16, 1, 1]);
        assert_eq!(shapes["blocks.2.0.se.conv_reduce.weight"], [40, 144, 1, 1]);
        assert_eq!(shapes["blocks.5.3.conv_dw.weight"], [960, 1, 7, 7]);
        assert_eq!(shapes["blocks.6.0.conv.weight"], [960, 160, 1, 1]);
        assert_eq!(shapes["conv_head.weight"], [1280, 960, 1, 1]);
        assert_eq!(shapes["classifier.weight"], [1000, 1280]);
        assert_eq!(shapes.get("blocks.1.0.se.conv_reduce.weight"), None);
    }

    #[test]
    fn a_resnet_has_the_names_of_timms_resnet50d() {
        // timm.create_model("resnet50d") has these tensors; its shapes are those of depths 3, 4, 6, 3 and expand ratio
        // 0.25.
        let space = preset("resnet50d").unwrap();
        let text =
            format!("r224 w1,1,1,1,1,1 s1 d3,4,6,3 e{}", [3, 4, 6, 3].map(|d| vec!["0.25"; d].join(",")).join("|"));
        let network = space.network(&text.parse().unwrap(), 1000).unwrap();
        let tensors = shapes(&network);
        assert_eq!(tensors["conv1.0.weight"], [32, 3, 3, 3]);
        assert_eq!(tensors["conv1.4.running_var"], [32]);
        assert_eq!(tensors["conv1.6.weight"], [64, 32, 3, 3]);
        assert_eq!(tensors["bn1.bias"], [64]);
        assert_eq!(tensors["layer1.0.conv1.weight"], [64, 64, 1, 1]);
        assert_eq!(tensors["layer1.0.downsample.1.weight"], [256, 64, 1, 1]);
        assert_eq!(tensors["layer3.0.downsample.2.weight"], [1024]);
        assert_eq!(tensors["layer3.5.conv2.weight"], [256, 256, 3, 3]);
        assert_eq!(tensors.get("layer3.5.downsample.1.weight"), None);
        assert_eq!(tensors["fc.weight"], [1000, 2048]);
        assert_eq!(Graph::of(&network).parameters(), 25_576_264);
        let skipped = Graph::of(&space.network(&text.replace("s1", "s0").parse().unwrap(), 1000).unwrap());
        let stem = skipped.tensor_shapes().into_iter();
        let stem = stem.filter(|(name, shape)| name.starts_with("conv1") && shape.len() == 4);
        assert_eq!(stem.map(|(name, _)| name).collect::<Vec<_>>(), ["conv1.0.weight", "conv1.6.weight"]);
    }

    #[test]
    fn published_names_are_the_common_form_of_both_spellings() {
        let check = |space: &str, own: &str, spellings: &[&str]| {
            let expected = published(own, &preset(space).unwrap()).unwrap();
            spellings.iter().for_each(|spelling| assert_eq!(common(spelling), expected, "{own}"));
        };
        for (own, newer, older) in [
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
            check("mbv3-w1.0", own, &[newer, older]);
        }
        for (own, newer, older) in [
            ("stem.0.weight", "input_stem.0.conv.conv.weight", "input_stem.0.conv.weight"),
            ("stem.1.weight", "input_stem.1.conv.conv.conv.weight", "input_stem.1.conv.conv.weight"),
            ("stem.1.norm.bias", "input_stem.1.conv.bn.bn.bias", "input_stem.1.conv.bn.bias"),
            ("stem.2.norm.running_mean", "input_stem.2.bn.bn.running_mean", "input_stem.2.bn.running_mean"),
            ("stages.2.0.conv2.weight", "blocks.8.conv2.conv.conv.weight", "blocks.8.conv2.conv.weight"),
            ("stages.2.0.shortcut.norm.weight", "blocks.8.downsample.bn.bn.weight", "blocks.8.downsample.bn.weight"),
            ("classifier.weight", "classifier.linear.linear.weight", "classifier.linear.weight"),
        ] {
            check("resnet50d", own, &[newer, older]);
        }
        for (own, theirs) in [
            ("stages.1.0.project.weight", "blocks.2.mobile_inverted_conv.point_linear.conv.conv.weight"),
            ("stages.1.0.shortcut.weight", "blocks.2.shortcut.conv.conv.weight"),
            ("feature.norm.bias", "last_conv.final_expand_layer.bn.bn.bias"),
            ("hidden.weight", "last_conv.feature_mix_layer.conv.conv.weight"),
        ] {
            check("attentive", own, &[theirs]);
        }
        for (own, theirs) in [
            ("feature.norm.bias", "feature_mix_layer.bn.bias"),
            ("stages.5.0.expand.weight", "blocks.21.conv.inverted_bottleneck.conv.weight"),
        ] {
            check("proxyless-w1.3", own, &[theirs]);
        }
        for unknown in ["other.weight", "first.expand.weight"] {
            assert_eq!(published(unknown, &preset("tiny").unwrap()), None);
        }
    }
}
