//! Gradients of the parameters of a network.

use super::ParameterId;
use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, bail};

/// The gradient of every parameter, or its absence, in the parameters' order.
#[derive(Debug)]
pub struct Gradients {
    tensors: Vec<Option<Tensor>>,
}

impl Gradients {
    /// Gradients of `count` parameters, all absent.
    pub fn none(count: usize) -> Self {
        Gradients { tensors: vec![None; count] }
    }

    /// Adds the gradients of another pass. A parameter that the pass did not use keeps its gradient.
    ///
    /// # Errors
    /// Gradients of another network.
    pub fn add(&mut self, others: Gradients) -> crate::Result<()> {
        for (sum, gradient) in self.tensors.iter_mut().zip(others.tensors) {
            if let Some(gradient) = gradient {
                add(sum, gradient)?;
            }
        }
        Ok(())
    }

    /// Adds the gradient of the parameter at `place`.
    pub(crate) fn add_tensor(&mut self, place: usize, gradient: Tensor) -> Result<()> {
        add(&mut self.tensors[place], gradient)
    }

    /// Adds `values` to the gradient of `parameter`, f32 on the CPU: to the first `len` values of each of its leading
    /// rows of `stride` values. Gradients of what lies outside are zero.
    pub(super) fn add_rows(
        &mut self,
        id: ParameterId,
        parameter: &Tensor,
        (len, stride): (usize, usize),
        values: &[f32],
    ) -> Result<()> {
        let sum = &mut self.tensors[id.place()];
        let sum = match sum {
            Some(sum) => sum,
            None => sum.insert(parameter.zeros_like()?.detach()),
        };
        sum.inplace_op1(&AddRows { len, stride, values })
    }

    /// The gradient of each parameter.
    pub fn tensors(&self) -> &[Option<Tensor>] {
        &self.tensors
    }

    /// The gradient of each parameter, to be replaced.
    pub(crate) fn tensors_mut(&mut self) -> &mut [Option<Tensor>] {
        &mut self.tensors
    }
}

fn add(sum: &mut Option<Tensor>, gradient: Tensor) -> Result<()> {
    *sum = Some(match sum.take() {
        Some(sum) => (sum + gradient)?.detach(),
        None => gradient.contiguous()?.detach(),
    });
    Ok(())
}

struct AddRows<'a> {
    len: usize,
    stride: usize,
    values: &'a [f32],
}

impl InplaceOp1 for AddRows<'_> {
    fn name(&self) -> &'static str {
        "add-rows"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let AddRows { len, stride, values } = *self;
        let (CpuStorage::F32(sum), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("gradients of kernels are f32")
        };
        if len > stride || len == 0 || values.len() / len * stride > end - start {
            bail!("{} gradients in rows of {len} do not fit a parameter with rows of {stride}", values.len());
        }
        for (sum, values) in sum[start..end].chunks_exact_mut(stride).zip(values.chunks_exact(len)) {
            sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::{Initialiser, ParameterKind, Parameters};
    use candle_core::{DType, Device};

    #[test]
    fn gradients_of_parts_are_summed_where_they_belong_and_absent_ones_stay_absent() {
        let mut parameters = Parameters::new(0, DType::F32, &Device::Cpu);
        let mut add = |dims: &[usize]| {
            parameters.add("p".into(), dims, Initialiser::Constant(0.0), ParameterKind::OtherWeight).unwrap()
        };
        let (matrix, vector) = (add(&[3, 2, 2]), add(&[4]));
        add(&[2]);
        let mut sums = Gradients::none(3);
        let add = |sums: &mut Gradients, id, extents, values: &[f32]| {
            sums.add_rows(id, parameters.var(id).as_tensor(), extents, values)
        };
        add(&mut sums, matrix, (2, 4), &[1.0, 2.0, 3.0, 4.0]).unwrap();
        add(&mut sums, matrix, (4, 4), &[10.0, 20.0, 30.0, 40.0]).unwrap();
        let mut others = Gradients::none(3);
        add(&mut others, vector, (1, 1), &[7.0, 8.0]).unwrap();
        add(&mut others, matrix, (1, 4), &[0.5; 3]).unwrap();
        sums.add(others).unwrap();
        let values = |place: usize| {
            sums.tensors()[place].as_ref().map(|tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        };
        let expected = vec![11.5, 22.0, 30.0, 40.0, 3.5, 4.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0];
        assert_eq!((values(0), values(1), values(2)), (Some(expected), Some(vec![7.0, 8.0, 0.0, 0.0]), None));
        let error = add(&mut sums, vector, (1, 1), &[0.0; 5]).unwrap_err().to_string();
        assert!(error.contains("do not fit"), "{error}");
    }
}
