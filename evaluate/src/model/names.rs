//! Names and shapes of an extracted network's tensors: timm's names, PyTorch's layouts.
//!
//! The first fixed block is `blocks.0.0`, and the stages follow. With a hidden layer the names are those of timm's MobileNetV3:
//! the feature convolution is one more stage and the hidden layer `conv_head`; without one they are those of timm's
//! EfficientNet (MobileNetV2, ProxylessNAS), whose feature convolution is `conv_head` with `bn2`. A block without expand is timm's depthwise-separable block (`conv_dw`, `conv_pw`), every other an inverted residual (`conv_pw`,
//! `conv_dw`, `conv_pwl`).

use ofa_supernet::space::{BlockSpec, NetworkSpec};

/// Prefix of block `block` of stage `stage`, without a final dot.
pub fn block_prefix(stage: usize, block: usize) -> String {
    format!("blocks.{stage}.{block}")
}

/// Names of the feature convolution and its batch norm, without a final dot.
pub fn feature_names(network: &NetworkSpec) -> (String, String) {
    match network.hidden_channels {
        Some(_) => {
            let prefix = block_prefix(network.stages.len(), 0);
            (format!("{prefix}.conv"), format!("{prefix}.bn1"))
        }
        None => ("conv_head".into(), "bn2".into()),
    }
}

/// Every tensor of the network's model file with its shape, in the order of the layers: convolutions
/// `[out, in / groups, k, k]`, the classifier `[classes, in]`, vectors `[channels]`.
pub fn tensor_shapes(network: &NetworkSpec) -> Vec<(String, Vec<usize>)> {
    let mut list = Shapes(Vec::new());
    let stem = &network.stem;
    list.add("conv_stem.weight".into(), &[stem.out_channels, stem.in_channels, stem.kernel, stem.kernel]);
    list.batch_norm("bn1", stem.out_channels);
    for (stage, blocks) in network.stages.iter().enumerate() {
        for (block, spec) in blocks.iter().enumerate() {
            list.block(&block_prefix(stage, block), spec);
        }
    }
    let feature = &network.feature;
    let (conv, norm) = feature_names(network);
    let dims = [feature.out_channels, feature.in_channels, feature.kernel, feature.kernel];
    list.add(format!("{conv}.weight"), &dims);
    list.batch_norm(&norm, feature.out_channels);
    if let Some(width) = network.hidden_channels {
        list.add("conv_head.weight".into(), &[width, feature.out_channels, 1, 1]);
    }
    list.add("classifier.weight".into(), &[network.classes, network.classifier_channels()]);
    list.add("classifier.bias".into(), &[network.classes]);
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

    fn block(&mut self, prefix: &str, block: &BlockSpec) {
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

/// Names of a block's convolutions, each with its batch norm.
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
    pub fn of(block: &BlockSpec) -> Self {
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
}
