//! The elastic inverted residual block: parameters at full size, the active slices packed for the fused op.

use super::kernel_transform::ElasticKernel;
use super::{BatchNorm, Initialiser, ParameterId, Parameters, Pass};
use crate::ops::{self, BlockShape, Relay, composite};
use crate::space::InvertedResidualSpec;
use candle_core::{DType, Result, Tensor};

/// A 1x1 convolution with bias, of squeeze-excite.
#[derive(Debug)]
pub(crate) struct Biased {
    pub weight: ParameterId,
    pub bias: ParameterId,
}

#[derive(Debug)]
pub(crate) struct InvertedResidual {
    /// `[middle, in, 1, 1]` and its batch norm.
    pub expand: Option<(ParameterId, BatchNorm)>,
    pub depthwise: ElasticKernel,
    pub depthwise_norm: BatchNorm,
    /// Reduce `[reduced, middle, 1, 1]` and expand `[middle, reduced, 1, 1]`.
    pub squeeze_excite: Option<(Biased, Biased)>,
    /// `[out, middle, 1, 1]`
    pub project: ParameterId,
    pub project_norm: BatchNorm,
}

impl InvertedResidual {
    /// `largest` is the block at its largest choice.
    pub(crate) fn new(
        parameters: &mut Parameters,
        name: &str,
        largest: &InvertedResidualSpec,
        kernel_sizes: &[usize],
    ) -> Result<Self> {
        let (m, n) = (largest.middle_channels, largest.out_channels);
        let he = |fan_out: usize| Initialiser::Normal((2.0 / fan_out as f64).sqrt());
        let expand = if largest.expand {
            let dims = [m, largest.in_channels, 1, 1];
            let weight = parameters.add(format!("{name}.expand.weight"), &dims, he(m), true)?;
            Some((weight, BatchNorm::new(parameters, format!("{name}.expand.norm"), m)?))
        } else {
            None
        };
        let depthwise = ElasticKernel::new(parameters, &format!("{name}.depthwise"), m, kernel_sizes)?;
        let depthwise_norm = BatchNorm::new(parameters, format!("{name}.depthwise.norm"), m)?;
        let squeeze_excite = match largest.squeeze_excite {
            Some(reduced) => {
                let mut biased = |part: &str, out: usize, input: usize| -> Result<Biased> {
                    Ok(Biased {
                        weight: parameters.add(format!("{name}.{part}.weight"), &[out, input, 1, 1], he(out), true)?,
                        bias: parameters.add(
                            format!("{name}.{part}.bias"),
                            &[out],
                            Initialiser::Constant(0.0),
                            false,
                        )?,
                    })
                };
                Some((biased("squeeze", reduced, m)?, biased("excite", m, reduced)?))
            }
            None => None,
        };
        let project = parameters.add(format!("{name}.project.weight"), &[n, m, 1, 1], he(n), true)?;
        let project_norm = BatchNorm::new(parameters, format!("{name}.project.norm"), n)?;
        Ok(InvertedResidual { expand, depthwise, depthwise_norm, squeeze_excite, project, project_norm })
    }

    /// The first of its parameters in the list.
    pub(crate) fn first_parameter(&self) -> ParameterId {
        self.expand.as_ref().map_or(self.depthwise.weight, |(weight, _)| *weight)
    }

    /// Its batch norms in the order in which statistics are listed.
    pub(crate) fn norms(&self) -> impl Iterator<Item = &BatchNorm> {
        self.expand.iter().map(|(_, norm)| norm).chain([&self.depthwise_norm, &self.project_norm])
    }

    /// The active slices of all parameters, flattened one after the other.
    pub(crate) fn pack(&self, parameters: &Parameters, spec: &InvertedResidualSpec, keep: bool) -> Result<Tensor> {
        let m = spec.middle_channels;
        let get = |id| parameters.get(id, keep);
        let mut parts = Vec::with_capacity(14);
        if let Some((weight, norm)) = &self.expand {
            parts.push(get(*weight).narrow(0, 0, m)?);
            parts.extend(norm.pack(parameters, m, keep)?);
        }
        parts.push(self.depthwise.pack(parameters, m, spec.kernel, keep)?);
        parts.extend(self.depthwise_norm.pack(parameters, m, keep)?);
        if let (Some((squeeze, excite)), Some(reduced)) = (&self.squeeze_excite, spec.squeeze_excite) {
            parts.push(get(squeeze.weight).narrow(0, 0, reduced)?.narrow(1, 0, m)?);
            parts.push(get(squeeze.bias).narrow(0, 0, reduced)?);
            parts.push(get(excite.weight).narrow(0, 0, m)?.narrow(1, 0, reduced)?);
            parts.push(get(excite.bias).narrow(0, 0, m)?);
        }
        parts.push(get(self.project).narrow(1, 0, m)?);
        parts.extend(self.project_norm.pack(parameters, spec.out_channels, keep)?);
        let flat = parts.iter().map(Tensor::flatten_all).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&flat, 0)
    }

    /// `x` `[batch, height, width, in]` to `[batch, height / stride, width / stride, out]`.
    pub(crate) fn forward(
        &self,
        parameters: &Parameters,
        x: Relay,
        spec: &InvertedResidualSpec,
        eps: f64,
        pass: &mut Pass,
    ) -> Result<Relay> {
        let (batch, height, width, _) = x.value().dims4()?;
        let shape = BlockShape::new(spec, batch, height, width, eps);
        let packed = self.pack(parameters, spec, pass.keep_gradients)?;
        let m = spec.middle_channels;
        let given = pass.next_given([if spec.expand { m } else { 0 }, m, spec.out_channels])?;
        let (output, used) = if x.value().device().is_cpu() && x.value().dtype() == DType::F32 {
            ops::inverted_residual(x, &packed, shape, given, pass.ranks, pass.keep_gradients)?
        } else {
            let (output, used) = composite::inverted_residual(&x.tracked()?, &packed, &shape, given.as_ref())?;
            (output.into(), used)
        };
        pass.used.extend(used.into_iter().skip(usize::from(!spec.expand)));
        Ok(output)
    }
}
