//! Parameters and running statistics of the network as named tensors.

use crate::layers::{BatchNorm, Moments};
use crate::network::Supernet;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;

impl Supernet {
    /// The running means and variances of all batch norms, one after the other.
    pub(crate) fn running_values(&self) -> Vec<f32> {
        let values = self.all_norms().map(BatchNorm::running);
        values.flat_map(|Moments { mean, variance }| mean.into_iter().chain(variance)).collect()
    }

    /// Sets the running means and variances from [`running_values`](Self::running_values).
    pub(crate) fn set_running_values(&self, values: &[f32]) {
        let mut rest = values;
        for norm in self.all_norms() {
            let channels = norm.running().mean.len();
            let (own, others) = rest.split_at(2 * channels);
            let (mean, variance) = own.split_at(channels);
            norm.set_running(Moments { mean: mean.to_vec(), variance: variance.to_vec() });
            rest = others;
        }
    }

    /// Parameters and running statistics by name (deep copies, f32 on the CPU).
    ///
    /// # Errors
    /// A device that cannot be read.
    pub fn state(&self) -> Result<HashMap<String, Tensor>> {
        let mut state = self.shared_state()?;
        for parameter in self.parameters() {
            if let Some(tensor) = state.get_mut(&parameter.name) {
                *tensor = tensor.copy()?;
            }
        }
        Ok(state)
    }

    /// As [`state`](Self::state), but f32 parameters on the CPU are no copies: they share the network's memory, and
    /// change with the next step.
    pub(crate) fn shared_state(&self) -> Result<HashMap<String, Tensor>> {
        let mut state = HashMap::new();
        for parameter in self.parameters() {
            let tensor = parameter.var.as_detached_tensor().to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
            state.insert(parameter.name.clone(), tensor);
        }
        for norm in self.all_norms() {
            let Moments { mean, variance } = norm.running();
            let len = mean.len();
            state.insert(format!("{}.running_mean", norm.name), Tensor::from_vec(mean, len, &Device::Cpu)?);
            state.insert(format!("{}.running_var", norm.name), Tensor::from_vec(variance, len, &Device::Cpu)?);
        }
        Ok(state)
    }

    /// Sets parameters and running statistics; every tensor must be there with its shape. Nothing is changed on an
    /// error.
    ///
    /// # Errors
    /// The first tensor that is missing, has another shape, or holds a value that is not finite.
    pub fn load_state(&self, state: &HashMap<String, Tensor>) -> Result<()> {
        let (parameters, norms) = self.read_state(state)?;
        for (parameter, tensor) in self.parameters().iter().zip(parameters) {
            let tensor = tensor.to_dtype(self.parts().parameters.dtype())?.to_device(self.device())?;
            parameter.var.set(&tensor.contiguous()?)?;
        }
        for (norm, running) in self.all_norms().zip(norms) {
            norm.set_running(running);
        }
        Ok(())
    }

    /// Checks that [`load_state`](Self::load_state) would take `state`.
    ///
    /// # Errors
    /// As [`load_state`](Self::load_state).
    pub fn check_state(&self, state: &HashMap<String, Tensor>) -> Result<()> {
        self.read_state(state).map(drop)
    }

    /// Parameters, and mean and variance of the batch norms, in the network's order; all checked.
    fn read_state(&self, state: &HashMap<String, Tensor>) -> Result<(Vec<Tensor>, Vec<Moments>)> {
        let find = |name: &str, dims: &[usize]| -> Result<Tensor> {
            let Some(tensor) = state.get(name) else {
                return Err(Error::Weights(format!("the tensor '{name}' is missing; are they of this space?")));
            };
            if tensor.dims() != dims {
                return Err(Error::Weights(format!(
                    "the tensor '{name}' has shape {:?}, expected {dims:?}; are they of this space and these classes?",
                    tensor.dims()
                )));
            }
            let tensor = tensor.to_dtype(DType::F32)?;
            if !tensor.to_dtype(DType::F64)?.abs()?.sum_all()?.to_scalar::<f64>()?.is_finite() {
                return Err(Error::NotFinite(format!("weights: the tensor '{name}' holds NaN or infinite values")));
            }
            Ok(tensor)
        };
        let mut parameters = Vec::new();
        for parameter in self.parameters() {
            parameters.push(find(&parameter.name, parameter.var.dims())?);
        }
        let mut norms = Vec::new();
        for norm in self.all_norms() {
            let channels = norm.running().mean.len();
            let values = |kind: &str| -> Result<Vec<f32>> {
                Ok(find(&format!("{}.running_{kind}", norm.name), &[channels])?.to_vec1()?)
            };
            norms.push(Moments { mean: values("mean")?, variance: values("var")? });
        }
        Ok((parameters, norms))
    }
}
