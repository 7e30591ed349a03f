//! Mutation and crossover of candidates.

use super::genome::{Genes, Genome};
use ofa_supernet::space::dimension::At;
use rand::Rng;

/// Draws each gene again with its probability. A stage that grows gets random blocks.
pub(super) fn mutate(
    genome: &Genome,
    parent: &Genes,
    probability: f64,
    resolution_probability: f64,
    rng: &mut impl Rng,
) -> Genes {
    let mut child = parent.clone();
    for place in 0..genome.size() {
        if !genome.exists(&child, place) {
            continue;
        }
        let probability = if genome.at(place) == At::Input { resolution_probability } else { probability };
        if !genome.exists(parent, place) || rng.random_bool(probability) {
            let choice = genome.draw(place, rng);
            genome.set(&mut child, place, choice);
        }
    }
    child
}

/// Takes each gene from one of two parents; genes of a block that only one parent has come from that parent.
pub(super) fn cross(genome: &Genome, first: &Genes, second: &Genes, rng: &mut impl Rng) -> Genes {
    genome.build(|place| {
        let (in_first, in_second) = (genome.is_active(first, place), genome.is_active(second, place));
        if in_first && !(in_second && rng.random()) { first[place] } else { second[place] }
    })
}

/// Takes each gene from the parent that `from_first` names; genes of a block that only one parent has come from it.
pub(super) fn cross_by(genome: &Genome, first: &Genes, second: &Genes, from_first: &[bool]) -> Genes {
    genome.build(|place| {
        let (in_first, in_second) = (genome.is_active(first, place), genome.is_active(second, place));
        if in_first && (from_first[place] || !in_second) { first[place] } else { second[place] }
    })
}
