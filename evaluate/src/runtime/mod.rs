//! Fast inference of a static network: what `ofa bench` times, what a device profile is made of.
//!
//! Batch norm is folded into the convolutions when the network is built. Tensors are NHWC f32 in buffers that belong to
//! the network and only grow, so a run allocates no activations once it has seen its batch size. The kernels use the threads
//! of the rayon pool that the caller is in (`ThreadPool::install`).

mod block;
mod network;
#[cfg(test)]
mod plain;
mod weights;

pub use network::StaticNetwork;
pub use weights::{Weights, check_weights, random_weights};
