//! Ops of ResNets between the convolutions: the sum of a block and its shortcut, max pool, average pool.

use super::parallel;
use super::simd::{Kernel, Simd, dispatch, entry_points, vectors};
use std::ops::Range;

/// `x + y` for as many values, followed by ReLU if `relu`. NaN stays NaN.
pub fn add(x: &[f32], y: &[f32], relu: bool) -> Vec<f32> {
    let least = if relu { 0.0 } else { f32::NEG_INFINITY };
    combined(x, y, |x, y| if x + y < least { least } else { x + y })
}

/// The gradient before ReLU, given its output and the gradient there. At zero the slope is 0.
pub fn relu_gradient(output: &[f32], g: &[f32]) -> Vec<f32> {
    combined(output, g, |output, g| if output > 0.0 { g } else { 0.0 })
}

fn combined(x: &[f32], y: &[f32], value: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f32> {
    assert_eq!(x.len(), y.len());
    let mut output = vec![0.0; x.len()];
    in_parallel(&mut output, 1, |range, output| {
        for ((out, &x), &y) in output.iter_mut().zip(&x[range.clone()]).zip(&y[range]) {
            *out = value(x, y);
        }
    });
    output
}

/// Splits `output` into one part per thread, each a whole multiple of `grain`.
fn in_parallel(output: &mut [f32], grain: usize, work: impl Fn(Range<usize>, &mut [f32]) + Sync) {
    let total = output.len();
    // At least some thousand values per thread.
    parallel::map_parts(output, 1, total, grain.max(4096 / grain.max(1) * grain), work);
}

/// Pooling windows over maps `[batch, height, width, channels]`.
#[derive(Debug, Clone, Copy)]
pub struct Windows {
    /// Height of the maps.
    pub height: usize,
    /// Width of the maps.
    pub width: usize,
    /// Channels of the maps.
    pub channels: usize,
    /// Height and width of a window.
    pub size: (usize, usize),
    /// Rows and columns from one window to the next.
    pub stride: (usize, usize),
    /// Rows and columns by which the first window starts before the first pixel; fewer than those of a window.
    pub padding: usize,
    /// Height and width of the output map.
    pub output_size: (usize, usize),
}

impl Windows {
    /// 3x3 windows with stride 2 and padding 1.
    pub fn max_pool(height: usize, width: usize, channels: usize) -> Self {
        let output_size = (height.div_ceil(2), width.div_ceil(2));
        Windows { height, width, channels, size: (3, 3), stride: (2, 2), padding: 1, output_size }
    }

    /// Adjacent windows that begin `padding` rows and columns before the first pixel; the last may extend over the
    /// border.
    pub fn side_by_side(height: usize, width: usize, channels: usize, size: (usize, usize), padding: usize) -> Self {
        assert!(padding < size.0.min(size.1), "every window holds a pixel");
        let output_size = ((height + padding).div_ceil(size.0), (width + padding).div_ceil(size.1));
        Windows { height, width, channels, size, stride: size, padding, output_size }
    }

    fn out_pixels(&self) -> usize {
        self.output_size.0 * self.output_size.1
    }

    fn in_values(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// The image of output pixel `number`, counted over all images of `input`, and the pixel's number in the image.
    pub(crate) fn image<'a, T>(&self, input: &'a [T], number: usize) -> (&'a [T], usize) {
        let pixels = self.out_pixels();
        (&input[number / pixels * self.in_values()..][..self.in_values()], number % pixels)
    }

    /// Output values for `len` input values.
    pub(crate) fn out_values(&self, len: usize) -> usize {
        len / self.in_values() * self.out_pixels() * self.channels
    }

    /// Rows and columns of the input in the window of output pixel `pixel` (within its image).
    fn seen(&self, pixel: usize) -> (Range<usize>, Range<usize>) {
        let out_width = self.output_size.1;
        let part = |position: usize, stride: usize, size: usize, length: usize| {
            let start = position * stride;
            start.saturating_sub(self.padding)..(start + size - self.padding).min(length)
        };
        (
            part(pixel / out_width, self.stride.0, self.size.0, self.height),
            part(pixel % out_width, self.stride.1, self.size.1, self.width),
        )
    }

    /// Number of pixels in the window of output pixel `pixel`, the padding before the map included.
    pub(crate) fn count(&self, pixel: usize) -> usize {
        let out_width = self.output_size.1;
        let count = |position: usize, size: usize, length: usize| size.min(length + self.padding - position * size);
        let rows = count(pixel / out_width, self.size.0, self.height);
        rows * count(pixel % out_width, self.size.1, self.width)
    }

    /// One over [`count`](Self::count).
    fn mean_factor(&self, pixel: usize) -> f32 {
        1.0 / self.count(pixel) as f32
    }

    /// Offsets, within an image, of the input pixels in the window of output pixel `pixel`.
    pub(crate) fn offsets(&self, pixel: usize) -> impl Iterator<Item = usize> + use<> {
        let (rows, columns) = self.seen(pixel);
        let (width, channels) = (self.width, self.channels);
        rows.flat_map(move |y| columns.clone().map(move |x| (y * width + x) * channels))
    }
}

/// Writes the largest value of every window of `input` `[batch, height, width, channels]`.
fn max_windows(windows: &Windows, input: &[f32], output: &mut [f32]) {
    pool_windows(windows, input, output, |pixels| dispatch(Largest(pixels)));
}

/// Writes the mean of every window of `input` `[batch, height, width, channels]`: padding before the map counts as
/// zeros, pixels beyond its end do not count.
pub(crate) fn mean_windows(windows: &Windows, input: &[f32], output: &mut [f32]) {
    pool_windows(windows, input, output, |pixels| dispatch(Means(pixels)));
}

/// Some output pixels of a pool.
struct OutPixels<'a> {
    windows: &'a Windows,
    input: &'a [f32],
    /// The first pixel, counted over all images.
    first: usize,
    output: &'a mut [f32],
}

/// Calls `pool` for all output pixels, some at a time.
fn pool_windows(windows: &Windows, input: &[f32], output: &mut [f32], pool: impl Fn(OutPixels) + Sync) {
    assert_eq!(windows.out_values(input.len()), output.len());
    in_parallel(output, windows.channels, |range, output| {
        pool(OutPixels { windows, input, first: range.start / windows.channels, output });
    });
}

/// The largest value of each window.
struct Largest<'a>(OutPixels<'a>);

impl Kernel for Largest<'_> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let OutPixels { windows, input, first, output } = self.0;
        for (number, out) in (first..).zip(output.chunks_exact_mut(windows.channels)) {
            let (image, pixel) = windows.image(input, number);
            for (position, start) in windows.offsets(pixel).enumerate() {
                let values = &image[start..][..windows.channels];
                if position == 0 {
                    out.copy_from_slice(values);
                } else {
                    out.iter_mut().zip(values).for_each(|(out, &v)| *out = out.max(v));
                }
            }
        }
    }
}

/// The mean of each window.
struct Means<'a>(OutPixels<'a>);

impl Kernel for Means<'_> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let OutPixels { windows, input, first, output } = self.0;
        let mut seen = Vec::new();
        for (number, out) in (first..).zip(output.chunks_exact_mut(windows.channels)) {
            let (image, pixel) = windows.image(input, number);
            seen.clear();
            seen.extend(windows.offsets(pixel));
            let factor = s.splat(windows.mean_factor(pixel));
            for channels in vectors(s, windows.channels) {
                let mut sum = s.splat(0.0);
                for &start in &seen {
                    sum = s.add(sum, s.read(&image[start..][channels.clone()]));
                }
                s.write(&mut out[channels], s.mul(sum, factor));
            }
        }
    }
}

/// The largest value of every window of `x` `[batch, height, width, channels]`.
pub fn max_pool(windows: &Windows, x: &[f32]) -> Vec<f32> {
    let mut output = vec![0.0; windows.out_values(x.len())];
    max_windows(windows, x, &mut output);
    output
}

/// The mean of every window of `x` `[batch, height, width, channels]`.
pub fn average_pool(windows: &Windows, x: &[f32]) -> Vec<f32> {
    let mut output = vec![0.0; windows.out_values(x.len())];
    mean_windows(windows, x, &mut output);
    output
}

/// The gradient at the input `x` of [`max_pool`], given its output and the gradient there. Among equal values the first
/// in the window gets it.
pub fn max_pool_gradient(windows: &Windows, x: &[f32], output: &[f32], g: &[f32]) -> Vec<f32> {
    let (channels, values) = (windows.channels, windows.in_values());
    each_image(windows, g, |image, g, dx| {
        let x = &x[image * values..][..values];
        let output = &output[image * g.len()..][..g.len()];
        let mut taken = vec![false; channels];
        for (pixel, (out, g)) in output.chunks_exact(channels).zip(g.chunks_exact(channels)).enumerate() {
            taken.fill(false);
            for start in windows.offsets(pixel) {
                let (x, dx) = (&x[start..start + channels], &mut dx[start..start + channels]);
                for c in 0..channels {
                    if !taken[c] && x[c] == out[c] {
                        taken[c] = true;
                        dx[c] += g[c];
                    }
                }
            }
        }
    })
}

/// The gradient at the input of [`average_pool`], given the one at its output.
pub fn average_pool_gradient(windows: &Windows, g: &[f32]) -> Vec<f32> {
    let channels = windows.channels;
    each_image(windows, g, |_, g, dx| {
        for (pixel, g) in g.chunks_exact(channels).enumerate() {
            let factor = windows.mean_factor(pixel);
            for start in windows.offsets(pixel) {
                dx[start..start + channels].iter_mut().zip(g).for_each(|(dx, &g)| *dx += factor * g);
            }
        }
    })
}

/// The gradient at the input: zeros to which `add(number, gradients at its output, gradients at its input)` adds for
/// each image.
fn each_image(windows: &Windows, g: &[f32], add: impl Fn(usize, &[f32], &mut [f32]) + Sync) -> Vec<f32> {
    let (values, out_values) = (windows.in_values(), windows.out_pixels() * windows.channels);
    let images = g.len() / out_values;
    let mut dx = vec![0.0; images * values];
    parallel::map_parts(&mut dx, values, images, 1, |images, dx| {
        for (image, dx) in images.zip(dx.chunks_exact_mut(values)) {
            add(image, &g[image * out_values..][..out_values], dx);
        }
    });
    dx
}
