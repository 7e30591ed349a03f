//! Stochastic depth (Huang et al. 2016): in training, blocks with a shortcut are skipped for some of the images.

use super::Pass;
use crate::ops::tensor_values;
use crate::seed::{Stream, generator};
use candle_core::{Result, Tensor};
use rand::Rng;

/// The images that skip blocks in a training step. They depend on the step, the block and the image's place only, so
/// that all subnets of a step agree, as the layers that they have in common are computed once.
#[derive(Debug, Clone, Copy)]
pub struct DropPath {
    /// Probability of the last block; it rises linearly from the first one on.
    pub rate: f64,
    /// Seed of the training.
    pub seed: u64,
    /// Number of the step.
    pub step: usize,
    /// Place of the first image in the step's whole batch, of which other processes may hold parts.
    pub first: usize,
}

/// The images that skip one block.
pub(crate) struct BlockDrops {
    of: DropPath,
    /// Number of the block among the network's, from 0.
    block: usize,
    rate: f64,
}

impl DropPath {
    /// Drops in block number `block` (from 0) of `blocks`.
    pub(crate) fn of_block(self, block: usize, blocks: usize) -> BlockDrops {
        BlockDrops { of: self, block, rate: self.rate * (block + 1) as f64 / blocks as f64 }
    }
}

impl BlockDrops {
    /// What the block's branch is multiplied by for each of `images` images: 0, or what keeps the mean as it is.
    pub(crate) fn factors(&self, images: usize) -> Vec<f32> {
        let DropPath { seed, step, first, .. } = self.of;
        let factor = |image: usize| {
            let position = [step as u64, self.block as u64, image as u64];
            let skips = generator(seed, Stream::DropPath, &position).random::<f64>() < self.rate;
            if skips { 0.0 } else { (1.0 / (1.0 - self.rate)) as f32 }
        };
        (first..first + images).map(factor).collect()
    }
}

impl Pass<'_> {
    /// The output of `branch` `[images, ..]`, of a block with a shortcut, without the images that skip the block.
    pub(crate) fn dropped(&mut self, branch: impl FnOnce(&mut Self) -> Result<Tensor>) -> Result<Tensor> {
        let output = branch(self)?;
        let Some(drops) = &self.drops else { return Ok(output) };
        let factors = drops.factors(output.dim(0)?);
        let scaled = multiplied(&output, &factors)?;
        self.record(move |gradient, _| multiplied(&gradient, &factors).map(Some));
        Ok(scaled)
    }
}

/// Each image of `x` `[images, ..]` times its factor.
fn multiplied(x: &Tensor, factors: &[f32]) -> Result<Tensor> {
    let size = x.elem_count() / factors.len().max(1);
    let values = tensor_values(x, |values| {
        let images = values.chunks_exact(size).zip(factors);
        Ok(images.flat_map(|(image, factor)| image.iter().map(move |value| value * factor)).collect::<Vec<f32>>())
    })?;
    Tensor::from_vec(values, x.shape(), x.device())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_and_images_do_not_depend_on_the_part_of_the_batch() {
        let drops = |first: usize, block: usize| DropPath { rate: 0.4, seed: 3, step: 7, first }.of_block(block, 4);
        for (block, rate) in [(0, 0.1), (1, 0.2), (3, 0.4)] {
            let factors = drops(0, block).factors(20_000);
            let dropped = factors.iter().filter(|&&factor| factor == 0.0).count() as f64 / 20_000.0;
            assert!((dropped - rate).abs() < 0.015, "{block}: {dropped}");
            let mean = factors.iter().map(|&factor| f64::from(factor)).sum::<f64>() / 20_000.0;
            assert!((mean - 1.0).abs() < 0.02, "{block}: {mean}");
            assert_eq!(drops(100, block).factors(50), factors[100..150]);
        }
        assert_ne!(drops(0, 2).factors(100), drops(0, 3).factors(100));
    }
}
