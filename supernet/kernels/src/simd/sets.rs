//! Instruction sets by name, and their detection.

#[cfg(target_arch = "x86_64")]
use super::{Avx2, Avx2Vnni, Avx512, Avx512Vnni};
#[cfg(target_arch = "aarch64")]
use super::{Neon, NeonDot};
use super::{Portable, Simd};
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
    /// 256-bit vectors with dot products of bytes.
    #[cfg(target_arch = "x86_64")]
    Avx2Vnni,
    /// 512-bit vectors.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 512-bit vectors with dot products of bytes.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// 128-bit vectors of 64-bit Arm.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// 128-bit vectors of 64-bit Arm with dot products of bytes.
    #[cfg(target_arch = "aarch64")]
    NeonDot,
}

impl InstructionSet {
    /// Name as in `OFA_ISA` and device profiles.
    pub fn name(self) -> &'static str {
        match self {
            InstructionSet::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2Vnni => "avx2-vnni",
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512Vnni => "avx512-vnni",
            #[cfg(target_arch = "aarch64")]
            InstructionSet::Neon => "neon",
            #[cfg(target_arch = "aarch64")]
            InstructionSet::NeonDot => "neon-dot",
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
            InstructionSet::Avx2 | InstructionSet::Avx2Vnni => Avx2::LANES,
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 | InstructionSet::Avx512Vnni => Avx512::LANES,
            #[cfg(target_arch = "aarch64")]
            InstructionSet::Neon | InstructionSet::NeonDot => Neon::LANES,
        }
    }

    /// Values of a word: see [`Simd::WORD_VALUES`].
    pub(crate) fn word_values(self) -> usize {
        match self {
            InstructionSet::Portable => Portable::WORD_VALUES,
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => Avx2::WORD_VALUES,
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2Vnni => Avx2Vnni::WORD_VALUES,
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => Avx512::WORD_VALUES,
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512Vnni => Avx512Vnni::WORD_VALUES,
            #[cfg(target_arch = "aarch64")]
            InstructionSet::Neon => Neon::WORD_VALUES,
            #[cfg(target_arch = "aarch64")]
            InstructionSet::NeonDot => NeonDot::WORD_VALUES,
        }
    }
}

/// An instruction set with the token that proves it.
#[derive(Clone, Copy)]
pub(super) enum Detected {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx2Vnni(Avx2Vnni),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(Avx512Vnni),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
    #[cfg(target_arch = "aarch64")]
    NeonDot(NeonDot),
}

impl Detected {
    /// Instruction sets of this CPU, fastest last.
    fn all() -> Vec<Detected> {
        #[allow(unused_mut)] // other architectures add nothing
        let mut found = vec![Detected::Portable(Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            found.extend(Avx2::detect().map(Detected::Avx2));
            found.extend(Avx2Vnni::detect().map(Detected::Avx2Vnni));
            found.extend(Avx512::detect().map(Detected::Avx512));
            found.extend(Avx512Vnni::detect().map(Detected::Avx512Vnni));
        }
        #[cfg(target_arch = "aarch64")]
        {
            found.push(Detected::Neon(Neon::of_every_cpu()));
            found.extend(NeonDot::detect().map(Detected::NeonDot));
        }
        found
    }

    fn set(self) -> InstructionSet {
        match self {
            Detected::Portable(_) => InstructionSet::Portable,
            #[cfg(target_arch = "x86_64")]
            Detected::Avx2(_) => InstructionSet::Avx2,
            #[cfg(target_arch = "x86_64")]
            Detected::Avx2Vnni(_) => InstructionSet::Avx2Vnni,
            #[cfg(target_arch = "x86_64")]
            Detected::Avx512(_) => InstructionSet::Avx512,
            #[cfg(target_arch = "x86_64")]
            Detected::Avx512Vnni(_) => InstructionSet::Avx512Vnni,
            #[cfg(target_arch = "aarch64")]
            Detected::Neon(_) => InstructionSet::Neon,
            #[cfg(target_arch = "aarch64")]
            Detected::NeonDot(_) => InstructionSet::NeonDot,
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
            asked: name.to_string(),
            allowed: all.iter().map(|detected| detected.set().name()).collect::<Vec<_>>().join(", "),
        })
    }

    fn best() -> Detected {
        let all = Self::all();
        all[all.len() - 1]
    }

    pub(super) fn active() -> Detected {
        static ACTIVE: OnceLock<Detected> = OnceLock::new();
        *ACTIVE.get_or_init(|| Self::from_environment().unwrap_or_else(|_| Self::best()))
    }
}

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
