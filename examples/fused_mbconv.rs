//! A block kind of one's own, with all commands of `ofa`.
//!
//! The fused MBConv block of EfficientNetV2 (Tan and Le, ICML 2021) replaces the 1x1 expansion and the depthwise
//! convolution of an inverted residual by one dense convolution, which is faster where maps are large and channels few.
//! Nothing in the crates knows it. The space in `fused_mbconv.toml` uses it in its first stage, by name:
//!
//! ```sh
//! cargo build --release --example fused_mbconv
//! own=target/release/examples/fused_mbconv
//! $own train --preset tiny --space examples/fused_mbconv.toml --data builtin --out run
//! $own predictor --run run --samples 100
//! $own profile --run run --name laptop
//! $own search --run run --limit laptop:latency=0.4ms
//! $own extract --run run --search-results
//! ofa bench run/models/*
//! ```
//!
//! The model folders describe their blocks node by node, so that the last command is that of the ordinary program.

use ofa_supernet::blocks::{self, BlockSettings, CustomKind};
use ofa_supernet::graph::{Builder, NodeId};
use ofa_supernet::space::{Activation, reduced_channels};
use std::process::ExitCode;

/// A convolution to the middle channels, squeeze-excite where the stage has it, a projection, and a shortcut where
/// input and output have one shape. Names are those of timm's `EdgeResidual`.
fn fused_mbconv(settings: &BlockSettings, builder: &mut Builder, x: NodeId) {
    let (middle, kernel) = (settings.middle_channels(), (settings.kernel, settings.stride));
    let mut y = builder.convolution_norm_activation(x, ("conv_exp", "bn1"), middle, kernel, 1, settings.activation);
    if settings.squeeze_excite {
        let pooled = builder.global_average_pool(y);
        let reduced = builder.pointwise(pooled, "se.conv_reduce", reduced_channels(middle), true);
        let reduced = builder.activation(reduced, Activation::Relu);
        let expanded = builder.pointwise(reduced, "se.conv_expand", middle, true);
        let factors = builder.hard_sigmoid(expanded);
        y = builder.gate(y, factors);
    }
    let projection = ("conv_pwl", "bn2");
    y = builder.convolution_norm_activation(y, projection, settings.out_channels, (1, 1), 1, Activation::Identity);
    if settings.keeps_shape() {
        builder.add(y, x);
    }
}

/// All commands of `ofa`, with the kind.
pub fn main() -> ExitCode {
    blocks::register(CustomKind { name: "fused_mbconv", lower: fused_mbconv }).expect("the only kind of this program");
    ofa::main()
}
