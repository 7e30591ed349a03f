//! The block's backward pass.

use super::{BlockShape, Parameters, Saved, squeeze_excite};
use crate::ops::activation::{Act, Identity, with_activation};
use crate::ops::batch_norm::{Affine, Backward, Normalise, SumBlock, Sums, lanes};
use crate::ops::buffers::{Aligned, Buffer};
use crate::ops::depthwise::{self, Lanes, SLICE, Strip, accumulate_weight_gradient, convolve_row, fill_padded};
use crate::ops::matmul::{Packed, ROW_BLOCK, accumulate_transposed, multiply};
use crate::ops::parallel::{self, Shared};
use crate::ops::rows::{add_products, gradient_sums};
use crate::ops::simd::{InstructionSet, Kernel, Simd, dispatch};
use crate::ranks::Ranks;
use std::marker::PhantomData;
use std::ops::Range;

/// Gradients at the input and at the packed parameters, from the gradient `g` at the output.
pub(super) fn backward(
    shape: &BlockShape,
    x: &[f32],
    packed: &[f32],
    saved: &Saved,
    normalise: Normalise,
    ranks: Option<&Ranks>,
    g: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    with_activation!(shape.activation, A => backward_with::<A>(shape, x, packed, saved, normalise, ranks, g))
}

fn backward_with<A: Act>(
    shape: &BlockShape,
    x: &[f32],
    packed: &[f32],
    saved: &Saved,
    normalise: Normalise,
    ranks: Option<&Ranks>,
    g: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    let at = Parameters::new(shape);
    let mut gradient = vec![0.0; at.len];
    let (middle, out_channels) = (shape.middle, shape.out_channels);
    let affine = |index: usize, norm: &[Range<usize>; 2]| {
        Affine::new(&saved.statistics[index], &packed[norm[0].clone()], &packed[norm[1].clone()], shape.eps)
    };
    let norm_backward = |index: usize, norm: &[Range<usize>; 2], sums: &Sums, gradient: &mut [f32]| {
        let back =
            Backward::over(ranks, sums, &saved.statistics[index], &packed[norm[0].clone()], shape.eps, normalise);
        gradient[norm[0].clone()].copy_from_slice(&back.weight_gradient);
        gradient[norm[1].clone()].copy_from_slice(&back.bias_gradient);
        back
    };

    // Last batch norm.
    let sums = gradient_sums(g, &saved.y3, out_channels);
    let back3 = norm_backward(2, &at.norm3, &sums, &mut gradient);

    // Project: g2 = gradient at the activated (and gated) y2; without squeeze-excite already masked, with sums.
    let affine2 = affine(1, &at.norm2);
    let out_pixels = shape.out_pixels();
    let pixels = out_pixels / shape.batch;
    let mut g2 = Buffer::uninitialised(out_pixels * middle);
    let gate = saved.squeeze_excite.as_ref().map(|s| &s.gate[..]);
    let mut gate_gradient = vec![0.0; if gate.is_some() { shape.batch * middle } else { 0 }];
    let out_stride = out_channels.next_multiple_of(InstructionSet::active().lanes());
    let weight = Packed::new(&packed[at.project.clone()], out_channels, middle, middle, 1);
    let (g2_shared, gate_shared) = (Shared::new(&mut g2), Shared::new(&mut gate_gradient));
    let parts = parallel::map(shape.batch, 1, |images| {
        let rows = images.start * pixels..images.end * pixels;
        // SAFETY: ranges of images are disjoint.
        unsafe {
            dispatch(ProjectBackward::<A> {
                g: &g[rows.start * out_channels..rows.end * out_channels],
                y3: &saved.y3[rows.start * out_channels..rows.end * out_channels],
                y2: &saved.y2[rows.start * middle..rows.end * middle],
                back3: &back3,
                affine2: &affine2,
                weight: &weight,
                out_stride,
                pixels,
                gate: gate.map(|gate| &gate[images.start * middle..images.end * middle]),
                gate_gradient: gate_shared.slice(if gate.is_some() {
                    images.start * middle..images.end * middle
                } else {
                    0..0
                }),
                g2: g2_shared.slice(rows.start * middle..rows.end * middle),
                activation: PhantomData,
            })
        }
    });
    let (parts, weight_parts): (Vec<Sums>, Vec<Aligned>) = parts.into_iter().unzip();
    write_transposed(weight_parts, out_stride, &mut gradient[at.project.clone()], middle);
    let mut sums = Sums::total(parts);

    // Squeeze-excite: completes g2.
    if let (Some(reduced), Some(se)) = (shape.squeeze_excite, &saved.squeeze_excite) {
        let pooled = squeeze_excite::backward(shape, reduced, packed, &at, se, gate_gradient, &mut gradient);
        let g2_shared = Shared::new(&mut g2);
        let parts = parallel::map(shape.batch, 1, |images| {
            let span = images.start * pixels * middle..images.end * pixels * middle;
            let of_images = images.start * middle..images.end * middle;
            // SAFETY: ranges of images are disjoint.
            unsafe {
                dispatch(GateBackward::<A> {
                    y2: &saved.y2[span.clone()],
                    affine2: &affine2,
                    gate: &se.gate[of_images.clone()],
                    pooled_gradient: &pooled[of_images],
                    pixels,
                    g2: g2_shared.slice(span),
                    activation: PhantomData,
                })
            }
        });
        sums = Sums::total(parts);
    }
    let back2 = norm_backward(1, &at.norm2, &sums, &mut gradient);

    // Depthwise: g1 = masked gradient at y1 (without expand: the gradient at x).
    let taps = shape.kernel * shape.kernel;
    let conv = shape.depthwise();
    let flipped = depthwise::pack_weights(&packed[at.depthwise.clone()], middle, taps, true);
    let affine1 = shape.expand.then(|| affine(0, &at.norm1));
    let identity = Affine::identity(middle);
    let (mut g1_buffer, mut dx);
    let g1: &mut [f32] = if shape.expand {
        dx = Vec::new();
        g1_buffer = Buffer::uninitialised(shape.in_pixels() * middle);
        &mut g1_buffer
    } else {
        dx = vec![0.0; shape.in_pixels() * middle];
        &mut dx
    };
    let g1_shared = Shared::new(g1);
    let parts = parallel::map(shape.batch * conv.slices(), 1, |tasks| {
        let input = if shape.expand { &saved.y1[..] } else { x };
        let (g2, y2, back2, flipped, output) = (&g2[..], &saved.y2[..], &back2, &flipped[..], g1_shared);
        // SAFETY: tasks write disjoint (image, slice) parts; extents are checked.
        unsafe {
            match &affine1 {
                Some(affine1) => dispatch(DepthwiseBackward::<A> {
                    shape,
                    input,
                    affine1,
                    g2,
                    y2,
                    back2,
                    flipped,
                    output,
                    tasks,
                    activation: PhantomData,
                }),
                None => dispatch(DepthwiseBackward::<Identity> {
                    shape,
                    input,
                    affine1: &identity,
                    g2,
                    y2,
                    back2,
                    flipped,
                    output,
                    tasks,
                    activation: PhantomData,
                }),
            }
        }
    });
    let (parts, weight_parts): (Vec<Sums>, Vec<Aligned>) = parts.into_iter().unzip();
    depthwise::unpack_weights(&total(weight_parts), middle, taps, &mut gradient[at.depthwise.clone()]);
    drop(g2);
    if !shape.expand {
        if shape.residual {
            for (dx, g) in dx.iter_mut().zip(g) {
                *dx += g;
            }
        }
        return (dx, gradient);
    }

    // Expand.
    let sums = Sums::total(parts);
    let back1 = norm_backward(0, &at.norm1, &sums, &mut gradient);
    let weight = Packed::new(&packed[at.expand.clone()], middle, shape.in_channels, shape.in_channels, 1);
    let mut dx = vec![0.0; shape.in_pixels() * shape.in_channels];
    let weight_parts = product_backward(
        RawGradient { g: g1, y: &saved.y1, back: &back1 },
        x,
        shape.in_channels,
        Some(&weight),
        shape.residual.then_some(g),
        &mut dx,
    );
    let stride = middle.next_multiple_of(InstructionSet::active().lanes());
    write_transposed(weight_parts, stride, &mut gradient[at.expand.clone()], shape.in_channels);
    (dx, gradient)
}

/// Writes the total of the parts `[columns, stride]`, in their order, to `gradient` `[rows, columns]`, transposed.
pub(crate) fn write_transposed(parts: Vec<Aligned>, stride: usize, gradient: &mut [f32], columns: usize) {
    let total = total(parts);
    for (row, out) in gradient.chunks_exact_mut(columns).enumerate() {
        for (column, out) in out.iter_mut().enumerate() {
            *out = total[column * stride + row];
        }
    }
}

/// The sum of the parts, in their order.
fn total(parts: Vec<Aligned>) -> Aligned {
    let mut parts = parts.into_iter();
    let mut total = parts.next().unwrap_or_default();
    for part in parts {
        for (total, v) in total.iter_mut().zip(part.iter()) {
            *total += v;
        }
    }
    total
}

/// The gradient at a raw (not yet normalised) tensor, made where it is read: batch norm's backward map of `g` and `y`.
#[derive(Clone, Copy)]
pub(crate) struct RawGradient<'a> {
    pub g: &'a [f32],
    pub y: &'a [f32],
    pub back: &'a Backward,
}

impl RawGradient<'_> {
    /// Rows `first ..` into `tile` with rows of `stride`; zeros between the channels and the stride.
    #[inline(always)]
    pub(crate) fn fill(&self, first: usize, rows: usize, stride: usize, tile: &mut [f32]) {
        let n = self.back.constant.len();
        let (a, b, c) = (&self.back.by_gradient[..n], &self.back.by_value[..n], &self.back.constant[..n]);
        for row in 0..rows {
            let g = &self.g[(first + row) * n..][..n];
            let y = &self.y[(first + row) * n..][..n];
            let out = &mut tile[row * stride..][..n];
            for i in 0..n {
                out[i] = a[i] * g[i] + (b[i] * y[i] + c[i]);
            }
        }
    }
}

/// Backward of `y = x W` for the raw gradient `raw` at `y`: input gradient (plus `residual`) into `dx` if `weight` (`[out, in]`
/// as packed) is given, and each thread's transposed weight gradient `[in, stride]`.
pub(crate) fn product_backward(
    raw: RawGradient,
    x: &[f32],
    in_channels: usize,
    weight: Option<&Packed>,
    residual: Option<&[f32]>,
    dx: &mut [f32],
) -> Vec<Aligned> {
    let rows = x.len() / in_channels;
    let shared = Shared::new(dx);
    parallel::map(rows, ROW_BLOCK, |range| {
        let span = range.start * in_channels..range.end * in_channels;
        // SAFETY: ranges of rows are disjoint.
        unsafe {
            dispatch(ProductBackward {
                raw,
                x,
                in_channels,
                weight,
                residual,
                dx: shared.slice(if weight.is_some() { span } else { 0..0 }),
                range,
            })
        }
    })
}

struct ProductBackward<'a> {
    raw: RawGradient<'a>,
    x: &'a [f32],
    in_channels: usize,
    weight: Option<&'a Packed>,
    residual: Option<&'a [f32]>,
    dx: &'a mut [f32],
    range: Range<usize>,
}

impl Kernel for ProductBackward<'_> {
    type Output = Aligned;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Aligned {
        let (n, k) = (self.raw.back.constant.len(), self.in_channels);
        let stride = n.next_multiple_of(S::LANES);
        let mut tile = Aligned::zeros(ROW_BLOCK * stride);
        let mut weight_gradient = Aligned::zeros(k * stride);
        let mut first = self.range.start;
        while first < self.range.end {
            let rows = ROW_BLOCK.min(self.range.end - first);
            self.raw.fill(first, rows, stride, &mut tile);
            let x = &self.x[first * k..][..rows * k];
            accumulate_transposed(x, k, &tile, stride, rows, k, n, &mut weight_gradient, stride);
            if let Some(weight) = self.weight {
                let dx = &mut self.dx[(first - self.range.start) * k..][..rows * k];
                multiply(&tile, stride, rows, weight, dx, k);
                if let Some(residual) = self.residual {
                    for (dx, g) in dx.iter_mut().zip(&residual[first * k..][..rows * k]) {
                        *dx += g;
                    }
                }
            }
            first += rows;
        }
        weight_gradient
    }
}

/// The projection's backward over whole images.
struct ProjectBackward<'a, A> {
    g: &'a [f32],
    y3: &'a [f32],
    y2: &'a [f32],
    back3: &'a Backward,
    affine2: &'a Affine,
    /// `[out, middle]`.
    weight: &'a Packed,
    out_stride: usize,
    pixels: usize,
    gate: Option<&'a [f32]>,
    gate_gradient: &'a mut [f32],
    g2: &'a mut [f32],
    activation: PhantomData<A>,
}

impl<A: Act> Kernel for ProjectBackward<'_, A> {
    /// Sums of the masked gradient (zero with squeeze-excite) and the transposed weight gradient `[middle, stride]`.
    type Output = (Sums, Aligned);
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Self::Output {
        let (m, n, stride) = (self.affine2.scale.len(), self.back3.constant.len(), self.out_stride);
        let (scale, shift) = (&self.affine2.scale[..m], &self.affine2.shift[..m]);
        let raw = RawGradient { g: self.g, y: self.y3, back: self.back3 };
        let mut sums = Sums::new(m);
        let mut block = SumBlock::new(m);
        let mut tile = Aligned::zeros(ROW_BLOCK * stride);
        let mut z = Aligned::zeros(ROW_BLOCK * m);
        let mut weight_gradient = Aligned::zeros(m * stride);
        for image in 0..self.g.len() / n / self.pixels {
            let mut done = 0;
            while done < self.pixels {
                let rows = ROW_BLOCK.min(self.pixels - done);
                let first = image * self.pixels + done;
                raw.fill(first, rows, stride, &mut tile);
                let g2 = &mut self.g2[first * m..][..rows * m];
                multiply(&tile, stride, rows, self.weight, g2, m);
                block.clear();
                for row in 0..rows {
                    let y = &self.y2[(first + row) * m..][..m];
                    let z = &mut z[row * m..][..m];
                    let g2 = &mut g2[row * m..][..m];
                    match self.gate {
                        None => {
                            for c in 0..m {
                                let t = y[c] * scale[c] + shift[c];
                                z[c] = A::value(t);
                                g2[c] *= A::slope(t);
                            }
                            add_products(g2, y, &mut block);
                        }
                        Some(gate) => {
                            let gate = &gate[image * m..][..m];
                            let gate_gradient = &mut self.gate_gradient[image * m..][..m];
                            for c in 0..m {
                                let value = A::value(y[c] * scale[c] + shift[c]);
                                z[c] = value * gate[c];
                                gate_gradient[c] += g2[c] * value;
                            }
                        }
                    }
                }
                sums.add_block(0, &block.sum, &block.square);
                accumulate_transposed(&z, m, &tile, stride, rows, m, n, &mut weight_gradient, stride);
                done += rows;
            }
        }
        (sums, weight_gradient)
    }
}

/// `g2 = (g2 * gate + pooled gradient / pixels) * slope`, with sums.
struct GateBackward<'a, A> {
    y2: &'a [f32],
    affine2: &'a Affine,
    gate: &'a [f32],
    pooled_gradient: &'a [f32],
    pixels: usize,
    g2: &'a mut [f32],
    activation: PhantomData<A>,
}

impl<A: Act> Kernel for GateBackward<'_, A> {
    type Output = Sums;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Sums {
        let m = self.affine2.scale.len();
        let (scale, shift) = (&self.affine2.scale[..m], &self.affine2.shift[..m]);
        let mut sums = Sums::new(m);
        let mut block = SumBlock::new(m);
        let mut pooled = vec![0.0; m];
        let images = self.y2.chunks_exact(self.pixels * m).zip(self.g2.chunks_exact_mut(self.pixels * m));
        for (image, (y2, g2)) in images.enumerate() {
            let gate = &self.gate[image * m..][..m];
            for (pooled, g) in pooled.iter_mut().zip(&self.pooled_gradient[image * m..][..m]) {
                *pooled = g / self.pixels as f32;
            }
            for (y2, g2) in y2.chunks(ROW_BLOCK * m).zip(g2.chunks_mut(ROW_BLOCK * m)) {
                block.clear();
                for (y, g) in y2.chunks_exact(m).zip(g2.chunks_exact_mut(m)) {
                    for c in 0..m {
                        g[c] = (g[c] * gate[c] + pooled[c]) * A::slope(y[c] * scale[c] + shift[c]);
                    }
                    add_products(g, y, &mut block);
                }
                sums.add_block(0, &block.sum, &block.square);
            }
        }
        sums
    }
}

struct DepthwiseBackward<'a, A> {
    shape: &'a BlockShape,
    input: &'a [f32],
    affine1: &'a Affine,
    g2: &'a [f32],
    y2: &'a [f32],
    back2: &'a Backward,
    flipped: &'a [f32],
    output: Shared,
    tasks: Range<usize>,
    activation: PhantomData<A>,
}

impl<A: Act> Kernel for DepthwiseBackward<'_, A> {
    /// Sums of the masked gradient and the packed weight gradient.
    type Output = (Sums, Aligned);
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Self::Output {
        let conv = self.shape.depthwise();
        let (channels, padding, stride) = (conv.channels, conv.padding(), conv.stride);
        let taps = conv.kernel * conv.kernel * SLICE;
        let mut sums = Sums::new(channels);
        let mut weight_gradient = Aligned::zeros(conv.slices() * taps);
        let mut input = Buffer::zeros(conv.padded_len());
        // The output gradient, spread out by the stride, in a frame of the kernel's padding around the input's extent.
        let outer_width = conv.width + 2 * padding;
        let mut outer = Buffer::zeros((conv.height + 2 * padding) * outer_width * SLICE);
        let mut line = Aligned::zeros(conv.width * SLICE);
        let mut last_width = SLICE;
        for task in self.tasks {
            let (image, slice) = (task / conv.slices(), task % conv.slices());
            let (first, width) = (slice * SLICE, conv.slice_width(slice));
            if width < last_width {
                input.fill(0.0); // lanes that this slice lacks
                outer.fill(0.0);
            }
            last_width = width;
            let scale = lanes(&self.affine1.scale, first, width);
            let shift = lanes(&self.affine1.shift, first, width);
            let image_input = &self.input[image * conv.in_pixels() * channels..][..conv.in_pixels() * channels];
            let strip = Strip::new(conv, slice, (conv.height, conv.width));
            fill_padded::<S>([image_input; 2], strip, &mut input, conv.padded_width(), padding, 1, |lane, y, _| {
                A::value(y * scale[lane] + shift[lane])
            });
            let a = lanes(&self.back2.by_gradient, first, width);
            let b = lanes(&self.back2.by_value, first, width);
            let c = lanes(&self.back2.constant, first, width);
            let out_span = image * conv.out_pixels() * channels..(image + 1) * conv.out_pixels() * channels;
            let outputs = [&self.g2[out_span.clone()], &self.y2[out_span]];
            let out_strip = Strip::new(conv, slice, (conv.out_height(), conv.out_width()));
            fill_padded::<S>(outputs, out_strip, &mut outer, outer_width, padding, stride, |lane, g, y| {
                a[lane] * g + (b[lane] * y + c[lane])
            });
            let gradient = &mut weight_gradient[slice * taps..][..taps];
            accumulate_weight_gradient(&input, conv, &outer, outer_width, padding, stride, gradient);
            let flipped = &self.flipped[slice * taps..][..taps];
            let image_output = image * conv.in_pixels() * channels;
            for y in 0..conv.height {
                convolve_row(&outer, outer_width, flipped, conv.kernel, 1, y, conv.width, &mut line);
                let row = Row { line: &line, raw: image_input, strip, y, output: self.output, start: image_output };
                let (sum, square) = match width {
                    SLICE => row.mask::<A, S, SLICE>(&scale, &shift),
                    8 => row.mask::<A, S, 8>(&scale, &shift),
                    _ => row.mask::<A, S, 0>(&scale, &shift),
                };
                sums.add_block(first, &sum[..width], &square[..width]);
            }
        }
        (sums, weight_gradient)
    }
}

/// One row of the gradient at the depthwise convolution's activated input.
struct Row<'a> {
    /// `[width, SLICE]`
    line: &'a [f32],
    /// The image before batch norm and activation.
    raw: &'a [f32],
    strip: Strip,
    y: usize,
    /// Where the masked gradient of the images goes, and where this image starts in it.
    output: Shared,
    start: usize,
}

impl Row<'_> {
    /// Writes `line * slope` and returns its sums with those of its product with `raw`.
    #[inline(always)]
    fn mask<A: Act, S: Simd, const WIDTH: usize>(self, scale: &Lanes, shift: &Lanes) -> (Lanes, Lanes) {
        let Strip { channels, first, width, pixels: (_, columns) } = self.strip;
        let width = if WIDTH == 0 { width } else { WIDTH };
        let ahead = self.strip.ahead();
        let row = self.y * columns * channels;
        let (mut sum, mut square): (Lanes, Lanes) = ([0.0; SLICE], [0.0; SLICE]);
        let pixels = self.line.chunks_exact(SLICE).zip(self.raw[row..][..columns * channels].chunks_exact(channels));
        for (x, (values, raw)) in pixels.enumerate() {
            let raw = &raw[first..][..width];
            let place = self.start + row + x * channels + first;
            // SAFETY: this task alone writes these channels of this image; any address may be prefetched.
            let out = unsafe {
                let out = self.output.slice(place..place + width);
                S::prefetch(out.as_ptr().wrapping_add(ahead));
                out
            };
            for lane in 0..width {
                let g = values[lane] * A::slope(raw[lane] * scale[lane] + shift[lane]);
                out[lane] = g;
                sum[lane] += g;
                square[lane] += g * raw[lane];
            }
        }
        (sum, square)
    }
}
