//! Images and labels of one split, held in memory or read on demand.

use super::{builtin, decode, regular};
use crate::{Error, Result};
use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

/// One image: RGB u8 `[height, width, 3]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Image<'a> {
    /// Pixels a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width * 3` bytes, borrowed from the cache where there is one.
    pub pixels: Cow<'a, [u8]>,
}

/// Where images come from.
pub(super) enum Pixels {
    /// Images of one size, one after the other.
    Uniform { width: usize, height: usize, bytes: Vec<u8> },
    /// Decoded files.
    Decoded(Vec<Image<'static>>),
    /// Files that are decoded each time.
    Files(Vec<PathBuf>),
    /// Built-in images number `first`, `first + 1`, ... that are drawn each time.
    Builtin { seed: u64, first: u64 },
}

/// Labels and images that splits share.
pub(super) struct Store {
    pub labels: Vec<u32>,
    pub pixels: Pixels,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} images", self.labels.len())
    }
}

/// Some images with their labels. Cheap to clone: pixels are shared.
#[derive(Debug, Clone)]
pub struct Split {
    store: Arc<Store>,
    indices: Arc<[u32]>,
    /// Classes by stored label, where they are not the stored labels themselves.
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

    /// Whether reading an image reads no file.
    pub fn in_memory(&self) -> bool {
        !matches!(self.store.pixels, Pixels::Files(_))
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// The class of image `index`.
    ///
    /// # Panics
    /// If `index` is not below [`Split::len`].
    pub fn label(&self, index: usize) -> u32 {
        let label = self.store.labels[self.indices[index] as usize];
        self.classes.as_ref().map_or(label, |classes| classes[label as usize])
    }

    /// Image `index` at its stored size.
    ///
    /// # Errors
    /// An `index` not below [`Split::len`]; a file that is decoded on demand and cannot be read any more.
    pub fn image(&self, index: usize) -> Result<Image<'_>> {
        let Some(&at) = self.indices.get(index) else {
            return Err(Error::Data(format!("image {index} was asked of a split of {} images", self.len())));
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
            Pixels::Files(paths) => {
                let path = &paths[at];
                let image = regular::read(path).and_then(|bytes| decode::decode(&bytes));
                image.map_err(|reason| Error::format(path, format!("{reason} ({})", decode::WAY_OUT)))
            }
            Pixels::Builtin { seed, first } => Ok(builtin::image(*seed, first + at as u64)),
        }
    }
}
