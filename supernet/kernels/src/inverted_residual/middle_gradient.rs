//! The gradient at the raw output `y2` of the depthwise convolution, made some rows of a slice at a time.

use super::middle::Middle;
use crate::activation::Act;
use crate::batch_norm::{Affine, Backward};
use crate::depthwise::{Frame, Prefetch, prefetch_next};
use crate::matmul::{Packed, multiply};
use crate::simd::Simd;
use crate::slice::{Lane, Lanes, SLICE, lanes};
use std::ops::Range;

/// Operands of the gradient at the raw `y2`.
pub(super) struct MiddleGradient<'a> {
    pub layout: Middle,
    pub y2: &'a [f32],
    pub affine2: &'a Affine,
    pub back2: &'a Backward,
    /// Gradient at the projection's input, if it was kept.
    pub g2: Option<&'a [f32]>,
    /// Gradient at the raw `y3`, `[pixels, stride]`.
    pub g3: &'a [f32],
    pub stride: usize,
    /// The projection's weight, `[out, SLICE]` per slice.
    pub project: &'a [Packed],
    /// The gate, and the pooled gradient divided by the number of pixels; `[images, middle]`.
    pub gates: Option<(&'a [f32], &'a [f32])>,
}

/// [`MiddleGradient`] for one slice of one group of images.
pub(super) struct MiddleGradientSlice<'a> {
    y2: &'a [Lanes],
    g2: Option<&'a [Lanes]>,
    g3: &'a [f32],
    stride: usize,
    weight: &'a Packed,
    scale: Lanes,
    shift: Lanes,
    back: [Lanes; 3],
    /// Gate and pooled gradient of the group's images.
    gates: Option<(&'a [f32], &'a [f32])>,
    channels: Range<usize>,
}

impl MiddleGradient<'_> {
    #[inline(always)]
    pub(super) fn slice(&self, group: usize, slice: usize) -> MiddleGradientSlice<'_> {
        let (first, m) = (slice * SLICE, self.affine2.scale.len());
        let width = SLICE.min(m - first);
        let of_slice = |values: &[f32]| lanes(values, first, width);
        let images = self.layout.images(group..group + 1);
        let pixels = images.start * self.layout.pixels..images.end * self.layout.pixels;
        let range = self.layout.group(group, slice);
        let of_images = images.start * m..images.end * m;
        MiddleGradientSlice {
            y2: self.y2[range.clone()].as_chunks().0,
            g2: self.g2.map(|g2| g2[range].as_chunks().0),
            g3: &self.g3[pixels.start * self.stride..pixels.end * self.stride],
            stride: self.stride,
            weight: &self.project[slice],
            scale: of_slice(&self.affine2.scale),
            shift: of_slice(&self.affine2.shift),
            back: [&self.back2.by_gradient, &self.back2.by_value, &self.back2.constant].map(|values| of_slice(values)),
            gates: self.gates.map(|(gate, pooled)| (&gate[of_images.clone()], &pooled[of_images])),
            channels: first..first + width,
        }
    }
}

impl MiddleGradientSlice<'_> {
    /// Computes the rows `rows` of `width` pixels into the frames of the group's images; all rows if there are several
    /// images. `tile` has room for them.
    #[inline(always)]
    pub(super) fn make<S: Simd, A: Act>(
        &self,
        s: S,
        rows: Range<usize>,
        width: usize,
        middle: usize,
        tile: &mut [f32],
        frames: &mut [Frame],
    ) {
        let first = rows.start * width;
        let count = frames.len() * rows.len() * width;
        let g2 = match self.g2 {
            Some(g2) => &g2[first..first + count],
            None => {
                multiply(&self.g3[first * self.stride..], self.stride, count, self.weight, tile, SLICE);
                &tile.as_chunks::<SLICE>().0[..count]
            }
        };
        let y2 = &self.y2[first..first + count];
        let per_image = rows.len() * width;
        for lane in Lane::covering(s, self.channels.len()) {
            let (scale, shift) = (lane.load(&self.scale), lane.load(&self.shift));
            let [by_gradient, by_value, constant] = &self.back;
            let (by_gradient, by_value) = (lane.load(by_gradient), lane.load(by_value));
            let constant = lane.load(constant);
            let images = frames.iter_mut().zip(g2.chunks_exact(per_image)).zip(y2.chunks_exact(per_image));
            for (image, ((frame, g2), y2)) in images.enumerate() {
                let gates = self.gates_of(image * middle);
                let (gate, pooled) = (lane.load(&gates[0]), lane.load(&gates[1]));
                for ((y, g2), y2) in rows.clone().zip(g2.chunks_exact(width)).zip(y2.chunks_exact(width)) {
                    for ((out, g), y2) in frame.row(y).iter_mut().zip(g2).zip(y2) {
                        let y2 = lane.load(y2);
                        let g = s.mul_add(lane.load(g), gate, pooled);
                        let g = A::times_slopes(s, s.mul_add(y2, scale, shift), g);
                        let rest = s.mul_add(by_value, y2, constant);
                        lane.store(out, s.mul_add(by_gradient, g, rest));
                    }
                }
            }
        }
    }

    /// Prefetches a part of the next chunk's operands, the pixels from `pixel` on.
    #[inline(always)]
    pub(super) fn prefetch<S: Simd>(&self, s: S, pixel: usize, part: usize) {
        Prefetch::after(&self.y2[..pixel]).issue(s, part);
        if let Some(g2) = self.g2 {
            Prefetch::after(&g2[..pixel]).issue(s, part);
        }
    }

    /// Prefetches a share of the next group's gradient at the raw `y3`, for the rows `rows` of `width` pixels.
    #[inline(always)]
    pub(super) fn prefetch_next<S: Simd>(&self, s: S, width: usize, rows: Range<usize>, slice: usize, slices: usize) {
        if self.g2.is_none() {
            let part = rows.start * width * self.stride..rows.end * width * self.stride;
            prefetch_next(s, self.g3, part, slice, slices);
        }
    }

    /// Gate and pooled gradient of the image whose channels start at `first`; 1 and 0 without squeeze-excite.
    #[inline(always)]
    fn gates_of(&self, first: usize) -> [Lanes; 2] {
        self.gates.map_or([[1.0; SLICE], [0.0; SLICE]], |(gate, pooled)| {
            [gate, pooled].map(|values| lanes(values, first + self.channels.start, self.channels.len()))
        })
    }
}
