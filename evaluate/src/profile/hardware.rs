//! The hardware that a profile was measured on.

use ofa_supernet::ops::InstructionSet;
use serde::{Deserialize, Serialize};

/// Properties of a machine that explain the times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    /// Model name of the processor, or its architecture if the system does not tell.
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
        let cpu = model_name(&info).unwrap_or_else(|| std::env::consts::ARCH.to_string());
        Hardware { cpu, threads, instruction_set: InstructionSet::active().name().to_string() }
    }
}

/// The first `model name` in the text of `/proc/cpuinfo`.
fn model_name(info: &str) -> Option<String> {
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    let name = line.split_once(':')?.1.trim();
    (!name.is_empty()).then(|| name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_name_is_found() {
        let info = "processor\t: 0\nmodel name\t: Example CPU @ 2.10GHz\nflags\t: fpu\nmodel name\t: other\n";
        assert_eq!(model_name(info).as_deref(), Some("Example CPU @ 2.10GHz"));
        assert_eq!(model_name("processor : 0\n"), None);
        assert_eq!(Hardware::detect(3).threads, 3);
    }
}
