//! The first convolution and the last 1x1 convolution: not elastic themselves.

use super::{BatchNorm, Initialiser, ParameterId, Parameters, Pass};
use crate::ops::{self, DenseShape, composite};
use crate::space::ConvSpec;
use candle_core::{DType, Result, Tensor};

#[derive(Debug)]
pub(crate) struct Dense {
    pub weight: ParameterId,
    pub norm: BatchNorm,
    spec: ConvSpec,
    pool: bool,
}

impl Dense {
    pub(crate) fn new(parameters: &mut Parameters, name: &str, spec: ConvSpec, pool: bool) -> Result<Self> {
        let (n, k) = (spec.out_channels, spec.kernel);
        let deviation = (2.0 / (k * k * n) as f64).sqrt();
        let dims = [n, spec.in_channels, k, k];
        let weight = parameters.add(format!("{name}.weight"), &dims, Initialiser::Normal(deviation), true)?;
        let norm = BatchNorm::new(parameters, format!("{name}.norm"), n)?;
        Ok(Dense { weight, norm, spec, pool })
    }

    /// `x` `[batch, height, width, in]`; the output is pooled to `[batch, out]` if so made.
    pub(crate) fn forward(&self, parameters: &Parameters, x: &Tensor, eps: f64, pass: &mut Pass) -> Result<Tensor> {
        let (batch, height, width, _) = x.dims4()?;
        let shape = DenseShape::new(&self.spec, batch, height, width, self.pool, eps);
        let keep = pass.keep_gradients;
        let [scale, shift] = self.norm.pack(parameters, shape.out_channels, keep)?;
        let packed = Tensor::cat(&[parameters.get(self.weight, keep).flatten_all()?, scale, shift], 0)?;
        let given = pass.next_given([shape.out_channels])?.map(|[given]| given);
        let (output, used) = if x.device().is_cpu() && x.dtype() == DType::F32 {
            ops::dense(x, &packed, shape, given, keep)?
        } else {
            composite::dense(x, &packed, &shape, given.as_ref())?
        };
        pass.used.push(used);
        Ok(output)
    }
}
