//! Instruction sets: detection, dispatch and vectors. Kernels are written once over [`Simd`] and never name a CPU.
//!
//! A value of a type that implements [`Simd`] is a token: only detection creates one, so whoever holds it may use the
//! instruction set. Arithmetic on vectors and access to slices are therefore safe; only access through pointers is not.
//!
//! | file | concern |
//! | --- | --- |
//! | `sets` | instruction sets by name, and their detection |
//! | `vectors` | the operations of a token |
//! | `portable`, `x86`, `arm` | the tokens |
//! | `kernel` | kernels compiled for each token, and the call of the active one |

#[cfg(target_arch = "aarch64")]
mod arm;
mod kernel;
mod portable;
mod sets;
mod vectors;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
pub(crate) use arm::{Neon, NeonDot};
pub(crate) use kernel::{Kernel, dispatch, entry_points};
#[cfg(target_arch = "x86_64")]
pub(crate) use kernel::{x86_entry_point, x86_features};
pub(crate) use portable::Portable;
pub use sets::{InstructionSet, UnknownInstructionSet};
pub(crate) use vectors::{Simd, opaque, vectors};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx2Vnni, Avx512, Avx512Vnni};

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
