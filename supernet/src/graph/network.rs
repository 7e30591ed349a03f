//! From a network's layers to its graph.

use super::names::{CLASSIFIER, FEATURE, HIDDEN, Location, STEM};
use super::{Builder, Graph, NodeId, RegionKind, Shape};
use crate::space::{ConvSpec, NetworkSpec};

impl Graph {
    /// The graph of a whole network.
    pub fn of(network: &NetworkSpec) -> Self {
        let (height, width) = (network.resolution, network.resolution);
        let (mut builder, mut x) = Builder::new(Shape { height, width, channels: 3 }, network.batch_norm_epsilon);
        let (count, before_pool) = (network.stem.len(), network.max_pool.is_some());
        for (index, conv) in network.stem.iter().enumerate() {
            builder.locate(Location::Stem { index, count, residual: conv.residual, before_pool });
            x = builder.layer(RegionKind::Stem, |b| conv.lower(b, x, STEM));
        }
        if network.max_pool.is_some() {
            x = builder.layer(RegionKind::MaxPool, |b| b.max_pool(x, 3, 2, 1));
        }
        for (stage, blocks) in network.stages.iter().enumerate() {
            for (place, block) in blocks.iter().enumerate() {
                builder.locate(Location::Block { names: block.names(), stage, block: place });
                x = builder.layer(block.region(), |b| block.lower(b, x));
            }
        }
        let (has_feature, has_hidden) = (network.feature.is_some(), network.hidden_channels.is_some());
        builder.locate(Location::Head { stages: network.stages.len(), has_feature, has_hidden });
        builder.layer(RegionKind::Head, |b| head(b, x, network));
        builder.finish()
    }
}

/// Feature convolution, average pool, hidden layer and classifier, as far as the network has them.
fn head(builder: &mut Builder, mut x: NodeId, network: &NetworkSpec) -> NodeId {
    if let Some(feature) = &network.feature {
        x = feature.lower(builder, x, FEATURE);
    }
    x = builder.global_average_pool(x);
    if let Some(width) = network.hidden_channels {
        x = builder.pointwise(x, HIDDEN, width, false);
        x = builder.activation(x, network.hidden_activation);
    }
    builder.linear(x, CLASSIFIER, network.classes)
}

impl ConvSpec {
    /// Convolution, batch norm, activation, and the sum with the input where there is one.
    pub(crate) fn lower(&self, builder: &mut Builder, x: NodeId, roles: (&'static str, &'static str)) -> NodeId {
        let kernel = (self.kernel, self.stride);
        let y = builder.convolution_norm_activation(x, roles, self.out_channels, kernel, 1, self.activation);
        if self.residual { builder.add(y, x) } else { y }
    }

    /// The convolution as a graph of its own.
    pub(crate) fn graph(&self, batch_norm_epsilon: f64) -> Graph {
        let input = Shape { height: self.input_size, width: self.input_size, channels: self.in_channels };
        let (mut builder, x) = Builder::new(input, batch_norm_epsilon);
        self.lower(&mut builder, x, STEM);
        builder.finish()
    }
}
