//! Digests that tell whether two datasets hold the same images, in the same splits.

use super::source::Source;
use super::split::{Pixels, Split, Store};
use super::{Dataset, Image, Normalisation};
use crate::seed::{Stream, generator, mix};
use crate::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::path::{Component, Path};
use std::sync::Arc;

/// Largest number of training images whose content a supernet stores.
const REMEMBERED: usize = 16_384;

/// Smallest fraction of validation images that were trained on, at which the split no longer validates. Below it,
/// images that a data set happens to hold twice are tolerated.
const CONTAMINATED: f64 = 0.01;

/// Properties of the images that must agree between a stopped run and the run that resumes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataIdentity {
    /// Digest of all images with their labels.
    images: String,
    /// Digest of which images form which split.
    split: String,
    /// Channel means and deviations.
    normalisation: Normalisation,
}

impl DataIdentity {
    /// The identity of an opened dataset.
    pub fn of(data: &Dataset) -> Self {
        DataIdentity {
            images: hex(data.images_digest()),
            split: hex(data.split_digest()),
            normalisation: data.normalisation.clone(),
        }
    }

    /// Channel means and deviations.
    pub fn normalisation(&self) -> &Normalisation {
        &self.normalisation
    }

    /// Whether images and splits are those of `other`, however they are normalised.
    pub fn has_splits_of(&self, other: &DataIdentity) -> bool {
        (&self.images, &self.split) == (&other.images, &other.split)
    }

    /// Describes the first difference from the identity stored in a checkpoint; `None` if they agree.
    pub fn difference(&self, saved: &DataIdentity) -> Option<String> {
        if self.images != saved.images {
            return Some(
                "the images are not those of the checkpoint: files were renamed, replaced, added or removed, labels differ, \
                 or the built-in images have another data.seed"
                    .into(),
            );
        }
        if self.split != saved.split {
            return Some(
                "the validation split is not that of the checkpoint, so that images that were trained on would validate: \
                 data.seed or data.validation differs"
                    .into(),
            );
        }
        let Normalisation { mean, std } = &self.normalisation;
        (self.normalisation != saved.normalisation).then(|| {
            format!(
                "the normalisation is mean {mean:?} and std {std:?}, that of the checkpoint mean {:?} and std {:?}",
                saved.normalisation.mean, saved.normalisation.std
            )
        })
    }
}

/// Properties of the training images, stored with a supernet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainedOn {
    /// The digest of the dataset: [`Dataset::digest`].
    pub digest: String,
    /// Channel means and deviations that the weights expect.
    pub normalisation: Normalisation,
    /// Number of training images.
    images: usize,
    /// Content digests of all training images, or of a random sample.
    contents: Vec<String>,
}

impl TrainedOn {
    /// Describes `data`; reads up to 16,384 training images.
    ///
    /// # Errors
    /// An image can no longer be read.
    pub fn new(data: &Dataset) -> Result<Self> {
        let drawn = data.train.draw(REMEMBERED, &mut generator(0, Stream::Remembered, &[]));
        let mut contents: Vec<String> =
            drawn.par_iter().map(|&index| Ok(hex(data.train.content_digest(index)?))).collect::<Result<_>>()?;
        contents.sort_unstable();
        Ok(TrainedOn {
            digest: data.digest(),
            normalisation: data.normalisation.clone(),
            images: data.train.len(),
            contents,
        })
    }

    /// Estimated number of validation images of `data` that were trained on; 0 if there are few enough to validate.
    ///
    /// The run's own images, in a folder of any name, are not read: their split is known to be the run's. Others are
    /// compared by content, so that another order, other names or another layout do not hide them.
    ///
    /// # Errors
    /// An image cannot be read.
    pub fn contamination(&self, data: &Dataset) -> Result<usize> {
        let count = data.validation.len();
        if count == 0 || data.digest() == self.digest {
            return Ok(0);
        }
        let known: HashSet<&str> = self.contents.iter().map(String::as_str).collect();
        // What many images show, such as an empty frame, is remembered in any case, and says little of the others.
        let contents: HashSet<u64> =
            (0..count).into_par_iter().map(|index| data.validation.content_digest(index)).collect::<Result<_>>()?;
        let seen = contents.iter().filter(|content| known.contains(hex(**content).as_str())).count();
        let remembered = self.contents.len() as f64 / self.images.max(1) as f64;
        let estimate = (seen as f64 / remembered.max(f64::MIN_POSITIVE)).min(count as f64);
        Ok(if estimate > CONTAMINATED * count as f64 { estimate.round() as usize } else { 0 })
    }

    /// The largest [`contamination`](Self::contamination) of `data` by one of `all`; 0 for none.
    ///
    /// # Errors
    /// An image cannot be read.
    pub fn largest_contamination<'t>(all: impl IntoIterator<Item = &'t TrainedOn>, data: &Dataset) -> Result<usize> {
        let mut largest = 0;
        for trained_on in all {
            largest = largest.max(trained_on.contamination(data)?);
        }
        Ok(largest)
    }
}

fn hex(digest: u64) -> String {
    format!("{digest:016x}")
}

impl Dataset {
    /// Sixteen hexadecimal digits that change with the class names, the images, their labels, their order and the
    /// splits.
    ///
    /// Image files count by their path below the dataset's root and their length, so that no pixel is read and a moved
    /// folder keeps its digest; binary layouts count by their pixels, built-in images by their seed. Cached and
    /// streamed images give the same digest. Normalisation is not included.
    pub fn digest(&self) -> String {
        let mut digest = Digest::new();
        digest.word(self.classes_digest()).word(self.images_digest()).word(self.split_digest());
        hex(digest.finish())
    }

    /// Digest of the class names, in order.
    fn classes_digest(&self) -> u64 {
        let mut digest = Digest::new();
        self.classes.iter().for_each(|class| digest.bytes(class.as_bytes()));
        digest.finish()
    }

    /// Digest of all images with their labels, before the training images are split.
    fn images_digest(&self) -> u64 {
        let mut stores: Vec<&Arc<Store>> = Vec::new();
        for split in self.splits() {
            if !stores.iter().any(|store| Arc::ptr_eq(store, split.store())) {
                stores.push(split.store());
            }
        }
        let mut digest = Digest::new();
        for digest_of_store in stores.par_iter().map(|store| store.digest()).collect::<Vec<_>>() {
            digest.word(digest_of_store);
        }
        digest.finish()
    }

    /// Digest of the assignment of images to splits.
    fn split_digest(&self) -> u64 {
        let mut digest = Digest::new();
        for split in self.splits() {
            digest.word(split.len() as u64);
            split.indices().iter().for_each(|&index| {
                digest.word(u64::from(index));
            });
        }
        digest.finish()
    }

    fn splits(&self) -> [&Split; 3] {
        [&self.train, &self.validation, &self.test]
    }
}

impl Split {
    /// Digest of the pixels of image `index`; equal in every layout that stores them without loss.
    ///
    /// # Errors
    /// As for [`Split::image`].
    pub fn content_digest(&self, index: usize) -> Result<u64> {
        let Image { width, height, pixels } = self.image(index)?;
        let mut digest = Digest::new();
        digest.word(width as u64).word(height as u64).bytes(&pixels);
        Ok(digest.finish())
    }
}

impl Store {
    fn digest(&self) -> u64 {
        let mut digest = Digest::new();
        digest.word(self.labels.len() as u64);
        self.labels.iter().for_each(|&label| {
            digest.word(u64::from(label));
        });
        match (&self.origin, &self.pixels) {
            (Some(origin), _) => {
                digest.word(*origin);
            }
            (None, Pixels::Uniform { width, height, bytes }) => {
                digest.word(*width as u64).word(*height as u64).bytes(bytes);
            }
            (None, Pixels::Decoded(images)) => images.iter().for_each(|image| {
                digest.word(image.width as u64).word(image.height as u64).bytes(&image.pixels);
            }),
            (None, Pixels::Files(sources)) => {
                sources.iter().for_each(|source| digest.bytes(source.place().as_os_str().as_encoded_bytes()));
            }
            (None, Pixels::Builtin { seed, first }) => {
                digest.word(*seed).word(*first);
            }
        }
        digest.finish()
    }
}

/// Digest of image files in order: of their paths below `root` and their lengths.
///
/// # Errors
/// The length of a file cannot be read.
pub(super) fn of_files(root: &Path, files: &[(Source, u32)]) -> Result<u64> {
    let each: Vec<u64> = files
        .par_iter()
        .map(|(source, _)| {
            let path = source.place();
            let mut digest = Digest::new();
            for component in path.strip_prefix(root).unwrap_or(&path).components() {
                if let Component::Normal(name) = component {
                    digest.bytes(name.as_encoded_bytes());
                }
            }
            digest.word(source.length().map_err(|e| Error::file(&path, e))?);
            Ok(digest.finish())
        })
        .collect::<Result<_>>()?;
    let mut digest = Digest::new();
    each.iter().for_each(|&of_file| {
        digest.word(of_file);
    });
    Ok(digest.finish())
}

/// Digest of the built-in images from number `first` on.
pub(super) fn of_builtin(seed: u64, first: u64) -> u64 {
    let mut digest = Digest::new();
    digest.word(seed).word(first);
    digest.finish()
}

/// A 64-bit hash of words and byte strings. Every word passes through SplitMix64's finaliser, so that each input bit
/// reaches each output bit; the hash does not resist an adversary.
struct Digest(u64);

impl Digest {
    fn new() -> Self {
        Digest(0x6f66_615f_6461_7461)
    }

    fn word(&mut self, word: u64) -> &mut Self {
        self.0 = mix(self.0 ^ word);
        self
    }

    /// Adds a byte string with its length, so that adjacent strings cannot run into each other.
    fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|&word| {
            self.word(u64::from_le_bytes(word));
        });
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            self.word(u64::from_le_bytes(last));
        }
    }

    fn finish(&self) -> u64 {
        mix(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::DataOptions;
    use crate::data::decode::tests::png;
    use image::ColorType;
    use std::fs;

    fn put(root: &Path, path: &str, level: u8) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, png(4, 4, &[level; 48], ColorType::Rgb8)).unwrap();
    }

    fn folder(name: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (class, level) in [("cat", 1), ("dog", 101)] {
            for i in 0..20 {
                put(root.path(), &format!("train/{class}/{name}{i:02}.png"), level + i);
            }
            put(root.path(), &format!("test/{class}/0.png"), level + 50);
        }
        root
    }

    fn options() -> DataOptions {
        DataOptions { validation: Some(10), builtin_train: 60, builtin_test: 20, ..Default::default() }
    }

    fn digest(root: &Path, options: &DataOptions) -> String {
        Dataset::open(root.to_str().unwrap(), options).unwrap().digest()
    }

    #[test]
    fn a_moved_or_streamed_folder_keeps_its_digest() {
        let root = folder("a");
        let found = digest(root.path(), &options());
        assert!(found.len() == 16 && found.bytes().all(|b| b.is_ascii_hexdigit()), "{found}");
        let moved = folder("a");
        assert_eq!(digest(moved.path(), &options()), found);
        assert_eq!(digest(root.path(), &DataOptions { cache_bytes: 0, ..options() }), found);
    }

    #[test]
    fn other_files_labels_seeds_and_splits_change_the_digest() {
        let root = folder("a");
        let mut all = vec![
            digest(root.path(), &options()),
            digest(root.path(), &DataOptions { seed: 1, ..options() }),
            digest(root.path(), &DataOptions { validation: Some(12), ..options() }),
            digest(folder("b").path(), &options()),
        ];
        // A moved image has another label, a replaced image another length, and an added image shifts the order.
        fs::rename(root.path().join("train/cat/a03.png"), root.path().join("train/dog/a20.png")).unwrap();
        all.push(digest(root.path(), &options()));
        fs::write(root.path().join("train/cat/a04.png"), png(9, 4, &[7; 108], ColorType::Rgb8)).unwrap();
        all.push(digest(root.path(), &options()));
        put(root.path(), "train/cat/a99.png", 3);
        all.push(digest(root.path(), &options()));
        fs::rename(root.path().join("train/cat"), root.path().join("train/cow")).unwrap();
        fs::rename(root.path().join("test/cat"), root.path().join("test/cow")).unwrap();
        all.push(digest(root.path(), &options()));
        let of_builtin = |options: &DataOptions| Dataset::open("builtin", options).unwrap().digest();
        all.push(of_builtin(&options()));
        all.push(of_builtin(&DataOptions { seed: 1, ..options() }));
        all.push(of_builtin(&DataOptions { builtin_train: 61, ..options() }));
        assert_eq!(of_builtin(&options()), of_builtin(&DataOptions { cache_bytes: 0, ..options() }));
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn content_is_the_same_under_other_names() {
        let open = |root: &tempfile::TempDir| Dataset::open(root.path().to_str().unwrap(), &options()).unwrap();
        let contents = |data: &Dataset| {
            let mut all: Vec<u64> = [&data.train, &data.validation]
                .iter()
                .flat_map(|split| (0..split.len()).map(|i| split.content_digest(i).unwrap()))
                .collect();
            all.sort_unstable();
            all
        };
        let (a, b) = (contents(&open(&folder("a"))), contents(&open(&folder("b"))));
        assert_eq!(a, b);
        assert!(a.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn an_identity_names_what_differs() {
        let root = folder("a");
        let open = |options: &DataOptions| Dataset::open(root.path().to_str().unwrap(), options).unwrap();
        let saved = DataIdentity::of(&open(&options()));
        let difference = |options: &DataOptions| DataIdentity::of(&open(options)).difference(&saved);
        assert_eq!(difference(&options()), None);
        let seed = difference(&DataOptions { seed: 1, ..options() }).unwrap();
        assert!(seed.contains("validation split") && seed.contains("data.seed"), "{seed}");
        let normalisation =
            difference(&DataOptions { normalisation: Some(Normalisation::IMAGENET), ..options() }).unwrap();
        assert!(normalisation.contains("normalisation") && normalisation.contains("0.485"), "{normalisation}");
        fs::rename(root.path().join("train/cat/a03.png"), root.path().join("train/cat/z.png")).unwrap();
        assert!(difference(&options()).unwrap().contains("renamed"));
    }

    #[test]
    fn images_that_were_trained_on_do_not_validate_under_other_names() {
        let trained_on = |root: &tempfile::TempDir| {
            TrainedOn::new(&Dataset::open(root.path().to_str().unwrap(), &options()).unwrap()).unwrap()
        };
        let (a, renamed) = (folder("a"), folder("b"));
        let open = |root: &tempfile::TempDir, seed| {
            Dataset::open(root.path().to_str().unwrap(), &DataOptions { seed, ..options() }).unwrap()
        };
        let run = trained_on(&a);
        assert_eq!(run.contamination(&open(&a, 0)).unwrap(), 0);
        let seen = run.contamination(&open(&a, 1)).unwrap();
        assert!((4..=10).contains(&seen), "{seen}");
        let other = TrainedOn { contents: Vec::new(), digest: String::new(), ..run.clone() };
        let of_both = |both: [&TrainedOn; 2]| TrainedOn::largest_contamination(both, &open(&a, 1)).unwrap();
        assert_eq!((of_both([&run, &other]), of_both([&other, &run])), (seen, seen));
        assert!(run.contamination(&open(&renamed, 5)).unwrap() > 0);
        for class in ["cat", "dog"] {
            // A validation split that was never trained on.
            for i in 0..5 {
                put(renamed.path(), &format!("val/{class}/{i}.png"), 200 + i);
            }
        }
        let own = open(&renamed, 0);
        assert_eq!((own.validation.len(), run.contamination(&own).unwrap()), (10, 0));
    }

    #[test]
    fn a_trained_image_in_many_copies_counts_once() {
        let options =
            DataOptions { validation: Some(10), builtin_train: 60, builtin_test: 10, ..DataOptions::default() };
        let own = Dataset::open("builtin", &options).unwrap();
        let (trained, unseen) = (own.train.indices()[0], own.validation.indices()[0]);
        let copies = [vec![trained; 10], vec![unseen; 100]].concat();
        let validation = Split::of(own.validation.store().clone(), copies);
        let trained_on = TrainedOn::new(&own).unwrap();
        assert_eq!(trained_on.contamination(&Dataset { validation, ..own.clone() }).unwrap(), 0);
        let validation = own.train.clone();
        assert!(trained_on.contamination(&Dataset { validation, ..own }).unwrap() > 40);
    }
}
