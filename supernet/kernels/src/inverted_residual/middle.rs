//! Memory layout of tensors of the middle channels: `[groups, slices, images of the group, pixels, SLICE]`.
//!
//! Each slice of a group is one stream. A group is one image, or several where maps are so small that a matrix product
//! over the pixels of one would not pay.

use super::BlockShape;
use crate::depthwise::CHUNK;
use crate::parallel;
use crate::slice::{Lanes, SLICE};
use std::ops::Range;

/// Extents of a tensor of the middle channels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Middle {
    images: usize,
    /// Images per group; the last group may have fewer.
    pub together: usize,
    pub slices: usize,
    /// Pixels per image.
    pub pixels: usize,
}

impl Middle {
    /// The layout for the pixels of the block's input.
    pub(super) fn of_input(shape: &BlockShape) -> Self {
        let conv = shape.depthwise();
        // At least one group per thread.
        let most = shape.batch.div_ceil(parallel::threads());
        let together = (CHUNK / conv.in_pixels()).clamp(1, most);
        Middle { images: shape.batch, together, slices: conv.slices(), pixels: conv.in_pixels() }
    }

    /// The layout for the pixels of the block's output.
    pub(super) fn of_output(shape: &BlockShape) -> Self {
        Middle { pixels: shape.depthwise().out_pixels(), ..Self::of_input(shape) }
    }

    pub(super) fn groups(self) -> usize {
        self.images.div_ceil(self.together)
    }

    /// The images of `groups`.
    pub(super) fn images(self, groups: Range<usize>) -> Range<usize> {
        groups.start * self.together..(groups.end * self.together).min(self.images)
    }

    /// Number of floats of the whole tensor.
    pub(super) fn len(self) -> usize {
        self.groups() * self.group_stride()
    }

    /// Number of floats of a whole group.
    pub(super) fn group_stride(self) -> usize {
        self.stride() * self.slices
    }

    /// Number of floats of one slice of a whole group.
    pub(super) fn stride(self) -> usize {
        self.together * self.pixels * SLICE
    }

    /// Whether the image exists.
    pub(super) fn has(self, image: usize) -> bool {
        image < self.images
    }

    /// Range of one slice of the images of `group`.
    pub(super) fn group(self, group: usize, slice: usize) -> Range<usize> {
        let start = (group * self.slices + slice) * self.stride();
        start..start + self.images(group..group + 1).len() * self.pixels * SLICE
    }

    /// Pixels of one slice of one image.
    pub(super) fn image(self, values: &[f32], image: usize, slice: usize) -> &[Lanes] {
        let start = (image / self.together * self.slices + slice) * self.stride();
        values[start + image % self.together * self.pixels * SLICE..][..self.pixels * SLICE].as_chunks().0
    }
}
