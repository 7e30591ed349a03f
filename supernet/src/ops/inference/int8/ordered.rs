//! Layers of f32 whose sums have a given order: the bias, then products by rows of the kernel, its columns, and input
//! channels, without fused multiply-add. Every machine computes the same bits.

use crate::ops::activation::Act;
use crate::ops::buffers::Aligned;
use crate::ops::simd::{Kernel, Simd, entry_points, vectors};
use std::marker::PhantomData;

/// `output[pixel] = activation(bias + sum over taps and inputs of weight * input)` for some output pixels.
pub(super) struct OrderedPixels<'a, A> {
    /// `[tap, input, output]`; depthwise `[tap, output]`.
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
    fn run<S: Simd>(self, s: S) {
        let n = self.bias.len();
        for (pixel, out) in self.output.chunks_exact_mut(n).enumerate() {
            for channels in vectors(s, n) {
                let mut sum = s.read(&self.bias[channels.clone()]);
                for tap in 0..self.area {
                    let Some(place) = (self.taps)(self.first + pixel, tap) else { continue };
                    if self.depthwise {
                        let x = s.read(&self.input[place..][channels.clone()]);
                        sum = s.add(sum, s.mul(s.read(&self.weight[tap * n..][channels.clone()]), x));
                        continue;
                    }
                    for (input, &x) in self.input[place..][..self.inputs].iter().enumerate() {
                        let row = (tap * self.inputs + input) * n;
                        sum = s.add(sum, s.mul(s.read(&self.weight[row..][channels.clone()]), s.splat(x)));
                    }
                }
                s.write(&mut out[channels], A::exact_values(s, sum));
            }
        }
    }
}
