//! The same layers composed of candle's own ops: for GPUs and other number types, and as the f64 reference of the kernels' tests.
//!
//! A depthwise convolution is a sum over taps of shifted maps: every op in it has a gradient on every device.

use super::batch_norm::ChannelStatistics;
use super::{BlockShape, BlockStatistics, DenseShape};
use crate::space::Activation;
use candle_core::{D, DType, Result, Tensor};

/// As [`super::inverted_residual`].
///
/// # Errors
/// Shapes that do not fit.
pub fn inverted_residual(
    x: &Tensor,
    packed: &Tensor,
    shape: &BlockShape,
    given: Option<&BlockStatistics>,
) -> Result<(Tensor, BlockStatistics)> {
    let mut offset = 0;
    let mut next = |dims: &[usize]| -> Result<Tensor> {
        let len = dims.iter().product();
        offset += len;
        packed.narrow(0, offset - len, len)?.reshape(dims)
    };
    let m = shape.middle;
    let mut statistics = BlockStatistics::default();
    let mut h = x.clone();
    if shape.expand {
        let weight = next(&[m, shape.in_channels])?;
        let y = pixels_matmul(&h, &weight)?;
        let (y, used) = batch_norm(&y, &next(&[m])?, &next(&[m])?, given.map(|g| &g[0]), shape.eps)?;
        statistics[0] = used;
        h = activate(&y, shape.activation)?;
    }
    let y = depthwise(&h, &next(&[m, shape.kernel, shape.kernel])?, shape.stride)?;
    let (y, used) = batch_norm(&y, &next(&[m])?, &next(&[m])?, given.map(|g| &g[1]), shape.eps)?;
    statistics[1] = used;
    h = activate(&y, shape.activation)?;
    if let Some(reduced) = shape.squeeze_excite {
        let pooled = h.mean((1, 2))?;
        let (weight, bias) = (next(&[reduced, m])?, next(&[reduced])?);
        let hidden = pooled.matmul(&weight.t()?)?.broadcast_add(&bias)?.relu()?;
        let (weight, bias) = (next(&[m, reduced])?, next(&[m])?);
        let raw = hidden.matmul(&weight.t()?)?.broadcast_add(&bias)?;
        let gate = ((raw + 3.0)?.clamp(0f64, 6f64)? / 6.0)?;
        h = h.broadcast_mul(&gate.reshape((shape.batch, 1, 1, m))?)?;
    }
    let y = pixels_matmul(&h, &next(&[shape.out_channels, m])?)?;
    let n = shape.out_channels;
    let (y, used) = batch_norm(&y, &next(&[n])?, &next(&[n])?, given.map(|g| &g[2]), shape.eps)?;
    statistics[2] = used;
    let output = if shape.residual { (y + x)? } else { y };
    Ok((output, statistics))
}

/// As [`super::dense`].
///
/// # Errors
/// Shapes that do not fit.
pub fn dense(
    x: &Tensor,
    packed: &Tensor,
    shape: &DenseShape,
    given: Option<&ChannelStatistics>,
) -> Result<(Tensor, ChannelStatistics)> {
    let (k, n, c) = (shape.kernel, shape.out_channels, shape.in_channels);
    let weight = packed.narrow(0, 0, n * c * k * k)?.reshape((n, c, k, k))?;
    let padded = pad(x, k, shape.stride)?;
    let mut y: Option<Tensor> = None;
    for ky in 0..k {
        for kx in 0..k {
            let tap = weight.narrow(2, ky, 1)?.narrow(3, kx, 1)?.reshape((n, c))?;
            let part = pixels_matmul(&shifted(&padded, ky, kx, shape.stride, shape.output_size())?, &tap)?;
            y = Some(match y {
                Some(y) => (y + part)?,
                None => part,
            });
        }
    }
    let Some(y) = y else { candle_core::bail!("dense convolution: kernel size 0") };
    let start = n * c * k * k;
    let (y, used) = batch_norm(&y, &packed.narrow(0, start, n)?, &packed.narrow(0, start + n, n)?, given, shape.eps)?;
    let y = activate(&y, shape.activation)?;
    Ok((if shape.pool { y.mean((1, 2))? } else { y }, used))
}

/// As [`super::max_pool`]. Repeated border pixels change no maximum, since every window that reaches over the border holds them anyway; of
/// equal values each gets a part of the gradient.
///
/// # Errors
/// Shapes that do not fit.
pub fn max_pool(x: &Tensor) -> Result<Tensor> {
    let (_, height, width, _) = x.dims4()?;
    let size = (height.div_ceil(2), width.div_ceil(2));
    let padded = x.pad_with_same(1, 1, 1)?.pad_with_same(2, 1, 1)?;
    let mut largest = shifted(&padded, 0, 0, 2, size)?;
    for place in 1..9 {
        largest = largest.maximum(&shifted(&padded, place / 3, place % 3, 2, size)?)?;
    }
    Ok(largest)
}

/// As [`super::average_pool`].
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

/// `[.., in]` times `[out, in]` transposed.
fn pixels_matmul(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    let last = dims.len() - 1;
    let y = x.reshape(((), dims[last]))?.matmul(&weight.t()?)?;
    dims[last] = weight.dim(0)?;
    y.reshape(dims)
}

/// The activation as candle ops.
///
/// # Errors
/// None in practice; as every candle op.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Identity => Ok(x.clone()),
        Activation::Relu => x.relu(),
        Activation::Relu6 => x.clamp(0f64, 6f64),
        Activation::HardSwish => x * ((x + 3.0)?.clamp(0f64, 6f64)? / 6.0)?,
    }
}

fn batch_norm(
    y: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    given: Option<&ChannelStatistics>,
    eps: f64,
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
    let normalised = rows.broadcast_sub(&mean)?.broadcast_div(&(variance + eps)?.sqrt()?)?;
    let y = normalised.broadcast_mul(weight)?.broadcast_add(bias)?.reshape(y.shape())?;
    Ok((y, used))
}

/// Zero borders for a kernel of size `k`, wide enough for a strided one at the right and bottom.
fn pad(x: &Tensor, k: usize, stride: usize) -> Result<Tensor> {
    let mut padded = x.clone();
    for dim in [1, 2] {
        let size = x.dim(dim)?;
        let needed = (size.div_ceil(stride) - 1) * stride + k;
        let left = k / 2;
        padded = padded.pad_with_zeros(dim, left, needed.saturating_sub(size + left).max(left))?;
    }
    Ok(padded)
}

/// The map as tap `(ky, kx)` sees it: every `stride`-th pixel from there on.
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

fn depthwise(x: &Tensor, weight: &Tensor, stride: usize) -> Result<Tensor> {
    let (channels, k, _) = weight.dims3()?;
    let (_, height, width, _) = x.dims4()?;
    let size = (height.div_ceil(stride), width.div_ceil(stride));
    let padded = pad(x, k, stride)?;
    let mut y: Option<Tensor> = None;
    for ky in 0..k {
        for kx in 0..k {
            let tap = weight.narrow(1, ky, 1)?.narrow(2, kx, 1)?.reshape(channels)?;
            let part = shifted(&padded, ky, kx, stride, size)?.broadcast_mul(&tap)?;
            y = Some(match y {
                Some(y) => (y + part)?,
                None => part,
            });
        }
    }
    y.ok_or_else(|| candle_core::Error::Msg("depthwise convolution: kernel size 0".into()))
}
