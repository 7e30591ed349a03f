//! Parts of a genome: the stem, each stage, and what follows the stages. Most costs add up over them.

use super::genome::Genome;
use ofa_supernet::space::dimension::At;
use std::ops::Range;

/// Genes of the stem, of a stage, or of the layers after the last stage.
#[derive(Debug, Clone, Default)]
pub(super) struct Part {
    /// Genes of the elastic boundaries before and after the part.
    pub around: Vec<usize>,
    /// Number of values of the boundary before the part; 1 if it is not elastic.
    pub before: usize,
    /// Number of values of the boundary after the part; 1 if it is not elastic.
    pub after: usize,
    /// Genes of the part as a whole.
    pub own: Range<usize>,
    /// Genes of each block, and the index of its first entry.
    pub blocks: Vec<(Range<usize>, usize)>,
}

/// The parts of a genome: the stem, the stages, and what follows them if it has a boundary of its own.
pub(super) fn parts(genome: &Genome) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let mut boundaries = Vec::new();
    for group in genome.groups() {
        let number = match genome.at(group.start) {
            At::Input => continue,
            At::Stem => 0,
            At::Boundary(number) => {
                let number = genome.space().part_after(number);
                boundaries.push((number, group.start));
                number.saturating_sub(1)
            }
            At::Stage(stage) | At::Block { stage, .. } => stage + 1,
        };
        parts.resize((number + 1).max(parts.len()), Part { before: 1, after: 1, ..Part::default() });
        let part = &mut parts[number];
        match genome.at(group.start) {
            At::Stem | At::Stage(_) if part.own.is_empty() => part.own = group.clone(),
            At::Stem | At::Stage(_) => part.own.end = group.end,
            At::Block { .. } => {
                let before = |(genes, start): &(Range<usize>, usize)| start + genome.numbers(genes.clone());
                let start = part.blocks.last().map_or(0, before);
                part.blocks.push((group.clone(), start));
            }
            At::Input | At::Boundary(_) => {}
        }
    }
    for (number, part) in parts.iter_mut().enumerate() {
        let find = |wanted| boundaries.iter().find(|(boundary, _)| *boundary == wanted).map(|(_, gene)| *gene);
        for (gene, values) in [(find(number), &mut part.before), (find(number + 1), &mut part.after)] {
            if let Some(gene) = gene {
                *values = usize::from(genome.choices(gene));
                part.around.push(gene);
            }
        }
    }
    parts
}

impl Part {
    /// Blocks of the part that exist in `genes`.
    pub fn existing<'a>(
        &'a self,
        genome: &'a Genome,
        genes: &'a [u16],
    ) -> impl Iterator<Item = &'a (Range<usize>, usize)> {
        self.blocks.iter().take_while(|(block, _)| genome.exists(genes, block.start))
    }

    /// Genes of the boundaries.
    pub fn around(&self) -> impl DoubleEndedIterator<Item = usize> + Clone + '_ {
        self.around.iter().copied()
    }
}
