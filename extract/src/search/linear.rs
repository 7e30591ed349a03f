//! The best choices within the limits, if every choice changed the score by itself.
//!
//! A linear model of the score around a candidate and additive costs make a knapsack problem: each block takes one of
//! its values, and each stage its number of blocks. A multiplier (the price of the costs) separates the blocks, so that
//! each takes its best value by itself; bisection finds the smallest price at which the limits hold, and what is left
//! of them is filled greedily. A penalty on every change keeps a candidate close, where the model is right.

use super::genome::{Genes, Genome};
use super::parts::{Part, parts};
use super::task::Rules;
use crate::effects::Effects;
use std::ops::Range;

/// Penalties on a change, as parts of the mean effect of a choice: a candidate for each. The number of a penalty is
/// that of its candidate's distance from the origin; larger penalties keep candidates closer.
const PENALTIES: [f64; 7] = [0.0, 0.25, 0.5, 0.8, 1.2, 1.6, 2.4];
/// Near a distance are the next one farther from the origin, and the next two closer to it.
const FARTHER: usize = 1;
const CLOSER: usize = 2;
/// Most prices that are tried: doublings until the limits hold, then bisection.
const STEPS: usize = 40;
/// Relative precision of the price: what the limits leave is filled.
const PRECISION: f64 = 0.02;

/// Parts of a genome as slots, each of which takes one of its options: a part's own genes, then those of each block.
pub(super) struct Structure {
    pub parts: Vec<Part>,
    /// Options of each slot, part by part, numbered over all slots.
    slots: Vec<Range<usize>>,
    /// Slot of each part's own genes; those of its blocks follow.
    own: Vec<usize>,
    /// Whether each slot is one of a part's own genes.
    is_own: Vec<bool>,
    /// Number of blocks of each part, by the number of its own genes.
    depths: Vec<Vec<usize>>,
}

impl Structure {
    pub(super) fn new(genome: &Genome) -> Self {
        let parts = parts(genome);
        let depths_of = |part: &Part| {
            let depth = |own| {
                let mut genes = genome.zeros();
                genome.set_number(&mut genes, part.own.clone(), own);
                part.existing(genome, &genes).count()
            };
            (0..genome.numbers(part.own.clone())).map(depth).collect()
        };
        let (mut slots, mut own, mut is_own, mut end) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for part in &parts {
            own.push(slots.len());
            for places in places_of(part) {
                let start = end;
                end += genome.numbers(places.clone());
                is_own.push(slots.len() == own[own.len() - 1]);
                slots.push(start..end);
            }
        }
        Structure { depths: parts.iter().map(depths_of).collect(), slots, own, is_own, parts }
    }

    /// Slots of each part that are used with `choices`: its own, and those of the blocks that it has.
    fn used<'c>(&'c self, choices: &'c [usize]) -> impl Iterator<Item = usize> + 'c {
        let of_part =
            |(&own, depths): (&usize, &Vec<usize>)| own..own + 1 + depths[choices[own] - self.slots[own].start];
        self.own.iter().zip(&self.depths).flat_map(of_part)
    }
}

/// Genes of a part's slots.
fn places_of(part: &Part) -> impl Iterator<Item = &Range<usize>> {
    std::iter::once(&part.own).chain(part.blocks.iter().map(|(places, _)| places))
}

/// The option that each slot takes; slots of blocks that a part does not have are unused.
type Choices = Vec<usize>;

/// A knapsack problem around a candidate. Numbers of options are in the order of all slots.
pub(super) struct Linear<'a> {
    genome: &'a Genome,
    structure: &'a Structure,
    origin: &'a Genes,
    /// 0 for the options of the origin and those of blocks that it lacks, otherwise 1.
    changed: Vec<f64>,
    gains: Vec<f64>,
    /// Costs of each limit that is a sum, and its bound.
    limits: Vec<(f64, Vec<f64>)>,
    /// Sum over the limits, each as a fraction of its bound.
    costs: Vec<f64>,
    /// Mean absolute effect of a choice.
    scale: f64,
}

/// Memory for the choices at one penalty.
struct Scratch {
    /// Penalty of each option.
    penalties: Vec<f64>,
    /// Value of each option at a price.
    values: Vec<f64>,
    choices: Choices,
}

impl<'a> Linear<'a> {
    pub(super) fn new(rules: &'a Rules, structure: &'a Structure, origin: &'a Genes, effects: &Effects) -> Self {
        let genome = &rules.genome;
        let (mut gains, mut changed) = (Vec::new(), Vec::new());
        for part in &structure.parts {
            for places in places_of(part) {
                let now = genome.number(origin, places.clone());
                let exists = places.is_empty() || genome.exists(origin, places.start);
                for number in 0..genome.numbers(places.clone()) {
                    gains.push(effect(genome, effects, places.clone(), number));
                    changed.push(f64::from(u8::from(exists && number != now)));
                }
            }
        }
        let mut costs = vec![0.0; gains.len()];
        let mut limits = Vec::new();
        for (index, limit) in rules.limits.limits().iter().enumerate() {
            let Some(table) = rules.limits.table(index) else { continue };
            let entries = table.entries(genome, origin);
            let values: Vec<f64> = entries.iter().flat_map(|e| e.own.iter().chain(&e.blocks).copied()).collect();
            if table.is_sum() {
                let scale = 1.0 / limit.bound.abs().max(f64::MIN_POSITIVE);
                costs.iter_mut().zip(&values).for_each(|(sum, value)| *sum += scale * value);
                limits.push((limit.bound, values));
            } else {
                let breaks = gains.iter_mut().zip(&values).filter(|(_, value)| **value > limit.bound);
                breaks.for_each(|(gain, _)| *gain = f64::NEG_INFINITY);
            }
        }
        let (mut sum, mut count) = (0.0, 0.0);
        for place in genome.active(origin) {
            let effects = &effects[genome.values(place)];
            let now = effects[usize::from(origin[place])];
            sum += effects.iter().map(|effect| (effect - now).abs()).sum::<f64>();
            count += effects.len() as f64;
        }
        let scale = if count > 0.0 { sum / count } else { 0.0 };
        Linear { genome, structure, origin, changed, gains, limits, costs, scale }
    }

    /// Candidates that meet every limit that has a table, each with the number of its distance from the origin: at the
    /// distances near number `near`, or at all.
    pub(super) fn candidates(&self, near: Option<usize>) -> Vec<(Genes, usize)> {
        let all = PENALTIES.len();
        let distances = near.map_or(0..all, |near| near.saturating_sub(FARTHER)..all.min(near + CLOSER + 1));
        let options = self.gains.len();
        let (penalties, values) = (vec![0.0; options], vec![0.0; options]);
        let mut scratch = Scratch { penalties, values, choices: vec![0; self.structure.slots.len()] };
        let mut price = self.scale.max(f64::MIN_POSITIVE);
        let mut candidate = |distance: usize| {
            let choices = self.best(PENALTIES[distance] * self.scale, &mut price, &mut scratch)?;
            Some((self.genes(&choices), distance))
        };
        let mut candidates: Vec<(Genes, usize)> = distances.filter_map(&mut candidate).collect();
        candidates.sort_unstable();
        candidates.dedup_by(|a, b| a.0 == b.0);
        candidates
    }

    fn genes(&self, choices: &[usize]) -> Genes {
        let mut genes = self.origin.clone();
        for (part, &own) in self.structure.parts.iter().zip(&self.structure.own) {
            for (slot, places) in (own..).zip(places_of(part)) {
                if slot == own || self.genome.exists(&genes, places.start) {
                    let number = choices[slot] - self.structure.slots[slot].start;
                    self.genome.set_number(&mut genes, places.clone(), number);
                }
            }
        }
        genes
    }

    /// The best choices within the limits, less `penalty` for each change; `None` if no price meets the limits. The
    /// search for the smallest price starts at `price` and leaves what it found there.
    fn best(&self, penalty: f64, price: &mut f64, scratch: &mut Scratch) -> Option<Choices> {
        scratch.penalties.iter_mut().zip(&self.changed).for_each(|(option, changed)| *option = penalty * changed);
        self.choose(0.0, scratch);
        if self.holds(&scratch.choices) {
            return Some(scratch.choices.clone());
        }
        let (mut low, mut high) = (0.0, *price);
        let mut best: Option<Choices> = None;
        for _ in 0..STEPS {
            let middle = if best.is_none() { high } else { 0.5 * (low + high) };
            self.choose(middle, scratch);
            if self.holds(&scratch.choices) {
                // From a price of another penalty, the smallest one is not far.
                low = if best.is_none() { low.max(0.5 * middle) } else { low };
                best.get_or_insert_default().clone_from(&scratch.choices);
                high = middle;
            } else if best.is_none() {
                (low, high) = (middle, 2.0 * high);
            } else {
                low = middle;
            }
            if best.is_some() && high - low <= PRECISION * high {
                break;
            }
        }
        *price = high;
        let mut best = best?;
        self.fill(&mut best, &scratch.penalties);
        Some(best)
    }

    /// Takes the options with the largest gain less `price` times cost and less the penalty.
    fn choose(&self, price: f64, scratch: &mut Scratch) {
        let Scratch { penalties, values, choices } = scratch;
        let options = self.gains.iter().zip(&self.costs).zip(penalties);
        for (value, ((gain, cost), penalty)) in values.iter_mut().zip(options) {
            *value = gain - price * cost - *penalty;
        }
        let Structure { slots, own, depths, .. } = self.structure;
        for ((choice, slot), is_own) in choices.iter_mut().zip(slots).zip(&self.structure.is_own) {
            if !is_own {
                *choice = largest(slot.clone(), values);
            }
        }
        for (&own, depths) in own.iter().zip(depths) {
            for (option, depth) in slots[own].clone().zip(depths) {
                values[option] += choices[own + 1..][..*depth].iter().map(|&choice| values[choice]).sum::<f64>();
            }
            choices[own] = largest(slots[own].clone(), values);
        }
    }

    /// What `choices` cost.
    fn cost(&self, choices: &[usize], values: &[f64]) -> f64 {
        let Structure { slots, own, depths, .. } = self.structure;
        let mut sum = 0.0;
        for (&own, depths) in own.iter().zip(depths) {
            let used = 1 + depths[choices[own] - slots[own].start];
            sum += choices[own..own + used].iter().map(|&choice| values[choice]).sum::<f64>();
        }
        sum
    }

    fn holds(&self, choices: &[usize]) -> bool {
        self.limits.iter().all(|(bound, values)| self.cost(choices, values) <= *bound)
    }

    /// Changes blocks as long as the limits leave room for a gain.
    fn fill(&self, choices: &mut Choices, penalties: &[f64]) {
        loop {
            let room: Vec<f64> = self.limits.iter().map(|(bound, values)| bound - self.cost(choices, values)).collect();
            let mut best = (1e-3 * self.scale, None);
            for slot in self.structure.used(choices).filter(|&slot| !self.structure.is_own[slot]) {
                let now = choices[slot];
                for option in self.structure.slots[slot].clone() {
                    let gain = self.gains[option] - self.gains[now] - (penalties[option] - penalties[now]);
                    let fits = || self.limits.iter().zip(&room).all(|((_, v), room)| v[option] - v[now] <= *room);
                    if gain > best.0 && fits() {
                        best = (gain, Some((slot, option)));
                    }
                }
            }
            let Some((slot, option)) = best.1 else { return };
            choices[slot] = option;
        }
    }
}

/// Effect of the genes in `places` when they read `number`.
fn effect(genome: &Genome, effects: &Effects, places: Range<usize>, number: usize) -> f64 {
    let (mut rest, mut sum) = (number, 0.0);
    for place in places.rev() {
        let choices = usize::from(genome.choices(place));
        sum += effects[genome.values(place)][rest % choices];
        rest /= choices;
    }
    sum
}

/// The option with the largest value, the first if several are equal.
fn largest(slot: Range<usize>, values: &[f64]) -> usize {
    let mut best = (slot.start, values[slot.start]);
    for (option, &value) in slot.clone().zip(&values[slot]) {
        // Without a branch, which would often be mispredicted.
        best = if value > best.1 { (option, value) } else { best };
    }
    best.0
}
