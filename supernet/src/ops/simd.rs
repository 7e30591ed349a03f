//! Instruction sets: detection, dispatch and vectors. Kernels are written once over [`Simd`] and never name a CPU.

use std::sync::OnceLock;

/// The error for an `OFA_ISA` that names no instruction set of this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "OFA_ISA='{asked}': expected one of {allowed} on this machine; correct the environment variable, or unset it for the fastest"
)]
pub struct UnknownInstructionSet {
    asked: String,
    allowed: String,
}

/// An instruction set that kernels can run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum InstructionSet {
    /// Plain Rust, vectors of 8 that the compiler maps to whatever the target has.
    Portable,
    /// 256-bit vectors with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 512-bit vectors.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 128-bit vectors of 64-bit Arm.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl InstructionSet {
    /// Name as in `OFA_ISA` and device profiles.
    pub fn name(self) -> &'static str {
        match self {
            InstructionSet::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            InstructionSet::Neon => "neon",
        }
    }

    /// Instruction sets that this CPU can run, fastest last.
    pub fn available() -> Vec<InstructionSet> {
        #[allow(unused_mut)] // other architectures add nothing
        let mut found = vec![InstructionSet::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if avx2::is_detected() {
                found.push(InstructionSet::Avx2);
            }
            if avx512::is_detected() {
                found.push(InstructionSet::Avx512);
            }
        }
        #[cfg(target_arch = "aarch64")]
        found.push(InstructionSet::Neon);
        found
    }

    /// The instruction set named by the environment variable `OFA_ISA`; the fastest available if that is unset or
    /// empty.
    ///
    /// # Errors
    /// The name is unknown, or this machine lacks the instruction set.
    pub fn from_environment() -> Result<InstructionSet, UnknownInstructionSet> {
        match std::env::var_os("OFA_ISA") {
            Some(name) if !name.is_empty() => Self::named(&name.to_string_lossy()),
            _ => Ok(Self::best()),
        }
    }

    fn named(name: &str) -> Result<InstructionSet, UnknownInstructionSet> {
        let available = Self::available();
        available.iter().copied().find(|set| set.name() == name).ok_or_else(|| UnknownInstructionSet {
            asked: crate::quote::quoted(name),
            allowed: available.iter().map(|set| set.name()).collect::<Vec<_>>().join(", "),
        })
    }

    fn best() -> InstructionSet {
        let available = Self::available();
        available[available.len() - 1]
    }

    /// The instruction set that this process uses: that of [`from_environment`](Self::from_environment), or the fastest
    /// available where that is an error, which a program reports before it computes anything. Fixed at the first call,
    /// since packed weights depend on it.
    pub fn active() -> InstructionSet {
        static ACTIVE: OnceLock<InstructionSet> = OnceLock::new();
        *ACTIVE.get_or_init(|| Self::from_environment().unwrap_or_else(|_| Self::best()))
    }

    /// Floats in a vector.
    pub fn lanes(self) -> usize {
        match self {
            InstructionSet::Portable => Portable::LANES,
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => Avx2::LANES,
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => Avx512::LANES,
            #[cfg(target_arch = "aarch64")]
            InstructionSet::Neon => Neon::LANES,
        }
    }
}

/// Vectors of f32.
///
/// # Safety
/// The CPU must have the instruction set; [`dispatch`] guarantees that for everything inside a kernel. `load` and
/// `store` need `LANES` readable or writable floats at the pointer, which may be unaligned; the `_first` and `_up_to`
/// forms need `count`.
pub(crate) trait Simd: Copy {
    type V: Copy;
    const LANES: usize;
    /// Accumulators of a register tile that leave registers for a few other vectors: 12 of 16, 24 of 32; 4 for the
    /// portable vectors, whose large unrolled tiles would take minutes to compile and gain little speed.
    const ACCUMULATORS: usize;
    /// Whether a multiply-add broadcasts its operand from memory. Loads and registers for addresses are then scarce:
    /// see [`opaque`].
    const SPLATS_FROM_MEMORY: bool = false;
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    /// Loads the first `count` floats at `p`, fewer than a whole vector; the other lanes are zero.
    #[inline(always)]
    unsafe fn load_first(p: *const f32, count: usize) -> Self::V {
        let mut values = [0.0; 16];
        // SAFETY: `count < LANES <= 16` floats are readable at `p` by the trait's contract, and `values` holds 16.
        unsafe {
            std::ptr::copy_nonoverlapping(p, values.as_mut_ptr(), count);
            Self::load(values.as_ptr())
        }
    }
    /// Stores the first `count` lanes, fewer than a whole vector.
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: Self::V, count: usize) {
        let mut values = [0.0; 16];
        // SAFETY: `count < LANES <= 16` floats are writable at `p` by the trait's contract, and `values` holds 16.
        unsafe {
            Self::store(values.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(values.as_ptr(), p, count);
        }
    }
    /// Loads the first `count` floats at `p`, at most a whole vector; the other lanes are zero.
    #[inline(always)]
    unsafe fn load_up_to(p: *const f32, count: usize) -> Self::V {
        // SAFETY: `count` floats are readable at `p` by the trait's contract; a whole vector is loaded only where
        // `count` covers it.
        unsafe { if count >= Self::LANES { Self::load(p) } else { Self::load_first(p, count) } }
    }
    /// Stores the first `count` lanes, at most a whole vector.
    #[inline(always)]
    unsafe fn store_up_to(p: *mut f32, v: Self::V, count: usize) {
        // SAFETY: `count` floats are writable at `p` by the trait's contract; a whole vector is stored only where
        // `count` covers it.
        unsafe { if count >= Self::LANES { Self::store(p, v) } else { Self::store_first(p, v, count) } }
    }
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// `v` where `a > b`, otherwise zero.
    unsafe fn where_above(a: Self::V, b: Self::V, v: Self::V) -> Self::V;
    /// `a * b + c`
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Copies a block of 8 x 8 floats transposed; rows of `source` are `source_stride` apart, rows of `target`
    /// `target_stride`.
    #[inline(always)]
    unsafe fn transpose(source: *const f32, source_stride: usize, target: *mut f32, target_stride: usize) {
        for row in 0..8 {
            for column in 0..8 {
                // SAFETY: the contract gives 8 readable floats in each of 8 rows `source_stride` apart, and 8 writable
                // ones in each of 8 rows `target_stride` apart; `row` and `column` are below 8.
                unsafe { *target.add(column * target_stride + row) = *source.add(row * source_stride + column) };
            }
        }
    }
    /// Prefetches the cache line at `p`, into L1 where it is large, otherwise into L2. Any address is allowed: a
    /// prefetch reads nothing and cannot fault.
    #[inline(always)]
    fn prefetch(_p: *const f32) {}
}

/// A computation over vectors; `run` must be `#[inline(always)]` so that it is compiled for each instruction set.
///
/// A kernel holds slices, whose extents `run` checks, or pointers whose extents were checked where the kernel was
/// built. Such a kernel is private to its module, so that nothing else can build one.
pub(crate) trait Kernel {
    type Output;
    /// # Safety
    /// The CPU must have `S`.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// Hides a pointer's provenance from the compiler, so that neighbouring rows are addressed relative to `p`. Otherwise
/// LLVM keeps a pointer per row, spills most of them and reloads each at every use.
#[inline(always)]
pub(crate) fn opaque(p: *const f32) -> *const f32 {
    #[cfg(target_arch = "x86_64")]
    {
        let mut p = p;
        #[allow(clippy::pointers_in_nomem_asm_block)] // nothing is read or written through it here
        // SAFETY: the assembly is a comment: no instruction reads or writes anything.
        unsafe {
            std::arch::asm!("/* {0} */", inout(reg) p, options(pure, nomem, nostack, preserves_flags))
        };
        p
    }
    #[cfg(not(target_arch = "x86_64"))]
    p
}

/// Runs `kernel` with the active instruction set.
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: `active` returns only sets that were detected on this CPU, which is all that `Kernel::run` requires.
    unsafe {
        match InstructionSet::active() {
            InstructionSet::Portable => kernel.run::<Portable>(),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => avx2::run(kernel),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => avx512::run(kernel),
            #[cfg(target_arch = "aarch64")]
            InstructionSet::Neon => kernel.run::<Neon>(),
        }
    }
}

/// Derives detection and dispatch of an instruction set from one list of features. A feature that is compiled for but
/// not detected is an illegal instruction on a machine that lacks it (virtual machines and emulators mask single
/// features).
#[cfg(target_arch = "x86_64")]
macro_rules! x86_set {
    ($name:ident, $vectors:ty, $($feature:tt),+) => {
        mod $name {
            use super::Kernel;

            pub(super) fn is_detected() -> bool {
                $(is_x86_feature_detected!($feature))&&+
            }

            /// Runs `kernel` compiled for the features.
            ///
            /// # Safety
            /// [`is_detected`] must be true.
            $(#[target_feature(enable = $feature)])+
            pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
                // SAFETY: this function enables every feature that the vectors need, and its contract says that all
                // were detected.
                unsafe { kernel.run::<$vectors>() }
            }
        }
    };
}

// Every feature that the compiler implies by the last one of a list (`avx512f` enables `f16c`, for example), except
// x86-64's baseline SSE and SSE2.
#[cfg(target_arch = "x86_64")]
x86_set!(avx2, super::Avx2, "sse3", "ssse3", "sse4.1", "sse4.2", "avx", "fma", "avx2");
#[cfg(target_arch = "x86_64")]
x86_set!(avx512, super::Avx512, "sse3", "ssse3", "sse4.1", "sse4.2", "avx", "fma", "avx2", "f16c", "avx512f");

/// Eight floats that the compiler vectorises for the target.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Simd for Portable {
    type V = [f32; 8];
    const LANES: usize = 8;
    const ACCUMULATORS: usize = 4;
    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 8] {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 8] {
        // SAFETY: 8 floats are readable at `p` by the trait's contract; `read_unaligned` needs no alignment.
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; 8]) {
        // SAFETY: 8 floats are writable at `p` by the trait's contract; `write_unaligned` needs no alignment.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn max(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn where_above(a: [f32; 8], b: [f32; 8], v: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| if a[i] > b[i] { v[i] } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn mul_add(a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        // Not `f32::mul_add`, which without the instruction is a slow library call.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
}

/// Implements [`Simd`] by an architecture's intrinsics.
macro_rules! intrinsics {
    ($name:ident, $vector:ty, $lanes:literal, $accumulators:literal, $splat:path, $load:path, $store:path, $add:path, $mul:path, $div:path, $max:path, $min:path, ($a:ident, $b:ident, $c:ident) => $mul_add:expr, $where_above:expr, $p:ident => $prefetch:expr $(, $first:item)*) => {
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        #[allow(unsafe_op_in_unsafe_fn, reason = "each body is one intrinsic, with the contract of the trait's function")]
        impl Simd for $name {
            type V = $vector;
            const LANES: usize = $lanes;
            const ACCUMULATORS: usize = $accumulators;
            #[inline(always)]
            unsafe fn splat(x: f32) -> $vector {
                $splat(x)
            }
            #[inline(always)]
            unsafe fn load(p: *const f32) -> $vector {
                $load(p)
            }
            #[inline(always)]
            unsafe fn store(p: *mut f32, v: $vector) {
                $store(p, v)
            }
            #[inline(always)]
            unsafe fn add(a: $vector, b: $vector) -> $vector {
                $add(a, b)
            }
            #[inline(always)]
            unsafe fn mul(a: $vector, b: $vector) -> $vector {
                $mul(a, b)
            }
            #[inline(always)]
            unsafe fn div(a: $vector, b: $vector) -> $vector {
                $div(a, b)
            }
            #[inline(always)]
            unsafe fn max(a: $vector, b: $vector) -> $vector {
                $max(a, b)
            }
            #[inline(always)]
            unsafe fn min(a: $vector, b: $vector) -> $vector {
                $min(a, b)
            }
            #[inline(always)]
            unsafe fn where_above($a: $vector, $b: $vector, $c: $vector) -> $vector {
                $where_above
            }
            #[inline(always)]
            unsafe fn mul_add($a: $vector, $b: $vector, $c: $vector) -> $vector {
                $mul_add
            }
            #[inline(always)]
            fn prefetch($p: *const f32) {
                $prefetch
            }
            $($first)*
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Simd;
    use std::arch::x86_64::*;
    intrinsics!(Avx2, __m256, 8, 12, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps, _mm256_mul_ps, _mm256_div_ps, _mm256_max_ps, _mm256_min_ps,
        (a, b, c) => _mm256_fmadd_ps(a, b, c),
        _mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a, b), c),
        // SAFETY: SSE is part of every x86-64, and a prefetch reads nothing: any address may be given.
        p => unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) },
        #[inline(always)]
        unsafe fn transpose(source: *const f32, source_stride: usize, target: *mut f32, target_stride: usize) {
            // SAFETY: the trait's contract gives the 8 x 8 readable and writable floats; a CPU with AVX2 has AVX.
            unsafe { transpose(source, source_stride, target, target_stride) }
        },
        #[inline(always)]
        unsafe fn load_first(p: *const f32, count: usize) -> __m256 {
            // SAFETY: only the first `count` lanes are unmasked; they are readable at `p`, and masked lanes are not
            // read.
            unsafe { _mm256_maskload_ps(p, first(count)) }
        },
        // In halves: a masked store takes dozens of cycles on some processors.
        #[inline(always)]
        unsafe fn store_first(mut p: *mut f32, v: __m256, count: usize) {
            // SAFETY: `count` is below 8, so stores of 4, 2 and 1 floats for its set bits write `count` floats in all,
            // which are writable at `p`.
            unsafe {
                let mut half = _mm256_castps256_ps128(v);
                if count & 4 != 0 {
                    _mm_storeu_ps(p, half);
                    p = p.add(4);
                    half = _mm256_extractf128_ps::<1>(v);
                }
                if count & 2 != 0 {
                    _mm_storel_pd(p.cast(), _mm_castps_pd(half));
                    p = p.add(2);
                    half = _mm_movehl_ps(half, half);
                }
                if count & 1 != 0 {
                    _mm_store_ss(p, half);
                }
            }
        }
    );
    #[inline(always)]
    unsafe fn transpose(source: *const f32, source_stride: usize, target: *mut f32, target_stride: usize) {
        // SAFETY: the contract gives 8 readable floats in each of 8 rows `source_stride` apart and 8 writable ones in
        // each of 8 rows `target_stride` apart; each access covers 8 floats of a row numbered below 8. Callers have
        // AVX.
        unsafe {
            let mut pairs = [_mm256_setzero_ps(); 8];
            for two in 0..4 {
                let a = _mm256_loadu_ps(source.add(2 * two * source_stride));
                let b = _mm256_loadu_ps(source.add((2 * two + 1) * source_stride));
                pairs[2 * two] = _mm256_unpacklo_ps(a, b);
                pairs[2 * two + 1] = _mm256_unpackhi_ps(a, b);
            }
            // Four rows each, of columns 0 and 4, 1 and 5, 2 and 6, 3 and 7.
            let mut fours = [[_mm256_setzero_ps(); 4]; 2];
            for (half, fours) in fours.iter_mut().enumerate() {
                for which in 0..2 {
                    let (a, b) = (pairs[4 * half + which], pairs[4 * half + 2 + which]);
                    fours[2 * which] = _mm256_shuffle_ps::<0x44>(a, b);
                    fours[2 * which + 1] = _mm256_shuffle_ps::<0xEE>(a, b);
                }
            }
            let [upper, lower] = fours;
            for (column, (a, b)) in upper.into_iter().zip(lower).enumerate() {
                _mm256_storeu_ps(target.add(column * target_stride), _mm256_permute2f128_ps::<0x20>(a, b));
                _mm256_storeu_ps(target.add((column + 4) * target_stride), _mm256_permute2f128_ps::<0x31>(a, b));
            }
        }
    }
    /// A mask of the first `count` of eight lanes.
    #[inline(always)]
    unsafe fn first(count: usize) -> __m256i {
        static MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
        // SAFETY: the offset is between 0 and 8, so eight of the sixteen numbers are read.
        unsafe { _mm256_loadu_si256(MASKS.as_ptr().add(8 - count.min(8)).cast()) }
    }
    intrinsics!(
        Avx512,
        __m512, 16, 24,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_add_ps,
        _mm512_mul_ps,
        _mm512_div_ps,
        _mm512_max_ps,
        _mm512_min_ps,
        (a, b, c) => _mm512_fmadd_ps(a, b, c),
        _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b), c),
        // SAFETY: SSE is part of every x86-64, and a prefetch reads nothing: any address may be given.
        p => unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) },
        const SPLATS_FROM_MEMORY: bool = true;,
        #[inline(always)]
        unsafe fn transpose(source: *const f32, source_stride: usize, target: *mut f32, target_stride: usize) {
            // SAFETY: the trait's contract gives the 8 x 8 readable and writable floats; a CPU with AVX-512 has AVX.
            unsafe { transpose(source, source_stride, target, target_stride) }
        },
        #[inline(always)]
        unsafe fn load_first(p: *const f32, count: usize) -> __m512 {
            // SAFETY: `count` floats are readable at `p`: 8 are loaded for 8, otherwise only the `count` unmasked
            // lanes.
            unsafe {
                match count {
                    8 => _mm512_zextps256_ps512(_mm256_loadu_ps(p)),
                    _ => _mm512_maskz_loadu_ps(((1u32 << count) - 1) as u16, p),
                }
            }
        },
        // Half a vector, the frequent case (channels are multiples of 8), is stored without a mask: a load cannot be
        // forwarded from a masked store that is still in the store buffer.
        #[inline(always)]
        unsafe fn store_first(p: *mut f32, v: __m512, count: usize) {
            // SAFETY: `count` floats are writable at `p`: 8 are stored for 8, otherwise only the `count` unmasked
            // lanes.
            unsafe {
                match count {
                    8 => _mm256_storeu_ps(p, _mm512_castps512_ps256(v)),
                    _ => _mm512_mask_storeu_ps(p, ((1u32 << count) - 1) as u16, v),
                }
            }
        }
    );
}
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::Simd;
    use std::arch::aarch64::*;
    intrinsics!(Neon, float32x4_t, 4, 24, vdupq_n_f32, vld1q_f32, vst1q_f32, vaddq_f32, vmulq_f32, vdivq_f32, vmaxq_f32, vminq_f32,
        (a, b, c) => vfmaq_f32(c, a, b),
        vreinterpretq_f32_u32(vandq_u32(vcgtq_f32(a, b), vreinterpretq_u32_f32(c))),
        _p => ());
}
#[cfg(target_arch = "aarch64")]
pub(crate) use arm::Neon;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_exact_and_of_this_machine() {
        for set in InstructionSet::available() {
            assert_eq!(InstructionSet::named(set.name()), Ok(set));
            let error = InstructionSet::named(&set.name().to_uppercase()).unwrap_err().to_string();
            assert!(InstructionSet::available().iter().all(|set| error.contains(set.name())), "{error}");
        }
        for name in ["", " portable", "avx1024", "sse2"] {
            assert!(InstructionSet::named(name).is_err(), "{name}");
        }
    }
}
