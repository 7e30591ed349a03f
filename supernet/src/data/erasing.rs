//! Random erasing (Zhong et al. 2020): a random rectangle of some training images is blanked.

use crate::{Error, Result};
use rand::Rng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

/// Largest ratio of the sides.
const MAX_ASPECT: f64 = 1.0 / 0.3;
/// Attempts at a rectangle that fits, before the image stays whole.
const TRIES: usize = 10;

/// Which images lose a rectangle, and how large it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomErasing {
    /// Part of the images that lose one.
    pub probability: f64,
    /// Smallest and largest part of the image's area.
    pub area: [f64; 2],
}

impl RandomErasing {
    pub(super) fn check(&self) -> Result<()> {
        let RandomErasing { probability, area: [smallest, largest] } = self;
        if !(*probability > 0.0 && *probability <= 1.0) {
            return Err(Error::Config(format!(
                "random_erasing probability is {probability}; it must be above 0 and at most 1, or leave random_erasing out"
            )));
        }
        if !(*smallest > 0.0 && smallest <= largest && *largest < 1.0) {
            return Err(Error::Config(format!(
                "random_erasing area is [{smallest}, {largest}]; both must be above 0 and below 1, the smaller first"
            )));
        }
        Ok(())
    }

    /// Sets a rectangle of a normalised image of `side` pixels to the mean colour, or none.
    pub(super) fn apply(&self, pixels: &mut [f32], side: usize, rng: &mut StdRng) {
        if rng.random::<f64>() >= self.probability {
            return;
        }
        for _ in 0..TRIES {
            let area = (side * side) as f64 * rng.random_range(self.area[0]..=self.area[1]);
            let aspect = rng.random_range(-MAX_ASPECT.ln()..=MAX_ASPECT.ln()).exp();
            let (width, height) = ((area * aspect).sqrt().round() as usize, (area / aspect).sqrt().round() as usize);
            if (1..=side).contains(&width) && (1..=side).contains(&height) {
                let (x, y) = (rng.random_range(0..=side - width), rng.random_range(0..=side - height));
                for row in pixels.chunks_exact_mut(3 * side).skip(y).take(height) {
                    row[3 * x..3 * (x + width)].fill(0.0);
                }
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::{Stream, generator};

    #[test]
    fn as_many_images_lose_as_much_as_the_settings_say() {
        let settings = RandomErasing { probability: 0.4, area: [0.1, 0.3] };
        let (side, count) = (20, 1000);
        let blanked = |n: u64| {
            let mut pixels = vec![1.0; side * side * 3];
            settings.apply(&mut pixels, side, &mut generator(1, Stream::Augmentation, &[n]));
            let rows = pixels.chunks(3 * side).filter(|row| row.contains(&0.0)).count();
            let zeros = pixels.iter().filter(|&&v| v == 0.0).count() / 3;
            // A rectangle: as many pixels in each of its rows.
            assert!(rows == 0 || zeros % rows == 0);
            zeros as f64 / (side * side) as f64
        };
        let areas: Vec<f64> = (0..count).map(blanked).filter(|&area| area > 0.0).collect();
        assert!((areas.len() as f64 / count as f64 - 0.4).abs() < 0.05, "{}", areas.len());
        assert!(areas.iter().all(|area| (0.07..=0.34).contains(area)));
        assert!(areas.iter().any(|&area| area < 0.14) && areas.iter().any(|&area| area > 0.26));
    }

    #[test]
    fn impossible_settings_are_named() {
        let error = |probability, area| RandomErasing { probability, area }.check().unwrap_err().to_string();
        assert!(error(0.0, [0.1, 0.2]).contains("probability is 0"));
        assert!(error(0.5, [0.3, 0.2]).contains("area is [0.3, 0.2]"));
        assert!(error(0.5, [0.0, 0.2]).contains("area is [0, 0.2]"));
        assert!(error(0.5, [0.1, 1.0]).contains("area is [0.1, 1]"));
        RandomErasing { probability: 1.0, area: [0.1, 0.2] }.check().unwrap();
    }
}
