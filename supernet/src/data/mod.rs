//! Datasets, augmentation and loading.
//!
//! | module | concern |
//! | --- | --- |
//! | [`mod@self`] | [`Dataset::open`]: detection of a folder's layout |
//! | `opening` | progress and interruption of opening, selection of splits |
//! | `folder`, `cifar`, `idx`, `builtin` | one layout each |
//! | `drawing` | the images of `builtin` |
//! | `shards` | tar files in the layout of WebDataset, and Parquet files |
//! | `tar_shard`, `table` | one tar file, one Parquet file |
//! | `pattern` | patterns of shards |
//! | `listing` | class folders and their files |
//! | `labels` | labels of shards: numbers or names |
//! | `source` | where the bytes of an image are |
//! | `carve` | the validation split carved from the training images |
//! | `regular` | only regular files are read |
//! | `decode` | JPEG and PNG bytes to RGB, and whether they are complete |
//! | `digest` | whether two datasets hold the same images |
//! | `jpeg_scan`, `jpeg_markers` | whether a JPEG's picture data reaches its end, and the markers of its stream |
//! | `pixels` | an image in memory |
//! | `split` | images and labels of one split, cached or read on demand |
//! | `augmentation` | random changes of training images, as a configuration has them |
//! | `resample`, `flip`, `painter`, `rand_augment`, `erasing` | from stored pixels to a normalised image |
//! | `mixing`, `batch` | from images to a `[n, r, r, 3]` batch |
//! | `normalisation` | channel means and deviations |
//! | `prefetch` | batches produced while the network computes |
//!
//! Images are RGB u8 `[height, width, 3]` at their stored size until a batch asks for a resolution, so that every pixel
//! is interpolated once.

mod augmentation;
mod batch;
mod builtin;
mod carve;
mod cifar;
mod decode;
mod digest;
mod drawing;
mod erasing;
mod flip;
mod folder;
mod idx;
mod jpeg_markers;
mod jpeg_scan;
mod labels;
mod listing;
mod mixing;
mod normalisation;
mod opening;
mod painter;
mod pattern;
mod pixels;
mod prefetch;
mod rand_augment;
mod regular;
mod resample;
mod shards;
mod source;
mod split;
mod table;
mod tar_shard;

pub use augmentation::{Augmentation, Border, Crop};
pub use batch::{Batch, balanced_order, content_input, epoch_order, image_input, pixels_input};
pub use digest::{DataIdentity, TrainedOn};
pub use erasing::RandomErasing;
pub use flip::Flip;
pub use mixing::{LabelShares, Mix, Mixing};
pub use normalisation::Normalisation;
pub use opening::{OpenObserver, OpenProgress, Splits};
pub use painter::CENTRAL_FROM;
pub use pattern::is_pattern;
pub use pixels::Image;
pub use prefetch::Prefetch;
pub use rand_augment::RandAugment;
pub use split::Split;

use crate::{Error, Result};
use opening::Opening;
use split::{Pixels, Store};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most validation images that are carved out of the training images if [`DataOptions::validation`] is absent.
const MOST_BY_DEFAULT: usize = 5000;

/// Description of the supported layouts, for errors about folders that have none of them.
const LAYOUTS: &str = "expected one of: an image folder (train/CLASS/*.jpg|png with test/CLASS/* or val/CLASS/*), tar shards (train-*.tar with \
test-*.tar; NAME.jpg with NAME.cls), Parquet files (train-*.parquet with test-*.parquet), CIFAR-10 binary \
(data_batch_*.bin, test_batch.bin), CIFAR-100 binary (train.bin, test.bin), IDX (train-images-idx3-ubyte[.gz], \
train-labels-idx1-ubyte[.gz] and the same with t10k), or the word `builtin`";

/// Options for opening a dataset.
#[derive(Debug, Clone, PartialEq)]
pub struct DataOptions {
    /// Number of images carved out of the training images by `seed`, evenly over the classes; more than half of them is
    /// an error. `None` takes 5000, but at most a fifth. Ignored if an image folder has its own validation split.
    pub validation: Option<usize>,
    /// Seed of the validation split and of the built-in images.
    pub seed: u64,
    /// Skip unreadable images and count them in [`Dataset::skipped`] instead of failing. Every image is then decoded
    /// once at opening, so that the skipped images are the same whether images are held in memory or not.
    pub skip_bad: bool,
    /// Image files stay decoded in memory if all of them together take at most this many bytes; otherwise they are
    /// decoded for each batch. Binary formats need no decoding and are always held. Default 4 GiB.
    pub cache_bytes: usize,
    /// Channel means and deviations; `None` measures them on the training images (of more than 10,000 image files, on a
    /// seeded sample of 10,000).
    pub normalisation: Option<Normalisation>,
    /// Number of training images of the built-in set, validation included.
    pub builtin_train: usize,
    /// Number of test images of the built-in set.
    pub builtin_test: usize,
}

impl Default for DataOptions {
    fn default() -> Self {
        DataOptions {
            validation: None,
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
    /// Training images.
    pub train: Split,
    /// Images held back for the predictor and the search; may be empty.
    pub validation: Split,
    /// Images for the final benchmark, used for nothing else.
    pub test: Split,
    /// Channel means and deviations with which batches are normalised.
    pub normalisation: Normalisation,
    /// Number of unreadable images that were skipped ([`DataOptions::skip_bad`]).
    pub skipped: usize,
    /// Remarks about the folder for its user, such as files that were ignored; one line each.
    pub notes: Vec<String>,
}

/// Result of reading a layout.
struct Loaded {
    classes: Vec<String>,
    train: Store,
    validation: Option<Store>,
    test: Store,
    skipped: usize,
    notes: Vec<String>,
}

/// The training images of [`Splits::Test`].
fn no_images() -> Store {
    Store { labels: Vec::new(), pixels: Pixels::Decoded(Vec::new()), origin: None }
}

impl Dataset {
    /// Opens all splits of `source`: the word `builtin`, or a folder whose layout is recognised from its content.
    ///
    /// # Errors
    /// One sentence with the path and the reason: a missing folder or unknown layout, an empty class, class lists that
    /// differ between splits, unreadable or truncated images (unless [`DataOptions::skip_bad`]), wrong magic numbers,
    /// counts that disagree, labels out of range, or a validation split of more than half of the training images.
    pub fn open(source: &str, options: &DataOptions) -> Result<Dataset> {
        Self::open_splits(source, options, Splits::All, &|_| ControlFlow::Continue(()))
    }

    /// Opens some splits of `source`; `observer` receives the progress and can stop it.
    ///
    /// # Errors
    /// Errors of [`Dataset::open`]; [`Error::Interrupted`]; [`Splits::Test`] without [`DataOptions::normalisation`].
    pub fn open_splits(source: &str, options: &DataOptions, splits: Splits, observer: OpenObserver) -> Result<Dataset> {
        if let Some(normalisation) = &options.normalisation {
            normalisation.check()?;
        }
        let opening = Opening { options, splits, observer };
        opening.check("opening data")?;
        let loaded =
            if source == "builtin" { builtin::open(&opening)? } else { open_folder(Path::new(source), &opening)? };
        let Loaded { classes, train, validation, test, skipped, mut notes } = loaded;
        let train = Arc::new(train);
        let (train, validation) = match (splits, validation) {
            (Splits::Test, _) => (Split::whole(train.clone()), Split::whole(train)),
            (_, Some(validation)) => {
                if let Some(count) = options.validation.filter(|count| *count > 0 && *count != validation.labels.len())
                {
                    notes.push(format!(
                        "{source}: its own validation split has {} images; those that were asked for ({count}) are not \
                         carved from the training images",
                        validation.labels.len()
                    ));
                }
                (Split::whole(train), Split::whole(Arc::new(validation)))
            }
            (_, None) => carve::carve(train, classes.len(), options, source)?,
        };
        let normalisation = match &options.normalisation {
            Some(normalisation) => normalisation.clone(),
            None if splits == Splits::Test => {
                return Err(Error::format(source, "a normalisation must be given where training images are not read"));
            }
            None => {
                let (measured, note) = Normalisation::measure(&train, source, &opening)?;
                notes.extend(note);
                measured
            }
        };
        Ok(Dataset {
            name: name(source),
            classes,
            train,
            validation,
            test: Split::whole(Arc::new(test)),
            normalisation,
            skipped,
            notes,
        })
    }

    /// The dataset with its classes in another order: class `order[n]` becomes class `n`, and labels follow.
    ///
    /// # Errors
    /// `order` is not a permutation of the classes' numbers.
    pub fn with_class_order(&self, order: &[usize]) -> Result<Dataset> {
        let mut labels = vec![u32::MAX; self.classes.len()];
        for (label, &class) in order.iter().enumerate() {
            match labels.get_mut(class) {
                Some(free) if *free == u32::MAX => *free = label as u32,
                _ => return Err(Error::Data(format!("'{}': class {class} is unknown or is listed twice", self.name))),
            }
        }
        if order.len() != labels.len() {
            return Err(Error::Data(format!("'{}': {} classes, {} ordered", self.name, labels.len(), order.len())));
        }
        Ok(Dataset {
            classes: order.iter().map(|&class| self.classes[class].clone()).collect(),
            train: self.train.relabelled(&labels),
            validation: self.validation.relabelled(&labels),
            test: self.test.relabelled(&labels),
            ..self.clone()
        })
    }
}

fn open_folder(root: &Path, opening: &Opening) -> Result<Loaded> {
    if let Some(pattern) = root.to_str().filter(|source| is_pattern(source)) {
        return shards::Layout::of_pattern(pattern)?.open(opening);
    }
    if let Some(reason) = regular::dangling(root) {
        return Err(Error::format(root, format!("{reason}; {LAYOUTS}")));
    }
    if !root.exists() {
        return Err(Error::format(root, format!("does not exist; {LAYOUTS}")));
    }
    if !root.is_dir() {
        return Err(Error::format(root, format!("is not a folder; {LAYOUTS}")));
    }
    match Layout::of(root, opening.splits)? {
        Some(Layout::Shards(shards)) => {
            if let Some(class) = folder::class_folder(root) {
                let (class, shard) = (class.display(), shards.first().display());
                let reason = format!("has class folders ({class}) and shards ({shard}); keep one of the two");
                return Err(Error::format(root, reason));
            }
            shards.open(opening)
        }
        Some(Layout::Images) => folder::open(root, opening),
        Some(Layout::Cifar(cifar)) => cifar.open(opening),
        Some(Layout::Idx(idx)) => idx.open(opening),
        None => {
            let advice = advice_for_folders(root, opening.splits).or_else(|| folder::advice_for_classes(root));
            let advice = advice.unwrap_or_default();
            Err(Error::format(root, format!("has no layout that is understood{advice}; {LAYOUTS}")))
        }
    }
}

/// Layout of a dataset's folder.
enum Layout {
    Shards(shards::Layout),
    Images,
    Cifar(cifar::Layout),
    Idx(idx::Layout),
}

impl Layout {
    /// The first layout that the files in `root` have, if any.
    fn of(root: &Path, splits: Splits) -> Result<Option<Layout>> {
        Ok(if let Some(shards) = shards::Layout::of(root)? {
            Some(Layout::Shards(shards))
        } else if folder::is_image_folder(root, splits) {
            Some(Layout::Images)
        } else if let Some(cifar) = cifar::Layout::of(root)? {
            Some(Layout::Cifar(cifar))
        } else {
            idx::Layout::of(root, splits)?.map(Layout::Idx)
        })
    }
}

/// Entries of a folder that might be a dataset instead of it; a folder of thousands is none around a dataset.
const FOLDERS_LOOKED_INTO: usize = 100;

/// Advice for a folder around that of a dataset, as an unpacked archive often is one.
fn advice_for_folders(root: &Path, splits: Splits) -> Option<String> {
    let is_dataset = |path: &PathBuf| path.is_dir() && matches!(Layout::of(path, splits), Ok(Some(_)));
    let inside = listing::entries(root).ok()?.into_iter().take(FOLDERS_LOOKED_INTO).find(is_dataset)?;
    Some(format!(": its folder '{}' has one; give that", inside.file_name()?.to_string_lossy()))
}

fn name(source: &str) -> String {
    let path = Path::new(source);
    let full = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    match full.file_name() {
        Some(name) if source != "builtin" => name.to_string_lossy().into_owned(),
        _ => source.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn small(validation: Option<usize>) -> DataOptions {
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
    fn a_folder_around_a_dataset_or_of_classes_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let write = |file: &str| {
            let path = root.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, []).unwrap();
        };
        let refused = |words: &[&str]| {
            let error = Dataset::open(root.to_str().unwrap(), &DataOptions::default()).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)) && error.contains(LAYOUTS), "{error}");
        };
        write("cat/1.jpg");
        refused(&["'cat'", "move them into train/"]);
        write("unpacked/data_batch_1.bin");
        refused(&["its folder 'unpacked' has one"]);
        write("images/train/cat/1.jpg");
        refused(&["its folder 'images' has one"]);
    }

    #[test]
    fn validation_is_carved_by_seed_evenly_and_never_overlaps() {
        let data = Dataset::open("builtin", &small(Some(50))).unwrap();
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
        let again = Dataset::open("builtin", &small(Some(50))).unwrap();
        assert_eq!(validation, pixels(&again.validation));
    }

    #[test]
    fn the_default_validation_is_capped_and_too_much_is_an_error() {
        assert_eq!(Dataset::open("builtin", &small(None)).unwrap().validation.len(), 40);
        let error = Dataset::open("builtin", &small(Some(101))).unwrap_err().to_string();
        assert!(error.contains("more than half of the 200"), "{error}");
    }

    #[test]
    fn labels_follow_the_order_of_classes() {
        let data = Dataset::open("builtin", &small(None)).unwrap();
        let order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7];
        let other = data.with_class_order(&order).unwrap();
        let again = other.with_class_order(&[1, 0, 2, 3, 4, 5, 6, 7, 8, 9]).unwrap();
        for other in [other, again] {
            for (of, split) in
                [(&data.train, &other.train), (&data.validation, &other.validation), (&data.test, &other.test)]
            {
                for i in 0..of.len() {
                    assert_eq!(other.classes[split.label(i) as usize], data.classes[of.label(i) as usize]);
                    assert_eq!(split.image(i).unwrap(), of.image(i).unwrap());
                }
            }
        }
        for order in [&[0; 10][..], &[0, 1, 2], &[10, 1, 2, 3, 4, 5, 6, 7, 8, 9]] {
            assert!(data.with_class_order(order).is_err(), "{order:?}");
        }
    }

    #[test]
    fn datasets_are_shared_across_threads() {
        fn shared<T: Send + Sync + Clone + 'static>() {}
        shared::<Dataset>();
    }
}
