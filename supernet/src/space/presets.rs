//! The spaces that have a name. An architecture is data: a row a stage.

use super::{Activation, DEFAULT_EPSILON, Family, FirstBlock, Head, Ratio, SearchSpace, Stage, Stem};

/// Names of the presets; `mbv3-wX` and `proxyless-wX` exist for every width multiplier X.
pub const PRESETS: &[&str] = &[
    "mbv3-w1.0",
    "mbv3-w1.2",
    "proxyless-w1.3",
    "resnet50d",
    "attentive",
    "cifar-mbv3",
    "tiny",
    "resnet-tiny",
    "attentive-tiny",
    "cifar-k5",
];

/// The preset of that name, if there is one.
pub fn preset(name: &str) -> Option<SearchSpace> {
    match name {
        "cifar-mbv3" => Some(cifar_mbv3()),
        "cifar-k5" => Some(cifar_k5()),
        "tiny" => Some(tiny()),
        "resnet50d" => Some(resnet50d()),
        "resnet-tiny" => Some(resnet_tiny()),
        "attentive" => Some(attentive()),
        "attentive-tiny" => Some(attentive_tiny()),
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
        uniform_stages: false,
        batch_norm_epsilon: DEFAULT_EPSILON,
        stem: Stem { channels: 16, stride: 2, activation: HardSwish, depths: vec![], widths: vec![] },
        first_block: Some(FirstBlock { channels: 16, activation: Relu }),
        stages: vec![
            stage(24, 2, Relu, false),
            stage(40, 2, Relu, true),
            stage(80, 2, HardSwish, false),
            stage(112, 1, HardSwish, true),
            stage(160, 2, HardSwish, true),
        ],
        head: Some(Head { feature_channels: 960, hidden_channels: Some(1280), activation: HardSwish, widths: vec![] }),
    }
}

/// The published ProxylessNAS space at ImageNet sizes: ReLU6, no squeeze-excite, no hidden layer, one block in the last
/// stage.
fn proxyless(width_multiplier: f64) -> SearchSpace {
    use Activation::Relu6;
    SearchSpace {
        name: "proxyless".into(),
        family: Family::ProxylessNas,
        stem: Stem { channels: 32, stride: 2, activation: Relu6, depths: vec![], widths: vec![] },
        first_block: Some(FirstBlock { channels: 16, activation: Relu6 }),
        stages: vec![
            stage(24, 2, Relu6, false),
            stage(40, 2, Relu6, false),
            stage(80, 2, Relu6, false),
            stage(96, 1, Relu6, false),
            stage(192, 2, Relu6, false),
            Stage { depths: vec![1], ..stage(320, 1, Relu6, false) },
        ],
        head: Some(Head { feature_channels: 1280, hidden_channels: None, activation: Relu6, widths: vec![] }),
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
        uniform_stages: false,
        batch_norm_epsilon: DEFAULT_EPSILON,
        stem: Stem { channels: 16, stride: 1, activation: HardSwish, depths: vec![], widths: vec![] },
        first_block: Some(FirstBlock { channels: 16, activation: Relu }),
        stages: vec![stage(24, 2, Relu, false), stage(48, 2, HardSwish, true), stage(80, 2, HardSwish, true)],
        head: Some(Head { feature_channels: 480, hidden_channels: Some(256), activation: HardSwish, widths: vec![] }),
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
        uniform_stages: false,
        batch_norm_epsilon: DEFAULT_EPSILON,
        stem: Stem { channels: 8, stride: 2, activation: HardSwish, depths: vec![], widths: vec![] },
        first_block: Some(FirstBlock { channels: 8, activation: Relu }),
        stages: vec![stage(16, 2, Relu, false), stage(24, 2, HardSwish, true)],
        head: Some(Head { feature_channels: 96, hidden_channels: Some(64), activation: HardSwish, widths: vec![] }),
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
        uniform_stages: false,
        batch_norm_epsilon: DEFAULT_EPSILON,
        stem: Stem { channels: 64, stride: 2, activation: Relu, depths: vec![0, 1], widths: vec![] },
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

/// A small space of the ResNet-D family, to try it out: two stages for 32-pixel images.
fn resnet_tiny() -> SearchSpace {
    use Activation::Relu;
    SearchSpace {
        name: "resnet-tiny".into(),
        width_multipliers: ratios(&[0.5, 1.0]),
        resolutions: vec![24, 32],
        expand_ratios: ratios(&[0.25, 0.5]),
        depths: vec![1, 2],
        stem: Stem { channels: 16, stride: 1, activation: Relu, depths: vec![0, 1], widths: vec![] },
        stages: vec![stage(32, 1, Relu, false), stage(64, 2, Relu, false)],
        ..resnet50d()
    }
}

/// The published AttentiveNAS space at ImageNet sizes (Wang et al., CVPR 2021, table 7): widths between blocks are
/// elastic, and all blocks of a stage have one kernel and one expand ratio.
fn attentive() -> SearchSpace {
    SearchSpace {
        name: "attentive".into(),
        family: Family::AttentiveNas,
        uniform_stages: true,
        resolutions: vec![192, 224, 256, 288],
        kernel_sizes: vec![3, 5],
        expand_ratios: ratios(&[4.0, 5.0, 6.0]),
        depths: vec![3, 4, 5, 6, 7, 8],
        stem: Stem { channels: 24, stride: 2, activation: Activation::Swish, depths: vec![], widths: vec![16, 24] },
        first_block: None,
        stages: vec![
            Stage { depths: vec![1, 2], expand_ratios: ratios(&[1.0]), ..wide(&[16, 24], 1, false) },
            Stage { depths: vec![3, 4, 5], ..wide(&[24, 32], 2, false) },
            Stage { depths: vec![3, 4, 5, 6], ..wide(&[32, 40], 2, true) },
            Stage { depths: vec![3, 4, 5, 6], ..wide(&[64, 72], 2, false) },
            wide(&[112, 120, 128], 1, true),
            Stage { expand_ratios: ratios(&[6.0]), ..wide(&[192, 200, 208, 216], 2, true) },
            Stage { depths: vec![1, 2], expand_ratios: ratios(&[6.0]), ..wide(&[216, 224], 1, true) },
        ],
        head: Some(Head {
            feature_channels: 1344,
            hidden_channels: Some(1984),
            activation: Activation::Swish,
            widths: vec![1792, 1984],
        }),
        ..mobilenet_v3(1.0)
    }
}

/// A small space of that kind, for trying it out: three stages of 32-pixel images.
fn attentive_tiny() -> SearchSpace {
    SearchSpace {
        name: "attentive-tiny".into(),
        resolutions: vec![24, 28, 32],
        expand_ratios: ratios(&[2.0, 3.0]),
        depths: vec![1, 2],
        stem: Stem { channels: 16, stride: 1, activation: Activation::Swish, depths: vec![], widths: vec![8, 16] },
        stages: vec![
            Stage { depths: vec![1], expand_ratios: ratios(&[1.0]), ..wide(&[8, 16], 1, false) },
            wide(&[16, 24], 2, false),
            wide(&[24, 32, 40], 2, true),
        ],
        head: Some(Head {
            feature_channels: 160,
            hidden_channels: Some(96),
            activation: Activation::Swish,
            widths: vec![64, 96],
        }),
        ..attentive()
    }
}

/// A stage of elastic width.
fn wide(widths: &[usize], stride: usize, squeeze_excite: bool) -> Stage {
    let channels = widths[widths.len() - 1];
    Stage { widths: widths.to_vec(), ..stage(channels, stride, Activation::Swish, squeeze_excite) }
}

/// A stage with the space's depths, kernel sizes and expand ratios.
fn stage(channels: usize, stride: usize, activation: Activation, squeeze_excite: bool) -> Stage {
    let (depths, kernel_sizes, expand_ratios, widths) = (vec![], vec![], vec![], vec![]);
    Stage { channels, stride, activation, squeeze_excite, block: None, depths, kernel_sizes, expand_ratios, widths }
}

fn ratios(values: &[f64]) -> Vec<Ratio> {
    values.iter().filter_map(|&v| Ratio::try_from(v).ok()).collect()
}
