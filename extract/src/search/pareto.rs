//! Search of the whole front of score against costs in one run: NSGA-II (Deb et al., IEEE Transactions on Evolutionary
//! Computation 2002).

use super::genome::{Genes, Genome};
use super::strategies::{Setting, SettingValue, Strategy};
use super::task::{Rules, Scored, Task};
use super::variation::{cross, mutate};
use crate::{Error, Result};
use rand::Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Settings of the search for a front.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pareto {
    /// Subnets that survive each generation, and most subnets on the front.
    pub population: usize,
    /// Generations.
    pub generations: usize,
    /// Probability with which a child's gene is drawn again.
    pub mutation_probability: f64,
}

impl Default for Pareto {
    fn default() -> Self {
        Pareto { population: 100, generations: 500, mutation_probability: 0.03 }
    }
}

/// Candidate with the goals that are minimised: minus its score, then its costs.
#[derive(Debug, Clone, PartialEq)]
struct Member {
    goals: Vec<f64>,
    genes: Genes,
}

impl Strategy for Pareto {
    fn description(&self) -> &'static str {
        "NSGA-II: the whole front of accuracy against one or more costs"
    }

    fn settings(&mut self) -> Vec<Setting<'_>> {
        use SettingValue::{Number, Whole};
        vec![
            Setting::new("population", "Subnets in each generation", Whole(&mut self.population, 2..=10_000)),
            Setting::new("generations", "Generations", Whole(&mut self.generations, 0..=10_000_000)),
            Setting::new(
                "mutation_probability",
                "Probability of a mutation of each gene",
                Number(&mut self.mutation_probability, 0.0..=1.0),
            ),
        ]
    }

    fn needs_costs(&self) -> bool {
        true
    }

    fn evaluations(&self) -> usize {
        self.population.saturating_mul(self.generations.saturating_add(1))
    }

    fn run(&self, task: &mut Task) -> Result<()> {
        if task.rules().against.limits().is_empty() {
            return Err(Error::Search("pareto needs a cost to draw the front against".into()));
        }
        let mut members: Vec<Member> = Vec::new();
        for generation in 0..=self.generations {
            let rules = task.rules();
            let child = |index: usize| {
                let mut rng = rules.rng(&[generation as u64, index as u64]);
                // Members are in the order of selection, so the winner of a tournament is the earlier one.
                let mut parent = || rng.random_range(0..members.len()).min(rng.random_range(0..members.len()));
                let child = if generation == 0 {
                    spread(&rules.genome, &mut rng)
                } else {
                    let (first, second) = (parent(), parent());
                    let crossed = cross(&rules.genome, &members[first].genes, &members[second].genes, &mut rng);
                    let p = self.mutation_probability;
                    mutate(&rules.genome, &crossed, p, p, &mut rng)
                };
                rules.repair(child, &mut rng)
            };
            let mut children = (0..self.population).into_par_iter().map(child).collect::<Result<Vec<Genes>>>()?;
            if generation == 0 {
                // The cheapest subnets are the ends of the front.
                for cost in 0..rules.against.limits().len() {
                    let (genes, _) = super::feasible::smallest(&rules.genome, &rules.against, cost)?;
                    if rules.feasible(&genes)? {
                        children.push(genes);
                    }
                }
                children.push(rules.witness.clone());
            }
            for (score, genes) in task.score(children)? {
                members.push(Member { goals: goals(task.rules(), score, &genes)?, genes });
            }
            let mut seen = HashSet::new();
            members.retain(|member| seen.insert(member.genes.clone()));
            members = select(members, self.population);
            task.record();
            if task.is_over() {
                break;
            }
        }
        task.front = front_of(&members);
        Ok(())
    }
}

/// The candidates that no other dominates, by rising score.
pub(super) fn first_front(rules: &Rules, scored: &[Scored]) -> Result<Vec<Scored>> {
    let mut members = Vec::with_capacity(scored.len());
    let mut seen = HashSet::new();
    for (score, genes) in scored {
        if seen.insert(genes) && rules.feasible(genes)? {
            members.push(Member { goals: goals(rules, *score, genes)?, genes: genes.clone() });
        }
    }
    Ok(front_of(&members))
}

fn front_of(members: &[Member]) -> Vec<Scored> {
    let first = fronts(members).into_iter().next().unwrap_or_default();
    let mut front: Vec<Scored> =
        first.into_iter().map(|index| (-members[index].goals[0], members[index].genes.clone())).collect();
    front.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
    front
}

fn goals(rules: &Rules, score: f64, genes: &Genes) -> Result<Vec<f64>> {
    let costs = (0..rules.against.limits().len()).map(|cost| rules.against.value(&rules.genome, cost, genes));
    std::iter::once(Ok(-score)).chain(costs).collect()
}

/// Random genes around a common level between smallest and largest; uniform draws would all cost about the same.
fn spread(genome: &Genome, rng: &mut impl Rng) -> Genes {
    let level: f64 = rng.random();
    genome.build(|place| {
        let drawn = (level + rng.random_range(-0.3..0.3)).clamp(0.0, 1.0);
        ((drawn * f64::from(genome.choices(place))) as u16).min(genome.choices(place) - 1)
    })
}

/// Whether `a` is not worse than `b` in any goal and better in one.
fn dominates(a: &[f64], b: &[f64]) -> bool {
    a != b && a.iter().zip(b).all(|(a, b)| a <= b)
}

/// Indices of the members that no member dominates, then of those that only these dominate, and so on.
fn fronts(members: &[Member]) -> Vec<Vec<usize>> {
    let mut dominated_by = vec![0usize; members.len()];
    let mut dominated: Vec<Vec<usize>> = vec![Vec::new(); members.len()];
    for a in 0..members.len() {
        for b in 0..members.len() {
            if dominates(&members[a].goals, &members[b].goals) {
                dominated[a].push(b);
                dominated_by[b] += 1;
            }
        }
    }
    let mut current: Vec<usize> = (0..members.len()).filter(|&m| dominated_by[m] == 0).collect();
    let mut fronts = Vec::new();
    while !current.is_empty() {
        let mut next = Vec::new();
        for &a in &current {
            for &b in &dominated[a] {
                dominated_by[b] -= 1;
                if dominated_by[b] == 0 {
                    next.push(b);
                }
            }
        }
        next.sort_unstable();
        fronts.push(std::mem::replace(&mut current, next));
    }
    fronts
}

/// Crowding distance of each member of `front`: the gap between its neighbours, summed over the goals; infinite at the
/// ends.
fn crowding(members: &[Member], front: &[usize]) -> Vec<f64> {
    let mut room = vec![0.0; front.len()];
    for goal in 0..members[front[0]].goals.len() {
        let value = |place: usize| members[front[place]].goals[goal];
        let mut order: Vec<usize> = (0..front.len()).collect();
        order.sort_by(|&a, &b| value(a).total_cmp(&value(b)));
        let (first, last) = (order[0], order[order.len() - 1]);
        let range = (value(last) - value(first)).max(f64::MIN_POSITIVE);
        room[first] = f64::INFINITY;
        room[last] = f64::INFINITY;
        for triple in order.windows(3) {
            room[triple[1]] += (value(triple[2]) - value(triple[0])) / range;
        }
    }
    room
}

/// The best `count` members in order of selection: front by front, larger crowding distance first.
fn select(members: Vec<Member>, count: usize) -> Vec<Member> {
    let mut chosen = Vec::with_capacity(count);
    for front in fronts(&members) {
        let room = crowding(&members, &front);
        let mut order: Vec<usize> = (0..front.len()).collect();
        order.sort_by(|&a, &b| {
            room[b].total_cmp(&room[a]).then_with(|| members[front[a]].genes.cmp(&members[front[b]].genes))
        });
        chosen.extend(order.into_iter().map(|place| front[place]));
        if chosen.len() >= count {
            break;
        }
    }
    chosen.truncate(count);
    chosen.into_iter().map(|index| members[index].clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::testing::{everything, worth};
    use crate::search::{Limit, Problem, SearchSettings, search};
    use ofa_supernet::{SearchSpace, Subnet};

    #[test]
    fn finds_the_front_that_trying_everything_finds() {
        let space = SearchSpace::named("tiny").unwrap();
        let cost = |subnet: &Subnet| Ok(crate::search::testing::macs(&space, subnet));
        let against = [Limit::new("macs", f64::INFINITY, cost)];
        let all: Vec<(f64, f64)> = everything(&space).iter().map(|s| (worth(s), cost(s).unwrap())).collect();
        let problem = Problem { against: &against, ..Problem::new(&space, &[], 3) };
        let settings = SearchSettings::Pareto(Pareto { generations: 60, ..Pareto::default() });
        let mut scorer = |subnets: &[Subnet]| Ok(subnets.iter().map(worth).collect());
        let found = search(&problem, &settings, &mut scorer, &mut |_| ()).unwrap();
        assert!(found.front.len() >= 20 && found.front.len() <= 100, "{}", found.front.len());
        let dominated = |score: f64, cost: f64| all.iter().any(|&(s, c)| dominates(&[-s, c], &[-score, cost]));
        let lost = found.front.iter().filter(|p| dominated(p.score, p.values[0])).count();
        assert!(lost * 10 <= found.front.len(), "{lost} of {} are not on the true front", found.front.len());
        assert!(found.front.windows(2).all(|w| w[0].score < w[1].score && w[0].values[0] < w[1].values[0]));
        let best = all.iter().map(|p| p.0).fold(0.0, f64::max);
        assert_eq!(found.front.last().unwrap().score, best);
    }

    #[test]
    fn fronts_and_room_worked_out_by_hand() {
        let member = |a: f64, b: f64| Member { goals: vec![a, b], genes: vec![a as u16, b as u16].into_boxed_slice() };
        let members = [member(0.0, 4.0), member(1.0, 2.0), member(4.0, 0.0), member(2.0, 3.0), member(5.0, 5.0)];
        assert_eq!(fronts(&members), [vec![0, 1, 2], vec![3], vec![4]]);
        assert_eq!(crowding(&members, &[0, 1, 2]), [f64::INFINITY, 2.0, f64::INFINITY]);
        let kept = select(members.to_vec(), 2);
        assert_eq!(kept, [members[0].clone(), members[2].clone()]);
    }
}
