//! Assignment of a program's values to buffers.

use super::compiler::{Program, Stored, Value};

/// Buffers shared by values whose lifetimes do not overlap.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    /// Buffer of each value.
    buffers: Vec<usize>,
    pub sizes: Vec<Size>,
}

/// Size of a buffer, which holds values of one number type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Size {
    /// Numbers per image.
    pub numbers: usize,
    /// Bytes per number: 1 for `u8`, 4 for f32.
    pub width: usize,
}

impl Plan {
    /// A plan in which no two values that are alive at once share a buffer. A value lives from the step that writes it
    /// first to its last reader.
    pub fn of(program: &Program) -> Self {
        let mut last_use = vec![0; program.values.len()];
        for (index, step) in program.steps.iter().enumerate() {
            step.reads().chain(step.writes()).for_each(|value| last_use[value.0] = index);
        }
        let mut plan = Plan { buffers: vec![usize::MAX; program.values.len()], sizes: Vec::new() };
        let mut free: Vec<usize> = Vec::new();
        for (index, step) in program.steps.iter().enumerate() {
            for value in step.writes() {
                if plan.buffers[value.0] == usize::MAX {
                    plan.buffers[value.0] = plan.take(&mut free, program.values[value.0]);
                }
            }
            let mut ended: Vec<usize> = step.reads().chain(step.writes()).map(|value| value.0).collect();
            ended.sort_unstable();
            ended.dedup();
            free.extend(ended.into_iter().filter(|&value| last_use[value] == index).map(|value| plan.buffers[value]));
        }
        plan
    }

    /// The smallest free buffer of the value's type that is large enough; otherwise the largest, which grows; otherwise
    /// a new one.
    fn take(&mut self, free: &mut Vec<usize>, value: Stored) -> usize {
        let (numbers, width) = (value.numbers, value.width());
        let size = |place: usize| self.sizes[free[place]];
        let places: Vec<usize> = (0..free.len()).filter(|&place| size(place).width == width).collect();
        let fits = places.iter().copied().filter(|&place| size(place).numbers >= numbers);
        let best = fits.min_by_key(|&place| size(place).numbers);
        let best = best.or_else(|| places.iter().copied().max_by_key(|&place| size(place).numbers));
        let buffer = best.map_or(self.sizes.len(), |place| free.swap_remove(place));
        if buffer == self.sizes.len() {
            self.sizes.push(Size { numbers: 0, width });
        }
        self.sizes[buffer].numbers = self.sizes[buffer].numbers.max(numbers);
        buffer
    }

    /// Bytes per image of all buffers.
    pub fn bytes(&self) -> u64 {
        self.sizes.iter().map(|size| (size.numbers * size.width) as u64).sum()
    }

    /// Index of the buffer of `value`.
    pub fn buffer(&self, value: Value) -> usize {
        self.buffers[value.0]
    }
}

#[cfg(test)]
mod tests {
    use super::super::compiler::compile;
    use super::*;
    use ofa_supernet::graph::Graph;
    use ofa_supernet::space::{PRESETS, preset};

    #[test]
    fn values_that_are_alive_at_once_have_buffers_of_their_own_that_are_large_enough() {
        for name in PRESETS {
            let space = preset(name).unwrap();
            for subnet in [space.smallest(), space.middle(), space.largest()] {
                let network = space.network(&subnet, 10).unwrap();
                let program = compile(&Graph::of(&network), None).unwrap();
                let plan = Plan::of(&program);
                let mut lives = vec![(usize::MAX, 0); program.values.len()];
                for (index, step) in program.steps.iter().enumerate() {
                    for value in step.reads().chain(step.writes()) {
                        let (first, last) = &mut lives[value.0];
                        (*first, *last) = ((*first).min(index), index);
                    }
                }
                for (value, &(first, last)) in lives.iter().enumerate() {
                    let (size, stored) = (plan.sizes[plan.buffers[value]], program.values[value]);
                    assert!(size.numbers >= stored.numbers && size.width == stored.width(), "{name} {subnet}");
                    for (other, &(start, end)) in lives.iter().enumerate().skip(value + 1) {
                        let apart = end < first || last < start;
                        assert!(
                            apart || plan.buffers[value] != plan.buffers[other],
                            "{name} {subnet}: {value} {other}"
                        );
                    }
                }
                // No plan is smaller than the values that are alive at once, and this one is not far from it.
                let alive = |step| {
                    let lives =
                        lives.iter().zip(&program.values).filter(|((first, last), _)| (*first..=*last).contains(&step));
                    lives.map(|(_, value)| (value.numbers * value.width()) as u64).sum::<u64>()
                };
                let least = (0..program.steps.len()).map(alive).max().unwrap();
                let bytes = plan.bytes();
                assert!(bytes >= least && bytes < 2 * least, "{name} {subnet}: {bytes} instead of {least}");
            }
        }
    }
}
