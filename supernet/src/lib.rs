//! Elastic (once-for-all) networks: their definition and their training.
//!
//! Ideas and terms are those of *Once-for-All: Train One Network and Specialize it for Efficient Deployment*
//! (Cai et al., ICLR 2020, arXiv 1908.09791).
//!
//! | module | concern |
//! | --- | --- |
//! | [`space`] | the search space, a subnet of it, and the static network of a subnet |
//! | [`ops`] | kernels with their gradients |
//! | [`graph`] | a static network as primitive operations: costs, names, interpreter |
//! | [`blocks`] | a file for each kind of block: description, graph, elastic layers |
//! | [`layers`] | elastic convolution, batch norm, kernel transform |
//! | [`network`] | the weight-sharing network |
//! | [`import`] | published checkpoints |
//! | [`data`] | datasets, augmentation, loading |
//! | [`train`] | progressive shrinking: stages, distillation, optimizer, schedule, checkpoints |
//! | [`ranks`] | several processes that work together |
//! | [`environment`] | process-wide settings, for programs |
//! | [`files`], `temporaries`, [`lock`] | atomic files, and what killed writers leave; one writer per run folder |
//! | `legacy` | forms that earlier versions wrote |
//! | [`seed`] | random generators derived from their purpose |
//! | [`quote`] | foreign text in messages |
//! | [`error`] | the error type |

#![deny(unsafe_code)]
// A library prints nothing: its caller may have no output to print to.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro))]

pub mod blocks;
pub mod data;
#[allow(unsafe_code)] // setting an environment variable affects all threads of the process
pub mod environment;
pub mod error;
pub mod files;
pub mod graph;
pub mod import;
pub mod layers;
mod legacy;
pub mod lock;
pub mod network;
pub mod ops;
pub mod quote;
pub mod ranks;
pub mod seed;
pub mod space;
mod temporaries;
pub mod train;

pub use error::{Error, Result};
pub use network::Supernet;
pub use ranks::Ranks;
pub use space::{NetworkSpec, SearchSpace, Subnet};
