//! Passes in pieces and over shared layers, compared with separate passes.

use super::forward::Passed;
use super::{DropPath, Gradients, Mode, Supernet, Tape, Trunk};
use crate::graph::Op;
use crate::ops::testing;
use crate::seed::{Stream, generator};
use crate::space::preset;
use crate::{SearchSpace, Subnet};
use candle_core::{Device, Tensor};

fn images(resolution: usize) -> Tensor {
    testing::tensor((4, resolution, resolution, 3), 0)
}

/// The logits of a training pass with their tape and the borders of its blocks; the gradient of their squares' sum.
fn recorded(net: &Supernet, images: &Tensor, trunk: Option<&Trunk>, subnet: &Subnet) -> (Passed, Tape, Tensor) {
    let (mut rng, mut tape) = (generator(0, Stream::Dropout, &[]), Tape::default());
    let mode = Mode::Train { dropout: 0.0, rng: &mut rng, first: 0, drop_path: None, tape: &mut tape };
    let passed = net.forward_from(images, trunk, subnet, mode).unwrap();
    let gradient = (&passed.logits * 2.0).unwrap();
    (passed, tape, gradient)
}

#[test]
fn a_pass_halted_at_any_block_gives_the_bits_of_one_each_piece_for_its_own_parameters() {
    for (name, resolution) in [("tiny", 32), ("cifar-mbv3", 32), ("resnet-tiny", 32), ("proxyless-w1.0", 64)] {
        let space = preset(name).unwrap();
        let net = Supernet::new(&space, 10, 1).unwrap();
        let images = images(resolution);
        for subnet in [space.smallest(), space.middle(), space.largest()] {
            let (passed, tape, gradient) = recorded(&net, &images, None, &subnet);
            let mut whole = Gradients::none(net.parameters().len());
            tape.backward(gradient, &mut whole).unwrap();
            assert_eq!(passed.borders.len(), space.network(&subnet, 10).unwrap().blocks().count());
            for border in passed.borders.iter().step_by(3) {
                let (_, mut tape, gradient) = recorded(&net, &images, None, &subnet);
                let [mut earlier, mut later] = [(); 2].map(|()| Gradients::none(net.parameters().len()));
                let gradient = tape.backward_to(border.records, gradient, &mut later).unwrap().unwrap();
                tape.backward(gradient, &mut earlier).unwrap();
                for (place, parameter) in net.parameters().iter().enumerate() {
                    let (own, other) = if place < border.parameter { (&earlier, &later) } else { (&later, &earlier) };
                    assert!(other.tensors()[place].is_none(), "{name} {subnet}: {}", parameter.name);
                    let bits = |gradients: &Gradients| -> Option<Vec<u32>> {
                        let gradient = gradients.tensors()[place].as_ref()?.flatten_all().unwrap();
                        Some(gradient.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect())
                    };
                    assert_eq!(bits(own), bits(&whole), "{name} {subnet}: {}", parameter.name);
                }
            }
        }
    }
}

/// Gradients of the sum of all subnets' squared logits; with a trunk they go through it once.
fn gradients(net: &Supernet, images: &Tensor, subnets: &[Subnet], trunk: Option<Trunk>) -> Gradients {
    let mut all = Gradients::none(net.parameters().len());
    let mut at_trunk: Option<Tensor> = None;
    for subnet in subnets {
        let (passed, mut tape, gradient) = recorded(net, images, trunk.as_ref(), subnet);
        net.move_running_statistics(subnet, &passed.used).unwrap();
        let own = tape.backward_to(0, gradient, &mut all).unwrap();
        assert_eq!(own.is_some(), trunk.is_some(), "images need no gradient, and a trunk does");
        at_trunk = match (at_trunk, own) {
            (Some(sum), Some(own)) => Some((sum + own).unwrap()),
            (sum, own) => sum.or(own),
        };
    }
    if let Some((trunk, gradient)) = trunk.zip(at_trunk) {
        trunk.tape.backward(gradient, &mut all).unwrap();
    }
    all
}

#[test]
fn a_trunk_gives_the_gradients_and_running_statistics_of_separate_passes() {
    // Of one size, as in a step, and with the same stem.
    let largest_and_smallest = |space: &SearchSpace| {
        let largest = space.largest();
        let Subnet { resolution, widths, stem_blocks, .. } = largest.clone();
        vec![largest, Subnet { resolution, widths, stem_blocks, ..space.smallest() }]
    };
    let cases = [("tiny", 32, Some(2)), ("cifar-mbv3", 27, Some(2)), ("resnet-tiny", 32, Some(1)), ("tiny", 32, None)];
    for (name, resolution, layers) in cases {
        let space = preset(name).unwrap();
        let images = images(resolution);
        let mut subnets = largest_and_smallest(&space);
        if layers.is_none() {
            subnets[1] = subnets[0].clone();
        }
        let [one, other] = [(); 2].map(|()| Supernet::new(&space, 10, 1).unwrap());
        let trunk = other.trunk(&images, &subnets, None).unwrap().unwrap();
        let half = 1 + space.network(&subnets[1], 10).unwrap().middle_block();
        assert_eq!(trunk.layers, layers.unwrap_or(half), "{name}");
        let separate = gradients(&one, &images, &subnets, None);
        let together = gradients(&other, &images, &subnets, Some(trunk));
        let norm = |tensor: &Tensor| tensor.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        let most = separate.tensors().iter().flatten().map(norm).fold(0.0, f32::max);
        for ((parameter, a), b) in one.parameters().iter().zip(separate.tensors()).zip(together.tensors()) {
            let [Some(a), Some(b)] = [a, b] else {
                assert!(a.is_none() && b.is_none(), "{name}: {}", parameter.name);
                continue;
            };
            // Some are zero but for rounding: shifts that the next batch norm takes out again.
            let difference = norm(&(a - b).unwrap());
            assert!(difference <= 1e-5 * norm(a).max(1e-2 * most), "{name} {}: {difference}", parameter.name);
        }
        for subnet in &subnets {
            assert_eq!(one.running_statistics(subnet).unwrap(), other.running_statistics(subnet).unwrap(), "{name}");
        }
    }
}

#[test]
fn a_trunk_ends_in_the_middle_at_the_latest_and_needs_something_in_common() {
    let space = preset("tiny").unwrap();
    let net = Supernet::new(&space, 10, 1).unwrap();
    let layers = |subnets: &[Subnet]| net.trunk(&images(24), subnets, None).unwrap().map(|trunk| trunk.layers);
    let largest = space.largest();
    let network = space.network(&largest, 10).unwrap();
    assert_eq!(layers(&[largest.clone(), largest.clone()]), Some(1 + network.middle_block()));
    assert_eq!(layers(std::slice::from_ref(&largest)), None);
    let smaller = Subnet { resolution: 24, ..space.smallest() };
    assert_eq!(layers(&[largest, smaller]), None);
}

/// The factor of a block's branch for an image is one of its last batch norm's scale and shift.
#[test]
fn an_image_skips_the_branches_of_blocks_with_a_shortcut() {
    for space in ["tiny", "resnet-tiny", "attentive-tiny"] {
        let space = preset(space).unwrap();
        let largest = space.largest();
        let images = testing::tensor((1, 64, 64, 3), 1);
        let (mut skipped, mut kept) = (0, 0);
        for step in 0..6 {
            let drop_path = DropPath { rate: 0.6, seed: 5, step, first: 3 };
            let net = Supernet::new(&space, 10, 1).unwrap();
            let found = gradients_at(&net, &images, &largest, Some(drop_path));
            // The same network with the factors in its weights.
            let network = space.network(&largest, 10).unwrap();
            let blocks: Vec<_> = net.active_blocks(&network).zip(network.blocks()).collect();
            for (place, (block, spec)) in blocks.iter().enumerate() {
                if !spec.graph(1e-5).nodes().iter().any(|node| node.op == Op::Add) {
                    continue;
                }
                let factor = f64::from(drop_path.of_block(place, blocks.len()).factors(1)[0]);
                if factor == 0.0 {
                    skipped += 1
                } else {
                    kept += 1
                }
                // The shortcut's norm of a ResNet comes behind.
                let norms: Vec<_> = block.norms().into_iter().filter(|norm| !norm.name.contains("shortcut")).collect();
                let last = norms[norms.len() - 1].name.clone();
                for parameter in net.parameters().iter().filter(|p| p.name.starts_with(&format!("{last}."))) {
                    parameter.var.set(&(parameter.var.as_detached_tensor() * factor).unwrap()).unwrap();
                }
            }
            let expected = gradients_at(&net, &images, &largest, None);
            for ((name, found), (_, expected)) in found.iter().zip(&expected) {
                // Batch norm over one image cancels most of the gradient.
                let size = expected.iter().fold(1e-5f32, |size, v| size.max(v.abs()));
                for (a, b) in found.iter().zip(expected) {
                    assert!((a - b).abs() < 1e-3 * size, "{}, step {step}, {name}: {a} {b}", space.name);
                }
            }
        }
        assert!(skipped > 0 && kept > 0, "{}: {skipped} {kept}", space.name);
    }
}

/// Logits, and the gradients of the first layer for some gradient at the logits.
fn gradients_at(
    net: &Supernet,
    images: &Tensor,
    subnet: &Subnet,
    drop_path: Option<DropPath>,
) -> Vec<(String, Vec<f32>)> {
    let mut rng = generator(1, Stream::Dropout, &[]);
    let mut tape = Tape::default();
    let mode = Mode::Train { dropout: 0.0, rng: &mut rng, first: 3, drop_path, tape: &mut tape };
    let logits = net.forward(images, subnet, mode).unwrap();
    let at_logits = Tensor::arange(0f32, 10.0, &Device::Cpu).unwrap().reshape((1, 10)).unwrap();
    let mut gradients = Gradients::none(net.parameters().len());
    tape.backward(at_logits, &mut gradients).unwrap();
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let stem = gradients.tensors()[0].as_ref().unwrap();
    vec![("logits".into(), values(&logits)), (net.parameters()[0].name.clone(), values(stem))]
}
