//! Random search (Bergstra and Bengio, JMLR 2012): the baseline of every other strategy.

use super::genome::Genes;
use super::strategies::Strategy;
use super::task::Task;
use crate::Result;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Candidates that are scored in one call.
const BATCH: usize = 100;

/// Random subnets; a subnet that breaks a limit is repaired.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Random {}

impl Strategy for Random {
    fn description(&self) -> &'static str {
        "Random subnets"
    }

    fn evaluations(&self) -> usize {
        10_000
    }

    fn run(&self, task: &mut Task) -> Result<()> {
        for batch in 0u64.. {
            let before = task.remaining();
            let rules = task.rules();
            let draw = |index| {
                let mut rng = rules.rng(&[batch, index]);
                let drawn = rules.genome.sample(&mut rng);
                rules.repair(drawn, &mut rng)
            };
            let candidates = (0..BATCH as u64).into_par_iter().map(draw).collect::<Result<Vec<Genes>>>()?;
            task.evaluate(&candidates)?;
            task.record();
            // A small space runs out of subnets.
            if task.remaining() == 0 || task.remaining() == before {
                break;
            }
        }
        Ok(())
    }
}
