//! Names and shapes of an extracted network's tensors: timm's names, PyTorch's layouts.

use ofa_supernet::graph::Graph;
use ofa_supernet::space::NetworkSpec;

/// Every tensor of the network's model file with its shape: [`Graph::tensor_shapes`].
pub fn tensor_shapes(network: &NetworkSpec) -> Vec<(String, Vec<usize>)> {
    Graph::of(network).tensor_shapes()
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
        // timm.create_model("resnet50d") has these tensors; its shapes are those of depths 3, 4, 6, 3 and expand ratio
        // 0.25.
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
        let stem =
            tensor_shapes(&skipped).into_iter().filter(|(name, shape)| name.starts_with("conv1") && shape.len() == 4);
        assert_eq!(stem.map(|(name, _)| name).collect::<Vec<_>>(), ["conv1.0.weight", "conv1.6.weight"]);
    }
}
