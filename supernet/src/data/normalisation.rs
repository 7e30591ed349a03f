//! Channel means and deviations.

use super::Split;
use crate::seed::{Stream, generator};
use crate::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Images that are measured where decoding is needed for each of them.
const SAMPLE: usize = 10_000;

/// Mean and standard deviation of each channel (red, green, blue) of values in 0..1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalisation {
    /// Means.
    pub mean: [f32; 3],
    /// Standard deviations, above 0.
    pub std: [f32; 3],
}

impl Normalisation {
    /// What published ImageNet networks were trained with.
    pub const IMAGENET: Normalisation = Normalisation { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };

    /// Refuses values that would make batches infinite.
    ///
    /// # Errors
    /// A value that is not finite, or a deviation that is not above 0.
    pub fn check(&self) -> Result<()> {
        if self.mean.iter().all(|m| m.is_finite()) && self.std.iter().all(|s| s.is_finite() && *s > 0.0) {
            return Ok(());
        }
        Err(Error::Data(format!(
            "normalisation with mean {:?} and std {:?}: all must be finite and every std above 0",
            self.mean, self.std
        )))
    }

    /// Measures all images of `split`, or a seeded sample where they are not in memory. Sums are integers, so the result
    /// does not depend on threads.
    pub(super) fn measure(split: &Split, seed: u64) -> Result<Normalisation> {
        let indices = if split.in_memory() || split.len() <= SAMPLE {
            (0..split.len()).collect()
        } else {
            let rng = &mut generator(seed, Stream::Normalisation, &[]);
            rand::seq::index::sample(rng, split.len(), SAMPLE).into_vec()
        };
        let zero = || (0u64, [0u64; 3], [0u64; 3]);
        let (count, sum, squares) = indices
            .par_iter()
            .map(|&index| {
                let image = split.image(index)?;
                let (mut sum, mut squares) = ([0u64; 3], [0u64; 3]);
                for pixel in image.pixels.chunks_exact(3) {
                    for channel in 0..3 {
                        let value = u64::from(pixel[channel]);
                        sum[channel] += value;
                        squares[channel] += value * value;
                    }
                }
                Ok::<_, crate::Error>(((image.pixels.len() / 3) as u64, sum, squares))
            })
            .try_reduce(zero, |a, b| {
                let add = |x: [u64; 3], y: [u64; 3]| std::array::from_fn(|i| x[i] + y[i]);
                Ok((a.0 + b.0, add(a.1, b.1), add(a.2, b.2)))
            })?;
        if count == 0 {
            return Err(Error::Data("there is no training image to measure the normalisation on".into()));
        }
        let mean: [f64; 3] = std::array::from_fn(|i| sum[i] as f64 / count as f64 / 255.0);
        // A channel that never changes would divide by zero; one grey level is then as good as any deviation.
        let std = std::array::from_fn(|i| {
            let variance = squares[i] as f64 / count as f64 / (255.0 * 255.0) - mean[i] * mean[i];
            variance.max(0.0).sqrt().max(1.0 / 255.0) as f32
        });
        Ok(Normalisation { mean: mean.map(|m| m as f32), std })
    }
}
