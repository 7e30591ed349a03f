//! The subnets of a space: its extremes, random ones, neighbours, their number, and whether a subnet lies in it.

use super::dimension::{DIMENSIONS, Dimension, Place, assemble};
use super::{BlockChoice, SearchSpace, Subnet};
use crate::{Error, Result};
use rand::Rng;

impl SearchSpace {
    /// Number of elastic boundaries: with width multipliers inside the stem, after it, and after each stage; with lists
    /// of channels after the stem, after each stage, and inside the head. 0 where widths are not elastic.
    pub fn width_choices(&self) -> usize {
        let elastic = !self.width_multipliers.is_empty() || self.has_boundary_lists();
        if elastic { 2 + self.stages.len() } else { 0 }
    }

    /// Number of the part of the network that begins at elastic boundary number `boundary`: part 0 is the stem, the
    /// stages follow, then what comes after them. A boundary inside the stem counts as its beginning, one inside the
    /// last part as its end.
    pub fn part_after(&self, boundary: usize) -> usize {
        boundary + usize::from(self.has_boundary_lists())
    }

    /// The largest subnet: everything at its maximum.
    pub fn largest(&self) -> Subnet {
        assemble(&self.places(), |_, place| place.values.len().saturating_sub(1))
    }

    /// The largest subnet with expand ratio number `rank` of each stage, from the largest (0) down; a stage with fewer
    /// has its smallest.
    pub fn at_expand_rank(&self, rank: usize) -> Subnet {
        let mut subnet = self.largest();
        for (stage, blocks) in subnet.stages.iter_mut().enumerate() {
            let ratios = self.stage_expand_ratios(stage);
            let expand = ratios[ratios.len().saturating_sub(1 + rank)];
            blocks.iter_mut().for_each(|block| block.expand = expand);
        }
        subnet
    }

    /// The smallest subnet: everything at its minimum.
    pub fn smallest(&self) -> Subnet {
        assemble(&self.places(), |_, _| 0)
    }

    /// The subnet in the middle of every list of choices.
    pub fn middle(&self) -> Subnet {
        assemble(&self.places(), |_, place| place.values.len() / 2)
    }

    /// A random subnet: every choice is drawn uniformly and independently (paper §3.3), in the order of
    /// [`places`](Self::places) and only for active blocks, so that equal networks are equally likely to be drawn
    /// whatever the inactive ones would be.
    pub fn sample(&self, rng: &mut impl Rng) -> Subnet {
        assemble(&self.places(), |_, place| match place.values.len() {
            0 => 0,
            values => rng.random_range(0..values),
        })
    }

    /// All subnets that differ from `subnet` in one choice. A stage that grows repeats its last block's choice.
    pub fn neighbours(&self, subnet: &Subnet) -> Vec<Subnet> {
        let mut found = Vec::new();
        for place in self.places().iter().filter(|place| place.value(subnet).is_some()) {
            for choice in 0..place.values.len() {
                let mut other = subnet.clone();
                place.choose(&mut other, choice);
                if other != *subnet {
                    found.push(other);
                }
            }
        }
        found
    }

    /// Number of different subnets (exact up to 2^53, then rounded as every `f64`).
    pub fn count(&self) -> f64 {
        let places = self.places();
        // Combinations of the choices that exist only with value number `choice` of place `number` or larger ones.
        let beside = |number: usize, choice: usize| -> f64 {
            let needing = places
                .iter()
                .filter(|place| place.needs.is_some_and(|need| need.place == number && need.least <= choice));
            needing.map(|place| place.values.len().max(1) as f64).product()
        };
        let of_place = |(number, place): (usize, &Place)| -> f64 {
            (0..place.values.len().max(1)).map(|choice| beside(number, choice)).sum()
        };
        let free = |in_stage: bool| {
            let places = places.iter().enumerate().filter(|(_, place)| place.needs.is_none());
            places.filter(move |(_, place)| place.stage().is_some() == in_stage)
        };
        let of_stages: f64 = free(true).map(of_place).product();
        free(false).map(of_place).product::<f64>() * of_stages
    }

    /// Whether `subnet` has as many stages and widths as the subnets of this space, and one choice for all blocks of a
    /// stage where stages are uniform.
    pub fn has_parts_of(&self, subnet: &Subnet) -> bool {
        (subnet.stages.len(), subnet.widths.len()) == (self.stages.len(), self.width_choices())
            && self.mixed_stage(subnet).is_none()
    }

    /// The first stage whose blocks differ though stages are uniform.
    fn mixed_stage(&self, subnet: &Subnet) -> Option<usize> {
        let mixed = |blocks: &Vec<BlockChoice>| blocks.windows(2).any(|pair| pair[0] != pair[1]);
        if self.uniform_stages { subnet.stages.iter().position(mixed) } else { None }
    }

    /// Checks that `subnet` lies in this space.
    ///
    /// # Errors
    /// The first choice outside the space, with the allowed values.
    pub fn check(&self, subnet: &Subnet) -> Result<()> {
        if let Some(stage) = self.mixed_stage(subnet) {
            return Err(Error::Subnet(format!(
                "the blocks of stage {} differ; in the space '{}' all blocks of a stage have one kernel and one expand ratio",
                stage + 1,
                self.name
            )));
        }
        if !self.has_parts_of(subnet) {
            return Err(Error::Subnet(format!(
                "{} stages and {} widths given, subnets of the space '{}' have {} and {}",
                subnet.stages.len(),
                subnet.widths.len(),
                self.name,
                self.stages.len(),
                self.width_choices()
            )));
        }
        // Costs of many thousand subnets are asked for: the places' list only words the error.
        let allows = |dimension: &Dimension, at| {
            dimension.value(subnet, at).is_some_and(|value| self.allows(dimension, at, value))
        };
        if DIMENSIONS.iter().all(|dimension| dimension.all_at(subnet).all(|at| allows(dimension, at))) {
            return Ok(());
        }
        for place in self.places() {
            if let Some(value) = place.value(subnet)
                && place.choice(subnet).is_none()
            {
                let allowed: Vec<String> = place.values.iter().map(ToString::to_string).collect();
                let allowed = if allowed.is_empty() { "0".into() } else { allowed.join(", ") };
                return Err(Error::Subnet(format!("{} is {value}; allowed are {allowed}", place.description())));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Ratio;
    use super::super::{PRESETS, preset};
    use super::*;
    use crate::seed::{Stream, generator};

    #[test]
    fn the_published_space_has_the_published_size() {
        // Paper §3.1: about 2 x 10^19 subnets, for 25 resolutions of the same weights.
        let count = preset("mbv3-w1.0").unwrap().count() / preset("mbv3-w1.0").unwrap().resolutions.len() as f64;
        assert!((2.0e19..2.5e19).contains(&count), "{count}");
    }

    #[test]
    fn samples_lie_in_the_space_and_repeat_by_seed() {
        for name in PRESETS {
            let space = preset(name).unwrap();
            space.validate().unwrap();
            for extreme in [space.smallest(), space.middle(), space.largest()] {
                space.check(&extreme).unwrap();
            }
            for position in 0..50 {
                let draw = || space.sample(&mut generator(3, Stream::Sampling, &[position]));
                space.check(&draw()).unwrap();
                assert_eq!(draw(), draw());
            }
        }
    }

    #[test]
    fn neighbours_differ_in_one_choice_and_are_distinct() {
        for name in ["tiny", "resnet-tiny"] {
            let space = preset(name).unwrap();
            let subnet = space.sample(&mut generator(1, Stream::Sampling, &[]));
            let neighbours = space.neighbours(&subnet);
            for (index, neighbour) in neighbours.iter().enumerate() {
                space.check(neighbour).unwrap();
                assert_ne!(*neighbour, subnet);
                assert!(!neighbours[..index].contains(neighbour));
            }
            let others = |list: usize| list.saturating_sub(1);
            let expected = others(space.resolutions.len())
                + others(space.stem.depths.len())
                + space.width_choices() * others(space.width_multipliers.len())
                + (0..space.stages.len()).map(|stage| space.stage_depths(stage).len() - 1).sum::<usize>()
                + subnet.blocks().count() * (space.kernel_sizes.len() + space.expand_ratios.len() - 2);
            assert_eq!(neighbours.len(), expected);
        }
    }

    #[test]
    fn a_resnet_counts_and_checks_its_own_choices() {
        // Reference: 3 depths a stage around 2, 2, 4, 2 blocks, 3 expand ratios, 6 widths of 3, the stem block there or
        // not.
        let space = preset("resnet50d").unwrap();
        let blocks = |least: i32| (least..least + 3).map(|d| 3f64.powi(d)).sum::<f64>();
        let expected = 2.0 * 3f64.powi(6) * blocks(2).powi(3) * blocks(4);
        assert_eq!(space.count(), expected * space.resolutions.len() as f64);
        let good = space.smallest();
        for (change, part) in [
            ((|s: &mut Subnet| s.stem_blocks = 2) as fn(&mut Subnet), "stem blocks is 2; allowed are 0, 1"),
            (|s| s.widths[1] = Ratio::try_from(0.7).unwrap().into(), "width is 0.7; allowed are 0.65, 0.8, 1"),
            (|s| s.widths.truncate(3), "3 widths given"),
            (|s| s.stages[2].truncate(2), "depth of stage 3 is 2; allowed are 4, 5, 6"),
        ] {
            let mut subnet = good.clone();
            change(&mut subnet);
            let error = space.check(&subnet).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let widths = Subnet { widths: good.widths, ..preset("tiny").unwrap().smallest() };
        assert!(preset("tiny").unwrap().check(&widths).is_err());
    }
}
