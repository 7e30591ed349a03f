//! The best choices within the limits, if every choice changed the score by itself.
//!
//! A linear model of the score around a candidate and additive costs make a knapsack problem: each block takes one of
//! its values, and each stage its number of blocks. A multiplier (the price of the costs) separates the blocks, so that
//! each takes its best value by itself; bisection finds the smallest price at which the limits hold, and what is left
//! of them is filled greedily. A penalty on every change keeps a candidate close, where the model is right.

use super::genome::{Genes, Genome};
use super::parts::{Part, parts};
use super::task::{Effects, Rules};
use std::ops::Range;

/// Penalties on a change, as parts of the mean effect of a choice: a candidate for each.
const PENALTIES: [f64; 7] = [0.0, 0.25, 0.5, 0.8, 1.2, 1.6, 2.4];
/// Most prices that are tried: doublings until the limits hold, then bisection.
const STEPS: usize = 40;
/// Relative precision of the price: what the limits leave is filled.
const PRECISION: f64 = 0.02;

/// Parts of a genome as slots, each of which takes one of its numbers: a part's own genes, then those of each block.
pub(super) struct Structure {
    pub parts: Vec<Part>,
    /// Options of each slot, part by part, among all options.
    slots: Vec<Vec<Range<usize>>>,
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
        let mut end = 0;
        let mut slot = |places: Range<usize>| {
            let start = end;
            end += genome.numbers(places);
            start..end
        };
        let mut slots = Vec::new();
        for part in &parts {
            let own = [slot(part.own.clone())];
            slots.push(own.into_iter().chain(part.blocks.iter().map(|(places, _)| slot(places.clone()))).collect());
        }
        Structure { depths: parts.iter().map(depths_of).collect(), slots, parts }
    }
}

/// The option that each slot takes, part by part; slots of blocks that a part does not have are unused.
type Choices = Vec<Vec<usize>>;

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

impl<'a> Linear<'a> {
    pub(super) fn new(rules: &'a Rules, structure: &'a Structure, origin: &'a Genes, effects: &Effects) -> Self {
        let genome = &rules.genome;
        let (mut gains, mut changed) = (Vec::new(), Vec::new());
        for part in &structure.parts {
            for places in [&part.own].into_iter().chain(part.blocks.iter().map(|(places, _)| places)) {
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
            let now = effects[place][usize::from(origin[place])];
            sum += effects[place].iter().map(|effect| (effect - now).abs()).sum::<f64>();
            count += effects[place].len() as f64;
        }
        let scale = if count > 0.0 { sum / count } else { 0.0 };
        Linear { genome, structure, origin, changed, gains, limits, costs, scale }
    }

    /// Candidates at several distances from the origin, which meet every limit that has a table.
    pub(super) fn candidates(&self) -> Vec<Genes> {
        let mut price = self.scale.max(f64::MIN_POSITIVE);
        let best = PENALTIES.iter().filter_map(|penalty| self.best(penalty * self.scale, &mut price));
        let mut candidates: Vec<Genes> = best.map(|choices| self.genes(&choices)).collect();
        candidates.sort_unstable();
        candidates.dedup();
        candidates
    }

    fn genes(&self, choices: &Choices) -> Genes {
        let mut genes = self.origin.clone();
        for ((part, slots), choices) in self.structure.parts.iter().zip(&self.structure.slots).zip(choices) {
            self.genome.set_number(&mut genes, part.own.clone(), choices[0] - slots[0].start);
            for ((places, _), (slot, choice)) in part.blocks.iter().zip(slots[1..].iter().zip(&choices[1..])) {
                if self.genome.exists(&genes, places.start) {
                    self.genome.set_number(&mut genes, places.clone(), choice - slot.start);
                }
            }
        }
        genes
    }

    /// The best choices within the limits, less `penalty` for each change; `None` if no price meets the limits. The
    /// search for the smallest price starts at `price` and leaves what it found there.
    fn best(&self, penalty: f64, price: &mut f64) -> Option<Choices> {
        let mut choices: Choices = self.structure.slots.iter().map(|slots| vec![0; slots.len()]).collect();
        let mut values = Vec::with_capacity(self.gains.len());
        self.choose(0.0, penalty, &mut values, &mut choices);
        if self.holds(&choices) {
            return Some(choices);
        }
        let (mut low, mut high) = (0.0, *price);
        let mut best: Option<Choices> = None;
        for _ in 0..STEPS {
            let middle = if best.is_none() { high } else { 0.5 * (low + high) };
            self.choose(middle, penalty, &mut values, &mut choices);
            if self.holds(&choices) {
                // From a price of another penalty, the smallest one is not far.
                low = if best.is_none() { low.max(0.5 * middle) } else { low };
                (best, high) = (Some(choices.clone()), middle);
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
        self.fill(&mut best, penalty);
        Some(best)
    }

    /// Takes the options with the largest gain less `price` times cost and less `penalty` for each change.
    fn choose(&self, price: f64, penalty: f64, values: &mut Vec<f64>, choices: &mut Choices) {
        let options = self.gains.iter().zip(&self.costs).zip(&self.changed);
        values.clear();
        values.extend(options.map(|((gain, cost), changed)| gain - price * cost - penalty * changed));
        for ((slots, depths), choices) in self.structure.slots.iter().zip(&self.structure.depths).zip(choices) {
            for (choice, slot) in choices[1..].iter_mut().zip(&slots[1..]) {
                *choice = largest(slot.clone(), values);
            }
            for (option, depth) in slots[0].clone().zip(depths) {
                values[option] += choices[1..=*depth].iter().map(|&choice| values[choice]).sum::<f64>();
            }
            choices[0] = largest(slots[0].clone(), values);
        }
    }

    /// Slots that are used, each with its choice.
    fn used<'c>(&'c self, choices: &'c Choices) -> impl Iterator<Item = (&'c Range<usize>, usize)> + 'c {
        let parts = self.structure.slots.iter().zip(&self.structure.depths).zip(choices);
        parts.flat_map(|((slots, depths), choices)| {
            let depth = depths[choices[0] - slots[0].start];
            slots.iter().zip(choices.iter().copied()).take(depth + 1)
        })
    }

    fn holds(&self, choices: &Choices) -> bool {
        let cost = |values: &[f64]| self.used(choices).map(|(_, option)| values[option]).sum::<f64>();
        self.limits.iter().all(|(bound, values)| cost(values) <= *bound)
    }

    /// Changes blocks as long as the limits leave room for a gain.
    fn fill(&self, choices: &mut Choices, penalty: f64) {
        loop {
            let cost = |values: &[f64]| self.used(choices).map(|(_, option)| values[option]).sum::<f64>();
            let room: Vec<f64> = self.limits.iter().map(|(bound, values)| bound - cost(values)).collect();
            let mut best = (1e-3 * self.scale, 0, 0);
            for (slot, now) in self.used(choices).filter(|(slot, _)| !self.is_own(slot)) {
                for option in slot.clone() {
                    let gain =
                        self.gains[option] - self.gains[now] - penalty * (self.changed[option] - self.changed[now]);
                    let fits = || self.limits.iter().zip(&room).all(|((_, v), room)| v[option] - v[now] <= *room);
                    if gain > best.0 && fits() {
                        best = (gain, now, option);
                    }
                }
            }
            let (_, now, option) = best;
            if now == option {
                return;
            }
            choices.iter_mut().flatten().filter(|choice| **choice == now).for_each(|choice| *choice = option);
        }
    }

    fn is_own(&self, slot: &Range<usize>) -> bool {
        self.structure.slots.iter().any(|slots| slots[0] == *slot)
    }
}

/// Effect of the genes in `places` when they read `number`.
fn effect(genome: &Genome, effects: &Effects, places: Range<usize>, number: usize) -> f64 {
    let (mut rest, mut sum) = (number, 0.0);
    for place in places.rev() {
        let choices = usize::from(genome.choices(place));
        sum += effects[place][rest % choices];
        rest /= choices;
    }
    sum
}

/// The option with the largest value, the first if several are equal.
fn largest(slot: Range<usize>, values: &[f64]) -> usize {
    let mut best = slot.start;
    for option in slot {
        if values[option] > values[best] {
            best = option;
        }
    }
    best
}
