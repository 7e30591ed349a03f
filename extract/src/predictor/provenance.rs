//! What accuracies were measured with. Accuracies of other weights or images cannot be compared, nor fitted together.

use serde::{Deserialize, Serialize};

/// What a set of accuracies was measured with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Checksum of the supernet's weights
    /// ([`supernet_checksum`](ofa_supernet::train::checkpoint::supernet_checksum)).
    pub weights: String,
    /// Digest of the data: images, labels, split and normalisation.
    pub data: String,
    /// Training images that recalibrated batch norm.
    pub recalibration: usize,
    /// Validation images.
    pub images: usize,
    /// Images per batch.
    pub batch: usize,
    /// Seed that drew the images.
    pub seed: u64,
}

impl Provenance {
    /// Everything in which accuracies measured with `self` differ from those measured with `now`, in words; `None` if nothing does.
    pub fn difference(&self, now: &Provenance) -> Option<String> {
        let mut differences = Vec::new();
        if self.weights != now.weights {
            differences
                .push(format!("other weights (checksum {}, the supernet now has {})", self.weights, now.weights));
        }
        if self.data != now.data {
            differences.push(format!("other data or normalisation (digest {}, now {})", self.data, now.data));
        }
        for (what, before, after) in [
            ("--recalibration", self.recalibration, now.recalibration),
            ("--images", self.images, now.images),
            ("--batch", self.batch, now.batch),
        ] {
            if before != after {
                differences.push(format!("{what} {before} (now {after})"));
            }
        }
        if self.seed != now.seed {
            differences.push(format!("--seed {} (now {})", self.seed, now.seed));
        }
        (!differences.is_empty()).then(|| differences.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_is_named() {
        let before =
            Provenance { weights: "0a".into(), data: "d1".into(), recalibration: 500, images: 100, batch: 50, seed: 0 };
        assert_eq!(before.difference(&before), None);
        let now = Provenance { weights: "0b".into(), seed: 3, ..before.clone() };
        let expected = "other weights (checksum 0a, the supernet now has 0b), --seed 0 (now 3)";
        assert_eq!(before.difference(&now).unwrap(), expected);
        let now = Provenance { data: "d2".into(), recalibration: 20, images: 9, batch: 8, ..before.clone() };
        let expected = "other data or normalisation (digest d1, now d2), --recalibration 500 (now 20), --images 100 (now 9), --batch 50 (now 8)";
        assert_eq!(before.difference(&now).unwrap(), expected);
    }
}
