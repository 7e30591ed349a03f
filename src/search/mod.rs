//! Searches of a run's subnets: what is searched, by which scores, and the files of the results.
//!
//! | module | concern |
//! | --- | --- |
//! | `scorer`, `measured` | scores of a search, and accuracies that are measured for it |
//! | `searches` | searches of several limits, with their measurements and files |
//! | `compare` | every strategy with the same budget |

pub mod compare;
pub mod measured;
pub mod scorer;
pub mod searches;
