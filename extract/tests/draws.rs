//! Draws and orders that files and results depend on: the subnets of every preset that a seed draws, genes, features,
//! stages of training and what searches find. Each is a digest of a text; a mismatch prints the text's first lines.

use ofa_evaluate::cost;
use ofa_extract::predictor::features::Features;
use ofa_extract::search::evolution::Evolution;
use ofa_extract::search::genome::Genome;
use ofa_extract::search::{Grid, Pareto, Random};
use ofa_extract::{Limit, Problem, SearchSettings, search};
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::train::sampling::{candidates_of, resolution_of, subnet_of};
use ofa_supernet::train::{Sampling, TrainConfig};
use ofa_supernet::{SearchSpace, Subnet};
use std::fmt::Write;

/// Presets whose draws are known.
const SPACES: [&str; 7] =
    ["mbv3-w1.0", "mbv3-w1.2", "proxyless-w1.3", "resnet50d", "cifar-mbv3", "tiny", "resnet-tiny"];

/// FNV-1a.
fn digest(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Asserts the digests of `text` for the presets whose draws are pinned.
fn assert_digests(text: impl Fn(&SearchSpace) -> String, expected: [u64; 7]) {
    assert_digests_of(SPACES, text, expected);
}

/// Asserts the digests of `text` for some presets.
fn assert_digests_of<const N: usize>(names: [&str; N], text: impl Fn(&SearchSpace) -> String, expected: [u64; N]) {
    let texts: Vec<String> = names.iter().map(|name| text(&SearchSpace::named(name).unwrap())).collect();
    let found: Vec<u64> = texts.iter().map(|text| digest(text)).collect();
    let start = |text: &String| text.lines().take(12).collect::<Vec<_>>().join("\n");
    let differ = texts.iter().zip(&found).zip(expected).filter(|((_, found), expected)| *found != expected);
    let starts: Vec<String> = differ.map(|((text, _), _)| start(text)).collect();
    assert!(starts.is_empty(), "{found:#x?}\n{}", starts.join("\n\n"));
}

fn samples(space: &SearchSpace) -> impl Iterator<Item = Subnet> + '_ {
    (0..40).map(|position| space.sample(&mut generator(7, Stream::Samples, &[position])))
}

#[test]
fn subnets_neighbours_and_counts() {
    let text = |space: &SearchSpace| {
        let mut text = format!("{}\n{}\n{}\n", space.smallest(), space.middle(), space.largest());
        writeln!(text, "{:e} {}", space.count(), space.slots()).unwrap();
        for subnet in samples(space) {
            writeln!(text, "{subnet}").unwrap();
        }
        let neighbours = samples(space).take(3).flat_map(|subnet| space.neighbours(&subnet));
        neighbours.for_each(|neighbour| writeln!(text, "{neighbour}").unwrap());
        text + &toml::to_string(space).unwrap()
    };
    assert_digests(
        text,
        [
            0x9016_d4ce_1879_f39c,
            0x7a3d_99f7_59c9_56e0,
            0x9ee2_970d_6f8b_0522,
            0xe3ac_0b13_8400_036e,
            0xb978_f0a6_3e27_c655,
            0x7fde_0aa5_f4f1_ff40,
            0x1d02_24c5_83cd_0827,
        ],
    );
}

#[test]
fn genes_and_their_changes() {
    let text = |space: &SearchSpace| {
        let genome = Genome::new(space).unwrap();
        let mut text = String::new();
        for (position, subnet) in samples(space).enumerate() {
            let genes = genome.encode(&subnet).unwrap();
            let mut rng = generator(7, Stream::Search, &[position as u64]);
            let mut drawn = genome.sample(&mut rng);
            writeln!(text, "{genes:?} {drawn:?} {}", genome.decode(&drawn)).unwrap();
            let changes = genome.changes(&drawn);
            let active: Vec<usize> = genome.active(&drawn).collect();
            writeln!(text, "{active:?} {changes:?}").unwrap();
            for (place, choice) in changes {
                if genome.is_active(&drawn, place) {
                    genome.set(&mut drawn, place, choice);
                }
            }
            writeln!(text, "{drawn:?} {}", genome.draw(0, &mut rng)).unwrap();
        }
        text
    };
    assert_digests(
        text,
        [
            0xe141_ffc3_5cf9_373b,
            0xe141_ffc3_5cf9_373b,
            0x8fad_e774_b3e8_6355,
            0x7cc8_d08c_1cda_4de1,
            0xfe1e_3cb4_003b_1aa1,
            0x7cda_2617_6ef2_1db2,
            0x2d83_4893_dd8a_97b8,
        ],
    );
}

#[test]
fn features() {
    let text = |space: &SearchSpace| {
        let features = Features::new(space);
        let mut text = format!("{}\n", features.count());
        samples(space).for_each(|subnet| writeln!(text, "{:?}", features.of(&subnet).unwrap()).unwrap());
        text
    };
    assert_digests(
        text,
        [
            0x4906_a975_f1ef_d25d,
            0x4906_a975_f1ef_d25d,
            0x989f_691b_9417_0846,
            0xfdb2_4807_e98c_8d5f,
            0xcbd0_f48c_94a3_8965,
            0xea7d_7fbc_ad87_a61e,
            0xacc1_3cb0_c296_49a2,
        ],
    );
}

#[test]
fn stages_of_training_and_their_draws() {
    let text = |space: &SearchSpace| {
        let mut text = String::new();
        for preset in ["imagenet", "progressive", "tiny"] {
            let config = TrainConfig::preset(preset, space).unwrap();
            text += &toml::to_string(&config).unwrap();
            if preset != "progressive" {
                continue;
            }
            for mut stage in config.stages {
                let choices = stage.choices(space);
                text += &toml::to_string(&choices).unwrap();
                writeln!(text, "{:.9}", stage.relative_cost(space)).unwrap();
                for sampling in [Sampling::Uniform, Sampling::BestUp] {
                    (stage.sampling, stage.subnets_per_step) = (sampling, 3);
                    for step in 0..3 {
                        let resolution = resolution_of(&stage, &choices, 5, step);
                        let drawn = (0..3).map(|index| subnet_of(&stage, &choices, 5, step, index, resolution));
                        let candidates = candidates_of(&stage, &choices, 5, step, 2, resolution).unwrap();
                        drawn.chain(candidates).for_each(|subnet| writeln!(text, "{subnet}").unwrap());
                    }
                }
            }
        }
        text
    };
    assert_digests(
        text,
        [
            0x051b_0be4_02bd_be1b,
            0x1c19_6f8d_8f6b_247f,
            0xaf91_741b_d050_cea7,
            0x3e7e_8ca7_61b5_261b,
            0x282d_5550_4bd1_5d6a,
            0xf5d4_dc9b_53ff_2585,
            0x5d06_c8a8_4d19_c71c,
        ],
    );
}

#[test]
fn what_searches_find() {
    let text = |space: &SearchSpace| {
        let macs = |subnet: &Subnet| Ok(cost::macs(&space.network(subnet, 10)?) as f64);
        let product = |subnet: &Subnet| Ok(macs(subnet)? * subnet.blocks().map(|b| b.expand.value()).product::<f64>());
        let (least, most) = (macs(&space.smallest()).unwrap(), macs(&space.largest()).unwrap());
        let limits = [
            Limit::new("macs", least + 0.3 * (most - least), macs),
            Limit::new("product", 0.5 * product(&space.largest()).unwrap(), product),
        ];
        // Any order of subnets will do that is not an order of their sizes.
        let mut scorer =
            |subnets: &[Subnet]| Ok(subnets.iter().map(|s| (digest(&s.to_string()) >> 40) as f64).collect());
        let mut text = String::new();
        let evolution = Evolution { population: 40, generations: 60, ..Evolution::default() };
        for settings in [
            SearchSettings::Evolution(evolution),
            SearchSettings::Pareto(Pareto { population: 20, generations: 10, ..Pareto::default() }),
            SearchSettings::Random(Random {}),
            SearchSettings::Grid(Grid {}),
        ] {
            let against = [Limit::new("macs", f64::INFINITY, macs)];
            let problem =
                Problem { against: &against, evaluations: Some(600), keep: 5, ..Problem::new(space, &limits, 9) };
            let found = search(&problem, &settings, &mut scorer, &mut |_| ()).unwrap();
            // When the digests were taken, widths were ratios.
            let top = format!("{:?}", found.top).replace("Value(", "Ratio(");
            writeln!(text, "{} {} {top}", found.best, found.evaluations).unwrap();
            found.front.iter().for_each(|point| writeln!(text, "{}", point.subnet).unwrap());
        }
        text
    };
    // Of those with few sizes of images, since the limits are tabulated for each size.
    let names = ["cifar-mbv3", "tiny", "resnet-tiny"];
    assert_digests_of(names, text, [0xfe89_a11c_3729_53cb, 0x0f42_fcb7_a34e_fd1f, 0xa2bc_93b9_9aa2_8f99]);
}
