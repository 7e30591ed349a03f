//! Kernels and their gradients (`ofa-kernels`), and their use on tensors.
//!
//! Kernels know slices of numbers only. The tape of [`layers`](crate::layers) keeps what a forward kernel returns for
//! its backward kernel. candle's autograd carries small things only (kernel transform, activation of the hidden layer,
//! loss).

#[cfg(test)]
mod shape_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use ofa_kernels::*;

use crate::ranks::Ranks;
use candle_core::{CpuStorage, DType, Device, Layout, Storage, Tensor, bail};

/// Whether the kernels compute with tensors of this kind: f32 on a CPU. All others go to the graph's interpreter and
/// candle's operations. No other place decides between the two.
pub(crate) fn has_kernels(device: &Device, dtype: DType) -> bool {
    device.is_cpu() && dtype == DType::F32
}

/// A function that adds values over all ranks, as kernels call it.
type Summing<'a> = Box<dyn Fn(&mut [f64]) + Sync + 'a>;

/// The sum over all `ranks`, if there are any.
pub(crate) fn summing(ranks: Option<&Ranks>) -> Option<Summing<'_>> {
    ranks.map(|ranks| Box::new(|values: &mut [f64]| ranks.sum_f64(values)) as Summing)
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
