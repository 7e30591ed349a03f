//! Effects of single choices on a score, to first order.

use crate::Result;
use ofa_supernet::Subnet;
use ofa_supernet::space::Place;
use std::ops::Range;

/// Change of a subnet's score by each value of each of the space's [places](ofa_supernet::SearchSpace::places), in the
/// order of [`ranges`]. A place that the subnet lacks counts 0.
pub type Effects = Vec<f64>;

/// Function that gives the effects of each subnet.
pub type EffectsOf<'a> = dyn Fn(&[Subnet]) -> Result<Vec<Effects>> + Sync + 'a;

/// Positions of the values of each place in [`Effects`]; a place without a choice has one.
pub fn ranges(places: &[Place]) -> Vec<Range<usize>> {
    let mut end = 0;
    let range = |place: &Place| {
        let start = end;
        end += place.values.len().max(1);
        start..end
    };
    places.iter().map(range).collect()
}
