//! Evaluation of networks: accuracy, size and speed.
//!
//! | module | concern |
//! | --- | --- |
//! | [`cost`] | multiply-accumulates, parameters, peak activation memory of a [`NetworkSpec`](ofa_supernet::NetworkSpec) |
//! | [`memory`] | memory that training needs, and memory that the machine has |
//! | [`cholesky`] | linear equations of fits |
//! | [`latency`] | measurement of times, and their statistics |
//! | [`profile`] | a device's latency table: measured on the device, read by the search |
//! | [`runtime`] | fast inference of a static network |
//! | [`model`] | the folder of an extracted model: names, configuration, loading, saving |
//! | [`quantise`] | networks in 8-bit integers: definition, calibration |
//! | [`export`] | extracted models in the file formats of other engines |
//! | [`mod@bench`] | accuracy, size and speed of extracted models, as a table |
//! | [`error`] | the error type |
//!
//! Accuracy inside the supernet, with batch-norm recalibration, is in [`ofa_supernet::train::validation`], because
//! training needs it for its probes and crates depend one way.
//!
//! Nothing in this crate changes a supernet.

#![forbid(unsafe_code)]
// A library prints nothing: its caller may have no output to print to.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro))]

pub mod bench;
pub mod cholesky;
pub mod cost;
pub mod error;
pub mod export;
pub mod latency;
pub mod memory;
pub mod model;
pub mod profile;
pub mod quantise;
pub mod runtime;

pub use error::{Error, Result};
pub use model::Model;
pub use profile::DeviceProfile;
pub use runtime::StaticNetwork;
