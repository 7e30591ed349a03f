//! Channel means and deviations.

use super::Split;
use super::opening::Opening;
use crate::seed::{Stream, generator};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Number of images measured where each of them is a file to decode.
const SAMPLE: usize = 10_000;
/// Images per parallel share.
const SHARE: usize = 16;

/// Mean and standard deviation of each channel (red, green, blue) of values in 0..1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalisation {
    /// Channel means.
    pub mean: [f32; 3],
    /// Channel standard deviations, above 0.
    pub std: [f32; 3],
}

impl Normalisation {
    /// The normalisation that published ImageNet networks were trained with.
    pub const IMAGENET: Normalisation = Normalisation { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };

    /// Refuses values that would make batches infinite.
    ///
    /// # Errors
    /// A value is not finite, or a deviation is not above 0.
    pub fn check(&self) -> Result<()> {
        if self.mean.iter().all(|m| m.is_finite()) && self.std.iter().all(|s| s.is_finite() && *s > 0.0) {
            return Ok(());
        }
        Err(Error::Data(format!(
            "normalisation with mean {:?} and std {:?}: all must be finite and every std above 0",
            self.mean, self.std
        )))
    }

    /// Whether the means are colours, as training needs them for the borders of moved images.
    pub fn has_colours(&self) -> bool {
        self.mean.iter().all(|m| (0.0..=1.0).contains(m))
    }

    /// Measures all images of `split`, or a seeded sample of image files. Sums are integers, so the result does not
    /// depend on threads. Also returns a note if all images have one colour, since no network can tell them apart.
    ///
    /// # Errors
    /// There is no image, or an image cannot be read; [`Error::Interrupted`].
    pub(super) fn measure(split: &Split, source: &str, opening: &Opening) -> Result<(Normalisation, Option<String>)> {
        // Whether files are held in memory depends on the machine, and must not decide the result.
        let indices = if !split.is_of_files() || split.len() <= SAMPLE {
            (0..split.len()).collect()
        } else {
            let rng = &mut generator(opening.options.seed, Stream::Normalisation, &[]);
            rand::seq::index::sample(rng, split.len(), SAMPLE).into_vec()
        };
        let shares: Vec<&[usize]> = indices.chunks(SHARE).collect();
        let sums = opening.map("measuring colours", &shares, |share| {
            let (mut count, mut sum, mut squares) = (0, [0u64; 3], [0u64; 3]);
            for &index in *share {
                let image = split.image(index)?;
                count += (image.pixels.len() / 3) as u64;
                for pixel in image.pixels.chunks_exact(3) {
                    for channel in 0..3 {
                        let value = u64::from(pixel[channel]);
                        sum[channel] += value;
                        squares[channel] += value * value;
                    }
                }
            }
            Ok::<_, Error>((count, sum, squares))
        })?;
        let (mut count, mut sum, mut squares) = (0, [0u64; 3], [0u64; 3]);
        for share in sums {
            let (share_count, share_sum, share_squares) = share?;
            count += share_count;
            for channel in 0..3 {
                sum[channel] += share_sum[channel];
                squares[channel] += share_squares[channel];
            }
        }
        if count == 0 {
            return Err(Error::format(source, "there is no training image to measure the normalisation on"));
        }
        let mean: [f64; 3] = std::array::from_fn(|i| sum[i] as f64 / count as f64 / 255.0);
        // Exact, in integers: the sum of squares is smallest if all values are equal.
        let constant = |i: usize| u128::from(squares[i]) * u128::from(count) == u128::from(sum[i]) * u128::from(sum[i]);
        let note = (0..3).all(constant).then(|| {
            let colour: [u64; 3] = std::array::from_fn(|i| sum[i] / count);
            format!(
                "{source}: all pixels of its training images have one colour (red, green, blue: {colour:?}), so there is \
                 nothing to learn, and batch norm divides by no variance: training may end with infinite values; check how \
                 the images were written"
            )
        });
        // A channel that never changes would divide by zero; one grey level is then as good as any deviation.
        let std = std::array::from_fn(|i| {
            let variance = squares[i] as f64 / count as f64 / (255.0 * 255.0) - mean[i] * mean[i];
            variance.max(0.0).sqrt().max(1.0 / 255.0) as f32
        });
        Ok((Normalisation { mean: mean.map(|m| m as f32), std }, note))
    }
}
