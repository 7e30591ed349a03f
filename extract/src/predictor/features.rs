//! Features: a subnet as the predictor's one-hot input, so that no choice is assumed to be "more" than another (paper
//! §3.4).
//!
//! The vector has, for each block slot (all blocks of all stages at their largest depth), a one-hot of each of the
//! block's choices (all zeros if the slot is inactive), then a one-hot of each other choice in the order of
//! [`SearchSpace::places`]. A depth that the slots imply has no one-hot. Only the positions of the ones are kept.

use crate::Result;
use crate::effects::{Effects, ranges};
use ofa_supernet::space::Place;
use ofa_supernet::space::dimension::At;
use ofa_supernet::{SearchSpace, Subnet};
use std::ops::Range;

/// The features of a space.
#[derive(Debug, Clone)]
pub struct Features {
    space: SearchSpace,
    /// Every choice with its number among all, and the start of its one-hot if it has one; ascending.
    places: Vec<(usize, Place, Option<usize>)>,
    count: usize,
    /// Positions of the values of each place in [`Effects`].
    values: Vec<Range<usize>>,
}

/// A one-hot, as a range of features.
pub struct Group {
    /// Positions of its features.
    pub features: Range<usize>,
    /// Whether the one-hot belongs to a block slot, and is all zeros without that block.
    pub of_slot: bool,
    /// Whether the one-hot is the first of its slot.
    pub is_first: bool,
}

impl Features {
    /// The features of `space`.
    pub fn new(space: &SearchSpace) -> Self {
        let all = space.places();
        let told_by_slots =
            |number: usize| all.iter().any(|place| place.needs.is_some_and(|need| need.place == number));
        let (mut places, mut count) = (Vec::new(), 0);
        for of_slot in [true, false] {
            for (number, place) in all.iter().enumerate().filter(|(_, place)| is_of_slot(place) == of_slot) {
                let has_features = !place.values.is_empty() && !told_by_slots(number);
                places.push((number, place.clone(), has_features.then_some(count)));
                if has_features {
                    count += place.values.len();
                }
            }
        }
        Features { space: space.clone(), places, count, values: ranges(&all) }
    }

    /// Number of features.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The one-hots, in order.
    pub fn groups(&self) -> Vec<Group> {
        let group = |(index, (_, place, start)): (usize, &(usize, Place, Option<usize>))| {
            let start = (*start)?;
            let is_first = index == 0 || self.places[index - 1].1.at != place.at;
            Some(Group { features: start..start + place.values.len(), of_slot: is_of_slot(place), is_first })
        };
        self.places.iter().enumerate().filter_map(group).collect()
    }

    /// The effects of values that are `of_feature`; 0 without a feature.
    pub(super) fn effects(&self, of_feature: impl Fn(usize) -> f64) -> Effects {
        let mut effects = vec![0.0; self.values.last().map_or(0, |values| values.end)];
        for (number, _, start) in &self.places {
            if let Some(start) = start {
                let values = &mut effects[self.values[*number].clone()];
                values.iter_mut().zip(*start..).for_each(|(effect, feature)| *effect = of_feature(feature));
            }
        }
        effects
    }

    /// Positions of the ones in the feature vector of `subnet`, ascending; each is below [`count`](Self::count).
    ///
    /// # Errors
    /// A subnet outside the space.
    pub fn of(&self, subnet: &Subnet) -> Result<Vec<usize>> {
        let mut active = Vec::with_capacity(self.places.len());
        self.push(subnet, &mut active)?;
        Ok(active)
    }

    /// Appends the positions of [`of`](Self::of) to `active`.
    ///
    /// # Errors
    /// A subnet outside the space.
    pub fn push(&self, subnet: &Subnet, active: &mut Vec<usize>) -> Result<()> {
        let mut push = |(_, place, start): &(usize, Place, Option<usize>)| match place.choice(subnet) {
            Some(choice) => {
                active.extend(start.map(|start| start + choice));
                true
            }
            // Blocks that the subnet lacks have no choice.
            None => place.value(subnet).is_none(),
        };
        // A search asks for many thousand subnets, so the full check runs only to word the error.
        match self.space.has_parts_of(subnet) && self.places.iter().all(&mut push) {
            true => Ok(()),
            false => Ok(self.space.check(subnet)?),
        }
    }
}

fn is_of_slot(place: &Place) -> bool {
    matches!(place.at, At::Block { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_of_a_known_subnet() {
        // tiny: resolutions 16,24,32; kernels 3,5; expand 2,3,4; depth up to 2; two stages. A slot has 5 features.
        let space = SearchSpace::named("tiny").unwrap();
        assert_eq!(Features::new(&space).count(), 4 * 5 + 3);
        let groups = |space: &SearchSpace, from| -> Vec<Range<usize>> {
            Features::new(space).groups().split_off(from).into_iter().map(|group| group.features).collect()
        };
        assert_eq!(groups(&space, 6), [15..17, 17..20, 20..23]);
        let subnet = "r24 d1,2 k5|3,5 e2|4,3".parse().unwrap();
        assert_eq!(Features::new(&space).of(&subnet).unwrap(), [1, 2, 10, 14, 16, 18, 21]);
        // resnet-tiny: resolutions 24,32; one kernel; expand 0.25,0.5; depth up to 2; two stages; widths 0.5,1 at four
        // places.
        let resnet = SearchSpace::named("resnet-tiny").unwrap();
        assert_eq!(Features::new(&resnet).count(), 4 * 3 + 2 + 2 + 4 * 2);
        assert_eq!(groups(&resnet, 7), [10..12, 12..14, 14..16, 16..18, 18..20, 20..22, 22..24]);
        let subnet = "r32 w0.5,1,1,0.5 s1 d1,1 e0.25|0.5".parse().unwrap();
        assert_eq!(Features::new(&resnet).of(&subnet).unwrap(), [0, 1, 6, 8, 13, 15, 16, 19, 21, 22]);
        // attentive-tiny: three resolutions; five widths, one of them of three; three stages, each with its depth of at
        // most two, two kernels and two expand ratios, of which the first has one depth and one ratio.
        let attentive = SearchSpace::named("attentive-tiny").unwrap();
        assert_eq!(Features::new(&attentive).count(), 3 + 11 + (1 + 2 + 1) + 2 * (2 + 2 + 2));
        let subnet = "r28 w8,8,24,32,64 s0 d1,2,1 k5|3,3|5 e1|3,3|2".parse().unwrap();
        assert_eq!(
            Features::new(&attentive).of(&subnet).unwrap(),
            [1, 3, 5, 8, 10, 12, 14, 16, 17, 19, 20, 23, 24, 27, 28]
        );
        let mixed = "r28 w8,8,24,32,64 s0 d1,2,1 k5|3,5|5 e1|3,3|2".parse().unwrap();
        assert!(Features::new(&attentive).of(&mixed).unwrap_err().to_string().contains("stage 2 differ"));
        let outside = "r20 d1,1 k3|3 e2|2".parse().unwrap();
        assert!(Features::new(&space).of(&outside).unwrap_err().to_string().contains("allowed are 16, 24, 32"));
    }
}
