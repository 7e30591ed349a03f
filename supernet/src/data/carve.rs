//! The validation split that is carved out of the training images.

use super::split::{Split, Store};
use super::{DataOptions, MOST_BY_DEFAULT};
use crate::seed::{Stream, generator};
use crate::{Error, Result};
use rand::seq::SliceRandom;
use std::sync::Arc;

/// Splits training images into training and validation images. Each class gives its share, rounded, but never its last
/// image; the seed decides which images.
pub(super) fn carve(store: Arc<Store>, classes: usize, options: &DataOptions, source: &str) -> Result<(Split, Split)> {
    let total = store.labels.len();
    let most = (total / 2).min(total.saturating_sub(classes));
    let wanted = options.validation.unwrap_or(MOST_BY_DEFAULT.min(total / 5).min(most));
    if wanted > most {
        let reason = if wanted > total / 2 {
            format!("would take more than half of the {total} training images")
        } else {
            format!("would leave a class without a training image ({total} images, {classes} classes)")
        };
        let reason = format!(
            "a validation split of {wanted} images {reason}; ask for at most {most}, or leave the number out (then it is \
             {MOST_BY_DEFAULT}, but at most a fifth)"
        );
        return Err(Error::format(source, reason));
    }
    let mut order: Vec<u32> = (0..total as u32).collect();
    order.shuffle(&mut generator(options.seed, Stream::Split, &[]));
    // A stable sort by class keeps the shuffled order within a class; every `total / wanted`-th image of that list is
    // then each class's rounded share.
    order.sort_by_key(|&i| store.labels[i as usize]);
    let mut chosen: Vec<bool> =
        (0..total).map(|position| (position + 1) * wanted / total > position * wanted / total).collect();
    keep_one_per_class(&order, &store.labels, &mut chosen);
    let (mut train, mut validation) = (Vec::with_capacity(total - wanted), Vec::with_capacity(wanted));
    for (&index, &chosen) in order.iter().zip(&chosen) {
        if chosen { validation.push(index) } else { train.push(index) }
    }
    train.sort_unstable();
    validation.sort_unstable();
    Ok((Split::of(store.clone(), train), Split::of(store, validation)))
}

/// Returns one image to each class that would lose all of them. The classes with the most images left give others in
/// exchange, so that the number of chosen images stays the same. `order` is sorted by class.
fn keep_one_per_class(order: &[u32], labels: &[u32], chosen: &mut [bool]) {
    let mut ranges = Vec::new();
    for run in order.chunk_by(|&a, &b| labels[a as usize] == labels[b as usize]) {
        let start = ranges.last().map_or(0, |range: &std::ops::Range<usize>| range.end);
        ranges.push(start..start + run.len());
    }
    let left =
        |range: &std::ops::Range<usize>, chosen: &[bool]| range.clone().filter(|&position| !chosen[position]).count();
    let mut lefts: Vec<usize> = ranges.iter().map(|range| left(range, chosen)).collect();
    let emptied: Vec<usize> = (0..ranges.len()).filter(|&class| lefts[class] == 0).collect();
    for class in emptied {
        // The first class with the most images left. It can spare one, since at most all images less one per class are
        // chosen.
        let Some(giver) =
            (0..ranges.len()).filter(|&giver| lefts[giver] > 1).max_by_key(|&g| (lefts[g], usize::MAX - g))
        else {
            return;
        };
        if let Some(position) = ranges[giver].clone().find(|&position| !chosen[position]) {
            chosen[position] = true;
            lefts[giver] -= 1;
        }
        chosen[ranges[class].start] = false;
        lefts[class] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::split::Pixels;

    fn store(counts: &[usize]) -> Arc<Store> {
        let labels: Vec<u32> =
            counts.iter().enumerate().flat_map(|(class, &count)| vec![class as u32; count]).collect();
        let bytes = vec![0; labels.len() * 3];
        Arc::new(Store { labels, pixels: Pixels::Uniform { width: 1, height: 1, bytes }, origin: None })
    }

    fn sizes(counts: &[usize], validation: Option<usize>, seed: u64) -> Result<(Vec<usize>, usize)> {
        let options = DataOptions { validation, seed, ..Default::default() };
        let (train, validation) = carve(store(counts), counts.len(), &options, "here")?;
        let mut left = vec![0; counts.len()];
        (0..train.len()).for_each(|i| left[train.label(i) as usize] += 1);
        Ok((left, validation.len()))
    }

    #[test]
    fn no_class_gives_its_last_training_image() {
        for seed in 0..4 {
            for many in 10..60 {
                let (left, validation) = sizes(&[many, 1, 20, 1, 1], None, seed).unwrap();
                assert!(left.iter().all(|&left| left > 0), "{many}: {left:?}");
                assert_eq!(validation, (many + 23) / 5);
            }
        }
        let (left, validation) = sizes(&[1, 2, 1, 2, 2], Some(3), 0).unwrap();
        assert_eq!((left, validation), (vec![1; 5], 3));
        assert_eq!(sizes(&[1, 1, 1, 1, 1, 1], None, 0).unwrap(), (vec![1; 6], 0));
    }

    #[test]
    fn a_number_is_taken_as_asked_and_refused_where_it_is_too_large() {
        assert_eq!(sizes(&[3000, 3000], None, 0).unwrap().1, 1200);
        for asked in [2999, 3000] {
            assert_eq!(sizes(&[3000, 3000], Some(asked), 0).unwrap().1, asked);
        }
        for asked in [3001, 4999, 5000, 5001] {
            let error = sizes(&[3000, 3000], Some(asked), 0).unwrap_err().to_string();
            assert!(error.contains("more than half of the 6000") && error.contains("at most 3000"), "{error}");
        }
        let error = sizes(&[1, 1, 1, 2], Some(2), 0).unwrap_err().to_string();
        assert!(error.contains("without a training image") && error.contains("at most 1"), "{error}");
    }
}
