//! Vectors without intrinsics.

use super::Simd;

/// Eight floats that the compiler vectorises for the target.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Simd for Portable {
    type V = [f32; 8];
    type I = [i32; 8];
    const LANES: usize = 8;
    const ACCUMULATORS: usize = 4;
    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 8] {
        [x; 8]
    }
    #[inline(always)]
    fn add(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn mul(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn max(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn where_above(self, a: [f32; 8], b: [f32; 8], v: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| if a[i] > b[i] { v[i] } else { 0.0 })
    }
    #[inline(always)]
    fn mul_add(self, a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        // Not `f32::mul_add`, which without the instruction is a slow library call.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> [f32; 8] {
        // SAFETY: 8 floats are readable at `p` by the trait's contract; `read_unaligned` needs no alignment.
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: [f32; 8]) {
        // SAFETY: 8 floats are writable at `p` by the trait's contract; `write_unaligned` needs no alignment.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> [i32; 8] {
        [x; 8]
    }
    #[inline(always)]
    fn add_i32(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn dot(self, sum: [i32; 8], x: [i32; 8], w: [i32; 8]) -> [i32; 8] {
        std::array::from_fn(|i| {
            let product = |byte: usize| i32::from(x[i].to_le_bytes()[byte]) * i32::from(w[i].to_le_bytes()[byte] as i8);
            sum[i].wrapping_add(product(0) + product(1) + product(2) + product(3))
        })
    }
    #[inline(always)]
    fn shift_in(self, word: [i32; 8], next: [i32; 8]) -> [i32; 8] {
        std::array::from_fn(|i| (word[i] as u32 >> 8) as i32 | next[i] << 24)
    }
    #[inline(always)]
    fn to_floats(self, x: [i32; 8]) -> [f32; 8] {
        x.map(|x| x as f32)
    }
    #[inline(always)]
    fn to_nearest(self, x: [f32; 8]) -> [i32; 8] {
        x.map(|x| x.round_ties_even() as i32)
    }
    #[inline(always)]
    unsafe fn load_i32(self, p: *const i32) -> [i32; 8] {
        // SAFETY: 8 words are readable at `p` by the trait's contract; `read_unaligned` needs no alignment.
        unsafe { p.cast::<[i32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_i32(self, p: *mut i32, v: [i32; 8]) {
        // SAFETY: 8 words are writable at `p` by the trait's contract; `write_unaligned` needs no alignment.
        unsafe { p.cast::<[i32; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> [i32; 8] {
        // SAFETY: 8 bytes are readable at `p` by the trait's contract.
        unsafe { p.cast::<[u8; 8]>().read() }.map(i32::from)
    }
    #[inline(always)]
    unsafe fn store_bytes(self, p: *mut u8, v: [i32; 8]) {
        // SAFETY: 8 bytes are writable at `p` by the trait's contract.
        unsafe { p.cast::<[u8; 8]>().write(v.map(|lane| lane.clamp(0, 255) as u8)) }
    }
}
