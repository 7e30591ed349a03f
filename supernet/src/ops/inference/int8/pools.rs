//! Averages over pixels of bytes.

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

/// Averages over windows: the sum of the integers as f32, times `scale / count`.
pub(super) fn average_windows(windows: &Windows, input: &[u8], affine: Affine, output: &mut [f32]) {
    let channels = windows.channels;
    let image_len = windows.height * windows.width * channels;
    let pixels = windows.output_size.0 * windows.output_size.1;
    for (image, output) in input.chunks_exact(image_len).zip(output.chunks_exact_mut(pixels * channels)) {
        for (pixel, out) in output.chunks_exact_mut(channels).enumerate() {
            let factor = affine.scale / windows.count(pixel) as f32;
            for (channel, out) in out.iter_mut().enumerate() {
                let integer = |offset: usize| i32::from(image[offset + channel]) - i32::from(affine.zero_point);
                let sum: i32 = windows.offsets(pixel).map(integer).sum();
                *out = sum as f32 * factor;
            }
        }
    }
}

/// The largest byte of every window.
pub(super) fn max_windows(windows: &Windows, input: &[u8], output: &mut [u8]) {
    let channels = windows.channels;
    let image_len = windows.height * windows.width * channels;
    let pixels = windows.output_size.0 * windows.output_size.1;
    for (image, output) in input.chunks_exact(image_len).zip(output.chunks_exact_mut(pixels * channels)) {
        for (pixel, out) in output.chunks_exact_mut(channels).enumerate() {
            out.fill(0);
            for offset in windows.offsets(pixel) {
                out.iter_mut().zip(&image[offset..]).for_each(|(largest, &byte)| *largest = byte.max(*largest));
            }
        }
    }
}
