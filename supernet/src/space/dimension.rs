//! The elastic dimensions as data: what a subnet chooses, where, and among which values.
//!
//! [`DIMENSIONS`] describes each dimension once, and [`SearchSpace::places`] lists every choice of a space's subnets.
//! Text form, samples, genes, features, stages of training, profiles and tables of costs go over these lists.
//!
//! A new dimension is a row here and an arm in the functions of [`Dimension`] and in `SearchSpace::list`. By name know
//! it, besides the layers that it shapes: [`Subnet`] (a field, and its word in the text form), `narrowing` (the lists
//! that a stage of training narrows, and `SHRINKING`, which frees them), `keys` and `validation`, and what reads
//! subnets of others (`import/setting`, `evaluate/src/model/published`).

use super::{BlockChoice, Ratio, SearchSpace, Subnet};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// A value of a dimension, exact to a thousandth: a number of pixels, blocks, taps or channels, or a ratio.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Value(u64);

/// Largest number that a value has where a file or a text spells it.
const LARGEST: f64 = 65_536.0;

impl Value {
    /// The value as a number.
    pub fn number(self) -> f64 {
        self.0 as f64 / 1000.0
    }

    pub(super) fn count(self) -> usize {
        (self.0 / 1000) as usize
    }

    pub(super) fn ratio(self) -> Ratio {
        Ratio(u32::try_from(self.0).unwrap_or(u32::MAX))
    }
}

impl From<usize> for Value {
    fn from(count: usize) -> Self {
        Value((count as u64).saturating_mul(1000))
    }
}

impl TryFrom<f64> for Value {
    type Error = String;
    fn try_from(number: f64) -> Result<Self, String> {
        let thousandths = (number * 1000.0).round();
        if !(1.0..=1000.0 * LARGEST).contains(&thousandths) {
            return Err(format!("{number} is not between 0.001 and {LARGEST}"));
        }
        Ok(Value(thousandths as u64))
    }
}

impl From<Value> for f64 {
    fn from(value: Value) -> f64 {
        value.number()
    }
}

impl From<Ratio> for Value {
    fn from(ratio: Ratio) -> Self {
        Value(u64::from(ratio.0))
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, thousandths) = (self.0 / 1000, self.0 % 1000);
        match format!("{thousandths:03}").trim_end_matches('0') {
            "" => write!(f, "{whole}"),
            digits => write!(f, "{whole}.{digits}"),
        }
    }
}

/// What a choice of a dimension belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The images.
    Input,
    /// The layers before the first block.
    Stem,
    /// The channels between two parts of the network. Parts are the stem, each stage, and what follows the last one.
    Boundary,
    /// A stage.
    Stage,
    /// A block of a stage.
    Block,
}

/// Where in a network a choice belongs; stages, blocks and boundaries count from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are numbers of what the variant names")]
pub enum At {
    /// The images.
    Input,
    /// The layers before the first block.
    Stem,
    /// An elastic boundary, counted from the space's first; [`SearchSpace::part_after`] tells where it lies.
    Boundary(usize),
    /// A stage.
    Stage(usize),
    /// A block of a stage.
    Block { stage: usize, block: usize },
}

/// An elastic dimension.
#[derive(Debug)]
pub struct Dimension {
    /// Name in messages.
    pub name: &'static str,
    /// Letter in a subnet's text form.
    pub letter: char,
    /// Key of the values in settings. Dimensions with one key are narrowed together, see [`SearchSpace::narrowed`].
    pub key: &'static str,
    /// What each choice belongs to.
    pub scope: Scope,
    /// Whether the value is a number of layers or blocks; a shallower network has the first ones of a deeper one.
    pub is_depth: bool,
    /// Power of the value that a network's work grows with.
    pub work_exponent: i32,
    field: Field,
}

/// Part of a [`Subnet`] that holds the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Resolution,
    StemBlocks,
    Width,
    Depth,
    Kernel,
    Expand,
}

/// All dimensions, in the order of genes.
pub static DIMENSIONS: [Dimension; 6] = {
    const fn row(field: Field, name: &'static str, letter: char, key: &'static str, scope: Scope) -> Dimension {
        Dimension { name, letter, key, scope, is_depth: false, work_exponent: 0, field }
    }
    use Field::*;
    [
        row(Resolution, "resolution", 'r', "resolutions", Scope::Input),
        Dimension { is_depth: true, ..row(StemBlocks, "number of stem blocks", 's', "depths", Scope::Stem) },
        Dimension { work_exponent: 2, ..row(Width, "width", 'w', "width_multipliers", Scope::Boundary) },
        Dimension { is_depth: true, work_exponent: 1, ..row(Depth, "depth", 'd', "depths", Scope::Stage) },
        row(Kernel, "kernel", 'k', "kernel_sizes", Scope::Block),
        Dimension { work_exponent: 1, ..row(Expand, "expand ratio", 'e', "expand_ratios", Scope::Block) },
    ]
};

impl Dimension {
    /// Number of the dimension in [`DIMENSIONS`].
    pub fn index(&self) -> usize {
        self.field as usize
    }

    /// The value that `subnet` has at a place of this dimension's scope; `None` if it has no such place.
    #[inline]
    pub fn value(&self, subnet: &Subnet, at: At) -> Option<Value> {
        // Blocks that choose together have the value of the first, see `SearchSpace::has_parts_of`.
        let block = || match at {
            At::Block { stage, block } => subnet.stages.get(stage)?.get(block),
            At::Stage(stage) => subnet.stages.get(stage)?.first(),
            _ => None,
        };
        match (self.field, at) {
            (Field::Resolution, _) => Some(subnet.resolution.into()),
            (Field::StemBlocks, _) => Some(subnet.stem_blocks.into()),
            (Field::Width, At::Boundary(boundary)) => subnet.widths.get(boundary).copied(),
            (Field::Depth, At::Stage(stage)) => subnet.stages.get(stage).map(|blocks| blocks.len().into()),
            (Field::Kernel, _) => block().map(|block| block.kernel.into()),
            (Field::Expand, _) => block().map(|block| block.expand.into()),
            _ => None,
        }
    }

    /// Sets the value at a place. A subnet is written from empty in the order of places: boundaries and stages that it
    /// lacks are added. A stage that grows repeats its last block.
    #[inline]
    pub(super) fn set(&self, subnet: &mut Subnet, at: At, value: Value) {
        match (self.field, at) {
            (Field::Resolution, _) => subnet.resolution = value.count(),
            (Field::StemBlocks, _) => subnet.stem_blocks = value.count(),
            (Field::Width, At::Boundary(boundary)) => {
                subnet.widths.resize((boundary + 1).max(subnet.widths.len()), value);
                subnet.widths[boundary] = value;
            }
            (Field::Depth, At::Stage(stage)) => {
                subnet.stages.resize((stage + 1).max(subnet.stages.len()), Vec::new());
                let blocks = &mut subnet.stages[stage];
                let unset = BlockChoice { kernel: 0, expand: Ratio(0) };
                blocks.resize(value.count(), blocks.last().copied().unwrap_or(unset));
            }
            (Field::Kernel, At::Block { stage, block }) => subnet.stages[stage][block].kernel = value.count(),
            (Field::Expand, At::Block { stage, block }) => subnet.stages[stage][block].expand = value.ratio(),
            (Field::Kernel, At::Stage(stage)) => {
                subnet.stages[stage].iter_mut().for_each(|block| block.kernel = value.count());
            }
            (Field::Expand, At::Stage(stage)) => {
                subnet.stages[stage].iter_mut().for_each(|block| block.expand = value.ratio());
            }
            (field, at) => unreachable!("{field:?} is not chosen at {at:?}"),
        }
    }

    /// Reads a value as a text form spells it; the error is empty or says what is wrong with the number.
    pub(super) fn parse(&self, text: &str) -> Result<Value, String> {
        match self.field {
            Field::Width => Value::try_from(text.parse::<f64>().map_err(|_| String::new())?),
            Field::Expand => {
                let ratio = text.parse::<f64>().map_err(|_| String::new())?;
                Ok(Ratio::try_from(ratio)?.into())
            }
            _ => match text.parse::<usize>() {
                Ok(count) if Value::from(count).count() == count => Ok(count.into()),
                _ => Err(String::new()),
            },
        }
    }

    /// The places of this dimension in `subnet`, in order.
    pub(super) fn all_at<'a>(&self, subnet: &'a Subnet) -> impl Iterator<Item = At> + use<'a> {
        let (whole, boundaries, stages, blocks) = match self.scope {
            Scope::Input => (Some(At::Input), 0, 0, &[][..]),
            Scope::Stem => (Some(At::Stem), 0, 0, &[][..]),
            Scope::Boundary => (None, subnet.widths.len(), 0, &[][..]),
            Scope::Stage => (None, 0, subnet.stages.len(), &[][..]),
            Scope::Block => (None, 0, 0, &subnet.stages[..]),
        };
        let of_stage = |(stage, blocks): (usize, &Vec<BlockChoice>)| {
            (0..blocks.len()).map(move |block| At::Block { stage, block })
        };
        let (boundaries, stages) = ((0..boundaries).map(At::Boundary), (0..stages).map(At::Stage));
        whole.into_iter().chain(boundaries).chain(stages).chain(blocks.iter().enumerate().flat_map(of_stage))
    }
}

/// Values as settings list them, ascending.
#[derive(Debug, Clone, Copy)]
pub(super) enum List<'a> {
    Counts(&'a [usize]),
    Ratios(&'a [Ratio]),
}

impl List<'_> {
    pub(super) fn values<C: FromIterator<Value>>(self) -> C {
        match self {
            List::Counts(list) => list.iter().map(|&count| count.into()).collect(),
            List::Ratios(list) => list.iter().map(|&ratio| ratio.into()).collect(),
        }
    }

    fn contains(self, value: Value) -> bool {
        match self {
            List::Counts(list) => list.iter().any(|&count| value == count.into()),
            List::Ratios(list) => list.iter().any(|&ratio| value == ratio.into()),
        }
    }

    fn is_empty(self) -> bool {
        matches!(self, List::Counts([]) | List::Ratios([]))
    }
}

/// One choice of the subnets of a space.
#[derive(Debug, Clone)]
pub struct Place {
    /// What is chosen.
    pub dimension: &'static Dimension,
    /// What it is chosen for.
    pub at: At,
    /// The values to choose from, ascending. Empty where the space has no such choice, though its subnets have the
    /// value 0 there: nothing is drawn, and there is nothing to learn, but the gene exists.
    pub values: Arc<[Value]>,
    /// When a subnet has the place; `None`: always.
    pub needs: Option<Need>,
    /// Number of the place whose value is taken over when a subnet gets this one: that of the block before.
    pub repeats: Option<usize>,
}

/// A condition on an earlier choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Number of the earlier place.
    pub place: usize,
    /// Number of the smallest of its values that meets the condition.
    pub least: usize,
}

impl At {
    /// The stage that the place belongs to, if any.
    pub fn stage(self) -> Option<usize> {
        match self {
            At::Stage(stage) | At::Block { stage, .. } => Some(stage),
            At::Input | At::Stem | At::Boundary(_) => None,
        }
    }
}

impl Place {
    /// The value that `subnet` has here; `None` if it lacks the place.
    #[inline]
    pub fn value(&self, subnet: &Subnet) -> Option<Value> {
        self.dimension.value(subnet, self.at)
    }

    /// The stage that the place belongs to, if any.
    pub fn stage(&self) -> Option<usize> {
        self.at.stage()
    }

    /// Number of the value that `subnet` has here, 0 where there is nothing to choose; `None` if it lacks the place or
    /// its value is not among the space's.
    #[inline]
    pub fn choice(&self, subnet: &Subnet) -> Option<usize> {
        let value = self.value(subnet)?;
        match &self.values[..] {
            [] => (value == Value(0)).then_some(0),
            values => values.iter().position(|allowed| *allowed == value),
        }
    }

    /// Gives `subnet`, which has the place, value number `choice`.
    #[inline]
    pub fn choose(&self, subnet: &mut Subnet, choice: usize) {
        if let Some(&value) = self.values.get(choice) {
            self.dimension.set(subnet, self.at, value);
        }
    }

    /// The place in words.
    pub(super) fn description(&self) -> String {
        match self.at {
            At::Input | At::Stem | At::Boundary(_) => self.dimension.name.to_string(),
            At::Stage(stage) => format!("{} of stage {}", self.dimension.name, stage + 1),
            At::Block { stage, .. } => format!("{} in stage {}", self.dimension.name, stage + 1),
        }
    }
}

/// The subnet for which `choose` gives the number of each value, from a place's number and the place. Places come in
/// order, and only those that the subnet has.
pub fn assemble(places: &[Place], mut choose: impl FnMut(usize, &Place) -> usize) -> Subnet {
    let mut subnet = Subnet { resolution: 0, widths: Vec::new(), stem_blocks: 0, stages: Vec::new() };
    for (number, place) in places.iter().enumerate() {
        let exists = match place.at {
            At::Block { stage, block } => block < subnet.stages[stage].len(),
            _ => true,
        };
        if exists {
            place.choose(&mut subnet, choose(number, place));
        }
    }
    subnet
}

impl SearchSpace {
    /// Every choice of the space's subnets: first those of the whole network, then for each stage its own and those of
    /// each of its blocks (or of all of them together, where stages are uniform), each in the order of [`DIMENSIONS`].
    /// A place that another one needs comes before it.
    pub fn places(&self) -> Vec<Place> {
        let mut places = Vec::new();
        let place = |dimension, at: At, needs, repeats| {
            let values = self.list(dimension, at).values();
            Place { dimension, at, values, needs, repeats }
        };
        for dimension in &DIMENSIONS {
            match dimension.scope {
                Scope::Input => places.push(place(dimension, At::Input, None, None)),
                Scope::Stem => places.push(place(dimension, At::Stem, None, None)),
                Scope::Boundary => {
                    let boundary = |number| place(dimension, At::Boundary(number), None, None);
                    places.extend((0..self.width_choices()).map(boundary));
                }
                Scope::Stage | Scope::Block => {}
            }
        }
        let of_scope = |scope| DIMENSIONS.iter().filter(move |dimension| dimension.scope == scope);
        for stage in 0..self.stages.len() {
            let first = places.len();
            places.extend(of_scope(Scope::Stage).map(|dimension| place(dimension, At::Stage(stage), None, None)));
            if self.uniform_stages {
                places.extend(of_scope(Scope::Block).map(|dimension| place(dimension, At::Stage(stage), None, None)));
                continue;
            }
            let is_depth = |place: &Place| place.dimension.is_depth;
            let depth = first + places[first..].iter().position(is_depth).expect("stages have a depth");
            let depths = places[depth].values.clone();
            for block in 0..depths.last().map_or(0, |most| most.count()) {
                let least = depths.iter().position(|depth| depth.count() > block).expect("below the largest depth");
                for dimension in of_scope(Scope::Block) {
                    let repeats = (block > 0).then(|| places.len() - of_scope(Scope::Block).count());
                    let at = At::Block { stage, block };
                    places.push(place(dimension, at, Some(Need { place: depth, least }), repeats));
                }
            }
        }
        places
    }

    /// Whether `value` is one of those of `dimension` at a place of the space.
    pub(super) fn allows(&self, dimension: &Dimension, at: At, value: Value) -> bool {
        let list = self.list(dimension, at);
        list.contains(value) || (list.is_empty() && value == Value(0))
    }

    /// The values of `dimension` at a place: those of its stage, where that has its own, otherwise the space's.
    fn list(&self, dimension: &Dimension, at: At) -> List<'_> {
        let stage = at.stage().unwrap_or(0);
        match dimension.field {
            Field::Resolution => List::Counts(&self.resolutions),
            Field::StemBlocks => List::Counts(&self.stem.depths),
            Field::Width => match at {
                At::Boundary(boundary) if self.has_boundary_lists() => List::Counts(self.boundary_widths(boundary)),
                _ => List::Ratios(&self.width_multipliers),
            },
            Field::Depth => List::Counts(self.stage_depths(stage)),
            Field::Kernel => List::Counts(self.stage_kernel_sizes(stage)),
            Field::Expand => List::Ratios(self.stage_expand_ratios(stage)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::preset;
    use super::*;

    #[test]
    fn values_are_spelled_as_numbers() {
        for number in [0.001, 0.65, 1.0, 1.05, 2.5, 3.333, 100.0] {
            let ratio = Ratio::try_from(number).unwrap();
            assert_eq!(Value::from(ratio).to_string(), ratio.to_string());
            assert_eq!((Value::from(ratio).ratio(), Value::from(ratio).number()), (ratio, number));
        }
        assert_eq!((Value::from(160).to_string(), Value::from(160).count()), ("160".into(), 160));
    }

    #[test]
    fn places_come_after_those_that_they_need() {
        let mut space = preset("tiny").unwrap();
        space.stages[1].depths = vec![1, 3];
        let places = space.places();
        assert_eq!(places.iter().map(|place| place.dimension.letter).collect::<String>(), "rsdkekedkekeke");
        assert!(places.iter().enumerate().all(|(number, place)| place.needs.is_none_or(|need| need.place < number)));
        // The second stage: blocks 1 and 2 come with its second depth, and each repeats the block before.
        let second = |number: usize| (places[number].needs.unwrap(), places[number].repeats);
        assert_eq!(second(8), (Need { place: 7, least: 0 }, None));
        assert_eq!(second(10), (Need { place: 7, least: 1 }, Some(8)));
        assert_eq!(second(13), (Need { place: 7, least: 1 }, Some(11)));
    }

    #[test]
    fn a_value_is_set_and_read_where_it_belongs() {
        let space = preset("resnet-tiny").unwrap();
        for place in space.places() {
            let mut subnet = space.smallest();
            if place.value(&subnet).is_none() {
                subnet = space.largest();
            }
            for choice in 0..place.values.len() {
                place.choose(&mut subnet, choice);
                assert_eq!(place.choice(&subnet), Some(choice), "{}", place.description());
                space.check(&subnet).unwrap();
            }
        }
    }
}
