//! Names and shapes of an extracted network's tensors: timm's names, PyTorch's layouts.
//!
//! MobileNets: the first fixed block is `blocks.0.0`, and the stages follow. With a hidden layer the names are those of timm's
//! MobileNetV3: the feature convolution is one more stage and the hidden layer `conv_head`; without one they are those of timm's
//! EfficientNet (MobileNetV2, ProxylessNAS), whose feature convolution is `conv_head` with `bn2`. A block without expand is timm's
//! depthwise-separable block (`conv_dw`, `conv_pw`), every other an inverted residual (`conv_pw`, `conv_dw`, `conv_pwl`).
//!
//! ResNets: those of timm's ResNet-D. The stem is `conv1.0`, `conv1.1` (batch norm), `conv1.3`, `conv1.4`, `conv1.6`, `bn1`; a stem without
//! its block has no `conv1.3` and `conv1.4`, and one with it adds the block's input to its output, which timm's does not. Blocks are
//! `layer1.0` and so on with `conv1`, `bn1` to `conv3`, `bn3`, and `downsample.1`, `downsample.2` after the shortcut's pool; `fc` is last.

use ofa_supernet::space::{BlockSpec, ConvSpec, InvertedResidualSpec, NetworkSpec};

/// Names of the stem's convolutions and their batch norms, without a final dot.
pub fn stem_names(network: &NetworkSpec) -> Vec<(String, String)> {
    if let [_] = network.stem[..] {
        return vec![("conv_stem".into(), "bn1".into())];
    }
    let last = network.stem.len().saturating_sub(1);
    let name = |(index, spec): (usize, &ConvSpec)| match (index, spec.residual) {
        (index, _) if index == last => ("conv1.6".into(), "bn1".into()),
        (_, true) => ("conv1.3".into(), "conv1.4".into()),
        (_, false) => ("conv1.0".into(), "conv1.1".into()),
    };
    network.stem.iter().enumerate().map(name).collect()
}

/// Prefix of block `block` of stage `stage`, without a final dot.
pub fn block_prefix(spec: &BlockSpec, stage: usize, block: usize) -> String {
    match spec {
        BlockSpec::InvertedResidual(_) => format!("blocks.{stage}.{block}"),
        BlockSpec::Bottleneck(_) => format!("layer{}.{block}", stage + 1),
    }
}

/// Names of a bottleneck's convolutions and their batch norms after the block's prefix; the shortcut's is the last.
pub const BOTTLENECK_NAMES: [(&str, &str); 4] =
    [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("downsample.1", "downsample.2")];

/// Names of the feature convolution and its batch norm, without a final dot.
pub fn feature_names(network: &NetworkSpec) -> (String, String) {
    match network.hidden_channels {
        Some(_) => {
            let stage = network.stages.len();
            (format!("blocks.{stage}.0.conv"), format!("blocks.{stage}.0.bn1"))
        }
        None => ("conv_head".into(), "bn2".into()),
    }
}

/// Name of the classifier, without a final dot.
pub fn classifier_name(network: &NetworkSpec) -> &'static str {
    if network.feature.is_some() { "classifier" } else { "fc" }
}

/// Every tensor of the network's model file with its shape, in the order of the layers: convolutions
/// `[out, in / groups, k, k]`, the classifier `[classes, in]`, vectors `[channels]`.
pub fn tensor_shapes(network: &NetworkSpec) -> Vec<(String, Vec<usize>)> {
    let mut list = Shapes(Vec::new());
    for (spec, (conv, norm)) in network.stem.iter().zip(stem_names(network)) {
        list.dense(spec, &conv, &norm);
    }
    for (stage, blocks) in network.stages.iter().enumerate() {
        for (block, spec) in blocks.iter().enumerate() {
            list.block(&block_prefix(spec, stage, block), spec);
        }
    }
    if let Some(feature) = &network.feature {
        let (conv, norm) = feature_names(network);
        list.dense(feature, &conv, &norm);
    }
    if let Some(width) = network.hidden_channels {
        list.add("conv_head.weight".into(), &[width, network.pooled_map().0, 1, 1]);
    }
    let classifier = classifier_name(network);
    list.add(format!("{classifier}.weight"), &[network.classes, network.classifier_channels()]);
    list.add(format!("{classifier}.bias"), &[network.classes]);
    list.0
}

struct Shapes(Vec<(String, Vec<usize>)>);

impl Shapes {
    fn add(&mut self, name: String, shape: &[usize]) {
        self.0.push((name, shape.to_vec()));
    }

    fn batch_norm(&mut self, prefix: &str, channels: usize) {
        for part in ["weight", "bias", "running_mean", "running_var"] {
            self.add(format!("{prefix}.{part}"), &[channels]);
        }
    }

    fn dense(&mut self, spec: &ConvSpec, conv: &str, norm: &str) {
        self.add(format!("{conv}.weight"), &[spec.out_channels, spec.in_channels, spec.kernel, spec.kernel]);
        self.batch_norm(norm, spec.out_channels);
    }

    fn block(&mut self, prefix: &str, block: &BlockSpec) {
        let block = match block {
            BlockSpec::InvertedResidual(block) => block,
            BlockSpec::Bottleneck(block) => {
                let convolutions = block.convolutions().into_iter().chain(block.shortcut());
                for (spec, (conv, norm)) in convolutions.zip(BOTTLENECK_NAMES) {
                    self.dense(&spec, &format!("{prefix}.{conv}"), &format!("{prefix}.{norm}"));
                }
                return;
            }
        };
        let (input, middle, output) = (block.in_channels, block.middle_channels, block.out_channels);
        let names = BlockNames::of(block);
        if let Some((conv, norm)) = names.expand {
            self.add(format!("{prefix}.{conv}.weight"), &[middle, input, 1, 1]);
            self.batch_norm(&format!("{prefix}.{norm}"), middle);
        }
        self.add(format!("{prefix}.{}.weight", names.depthwise.0), &[middle, 1, block.kernel, block.kernel]);
        self.batch_norm(&format!("{prefix}.{}", names.depthwise.1), middle);
        if let Some(reduced) = block.squeeze_excite {
            self.add(format!("{prefix}.se.conv_reduce.weight"), &[reduced, middle, 1, 1]);
            self.add(format!("{prefix}.se.conv_reduce.bias"), &[reduced]);
            self.add(format!("{prefix}.se.conv_expand.weight"), &[middle, reduced, 1, 1]);
            self.add(format!("{prefix}.se.conv_expand.bias"), &[middle]);
        }
        self.add(format!("{prefix}.{}.weight", names.project.0), &[output, middle, 1, 1]);
        self.batch_norm(&format!("{prefix}.{}", names.project.1), output);
    }
}

/// Names of an inverted residual block's convolutions, each with its batch norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockNames {
    /// 1x1 convolution to the middle channels, if the block has one.
    pub expand: Option<(&'static str, &'static str)>,
    /// Depthwise convolution.
    pub depthwise: (&'static str, &'static str),
    /// 1x1 convolution to the output channels.
    pub project: (&'static str, &'static str),
}

impl BlockNames {
    /// The names that timm gives to this kind of block.
    pub fn of(block: &InvertedResidualSpec) -> Self {
        if block.expand {
            BlockNames { expand: Some(("conv_pw", "bn1")), depthwise: ("conv_dw", "bn2"), project: ("conv_pwl", "bn3") }
        } else {
            BlockNames { expand: None, depthwise: ("conv_dw", "bn1"), project: ("conv_pw", "bn2") }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofa_supernet::space::preset;
    use std::collections::HashSet;

    #[test]
    fn names_are_timms_and_distinct() {
        let space = preset("mbv3-w1.0").unwrap();
        let shapes = tensor_shapes(&space.network(&space.largest(), 1000).unwrap());
        let find = |name: &str| shapes.iter().find(|(n, _)| n == name).map(|(_, shape)| shape.clone());
        assert_eq!(find("blocks.0.0.conv_pw.weight"), Some(vec![16, 16, 1, 1]));
        assert_eq!(find("blocks.1.0.conv_pw.weight"), Some(vec![96, 16, 1, 1]));
        assert_eq!(find("blocks.2.0.se.conv_reduce.weight"), Some(vec![40, 144, 1, 1]));
        assert_eq!(find("blocks.5.3.conv_dw.weight"), Some(vec![960, 1, 7, 7]));
        assert_eq!(find("blocks.6.0.conv.weight"), Some(vec![960, 160, 1, 1]));
        assert_eq!(find("conv_head.weight"), Some(vec![1280, 960, 1, 1]));
        assert_eq!(find("classifier.weight"), Some(vec![1000, 1280]));
        assert_eq!(find("blocks.1.0.se.conv_reduce.weight"), None);
        let distinct: HashSet<_> = shapes.iter().map(|(name, _)| name).collect();
        assert_eq!(distinct.len(), shapes.len());
    }

    #[test]
    fn a_resnet_has_the_names_of_timms_resnet50d() {
        // timm.create_model("resnet50d") has these tensors; its shapes are those of depths 3, 4, 6, 3 and expand ratio 0.25.
        let space = preset("resnet50d").unwrap();
        let text =
            format!("r224 w1,1,1,1,1,1 s1 d3,4,6,3 e{}", [3, 4, 6, 3].map(|d| vec!["0.25"; d].join(",")).join("|"));
        let network = space.network(&text.parse().unwrap(), 1000).unwrap();
        let shapes = tensor_shapes(&network);
        let find = |name: &str| shapes.iter().find(|(n, _)| n == name).map(|(_, shape)| shape.clone());
        assert_eq!(find("conv1.0.weight"), Some(vec![32, 3, 3, 3]));
        assert_eq!(find("conv1.4.running_var"), Some(vec![32]));
        assert_eq!(find("conv1.6.weight"), Some(vec![64, 32, 3, 3]));
        assert_eq!(find("bn1.bias"), Some(vec![64]));
        assert_eq!(find("layer1.0.conv1.weight"), Some(vec![64, 64, 1, 1]));
        assert_eq!(find("layer1.0.downsample.1.weight"), Some(vec![256, 64, 1, 1]));
        assert_eq!(find("layer3.0.downsample.2.weight"), Some(vec![1024]));
        assert_eq!(find("layer3.5.conv2.weight"), Some(vec![256, 256, 3, 3]));
        assert_eq!(find("layer3.5.downsample.1.weight"), None);
        assert_eq!(find("fc.weight"), Some(vec![1000, 2048]));
        assert_eq!(crate::cost::parameters(&network), 25_576_264);
        let skipped = space.network(&text.replace("s1", "s0").parse().unwrap(), 1000).unwrap();
        let names: Vec<_> = stem_names(&skipped).into_iter().map(|(conv, _)| conv).collect();
        assert_eq!(names, ["conv1.0", "conv1.6"]);
    }
}
