//! The list of trainable tensors that all layers of a network share.

use super::{Active, Source};
use crate::seed::{Stream, generator};
use candle_core::{DType, Device, Result, Tensor, Var};
use rand::Rng;

/// A trainable tensor.
#[derive(Debug)]
pub struct Parameter {
    /// Unique name, as in checkpoints.
    pub name: String,
    /// The values.
    pub var: Var,
    /// Part in its layer.
    pub kind: ParameterKind,
}

/// Part of a tensor in its layer, by which optimizers tell weights apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterKind {
    /// Weight of a pointwise convolution before a batch norm, which makes its size free.
    NormalisedPointwise,
    /// Weight of a depthwise convolution.
    Depthwise,
    /// Matrix that makes a smaller kernel of a larger one.
    KernelTransform,
    /// Other weight of a convolution or a linear layer.
    OtherWeight,
    /// Scale or shift of a batch norm, or a bias: never decayed.
    Vector,
}

/// Index into [`Parameters`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ParameterId(usize);

impl ParameterId {
    /// Place of the tensor in the list.
    pub(crate) fn place(self) -> usize {
        self.0
    }
}

/// Initial values of a tensor.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Initialiser {
    /// Normal with this standard deviation (He et al., ICCV 2015, by fan-out).
    Normal(f64),
    /// Uniform between plus and minus this bound.
    Uniform(f64),
    /// One value everywhere.
    Constant(f32),
    /// The identity matrix.
    Identity,
}

/// All trainable tensors of a network in a fixed order.
#[derive(Debug)]
pub(crate) struct Parameters {
    list: Vec<Parameter>,
    seed: u64,
    dtype: DType,
    device: Device,
}

impl Parameters {
    pub(crate) fn new(seed: u64, dtype: DType, device: &Device) -> Self {
        Parameters { list: Vec::new(), seed, dtype, device: device.clone() }
    }

    pub(crate) fn list(&self) -> &[Parameter] {
        &self.list
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// Adds a tensor, whose values depend only on the seed and on its place in the list.
    pub(crate) fn add(
        &mut self,
        name: String,
        dims: &[usize],
        initialiser: Initialiser,
        kind: ParameterKind,
    ) -> Result<ParameterId> {
        let count: usize = dims.iter().product();
        let mut rng = generator(self.seed, Stream::Weights, &[self.list.len() as u64]);
        let values: Vec<f32> = match initialiser {
            Initialiser::Constant(value) => vec![value; count],
            Initialiser::Uniform(bound) => (0..count).map(|_| rng.random_range(-bound..bound) as f32).collect(),
            Initialiser::Identity => (0..count).map(|i| if i % (dims[0] + 1) == 0 { 1.0 } else { 0.0 }).collect(),
            // Box-Muller; the argument of the logarithm is in (0, 1].
            Initialiser::Normal(deviation) => (0..count)
                .map(|_| {
                    let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
                    (deviation * (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()) as f32
                })
                .collect(),
        };
        let tensor = Tensor::from_vec(values, dims, &self.device)?.to_dtype(self.dtype)?;
        self.list.push(Parameter { name, var: Var::from_tensor(&tensor)?, kind });
        Ok(ParameterId(self.list.len() - 1))
    }

    /// The tensor, not tracked for gradients.
    pub(crate) fn get(&self, id: ParameterId) -> Tensor {
        self.list[id.0].var.as_detached_tensor()
    }

    /// The place and variable of a tensor.
    pub(crate) fn source(&self, id: ParameterId) -> Source {
        Source { id, variable: self.list[id.0].var.as_tensor().clone() }
    }

    /// As many of the tensor's values in each dimension as `shape` says ([`Active::Part`]).
    pub(crate) fn part(&self, id: ParameterId, shape: &[usize]) -> Active {
        Active::Part { of: self.source(id), shape: shape.to_vec() }
    }

    /// The leading part of the first dimension.
    pub(crate) fn leading(&self, id: ParameterId, first: usize) -> Active {
        let dims = self.list[id.0].var.dims();
        self.part(id, &[&[first], &dims[1..]].concat())
    }

    /// The leading part of the first two dimensions.
    pub(crate) fn leading_two(&self, id: ParameterId, first: usize, second: usize) -> Active {
        let dims = self.list[id.0].var.dims();
        self.part(id, &[&[first, second], &dims[2..]].concat())
    }

    /// The variable behind an id.
    pub(crate) fn var(&self, id: ParameterId) -> &Var {
        &self.list[id.0].var
    }
}
