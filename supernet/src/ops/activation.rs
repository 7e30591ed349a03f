//! Activation functions and their derivatives, as types so that each loop is compiled for one of them.

use crate::space::Activation;

/// An activation known at compile time.
pub(crate) trait Act: Copy + Send + Sync {
    /// The function.
    fn value(x: f32) -> f32;
    /// Its derivative (at kinks, the side that PyTorch takes).
    fn slope(x: f32) -> f32;
}

#[derive(Clone, Copy)]
pub(crate) struct Identity;
#[derive(Clone, Copy)]
pub(crate) struct Relu;
#[derive(Clone, Copy)]
pub(crate) struct Relu6;
#[derive(Clone, Copy)]
pub(crate) struct HardSwish;

impl Act for Identity {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn slope(_: f32) -> f32 {
        1.0
    }
}

impl Act for Relu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x.max(0.0)
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        if x > 0.0 { 1.0 } else { 0.0 }
    }
}

impl Act for Relu6 {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x.clamp(0.0, 6.0)
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        if x > 0.0 && x < 6.0 { 1.0 } else { 0.0 }
    }
}

impl Act for HardSwish {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * hard_sigmoid(x)
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        // d/dx x relu6(x+3)/6 = relu6(x+3)/6 + x [ -3 < x < 3 ] / 6
        let inside = if x > -3.0 && x < 3.0 { x * (1.0 / 6.0) } else { 0.0 };
        hard_sigmoid(x) + inside
    }
}

/// `relu6(x + 3) / 6`
#[inline(always)]
pub(crate) fn hard_sigmoid(x: f32) -> f32 {
    (x + 3.0).clamp(0.0, 6.0) * (1.0 / 6.0)
}

/// Its derivative.
#[inline(always)]
pub(crate) fn hard_sigmoid_slope(x: f32) -> f32 {
    if x > -3.0 && x < 3.0 { 1.0 / 6.0 } else { 0.0 }
}

/// Runs `$body` with `$A` bound to the type of the activation `$activation`.
macro_rules! with_activation {
    ($activation:expr, $A:ident => $body:expr) => {
        match $activation {
            $crate::space::Activation::Identity => {
                type $A = $crate::ops::activation::Identity;
                $body
            }
            $crate::space::Activation::Relu => {
                type $A = $crate::ops::activation::Relu;
                $body
            }
            $crate::space::Activation::Relu6 => {
                type $A = $crate::ops::activation::Relu6;
                $body
            }
            $crate::space::Activation::HardSwish => {
                type $A = $crate::ops::activation::HardSwish;
                $body
            }
        }
    };
}
pub(crate) use with_activation;

impl Activation {
    /// The function's value at `x`.
    pub fn apply(self, x: f32) -> f32 {
        with_activation!(self, A => A::value(x))
    }
}

#[cfg(test)]
mod tests {
    use crate::space::Activation;

    #[test]
    fn slopes_are_the_derivatives() {
        use super::Act;
        for activation in [Activation::Identity, Activation::Relu, Activation::Relu6, Activation::HardSwish] {
            for step in -50..50 {
                let x = step as f32 * 0.17 + 0.013; // never on a kink
                let h = 1e-3;
                let numeric = (activation.apply(x + h) - activation.apply(x - h)) / (2.0 * h);
                let exact = with_activation!(activation, A => A::slope(x));
                assert!((numeric - exact).abs() < 2e-3, "{activation} at {x}: {exact} against {numeric}");
            }
        }
    }
}
