//! How tensors of the middle channels lie in memory: `[groups, slices, images of the group, pixels, SLICE]`. Each slice of a group is one stream. A
//! group is one image, or several where maps are so small that the pixels of one would not be worth a matrix product.

use super::BlockShape;
use crate::ops::depthwise::{CHUNK, Lanes, SLICE};
use crate::ops::parallel;
use std::ops::Range;

/// Extents of such a tensor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Middle {
    images: usize,
    /// Images in a group; the last group may have fewer.
    pub together: usize,
    pub slices: usize,
    /// Pixels of an image.
    pub pixels: usize,
}

impl Middle {
    /// For tensors with the pixels of the block's input.
    pub(super) fn of_input(shape: &BlockShape) -> Self {
        let conv = shape.depthwise();
        // A group for each thread at least.
        let most = shape.batch.div_ceil(parallel::threads());
        let together = (CHUNK / conv.in_pixels()).clamp(1, most);
        Middle { images: shape.batch, together, slices: conv.slices(), pixels: conv.in_pixels() }
    }

    /// For tensors with the pixels of its output.
    pub(super) fn of_output(shape: &BlockShape) -> Self {
        Middle { pixels: shape.depthwise().out_pixels(), ..Self::of_input(shape) }
    }

    pub(super) fn groups(self) -> usize {
        self.images.div_ceil(self.together)
    }

    /// The images of groups.
    pub(super) fn images(self, groups: Range<usize>) -> Range<usize> {
        groups.start * self.together..(groups.end * self.together).min(self.images)
    }

    /// Floats of the whole tensor.
    pub(super) fn len(self) -> usize {
        self.groups() * self.stride() * self.slices
    }

    /// Floats of one slice of a whole group.
    fn stride(self) -> usize {
        self.together * self.pixels * SLICE
    }

    /// Whether there is this image.
    pub(super) fn has(self, image: usize) -> bool {
        image < self.images
    }

    /// Where one slice of the images of `group` lies.
    pub(super) fn group(self, group: usize, slice: usize) -> Range<usize> {
        let start = (group * self.slices + slice) * self.stride();
        start..start + self.images(group..group + 1).len() * self.pixels * SLICE
    }

    /// One slice of one image.
    pub(super) fn image(self, values: &[f32], image: usize, slice: usize) -> &[Lanes] {
        let start = (image / self.together * self.slices + slice) * self.stride();
        values[start + image % self.together * self.pixels * SLICE..][..self.pixels * SLICE].as_chunks().0
    }
}
