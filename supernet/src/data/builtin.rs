//! The built-in dataset as splits.

use super::drawing::{CLASSES, SIDE, class, draw};
use super::opening::{Opening, Splits};
use super::split::{Pixels, Store};
use super::{Loaded, digest, no_images};
use crate::{Error, Result};
use rayon::prelude::*;

/// Number of the first test image; more training images than that would run into the test images.
const FIRST_TEST: u64 = 1 << 40;

pub(super) fn open(opening: &Opening) -> Result<Loaded> {
    let options = opening.options;
    let store = |first: u64, count: usize| -> Result<Store> {
        let bytes_all = count * SIDE * SIDE * 3;
        let pixels = if bytes_all <= options.cache_bytes {
            let mut bytes = vec![0; bytes_all];
            bytes.par_chunks_exact_mut(SIDE * SIDE * 3).enumerate().try_for_each(|(i, out)| -> Result<()> {
                opening.check("drawing images")?;
                draw(options.seed, first + i as u64, out);
                Ok(())
            })?;
            Pixels::Uniform { width: SIDE, height: SIDE, bytes }
        } else {
            Pixels::Builtin { seed: options.seed, first }
        };
        let labels = (0..count).map(|i| class(first + i as u64)).collect();
        Ok(Store { labels, pixels, origin: Some(digest::of_builtin(options.seed, first)) })
    };
    for (count, what) in [(options.builtin_train, "training"), (options.builtin_test, "test")] {
        if count < CLASSES.len() || count > u32::MAX as usize {
            return Err(Error::Data(format!(
                "builtin: {count} {what} images asked; expected {} to {}",
                CLASSES.len(),
                u32::MAX
            )));
        }
    }
    Ok(Loaded {
        classes: CLASSES.map(String::from).to_vec(),
        train: if opening.splits == Splits::Test { no_images() } else { store(0, options.builtin_train)? },
        validation: None,
        test: store(FIRST_TEST, options.builtin_test)?,
        skipped: 0,
        notes: Vec::new(),
    })
}
