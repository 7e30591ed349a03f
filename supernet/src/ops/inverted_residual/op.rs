//! The block as a differentiable candle op.

use super::{BlockShape, BlockStatistics, Parameters, Saved, backward, forward};
use crate::ops::batch_norm::Normalise;
use crate::ops::{contiguous_f32, tensor_values};
use crate::ranks::Ranks;
use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};
use std::sync::{Arc, Mutex};

/// Output `[batch, height, width, out]` of the block for `x` `[batch, height, width, in]`, and the statistics used.
///
/// `packed` holds the active slices of all parameters one after the other: expand weight `[middle, in]`, its batch norm's
/// weight and bias, depthwise weight `[middle, k, k]`, batch norm, squeeze-excite (reduce weight and bias, expand weight and
/// bias), project weight `[out, middle]`, batch norm; absent layers take no place. Batch statistics are used unless `given`, those of all
/// `ranks` together if there are.
/// Both tensors must be f32 on the CPU. `keep` false frees the intermediate values at once (no gradient can follow).
///
/// # Errors
/// Shapes or types that do not fit.
pub fn inverted_residual(
    x: &Tensor,
    packed: &Tensor,
    shape: BlockShape,
    given: Option<BlockStatistics>,
    ranks: Option<&Ranks>,
    keep: bool,
) -> candle_core::Result<(Tensor, BlockStatistics)> {
    let (batch, height, width, channels) = x.dims4()?;
    let parameters = Parameters::new(&shape).len;
    if (batch, height, width, channels) != (shape.batch, shape.height, shape.width, shape.in_channels)
        || packed.elem_count() != parameters
        || x.elem_count() == 0
        || (!shape.expand && shape.middle != shape.in_channels)
    {
        candle_core::bail!(
            "inverted residual: input {:?} and {} parameters do not fit {shape:?} with {parameters} parameters",
            x.dims(),
            packed.elem_count()
        );
    }
    let saved = Arc::new(Mutex::new((None, BlockStatistics::default())));
    let op = InvertedResidual { shape, given, ranks: ranks.cloned(), keep, saved: saved.clone() };
    let output = x.contiguous()?.apply_op2(&packed.contiguous()?, op)?;
    let statistics = lock(&saved)?.1.clone();
    Ok((output, statistics))
}

type Shared = Arc<Mutex<(Option<Saved>, BlockStatistics)>>;

fn lock(saved: &Shared) -> candle_core::Result<std::sync::MutexGuard<'_, (Option<Saved>, BlockStatistics)>> {
    saved.lock().map_err(|_| candle_core::Error::Msg("inverted residual: a thread panicked".into()))
}

struct InvertedResidual {
    shape: BlockShape,
    given: Option<BlockStatistics>,
    ranks: Option<Ranks>,
    keep: bool,
    saved: Shared,
}

impl CustomOp2 for InvertedResidual {
    fn name(&self) -> &'static str {
        "inverted-residual"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        packed: &CpuStorage,
        packed_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, packed) = (contiguous_f32(x, x_layout)?, contiguous_f32(packed, packed_layout)?);
        let (given, ranks) = (self.given.as_ref(), self.ranks.as_ref());
        let (output, values, statistics) = forward::forward(&self.shape, x, packed, given, ranks, self.keep);
        let (height, width) = self.shape.output_size();
        let mut saved = lock(&self.saved)?;
        *saved = (values, statistics);
        Ok((CpuStorage::F32(output), (self.shape.batch, height, width, self.shape.out_channels).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        packed: &Tensor,
        _output: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(saved) = lock(&self.saved)?.0.take() else {
            candle_core::bail!("inverted residual: no values were kept for a gradient, or it was taken twice");
        };
        let normalise = if self.given.is_some() { Normalise::Given } else { Normalise::Batch };
        let (dx, dp) = tensor_values(x, |x| {
            tensor_values(packed, |packed| {
                tensor_values(gradient, |g| {
                    Ok(backward::backward(&self.shape, x, packed, &saved, normalise, self.ranks.as_ref(), g))
                })
            })
        })?;
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), x.device())?),
            Some(Tensor::from_vec(dp, packed.shape(), packed.device())?),
        ))
    }
}
