//! The blocks of a static network, with batch norm folded into their convolutions.

use super::network::Buffers;
use super::weights::Checked;
use crate::model::{BOTTLENECK_NAMES, BlockNames};
use ofa_supernet::ops::inference::{DenseConv, Depthwise, Pointwise, average_windows};
use ofa_supernet::space::{Activation, BlockSpec, BottleneckSpec, InvertedResidualSpec};

/// A block's layers; what it is comes with every call, since the map's size can change.
pub(super) enum Block {
    InvertedResidual(InvertedResidual),
    Bottleneck(Bottleneck),
}

impl Block {
    pub(super) fn new(spec: &BlockSpec, weights: &Checked, prefix: &str) -> Self {
        match spec {
            BlockSpec::InvertedResidual(spec) => Block::InvertedResidual(InvertedResidual::new(spec, weights, prefix)),
            BlockSpec::Bottleneck(spec) => Block::Bottleneck(Bottleneck::new(spec, weights, prefix)),
        }
    }

    /// From `buffers.current` to `buffers.next`; `spec` is the block's own, at the map's size.
    pub(super) fn run(&self, spec: &BlockSpec, batch: usize, buffers: &mut Buffers) {
        match (self, spec) {
            (Block::InvertedResidual(block), BlockSpec::InvertedResidual(spec)) => block.run(spec, batch, buffers),
            (Block::Bottleneck(block), BlockSpec::Bottleneck(spec)) => block.run(spec, batch, buffers),
            _ => unreachable!("a network's blocks are built from its own specification"),
        }
    }
}

pub(super) struct InvertedResidual {
    expand: Option<Pointwise>,
    depthwise: Depthwise,
    squeeze_excite: Option<(Pointwise, Pointwise)>,
    project: Pointwise,
}

impl InvertedResidual {
    fn new(spec: &InvertedResidualSpec, weights: &Checked, prefix: &str) -> Self {
        let (input, middle, output) = (spec.in_channels, spec.middle_channels, spec.out_channels);
        let names = BlockNames::of(spec);
        let folded =
            |(conv, norm): (&str, &str)| weights.folded(&format!("{prefix}.{conv}"), &format!("{prefix}.{norm}"));
        let expand = names.expand.map(|names| {
            let (weight, bias) = folded(names);
            Pointwise::new(&weight, &bias, input, middle)
        });
        let (weight, bias) = folded(names.depthwise);
        let depthwise = Depthwise::new(&weight, &bias, middle, spec.kernel, spec.stride);
        let squeeze_excite = spec.squeeze_excite.map(|reduced| {
            let part = |name: &str| weights.get(&format!("{prefix}.se.{name}"));
            (
                Pointwise::new(part("conv_reduce.weight"), part("conv_reduce.bias"), middle, reduced),
                Pointwise::new(part("conv_expand.weight"), part("conv_expand.bias"), reduced, middle),
            )
        });
        let (weight, bias) = folded(names.project);
        let project = Pointwise::new(&weight, &bias, middle, output);
        InvertedResidual { expand, depthwise, squeeze_excite, project }
    }

    fn run(&self, spec: &InvertedResidualSpec, batch: usize, buffers: &mut Buffers) {
        let (size, middle) = (spec.input_size, spec.middle_channels);
        let pixels = spec.output_size() * spec.output_size();
        let input = &buffers.current[..batch * size * size * spec.in_channels];
        let depthwise_input = match &self.expand {
            Some(expand) => {
                let expanded = &mut buffers.expanded[..batch * size * size * middle];
                expand.run(input, batch, size * size, spec.activation, None, None, expanded);
                &*expanded
            }
            None => input,
        };
        let filtered = &mut buffers.filtered[..batch * pixels * middle];
        let gate = match &self.squeeze_excite {
            Some((reduce, expand)) => {
                let pooled = &mut buffers.pooled[..batch * middle];
                self.depthwise.run(depthwise_input, batch, size, size, spec.activation, filtered, Some(pooled));
                let reduced = &mut buffers.reduced[..batch * spec.squeeze_excite.unwrap_or(0)];
                reduce.run(pooled, batch, 1, Activation::Relu, None, None, reduced);
                let gate = &mut buffers.gate[..batch * middle];
                expand.run(reduced, batch, 1, Activation::Identity, None, None, gate);
                for value in gate.iter_mut() {
                    *value = (*value + 3.0).clamp(0.0, 6.0) / 6.0;
                }
                Some(&*gate)
            }
            None => {
                self.depthwise.run(depthwise_input, batch, size, size, spec.activation, filtered, None);
                None
            }
        };
        let output = &mut buffers.next[..batch * pixels * spec.out_channels];
        let residual = spec.residual.then_some(input);
        self.project.run(filtered, batch, pixels, Activation::Identity, gate, residual, output);
    }
}

pub(super) struct Bottleneck {
    first: Pointwise,
    second: DenseConv,
    third: Pointwise,
    /// After the shortcut's average pool.
    shortcut: Option<Pointwise>,
}

impl Bottleneck {
    fn new(spec: &BottleneckSpec, weights: &Checked, prefix: &str) -> Self {
        let [first, second, third, shortcut] = BOTTLENECK_NAMES;
        let folded =
            |(conv, norm): (&str, &str)| weights.folded(&format!("{prefix}.{conv}"), &format!("{prefix}.{norm}"));
        let pointwise = |names, input, output| {
            let (weight, bias) = folded(names);
            Pointwise::new(&weight, &bias, input, output)
        };
        let (input, middle, output) = (spec.in_channels, spec.middle_channels, spec.out_channels);
        let (weight, bias) = folded(second);
        Bottleneck {
            first: pointwise(first, input, middle),
            second: DenseConv::new(&weight, &bias, middle, middle, spec.kernel, spec.stride),
            third: pointwise(third, middle, output),
            shortcut: spec.projection.then(|| pointwise(shortcut, input, output)),
        }
    }

    fn run(&self, spec: &BottleneckSpec, batch: usize, buffers: &mut Buffers) {
        let (size, middle) = (spec.input_size, spec.middle_channels);
        let pixels = spec.output_size() * spec.output_size();
        let input = &buffers.current[..batch * size * size * spec.in_channels];
        let residual = match &self.shortcut {
            Some(shortcut) => {
                let pooled = if spec.stride > 1 {
                    let pooled = &mut buffers.expanded[..batch * pixels * spec.in_channels];
                    average_windows(input, size, size, spec.in_channels, spec.stride, pooled);
                    &*pooled
                } else {
                    input
                };
                let output = &mut buffers.shortcut[..batch * pixels * spec.out_channels];
                shortcut.run(pooled, batch, pixels, Activation::Identity, None, None, output);
                &*output
            }
            None => input,
        };
        let first = &mut buffers.expanded[..batch * size * size * middle];
        self.first.run(input, batch, size * size, spec.activation, None, None, first);
        let second = &mut buffers.filtered[..batch * pixels * middle];
        self.second.run(first, batch, size, size, spec.activation, second);
        let output = &mut buffers.next[..batch * pixels * spec.out_channels];
        self.third.run(second, batch, pixels, spec.activation, None, Some(residual), output);
    }
}
