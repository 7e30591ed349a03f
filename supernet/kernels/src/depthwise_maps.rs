//! A depthwise convolution of whole maps and its gradients, for convolutions outside of inverted residuals.

use super::buffers::{Aligned, Buffer};
use super::depthwise::{
    Frame, Shape, Strip, accumulate_weight_gradient, chunk_rows, convolve_rows, input_gradient_rows, pack_weights,
    unpack_weights,
};
use super::parallel;
use super::rows::{RawGradient, total};
use super::simd::{Kernel, Simd, dispatch, entry_points};
use super::slice::SLICE;
use std::ops::Range;

/// Computes `y`, the convolution of the maps `x` with `weight` `[channels, kernel * kernel]`.
pub(super) fn convolve(conv: Shape, x: &[f32], weight: &[f32], y: &mut [f32]) {
    let weights = pack_weights(weight, conv.channels, conv.taps(), false);
    let (input, output) = (conv.in_pixels() * conv.channels, conv.out_pixels() * conv.channels);
    parallel::map_parts(y, output, x.len() / input, 1, |images, y| {
        dispatch(Convolve { conv, x: &x[images.start * input..images.end * input], weights: &weights, y });
    });
}

/// The gradient at the maps `x`, given the raw gradient at the convolution's output; that at `weight` is written to
/// `gradient`.
pub(super) fn gradients(
    conv: Shape,
    x: &[f32],
    (weight, gradient): (&[f32], &mut [f32]),
    raw: RawGradient,
) -> Vec<f32> {
    let flipped = pack_weights(weight, conv.channels, conv.taps(), true);
    let image = conv.in_pixels() * conv.channels;
    let mut dx = vec![0.0; x.len()];
    let parts = parallel::map_parts(&mut dx, image, x.len() / image, 1, |images, dx| {
        dispatch(Gradients { conv, x, raw, flipped: &flipped, images, dx })
    });
    unpack_weights(&total(parts), conv.channels, conv.taps(), gradient);
    dx
}

/// The convolution of some images.
struct Convolve<'a> {
    conv: Shape,
    x: &'a [f32],
    weights: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Convolve<'_> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Convolve { conv, x, weights, y } = self;
        let (taps, columns, chunk) = (conv.taps() * SLICE, conv.out_width(), chunk_rows(conv.out_width()));
        let mut frame = Frame::of_input(conv);
        let mut tile = Buffer::with_arbitrary_contents(chunk * columns * SLICE);
        let images = x.chunks_exact(conv.in_pixels() * conv.channels);
        for (x, y) in images.zip(y.chunks_exact_mut(conv.out_pixels() * conv.channels)) {
            for slice in 0..conv.slices() {
                let strip = Strip::new(conv, slice, (conv.height, conv.width));
                let mut made = 0;
                for start in (0..conv.out_height()).step_by(chunk) {
                    let rows = start..conv.out_height().min(start + chunk);
                    let needed = conv.rows_read(rows.end);
                    frame.fill(s, x, strip, made..needed, |_, x| x);
                    made = needed;
                    let weights = &weights[slice * taps..][..taps];
                    let tile = &mut tile[..rows.len() * columns * SLICE];
                    convolve_rows(&frame, conv, weights, rows.clone(), strip.width, tile);
                    write_strip(tile, strip, rows.start * columns, y);
                }
            }
        }
    }
}

/// The gradients of some images; the weight's is packed.
struct Gradients<'a> {
    conv: Shape,
    x: &'a [f32],
    raw: RawGradient<'a>,
    flipped: &'a [f32],
    images: Range<usize>,
    dx: &'a mut [f32],
}

impl Kernel for Gradients<'_> {
    type Output = Aligned;
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Aligned {
        let Gradients { conv, x, raw, flipped, images, dx } = self;
        let (taps, pixels, image) = (conv.taps() * SLICE, conv.out_pixels(), conv.in_pixels() * conv.channels);
        let (chunk, stride) = (chunk_rows(conv.width), conv.channels.next_multiple_of(S::LANES));
        let (mut input, mut output) = (Frame::of_input(conv), Frame::of_output(conv));
        let mut at_output = Buffer::with_arbitrary_contents(pixels * stride);
        let mut tile = Buffer::with_arbitrary_contents(chunk * conv.width * SLICE);
        let mut gradient = Aligned::zeros(conv.slices() * taps);
        for (number, dx) in images.zip(dx.chunks_exact_mut(image)) {
            raw.fill(s, number * pixels, pixels, stride, &mut at_output);
            for slice in 0..conv.slices() {
                let strip = Strip::new(conv, slice, (conv.height, conv.width));
                input.fill(s, &x[number * image..][..image], strip, 0..conv.height, |_, x| x);
                let of_output = Strip { channels: stride, pixels: (conv.out_height(), conv.out_width()), ..strip };
                output.fill(s, &at_output, of_output, 0..conv.out_height(), |_, g| g);
                let (flipped, gradient) = (&flipped[slice * taps..][..taps], &mut gradient[slice * taps..][..taps]);
                accumulate_weight_gradient(&input, &output, conv, 0..conv.out_height(), strip.width, gradient);
                for start in (0..conv.height).step_by(chunk) {
                    let rows = start..conv.height.min(start + chunk);
                    let tile = &mut tile[..rows.len() * conv.width * SLICE];
                    input_gradient_rows(&output, conv, flipped, rows.clone(), strip.width, tile);
                    write_strip(tile, strip, rows.start * conv.width, dx);
                }
            }
        }
        gradient
    }
}

/// Writes the pixels of `tile` to a strip of `image`, from pixel `first` on.
fn write_strip(tile: &[f32], strip: Strip, first: usize, image: &mut [f32]) {
    let pixels = image[first * strip.channels..].chunks_exact_mut(strip.channels);
    for (pixel, values) in pixels.zip(tile.as_chunks::<SLICE>().0) {
        let target = &mut pixel[strip.first..][..strip.width];
        match target.as_chunks_mut::<SLICE>().0 {
            [whole] => *whole = *values,
            _ => target.copy_from_slice(&values[..strip.width]),
        }
    }
}
