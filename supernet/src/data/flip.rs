//! Mirroring of training images.

use crate::seed::{Stream, generator};
use rand::Rng;
use rand::rngs::StdRng;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// Choice of the training images that are mirrored left to right. In files `false`, `true` or `"alternating"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flip {
    /// None.
    Off,
    /// Each with probability 1/2.
    Random,
    /// Each in every other epoch, half of the images in an epoch: two epochs show an image both ways.
    Alternating,
}

/// The word for [`Flip::Alternating`].
const ALTERNATING: &str = "alternating";

impl Flip {
    /// Whether image `index` is mirrored in `epoch`; [`Flip::Random`] draws from `rng`.
    pub(super) fn mirrors(self, seed: u64, epoch: u64, index: u64, rng: &mut StdRng) -> bool {
        match self {
            Flip::Off => false,
            Flip::Random => rng.random(),
            Flip::Alternating => {
                generator(seed, Stream::AlternatingFlip, &[index]).random::<bool>() ^ !epoch.is_multiple_of(2)
            }
        }
    }
}

impl Serialize for Flip {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Flip::Off => serializer.serialize_bool(false),
            Flip::Random => serializer.serialize_bool(true),
            Flip::Alternating => serializer.serialize_str(ALTERNATING),
        }
    }
}

impl<'de> Deserialize<'de> for Flip {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FlipVisitor)
    }
}

struct FlipVisitor;

impl Visitor<'_> for FlipVisitor {
    type Value = Flip;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "true, false or \"{ALTERNATING}\"")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Flip, E> {
        Ok(if value { Flip::Random } else { Flip::Off })
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Flip, E> {
        match value {
            ALTERNATING => Ok(Flip::Alternating),
            _ => Err(E::invalid_value(serde::de::Unexpected::Str(value), &self)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternating_shows_each_image_both_ways_and_mirrors_half_in_an_epoch() {
        let mirrored = |epoch, index| {
            let mut rng = generator(0, Stream::Augmentation, &[]);
            Flip::Alternating.mirrors(3, epoch, index, &mut rng)
        };
        for epoch in 0..4 {
            let count = (0..400).filter(|&index| mirrored(epoch, index)).count();
            assert!((150..250).contains(&count), "{count} of 400");
            assert!((0..400).all(|index| mirrored(epoch, index) != mirrored(epoch + 1, index)));
        }
    }

    #[test]
    fn files_say_a_switch_or_a_word() {
        #[derive(Serialize, Deserialize, PartialEq, Debug)]
        struct Table {
            flip: Flip,
        }
        for (text, flip) in [("false", Flip::Off), ("true", Flip::Random), ("\"alternating\"", Flip::Alternating)] {
            let text = format!("flip = {text}\n");
            assert_eq!(toml::from_str::<Table>(&text).unwrap(), Table { flip });
            assert_eq!(toml::to_string(&Table { flip }).unwrap(), text);
        }
        let error = toml::from_str::<Table>("flip = \"sometimes\"").unwrap_err().to_string();
        assert!(error.contains("expected true, false or \"alternating\""), "{error}");
    }
}
