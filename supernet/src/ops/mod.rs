//! Kernels and their gradients.
//!
//! Values are NHWC. A layer's forward kernel returns its output and what its backward kernel will read; the tape of
//! [`layers`](crate::layers) keeps that between the two. candle's autograd carries small things only (kernel transform,
//! activation of the hidden layer, loss).
//!
//! | file | concern |
//! | --- | --- |
//! | `simd` | instruction sets: detection, dispatch, vectors |
//! | `parallel`, `ordered` | ranges of work; results in order |
//! | `workers`, `worker_pool` | the threads that share a caller's ranges |
//! | `buffers`, `buffer_pool` | work buffers reused from step to step |
//! | `sync` | locks, atomics and threads, of the standard library or of loom |
//! | `activation`, `batch_norm` | the per-value and per-channel arithmetic |
//! | `matmul`, `rows` | products of pointwise convolutions and the passes over pixels around them |
//! | `depthwise` | depthwise convolution and its gradients, a slice of channels at a time |
//! | `inverted_residual` | the block as one kernel |
//! | `dense`, `dense_shape`, `columns` | a dense convolution with batch norm and activation as one kernel |
//! | `linear` | a fully connected layer |
//! | `pools` | ResNet's steps between convolutions: sums, max pool, average pool |
//! | `sparse` | fully connected layers for inputs of which many are zero |
//! | `inference` | the same layers with batch norm folded, for extracted networks |

mod activation;
mod batch_norm;
mod buffer_pool;
mod buffers;
mod columns;
mod dense;
mod dense_shape;
mod depthwise;
pub mod inference;
mod inverted_residual;
mod linear;
mod matmul;
mod ordered;
mod parallel;
mod pools;
mod rows;
#[cfg(test)]
mod shape_tests;
mod simd;
mod sparse;
mod sync;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod worker_pool;
mod workers;

pub(crate) use parallel::map_ordered;

pub use batch_norm::ChannelStatistics;
pub use dense::{DenseSaved, dense};
pub use dense_shape::DenseShape;
pub use inverted_residual::{BlockSaved, BlockShape, BlockStatistics, inverted_residual, parameter_count};
pub use linear::{linear, linear_backward};
pub use pools::{Windows, add, average_pool, average_pool_gradient, max_pool, max_pool_gradient, relu_gradient};
pub use simd::{InstructionSet, UnknownInstructionSet};
pub use sparse::{SparseLayer, SparseRows};

use candle_core::{CpuStorage, Layout, Storage, Tensor, bail};

/// The values of a contiguous f32 tensor on the CPU, inside an operation of candle.
pub(crate) fn contiguous_f32<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        _ => bail!("the kernels need contiguous f32 tensors"),
    }
}

/// Calls `use_values` with the values of an f32 tensor on the CPU, without a copy where it is contiguous.
pub(crate) fn tensor_values<R>(
    tensor: &Tensor,
    use_values: impl FnOnce(&[f32]) -> candle_core::Result<R>,
) -> candle_core::Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => use_values(contiguous_f32(storage, layout)?),
        _ => bail!("the kernels run on the CPU"),
    }
}
