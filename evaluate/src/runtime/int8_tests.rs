//! Networks in integers against their reference, to the bit.

use super::StaticNetwork;
use crate::quantise::{QuantisedNetwork, Scale, node_names, reference};
use ofa_supernet::graph::{Graph, Op};
use ofa_supernet::ops::InstructionSet;
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::space::{NetworkSpec, preset};
use rand::Rng;
use std::collections::HashSet;

#[path = "../../../supernet/kernels/src/testing.rs"]
#[allow(dead_code)] // the file serves several tests
mod kernel_tests;

fn images(spec: &NetworkSpec, batch: usize) -> Vec<f32> {
    let mut rng = generator(19, Stream::Builtin, &[]);
    (0..batch * spec.resolution * spec.resolution * 3).map(|_| rng.random_range(-2.0..2.0)).collect()
}

/// Asserts that the kernels' logits are those of the reference with one thread and with two, timed or not.
#[track_caller]
fn check(network: &QuantisedNetwork, batch: usize, what: &str) {
    let images = images(&network.spec, batch);
    let expected = reference::run(network, &images, batch).unwrap();
    assert!(expected.iter().any(|logit| *logit != expected[0]), "{what}: all logits are equal");
    let mut fast = StaticNetwork::quantised(network).unwrap();
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| assert_eq!(fast.run(&images, batch).unwrap(), expected, "{what}, {threads} threads"));
    }
    let mut times = Vec::new();
    assert_eq!(fast.run_timed(&images, batch, &mut times).unwrap(), expected, "{what}");
    assert_eq!(times.len(), crate::profile::layers(&network.spec).count(), "{what}");
}

fn names(spec: &NetworkSpec, keep: impl Fn(&str, Op) -> bool) -> HashSet<String> {
    let graph = Graph::of(spec);
    let nodes = node_names(&graph).into_iter().zip(graph.nodes());
    nodes.filter(|(name, node)| keep(name, node.op)).map(|(name, _)| name).collect()
}

#[test]
fn logits_are_those_of_the_reference() {
    let spaces = ["tiny", "resnet-tiny", "attentive-tiny"].into_iter();
    for (name, position) in spaces.flat_map(|name| (0..4).map(move |position| (name, position))) {
        let mut space = preset(name).unwrap();
        if name != "tiny" {
            // Odd sizes: windows over the border, in all pools.
            space.resolutions = vec![15, 21];
        }
        let subnet = space.sample(&mut generator(3, Stream::Sampling, &[position]));
        let spec = space.network(&subnet, 7).unwrap();
        let network = QuantisedNetwork::random(&spec, &HashSet::new(), position).unwrap();
        check(&network, 1 + position as usize % 3, &format!("{name} {subnet}"));
    }
}

#[test]
fn every_instruction_set_passes_the_same_tests() {
    kernel_tests::repeat_with_each_instruction_set(&["logits_are_those_of_the_reference"], true);
}

/// Whether a layer, by its name and operation, is of a kind.
type OfKind<'a> = &'a dyn Fn(&str, Op) -> bool;

#[test]
fn layers_that_stay_f32_are_computed_in_their_order() {
    for name in ["tiny", "resnet-tiny", "attentive-tiny"] {
        let space = preset(name).unwrap();
        let spec = space.network(&space.middle(), 5).unwrap();
        let kinds: [(&str, OfKind); 4] = [
            ("ends", &|name, _| ["conv_stem", "classifier", "fc"].contains(&name)),
            ("depthwise", &|_, op| matches!(op, Op::Convolution { groups, .. } if groups > 1)),
            ("pointwise", &|_, op| matches!(op, Op::Convolution { kernel: 1, groups: 1, .. })),
            ("all", &|_, op| matches!(op, Op::Convolution { .. } | Op::Linear)),
        ];
        for (what, keep) in kinds {
            let network = QuantisedNetwork::random(&spec, &names(&spec, keep), 4).unwrap();
            check(&network, 2, &format!("{name} with {what} in f32"));
        }
    }
}

#[test]
fn values_rounded_inside_a_chain_end_it() {
    for name in ["tiny", "resnet-tiny"] {
        let space = preset(name).unwrap();
        let spec = space.network(&space.largest(), 5).unwrap();
        for inside in [Op::BatchNorm, Op::Add] {
            let mut network = QuantisedNetwork::random(&spec, &HashSet::new(), 8).unwrap();
            for (place, name) in names(&spec, |_, op| op == inside).into_iter().enumerate() {
                let scale = Scale { scale: 0.02 + place as f32 * 1e-4, zero_point: 120 };
                network.values.entry(name).or_insert(scale);
            }
            check(&network, 2, &format!("{name} with {inside:?} rounded"));
        }
    }
}

#[test]
fn another_resolution_is_the_same_as_a_network_built_for_it() {
    let space = preset("tiny").unwrap();
    let mut spec = space.network(&space.largest(), 4).unwrap();
    let network = QuantisedNetwork::random(&spec, &HashSet::new(), 2).unwrap();
    let mut resized = StaticNetwork::quantised(&network).unwrap();
    let before = resized.buffer_bytes();
    resized.run(&images(&spec, 1), 1).unwrap();
    spec.set_resolution(spec.resolution + 5);
    resized.set_resolution(spec.resolution).unwrap();
    let network = QuantisedNetwork { spec: spec.clone(), ..network };
    let images = images(&spec, 2);
    assert_eq!(resized.run(&images, 2).unwrap(), reference::run(&network, &images, 2).unwrap());
    // Bytes, but for squeeze-excite and logits.
    let floats = crate::cost::peak_activation_bytes(&spec);
    assert!(before < resized.buffer_bytes() && 2 * resized.buffer_bytes() < floats);
}
