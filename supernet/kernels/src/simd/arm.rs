//! Vectors of 64-bit Arm.

use super::{Simd, intrinsics};
use std::arch::aarch64::*;

/// Proves Neon.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

/// Proves Neon with dot products of bytes.
#[derive(Clone, Copy)]
pub(crate) struct NeonDot(());

impl Neon {
    /// The token: every 64-bit Arm CPU has Neon.
    pub(super) fn of_every_cpu() -> Neon {
        Neon(())
    }
}

impl NeonDot {
    /// The token, if this CPU has dot products.
    pub(super) fn detect() -> Option<NeonDot> {
        std::arch::is_aarch64_feature_detected!("dotprod").then_some(NeonDot(()))
    }

    /// The token of the set without dot products.
    pub(super) fn without_dot(self) -> Neon {
        Neon(())
    }
}

macro_rules! vectors {
    ($token:ident, $dot:path) => {
        impl Simd for $token {
            type V = float32x4_t;
            type I = int32x4_t;
            const LANES: usize = 4;
            const ACCUMULATORS: usize = 24;
            intrinsics! {
                fn splat(x: f32) -> float32x4_t { vdupq_n_f32(x) }
                fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t { vaddq_f32(a, b) }
                fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t { vmulq_f32(a, b) }
                fn div(a: float32x4_t, b: float32x4_t) -> float32x4_t { vdivq_f32(a, b) }
                fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t { vmaxnmq_f32(a, b) }
                fn min(a: float32x4_t, b: float32x4_t) -> float32x4_t { vminnmq_f32(a, b) }
                fn where_above(a: float32x4_t, b: float32x4_t, v: float32x4_t) -> float32x4_t {
                    vreinterpretq_f32_u32(vandq_u32(vcgtq_f32(a, b), vreinterpretq_u32_f32(v)))
                }
                fn mul_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t { vfmaq_f32(c, a, b) }
                fn splat_i32(x: i32) -> int32x4_t { vdupq_n_s32(x) }
                fn add_i32(a: int32x4_t, b: int32x4_t) -> int32x4_t { vaddq_s32(a, b) }
                fn dot(sum: int32x4_t, x: int32x4_t, w: int32x4_t) -> int32x4_t { $dot(sum, x, w) }
                fn shift_in(word: int32x4_t, next: int32x4_t) -> int32x4_t {
                    vsriq_n_s32::<8>(vshlq_n_s32::<24>(next), word)
                }
                fn to_floats(x: int32x4_t) -> float32x4_t { vcvtq_f32_s32(x) }
                fn to_nearest(x: float32x4_t) -> int32x4_t { vcvtnq_s32_f32(x) }
                pointers:
                fn load(p: *const f32) -> float32x4_t { vld1q_f32(p) }
                fn store(p: *mut f32, v: float32x4_t) -> () { vst1q_f32(p, v) }
                fn load_i32(p: *const i32) -> int32x4_t { vld1q_s32(p) }
                fn store_i32(p: *mut i32, v: int32x4_t) -> () { vst1q_s32(p, v) }
                fn load_bytes(p: *const u8) -> int32x4_t {
                    let bytes = vreinterpret_u8_u32(vdup_n_u32(p.cast::<u32>().read_unaligned()));
                    vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))))
                }
                fn store_bytes(p: *mut u8, v: int32x4_t) -> () {
                    let halves = vqmovn_s32(v);
                    let bytes = vqmovun_s16(vcombine_s16(halves, halves));
                    p.cast::<u32>().write_unaligned(vget_lane_u32::<0>(vreinterpret_u32_u8(bytes)))
                }
            }
        }
    };
}
vectors!(Neon, widened_dot);
vectors!(NeonDot, dot);

/// [`Simd::dot`] without an instruction for it.
///
/// # Safety
/// Every 64-bit Arm CPU has Neon, so that nothing is left to promise; the signature is that of the intrinsics.
#[inline(always)]
unsafe fn widened_dot(sum: int32x4_t, x: int32x4_t, w: int32x4_t) -> int32x4_t {
    // SAFETY: Neon is part of every 64-bit Arm CPU.
    unsafe {
        let (x, w) = (vreinterpretq_u8_s32(x), vreinterpretq_s8_s32(w));
        let pairs = |x: uint8x8_t, w: int8x8_t| {
            let (x, w) = (vreinterpretq_s16_u16(vmovl_u8(x)), vmovl_s8(w));
            let low = vmull_s16(vget_low_s16(x), vget_low_s16(w));
            vpaddq_s32(low, vmull_s16(vget_high_s16(x), vget_high_s16(w)))
        };
        let low = pairs(vget_low_u8(x), vget_low_s8(w));
        vaddq_s32(sum, vpaddq_s32(low, pairs(vget_high_u8(x), vget_high_s8(w))))
    }
}

/// [`Simd::dot`] by the instruction for signed bytes: `x w = (x - 128) w + 128 w`. The last term depends on the weights
/// only, so it is computed once for all rows of a tile.
///
/// # Safety
/// The CPU must have dot products.
#[inline(always)]
unsafe fn dot(sum: int32x4_t, x: int32x4_t, w: int32x4_t) -> int32x4_t {
    // SAFETY: Neon is part of every 64-bit Arm CPU, and the caller proves dot products.
    unsafe {
        let half = signed_dot(vdupq_n_s32(0), vdupq_n_s32(0x4040_4040), w);
        let flipped = veorq_s32(x, vdupq_n_s32(0x8080_8080_u32 as i32));
        signed_dot(vaddq_s32(sum, vaddq_s32(half, half)), flipped, w)
    }
}

/// Adds the four products of signed bytes to each lane.
///
/// # Safety
/// The CPU must have dot products.
#[inline(always)]
unsafe fn signed_dot(mut sum: int32x4_t, x: int32x4_t, w: int32x4_t) -> int32x4_t {
    // SAFETY: the instruction exists by the contract; it reads and writes registers only.
    unsafe {
        std::arch::asm!(
            ".arch_extension dotprod",
            "sdot {sum:v}.4s, {x:v}.16b, {w:v}.16b",
            sum = inout(vreg) sum, x = in(vreg) x, w = in(vreg) w,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}
