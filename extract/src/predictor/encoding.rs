//! A subnet as numbers for a Gaussian process.
//!
//! Each choice of a space has a state: the number of the chosen value, or "absent" for a block that the subnet lacks.
//! A column is a number that follows from one state: the place of the value in its list, or whether a block exists. A
//! total is a sum over all choices of a dimension, which few samples tell apart from noise sooner than the single
//! choices. Columns that are expected to count alike (one dimension within one stage) form a group.

use crate::Result;
use crate::effects::{Effects, ranges};
use ofa_supernet::space::Place;
use ofa_supernet::{SearchSpace, Subnet};
use std::collections::BTreeMap;
use std::ops::Range;

/// The numbers that stand for the subnets of a space.
#[derive(Debug, Clone)]
pub(super) struct Encoding {
    space: SearchSpace,
    places: Vec<Place>,
    pub columns: Vec<Column>,
    pub totals: Vec<Total>,
    /// Number of groups; each column and total belongs to one.
    pub groups: usize,
    /// Positions of the values of each choice in [`Effects`].
    values: Vec<Range<usize>>,
}

/// A number that follows from the state of one choice.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub place: usize,
    pub group: usize,
    /// The number in each state.
    pub of_state: Vec<f64>,
}

/// The logarithm of 1 and a sum over the choices of a dimension: 1 for the first value, 2 for the second, 0 where the
/// choice is absent. Accuracy grows with a network's size about as its logarithm; a linear function of the sum itself
/// overrates the largest subnets.
#[derive(Debug, Clone)]
pub(super) struct Total {
    pub group: usize,
    places: Vec<usize>,
}

/// States of a subnet's choices, in the order of places.
pub(super) type States = Vec<u8>;

impl Encoding {
    pub(super) fn new(space: &SearchSpace) -> Self {
        let places = space.places();
        // By kind, dimension, and stage (stage 0 is the whole network).
        let mut groups: BTreeMap<(u8, usize, usize), usize> = BTreeMap::new();
        let mut group = |kind: u8, dimension: usize, stage: Option<usize>| {
            let next = groups.len();
            *groups.entry((kind, dimension, stage.map_or(0, |stage| stage + 1))).or_insert(next)
        };
        let mut columns = Vec::new();
        let mut by_dimension: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut needs = Vec::new();
        for (number, place) in places.iter().enumerate() {
            let dimension = place.dimension.index();
            let choices = place.values.len();
            if choices > 1 {
                let mut of_state = ordinals(choices);
                of_state.push(0.0);
                columns.push(Column { place: number, group: group(0, dimension, place.stage()), of_state });
                by_dimension.entry(dimension).or_default().push(number);
            }
            if let Some(need) = place.needs.filter(|need| need.least > 0 && !needs.contains(&(need.place, need.least)))
            {
                needs.push((need.place, need.least));
                let states = places[need.place].values.len() + 1;
                let exists = |state| f64::from(u8::from((need.least..states - 1).contains(&state)));
                let of_state = (0..states).map(exists).collect();
                let group = group(1, places[need.place].dimension.index(), place.stage());
                columns.push(Column { place: need.place, group, of_state });
            }
        }
        let several = by_dimension.into_iter().filter(|(_, places)| places.len() > 1);
        let totals = several.map(|(dimension, places)| Total { group: group(2, dimension, None), places }).collect();
        let values = ranges(&places);
        Encoding { space: space.clone(), places, columns, totals, groups: groups.len(), values }
    }

    /// Number of choices, each with a state.
    pub(super) fn choices(&self) -> usize {
        self.places.len()
    }

    /// Number of states of choice `place`: its values, and absent.
    pub(super) fn states_of(&self, place: usize) -> usize {
        self.places[place].values.len().max(1) + 1
    }

    /// Appends the states of `subnet`.
    ///
    /// # Errors
    /// A subnet outside the space.
    pub(super) fn push(&self, subnet: &Subnet, states: &mut States) -> Result<()> {
        let mut push = |(number, place): (usize, &Place)| match place.choice(subnet) {
            Some(choice) => {
                states.push(choice as u8);
                true
            }
            None => {
                states.push((self.states_of(number) - 1) as u8);
                place.value(subnet).is_none()
            }
        };
        // The search asks about many thousand subnets: the full check only words the error.
        match self.space.has_parts_of(subnet) && self.places.iter().enumerate().all(&mut push) {
            true => Ok(()),
            false => Ok(self.space.check(subnet)?),
        }
    }

    /// A zero for each value of each choice.
    pub(super) fn no_effects(&self) -> Effects {
        vec![0.0; self.values.last().map_or(0, |values| values.end)]
    }

    /// Positions of the values of choice `place` in [`Effects`].
    pub(super) fn values(&self, place: usize) -> Range<usize> {
        self.values[place].clone()
    }

    /// Adds what the values of choices add to total `index` of a subnet where it is `total`, to first order, times
    /// `slope`.
    pub(super) fn add_total(&self, index: usize, total: f64, slope: f64, effects: &mut Effects) {
        let slope = slope / total.exp();
        for &place in &self.totals[index].places {
            effects[self.values(place)]
                .iter_mut()
                .zip(1..)
                .for_each(|(effect, value)| *effect += slope * f64::from(value));
        }
    }

    /// The totals.
    pub(super) fn totals_of(&self, states: &[u8]) -> Vec<f64> {
        let value = |&place: &usize| match usize::from(states[place]) + 1 {
            absent if absent == self.states_of(place) => 0.0,
            value => value as f64,
        };
        self.totals.iter().map(|total| total.places.iter().map(value).sum::<f64>().ln_1p()).collect()
    }
}

/// Numbers of values in order, with mean 0 and variance 1.
fn ordinals(count: usize) -> Vec<f64> {
    let mean = (count - 1) as f64 / 2.0;
    let deviation = (((count * count - 1) as f64) / 12.0).sqrt();
    (0..count).map(|index| (index as f64 - mean) / deviation).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_and_columns_of_a_known_subnet() {
        // tiny: resolutions 16, 24, 32; kernels 3, 5; expand 2, 3, 4; depths 1, 2; two stages.
        let space = SearchSpace::named("tiny").unwrap();
        let encoding = Encoding::new(&space);
        let mut states = Vec::new();
        encoding.push(&"r24 d1,2 k5|3,5 e2|4,3".parse().unwrap(), &mut states).unwrap();
        // Resolution, stem blocks (no choice); depth, and kernel and expand ratio of two blocks, of each stage.
        assert_eq!(states, [1, 0, 0, 1, 0, 2, 3, 1, 0, 2, 1, 1]);
        // Depths 1 + 2; kernels 2 + 1 + 2; expand ratios 1 + 3 + 2.
        assert_eq!(encoding.totals_of(&states), [3.0, 5.0, 6.0].map(f64::ln_1p));
        // A resolution; for each stage a depth, the second block, two kernels and two expand ratios.
        assert_eq!(encoding.columns.len(), 1 + 2 * 6);
        assert_eq!(encoding.groups, 1 + 2 * 4 + 3);
        let second_block = encoding.columns.iter().find(|column| column.of_state == [0.0, 1.0, 0.0]).unwrap();
        assert_eq!(second_block.place, 2);
        let outside = "r20 d1,1 k3|3 e2|2".parse().unwrap();
        assert!(encoding.push(&outside, &mut Vec::new()).unwrap_err().to_string().contains("allowed are 16, 24, 32"));
    }

    #[test]
    fn ordinals_have_mean_zero_and_variance_one() {
        for count in 2..9 {
            let values = ordinals(count);
            let square: f64 = values.iter().map(|v| v * v).sum();
            assert!(values.iter().sum::<f64>().abs() < 1e-12 && (square - count as f64).abs() < 1e-9, "{values:?}");
        }
    }
}
