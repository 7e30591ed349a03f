//! Elastic kernel size: a smaller kernel is the centre of the next larger one times a learned matrix (paper §3.3,
//! figure 3). Without matrices it is the centre of the largest.

use super::{Active, Initialiser, ParameterId, ParameterKind, Parameters};
use candle_core::Result;

/// A depthwise weight at the largest kernel size with the matrices to the smaller ones.
#[derive(Debug)]
pub(crate) struct ElasticKernel {
    /// `[channels, 1, k, k]` at the largest kernel size.
    pub weight: ParameterId,
    /// Sizes with a matrix of their own, and the largest; ascending.
    kernel_sizes: Vec<usize>,
    /// From each size to the next smaller, in the order of `kernel_sizes` without the largest; `[k², k²]` of the
    /// smaller one, shared by all channels of the layer.
    transforms: Vec<ParameterId>,
}

impl ElasticKernel {
    pub(crate) fn new(
        parameters: &mut Parameters,
        name: &str,
        channels: usize,
        kernel_sizes: &[usize],
    ) -> Result<Self> {
        let largest = kernel_sizes[kernel_sizes.len() - 1];
        let deviation = (2.0 / (largest * largest) as f64).sqrt();
        let weight = parameters.add(
            format!("{name}.weight"),
            &[channels, 1, largest, largest],
            Initialiser::Normal(deviation),
            ParameterKind::Depthwise,
        )?;
        let mut transforms = Vec::new();
        for pair in kernel_sizes.windows(2) {
            let (small, large) = (pair[0], pair[1]);
            let name = format!("{name}.transform_{large}to{small}");
            let dims = [small * small, small * small];
            transforms.push(parameters.add(name, &dims, Initialiser::Identity, ParameterKind::KernelTransform)?);
        }
        Ok(ElasticKernel { weight, kernel_sizes: kernel_sizes.to_vec(), transforms })
    }

    /// The weight `[channels, kernel * kernel]` of the leading channels at `kernel`: one of the sizes, or a smaller
    /// one.
    pub(crate) fn active(&self, parameters: &Parameters, channels: usize, kernel: usize) -> Active {
        let smaller = self.kernel_sizes.iter().zip(&self.transforms).rev();
        let steps = smaller.filter(|(size, _)| **size >= kernel);
        let mut steps: Vec<_> = steps.map(|(size, matrix)| (*size, Some(parameters.source(*matrix)))).collect();
        let largest = self.kernel_sizes.last().copied();
        if steps.last().map(|(size, _)| *size).or(largest).is_some_and(|size| size > kernel) {
            steps.push((kernel, None));
        }
        match steps.is_empty() {
            true => parameters.leading(self.weight, channels),
            false => Active::Kernel { weight: parameters.source(self.weight), channels, steps },
        }
    }
}
