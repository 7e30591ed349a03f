//! One stage of the training configuration: how long, what may be drawn, how, and who teaches.

use super::checks::{LARGE, fail};
use super::stage_images::StageImages;
use super::taught::{Taught, Teacher};
use crate::data::Augmentation;
use crate::space::{
    Channels, DIMENSIONS, Dimension, Narrowing, Place, SHRINKING, SearchSpace, Subnet, table_with_narrowing,
};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// One stage of progressive shrinking.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "StageTable")]
pub struct StageConfig {
    /// Name in metrics and on the progress bar.
    pub name: String,
    /// Length in epochs, warm-up included; fractions are allowed.
    pub epochs: f64,
    /// Peak learning rate of the stage's own schedule; absent where the configuration has one over all stages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Epochs of linear warm-up of the stage's own schedule (default 0).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_epochs: Option<f64>,
    /// Images per step, if not the configuration's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    /// Label smoothing, if not the configuration's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_smoothing: Option<f64>,
    /// What is drawn, a list for each key.
    #[serde(flatten)]
    pub narrowing: Narrowing,
    /// The only subnet that the stage trains (default: it draws subnets).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Subnet>,
    /// Subnets whose gradients are summed in a step (default 1).
    pub subnets_per_step: usize,
    /// How the subnets of a step are drawn (default: uniformly).
    pub sampling: Sampling,
    /// Subnets of like work among which `best_up` and `worst_up` choose each (default 3).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub candidates: Option<usize>,
    /// Weight of the distillation loss (default 0: no teacher). The first stage has no frozen teacher.
    pub kd_ratio: f64,
    /// Whose soft labels are distilled (default: the frozen teacher's).
    pub teacher: Teacher,
    /// How a subnet with a teacher learns from labels and teacher (default: from both, from the first step on).
    #[serde(skip_serializing_if = "is_default")]
    pub taught: Taught,
    /// Sorts channels by importance before this stage, as width stage 1, 2, ... (default: not at all).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sort_channels: Option<usize>,
    /// Sorts the channels between blocks by importance before this stage, as outer stage 1, 2, ... (default: not at
    /// all); ResNets only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sort_outer_channels: Option<usize>,
    /// Resolutions of the stage's images, in place of those that are drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<StageImages>,
    /// Random changes of the stage's images, if not the configuration's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub augmentation: Option<Augmentation>,
}

table_with_narrowing! {
    /// A stage as a file writes it.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct StageTable {
        name: String,
        epochs: f64,
        learning_rate: Option<f64>,
        warmup_epochs: Option<f64>,
        batch: Option<usize>,
        label_smoothing: Option<f64>,
        subnet: Option<Subnet>,
        #[serde(default = "one")]
        subnets_per_step: usize,
        #[serde(default)]
        sampling: Sampling,
        candidates: Option<usize>,
        #[serde(default)]
        kd_ratio: f64,
        #[serde(default)]
        teacher: Teacher,
        #[serde(default)]
        taught: Taught,
        sort_channels: Option<usize>,
        sort_outer_channels: Option<usize>,
        images: Option<StageImages>,
        augmentation: Option<Augmentation>,
    }
}

impl From<StageTable> for StageConfig {
    fn from(mut table: StageTable) -> Self {
        let narrowing = table.take_narrowing();
        StageConfig {
            name: table.name,
            epochs: table.epochs,
            learning_rate: table.learning_rate,
            // Of a schedule of its own; written down, so that files say it.
            warmup_epochs: table.warmup_epochs.or(table.learning_rate.map(|_| 0.0)),
            batch: table.batch,
            label_smoothing: table.label_smoothing,
            narrowing,
            subnet: table.subnet,
            subnets_per_step: table.subnets_per_step,
            sampling: table.sampling,
            candidates: table.candidates,
            kd_ratio: table.kd_ratio,
            teacher: table.teacher,
            taught: table.taught,
            sort_channels: table.sort_channels,
            sort_outer_channels: table.sort_outer_channels,
            images: table.images,
            augmentation: table.augmentation,
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn one() -> usize {
    1
}

/// Candidates where a stage does not say.
const CANDIDATES: usize = 3;

/// How the subnets of a step are drawn from what a stage may draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampling {
    /// Each uniformly (Once-for-All, §3.3).
    #[default]
    Uniform,
    /// The first is the largest, from three subnets on the second is the smallest, the others are uniform (BigNAS,
    /// §3.1: the sandwich rule). The largest subnet keeps learning while the others catch up.
    Sandwich,
    /// As a sandwich, but each of the others is the best of `candidates` random subnets of like work, by its loss on
    /// the step's images (AttentiveNAS, §4: BestUp): what may end on the Pareto front is trained most.
    BestUp,
    /// As `BestUp`, but with the worst of the candidates (AttentiveNAS, §4: WorstUp): what lags behind is trained most.
    WorstUp,
}

impl StageConfig {
    /// Subnets among which `best_up` and `worst_up` choose each.
    pub fn candidates(&self) -> usize {
        self.candidates.unwrap_or(CANDIDATES)
    }

    /// `space` narrowed to what this stage may draw; of a stage that trains one subnet, the space with its resolution.
    pub fn choices(&self, space: &SearchSpace) -> SearchSpace {
        match &self.subnet {
            Some(subnet) => SearchSpace { resolutions: vec![subnet.resolution], ..space.clone() },
            None => space.narrowed(&self.narrowing),
        }
    }

    /// Work of one step for one image, in forward passes of the largest subnet. A backward pass counts as two forward
    /// passes, and a subnet's work is taken as proportional to its mean value of each dimension, to the power that work
    /// grows with. Good for remaining times only.
    pub fn relative_cost(&self, space: &SearchSpace) -> f64 {
        let (all, drawn) = (space.places(), self.choices(space).places());
        let most = work(&all, Role::Largest);
        let of = |role| work(&drawn, role) / most;
        let subnets: f64 = (0..self.subnets_per_step).map(|index| of(self.role(index))).sum();
        let scoring = match self.sampling {
            Sampling::Uniform | Sampling::Sandwich => 0.0,
            Sampling::BestUp | Sampling::WorstUp => {
                let random = (0..self.subnets_per_step).filter(|&index| self.role(index) == Role::Random).count();
                (random * self.candidates()) as f64 * of(Role::Random)
            }
        };
        let teacher = if self.has_frozen_teacher() { 1.0 } else { 0.0 };
        let images = self.images.as_ref().map_or(1.0, |images| {
            let drawn = self.choices(space).resolutions;
            images.pixels() * drawn.len() as f64 / drawn.iter().map(|r| (r * r) as f64).sum::<f64>()
        });
        images * (teacher + scoring + 3.0 * subnets)
    }

    /// Whether the stage distils from the frozen teacher.
    pub fn has_frozen_teacher(&self) -> bool {
        self.kd_ratio > 0.0 && self.teacher == Teacher::Frozen
    }

    /// What subnet `index` of a step is.
    pub(super) fn role(&self, index: usize) -> Role {
        match (self.sampling, index) {
            (Sampling::Uniform, _) => Role::Random,
            (_, 0) => Role::Largest,
            (_, 1) if self.subnets_per_step > 2 => Role::Smallest,
            _ => Role::Random,
        }
    }
}

/// Work of a subnet that is largest, smallest or random among those with `places`, in any unit: for each dimension the
/// mean over its places of the value, of a random subnet the mean value, to the power that work grows with; their
/// product.
fn work(places: &[Place], role: Role) -> f64 {
    let of_dimension = |dimension: &Dimension| {
        let of_place = |place: &Place| {
            let mut powers = place.values.iter().map(|value| value.number().powi(dimension.work_exponent));
            match role {
                Role::Largest => powers.next_back().unwrap_or(1.0),
                Role::Smallest => powers.next().unwrap_or(1.0),
                Role::Random => powers.sum::<f64>() / place.values.len() as f64,
            }
        };
        let places = || places.iter().filter(|place| place.dimension.index() == dimension.index());
        match places().count() {
            0 => 1.0,
            count => places().map(of_place).sum::<f64>() / count as f64,
        }
    };
    DIMENSIONS.iter().filter(|dimension| dimension.work_exponent > 0).map(of_dimension).product()
}

/// What a subnet of a step is among those that its stage may draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Largest,
    Smallest,
    Random,
}

impl StageConfig {
    /// Checks every value of the stage number `index`, also against the space. Before the first stage only another run
    /// has a teacher.
    pub(super) fn validate(&self, index: usize, space: &SearchSpace, has_other_teacher: bool) -> Result<()> {
        let fail = |message: String| fail(format!("stage '{}': {message}", self.name));
        if self.name.trim().is_empty() {
            return Err(Error::Config(format!("stage {} has an empty name", index + 1)));
        }
        if !(self.epochs > 0.0 && self.epochs <= 1e6) {
            return fail(format!("epochs = {} must be above 0 and at most a million", self.epochs));
        }
        if let Some(warmup) = self.warmup_epochs
            && !(0.0..=self.epochs).contains(&warmup)
        {
            return fail(format!("warmup_epochs = {warmup} must lie between 0 and epochs = {}", self.epochs));
        }
        if let Some(rate) = self.learning_rate
            && !(rate > 0.0 && rate <= LARGE)
        {
            return fail(format!("learning_rate = {rate} must be above 0 and at most {LARGE}"));
        }
        if let Some(smoothing) = self.label_smoothing
            && !(0.0..1.0).contains(&smoothing)
        {
            return fail(format!("label_smoothing = {smoothing} must be at least 0 and below 1"));
        }
        if let Some(images) = &self.images {
            let largest = space.resolutions[space.resolutions.len() - 1];
            images.validate(largest).or_else(fail)?;
        }
        if let Some(augmentation) = &self.augmentation {
            augmentation.check().or_else(|error| fail(error.to_string()))?;
        }
        self.taught.validate(self.kd_ratio, self.teacher, self.epochs).or_else(fail)?;
        if !(0.0..=LARGE).contains(&self.kd_ratio) {
            return fail(format!("kd_ratio = {} must lie between 0 and {LARGE}", self.kd_ratio));
        }
        if index == 0 && self.has_frozen_teacher() && !has_other_teacher {
            return fail("the first stage trains the teacher, so its kd_ratio must be 0".into());
        }
        if self.teacher == Teacher::InPlace && (self.sampling == Sampling::Uniform || self.subnets_per_step < 2) {
            return fail(
                "teacher = \"in_place\" needs the largest subnet in each step: set sampling = \"sandwich\" (or best_up, \
                 worst_up) and subnets_per_step to 2 or more"
                    .into(),
            );
        }
        self.draws_make_sense(space).or_else(fail)?;
        if !(1..=64).contains(&self.subnets_per_step) {
            return fail(format!("subnets_per_step = {} must lie between 1 and 64", self.subnets_per_step));
        }
        if let Some(batch) = self.batch
            && !(1..=65_536).contains(&batch)
        {
            return fail(format!("batch = {batch} must lie between 1 and 65536"));
        }
        for (key, stage, channels) in [
            ("sort_channels", self.sort_channels, Channels::Middle),
            ("sort_outer_channels", self.sort_outer_channels, Channels::Outer),
        ] {
            let Some(stage) = stage else { continue };
            if !space.sorts(channels) {
                return fail(format!("{key} = {stage}, but the order of these channels is fixed; leave it out"));
            }
            let step = SHRINKING.iter().find(|step| step.sorts == Some(channels)).expect("all channels are sorted");
            let stages = space.listed(step.key).len().saturating_sub(1);
            if !(1..=stages).contains(&stage) {
                return fail(format!(
                    "{key} = {stage}, but the space '{}' has {stages} {} stages (its {} less one)",
                    space.name, step.stage, step.key
                ));
            }
        }
        DIMENSIONS.iter().try_for_each(|dimension| self.known(dimension.key, space))
    }

    fn draws_make_sense(&self, space: &SearchSpace) -> std::result::Result<(), String> {
        match self.sampling {
            Sampling::Uniform | Sampling::Sandwich if self.candidates.is_some() => {
                return Err("candidates is for sampling = \"best_up\" and \"worst_up\" alone; leave it out".into());
            }
            Sampling::BestUp | Sampling::WorstUp if !(2..=64).contains(&self.candidates()) => {
                return Err(format!("candidates = {} must lie between 2 and 64", self.candidates()));
            }
            _ => {}
        }
        let Some(subnet) = &self.subnet else { return Ok(()) };
        space.check(subnet).map_err(|error| error.to_string())?;
        let draws = self.subnets_per_step > 1 || self.sampling != Sampling::Uniform;
        match draws || self.narrowing != Narrowing::default() {
            true => {
                Err("it trains one subnet and draws none: leave out sampling, subnets_per_step and lists of choices, \
                         or leave out subnet"
                    .into())
            }
            false => Ok(()),
        }
    }

    /// Checks that the stage draws values of the space, each once.
    fn known(&self, key: &str, space: &SearchSpace) -> Result<()> {
        let fail = |message: String| fail(format!("stage '{}': {key} {message}", self.name));
        let (values, allowed) = (self.narrowing.values(key), space.listed(key));
        for (index, value) in values.iter().enumerate() {
            if !allowed.contains(value) {
                let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
                return fail(format!("holds {value}; the space allows {}", allowed.join(", ")));
            }
            if values[..index].contains(value) {
                return fail(format!("holds {value} twice"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::TrainConfig;
    use super::{DIMENSIONS, StageConfig};
    use crate::space::preset;

    #[test]
    fn choices_default_to_the_largest_but_to_every_resolution() {
        let space = preset("tiny").unwrap();
        let config = TrainConfig::preset("tiny", &space).unwrap();
        let choices = config.stages[0].choices(&space);
        assert_eq!(choices.resolutions, space.resolutions);
        assert_eq!((choices.kernel_sizes, choices.depths), (vec![5], vec![2]));
        assert_eq!(choices.expand_ratios, space.expand_ratios[2..]);
    }

    #[test]
    fn a_mistyped_key_has_its_line_and_every_dimension_has_a_key() {
        let text = "name = 'a'\nepochs = 1.0\nlearning_rate = 0.1\n";
        let error = |more: &str| crate::files::parse_toml_text::<StageConfig>(&format!("{text}{more}")).unwrap_err();
        let message = error("warmup_epoch = 0.5\n");
        assert!(message.contains("`warmup_epochs`") && message.starts_with("line 4"), "{message}");
        for dimension in &DIMENSIONS {
            let message = error(&format!("{} = 'x'\n", dimension.key));
            assert!(!message.contains("unknown field"), "{message}");
        }
    }
}
