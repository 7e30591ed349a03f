//! Memory that training needs (an estimate), and memory that the machine has.

use ofa_supernet::Result;
use ofa_supernet::graph::{Graph, Region, RegionKind};
use ofa_supernet::space::{NetworkSpec, SearchSpace, Subnet};
use ofa_supernet::train::run::AHEAD;
use ofa_supernet::train::validation::BUDGET;
use ofa_supernet::train::{OptimizerKind, StageConfig, TrainConfig};
use std::collections::BTreeSet;
use std::path::Path;

/// Batches of images that exist at once: those that are prepared, the one in use, and its copy as a tensor.
const BATCHES: u64 = AHEAD as u64 + 2;
/// Copies of what a checkpoint holds while it is written: as tensors, and as bytes.
const CHECKPOINT_COPIES: u64 = 2;
/// Factor on work buffers: they are reused where they fit, but their sizes differ by subnet and resolution, so some of
/// them are idle.
const WORK_BUFFERS: f64 = 1.25;

/// Peak memory of training in bytes, besides that of the program and its data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainingMemory {
    /// Weights, gradients, the optimizer's moments, moving average, teacher, and their copies while a checkpoint is
    /// written.
    pub weights: u64,
    /// Values that the backward pass needs of the forward pass, and work buffers.
    pub activations: u64,
    /// Batches of images, and the validation images that are kept prepared. Decoded data sets are not counted.
    pub images: u64,
}

impl TrainingMemory {
    /// The estimate for `config` on `train_images` training and `validation_images` validation images: that of the
    /// stage that needs most, at the largest resolution and the largest subnet that it may draw. `teacher` is the space
    /// of the frozen teacher, if it is not `space`.
    ///
    /// # Errors
    /// An invalid space.
    pub fn estimate(
        space: &SearchSpace,
        teacher: Option<&SearchSpace>,
        classes: usize,
        config: &TrainConfig,
        train_images: usize,
        validation_images: usize,
    ) -> Result<Self> {
        let largest = space.network(&space.largest(), classes)?;
        let weights = Graph::of(&largest).stored_numbers().saturating_mul(4);
        let ema = u64::from(config.ema.is_some());
        let teacher = teacher.unwrap_or(space);
        let teacher = teacher.network(&teacher.largest(), classes)?;
        // In memory, and while a checkpoint is written.
        let teacher_weights = match config.stages.iter().any(StageConfig::has_frozen_teacher) {
            true => Graph::of(&teacher).stored_numbers().saturating_mul(4 * (1 + CHECKPOINT_COPIES)),
            false => 0,
        };
        let at_once = |stage: &StageConfig| config.subnets_at_once.min(stage.subnets_per_step) as u64;
        let moments = if config.optimizer == OptimizerKind::AdamW { 2 } else { 1 };
        // Weights, the sum of gradients and one gradient per concurrent pass; moments; the moving average and a copy.
        let passes = config.stages.iter().map(at_once).max().unwrap_or(1);
        let training = 2 + passes + moments + 2 * ema;
        let checkpoint = CHECKPOINT_COPIES * (1 + moments + ema);

        let (mut activations, mut batches) = (0, 0);
        for stage in &config.stages {
            let batch = stage.batch.unwrap_or(config.batch).min(train_images.max(1)) as u64;
            let choices = stage.choices(space);
            let mut network = space.network(&choices.largest(), classes)?;
            if let Some(side) = stage.images.as_ref().and_then(|images| images.resolutions.iter().max()) {
                network.set_resolution(*side);
            }
            if stage.has_frozen_teacher() {
                let mut teacher = teacher.clone();
                teacher.set_resolution(network.resolution);
                activations = activations.max(forward_bytes(&teacher).saturating_mul(batch));
            }
            activations = activations.max(step_bytes(&network).saturating_mul(at_once(stage) * batch));
            let side = network.resolution as u64;
            batches = batches.max(BATCHES * batch * side * side * 12);
        }
        let probes: Vec<Subnet> = vec![space.smallest(), space.middle(), space.largest()];
        let probe_batch = config.probe.batch as u64;
        activations = activations.max(forward_bytes(&largest).saturating_mul(probe_batch));
        let resolutions: BTreeSet<u64> = probes.iter().map(|probe| probe.resolution as u64).collect();
        let validated = match config.probe.images {
            0 => validation_images,
            images => images.min(validation_images),
        };
        for images in [config.probe.recalibration_images.min(train_images), validated] {
            let all: u64 = resolutions.iter().map(|side| images as u64 * side * side * 12).sum();
            batches += all.min(BUDGET as u64);
        }
        Ok(TrainingMemory {
            weights: weights.saturating_mul(training + checkpoint).saturating_add(teacher_weights),
            activations: (activations as f64 * WORK_BUFFERS) as u64,
            images: batches,
        })
    }

    /// Sum of all parts.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.activations).saturating_add(self.images)
    }
}

/// Bytes of one image's forward and backward pass: values kept until the backward pass, and the largest layer's input
/// and outputs.
fn step_bytes(network: &NetworkSpec) -> u64 {
    let graph = Graph::of(network);
    let kept: u64 = body(&graph).map(|layer| graph.values_kept_for_backward(layer)).fold(0, u64::saturating_add);
    let work = |layer: &Region| graph.layer_input(layer).saturating_add(graph.convolution_outputs(layer));
    kept.saturating_add(body(&graph).map(work).max().unwrap_or(0)).saturating_mul(4)
}

/// Bytes of one image's forward pass without a backward pass: the layer with the largest input and outputs.
fn forward_bytes(network: &NetworkSpec) -> u64 {
    let graph = Graph::of(network);
    let values = |layer: &Region| graph.layer_input(layer).saturating_add(graph.values_kept_for_backward(layer));
    body(&graph).map(values).max().unwrap_or(0).saturating_mul(4)
}

/// Layers with maps. A head without a convolution only reads the last map, which counts with the layer that wrote it.
fn body(graph: &Graph) -> impl Iterator<Item = &Region> {
    graph.layers().iter().filter(|layer| {
        layer.kind != RegionKind::Head || graph.inner_regions().iter().any(|inner| layer.contains(inner))
    })
}

/// Bytes that this process may still take: free memory of the machine, or what its control group leaves. `None` where
/// the system does not tell (it does on Linux).
pub fn available() -> Option<u64> {
    let machine = meminfo("MemAvailable")?;
    Some(group().map_or(machine, |(limit, used)| machine.min(limit.saturating_sub(used))))
}

/// Bytes that this process can ever have: the machine's memory, or its control group's limit.
pub fn limit() -> Option<u64> {
    let machine = meminfo("MemTotal")?;
    Some(group().map_or(machine, |(limit, _)| machine.min(limit)))
}

/// Largest memory that this process has had in bytes.
pub fn peak() -> Option<u64> {
    field(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM")
}

fn meminfo(key: &str) -> Option<u64> {
    field(&std::fs::read_to_string("/proc/meminfo").ok()?, key)
}

/// A line `key: 123 kB` in bytes.
fn field(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Limit and use of the control group (version 2) that a container has as its root; file caches that can be dropped are
/// not counted as used.
fn group() -> Option<(u64, u64)> {
    let read = |name: &str| std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(name)).ok();
    let limit = read("memory.max")?.trim().parse().ok()?;
    let used: u64 = read("memory.current")?.trim().parse().ok()?;
    let cached = read("memory.stat")?.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse().ok());
    Some((limit, used.saturating_sub(cached.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofa_supernet::train::StageImages;

    #[test]
    fn grows_with_batch_resolution_and_width() {
        let space = SearchSpace::named("cifar-mbv3").unwrap();
        let config = TrainConfig::preset("progressive", &space).unwrap();
        let estimate = |space: &SearchSpace, config: &TrainConfig| {
            TrainingMemory::estimate(space, None, 10, config, 45_000, 5000).unwrap()
        };
        let usual = estimate(&space, &config);
        let doubled = estimate(&space, &TrainConfig { batch: 2 * config.batch, ..config.clone() });
        assert_eq!(doubled.activations, 2 * usual.activations);
        assert_eq!(doubled.weights, usual.weights);
        let alone = estimate(&space, &TrainConfig { subnets_at_once: 1, ..config.clone() });
        assert!(alone.activations < usual.activations && alone.weights < usual.weights);
        let averaged = estimate(&space, &TrainConfig { ema: Some(0.9), ..config.clone() });
        assert!(averaged.weights > usual.weights);
        let squares = estimate(&space, &TrainConfig { optimizer: OptimizerKind::AdamW, ..config.clone() });
        assert!(squares.weights > usual.weights);
        let mut large_images = config.clone();
        for stage in &mut large_images.stages {
            stage.images = Some(StageImages { resolutions: vec![16, 2 * space.resolutions[0]], weights: Vec::new() });
        }
        let mut as_large = space.clone();
        as_large.resolutions = vec![2 * space.resolutions[0]];
        let small = SearchSpace { resolutions: vec![space.resolutions[0]], ..space.clone() };
        assert_eq!(estimate(&small, &large_images).activations, estimate(&as_large, &config).activations);
        let mut wide = space.clone();
        wide.width_multiplier *= 2.0;
        let taught = TrainingMemory::estimate(&space, Some(&wide), 10, &config, 45_000, 5000).unwrap();
        assert!(taught.weights > usual.weights * 6 / 5, "{} {}", taught.weights, usual.weights);
        assert!(estimate(&wide, &config).weights > 3 * usual.weights);
        let mut giant = space.clone();
        let head = giant.head.as_mut().unwrap();
        (head.feature_channels, head.hidden_channels, giant.width_multiplier) = (65_536, Some(65_536), 10.0);
        assert!(estimate(&giant, &config).total() > 1 << 40);

        let resnet = SearchSpace::named("resnet-tiny").unwrap();
        let config = TrainConfig::preset("tiny", &resnet).unwrap();
        let wide = SearchSpace { width_multiplier: 2.0, ..resnet.clone() };
        let (usual, wide) = (estimate(&resnet, &config), estimate(&wide, &config));
        assert!(wide.weights > 3 * usual.weights && wide.activations > usual.activations * 19 / 10);
    }

    #[test]
    fn the_system_is_understood() {
        assert_eq!(field("MemTotal:  16 kB\nMemAvailable:   7 kB\n", "MemAvailable"), Some(7 * 1024));
        assert_eq!(field("VmHWM: x kB", "VmHWM"), None);
        if let (Some(available), Some(limit), Some(peak)) = (available(), limit(), peak()) {
            assert!(available <= limit && peak > 0);
        }
    }
}
