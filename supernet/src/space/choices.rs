//! The subnets of a space: its extremes, random ones, neighbours, their number, and whether a subnet lies in it.

use super::{BlockChoice, ExpandRatio, Ratio, SearchSpace, Subnet};
use crate::{Error, Result};
use rand::Rng;
use std::fmt;

impl SearchSpace {
    /// Number of width multipliers of a subnet: for the stem's first convolutions, its last, and each stage; 0 where widths are
    /// not elastic.
    pub fn width_choices(&self) -> usize {
        if self.width_multipliers.is_empty() { 0 } else { 2 + self.stages.len() }
    }

    /// The subnet in which every stage has its depth choice number `depth` (from 0; a stage with a single choice keeps it), and
    /// all blocks the same kernel and expand ratio. Widths and stem are the largest.
    pub fn uniform(&self, resolution: usize, depth: usize, kernel: usize, expand: ExpandRatio) -> Subnet {
        let stage = |stage: usize| {
            let depths = self.stage_depths(stage);
            vec![BlockChoice { kernel, expand }; depths[depth.min(depths.len() - 1)]]
        };
        Subnet {
            resolution,
            widths: self.width_multipliers.last().map_or(Vec::new(), |&width| vec![width; self.width_choices()]),
            stem_blocks: self.stem.depths.last().copied().unwrap_or(0),
            stages: (0..self.stages.len()).map(stage).collect(),
        }
    }

    /// The largest subnet: everything at its maximum.
    pub fn largest(&self) -> Subnet {
        self.uniform(
            *self.resolutions.last().expect("validated"),
            self.depths.len() - 1,
            self.max_kernel(),
            self.max_expand(),
        )
    }

    /// The smallest subnet: everything at its minimum.
    pub fn smallest(&self) -> Subnet {
        Subnet {
            widths: self.width_multipliers.first().map_or(Vec::new(), |&width| vec![width; self.width_choices()]),
            stem_blocks: self.stem.depths.first().copied().unwrap_or(0),
            ..self.uniform(self.resolutions[0], 0, self.kernel_sizes[0], self.expand_ratios[0])
        }
    }

    /// The subnet in the middle of every list of choices.
    pub fn middle(&self) -> Subnet {
        fn middle<T: Copy>(list: &[T]) -> Option<T> {
            list.get(list.len() / 2).copied()
        }
        let uniform = self.uniform(
            self.resolutions[self.resolutions.len() / 2],
            self.depths.len() / 2,
            self.kernel_sizes[self.kernel_sizes.len() / 2],
            self.expand_ratios[self.expand_ratios.len() / 2],
        );
        Subnet {
            widths: middle(&self.width_multipliers).map_or(Vec::new(), |width| vec![width; self.width_choices()]),
            stem_blocks: middle(&self.stem.depths).unwrap_or(0),
            ..uniform
        }
    }

    /// A random subnet: every choice is drawn uniformly and alone (paper §3.3). Resolution, stem, widths and depth come first, then
    /// only the active blocks, so that equal networks are equally likely to be drawn whatever the inactive ones would be.
    pub fn sample(&self, rng: &mut impl Rng) -> Subnet {
        let resolution = pick(&self.resolutions, rng);
        let stem_blocks = if self.stem.depths.is_empty() { 0 } else { pick(&self.stem.depths, rng) };
        let widths = (0..self.width_choices()).map(|_| pick(&self.width_multipliers, rng)).collect();
        let stages = (0..self.stages.len())
            .map(|stage| {
                let depth = pick(self.stage_depths(stage), rng);
                (0..depth).map(|_| self.sample_block(rng)).collect()
            })
            .collect();
        Subnet { resolution, widths, stem_blocks, stages }
    }

    /// A random kernel and expand ratio.
    pub fn sample_block(&self, rng: &mut impl Rng) -> BlockChoice {
        BlockChoice { kernel: pick(&self.kernel_sizes, rng), expand: pick(&self.expand_ratios, rng) }
    }

    /// All subnets that differ from `subnet` in one choice. A stage that grows repeats its last block's choice.
    pub fn neighbours(&self, subnet: &Subnet) -> Vec<Subnet> {
        let mut found = Vec::new();
        let mut add = |change: &dyn Fn(&mut Subnet)| {
            let mut other = subnet.clone();
            change(&mut other);
            if other != *subnet {
                found.push(other);
            }
        };
        for &resolution in &self.resolutions {
            add(&|s| s.resolution = resolution);
        }
        for &blocks in &self.stem.depths {
            add(&|s| s.stem_blocks = blocks);
        }
        for place in 0..subnet.widths.len() {
            for &width in &self.width_multipliers {
                add(&|s| s.widths[place] = width);
            }
        }
        for stage in 0..subnet.stages.len() {
            for &depth in self.stage_depths(stage) {
                add(&|s| {
                    let last = *s.stages[stage].last().expect("a stage has at least one block");
                    s.stages[stage].resize(depth, last);
                });
            }
            for block in 0..subnet.stages[stage].len() {
                for &kernel in &self.kernel_sizes {
                    add(&|s| s.stages[stage][block].kernel = kernel);
                }
                for &expand in &self.expand_ratios {
                    add(&|s| s.stages[stage][block].expand = expand);
                }
            }
        }
        found
    }

    /// Number of different subnets (exact up to 2^53, then rounded as every `f64`).
    pub fn count(&self) -> f64 {
        let block = (self.kernel_sizes.len() * self.expand_ratios.len()) as f64;
        let stage = |stage| -> f64 { self.stage_depths(stage).iter().map(|&d| block.powi(d as i32)).sum() };
        let widths = (self.width_multipliers.len() as f64).powi(self.width_choices() as i32);
        let stem = self.stem.depths.len().max(1) as f64;
        self.resolutions.len() as f64 * stem * widths * (0..self.stages.len()).map(stage).product::<f64>()
    }

    /// Checks that `subnet` lies in this space.
    ///
    /// # Errors
    /// The first choice outside the space, with the allowed values.
    pub fn check(&self, subnet: &Subnet) -> Result<()> {
        allowed("resolution", &subnet.resolution, &self.resolutions)?;
        if subnet.stages.len() != self.stages.len() {
            return Err(Error::Subnet(format!(
                "{} stages given, the space '{}' has {}",
                subnet.stages.len(),
                self.name,
                self.stages.len()
            )));
        }
        if subnet.widths.len() != self.width_choices() {
            return Err(Error::Subnet(format!(
                "{} width multipliers given, subnets of the space '{}' have {}",
                subnet.widths.len(),
                self.name,
                self.width_choices()
            )));
        }
        for width in &subnet.widths {
            allowed("width multiplier", width, &self.width_multipliers)?;
        }
        let stem_depths = if self.stem.depths.is_empty() { &[0] } else { &self.stem.depths[..] };
        allowed("number of blocks in the stem", &subnet.stem_blocks, stem_depths)?;
        for (index, stage) in subnet.stages.iter().enumerate() {
            allowed(&format!("depth of stage {}", index + 1), &stage.len(), self.stage_depths(index))?;
            for block in stage {
                allowed(&format!("kernel in stage {}", index + 1), &block.kernel, &self.kernel_sizes)?;
                allowed(&format!("expand ratio in stage {}", index + 1), &block.expand, &self.expand_ratios)?;
            }
        }
        Ok(())
    }

    /// Pairs of width multipliers, or one pair of nothing: with the first at even and the second at odd places of a subnet's widths,
    /// all pairs together put every combination of two neighbouring widths everywhere.
    pub fn width_pairs(&self) -> Vec<Vec<Ratio>> {
        if self.width_multipliers.is_empty() {
            return vec![Vec::new()];
        }
        let alternate = |a, b| (0..self.width_choices()).map(|place| if place % 2 == 0 { a } else { b }).collect();
        let second = |&a| self.width_multipliers.iter().map(move |&b| alternate(a, b));
        self.width_multipliers.iter().flat_map(second).collect()
    }
}

/// A uniformly drawn element.
fn pick<T: Copy>(list: &[T], rng: &mut impl Rng) -> T {
    list[rng.random_range(0..list.len())]
}

fn allowed<T: PartialEq + fmt::Display>(what: &str, value: &T, choices: &[T]) -> Result<()> {
    if choices.contains(value) {
        return Ok(());
    }
    let choices: Vec<String> = choices.iter().map(T::to_string).collect();
    Err(Error::Subnet(format!("{what} is {value}; allowed are {}", choices.join(", "))))
}

#[cfg(test)]
mod tests {
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
        // Reference: 3 depths a stage around 2, 2, 4, 2 blocks, 3 expand ratios, 6 widths of 3, the stem block there or not.
        let space = preset("resnet50d").unwrap();
        let blocks = |least: i32| (least..least + 3).map(|d| 3f64.powi(d)).sum::<f64>();
        let expected = 2.0 * 3f64.powi(6) * blocks(2).powi(3) * blocks(4);
        assert_eq!(space.count(), expected * space.resolutions.len() as f64);
        let good = space.smallest();
        for (change, part) in [
            ((|s: &mut Subnet| s.stem_blocks = 2) as fn(&mut Subnet), "stem is 2; allowed are 0, 1"),
            (|s| s.widths[1] = Ratio::try_from(0.7).unwrap(), "width multiplier is 0.7; allowed are 0.65, 0.8, 1"),
            (|s| s.widths.truncate(3), "3 width multipliers given"),
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

    #[test]
    fn width_pairs_bring_all_neighbouring_widths_together() {
        let space = preset("resnet50d").unwrap();
        let pairs = space.width_pairs();
        for place in 1..space.width_choices() {
            for &before in &space.width_multipliers {
                for &after in &space.width_multipliers {
                    assert!(pairs.iter().any(|widths| (widths[place - 1], widths[place]) == (before, after)));
                }
            }
        }
        assert_eq!(preset("tiny").unwrap().width_pairs(), [Vec::new()]);
    }
}
