//! Effects of single choices on a score, to first order.

use crate::Result;
use ofa_supernet::Subnet;
use ofa_supernet::space::{Place, Value};
use std::ops::Range;

/// Change of a subnet's score by each value of each of the space's [places](ofa_supernet::SearchSpace::places), in the
/// order of [`ranges`]. A place that the subnet lacks counts 0.
pub type Effects = Vec<f64>;

/// Function that gives the effects of each subnet.
pub type EffectsOf<'a> = dyn Fn(&[Subnet]) -> Result<Vec<Effects>> + Sync + 'a;

/// `effects` of all values of the places `from`, as effects of the values of the places `to`, some of the same values.
pub(crate) fn of_places(from: &[Place], to: &[Place], effects: &[Effects]) -> Vec<Effects> {
    let mut positions = Vec::new();
    let known: Vec<(&Place, Range<usize>)> = from.iter().zip(ranges(from)).collect();
    for place in to {
        let same = |(known, _): &&(&Place, Range<usize>)| {
            known.dimension.index() == place.dimension.index() && known.at == place.at
        };
        let known = known.iter().find(same);
        let position = |value: &Value| {
            let (known, range) = known?;
            Some(range.start + known.values.iter().position(|known| known == value)?)
        };
        match place.values.is_empty() {
            true => positions.push(None),
            false => positions.extend(place.values.iter().map(position)),
        }
    }
    let moved = |effects: &Effects| positions.iter().map(|at| at.map_or(0.0, |at| effects[at])).collect();
    effects.iter().map(moved).collect()
}

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
