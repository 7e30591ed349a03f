//! What an optimizer keeps of a parameter.

use crate::{Result, ops};
use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Tensor};
use rayon::prelude::*;
use std::cell::RefCell;

/// Elements a thread takes at once; smaller tensors stay on the calling thread.
pub(super) const CHUNK: usize = 1 << 15;

/// Values in the shape of a parameter.
pub(super) enum Buffer {
    /// Beside contiguous f32 parameters on the CPU, which are updated in one pass over memory.
    Host(Vec<f32>),
    /// Everywhere else.
    Device(Tensor),
}

impl Buffer {
    /// The values of a host buffer of `len` values; zeros if there is none.
    pub(super) fn host(buffer: &mut Option<Buffer>, len: usize) -> &mut Vec<f32> {
        if !matches!(buffer, Some(Buffer::Host(_))) {
            *buffer = Some(Buffer::Host(vec![0.0; len]));
        }
        match buffer {
            Some(Buffer::Host(values)) => values,
            _ => unreachable!("a host buffer was just put there"),
        }
    }

    /// The values as a tensor of the shape of `weight`.
    pub(super) fn tensor(&self, weight: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Buffer::Host(values) => Tensor::from_slice(values, weight.dims(), &Device::Cpu)?,
            Buffer::Device(tensor) => tensor.copy()?,
        })
    }

    /// The buffer with the values of `tensor`, beside `weight`.
    pub(super) fn from_tensor(tensor: &Tensor, weight: &Tensor) -> Result<Buffer> {
        Ok(match is_host(weight) {
            true => Buffer::Host(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?),
            false => Buffer::Device(tensor.to_device(weight.device())?.to_dtype(weight.dtype())?),
        })
    }
}

/// Whether a tensor can be updated in one pass over memory.
pub(super) fn is_host(tensor: &Tensor) -> bool {
    ops::has_kernels(tensor.device(), tensor.dtype()) && tensor.is_contiguous()
}

/// Calls `update` with chunks of `weight`, of `gradient` and of `buffers`, on several threads for long ones. All are of
/// one length, and both tensors are [on the host](is_host).
pub(super) fn update_in_place<const N: usize>(
    weight: &Tensor,
    gradient: &Tensor,
    buffers: [&mut [f32]; N],
    update: impl Fn(&mut [f32], &[f32], [&mut [f32]; N]) + Sync,
) -> Result<()> {
    weight.inplace_op2(gradient, &InPlace { buffers: RefCell::new(buffers), update })?;
    Ok(())
}

struct InPlace<'a, F, const N: usize> {
    /// candle gives an in-place op one destination only; the others travel here.
    buffers: RefCell<[&'a mut [f32]; N]>,
    update: F,
}

impl<F: Fn(&mut [f32], &[f32], [&mut [f32]; N]) + Sync, const N: usize> InplaceOp2 for InPlace<'_, F, N> {
    fn name(&self) -> &'static str {
        "update_in_place"
    }

    fn cpu_fwd(
        &self,
        weight: &mut CpuStorage,
        weight_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (CpuStorage::F32(weight), CpuStorage::F32(gradient)) = (weight, gradient) else {
            candle_core::bail!("the fused optimizer step is for f32 only")
        };
        let (Some((start, end)), Some((from, to))) =
            (weight_layout.contiguous_offsets(), gradient_layout.contiguous_offsets())
        else {
            candle_core::bail!("the fused optimizer step is for contiguous tensors only")
        };
        let mut buffers = self.buffers.borrow_mut();
        let (weight, gradient) = (&mut weight[start..end], &gradient[from..to]);
        if weight.len() != gradient.len() || buffers.iter().any(|buffer| buffer.len() != weight.len()) {
            candle_core::bail!("a weight of {} elements got {} gradients", weight.len(), gradient.len())
        }
        if weight.len() <= CHUNK {
            (self.update)(weight, gradient, buffers.each_mut().map(|buffer| &mut buffer[..]));
            return Ok(());
        }
        let mut rest = buffers.each_mut().map(|buffer| buffer.chunks_mut(CHUNK));
        let chunks = weight.chunks_mut(CHUNK).zip(gradient.chunks(CHUNK)).map(|(weight, gradient)| {
            (weight, gradient, rest.each_mut().map(|chunks| chunks.next().expect("buffers are as long as the weight")))
        });
        let chunks: Vec<_> = chunks.collect();
        let update = &self.update;
        chunks.into_par_iter().for_each(|(weight, gradient, buffers)| update(weight, gradient, buffers));
        Ok(())
    }
}
