//! Hyperparameter search on shortened trainings: which values to try, and which trials to stop early.
//!
//! | file | concern |
//! | --- | --- |
//! | `ranges` | hyperparameters and their ranges |
//! | `ranges_file` | the ranges as a TOML file |
//! | `suggest` | values of the next trial: grid, random, Gaussian process; never the values of an earlier trial |
//! | `trials` | finished trials, their file, and early stopping |

mod ranges;
mod ranges_file;
mod suggest;
mod trials;

pub use ranges::{Hyperparameter, Range, Ranges, Values};
pub use suggest::{TrialStrategy, suggest};
pub use trials::{Outcome, Point, Trial, TrialWriter, best, name, read_trials, should_prune, significant, table};
