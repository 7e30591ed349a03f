//! Images and labels of one split, held in memory or read on demand.

use super::pixels::Image;
use super::source::Source;
use super::{decode, drawing};
use crate::{Error, Result};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use std::borrow::Cow;
use std::sync::Arc;

/// Source of the images.
pub(super) enum Pixels {
    /// Images of one size, one after the other.
    Uniform { width: usize, height: usize, bytes: Vec<u8> },
    /// Decoded files.
    Decoded(Vec<Image<'static>>),
    /// Files, or parts of files, that are decoded each time they are read.
    Files(Vec<Source>),
    /// Built-in images number `first`, `first + 1`, ..., generated each time they are read.
    Builtin { seed: u64, first: u64 },
}

/// Labels and images that splits share.
pub(super) struct Store {
    pub labels: Vec<u32>,
    pub pixels: Pixels,
    /// Digest of the images' source; `None` if the pixels themselves are the identity.
    pub origin: Option<u64>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} images", self.labels.len())
    }
}

/// A selection of a store's images with their labels. Cheap to clone: pixels are shared.
#[derive(Debug, Clone)]
pub struct Split {
    store: Arc<Store>,
    indices: Arc<[u32]>,
    /// Class of each stored label, if the labels themselves are not the classes.
    classes: Option<Arc<[u32]>>,
}

impl Split {
    pub(super) fn whole(store: Arc<Store>) -> Split {
        let indices = (0..store.labels.len() as u32).collect();
        Split { store, indices, classes: None }
    }

    pub(super) fn of(store: Arc<Store>, indices: Vec<u32>) -> Split {
        Split { store, indices: indices.into(), classes: None }
    }

    /// The split with class `classes[c]` in place of class `c`.
    pub(super) fn relabelled(&self, classes: &[u32]) -> Split {
        let classes = match &self.classes {
            Some(known) => known.iter().map(|&class| classes[class as usize]).collect(),
            None => classes.into(),
        };
        Split { classes: Some(classes), ..self.clone() }
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Indices of the images in the store.
    pub(super) fn indices(&self) -> &[u32] {
        &self.indices
    }

    /// A split without images.
    pub fn empty() -> Split {
        Split::whole(Arc::new(Store { labels: Vec::new(), pixels: Pixels::Files(Vec::new()), origin: None }))
    }

    /// Whether an image is available without reading a file.
    pub fn in_memory(&self) -> bool {
        !matches!(self.store.pixels, Pixels::Files(_))
    }

    /// Whether each image comes from a file of its own, held in memory or not.
    pub(super) fn is_of_files(&self) -> bool {
        matches!(self.store.pixels, Pixels::Files(_) | Pixels::Decoded(_))
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// Draws `count` distinct images, or all if there are fewer, in random order; each class has its share.
    ///
    /// Neither the choice nor the order depends on the order of the split, which is often sorted by class.
    pub fn draw(&self, count: usize, rng: &mut StdRng) -> Vec<usize> {
        let (total, count) = (self.len(), count.min(self.len()));
        let mut order: Vec<usize> = (0..total).collect();
        order.shuffle(rng);
        // A stable sort by class keeps the random order within a class; every `total / count`-th image of that list is
        // then each class's rounded share.
        order.sort_by_key(|&index| self.label(index));
        let mut drawn: Vec<usize> = (0..count).map(|i| order[i * total / count]).collect();
        drawn.shuffle(rng);
        drawn
    }

    /// The images `indices` of this split, in that order.
    ///
    /// # Panics
    /// An index is not below [`Split::len`].
    #[cfg(test)]
    pub(crate) fn subset(&self, indices: &[usize]) -> Split {
        Split::of(self.store.clone(), indices.iter().map(|&index| self.indices[index]).collect())
    }

    /// The class of image `index`.
    ///
    /// # Panics
    /// `index` is not below [`Split::len`].
    pub fn label(&self, index: usize) -> u32 {
        let label = self.store.labels[self.indices[index] as usize];
        self.classes.as_ref().map_or(label, |classes| classes[label as usize])
    }

    /// Image `index` at its stored size.
    ///
    /// # Errors
    /// `index` is not below [`Split::len`], or a file that is decoded on demand can no longer be read.
    pub fn image(&self, index: usize) -> Result<Image<'_>> {
        let Some(&at) = self.indices.get(index) else {
            return Err(Error::Data(format!("image {index} is outside a split of {} images", self.len())));
        };
        let at = at as usize;
        match &self.store.pixels {
            Pixels::Uniform { width, height, bytes } => {
                let size = width * height * 3;
                let pixels = Cow::Borrowed(&bytes[at * size..(at + 1) * size]);
                Ok(Image { width: *width, height: *height, pixels })
            }
            Pixels::Decoded(images) => {
                let Image { width, height, pixels } = &images[at];
                Ok(Image { width: *width, height: *height, pixels: Cow::Borrowed(pixels) })
            }
            Pixels::Files(sources) => {
                let source = &sources[at];
                let image = source.read().and_then(|bytes| decode::decode(&bytes));
                image.map_err(|reason| Error::format(source.place(), format!("{reason} ({})", decode::WAY_OUT)))
            }
            Pixels::Builtin { seed, first } => Ok(drawing::image(*seed, first + at as u64)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{DataOptions, Dataset};
    use rand::SeedableRng;
    use std::collections::HashSet;

    #[test]
    fn a_draw_is_distinct_shuffled_and_fair_to_classes() {
        let options = DataOptions { validation: Some(0), builtin_train: 200, builtin_test: 20, ..Default::default() };
        let split = Dataset::open("builtin", &options).unwrap().train;
        let mut sorted: Vec<usize> = (0..200).collect();
        sorted.sort_by_key(|&index| split.label(index));
        // Neither an order sorted by class nor one of alternating classes leads to a draw of few classes.
        for split in [split.subset(&sorted), split] {
            let drawn = split.draw(50, &mut StdRng::seed_from_u64(1));
            assert_eq!(drawn.iter().collect::<HashSet<_>>().len(), 50);
            for class in 0..10 {
                assert_eq!(drawn.iter().filter(|&&index| split.label(index) == class).count(), 5);
            }
            let labels: Vec<u32> = drawn.iter().map(|&index| split.label(index)).collect();
            assert!(labels.windows(2).filter(|pair| pair[0] == pair[1]).count() < 15, "{labels:?}");
            assert_eq!(drawn, split.draw(50, &mut StdRng::seed_from_u64(1)));
            assert_ne!(drawn, split.draw(50, &mut StdRng::seed_from_u64(2)));
            assert_eq!(split.draw(999, &mut StdRng::seed_from_u64(1)).len(), 200);
            assert!(split.draw(0, &mut StdRng::seed_from_u64(1)).is_empty());
        }
    }
}
