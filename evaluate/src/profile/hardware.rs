//! The hardware that a profile was measured on.

use ofa_supernet::ops::InstructionSet;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::process::Command;

/// Properties of a machine that explain the times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    /// Name of the processor, on 64-bit ARM of the board or phone; the architecture if the system does not tell.
    pub cpu: String,
    /// Number of threads that the network ran on.
    pub threads: usize,
    /// Vector instruction set that the kernels used.
    pub instruction_set: String,
}

impl Hardware {
    /// Describes this machine, with `threads` threads in use.
    pub fn detect(threads: usize) -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = named(&info, "model name")
            .or_else(|| plain(&std::fs::read_to_string("/proc/device-tree/model").ok()?))
            .or_else(android_model)
            .or_else(|| named(&info, "Hardware"))
            .unwrap_or_else(|| std::env::consts::ARCH.to_string());
        Hardware { cpu, threads, instruction_set: InstructionSet::active().name().to_string() }
    }
}

/// The first value of `key` in the text of `/proc/cpuinfo`. On 64-bit ARM there is no `model name` in it, and two
/// boards must not count as one device.
fn named(info: &str, key: &str) -> Option<String> {
    plain(info.lines().find(|line| line.starts_with(key))?.split_once(':')?.1)
}

/// Model of an Android phone.
fn android_model() -> Option<String> {
    let program = Path::new("/system/bin/getprop");
    let output = program.exists().then(|| Command::new(program).arg("ro.product.model").output())?.ok()?;
    plain(&String::from_utf8_lossy(&output.stdout))
}

/// A name without the 0 at its end and spaces around it; `None` if nothing is left.
fn plain(name: &str) -> Option<String> {
    let name = name.trim_matches(|letter: char| letter.is_control() || letter.is_whitespace());
    (!name.is_empty()).then(|| name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_name_is_found() {
        let info = "processor\t: 0\nmodel name\t: Example CPU @ 2.10GHz\nflags\t: fpu\nmodel name\t: other\n";
        assert_eq!(named(info, "model name").as_deref(), Some("Example CPU @ 2.10GHz"));
        assert_eq!(named("processor : 0\n", "model name"), None);
        assert_eq!(plain("Raspberry Pi 5 Model B Rev 1.0\0").as_deref(), Some("Raspberry Pi 5 Model B Rev 1.0"));
        assert_eq!(plain(" \n"), None);
        assert_eq!(Hardware::detect(3).threads, 3);
    }
}
