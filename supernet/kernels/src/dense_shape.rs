//! Extents of a convolution with batch norm and activation.

use super::{Activation, depthwise};

/// Extents and options of a dense or depthwise convolution.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseShape {
    /// Number of images.
    pub batch: usize,
    /// Height of the input map.
    pub height: usize,
    /// Width of the input map.
    pub width: usize,
    /// Input channels.
    pub in_channels: usize,
    /// Output channels.
    pub out_channels: usize,
    /// Kernel size; the padding is half of it, rounded down.
    pub kernel: usize,
    /// Stride.
    pub stride: usize,
    /// Whether each output channel reads the input channel of its number only. The kernel's size is then odd, the
    /// stride 1 or 2, and there are as many output as input channels.
    pub depthwise: bool,
    /// Activation after batch norm.
    pub activation: Activation,
    /// Whether the output is averaged over each image's pixels.
    pub pool: bool,
    /// Batch norm's epsilon.
    pub eps: f64,
}

impl DenseShape {
    /// Height and width of the convolution's output map.
    pub fn output_size(&self) -> (usize, usize) {
        (self.height.div_ceil(self.stride), self.width.div_ceil(self.stride))
    }

    pub(super) fn rows(&self) -> usize {
        let (height, width) = self.output_size();
        self.batch * height * width
    }

    /// Number of input values per output value.
    pub fn columns(&self) -> usize {
        let inputs = if self.depthwise { 1 } else { self.in_channels };
        inputs * self.kernel * self.kernel
    }

    /// Extents of one image, of a depthwise convolution.
    pub(super) fn of_image(&self) -> Option<depthwise::Shape> {
        let DenseShape { in_channels: channels, kernel, stride, height, width, .. } = *self;
        self.depthwise.then_some(depthwise::Shape { channels, kernel, stride, height, width })
    }

    pub(super) fn is_plain_product(&self) -> bool {
        self.kernel == 1 && self.stride == 1
    }

    /// Offsets of batch norm's weight and bias in the packed parameters, and the number of parameters.
    pub(super) fn offsets(&self) -> (usize, usize, usize) {
        let weight = self.out_channels * self.columns();
        (weight, weight + self.out_channels, weight + 2 * self.out_channels)
    }

    /// Extents of the output: `[batch, height, width, channels]`, or `[batch, channels]` when pooled.
    pub fn output_extents(&self) -> Vec<usize> {
        let (height, width) = self.output_size();
        match self.pool {
            true => vec![self.batch, self.out_channels],
            false => vec![self.batch, height, width, self.out_channels],
        }
    }
}
