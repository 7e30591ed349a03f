//! Adam with decoupled weight decay, numerically PyTorch's `torch.optim.AdamW`.

use super::buffer::{Buffer, is_host, update_in_place};
use super::{AdamW, Pace};
use crate::Result;
use crate::network::Parameter;
use candle_core::Tensor;

/// The running mean of a parameter's squared gradients.
pub(super) struct Squares {
    pub buffer: Buffer,
    /// Gradients in it.
    pub steps: u32,
}

/// Updates one parameter at its gradient number `t`: `w -= rate decay w`; `m = b1 m + (1 - b1) g`; `v = b2 v + (1 - b2)
/// g²`; `w -= rate m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + epsilon)`.
pub(super) fn update(
    parameter: &Parameter,
    gradient: &Tensor,
    mean: &mut Option<Buffer>,
    squares: &mut Option<Squares>,
    AdamW { betas, epsilon }: &AdamW,
    Pace { rate, scale, decay }: Pace,
) -> Result<()> {
    let weight = parameter.var.as_tensor();
    let steps = squares.as_ref().map_or(0, |squares| squares.steps) + 1;
    let [mean_correction, square_correction] = betas.map(|beta| 1.0 - beta.powi(steps as i32));
    let (rate_of_mean, root) = (rate / mean_correction, square_correction.sqrt());
    let mut second = squares.take().map(|squares| squares.buffer);
    if is_host(weight) && is_host(gradient) {
        let [kept_mean, kept_square] = betas.map(|beta| beta as f32);
        let [new_mean, new_square] = betas.map(|beta| (1.0 - beta) as f32);
        let (kept, rate, scale) = ((1.0 - rate * decay) as f32, rate_of_mean as f32, scale as f32);
        let (root, epsilon) = (root as f32, *epsilon as f32);
        let buffers = [mean, &mut second].map(|buffer| &mut Buffer::host(buffer, weight.elem_count())[..]);
        update_in_place(weight, gradient, buffers, |weight, gradient, [mean, square]| {
            for ((w, &g), (m, v)) in weight.iter_mut().zip(gradient).zip(mean.iter_mut().zip(square)) {
                let gradient = g * scale;
                *m = kept_mean * *m + new_mean * gradient;
                *v = kept_square * *v + new_square * gradient * gradient;
                *w = kept * *w - rate * *m / (v.sqrt() / root + epsilon);
            }
        })?;
    } else {
        let gradient = (gradient * scale)?;
        let moved = |buffer: &Option<Buffer>, beta: f64, new: &Tensor| {
            let new = (new * (1.0 - beta))?;
            match buffer {
                Some(Buffer::Device(old)) => (old * beta)? + new,
                _ => Ok(new),
            }
        };
        let (first, square) = (moved(mean, betas[0], &gradient)?, moved(&second, betas[1], &gradient.sqr()?)?);
        let update = (&first / ((square.sqrt()? / root)? + *epsilon)?)?;
        parameter.var.set(&((weight.detach() * (1.0 - rate * decay))? - (update * rate_of_mean)?)?)?;
        (*mean, second) = (Some(Buffer::Device(first)), Some(Buffer::Device(square)));
    }
    *squares = second.map(|buffer| Squares { buffer, steps });
    Ok(())
}
