//! Random search spaces for property tests, small enough to build networks of them; and the tests' settings.

#[path = "../kinds/mod.rs"]
mod kinds;

use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::space::{Activation, Family, FirstBlock, Head, Ratio, Stage, Stem};
use ofa_supernet::{SearchSpace, Subnet};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::RngSeed;

/// The same cases each time, so that a failure is one for everybody.
pub fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() }
}

/// A non-empty part of `values`, in order.
fn some<T: Clone + std::fmt::Debug + 'static>(values: &[T]) -> impl Strategy<Value = Vec<T>> + use<T> {
    subsequence(values.to_vec(), 1..=values.len().min(3))
}

fn activation() -> impl Strategy<Value = Activation> {
    select(vec![Activation::Relu, Activation::Relu6, Activation::HardSwish, Activation::Swish])
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
            widths: Vec::new(),
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
        preset.stem = Stem { channels: stem, stride: stem_stride, activation, depths: Vec::new(), widths: Vec::new() };
        preset.first_block = Some(FirstBlock { channels: first, activation });
        preset.stages = stages;
        preset.stages.last_mut().expect("one at least").depths.extend(last_depth);
        preset.head = Some(Head { feature_channels, hidden_channels, activation, widths: Vec::new() });
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

/// A list of widths that ends with `channels`, or none.
fn widths(elastic: bool, channels: usize) -> Vec<usize> {
    let mut widths = if elastic { vec![channels.div_ceil(3), channels.div_ceil(2), channels] } else { Vec::new() };
    widths.dedup();
    widths
}

prop_compose! {
    /// The same stages with elastic channels between them.
    fn attentives()(
        mut space in mobilenets(),
        (uniform_stages, expands) in (any::<bool>(), any::<bool>()),
        elastic in prop::collection::vec(any::<bool>(), 5),
        hidden in 1usize..48,
        activation in activation(),
    ) -> SearchSpace {
        (space.family, space.first_block, space.width_multiplier) = (Family::AttentiveNas, None, 1.0);
        space.uniform_stages = uniform_stages;
        space.stem.widths = widths(elastic[0], space.stem.channels);
        for (stage, &elastic) in space.stages.iter_mut().zip(&elastic[1..]) {
            stage.widths = widths(elastic, stage.channels);
        }
        // A ratio of 1 means no expansion, and stands alone.
        space.expand_ratios.retain(|kept| *kept != ratio(1000));
        if space.expand_ratios.is_empty() {
            space.expand_ratios.push(ratio(2000));
        }
        if !expands {
            space.stages[0].expand_ratios = vec![ratio(1000)];
        }
        let head = space.head.as_mut().expect("MobileNets have a head");
        (head.hidden_channels, head.widths, head.activation) = (Some(hidden), widths(elastic[4], hidden), activation);
        space
    }
}

prop_compose! {
    /// The same spaces with blocks of kinds that the crates do not know.
    fn customs()(
        mut space in prop_oneof![2 => mobilenets(), 1 => resnets()],
        kinds in prop::collection::vec(select(vec![None, Some("fused"), Some("winding")]), 4),
    ) -> SearchSpace {
        kinds::register();
        for (stage, kind) in space.stages.iter_mut().zip(kinds) {
            stage.block = kind.map(String::from);
        }
        space
    }
}

/// A valid space of any kind.
pub fn space() -> impl Strategy<Value = SearchSpace> {
    prop_oneof![2 => mobilenets(), 1 => resnets(), 1 => attentives(), 2 => customs()]
}

/// A space and one of its subnets.
pub fn space_and_subnet() -> impl Strategy<Value = (SearchSpace, Subnet)> {
    (space(), any::<u64>()).prop_map(|(space, seed)| {
        let subnet = space.sample(&mut generator(seed, Stream::Sampling, &[]));
        (space, subnet)
    })
}
