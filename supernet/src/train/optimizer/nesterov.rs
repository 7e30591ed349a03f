//! SGD with Nesterov momentum, numerically PyTorch's `torch.optim.SGD(nesterov=True)`.

use super::Pace;
use super::buffer::{Buffer, is_host, update_in_place};
use crate::Result;
use crate::network::Parameter;
use candle_core::Tensor;

/// Updates one parameter. With `d = g + decay w`: the buffer becomes `d` at a parameter's first gradient and `momentum
/// buffer + d` later; then `w -= rate (d + momentum buffer)`.
pub(super) fn update(
    parameter: &Parameter,
    gradient: &Tensor,
    buffer: &mut Option<Buffer>,
    momentum: f64,
    Pace { rate, scale, decay }: Pace,
) -> Result<()> {
    let weight = parameter.var.as_tensor();
    if !(is_host(weight) && is_host(gradient)) {
        let mut direction = (gradient * scale)?;
        if decay != 0.0 {
            direction = (direction + (weight.detach() * decay)?)?;
        }
        let moved = match buffer {
            Some(Buffer::Device(old)) => ((&*old * momentum)? + &direction)?,
            _ => direction.copy()?,
        };
        let update = ((direction + (&moved * momentum)?)? * rate)?;
        parameter.var.set(&(weight.detach() - update)?)?;
        *buffer = Some(Buffer::Device(moved));
        return Ok(());
    }
    // Zero momentum on a zero buffer is PyTorch's first step: the buffer becomes the gradient.
    let carry = if buffer.is_none() { 0.0 } else { momentum as f32 };
    let (momentum, decay, rate, scale) = (momentum as f32, decay as f32, rate as f32, scale as f32);
    let buffer = Buffer::host(buffer, weight.elem_count());
    update_in_place(weight, gradient, [buffer], |weight, gradient, [buffer]| {
        for ((w, &g), b) in weight.iter_mut().zip(gradient).zip(buffer) {
            let direction = g * scale + decay * *w;
            *b = carry * *b + direction;
            *w -= rate * (direction + momentum * *b);
        }
    })
}
