//! RandAugment (Cubuk et al. 2020): some operations, drawn anew for each image, all of one magnitude.

use crate::{Error, Result};
use rand::Rng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

/// Largest magnitude.
const STRONGEST: f32 = 10.0;
/// Largest shear, translation in parts of the side, rotation in degrees, and change of brightness, contrast, saturation
/// and sharpness, each in both directions.
const SHEAR: f32 = 0.3;
const TRANSLATION: f32 = 0.3;
const ROTATION: f32 = 30.0;
const CHANGE: f32 = 0.9;
/// Most bits that posterize takes away.
const BITS: f32 = 4.0;

/// Random operations on training images, after crop and flip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandAugment {
    /// Operations on each image, one after the other.
    pub operations: usize,
    /// Strength of all of them, 0 to 10.
    pub magnitude: f32,
}

impl RandAugment {
    pub(super) fn check(&self) -> Result<()> {
        let RandAugment { operations, magnitude } = self;
        if !(1..=14).contains(operations) {
            return Err(Error::Config(format!(
                "rand_augment operations is {operations}; it must lie between 1 and 14, or leave rand_augment out"
            )));
        }
        if !(0.0..=STRONGEST).contains(magnitude) {
            return Err(Error::Config(format!("rand_augment magnitude is {magnitude}; it must lie between 0 and 10")));
        }
        Ok(())
    }

    /// Changes a square image of `side` pixels with values in 0..1; `fill` is seen beyond its edges.
    pub(super) fn apply(&self, pixels: &mut [f32], side: usize, fill: [f32; 3], rng: &mut StdRng) {
        for _ in 0..self.operations {
            let operation = OPERATIONS[rng.random_range(0..OPERATIONS.len())];
            let sign = if rng.random() { 1.0 } else { -1.0 };
            operation.apply(pixels, side, fill, self.magnitude / STRONGEST, sign);
        }
    }
}

/// The operations of the paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Identity,
    AutoContrast,
    Equalize,
    Rotate,
    Solarize,
    Posterize,
    Contrast,
    Brightness,
    Saturation,
    Sharpness,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
}

const OPERATIONS: [Operation; 14] = [
    Operation::Identity,
    Operation::AutoContrast,
    Operation::Equalize,
    Operation::Rotate,
    Operation::Solarize,
    Operation::Posterize,
    Operation::Contrast,
    Operation::Brightness,
    Operation::Saturation,
    Operation::Sharpness,
    Operation::ShearX,
    Operation::ShearY,
    Operation::TranslateX,
    Operation::TranslateY,
];

impl Operation {
    /// `strength` is 0 to 1, `sign` 1 or -1.
    fn apply(self, pixels: &mut [f32], side: usize, fill: [f32; 3], strength: f32, sign: f32) {
        let factor = 1.0 + sign * CHANGE * strength;
        let mut moved = |matrix: [f32; 6]| transform(pixels, side, fill, matrix);
        match self {
            Operation::Identity => {}
            Operation::AutoContrast => each_channel(pixels, stretch),
            Operation::Equalize => each_channel(pixels, equalize),
            Operation::Rotate => {
                let (sin, cos) = (sign * ROTATION * strength).to_radians().sin_cos();
                moved([cos, sin, 0.0, -sin, cos, 0.0]);
            }
            Operation::Solarize => {
                let threshold = 1.0 - strength;
                pixels.iter_mut().filter(|v| **v > threshold).for_each(|v| *v = 1.0 - *v);
            }
            Operation::Posterize => {
                let lost = (1u32 << (BITS * strength).round() as u32) - 1;
                pixels.iter_mut().for_each(|v| *v = ((*v * 255.0).round() as u32 & !lost) as f32 / 255.0);
            }
            Operation::Contrast => {
                let mean = pixels.chunks_exact(3).map(luma).sum::<f32>() * 3.0 / pixels.len().max(1) as f32;
                blend(pixels, factor, |_| [mean; 3]);
            }
            Operation::Brightness => blend(pixels, factor, |_| [0.0; 3]),
            Operation::Saturation => blend(pixels, factor, |pixel| [luma(pixel); 3]),
            Operation::Sharpness => sharpen(pixels, side, factor),
            Operation::ShearX => moved([1.0, sign * SHEAR * strength, 0.0, 0.0, 1.0, 0.0]),
            Operation::ShearY => moved([1.0, 0.0, 0.0, sign * SHEAR * strength, 1.0, 0.0]),
            Operation::TranslateX => moved([1.0, 0.0, sign * TRANSLATION * strength * side as f32, 0.0, 1.0, 0.0]),
            Operation::TranslateY => moved([1.0, 0.0, 0.0, 0.0, 1.0, sign * TRANSLATION * strength * side as f32]),
        }
    }
}

/// Luma with the weights of ITU-R BT.601.
pub(super) fn luma(pixel: &[f32]) -> f32 {
    0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]
}

/// Moves each pixel away from `other` of it (towards it, where `factor` is below 1), within 0..1.
fn blend(pixels: &mut [f32], factor: f32, other: impl Fn(&[f32]) -> [f32; 3]) {
    for pixel in pixels.chunks_exact_mut(3) {
        let other = other(pixel);
        pixel.iter_mut().zip(other).for_each(|(v, other)| *v = (other + factor * (*v - other)).clamp(0.0, 1.0));
    }
}

fn each_channel(pixels: &mut [f32], change: impl Fn(&mut [f32])) {
    let mut values = Vec::with_capacity(pixels.len() / 3);
    for channel in 0..3 {
        values.clear();
        values.extend(pixels.iter().skip(channel).step_by(3));
        change(&mut values);
        pixels.iter_mut().skip(channel).step_by(3).zip(&values).for_each(|(to, &value)| *to = value);
    }
}

/// Stretches a channel to 0..1.
fn stretch(values: &mut [f32]) {
    let (low, high) = values.iter().fold((1.0f32, 0.0f32), |(low, high), &v| (low.min(v), high.max(v)));
    if high > low {
        values.iter_mut().for_each(|v| *v = (*v - low) / (high - low));
    }
}

/// Makes all of 256 levels of a channel alike frequent, as far as they can be told apart.
fn equalize(values: &mut [f32]) {
    // Runs of earlier versions may have means above 1, which fill borders.
    let level = |value: f32| ((value * 255.0).round() as usize).min(255);
    let mut counts = [0usize; 256];
    values.iter().for_each(|&value| counts[level(value)] += 1);
    let last = counts.iter().rev().find(|&&count| count > 0).copied().unwrap_or(0);
    // Values of a single level stay.
    let others = values.len() - last;
    if others == 0 {
        return;
    }
    let mut below = 0;
    let levels = counts.map(|count| {
        let level = below as f32 / others as f32;
        below += count;
        level.min(1.0)
    });
    values.iter_mut().for_each(|value| *value = levels[level(*value)]);
}

/// Moves each pixel inside the edge away from its mean over 3x3 pixels with five times the weight in the middle
/// (towards it, where `factor` is below 1).
fn sharpen(pixels: &mut [f32], side: usize, factor: f32) {
    let before = pixels.to_vec();
    for y in 1..side.saturating_sub(1) {
        for x in 1..side - 1 {
            for channel in 0..3 {
                let at = |y: usize, x: usize| before[(y * side + x) * 3 + channel];
                let around: f32 =
                    (y - 1..=y + 1).flat_map(|y| (x - 1..=x + 1).map(move |x| (y, x))).map(|(y, x)| at(y, x)).sum();
                let smooth = (around + 4.0 * at(y, x)) / 13.0;
                pixels[(y * side + x) * 3 + channel] = (smooth + factor * (at(y, x) - smooth)).clamp(0.0, 1.0);
            }
        }
    }
}

/// Replaces each pixel by the bilinear value at `matrix` of its place, both measured from the image's centre: `[a, b, c,
/// d, e, f]` takes `(x, y)` to `(a x + b y + c, d x + e y + f)`. Beyond the edges `fill` is seen.
fn transform(pixels: &mut [f32], side: usize, fill: [f32; 3], [a, b, c, d, e, f]: [f32; 6]) {
    let before = pixels.to_vec();
    let middle = (side as f32 - 1.0) / 2.0;
    for (place, pixel) in pixels.chunks_exact_mut(3).enumerate() {
        let (x, y) = ((place % side) as f32 - middle, (place / side) as f32 - middle);
        let (x, y) = (a * x + b * y + c + middle, d * x + e * y + f + middle);
        let (left, top) = (x.floor(), y.floor());
        let (right, bottom) = (x - left, y - top);
        let at = |row: f32, column: f32| -> [f32; 3] {
            let inside = |v: f32| (0.0..side as f32).contains(&v);
            match inside(row) && inside(column) {
                true => {
                    let from = (row as usize * side + column as usize) * 3;
                    [before[from], before[from + 1], before[from + 2]]
                }
                false => fill,
            }
        };
        let corners = [at(top, left), at(top, left + 1.0), at(top + 1.0, left), at(top + 1.0, left + 1.0)];
        for (channel, value) in pixel.iter_mut().enumerate() {
            let [above_left, above_right, below_left, below_right] = corners.map(|corner| corner[channel]);
            let above = above_left + right * (above_right - above_left);
            let below = below_left + right * (below_right - below_left);
            *value = above + bottom * (below - above);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::{Stream, generator};

    const SIDE: usize = 9;

    fn image() -> Vec<f32> {
        (0..SIDE * SIDE * 3).map(|i| 0.1 + 0.8 * ((i as f32 * 0.37).sin() * 0.5 + 0.5)).collect()
    }

    fn changed(operation: Operation, strength: f32, sign: f32) -> Vec<f32> {
        let mut pixels = image();
        operation.apply(&mut pixels, SIDE, [0.5; 3], strength, sign);
        pixels
    }

    fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |a, b| if a > b { a } else { b })
    }

    #[test]
    fn every_operation_stays_in_range_and_grows_with_its_strength() {
        for operation in OPERATIONS {
            for sign in [1.0, -1.0] {
                let [none, some] = [0.0, 0.8].map(|strength| changed(operation, strength, sign));
                assert!(some.iter().all(|v| (0.0..=1.0).contains(v)), "{operation:?}");
                let without = matches!(operation, Operation::AutoContrast | Operation::Equalize);
                // Posterize of all eight bits is a rounding.
                let rounding = if operation == Operation::Posterize { 1.0 / 255.0 } else { 1e-6 };
                assert_eq!(largest_difference(&none, &image()) > rounding, without, "{operation:?}");
                assert_eq!(
                    largest_difference(&some, &image()) > 0.02,
                    operation != Operation::Identity,
                    "{operation:?}"
                );
            }
        }
    }

    #[test]
    fn operations_do_what_they_are_called() {
        let original = image();
        let at = |pixels: &[f32], x: usize, y: usize| pixels[(y * SIDE + x) * 3 + 1];
        // 10/27 of the strength of a translation is one pixel of nine.
        let translated = changed(Operation::TranslateX, 10.0 / 27.0, 1.0);
        for y in 0..SIDE {
            assert!((at(&translated, 2, y) - at(&original, 3, y)).abs() < 1e-4);
            assert!((at(&translated, SIDE - 1, y) - 0.5).abs() < 1e-4);
        }
        let sheared = changed(Operation::ShearY, 1.0, 1.0);
        assert!((0..SIDE).all(|y| (at(&sheared, 4, y) - at(&original, 4, y)).abs() < 1e-5));
        let rotated = changed(Operation::Rotate, 1.0, -1.0);
        assert!((at(&rotated, 4, 4) - at(&original, 4, 4)).abs() < 1e-5);
        let stretched = changed(Operation::AutoContrast, 0.0, 1.0);
        let channel: Vec<f32> = stretched.iter().skip(1).step_by(3).copied().collect();
        assert!(channel.contains(&0.0) && channel.contains(&1.0));
        let mut levels: Vec<u32> =
            changed(Operation::Posterize, 1.0, 1.0).iter().map(|v| (v * 255.0).round() as u32).collect();
        levels.sort_unstable();
        levels.dedup();
        assert!(levels.len() <= 16 && levels.iter().all(|level| level % 16 == 0), "{levels:?}");
        let inverted = changed(Operation::Solarize, 1.0, 1.0);
        assert!(inverted.iter().zip(&original).all(|(a, b)| (a + b - 1.0).abs() < 1e-6));
        let grey = changed(Operation::Saturation, 1.0, -1.0);
        let spread = |pixels: &[f32]| pixels.chunks_exact(3).map(|p| (p[0] - p[1]).abs()).sum::<f32>();
        assert!(spread(&grey) < 0.11 * spread(&original));
        // As many values in each quarter of the range; of the sines of the image most are at its ends.
        let quarters = |pixels: &[f32]| {
            let mut counts = [0; 4];
            pixels.iter().skip(1).step_by(3).for_each(|v| counts[((v * 4.0) as usize).min(3)] += 1);
            counts
        };
        assert!(quarters(&original).iter().any(|count| !(16..=25).contains(count)));
        let equal = quarters(&changed(Operation::Equalize, 0.0, 1.0));
        assert!(equal.iter().all(|count| (16..=25).contains(count)), "{equal:?}");
    }

    #[test]
    fn draws_depend_on_the_generator_only_and_constant_images_survive() {
        let settings = RandAugment { operations: 3, magnitude: 7.0 };
        let drawn = |n: u64, mut pixels: Vec<f32>| {
            settings.apply(&mut pixels, SIDE, [0.5; 3], &mut generator(1, Stream::Augmentation, &[n]));
            pixels
        };
        assert_eq!(drawn(3, image()), drawn(3, image()));
        assert_ne!(drawn(3, image()), drawn(4, image()));
        for n in 0..200 {
            assert!(drawn(n, vec![0.25; SIDE * SIDE * 3]).iter().all(|v| (0.0..=1.0).contains(v)), "{n}");
            let mut pixel = [0.3; 3];
            settings.apply(&mut pixel, 1, [0.5; 3], &mut generator(1, Stream::Augmentation, &[n]));
            assert!(pixel.iter().all(|v| (0.0..=1.0).contains(v)), "{n}");
        }
    }

    #[test]
    fn impossible_settings_are_named() {
        let error = |operations, magnitude| RandAugment { operations, magnitude }.check().unwrap_err().to_string();
        assert!(error(0, 3.0).contains("operations is 0"));
        assert!(error(2, 11.0).contains("magnitude is 11"));
        assert!(error(2, f32::NAN).contains("magnitude is NaN"));
        RandAugment { operations: 2, magnitude: 10.0 }.check().unwrap();
    }
}
