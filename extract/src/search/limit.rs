//! Upper limits on measures of a subnet.

use super::genome::Genome;
use super::table::{PRECISION, Table};
use crate::{Constraint, Error, Measures, Result};
use ofa_supernet::Subnet;

/// Function that measures a subnet.
type Measure<'a> = Box<dyn Fn(&Subnet) -> Result<f64> + Sync + 'a>;

/// Upper limit on a measure of a subnet.
pub struct Limit<'a> {
    /// Name in results; the constraint's text if the limit comes from one.
    pub name: String,
    /// Largest allowed value.
    pub bound: f64,
    /// Images of one measured run: the batch of a latency's profile, otherwise 1.
    pub batch: usize,
    measure: Measure<'a>,
    show: Box<dyn Fn(f64) -> String + Sync + 'a>,
}

impl<'a> Limit<'a> {
    /// Limit `measure(subnet) <= bound` on any measure.
    pub fn new(name: impl Into<String>, bound: f64, measure: impl Fn(&Subnet) -> Result<f64> + Sync + 'a) -> Self {
        let show = Box::new(|value: f64| value.to_string());
        Limit { name: name.into(), bound, batch: 1, measure: Box::new(measure), show }
    }

    /// Limit of `constraint`.
    ///
    /// # Errors
    /// A latency limit on a device without a profile in `measures`.
    pub fn from_constraint(constraint: &Constraint, measures: &'a Measures) -> Result<Self> {
        let batch = match constraint.metric {
            crate::Metric::Latency => measures.device(&constraint.device)?.batch,
            _ => 1,
        };
        let metric = constraint.metric;
        let measured = constraint.clone();
        Ok(Limit {
            name: constraint.to_string(),
            bound: constraint.limit,
            batch,
            measure: Box::new(move |subnet| measures.value(&measured, subnet)),
            show: Box::new(move |value| metric.show_above(value) + &of_batch(batch)),
        })
    }

    /// The measured value of `subnet`.
    ///
    /// # Errors
    /// An error of the measure, or a value that is not finite.
    pub fn value(&self, subnet: &Subnet) -> Result<f64> {
        let value = (self.measure)(subnet)?;
        if value.is_finite() {
            return Ok(value);
        }
        Err(Error::Search(format!("the measure of '{}' gives {value} for '{subnet}'; expected a number", self.name)))
    }

    /// `value` with its unit, rounded up so that the shown number can be met as a limit.
    pub fn show(&self, value: f64) -> String {
        (self.show)(value)
    }
}

/// Addition to a value that holds for a run of several images: " for 8 images"; empty for one image.
pub fn of_batch(batch: usize) -> String {
    if batch == 1 { String::new() } else { format!(" for {batch} images") }
}

/// Tables of the limits and the costs of a problem, for other searches with the same measures and any bounds.
#[derive(Clone, Copy)]
pub(super) struct Tables<'t> {
    pub limits: &'t [Option<Table>],
    pub against: &'t [Option<Table>],
}

/// Limits of one search, each with a table if its measure has one.
#[derive(Clone)]
pub struct Limits<'a> {
    limits: &'a [Limit<'a>],
    tables: Vec<Option<Table>>,
}

impl<'a> Limits<'a> {
    /// Builds the tables of `limits`.
    ///
    /// # Errors
    /// Errors of measures.
    pub fn new(genome: &Genome, limits: &'a [Limit<'a>]) -> Result<Self> {
        let tables = limits.iter().map(|limit| Table::of(genome, &|s| limit.value(s))).collect::<Result<_>>()?;
        Ok(Limits { limits, tables })
    }

    /// The same measures, and so the same tables, with the bounds of `limits`.
    ///
    /// # Errors
    /// Another number of limits.
    pub(super) fn with_bounds(&self, limits: &'a [Limit<'a>]) -> Result<Self> {
        Limits::with_tables(limits, &self.tables)
    }

    /// Limits whose measures have these `tables`.
    ///
    /// # Errors
    /// Another number of limits.
    pub(super) fn with_tables(limits: &'a [Limit<'a>], tables: &[Option<Table>]) -> Result<Self> {
        if limits.len() != tables.len() {
            let (given, expected) = (limits.len(), tables.len());
            return Err(Error::Search(format!("{given} other bounds; expected one for each of {expected} limits")));
        }
        Ok(Limits { limits, tables: tables.to_vec() })
    }

    /// The limits.
    pub fn limits(&self) -> &'a [Limit<'a>] {
        self.limits
    }

    /// The table of each limit whose measure has one.
    pub(super) fn tables(&self) -> &[Option<Table>] {
        &self.tables
    }

    /// The table of limit `index`, if its measure has one.
    pub(super) fn table(&self, index: usize) -> Option<&Table> {
        self.tables[index].as_ref()
    }

    /// Value of `genes` for limit `index`; a table's value is rounded.
    ///
    /// # Errors
    /// An error of the measure.
    pub fn value(&self, genome: &Genome, index: usize, genes: &[u16]) -> Result<f64> {
        match &self.tables[index] {
            Some(table) => Ok(table.value(genome, genes)),
            None => self.limits[index].value(&genome.decode(genes)),
        }
    }

    /// Amount by which `genes` breaks the limits: the sum of the excesses, each as a fraction of its bound; 0 if all
    /// limits hold.
    ///
    /// The measure itself decides if a table's rounding could.
    ///
    /// # Errors
    /// Errors of measures.
    pub fn violation(&self, genome: &Genome, genes: &[u16]) -> Result<f64> {
        let mut sum = 0.0;
        for (index, limit) in self.limits.iter().enumerate() {
            sum += self.excess(genome, index, limit.bound, genes)?;
        }
        Ok(sum)
    }

    /// Excess of limit `index`'s value over `bound`, as a fraction of `bound`; 0 if there is none.
    pub(super) fn excess(&self, genome: &Genome, index: usize, bound: f64, genes: &[u16]) -> Result<f64> {
        let mut value = self.value(genome, index, genes)?;
        if bound.is_finite() && (value - bound).abs() <= PRECISION * bound.abs() {
            value = self.limits[index].value(&genome.decode(genes))?;
        }
        let excess = value - bound;
        Ok(if excess > 0.0 { excess / bound.abs().max(f64::MIN_POSITIVE) } else { 0.0 })
    }
}
