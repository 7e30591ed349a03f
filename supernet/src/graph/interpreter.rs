//! Runs a graph in candle's own operations, on any device, in f32 and f64, with gradients: the reference of the
//! kernels' tests, and what trains where there are no kernels.
//!
//! A convolution is a sum over taps of shifted maps: every operation in it has a gradient on every device.

use super::{Graph, Op, Region};
use crate::ops::ChannelStatistics;
use crate::space::Activation;
use candle_core::{D, DType, Result, Tensor, bail};

/// Output of `graph` for `input` `[batch, height, width, channels]` (of any size, whatever extents the graph names),
/// and the statistics that its batch norms used, in their order.
///
/// `parameters` holds the tensors of each slot: a convolution's weight and perhaps bias, a batch norm's scale and
/// shift, a linear layer's weight and bias. Batch norms take the `given` statistics, or the batch's.
///
/// # Errors
/// Shapes that do not fit, and too few parameters or statistics.
pub fn run(
    graph: &Graph,
    input: &Tensor,
    parameters: &[Vec<Tensor>],
    given: Option<&[ChannelStatistics]>,
) -> Result<(Tensor, Vec<ChannelStatistics>)> {
    run_with(graph, input, parameters, given, |_, _, _, _| Ok(None))
}

/// Output of a part of a graph, and the statistics that its batch norm used.
pub(crate) type Computed = (Tensor, ChannelStatistics);

/// As [`run`], but `kernel` is asked first about each convolution with norm and activation: for the region, its input,
/// the parameters from there on and the given statistics it may return the output and the statistics that it used.
pub(crate) fn run_with(
    graph: &Graph,
    input: &Tensor,
    parameters: &[Vec<Tensor>],
    given: Option<&[ChannelStatistics]>,
    kernel: impl Fn(&Region, &Tensor, &[Vec<Tensor>], Option<&ChannelStatistics>) -> Result<Option<Computed>>,
) -> Result<(Tensor, Vec<ChannelStatistics>)> {
    let mut values: Vec<Option<Tensor>> = vec![None; graph.nodes().len()];
    let mut readers = graph.reader_counts();
    let mut operands = Operands { node: 0, slots: parameters.iter(), given, used: Vec::new() };
    // End of the region that a kernel has computed.
    let mut done = 0;
    for (index, node) in graph.nodes().iter().enumerate() {
        if index < done {
            continue;
        }
        let mut inputs = Vec::with_capacity(2);
        for id in node.inputs().iter().map(|input| input.index()) {
            // A value that no node reads any more is freed.
            readers[id] -= 1;
            let value = if readers[id] == 0 { values[id].take() } else { values[id].clone() };
            inputs.extend(value);
        }
        if let (Some(region), [x]) =
            (graph.inner_regions().iter().find(|region| region.nodes.start == index), &inputs[..])
        {
            let given = given.and_then(|given| given.get(operands.used.len()));
            if let Some((output, statistics)) = kernel(region, x, operands.slots.as_slice(), given)? {
                operands.used.push(statistics);
                done = region.nodes.end;
                // The convolution's and the norm's.
                operands.slots.nth(1);
                values[done - 1] = Some(output);
                continue;
            }
        }
        operands.node = index;
        values[index] = Some(match node.op {
            Op::Input => input.clone(),
            op => compute(op, &inputs, &mut operands, graph.batch_norm_epsilon())?,
        });
    }
    match values.pop().flatten() {
        Some(output) => Ok((output, operands.used)),
        None => bail!("the graph is empty"),
    }
}

/// What nodes read besides their inputs, taken in the order of the nodes, and the statistics that batch norms used.
struct Operands<'a> {
    /// Index of the node, for messages.
    node: usize,
    slots: std::slice::Iter<'a, Vec<Tensor>>,
    given: Option<&'a [ChannelStatistics]>,
    used: Vec<ChannelStatistics>,
}

impl<'a> Operands<'a> {
    /// The tensors of the next slot, of which there must be `count`.
    fn tensors(&mut self, count: usize) -> Result<&'a [Tensor]> {
        match self.slots.next() {
            Some(tensors) if tensors.len() >= count => Ok(&tensors[..]),
            _ => bail!("node {} of the graph has no parameters", self.node),
        }
    }

    /// The given statistics of the next batch norm; none if it takes the batch's.
    fn statistics(&self) -> Result<Option<&'a ChannelStatistics>> {
        match self.given.map(|given| given.get(self.used.len())) {
            Some(None) => bail!("node {} of the graph has no statistics", self.node),
            given => Ok(given.flatten()),
        }
    }
}

/// Output of one operation.
fn compute(op: Op, inputs: &[Tensor], operands: &mut Operands, epsilon: f64) -> Result<Tensor> {
    match (op, inputs) {
        (Op::Convolution { kernel, stride, padding, groups, bias }, [x]) => {
            let tensors = operands.tensors(1 + usize::from(bias))?;
            let y = convolution(x, &tensors[0], (kernel, stride, padding), groups)?;
            if bias { y.broadcast_add(&tensors[1]) } else { Ok(y) }
        }
        (Op::BatchNorm, [x]) => {
            let tensors = operands.tensors(2)?;
            let (y, statistics) = batch_norm(x, &tensors[0], &tensors[1], operands.statistics()?, epsilon)?;
            operands.used.push(statistics);
            Ok(y)
        }
        (Op::Activation(activation), [x]) => activate(x, activation),
        (Op::HardSigmoid, [x]) => hard_sigmoid(x),
        (Op::GlobalAveragePool, [x]) => x.mean_keepdim(1)?.mean_keepdim(2),
        (Op::AveragePool { window, padding }, [x]) => {
            let padded = x.pad_with_zeros(1, padding, 0)?.pad_with_zeros(2, padding, 0)?;
            average_pool(&padded, (window, window))
        }
        (Op::MaxPool { window, stride, padding }, [x]) => max_pool(x, window, stride, padding),
        (Op::Add, [x, y]) => x + y,
        (Op::Gate, [x, factors]) => x.broadcast_mul(factors),
        (Op::Linear, [x]) => {
            let tensors = operands.tensors(2)?;
            let rows = x.reshape((x.dim(0)?, ()))?;
            rows.matmul(&tensors[0].t()?.contiguous()?)?.broadcast_add(&tensors[1])
        }
        _ => bail!("node {} of the graph, {op:?}, has {} inputs", operands.node, inputs.len()),
    }
}

/// The activation as candle operations.
///
/// # Errors
/// As every candle operation.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Identity => Ok(x.clone()),
        // With a slope of 0 at the ends, as the kernels have it: a block whose last scale is zero ends there.
        Activation::Relu => x.gt(0f64)?.where_cond(x, &x.zeros_like()?),
        Activation::Relu6 => {
            // NaN is neither, and stays.
            let below = x.ge(6f64)?.where_cond(&x.ones_like()?.affine(6.0, 0.0)?, x)?;
            below.le(0f64)?.where_cond(&x.zeros_like()?, &below)
        }
        Activation::HardSwish => x * hard_sigmoid(x)?,
        // Not composed of an exponential: where that is infinite, the gradient would be NaN.
        Activation::Swish => x.silu(),
    }
}

fn hard_sigmoid(x: &Tensor) -> Result<Tensor> {
    (x + 3.0)?.clamp(0f64, 6f64)? / 6.0
}

/// Largest value of each window of `[batch, height, width, channels]`. The border is repeated as padding, which changes
/// no maximum while every window that reaches over it also holds the border; of equal values each gets a part of the
/// gradient.
///
/// # Errors
/// Shapes that do not fit, and more padding than half of a window.
pub fn max_pool(x: &Tensor, window: usize, stride: usize, padding: usize) -> Result<Tensor> {
    if 2 * padding > window {
        bail!("a max pool of {window} pixels cannot have a padding of {padding}");
    }
    let (_, height, width, _) = x.dims4()?;
    let size = (outputs(height, window, stride, padding), outputs(width, window, stride, padding));
    let padded = x.pad_with_same(1, padding, padding)?.pad_with_same(2, padding, padding)?;
    let mut largest = shifted(&padded, 0, 0, stride, size)?;
    for place in 1..window * window {
        largest = largest.maximum(&shifted(&padded, place / window, place % window, stride, size)?)?;
    }
    Ok(largest)
}

/// Mean over windows of `(height, width)` pixels side by side, those at the right and lower border over the pixels that
/// they hold.
///
/// # Errors
/// Shapes that do not fit.
pub fn average_pool(x: &Tensor, window: (usize, usize)) -> Result<Tensor> {
    let mut mean = x.clone();
    for (dim, window) in [(1, window.0), (2, window.1)] {
        let length = x.dim(dim)?;
        let parts = (0..length)
            .step_by(window)
            .map(|start| mean.narrow(dim, start, window.min(length - start))?.mean_keepdim(dim));
        mean = Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, dim)?;
    }
    Ok(mean)
}

/// `weight` `[out, in / groups, kernel, kernel]`, in any shape with as many values.
fn convolution(
    x: &Tensor,
    weight: &Tensor,
    (kernel, stride, padding): (usize, usize, usize),
    groups: usize,
) -> Result<Tensor> {
    let (_, height, width, inputs) = x.dims4()?;
    if groups == 0 || !inputs.is_multiple_of(groups) {
        bail!("a convolution of {inputs} channels cannot have {groups} groups");
    }
    let weight = weight.reshape(((), inputs / groups, kernel, kernel))?;
    let size = (outputs(height, kernel, stride, padding), outputs(width, kernel, stride, padding));
    let padded = x.pad_with_zeros(1, padding, padding)?.pad_with_zeros(2, padding, padding)?;
    let mut sum: Option<Tensor> = None;
    for ky in 0..kernel {
        for kx in 0..kernel {
            let tap = weight.narrow(2, ky, 1)?.narrow(3, kx, 1)?.squeeze(3)?.squeeze(2)?;
            let seen = shifted(&padded, ky, kx, stride, size)?;
            let part = grouped_product(&seen, &tap, groups)?;
            sum = Some(match sum {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
    }
    sum.ok_or_else(|| candle_core::Error::Msg("a convolution has a kernel size of 0".into()))
}

/// Product of one tap: `[.., in]` times `[out, in / groups]` transposed, each group of channels with its own part of
/// the weight.
fn grouped_product(x: &Tensor, tap: &Tensor, groups: usize) -> Result<Tensor> {
    let (out, inputs) = tap.dims2()?;
    if inputs == 1 && out == groups {
        return x.broadcast_mul(&tap.reshape(out)?);
    }
    let mut dims = x.dims().to_vec();
    let last = dims.len() - 1;
    let rows = x.reshape(((), dims[last]))?;
    let product = |group: usize| {
        let weight = tap.narrow(0, group * (out / groups), out / groups)?.contiguous()?;
        rows.narrow(1, group * inputs, inputs)?.contiguous()?.matmul(&weight.t()?)
    };
    let parts = (0..groups).map(product).collect::<Result<Vec<_>>>()?;
    dims[last] = out;
    if let [all] = &parts[..] { all.reshape(dims) } else { Tensor::cat(&parts, 1)?.reshape(dims) }
}

fn batch_norm(
    y: &Tensor,
    scale: &Tensor,
    shift: &Tensor,
    given: Option<&ChannelStatistics>,
    epsilon: f64,
) -> Result<(Tensor, ChannelStatistics)> {
    let channels = y.dim(D::Minus1)?;
    let rows = y.reshape(((), channels))?;
    let (mean, variance, used) = match given {
        Some(given) => {
            let tensor = |v: &[f32]| Tensor::from_slice(v, (1, channels), y.device())?.to_dtype(y.dtype());
            (tensor(&given.mean)?, tensor(&given.variance)?, given.clone())
        }
        None => {
            let mean = rows.mean_keepdim(0)?;
            let variance = rows.broadcast_sub(&mean)?.sqr()?.mean_keepdim(0)?;
            let values = |t: &Tensor| t.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>();
            let used = ChannelStatistics { mean: values(&mean)?, variance: values(&variance)?, count: rows.dim(0)? };
            (mean, variance, used)
        }
    };
    let normalised = rows.broadcast_sub(&mean)?.broadcast_div(&(variance + epsilon)?.sqrt()?)?;
    let y = normalised.broadcast_mul(scale)?.broadcast_add(shift)?.reshape(y.shape())?;
    Ok((y, used))
}

/// Outputs along one direction.
fn outputs(size: usize, window: usize, stride: usize, padding: usize) -> usize {
    (size + 2 * padding).saturating_sub(window) / stride.max(1) + 1
}

/// The padded map as tap `(ky, kx)` sees it: every `stride`-th pixel from there on.
fn shifted(padded: &Tensor, ky: usize, kx: usize, stride: usize, (height, width): (usize, usize)) -> Result<Tensor> {
    let mut map = padded.clone();
    for (dim, start, count) in [(1, ky, height), (2, kx, width)] {
        map = map.narrow(dim, start, (count - 1) * stride + 1)?;
        if stride > 1 {
            let places: Vec<u32> = (0..count).map(|i| (i * stride) as u32).collect();
            map = map.contiguous()?.index_select(&Tensor::new(places, padded.device())?, dim)?;
        }
    }
    map.contiguous()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn the_slopes_of_relu_and_relu6_are_zero_at_their_ends() {
        let x = Var::new(&[-1f32, 0.0, 2.0, 6.0, 7.0], &Device::Cpu).unwrap();
        for (activation, values, slopes) in [
            (Activation::Relu, [0.0, 0.0, 2.0, 6.0, 7.0], [0.0, 0.0, 1.0, 1.0, 1.0]),
            (Activation::Relu6, [0.0, 0.0, 2.0, 6.0, 6.0], [0.0, 0.0, 1.0, 0.0, 0.0]),
        ] {
            let y = activate(x.as_tensor(), activation).unwrap();
            let gradient = y.sum_all().unwrap().backward().unwrap().get(x.as_tensor()).unwrap().clone();
            assert_eq!(y.to_vec1::<f32>().unwrap(), values);
            assert_eq!(gradient.to_vec1::<f32>().unwrap(), slopes);
        }
        let lost = activate(&Tensor::new(&[f32::NAN], &Device::Cpu).unwrap(), Activation::Relu6).unwrap();
        assert!(lost.to_vec1::<f32>().unwrap()[0].is_nan());
    }

    #[test]
    fn swish_has_a_gradient_where_exponentials_are_infinite() {
        for dtype in [candle_core::DType::F32, candle_core::DType::F64] {
            let x = Tensor::new(&[-1000f64, -100.0, -1.0, 0.0, 1.0, 100.0], &Device::Cpu).unwrap();
            let x = Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap();
            let y = activate(x.as_tensor(), Activation::Swish).unwrap();
            let gradient = y.sum_all().unwrap().backward().unwrap().get(x.as_tensor()).unwrap().clone();
            let values = |t: &Tensor| t.to_dtype(candle_core::DType::F64).unwrap().to_vec1::<f64>().unwrap();
            let expected =
                [(0.0, 0.0), (0.0, 0.0), (-0.268941, 0.072330), (0.0, 0.5), (0.731059, 0.927671), (100.0, 1.0)];
            for ((y, slope), expected) in values(&y).into_iter().zip(values(&gradient)).zip(expected) {
                assert!((y - expected.0).abs() < 1e-5 && (slope - expected.1).abs() < 1e-5, "{y} {slope} {expected:?}");
            }
        }
    }
}
