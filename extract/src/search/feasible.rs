//! Feasibility under limits: smallest reachable values, a feasible candidate, and repair of candidates that break a
//! limit.

use super::genome::{Genes, Genome};
use super::limit::Limits;
use crate::{Error, Result};
use rand::Rng;
use rand::seq::SliceRandom;

/// Random changes that repair tries before it tries all changes.
const DRAWS: usize = 40;

/// The smallest subnet for each size of the images.
fn smallest_choices(genome: &Genome) -> Vec<Genes> {
    let at = |input| {
        let mut genes = genome.zeros();
        genome.set_number(&mut genes, genome.input(), input);
        genes
    };
    (0..genome.numbers(genome.input())).map(at).collect()
}

/// Coordinate descent: returns a candidate with a small `cost`, and that cost.
///
/// From each of `starts`, each gene except those of the images in turn gets its cheapest value (the genes of a block
/// together), until nothing changes. The result is not exact if choices depend on one another.
fn descend(genome: &Genome, starts: &[Genes], cost: &dyn Fn(&[u16]) -> Result<f64>) -> Result<(Genes, f64)> {
    let mut best: Option<(Genes, f64)> = None;
    for start in starts {
        let mut genes = start.clone();
        let mut value = cost(&genes)?;
        loop {
            let before = value;
            for group in genome.groups() {
                if genome.input().contains(&group.start) || !genome.exists(&genes, group.start) {
                    continue;
                }
                for number in 0..genome.numbers(group.clone()) {
                    let mut other = genes.clone();
                    genome.set_number(&mut other, group.clone(), number);
                    let cheaper = cost(&other)?;
                    if cheaper < value {
                        (value, genes) = (cheaper, other);
                    }
                }
            }
            if value >= before {
                break;
            }
        }
        if best.as_ref().is_none_or(|(_, smallest)| value < *smallest) {
            best = Some((genes, value));
        }
    }
    Ok(best.expect("there is a start"))
}

/// The candidate with the smallest value of limit `index`, and that value: exact if the measure has a table, otherwise
/// an upper bound.
///
/// # Errors
/// An error of the measure.
pub fn smallest(genome: &Genome, limits: &Limits, index: usize) -> Result<(Genes, f64)> {
    let genes = match limits.table(index) {
        Some(table) => table.smallest(genome),
        None => descend(genome, &smallest_choices(genome), &|genes| limits.value(genome, index, genes))?.0,
    };
    // The measure's own value, so that it can be given as a limit.
    let value = limits.limits()[index].value(&genome.decode(&genes))?;
    Ok((genes, value))
}

/// A candidate that meets all limits.
///
/// # Errors
/// [`Error::Impossible`] with the smallest reachable value of the first limit that no subnet meets; or, if the limits
/// can be met separately but not together, with the smallest value of each that was found while the others hold.
pub fn witness(genome: &Genome, limits: &Limits) -> Result<Genes> {
    if limits.limits().is_empty() {
        return Ok(genome.zeros());
    }
    let mut starts = smallest_choices(genome);
    for (index, limit) in limits.limits().iter().enumerate() {
        if limit.bound.is_nan() {
            return Err(Error::Search(format!("the bound of '{}' is not a number", limit.name)));
        }
        let (genes, value) = smallest(genome, limits, index)?;
        if value > limit.bound {
            return Err(Error::Impossible(format!(
                "no subnet of '{}' meets {}: the smallest value it can reach is {} (with '{}'); ask for at least that, or use a smaller space",
                genome.space().name,
                limit.name,
                limit.show(value),
                genome.decode(&genes)
            )));
        }
        if limits.violation(genome, &genes)? == 0.0 {
            return Ok(genes);
        }
        starts.push(genes);
    }
    let (genes, broken) = descend(genome, &starts, &|genes| limits.violation(genome, genes))?;
    if broken == 0.0 {
        return Ok(genes);
    }
    let mut reached = Vec::new();
    for index in 0..limits.limits().len() {
        if let Some(text) = beside_others(genome, limits, index, &starts)? {
            reached.push(text);
        }
    }
    if reached.is_empty() {
        for (index, limit) in limits.limits().iter().enumerate() {
            let value = limit.show(limits.value(genome, index, &genes)?);
            reached.push(format!("'{}' has {value} for {}", genome.decode(&genes), limit.name));
        }
    }
    Err(Error::Impossible(format!(
        "each limit can be met alone, but no subnet of '{}' was found that meets all of them: {}",
        genome.space().name,
        reached.join("; ")
    )))
}

/// Sentence with the smallest value of limit `index` that was found while all others hold; `None` if none was found.
fn beside_others(genome: &Genome, limits: &Limits, index: usize, starts: &[Genes]) -> Result<Option<String>> {
    let others = |genes: &[u16]| -> Result<f64> {
        let mut sum = 0.0;
        for (other, limit) in limits.limits().iter().enumerate() {
            if other != index {
                sum += limits.excess(genome, other, limit.bound, genes)?;
            }
        }
        Ok(sum)
    };
    // The penalty exceeds every value, so that the other limits come first.
    let penalty = 1e6 * limits.limits()[index].bound.abs().max(1.0);
    let (genes, _) =
        descend(genome, starts, &|genes| Ok(limits.value(genome, index, genes)? + penalty * others(genes)?.sqrt()))?;
    if others(&genes)? > 0.0 {
        return Ok(None);
    }
    let limit = &limits.limits()[index];
    let value = limits.value(genome, index, &genes)?;
    Ok(Some(format!("with the others held, {} of {} is the smallest found", limit.show(value), limit.name)))
}

/// Changes `genes` until they meet all limits: single genes in random order, each change kept if it lowers the
/// violation. If no single change helps, the result is `witness`. The violation falls strictly, so the repair ends.
///
/// # Errors
/// Errors of measures.
pub fn repair(
    genome: &Genome,
    limits: &Limits,
    mut genes: Genes,
    witness: &Genes,
    rng: &mut impl Rng,
) -> Result<Genes> {
    let mut broken = limits.violation(genome, &genes)?;
    if broken == 0.0 {
        return Ok(genes);
    }
    let mut other = genes.clone();
    while broken > 0.0 {
        let active: Vec<usize> = genome.active(&genes).collect();
        let mut attempt = |genes: &mut Genes, place: usize, choice: u16| -> Result<Option<f64>> {
            genome.set(&mut other, place, choice);
            let less = limits.violation(genome, &other)?;
            if less < broken {
                genes.copy_from_slice(&other);
                return Ok(Some(less));
            }
            other.copy_from_slice(genes);
            Ok(None)
        };
        let mut found = None;
        for _ in 0..DRAWS {
            let place = active[rng.random_range(0..active.len())];
            found = attempt(&mut genes, place, genome.draw(place, rng))?;
            if found.is_some() {
                break;
            }
        }
        if found.is_none() {
            let mut changes = genome.changes(&genes);
            changes.shuffle(rng);
            for (place, choice) in changes {
                found = attempt(&mut genes, place, choice)?;
                if found.is_some() {
                    break;
                }
            }
        }
        match found {
            Some(less) => broken = less,
            None => return Ok(witness.clone()),
        }
    }
    Ok(genes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::Limit;
    use ofa_supernet::seed::{Stream, generator};
    use ofa_supernet::space::BlockChoice;
    use ofa_supernet::{SearchSpace, Subnet};

    /// Cost that has a table and whose cheapest choice is not the smallest, as on devices with a fast 5x5 kernel.
    fn odd_cost(subnet: &Subnet) -> Result<f64> {
        let block = |(i, b): (usize, &BlockChoice)| {
            let fast = if b.kernel == 5 && b.expand.value() == 3.0 { 0.3 } else { 1.0 };
            fast * (b.kernel as f64 + b.expand.value()) * (1.0 + i as f64 * 0.1)
        };
        let of_stage = |blocks: &Vec<BlockChoice>| blocks.iter().enumerate().map(block).sum::<f64>();
        let blocks: f64 = subnet.stages.iter().map(of_stage).sum();
        Ok(blocks * (1.0 + (subnet.resolution as f64 - 24.0).abs()))
    }

    /// Square of [`odd_cost`], which has no table.
    fn squared_cost(subnet: &Subnet) -> Result<f64> {
        Ok(odd_cost(subnet)?.powi(2))
    }

    #[test]
    fn finds_a_minimum_that_is_not_the_smallest_subnet() {
        let genome = Genome::new(&SearchSpace::named("tiny").unwrap()).unwrap();
        let limits = [Limit::new("odd", 0.0, odd_cost), Limit::new("squared", 0.0, squared_cost)];
        let limits = Limits::new(&genome, &limits).unwrap();
        assert!(limits.table(0).is_some() && limits.table(1).is_none());
        for index in 0..2 {
            let (genes, value) = smallest(&genome, &limits, index).unwrap();
            assert_eq!(genome.decode(&genes).to_string(), "r24 d1,1 k5|5 e3|3");
            assert_eq!(value, limits.limits()[index].value(&genome.decode(&genes)).unwrap());
        }
    }

    #[test]
    fn repair_meets_every_limit_that_can_be_met() {
        let space = SearchSpace::named("tiny").unwrap();
        let genome = Genome::new(&space).unwrap();
        let least = odd_cost(&"r24 d1,1 k5|5 e3|3".parse().unwrap()).unwrap();
        for bound in [least, 2.0 * least, 10.0 * least] {
            let limits = [Limit::new("odd", bound, odd_cost)];
            let limits = Limits::new(&genome, &limits).unwrap();
            let witness = witness(&genome, &limits).unwrap();
            let mut rng = generator(1, Stream::Search, &[]);
            for _ in 0..50 {
                let drawn = genome.sample(&mut rng);
                let repaired = repair(&genome, &limits, drawn, &witness, &mut rng).unwrap();
                space.check(&genome.decode(&repaired)).unwrap();
                assert!(odd_cost(&genome.decode(&repaired)).unwrap() <= bound);
            }
        }
    }

    #[test]
    fn impossible_limits_say_what_can_be_reached() {
        let genome = Genome::new(&SearchSpace::named("tiny").unwrap()).unwrap();
        let explain = |limits: &[Limit]| {
            let error = witness(&genome, &Limits::new(&genome, limits).unwrap()).unwrap_err();
            assert!(matches!(error, Error::Impossible(_)), "{error}");
            error.to_string()
        };
        let depth = |s: &Subnet| Ok(s.blocks().count() as f64);
        let error = explain(&[Limit::new("depth", 1.0, depth)]);
        assert!(error.contains("meets depth: the smallest value it can reach is 2 (with 'r16"), "{error}");
        let against = |s: &Subnet| Ok(1.0 / s.blocks().map(|b| b.kernel as f64).sum::<f64>());
        let kernels = |s: &Subnet| Ok(s.blocks().map(|b| b.kernel as f64).sum());
        let error = explain(&[Limit::new("kernels", 8.0, kernels), Limit::new("inverse", 1.0 / 9.0, against)]);
        assert!(error.contains("each limit can be met alone"), "{error}");
        assert!(error.contains("with the others held, 9 of kernels"), "{error}");
    }
}
