//! Gradients of one step: summed over subnets, measured, clipped.

use crate::Result;
use crate::network::Parameter;
use crate::ranks::Ranks;
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, Storage, Tensor};
use std::ops::Range;

/// One gradient (or none) for every parameter, in the parameters' order.
pub struct Gradients {
    tensors: Vec<Option<Tensor>>,
}

impl Gradients {
    /// No gradient for any of `count` parameters.
    pub fn none(count: usize) -> Self {
        Gradients { tensors: vec![None; count] }
    }

    /// Adds the gradients that a backward pass found, and takes them out of it. A parameter that took no part in it
    /// keeps what it has.
    ///
    /// # Errors
    /// A tensor operation failed.
    pub fn add(&mut self, parameters: &[Parameter], found: &mut GradStore) -> Result<()> {
        for (sum, parameter) in self.tensors.iter_mut().zip(parameters) {
            if let Some(gradient) = found.remove(parameter.var.as_tensor()) {
                *sum = Some(match sum.take() {
                    Some(sum) => (sum + gradient)?.detach(),
                    None => gradient.contiguous()?.detach(),
                });
            }
        }
        Ok(())
    }

    /// Replaces the gradients of the parameters at `places` by their sums over all ranks, as one flat bucket. All ranks
    /// must have gradients for the same parameters; absent ones are not sent.
    ///
    /// # Errors
    /// A tensor operation failed.
    pub fn sum_over(&mut self, ranks: &Ranks, places: Range<usize>) -> Result<()> {
        if !ranks.is_distributed() {
            return Ok(());
        }
        self.exchange(places, &mut [], |bucket| ranks.sum(bucket))
    }

    /// As [`sum_over`](Self::sum_over), of the values of `others` too, while this thread does `work`
    /// ([`Ranks::sum_during`]).
    ///
    /// # Errors
    /// A tensor operation failed; that `work` failed is in what it gives.
    pub fn sum_during<T>(
        &mut self,
        ranks: &Ranks,
        places: Range<usize>,
        others: &mut [f32],
        work: impl FnOnce() -> T,
    ) -> Result<T> {
        if !ranks.is_distributed() {
            return Ok(work());
        }
        self.exchange(places, others, |bucket| ranks.sum_during(bucket, work))
    }

    /// Lays the gradients at `places` and `others` side by side for `sum`, and puts back what it makes of them.
    fn exchange<T>(
        &mut self,
        places: Range<usize>,
        others: &mut [f32],
        sum: impl FnOnce(&mut [f32]) -> T,
    ) -> Result<T> {
        let mut bucket = Vec::new();
        for gradient in self.tensors[places.clone()].iter().flatten() {
            bucket.extend(gradient.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?);
        }
        bucket.extend_from_slice(others);
        let result = sum(&mut bucket);
        let mut rest = &bucket[..];
        for gradient in self.tensors[places].iter_mut().flatten() {
            let (own, after) = rest.split_at(gradient.elem_count());
            let sum = Tensor::from_slice(own, gradient.dims(), gradient.device())?;
            (*gradient, rest) = (sum.to_dtype(gradient.dtype())?, after);
        }
        others.copy_from_slice(rest);
        Ok(result)
    }

    /// Number of values of the gradients at `places`.
    pub fn values(&self, places: Range<usize>) -> usize {
        self.tensors[places].iter().flatten().map(Tensor::elem_count).sum()
    }

    /// The gradient of each parameter.
    pub fn tensors(&self) -> &[Option<Tensor>] {
        &self.tensors
    }

    /// Euclidean norm over all gradients together; not finite if any entry is not.
    ///
    /// # Errors
    /// A tensor operation failed.
    pub fn norm(&self) -> Result<f64> {
        let mut sum = 0.0;
        for gradient in self.tensors.iter().flatten() {
            sum += sum_of_squares(gradient)?;
        }
        Ok(sum.sqrt())
    }
}

/// The factor that brings gradients of norm `norm` down to `limit`, and leaves smaller ones alone (PyTorch's
/// `clip_grad_norm_`, with its 1e-6 against division by zero).
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
    use candle_core::{Device, Var};

    fn parameter(name: &str, values: &[f32]) -> Parameter {
        Parameter { name: name.into(), var: Var::new(values, &Device::Cpu).unwrap(), decay: true }
    }

    #[test]
    fn sums_over_passes_and_keeps_absent_ones_absent() {
        let parameters = [parameter("a", &[1.0, 2.0, 3.0]), parameter("b", &[1.0; 11]), parameter("unused", &[5.0])];
        let mut gradients = Gradients::none(3);
        let a = &parameters[0].var;
        gradients.add(&parameters, &mut a.sqr().unwrap().sum_all().unwrap().backward().unwrap()).unwrap();
        let both = (a.sum_all().unwrap() + parameters[1].var.sum_all().unwrap()).unwrap();
        gradients.add(&parameters, &mut both.backward().unwrap()).unwrap();
        let sums = gradients.tensors();
        assert_eq!(sums[0].as_ref().unwrap().to_vec1::<f32>().unwrap(), [3.0, 5.0, 7.0]);
        assert_eq!(sums[1].as_ref().unwrap().to_vec1::<f32>().unwrap(), [1.0; 11]);
        assert!(sums[2].is_none());
        assert!((gradients.norm().unwrap() - (9.0f64 + 25.0 + 49.0 + 11.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn clipping_only_shrinks() {
        assert_eq!(clip_factor(0.5, Some(1.0)), 1.0);
        assert!((clip_factor(4.0, Some(1.0)) - 0.25).abs() < 1e-6);
        assert_eq!(clip_factor(4.0, None), 1.0);
    }
}
