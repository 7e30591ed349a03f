//! The block's backward pass.

use super::expand::{self, NormGradient};
use super::{BlockShape, Parameters, Saved, middle_slice, squeeze_excite};
use crate::ops::activation::{Act, Identity, with_activation};
use crate::ops::batch_norm::{Affine, Backward, Normalise, Sums, lanes};
use crate::ops::buffers::{Aligned, Buffer};
use crate::ops::depthwise::{
    self, Frame, Lanes, SLICE, Strip, accumulate_weight_gradient, chunk_rows, input_gradient_rows,
};
use crate::ops::matmul::{Packed, ROW_BLOCK, accumulate_transposed, multiply, multiply_add};
use crate::ops::parallel::{self, Shared};
use crate::ops::rows::{RawGradient, accumulate, gradient_sums, total, write_transposed};
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
    let (inputs, middle, outputs) = (shape.in_channels, shape.middle, shape.out_channels);
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
    let sums = gradient_sums(g, &saved.y3, outputs);
    let back3 = norm_backward(2, &at.norm3, &sums, &mut gradient);

    // Project: its weight's gradient, and what the sums for the second batch norm are made of.
    let affine2 = affine(1, &at.norm2);
    let out_pixels = shape.out_pixels();
    let pixels = out_pixels / shape.batch;
    let gate = saved.squeeze_excite.as_ref().map(|s| &s.gate[..]);
    let stride = outputs.next_multiple_of(InstructionSet::active().lanes());
    let project = Packed::slices(&packed[at.project.clone()], outputs, middle, middle, 1);
    let mut g3 = Buffer::uninitialised(out_pixels * stride);
    let g3_shared = Shared::new(&mut g3);
    let parts = parallel::map(shape.batch, 1, |images| {
        // SAFETY: ranges of images are disjoint.
        unsafe {
            dispatch(ProjectBackward::<A> {
                raw: RawGradient { g, y: &saved.y3, back: &back3 },
                y2: &saved.y2,
                affine2: &affine2,
                gate,
                project: &project,
                pixels,
                stride,
                g3: g3_shared.slice(images.start * pixels * stride..images.end * pixels * stride),
                images,
                activation: PhantomData,
            })
        }
    });
    let (parts, weight_parts): (Vec<MiddleSums>, Vec<Aligned>) = parts.into_iter().unzip();
    write_transposed(weight_parts, stride, &mut gradient[at.project.clone()], middle);
    let pooled_gradient = saved.squeeze_excite.as_ref().zip(shape.squeeze_excite).map(|(se, reduced)| {
        let gate_gradient = parts.iter().flat_map(|part| part.gate_gradient(middle)).collect();
        let mut pooled = squeeze_excite::backward(shape, reduced, packed, &at, se, gate_gradient, &mut gradient);
        pooled.iter_mut().for_each(|g| *g /= pixels as f32);
        pooled
    });
    let gates = gate.zip(pooled_gradient.as_deref());
    let sums = Sums::total(parts.into_iter().scan(0, |image, part| {
        let of_part = *image..*image + part.images(middle);
        *image = of_part.end;
        let span = of_part.start * middle..of_part.end * middle;
        Some(part.total(middle, gates.map(|(gate, pooled)| (&gate[span.clone()], &pooled[span]))))
    }));
    let back2 = norm_backward(1, &at.norm2, &sums, &mut gradient);

    // Depthwise, and expand as far as it does not wait for the first batch norm.
    let conv = shape.depthwise();
    let flipped = depthwise::pack_weights(&packed[at.depthwise.clone()], middle, conv.taps(), true);
    let affine1 = shape.expand.then(|| affine(0, &at.norm1));
    let weight1 = &packed[at.expand.clone()];
    let expand = affine1.as_ref().map(|affine| Expand {
        affine,
        slices: Packed::slices(weight1, inputs, middle, 1, inputs),
        back: scaled_slices(weight1, inputs, &affine.scale),
    });
    let mut dx = vec![0.0; shape.in_pixels() * inputs];
    let dx_shared = Shared::new(&mut dx);
    let parts = parallel::map(shape.batch, 1, |images| {
        let image = conv.in_pixels() * inputs;
        // SAFETY: ranges of images are disjoint; extents are checked.
        unsafe {
            let middle_gradient = MiddleGradient {
                y2: &saved.y2,
                affine2: &affine2,
                back2: &back2,
                g3: &g3,
                stride,
                project: &project,
                gates,
            };
            let dx = dx_shared.slice(images.start * image..images.end * image);
            let (expand, flipped) = (expand.as_ref(), &flipped[..]);
            match expand {
                Some(_) => dispatch(DepthwiseBackward::<A, A> {
                    shape,
                    x,
                    expand,
                    middle_gradient,
                    flipped,
                    dx,
                    images,
                    activations: PhantomData,
                }),
                None => dispatch(DepthwiseBackward::<Identity, A> {
                    shape,
                    x,
                    expand,
                    middle_gradient,
                    flipped,
                    dx,
                    images,
                    activations: PhantomData,
                }),
            }
        }
    });
    let (mut sums, mut depthwise_parts, mut expand_parts) = (Vec::new(), Vec::new(), Vec::new());
    for (of_sums, of_depthwise, of_expand) in parts {
        sums.push(of_sums);
        depthwise_parts.push(of_depthwise);
        expand_parts.push(of_expand);
    }
    depthwise::unpack_weights(&total(depthwise_parts), middle, conv.taps(), &mut gradient[at.depthwise.clone()]);

    // The first batch norm.
    if shape.expand {
        let back1 = norm_backward(0, &at.norm1, &Sums::total(sums), &mut gradient);
        let products = total(expand_parts);
        for (channel, out) in gradient[at.expand.clone()].chunks_exact_mut(inputs).enumerate() {
            let slice = &products[channel / SLICE * inputs * SLICE..];
            for (input, out) in out.iter_mut().enumerate() {
                *out = back1.by_gradient[channel] * slice[input * SLICE + channel % SLICE];
            }
        }
        if let Some(moments) = &saved.moments {
            let norm = NormGradient::new(moments, weight1, &back1);
            norm.add_to(x, &mut dx);
            for (out, v) in gradient[at.expand.clone()].iter_mut().zip(&norm.weight) {
                *out += v;
            }
        }
    }
    if shape.residual {
        accumulate(&mut dx, g);
    }
    (dx, gradient)
}

/// The expand convolution and its way back.
struct Expand<'a> {
    affine: &'a Affine,
    /// `[in, SLICE]` each.
    slices: Vec<Packed>,
    /// `[SLICE, in]` each, times batch norm's factor.
    back: Vec<Packed>,
}

/// `weight` `[out, in]` times `factors` by row, in slices of [`SLICE`] rows.
fn scaled_slices(weight: &[f32], inputs: usize, factors: &[f32]) -> Vec<Packed> {
    let rows = weight.chunks_exact(inputs).zip(factors);
    let scaled: Vec<f32> = rows.flat_map(|(row, factor)| row.iter().map(move |w| w * factor)).collect();
    scaled.chunks(SLICE * inputs).map(|slice| Packed::new(slice, slice.len() / inputs, inputs, inputs, 1)).collect()
}

/// Sums over an image's pixels by middle channel, `g` the gradient at the projection's input and `slope` that of the activation.
#[derive(Clone, Copy)]
struct ImageSums {
    /// Of `g * slope` and of `g * slope * y2`.
    by_slope: [Lanes; 2],
    /// With squeeze-excite: of `slope` and of `slope * y2`.
    slope: [Lanes; 2],
    /// With squeeze-excite: of `g * activated y2`, the gate's gradient.
    value: Lanes,
}

impl ImageSums {
    const ZERO: ImageSums = ImageSums { by_slope: [[0.0; SLICE]; 2], slope: [[0.0; SLICE]; 2], value: [0.0; SLICE] };

    #[inline(always)]
    fn add(&mut self, other: &ImageSums) {
        let own = self.by_slope.iter_mut().chain(&mut self.slope).chain([&mut self.value]);
        for (own, other) in own.zip(other.by_slope.iter().chain(&other.slope).chain([&other.value])) {
            for lane in 0..SLICE {
                own[lane] += other[lane];
            }
        }
    }
}

/// Those of a range of images: `[images, slices]`.
struct MiddleSums(Vec<ImageSums>);

impl MiddleSums {
    fn images(&self, middle: usize) -> usize {
        self.0.len() / middle.div_ceil(SLICE)
    }

    /// `[images, middle]`
    fn gate_gradient(&self, middle: usize) -> impl Iterator<Item = f32> {
        let images = self.0.chunks_exact(middle.div_ceil(SLICE));
        images.flat_map(move |slices| slices.iter().flat_map(|sums| sums.value).take(middle))
    }

    /// Sums over the images of the gradient at the depthwise convolution's normalised output, and of it times `y2`. With squeeze-excite that gradient
    /// is `(g * gate + pooled) * slope`, with gate and pooled gradient (divided by the pixels) `[images, middle]`.
    fn total(&self, middle: usize, gates: Option<(&[f32], &[f32])>) -> Sums {
        let mut sums = Sums::new(middle);
        for (image, slices) in self.0.chunks_exact(middle.div_ceil(SLICE)).enumerate() {
            for channel in 0..middle {
                let (own, lane) = (&slices[channel / SLICE], channel % SLICE);
                let [sum, square] = match gates {
                    None => own.by_slope.map(|v| f64::from(v[lane])),
                    Some((gate, pooled)) => {
                        let (gate, pooled) = (gate[image * middle + channel], pooled[image * middle + channel]);
                        [0, 1].map(|of| {
                            f64::from(gate) * f64::from(own.by_slope[of][lane])
                                + f64::from(pooled) * f64::from(own.slope[of][lane])
                        })
                    }
                };
                sums.sum[channel] += sum;
                sums.square[channel] += square;
            }
        }
        sums
    }
}

/// The projection's backward over whole images.
struct ProjectBackward<'a, A> {
    raw: RawGradient<'a>,
    /// `[images, slices, pixels, SLICE]`
    y2: &'a [f32],
    affine2: &'a Affine,
    /// `[images, middle]`
    gate: Option<&'a [f32]>,
    /// `[out, SLICE]` each.
    project: &'a [Packed],
    /// Pixels an image.
    pixels: usize,
    /// Of the rows of `g3`.
    stride: usize,
    /// Of these images, written: the gradient at the raw `y3`.
    g3: &'a mut [f32],
    images: Range<usize>,
    activation: PhantomData<A>,
}

impl<A: Act> Kernel for ProjectBackward<'_, A> {
    /// With the transposed weight gradient `[middle, stride]`.
    type Output = (MiddleSums, Aligned);
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Self::Output {
        let (m, n, stride, pixels) = (self.affine2.scale.len(), self.raw.back.constant.len(), self.stride, self.pixels);
        let mut sums = Vec::with_capacity(self.images.len() * self.project.len());
        let mut g = Aligned::zeros(ROW_BLOCK * SLICE);
        let mut z = Aligned::zeros(ROW_BLOCK * SLICE);
        let mut weight_gradient = Aligned::zeros(m * stride);
        for (image, g3) in self.images.zip(self.g3.chunks_exact_mut(pixels * stride)) {
            self.raw.fill(image * pixels, pixels, stride, g3);
            for (slice, weight) in self.project.iter().enumerate() {
                let (first, width) = (slice * SLICE, SLICE.min(m - slice * SLICE));
                let scale = lanes(&self.affine2.scale, first, width);
                let shift = lanes(&self.affine2.shift, first, width);
                let gate = self.gate.map(|gate| lanes(&gate[image * m..], first, width));
                let weight_gradient = &mut weight_gradient[first * stride..][..width * stride];
                let mut total = ImageSums::ZERO;
                let y2 = middle_slice(self.y2, m, pixels, image, slice);
                for (y2, g3) in y2.chunks(ROW_BLOCK).zip(g3.chunks(ROW_BLOCK * stride)) {
                    multiply(g3, stride, y2.len(), weight, &mut g, SLICE);
                    let mut block = ImageSums::ZERO;
                    let gradients = g.as_chunks::<SLICE>().0;
                    let values = z.as_chunks_mut::<SLICE>().0;
                    match &gate {
                        None => {
                            let [sum, square] = &mut block.by_slope;
                            for ((y, g), z) in y2.iter().zip(gradients).zip(values) {
                                for lane in 0..SLICE {
                                    let t = y[lane] * scale[lane] + shift[lane];
                                    z[lane] = A::value(t);
                                    let g = g[lane] * A::slope(t);
                                    sum[lane] += g;
                                    square[lane] += g * y[lane];
                                }
                            }
                        }
                        Some(gate) => {
                            for ((y, g), z) in y2.iter().zip(gradients).zip(values) {
                                for lane in 0..SLICE {
                                    let t = y[lane] * scale[lane] + shift[lane];
                                    let (value, slope) = (A::value(t), A::slope(t));
                                    z[lane] = value * gate[lane];
                                    let by_slope = g[lane] * slope;
                                    block.by_slope[0][lane] += by_slope;
                                    block.by_slope[1][lane] += by_slope * y[lane];
                                    block.slope[0][lane] += slope;
                                    block.slope[1][lane] += slope * y[lane];
                                    block.value[lane] += g[lane] * value;
                                }
                            }
                        }
                    }
                    total.add(&block);
                    accumulate_transposed(&z, SLICE, g3, stride, y2.len(), width, n, weight_gradient, stride);
                }
                sums.push(total);
            }
        }
        (MiddleSums(sums), weight_gradient)
    }
}

/// What the gradient at the raw `y2` is made of.
struct MiddleGradient<'a> {
    /// `[images, slices, pixels, SLICE]`
    y2: &'a [f32],
    affine2: &'a Affine,
    back2: &'a Backward,
    /// The gradient at the raw `y3`, `[pixels, stride]`.
    g3: &'a [f32],
    stride: usize,
    /// `[out, SLICE]` each.
    project: &'a [Packed],
    /// Gate and pooled gradient divided by the pixels, `[images, middle]`.
    gates: Option<(&'a [f32], &'a [f32])>,
}

/// One slice of one image of it.
struct MiddleGradientSlice<'a> {
    y2: &'a [Lanes],
    g3: &'a [f32],
    stride: usize,
    weight: &'a Packed,
    scale: Lanes,
    shift: Lanes,
    back: [Lanes; 3],
    gates: [Lanes; 2],
}

impl MiddleGradient<'_> {
    #[inline(always)]
    fn slice(&self, conv: depthwise::Shape, image: usize, slice: usize) -> MiddleGradientSlice<'_> {
        let (first, width, m) = (slice * SLICE, conv.slice_width(slice), conv.channels);
        let of_slice = |values: &[f32]| lanes(values, first, width);
        let pixels = conv.out_pixels();
        MiddleGradientSlice {
            y2: middle_slice(self.y2, m, pixels, image, slice),
            g3: &self.g3[image * pixels * self.stride..][..pixels * self.stride],
            stride: self.stride,
            weight: &self.project[slice],
            scale: of_slice(&self.affine2.scale),
            shift: of_slice(&self.affine2.shift),
            back: [&self.back2.by_gradient, &self.back2.by_value, &self.back2.constant].map(|values| of_slice(values)),
            gates: self.gates.map_or([[1.0; SLICE], [0.0; SLICE]], |(gate, pooled)| {
                [of_slice(&gate[image * m..]), of_slice(&pooled[image * m..])]
            }),
        }
    }
}

impl MiddleGradientSlice<'_> {
    /// Makes the rows `rows` of `width` pixels in the frame; `tile` has room for them.
    #[inline(always)]
    fn make<A: Act>(&self, rows: Range<usize>, width: usize, tile: &mut [f32], frame: &mut Frame) {
        let pixels = rows.start * width..rows.end * width;
        multiply(&self.g3[pixels.start * self.stride..], self.stride, pixels.len(), self.weight, tile, SLICE);
        let [a, b, c] = &self.back;
        let [gate, pooled] = &self.gates;
        let tile = tile.as_chunks::<SLICE>().0.chunks_exact(width);
        for ((y, g), y2) in rows.zip(tile).zip(self.y2[pixels].chunks_exact(width)) {
            for ((out, g), y2) in frame.row(y).iter_mut().zip(g).zip(y2) {
                for lane in 0..SLICE {
                    let slope = A::slope(y2[lane] * self.scale[lane] + self.shift[lane]);
                    let g = (g[lane] * gate[lane] + pooled[lane]) * slope;
                    out[lane] = a[lane] * g + (b[lane] * y2[lane] + c[lane]);
                }
            }
        }
    }
}

/// The depthwise convolution's backward over whole images, a slice of channels at a time, and through the expand convolution to the input.
/// `A1` is the activation before it, `A2` that after it.
struct DepthwiseBackward<'a, A1, A2> {
    shape: &'a BlockShape,
    x: &'a [f32],
    expand: Option<&'a Expand<'a>>,
    middle_gradient: MiddleGradient<'a>,
    flipped: &'a [f32],
    /// Of these images. With expand it lacks what [`NormGradient`] adds.
    dx: &'a mut [f32],
    images: Range<usize>,
    activations: PhantomData<(A1, A2)>,
}

impl<A1: Act, A2: Act> Kernel for DepthwiseBackward<'_, A1, A2> {
    /// Sums for the first batch norm, the packed weight gradient, and the products of expand's weight gradient `[slices, in, SLICE]`.
    type Output = (Sums, Aligned, Aligned);
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Self::Output {
        let conv = self.shape.depthwise();
        let (inputs, columns, in_pixels) = (self.shape.in_channels, conv.width, conv.in_pixels());
        let taps = conv.taps() * SLICE;
        let (out_rows, in_rows) = (chunk_rows(conv.out_width()).min(conv.out_height()), chunk_rows(columns));
        let mut sums = Sums::new(conv.channels);
        let mut weight_gradient = Aligned::zeros(conv.slices() * taps);
        let mut products = Aligned::zeros(if self.expand.is_some() { conv.slices() * inputs * SLICE } else { 0 });
        let mut input = Frame::of_input(conv);
        let mut output = Frame::of_output(conv);
        let mut raw = Buffer::uninitialised(if self.expand.is_some() { in_pixels * SLICE } else { 0 });
        let mut tile = Aligned::zeros(out_rows * conv.out_width() * SLICE);
        let mut line = Aligned::zeros(in_rows * columns * SLICE);
        for (image, dx) in self.images.zip(self.dx.chunks_exact_mut(in_pixels * inputs)) {
            let x = &self.x[image * in_pixels * inputs..][..in_pixels * inputs];
            for slice in 0..conv.slices() {
                let (first, width) = (slice * SLICE, conv.slice_width(slice));
                let strip = Strip::new(conv, slice, (conv.height, columns));
                let middle_gradient = self.middle_gradient.slice(conv, image, slice);
                let expand = self.expand.map(|expand| {
                    let of_slice = |values: &[f32]| lanes(values, first, width);
                    let (scale, shift) = (of_slice(&expand.affine.scale), of_slice(&expand.affine.shift));
                    (expand::Slice { weight: &expand.slices[slice], scale, shift }, &expand.back[slice])
                });
                let (mut made, mut known) = (0, 0);
                for start in (0..conv.out_height()).step_by(out_rows) {
                    let rows = start..conv.out_height().min(start + out_rows);
                    let needed = conv.rows_read(rows.end);
                    match &expand {
                        None => input.fill::<S>(x, strip, made..needed, |_, x| x),
                        Some((expand, _)) => {
                            let raw = &mut raw[made * columns * SLICE..];
                            expand.make(x, columns, made..needed, A1::value, raw, &mut input);
                        }
                    }
                    made = needed;
                    middle_gradient.make::<A2>(rows.clone(), conv.out_width(), &mut tile, &mut output);
                    let gradient = &mut weight_gradient[slice * taps..][..taps];
                    accumulate_weight_gradient(&input, &output, conv, rows.clone(), width, gradient);
                    let now_known = conv.rows_known(rows.end);
                    for row in (known..now_known).step_by(in_rows) {
                        let rows = row..now_known.min(row + in_rows);
                        let flipped = &self.flipped[slice * taps..][..taps];
                        let line = &mut line[..rows.len() * columns * SLICE];
                        input_gradient_rows(&output, conv, flipped, rows.clone(), width, line);
                        let pixels = rows.start * columns..rows.end * columns;
                        let line_pixels = line.as_chunks_mut::<SLICE>().0;
                        let Some((expand, back)) = &expand else {
                            let dx = dx[pixels.start * inputs..].chunks_exact_mut(inputs);
                            for (dx, g) in dx.zip(line_pixels) {
                                dx[first..first + width].copy_from_slice(&g[..width]);
                            }
                            continue;
                        };
                        let (mut sum, mut square): (Lanes, Lanes) = ([0.0; SLICE], [0.0; SLICE]);
                        for (g, raw) in line_pixels.iter_mut().zip(&raw.as_chunks::<SLICE>().0[pixels.clone()]) {
                            for lane in 0..SLICE {
                                g[lane] *= A1::slope(raw[lane] * expand.scale[lane] + expand.shift[lane]);
                                sum[lane] += g[lane];
                                square[lane] += g[lane] * raw[lane];
                            }
                        }
                        sums.add_block(first, &sum[..width], &square[..width]);
                        let span = pixels.start * inputs..pixels.end * inputs;
                        let count = pixels.len();
                        if slice == 0 {
                            multiply(line, SLICE, count, back, &mut dx[span.clone()], inputs);
                        } else {
                            multiply_add(line, SLICE, count, back, &mut dx[span.clone()], inputs);
                        }
                        let products = &mut products[slice * inputs * SLICE..][..inputs * SLICE];
                        accumulate_transposed(&x[span], inputs, line, SLICE, count, inputs, SLICE, products, SLICE);
                    }
                    known = now_known;
                }
            }
        }
        (sums, weight_gradient, products)
    }
}
