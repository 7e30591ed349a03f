//! Kernels, compiled once per instruction set, and the call of the active one.

use super::sets::Detected;
#[cfg(target_arch = "x86_64")]
use super::{Avx2, Avx2Vnni, Avx512, Avx512Vnni};
#[cfg(target_arch = "aarch64")]
use super::{Neon, NeonDot};
use super::{Portable, Simd};

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

    // Only kernels that use words of values are compiled for the sets with dot products of bytes.

    /// `run` compiled for AVX2 with dot products.
    ///
    /// # Safety
    /// None beyond the token; Rust has no safe trait functions with target features.
    #[cfg(target_arch = "x86_64")]
    unsafe fn on_avx2_vnni(self, s: Avx2Vnni) -> Self::Output {
        // SAFETY: the token of the smaller set proves its features.
        unsafe { self.on_avx2(s.without_dot()) }
    }
    /// `run` compiled for AVX-512 with dot products.
    ///
    /// # Safety
    /// None beyond the token; Rust has no safe trait functions with target features.
    #[cfg(target_arch = "x86_64")]
    unsafe fn on_avx512_vnni(self, s: Avx512Vnni) -> Self::Output {
        // SAFETY: the token of the smaller set proves its features.
        unsafe { self.on_avx512(s.without_dot()) }
    }
    /// `run` compiled for Neon with dot products.
    #[cfg(target_arch = "aarch64")]
    fn on_neon_dot(self, s: NeonDot) -> Self::Output {
        self.on_neon(s.without_dot())
    }
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
    (Avx2Vnni, $use:path) => {
        $use!(Avx2Vnni, on_avx2_vnni, "sse3", "ssse3", "sse4.1", "sse4.2", "avx", "fma", "avx2", "avxvnni");
    };
    (Avx512, $use:path) => {
        $use!(
            Avx512, on_avx512, "sse3", "ssse3", "sse4.1", "sse4.2", "avx", "fma", "avx2", "f16c", "avx512f", "avx512bw"
        );
    };
    (Avx512Vnni, $use:path) => {
        $use!(
            Avx512Vnni,
            on_avx512_vnni,
            "sse3",
            "ssse3",
            "sse4.1",
            "sse4.2",
            "avx",
            "fma",
            "avx2",
            "f16c",
            "avx512f",
            "avx512bw",
            "avx512vnni"
        );
    };
}
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_features;

/// The entry point of a kernel for one instruction set.
#[cfg(target_arch = "x86_64")]
macro_rules! x86_entry_point {
    ($token:ident, $entry:ident, $($feature:tt),+) => {
        $(#[target_feature(enable = $feature)])+
        unsafe fn $entry(self, s: $crate::simd::$token) -> Self::Output {
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
        fn on_portable(self, s: $crate::simd::Portable) -> Self::Output {
            self.run(s)
        }
        #[cfg(target_arch = "x86_64")]
        $crate::simd::x86_features!(Avx2, $crate::simd::x86_entry_point);
        #[cfg(target_arch = "x86_64")]
        $crate::simd::x86_features!(Avx512, $crate::simd::x86_entry_point);
        #[cfg(target_arch = "aarch64")]
        #[inline(never)]
        fn on_neon(self, s: $crate::simd::Neon) -> Self::Output {
            self.run(s)
        }
    };
    // For kernels that use [`Simd::dot`], or read or write its words: words of a set with dot products of bytes can
    // differ from those of the set without.
    (dot) => {
        $crate::simd::entry_points!();
        #[cfg(target_arch = "x86_64")]
        $crate::simd::x86_features!(Avx2Vnni, $crate::simd::x86_entry_point);
        #[cfg(target_arch = "x86_64")]
        $crate::simd::x86_features!(Avx512Vnni, $crate::simd::x86_entry_point);
        #[cfg(target_arch = "aarch64")]
        #[inline(never)]
        fn on_neon_dot(self, s: $crate::simd::NeonDot) -> Self::Output {
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
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `s` exists only if all features that the entry point is compiled for were detected.
        Detected::Avx2Vnni(s) => unsafe { kernel.on_avx2_vnni(s) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `s` exists only if all features that the entry point is compiled for were detected.
        Detected::Avx512Vnni(s) => unsafe { kernel.on_avx512_vnni(s) },
        #[cfg(target_arch = "aarch64")]
        Detected::Neon(s) => kernel.on_neon(s),
        #[cfg(target_arch = "aarch64")]
        Detected::NeonDot(s) => kernel.on_neon_dot(s),
    }
}
