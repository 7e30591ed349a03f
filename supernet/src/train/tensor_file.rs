//! Named tensors and a JSON note in one safetensors file with a checksum, written atomically.
//!
//! The header's metadata has one entry, `ofa`: `{"checksum": CRC-32, "note": JSON text}`. The checksum covers the note
//! and every tensor's name, type, shape and bytes, so that a damaged or cut file is never taken for a good one.

use crate::{Error, Result, files};
use candle_core::{DType, Device, Tensor};
use flate2::Crc;
use safetensors::tensor::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::Path;

const ENTRY: &str = "ofa";

#[derive(Serialize, Deserialize)]
struct Entry {
    checksum: u32,
    note: String,
}

/// Writes `tensors` and `note` to `path`, replacing it whole or not at all.
///
/// # Errors
/// The operating system's error with the path; a note that has no JSON form.
pub fn write<T: Serialize>(path: &Path, tensors: &BTreeMap<String, Tensor>, note: &T) -> Result<()> {
    let note = serde_json::to_string(note).map_err(|e| Error::format(path, e.to_string()))?;
    let mut checksum = Crc::new();
    checksum.update(note.as_bytes());
    for (name, tensor) in tensors {
        add(&mut checksum, name, &format!("{:?}", View::dtype(tensor)), tensor.dims(), &View::data(tensor));
    }
    let entry = serde_json::to_string(&Entry { checksum: checksum.sum(), note })
        .map_err(|e| Error::format(path, e.to_string()))?;
    let metadata = HashMap::from([(ENTRY.to_string(), entry)]);
    let bytes = safetensors::serialize(tensors, Some(metadata)).map_err(|e| Error::format(path, e.to_string()))?;
    files::write_atomic(path, &bytes)
}

/// Reads a file of [`write()`] onto the CPU and checks it.
///
/// # Errors
/// A missing file, a file of another format, or content that is not what was written.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<(HashMap<String, Tensor>, T)> {
    let bytes = files::read_bytes(path)?;
    let broken = |e: &dyn std::fmt::Display| Error::format(path, format!("not a readable safetensors file: {e}"));
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| broken(&e))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| broken(&e))?;
    let entry = header.metadata().as_ref().and_then(|m| m.get(ENTRY)).ok_or_else(|| {
        Error::format(path, format!("the header has no '{ENTRY}' entry; expected a file written by ofa"))
    })?;
    let entry: Entry = serde_json::from_str(entry)
        .map_err(|e| Error::format(path, format!("the header's '{ENTRY}' entry is not what ofa writes: {e}")))?;
    let views: BTreeMap<_, _> = file.iter().collect();
    let mut checksum = Crc::new();
    checksum.update(entry.note.as_bytes());
    for (name, view) in &views {
        add(&mut checksum, name, &format!("{:?}", view.dtype()), view.shape(), view.data());
    }
    if checksum.sum() != entry.checksum {
        return Err(Error::format(
            path,
            format!(
                "the content's checksum is {:08x}, the header says {:08x}: the file is damaged; use another one",
                checksum.sum(),
                entry.checksum
            ),
        ));
    }
    let note = parse_note(path, &entry)?;
    let mut tensors = HashMap::with_capacity(views.len());
    for (name, view) in views {
        let dtype = match view.dtype() {
            Dtype::F32 => DType::F32,
            Dtype::F64 => DType::F64,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => return Err(Error::format(path, format!("tensor '{name}' has type {other:?}; expected a float"))),
        };
        tensors.insert(name.to_string(), Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu)?);
    }
    Ok((tensors, note))
}

/// Checksum of the tensors and the note of a file of [`write()`], as its header has it. Reads the header only: whoever
/// needs the content checked calls [`read`].
///
/// # Errors
/// A missing file, or a file of another format.
pub fn checksum(path: &Path) -> Result<u32> {
    Ok(read_entry(path)?.checksum)
}

/// The note of a file of [`write()`]. Reads the header only: whoever needs the content checked calls [`read`].
///
/// # Errors
/// A missing file, or a file of another format.
pub fn read_note<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse_note(path, &read_entry(path)?)
}

fn parse_note<T: DeserializeOwned>(path: &Path, entry: &Entry) -> Result<T> {
    serde_json::from_str(&entry.note)
        .map_err(|e| Error::format(path, format!("its note is not what this version of ofa expects: {e}")))
}

fn read_entry(path: &Path) -> Result<Entry> {
    let broken = |e: &dyn std::fmt::Display| Error::format(path, format!("not a readable safetensors file: {e}"));
    let mut file = std::fs::File::open(path).map_err(|e| Error::file(path, e))?;
    let size = file.metadata().map_err(|e| Error::file(path, e))?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|e| broken(&e))?;
    let length = u64::from_le_bytes(length);
    if length > size {
        return Err(broken(&format!("its header has {length} bytes, the file {size}")));
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).map_err(|e| Error::file(path, e))?;
    let header: serde_json::Value = serde_json::from_slice(&header).map_err(|e| broken(&e))?;
    let entry = header["__metadata__"][ENTRY].as_str().and_then(|entry| serde_json::from_str::<Entry>(entry).ok());
    entry.ok_or_else(|| {
        Error::format(path, format!("the header has no '{ENTRY}' entry; expected a file written by ofa"))
    })
}

fn add(checksum: &mut Crc, name: &str, dtype: &str, shape: &[usize], data: &[u8]) {
    checksum.update(format!("{name}\0{dtype}{shape:?}").as_bytes());
    checksum.update(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_every_flipped_byte_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let cpu = Device::Cpu;
        let tensors = BTreeMap::from([
            ("a".to_string(), Tensor::new(&[[1f32, -0.0, f32::NAN]], &cpu).unwrap()),
            ("b".to_string(), Tensor::new(&[0.1f64], &cpu).unwrap()),
        ]);
        write(&path, &tensors, &vec![1, 2]).unwrap();
        let (found, note): (_, Vec<u32>) = read(&path).unwrap();
        assert_eq!(note, [1, 2]);
        let bits = |t: &Tensor| {
            t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        assert_eq!(bits(&found["a"]), bits(&tensors["a"]));
        assert_eq!(found["b"].to_vec1::<f64>().unwrap(), [0.1]);

        let good = std::fs::read(&path).unwrap();
        write(&path, &tensors, &vec![1, 2]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), good, "the same content gives the same bytes");
        let first = checksum(&path).unwrap();
        write(&path, &tensors, &vec![1, 3]).unwrap();
        assert_ne!(checksum(&path).unwrap(), first);
        for position in 0..good.len() {
            let mut bad = good.clone();
            bad[position] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            // A space of the header's padding is the only byte without meaning.
            if good[position] != b' ' {
                assert!(read::<Vec<u32>>(&path).is_err(), "byte {position}");
            }
        }
        for length in [0, 7, 20, good.len() - 1] {
            std::fs::write(&path, &good[..length]).unwrap();
            let error = read::<Vec<u32>>(&path).unwrap_err().to_string();
            assert!(error.contains("a.safetensors"), "{error}");
            if length <= 20 {
                assert!(checksum(&path).unwrap_err().to_string().contains("a.safetensors"));
            }
        }
    }
}
