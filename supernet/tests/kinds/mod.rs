//! Block kinds that the crates do not know, for tests.

use ofa_supernet::blocks::{self, BlockSettings, CustomKind};
use ofa_supernet::graph::{Builder, NodeId};
use ofa_supernet::space::{Activation, reduced_channels};
use std::sync::Once;

/// A convolution that expands, perhaps squeeze-excite, and a projection.
fn fused(settings: &BlockSettings, b: &mut Builder, x: NodeId) {
    let (middle, activation) = (settings.middle_channels(), settings.activation);
    let kernel = (settings.kernel, settings.stride);
    let mut y = b.convolution_norm_activation(x, ("conv_exp", "bn1"), middle, kernel, 1, activation);
    if settings.squeeze_excite {
        let factors = factors(b, y, middle);
        y = b.gate(y, factors);
    }
    let y =
        b.convolution_norm_activation(y, ("conv_pwl", "bn2"), settings.out_channels, (1, 1), 1, Activation::Identity);
    if settings.keeps_shape() {
        b.add(y, x);
    }
}

/// Maps that several nodes read, sums and products before a dense convolution, a projection that only some widths need.
fn winding(settings: &BlockSettings, b: &mut Builder, x: NodeId) {
    let (middle, out, activation) = (settings.middle_channels(), settings.out_channels, settings.activation);
    let y = b.convolution_norm_activation(x, ("conv1", "bn1"), middle, (1, 1), 1, activation);
    let kernel = (settings.kernel, settings.stride);
    let mut y = b.convolution_norm_activation(y, ("conv2", "bn2"), middle, kernel, middle, Activation::Identity);
    if settings.squeeze_excite {
        let factors = factors(b, y, middle);
        let gated = b.gate(y, factors);
        y = b.add(gated, y);
    }
    y = b.activation(y, Activation::Relu6);
    y = b.convolution_norm_activation(y, ("conv3", "bn3"), out, (3, 1), 1, activation);
    let mut shortcut = x;
    if !settings.keeps_shape() {
        shortcut = b.average_pool(x, settings.stride, 0);
        let names = ("downsample.1", "downsample.2");
        shortcut = b.convolution_norm_activation(shortcut, names, out, (1, 1), 1, Activation::Identity);
    }
    let sum = b.add(shortcut, y);
    b.activation(sum, Activation::HardSwish);
}

/// Factors of squeeze-excite.
fn factors(b: &mut Builder, y: NodeId, channels: usize) -> NodeId {
    let pooled = b.global_average_pool(y);
    let reduced = b.pointwise(pooled, "se.conv_reduce", reduced_channels(channels), true);
    let reduced = b.activation(reduced, Activation::Relu);
    let expanded = b.pointwise(reduced, "se.conv_expand", channels, true);
    b.hard_sigmoid(expanded)
}

/// Registers the kinds `fused` and `winding`.
pub fn register() {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        for (name, lower) in [("fused", fused as fn(&BlockSettings, &mut Builder, NodeId)), ("winding", winding)] {
            blocks::register(CustomKind { name, lower }).expect("a free name");
        }
    });
}
