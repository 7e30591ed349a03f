//! Measures that are looked up instead of computed.
//!
//! Most costs of a subnet are, at each resolution, a sum over stem and stages (latency from a device profile, MACs, parameters) or a
//! maximum over them (peak memory), in which each block of a stage counts by itself; with elastic widths, stem and stages also depend
//! on the width before and after them. [`Table::of`] finds that out by asking the measure about single changes and then
//! checking the table on random subnets, so it knows nothing of layers; a measure of another form has no table.

use super::genome::{Genes, Genome, RESOLUTION, STEM};
use crate::Result;
use ofa_supernet::Subnet;
use ofa_supernet::seed::{Stream, generator};
use rayon::prelude::*;

/// Random subnets that each resolution's row is checked on.
const CHECKS: u64 = 24;
/// Relative difference up to which a sum of table entries counts as the measure's own value.
pub(super) const PRECISION: f64 = 1e-9;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    Sum,
    Max,
}

impl Form {
    fn combine(self, a: f64, b: f64) -> f64 {
        match self {
            Form::Sum => a + b,
            Form::Max => a.max(b),
        }
    }

    fn neutral(self) -> f64 {
        match self {
            Form::Sum => 0.0,
            Form::Max => f64::NEG_INFINITY,
        }
    }
}

/// A measure of every subnet of a space.
#[derive(Debug, Clone)]
pub struct Table {
    form: Form,
    /// A row a resolution.
    rows: Vec<Row>,
}

/// What the parts of the network add at one resolution: the stem, then each stage; in each, by the widths around it.
type Row = Vec<Vec<Entries>>;

/// What one part adds between two widths.
#[derive(Debug, Clone)]
struct Entries {
    /// By its number of blocks.
    depth: Vec<f64>,
    /// By block, kernel and expand ratio.
    block: Vec<f64>,
}

/// Number of widths before or after a part; 1 where they are not elastic.
fn width_choices(genome: &Genome) -> usize {
    genome.widths().next().map_or(1, |place| usize::from(genome.choices(place)))
}

/// Positions of the genes of the widths before and after a part.
fn widths_around(genome: &Genome, part: usize) -> Option<[usize; 2]> {
    let mut widths = genome.widths().skip(part);
    Some([widths.next()?, widths.next()?])
}

/// Which of a part's entries the widths in `genes` ask for.
fn between(genome: &Genome, genes: &[u16], part: usize) -> usize {
    let Some(widths) = widths_around(genome, part) else { return 0 };
    let [before, after] = widths.map(|place| usize::from(genes[place]));
    before * width_choices(genome) + after
}

/// Position of the gene of a part's number of blocks.
fn depth_gene(genome: &Genome, part: usize) -> usize {
    if part == 0 { STEM } else { genome.depth_gene(part - 1) }
}

/// Numbers of elastic blocks that a part may have: the stem's have no choices of their own and count as none.
fn depths(genome: &Genome, part: usize) -> Vec<usize> {
    if part == 0 { vec![0; usize::from(genome.choices(STEM))] } else { genome.depths(part - 1).to_vec() }
}

impl Table {
    /// The table of `measure`, or `None` when it is neither a sum nor a maximum over parts and blocks.
    ///
    /// # Errors
    /// What `measure` says.
    pub fn of(genome: &Genome, measure: &(dyn Fn(&Subnet) -> Result<f64> + Sync)) -> Result<Option<Self>> {
        for form in [Form::Sum, Form::Max] {
            // One resolution tells at little cost that the form is wrong.
            let row = |resolution| row(genome, form, resolution, measure);
            if row(0)?.is_none() {
                continue;
            }
            let rows = (0..genome.choices(RESOLUTION)).into_par_iter().map(row).collect::<Result<Vec<_>>>()?;
            if let Some(rows) = rows.into_iter().collect() {
                return Ok(Some(Table { form, rows }));
            }
        }
        Ok(None)
    }

    /// The value of `genes`.
    pub fn value(&self, genome: &Genome, genes: &[u16]) -> f64 {
        value(genome, self.form, &self.rows[usize::from(genes[RESOLUTION])], genes)
    }

    /// The subnet with the smallest value: exact, as blocks do not depend on one another, and parts only on the width between them.
    pub fn smallest(&self, genome: &Genome) -> Genes {
        let widths = width_choices(genome);
        let mut best: Option<(f64, Genes)> = None;
        for (resolution, row) in self.rows.iter().enumerate() {
            let mut start = genome.zeros();
            start[RESOLUTION] = resolution as u16;
            // By the width reached, the smallest value of the parts so far, and their genes.
            let mut reached = vec![(self.form.neutral(), start); widths];
            for (part, entries) in row.iter().enumerate() {
                let extended = |after: usize| {
                    let from = |before: usize| {
                        let (value, genes) = &reached[before];
                        let mut genes = genes.clone();
                        if let Some(around) = widths_around(genome, part) {
                            around.into_iter().zip([before, after]).for_each(|(place, w)| genes[place] = w as u16);
                        }
                        let added = self.cheapest(genome, part, &entries[before * widths + after], &mut genes);
                        (self.form.combine(*value, added), genes)
                    };
                    (0..widths).map(from).min_by(|a, b| a.0.total_cmp(&b.0)).expect("there is a width")
                };
                reached = (0..widths).map(extended).collect();
            }
            best = best.into_iter().chain(reached).min_by(|a, b| a.0.total_cmp(&b.0));
        }
        best.expect("a space has a resolution").1
    }

    /// Gives `part` the genes with the smallest value, and returns that.
    fn cheapest(&self, genome: &Genome, part: usize, entries: &Entries, genes: &mut Genes) -> f64 {
        let depths = depths(genome, part);
        let blocks: Vec<(f64, u16, u16)> =
            (0..depths[depths.len() - 1]).map(|block| cheapest_block(genome, part, entries, block)).collect();
        let total = |choice: usize| {
            let blocks = blocks[..depths[choice]].iter();
            blocks.fold(entries.depth[choice], |sum, block| self.form.combine(sum, block.0))
        };
        let totals = (0..depths.len()).map(|choice| (total(choice), choice));
        let (value, depth) = totals.min_by(|a, b| a.0.total_cmp(&b.0)).expect("a part has a depth");
        genes[depth_gene(genome, part)] = depth as u16;
        for (block, &(_, kernel, expand)) in blocks[..depths[depth]].iter().enumerate() {
            let place = genome.block_gene(part - 1, block);
            (genes[place], genes[place + 1]) = (kernel, expand);
        }
        value
    }

    /// The expected value when every gene is drawn alone with `probabilities`; `None` if the measure is no sum.
    pub fn expected(&self, genome: &Genome, probabilities: &[Vec<f64>]) -> Option<f64> {
        if self.form != Form::Sum {
            return None;
        }
        let widths = width_choices(genome);
        let mut expected = 0.0;
        for (row, p_resolution) in self.rows.iter().zip(&probabilities[RESOLUTION]) {
            for (part, entries) in row.iter().enumerate() {
                for (between, entries) in entries.iter().enumerate() {
                    let p_widths = widths_around(genome, part).map_or(1.0, |[before, after]| {
                        probabilities[before][between / widths] * probabilities[after][between % widths]
                    });
                    expected += p_resolution * p_widths * expected_part(genome, part, entries, probabilities);
                }
            }
        }
        Some(expected)
    }
}

/// Value, kernel and expand ratio of a block's cheapest choice.
fn cheapest_block(genome: &Genome, part: usize, entries: &Entries, block: usize) -> (f64, u16, u16) {
    let place = genome.block_gene(part - 1, block);
    let mut best = (f64::INFINITY, 0, 0);
    for kernel in 0..genome.choices(place) {
        for expand in 0..genome.choices(place + 1) {
            let value = entries.block[block_entry(genome, place, block, kernel, expand)];
            if value < best.0 {
                best = (value, kernel, expand);
            }
        }
    }
    best
}

fn expected_part(genome: &Genome, part: usize, entries: &Entries, probabilities: &[Vec<f64>]) -> f64 {
    let (mut sum, mut blocks, mut done) = (0.0, 0.0, 0);
    let depths = depths(genome, part);
    for (choice, p_depth) in probabilities[depth_gene(genome, part)].iter().enumerate() {
        for block in done..depths[choice] {
            let place = genome.block_gene(part - 1, block);
            for (kernel, p_kernel) in probabilities[place].iter().enumerate() {
                for (expand, p_expand) in probabilities[place + 1].iter().enumerate() {
                    let entry = block_entry(genome, place, block, kernel as u16, expand as u16);
                    blocks += p_kernel * p_expand * entries.block[entry];
                }
            }
        }
        done = depths[choice];
        sum += p_depth * (entries.depth[choice] + blocks);
    }
    sum
}

fn block_entry(genome: &Genome, place: usize, block: usize, kernel: u16, expand: u16) -> usize {
    let (kernels, expands) = (usize::from(genome.choices(place)), usize::from(genome.choices(place + 1)));
    (block * kernels + usize::from(kernel)) * expands + usize::from(expand)
}

fn value(genome: &Genome, form: Form, row: &Row, genes: &[u16]) -> f64 {
    let mut sum = form.neutral();
    for (part, entries) in row.iter().enumerate() {
        let entries = &entries[between(genome, genes, part)];
        sum = form.combine(sum, entries.depth[usize::from(genes[depth_gene(genome, part)])]);
        if part > 0 {
            for (block, place) in genome.block_genes(genes, part - 1).step_by(2).enumerate() {
                let entry = block_entry(genome, place, block, genes[place], genes[place + 1]);
                sum = form.combine(sum, entries.block[entry]);
            }
        }
    }
    sum
}

/// The row of one resolution, or `None` if the measure does not have the form.
///
/// A sum is told by differences to the subnet with the most blocks, a maximum by single blocks in an otherwise smallest subnet.
fn row(
    genome: &Genome,
    form: Form,
    resolution: u16,
    measure: &(dyn Fn(&Subnet) -> Result<f64> + Sync),
) -> Result<Option<Row>> {
    let measure = |genes: &[u16]| measure(&genome.decode(genes));
    let mut origin = genome.zeros();
    origin[RESOLUTION] = resolution;
    if form == Form::Sum {
        for stage in 0..genome.stages() {
            genome.set(&mut origin, genome.depth_gene(stage), genome.depths(stage).len() as u16 - 1);
        }
    }
    let widths = width_choices(genome);
    let mut row = Vec::with_capacity(1 + genome.stages());
    for part in 0..=genome.stages() {
        let mut entries = Vec::with_capacity(widths * widths);
        // Sum: what the part's first width alone makes of the whole, which the part before has counted.
        let mut counted = 0.0;
        for before in 0..widths {
            for after in 0..widths {
                let mut genes = origin.clone();
                if let Some(around) = widths_around(genome, part) {
                    around.into_iter().zip([before, after]).for_each(|(place, width)| genes[place] = width as u16);
                }
                let whole = measure(&genes)?;
                if after == 0 && part > 0 {
                    counted = whole;
                }
                entries.push(part_entries(genome, form, part, &genes, whole, whole - counted, &measure)?);
            }
        }
        row.push(entries);
    }
    for check in 0..CHECKS {
        let mut genes = genome.sample(&mut generator(0, Stream::TableCheck, &[check]));
        genes[RESOLUTION] = resolution;
        let exact = measure(&genes)?;
        if (value(genome, form, &row, &genes) - exact).abs() > PRECISION * exact.abs() {
            return Ok(None);
        }
    }
    Ok(Some(row))
}

/// The entries of `part` in the network `origin` of value `whole`, of which `own` is the part's.
fn part_entries(
    genome: &Genome,
    form: Form,
    part: usize,
    origin: &Genes,
    whole: f64,
    own: f64,
    measure: &dyn Fn(&[u16]) -> Result<f64>,
) -> Result<Entries> {
    let mut entries = Entries { depth: Vec::new(), block: Vec::new() };
    let (depths, depth_gene) = (depths(genome, part), depth_gene(genome, part));
    for choice in 0..depths.len() {
        let mut genes = origin.clone();
        genome.set(&mut genes, depth_gene, choice as u16);
        let value = measure(&genes)?;
        entries.depth.push(match form {
            Form::Sum => value - whole + own,
            Form::Max => value,
        });
    }
    for block in 0..depths[depths.len() - 1] {
        let mut genes = origin.clone();
        if genome.depth(&genes, part - 1) <= block {
            let deep_enough = depths.iter().position(|&depth| depth > block).expect("below the largest depth");
            genome.set(&mut genes, depth_gene, deep_enough as u16);
        }
        let place = genome.block_gene(part - 1, block);
        for kernel in 0..genome.choices(place) {
            for expand in 0..genome.choices(place + 1) {
                (genes[place], genes[place + 1]) = (kernel, expand);
                let value = measure(&genes)?;
                entries.block.push(match form {
                    Form::Sum => value - whole,
                    Form::Max => value,
                });
            }
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Constraint, Measures};
    use ofa_supernet::SearchSpace;

    #[test]
    fn costs_have_tables_that_equal_them() {
        for name in ["tiny", "cifar-mbv3", "mbv3-w1.2", "resnet-tiny"] {
            let space = SearchSpace::named(name).unwrap();
            let genome = Genome::new(&space).unwrap();
            let measures = Measures::new(&space, 10, Vec::new());
            for (limit, form) in [
                ("any:macs=1M", Form::Sum),
                ("any:params=1M", Form::Sum),
                ("any:size=1MB", Form::Sum),
                ("any:memory=1MB", Form::Max),
            ] {
                let constraint: Constraint = limit.parse().unwrap();
                let measure = |subnet: &Subnet| measures.value(&constraint, subnet);
                let table = Table::of(&genome, &measure).unwrap().unwrap();
                assert_eq!(table.form, form, "{name} {limit}");
                for position in 0..100 {
                    let genes = genome.sample(&mut generator(1, Stream::Search, &[position]));
                    assert_eq!(
                        table.value(&genome, &genes),
                        measure(&genome.decode(&genes)).unwrap(),
                        "{name} {limit}"
                    );
                }
                let smallest = genome.decode(&table.smallest(&genome));
                assert_eq!(measure(&smallest).unwrap(), measure(&space.smallest()).unwrap(), "{name} {limit}");
            }
        }
    }

    #[test]
    fn an_expected_value_is_the_mean_of_draws() {
        for name in ["tiny", "resnet-tiny"] {
            let space = SearchSpace::named(name).unwrap();
            let genome = Genome::new(&space).unwrap();
            let measures = Measures::new(&space, 10, Vec::new());
            let constraint: Constraint = "any:macs=1M".parse().unwrap();
            let measure = |subnet: &Subnet| measures.value(&constraint, subnet);
            let table = Table::of(&genome, &measure).unwrap().unwrap();
            let uniform = |place| vec![1.0 / f64::from(genome.choices(place)); usize::from(genome.choices(place))];
            let expected = table.expected(&genome, &(0..genome.size()).map(uniform).collect::<Vec<_>>()).unwrap();
            let mut rng = generator(1, Stream::Search, &[]);
            let draws = 20_000;
            let sum: f64 = (0..draws).map(|_| table.value(&genome, &genome.sample(&mut rng))).sum();
            assert!((sum / f64::from(draws) / expected - 1.0).abs() < 0.01);
        }
    }

    /// Sums of arbitrary numbers, so that nothing about small choices being cheap helps.
    fn arbitrary(subnet: &Subnet) -> f64 {
        let number = |what: &dyn std::fmt::Debug| {
            let mut hasher = std::hash::DefaultHasher::new();
            std::hash::Hash::hash(&format!("{what:?}"), &mut hasher);
            (std::hash::Hasher::finish(&hasher) % 1000) as f64
        };
        let around = |part: usize| subnet.widths.get(part..part + 2).map(<[_]>::to_vec);
        let mut sum = number(&(subnet.resolution, subnet.stem_blocks, around(0)));
        for (stage, blocks) in subnet.stages.iter().enumerate() {
            sum += number(&(subnet.resolution, stage, around(stage + 1), blocks.len()));
            for block in blocks.iter().enumerate() {
                sum += number(&(subnet.resolution, stage, around(stage + 1), block));
            }
        }
        sum
    }

    #[test]
    fn the_smallest_of_a_table_is_that_of_trying_everything() {
        for name in ["tiny", "resnet-tiny"] {
            let space = SearchSpace::named(name).unwrap();
            let genome = Genome::new(&space).unwrap();
            let table = Table::of(&genome, &|subnet| Ok(arbitrary(subnet))).unwrap().unwrap();
            let all = crate::search::testing::everything(&space);
            for subnet in &all {
                let value = table.value(&genome, &genome.encode(subnet).unwrap());
                assert!((value - arbitrary(subnet)).abs() < 1e-6, "{subnet}: {value}");
            }
            let least = all.iter().map(arbitrary).fold(f64::INFINITY, f64::min);
            let smallest = genome.decode(&table.smallest(&genome));
            assert_eq!(arbitrary(&smallest), least, "{name}: {smallest}");
        }
    }

    #[test]
    fn a_product_of_blocks_has_no_table() {
        let genome = Genome::new(&SearchSpace::named("tiny").unwrap()).unwrap();
        let product = |subnet: &Subnet| Ok(subnet.blocks().map(|b| b.expand.value()).product());
        assert!(Table::of(&genome, &product).unwrap().is_none());
    }
}
