//! Values that samples have. A predictor knows nothing of a value beyond them, and its deviation does not say so: where
//! no sample differs, how much a choice counts follows from the prior alone.

use super::Sample;
use ofa_supernet::SearchSpace;
use ofa_supernet::space::{DIMENSIONS, Narrowing};

/// For each key, the values between the smallest and the largest that a choice has in `samples`. Values between those
/// count as known, since accuracy moves little from one to the next.
///
/// Lists of single stages count by rank from the largest value down, as in [`SearchSpace::narrowed`].
pub(super) fn sampled(space: &SearchSpace, samples: &[Sample]) -> Narrowing {
    let places = space.places();
    let mut narrowing = Narrowing::default();
    for dimension in &DIMENSIONS {
        let mut listed = space.listed(dimension.key);
        listed.reverse();
        // A place with a single value has it in every sample, which tells nothing of others.
        let of_key = || places.iter().filter(|place| place.dimension.key == dimension.key && place.values.len() > 1);
        let smallest = listed.len().saturating_sub(1);
        let (mut first, mut last) = (listed.len(), 0);
        for place in of_key() {
            for rank in samples.iter().filter_map(|sample| Some(place.values.len() - 1 - place.choice(&sample.subnet)?))
            {
                // Where one list is longer than the other, the smallest value of the shorter stands for the rest.
                let rank = rank.min(smallest);
                first = first.min(rank);
                last = last.max(if rank + 1 >= place.values.len() { smallest } else { rank });
            }
        }
        let kept: Vec<_> = listed.iter().enumerate().filter(|(rank, _)| (first..=last).contains(rank)).collect();
        let values: Vec<_> = kept.into_iter().rev().map(|(_, value)| *value).collect();
        narrowing.set(dimension.key, if first > last { &listed } else { &values });
    }
    narrowing
}
