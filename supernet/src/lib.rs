//! Elastic (once-for-all) networks: what they are and how they are trained.
//!
//! The ideas and terms are those of *Once-for-All: Train One Network and Specialize it for Efficient Deployment*
//! (Cai et al., ICLR 2020, arXiv 1908.09791).
//!
//! | module | concern |
//! | --- | --- |
//! | [`space`] | the search space, one subnet of it, and the static network a subnet stands for |
//! | [`ops`] | kernels with their gradients |
//! | [`graph`] | a static network as primitive operations: costs, names, interpreter |
//! | [`blocks`] | a file for each kind of block: description, graph, elastic layers |
//! | [`layers`] | elastic convolution, batch norm, kernel transform |
//! | [`network`] | the weight-sharing network |
//! | [`import`] | checkpoints that others published |
//! | [`data`] | datasets, augmentation, loader |
//! | [`train`] | progressive shrinking: stages, distillation, optimizer, schedule, checkpoints |
//! | [`ranks`] | several processes that work together |
//! | [`environment`] | settings of the whole process, for programs |
//! | [`files`], [`lock`] | whole files or none; one writer a run folder |
//! | [`quote`] | foreign text in messages |

#![deny(unsafe_code)]
// A library prints nothing: its caller may have no output to print to.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro))]

pub mod blocks;
pub mod data;
#[allow(unsafe_code)] // a process's environment belongs to all its threads
pub mod environment;
pub mod error;
pub mod files;
pub mod graph;
pub mod import;
pub mod layers;
pub mod lock;
pub mod network;
mod network_cut;
mod network_seam;
mod network_sort;
mod network_statistics;
// The kernels: SIMD intrinsics and slices that threads share.
#[allow(unsafe_code)]
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
