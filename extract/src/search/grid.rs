//! Grid search over uniform settings: each dimension has the same choice everywhere.

use super::strategies::Strategy;
use super::task::Task;
use crate::Result;
use ofa_supernet::space::DIMENSIONS;
use serde::{Deserialize, Serialize};

/// All combinations of one choice per dimension that meet the limits, smallest first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {}

impl Strategy for Grid {
    fn description(&self) -> &'static str {
        "Uniform settings of kernel, expand ratio, depth and resolution"
    }

    fn evaluations(&self) -> usize {
        10_000
    }

    fn run(&self, task: &mut Task) -> Result<()> {
        let genome = &task.rules().genome;
        let mut settings = vec![[0u16; DIMENSIONS.len()]];
        for dimension in 0..DIMENSIONS.len() {
            let places = (0..genome.size()).filter(|&place| genome.dimension(place).index() == dimension);
            let most = places.map(|place| genome.choices(place)).max().unwrap_or(1);
            let with = |setting: [u16; DIMENSIONS.len()]| {
                (0..most).map(move |choice| {
                    let mut setting = setting;
                    setting[dimension] = choice;
                    setting
                })
            };
            settings = settings.into_iter().flat_map(with).collect();
        }
        let mut feasible = Vec::new();
        for setting in settings {
            // A gene with fewer choices, such as the depth of a stage that has only one, takes its last.
            let genes = genome.build(|place| setting[genome.dimension(place).index()].min(genome.choices(place) - 1));
            if task.rules().feasible(&genes)? {
                feasible.push(genes);
            }
        }
        task.evaluate(&feasible)?;
        task.record();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::{Limit, Problem, SearchSettings, search};
    use ofa_supernet::{SearchSpace, Subnet};

    #[test]
    fn scores_every_uniform_setting_within_the_limit_and_nothing_else() {
        let space = SearchSpace::named("tiny").unwrap();
        let mut seen = Vec::new();
        let mut scorer = |subnets: &[Subnet]| {
            seen.extend_from_slice(subnets);
            Ok(subnets.iter().map(|s| s.resolution as f64).collect())
        };
        let limits = [Limit::new("resolution", 24.0, |s: &Subnet| Ok(s.resolution as f64))];
        search(&Problem::new(&space, &limits, 0), &SearchSettings::Grid(Grid {}), &mut scorer, &mut |_| ()).unwrap();
        // Two of three resolutions, two depths, two kernels, three expand ratios.
        assert_eq!(seen.len(), 2 * 2 * 2 * 3);
        for subnet in &seen {
            let first = subnet.stages[0][0];
            assert!(subnet.resolution <= 24 && subnet.blocks().all(|block| *block == first), "{subnet}");
            assert_eq!(subnet.stages[0].len(), subnet.stages[1].len(), "{subnet}");
        }
    }
}
