//! Random generators derived from what they are for.
//!
//! Every random decision takes a generator made from `(seed, purpose, position)`. Nothing draws from a shared stream, so
//! resuming needs no saved generator state and the order of parallel work cannot change a result.

use rand::SeedableRng;
use rand::rngs::StdRng;

/// What a generator is used for; two purposes never share a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Initial weights.
    Weights = 1,
    /// Order of training images in an epoch.
    Order = 2,
    /// Augmentation of one image.
    Augmentation = 3,
    /// Resolution and subnets of a training step.
    Sampling = 4,
    /// Dropout masks of a training step.
    Dropout = 5,
    /// Which training images form the validation split.
    Split = 6,
    /// Which training images recalibrate batch norm.
    Recalibration = 7,
    /// Which subnets the predictor is fitted on, and its held-out part.
    Predictor = 8,
    /// Search.
    Search = 9,
    /// Which subnets check a device profile.
    Profile = 10,
    /// The built-in dataset.
    Builtin = 11,
    /// Which images of a split are measured, where not all are.
    Validation = 12,
    /// Which images compare an extracted model with the supernet.
    Compare = 13,
}

/// The generator for `purpose` at `position` (epoch, step, image index, ... as the purpose needs).
pub fn generator(seed: u64, purpose: Purpose, position: &[u64]) -> StdRng {
    let mut state = mix(seed ^ 0x6f66_6121_0000_0000 ^ purpose as u64);
    for &part in position {
        state = mix(state ^ mix(part.wrapping_add(0x9e37_79b9_7f4a_7c15)));
    }
    StdRng::seed_from_u64(state)
}

/// SplitMix64's finaliser (Steele et al., OOPSLA 2014): every input bit reaches every output bit.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn streams_depend_on_every_part() {
        let first = |seed, purpose, position: &[u64]| generator(seed, purpose, position).random::<u64>();
        let base = first(1, Purpose::Order, &[2, 3]);
        assert_eq!(base, first(1, Purpose::Order, &[2, 3]));
        for other in [
            first(2, Purpose::Order, &[2, 3]),
            first(1, Purpose::Sampling, &[2, 3]),
            first(1, Purpose::Order, &[3, 2]),
            first(1, Purpose::Order, &[2]),
        ] {
            assert_ne!(base, other);
        }
    }
}
