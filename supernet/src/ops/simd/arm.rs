//! Vectors of 64-bit Arm.

use super::{Simd, intrinsics};
use std::arch::aarch64::*;

/// Proves Neon.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// The token: every 64-bit Arm CPU has Neon.
    pub(super) fn of_every_cpu() -> Neon {
        Neon(())
    }
}

impl Simd for Neon {
    type V = float32x4_t;
    const LANES: usize = 4;
    const ACCUMULATORS: usize = 24;
    intrinsics! {
        fn splat(x: f32) -> float32x4_t { vdupq_n_f32(x) }
        fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t { vaddq_f32(a, b) }
        fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t { vmulq_f32(a, b) }
        fn div(a: float32x4_t, b: float32x4_t) -> float32x4_t { vdivq_f32(a, b) }
        fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t { vmaxq_f32(a, b) }
        fn min(a: float32x4_t, b: float32x4_t) -> float32x4_t { vminq_f32(a, b) }
        fn where_above(a: float32x4_t, b: float32x4_t, v: float32x4_t) -> float32x4_t {
            vreinterpretq_f32_u32(vandq_u32(vcgtq_f32(a, b), vreinterpretq_u32_f32(v)))
        }
        fn mul_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t { vfmaq_f32(c, a, b) }
        pointers:
        fn load(p: *const f32) -> float32x4_t { vld1q_f32(p) }
        fn store(p: *mut f32, v: float32x4_t) -> () { vst1q_f32(p, v) }
    }
}
