//! Random search spaces for property tests, small enough to build networks of them; and the tests' settings.

use ofa_supernet::blocks::{self, BlockSettings, CustomKind};
use ofa_supernet::graph::{Builder, NodeId};
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::space::{Activation, Family, FirstBlock, Head, Ratio, Stage, Stem, reduced_channels};
use ofa_supernet::{SearchSpace, Subnet};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::RngSeed;
use std::sync::Once;

/// The same cases each time, so that a failure is one for everybody.
pub fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() }
}

/// A non-empty part of `values`, in order.
fn some<T: Clone + std::fmt::Debug + 'static>(values: &[T]) -> impl Strategy<Value = Vec<T>> + use<T> {
    subsequence(values.to_vec(), 1..=values.len().min(3))
}

fn activation() -> impl Strategy<Value = Activation> {
    select(vec![Activation::Relu, Activation::Relu6, Activation::HardSwish])
}

fn stage() -> impl Strategy<Value = Stage> {
    (1usize..24, 1usize..=2, activation(), any::<bool>()).prop_map(|(channels, stride, activation, squeeze_excite)| {
        Stage {
            channels,
            stride,
            activation,
            squeeze_excite,
            block: None,
            depths: Vec::new(),
            kernel_sizes: Vec::new(),
            expand_ratios: Vec::new(),
        }
    })
}

fn ratio(thousandths: u32) -> Ratio {
    Ratio::try_from(f64::from(thousandths) / 1000.0).expect("in range")
}

prop_compose! {
    /// A valid space of MobileNets.
    fn mobilenets()(
        width in 5u32..30,
        resolutions in some(&[8, 9, 12, 16, 23]),
        kernel_sizes in some(&[1, 3, 5, 7]),
        ratios in some(&[500u32, 1000, 1500, 2000, 3333, 6000]),
        depths in some(&[1, 2, 3]),
        (stem, stem_stride, first) in (1usize..24, 1usize..=2, 1usize..24),
        stages in prop::collection::vec(stage(), 1..4),
        (feature_channels, hidden_channels) in (1usize..48, prop::option::of(1usize..48)),
        // Some last stages have a depth of their own.
        last_depth in prop::option::of(1usize..=3),
        activation in activation(),
        mut preset in Just(SearchSpace::named("tiny").expect("a preset")),
    ) -> SearchSpace {
        preset.name = "random".into();
        preset.width_multiplier = f64::from(width) / 20.0;
        (preset.resolutions, preset.kernel_sizes, preset.depths) = (resolutions, kernel_sizes, depths);
        preset.expand_ratios = ratios.into_iter().map(ratio).collect();
        preset.stem = Stem { channels: stem, stride: stem_stride, activation, depths: Vec::new() };
        preset.first_block = Some(FirstBlock { channels: first, activation });
        preset.stages = stages;
        preset.stages.last_mut().expect("one at least").depths.extend(last_depth);
        preset.head = Some(Head { feature_channels, hidden_channels, activation });
        preset
    }
}

prop_compose! {
    /// The same stages with bottlenecks.
    fn resnets()(
        mut space in mobilenets(),
        kernel in select(vec![1usize, 3, 5]),
        widths in some(&[250u32, 500, 750, 1000]),
        ratios in some(&[200u32, 250, 500]),
        stem_depths in some(&[0usize, 1]),
    ) -> SearchSpace {
        (space.family, space.first_block, space.head) = (Family::ResNetD, None, None);
        space.kernel_sizes = vec![kernel];
        space.width_multipliers = widths.into_iter().map(ratio).collect();
        space.expand_ratios = ratios.into_iter().map(ratio).collect();
        // Training frees the stem and the stages together.
        space.stem.depths = if space.depths.len() == 1 { stem_depths[..1].to_vec() } else { stem_depths };
        space.stages.iter_mut().for_each(|stage| stage.squeeze_excite = false);
        space
    }
}

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
        shortcut = b.average_pool(x, settings.stride);
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

prop_compose! {
    /// The same spaces with blocks of kinds that the crates do not know.
    fn customs()(
        mut space in prop_oneof![2 => mobilenets(), 1 => resnets()],
        kinds in prop::collection::vec(select(vec![None, Some("fused"), Some("winding")]), 4),
    ) -> SearchSpace {
        REGISTERED.call_once(|| {
            for (name, lower) in [("fused", fused as fn(&BlockSettings, &mut Builder, NodeId)), ("winding", winding)] {
                blocks::register(CustomKind { name, lower }).expect("a free name");
            }
        });
        for (stage, kind) in space.stages.iter_mut().zip(kinds) {
            stage.block = kind.map(String::from);
        }
        space
    }
}

static REGISTERED: Once = Once::new();

/// A valid space of any kind.
pub fn space() -> impl Strategy<Value = SearchSpace> {
    prop_oneof![2 => mobilenets(), 1 => resnets(), 2 => customs()]
}

/// A space and one of its subnets.
pub fn space_and_subnet() -> impl Strategy<Value = (SearchSpace, Subnet)> {
    (space(), any::<u64>()).prop_map(|(space, seed)| {
        let subnet = space.sample(&mut generator(seed, Stream::Sampling, &[]));
        (space, subnet)
    })
}
