//! Emits nodes, and records which of them form a region.

use super::names::Location;
use super::{Graph, Node, NodeId, Op, Region, RegionKind, Shape, Slot};
use crate::space::Activation;
use std::borrow::Cow;
use std::ops::Range;

/// A graph that grows. Each method emits the nodes of an operation and returns the last of them.
///
/// Names are of tensors: a block's are unique in the block, and should be those that timm gives the same layers. See
/// [`CustomKind`](crate::blocks::CustomKind) for an example.
#[derive(Debug)]
pub struct Builder {
    graph: Graph,
    /// The layer to which nodes belong from here on.
    layer: Option<u32>,
}

impl Builder {
    /// A graph that holds its input only.
    pub(crate) fn new(input: Shape, batch_norm_epsilon: f64) -> (Self, NodeId) {
        let graph = Graph {
            nodes: Vec::with_capacity(256),
            slots: Vec::with_capacity(128),
            locations: vec![Location::default()],
            layers: Vec::new(),
            inner: Vec::new(),
            batch_norm_epsilon,
        };
        let mut builder = Builder { graph, layer: None };
        let input = builder.push(Op::Input, &[], input);
        (builder, input)
    }

    /// The graph; the node that was emitted last is its output.
    pub(crate) fn finish(self) -> Graph {
        self.graph
    }

    /// Says which part of the network holds all slots from here on.
    pub(crate) fn locate(&mut self, location: Location) {
        self.graph.locations.push(location);
    }

    /// Records the nodes that `emit` emits as a layer.
    pub(crate) fn layer<T>(&mut self, kind: RegionKind, emit: impl FnOnce(&mut Self) -> T) -> T {
        let start = self.graph.nodes.len();
        self.layer = Some(self.graph.layers.len() as u32);
        let out = emit(self);
        self.layer = None;
        self.graph.layers.push(Region { kind, nodes: start..self.graph.nodes.len() });
        out
    }

    /// Convolution without bias, batch norm, activation. The padding is half of the kernel. `groups` is 1, or the
    /// number of channels (depthwise). Names are the convolution's and the norm's.
    pub fn convolution_norm_activation(
        &mut self,
        x: NodeId,
        (convolution, norm): (&'static str, &'static str),
        out_channels: usize,
        (kernel, stride): (usize, usize),
        groups: usize,
        activation: Activation,
    ) -> NodeId {
        let start = self.graph.nodes.len();
        let op = Op::Convolution { kernel, stride, padding: kernel / 2, groups, bias: false };
        let mut x = self.convolution(x, convolution, op, out_channels);
        x = self.with_slot(Op::BatchNorm, x, norm, self.shape(x));
        x = self.activation(x, activation);
        self.inner_region(start..self.graph.nodes.len());
        x
    }

    /// Records nodes as convolution, norm and activation.
    pub(super) fn inner_region(&mut self, nodes: Range<usize>) {
        self.graph.inner.push(Region { kind: RegionKind::ConvolutionNormActivation, nodes });
    }

    /// 1x1 convolution without batch norm, as in squeeze-excite.
    pub fn pointwise(&mut self, x: NodeId, name: &'static str, out_channels: usize, bias: bool) -> NodeId {
        let op = Op::Convolution { kernel: 1, stride: 1, padding: 0, groups: 1, bias };
        self.convolution(x, name, op, out_channels)
    }

    /// An activation; the identity emits no node.
    pub fn activation(&mut self, x: NodeId, activation: Activation) -> NodeId {
        match activation {
            Activation::Identity => x,
            _ => self.push(Op::Activation(activation), &[x], self.shape(x)),
        }
    }

    /// `relu6(x + 3) / 6`, the activation of squeeze-excite's factors.
    pub fn hard_sigmoid(&mut self, x: NodeId) -> NodeId {
        self.push(Op::HardSigmoid, &[x], self.shape(x))
    }

    /// Mean over all pixels.
    pub fn global_average_pool(&mut self, x: NodeId) -> NodeId {
        let Shape { channels, .. } = self.shape(x);
        self.push(Op::GlobalAveragePool, &[x], Shape { height: 1, width: 1, channels })
    }

    /// Average over windows side by side after `padding` rows and columns of zeros; windows of one pixel emit no node.
    pub fn average_pool(&mut self, x: NodeId, window: usize, padding: usize) -> NodeId {
        if window <= 1 {
            return x;
        }
        let Shape { height, width, channels } = self.shape(x);
        let size = |size: usize| size.saturating_add(padding).div_ceil(window);
        let shape = Shape { height: size(height), width: size(width), channels };
        self.push(Op::AveragePool { window, padding }, &[x], shape)
    }

    /// Largest value of each window; kernels exist for windows of 3 pixels with stride 2 and padding 1.
    pub fn max_pool(&mut self, x: NodeId, window: usize, stride: usize, padding: usize) -> NodeId {
        let Shape { height, width, channels } = self.shape(x);
        let size = |size: usize| strided(size, window, stride, padding);
        let shape = Shape { height: size(height), width: size(width), channels };
        self.push(Op::MaxPool { window, stride, padding }, &[x], shape)
    }

    /// Sum of a block's main path and its shortcut.
    pub fn add(&mut self, main: NodeId, shortcut: NodeId) -> NodeId {
        self.push(Op::Add, &[main, shortcut], self.shape(main))
    }

    /// Product of a map and a vector that holds a factor for each channel.
    pub fn gate(&mut self, map: NodeId, factors: NodeId) -> NodeId {
        self.push(Op::Gate, &[map, factors], self.shape(map))
    }

    pub(crate) fn linear(&mut self, x: NodeId, name: &'static str, out_channels: usize) -> NodeId {
        self.with_slot(Op::Linear, x, name, Shape { height: 1, width: 1, channels: out_channels })
    }

    fn convolution(&mut self, x: NodeId, name: &'static str, op: Op, out_channels: usize) -> NodeId {
        let Shape { height, width, .. } = self.shape(x);
        let size = |size: usize| match op {
            Op::Convolution { kernel, stride, padding, .. } => strided(size, kernel, stride, padding),
            _ => size,
        };
        let shape = Shape { height: size(height), width: size(width), channels: out_channels };
        self.with_slot(op, x, name, shape)
    }

    fn with_slot(&mut self, op: Op, x: NodeId, name: impl Into<Cow<'static, str>>, shape: Shape) -> NodeId {
        let node = self.push(op, &[x], shape);
        self.slot(node, name.into());
        node
    }

    /// Gives a node tensors.
    pub(super) fn slot(&mut self, node: NodeId, name: Cow<'static, str>) {
        self.graph.slots.push(Slot { node, location: self.graph.locations.len() as u32 - 1, name });
    }

    /// Extent of a node's output.
    pub fn shape(&self, x: NodeId) -> Shape {
        self.graph.node(x).shape
    }

    pub(super) fn push(&mut self, op: Op, inputs: &[NodeId], shape: Shape) -> NodeId {
        let id = NodeId(self.graph.nodes.len() as u32);
        let mut both = [id; 2];
        both[..inputs.len()].copy_from_slice(inputs);
        self.graph.nodes.push(Node { op, inputs: both, arity: inputs.len() as u8, shape, layer: self.layer });
        id
    }
}

/// Outputs along one direction of a window that moves by `stride` over `size` pixels and `padding` on both sides.
pub(super) fn strided(size: usize, window: usize, stride: usize, padding: usize) -> usize {
    (size.saturating_add(2 * padding).saturating_sub(window)) / stride.max(1) + 1
}
