//! Upper limits on what can be measured of a subnet.

use super::genome::Genome;
use super::table::{PRECISION, Table};
use crate::{Constraint, Error, Measures, Result};
use ofa_supernet::Subnet;

/// Measures a subnet.
type Measure<'a> = Box<dyn Fn(&Subnet) -> Result<f64> + Sync + 'a>;

/// An upper limit on something that can be measured of a subnet.
pub struct Limit<'a> {
    /// What the limit is called in results; a constraint's text when it comes from one.
    pub name: String,
    /// Largest allowed value.
    pub bound: f64,
    /// Images of one run that is measured: the batch of a latency's profile, otherwise 1.
    pub batch: usize,
    measure: Measure<'a>,
    show: Box<dyn Fn(f64) -> String + Sync + 'a>,
}

impl<'a> Limit<'a> {
    /// An own limit: `measure(subnet) <= bound`.
    pub fn new(name: impl Into<String>, bound: f64, measure: impl Fn(&Subnet) -> Result<f64> + Sync + 'a) -> Self {
        let show = Box::new(|value: f64| value.to_string());
        Limit { name: name.into(), bound, batch: 1, measure: Box::new(measure), show }
    }

    /// The limit that `constraint` asks for.
    ///
    /// # Errors
    /// A latency limit on a device that `measures` has no profile of.
    pub fn from_constraint(constraint: &Constraint, measures: &'a Measures) -> Result<Self> {
        let batch = match constraint.metric {
            crate::Metric::Latency => measures.device(&constraint.device)?.batch,
            _ => 1,
        };
        let metric = constraint.metric;
        let asked = constraint.clone();
        Ok(Limit {
            name: constraint.to_string(),
            bound: constraint.limit,
            batch,
            measure: Box::new(move |subnet| measures.value(&asked, subnet)),
            show: Box::new(move |value| metric.show_above(value) + &of_batch(batch)),
        })
    }

    /// The measured value of `subnet`.
    ///
    /// # Errors
    /// What the measure says, or a value that is no number.
    pub fn value(&self, subnet: &Subnet) -> Result<f64> {
        let value = (self.measure)(subnet)?;
        if value.is_finite() {
            return Ok(value);
        }
        Err(Error::Search(format!("the measure of '{}' gives {value} for '{subnet}'; expected a number", self.name)))
    }

    /// `value` with its unit, rounded up: asked for as a limit, it can be met.
    pub fn show(&self, value: f64) -> String {
        (self.show)(value)
    }
}

/// What a value is of, where that is a run of several images: " for 8 images".
pub fn of_batch(batch: usize) -> String {
    if batch == 1 { String::new() } else { format!(" for {batch} images") }
}

/// Limits of one search, each with a table where its measure has one.
pub struct Limits<'a> {
    limits: &'a [Limit<'a>],
    tables: Vec<Option<Table>>,
}

impl<'a> Limits<'a> {
    /// Makes the tables.
    ///
    /// # Errors
    /// What the measures say.
    pub fn new(genome: &Genome, limits: &'a [Limit<'a>]) -> Result<Self> {
        let tables = limits.iter().map(|limit| Table::of(genome, &|s| limit.value(s))).collect::<Result<_>>()?;
        Ok(Limits { limits, tables })
    }

    /// The limits.
    pub fn limits(&self) -> &'a [Limit<'a>] {
        self.limits
    }

    /// The table of limit `index`, if its measure has one.
    pub(super) fn table(&self, index: usize) -> Option<&Table> {
        self.tables[index].as_ref()
    }

    /// The value of `genes` for limit `index`; from a table, up to its rounding.
    ///
    /// # Errors
    /// What the measure says.
    pub fn value(&self, genome: &Genome, index: usize, genes: &[u16]) -> Result<f64> {
        match &self.tables[index] {
            Some(table) => Ok(table.value(genome, genes)),
            None => self.limits[index].value(&genome.decode(genes)),
        }
    }

    /// By how much `genes` breaks the limits: the sum of the excesses, each as a fraction of its bound; 0 when all
    /// hold.
    ///
    /// Where a table's rounding could decide, the measure itself does.
    ///
    /// # Errors
    /// What the measures say.
    pub fn violation(&self, genome: &Genome, genes: &[u16]) -> Result<f64> {
        let mut sum = 0.0;
        for (index, limit) in self.limits.iter().enumerate() {
            sum += self.excess(genome, index, limit.bound, genes)?;
        }
        Ok(sum)
    }

    /// By which fraction of `bound` the value of limit `index` lies above it; 0 if it does not.
    pub(super) fn excess(&self, genome: &Genome, index: usize, bound: f64, genes: &[u16]) -> Result<f64> {
        let mut value = self.value(genome, index, genes)?;
        if (value - bound).abs() <= PRECISION * bound.abs() {
            value = self.limits[index].value(&genome.decode(genes))?;
        }
        let excess = value - bound;
        Ok(if excess > 0.0 { excess / bound.abs().max(f64::MIN_POSITIVE) } else { 0.0 })
    }
}
