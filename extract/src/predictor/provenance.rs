//! Conditions of accuracy measurements. Accuracies of other weights or images can neither be compared nor fitted
//! together.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// Conditions under which accuracies were measured.
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
    /// Differences between the conditions `self` and `now`, in words; `None` if they are equal.
    pub fn difference(&self, now: &Provenance) -> Option<String> {
        let mut differences = Vec::new();
        differences.extend(other_weights(&self.weights, &now.weights));
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

/// Describes the weights with the checksum `before` if the supernet's checksum `now` is another; `None` if they are
/// equal.
pub fn other_weights(before: &str, now: &str) -> Option<String> {
    (before != now).then(|| format!("other weights (checksum {before}, the supernet now has {now})"))
}

/// Text form in a line of samples: `weights 9bc4f2a1 data 0a1b-9f recalibration 500 images 1000 batch 100 seed 0`.
impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Provenance { weights, data, recalibration, images, batch, seed } = self;
        write!(
            f,
            "weights {weights} data {data} recalibration {recalibration} images {images} batch {batch} seed {seed}"
        )
    }
}

impl FromStr for Provenance {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split(' ').collect();
        let fail = || format!("expected {}", Self::FORM);
        let number = |word: &str| word.parse::<u64>().map_err(|_| fail());
        let [
            "weights",
            weights,
            "data",
            data,
            "recalibration",
            recalibration,
            "images",
            images,
            "batch",
            batch,
            "seed",
            seed,
        ] = words[..]
        else {
            return Err(fail());
        };
        Ok(Provenance {
            weights: weights.into(),
            data: data.into(),
            recalibration: number(recalibration)? as usize,
            images: number(images)? as usize,
            batch: number(batch)? as usize,
            seed: number(seed)?,
        })
    }
}

impl Provenance {
    const FORM: &str = "'weights CHECKSUM data DIGEST recalibration N images N batch N seed N'";

    /// Serialises as text, so that a line of samples stays a flat object.
    pub(super) fn to_text<S: Serializer>(provenance: &Option<Self>, serializer: S) -> Result<S::Ok, S::Error> {
        provenance.as_ref().map(Self::to_string).serialize(serializer)
    }

    /// Reads the form that [`to_text`](Self::to_text) writes.
    pub(super) fn from_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Self>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(|reason| D::Error::custom(format!("measured_with: {reason}")))).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        let provenance = Provenance {
            weights: "0a".into(),
            data: "d1-7f".into(),
            recalibration: 500,
            images: 100,
            batch: 50,
            seed: u64::MAX,
        };
        assert_eq!(provenance.to_string().parse(), Ok(provenance));
        for bad in ["", "weights 0a", "weights 0a data d recalibration x images 1 batch 1 seed 0"] {
            assert!(bad.parse::<Provenance>().unwrap_err().contains("weights CHECKSUM"), "{bad}");
        }
    }

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
