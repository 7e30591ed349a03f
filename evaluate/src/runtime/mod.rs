//! Fast inference of a static network: what `ofa bench` times, what a device profile is made of.
//!
//! Batch norm is folded into the convolutions when the network is built. Tensors are NHWC, f32 or `u8`, in buffers that
//! belong to the network and only grow, so a run allocates no activations once it has seen its batch size. The kernels
//! use as many threads as [`with_threads`] says around the call, otherwise as the rayon pool that the caller is in has.
//!
//! | file | concern |
//! | --- | --- |
//! | `compiler` | from a graph to the calls of kernels |
//! | `plan` | which buffer holds each value |
//! | `kernels` | the layers of a program with their weights |
//! | `buffers` | memory of the values, and one step |
//! | `describe` | a program's steps in words |
//! | `network` | a program with its kernels, and one pass through them |
//! | `weights` | tensors of a model: checks, random ones, batch-norm folding |

mod buffers;
mod compiler;
mod describe;
#[cfg(test)]
mod int8_tests;
mod kernels;
mod network;
mod plan;
mod weights;

pub use describe::StepInfo;
pub use network::{StaticNetwork, softmax};
pub use ofa_supernet::ops::with_threads;
pub(crate) use weights::Checked;
pub use weights::{Weights, check_weights, random_weights};
