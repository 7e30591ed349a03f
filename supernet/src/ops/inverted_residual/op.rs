//! The inverted residual block as a differentiable candle op.

use super::{BlockShape, BlockStatistics, Parameters, Saved, backward, forward};
use crate::ops::batch_norm::{Normalise, SumOverProcesses};
use crate::ops::relay::{self, Link, Relay, Slot};
use crate::ops::{summing, tensor_values};
use crate::ranks::Ranks;
use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};
use std::sync::Mutex;

/// Output `[batch, height, width, out]` of the block for `x` `[batch, height, width, in]`, and the statistics used.
///
/// `packed` holds the active slices of all parameters one after the other: expand weight `[middle, in]`, its batch
/// norm's weight and bias, depthwise weight `[middle, k, k]`, batch norm, squeeze-excite (reduce weight and bias,
/// expand weight and bias), project weight `[out, middle]`, batch norm; absent layers take no space. Statistics are
/// `given`, or those of the batch (over all `ranks`, if passed).
///
/// Both tensors must be f32 on the CPU. Without `keep` the intermediate values are freed at once, and no gradient can
/// follow.
///
/// # Errors
/// Shapes or types do not fit.
pub fn inverted_residual(
    x: Relay,
    packed: &Tensor,
    shape: BlockShape,
    given: Option<BlockStatistics>,
    ranks: Option<&Ranks>,
    keep: bool,
) -> candle_core::Result<(Relay, BlockStatistics)> {
    let (batch, height, width, channels) = x.value().dims4()?;
    let parameters = Parameters::new(&shape).len;
    if (batch, height, width, channels) != (shape.batch, shape.height, shape.width, shape.in_channels)
        || packed.elem_count() != parameters
        || x.value().elem_count() == 0
        || (!shape.expand && shape.middle != shape.in_channels)
    {
        candle_core::bail!(
            "inverted residual: input {:?} and {} parameters do not fit {shape:?} with {parameters} parameters",
            x.value().dims(),
            packed.elem_count()
        );
    }
    let packed = packed.contiguous()?;
    let (out_height, out_width) = shape.output_size();
    let out_shape = (batch, out_height, out_width, shape.out_channels);
    let (value, read) = if keep {
        let (value, link) = x.enter()?;
        (value, Some(link))
    } else {
        (x.value().clone(), None)
    };
    let sum = summing(ranks);
    let over_processes = sum.as_ref().map(|sum| sum as SumOverProcesses);
    let (output, saved, statistics) = tensor_values(&value, |x| {
        tensor_values(&packed, |packed| Ok(forward::forward(&shape, x, packed, given.as_ref(), over_processes, keep)))
    })?;
    let output = Tensor::from_vec(output, out_shape, value.device())?;
    let Some(read) = read else { return Ok((Relay::from(output), statistics)) };
    let normalise = if given.is_some() { Normalise::Given } else { Normalise::Batch };
    let (saved, written) = (Mutex::new(saved), Slot::default());
    let op = InvertedResidual {
        shape,
        normalise,
        ranks: ranks.cloned(),
        saved,
        x: value,
        read: read.gradient,
        written: written.clone(),
    };
    let token = read.token.apply_op2(&packed, op)?;
    Ok((Relay::linked(output, Link { token, gradient: written }), statistics))
}

/// The op between the tokens; only its backward pass computes anything.
struct InvertedResidual {
    shape: BlockShape,
    normalise: Normalise,
    ranks: Option<Ranks>,
    saved: Mutex<Option<Saved>>,
    x: Tensor,
    /// Receives the gradient at `x`.
    read: Slot,
    /// Holds the gradient at the output.
    written: Slot,
}

impl CustomOp2 for InvertedResidual {
    fn name(&self) -> &'static str {
        "inverted-residual"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok(relay::token())
    }

    fn bwd(
        &self,
        token: &Tensor,
        packed: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let saved = self.saved.lock().ok().and_then(|mut saved| saved.take());
        let Some(saved) = saved else {
            candle_core::bail!("inverted residual: its gradient was asked for twice");
        };
        let sum = summing(self.ranks.as_ref());
        let over_processes = sum.as_ref().map(|sum| sum as SumOverProcesses);
        let (dx, dp) = tensor_values(&self.x, |x| {
            tensor_values(packed, |packed| {
                tensor_values(&self.written.take()?, |g| {
                    Ok(backward::backward(&self.shape, x, packed, &saved, self.normalise, over_processes, g))
                })
            })
        })?;
        self.read.put(Tensor::from_vec(dx, self.x.shape(), self.x.device())?)?;
        Ok((Some(token.zeros_like()?), Some(Tensor::from_vec(dp, packed.shape(), packed.device())?)))
    }
}
