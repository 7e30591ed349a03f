//! A subnet as a row of small numbers, which strategies change, compare and remember.
//!
//! The row holds the index of the resolution and of the number of stem blocks, then of each width multiplier (ResNets only), then for
//! each stage that of its depth and those of kernel and expand ratio of every block that it may have. Genes of blocks beyond the
//! depth cannot change the network: they are always zero and never searched, so that equal networks have equal [`Genes`]. Nor
//! are genes with a single choice.

use crate::{Error, Result};
use ofa_supernet::space::BlockChoice;
use ofa_supernet::{SearchSpace, Subnet};
use rand::Rng;
use std::ops::Range;

/// One candidate; made and read by its [`Genome`].
pub type Genes = Box<[u16]>;

/// Position of the resolution's gene.
pub const RESOLUTION: usize = 0;
/// Position of the gene of the stem's blocks; the width multipliers follow.
pub const STEM: usize = 1;

/// What a gene chooses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Input resolution.
    Resolution,
    /// Blocks in the stem.
    Stem,
    /// A width multiplier.
    Width,
    /// Blocks of a stage.
    Depth,
    /// A block's kernel.
    Kernel,
    /// A block's expand ratio.
    Expand,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 6] = [Kind::Resolution, Kind::Stem, Kind::Width, Kind::Depth, Kind::Kernel, Kind::Expand];
}

/// The genes of one stage.
#[derive(Debug, Clone)]
struct Stage {
    /// Position of the depth gene; kernel and expand ratio of each block follow in pairs.
    start: usize,
    /// Numbers of blocks to choose from, ascending.
    depths: Vec<usize>,
}

/// The genes of a search space.
#[derive(Debug, Clone)]
pub struct Genome {
    space: SearchSpace,
    stages: Vec<Stage>,
    /// Number of choices of each gene.
    choices: Vec<u16>,
}

impl Genome {
    /// The genome of `space`.
    ///
    /// # Errors
    /// An invalid space, or one with more than 65,535 choices of one kind.
    pub fn new(space: &SearchSpace) -> Result<Self> {
        space.validate()?;
        let count = |length: usize| {
            u16::try_from(length).map_err(|_| {
                Error::Search(format!("'{}' has {length} choices of one kind; at most 65535 are searched", space.name))
            })
        };
        let (kernels, expands) = (count(space.kernel_sizes.len())?, count(space.expand_ratios.len())?);
        let mut choices = vec![count(space.resolutions.len())?, count(space.stem.depths.len().max(1))?];
        choices.extend(vec![count(space.width_multipliers.len())?; space.width_choices()]);
        let mut stages = Vec::with_capacity(space.stages.len());
        for stage in 0..space.stages.len() {
            let stage = Stage { start: choices.len(), depths: space.stage_depths(stage).to_vec() };
            choices.push(count(stage.depths.len())?);
            for _ in 0..*stage.depths.last().expect("validated: a stage has a depth") {
                choices.extend([kernels, expands]);
            }
            stages.push(stage);
        }
        Ok(Genome { space: space.clone(), stages, choices })
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

    /// Positions of the width multipliers' genes.
    pub fn widths(&self) -> Range<usize> {
        STEM + 1..self.stages[0].start
    }

    /// Positions of the genes before the first stage's.
    pub fn shared(&self) -> Range<usize> {
        RESOLUTION..self.stages[0].start
    }

    /// Number of stages.
    pub fn stages(&self) -> usize {
        self.stages.len()
    }

    /// Position of a stage's depth gene.
    pub fn depth_gene(&self, stage: usize) -> usize {
        self.stages[stage].start
    }

    /// Position of the kernel gene of a block; the expand ratio's is the next.
    pub fn block_gene(&self, stage: usize, block: usize) -> usize {
        self.stages[stage].start + 1 + 2 * block
    }

    /// Positions of the kernel and expand genes of the blocks that a stage of `genes` has.
    pub fn block_genes(&self, genes: &[u16], stage: usize) -> Range<usize> {
        self.block_gene(stage, 0)..self.block_gene(stage, self.depth(genes, stage))
    }

    /// Numbers of blocks that a stage may have.
    pub fn depths(&self, stage: usize) -> &[usize] {
        &self.stages[stage].depths
    }

    /// Number of blocks of a stage of `genes`.
    pub fn depth(&self, genes: &[u16], stage: usize) -> usize {
        let stage = &self.stages[stage];
        stage.depths[usize::from(genes[stage.start])]
    }

    /// The stage that the gene at `place` belongs to, if any.
    fn stage_of(&self, place: usize) -> Option<usize> {
        self.stages.iter().rposition(|stage| stage.start <= place)
    }

    /// What the gene at `place` chooses.
    pub fn kind(&self, place: usize) -> Kind {
        match (place, self.stage_of(place)) {
            (RESOLUTION, _) => Kind::Resolution,
            (STEM, _) => Kind::Stem,
            (_, None) => Kind::Width,
            (_, Some(stage)) => match place - self.stages[stage].start {
                0 => Kind::Depth,
                within if within % 2 == 1 => Kind::Kernel,
                _ => Kind::Expand,
            },
        }
    }

    /// Positions of the genes that have a choice.
    pub fn searched(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.size()).filter(|&place| self.choices[place] > 1)
    }

    /// Whether the gene at `place` of `genes` shapes the network.
    pub fn is_active(&self, genes: &[u16], place: usize) -> bool {
        self.choices[place] > 1 && self.stage_of(place).is_none_or(|stage| place < self.block_genes(genes, stage).end)
    }

    /// Positions of the genes that shape the network, ascending.
    pub fn active<'a>(&'a self, genes: &'a [u16]) -> impl Iterator<Item = usize> + 'a {
        let of_stage = move |s: usize| self.stages[s].start..self.block_genes(genes, s).end;
        let places = self.shared().chain((0..self.stages.len()).flat_map(of_stage));
        places.filter(|&place| self.choices[place] > 1)
    }

    /// Genes that are all zero: the smallest subnet.
    pub fn zeros(&self) -> Genes {
        vec![0; self.size()].into_boxed_slice()
    }

    /// Genes of which `choose` gives each that exists, in order, from those before it.
    pub fn build(&self, mut choose: impl FnMut(usize) -> u16) -> Genes {
        let mut genes = self.zeros();
        for place in self.shared() {
            genes[place] = choose(place);
        }
        for stage in 0..self.stages.len() {
            let depth = self.depth_gene(stage);
            genes[depth] = choose(depth);
            for place in self.block_genes(&genes, stage) {
                genes[place] = choose(place);
            }
        }
        genes
    }

    /// Sets a gene. Where it is a depth, blocks that vanish become zero and new ones repeat the stage's last block.
    pub fn set(&self, genes: &mut [u16], place: usize, choice: u16) {
        let Some(stage) = self.stages.iter().position(|s| s.start == place) else {
            genes[place] = choice;
            return;
        };
        let before = self.depth(genes, stage);
        genes[place] = choice;
        let after = self.depth(genes, stage);
        let last = self.block_gene(stage, before - 1);
        for block in before..after {
            genes.copy_within(last..last + 2, self.block_gene(stage, block));
        }
        if after < before {
            genes[self.block_gene(stage, after)..self.block_gene(stage, before)].fill(0);
        }
    }

    /// The genes of `subnet`.
    ///
    /// # Errors
    /// A subnet outside the space.
    pub fn encode(&self, subnet: &Subnet) -> Result<Genes> {
        self.space.check(subnet)?;
        fn index<T: PartialEq>(choices: &[T], value: &T) -> u16 {
            choices.iter().position(|c| c == value).expect("checked: the subnet lies in the space") as u16
        }
        let mut genes = self.zeros();
        genes[RESOLUTION] = index(&self.space.resolutions, &subnet.resolution);
        if !self.space.stem.depths.is_empty() {
            genes[STEM] = index(&self.space.stem.depths, &subnet.stem_blocks);
        }
        for (place, width) in self.widths().zip(&subnet.widths) {
            genes[place] = index(&self.space.width_multipliers, width);
        }
        for (s, (stage, blocks)) in self.stages.iter().zip(&subnet.stages).enumerate() {
            genes[stage.start] = index(&stage.depths, &blocks.len());
            for (b, block) in blocks.iter().enumerate() {
                let place = self.block_gene(s, b);
                genes[place] = index(&self.space.kernel_sizes, &block.kernel);
                genes[place + 1] = index(&self.space.expand_ratios, &block.expand);
            }
        }
        Ok(genes)
    }

    /// The subnet of `genes`.
    pub fn decode(&self, genes: &[u16]) -> Subnet {
        let block = |place: usize| BlockChoice {
            kernel: self.space.kernel_sizes[usize::from(genes[place])],
            expand: self.space.expand_ratios[usize::from(genes[place + 1])],
        };
        let blocks = |stage: usize| self.block_genes(genes, stage).step_by(2).map(block).collect();
        Subnet {
            resolution: self.space.resolutions[usize::from(genes[RESOLUTION])],
            stem_blocks: self.space.stem.depths.get(usize::from(genes[STEM])).copied().unwrap_or(0),
            widths: self.widths().map(|place| self.space.width_multipliers[usize::from(genes[place])]).collect(),
            stages: (0..self.stages.len()).map(blocks).collect(),
        }
    }

    /// Random genes: every active one uniformly and alone, as [`SearchSpace::sample`].
    pub fn sample(&self, rng: &mut impl Rng) -> Genes {
        self.build(|place| self.draw(place, rng))
    }

    /// A random choice of the gene at `place`.
    pub fn draw(&self, place: usize, rng: &mut impl Rng) -> u16 {
        rng.random_range(0..self.choices[place])
    }

    /// The changes of one gene that lead to another network: position and choice.
    pub fn changes(&self, genes: &[u16]) -> Vec<(usize, u16)> {
        let of_gene =
            |place: usize| (0..self.choices[place]).filter(move |&c| c != genes[place]).map(move |c| (place, c));
        self.active(genes).flat_map(of_gene).collect()
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
                // Active genes and no others lead to other networks.
                assert_eq!(changed, space.neighbours(&subnet).into_iter().collect());
                assert_eq!(changed.len(), genome.changes(&genes).len());
            }
        }
    }

    #[test]
    fn every_gene_has_its_kind() {
        let kinds = |name: &str| {
            let genome = Genome::new(&SearchSpace::named(name).unwrap()).unwrap();
            (0..genome.size()).map(|place| format!("{:?}", genome.kind(place))).collect::<Vec<_>>().join(" ")
        };
        let blocks = "Kernel Expand Kernel Expand";
        assert_eq!(kinds("tiny"), format!("Resolution Stem Depth {blocks} Depth {blocks}"));
        assert_eq!(
            kinds("resnet-tiny"),
            format!("Resolution Stem Width Width Width Width Depth {blocks} Depth {blocks}")
        );
    }
}
