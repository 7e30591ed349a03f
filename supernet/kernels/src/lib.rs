//! Kernels and their gradients, which know slices of numbers only: no tensors, no search space, no processes.
//!
//! Values are NHWC. A layer's forward kernel returns its output and what its backward kernel will read; the caller
//! keeps that between the two. `ofa-supernet` calls them with tensors, as its module `ops`.
//!
//! | file | concern |
//! | --- | --- |
//! | `simd`, `slice` | instruction sets: detection, dispatch, vectors; a slice of 16 channels |
//! | `parallel`, `strips`, `ordered` | ranges of work and their parts of outputs; results in order |
//! | `workers`, `worker_pool`, `idle_pools` | the threads that share a caller's ranges |
//! | `buffers`, `buffer_pool` | work buffers reused from step to step |
//! | `sync` | locks, atomics and threads, of the standard library or of loom |
//! | `activation`, `batch_norm` | the per-value and per-channel arithmetic |
//! | `matmul`, `rows` | products of pointwise convolutions and the loops over pixels around them |
//! | `passes` | these over whole tensors, divided among the threads |
//! | `orthogonal` | the nearest matrix with orthonormal rows, for an optimizer |
//! | `transposed` | weight gradients from the layout of their sums to the layout of the weight |
//! | `depthwise` | depthwise convolution and its gradients, a slice of channels at a time |
//! | `inverted_residual` | the block as one kernel |
//! | `dense`, `dense_kernels`, `dense_shape` | a dense or depthwise convolution, batch norm and activation as one kernel |
//! | `columns`, `depthwise_maps` | the rows that a dense convolution multiplies; whole maps of a depthwise one |
//! | `linear` | a fully connected layer |
//! | `pools` | ResNet's steps between convolutions: sums, max pool, average pool |
//! | `sparse` | fully connected layers for inputs of which many are zero |
//! | `inference` | the same layers with batch norm folded, for extracted networks |

// A library prints nothing: its caller may have no output to print to.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro))]

mod activation;
mod batch_norm;
mod buffer_pool;
mod buffers;
mod columns;
mod dense;
mod dense_kernels;
mod dense_shape;
mod depthwise;
mod depthwise_maps;
mod idle_pools;
pub mod inference;
mod inverted_residual;
mod linear;
mod matmul;
mod ordered;
mod orthogonal;
mod parallel;
mod passes;
mod pools;
mod rows;
mod simd;
mod slice;
mod sparse;
mod strips;
mod sync;
#[cfg(test)]
mod testing;
mod transposed;
mod worker_pool;
mod workers;

pub use activation::Activation;
pub use batch_norm::{ChannelStatistics, SumOverProcesses};
pub use dense::{DenseSaved, dense};
pub use dense_shape::DenseShape;
pub use inverted_residual::{BlockSaved, BlockShape, BlockStatistics, inverted_residual, parameter_count};
pub use linear::{linear, linear_backward};
pub use orthogonal::orthogonalised;
pub use parallel::{map_alone, map_ordered, threads, with_threads};
pub use pools::{Windows, add, average_pool, average_pool_gradient, max_pool, max_pool_gradient, relu_gradient};
pub use simd::{InstructionSet, UnknownInstructionSet};
pub use sparse::{SparseLayer, SparseRows};

/// The error for values that do not fit the extents of a layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct WrongExtents(String);

/// Gradients that a layer's backward kernel computes.
pub struct LayerGradients {
    /// At the input, if it was asked for.
    pub input: Option<Vec<f32>>,
    /// At the parameters, in the order in which they are packed.
    pub parameters: Vec<f32>,
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_instruction_set_passes_the_same_tests() {
        crate::testing::repeat_with_each_instruction_set(&[], true);
    }
}
