//! From a network's layers to its graph.

use super::{Builder, Graph, NodeId, Prefix, RegionKind, Shape};
use crate::space::{ConvSpec, NetworkSpec};

impl Graph {
    /// The graph of a whole network. Names are timm's.
    ///
    /// MobileNets: the first fixed block is `blocks.0.0`, and the stages follow. With a hidden layer the names are
    /// those of timm's MobileNetV3: the feature convolution is one more stage and the hidden layer `conv_head`; without
    /// one they are those of timm's EfficientNet (MobileNetV2, ProxylessNAS), whose feature convolution is `conv_head`
    /// with `bn2`.
    ///
    /// ResNets: those of timm's ResNet-D. The stem is `conv1.0`, `conv1.1` (batch norm), `conv1.3`, `conv1.4`,
    /// `conv1.6`, `bn1`; a stem without its block has no `conv1.3` and `conv1.4`, and one with it adds the block's
    /// input to its output, which timm's does not.
    pub fn of(network: &NetworkSpec) -> Self {
        let (height, width) = (network.resolution, network.resolution);
        let (mut builder, mut x) = Builder::new(Shape { height, width, channels: 3 }, network.batch_norm_epsilon);
        for (index, conv) in network.stem.iter().enumerate() {
            let names = stem_names(network.stem.len(), index, conv.residual);
            x = builder.layer(RegionKind::Stem, |b| conv.lower(b, x, names));
        }
        if network.max_pool.is_some() {
            x = builder.layer(RegionKind::MaxPool, |b| b.max_pool(x, 3, 2, 1));
        }
        for (stage, blocks) in network.stages.iter().enumerate() {
            for (place, block) in blocks.iter().enumerate() {
                builder.prefix(block.prefix(stage, place));
                x = builder.layer(block.region(), |b| block.lower(b, x));
            }
        }
        builder.prefix(Prefix::default());
        builder.layer(RegionKind::Head, |b| head(b, x, network));
        builder.finish()
    }
}

/// Feature convolution, average pool, hidden layer and classifier, as far as the network has them.
fn head(builder: &mut Builder, mut x: NodeId, network: &NetworkSpec) -> NodeId {
    if let Some(feature) = &network.feature {
        let names = match network.hidden_channels {
            Some(_) => {
                builder.prefix(Prefix::block("blocks.", network.stages.len(), 0));
                ("conv", "bn1")
            }
            None => ("conv_head", "bn2"),
        };
        x = feature.lower(builder, x, names);
        builder.prefix(Prefix::default());
    }
    x = builder.global_average_pool(x);
    if let Some(width) = network.hidden_channels {
        x = builder.pointwise(x, "conv_head", width, false);
        x = builder.activation(x, network.hidden_activation);
    }
    builder.linear(x, if network.feature.is_some() { "classifier" } else { "fc" }, network.classes)
}

/// Names of convolution `index` of a stem of `count`, and of its batch norm.
fn stem_names(count: usize, index: usize, residual: bool) -> (&'static str, &'static str) {
    match (count, residual) {
        (1, _) => ("conv_stem", "bn1"),
        (count, _) if index + 1 == count => ("conv1.6", "bn1"),
        (_, true) => ("conv1.3", "conv1.4"),
        (_, false) => ("conv1.0", "conv1.1"),
    }
}

impl ConvSpec {
    /// Convolution, batch norm, activation, and the sum with the input where there is one.
    pub(crate) fn lower(&self, builder: &mut Builder, x: NodeId, names: (&'static str, &'static str)) -> NodeId {
        let kernel = (self.kernel, self.stride);
        let y = builder.convolution_norm_activation(x, names, self.out_channels, kernel, 1, self.activation);
        if self.residual { builder.add(y, x) } else { y }
    }

    /// The convolution as a graph of its own.
    pub(crate) fn graph(&self, batch_norm_epsilon: f64) -> Graph {
        let input = Shape { height: self.input_size, width: self.input_size, channels: self.in_channels };
        let (mut builder, x) = Builder::new(input, batch_norm_epsilon);
        self.lower(&mut builder, x, ("conv", "norm"));
        builder.finish()
    }
}
