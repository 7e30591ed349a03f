//! SGD with Nesterov momentum and decoupled decay groups, numerically PyTorch's `torch.optim.SGD(nesterov=True)`.

use super::gradients::Gradients;
use crate::network::Parameter;
use crate::ops;
use crate::{Error, Result};
use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::HashMap;

/// Elements a thread takes at once; smaller tensors stay on the calling thread.
const CHUNK: usize = 1 << 15;

/// The optimizer and its momentum buffers.
///
/// With `d = g + weight_decay w` (decay only where the parameter asks for it): the buffer becomes `d` at a parameter's
/// first gradient and `momentum buffer + d` later; then `w -= rate (d + momentum buffer)`. A parameter without a
/// gradient is left alone entirely: no decay, no momentum (PyTorch's behaviour for `grad is None`).
pub struct Sgd {
    momentum: f64,
    weight_decay: f64,
    undecayed: Vec<Undecayed>,
    buffers: Vec<Option<Buffer>>,
}

/// Weights without decay, besides batch norm and biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Undecayed {
    /// Depthwise kernels: few weights per channel, which decay drives to zero (MobileNet, §3.2).
    Depthwise,
    /// Matrices that make smaller kernels of larger ones, which decay draws away from the identity.
    KernelTransforms,
}

impl Undecayed {
    fn has(self, parameter: &str) -> bool {
        match self {
            Undecayed::Depthwise => parameter.ends_with(".depthwise.weight"),
            Undecayed::KernelTransforms => parameter.contains(".transform_"),
        }
    }
}

enum Buffer {
    /// Beside contiguous f32 parameters on the CPU, which are updated in one pass over memory.
    Host(Vec<f32>),
    /// Everywhere else.
    Device(Tensor),
}

impl Sgd {
    /// An optimizer without momentum yet for `count` parameters.
    pub fn new(momentum: f64, weight_decay: f64, count: usize) -> Self {
        Sgd { momentum, weight_decay, undecayed: Vec::new(), buffers: (0..count).map(|_| None).collect() }
    }

    /// The optimizer without decay of the weights `undecayed`.
    pub fn without_decay_of(self, undecayed: &[Undecayed]) -> Self {
        Sgd { undecayed: undecayed.to_vec(), ..self }
    }

    /// Applies one step with learning rate `rate` to `parameters`; gradients are multiplied by `scale` first
    /// (clipping).
    ///
    /// # Errors
    /// A tensor operation failed.
    pub fn step(&mut self, parameters: &[Parameter], gradients: &Gradients, rate: f64, scale: f64) -> Result<()> {
        for ((parameter, gradient), buffer) in parameters.iter().zip(gradients.tensors()).zip(&mut self.buffers) {
            let Some(gradient) = gradient else { continue };
            let decays = parameter.decay && !self.undecayed.iter().any(|group| group.has(&parameter.name));
            let decay = if decays { self.weight_decay } else { 0.0 };
            let weight = parameter.var.as_tensor();
            if is_host(weight) && is_host(gradient) {
                let first = buffer.is_none();
                let values = match buffer {
                    Some(Buffer::Host(values)) => values,
                    _ => match buffer.insert(Buffer::Host(vec![0.0; weight.elem_count()])) {
                        Buffer::Host(values) => values,
                        Buffer::Device(_) => continue,
                    },
                };
                weight.inplace_op2(
                    gradient,
                    &Nesterov {
                        // Zero momentum on a zero buffer is PyTorch's first step: the buffer becomes the gradient.
                        carry: if first { 0.0 } else { self.momentum as f32 },
                        momentum: self.momentum as f32,
                        decay: decay as f32,
                        rate: rate as f32,
                        scale: scale as f32,
                        buffer: RefCell::new(values),
                    },
                )?;
            } else {
                let mut direction = (gradient * scale)?;
                if decay != 0.0 {
                    direction = (direction + (weight.detach() * decay)?)?;
                }
                let moved = match buffer {
                    Some(Buffer::Device(old)) => ((&*old * self.momentum)? + &direction)?,
                    _ => direction.copy()?,
                };
                let update = ((direction + (&moved * self.momentum)?)? * rate)?;
                parameter.var.set(&(weight.detach() - update)?)?;
                *buffer = Some(Buffer::Device(moved));
            }
        }
        Ok(())
    }

    /// The momentum buffers by parameter name; parameters that never had a gradient are absent.
    ///
    /// # Errors
    /// A tensor operation failed.
    pub fn state(&self, parameters: &[Parameter]) -> Result<HashMap<String, Tensor>> {
        let mut state = HashMap::new();
        for (parameter, buffer) in parameters.iter().zip(&self.buffers) {
            let tensor = match buffer {
                None => continue,
                Some(Buffer::Host(values)) => {
                    Tensor::from_slice(values, parameter.var.as_tensor().dims(), &Device::Cpu)?
                }
                Some(Buffer::Device(tensor)) => tensor.copy()?,
            };
            state.insert(parameter.name.clone(), tensor);
        }
        Ok(state)
    }

    /// Takes over momentum buffers from [`state`](Self::state).
    ///
    /// # Errors
    /// A buffer whose shape differs from its parameter's.
    pub fn load_state(&mut self, parameters: &[Parameter], state: &HashMap<String, Tensor>) -> Result<()> {
        for (parameter, buffer) in parameters.iter().zip(&mut self.buffers) {
            let weight = parameter.var.as_tensor();
            *buffer = match state.get(&parameter.name) {
                None => None,
                Some(tensor) if tensor.dims() != weight.dims() => {
                    return Err(Error::Weights(format!(
                        "the momentum of '{}' has shape {:?}, the parameter {:?}; the checkpoint belongs to another network",
                        parameter.name,
                        tensor.dims(),
                        weight.dims()
                    )));
                }
                Some(tensor) if is_host(weight) => {
                    Some(Buffer::Host(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?))
                }
                Some(tensor) => Some(Buffer::Device(tensor.to_device(weight.device())?.to_dtype(weight.dtype())?)),
            };
        }
        Ok(())
    }
}

/// Whether the fused path can take this tensor.
fn is_host(tensor: &Tensor) -> bool {
    ops::has_kernels(tensor.device(), tensor.dtype()) && tensor.is_contiguous()
}

/// The update of one parameter: reads gradient, weight and buffer once, writes weight and buffer once.
struct Nesterov<'a> {
    carry: f32,
    momentum: f32,
    decay: f32,
    rate: f32,
    scale: f32,
    /// candle gives an in-place op one destination only; the second one travels here.
    buffer: RefCell<&'a mut Vec<f32>>,
}

impl InplaceOp2 for Nesterov<'_> {
    fn name(&self) -> &'static str {
        "nesterov"
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
        let mut buffer = self.buffer.borrow_mut();
        let (weight, gradient) = (&mut weight[start..end], &gradient[from..to]);
        if weight.len() != gradient.len() || weight.len() != buffer.len() {
            candle_core::bail!("a weight of {} elements got {} gradients", weight.len(), gradient.len())
        }
        let Nesterov { carry, momentum, decay, rate, scale, .. } = *self;
        let update = |weight: &mut [f32], gradient: &[f32], buffer: &mut [f32]| {
            for ((w, &g), b) in weight.iter_mut().zip(gradient).zip(buffer) {
                let direction = g * scale + decay * *w;
                *b = carry * *b + direction;
                *w -= rate * (direction + momentum * *b);
            }
        };
        if weight.len() <= CHUNK {
            update(weight, gradient, &mut buffer);
        } else {
            weight
                .par_chunks_mut(CHUNK)
                .zip(gradient.par_chunks(CHUNK))
                .zip(buffer.par_chunks_mut(CHUNK))
                .for_each(|((w, g), b)| update(w, g, b));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    const STEPS: usize = 5;
    const RATE: f64 = 0.1;

    fn gradient_at(parameter: usize, step: usize, index: usize) -> f64 {
        ((parameter * 31 + step * 7 + index * 3) as f64 * 0.7).sin()
    }

    /// The rule written out in f64. Parameter 0 decays, 1 does not and has no gradient at step 0 and 3.
    fn reference(start: &[Vec<f64>], scale: f64) -> Vec<Vec<f64>> {
        let mut weights = start.to_vec();
        for (p, weight) in weights.iter_mut().enumerate() {
            let decay = if p == 0 { 0.01 } else { 0.0 };
            let mut buffer: Option<Vec<f64>> = None;
            for step in 0..STEPS {
                if p == 1 && (step == 0 || step == 3) {
                    continue;
                }
                let direction: Vec<f64> =
                    weight.iter().enumerate().map(|(i, w)| scale * gradient_at(p, step, i) + decay * w).collect();
                let moved: Vec<f64> = match &buffer {
                    None => direction.clone(),
                    Some(b) => b.iter().zip(&direction).map(|(b, d)| 0.9 * b + d).collect(),
                };
                for (i, w) in weight.iter_mut().enumerate() {
                    *w -= RATE * (direction[i] + 0.9 * moved[i]);
                }
                buffer = Some(moved);
            }
        }
        weights
    }

    /// Runs the optimizer; at step 2 its state is carried over to a new one, as a resumed run does.
    fn run(start: &[Vec<f64>], dtype: DType, scale: f64) -> Vec<Vec<f64>> {
        let parameters: Vec<Parameter> = start
            .iter()
            .enumerate()
            .map(|(p, values)| Parameter {
                name: format!("p{p}"),
                var: Var::from_tensor(&Tensor::new(values.as_slice(), &Device::Cpu).unwrap().to_dtype(dtype).unwrap())
                    .unwrap(),
                decay: p == 0,
            })
            .collect();
        let mut optimizer = Sgd::new(0.9, 0.01, parameters.len());
        for step in 0..STEPS {
            let mut gradients = Gradients::none(parameters.len());
            for (p, start) in start.iter().enumerate() {
                if p == 1 && (step == 0 || step == 3) {
                    continue;
                }
                let wanted: Vec<f64> = (0..start.len()).map(|i| gradient_at(p, step, i)).collect();
                let wanted = Tensor::new(wanted, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
                gradients.add_tensor(p, wanted).unwrap();
            }
            optimizer.step(&parameters, &gradients, RATE, scale).unwrap();
            if step == 2 {
                let state = optimizer.state(&parameters).unwrap();
                optimizer = Sgd::new(0.9, 0.01, parameters.len());
                optimizer.load_state(&parameters, &state).unwrap();
            }
        }
        parameters.iter().map(|p| p.var.to_dtype(DType::F64).unwrap().to_vec1().unwrap()).collect()
    }

    #[test]
    fn both_paths_follow_the_f64_reference() {
        // The first parameter is longer than a chunk, so it takes the parallel path.
        let start: Vec<Vec<f64>> = [CHUNK + 5, 7]
            .iter()
            .map(|&n| (0..n).map(|i| f64::from(((i as f64) * 0.3).cos() as f32)).collect())
            .collect();
        for scale in [1.0, 0.3] {
            let expected = reference(&start, scale);
            for (dtype, tolerance) in [(DType::F32, 2e-6), (DType::F64, 1e-12)] {
                for (found, expected) in run(&start, dtype, scale).iter().flatten().zip(expected.iter().flatten()) {
                    assert!((found - expected).abs() < tolerance, "{dtype:?} {scale}: {found} {expected}");
                }
            }
        }
    }

    #[test]
    fn undecayed_weights_are_found_by_kind_in_every_space() {
        let moved = |space: &str, undecayed: &[Undecayed]| {
            let net = crate::Supernet::new(&crate::space::preset(space).unwrap(), 10, 1).unwrap();
            let before = net.state().unwrap();
            let mut gradients = Gradients::none(net.parameters().len());
            // Gradients that are too small to move a weight, but are there.
            for (place, parameter) in net.parameters().iter().enumerate() {
                let gradient = parameter.var.as_tensor().ones_like().unwrap().affine(1e-30, 0.0).unwrap();
                gradients.add_tensor(place, gradient).unwrap();
            }
            let mut optimizer = Sgd::new(0.9, 0.5, net.parameters().len()).without_decay_of(undecayed);
            optimizer.step(net.parameters(), &gradients, 0.1, 1.0).unwrap();
            let differs = |p: &&Parameter| {
                let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let pairs = values(p.var.as_tensor()).into_iter().zip(values(&before[&p.name]));
                pairs.into_iter().any(|(now, then)| (now - then).abs() > 1e-20)
            };
            net.parameters().iter().filter(differs).map(|p| p.name.clone()).collect::<Vec<_>>()
        };
        let all = moved("tiny", &[]);
        let depthwise = |name: &String| name.ends_with("depthwise.weight");
        let transform = |name: &String| name.contains("transform_5to3");
        // The first block and four elastic ones, each with one transform.
        assert_eq!((all.iter().filter(|n| depthwise(n)).count(), all.iter().filter(|n| transform(n)).count()), (5, 4));
        let left = moved("tiny", &[Undecayed::Depthwise, Undecayed::KernelTransforms]);
        assert_eq!(left.len(), all.len() - 9);
        assert!(!left.iter().any(|name| depthwise(name) || transform(name)), "{left:?}");
        assert_eq!(moved("tiny", &[Undecayed::KernelTransforms]).len(), all.len() - 4);
        assert_eq!(moved("resnet-tiny", &[Undecayed::Depthwise]), moved("resnet-tiny", &[]));
    }

    #[test]
    fn a_foreign_buffer_is_refused() {
        let parameters =
            [Parameter { name: "w".into(), var: Var::new(&[1f32, 2.0], &Device::Cpu).unwrap(), decay: true }];
        let state = HashMap::from([("w".to_string(), Tensor::new(&[1f32], &Device::Cpu).unwrap())]);
        let error = Sgd::new(0.9, 0.0, 1).load_state(&parameters, &state).unwrap_err().to_string();
        assert!(error.contains("'w'") && error.contains("[1]"), "{error}");
    }
}
