//! Properties of every search space, every subnet and every text.

mod spaces;

use ofa_supernet::graph::{Fragment, Node, Op};
use ofa_supernet::{SearchSpace, Subnet};
use proptest::prelude::*;
use spaces::{cases, space, space_and_subnet};

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn spaces_survive_their_files(space in space()) {
        space.validate().unwrap();
        prop_assert_eq!(&SearchSpace::from_toml(&toml::to_string(&space).unwrap()).unwrap(), &space);
        let json = serde_json::to_string(&space).unwrap();
        prop_assert_eq!(&serde_json::from_str::<SearchSpace>(&json).unwrap(), &space);
        for extreme in [space.smallest(), space.middle(), space.largest()] {
            space.check(&extreme).unwrap();
        }
    }

    #[test]
    fn subnets_survive_their_text((space, subnet) in space_and_subnet()) {
        space.check(&subnet).unwrap();
        prop_assert_eq!(&subnet.to_string().parse::<Subnet>().unwrap(), &subnet);
        for neighbour in space.neighbours(&subnet) {
            space.check(&neighbour).unwrap();
            prop_assert_ne!(&neighbour, &subnet);
            // A reduced depth cannot be undone by one choice; every other change can.
            let shrank = neighbour.blocks().count() < subnet.blocks().count();
            prop_assert!(shrank || space.neighbours(&neighbour).contains(&subnet));
        }
    }

    #[test]
    fn whatever_a_text_says_it_is_read_as_one_subnet_or_refused(text in "r?[0-9]{0,3} ?(w[0-9.,]{0,5} s[0-9])? d[0-9,]{0,5} (k[0-9,|]{0,9} )?e[0-9.,|-]{0,9}|\\PC*") {
        if let Ok(subnet) = text.parse::<Subnet>() {
            prop_assert_eq!(subnet.to_string().parse::<Subnet>().unwrap(), subnet);
        }
    }

    /// Layers fit together, and each block has the chosen kernel and expand ratio.
    #[test]
    fn networks_fit_together((space, subnet) in space_and_subnet()) {
        let network = space.network(&subnet, 7).unwrap();
        prop_assert_eq!((network.resolution, network.classes), (subnet.resolution, 7));
        let (mut channels, mut size) = (3, subnet.resolution);
        for conv in &network.stem {
            prop_assert_eq!((conv.in_channels, conv.input_size), (channels, size));
            prop_assert!(!conv.residual || (conv.stride == 1 && conv.in_channels == conv.out_channels));
            (channels, size) = (conv.out_channels, conv.output_size());
        }
        if let Some(pool) = &network.max_pool {
            prop_assert_eq!((pool.channels, pool.input_size), (channels, size));
            size = pool.output_size();
        }
        for block in network.blocks() {
            prop_assert_eq!((block.in_channels(), block.input_size()), (channels, size));
            // What is known about a block follows from its nodes, which survive their text.
            let graph = block.graph(network.batch_norm_epsilon);
            let fragment = Fragment::of(&graph).unwrap();
            prop_assert_eq!((fragment.input(), fragment.output()), (block.input(), block.output()));
            prop_assert_eq!(&fragment.to_string().parse::<Fragment>().unwrap(), &fragment);
            prop_assert!(block.output_size() == size || block.output_size() == size.div_ceil(2));
            // A block that keeps its input's shape adds the input, or a projection of it.
            let adds = graph.nodes().iter().any(|node| node.op == Op::Add);
            let strided = graph.nodes().iter().any(|node| matches!(node.op, Op::Convolution { stride: 2.., .. }));
            prop_assert!(adds || strided || block.input() != block.output());
            (channels, size) = (block.out_channels(), block.output_size());
        }
        if let Some(feature) = &network.feature {
            prop_assert_eq!((feature.in_channels, feature.input_size), (channels, size));
        }
        let first = usize::from(space.first_block.is_some());
        let elastic = network.stages[first..].iter().flatten();
        prop_assert_eq!(elastic.clone().count(), subnet.blocks().count());
        for (block, choice) in elastic.zip(subnet.blocks()) {
            let graph = block.graph(network.batch_norm_epsilon);
            let convolution = |node: &Node| match node.op {
                Op::Convolution { kernel, .. } => Some((kernel, node.shape.channels)),
                _ => None,
            };
            let convolutions: Vec<(usize, usize)> = graph.nodes().iter().filter_map(convolution).collect();
            prop_assert!(convolutions.iter().any(|(kernel, _)| *kernel == choice.kernel));
            prop_assert!(convolutions.iter().all(|(_, channels)| channels % 8 == 0));
        }
    }
}
