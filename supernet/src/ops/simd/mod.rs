//! Instruction sets: detection, dispatch and vectors. Kernels are written once over [`Simd`] and never name a CPU.
//!
//! A value of a type that implements [`Simd`] is a token: only detection creates one, so whoever holds it may use the
//! instruction set. Arithmetic on vectors and access to slices are therefore safe; only access through pointers is not.

#[cfg(target_arch = "aarch64")]
mod arm;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
pub(crate) use arm::Neon;
pub(crate) use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

use super::buffers::Unwritten;
use std::ops::Range;
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
        Detected::all().into_iter().map(Detected::set).collect()
    }

    /// The instruction set named by the environment variable `OFA_ISA`; the fastest available if that is unset or
    /// empty.
    ///
    /// # Errors
    /// The name is unknown, or this machine lacks the instruction set.
    pub fn from_environment() -> Result<InstructionSet, UnknownInstructionSet> {
        Detected::from_environment().map(Detected::set)
    }

    /// The instruction set that this process uses: that of [`from_environment`](Self::from_environment), or the fastest
    /// available where that is an error, which a program reports before it computes anything. Fixed at the first call,
    /// since packed weights depend on it.
    pub fn active() -> InstructionSet {
        Detected::active().set()
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

/// An instruction set with the token that proves it.
#[derive(Clone, Copy)]
enum Detected {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
}

impl Detected {
    /// Instruction sets of this CPU, fastest last.
    fn all() -> Vec<Detected> {
        #[allow(unused_mut)] // other architectures add nothing
        let mut found = vec![Detected::Portable(Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            found.extend(Avx2::detect().map(Detected::Avx2));
            found.extend(Avx512::detect().map(Detected::Avx512));
        }
        #[cfg(target_arch = "aarch64")]
        found.push(Detected::Neon(Neon::of_every_cpu()));
        found
    }

    fn set(self) -> InstructionSet {
        match self {
            Detected::Portable(_) => InstructionSet::Portable,
            #[cfg(target_arch = "x86_64")]
            Detected::Avx2(_) => InstructionSet::Avx2,
            #[cfg(target_arch = "x86_64")]
            Detected::Avx512(_) => InstructionSet::Avx512,
            #[cfg(target_arch = "aarch64")]
            Detected::Neon(_) => InstructionSet::Neon,
        }
    }

    fn from_environment() -> Result<Detected, UnknownInstructionSet> {
        match std::env::var_os("OFA_ISA") {
            Some(name) if !name.is_empty() => Self::named(&name.to_string_lossy()),
            _ => Ok(Self::best()),
        }
    }

    fn named(name: &str) -> Result<Detected, UnknownInstructionSet> {
        let all = Self::all();
        let found = all.iter().copied().find(|detected| detected.set().name() == name);
        found.ok_or_else(|| UnknownInstructionSet {
            asked: crate::quote::quoted(name),
            allowed: all.iter().map(|detected| detected.set().name()).collect::<Vec<_>>().join(", "),
        })
    }

    fn best() -> Detected {
        let all = Self::all();
        all[all.len() - 1]
    }

    fn active() -> Detected {
        static ACTIVE: OnceLock<Detected> = OnceLock::new();
        *ACTIVE.get_or_init(|| Self::from_environment().unwrap_or_else(|_| Self::best()))
    }
}

/// Vectors of f32. A value is the proof that the CPU has the instruction set.
pub(crate) trait Simd: Copy {
    type V: Copy;
    const LANES: usize;
    /// Accumulators of a register tile that leave registers for a few other vectors: 12 of 16, 24 of 32; 4 for the
    /// portable vectors, whose large unrolled tiles would take minutes to compile and gain little speed.
    const ACCUMULATORS: usize;
    /// Whether a multiply-add broadcasts its operand from memory. Loads and registers for addresses are then scarce:
    /// see [`opaque`].
    const SPLATS_FROM_MEMORY: bool = false;
    fn splat(self, x: f32) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `v` where `a > b`, otherwise zero.
    fn where_above(self, a: Self::V, b: Self::V, v: Self::V) -> Self::V;
    /// `a * b + c`
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Prefetches the cache line at `p`, into L1 where it is large, otherwise into L2. Any address is allowed: a
    /// prefetch reads nothing and cannot fault.
    #[inline(always)]
    fn prefetch(self, _p: *const f32) {}

    /// Loads a vector.
    ///
    /// # Safety
    /// `LANES` floats must be readable at `p`, which may be unaligned.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// Stores a vector.
    ///
    /// # Safety
    /// `LANES` floats must be writable at `p`, which may be unaligned.
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// Loads the first `count` floats at `p`, fewer than a whole vector; the other lanes are zero.
    ///
    /// # Safety
    /// `count < LANES`, and `count` floats must be readable at `p`, which may be unaligned.
    #[inline(always)]
    unsafe fn load_first(self, p: *const f32, count: usize) -> Self::V {
        let mut values = [0.0; 16];
        // SAFETY: `count < LANES <= 16` floats are readable at `p` by the contract, and `values` holds 16.
        unsafe {
            std::ptr::copy_nonoverlapping(p, values.as_mut_ptr(), count);
            self.load(values.as_ptr())
        }
    }
    /// Stores the first `count` lanes, fewer than a whole vector.
    ///
    /// # Safety
    /// `count < LANES`, and `count` floats must be writable at `p`, which may be unaligned.
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, v: Self::V, count: usize) {
        let mut values = [0.0; 16];
        // SAFETY: `count < LANES <= 16` floats are writable at `p` by the contract, and `values` holds 16.
        unsafe {
            self.store(values.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(values.as_ptr(), p, count);
        }
    }
    /// Loads the first `count` floats at `p`, at most a whole vector; the other lanes are zero.
    ///
    /// # Safety
    /// `count` floats, or `LANES` if that is fewer, must be readable at `p`, which may be unaligned.
    #[inline(always)]
    unsafe fn load_up_to(self, p: *const f32, count: usize) -> Self::V {
        // SAFETY: `count` floats are readable at `p` by the contract; a whole vector is loaded only where `count`
        // covers it.
        unsafe { if count >= Self::LANES { self.load(p) } else { self.load_first(p, count) } }
    }
    /// Stores the first `count` lanes, at most a whole vector.
    ///
    /// # Safety
    /// `count` floats, or `LANES` if that is fewer, must be writable at `p`, which may be unaligned.
    #[inline(always)]
    unsafe fn store_up_to(self, p: *mut f32, v: Self::V, count: usize) {
        // SAFETY: `count` floats are writable at `p` by the contract; a whole vector is stored only where `count`
        // covers it.
        unsafe { if count >= Self::LANES { self.store(p, v) } else { self.store_first(p, v, count) } }
    }
    /// Loads the first values, at most a whole vector; lanes beyond the values are zero.
    #[inline(always)]
    fn read(self, values: &[f32]) -> Self::V {
        // SAFETY: as many floats as `values` holds are readable.
        unsafe { self.load_up_to(values.as_ptr(), values.len()) }
    }
    /// Stores the first lanes, as many as `values` has room for.
    #[inline(always)]
    fn write(self, values: &mut [f32], v: Self::V) {
        // SAFETY: as many floats as `values` holds are writable, and `values` is mutably borrowed.
        unsafe { self.store_up_to(values.as_mut_ptr(), v, values.len()) }
    }
    /// [`write`](Self::write) to floats that may not be written yet.
    #[inline(always)]
    fn write_new(self, values: &mut Unwritten, v: Self::V) {
        // SAFETY: as many floats as `values` holds are writable, and `values` is mutably borrowed.
        unsafe { self.store_up_to(values.as_mut_ptr().cast(), v, values.len()) }
    }
    /// Copies a block of 8 x 8 floats transposed; rows of `source` are `source_stride` apart, rows of `target`
    /// `target_stride`.
    #[inline(always)]
    fn transpose(self, source: &[f32], source_stride: usize, target: &mut [f32], target_stride: usize) {
        for row in 0..8 {
            for column in 0..8 {
                target[column * target_stride + row] = source[row * source_stride + column];
            }
        }
    }
}

/// Ranges of `0..n` that a vector of `S` covers; the last may be shorter.
#[inline(always)]
pub(crate) fn vectors<S: Simd>(_: S, n: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(S::LANES).map(move |start| start..n.min(start + S::LANES))
}

/// A computation over vectors, on data that it holds. Implementations contain [`entry_points!`] and `run`, which must
/// be `#[inline(always)]` so that it is compiled for each instruction set.
///
/// A kernel holds slices and numbers. A kernel whose `run` relies on extents that were checked where it was built is
/// private to its module, so that nothing else can build one.
pub(crate) trait Kernel: Sized {
    type Output;
    /// Computes the kernel with the vectors of `s`.
    fn run<S: Simd>(self, s: S) -> Self::Output;

    /// `run` without special instructions.
    fn on_portable(self, s: Portable) -> Self::Output;
    /// `run` compiled for AVX2.
    ///
    /// # Safety
    /// None beyond the token; Rust has no safe trait functions with target features.
    #[cfg(target_arch = "x86_64")]
    unsafe fn on_avx2(self, s: Avx2) -> Self::Output;
    /// `run` compiled for AVX-512.
    ///
    /// # Safety
    /// None beyond the token; Rust has no safe trait functions with target features.
    #[cfg(target_arch = "x86_64")]
    unsafe fn on_avx512(self, s: Avx512) -> Self::Output;
    /// `run` compiled for Neon.
    #[cfg(target_arch = "aarch64")]
    fn on_neon(self, s: Neon) -> Self::Output;
}

/// Passes a token type, the kernels' entry point for it, and its CPU features to the macro `$use`.
///
/// These are all features that the compiler implies by the last one (`avx512f` enables `f16c`, for example), except
/// x86-64's baseline SSE and SSE2: a feature that is compiled for but not detected is an illegal instruction on a
/// machine that lacks it (virtual machines and emulators mask single features).
#[cfg(target_arch = "x86_64")]
macro_rules! x86_features {
    (Avx2, $use:path) => {
        $use!(Avx2, on_avx2, "sse3", "ssse3", "sse4.1", "sse4.2", "avx", "fma", "avx2");
    };
    (Avx512, $use:path) => {
        $use!(Avx512, on_avx512, "sse3", "ssse3", "sse4.1", "sse4.2", "avx", "fma", "avx2", "f16c", "avx512f");
    };
}
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_features;

/// The entry point of a kernel for one instruction set.
#[cfg(target_arch = "x86_64")]
macro_rules! x86_entry_point {
    ($token:ident, $entry:ident, $($feature:tt),+) => {
        $(#[target_feature(enable = $feature)])+
        unsafe fn $entry(self, s: $crate::ops::simd::$token) -> Self::Output {
            self.run(s)
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_entry_point;

/// A kernel's entry points, one per instruction set. They are functions of the implementation, so that their symbols
/// contain the kernel's name, which a profiler shows.
macro_rules! entry_points {
    () => {
        #[inline(never)]
        fn on_portable(self, s: $crate::ops::simd::Portable) -> Self::Output {
            self.run(s)
        }
        #[cfg(target_arch = "x86_64")]
        $crate::ops::simd::x86_features!(Avx2, $crate::ops::simd::x86_entry_point);
        #[cfg(target_arch = "x86_64")]
        $crate::ops::simd::x86_features!(Avx512, $crate::ops::simd::x86_entry_point);
        #[cfg(target_arch = "aarch64")]
        #[inline(never)]
        fn on_neon(self, s: $crate::ops::simd::Neon) -> Self::Output {
            self.run(s)
        }
    };
}
pub(crate) use entry_points;

/// Runs `kernel` with the active instruction set.
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    match Detected::active() {
        Detected::Portable(s) => kernel.on_portable(s),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `s` exists only if all features that the entry point is compiled for were detected.
        Detected::Avx2(s) => unsafe { kernel.on_avx2(s) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `s` exists only if all features that the entry point is compiled for were detected.
        Detected::Avx512(s) => unsafe { kernel.on_avx512(s) },
        #[cfg(target_arch = "aarch64")]
        Detected::Neon(s) => kernel.on_neon(s),
    }
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

/// Implements functions of [`Simd`] for a token by expressions over intrinsics: safe ones first, then those that access
/// memory through pointers.
#[allow(unused_macros)] // other architectures have no intrinsics here
macro_rules! intrinsics {
    (
        $(fn $name:ident($($arg:ident: $type:ty),*) -> $result:ty { $body:expr })*
        pointers:
        $(fn $access:ident($($place:ident: $place_type:ty),*) -> $loaded:ty $access_body:block)*
    ) => {
        $(
            #[inline(always)]
            fn $name(self, $($arg: $type),*) -> $result {
                // SAFETY: what the bodies call needs only the CPU's features, which the token proves.
                unsafe { $body }
            }
        )*
        $(
            #[inline(always)]
            unsafe fn $access(self, $($place: $place_type),*) -> $loaded {
                // SAFETY: the token proves the CPU's features, and the body accesses the floats that the contract of
                // the trait's function allows.
                unsafe { $access_body }
            }
        )*
    };
}
#[allow(unused_imports)] // other architectures have no intrinsics here
use intrinsics;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_exact_and_of_this_machine() {
        for set in InstructionSet::available() {
            assert_eq!(Detected::named(set.name()).map(Detected::set), Ok(set));
            let error = Detected::named(&set.name().to_uppercase()).map(Detected::set).unwrap_err().to_string();
            assert!(InstructionSet::available().iter().all(|set| error.contains(set.name())), "{error}");
        }
        for name in ["", " portable", "avx1024", "sse2"] {
            assert!(Detected::named(name).is_err(), "{name}");
        }
    }
}
