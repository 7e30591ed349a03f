//! Backward pass of the projection: the weight gradient, and all sums that the second batch norm and squeeze-excite
//! need, in one pass over `y2`.

use super::middle::Middle;
use crate::activation::Act;
use crate::batch_norm::{Affine, RunningSums, Sums, TURNS};
use crate::buffers::Aligned;
use crate::depthwise::{CHUNK, Prefetch};
use crate::matmul::{Packed, accumulate_transposed, multiply};
use crate::rows::RawGradient;
use crate::simd::{Kernel, Simd, entry_points};
use crate::slice::{Lane, Lanes, SLICE, lanes};
use std::marker::PhantomData;
use std::ops::Range;

/// Sums over an image's pixels per middle channel; `g` is the gradient at the projection's input, `slope` the
/// derivative of the activation.
#[derive(Clone, Copy)]
struct ImageSums {
    /// Sums of `g * slope` and of `g * slope * y2`.
    by_slope: [Lanes; 2],
    /// Sums of `slope` and of `slope * y2`, with squeeze-excite only.
    slope: [Lanes; 2],
    /// Sum of `g * activated y2`, the gate's gradient, with squeeze-excite only.
    value: Lanes,
}

impl ImageSums {
    const ZERO: ImageSums = ImageSums { by_slope: [[0.0; SLICE]; 2], slope: [[0.0; SLICE]; 2], value: [0.0; SLICE] };

    /// Sets the sums over pixels of the channels from `lane` on, and writes the projection's input `z`; `affine` is
    /// batch norm's scale and shift.
    #[inline(always)]
    fn set_ungated<S: Simd, A: Act>(
        &mut self,
        s: S,
        lane: Lane<S>,
        affine: [S::V; 2],
        y2: &[Lanes],
        g: &[Lanes],
        z: &mut [Lanes],
    ) {
        let mut running = RunningSums::new(s);
        let (g, z) = (&g[..y2.len()], &mut z[..y2.len()]);
        let ((y2, y2_rest), (g, g_rest)) = (y2.as_chunks::<TURNS>(), g.as_chunks::<TURNS>());
        let (z, z_rest) = z.as_chunks_mut::<TURNS>();
        for ((y2, g), z) in y2.iter().zip(g).zip(z) {
            for (turn, ((y2, g), z)) in y2.iter().zip(g).zip(z).enumerate() {
                add_pixel::<S, A>(s, lane, affine, y2, g, z, &mut running, turn);
            }
        }
        for ((y2, g), z) in y2_rest.iter().zip(g_rest).zip(z_rest) {
            add_pixel::<S, A>(s, lane, affine, y2, g, z, &mut running, 0);
        }
        let (sums, by_values) = running.totals();
        let [sum, by_value] = &mut self.by_slope;
        lane.store(sum, sums);
        lane.store(by_value, by_values);
    }

    /// Adds the sums over pixels of the channels from `lane` on, with squeeze-excite, and writes the projection's input
    /// `z`; the third vector is the gate.
    #[inline(always)]
    fn add_gated<S: Simd, A: Act>(
        &mut self,
        s: S,
        lane: Lane<S>,
        [scale, shift, gate]: [S::V; 3],
        y2: &[Lanes],
        g: &[Lanes],
        z: &mut [Lanes],
    ) {
        let [own, own_by_value] = &mut self.by_slope;
        let (mut sums, mut by_values) = (lane.load(own), lane.load(own_by_value));
        let [slope, slope_by_value] = &mut self.slope;
        let (mut slopes, mut slopes_by_value) = (lane.load(slope), lane.load(slope_by_value));
        let mut values = lane.load(&self.value);
        for ((y2, g), z) in y2.iter().zip(g).zip(z) {
            let (y2, g) = (lane.load(y2), lane.load(g));
            let normalised = s.mul_add(y2, scale, shift);
            let value = A::values(s, normalised);
            lane.store(z, s.mul(value, gate));
            let slope = A::times_slopes(s, normalised, s.splat(1.0));
            let by_slope = s.mul(g, slope);
            sums = s.add(sums, by_slope);
            by_values = s.mul_add(by_slope, y2, by_values);
            slopes = s.add(slopes, slope);
            slopes_by_value = s.mul_add(slope, y2, slopes_by_value);
            values = s.mul_add(g, value, values);
        }
        lane.store(own, sums);
        lane.store(own_by_value, by_values);
        lane.store(slope, slopes);
        lane.store(slope_by_value, slopes_by_value);
        lane.store(&mut self.value, values);
    }

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

/// Processes one pixel of [`ImageSums::set_ungated`].
#[inline(always)]
#[allow(clippy::too_many_arguments)] // operands and outputs of one pixel
fn add_pixel<S: Simd, A: Act>(
    s: S,
    lane: Lane<S>,
    [scale, shift]: [S::V; 2],
    y2: &Lanes,
    g: &Lanes,
    z: &mut Lanes,
    running: &mut RunningSums<S>,
    turn: usize,
) {
    let y2 = lane.load(y2);
    let normalised = s.mul_add(y2, scale, shift);
    lane.store(z, A::values(s, normalised));
    running.add(turn, A::times_slopes(s, normalised, lane.load(g)), y2);
}

/// Sums of some images: `[images, slices]`.
pub(super) struct MiddleSums {
    first_image: usize,
    slices: usize,
    sums: Vec<ImageSums>,
}

impl MiddleSums {
    fn of(&mut self, image: usize, slice: usize) -> &mut ImageSums {
        &mut self.sums[(image - self.first_image) * self.slices + slice]
    }

    /// The gate's gradient `[images, middle]`.
    pub(super) fn gate_gradient(&self, middle: usize) -> Vec<f32> {
        let mut gradient = Vec::with_capacity(self.sums.len() / self.slices * middle);
        for image in self.sums.chunks_exact(self.slices) {
            for (slice, sums) in image.iter().enumerate() {
                gradient.extend_from_slice(&sums.value[..SLICE.min(middle - slice * SLICE)]);
            }
        }
        gradient
    }

    /// Sums over the images of the gradient at the depthwise convolution's normalised output, and of its product with
    /// `y2`. With squeeze-excite that gradient is `(g * gate + pooled) * slope`, where `gates` are the gate and the
    /// pooled gradient (divided by the number of pixels), `[all images, middle]`.
    pub(super) fn total(&self, middle: usize, gates: Option<(&[f32], &[f32])>) -> Sums {
        let mut sums = Sums::new(middle);
        for (image, slices) in self.sums.chunks_exact(self.slices).enumerate() {
            let first = (self.first_image + image) * middle;
            let gates = gates.map(|(gate, pooled)| (&gate[first..first + middle], &pooled[first..first + middle]));
            for (slice, own) in slices.iter().enumerate() {
                let first = slice * SLICE;
                let width = SLICE.min(middle - first);
                let gates = gates.map(|(gate, pooled)| (lanes(gate, first, width), lanes(pooled, first, width)));
                for (of, totals) in [&mut sums.sum, &mut sums.square].into_iter().enumerate() {
                    for (lane, total) in totals[first..first + width].iter_mut().enumerate() {
                        let by_slope = f64::from(own.by_slope[of][lane]);
                        *total += gates.map_or(by_slope, |(gate, pooled)| {
                            f64::from(gate[lane]) * by_slope + f64::from(pooled[lane]) * f64::from(own.slope[of][lane])
                        });
                    }
                }
            }
        }
        sums
    }
}

/// Backward pass of the projection over whole groups of images.
pub(super) struct ProjectBackward<'a, A> {
    pub raw: RawGradient<'a>,
    pub layout: Middle,
    pub y2: &'a [f32],
    pub affine2: &'a Affine,
    /// `[images, middle]`
    pub gate: Option<&'a [f32]>,
    /// The projection's weight, `[out, SLICE]` per slice.
    pub project: &'a [Packed],
    /// Distance between the rows of `g3`.
    pub stride: usize,
    /// Output: the gradient at the raw `y3` for the images of `groups`.
    pub g3: &'a mut [f32],
    /// Output for `groups`, if kept, otherwise empty: the gradient at the projection's input, in the layout of `y2`.
    pub g2: &'a mut [f32],
    pub groups: Range<usize>,
    pub activation: PhantomData<A>,
}

impl<A: Act> Kernel for ProjectBackward<'_, A> {
    /// The sums, and the transposed weight gradient `[middle, stride]`.
    type Output = (MiddleSums, Aligned);
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> Self::Output {
        let (layout, stride, m) = (self.layout, self.stride, self.affine2.scale.len());
        let pixels = layout.pixels;
        let images = layout.images(self.groups.clone());
        let mut totals = Totals {
            sums: MiddleSums {
                first_image: images.start,
                slices: layout.slices,
                sums: vec![ImageSums::ZERO; images.len() * layout.slices],
            },
            weight_gradient: Aligned::zeros(m * stride),
        };
        let mut tile = Aligned::zeros(CHUNK * SLICE);
        let mut z = Aligned::zeros(CHUNK * SLICE);
        let (g3, g2) = (std::mem::take(&mut self.g3), std::mem::take(&mut self.g2));
        let mut g2 = g2.chunks_mut(layout.stride());
        for (group, g3) in self.groups.clone().zip(g3.chunks_mut(layout.together * pixels * stride)) {
            let images = layout.images(group..group + 1);
            self.raw.fill(s, images.start * pixels, images.len() * pixels, stride, g3);
            for slice in 0..layout.slices {
                let y2 = self.y2[layout.group(group, slice)].as_chunks::<SLICE>().0;
                let mut g2 = g2.next().map(|g2| g2.chunks_mut(CHUNK * SLICE));
                // All pixels of a group of images, or a part of one image.
                for (y2, g3) in y2.chunks(CHUNK).zip(g3.chunks(CHUNK * stride)) {
                    let g = match g2.as_mut().and_then(Iterator::next) {
                        Some(g2) => &mut g2[..y2.len() * SLICE],
                        None => &mut tile[..y2.len() * SLICE],
                    };
                    self.chunk(s, images.clone(), slice, y2, g3, g, &mut z, &mut totals);
                }
            }
        }
        (totals.sums, totals.weight_gradient)
    }
}

/// Sums over the groups of a kernel.
struct Totals {
    sums: MiddleSums,
    /// Transposed, `[middle, stride]`.
    weight_gradient: Aligned,
}

impl<A: Act> ProjectBackward<'_, A> {
    /// Processes all pixels of a group of images, or a part of one image, in one slice: writes the gradient at the
    /// projection's input to `g`, and its input to `z`.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // operands, scratch memory and outputs of one slice
    fn chunk<S: Simd>(
        &self,
        s: S,
        images: Range<usize>,
        slice: usize,
        y2: &[Lanes],
        g3: &[f32],
        g: &mut [f32],
        z: &mut [f32],
        totals: &mut Totals,
    ) {
        let (m, n, stride) = (self.affine2.scale.len(), self.raw.back.constant.len(), self.stride);
        let (first, width) = (slice * SLICE, SLICE.min(m - slice * SLICE));
        let scale = lanes(&self.affine2.scale, first, width);
        let shift = lanes(&self.affine2.shift, first, width);
        let next = Prefetch::after(y2);
        next.issue(s, 0);
        multiply(g3, stride, y2.len(), &self.project[slice], g, SLICE);
        next.issue(s, 1);
        let part = self.layout.pixels.min(CHUNK);
        let parts = y2.chunks(part).zip(g.as_chunks::<SLICE>().0.chunks(part));
        let parts = parts.zip(z.as_chunks_mut::<SLICE>().0.chunks_mut(part)).zip(images);
        for (((y2, g), z), image) in parts {
            let mut block = ImageSums::ZERO;
            let gate = self.gate.map(|gate| lanes(&gate[image * m..], first, width));
            for lane in Lane::covering(s, width) {
                let (scale, shift) = (lane.load(&scale), lane.load(&shift));
                match &gate {
                    None => block.set_ungated::<S, A>(s, lane, [scale, shift], y2, g, z),
                    Some(gate) => block.add_gated::<S, A>(s, lane, [scale, shift, lane.load(gate)], y2, g, z),
                }
            }
            totals.sums.of(image, slice).add(&block);
        }
        next.issue(s, 2);
        let weight_gradient = &mut totals.weight_gradient[first * stride..][..width * stride];
        accumulate_transposed(z, SLICE, g3, stride, y2.len(), width, n, weight_gradient, stride);
        next.issue(s, 3);
    }
}
