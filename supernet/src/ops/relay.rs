//! A tensor handed between fused ops; its gradient bypasses candle's graph.
//!
//! candle adds each gradient that an op returns to a tensor of zeros. For a block's input gradient that is three passes
//! over memory, on one thread, while all others wait. So the ops of a chain give candle a token of one value in place
//! of the tensor, and hand over the gradient themselves.

use super::tensor_values;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use std::sync::{Arc, Mutex, MutexGuard};

/// A tensor between two ops. With a gradient, exactly one op may read it.
#[derive(Debug, Clone)]
pub struct Relay {
    value: Tensor,
    /// Path of the gradient, if candle does not track the value itself.
    link: Option<Link>,
}

/// The stand-in for a tensor in candle's graph.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub token: Tensor,
    pub gradient: Slot,
}

/// Holds the gradient between the backward pass of the op that read the tensor and that of the op that wrote it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Slot(Arc<Mutex<Option<Tensor>>>);

impl Slot {
    fn lock(&self) -> Result<MutexGuard<'_, Option<Tensor>>> {
        self.0.lock().map_err(|_| candle_core::Error::Msg("a gradient was lost: a thread panicked".into()))
    }

    pub(crate) fn put(&self, gradient: Tensor) -> Result<()> {
        match self.lock()?.replace(gradient) {
            None => Ok(()),
            Some(_) => bail!("two ops read one relayed tensor"),
        }
    }

    pub(crate) fn take(&self) -> Result<Tensor> {
        self.lock()?
            .take()
            .ok_or_else(|| candle_core::Error::Msg("a relayed gradient is missing or was taken twice".into()))
    }
}

impl From<Tensor> for Relay {
    fn from(value: Tensor) -> Self {
        Relay { value, link: None }
    }
}

impl Relay {
    /// A value with its link.
    pub(crate) fn linked(value: Tensor, link: Link) -> Self {
        Relay { value, link: Some(link) }
    }

    /// The tensor's values, untracked if linked.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// The tensor as candle tracks it.
    ///
    /// # Errors
    /// The relayed tensor is not f32 on the CPU.
    pub fn tracked(self) -> Result<Tensor> {
        match self.link {
            None => Ok(self.value),
            Some(Link { token, gradient }) => token.apply_op1(Leave { value: self.value, gradient }),
        }
    }

    /// The values, and the link for the op that reads them.
    pub(crate) fn enter(self) -> Result<(Tensor, Link)> {
        match self.link {
            Some(link) => Ok((self.value, link)),
            None => {
                let gradient = Slot::default();
                let token = self.value.apply_op1(Enter { gradient: gradient.clone() })?;
                Ok((self.value.detach(), Link { token, gradient }))
            }
        }
    }
}

/// Value and shape of a token.
pub(crate) fn token() -> (CpuStorage, Shape) {
    (CpuStorage::F32(vec![0.0]), 1.into())
}

/// The op from a tensor to its token.
struct Enter {
    gradient: Slot,
}

impl CustomOp1 for Enter {
    fn name(&self) -> &'static str {
        "enter-relay"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(token())
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        self.gradient.take().map(Some)
    }
}

/// The op from a token to its tensor.
struct Leave {
    value: Tensor,
    gradient: Slot,
}

impl CustomOp1 for Leave {
    fn name(&self) -> &'static str {
        "leave-relay"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let values = tensor_values(&self.value, |values| Ok(values.to_vec()))?;
        Ok((CpuStorage::F32(values), self.value.shape().clone()))
    }

    fn bwd(&self, token: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        self.gradient.put(gradient.clone())?;
        token.zeros_like().map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn values_and_gradients_pass_unchanged_and_once() {
        let x = Var::new(&[1.5f32, -2.0, 0.25], &Device::Cpu).unwrap();
        let (value, link) = Relay::from((x.as_tensor() * 2.0).unwrap()).enter().unwrap();
        let relay = Relay::linked(value, link);
        let again = relay.clone();
        let y = relay.tracked().unwrap();
        assert_eq!(y.to_vec1::<f32>().unwrap(), [3.0, -4.0, 0.5]);
        let gradients = y.sqr().unwrap().backward().unwrap();
        assert_eq!(gradients.get(&x).unwrap().to_vec1::<f32>().unwrap(), [12.0, -16.0, 2.0]);
        // With two readers the gradient would be a sum, which a relay does not compute.
        let both = (again.clone().tracked().unwrap() + again.tracked().unwrap()).unwrap();
        assert!(both.backward().unwrap_err().to_string().contains("two ops"));
        let plain = Relay::from(x.as_tensor().clone()).tracked().unwrap();
        assert_eq!(plain.id(), x.as_tensor().id());
    }
}
