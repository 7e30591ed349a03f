//! Training images changed at random, and the plain view for everything else.

use super::augmentation::{Augmentation, Border, Crop};
use super::rand_augment::luma;
use super::resample::{Affine, Resampler, Window};
use super::{Image, Normalisation};
use rand::Rng;
use rand::rngs::StdRng;

/// Aspect ratios of a random resized crop (Szegedy et al., CVPR 2015): from 3/4 to 4/3.
const MAX_ASPECT: f64 = 4.0 / 3.0;
/// Attempts at a random resized crop that fits, before the plain view is used.
const TRIES: usize = 10;
/// Resolution from which photographs (images that are not square) are seen through the central 224/256 of their shorter
/// side, as in ImageNet evaluation.
pub const CENTRAL_FROM: usize = 64;

/// A part of an image; it may extend over the image's edge.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rectangle {
    x: isize,
    y: isize,
    width: usize,
    height: usize,
}

/// Turns stored images into normalised images of a fixed resolution; each thread has its own.
pub(super) struct Painter<'a> {
    resolution: usize,
    normalisation: &'a Normalisation,
    resampler: Resampler,
    /// A window that extends over the image's edge, with its border.
    bordered: Vec<u8>,
}

impl<'a> Painter<'a> {
    pub fn new(resolution: usize, normalisation: &'a Normalisation) -> Self {
        Painter { resolution, normalisation, resampler: Resampler::default(), bordered: Vec::new() }
    }

    /// Writes the view of `image` that evaluation uses.
    pub fn plain(&mut self, image: &Image, out: &mut [f32]) {
        self.write(
            image,
            central(image.width, image.height, self.resolution),
            Border::Mean,
            false,
            normalising(self.normalisation),
            out,
        );
    }

    /// Writes `image` changed at random by `augmentation`; `mirrors` decides about a flip.
    pub fn varied(
        &mut self,
        image: &Image,
        augmentation: &Augmentation,
        rng: &mut StdRng,
        mirrors: impl FnOnce(&mut StdRng) -> bool,
        out: &mut [f32],
    ) {
        self.cropped(image, augmentation, rng, mirrors, out);
        if let Some(erasing) = &augmentation.random_erasing {
            erasing.apply(out, self.resolution, rng);
        }
        let side = (augmentation.cutout * self.resolution as f64).round() as usize;
        if side > 0 {
            let [x, y] = [(); 2].map(|()| rng.random_range(0..=self.resolution - side));
            for row in out.chunks_exact_mut(3 * self.resolution).skip(y).take(side) {
                row[3 * x..3 * (x + side)].fill(0.0);
            }
        }
    }

    fn cropped(
        &mut self,
        image: &Image,
        augmentation: &Augmentation,
        rng: &mut StdRng,
        mirrors: impl FnOnce(&mut StdRng) -> bool,
        out: &mut [f32],
    ) {
        let mut outside = Border::Mean;
        let part = match augmentation.crop {
            Crop::None => central(image.width, image.height, self.resolution),
            Crop::Padded { pixels, border } => {
                outside = border;
                padded(image.width, image.height, pixels, rng)
            }
            Crop::Resized { min_area } => resized(image.width, image.height, f64::from(min_area), rng)
                .unwrap_or_else(|| central(image.width, image.height, self.resolution)),
        };
        let flip = mirrors(rng);
        let jitter = augmentation.colour_jitter;
        if jitter == 0.0 && augmentation.rand_augment.is_none() {
            self.write(image, part, outside, flip, normalising(self.normalisation), out);
            return;
        }
        self.write(image, part, outside, flip, Affine { scale: [1.0 / 255.0; 3], offset: [0.0; 3] }, out);
        if jitter > 0.0 {
            let [brightness, contrast, saturation] =
                std::array::from_fn(|_| rng.random_range(1.0 - jitter..=1.0 + jitter));
            colour(out, brightness, contrast, saturation);
        }
        let Normalisation { mean, std } = self.normalisation;
        if let Some(rand_augment) = &augmentation.rand_augment {
            rand_augment.apply(out, self.resolution, *mean, rng);
        }
        for pixel in out.chunks_exact_mut(3) {
            for channel in 0..3 {
                pixel[channel] = (pixel[channel] - mean[channel]) / std[channel];
            }
        }
    }

    fn write(&mut self, image: &Image, part: Rectangle, outside: Border, flip: bool, affine: Affine, out: &mut [f32]) {
        let Rectangle { x, y, width, height } = part;
        let (right, bottom) = (x + width as isize, y + height as isize);
        let window = if x >= 0 && y >= 0 && right <= image.width as isize && bottom <= image.height as isize {
            let stride = image.width * 3;
            Window { pixels: &image.pixels[y as usize * stride + x as usize * 3..], stride, width, height }
        } else {
            let colour = self.normalisation.mean.map(|m| (m * 255.0).round().clamp(0.0, 255.0) as u8);
            match outside {
                Border::Mean => border(image, part, colour, &mut self.bordered),
                Border::Reflect => reflected(image, part, &mut self.bordered),
            }
            Window { pixels: &self.bordered, stride: width * 3, width, height }
        };
        self.resampler.write(&window, self.resolution, flip, affine, out);
    }
}

fn normalising(normalisation: &Normalisation) -> Affine {
    let Normalisation { mean, std } = normalisation;
    Affine {
        scale: std::array::from_fn(|i| 1.0 / (255.0 * std[i])),
        offset: std::array::from_fn(|i| -mean[i] / std[i]),
    }
}

/// Copies `part` of `image`, filled with `colour` where it extends over the edge.
fn border(image: &Image, part: Rectangle, colour: [u8; 3], out: &mut Vec<u8>) {
    let Rectangle { x, y, width, height } = part;
    let inside = |from: isize, size: usize, limit: usize| {
        let clamp = |v: isize| v.clamp(0, limit as isize);
        (clamp(from) as usize, clamp(from + size as isize) as usize)
    };
    let ((left, right), (top, bottom)) = (inside(x, width, image.width), inside(y, height, image.height));
    out.clear();
    out.reserve(width * height * 3);
    for _ in 0..width * height {
        out.extend_from_slice(&colour);
    }
    for row in top..bottom {
        let to = ((row as isize - y) as usize * width + (left as isize - x) as usize) * 3;
        let from = (row * image.width + left) * 3;
        out[to..to + (right - left) * 3].copy_from_slice(&image.pixels[from..from + (right - left) * 3]);
    }
}

/// Copies `part` of `image`, which is reflected at its edges where `part` extends over them.
fn reflected(image: &Image, part: Rectangle, out: &mut Vec<u8>) {
    // The pixel at an edge is not repeated.
    let inside = |at: isize, size: usize| -> usize {
        let period = (2 * size as isize - 2).max(1);
        let at = at.rem_euclid(period);
        at.min(period - at).clamp(0, size as isize - 1) as usize
    };
    let Rectangle { x, y, width, height } = part;
    let columns: Vec<usize> = (x..x + width as isize).map(|x| 3 * inside(x, image.width)).collect();
    out.clear();
    out.reserve(width * height * 3);
    for y in y..y + height as isize {
        let row = &image.pixels[3 * inside(y, image.height) * image.width..];
        columns.iter().for_each(|&x| out.extend_from_slice(&row[x..x + 3]));
    }
}

/// The part that evaluation sees: all of a square image, otherwise a centred square (see [`CENTRAL_FROM`]).
fn central(width: usize, height: usize, resolution: usize) -> Rectangle {
    let mut side = width.min(height);
    if width != height && resolution >= CENTRAL_FROM {
        side = (side * 224).div_ceil(256);
    }
    Rectangle { x: ((width - side) / 2) as isize, y: ((height - side) / 2) as isize, width: side, height: side }
}

/// A random square as large as the shorter side. The border is at most half that side, so that at least a quarter of
/// the square lies in the image.
fn padded(width: usize, height: usize, border: usize, rng: &mut StdRng) -> Rectangle {
    let side = width.min(height);
    let border = border.min(side / 2);
    let mut position = |size: usize| rng.random_range(0..=size + 2 * border - side) as isize - border as isize;
    Rectangle { x: position(width), y: position(height), width: side, height: side }
}

fn resized(width: usize, height: usize, min_area: f64, rng: &mut StdRng) -> Option<Rectangle> {
    for _ in 0..TRIES {
        let area = (width * height) as f64 * rng.random_range(min_area..=1.0);
        let aspect = rng.random_range(-MAX_ASPECT.ln()..=MAX_ASPECT.ln()).exp();
        let (w, h) = ((area * aspect).sqrt().round() as usize, (area / aspect).sqrt().round() as usize);
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            let (x, y) = (rng.random_range(0..=width - w), rng.random_range(0..=height - h));
            return Some(Rectangle { x: x as isize, y: y as isize, width: w, height: h });
        }
    }
    None
}

/// Scales brightness, then contrast around the image's mean luma, then saturation around each pixel's luma; values in
/// 0..1.
fn colour(pixels: &mut [f32], brightness: f32, contrast: f32, saturation: f32) {
    let mut sum = 0.0;
    for pixel in pixels.chunks_exact_mut(3) {
        pixel.iter_mut().for_each(|v| *v = (*v * brightness).min(1.0));
        sum += luma(pixel);
    }
    let mean = sum * 3.0 / pixels.len().max(1) as f32;
    for pixel in pixels.chunks_exact_mut(3) {
        pixel.iter_mut().for_each(|v| *v = (mean + contrast * (*v - mean)).clamp(0.0, 1.0));
        let grey = luma(pixel);
        pixel.iter_mut().for_each(|v| *v = (grey + saturation * (*v - grey)).clamp(0.0, 1.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::{Stream, generator};

    fn rng(n: u64) -> StdRng {
        generator(1, Stream::Augmentation, &[n])
    }

    #[test]
    fn padded_crops_reach_every_offset_and_no_further() {
        let mut seen = [[false; 5]; 5];
        for n in 0..500 {
            let Rectangle { x, y, width, height } = padded(6, 6, 2, &mut rng(n));
            assert_eq!((width, height), (6, 6));
            seen[(y + 2) as usize][(x + 2) as usize] = true;
        }
        assert!(seen.iter().flatten().all(|&s| s));
        let wide = padded(10, 4, 0, &mut rng(3));
        assert!((0..=6).contains(&wide.x) && (wide.y, wide.width, wide.height) == (0, 4, 4));
    }

    #[test]
    fn padded_crops_show_a_quarter_of_the_image_or_more() {
        for (width, height, border) in [(3, 40, 4), (40, 3, 40), (1, 1, 4), (2, 2, 40), (32, 32, 4096)] {
            for n in 0..100 {
                let Rectangle { x, y, width: side, .. } = padded(width, height, border, &mut rng(n));
                let inside = |from: isize, size: usize| (from + side as isize).min(size as isize) - from.max(0);
                assert!(2 * inside(x, width) >= side as isize && 2 * inside(y, height) >= side as isize, "{x} {y}");
            }
        }
    }

    #[test]
    fn any_image_is_varied_at_any_resolution() {
        let normalisation = Normalisation { mean: [0.4; 3], std: [0.2; 3] };
        for (width, height) in [(1, 1), (1, 7), (2, 2), (3, 40), (40, 3), (300, 1), (32, 32)] {
            let image = Image { width, height, pixels: vec![9; width * height * 3].into() };
            for resolution in [1, 2, 16, 64, 160] {
                let mut painter = Painter::new(resolution, &normalisation);
                for crop in [
                    Crop::None,
                    Crop::Padded { pixels: 4, border: Border::Mean },
                    Crop::Padded { pixels: 40, border: Border::Reflect },
                    Crop::Resized { min_area: 0.01 },
                ] {
                    let augmentation = Augmentation { crop, ..Augmentation::default() };
                    for n in 0..20 {
                        let mut out = vec![f32::NAN; resolution * resolution * 3];
                        painter.varied(&image, &augmentation, &mut rng(n), |rng| rng.random(), &mut out);
                        // Values lie between the image's colour and the border's.
                        let [least, most] = [9.0, 102.0].map(|v: f32| (v / 255.0 - 0.4) / 0.2);
                        assert!(
                            out.iter().all(|v| (least - 1e-3..=most + 1e-3).contains(v)),
                            "{width}x{height} {augmentation:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn resized_crops_keep_inside_area_and_aspect() {
        for n in 0..200 {
            let part = resized(100, 80, 0.3, &mut rng(n)).unwrap();
            assert!(part.x >= 0 && part.x as usize + part.width <= 100 && part.y as usize + part.height <= 80);
            let (area, aspect) = (part.width * part.height, part.width as f64 / part.height as f64);
            assert!(area as f64 > 0.29 * 8000.0 && (0.73..1.37).contains(&aspect), "{part:?}");
        }
    }

    #[test]
    fn the_plain_view_is_central() {
        assert_eq!(central(32, 32, 128), Rectangle { x: 0, y: 0, width: 32, height: 32 });
        assert_eq!(central(40, 32, 24), Rectangle { x: 4, y: 0, width: 32, height: 32 });
        assert_eq!(central(300, 256, 224), Rectangle { x: 38, y: 16, width: 224, height: 224 });
    }

    #[test]
    fn the_border_has_the_mean_colour() {
        let image = Image { width: 3, height: 3, pixels: (0..27).collect::<Vec<u8>>().into() };
        let mut out = vec![1];
        border(&image, Rectangle { x: -1, y: 1, width: 3, height: 3 }, [100, 101, 102], &mut out);
        let line = |from: u8| [100, 101, 102].into_iter().chain(from..from + 6).collect::<Vec<_>>();
        assert_eq!(out[..9], line(9));
        assert_eq!(out[9..18], line(18));
        assert_eq!(out[18..], [100, 101, 102].repeat(3));
    }

    #[test]
    fn a_reflected_border_mirrors_the_image_without_its_edge() {
        let image = Image { width: 3, height: 3, pixels: (0..27).collect::<Vec<u8>>().into() };
        let mut out = vec![1];
        reflected(&image, Rectangle { x: -2, y: -1, width: 6, height: 2 }, &mut out);
        let reds: Vec<u8> = out.iter().step_by(3).copied().collect();
        // Rows 1 and 0 of 3 pixels, columns 2, 1, 0, 1, 2, 1.
        assert_eq!(reds, [15, 12, 9, 12, 15, 12, 6, 3, 0, 3, 6, 3]);
        let dot = Image { width: 1, height: 1, pixels: vec![7, 8, 9].into() };
        reflected(&dot, Rectangle { x: -1, y: -1, width: 2, height: 2 }, &mut out);
        assert_eq!(out, [7, 8, 9].repeat(4));
    }

    #[test]
    fn a_cutout_blanks_a_square_of_its_size_anywhere_inside() {
        let normalisation = Normalisation { mean: [0.4; 3], std: [0.2; 3] };
        let image = Image { width: 8, height: 8, pixels: vec![200; 8 * 8 * 3].into() };
        let augmentation = Augmentation { crop: Crop::None, cutout: 0.25, ..Augmentation::default() };
        let mut starts = std::collections::HashSet::new();
        for n in 0..300 {
            let mut out = vec![f32::NAN; 8 * 8 * 3];
            Painter::new(8, &normalisation).varied(&image, &augmentation, &mut rng(n), |_| false, &mut out);
            let blank: Vec<usize> = (0..64).filter(|pixel| out[3 * pixel..3 * pixel + 3] == [0.0; 3]).collect();
            assert_eq!(blank, [0, 1, 8, 9].map(|offset| blank[0] + offset));
            starts.insert(blank[0]);
        }
        assert_eq!(starts.len(), 49);
    }

    #[test]
    fn colours_follow_their_definition() {
        let mut pixels = [0.2, 0.4, 0.6, 0.8, 0.8, 0.8];
        colour(&mut pixels, 1.0, 1.0, 1.0);
        assert!((pixels[0] - 0.2).abs() < 1e-6);
        colour(&mut pixels, 2.0, 1.0, 1.0);
        assert!((pixels[0] - 0.4).abs() < 1e-6 && pixels[3] == 1.0);
        colour(&mut pixels, 1.0, 0.0, 1.0);
        assert!(pixels.iter().all(|v| (v - pixels[0]).abs() < 1e-6));
        let mut pixels = [0.2, 0.4, 0.6];
        colour(&mut pixels, 1.0, 1.0, 0.0);
        let grey = 0.299 * 0.2 + 0.587 * 0.4 + 0.114 * 0.6;
        assert!(pixels.iter().all(|v| (v - grey).abs() < 1e-6));
    }
}
