//! Outputs whose channels are divided among threads: a thread owns a slice of channels of all pixels of an image, which
//! lie apart in memory.

use super::slice::SLICE;
use std::marker::PhantomData;

/// The strips of an output `[images, pixels, channels]`, ordered by image and slice.
pub(crate) struct Strips<'a> {
    /// The image that the next strip is of.
    image: *mut f32,
    pixels: usize,
    channels: usize,
    /// Number of the next strip in its image.
    slice: usize,
    /// Number of strips.
    len: usize,
    output: PhantomData<&'a mut [f32]>,
}

// SAFETY: strips are disjoint parts of one mutably borrowed slice of floats, like the halves of `split_at_mut`.
unsafe impl Send for Strips<'_> {}

impl<'a> Strips<'a> {
    /// Strips of whole images.
    pub(crate) fn new(output: &'a mut [f32], pixels: usize, channels: usize) -> Self {
        let images = output.len() / (pixels * channels).max(1);
        let len = images * channels.div_ceil(SLICE);
        Strips { image: output.as_mut_ptr(), pixels, channels, slice: 0, len, output: PhantomData }
    }

    /// The first `count` strips, which `self` loses.
    pub(crate) fn split_off(&mut self, count: usize) -> Strips<'a> {
        let count = count.min(self.len);
        let first = Strips { len: count, ..*self };
        self.advance(count);
        first
    }

    fn advance(&mut self, count: usize) {
        let slices = self.channels.div_ceil(SLICE);
        let images = (self.slice + count) / slices;
        // Of an image that does not exist, if no strip is left: then nothing follows the pointer.
        self.image = self.image.wrapping_add(images * self.pixels * self.channels);
        self.slice = (self.slice + count) % slices;
        self.len -= count;
    }
}

impl<'a> Iterator for Strips<'a> {
    type Item = StripMut<'a>;

    fn next(&mut self) -> Option<StripMut<'a>> {
        let Strips { pixels, channels, .. } = *self;
        let first = self.slice * SLICE;
        let strip = (self.len > 0).then(|| StripMut {
            start: self.image.wrapping_add(first),
            pixels,
            channels,
            width: SLICE.min(channels - first),
            output: PhantomData,
        });
        self.advance(self.len.min(1));
        strip
    }
}

/// A slice of channels of one image.
pub(crate) struct StripMut<'a> {
    start: *mut f32,
    pixels: usize,
    channels: usize,
    width: usize,
    output: PhantomData<&'a mut [f32]>,
}

impl StripMut<'_> {
    /// The slice's channels of a pixel.
    #[inline(always)]
    pub(crate) fn pixel(&mut self, pixel: usize) -> &mut [f32] {
        assert!(pixel < self.pixels);
        // SAFETY: the image has `pixels` pixels of `channels` values, of which the `width` from `start` on exist in
        // each. Strips are handed out once each, and overlap in no value; `self` is mutably borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(pixel * self.channels), self.width) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_cover_every_value_once_however_they_are_split() {
        let (images, pixels, channels) = (3, 2, 37);
        for first in 0..=9 {
            let mut output = vec![0.0; images * pixels * channels];
            let mut rest = Strips::new(&mut output, pixels, channels);
            let part = rest.split_off(first);
            assert_eq!((part.len, rest.len), (first, 9 - first));
            for (number, mut strip) in part.chain(rest).enumerate() {
                for pixel in 0..pixels {
                    strip.pixel(pixel).iter_mut().for_each(|v| *v += (number + 1) as f32);
                }
            }
            for (index, value) in output.into_iter().enumerate() {
                let (image, channel) = (index / (pixels * channels), index % channels);
                assert_eq!(value, (image * 3 + channel / SLICE + 1) as f32, "{index}");
            }
        }
    }
}
