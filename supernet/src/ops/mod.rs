//! Kernels and their gradients.
//!
//! Values are NHWC. A layer's forward kernel returns its output and what its backward kernel will read; the tape of
//! [`layers`](crate::layers) keeps that between the two. candle's autograd carries small things only (kernel transform,
//! activation of the hidden layer, loss).
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
//! | `orthogonal` | the nearest matrix with orthonormal rows, for an optimizer |
//! | `passes` | the same over whole tensors, divided among the threads |
//! | `transposed` | weight gradients from the layout of their sums to the layout of the weight |
//! | `depthwise` | depthwise convolution and its gradients, a slice of channels at a time |
//! | `inverted_residual` | the block as one kernel |
//! | `dense`, `dense_kernels`, `dense_shape`, `columns`, `depthwise_maps` | a dense (or depthwise) convolution with batch norm and activation as one kernel |
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
#[cfg(test)]
mod shape_tests;
mod simd;
mod slice;
mod sparse;
mod strips;
mod sync;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod transposed;
mod worker_pool;
mod workers;

pub(crate) use orthogonal::orthogonalised;
pub(crate) use parallel::map_ordered;

pub use activation::Activation;
pub use batch_norm::ChannelStatistics;
pub use dense::{DenseSaved, dense};
pub use dense_shape::DenseShape;
pub use inverted_residual::{BlockSaved, BlockShape, BlockStatistics, inverted_residual, parameter_count};
pub use linear::{linear, linear_backward};
pub use parallel::{map_alone, threads, with_threads};
pub use pools::{Windows, add, average_pool, average_pool_gradient, max_pool, max_pool_gradient, relu_gradient};
pub use simd::{InstructionSet, UnknownInstructionSet};
pub use sparse::{SparseLayer, SparseRows};

use crate::ranks::Ranks;
use candle_core::{CpuStorage, DType, Device, Layout, Storage, Tensor, bail};

/// Whether the kernels compute with tensors of this kind: f32 on a CPU. All others go to the graph's interpreter and
/// candle's operations. No other place decides between the two.
pub(crate) fn has_kernels(device: &Device, dtype: DType) -> bool {
    device.is_cpu() && dtype == DType::F32
}

/// Gradients that a layer's backward kernel computes.
pub struct LayerGradients {
    /// At the input, if it was asked for.
    pub input: Option<Vec<f32>>,
    /// At the parameters, in the order in which they are packed.
    pub parameters: Vec<f32>,
}

/// The sum over all ranks, as kernels call it.
fn summing(ranks: Option<&Ranks>) -> Option<impl Fn(&mut [f64]) + Sync> {
    ranks.map(|ranks| |values: &mut [f64]| ranks.sum_f64(values))
}

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
