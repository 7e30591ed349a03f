//! The 3x3 max pool with stride 2, of numbers or bytes.

use crate::parallel;
use crate::simd::{Kernel, Simd, dispatch, entry_points};

/// Output values that are worth a thread.
const GRAIN: usize = 4096;

/// Writes the largest value of windows of 3x3 at stride 2 of `input` `[batch, height, width, channels]`. The map's
/// border of one pixel has the value `border`, over which `larger` prefers every other.
pub(super) fn largest_of_windows<T: Copy + Send + Sync>(
    input: &[T],
    (height, width, channels): (usize, usize, usize),
    border: T,
    larger: impl Fn(T, T) -> T + Copy + Sync,
    output: &mut [T],
) {
    let (line, rows) = (width.div_ceil(2) * channels, height.div_ceil(2));
    assert_eq!(input.len() / (height * width * channels) * rows * line, output.len());
    parallel::map_parts(output, line, output.len() / line, GRAIN.div_ceil(line), |range, output| {
        dispatch(MaxRows { input, height, width, channels, border, larger, first: range.start, output })
    });
}

/// Some rows of the output.
///
/// All channels of a row in one loop, whatever their number: first over the rows of a window, then over its columns.
struct MaxRows<'a, T, F> {
    input: &'a [T],
    height: usize,
    width: usize,
    channels: usize,
    border: T,
    larger: F,
    /// The first row of the output, counted over all images.
    first: usize,
    output: &'a mut [T],
}

impl<T: Copy, F: Fn(T, T) -> T> Kernel for MaxRows<'_, T, F> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let MaxRows { input, height, width, channels, border, larger, first, output } = self;
        let (line, out_height) = (width * channels, height.div_ceil(2));
        let mut tallest = vec![border; line + 2 * channels];
        let mut largest = vec![border; line];
        for (row, out) in (first..).zip(output.chunks_exact_mut(width.div_ceil(2) * channels)) {
            let (image, y) = (row / out_height, row % out_height);
            let inside = &mut tallest[channels..][..line];
            inside.fill(border);
            for y in (2 * y).saturating_sub(1)..(2 * y + 2).min(height) {
                let values = &input[(image * height + y) * line..][..line];
                inside.iter_mut().zip(values).for_each(|(tallest, &value)| *tallest = larger(*tallest, value));
            }
            let [left, middle, right] = [0, 1, 2].map(|column| &tallest[column * channels..][..line]);
            let columns = left.iter().zip(middle).zip(right);
            largest.iter_mut().zip(columns).for_each(|(largest, ((&a, &b), &c))| *largest = larger(larger(a, b), c));
            let pixels = largest.chunks(2 * channels).zip(out.chunks_exact_mut(channels));
            pixels.for_each(|(pixels, out)| out.copy_from_slice(&pixels[..channels]));
        }
    }
}
