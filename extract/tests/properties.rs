//! Properties of every extracted model, every limit and every repair.

#[path = "../../supernet/tests/spaces/mod.rs"]
mod spaces;

use candle_core::{Device, Tensor};
use ofa_evaluate::cost;
use ofa_evaluate::model::{Normalisation, NumberType};
use ofa_extract::search::Limits;
use ofa_extract::search::feasible::{repair, smallest, witness};
use ofa_extract::search::genome::Genome;
use ofa_extract::subnet::{Record, compare, extract};
use ofa_extract::{Constraint, Limit};
use ofa_supernet::network::{Mode, StatisticsCollector};
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::{NetworkSpec, SearchSpace, Subnet, Supernet};
use proptest::prelude::*;
use rand::Rng;
use spaces::{cases, space_and_subnet};

/// With fewer images the variances of maps of one pixel are so small that dividing by them magnifies rounding.
const IMAGES: usize = 16;

fn costs(space: &SearchSpace, subnet: &Subnet) -> [f64; 3] {
    let network = space.network(subnet, 5).unwrap();
    let functions: [fn(&NetworkSpec) -> u64; 3] = [cost::macs, cost::parameters, cost::peak_activation_bytes];
    functions.map(|cost| cost(&network) as f64)
}

proptest! {
    #![proptest_config(cases(24))]

    /// A slice of the supernet as a separate network computes the same as the supernet.
    #[test]
    fn cutting_out_changes_no_logit((space, subnet) in space_and_subnet(), seed in 0u64..1000) {
        let net = Supernet::new(&space, 5, seed).unwrap();
        let r = subnet.resolution;
        let mut rng = generator(seed, Stream::Builtin, &[]);
        let images: Vec<f32> = (0..IMAGES * r * r * 3).map(|_| rng.random_range(-2.0f32..2.0)).collect();
        let tensor = Tensor::from_slice(&images, (IMAGES, r, r, 3), &Device::Cpu).unwrap();
        let mut collector = StatisticsCollector::default();
        net.forward(&tensor, &subnet, Mode::Collect(&mut collector)).unwrap();
        let statistics = collector.finish();
        let labels: Vec<String> = (0..5).map(|i| i.to_string()).collect();
        let normalisation = Normalisation { mean: [0.5; 3], std: [0.25; 3] };
        let folder = tempfile::tempdir().unwrap();
        extract(&net, &subnet, &statistics, &labels, &normalisation, Record::of(NumberType::F32), folder.path()).unwrap();
        let (difference, largest) = compare(&net, &subnet, &statistics, folder.path(), &images).unwrap();
        prop_assert!(difference <= 1e-3 * largest.max(1e-3), "{}: {} of {}", subnet, difference, largest);
    }
}

proptest! {
    #![proptest_config(cases(64))]

    /// Limits anywhere between the costs of the smallest and the largest subnet, one or three at once.
    #[test]
    fn repaired_subnets_meet_their_limits(
        (space, subnet) in space_and_subnet(),
        parts in prop::array::uniform3(0.0f64..1.2),
        seed in any::<u64>(),
        all in any::<bool>(),
    ) {
        let (low, high) = (costs(&space, &space.smallest()), costs(&space, &space.largest()));
        let bounds: Vec<f64> = (0..3).map(|i| low[i] + parts[i] * (high[i] - low[i])).collect();
        let limits: Vec<Limit> = (0..if all { 3 } else { 1 })
            .map(|i| {
                let space = space.clone();
                Limit::new(format!("limit {i}"), bounds[i], move |subnet: &Subnet| Ok(costs(&space, subnet)[i]))
            })
            .collect();
        // The smallest subnet meets all of them.
        let genome = Genome::new(&space).unwrap();
        let rules = Limits::new(&genome, &limits).unwrap();
        let witness = witness(&genome, &rules).unwrap();
        let mut rng = generator(seed, Stream::Search, &[]);
        let genes = genome.encode(&subnet).unwrap();
        let repaired = repair(&genome, &rules, genes, &witness, &mut rng).unwrap();
        for found in [&witness, &repaired].map(|genes| genome.decode(genes)) {
            space.check(&found).unwrap();
            for limit in &limits {
                prop_assert!(limit.value(&found).unwrap() <= limit.bound, "{}: {}", limit.name, found);
            }
        }
    }

    #[test]
    fn nothing_is_smaller_than_the_smallest((space, subnet) in space_and_subnet()) {
        let genome = Genome::new(&space).unwrap();
        for (i, cost) in costs(&space, &subnet).into_iter().enumerate() {
            let limit = [Limit::new("cost", cost, |s: &Subnet| Ok(costs(&space, s)[i]))];
            let (_, least) = smallest(&genome, &Limits::new(&genome, &limit).unwrap(), 0).unwrap();
            prop_assert!(least <= cost);
        }
    }

    #[test]
    fn limits_are_read_as_they_are_written(
        text in "[a-z]{1,5}:(latency|macs|params|memory)=[0-9]{1,4}(\\.[0-9]{1,3})?(us|ms|s|k|M|G|KB|MB)?|\\PC*",
    ) {
        if let Ok(limit) = text.parse::<Constraint>() {
            prop_assert!(limit.limit > 0.0);
            prop_assert_eq!(limit.to_string().parse::<Constraint>().unwrap(), limit);
        }
    }
}
