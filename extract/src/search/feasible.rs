//! What limits leave over: smallest reachable values, and repair of subnets that break a limit.

use super::{Limit, violation};
use crate::{Error, Result};
use ofa_supernet::space::BlockChoice;
use ofa_supernet::{SearchSpace, Subnet};
use rand::Rng;
use rand::seq::SliceRandom;

/// The subnet with the smallest `cost`, and that cost.
///
/// At every resolution, kernel and expand ratio of each block are chosen together, block after block, from the smallest
/// subnet on, until nothing changes. That is exact where the cost is a sum over blocks that only depend on their own choice and
/// the resolution (MACs, parameters, latency from a table) or grows with every choice (peak memory), and where a
/// further block costs something; otherwise it is a good upper bound.
///
/// # Errors
/// What `cost` says.
pub fn smallest(space: &SearchSpace, cost: &dyn Fn(&Subnet) -> Result<f64>) -> Result<(Subnet, f64)> {
    let mut best: Option<(Subnet, f64)> = None;
    for &resolution in &space.resolutions {
        let mut subnet = Subnet { resolution, ..space.smallest() };
        let mut value = cost(&subnet)?;
        while descend(space, &mut subnet, &mut value, cost)? {}
        if best.as_ref().is_none_or(|(_, smallest)| value < *smallest) {
            best = Some((subnet, value));
        }
    }
    Ok(best.expect("validated: a space has a resolution"))
}

/// Gives each block in turn its cheapest choice; whether any changed. The cost falls strictly, so repeating it ends.
fn descend(
    space: &SearchSpace,
    subnet: &mut Subnet,
    value: &mut f64,
    cost: &dyn Fn(&Subnet) -> Result<f64>,
) -> Result<bool> {
    let mut changed = false;
    for stage in 0..subnet.stages.len() {
        for block in 0..subnet.stages[stage].len() {
            for &kernel in &space.kernel_sizes {
                for &expand in &space.expand_ratios {
                    let before = subnet.stages[stage][block];
                    subnet.stages[stage][block] = BlockChoice { kernel, expand };
                    let cheaper = cost(subnet)?;
                    if cheaper < *value {
                        *value = cheaper;
                        changed = true;
                    } else {
                        subnet.stages[stage][block] = before;
                    }
                }
            }
        }
    }
    Ok(changed)
}

/// A subnet of `space` that meets all limits.
///
/// # Errors
/// [`Error::Impossible`] with the smallest reachable value of the first limit that no subnet meets, or with the values of the
/// closest subnet when each limit can be met, but not all at once.
pub fn witness(space: &SearchSpace, limits: &[Limit]) -> Result<Subnet> {
    for limit in limits {
        if !limit.bound.is_finite() {
            return Err(Error::Search(format!("the bound of '{}' is {}; expected a number", limit.name, limit.bound)));
        }
        let (subnet, value) = smallest(space, &|s| limit.value(s))?;
        if value > limit.bound {
            return Err(Error::Impossible(format!(
                "no subnet of '{}' meets {}: the smallest value it can reach is {} (with '{subnet}'); ask for at least that, or use a smaller space",
                space.name,
                limit.name,
                limit.show(value)
            )));
        }
    }
    let (subnet, broken) = smallest(space, &|s| violation(limits, s))?;
    if broken > 0.0 {
        let mut values = Vec::new();
        for limit in limits {
            values.push(format!("{} of {}", limit.show(limit.value(&subnet)?), limit.name));
        }
        return Err(Error::Impossible(format!(
            "each limit can be met alone, but no subnet of '{}' was found that meets all of them; closest is '{subnet}' with {}",
            space.name,
            values.join(", ")
        )));
    }
    Ok(subnet)
}

/// Shrinks `subnet` until it meets all limits: single choices are changed in random order, each if it breaks the limits less.
/// Where no single change helps, `witness` is the answer. The violation falls strictly, so this ends.
///
/// # Errors
/// As [`violation`].
pub fn repair(
    space: &SearchSpace,
    limits: &[Limit],
    mut subnet: Subnet,
    witness: &Subnet,
    rng: &mut impl Rng,
) -> Result<Subnet> {
    let mut broken = violation(limits, &subnet)?;
    while broken > 0.0 {
        let before = broken;
        let mut neighbours = space.neighbours(&subnet);
        neighbours.shuffle(rng);
        for neighbour in neighbours {
            let less = violation(limits, &neighbour)?;
            if less < broken {
                (subnet, broken) = (neighbour, less);
                break;
            }
        }
        if broken >= before {
            return Ok(witness.clone());
        }
    }
    Ok(subnet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofa_supernet::seed::{Purpose, generator};

    /// A table-like cost in which the smallest choice is not the cheapest, as on devices with a fast 5x5 kernel.
    fn odd_cost(subnet: &Subnet) -> f64 {
        let block = |(i, b): (usize, &BlockChoice)| {
            let fast = if b.kernel == 5 && b.expand.value() == 3.0 { 0.3 } else { 1.0 };
            fast * (b.kernel as f64 + b.expand.value()) * (1.0 + i as f64 * 0.1)
        };
        let blocks: f64 = subnet.blocks().enumerate().map(block).sum();
        blocks * (1.0 + (subnet.resolution as f64 - 24.0).abs())
    }

    #[test]
    fn finds_a_minimum_that_is_not_the_smallest_subnet() {
        let space = SearchSpace::named("tiny").unwrap();
        let (subnet, value) = smallest(&space, &|s| Ok(odd_cost(s))).unwrap();
        assert_eq!(subnet.to_string(), "r24 d1,1 k5|5 e3|3");
        assert_eq!(value, odd_cost(&subnet));
    }

    #[test]
    fn repair_meets_every_limit_that_can_be_met() {
        let space = SearchSpace::named("tiny").unwrap();
        let least = smallest(&space, &|s| Ok(odd_cost(s))).unwrap().1;
        for bound in [least, 2.0 * least, 10.0 * least] {
            let limits = [Limit::new("odd", bound, |s| Ok(odd_cost(s)))];
            let witness = witness(&space, &limits).unwrap();
            let mut rng = generator(1, Purpose::Search, &[]);
            for _ in 0..50 {
                let drawn = space.sample(&mut rng);
                let repaired = repair(&space, &limits, drawn, &witness, &mut rng).unwrap();
                space.check(&repaired).unwrap();
                assert!(odd_cost(&repaired) <= bound);
            }
        }
    }

    #[test]
    fn impossible_limits_say_what_can_be_reached() {
        let space = SearchSpace::named("tiny").unwrap();
        let depth = |s: &Subnet| Ok(s.blocks().count() as f64);
        let error = witness(&space, &[Limit::new("depth", 1.0, depth)]).unwrap_err().to_string();
        assert!(error.contains("meets depth: the smallest value it can reach is 2 (with 'r16"), "{error}");
        let against = |s: &Subnet| Ok(1.0 / s.blocks().map(|b| b.kernel as f64).sum::<f64>());
        let kernels = |s: &Subnet| Ok(s.blocks().map(|b| b.kernel as f64).sum());
        let both = [Limit::new("kernels", 8.0, kernels), Limit::new("inverse", 1.0 / 9.0, against)];
        let error = witness(&space, &both).unwrap_err();
        assert!(matches!(&error, Error::Impossible(m) if m.contains("each limit can be met alone")), "{error}");
    }
}
