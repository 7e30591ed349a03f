//! Activation functions and their derivatives, as types so that each loop is compiled per activation.

use super::simd::Simd;
use crate::space::Activation;

/// An activation known at compile time.
pub(crate) trait Act: Copy + Send + Sync {
    /// The function's value at `x`.
    fn value(x: f32) -> f32;
    /// The derivative at `x`; at a kink the side that PyTorch takes.
    fn slope(x: f32) -> f32;
    /// The function's values at a vector `x`.
    ///
    /// # Safety
    /// The CPU has `S`.
    unsafe fn values<S: Simd>(x: S::V) -> S::V;
    /// `g` times the derivative at `x`.
    ///
    /// # Safety
    /// The CPU has `S`.
    unsafe fn times_slopes<S: Simd>(x: S::V, g: S::V) -> S::V;
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
    unsafe fn values<S: Simd>(x: S::V) -> S::V {
        x
    }
    #[inline(always)]
    unsafe fn times_slopes<S: Simd>(_: S::V, g: S::V) -> S::V {
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
    unsafe fn values<S: Simd>(x: S::V) -> S::V {
        // SAFETY: arithmetic on vectors in registers; the CPU has `S` by this function's contract.
        unsafe { S::max(x, S::splat(0.0)) }
    }
    #[inline(always)]
    unsafe fn times_slopes<S: Simd>(x: S::V, g: S::V) -> S::V {
        // SAFETY: arithmetic on vectors in registers; the CPU has `S` by this function's contract.
        unsafe { S::where_above(x, S::splat(0.0), g) }
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
    unsafe fn values<S: Simd>(x: S::V) -> S::V {
        // SAFETY: arithmetic on vectors in registers; the CPU has `S` by this function's contract.
        unsafe { S::min(S::max(x, S::splat(0.0)), S::splat(6.0)) }
    }
    #[inline(always)]
    unsafe fn times_slopes<S: Simd>(x: S::V, g: S::V) -> S::V {
        // SAFETY: arithmetic on vectors in registers; the CPU has `S` by this function's contract.
        unsafe { S::where_above(x, S::splat(0.0), S::where_above(S::splat(6.0), x, g)) }
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
    unsafe fn values<S: Simd>(x: S::V) -> S::V {
        // SAFETY: arithmetic on vectors in registers; the CPU has `S` by this function's contract.
        unsafe { S::mul(x, hard_sigmoids::<S>(x)) }
    }
    #[inline(always)]
    unsafe fn times_slopes<S: Simd>(x: S::V, g: S::V) -> S::V {
        // SAFETY: arithmetic on vectors in registers; the CPU has `S` by this function's contract.
        unsafe {
            let sixth = S::mul(x, S::splat(1.0 / 6.0));
            let inside = S::where_above(x, S::splat(-3.0), S::where_above(S::splat(3.0), x, sixth));
            S::mul(g, S::add(hard_sigmoids::<S>(x), inside))
        }
    }
}

/// `relu6(x + 3) / 6`
#[inline(always)]
pub(crate) fn hard_sigmoid(x: f32) -> f32 {
    (x + 3.0).clamp(0.0, 6.0) * (1.0 / 6.0)
}

/// [`hard_sigmoid`] of a vector.
///
/// # Safety
/// The CPU has `S`.
#[inline(always)]
unsafe fn hard_sigmoids<S: Simd>(x: S::V) -> S::V {
    // SAFETY: arithmetic on vectors in registers; the CPU has `S` by this function's contract.
    unsafe {
        let inside = S::min(S::max(S::add(x, S::splat(3.0)), S::splat(0.0)), S::splat(6.0));
        S::mul(inside, S::splat(1.0 / 6.0))
    }
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
    use super::Act;
    use crate::ops::simd::{InstructionSet, Kernel, Simd, dispatch};
    use crate::space::Activation;
    use std::marker::PhantomData;

    struct Vectors<A> {
        x: [f32; 16],
        activation: PhantomData<A>,
    }

    impl<A: Act> Kernel for Vectors<A> {
        type Output = ([f32; 16], [f32; 16]);
        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> Self::Output {
            let (mut values, mut slopes) = ([0.0; 16], [0.0; 16]);
            // SAFETY: `LANES` divides 16 and `lane` is a multiple of it, so each vector lies inside its array of 16;
            // the CPU has `S` by this function's contract.
            unsafe {
                for lane in (0..16).step_by(S::LANES) {
                    let x = S::load(self.x[lane..].as_ptr());
                    S::store(values[lane..].as_mut_ptr(), A::values::<S>(x));
                    S::store(slopes[lane..].as_mut_ptr(), A::times_slopes::<S>(x, S::splat(2.0)));
                }
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
