//! The spaces that have a name. An architecture is data: a row a stage.

use super::{Activation, DEFAULT_EPSILON, Family, FirstBlock, Head, Ratio, SearchSpace, Stage, Stem};

/// Names of the presets; `mbv3-wX` and `proxyless-wX` exist for every width multiplier X.
pub const PRESETS: &[&str] =
    &["mbv3-w1.0", "mbv3-w1.2", "proxyless-w1.3", "resnet50d", "cifar-mbv3", "tiny", "resnet-tiny", "cifar-k5"];

/// The preset of that name, if there is one.
pub fn preset(name: &str) -> Option<SearchSpace> {
    match name {
        "cifar-mbv3" => Some(cifar_mbv3()),
        "cifar-k5" => Some(cifar_k5()),
        "tiny" => Some(tiny()),
        "resnet50d" => Some(resnet50d()),
        "resnet-tiny" => Some(resnet_tiny()),
        _ => {
            let (family, width) = name.split_once("-w")?;
            let space = match family {
                "mbv3" => mobilenet_v3(width.parse().ok()?),
                "proxyless" => proxyless(width.parse().ok()?),
                _ => return None,
            };
            Some(SearchSpace { name: name.to_string(), ..space })
        }
    }
}

/// The published MobileNetV3 space at ImageNet sizes (paper §4.1).
fn mobilenet_v3(width_multiplier: f64) -> SearchSpace {
    use Activation::{HardSwish, Relu};
    SearchSpace {
        name: "mbv3".into(),
        family: Family::MobileNetV3,
        width_multiplier,
        width_multipliers: vec![],
        resolutions: (128..=224).step_by(4).collect(),
        kernel_sizes: vec![3, 5, 7],
        expand_ratios: ratios(&[3.0, 4.0, 6.0]),
        depths: vec![2, 3, 4],
        batch_norm_epsilon: DEFAULT_EPSILON,
        stem: Stem { channels: 16, stride: 2, activation: HardSwish, depths: vec![] },
        first_block: Some(FirstBlock { channels: 16, activation: Relu }),
        stages: vec![
            stage(24, 2, Relu, false),
            stage(40, 2, Relu, true),
            stage(80, 2, HardSwish, false),
            stage(112, 1, HardSwish, true),
            stage(160, 2, HardSwish, true),
        ],
        head: Some(Head { feature_channels: 960, hidden_channels: Some(1280), activation: HardSwish }),
    }
}

/// The published ProxylessNAS space at ImageNet sizes: ReLU6, no squeeze-excite, no hidden layer, one block in the last
/// stage.
fn proxyless(width_multiplier: f64) -> SearchSpace {
    use Activation::Relu6;
    SearchSpace {
        name: "proxyless".into(),
        family: Family::ProxylessNas,
        stem: Stem { channels: 32, stride: 2, activation: Relu6, depths: vec![] },
        first_block: Some(FirstBlock { channels: 16, activation: Relu6 }),
        stages: vec![
            stage(24, 2, Relu6, false),
            stage(40, 2, Relu6, false),
            stage(80, 2, Relu6, false),
            stage(96, 1, Relu6, false),
            stage(192, 2, Relu6, false),
            Stage { depths: vec![1], ..stage(320, 1, Relu6, false) },
        ],
        head: Some(Head { feature_channels: 1280, hidden_channels: None, activation: Relu6 }),
        ..mobilenet_v3(width_multiplier)
    }
}

/// For 32-pixel images: output stride 8. The full-size map gets only the cheap first block; most work sits at 16x16 and
/// 8x8, where a small image still has something to see. Expand ratios end at 4: at this size wider middles cost more
/// time than they bring accuracy.
fn cifar_mbv3() -> SearchSpace {
    use Activation::{HardSwish, Relu};
    SearchSpace {
        name: "cifar-mbv3".into(),
        family: Family::MobileNetV3,
        width_multiplier: 1.0,
        width_multipliers: vec![],
        resolutions: vec![24, 28, 32],
        kernel_sizes: vec![3, 5, 7],
        expand_ratios: ratios(&[2.0, 3.0, 4.0]),
        depths: vec![2, 3, 4],
        batch_norm_epsilon: DEFAULT_EPSILON,
        stem: Stem { channels: 16, stride: 1, activation: HardSwish, depths: vec![] },
        first_block: Some(FirstBlock { channels: 16, activation: Relu }),
        stages: vec![stage(24, 2, Relu, false), stage(48, 2, HardSwish, true), stage(80, 2, HardSwish, true)],
        head: Some(Head { feature_channels: 480, hidden_channels: Some(256), activation: HardSwish }),
    }
}

/// As `cifar-mbv3`, with wider stages in place of kernels of 7x7, which are a third of its work and cover a map of 8x8
/// or 4x4 almost entirely.
fn cifar_k5() -> SearchSpace {
    use Activation::{HardSwish, Relu};
    SearchSpace {
        name: "cifar-k5".into(),
        kernel_sizes: vec![3, 5],
        stages: vec![stage(32, 2, Relu, false), stage(64, 2, HardSwish, true), stage(112, 2, HardSwish, true)],
        ..cifar_mbv3()
    }
}

/// For the quickstart: trains in well under a minute on two cores.
fn tiny() -> SearchSpace {
    use Activation::{HardSwish, Relu};
    SearchSpace {
        name: "tiny".into(),
        family: Family::MobileNetV3,
        width_multiplier: 1.0,
        width_multipliers: vec![],
        resolutions: vec![16, 24, 32],
        kernel_sizes: vec![3, 5],
        expand_ratios: ratios(&[2.0, 3.0, 4.0]),
        depths: vec![1, 2],
        batch_norm_epsilon: DEFAULT_EPSILON,
        stem: Stem { channels: 8, stride: 2, activation: HardSwish, depths: vec![] },
        first_block: Some(FirstBlock { channels: 8, activation: Relu }),
        stages: vec![stage(16, 2, Relu, false), stage(24, 2, HardSwish, true)],
        head: Some(Head { feature_channels: 96, hidden_channels: Some(64), activation: HardSwish }),
    }
}

/// The published ResNet-50D space at ImageNet sizes: a stem block, up to two blocks more in each stage, three
/// bottleneck widths, and a width multiplier for each part of the network.
fn resnet50d() -> SearchSpace {
    use Activation::Relu;
    SearchSpace {
        name: "resnet50d".into(),
        family: Family::ResNetD,
        width_multiplier: 1.0,
        width_multipliers: ratios(&[0.65, 0.8, 1.0]),
        resolutions: (128..=224).step_by(16).collect(),
        kernel_sizes: vec![3],
        expand_ratios: ratios(&[0.2, 0.25, 0.35]),
        depths: vec![2, 3, 4],
        batch_norm_epsilon: DEFAULT_EPSILON,
        stem: Stem { channels: 64, stride: 2, activation: Relu, depths: vec![0, 1] },
        first_block: None,
        stages: vec![
            stage(256, 1, Relu, false),
            stage(512, 2, Relu, false),
            Stage { depths: vec![4, 5, 6], ..stage(1024, 2, Relu, false) },
            stage(2048, 2, Relu, false),
        ],
        head: None,
    }
}

/// The same in small, for trying it out: two stages of 32-pixel images.
fn resnet_tiny() -> SearchSpace {
    use Activation::Relu;
    SearchSpace {
        name: "resnet-tiny".into(),
        width_multipliers: ratios(&[0.5, 1.0]),
        resolutions: vec![24, 32],
        expand_ratios: ratios(&[0.25, 0.5]),
        depths: vec![1, 2],
        stem: Stem { channels: 16, stride: 1, activation: Relu, depths: vec![0, 1] },
        stages: vec![stage(32, 1, Relu, false), stage(64, 2, Relu, false)],
        ..resnet50d()
    }
}

/// A stage with the space's depths, kernel sizes and expand ratios.
fn stage(channels: usize, stride: usize, activation: Activation, squeeze_excite: bool) -> Stage {
    let (depths, kernel_sizes, expand_ratios) = (vec![], vec![], vec![]);
    Stage { channels, stride, activation, squeeze_excite, block: None, depths, kernel_sizes, expand_ratios }
}

fn ratios(values: &[f64]) -> Vec<Ratio> {
    values.iter().filter_map(|&v| Ratio::try_from(v).ok()).collect()
}
