//! Which subnet to take from a once-for-all network, and how to take it out.
//!
//! The terms are those of *Once-for-All: Train One Network and Specialize it for Efficient Deployment* (Cai et al.,
//! ICLR 2020, arXiv 1908.09791), §3.4: accuracies of sampled subnets are measured once, a predictor is fitted on them,
//! and a search then asks the predictor about as many subnets as it likes, under limits on latency, MACs, parameters or
//! memory.
//!
//! | module | concern |
//! | --- | --- |
//! | [`predictor`] | accuracy samples, and the network that predicts accuracy from a subnet's choices |
//! | [`constraint`] | limits as people write them, and how they are measured |
//! | [`search`] | the best subnet within limits |
//! | `gaussian_process` | a surrogate of what is expensive to know, and expected improvement |
//! | `cholesky` | the linear equations of both |
//! | [`tune`] | hyperparameters of training |
//! | [`subnet`] | cutting a subnet out as a model folder, and checking it |

#![forbid(unsafe_code)]
// A library prints nothing: its caller may have no output to print to.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro))]

mod cholesky;
pub mod constraint;
pub mod error;
mod gaussian_process;
pub mod predictor;
pub mod search;
pub mod subnet;
pub mod tune;

pub use constraint::{Constraint, Measures, Metric};
pub use error::{Error, Result};
pub use predictor::{FitReport, FitSettings, Predictor, Sample};
pub use search::{Limit, Problem, SearchResult, SearchSettings, search};
