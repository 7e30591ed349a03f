//! Layers of f32 whose sums have a given order: the bias, then products by rows of the kernel, its columns, and input
//! channels, without fused multiply-add. Every machine computes the same bits.

use crate::activation::Act;
use crate::buffers::Aligned;
use crate::simd::{InstructionSet, Kernel, Simd, entry_points, vectors};
use std::marker::PhantomData;
use std::ops::Range;

/// Vectors of outputs that are summed at a time: enough to hide the latency of an addition.
const WIDE: usize = 8;

/// Outputs of a panel of the packed weight.
pub(super) fn panel() -> usize {
    WIDE * InstructionSet::active().lanes()
}

/// `output[pixel] = activation(bias + sum over taps and inputs of weight * input)` for some output pixels.
pub(super) struct OrderedPixels<'a, A> {
    /// `[panel of outputs][tap][input][output]`; depthwise with one input, that of each output.
    pub weight: &'a Aligned,
    pub bias: &'a [f32],
    pub depthwise: bool,
    pub inputs: usize,
    pub input: &'a [f32],
    /// Offsets of the input pixels that each output pixel reads, by taps; `None` outside the map.
    pub taps: &'a (dyn Fn(usize, usize) -> Option<usize> + Sync),
    pub area: usize,
    /// Number of the first pixel.
    pub first: usize,
    pub output: &'a mut [f32],
    pub activation: PhantomData<A>,
}

impl<A: Act> Kernel for OrderedPixels<'_, A> {
    type Output = ();
    entry_points!();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (n, width) = (self.bias.len(), WIDE * S::LANES);
        for start in (0..n).step_by(width) {
            for pixel in 0..self.output.len() / n {
                self.panel(s, pixel, start..n.min(start + width));
            }
        }
    }
}

impl<A: Act> OrderedPixels<'_, A> {
    /// Outputs `outputs`, at most a panel, of one pixel.
    #[inline(always)]
    fn panel<S: Simd>(&mut self, s: S, pixel: usize, outputs: Range<usize>) {
        let width = WIDE * S::LANES;
        let weight = &self.weight[outputs.start * self.area * self.inputs..];
        let mut sums = [s.splat(0.0); WIDE];
        for (sum, channels) in sums.iter_mut().zip(vectors(s, outputs.len())) {
            *sum = s.read(&self.bias[outputs.clone()][channels]);
        }
        for tap in 0..self.area {
            let Some(place) = (self.taps)(self.first + pixel, tap) else { continue };
            let weight = &weight[tap * self.inputs * width..][..self.inputs * width];
            if self.depthwise {
                let inputs = self.input[place..][outputs.clone()].chunks(S::LANES);
                for ((sum, weight), x) in sums.iter_mut().zip(weight.chunks_exact(S::LANES)).zip(inputs) {
                    *sum = s.add(*sum, s.mul(s.read(weight), s.read(x)));
                }
                continue;
            }
            for (weight, &x) in weight.chunks_exact(width).zip(&self.input[place..][..self.inputs]) {
                let x = s.splat(x);
                for (sum, weight) in sums.iter_mut().zip(weight.chunks_exact(S::LANES)) {
                    *sum = s.add(*sum, s.mul(s.read(weight), x));
                }
            }
        }
        let out = &mut self.output[pixel * self.bias.len()..][outputs];
        for (sum, out) in sums.into_iter().zip(out.chunks_mut(S::LANES)) {
            s.write(out, A::exact_values(s, sum));
        }
    }
}
