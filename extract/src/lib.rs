//! Choice of the best subnets of a once-for-all network, and their extraction.
//!
//! Terms follow *Once-for-All: Train One Network and Specialize it for Efficient Deployment* (Cai et al., ICLR 2020,
//! arXiv 1908.09791), §3.4: accuracies of sampled subnets are measured once, a predictor is fitted to them, and a
//! search then queries the predictor for any number of subnets, under limits on latency, MACs, parameters or memory.
//!
//! | module | concern |
//! | --- | --- |
//! | [`predictor`] | accuracy samples, and the network that predicts accuracy from a subnet's choices |
//! | [`constraint`] | limits as text, and how subnets are measured |
//! | [`effects`] | what each choice adds to a score |
//! | [`mod@search`] | the best subnet within limits |
//! | `gaussian_process` | a surrogate of expensive scores, and expected improvement |
//! | [`tune`] | hyperparameter search |
//! | [`subnet`] | extracting a subnet as a model folder, and checking the model |
//! | [`error`] | the error type |

#![forbid(unsafe_code)]
// A library prints nothing: its caller may have no output to print to.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro))]

pub mod constraint;
pub mod effects;
pub mod error;
mod gaussian_process;
pub mod predictor;
pub mod search;
pub mod subnet;
pub mod tune;

use ofa_evaluate::cholesky;

pub use constraint::{Constraint, Measures, Metric};
pub use error::{Error, Result};
pub use predictor::{FitReport, FitSettings, Predictor, Sample};
pub use search::{Limit, Problem, SearchResult, SearchSettings, search};
