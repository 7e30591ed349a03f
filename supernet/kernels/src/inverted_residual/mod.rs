//! The inverted residual block as one kernel with a gradient: expand, depthwise, squeeze-excite, project and residual,
//! with their batch norms.
//!
//! The cost of such a block is the number of passes over middle channels in memory, so there are as few as possible:
//! only the raw output of the depthwise convolution (`y2`) and the small one of the projection (`y3`) are stored. Batch
//! norm and activation are applied where values are read. Values on the far side of a pointwise convolution are
//! recomputed from its few channels, in L1, a slice of middle channels and some rows of one image at a time: the expand
//! convolution's output `y1` in both passes, the gradient at `y2` in the backward pass. The gradient at `y1` reaches
//! the input before it leaves the cache. Phases, each parallel over pixels or over (image, slice of channels):
//!
//! | forward | writes |
//! | --- | --- |
//! | moments of the input | statistics of `y1` (see `expand`) |
//! | depthwise of `y1`, activated | `y2` and its sums |
//! | squeeze-excite | the gate |
//! | project of `y2`, activated and gated | `y3` and its sums |
//! | output | normalised `y3` + input |
//!
//! | backward | writes |
//! | --- | --- |
//! | sums | for the last batch norm |
//! | project | gradient at `y3`, the projection's weight gradient, sums for the second batch norm and squeeze-excite |
//! | squeeze-excite | gradients of its parameters, and the gate's part of the gradient at `y2` |
//! | depthwise and expand | depthwise weight gradient; input gradient and expand's weight gradient without the terms of
//! the first batch norm; its sums |
//! | first batch norm | its terms: a small matrix applied to the input |
//!
//! Recomputing pays while the channels on the far side are few: beyond [`RECOMPUTED`] of them a product takes longer
//! than memory, and `y1` or the gradient at the projection's input are stored as well.
//!
//! | file | concern |
//! | --- | --- |
//! | `forward`, `backward` | the phases of the two passes, in order |
//! | `middle` | layout of what is stored of the middle channels |
//! | `expand`, `expand_kernels` | the expand convolution, recomputed where it is read |
//! | `depthwise_forward`, `depthwise_backward` | the depthwise convolution with its neighbours |
//! | `activated` | readers of `y2` |
//! | `middle_gradient` | the gradient at `y2` |
//! | `project_backward` | the projection's gradients and the sums for the phases after it |
//! | `squeeze_excite` | the two layers of the gate |

mod activated;
mod backward;
mod depthwise_backward;
mod depthwise_forward;
mod expand;
mod expand_kernels;
mod forward;
mod middle;
mod middle_gradient;
mod project_backward;
mod squeeze_excite;

use super::LayerGradients;
use super::batch_norm::{ChannelStatistics, Normalise, SumOverProcesses};
use super::buffers::Buffer;
use super::depthwise;
use super::parallel;
use crate::{Activation, WrongExtents};
use std::ops::Range;

/// Number of channels up to which a pointwise convolution is recomputed rather than stored: that many multiply-adds
/// take about as long as writing the value to memory and reading it back.
const RECOMPUTED: usize = 32;

/// Extents and options of one inverted residual block.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockShape {
    /// Number of images.
    pub batch: usize,
    /// Height of the input map.
    pub height: usize,
    /// Width of the input map.
    pub width: usize,
    /// Input channels.
    pub in_channels: usize,
    /// Middle channels.
    pub middle: usize,
    /// Output channels.
    pub out_channels: usize,
    /// Depthwise kernel size.
    pub kernel: usize,
    /// Depthwise stride.
    pub stride: usize,
    /// Activation of expand and depthwise.
    pub activation: Activation,
    /// Whether there is an expand convolution.
    pub expand: bool,
    /// Reduced channels of squeeze-excite.
    pub squeeze_excite: Option<usize>,
    /// Whether the input is added to the output.
    pub residual: bool,
    /// Batch norm's epsilon.
    pub eps: f64,
}

impl BlockShape {
    fn depthwise(&self) -> depthwise::Shape {
        depthwise::Shape {
            channels: self.middle,
            kernel: self.kernel,
            stride: self.stride,
            height: self.height,
            width: self.width,
        }
    }

    pub(crate) fn in_pixels(&self) -> usize {
        self.batch * self.height * self.width
    }

    /// Height and width of the output map.
    pub fn output_size(&self) -> (usize, usize) {
        (self.height.div_ceil(self.stride), self.width.div_ceil(self.stride))
    }

    fn out_pixels(&self) -> usize {
        let (height, width) = self.output_size();
        self.batch * height * width
    }
}

/// Range of each parameter in the packed vector, in this order, each in PyTorch's layout.
#[derive(Debug, Clone)]
pub(crate) struct Parameters {
    pub expand: Range<usize>,
    pub norm1: [Range<usize>; 2],
    pub depthwise: Range<usize>,
    pub norm2: [Range<usize>; 2],
    pub reduce: [Range<usize>; 2],
    pub excite: [Range<usize>; 2],
    pub project: Range<usize>,
    pub norm3: [Range<usize>; 2],
    pub len: usize,
}

impl Parameters {
    pub(crate) fn new(shape: &BlockShape) -> Self {
        let mut end = 0;
        let mut next = |len: usize| {
            end += len;
            end - len..end
        };
        let (m, reduced) = (shape.middle, shape.squeeze_excite.unwrap_or(0));
        let first = if shape.expand { m } else { 0 };
        let second = if shape.squeeze_excite.is_some() { m } else { 0 };
        let expand = next(first * shape.in_channels);
        let norm1 = [next(first), next(first)];
        let depthwise = next(m * shape.kernel * shape.kernel);
        let norm2 = [next(m), next(m)];
        let reduce = [next(reduced * m), next(reduced)];
        let excite = [next(m * reduced), next(second)];
        let project = next(shape.out_channels * m);
        let norm3 = [next(shape.out_channels), next(shape.out_channels)];
        Parameters { expand, norm1, depthwise, norm2, reduce, excite, project, norm3, len: end }
    }
}

/// Statistics of the block's batch norms: expand (empty without expand), depthwise, project.
pub type BlockStatistics = [ChannelStatistics; 3];

/// Values of the forward pass that the backward pass reads, besides input and parameters.
pub struct BlockSaved {
    /// Threads of the forward pass, which decide the layout of `y1` and `y2`.
    threads: usize,
    /// Present with an expand convolution and batch statistics.
    moments: Option<expand::Moments>,
    /// Present with an expand convolution that is not recomputed.
    y1: Option<Buffer>,
    y2: Buffer,
    /// `[pixels, out]`
    y3: Buffer,
    normalise: Normalise,
    statistics: BlockStatistics,
    squeeze_excite: Option<squeeze_excite::Saved>,
}

/// Number of packed parameters of a block.
pub fn parameter_count(shape: &BlockShape) -> usize {
    Parameters::new(shape).len
}

/// Output `[batch, height, width, out]` of the block for `x` `[batch, height, width, in]`, the values that the backward
/// pass reads if `keep`, and the statistics used.
///
/// `packed` holds the active slices of all parameters one after the other: expand weight `[middle, in]`, its batch
/// norm's weight and bias, depthwise weight `[middle, k, k]`, batch norm, squeeze-excite (reduce weight and bias,
/// expand weight and bias), project weight `[out, middle]`, batch norm; absent layers take no space. Statistics are
/// `given`, or those of the batch (`over_processes`, if passed).
///
/// # Errors
/// Values that do not fit the extents.
pub fn inverted_residual(
    x: &[f32],
    packed: &[f32],
    shape: &BlockShape,
    given: Option<&BlockStatistics>,
    over_processes: Option<SumOverProcesses>,
    keep: bool,
) -> Result<(Vec<f32>, Option<BlockSaved>, BlockStatistics), WrongExtents> {
    let parameters = Parameters::new(shape).len;
    if (x.len(), packed.len()) != (shape.in_pixels() * shape.in_channels, parameters)
        || x.is_empty()
        || (!shape.expand && shape.middle != shape.in_channels)
    {
        return Err(WrongExtents(format!(
            "inverted residual: input of {} values and {} parameters do not fit {shape:?} with {parameters} parameters",
            x.len(),
            packed.len()
        )));
    }
    Ok(forward::forward(shape, x, packed, given, over_processes, keep))
}

impl BlockSaved {
    /// Gradients at the input and at the packed parameters, given the gradient `g` at the output. The other values are
    /// those of the forward pass.
    pub fn backward(
        self,
        shape: &BlockShape,
        x: &[f32],
        packed: &[f32],
        over_processes: Option<SumOverProcesses>,
        g: &[f32],
    ) -> LayerGradients {
        parallel::with_threads(self.threads, || backward::backward(shape, x, packed, &self, over_processes, g))
    }
}
