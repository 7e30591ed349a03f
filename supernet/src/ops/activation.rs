//! Activation functions and their derivatives, as types so that each loop is compiled per activation.

use super::simd::Simd;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Activation functions of the supported families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x`
    Identity,
    /// `max(x, 0)`
    Relu,
    /// `min(max(x, 0), 6)`
    Relu6,
    /// `x * relu6(x + 3) / 6` (MobileNetV3)
    HardSwish,
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Activation::Identity => "identity",
            Activation::Relu => "relu",
            Activation::Relu6 => "relu6",
            Activation::HardSwish => "hswish",
        })
    }
}

/// An activation known at compile time.
pub(crate) trait Act: Copy + Send + Sync {
    /// The function's value at `x`.
    fn value(x: f32) -> f32;
    /// The derivative at `x`; at a kink the side that PyTorch takes.
    fn slope(x: f32) -> f32;
    /// The function's values at a vector `x`.
    fn values<S: Simd>(s: S, x: S::V) -> S::V;
    /// `g` times the derivative at `x`.
    fn times_slopes<S: Simd>(s: S, x: S::V, g: S::V) -> S::V;
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
    #[inline(always)]
    fn values<S: Simd>(_: S, x: S::V) -> S::V {
        x
    }
    #[inline(always)]
    fn times_slopes<S: Simd>(_: S, _: S::V, g: S::V) -> S::V {
        g
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
    #[inline(always)]
    fn values<S: Simd>(s: S, x: S::V) -> S::V {
        s.max(x, s.splat(0.0))
    }
    #[inline(always)]
    fn times_slopes<S: Simd>(s: S, x: S::V, g: S::V) -> S::V {
        s.where_above(x, s.splat(0.0), g)
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
    #[inline(always)]
    fn values<S: Simd>(s: S, x: S::V) -> S::V {
        s.min(s.max(x, s.splat(0.0)), s.splat(6.0))
    }
    #[inline(always)]
    fn times_slopes<S: Simd>(s: S, x: S::V, g: S::V) -> S::V {
        s.where_above(x, s.splat(0.0), s.where_above(s.splat(6.0), x, g))
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
    #[inline(always)]
    fn values<S: Simd>(s: S, x: S::V) -> S::V {
        s.mul(x, hard_sigmoids(s, x))
    }
    #[inline(always)]
    fn times_slopes<S: Simd>(s: S, x: S::V, g: S::V) -> S::V {
        let sixth = s.mul(x, s.splat(1.0 / 6.0));
        let inside = s.where_above(x, s.splat(-3.0), s.where_above(s.splat(3.0), x, sixth));
        s.mul(g, s.add(hard_sigmoids(s, x), inside))
    }
}

/// `relu6(x + 3) / 6`
#[inline(always)]
pub(crate) fn hard_sigmoid(x: f32) -> f32 {
    (x + 3.0).clamp(0.0, 6.0) * (1.0 / 6.0)
}

/// [`hard_sigmoid`] of a vector.
#[inline(always)]
fn hard_sigmoids<S: Simd>(s: S, x: S::V) -> S::V {
    let inside = s.min(s.max(s.add(x, s.splat(3.0)), s.splat(0.0)), s.splat(6.0));
    s.mul(inside, s.splat(1.0 / 6.0))
}

/// The derivative of [`hard_sigmoid`].
#[inline(always)]
pub(crate) fn hard_sigmoid_slope(x: f32) -> f32 {
    if x > -3.0 && x < 3.0 { 1.0 / 6.0 } else { 0.0 }
}

/// Runs `$body` with `$A` bound to the type of the activation `$activation`.
macro_rules! with_activation {
    ($activation:expr, $A:ident => $body:expr) => {
        match $activation {
            $crate::ops::Activation::Identity => {
                type $A = $crate::ops::activation::Identity;
                $body
            }
            $crate::ops::Activation::Relu => {
                type $A = $crate::ops::activation::Relu;
                $body
            }
            $crate::ops::Activation::Relu6 => {
                type $A = $crate::ops::activation::Relu6;
                $body
            }
            $crate::ops::Activation::HardSwish => {
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
    use super::{Act, Activation};
    use crate::ops::simd::{InstructionSet, Kernel, Simd, dispatch, entry_points, vectors};
    use std::marker::PhantomData;

    struct Vectors<A> {
        x: [f32; 16],
        activation: PhantomData<A>,
    }

    impl<A: Act> Kernel for Vectors<A> {
        type Output = ([f32; 16], [f32; 16]);
        entry_points!();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let (mut values, mut slopes) = ([0.0; 16], [0.0; 16]);
            for lanes in vectors(s, 16) {
                let x = s.read(&self.x[lanes.clone()]);
                s.write(&mut values[lanes.clone()], A::values(s, x));
                s.write(&mut slopes[lanes], A::times_slopes(s, x, s.splat(2.0)));
            }
            (values, slopes)
        }
    }

    #[test]
    fn vectors_have_the_values_of_scalars_at_kinks_too() {
        let x = [-8.0, -3.1, -3.0, -2.9, -1.0, -0.1, -0.0, 0.0, 0.1, 1.0, 2.9, 3.0, 3.1, 5.9, 6.0, 6.1];
        for activation in [Activation::Identity, Activation::Relu, Activation::Relu6, Activation::HardSwish] {
            with_activation!(activation, A => {
                let (values, slopes) = dispatch(Vectors::<A> { x, activation: PhantomData });
                for i in 0..16 {
                    let set = InstructionSet::active().name();
                    assert_eq!(values[i], A::value(x[i]), "{activation} at {} with {set}", x[i]);
                    assert_eq!(slopes[i], 2.0 * A::slope(x[i]), "slope of {activation} at {} with {set}", x[i]);
                }
            });
        }
    }

    #[test]
    fn slopes_are_the_derivatives() {
        for activation in [Activation::Identity, Activation::Relu, Activation::Relu6, Activation::HardSwish] {
            for step in -50..50 {
                let x = step as f32 * 0.17 + 0.013; // never at a kink
                let h = 1e-3;
                let numeric = (activation.apply(x + h) - activation.apply(x - h)) / (2.0 * h);
                let exact = with_activation!(activation, A => A::slope(x));
                assert!((numeric - exact).abs() < 2e-3, "{activation} at {x}: {exact} against {numeric}");
            }
        }
    }
}
