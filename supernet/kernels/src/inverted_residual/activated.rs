//! Readers of the depthwise convolution's raw output `y2`, which apply batch norm, activation and gate where they read.

use super::middle::Middle;
use crate::activation::Act;
use crate::batch_norm::Affine;
use crate::matmul::ROW_BLOCK;
use crate::rows::RowSource;
use crate::simd::{Kernel, Simd, entry_points};
use crate::slice::{Lane, SLICE, lanes};
use std::marker::PhantomData;
use std::ops::Range;

/// The row source `activation(affine(y2)) * gate`, for the projection.
pub(super) struct Activated<'a, A> {
    pub y2: &'a [f32],
    pub layout: Middle,
    pub affine: &'a Affine,
    /// `[images, columns]`
    pub gate: Option<&'a [f32]>,
    pub activation: PhantomData<A>,
}

impl<A: Act> RowSource for Activated<'_, A> {
    #[inline(always)]
    fn fill<S: Simd>(&self, s: S, first: usize, rows: usize, columns: usize, tile: &mut [f32]) {
        let mut done = 0;
        while done < rows {
            let pixels = self.layout.pixels;
            let (image, pixel) = ((first + done) / pixels, (first + done) % pixels);
            let run = (pixels - pixel).min(rows - done);
            // Prefetches the start of the next block: slices are streams far apart, which the hardware prefetcher does
            // not predict.
            let next = first + done + rows;
            let next = self.layout.has(next / pixels).then_some((next / pixels, next % pixels));
            for slice in 0..columns.div_ceil(SLICE) {
                let start = slice * SLICE;
                let width = SLICE.min(columns - start);
                let (scale, shift) = (lanes(&self.affine.scale, start, width), lanes(&self.affine.shift, start, width));
                let gate = self.gate.map_or([1.0; SLICE], |gate| lanes(&gate[image * columns..], start, width));
                let y2 = self.layout.image(self.y2, image, slice);
                let y2 = &y2[pixel..pixel + run];
                let ahead =
                    next.map_or(y2, |(image, pixel)| &self.layout.image(self.y2, image, slice)[pixel..]).as_ptr();
                let tile = &mut tile[done * columns + start..(done + run) * columns];
                for lane in Lane::covering(s, width) {
                    let kept = lane.start()..width.min(lane.start() + S::LANES);
                    let (scale, shift) = (lane.load(&scale), lane.load(&shift));
                    let gate = lane.load(&gate);
                    for (pixel, (y2, out)) in y2.iter().zip(tile.chunks_mut(columns)).enumerate() {
                        if lane.start() == 0 {
                            s.prefetch(ahead.wrapping_add(pixel).cast());
                        }
                        let value = A::values(s, s.mul_add(lane.load(y2), scale, shift));
                        s.write(&mut out[kept.clone()], s.mul(value, gate));
                    }
                }
            }
            done += run;
        }
    }
}

/// Means of `activation(affine(y2))` over the pixels of each image.
pub(super) struct Pool<'a, A> {
    pub y2: &'a [f32],
    pub affine: &'a Affine,
    pub layout: Middle,
    pub images: Range<usize>,
    /// `[images, channels]`
    pub pooled: &'a mut [f32],
    pub activation: PhantomData<A>,
}

impl<A: Act> Kernel for Pool<'_, A> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let channels = self.affine.scale.len();
        for (image, pooled) in self.images.zip(self.pooled.chunks_exact_mut(channels)) {
            for (slice, pooled) in pooled.chunks_mut(SLICE).enumerate() {
                let scale = lanes(&self.affine.scale, slice * SLICE, pooled.len());
                let shift = lanes(&self.affine.shift, slice * SLICE, pooled.len());
                let mut total = [0.0; SLICE];
                for lane in Lane::covering(s, pooled.len()) {
                    let (scale, shift) = (lane.load(&scale), lane.load(&shift));
                    let mut all = s.splat(0.0);
                    for y2 in self.layout.image(self.y2, image, slice).chunks(ROW_BLOCK) {
                        let mut sum = s.splat(0.0);
                        for y2 in y2 {
                            sum = s.add(sum, A::values(s, s.mul_add(lane.load(y2), scale, shift)));
                        }
                        all = s.add(all, sum);
                    }
                    lane.store(&mut total, all);
                }
                for (out, total) in pooled.iter_mut().zip(total) {
                    *out = total / self.layout.pixels as f32;
                }
            }
        }
    }
}
