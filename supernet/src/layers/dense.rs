//! A dense convolution with batch norm and activation: the first and last of MobileNets, all of ResNets. A subnet uses
//! the leading input and output channels.

use super::{BatchNorm, Initialiser, ParameterId, Parameters, Pass};
use crate::graph::interpreter::{self, Computed};
use crate::graph::{Graph, Op, Region};
use crate::ops::{self, ChannelStatistics, DenseShape};
use crate::space::{Activation, ConvSpec};
use candle_core::{DType, Result, Tensor};

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

/// Output of a convolution with norm and activation of `graph`, and the statistics used; `None` where no kernel
/// computes it. The tensors are its weight, and scale and shift.
pub(crate) fn region(
    graph: &Graph,
    region: &Region,
    x: &Tensor,
    tensors: &[Vec<Tensor>],
    given: Option<&ChannelStatistics>,
    keep: bool,
) -> Result<Option<Computed>> {
    let nodes = &graph.nodes()[region.nodes.clone()];
    let (convolution, last) = (&nodes[0], &nodes[nodes.len() - 1]);
    let Op::Convolution { kernel, stride, groups: 1, bias: false, .. } = convolution.op else { return Ok(None) };
    if !fused(x) {
        return Ok(None);
    }
    let activation = match last.op {
        Op::Activation(activation) => activation,
        _ => Activation::Identity,
    };
    let (batch, height, width, in_channels) = x.dims4()?;
    let out_channels = convolution.shape.channels;
    let eps = graph.batch_norm_epsilon();
    let shape =
        DenseShape { batch, height, width, in_channels, out_channels, kernel, stride, activation, pool: false, eps };
    let flat = tensors.iter().take(2).flatten().map(Tensor::flatten_all).collect::<Result<Vec<_>>>()?;
    let packed = Tensor::cat(&flat, 0)?;
    ops::dense(x, &packed, shape, given.cloned(), None, keep).map(Some)
}

/// Whether the fused CPU kernels take this tensor; other devices and number types get the interpreter.
pub(crate) fn fused(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
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
