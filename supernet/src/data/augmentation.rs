//! Random changes of training images, as a configuration has them.

use super::erasing::RandomErasing;
use super::flip::Flip;
use super::mixing::Mix;
use super::rand_augment::RandAugment;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// The part of a training image that is seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Crop {
    /// The part that evaluation sees.
    None,
    /// A random square as large as the image's shorter side, cut out of the image with a border of `pixels`, and scaled
    /// to the batch's resolution.
    Padded {
        /// Border in pixels of the stored image; at most half its shorter side, so that a crop always shows some of it.
        pixels: usize,
        /// What the border shows (default: the mean colour).
        #[serde(default, skip_serializing_if = "Border::is_mean")]
        border: Border,
    },
    /// A random rectangle of `min_area` to 1 of the image's area and aspect 3/4 to 4/3, scaled to the batch's
    /// resolution.
    Resized {
        /// Smallest fraction of the area, above 0 and at most 1.
        min_area: f32,
    },
}

/// What surrounds an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Border {
    /// The training set's mean colour.
    #[default]
    Mean,
    /// The image, reflected at its edges.
    Reflect,
}

impl Border {
    fn is_mean(&self) -> bool {
        *self == Border::Mean
    }
}

/// Random changes of training images. The result depends only on the seed, the epoch, the image's index and these
/// settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augmentation {
    /// The part of the image that is seen.
    pub crop: Crop,
    /// Choice of the images that are mirrored left to right.
    pub flip: Flip,
    /// Largest relative change `j` of brightness, contrast and saturation, which are scaled in this order by factors
    /// from `1 - j` to `1 + j`; 0 is off.
    pub colour_jitter: f32,
    /// Side of a square that is blanked (set to the mean colour) at a random place, as a part of the image's side; 0 is
    /// off (DeVries and Taylor 2017).
    #[serde(skip_serializing_if = "is_zero")]
    pub cutout: f64,
    /// Random operations, after crop and flip (default: none).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rand_augment: Option<RandAugment>,
    /// Rectangles of random size that some images lose (default: none).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub random_erasing: Option<RandomErasing>,
    /// Mixing of several images with their labels (default: none).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mix: Option<Mix>,
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

impl Default for Augmentation {
    /// The usual choice for small images: a border of 4 pixels, and flips.
    fn default() -> Self {
        let crop = Crop::Padded { pixels: 4, border: Border::Mean };
        Augmentation {
            crop,
            flip: Flip::Random,
            colour_jitter: 0.0,
            cutout: 0.0,
            rand_augment: None,
            random_erasing: None,
            mix: None,
        }
    }
}

impl Augmentation {
    /// Refuses settings that make no sense.
    ///
    /// # Errors
    /// `min_area` outside (0, 1], `colour_jitter` outside [0, 1], `cutout` outside [0, 1) or together with random
    /// erasing, a border of more than 4096 pixels, or a table with values that have no meaning.
    pub fn check(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.colour_jitter) {
            return Err(Error::Config(format!("colour_jitter is {}; it must lie between 0 and 1", self.colour_jitter)));
        }
        if !(0.0..1.0).contains(&self.cutout) {
            return Err(Error::Config(format!("cutout is {}; it must be at least 0 and below 1", self.cutout)));
        }
        if self.cutout > 0.0 && self.random_erasing.is_some() {
            return Err(Error::Config(
                "cutout and random_erasing both blank a part of each image; leave one out".into(),
            ));
        }
        self.rand_augment.as_ref().map_or(Ok(()), RandAugment::check)?;
        self.random_erasing.as_ref().map_or(Ok(()), RandomErasing::check)?;
        if let Some(mix) = &self.mix {
            mix.check()?;
        }
        match self.crop {
            Crop::Resized { min_area } if !(min_area > 0.0 && min_area <= 1.0) => {
                Err(Error::Config(format!("crop min_area is {min_area}; it must be above 0 and at most 1")))
            }
            Crop::Padded { pixels, .. } if pixels > 4096 => {
                Err(Error::Config(format!("crop pixels is {pixels}; a border has at most 4096")))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::mixing::Mixing;
    use super::*;

    #[test]
    fn settings_without_a_meaning_are_refused() {
        let check = |crop, colour_jitter| Augmentation { crop, colour_jitter, ..Augmentation::default() }.check();
        assert!(check(Crop::Resized { min_area: 0.08 }, 0.4).is_ok());
        assert!(check(Crop::Resized { min_area: 0.0 }, 0.0).unwrap_err().to_string().contains("min_area"));
        assert!(check(Crop::None, -0.1).unwrap_err().to_string().contains("colour_jitter"));
        assert!(check(Crop::None, f32::NAN).is_err());
        let error = Augmentation { cutout: 1.0, ..Augmentation::default() }.check().unwrap_err().to_string();
        assert!(error.contains("cutout is 1"), "{error}");
        let random_erasing = Some(RandomErasing { probability: 0.5, area: [0.1, 0.2] });
        let error = Augmentation { cutout: 0.2, random_erasing, ..Augmentation::default() }.check().unwrap_err();
        assert!(error.to_string().contains("cutout and random_erasing"), "{error}");
        let rand_augment = Some(RandAugment { operations: 0, magnitude: 1.0 });
        assert!(Augmentation { rand_augment, ..Augmentation::default() }.check().is_err());
        let mix = Some(Mix { method: Mixing::Mixup, beta: 0.0, probability: 1.0 });
        assert!(Augmentation { mix, ..Augmentation::default() }.check().is_err());
    }

    #[test]
    fn reads_from_toml() {
        let parsed: Augmentation =
            toml::from_str("crop = { resized = { min_area = 0.5 } }\ncolour_jitter = 0.1").unwrap();
        let crop = Crop::Resized { min_area: 0.5 };
        assert_eq!(parsed, Augmentation { crop, colour_jitter: 0.1, ..Augmentation::default() });
        let text = "crop = { padded = { pixels = 4, border = \"reflect\" } }\nflip = \"alternating\"\ncutout = 0.25\n\
                    rand_augment = { operations = 2, magnitude = 3 }\nrandom_erasing = { probability = 0.5, area = [0.1, 0.2] }\n\
                    mix = { method = \"ricap\", beta = 0.3, probability = 0.5 }\n";
        let parsed: Augmentation = toml::from_str(text).unwrap();
        let expected = Augmentation {
            crop: Crop::Padded { pixels: 4, border: Border::Reflect },
            flip: Flip::Alternating,
            colour_jitter: 0.0,
            cutout: 0.25,
            rand_augment: Some(RandAugment { operations: 2, magnitude: 3.0 }),
            random_erasing: Some(RandomErasing { probability: 0.5, area: [0.1, 0.2] }),
            mix: Some(Mix { method: Mixing::Ricap, beta: 0.3, probability: 0.5 }),
        };
        assert_eq!(parsed, expected);
        assert_eq!(toml::from_str::<Augmentation>(&toml::to_string(&parsed).unwrap()).unwrap(), expected);
        assert_eq!(toml::from_str::<Augmentation>("crop = \"none\"").unwrap().crop, Crop::None);
        assert!(toml::from_str::<Augmentation>("flop = true").is_err());
    }
}
