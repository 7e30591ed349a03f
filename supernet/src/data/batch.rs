//! Batches: the images of given indices at one resolution.

use super::decode::{check_size, decode_checked};
use super::painter::Painter;
use super::{Augmentation, Dataset, Image, LabelShares, Normalisation, Split};
use crate::graph::MAX_SIZE;
use crate::seed::{Stream, generator};
use crate::{Error, Result};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

/// Images as input of a network, with their labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Normalised values `[n, resolution, resolution, 3]`.
    pub images: Vec<f32>,
    /// Classes of the `n` images; of a mixed image that with the largest share.
    pub labels: Vec<u32>,
    /// All classes of mixed images, with their shares; empty if no images are mixed.
    pub shares: Vec<LabelShares>,
    /// Side of the images in pixels.
    pub resolution: usize,
}

impl Dataset {
    /// Part `own` of a step on the training images `indices` (of [`epoch_order`] or [`balanced_order`]) at
    /// `resolution`, changed at random by `augmentation`.
    ///
    /// The values of an image depend only on `(seed, epoch, index)` and the settings: not on the rest of the batch (but
    /// for images that are mixed with others of the step), and not on threads or parts.
    ///
    /// # Errors
    /// The resolution is 0 or above 4096, an index is outside the split, the augmentation is impossible, or an image
    /// that is read on demand cannot be read.
    pub fn training_batch(
        &self,
        indices: &[usize],
        own: Range<usize>,
        resolution: usize,
        augmentation: &Augmentation,
        seed: u64,
        epoch: u64,
    ) -> Result<Batch> {
        augmentation.check()?;
        let mixture = match (&augmentation.mix, indices.first()) {
            // The first image stands for the step: an epoch shows each of them once.
            (Some(mix), Some(&first)) if resolution > 0 => {
                mix.draw(indices.len(), resolution, &mut generator(seed, Stream::Mixing, &[epoch, first as u64]))
            }
            _ => None,
        };
        let Some(mixture) = mixture else {
            return self.varied(&indices[own], resolution, augmentation, seed, epoch);
        };
        let mut places: Vec<usize> = own.clone().flat_map(|place| mixture.sources(place)).collect();
        places.sort_unstable();
        places.dedup();
        let needed: Vec<usize> = places.iter().map(|&place| indices[place]).collect();
        let plain = self.varied(&needed, resolution, augmentation, seed, epoch)?;
        let at = |place: usize| places.partition_point(|&other| other < place);
        let size = resolution * resolution * 3;
        let mut images = vec![0.0; own.len() * size];
        images.par_chunks_exact_mut(size).zip(own.clone()).for_each(|(out, place)| {
            mixture.write(place, resolution, |source| &plain.images[at(source) * size..][..size], out);
        });
        let label = |source: usize| plain.labels[at(source)];
        let shares: Vec<LabelShares> = own.map(|place| mixture.labels(place, resolution, label)).collect();
        let largest = |shares: &LabelShares| {
            shares.iter().fold(shares[0], |best, &share| if share.1 > best.1 { share } else { best }).0
        };
        Ok(Batch { images, labels: shares.iter().map(largest).collect(), shares, resolution })
    }

    /// Training images changed at random, without mixing.
    fn varied(
        &self,
        draws: &[usize],
        resolution: usize,
        augmentation: &Augmentation,
        seed: u64,
        epoch: u64,
    ) -> Result<Batch> {
        let count = self.train.len().max(1);
        let indices: Vec<usize> = draws.iter().map(|draw| draw % count).collect();
        let repetition: Vec<u64> = draws.iter().map(|draw| (draw / count) as u64).collect();
        let position = |place: usize| match repetition[place] {
            0 => vec![epoch, indices[place] as u64],
            again => vec![epoch, indices[place] as u64, again],
        };
        self.batch(&self.train, &indices, resolution, |painter, place, out| {
            let index = indices[place];
            let image = self.train.image(index)?;
            let mut rng = generator(seed, Stream::Augmentation, &position(place));
            let mirrors =
                |rng: &mut StdRng| augmentation.flip.mirrors(seed, epoch + repetition[place], index as u64, rng);
            painter.varied(&image, augmentation, &mut rng, mirrors, out);
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
        self.batch(split, indices, resolution, |painter, place, out| {
            painter.plain(&split.image(indices[place])?, out);
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
        check_resolution(resolution)?;
        if let Some(beyond) = indices.iter().find(|&&index| index >= split.len()) {
            return Err(Error::Data(format!("image {beyond} is outside a split of {} images", split.len())));
        }
        let size = resolution * resolution * 3;
        let mut images = vec![0.0; indices.len() * size];
        images.par_chunks_exact_mut(size).enumerate().try_for_each_init(
            || Painter::new(resolution, &self.normalisation),
            |painter, (place, out)| paint(painter, place, out),
        )?;
        let labels = indices.iter().map(|&index| split.label(index)).collect();
        Ok(Batch { images, labels, shares: Vec::new(), resolution })
    }
}

/// An image file as evaluation sees it: normalised values `[resolution, resolution, 3]` (see
/// [`Dataset::evaluation_batch`]).
///
/// # Errors
/// The file is missing, no complete JPEG or PNG image, or the resolution is 0 or above 4096; with the path.
pub fn image_input(path: &Path, resolution: usize, normalisation: &Normalisation) -> Result<Vec<f32>> {
    let image = decode_checked(&crate::files::read_bytes(path)?).map_err(|reason| Error::format(path, reason))?;
    input_of(&image, resolution, normalisation)
}

/// The content of an image file as evaluation sees it: see [`image_input`].
///
/// # Errors
/// No complete JPEG or PNG image, or the resolution is 0 or above 4096.
pub fn content_input(content: &[u8], resolution: usize, normalisation: &Normalisation) -> Result<Vec<f32>> {
    let image = decode_checked(content).map_err(|reason| Error::Data(format!("the image {reason}")))?;
    input_of(&image, resolution, normalisation)
}

/// RGB pixels `[height, width, 3]` as evaluation sees the image in a file: see [`image_input`].
///
/// # Errors
/// Another number of bytes, an image without pixels or of more than a file may have, or a resolution that is 0 or above
/// 4096.
pub fn pixels_input(
    pixels: &[u8],
    width: usize,
    height: usize,
    resolution: usize,
    normalisation: &Normalisation,
) -> Result<Vec<f32>> {
    let [columns, rows] = [width, height].map(|side| u32::try_from(side).unwrap_or(u32::MAX));
    check_size(columns, rows).map_err(|reason| Error::Data(format!("the image {reason}")))?;
    if pixels.len() != width * height * 3 {
        let (found, expected) = (pixels.len(), width * height * 3);
        let message =
            format!("{found} bytes are not the pixels of an RGB image of {width}x{height}, which has {expected} bytes");
        return Err(Error::Data(message));
    }
    input_of(&Image { width, height, pixels: Cow::Borrowed(pixels) }, resolution, normalisation)
}

fn input_of(image: &Image, resolution: usize, normalisation: &Normalisation) -> Result<Vec<f32>> {
    normalisation.check()?;
    check_resolution(resolution)?;
    let mut out = vec![0.0; resolution * resolution * 3];
    Painter::new(resolution, normalisation).plain(image, &mut out);
    Ok(out)
}

fn check_resolution(resolution: usize) -> Result<()> {
    if (1..=MAX_SIZE).contains(&resolution) {
        return Ok(());
    }
    Err(Error::Data(format!("resolution {resolution} is not between 1 and {MAX_SIZE}")))
}

/// Order in which `len` training images are seen in `epoch`: a permutation of `0..len`.
pub fn epoch_order(len: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    order.shuffle(&mut generator(seed, Stream::Order, &[epoch]));
    order
}

/// As [`epoch_order`] of the images of `split`, with each class as often as the others: images of small classes repeat,
/// and of large ones some wait for other epochs.
///
/// A number from the split's length on is a repetition: image `n % len` once more, changed in another way.
pub fn balanced_order(split: &Split, classes: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let (len, mut rng) = (split.len(), generator(seed, Stream::BalancedOrder, &[epoch]));
    let mut of_class = vec![Vec::new(); classes];
    (0..len).for_each(|index| of_class[split.label(index) as usize].push(index));
    of_class.retain(|images| !images.is_empty());
    // Where the images cannot be divided evenly, other classes have one more in each epoch.
    of_class.shuffle(&mut rng);
    let (mut order, present) = (Vec::with_capacity(len), of_class.len());
    for (class, images) in of_class.iter_mut().enumerate() {
        images.shuffle(&mut rng);
        let count = len * (class + 1) / present - len * class / present;
        order.extend((0..count).map(|draw| images[draw % images.len()] + draw / images.len() * len));
    }
    order.shuffle(&mut rng);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Crop, DataOptions, Mix, Mixing};

    fn dataset() -> Dataset {
        let options = DataOptions { validation: Some(20), builtin_train: 120, builtin_test: 20, ..Default::default() };
        Dataset::open("builtin", &options).unwrap()
    }

    #[test]
    fn augmentation_depends_on_seed_epoch_and_index_alone() {
        let data = dataset();
        let augmentation = Augmentation { colour_jitter: 0.3, ..Default::default() };
        let indices: Vec<usize> = (0..40).collect();
        let batch = data.training_batch(&indices, 0..40, 24, &augmentation, 5, 2).unwrap();
        assert_eq!((batch.images.len(), batch.labels.len(), batch.resolution), (40 * 24 * 24 * 3, 40, 24));
        let size = 24 * 24 * 3;
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let alone = one.install(|| data.training_batch(&[17, 3], 0..2, 24, &augmentation, 5, 2)).unwrap();
        assert_eq!(alone.images[..size], batch.images[17 * size..18 * size]);
        assert_eq!(alone.images[size..], batch.images[3 * size..4 * size]);
        assert_eq!(alone.labels, [batch.labels[17], batch.labels[3]]);
        for (seed, epoch) in [(6, 2), (5, 3)] {
            let other = data.training_batch(&indices, 0..40, 24, &augmentation, seed, epoch).unwrap();
            assert_ne!(other.images, batch.images);
        }
    }

    #[test]
    fn a_flip_without_a_crop_is_the_mirrored_evaluation_image() {
        let data = dataset();
        let augmentation = Augmentation { crop: Crop::None, ..Augmentation::default() };
        let indices: Vec<usize> = (0..30).collect();
        let (varied, plain) = (
            data.training_batch(&indices, 0..30, 16, &augmentation, 0, 0).unwrap(),
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
    fn a_part_of_a_mixed_batch_is_that_part_of_the_whole() {
        let data = dataset();
        let indices: Vec<usize> = (20..44).collect();
        for method in [Mixing::Mixup, Mixing::Cutmix, Mixing::Ricap] {
            let mix = Some(Mix { method, beta: 1.0, probability: 1.0 });
            let augmentation = Augmentation { mix, ..Augmentation::default() };
            let of = |own: Range<usize>| data.training_batch(&indices, own, 16, &augmentation, 5, 2).unwrap();
            let (whole, part) = (of(0..24), of(7..12));
            let size = 16 * 16 * 3;
            assert_eq!(part.images, whole.images[7 * size..12 * size]);
            assert_eq!((&part.labels[..], &part.shares[..]), (&whole.labels[7..12], &whole.shares[7..12]));
            let plain = data.training_batch(&indices, 0..24, 16, &Augmentation::default(), 5, 2).unwrap();
            assert!(plain.shares.is_empty() && plain.images != whole.images);
            for (place, shares) in whole.shares.iter().enumerate() {
                assert_eq!(shares[0].0, plain.labels[place]);
                assert!(shares.iter().all(|share| share.1 <= 1.0));
            }
        }
    }

    #[test]
    fn a_balanced_order_shows_classes_alike_and_repeats_with_other_changes() {
        let data = dataset();
        let labels = |n: usize| data.train.label(n);
        // 9 images of class 0, 3 of class 1.
        let of = |class: u32, count: usize| (0..data.train.len()).filter(move |&n| labels(n) == class).take(count);
        let uneven =
            Dataset { train: data.train.subset(&of(0, 9).chain(of(1, 3)).collect::<Vec<_>>()), ..data.clone() };
        let mut seen = std::collections::HashSet::new();
        for epoch in 0..4 {
            let order = balanced_order(&uneven.train, 10, 1, epoch);
            assert_eq!(order, balanced_order(&uneven.train, 10, 1, epoch));
            assert_eq!(order.len(), 12);
            let small = order.iter().filter(|&&n| uneven.train.label(n % 12) == 1).count();
            assert_eq!(small, 6);
            assert_eq!(order.iter().collect::<std::collections::HashSet<_>>().len(), 12, "{order:?}");
            seen.extend(order);
        }
        assert_eq!(seen.len(), 9 + 6, "all images, and each of the small class again");
        let image = |n| uneven.training_batch(&[n], 0..1, 16, &Augmentation::default(), 1, 0).unwrap();
        let repeated = (9..12).filter(|&n| image(n).images != image(n + 12).images).count();
        assert!(repeated > 0 && image(10).labels == image(22).labels);
    }

    #[test]
    fn an_image_file_is_seen_as_in_an_evaluation_batch() {
        let folder = tempfile::tempdir().unwrap();
        for split in ["train", "test"] {
            let class = folder.path().join(split).join("one");
            std::fs::create_dir_all(&class).unwrap();
            let picture = image::RgbImage::from_fn(90, 70, |x, y| image::Rgb([x as u8, (3 * y) as u8, (x * y) as u8]));
            picture.save(class.join("a.png")).unwrap();
        }
        let options = DataOptions { normalisation: Some(Normalisation::IMAGENET), ..Default::default() };
        let source = folder.path().to_str().unwrap();
        let observer = |_| std::ops::ControlFlow::Continue(());
        let data = Dataset::open_splits(source, &options, crate::data::Splits::Test, &observer).unwrap();
        let batch = data.evaluation_batch(&data.test, &[0], 24).unwrap().images;
        let path = folder.path().join("test/one/a.png");
        assert_eq!(image_input(&path, 24, &Normalisation::IMAGENET).unwrap(), batch);
        let content = std::fs::read(&path).unwrap();
        assert_eq!(content_input(&content, 24, &Normalisation::IMAGENET).unwrap(), batch);
        let message = content_input(&content[..90], 24, &Normalisation::IMAGENET).unwrap_err().to_string();
        assert!(message.contains("the image is"), "{message}");
        let pixels = image::open(&path).unwrap().into_rgb8().into_raw();
        assert_eq!(pixels_input(&pixels, 90, 70, 24, &Normalisation::IMAGENET).unwrap(), batch);
        for (width, height, expected) in [(70, 91, "70x91"), (0, 70, "0x70"), (1 << 40, 70, "limits")] {
            let message = pixels_input(&pixels, width, height, 24, &Normalisation::IMAGENET).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        std::fs::write(&path, "text").unwrap();
        let message = image_input(&path, 24, &Normalisation::IMAGENET).unwrap_err().to_string();
        assert!(message.contains("a.png") && message.contains("not an image"), "{message}");
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
