//! A dense convolution with batch norm and activation: the first and last of MobileNets, all of ResNets. A subnet uses
//! the leading input and output channels.

use super::{BatchNorm, Initialiser, ParameterId, Parameters, Pass};
use crate::graph::interpreter;
use crate::ops::{self, DenseShape};
use crate::space::{Activation, ConvSpec};
use candle_core::{Result, Tensor};

#[derive(Debug)]
pub(crate) struct Dense {
    /// `[out, in, k, k]`
    pub weight: ParameterId,
    pub norm: BatchNorm,
    /// Whether the output is averaged over each image's pixels.
    pool: bool,
}

impl Dense {
    /// `largest` is the convolution at its largest choice.
    pub(crate) fn new(parameters: &mut Parameters, name: &str, largest: &ConvSpec, pool: bool) -> Result<Self> {
        let (n, k) = (largest.out_channels, largest.kernel);
        let deviation = (2.0 / (k * k * n) as f64).sqrt();
        let dims = [n, largest.in_channels, k, k];
        let weight = parameters.add(format!("{name}.weight"), &dims, Initialiser::Normal(deviation), true)?;
        let norm = BatchNorm::new(parameters, format!("{name}.norm"), n)?;
        Ok(Dense { weight, norm, pool })
    }

    /// The active weight `[out, in, k, k]`; batch norm's scale and shift.
    pub(crate) fn active(&self, parameters: &Parameters, spec: &ConvSpec, keep: bool) -> Result<[Vec<Tensor>; 2]> {
        let weight = parameters.get(self.weight, keep);
        let weight = weight.narrow(0, 0, spec.out_channels)?.narrow(1, 0, spec.in_channels)?;
        Ok([vec![weight], self.norm.pack(parameters, spec.out_channels, keep)?.to_vec()])
    }

    /// `x` `[batch, height, width, in]`; the output is pooled to `[batch, out]` if so made.
    pub(crate) fn forward(
        &self,
        parameters: &Parameters,
        x: &Tensor,
        spec: &ConvSpec,
        eps: f64,
        pass: &mut Pass,
    ) -> Result<Tensor> {
        let active = self.active(parameters, spec, pass.keep_gradients)?;
        if !fused(x) {
            let y = pass.interpret(&spec.graph(eps), x, &active)?;
            return if self.pool { y.mean((1, 2)) } else { Ok(y) };
        }
        let (batch, height, width, _) = x.dims4()?;
        let shape = DenseShape::new(spec, batch, height, width, self.pool, eps);
        let flat = active.iter().flatten().map(Tensor::flatten_all).collect::<Result<Vec<_>>>()?;
        let packed = Tensor::cat(&flat, 0)?;
        let given = pass.next_given([shape.out_channels])?.map(|[given]| given);
        let (output, used) = ops::dense(x, &packed, shape, given, pass.ranks, pass.keep_gradients)?;
        pass.used.push(used);
        if spec.residual { add(&output, x, false) } else { Ok(output) }
    }
}

impl DenseShape {
    /// The convolution `spec` for `batch` maps of `height x width`.
    fn new(spec: &ConvSpec, batch: usize, height: usize, width: usize, pool: bool, eps: f64) -> Self {
        DenseShape {
            batch,
            height,
            width,
            in_channels: spec.in_channels,
            out_channels: spec.out_channels,
            kernel: spec.kernel,
            stride: spec.stride,
            activation: spec.activation,
            pool,
            eps,
        }
    }
}

/// Whether the kernels take this tensor.
pub(crate) fn fused(x: &Tensor) -> bool {
    ops::has_kernels(x.device(), x.dtype())
}

/// `[rows, out]` for `x` `[rows, in]` and `weight` `[out, in]`.
pub(crate) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    // Contiguous, as candle's product on GPUs wants it.
    if fused(x) { ops::linear(x, weight) } else { x.matmul(&weight.contiguous()?.t()?) }
}

/// `x + y`, and ReLU of it if `relu`.
pub(crate) fn add(x: &Tensor, y: &Tensor, relu: bool) -> Result<Tensor> {
    if fused(x) {
        return ops::add(x, y, relu);
    }
    let sum = (x + y)?;
    if relu { sum.relu() } else { Ok(sum) }
}

/// 3x3 max pool with stride 2 of `[batch, height, width, channels]`.
pub(crate) fn max_pool(x: &Tensor) -> Result<Tensor> {
    if fused(x) { ops::max_pool(x) } else { interpreter::max_pool(x, 3, 2, 1) }
}

/// Average over windows of `(height, width)` pixels side by side, at the right and lower border over what there is.
pub(crate) fn average_pool(x: &Tensor, window: (usize, usize)) -> Result<Tensor> {
    if fused(x) { ops::average_pool(x, window) } else { interpreter::average_pool(x, window) }
}

/// The activation of a small tensor.
pub(crate) fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    interpreter::activate(x, activation)
}
