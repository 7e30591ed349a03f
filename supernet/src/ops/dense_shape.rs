//! Extents of a dense convolution.

use super::Activation;
use candle_core::Shape;

/// Extents and options of a dense convolution.
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

    /// Number of input values per output pixel.
    pub(crate) fn columns(&self) -> usize {
        self.in_channels * self.kernel * self.kernel
    }

    pub(super) fn is_plain_product(&self) -> bool {
        self.kernel == 1 && self.stride == 1
    }

    /// Offsets of batch norm's weight and bias in the packed parameters, and the number of parameters.
    pub(super) fn offsets(&self) -> (usize, usize, usize) {
        let weight = self.out_channels * self.columns();
        (weight, weight + self.out_channels, weight + 2 * self.out_channels)
    }

    /// Shape of the output.
    pub fn output_shape(&self) -> Shape {
        let (height, width) = self.output_size();
        match self.pool {
            true => (self.batch, self.out_channels).into(),
            false => (self.batch, height, width, self.out_channels).into(),
        }
    }
}
