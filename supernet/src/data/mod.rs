//! Datasets, augmentation and loading.
//!
//! | module | concern |
//! | --- | --- |
//! | [`mod@self`] | [`Dataset::open`]: which layout a folder has, the validation split, normalisation |
//! | `folder`, `cifar`, `idx`, `builtin` | one layout each |
//! | `decode` | JPEG and PNG bytes to RGB, and whether they are whole |
//! | `digest` | whether two datasets hold the same images |
//! | `split` | images and labels of one split, cached or read on demand |
//! | `resample`, `augmentation`, `batch` | from stored pixels to a normalised `[n, r, r, 3]` batch |
//! | `prefetch` | batches made beside compute |
//!
//! Images are RGB u8 `[height, width, 3]` at their stored size until a batch asks for a resolution, so that every pixel is
//! interpolated once.

mod augmentation;
mod batch;
mod builtin;
mod cifar;
mod decode;
mod digest;
mod folder;
mod idx;
mod normalisation;
mod prefetch;
mod resample;
mod split;

pub use augmentation::{Augmentation, Crop};
pub use batch::{Batch, epoch_order};
pub use digest::{DataIdentity, TrainedOn};
pub use normalisation::Normalisation;
pub use prefetch::Prefetch;
pub use split::{Image, Split};

use crate::seed::{Stream, generator};
use crate::{Error, Result};
use rand::seq::SliceRandom;
use split::Store;
use std::path::Path;
use std::sync::Arc;

/// Validation images carved from the training images unless [`DataOptions::validation`] says otherwise.
const DEFAULT_VALIDATION: usize = 5000;

/// What a folder must look like to be understood; part of the errors about folders that do not.
const LAYOUTS: &str = "expected one of: an image folder (train/CLASS/*.jpg|png with test/CLASS/* or val/CLASS/*), CIFAR-10 binary \
(data_batch_*.bin, test_batch.bin), CIFAR-100 binary (train.bin, test.bin), IDX (train-images-idx3-ubyte[.gz], \
train-labels-idx1-ubyte[.gz] and the same with t10k), or the word `builtin`";

/// Options for opening a dataset.
#[derive(Debug, Clone, PartialEq)]
pub struct DataOptions {
    /// Images carved from the training images by `seed`, evenly over the classes. The default of 5000 is capped at a fifth
    /// of the training images; any other number is taken as asked, and more than half of them is an error. Not used when
    /// an image folder brings a validation split of its own.
    pub validation: usize,
    /// Seed of the validation split and of the built-in images.
    pub seed: u64,
    /// Leave unreadable images out and count them in [`Dataset::skipped`] instead of failing.
    pub skip_bad: bool,
    /// Image files stay decoded in memory when all of them together take at most this many bytes; else they are decoded
    /// anew for each batch. Binary formats are decoded already and always held. Default 4 GiB.
    pub cache_bytes: usize,
    /// Channel means and deviations; `None` measures them on the training images (a seeded sample of 10,000 of them where
    /// images are not held in memory).
    pub normalisation: Option<Normalisation>,
    /// Training images (validation included) of the built-in set.
    pub builtin_train: usize,
    /// Test images of the built-in set.
    pub builtin_test: usize,
}

impl Default for DataOptions {
    fn default() -> Self {
        DataOptions {
            validation: DEFAULT_VALIDATION,
            seed: 0,
            skip_bad: false,
            cache_bytes: 4 << 30,
            normalisation: None,
            builtin_train: 6000,
            builtin_test: 1000,
        }
    }
}

/// Images of a fixed list of classes in three splits. Cheap to clone: pixels are shared.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// The folder's name, or `builtin`.
    pub name: String,
    /// Class names; a label is an index into them.
    pub classes: Vec<String>,
    /// Images to train on.
    pub train: Split,
    /// Images held back for the predictor and the search; may be empty.
    pub validation: Split,
    /// Images for the final benchmark only.
    pub test: Split,
    /// Channel means and deviations that batches are normalised with.
    pub normalisation: Normalisation,
    /// Unreadable images that were left out ([`DataOptions::skip_bad`]).
    pub skipped: usize,
}

/// What each layout's reader gives back.
struct Loaded {
    classes: Vec<String>,
    train: Store,
    validation: Option<Store>,
    test: Store,
    skipped: usize,
}

impl Dataset {
    /// Opens `source`: the word `builtin`, or a folder whose layout is recognised from its content.
    ///
    /// # Errors
    /// One sentence with the path and the reason: missing folder or unknown layout, empty class, class lists that differ
    /// between splits, unreadable or truncated images (unless [`DataOptions::skip_bad`]), wrong magic numbers, counts that
    /// disagree, labels out of range, or a validation split that would take more than half of the training images.
    pub fn open(source: &str, options: &DataOptions) -> Result<Dataset> {
        if let Some(normalisation) = &options.normalisation {
            normalisation.check()?;
        }
        let loaded =
            if source == "builtin" { builtin::open(options)? } else { open_folder(Path::new(source), options)? };
        let train = Arc::new(loaded.train);
        let (train, validation) = match loaded.validation {
            Some(validation) => (Split::whole(train), Split::whole(Arc::new(validation))),
            None => carve(train, loaded.classes.len(), options, source)?,
        };
        let normalisation = match &options.normalisation {
            Some(normalisation) => normalisation.clone(),
            None => Normalisation::measure(&train, options.seed)?,
        };
        Ok(Dataset {
            name: name(source),
            classes: loaded.classes,
            train,
            validation,
            test: Split::whole(Arc::new(loaded.test)),
            normalisation,
            skipped: loaded.skipped,
        })
    }
}

fn open_folder(root: &Path, options: &DataOptions) -> Result<Loaded> {
    let shown = root.display();
    if !root.exists() {
        return Err(Error::Data(format!("{shown} does not exist; {LAYOUTS}")));
    }
    if !root.is_dir() {
        return Err(Error::Data(format!("{shown} is not a folder; {LAYOUTS}")));
    }
    if root.join("train").is_dir() {
        folder::open(root, options)
    } else if let Some(cifar) = cifar::Layout::of(root)? {
        cifar.open(options)
    } else if let Some(idx) = idx::Layout::of(root)? {
        idx.open(options)
    } else {
        Err(Error::Data(format!("{shown} has no layout that is understood; {LAYOUTS}")))
    }
}

fn name(source: &str) -> String {
    let path = Path::new(source);
    let full = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    match full.file_name() {
        Some(name) if source != "builtin" => name.to_string_lossy().into_owned(),
        _ => source.to_string(),
    }
}

/// Splits training images into training and validation: each class gives its share, and which images is up to the seed.
fn carve(store: Arc<Store>, classes: usize, options: &DataOptions, source: &str) -> Result<(Split, Split)> {
    let total = store.labels.len();
    let wanted = match options.validation {
        DEFAULT_VALIDATION => DEFAULT_VALIDATION.min(total / 5),
        number => number,
    };
    if wanted > total / 2 {
        return Err(Error::Data(format!(
            "{source}: a validation split of {wanted} images would take more than half of the {total} training images; ask \
             for at most {}",
            total / 2
        )));
    }
    let mut order: Vec<u32> = (0..total as u32).collect();
    order.shuffle(&mut generator(options.seed, Stream::Split, &[]));
    // A stable sort by class keeps the shuffled order inside a class; every `total / wanted`-th image of that list then
    // takes from each class its share, rounded.
    order.sort_by_key(|&i| store.labels[i as usize]);
    let chosen = |place: usize| (place + 1) * wanted / total > place * wanted / total;
    let (mut train, mut validation) = (Vec::with_capacity(total - wanted), Vec::with_capacity(wanted));
    for (place, &index) in order.iter().enumerate() {
        if chosen(place) { validation.push(index) } else { train.push(index) }
    }
    train.sort_unstable();
    validation.sort_unstable();
    let mut left = vec![false; classes];
    train.iter().for_each(|&i| left[store.labels[i as usize] as usize] = true);
    if let Some(empty) = left.iter().position(|left| !left) {
        return Err(Error::Data(format!(
            "{source}: no training image of class {empty} is left after {wanted} of {total} images went to validation; ask \
             for fewer validation images"
        )));
    }
    Ok((Split::of(store.clone(), train), Split::of(store, validation)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn small(validation: usize) -> DataOptions {
        DataOptions { validation, builtin_train: 200, builtin_test: 40, ..Default::default() }
    }

    #[test]
    fn a_missing_folder_says_what_is_understood() {
        let error = Dataset::open("/no/such/folder", &DataOptions::default()).unwrap_err().to_string();
        assert!(error.contains("/no/such/folder") && error.contains("train/CLASS"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        let error = Dataset::open(path, &DataOptions::default()).unwrap_err().to_string();
        assert!(error.contains(path) && error.contains("train-images-idx3-ubyte"), "{error}");
    }

    #[test]
    fn validation_is_carved_by_seed_evenly_and_never_overlaps() {
        let data = Dataset::open("builtin", &small(50)).unwrap();
        assert_eq!((data.train.len(), data.validation.len(), data.test.len()), (150, 50, 40));
        let pixels = |split: &Split| -> HashSet<Vec<u8>> {
            (0..split.len()).map(|i| split.image(i).unwrap().pixels.into_owned()).collect()
        };
        let (train, validation, test) = (pixels(&data.train), pixels(&data.validation), pixels(&data.test));
        assert!(train.is_disjoint(&validation) && train.is_disjoint(&test) && validation.is_disjoint(&test));
        for class in 0..10 {
            let share = (0..50).filter(|&i| data.validation.label(i) == class).count();
            let all = share + (0..150).filter(|&i| data.train.label(i) == class).count();
            assert!((share as f64 - all as f64 / 4.0).abs() <= 1.0, "class {class}: {share} of {all}");
        }
        let again = Dataset::open("builtin", &small(50)).unwrap();
        assert_eq!(validation, pixels(&again.validation));
    }

    #[test]
    fn the_default_validation_is_capped_and_too_much_is_an_error() {
        assert_eq!(Dataset::open("builtin", &small(DEFAULT_VALIDATION)).unwrap().validation.len(), 40);
        let error = Dataset::open("builtin", &small(101)).unwrap_err().to_string();
        assert!(error.contains("more than half of the 200"), "{error}");
    }

    #[test]
    fn datasets_are_shared_across_threads() {
        fn shared<T: Send + Sync + Clone + 'static>() {}
        shared::<Dataset>();
    }
}
