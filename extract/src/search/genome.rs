//! Genome: a subnet as a row of small numbers, which strategies change, compare and remember.
//!
//! The row holds, for each of the space's [places](SearchSpace::places), the index of the value that is chosen there.
//! Genes of places that a subnet lacks, such as those of blocks beyond a stage's depth, cannot change the network: they
//! are always zero and never searched, so that equal networks have equal [`Genes`]. Genes with a single choice are not
//! searched either.

use crate::effects::{Effects, ranges};
use crate::{Error, Result};
use ofa_supernet::space::dimension::{At, assemble};
use ofa_supernet::space::{Dimension, Place};
use ofa_supernet::{SearchSpace, Subnet};
use rand::Rng;
use rustc_hash::FxHashMap;
use std::ops::Range;

/// Candidate; encoded and decoded by its [`Genome`].
pub type Genes = Box<[u16]>;

/// Encoding of the subnets of a search space as genes.
#[derive(Debug, Clone)]
pub struct Genome {
    space: SearchSpace,
    places: Vec<Place>,
    /// Number of choices of each gene.
    choices: Vec<u16>,
    /// Condition under which each gene shapes the network: another gene of at least this value.
    needs: Vec<Option<(usize, u16)>>,
    /// Range after each gene that includes all genes that need it.
    needing: Vec<Range<usize>>,
    /// Genes that are chosen together: those of each block; every other gene by itself.
    groups: Vec<Range<usize>>,
    /// Genes of the input images.
    input: Range<usize>,
    /// Positions of each gene's choices among those of all.
    values: Vec<Range<usize>>,
}

impl Genome {
    /// The genome of `space`.
    ///
    /// # Errors
    /// An invalid space, or one with more than 65,535 choices of one kind.
    pub fn new(space: &SearchSpace) -> Result<Self> {
        space.validate()?;
        let places = space.places();
        let count = |place: &Place| {
            let length = place.values.len().max(1);
            u16::try_from(length).map_err(|_| {
                Error::Search(format!("'{}' has {length} choices of one kind; at most 65535 are searched", space.name))
            })
        };
        let choices = places.iter().map(count).collect::<Result<Vec<u16>>>()?;
        let needs: Vec<_> =
            places.iter().map(|place| place.needs.map(|need| (need.place, need.least as u16))).collect();
        let mut needing = vec![0..0; places.len()];
        let mut groups: Vec<Range<usize>> = Vec::new();
        for (gene, place) in places.iter().enumerate() {
            if let Some((needed, _)) = needs[gene] {
                needing[needed] = needed + 1..gene + 1;
            }
            match groups.last_mut() {
                Some(group) if matches!(place.at, At::Block { .. }) && places[group.start].at == place.at => {
                    group.end += 1;
                }
                _ => groups.push(gene..gene + 1),
            }
        }
        let input = 0..places.iter().take_while(|place| place.at == At::Input).count();
        let values = ranges(&places);
        Ok(Genome { space: space.clone(), places, choices, needs, needing, groups, input, values })
    }

    /// The space.
    pub fn space(&self) -> &SearchSpace {
        &self.space
    }

    /// Number of genes.
    pub fn size(&self) -> usize {
        self.choices.len()
    }

    /// Number of choices of the gene at `place`.
    pub fn choices(&self, place: usize) -> u16 {
        self.choices[place]
    }

    /// Number of [`Effects`].
    pub(super) fn value_count(&self) -> usize {
        self.values.last().map_or(0, |values| values.end)
    }

    /// Positions of the choices of the gene at `place` in [`Effects`].
    pub(super) fn values(&self, place: usize) -> Range<usize> {
        self.values[place].clone()
    }

    /// Dimension that the gene at `place` chooses.
    pub fn dimension(&self, place: usize) -> &'static Dimension {
        self.places[place].dimension
    }

    /// Location in the network that the gene at `place` belongs to.
    pub fn at(&self, place: usize) -> At {
        self.places[place].at
    }

    /// Positions of the genes of the input images.
    pub fn input(&self) -> Range<usize> {
        self.input.clone()
    }

    /// Positions of the genes that are chosen together, in order: those of each block; every other gene by itself.
    pub fn groups(&self) -> &[Range<usize>] {
        &self.groups
    }

    /// Whether other genes need the gene at `place`.
    pub fn is_needed(&self, place: usize) -> bool {
        !self.needing[place].is_empty()
    }

    /// Positions of the genes that have a choice.
    pub fn searched(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.size()).filter(|&place| self.choices[place] > 1)
    }

    /// Whether the network of `genes` has the part that the gene at `place` describes.
    pub fn exists(&self, genes: &[u16], place: usize) -> bool {
        self.needs[place].is_none_or(|(needed, least)| genes[needed] >= least)
    }

    /// Whether the gene at `place` of `genes` shapes the network.
    pub fn is_active(&self, genes: &[u16], place: usize) -> bool {
        self.choices[place] > 1 && self.exists(genes, place)
    }

    /// Positions of the genes that shape the network, ascending.
    pub fn active<'a>(&'a self, genes: &'a [u16]) -> impl Iterator<Item = usize> + 'a {
        (0..self.size()).filter(|&place| self.is_active(genes, place))
    }

    /// Genes that are all zero: the smallest subnet.
    pub fn zeros(&self) -> Genes {
        vec![0; self.size()].into_boxed_slice()
    }

    /// Builds genes in order; `choose` gives the value of each gene that exists given those before it.
    pub fn build(&self, mut choose: impl FnMut(usize) -> u16) -> Genes {
        let mut genes = self.zeros();
        for place in 0..self.size() {
            if self.exists(&genes, place) {
                genes[place] = choose(place);
            }
        }
        genes
    }

    /// Sets a gene. Genes that thereby lose their condition become zero; genes that gain it repeat the block before.
    pub fn set(&self, genes: &mut [u16], place: usize, choice: u16) {
        let before = genes[place];
        genes[place] = choice;
        for other in self.needing[place].clone() {
            let Some((needed, least)) = self.needs[other] else { continue };
            if needed == place && choice < least {
                genes[other] = 0;
            } else if needed == place && before < least {
                genes[other] = self.places[other].repeats.map_or(0, |repeated| genes[repeated]);
            }
        }
    }

    /// Makes the gene at `place` exist, by raising the gene that it needs to the smallest sufficient value.
    pub fn provide(&self, genes: &mut [u16], place: usize) {
        if let Some((needed, least)) = self.needs[place]
            && genes[needed] < least
        {
            self.set(genes, needed, least);
        }
    }

    /// Sets the existing genes in `places` to the digits of `number`.
    pub fn set_number(&self, genes: &mut [u16], places: impl DoubleEndedIterator<Item = usize>, number: usize) {
        let mut rest = number;
        for place in places.rev() {
            let choices = usize::from(self.choices[place]);
            self.set(genes, place, (rest % choices) as u16);
            rest /= choices;
        }
    }

    /// The number whose digits are the genes in `places`.
    pub fn number(&self, genes: &[u16], places: impl Iterator<Item = usize>) -> usize {
        places.fold(0, |number, place| number * usize::from(self.choices[place]) + usize::from(genes[place]))
    }

    /// Number of different numbers that the genes in `places` can represent.
    pub fn numbers(&self, places: impl Iterator<Item = usize>) -> usize {
        places.map(|place| usize::from(self.choices[place])).product()
    }

    /// The genes of `subnet`.
    ///
    /// # Errors
    /// A subnet outside the space.
    pub fn encode(&self, subnet: &Subnet) -> Result<Genes> {
        self.space.check(subnet)?;
        Ok(self.places.iter().map(|place| place.choice(subnet).unwrap_or(0) as u16).collect())
    }

    /// The subnet of `genes`.
    pub fn decode(&self, genes: &[u16]) -> Subnet {
        assemble(&self.places, |gene, _| usize::from(genes[gene]))
    }

    /// Random genes: every active gene uniformly and independently, as in [`SearchSpace::sample`].
    pub fn sample(&self, rng: &mut impl Rng) -> Genes {
        self.build(|place| self.draw(place, rng))
    }

    /// A random choice of the gene at `place`.
    pub fn draw(&self, place: usize, rng: &mut impl Rng) -> u16 {
        rng.random_range(0..self.choices[place])
    }

    /// Changes of one gene that lead to another network: position and choice.
    pub fn changes(&self, genes: &[u16]) -> Vec<(usize, u16)> {
        let of_gene =
            |place: usize| (0..self.choices[place]).filter(move |&c| c != genes[place]).map(move |c| (place, c));
        self.active(genes).flat_map(of_gene).collect()
    }

    /// By how much each single change raises the score, according to the scores in `known`; 0 if one is not known.
    /// Genes of a block that `genes` lack repeat the effects of the block before.
    pub(super) fn effects(&self, genes: &Genes, known: &FxHashMap<Genes, f64>) -> Effects {
        let mut effects = vec![0.0; self.value_count()];
        let Some(score) = known.get(genes) else { return effects };
        for (place, choice) in self.changes(genes) {
            let mut other = genes.clone();
            self.set(&mut other, place, choice);
            effects[self.values[place].start + usize::from(choice)] =
                known.get(&other).map_or(0.0, |other| other - score);
        }
        for place in 0..self.size() {
            if let (false, Some(repeated)) = (self.exists(genes, place), self.places[place].repeats) {
                effects.copy_within(self.values(repeated), self.values[place].start);
            }
        }
        effects
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofa_supernet::seed::{Stream, generator};
    use ofa_supernet::space::PRESETS;
    use std::collections::HashSet;

    #[test]
    fn genes_and_subnets_are_the_same_thing() {
        for name in PRESETS {
            let space = SearchSpace::named(name).unwrap();
            let genome = Genome::new(&space).unwrap();
            assert_eq!(genome.decode(&genome.zeros()), space.smallest());
            for position in 0..50 {
                let mut rng = generator(3, Stream::Search, &[position]);
                let genes = genome.sample(&mut rng);
                let subnet = genome.decode(&genes);
                assert_eq!(genome.encode(&subnet).unwrap(), genes);
                let active: Vec<usize> = (0..genome.size()).filter(|&place| genome.is_active(&genes, place)).collect();
                assert_eq!(genome.active(&genes).collect::<Vec<_>>(), active);
                let changed: HashSet<Subnet> = genome
                    .changes(&genes)
                    .into_iter()
                    .map(|(place, choice)| {
                        let mut other = genes.clone();
                        genome.set(&mut other, place, choice);
                        assert_eq!(genome.encode(&genome.decode(&other)).unwrap(), other, "not canonical");
                        genome.decode(&other)
                    })
                    .collect();
                // Exactly the active genes lead to other networks.
                assert_eq!(changed, space.neighbours(&subnet).into_iter().collect());
                assert_eq!(changed.len(), genome.changes(&genes).len());
            }
        }
    }

    #[test]
    fn every_gene_has_its_dimension() {
        let letters = |name: &str| {
            let genome = Genome::new(&SearchSpace::named(name).unwrap()).unwrap();
            (0..genome.size()).map(|place| genome.dimension(place).letter).collect::<String>()
        };
        assert_eq!(letters("tiny"), "rsdkekedkeke");
        assert_eq!(letters("resnet-tiny"), "rswwwwdkekedkeke");
        // A stage's blocks choose together.
        assert_eq!(letters("attentive-tiny"), "rswwwwwdkedkedke");
    }

    #[test]
    fn stages_with_lists_of_their_own_are_searched_and_written() {
        let mut space = SearchSpace::named("tiny").unwrap();
        space.stages[0].kernel_sizes = vec![3, 5, 7, 9];
        (space.stages[1].expand_ratios, space.stages[1].depths) = (space.expand_ratios[..1].to_vec(), vec![1, 2, 3]);
        let genome = Genome::new(&space).unwrap();
        let mut rng = generator(1, Stream::Search, &[]);
        let subnets: HashSet<Subnet> = (0..500).map(|_| genome.decode(&genome.sample(&mut rng))).collect();
        for subnet in &subnets {
            space.check(subnet).unwrap();
            assert_eq!(genome.decode(&genome.encode(subnet).unwrap()), *subnet);
            assert_eq!(subnet.to_string().parse::<Subnet>().unwrap(), *subnet);
        }
        assert!(subnets.iter().any(|subnet| subnet.stages[0][0].kernel == 9 && subnet.stages[1].len() == 3));
        let stages = [4.0 * 3.0 + (4.0f64 * 3.0).powi(2), 2.0 + 4.0 + 8.0];
        assert_eq!(space.count(), 3.0 * stages[0] * stages[1]);
    }
}
