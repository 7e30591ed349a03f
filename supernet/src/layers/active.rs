//! The parts of parameters that a subnet uses: how they are cut out, and how their gradients are put back.

use super::{Gradients, ParameterId};
use crate::ops::tensor_values;
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, bail};

/// A parameter: its place in the list, and its variable.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub id: ParameterId,
    pub variable: Tensor,
}

/// The part of a parameter that a subnet uses.
#[derive(Debug, Clone)]
pub(crate) enum Active {
    /// As many of the parameter's values in each dimension as `shape` says: the leading ones in the first two, those in
    /// the middle (of a kernel) in the others.
    Part { of: Source, shape: Vec<usize> },
    /// The leading channels of a depthwise weight, made smaller step by step: the centre of the next size, times the
    /// transposed matrix if there is one.
    Kernel { weight: Source, channels: usize, steps: Vec<(usize, Option<Source>)> },
}

impl Active {
    /// The values, tracked by candle or not; a depthwise weight made smaller is `[channels, kernel²]`.
    fn tensor(&self, tracked: bool) -> Result<Tensor> {
        let get = |source: &Source| if tracked { source.variable.clone() } else { source.variable.detach() };
        match self {
            Active::Part { of, shape } => {
                let mut part = get(of);
                for (dim, &extent) in shape.iter().enumerate() {
                    let Some(outside) = part.dim(dim)?.checked_sub(extent) else {
                        bail!("a part of shape {shape:?} cannot be cut out of {:?}", of.variable.dims());
                    };
                    part = part.narrow(dim, if dim < 2 { 0 } else { outside / 2 }, extent)?;
                }
                Ok(part)
            }
            Active::Kernel { weight, channels, steps } => {
                let full = get(weight);
                let mut size = full.dim(2)?;
                let mut weight = full.narrow(0, 0, *channels)?.reshape((*channels, size, size))?;
                for (smaller, matrix) in steps {
                    let start = (size - smaller) / 2;
                    size = *smaller;
                    weight = weight.narrow(1, start, size)?.narrow(2, start, size)?.contiguous()?;
                    if let Some(matrix) = matrix {
                        let centre = weight.reshape((*channels, size * size))?;
                        weight = centre.matmul(&get(matrix).t()?)?.reshape((*channels, size, size))?;
                    }
                }
                weight.reshape((*channels, size * size))
            }
        }
    }

    /// Replaces the part by `values` in the parameters, of which `whole` holds all, by place. Of a depthwise weight that
    /// is made smaller the rest becomes zero, and the matrices the identity, so that the part has these values.
    pub(crate) fn put(&self, values: &Tensor, whole: &mut [Tensor]) -> Result<()> {
        match self {
            Active::Part { of, shape } => {
                let whole = &mut whole[of.id.place()];
                let within = |(dim, (&all, &own)): (usize, (&usize, &usize))| {
                    let start = if dim < 2 { 0 } else { (all - own) / 2 };
                    start..start + own
                };
                let ranges: Vec<_> = whole.dims().iter().zip(shape).enumerate().map(within).collect();
                *whole = whole.slice_assign(&ranges, &values.reshape(shape.as_slice())?)?;
            }
            Active::Kernel { weight, channels, steps } => {
                let whole_weight = &mut whole[weight.id.place()];
                let size = whole_weight.dim(2)?;
                let kernel = steps.last().map_or(size, |(size, _)| *size);
                let (start, rows) = ((size - kernel) / 2, 0..*channels);
                let zeros = Tensor::zeros((*channels, 1, size, size), values.dtype(), values.device())?;
                let centre = [rows.clone(), 0..1, start..start + kernel, start..start + kernel];
                let kernels = zeros.slice_assign(&centre, &values.reshape((*channels, 1, kernel, kernel))?)?;
                *whole_weight = whole_weight.slice_assign(&[rows, 0..1, 0..size, 0..size], &kernels)?;
                for (size, matrix) in steps {
                    if let Some(matrix) = matrix {
                        whole[matrix.id.place()] = Tensor::eye(size * size, values.dtype(), values.device())?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The parameter, the number of values that are used of each row of the first dimension, if they lead it, and of
    /// all.
    fn rows(&self) -> Option<(&Source, usize, usize)> {
        let Active::Part { of, shape } = self else { return None };
        let dims = of.variable.dims();
        let leading = dims.len() == shape.len() && dims.iter().zip(shape).all(|(dim, extent)| extent <= dim);
        let leading = leading && dims.iter().zip(shape).skip(2).all(|(dim, extent)| extent == dim);
        leading.then(|| (of, shape[1..].iter().product(), dims[1..].iter().product()))
    }

    /// Number of values.
    fn len(&self) -> usize {
        match self {
            Active::Part { shape, .. } => shape.iter().product(),
            Active::Kernel { weight, channels, steps } => {
                let stored = weight.variable.dims().last().copied().unwrap_or(0);
                let size = steps.last().map_or(stored, |(size, _)| *size);
                channels * size * size
            }
        }
    }

    /// Appends the values, which must be f32 on the CPU.
    fn pack(&self, packed: &mut Vec<f32>) -> Result<()> {
        let (Some((of, len, stride)), Active::Part { shape, .. }) = (self.rows(), self) else {
            return tensor_values(&self.tensor(false)?, |values| {
                packed.extend_from_slice(values);
                Ok(())
            });
        };
        tensor_values(&of.variable, |values| {
            values.chunks_exact(stride).take(shape[0]).for_each(|row| packed.extend_from_slice(&row[..len]));
            Ok(())
        })
    }

    /// Takes the gradient that `values` begins with, and adds it.
    fn add_gradient(&self, values: &mut &[f32], gradients: &mut Gradients) -> Result<()> {
        let mut next = |len: usize| match values.split_at_checked(len) {
            Some((own, rest)) => {
                *values = rest;
                Ok(own)
            }
            None => bail!("too few gradients of a layer's parameters"),
        };
        match (self.rows(), self) {
            (Some((of, len, stride)), Active::Part { shape, .. }) => {
                gradients.add_rows(of.id, &of.variable, (len, stride), next(shape[0] * len)?)
            }
            _ => {
                let weight = self.tensor(true)?;
                let gradient = Tensor::from_slice(next(weight.elem_count())?, weight.shape(), weight.device())?;
                self.add_found(&mut backward(weight, gradient)?, gradients)
            }
        }
    }

    /// Adds the gradients that a backward pass through candle's graph found.
    fn add_found(&self, found: &mut GradStore, gradients: &mut Gradients) -> Result<()> {
        let (first, others) = match self {
            Active::Part { of, .. } => (of, &[][..]),
            Active::Kernel { weight, steps, .. } => (weight, &steps[..]),
        };
        for source in [first].into_iter().chain(others.iter().filter_map(|(_, matrix)| matrix.as_ref())) {
            if let Some(gradient) = found.remove(&source.variable) {
                gradients.add_tensor(source.id.place(), gradient)?;
            }
        }
        Ok(())
    }
}

/// Goes back through candle's graph from `output`, where the gradient is `gradient`.
pub(super) fn backward(output: Tensor, gradient: Tensor) -> Result<GradStore> {
    // candle starts from ones, so that the product's gradient at `output` is the one given.
    (output * gradient)?.backward()
}

/// The values of all parts, slot by slot, tracked by candle or not.
pub(crate) fn tensors(slots: &[Vec<Active>], tracked: bool) -> Result<Vec<Vec<Tensor>>> {
    slots.iter().map(|slot| slot.iter().map(|part| part.tensor(tracked)).collect()).collect()
}

/// The values of all parts one after the other, as kernels read them.
pub(crate) fn pack(slots: &[Vec<Active>]) -> Result<Vec<f32>> {
    let mut packed = Vec::with_capacity(slots.iter().flatten().map(Active::len).sum());
    slots.iter().flatten().try_for_each(|part| part.pack(&mut packed))?;
    Ok(packed)
}

/// Adds the gradients of the parts that [`pack`] packed.
pub(crate) fn add_packed(slots: &[Vec<Active>], values: &[f32], gradients: &mut Gradients) -> Result<()> {
    let mut rest = values;
    slots.iter().flatten().try_for_each(|part| part.add_gradient(&mut rest, gradients))
}

/// Adds the gradients of the parts that candle tracked.
pub(super) fn add_found(slots: &[Vec<Active>], found: &mut GradStore, gradients: &mut Gradients) -> Result<()> {
    slots.iter().flatten().try_for_each(|part| part.add_found(found, gradients))
}
