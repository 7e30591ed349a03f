//! What commands print.
//!
//! | module | concern |
//! | --- | --- |
//! | `terminal`, `streams` | results, messages and warnings; standard output and error that may be closed |
//! | `progress`, `table` | progress bars, tables |
//! | `training_summary`, `training_progress` | a training before, after and while it runs |
//! | `predictor_report`, `next_steps` | texts of several commands |

// Before all others, for its macro.
#[macro_use]
pub mod terminal;

pub mod next_steps;
pub mod predictor_report;
pub mod progress;
pub mod streams;
pub mod table;
pub mod training_progress;
pub mod training_summary;
