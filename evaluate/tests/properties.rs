//! Properties of the cost of every subnet of every space.

#[path = "../../supernet/tests/spaces/mod.rs"]
mod spaces;

use ofa_evaluate::cost::{macs, parameters, peak_activation_bytes};
use ofa_evaluate::model::{tensor_shapes, validate};
use ofa_supernet::space::{BlockSpec, Family};
use proptest::prelude::*;
use spaces::{cases, space_and_subnet};

/// What timm's names of a block's tensors begin with.
fn prefix(block: &BlockSpec, stage: usize, place: usize) -> String {
    match block {
        BlockSpec::Bottleneck(_) => format!("layer{}.{place}.", stage + 1),
        _ => format!("blocks.{stage}.{place}."),
    }
}

proptest! {
    #![proptest_config(cases(128))]

    /// The closed formula must equal the number of the tensors' elements in an extracted model.
    #[test]
    fn parameters_are_the_numbers_in_the_tensors((space, subnet) in space_and_subnet()) {
        let network = space.network(&subnet, 5).unwrap();
        validate(&network).unwrap();
        let trainable = tensor_shapes(&network).into_iter().filter(|(name, _)| !name.contains("running"));
        let count: usize = trainable.map(|(_, shape)| shape.iter().product::<usize>()).sum();
        prop_assert_eq!(parameters(&network), count as u64);
    }

    /// Each weight of a convolution is used once per output pixel of its layer, each other weight matrix once.
    #[test]
    fn macs_are_the_uses_of_the_weights((space, subnet) in space_and_subnet()) {
        let network = space.network(&subnet, 5).unwrap();
        let square = |size: usize| (size * size) as u64;
        let blocks: Vec<_> = network.stages.iter().enumerate()
            .flat_map(|(s, blocks)| blocks.iter().enumerate().map(move |(b, block)| (prefix(block, s, b), block)))
            .collect();
        // The stem's convolutions come first.
        let mut stem = network.stem.iter();
        let pooled = square(network.pooled_map().1);
        let tensors = tensor_shapes(&network);
        let projects = |prefix: &str| tensors.iter().any(|(name, _)| *name == format!("{prefix}conv_pwl.weight"));
        let mut uses = 0;
        for (name, shape) in tensors.clone() {
            if shape.len() < 2 {
                continue;
            }
            let block = blocks.iter().find(|(prefix, _)| name.starts_with(prefix));
            let pixels = match (stem.next(), block) {
                (Some(conv), _) => square(conv.output_size()),
                (_, Some(_)) if name.contains(".se.") => 1,
                // The expansion comes before the stride; the projection of a block without expansion is also called
                // conv_pw.
                (_, Some((prefix, block))) if name.ends_with("conv_pw.weight") && projects(prefix) => square(block.input_size()),
                (_, Some((_, block))) if name.ends_with("conv1.weight") => square(block.input_size()),
                (_, Some((_, block))) => square(block.output_size()),
                // The feature convolution; with a hidden layer it is named as one more stage.
                _ if name.starts_with("blocks.") => pooled,
                _ if name.starts_with("conv_head") && network.hidden_channels.is_none() => pooled,
                _ => 1,
            };
            uses += pixels * shape.iter().product::<usize>() as u64;
        }
        prop_assert_eq!(macs(&network), uses);
    }

    /// A larger choice must not cost less, unless wider channels between blocks save a shortcut's projection.
    #[test]
    fn cost_grows_with_every_choice((space, subnet) in space_and_subnet()) {
        let network = space.network(&subnet, 5).unwrap();
        let projects_as_needed =
            space.family == Family::AttentiveNas || space.stages.iter().any(|stage| stage.block.is_some());
        for neighbour in space.neighbours(&subnet) {
            let grew = (!projects_as_needed || neighbour.widths == subnet.widths)
                && neighbour.resolution >= subnet.resolution
                && neighbour.stem_blocks >= subnet.stem_blocks
                && neighbour.widths.iter().zip(&subnet.widths).all(|(new, old)| new >= old)
                && neighbour.stages.iter().zip(&subnet.stages).all(|(new, old)| {
                    new.len() >= old.len()
                        && new.iter().zip(old).all(|(new, old)| new.kernel >= old.kernel && new.expand >= old.expand)
                });
            let other = space.network(&neighbour, 5).unwrap();
            let functions: [fn(&ofa_supernet::NetworkSpec) -> u64; 3] = [macs, parameters, peak_activation_bytes];
            let costs = functions.map(|cost| (cost(&network), cost(&other)));
            let more = costs.iter().all(|(before, after)| after >= before);
            prop_assert!(!grew || more, "{} {}: {:?}", subnet, neighbour, costs);
        }
    }
}
