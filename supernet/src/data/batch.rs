//! Batches: the images of given indices at one resolution.

use super::augmentation::Painter;
use super::{Augmentation, Dataset, Split};
use crate::seed::{Stream, generator};
use crate::{Error, Result};
use rand::seq::SliceRandom;
use rayon::prelude::*;

/// Largest side of a batch's images, in pixels.
const MAX_RESOLUTION: usize = 4096;

/// Images as input of a network, with their labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Normalised values `[n, resolution, resolution, 3]`.
    pub images: Vec<f32>,
    /// Classes of the `n` images.
    pub labels: Vec<u32>,
    /// Side of the images in pixels.
    pub resolution: usize,
}

impl Dataset {
    /// Training images `indices` (of [`Dataset::train`]) at `resolution`, changed at random by `augmentation`.
    ///
    /// The values of an image depend only on `(seed, epoch, index)` and the settings: not on the rest of the batch, and
    /// not on threads.
    ///
    /// # Errors
    /// The resolution is 0 or above 4096, an index is outside the split, the augmentation is impossible, or an image
    /// that is read on demand cannot be read.
    pub fn training_batch(
        &self,
        indices: &[usize],
        resolution: usize,
        augmentation: &Augmentation,
        seed: u64,
        epoch: u64,
    ) -> Result<Batch> {
        augmentation.check()?;
        self.batch(&self.train, indices, resolution, |painter, index, out| {
            let image = self.train.image(index)?;
            let mut rng = generator(seed, Stream::Augmentation, &[epoch, index as u64]);
            painter.varied(&image, augmentation, &mut rng, out);
            Ok(())
        })
    }

    /// Images `indices` of `split` as evaluation sees them at `resolution`.
    ///
    /// A square image is scaled to the resolution as a whole. Any other image is reduced to a centred square: below 64
    /// pixels one as large as the shorter side, from 64 on the central 224/256 of it (equivalent to scaling the shorter
    /// side to `resolution * 256 / 224` and cropping the centre, as in ImageNet evaluation).
    ///
    /// # Errors
    /// As for [`Dataset::training_batch`].
    pub fn evaluation_batch(&self, split: &Split, indices: &[usize], resolution: usize) -> Result<Batch> {
        self.batch(split, indices, resolution, |painter, index, out| {
            painter.plain(&split.image(index)?, out);
            Ok(())
        })
    }

    fn batch(
        &self,
        split: &Split,
        indices: &[usize],
        resolution: usize,
        paint: impl Fn(&mut Painter, usize, &mut [f32]) -> Result<()> + Sync,
    ) -> Result<Batch> {
        if !(1..=MAX_RESOLUTION).contains(&resolution) {
            return Err(Error::Data(format!("resolution {resolution} is not between 1 and {MAX_RESOLUTION}")));
        }
        if let Some(beyond) = indices.iter().find(|&&index| index >= split.len()) {
            return Err(Error::Data(format!("image {beyond} is outside a split of {} images", split.len())));
        }
        let size = resolution * resolution * 3;
        let mut images = vec![0.0; indices.len() * size];
        images.par_chunks_exact_mut(size).zip(indices).try_for_each_init(
            || Painter::new(resolution, &self.normalisation),
            |painter, (out, &index)| paint(painter, index, out),
        )?;
        Ok(Batch { images, labels: indices.iter().map(|&index| split.label(index)).collect(), resolution })
    }
}

/// Order in which `len` training images are seen in `epoch`: a permutation of `0..len`.
pub fn epoch_order(len: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    order.shuffle(&mut generator(seed, Stream::Order, &[epoch]));
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Crop, DataOptions};

    fn dataset() -> Dataset {
        let options = DataOptions { validation: Some(20), builtin_train: 120, builtin_test: 20, ..Default::default() };
        Dataset::open("builtin", &options).unwrap()
    }

    #[test]
    fn augmentation_depends_on_seed_epoch_and_index_alone() {
        let data = dataset();
        let augmentation = Augmentation { colour_jitter: 0.3, ..Default::default() };
        let indices: Vec<usize> = (0..40).collect();
        let batch = data.training_batch(&indices, 24, &augmentation, 5, 2).unwrap();
        assert_eq!((batch.images.len(), batch.labels.len(), batch.resolution), (40 * 24 * 24 * 3, 40, 24));
        let size = 24 * 24 * 3;
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let alone = one.install(|| data.training_batch(&[17, 3], 24, &augmentation, 5, 2)).unwrap();
        assert_eq!(alone.images[..size], batch.images[17 * size..18 * size]);
        assert_eq!(alone.images[size..], batch.images[3 * size..4 * size]);
        assert_eq!(alone.labels, [batch.labels[17], batch.labels[3]]);
        for (seed, epoch) in [(6, 2), (5, 3)] {
            assert_ne!(data.training_batch(&indices, 24, &augmentation, seed, epoch).unwrap().images, batch.images);
        }
    }

    #[test]
    fn a_flip_without_a_crop_is_the_mirrored_evaluation_image() {
        let data = dataset();
        let augmentation = Augmentation { crop: Crop::None, flip: true, colour_jitter: 0.0 };
        let indices: Vec<usize> = (0..30).collect();
        let (varied, plain) = (
            data.training_batch(&indices, 16, &augmentation, 0, 0).unwrap(),
            data.evaluation_batch(&data.train, &indices, 16).unwrap(),
        );
        let size = 16 * 16 * 3;
        let mut flipped = 0;
        for (a, b) in varied.images.chunks(size).zip(plain.images.chunks(size)) {
            if a != b {
                flipped += 1;
                for (line, mirror) in a.chunks(48).zip(b.chunks(48)) {
                    assert!(line.chunks(3).eq(mirror.chunks(3).rev()));
                }
            }
        }
        assert!((6..25).contains(&flipped), "{flipped} of 30");
    }

    #[test]
    fn evaluation_batches_of_the_training_set_are_normalised() {
        let data = dataset();
        let indices: Vec<usize> = (0..data.train.len()).collect();
        let batch = data.evaluation_batch(&data.train, &indices, 32).unwrap();
        for channel in 0..3 {
            let values: Vec<f64> = batch.images.iter().skip(channel).step_by(3).map(|&v| f64::from(v)).collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
            assert!(mean.abs() < 1e-4 && (variance - 1.0).abs() < 1e-3, "mean {mean}, variance {variance}");
        }
    }

    #[test]
    fn impossible_requests_are_named() {
        let data = dataset();
        let error = data.evaluation_batch(&data.test, &[3, 20], 32).unwrap_err().to_string();
        assert!(error.contains("image 20") && error.contains("20 images"), "{error}");
        assert!(data.evaluation_batch(&data.test, &[0], 0).unwrap_err().to_string().contains("resolution 0"));
        assert!(data.evaluation_batch(&data.test, &[], 8).unwrap().images.is_empty());
    }

    #[test]
    fn orders_are_permutations_of_their_epoch() {
        let order = epoch_order(100, 1, 0);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_eq!(order, epoch_order(100, 1, 0));
        assert_ne!(order, epoch_order(100, 1, 1));
        assert_ne!(order, epoch_order(100, 2, 0));
    }
}
