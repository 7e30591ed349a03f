//! Gradients of one step: summed over processes, measured, clipped.

use crate::Result;
use crate::ranks::Ranks;
use candle_core::{CpuStorage, DType, Storage, Tensor};
use std::ops::Range;

pub use crate::network::Gradients;

/// Replaces the gradients of the parameters at `places` by their sums over all ranks, as one flat bucket. All ranks
/// must have gradients for the same parameters; absent ones are not sent.
pub(super) fn sum_over(ranks: &Ranks, gradients: &mut Gradients, places: Range<usize>) -> Result<()> {
    if !ranks.is_distributed() {
        return Ok(());
    }
    exchange(gradients, places, &mut [], |bucket| ranks.sum(bucket))
}

/// Sums gradients as [`sum_over`] does, and the values of `others` with them, while this thread does `work`
/// ([`Ranks::sum_during`]). Whether `work` failed is in its result.
pub(super) fn sum_during<T>(
    ranks: &Ranks,
    gradients: &mut Gradients,
    places: Range<usize>,
    others: &mut [f32],
    work: impl FnOnce() -> T,
) -> Result<T> {
    if !ranks.is_distributed() {
        return Ok(work());
    }
    exchange(gradients, places, others, |bucket| ranks.sum_during(bucket, work))
}

/// Copies the gradients at `places` and `others` into one buffer, calls `sum` on it, and copies the sums back.
fn exchange<T>(
    gradients: &mut Gradients,
    places: Range<usize>,
    others: &mut [f32],
    sum: impl FnOnce(&mut [f32]) -> T,
) -> Result<T> {
    let gradients = &mut gradients.tensors_mut()[places];
    let mut bucket = Vec::new();
    for gradient in gradients.iter().flatten() {
        bucket.extend(gradient.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?);
    }
    bucket.extend_from_slice(others);
    let result = sum(&mut bucket);
    let mut rest = &bucket[..];
    for gradient in gradients.iter_mut().flatten() {
        let (own, after) = rest.split_at(gradient.elem_count());
        let sum = Tensor::from_slice(own, gradient.dims(), gradient.device())?;
        (*gradient, rest) = (sum.to_dtype(gradient.dtype())?, after);
    }
    others.copy_from_slice(rest);
    Ok(result)
}

/// Number of values of the gradients at `places`.
pub(super) fn values(gradients: &Gradients, places: Range<usize>) -> usize {
    gradients.tensors()[places].iter().flatten().map(Tensor::elem_count).sum()
}

/// Euclidean norm over all gradients together; not finite if any entry is not.
///
/// # Errors
/// A tensor operation failed.
pub fn norm(gradients: &Gradients) -> Result<f64> {
    let mut sum = 0.0;
    for gradient in gradients.tensors().iter().flatten() {
        sum += sum_of_squares(gradient)?;
    }
    Ok(sum.sqrt())
}

/// Factor that scales gradients of norm `norm` down to `limit`; 1 for smaller gradients (PyTorch's `clip_grad_norm_`,
/// with its 1e-6 against division by zero).
pub fn clip_factor(norm: f64, limit: Option<f64>) -> f64 {
    limit.map_or(1.0, |limit| (limit / (norm + 1e-6)).min(1.0))
}

fn sum_of_squares(tensor: &Tensor) -> Result<f64> {
    let (storage, layout) = tensor.storage_and_layout();
    if let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) = (&*storage, layout.contiguous_offsets()) {
        // Eight running sums: the compiler can vectorise them, and the order does not depend on threads.
        let mut sums = [0.0f64; 8];
        let chunks = values[start..end].chunks_exact(8);
        let rest: f64 = chunks.remainder().iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        for chunk in chunks {
            for (sum, &value) in sums.iter_mut().zip(chunk) {
                *sum += f64::from(value) * f64::from(value);
            }
        }
        return Ok(sums.iter().sum::<f64>() + rest);
    }
    drop(storage);
    Ok(f64::from(tensor.to_dtype(DType::F32)?.sqr()?.sum_all()?.to_scalar::<f32>()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_norm_is_that_of_all_gradients_together() {
        let mut gradients = Gradients::none(3);
        gradients.add_tensor(0, Tensor::new(&[3f32, 5.0, 7.0], &Device::Cpu).unwrap()).unwrap();
        gradients.add_tensor(1, Tensor::new(&[1f32; 11], &Device::Cpu).unwrap()).unwrap();
        assert!((norm(&gradients).unwrap() - (9.0f64 + 25.0 + 49.0 + 11.0).sqrt()).abs() < 1e-12);
        assert_eq!((values(&gradients, 0..3), values(&gradients, 1..3)), (14, 11));
    }

    #[test]
    fn clipping_only_shrinks() {
        assert_eq!(clip_factor(0.5, Some(1.0)), 1.0);
        assert!((clip_factor(4.0, Some(1.0)) - 0.25).abs() < 1e-6);
        assert_eq!(clip_factor(4.0, None), 1.0);
    }
}
