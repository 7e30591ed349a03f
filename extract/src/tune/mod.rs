//! Hyperparameters of training: which to try, on shortened runs, and which trial to give up.
//!
//! | file | concern |
//! | --- | --- |
//! | `ranges` | what may be varied and how far |
//! | `ranges_file` | the ranges as a TOML file |
//! | `suggest` | what to try next: grid, random, Gaussian process; nothing twice |
//! | `trials` | what was tried, its file, and when a trial is hopeless |

mod ranges;
mod ranges_file;
mod suggest;
mod trials;

pub use ranges::{Hyperparameter, Range, Ranges, Values};
pub use suggest::{Suggest, suggest};
pub use trials::{Outcome, Point, Trial, TrialWriter, best, hopeless, read_trials, significant, table};
