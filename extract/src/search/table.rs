//! Lookup tables of measures.
//!
//! Most costs of a subnet are, for each size of the images, a sum over stem and stages (latency from a device profile,
//! MACs, parameters) or a maximum over them (peak memory), in which each block of a stage counts by itself; with
//! elastic widths, stem and stages also depend on the width before and after them. [`Table::of`] finds that out by
//! asking the measure about single changes and then checking the table on other subnets, so it knows nothing of
//! layers; a measure of another form has no table.

use super::genome::{Genes, Genome};
use super::parts::{Part, parts};
use crate::Result;
use ofa_supernet::Subnet;
use ofa_supernet::seed::{Stream, generator};
use rayon::prelude::*;
use std::ops::Range;

/// Random subnets on which each row is checked, besides the [`contrasts`].
const CHECKS: u64 = 24;
/// Largest relative difference at which a sum of table entries counts as the measure's value.
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

/// Table of a measure over all subnets of a space.
#[derive(Debug, Clone)]
pub struct Table {
    form: Form,
    parts: Vec<Part>,
    /// One row per number of the images' genes.
    rows: Vec<Row>,
}

/// Entries of each part, indexed by the number of the genes around the part.
type Row = Vec<Vec<Entries>>;

/// Contribution of a part between two widths.
#[derive(Debug, Clone)]
pub(super) struct Entries {
    /// Contribution of the part as a whole, indexed by the number of its own genes.
    pub own: Vec<f64>,
    /// Contribution of each block, block after block, indexed by the number of its genes.
    pub blocks: Vec<f64>,
}

impl Table {
    /// The table of `measure`, or `None` when it is neither a sum nor a maximum over parts and blocks.
    ///
    /// # Errors
    /// Errors of `measure`.
    pub fn of(genome: &Genome, measure: &(dyn Fn(&Subnet) -> Result<f64> + Sync)) -> Result<Option<Self>> {
        let parts = parts(genome);
        for form in [Form::Sum, Form::Max] {
            // One image size shows at little cost that the form is wrong.
            let row = |input| row(genome, &parts, form, input, measure);
            if row(0)?.is_none() {
                continue;
            }
            let inputs = genome.numbers(genome.input());
            let rows = (0..inputs).into_par_iter().map(row).collect::<Result<Vec<_>>>()?;
            if let Some(rows) = rows.into_iter().collect() {
                return Ok(Some(Table { form, parts, rows }));
            }
        }
        Ok(None)
    }

    /// The value of `genes`.
    pub fn value(&self, genome: &Genome, genes: &[u16]) -> f64 {
        value(genome, &self.parts, self.form, &self.rows[genome.number(genes, genome.input())], genes)
    }

    /// Whether the values of parts and blocks add up; otherwise the largest counts.
    pub(super) fn is_sum(&self) -> bool {
        self.form == Form::Sum
    }

    /// Entries of each part for the images and the widths of `genes`.
    pub(super) fn entries(&self, genome: &Genome, genes: &[u16]) -> Vec<&Entries> {
        let row = &self.rows[genome.number(genes, genome.input())];
        self.parts.iter().zip(row).map(|(part, entries)| &entries[genome.number(genes, part.around())]).collect()
    }

    /// Genes of the smallest value. The result is exact, since blocks do not depend on one another, and parts only on
    /// the width between them.
    pub fn smallest(&self, genome: &Genome) -> Genes {
        let mut best: Option<(f64, Genes)> = None;
        for (input, row) in self.rows.iter().enumerate() {
            let mut start = genome.zeros();
            genome.set_number(&mut start, genome.input(), input);
            // For each width reached: the smallest value of the parts so far, and their genes.
            let mut reached = vec![(self.form.neutral(), start); self.parts[0].before];
            for (part, entries) in self.parts.iter().zip(row) {
                let extended = |after: usize| {
                    let from = |before: usize| {
                        let (value, genes) = &reached[before];
                        let mut genes = genes.clone();
                        let around = before * part.after + after;
                        genome.set_number(&mut genes, part.around(), around);
                        let added = self.cheapest(genome, part, &entries[around], &mut genes);
                        (self.form.combine(*value, added), genes)
                    };
                    (0..reached.len()).map(from).min_by(|a, b| a.0.total_cmp(&b.0)).expect("there is a width")
                };
                reached = (0..part.after).map(extended).collect();
            }
            best = best.into_iter().chain(reached).min_by(|a, b| a.0.total_cmp(&b.0));
        }
        best.expect("there are images").1
    }

    /// Sets the genes of `part` to those of its smallest value, and returns that value.
    fn cheapest(&self, genome: &Genome, part: &Part, entries: &Entries, genes: &mut Genes) -> f64 {
        let cheapest = |(places, start): &(Range<usize>, usize)| {
            smallest_of(&entries.blocks[*start..start + genome.numbers(places.clone())])
        };
        let blocks: Vec<(f64, usize)> = part.blocks.iter().map(cheapest).collect();
        let mut total = |own: usize| {
            genome.set_number(genes, part.own.clone(), own);
            let blocks = part.existing(genome, genes).zip(&blocks);
            blocks.fold(entries.own[own], |sum, (_, block)| self.form.combine(sum, block.0))
        };
        let (value, own) = smallest_of(&(0..entries.own.len()).map(&mut total).collect::<Vec<f64>>());
        genome.set_number(genes, part.own.clone(), own);
        for ((places, _), block) in part.blocks.iter().zip(&blocks) {
            if genome.exists(genes, places.start) {
                genome.set_number(genes, places.clone(), block.1);
            }
        }
        value
    }

    /// Expected value if every gene is drawn independently with `probabilities`; `None` if the measure is not a sum.
    pub fn expected(&self, genome: &Genome, probabilities: &[Vec<f64>]) -> Option<f64> {
        if self.form != Form::Sum {
            return None;
        }
        let mut expected = 0.0;
        for (input, row) in self.rows.iter().enumerate() {
            let p_input = probability(genome, probabilities, genome.input(), input);
            for (part, entries) in self.parts.iter().zip(row) {
                for (around, entries) in entries.iter().enumerate() {
                    let p = p_input * probability(genome, probabilities, part.around(), around);
                    expected += p * expected_part(genome, part, entries, probabilities);
                }
            }
        }
        Some(expected)
    }
}

/// The smallest of `values` and its index; the first if several are equal.
fn smallest_of(values: &[f64]) -> (f64, usize) {
    let places = values.iter().copied().zip(0..);
    places.min_by(|a, b| a.0.total_cmp(&b.0)).expect("there is a choice")
}

/// Probability that the genes in `places` read `number`.
fn probability(
    genome: &Genome,
    probabilities: &[Vec<f64>],
    places: impl Iterator<Item = usize> + Clone,
    number: usize,
) -> f64 {
    let mut later = genome.numbers(places.clone());
    let of_place = |place: usize| {
        let choices = usize::from(genome.choices(place));
        later /= choices;
        probabilities[place][number / later % choices]
    };
    places.map(of_place).product()
}

fn expected_part(genome: &Genome, part: &Part, entries: &Entries, probabilities: &[Vec<f64>]) -> f64 {
    // Contribution of the first blocks, by their number.
    let mut blocks = vec![0.0];
    let mut sum = 0.0;
    for (places, start) in &part.blocks {
        for number in 0..genome.numbers(places.clone()) {
            sum += probability(genome, probabilities, places.clone(), number) * entries.blocks[start + number];
        }
        blocks.push(sum);
    }
    let mut genes = genome.zeros();
    let mut expected = 0.0;
    for (number, value) in entries.own.iter().enumerate() {
        genome.set_number(&mut genes, part.own.clone(), number);
        let existing = part.existing(genome, &genes).count();
        expected += probability(genome, probabilities, part.own.clone(), number) * (value + blocks[existing]);
    }
    expected
}

fn value(genome: &Genome, parts: &[Part], form: Form, row: &Row, genes: &[u16]) -> f64 {
    let mut sum = form.neutral();
    for (part, entries) in parts.iter().zip(row) {
        let entries = &entries[genome.number(genes, part.around())];
        sum = form.combine(sum, entries.own[genome.number(genes, part.own.clone())]);
        for (places, start) in part.existing(genome, genes) {
            sum = form.combine(sum, entries.blocks[start + genome.number(genes, places.clone())]);
        }
    }
    sum
}

/// The row for the images' genes of number `input`, or `None` if the measure does not have the form.
///
/// A sum is derived from differences to the subnet with the most blocks, a maximum from single blocks in an otherwise
/// smallest subnet.
fn row(
    genome: &Genome,
    parts: &[Part],
    form: Form,
    input: usize,
    measure: &(dyn Fn(&Subnet) -> Result<f64> + Sync),
) -> Result<Option<Row>> {
    let measure = |genes: &[u16]| measure(&genome.decode(genes));
    let mut origin = genome.zeros();
    genome.set_number(&mut origin, genome.input(), input);
    if form == Form::Sum {
        for place in (0..genome.size()).filter(|&place| genome.is_needed(place)) {
            genome.set(&mut origin, place, genome.choices(place) - 1);
        }
    }
    let mut row = Vec::with_capacity(parts.len());
    for (index, part) in parts.iter().enumerate() {
        let mut entries = Vec::with_capacity(genome.numbers(part.around()));
        // For a sum: the effect of the part's first width alone, which the part before has counted.
        let mut counted = 0.0;
        for around in 0..genome.numbers(part.around()) {
            let mut genes = origin.clone();
            genome.set_number(&mut genes, part.around(), around);
            let whole = measure(&genes)?;
            if around % part.after == 0 && index > 0 {
                counted = whole;
            }
            entries.push(part_entries(genome, form, part, &genes, whole, whole - counted, &measure)?);
        }
        row.push(entries);
    }
    let random = |check| genome.sample(&mut generator(0, Stream::TableCheck, &[check]));
    for mut genes in (0..CHECKS).map(random).chain(contrasts(genome)) {
        genome.set_number(&mut genes, genome.input(), input);
        let exact = measure(&genes)?;
        if (value(genome, parts, form, &row, &genes) - exact).abs() > PRECISION * exact.abs() {
            return Ok(None);
        }
    }
    Ok(Some(row))
}

/// The smallest subnet with one group of genes at their largest, and the largest with it at their smallest, for each
/// group. Where one part is dear enough, a maximum looks like a sum in nearly all random subnets.
fn contrasts(genome: &Genome) -> impl Iterator<Item = Genes> + '_ {
    let most = |place: usize| genome.choices(place) - 1;
    genome.groups().iter().flat_map(move |group| {
        let mut small = genome.zeros();
        genome.provide(&mut small, group.start);
        group.clone().for_each(|place| genome.set(&mut small, place, most(place)));
        let large = genome.build(|place| if group.contains(&place) { 0 } else { most(place) });
        [small, large]
    })
}

/// Entries of `part` in the network `origin` of value `whole`; `own` is the part's share of it.
fn part_entries(
    genome: &Genome,
    form: Form,
    part: &Part,
    origin: &Genes,
    whole: f64,
    own: f64,
    measure: &dyn Fn(&[u16]) -> Result<f64>,
) -> Result<Entries> {
    let mut entries = Entries { own: Vec::new(), blocks: Vec::new() };
    for number in 0..genome.numbers(part.own.clone()) {
        let mut genes = origin.clone();
        genome.set_number(&mut genes, part.own.clone(), number);
        let value = measure(&genes)?;
        entries.own.push(match form {
            Form::Sum => value - whole + own,
            Form::Max => value,
        });
    }
    for (places, _) in &part.blocks {
        let mut genes = origin.clone();
        genome.provide(&mut genes, places.start);
        for number in 0..genome.numbers(places.clone()) {
            genome.set_number(&mut genes, places.clone(), number);
            let value = measure(&genes)?;
            entries.blocks.push(match form {
                Form::Sum => value - whole,
                Form::Max => value,
            });
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
        let presets = ["tiny", "cifar-mbv3", "mbv3-w1.2", "resnet-tiny", "attentive-tiny", "attentive"];
        let mut spaces = presets.map(|name| SearchSpace::named(name).unwrap()).to_vec();
        // Three of this space's 25 sizes of images, each of which has a row of its own.
        spaces[2].resolutions = vec![128, 176, 224];
        // Here the second stage's first block does not always take the most memory.
        let uneven = SearchSpace { name: "uneven".into(), uniform_stages: false, ..spaces[5].clone() };
        spaces.push(uneven);
        for space in spaces {
            let name = &space.name;
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
                // In `attentive` one block takes the most memory in all subnets, so that the maximum is a sum too.
                assert!(table.form == form || name == "attentive", "{name} {limit}");
                let random = |position| genome.sample(&mut generator(1, Stream::Search, &[position]));
                for genes in (0..100).map(random).chain(contrasts(&genome)) {
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
        for name in ["tiny", "resnet-tiny", "attentive-tiny"] {
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

    /// Sum of arbitrary numbers, so that small choices are not systematically cheap.
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
