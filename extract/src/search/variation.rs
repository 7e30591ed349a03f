//! Mutation and crossover of candidates.

use super::genome::{Genes, Genome, RESOLUTION};
use rand::Rng;

/// Each gene drawn anew with its probability. A stage that grows gets random blocks.
pub(super) fn mutate(
    genome: &Genome,
    parent: &Genes,
    probability: f64,
    resolution_probability: f64,
    rng: &mut impl Rng,
) -> Genes {
    let mut child = parent.clone();
    for place in genome.shared() {
        if rng.random_bool(if place == RESOLUTION { resolution_probability } else { probability }) {
            child[place] = genome.draw(place, rng);
        }
    }
    for stage in 0..genome.stages() {
        let place = genome.depth_gene(stage);
        let kept = genome.block_genes(&child, stage).end;
        if rng.random_bool(probability) {
            let choice = genome.draw(place, rng);
            genome.set(&mut child, place, choice);
        }
        for place in genome.block_genes(&child, stage) {
            if place >= kept || rng.random_bool(probability) {
                child[place] = genome.draw(place, rng);
            }
        }
    }
    child
}

/// Each gene from one of two parents; a block that only one of them has comes from that one.
pub(super) fn cross(genome: &Genome, first: &Genes, second: &Genes, rng: &mut impl Rng) -> Genes {
    genome.build(|place| {
        let (in_first, in_second) = (genome.is_active(first, place), genome.is_active(second, place));
        if in_first && !(in_second && rng.random()) { first[place] } else { second[place] }
    })
}
