//! Averages over pixels of bytes.

use super::affine::Affine;
use crate::pools::Windows;
use crate::simd::{Kernel, Simd, entry_points, vectors};

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
