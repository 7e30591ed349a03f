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
    /// `x / (1 + exp(-x))` (Ramachandran et al., 2017)
    Swish,
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Activation::Identity => "identity",
            Activation::Relu => "relu",
            Activation::Relu6 => "relu6",
            Activation::HardSwish => "hswish",
            Activation::Swish => "swish",
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
    /// [`values`](Self::values) without fused operations: the same bits with every instruction set.
    #[inline(always)]
    fn exact_values<S: Simd>(s: S, x: S::V) -> S::V {
        Self::values(s, x)
    }
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
#[derive(Clone, Copy)]
pub(crate) struct Swish;

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

impl Act for Swish {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * sigmoid(x)
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let sigmoid = sigmoid(x);
        sigmoid * (1.0 + x * (1.0 - sigmoid))
    }
    #[inline(always)]
    fn values<S: Simd>(s: S, x: S::V) -> S::V {
        s.mul(x, sigmoids::<S, true>(s, x))
    }
    #[inline(always)]
    fn exact_values<S: Simd>(s: S, x: S::V) -> S::V {
        s.mul(x, sigmoids::<S, false>(s, x))
    }
    #[inline(always)]
    fn times_slopes<S: Simd>(s: S, x: S::V, g: S::V) -> S::V {
        let (sigmoid, one) = (sigmoids::<S, true>(s, x), s.splat(1.0));
        let rest = s.mul_add(sigmoid, s.splat(-1.0), one);
        s.mul(g, s.mul(sigmoid, s.mul_add(x, rest, one)))
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Input below which [`sigmoids`] gives zero, and above whose negative it stays the same.
const SATURATED: f32 = -18.0;

/// [`sigmoid`] of a vector, to 2e-7: 1/2 plus an odd rational function of degrees 9 and 8, whose relative error is
/// least on both sides of zero up to [`SATURATED`]. `FUSED` multiply-adds are faster, but only some sets have them.
#[inline(always)]
fn sigmoids<S: Simd, const FUSED: bool>(s: S, x: S::V) -> S::V {
    const ABOVE: [f32; 5] = [1.304_183_1e-11, 8.050_477e-8, 5.461_870_4e-5, 8.363_146e-3, 2.5e-1];
    const BELOW: [f32; 5] = [3.037_747_2e-9, 5.133_826_6e-6, 1.617_313_6e-3, 1.167_858_8e-1, 1.0];
    let inside = s.min(s.max(x, s.splat(SATURATED)), s.splat(-SATURATED));
    let square = s.mul(inside, inside);
    let odd = s.mul(inside, polynomial::<S, FUSED>(s, square, ABOVE));
    let odd = s.div(odd, polynomial::<S, FUSED>(s, square, BELOW));
    s.where_above(x, s.splat(SATURATED), s.add(odd, s.splat(0.5)))
}

/// A polynomial by its coefficients, that of the highest power first.
#[inline(always)]
fn polynomial<S: Simd, const FUSED: bool>(s: S, x: S::V, coefficients: [f32; 5]) -> S::V {
    let mut sum = s.splat(coefficients[0]);
    for &term in &coefficients[1..] {
        let term = s.splat(term);
        sum = if FUSED { s.mul_add(sum, x, term) } else { s.add(s.mul(sum, x), term) };
    }
    sum
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
            $crate::Activation::Identity => {
                type $A = $crate::activation::Identity;
                $body
            }
            $crate::Activation::Relu => {
                type $A = $crate::activation::Relu;
                $body
            }
            $crate::Activation::Relu6 => {
                type $A = $crate::activation::Relu6;
                $body
            }
            $crate::Activation::HardSwish => {
                type $A = $crate::activation::HardSwish;
                $body
            }
            $crate::Activation::Swish => {
                type $A = $crate::activation::Swish;
                $body
            }
        }
    };
}
pub(crate) use with_activation;

impl Activation {
    /// Bounds of a function that does no more than bound its input; infinities for the others.
    pub(crate) fn bounds(self) -> (f32, f32) {
        match self {
            Activation::Identity | Activation::HardSwish | Activation::Swish => (f32::NEG_INFINITY, f32::INFINITY),
            Activation::Relu => (0.0, f32::INFINITY),
            Activation::Relu6 => (0.0, 6.0),
        }
    }

    /// The function's value at `x`.
    pub fn apply(self, x: f32) -> f32 {
        with_activation!(self, A => A::value(x))
    }

    /// The derivative at `x`; at a kink the side that PyTorch takes.
    pub fn slope(self, x: f32) -> f32 {
        with_activation!(self, A => A::slope(x))
    }
}

#[cfg(test)]
mod tests {
    use super::{Act, Activation};
    use crate::simd::{InstructionSet, Kernel, Simd, dispatch, entry_points, vectors};
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
    fn vectors_of_swish_have_its_values_to_rounding() {
        for step in -2000..2000 {
            let x = std::array::from_fn(|lane| (step * 16 + lane as i32) as f32 * 1e-3);
            let (values, slopes) = dispatch(Vectors::<super::Swish> { x, activation: PhantomData });
            for i in 0..16 {
                let x = f64::from(x[i]);
                let sigmoid = 1.0 / (1.0 + (-x).exp());
                // The sigmoid's own error, times what it is multiplied by.
                let within = 2e-7 * (1.0 + x.abs());
                let (value, slope) = (x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid)));
                assert!((f64::from(values[i]) - value).abs() <= within, "{} of {x}: {value}", values[i]);
                assert!((f64::from(slopes[i]) / 2.0 - slope).abs() <= 2.0 * within, "{} of {x}: {slope}", slopes[i]);
            }
        }
        let x = [f32::MIN, -1e4, -18.1, f32::NAN, 0.0, 18.1, 1e4, f32::MAX, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let (values, _) = dispatch(Vectors::<super::Swish> { x, activation: PhantomData });
        assert_eq!((values[0], values[1], values[2], values[4]), (0.0, 0.0, 0.0, 0.0));
        assert!(values[3].is_nan() && values[7] >= 0.999 * f32::MAX);
    }

    #[test]
    fn slopes_are_the_derivatives() {
        use Activation::{HardSwish, Identity, Relu, Relu6, Swish};
        for activation in [Identity, Relu, Relu6, HardSwish, Swish] {
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
