//! The binary of this program that runs on the other machine.

use anyhow::{Context, Result, bail};
use ofa_supernet::files;
use std::path::{Path, PathBuf};

/// A binary, read whole.
pub struct Program {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Program {
    /// Reads the binary at `path`, or that of this process.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(path: Option<&Path>) -> Result<Self> {
        let path = match path {
            Some(path) => path.to_path_buf(),
            None => std::env::current_exe().context("the path of this program is unknown; name it with --program")?,
        };
        let bytes = std::fs::read(&path).map_err(|error| ofa_supernet::Error::file(&path, error))?;
        Ok(Program { path, bytes })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Name on the other machine, which tells versions apart.
    pub fn file_name(&self) -> String {
        format!("ofa-{:08x}", files::checksum(&self.bytes))
    }

    /// Fails if the binary is for another architecture than the one that `uname -m` names there.
    pub fn check(&self, machine: &str, name: &str) -> Result<()> {
        let Some(own) = architecture(&self.bytes) else {
            bail!("{}: this is no program that Linux or Android runs", self.path.display());
        };
        let runs = match own {
            "arm" => machine.starts_with("arm") || machine == "aarch64",
            "x86" => matches!(machine, "i686" | "x86_64"),
            own => machine == own,
        };
        if runs {
            return Ok(());
        }
        bail!(
            "{name}: the machine is {machine}, but {} is for {own}; build ofa for {machine} (docs/devices.md) and name that binary \
             with --program, or an emulator with --run-with",
            self.path.display()
        )
    }
}

/// The architecture that the header of an ELF file names, as `uname -m` would.
fn architecture(bytes: &[u8]) -> Option<&'static str> {
    let header = bytes.get(..20).filter(|header| header.starts_with(b"\x7fELF"))?;
    let machine = [header[18], header[19]];
    // All of these are little-endian.
    Some(match u16::from_le_bytes(machine) {
        3 => "x86",
        40 => "arm",
        62 => "x86_64",
        183 => "aarch64",
        243 => "riscv64",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_for_another_machine_is_refused() {
        let mut header = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xb7\0".to_vec();
        let program = |bytes: &[u8]| Program { path: "ofa-arm".into(), bytes: bytes.to_vec() };
        assert!(program(&header).check("aarch64", "ssh:board").is_ok());
        let message = program(&header).check("x86_64", "ssh:board").unwrap_err().to_string();
        assert!(message.contains("ssh:board: the machine is x86_64, but ofa-arm is for aarch64"), "{message}");
        header[18] = 62;
        assert!(program(&header).check("x86_64", "ssh:board").is_ok());
        assert!(program(b"#!/bin/sh\n").check("x86_64", "ssh:board").unwrap_err().to_string().contains("no program"));
        assert!(program(b"").check("x86_64", "ssh:board").is_err());
    }
}
