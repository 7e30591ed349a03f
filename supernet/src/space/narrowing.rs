//! A space narrowed to some of its values, as stages of training do, and how they free them again.

use super::dimension::{DIMENSIONS, List, Scope, Value};
use super::{ExpandRatio, SearchSpace, Subnet};
use serde::{Deserialize, Serialize};

/// Values to choose from, by key of [`DIMENSIONS`]. An empty list means the largest value only; resolutions are the
/// exception: empty means all of the space, since resolution is elastic from the start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Narrowing {
    /// Resolutions a batch is drawn at (default: all of the space).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resolutions: Vec<usize>,
    /// Kernel sizes to draw from (default: the largest).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernel_sizes: Vec<usize>,
    /// Depths to draw from (default: the largest).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depths: Vec<usize>,
    /// Expand ratios to draw from (default: the largest).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expand_ratios: Vec<ExpandRatio>,
    /// Widths to draw from (default: the largest): width multipliers of ResNets; of AttentiveNAS the channels of the
    /// boundary with the most widths, which stand for those of the others by rank.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub width_multipliers: Vec<Value>,
}

/// A struct that reads a table of a file in which the lists of a [`Narrowing`] are keys among others. Reading them
/// through serde's `flatten` would lose the line of a mistyped key and the keys to suggest.
macro_rules! table_with_narrowing {
    ($(#[$attribute:meta])* struct $name:ident { $($fields:tt)* }) => {
        $(#[$attribute])*
        struct $name {
            $($fields)*
            #[serde(default)]
            resolutions: Vec<usize>,
            #[serde(default)]
            kernel_sizes: Vec<usize>,
            #[serde(default)]
            depths: Vec<usize>,
            #[serde(default)]
            expand_ratios: Vec<$crate::space::ExpandRatio>,
            #[serde(default)]
            width_multipliers: Vec<$crate::space::Value>,
        }

        impl $name {
            /// The lists, which are empty afterwards.
            fn take_narrowing(&mut self) -> $crate::space::Narrowing {
                use std::mem::take;
                $crate::space::Narrowing {
                    resolutions: take(&mut self.resolutions),
                    kernel_sizes: take(&mut self.kernel_sizes),
                    depths: take(&mut self.depths),
                    expand_ratios: take(&mut self.expand_ratios),
                    width_multipliers: take(&mut self.width_multipliers),
                }
            }
        }
    };
}
pub(crate) use table_with_narrowing;

/// How progressive shrinking frees the values of a key (paper §3.3). The presets' stages follow one another in this
/// order.
#[derive(Debug)]
pub struct Shrinking {
    /// Key of the values.
    pub key: &'static str,
    /// Name of the stages that free them.
    pub stage: &'static str,
    /// Whether one stage frees all of them; otherwise each stage frees one more, from the largest down.
    pub at_once: bool,
    /// Subnets per step in these stages.
    pub subnets: usize,
    /// Channels that smaller values take the first of, so that they are sorted by importance before each stage.
    pub sorts: Option<Channels>,
}

/// Channels that are sorted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channels {
    /// Channels inside blocks.
    Middle,
    /// Channels between blocks.
    Outer,
}

/// The stages of progressive shrinking after that of the largest network.
pub static SHRINKING: [Shrinking; 4] = [
    Shrinking { key: "kernel_sizes", stage: "kernel", at_once: true, subnets: 1, sorts: None },
    Shrinking { key: "depths", stage: "depth", at_once: false, subnets: 2, sorts: None },
    Shrinking { key: "expand_ratios", stage: "width", at_once: false, subnets: 4, sorts: Some(Channels::Middle) },
    Shrinking { key: "width_multipliers", stage: "outer", at_once: false, subnets: 4, sorts: Some(Channels::Outer) },
];

impl Narrowing {
    /// The values of a key.
    pub fn values(&self, key: &str) -> Vec<Value> {
        let list = match key {
            "resolutions" => List::Counts(&self.resolutions),
            "kernel_sizes" => List::Counts(&self.kernel_sizes),
            "depths" => List::Counts(&self.depths),
            "expand_ratios" => List::Ratios(&self.expand_ratios),
            "width_multipliers" => return self.width_multipliers.clone(),
            _ => List::Counts(&[]),
        };
        list.values()
    }

    /// Sets the values of a key.
    pub fn set(&mut self, key: &str, values: &[Value]) {
        let counts = || values.iter().map(|value| value.count()).collect();
        let ratios = || values.iter().map(|value| value.ratio()).collect();
        match key {
            "resolutions" => self.resolutions = counts(),
            "kernel_sizes" => self.kernel_sizes = counts(),
            "depths" => self.depths = counts(),
            "expand_ratios" => self.expand_ratios = ratios(),
            "width_multipliers" => self.width_multipliers = values.to_vec(),
            _ => {}
        }
    }
}

impl SearchSpace {
    /// Whether these channels can be sorted. Shortcuts between equal widths tie the order of AttentiveNAS's channels on
    /// both sides of a block, so that the channels between its blocks keep their order.
    pub fn sorts(&self, channels: Channels) -> bool {
        channels == Channels::Middle || !self.has_boundary_lists()
    }

    /// The space's values of a key, ascending. Stages may have their own.
    pub fn listed(&self, key: &str) -> Vec<Value> {
        let list = match key {
            "resolutions" => List::Counts(&self.resolutions),
            "kernel_sizes" => List::Counts(&self.kernel_sizes),
            "depths" => List::Counts(&self.depths),
            "expand_ratios" => List::Ratios(&self.expand_ratios),
            "width_multipliers" if self.has_boundary_lists() => List::Counts(self.longest_boundary_list()),
            "width_multipliers" => List::Ratios(&self.width_multipliers),
            _ => List::Counts(&[]),
        };
        list.values()
    }

    /// The space with the choices of `subnet` only. Where blocks of a stage differ, the stage keeps the choices of all
    /// of them.
    pub(crate) fn only(&self, subnet: &Subnet) -> SearchSpace {
        fn ascending<T: Ord>(values: impl Iterator<Item = T>) -> Vec<T> {
            let mut values: Vec<T> = values.collect();
            values.sort_unstable();
            values.dedup();
            values
        }
        let mut own = self.clone();
        own.resolutions = vec![subnet.resolution];
        own.kernel_sizes = ascending(subnet.blocks().map(|block| block.kernel));
        own.expand_ratios = ascending(subnet.blocks().map(|block| block.expand));
        own.depths = ascending(subnet.stages.iter().map(Vec::len));
        own.keep_widths(subnet);
        if !own.stem.depths.is_empty() {
            own.stem.depths = vec![subnet.stem_blocks];
        }
        for (stage, blocks) in own.stages.iter_mut().zip(&subnet.stages) {
            stage.depths = vec![blocks.len()];
            stage.kernel_sizes = ascending(blocks.iter().map(|block| block.kernel));
            stage.expand_ratios = ascending(blocks.iter().map(|block| block.expand));
        }
        own
    }

    /// The space with the values of `narrowing` only.
    ///
    /// Lists of single stages, of the stem and of the head are narrowed by rank: they keep their largest value where
    /// the space's list keeps its largest, and so on down. The last value of the shorter list stands for all further
    /// ones of the longer, so that what is free in the space is free in each stage, and a list of one value stays.
    pub fn narrowed(&self, narrowing: &Narrowing) -> SearchSpace {
        let ranks = |key: &str| {
            let (listed, wanted) = (self.listed(key), narrowing.values(key));
            let is_input = DIMENSIONS.iter().any(|dimension| dimension.key == key && dimension.scope == Scope::Input);
            let kept = |(rank, value): (usize, &Value)| match wanted.is_empty() {
                true => is_input || rank == 0,
                false => wanted.contains(value),
            };
            listed.iter().rev().enumerate().map(kept).collect::<Vec<bool>>()
        };
        let (kernel_sizes, depths, expand_ratios) = (ranks("kernel_sizes"), ranks("depths"), ranks("expand_ratios"));
        let mut narrowed = self.clone();
        keep(&mut narrowed.resolutions, &ranks("resolutions"));
        let widths = ranks("width_multipliers");
        keep(&mut narrowed.width_multipliers, &widths);
        keep(&mut narrowed.stem.widths, &widths);
        narrowed.head.iter_mut().for_each(|head| keep(&mut head.widths, &widths));
        keep(&mut narrowed.kernel_sizes, &kernel_sizes);
        keep(&mut narrowed.depths, &depths);
        keep(&mut narrowed.expand_ratios, &expand_ratios);
        keep(&mut narrowed.stem.depths, &depths);
        for stage in &mut narrowed.stages {
            keep(&mut stage.kernel_sizes, &kernel_sizes);
            keep(&mut stage.depths, &depths);
            keep(&mut stage.expand_ratios, &expand_ratios);
            keep(&mut stage.widths, &widths);
        }
        narrowed
    }
}

impl SearchSpace {
    /// Keeps the widths of `subnet`, one of this space, only.
    pub(crate) fn keep_widths(&mut self, subnet: &Subnet) {
        if !self.has_boundary_lists() {
            self.width_multipliers = subnet.widths.iter().map(|width| width.ratio()).collect();
            self.width_multipliers.sort_unstable();
            self.width_multipliers.dedup();
            return;
        }
        let mut widths = subnet.widths.iter().map(|width| width.count());
        let features = subnet.widths[self.stages.len()].count();
        let features = self.feature_channels(features);
        let stages = self.stages.iter_mut().map(|stage| (&mut stage.channels, &mut stage.widths));
        for (channels, list) in [(&mut self.stem.channels, &mut self.stem.widths)].into_iter().chain(stages) {
            (*channels, *list) = (widths.next().unwrap_or(*channels), Vec::new());
        }
        if let Some(head) = &mut self.head {
            (head.feature_channels, head.hidden_channels, head.widths) = (features, widths.next(), Vec::new());
        }
    }
}

/// Keeps the values of `list`, ascending, whose ranks from the largest down are `kept`.
fn keep<T>(list: &mut Vec<T>, kept: &[bool]) {
    let mut rank = list.len();
    let (last, last_kept) = (rank.saturating_sub(1), kept.len().saturating_sub(1));
    list.retain(|_| {
        rank -= 1;
        kept.iter().enumerate().any(|(other, &kept)| kept && other.min(last) == rank.min(last_kept))
    });
}

#[cfg(test)]
mod tests {
    use super::super::preset;
    use super::*;

    #[test]
    fn lists_of_stages_are_narrowed_by_rank() {
        let narrowed = |own: &[usize], wanted: &[usize]| {
            let mut space = preset("mbv3-w1.0").unwrap();
            space.stages[1].depths = own.to_vec();
            space.stages[1].kernel_sizes = own.to_vec();
            let (depths, kernel_sizes) = (wanted.to_vec(), wanted.iter().map(|depth| 2 * depth - 1).collect());
            let narrowed = space.narrowed(&Narrowing { depths, kernel_sizes, ..Narrowing::default() });
            assert_eq!(narrowed.stages[1].depths, narrowed.stages[1].kernel_sizes);
            (narrowed.depths, narrowed.stages[1].depths.clone())
        };
        // The space's depths are 2, 3 and 4, its kernel sizes 3, 5 and 7.
        assert_eq!(narrowed(&[5, 7, 9], &[]), (vec![4], vec![9]));
        assert_eq!(narrowed(&[5, 7, 9], &[2, 4]), (vec![2, 4], vec![5, 9]));
        assert_eq!(narrowed(&[5], &[2, 3]), (vec![2, 3], vec![5]));
        assert_eq!(narrowed(&[5, 7], &[3, 4]), (vec![3, 4], vec![5, 7]));
        assert_eq!(narrowed(&[5, 7], &[2]), (vec![2], vec![5]));
        assert_eq!(narrowed(&[1, 3, 5, 7, 9], &[3, 4]), (vec![3, 4], vec![7, 9]));
        assert_eq!(narrowed(&[1, 3, 5, 7, 9], &[2, 3, 4]), (vec![2, 3, 4], vec![1, 3, 5, 7, 9]));
        assert_eq!(narrowed(&[], &[2]), (vec![2], vec![]));
    }

    #[test]
    fn every_key_can_be_read_and_written() {
        let space = preset("resnet50d").unwrap();
        let mut narrowing = Narrowing::default();
        for dimension in &DIMENSIONS {
            let listed = space.listed(dimension.key);
            assert!(!listed.is_empty(), "{}", dimension.key);
            narrowing.set(dimension.key, &listed);
            assert_eq!(narrowing.values(dimension.key), listed);
        }
        assert!(SHRINKING.iter().all(|step| DIMENSIONS.iter().any(|dimension| dimension.key == step.key)));
        assert_eq!(space.narrowed(&narrowing), space);
    }
}
