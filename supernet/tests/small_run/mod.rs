//! A short training on a small space and the built-in images.

use candle_core::Tensor;
use ofa_supernet::SearchSpace;
use ofa_supernet::data::{DataOptions, Dataset};
use ofa_supernet::space::Narrowing;
use ofa_supernet::train::{MetricsLine, Sampling, StageConfig, Taught, Teacher, TrainConfig, metrics};
use std::collections::HashMap;
use std::path::Path;

pub fn space() -> SearchSpace {
    let mut space = SearchSpace::named("tiny").unwrap();
    space.resolutions = vec![12, 16];
    space
}

/// 64 training and 32 validation images of 10 classes.
pub fn data() -> Dataset {
    let options = DataOptions { validation: Some(32), builtin_train: 96, builtin_test: 20, ..DataOptions::default() };
    Dataset::open("builtin", &options).unwrap()
}

/// Three stages of 6, 5 and 4 steps: largest, kernel and depth, then width with sorted channels.
pub fn config() -> TrainConfig {
    let stage = |name: &str, epochs: f64| StageConfig {
        name: name.into(),
        epochs,
        learning_rate: Some(0.05),
        warmup_epochs: Some(0.5),
        batch: None,
        label_smoothing: None,
        narrowing: Narrowing::default(),
        subnet: None,
        subnets_per_step: 1,
        sampling: Sampling::Uniform,
        candidates: None,
        kd_ratio: 0.0,
        teacher: Teacher::Frozen,
        taught: Taught::default(),
        sort_channels: None,
        sort_outer_channels: None,
        images: None,
        augmentation: None,
    };
    let space = space();
    let (kernel_sizes, depths) = (space.kernel_sizes.clone(), space.depths.clone());
    let blocks = Narrowing { kernel_sizes, depths, ..Narrowing::default() };
    let mut config = TrainConfig {
        seed: 3,
        batch: 16,
        log_every: 4,
        ema: Some(0.9),
        clip_norm: Some(2.0),
        stages: vec![
            stage("largest", 1.5),
            StageConfig { narrowing: blocks.clone(), subnets_per_step: 2, kd_ratio: 1.0, ..stage("depth", 1.25) },
            StageConfig {
                narrowing: Narrowing { expand_ratios: space.expand_ratios.clone(), ..blocks },
                subnets_per_step: 2,
                kd_ratio: 0.5,
                sort_channels: Some(1),
                ..stage("width", 1.0)
            },
        ],
        ..TrainConfig::default()
    };
    config.probe.every_epochs = 1;
    config.probe.recalibration_images = 32;
    config.probe.batch = 16;
    config
}

pub fn bits(state: &HashMap<String, Tensor>) -> Vec<(String, Vec<u32>)> {
    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let mut all: Vec<_> =
        state.iter().map(|(n, t)| (n.clone(), values(t).iter().map(|v| v.to_bits()).collect())).collect();
    all.sort();
    all
}

/// Metrics without what a clock says.
pub fn untimed(folder: &Path) -> Vec<MetricsLine> {
    let mut lines = metrics::read(&folder.join("metrics.jsonl")).unwrap();
    for line in &mut lines {
        match line {
            MetricsLine::Step { images_per_second, seconds, .. } => (*images_per_second, *seconds) = (0.0, 0.0),
            MetricsLine::Probe { seconds, .. }
            | MetricsLine::Stage { seconds, .. }
            | MetricsLine::Skipped { seconds, .. }
            | MetricsLine::Finished { seconds, .. } => *seconds = 0.0,
        }
    }
    lines
}
