//! Averages and largest values over pixels of bytes.

use super::affine::Affine;
use crate::ops::pools::Windows;
use crate::ops::simd::{Kernel, Simd, entry_points, vectors};

/// Means `[images, channels]` over the pixels of each image: the sum of the integers as f32, times `scale / pixels`.
pub(super) struct AveragePool<'a> {
    pub input: &'a [u8],
    pub affine: Affine,
    pub pixels: usize,
    pub channels: usize,
    pub output: &'a mut [f32],
}

impl Kernel for AveragePool<'_> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.channels;
        let factor = s.splat(self.affine.scale / self.pixels as f32);
        let zero = s.splat_i32((self.pixels as i32).wrapping_mul(-i32::from(self.affine.zero_point)));
        for (image, out) in self.input.chunks_exact(self.pixels * n).zip(self.output.chunks_exact_mut(n)) {
            for channels in vectors(s, n) {
                let mut sum = zero;
                for pixel in image.chunks_exact(n) {
                    sum = s.add_i32(sum, s.read_bytes(&pixel[channels.clone()]));
                }
                s.write(&mut out[channels], s.mul(s.to_floats(sum), factor));
            }
        }
    }
}

/// Averages over windows: the sum of the integers as f32, times `scale / count`, of some output pixels.
pub(super) struct AverageWindows<'a> {
    pub windows: &'a Windows,
    pub input: &'a [u8],
    pub affine: Affine,
    /// The first output pixel, counted over all images.
    pub first: usize,
    pub output: &'a mut [f32],
}

impl Kernel for AverageWindows<'_> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let AverageWindows { windows, affine, first, .. } = self;
        let pixels = self.output.chunks_exact_mut(windows.channels);
        let mut seen = Vec::new();
        for (number, out) in (first..).zip(pixels) {
            let (image, pixel) = windows.image(self.input, number);
            seen.clear();
            seen.extend(windows.offsets(pixel));
            let factor = s.splat(affine.scale / windows.count(pixel) as f32);
            let zero = s.splat_i32((seen.len() as i32).wrapping_mul(-i32::from(affine.zero_point)));
            for channels in vectors(s, windows.channels) {
                let mut sum = zero;
                for &offset in &seen {
                    sum = s.add_i32(sum, s.read_bytes(&image[offset..][channels.clone()]));
                }
                s.write(&mut out[channels], s.mul(s.to_floats(sum), factor));
            }
        }
    }
}

/// The largest byte of windows of 3x3 at stride 2 with a border of one pixel, of some rows of the output.
///
/// All channels of a row in one loop, whatever their number: first over the rows of a window, then over its columns.
pub(super) struct MaxRows<'a> {
    pub input: &'a [u8],
    pub height: usize,
    pub width: usize,
    pub channels: usize,
    /// The first row of the output, counted over all images.
    pub first: usize,
    pub output: &'a mut [u8],
}

impl Kernel for MaxRows<'_> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let MaxRows { input, height, width, channels, first, output } = self;
        let (line, out_height) = (width * channels, height.div_ceil(2));
        // Zeros are below no byte: they stand for the border.
        let mut tallest = vec![0; line + 2 * channels];
        let mut largest = vec![0; line];
        for (row, out) in (first..).zip(output.chunks_exact_mut(width.div_ceil(2) * channels)) {
            let (image, y) = (row / out_height, row % out_height);
            let inside = &mut tallest[channels..][..line];
            inside.fill(0);
            for y in (2 * y).saturating_sub(1)..(2 * y + 2).min(height) {
                let bytes = &input[(image * height + y) * line..][..line];
                inside.iter_mut().zip(bytes).for_each(|(tallest, &byte)| *tallest = byte.max(*tallest));
            }
            let [left, middle, right] = [0, 1, 2].map(|column| &tallest[column * channels..][..line]);
            let columns = left.iter().zip(middle).zip(right);
            largest.iter_mut().zip(columns).for_each(|(largest, ((&a, &b), &c))| *largest = a.max(b).max(c));
            let pixels = largest.chunks(2 * channels).zip(out.chunks_exact_mut(channels));
            pixels.for_each(|(pixels, out)| out.copy_from_slice(&pixels[..channels]));
        }
    }
}
