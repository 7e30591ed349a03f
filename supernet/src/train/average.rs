//! Exponential moving average of weights and running statistics.

use crate::ops;
use crate::{Error, Result};
use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor};
use std::collections::HashMap;

/// A network's state averaged over the steps of a stage.
///
/// The decay rises with the number of updates, `min(decay, (1 + n) / (10 + n))`, so that a short stage is not dominated
/// by the weights it started from.
pub struct Average {
    decay: f64,
    updates: u64,
    state: HashMap<String, Tensor>,
}

impl Average {
    /// Starts from `state` (deep copies, as `Supernet::state` gives them), after `updates` earlier updates.
    pub fn new(decay: f64, state: HashMap<String, Tensor>, updates: u64) -> Self {
        Average { decay, updates, state }
    }

    /// The averaged tensors by name.
    pub fn state(&self) -> &HashMap<String, Tensor> {
        &self.state
    }

    /// Number of updates so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Moves the average towards `current`.
    ///
    /// # Errors
    /// A tensor that the average does not know, or of another shape.
    pub fn update(&mut self, current: &HashMap<String, Tensor>) -> Result<()> {
        let n = self.updates as f64;
        let weight = 1.0 - self.decay.min((1.0 + n) / (10.0 + n));
        self.updates += 1;
        for (name, new) in current {
            let Some(average) = self.state.get_mut(name) else {
                return Err(Error::Weights(format!(
                    "the averaged weights lack '{name}'; the checkpoint belongs to another network"
                )));
            };
            let host =
                ops::has_kernels(average.device(), average.dtype()) && average.is_contiguous() && new.is_contiguous();
            if host {
                average.inplace_op2(new, &Towards(weight as f32))?;
            } else {
                *average = (&*average + ((new - &*average)? * weight)?)?.detach();
            }
        }
        Ok(())
    }
}

/// `average += weight (new - average)`
struct Towards(f32);

impl InplaceOp2 for Towards {
    fn name(&self) -> &'static str {
        "moving-average"
    }

    fn cpu_fwd(
        &self,
        average: &mut CpuStorage,
        average_layout: &Layout,
        new: &CpuStorage,
        new_layout: &Layout,
    ) -> candle_core::Result<()> {
        match (average, new, average_layout.contiguous_offsets(), new_layout.contiguous_offsets()) {
            (CpuStorage::F32(average), CpuStorage::F32(new), Some((start, end)), Some((from, to)))
                if end - start == to - from =>
            {
                for (a, &n) in average[start..end].iter_mut().zip(&new[from..to]) {
                    *a += self.0 * (n - *a);
                }
                Ok(())
            }
            _ => candle_core::bail!("a moving average needs two contiguous f32 tensors of one shape"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn follows_the_recurrence_on_both_paths() {
        for dtype in [DType::F32, DType::F64] {
            let tensor = |v: f64| Tensor::new(&[v, -v], &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            let mut average = Average::new(0.3, HashMap::from([("w".to_string(), tensor(1.0))]), 0);
            let mut expected = 1.0;
            for (n, value) in [4.0, -2.0, 0.5, 3.0, 8.0].into_iter().enumerate() {
                let decay = 0.3f64.min((1.0 + n as f64) / (10.0 + n as f64));
                expected = decay * expected + (1.0 - decay) * value;
                average.update(&HashMap::from([("w".to_string(), tensor(value))])).unwrap();
            }
            let found = average.state()["w"].to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
            assert!((found[0] - expected).abs() < 1e-5 && (found[1] + expected).abs() < 1e-5, "{found:?} {expected}");
            assert_eq!(average.updates(), 5);
        }
    }
}
