//! A dense convolution with batch norm and activation: the first and last of MobileNets, all of ResNets. A subnet uses
//! the leading input and output channels.

use super::{Active, BatchNorm, Initialiser, ParameterId, ParameterKind, Parameters, Pass, add_packed, pack, tensors};
use crate::graph::interpreter::{self, Computed};
use crate::graph::{Graph, Op, Region};
use crate::ops::{self, ChannelStatistics, DenseSaved, DenseShape, Windows, contiguous_f32, summing, tensor_values};
use crate::space::{Activation, ConvSpec};
use candle_core::{CpuStorage, CustomOp2, D, Error, Layout, Result, Shape, Tensor, bail};
use std::sync::{Arc, Mutex, MutexGuard};

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
        let kind = if k == 1 { ParameterKind::NormalisedPointwise } else { ParameterKind::OtherWeight };
        let weight = parameters.add(format!("{name}.weight"), &dims, Initialiser::Normal(deviation), kind)?;
        let norm = BatchNorm::new(parameters, format!("{name}.norm"), n)?;
        Ok(Dense { weight, norm, pool })
    }

    /// The active weight `[out, in, k, k]`; batch norm's scale and shift.
    pub(crate) fn active(&self, parameters: &Parameters, spec: &ConvSpec) -> Vec<Vec<Active>> {
        let weight = parameters.leading_two(self.weight, spec.out_channels, spec.in_channels);
        vec![vec![weight], self.norm.active(parameters, spec.out_channels)]
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
        let active = self.active(parameters, spec);
        if !fused(x) {
            let y = pass.interpret(&spec.graph(eps), x, &active)?;
            return if self.pool { pass.trace(&y, &[], |y, _| y.mean((1, 2))) } else { Ok(y) };
        }
        let (batch, height, width, _) = x.dims4()?;
        let shape = dense_shape(spec, batch, height, width, self.pool, eps);
        if !spec.residual {
            return convolve(x, active, shape, pass);
        }
        sum_of_branches(pass, |pass| convolve(x, active, shape, pass), |_| Ok(x.clone()), false)
    }
}

/// The convolution with batch norm, activation and perhaps pool of its own kernel.
fn convolve(x: &Tensor, active: Vec<Vec<Active>>, shape: DenseShape, pass: &mut Pass) -> Result<Tensor> {
    let packed = pack(&active)?;
    let given = pass.next_given([shape.out_channels])?.map(|[given]| given);
    let (output, saved) = tensor_values(x, |x| {
        ops::dense(x, &packed, &shape, given.as_ref(), summing(pass.ranks).as_deref()).map_err(Error::wrap)
    })?;
    let output = Tensor::from_vec(output, shape.output_extents(), x.device())?;
    pass.used.push(saved.statistics().clone());
    let Some(tape) = &mut pass.tape else { return Ok(output) };
    let (x, with_input, ranks) = (x.clone(), tape.needs_input_gradient(), pass.ranks.cloned());
    tape.push(move |gradient, gradients| {
        let computed = tensor_values(&x, |x| {
            let sum = summing(ranks.as_ref());
            tensor_values(&gradient, |g| Ok(saved.backward(&shape, x, &packed, sum.as_deref(), g, with_input)))
        })?;
        add_packed(&active, &computed.parameters, gradients)?;
        computed.input.map(|dx| Tensor::from_vec(dx, x.shape(), x.device())).transpose()
    });
    Ok(output)
}

/// Output of a convolution with norm and activation of `graph`, dense or depthwise, and the statistics used; `None`
/// where no kernel computes it. The tensors are its weight, and scale and shift.
pub(crate) fn region(
    graph: &Graph,
    region: &Region,
    x: &Tensor,
    tensors: &[Vec<Tensor>],
    given: Option<&ChannelStatistics>,
) -> Result<Option<Computed>> {
    let nodes = &graph.nodes()[region.nodes.clone()];
    let (convolution, last) = (&nodes[0], &nodes[nodes.len() - 1]);
    let Op::Convolution { kernel, stride, groups, bias: false, .. } = convolution.op else { return Ok(None) };
    if !fused(x) {
        return Ok(None);
    }
    let activation = match last.op {
        Op::Activation(activation) => activation,
        _ => Activation::Identity,
    };
    let (batch, height, width, in_channels) = x.dims4()?;
    let out_channels = convolution.shape.channels;
    let depthwise = groups > 1 && groups == in_channels && groups == out_channels;
    if !depthwise && groups != 1 || depthwise && (kernel % 2 == 0 || stride > 2) {
        return Ok(None);
    }
    let shape = DenseShape {
        batch,
        height,
        width,
        in_channels,
        out_channels,
        kernel,
        stride,
        depthwise,
        activation,
        pool: false,
        eps: graph.batch_norm_epsilon(),
    };
    let flat = tensors.iter().take(2).flatten().map(Tensor::flatten_all).collect::<Result<Vec<_>>>()?;
    let saved = Saved::default();
    let op = Traced { shape, given: given.cloned(), saved: saved.clone() };
    let output = x.contiguous()?.apply_op2(&Tensor::cat(&flat, 0)?, op)?;
    let statistics = lock(&saved)?.as_ref().map(|saved| saved.statistics().clone()).unwrap_or_default();
    Ok(Some((output, statistics)))
}

type Saved = Arc<Mutex<Option<DenseSaved>>>;

fn lock(saved: &Saved) -> Result<MutexGuard<'_, Option<DenseSaved>>> {
    saved.lock().map_err(|_| candle_core::Error::Msg("dense convolution: a thread panicked".into()))
}

/// The convolution's kernel as an operation of candle's graph, for graphs of which candle computes the other nodes.
struct Traced {
    shape: DenseShape,
    given: Option<ChannelStatistics>,
    saved: Saved,
}

impl CustomOp2 for Traced {
    fn name(&self) -> &'static str {
        "dense-convolution"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, packed: &CpuStorage, pl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, packed) = (contiguous_f32(x, xl)?, contiguous_f32(packed, pl)?);
        let (output, saved) = ops::dense(x, packed, &self.shape, self.given.as_ref(), None).map_err(Error::wrap)?;
        *lock(&self.saved)? = Some(saved);
        Ok((CpuStorage::F32(output), self.shape.output_extents().into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        packed: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(saved) = lock(&self.saved)?.take() else {
            bail!("dense convolution: its gradient was asked for twice");
        };
        let computed = tensor_values(x, |x| {
            tensor_values(packed, |packed| {
                tensor_values(gradient, |g| Ok(saved.backward(&self.shape, x, packed, None, g, true)))
            })
        })?;
        let dx = computed.input.map(|dx| Tensor::from_vec(dx, x.shape(), x.device())).transpose()?;
        Ok((dx, Some(Tensor::from_vec(computed.parameters, packed.shape(), packed.device())?)))
    }
}

/// The convolution `spec` for `batch` maps of `height x width`.
fn dense_shape(spec: &ConvSpec, batch: usize, height: usize, width: usize, pool: bool, eps: f64) -> DenseShape {
    DenseShape {
        batch,
        height,
        width,
        in_channels: spec.in_channels,
        out_channels: spec.out_channels,
        kernel: spec.kernel,
        stride: spec.stride,
        depthwise: false,
        activation: spec.activation,
        pool,
        eps,
    }
}

/// Whether the kernels take this tensor.
pub(crate) fn fused(x: &Tensor) -> bool {
    ops::has_kernels(x.device(), x.dtype())
}

/// The sum of what two branches make of one input, both by kernels, and ReLU of it if `relu`.
pub(crate) fn sum_of_branches(
    pass: &mut Pass,
    main: impl FnOnce(&mut Pass) -> Result<Tensor>,
    shortcut: impl FnOnce(&mut Pass) -> Result<Tensor>,
    relu: bool,
) -> Result<Tensor> {
    let (main, main_tape) = pass.branch(main)?;
    let (shortcut, shortcut_tape) = pass.branch(shortcut)?;
    let sum = add(&main, &shortcut, relu)?;
    if let (Some(mut main), Some(mut shortcut)) = (main_tape, shortcut_tape) {
        let output = relu.then(|| sum.clone());
        pass.record(move |gradient, gradients| {
            let gradient = match &output {
                Some(output) => on_values(output, &gradient, ops::relu_gradient)?,
                None => gradient,
            };
            let at_main = main.backward_to(0, gradient.clone(), gradients)?;
            let at_shortcut = shortcut.backward_to(0, gradient, gradients)?;
            let (Some(at_main), Some(at_shortcut)) = (at_main, at_shortcut) else { return Ok(None) };
            add(&at_main, &at_shortcut, false).map(Some)
        });
    }
    Ok(sum)
}

fn add(x: &Tensor, y: &Tensor, relu: bool) -> Result<Tensor> {
    if x.dims() != y.dims() {
        bail!("a sum needs equal shapes, found {:?} and {:?}", x.dims(), y.dims());
    }
    on_values(x, y, |x, y| ops::add(x, y, relu))
}

/// A tensor of the shape of `x` and `y`, computed from their values.
fn on_values(x: &Tensor, y: &Tensor, compute: impl FnOnce(&[f32], &[f32]) -> Vec<f32>) -> Result<Tensor> {
    let values = tensor_values(x, |x| tensor_values(y, |y| Ok(compute(x, y))))?;
    Tensor::from_vec(values, x.shape(), x.device())
}

/// `[.., out]` for `x` `[.., in]`, the active `weight` `[out, in]` or `[out, in, 1, 1]` and perhaps `bias` `[out]`.
pub(crate) fn linear(x: &Tensor, weight: Active, bias: Option<Active>, pass: &mut Pass) -> Result<Tensor> {
    let slot = vec![[weight].into_iter().chain(bias).collect::<Vec<_>>()];
    if !fused(x) {
        return pass.trace(x, &slot, |x, tensors| {
            // Contiguous, as candle's product on GPUs wants it.
            let weight = tensors[0][0].flatten_from(1)?.contiguous()?;
            let y = x.flatten_to(D::Minus2)?.matmul(&weight.t()?)?.reshape(with_channels(x, weight.dim(0)?))?;
            tensors[0].get(1).map_or(Ok(y.clone()), |bias| y.broadcast_add(bias))
        });
    }
    let tensors = tensors(&slot, false)?.concat();
    let weight = tensors[0].flatten_from(1)?.contiguous()?;
    let (outputs, inputs) = weight.dims2()?;
    let rows = x.elem_count() / inputs.max(1);
    let extents = [rows, inputs, outputs];
    let y =
        tensor_values(x, |x| tensor_values(&weight, |weight| ops::linear(x, weight, extents).map_err(Error::wrap)))?;
    let y = Tensor::from_vec(y, with_channels(x, outputs), x.device())?;
    let y = tensors.get(1).map_or(Ok(y.clone()), |bias| y.broadcast_add(bias))?;
    let x = x.clone();
    pass.record(move |gradient, gradients| {
        let mut computed = tensor_values(&x, |x| {
            tensor_values(&weight, |weight| {
                tensor_values(&gradient, |g| Ok(ops::linear_backward(x, weight, extents, g)))
            })
        })?;
        if tensors.len() > 1 {
            computed.parameters.extend(gradient.reshape((rows, outputs))?.sum(0)?.to_vec1::<f32>()?);
        }
        add_packed(&slot, &computed.parameters, gradients)?;
        computed.input.map(|dx| Tensor::from_vec(dx, x.shape(), x.device())).transpose()
    });
    Ok(y)
}

/// The extents of `x` with another number of channels.
fn with_channels(x: &Tensor, channels: usize) -> Vec<usize> {
    let others = x.dims().iter().take(x.rank().saturating_sub(1));
    others.copied().chain([channels]).collect()
}

/// 3x3 max pool with stride 2 of `[batch, height, width, channels]`.
pub(crate) fn max_pool(x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
    if !fused(x) {
        return pass.trace(x, &[], |x, _| interpreter::max_pool(x, 3, 2, 1));
    }
    let (batch, height, width, channels) = x.dims4()?;
    let windows = Windows::max_pool(height, width, channels);
    let (height, width) = windows.output_size;
    let y = tensor_values(x, |x| Ok(ops::max_pool(&windows, x)))?;
    let y = Tensor::from_vec(y, (batch, height, width, channels), x.device())?;
    let (x, output) = (x.clone(), y.clone());
    pass.record(move |gradient, _| {
        let dx = tensor_values(&x, |x| {
            tensor_values(&output, |y| tensor_values(&gradient, |g| Ok(ops::max_pool_gradient(&windows, x, y, g))))
        })?;
        Tensor::from_vec(dx, x.shape(), x.device()).map(Some)
    });
    Ok(y)
}

/// Average over windows of `(height, width)` pixels side by side after `padding` rows and columns of zeros, at the
/// right and lower border over what there is, by the kernel.
pub(crate) fn average_pool(x: &Tensor, window: (usize, usize), padding: usize, pass: &mut Pass) -> Result<Tensor> {
    let (batch, height, width, channels) = x.dims4()?;
    let windows = Windows::side_by_side(height, width, channels, window, padding);
    let (out_height, out_width) = windows.output_size;
    let y = tensor_values(x, |x| Ok(ops::average_pool(&windows, x)))?;
    pass.record(move |gradient, _| {
        let dx = tensor_values(&gradient, |g| Ok(ops::average_pool_gradient(&windows, g)))?;
        Tensor::from_vec(dx, (batch, height, width, channels), gradient.device()).map(Some)
    });
    Tensor::from_vec(y, (batch, out_height, out_width, channels), x.device())
}

/// Average over all pixels, `[batch, channels]`.
pub(crate) fn global_average_pool(x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
    let (batch, height, width, channels) = x.dims4()?;
    if !fused(x) {
        return pass.trace(x, &[], |x, _| interpreter::average_pool(x, (height, width))?.reshape((batch, channels)));
    }
    average_pool(x, (height, width), 0, pass)?.reshape((batch, channels))
}

/// The activation of a small tensor.
pub(crate) fn activate(x: &Tensor, activation: Activation, pass: &mut Pass) -> Result<Tensor> {
    match activation {
        Activation::Identity => Ok(x.clone()),
        _ => pass.trace(x, &[], |x, _| interpreter::activate(x, activation)),
    }
}
