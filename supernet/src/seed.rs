//! Random generators, derived from their purpose.
//!
//! Every random decision uses a generator made from `(seed, stream, position)`. Nothing draws from a shared stream, so
//! resuming needs no saved generator state, and the order of parallel work cannot change a result.

use rand::SeedableRng;
use rand::rngs::StdRng;

/// Purpose of a generator; two streams share no numbers, whatever their seeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Initial weights.
    Weights = 1,
    /// Order of training images in an epoch.
    Order = 2,
    /// Augmentation of one image.
    Augmentation = 3,
    /// Resolution of a training step.
    Resolution = 4,
    /// Subnets of a training step.
    Sampling = 5,
    /// Candidates from which `best_up` and `worst_up` choose a subnet.
    Candidates = 6,
    /// Dropout masks of a training step.
    Dropout = 7,
    /// Dropout masks of a fine-tuning step.
    FinetuneDropout = 8,
    /// Choice of the training images that form the validation split.
    Split = 9,
    /// Choice of the training images on which the normalisation is measured.
    Normalisation = 10,
    /// Choice of the training images that recalibrate batch norm.
    Recalibration = 11,
    /// Choice of the measured images of a split, if not all are measured.
    Validation = 12,
    /// Choice of the images on which an extracted model is compared with the supernet.
    Compare = 13,
    /// Choice of the training images whose content a supernet stores.
    Remembered = 14,
    /// The built-in dataset.
    Builtin = 15,
    /// Subnets on which the predictor is fitted.
    Samples = 16,
    /// Choice of the samples that are held out to judge the predictor.
    HeldOut = 17,
    /// Initial weights of the predictor.
    PredictorWeights = 18,
    /// Order of samples in a fit of the predictor.
    PredictorOrder = 19,
    /// Candidates of active sampling.
    ActiveCandidates = 20,
    /// Subnets over which active sampling lowers the deviation.
    ActiveTypical = 21,
    /// Order of samples before a fit of active sampling.
    ActiveOrder = 22,
    /// Draws of active sampling by expected improvement.
    ActiveImprovement = 23,
    /// Order of samples in the learning curve.
    CurveOrder = 24,
    /// Search.
    Search = 25,
    /// Initial weights of the search's policy.
    PolicyWeights = 26,
    /// Subnets that check a table of costs.
    TableCheck = 27,
    /// Hyperparameters of a trial.
    Trial = 28,
    /// Hyperparameters near those of the best trial.
    TrialNearBest = 29,
    /// Choice of the subnets that calibrate and check a device profile.
    ProfileSubnets = 30,
    /// Images of noise on which times are measured.
    RandomImages = 31,
    /// Epochs in which an image is mirrored, with alternating flips.
    AlternatingFlip = 32,
    /// Mixing of the images of a batch.
    Mixing = 33,
    /// Order of training images in an epoch that shows all classes alike.
    BalancedOrder = 34,
    /// Order of the networks of a profile in a round.
    ProfileOrder = 35,
    /// Choice of the training images whose patches the first convolution whitens.
    Whitening = 36,
    /// Images that skip a block in a training step.
    DropPath = 37,
}

/// The generator of `stream` at `position` (epoch, step, image index, ..., as the stream requires).
pub fn generator(seed: u64, stream: Stream, position: &[u64]) -> StdRng {
    StdRng::seed_from_u64(state(seed, stream as u64, position))
}

/// Seed, stream and each part of the position pass through the mixer one after the other. If they were combined by XOR
/// first, seed 1 of stream 2 would equal seed 0 of stream 3.
fn state(seed: u64, stream: u64, position: &[u64]) -> u64 {
    let start = 0x6f66_6121_0000_0000 ^ position.len() as u64;
    [seed, stream].iter().chain(position).fold(mix(start), |state, &part| mix(state ^ mix(part)))
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
        let first = |seed, stream, position: &[u64]| generator(seed, stream, position).random::<u64>();
        let base = first(1, Stream::Order, &[2, 3]);
        assert_eq!(base, first(1, Stream::Order, &[2, 3]));
        for other in [
            first(2, Stream::Order, &[2, 3]),
            first(1, Stream::Sampling, &[2, 3]),
            first(1, Stream::Order, &[3, 2]),
            first(1, Stream::Order, &[2]),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn small_seeds_streams_and_positions_never_share_a_state() {
        let mut states = Vec::new();
        for seed in 0..128 {
            for stream in 0..64 {
                states.push(state(seed, stream, &[]));
                for position in 0..16 {
                    states.push(state(seed, stream, &[position]));
                    states.push(state(seed, stream, &[position, 0]));
                }
            }
        }
        let count = states.len();
        states.sort_unstable();
        states.dedup();
        assert_eq!(states.len(), count);
        let first = |seed, stream| generator(seed, stream, &[]).random::<u64>();
        assert_ne!(
            first(Stream::Order as u64, Stream::Augmentation),
            first(Stream::Augmentation as u64, Stream::Order)
        );
    }
}
