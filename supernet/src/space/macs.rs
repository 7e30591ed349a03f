//! Work of a static network.

use super::{BlockSpec, ConvSpec, InvertedResidualSpec, NetworkSpec};

impl NetworkSpec {
    /// Multiply-accumulates of one image's forward pass.
    ///
    /// Counted: every multiplication of an input by a weight in the convolutions (stem, expand, depthwise, project, those of bottlenecks and
    /// their shortcuts, feature), in the two 1x1 convolutions of squeeze-excite, and in the hidden and classifier layers. A `k x k` convolution counts
    /// `k * k` for every output pixel, padding included. Not counted: biases, batch norm (it folds into the convolution),
    /// activations, pooling, the product with the squeeze-excite gate, residual sums.
    ///
    /// The once-for-all code attaches counters to PyTorch's convolution and linear modules; on an extracted network these see
    /// exactly the layers listed above, so that both counts are equal.
    pub fn macs(&self) -> u64 {
        let dense: u64 = self.stem.iter().chain(&self.feature).map(conv_macs).sum();
        let blocks: u64 = self.blocks().map(block_macs).sum();
        let hidden = self.hidden_channels.map_or(0, |width| product(&[self.pooled_map().0, width]));
        let classifier = product(&[self.classifier_channels(), self.classes]);
        dense + blocks + hidden + classifier
    }

    /// The block at whose input half of the work is done: the first that has half of the multiply-accumulates or more before it, or the last block.
    pub(crate) fn middle_block(&self) -> usize {
        let half = self.macs() / 2;
        let mut before: u64 = self.stem.iter().map(conv_macs).sum();
        let mut middle = 0;
        for (index, block) in self.blocks().enumerate() {
            middle = index;
            if before >= half {
                break;
            }
            before += block_macs(block);
        }
        middle
    }
}

fn conv_macs(conv: &ConvSpec) -> u64 {
    let size = conv.output_size();
    product(&[size, size, conv.out_channels, conv.in_channels, conv.kernel, conv.kernel])
}

fn block_macs(block: &BlockSpec) -> u64 {
    match block {
        BlockSpec::InvertedResidual(block) => inverted_residual_macs(block),
        BlockSpec::Bottleneck(block) => block.convolutions().iter().chain(&block.shortcut()).map(conv_macs).sum(),
    }
}

fn inverted_residual_macs(block: &InvertedResidualSpec) -> u64 {
    let (input, output) = (block.input_size, block.output_size());
    let expand = if block.expand { product(&[input, input, block.in_channels, block.middle_channels]) } else { 0 };
    let depthwise = product(&[output, output, block.middle_channels, block.kernel, block.kernel]);
    let squeeze = block.squeeze_excite.map_or(0, |reduced| 2 * product(&[reduced, block.middle_channels]));
    let project = product(&[output, output, block.middle_channels, block.out_channels]);
    expand + depthwise + squeeze + project
}

fn product(factors: &[usize]) -> u64 {
    factors.iter().map(|&f| f as u64).product()
}
