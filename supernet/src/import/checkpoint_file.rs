//! Published files of named tensors: PyTorch's `torch.save` in both of its formats, and safetensors.
//!
//! | format | content |
//! | --- | --- |
//! | zip (PyTorch 1.6 and later) | `NAME/data.pkl`, a pickle, and `NAME/data/KEY`, the bytes of each storage |
//! | older PyTorch | four pickles (magic number, version, system, object), the storages' keys as a fifth, then their bytes |
//! | safetensors | a JSON header, then bytes |
//!
//! Opening reads names and shapes. The values of a tensor are read only when they are requested, so that a file cannot
//! use more memory than the caller expects. Nothing is executed, and no entry is extracted to disk.

use super::pickle::{self, ElementType, Pickle, Storage, Value};
use crate::files::read_bytes;
use crate::{Error, Result};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors};
use std::collections::{BTreeMap, HashMap};
use std::io::{Cursor, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use zip::ZipArchive;

/// Largest pickle in bytes; published supernets have about 100 thousand.
const MAX_PICKLE: u64 = 16 << 20;
/// Largest storage in bytes.
const MAX_STORAGE: u64 = 2 << 30;
/// First integer of a file in PyTorch's older format.
const LEGACY_MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
/// Version of PyTorch's older format.
const LEGACY_VERSION: i128 = 1001;

type Archive = ZipArchive<Cursor<Rc<[u8]>>>;

/// A file of named tensors.
pub struct CheckpointFile {
    path: PathBuf,
    bytes: Rc<[u8]>,
    archive: Option<Archive>,
    tensors: BTreeMap<String, Entry>,
    /// Path of the entry that holds the tensors; empty if they are not wrapped.
    taken: Vec<String>,
    /// Other entries that hold weights.
    other_weights: Vec<String>,
}

/// Entries in which training programs store a network's tensors, in order of preference. Averages come last, since a
/// file that has them in addition has them for a second use.
const WEIGHTS: [&str; 9] = [
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
];
/// Prefixes that wrappers of a network (data-parallel, compiled, averaged, Lightning) add to the names of all its
/// tensors.
const PREFIXES: [&str; 4] = ["module.", "_orig_mod.", "model.", "net."];
/// Counter that PyTorch's `AveragedModel` stores beside the tensors.
const AVERAGED_COUNTER: &str = "n_averaged";

/// A tensor: elements `offset + sum(index x stride)` of a storage.
struct Entry {
    element: ElementType,
    shape: Vec<usize>,
    strides: Vec<usize>,
    offset: usize,
    /// Number of elements of the storage.
    elements: usize,
    storage: Location,
}

/// Location of the bytes of a storage.
enum Location {
    /// A range of the file.
    Bytes(Range<usize>),
    /// An entry of the archive.
    Archive(Rc<str>),
}

impl CheckpointFile {
    /// Opens a file and reads its names and shapes: the tensors of an entry such as `state_dict` or `model`, or of the
    /// top-level dictionary. Prefixes that all names share, such as `module.`, are dropped.
    ///
    /// # Errors
    /// A missing file, an unknown format, a damaged file (with the offset), a pickle that does more than build tensors
    /// (with the name that it uses), or a shape that is larger than its bytes.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes: Rc<[u8]> = read_bytes(path)?.into();
        let mut file = CheckpointFile {
            path: path.to_path_buf(),
            bytes,
            archive: None,
            tensors: BTreeMap::new(),
            taken: Vec::new(),
            other_weights: Vec::new(),
        };
        // Safetensors starts with the length of its header, which can look like the start of the other formats.
        let outcome = match &file.bytes[..] {
            [_, _, _, _, _, _, _, _, b'{', ..] => file.open_safetensors(),
            [b'P', b'K', ..] => file.open_zip(),
            [0x80, ..] => file.open_legacy(),
            _ => file.open_safetensors(),
        };
        outcome.map_err(|message| Error::format(path, message))?;
        file.tensors = without_wrapper(std::mem::take(&mut file.tensors));
        if file.tensors.is_empty() {
            return Err(Error::format(path, "the file holds no tensors"));
        }
        Ok(file)
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A sentence that says which of several sets of weights in the file was taken; `None` if there is only one.
    pub fn choice(&self) -> Option<String> {
        let quoted = |names: &[String]| names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
        (!self.other_weights.is_empty()).then(|| {
            format!("the weights are those of {}, not of {}", quoted(&self.taken), quoted(&self.other_weights))
        })
    }

    /// Names and shapes, in order of name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|(name, entry)| (name.as_str(), &entry.shape[..]))
    }

    /// The values of tensor `name`, row by row, as f32. Check the shape first: it determines the size of the result.
    ///
    /// # Errors
    /// There is no such tensor, its storage is too short, or its elements are not finite floating-point numbers.
    pub fn values(&mut self, name: &str) -> Result<Vec<f32>> {
        let path = self.path.clone();
        self.read_values(name).map_err(|message| Error::format(path, format!("tensor '{name}': {message}")))
    }

    fn read_values(&mut self, name: &str) -> Result<Vec<f32>, String> {
        let entry = self.tensors.get(name).ok_or("not in the file")?;
        let element = entry.element;
        if let ElementType::Integer(_) = element {
            return Err("integer elements; expected floating-point numbers".into());
        }
        let needed = entry.elements.checked_mul(element.bytes()).ok_or("the storage is larger than any memory")?;
        let archived;
        let storage = match &entry.storage {
            Location::Bytes(range) => &self.bytes[range.clone()],
            Location::Archive(key) => {
                let archive = self.archive.as_mut().ok_or("the storage is not part of an archive")?;
                archived = read_archived(archive, key, MAX_STORAGE)?;
                &archived[..]
            }
        };
        if storage.len() < needed {
            return Err(format!(
                "the storage has {} bytes in the file, but {needed} are declared ({} elements); the file is truncated or damaged",
                storage.len(),
                entry.elements
            ));
        }
        let count = if entry.shape.contains(&0) { 0 } else { entry.shape.iter().product() };
        let mut values = Vec::with_capacity(count);
        let mut index = vec![0; entry.shape.len()];
        let mut at = entry.offset;
        for _ in 0..count {
            let value = number(element, &storage[at * element.bytes()..]).ok_or("the storage ends too early")?;
            if !value.is_finite() {
                return Err(format!("element {} is {value}; all weights must be finite", values.len()));
            }
            values.push(value);
            // Advances to the next index, last dimension fastest. A dimension of size one may have any stride: `at`
            // then wraps around and back.
            for dim in (0..index.len()).rev() {
                index[dim] += 1;
                at = at.wrapping_add(entry.strides[dim]);
                if index[dim] < entry.shape[dim] {
                    break;
                }
                at = at.wrapping_sub(index[dim].wrapping_mul(entry.strides[dim]));
                index[dim] = 0;
            }
        }
        Ok(values)
    }

    fn open_zip(&mut self) -> Result<(), String> {
        let damaged = |e: &dyn std::fmt::Display| {
            format!("the zip archive of {} bytes is truncated or damaged ({e}); fetch the file again", self.bytes.len())
        };
        let mut archive = ZipArchive::new(Cursor::new(self.bytes.clone())).map_err(|e| damaged(&e))?;
        let names = archive.file_names().map(|name| Ok(name?.into_owned())).collect::<zip::result::ZipResult<Vec<_>>>();
        let names = names.map_err(|e| damaged(&e))?;
        let root = names.first().and_then(|name| name.split_once('/')).map_or("", |(root, _)| root);
        for name in &names {
            let inside = name.strip_prefix(root).and_then(|rest| rest.strip_prefix('/'));
            let plain = name.split('/').all(|part| !matches!(part, "" | "." | "..")) && !name.contains('\\');
            if inside.is_none() || !plain {
                return Err(format!(
                    "the zip archive has an entry named {name:?}; PyTorch writes all entries into one folder"
                ));
            }
        }
        let byteorder = format!("{root}/byteorder");
        if names.contains(&byteorder) && read_archived(&mut archive, &byteorder, 16)? != b"little" {
            return Err("the numbers are not little-endian".into());
        }
        let name = format!("{root}/data.pkl");
        if !names.contains(&name) {
            return Err(format!(
                "the zip archive has no '{name}'; it was not written by torch.save (it may be a TorchScript archive)"
            ));
        }
        let program = read_archived(&mut archive, &name, MAX_PICKLE)?;
        let (value, pickle, _) = pickle::read(&program, 0).map_err(|message| format!("{name}: {message}"))?;
        let (dict, taken, others) = weights_of(&value, &pickle)?;
        (self.taken, self.other_weights) = (taken, others);
        self.tensors = tensors_of(dict, &pickle, |storage| {
            if storage.key.is_empty() || !storage.key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                return Err(format!("a storage is named {:?}; expected letters and digits", storage.key));
            }
            Ok(Location::Archive(format!("{root}/data/{}", storage.key).into()))
        })?;
        self.archive = Some(archive);
        Ok(())
    }

    fn open_legacy(&mut self) -> Result<(), String> {
        let bytes = self.bytes.clone();
        let mut at = 0;
        let mut next = || -> Result<(Value, Pickle), String> {
            let rest = &bytes[at..];
            let (value, pickle, length) = pickle::read(&rest[..rest.len().min(MAX_PICKLE as usize)], at)?;
            at += length;
            Ok((value, pickle))
        };
        if next()?.0 != Value::Int(LEGACY_MAGIC) {
            return Err("the file is a pickle, but was not written by torch.save".into());
        }
        if next()?.0 != Value::Int(LEGACY_VERSION) {
            return Err(format!("the version of PyTorch's older format is not {LEGACY_VERSION}"));
        }
        let (system, pickle) = next()?;
        let little = Value::Text("little_endian".into());
        match system {
            Value::Dict(dict) if pickle.dicts[dict].contains(&(little, Value::Bool(true))) => {}
            _ => return Err("the numbers are not declared to be little-endian".into()),
        }
        let (value, pickle) = next()?;
        let (keys, lists) = next()?;
        let Value::List(keys) = keys else {
            return Err(format!("{} where a list of storages was expected", keys.kind()));
        };
        let declared: HashMap<Rc<str>, &Storage> = pickle.storages.iter().map(|s| (s.key.clone(), s)).collect();
        let mut locations = HashMap::new();
        for key in &lists.lists[keys] {
            let Value::Text(key) = key else { return Err(format!("a storage is named by {}", key.kind())) };
            let storage = declared.get(key).ok_or_else(|| format!("storage {key:?} belongs to no tensor"))?;
            let header = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>());
            let header = header.ok_or_else(|| format!("the file ends at byte {at}, before storage {key:?}"))?;
            let elements = u64::from_le_bytes(*header);
            let start = at + 8;
            let end =
                storage.elements.checked_mul(storage.element.bytes()).and_then(|length| start.checked_add(length));
            let end = end.filter(|&end| end <= bytes.len() && elements == storage.elements as u64).ok_or_else(|| {
                format!(
                    "storage {key:?} at byte {at} says {elements} elements, its tensor {}, and {} bytes are left; the file is \
                     cut or damaged",
                    storage.elements,
                    bytes.len() - start
                )
            })?;
            locations.insert(key.clone(), start..end);
            at = end;
        }
        let (dict, taken, others) = weights_of(&value, &pickle)?;
        (self.taken, self.other_weights) = (taken, others);
        self.tensors = tensors_of(dict, &pickle, |storage| {
            let location = locations
                .get(&storage.key)
                .ok_or_else(|| format!("the bytes of storage {:?} are missing", storage.key))?;
            Ok(Location::Bytes(location.clone()))
        })?;
        Ok(())
    }

    fn open_safetensors(&mut self) -> Result<(), String> {
        let foreign = |e| format!("neither written by torch.save (zip or older format) nor valid safetensors: {e}");
        let (header_length, header) = SafeTensors::read_metadata(&self.bytes).map_err(|e| foreign(e.to_string()))?;
        SafeTensors::deserialize(&self.bytes).map_err(|e| foreign(e.to_string()))?;
        // Tensor data follows the header's length and the header.
        let start = 8 + header_length;
        for (name, info) in header.tensors() {
            let element = match info.dtype {
                Dtype::F64 => ElementType::F64,
                Dtype::F32 => ElementType::F32,
                Dtype::F16 => ElementType::F16,
                Dtype::BF16 => ElementType::Bf16,
                Dtype::I64 | Dtype::U64 => ElementType::Integer(8),
                Dtype::I32 | Dtype::U32 => ElementType::Integer(4),
                Dtype::I16 | Dtype::U16 => ElementType::Integer(2),
                Dtype::I8 | Dtype::U8 | Dtype::BOOL => ElementType::Integer(1),
                other => return Err(format!("tensor '{name}' is of type {other:?}, which is not supported")),
            };
            let mut strides = vec![1; info.shape.len()];
            for dim in (1..strides.len()).rev() {
                strides[dim - 1] = usize::saturating_mul(strides[dim], info.shape[dim]);
            }
            let (from, to) = info.data_offsets;
            let entry = Entry {
                element,
                shape: info.shape.clone(),
                strides,
                offset: 0,
                elements: (to - from) / element.bytes(),
                storage: Location::Bytes(start + from..start + to),
            };
            self.tensors.insert(name, entry);
        }
        Ok(())
    }
}

/// Finds the dictionary of a pickle that holds the weights: the top-level one, or an entry named as in [`WEIGHTS`].
/// Also returns the names of the entries that lead to it, and of entries with other weights.
fn weights_of(value: &Value, pickle: &Pickle) -> Result<(usize, Vec<String>, Vec<String>), String> {
    let Value::Dict(mut dict) = *value else {
        return Err(format!("the file holds {}; expected a dictionary of tensors", value.kind()));
    };
    let (mut taken, mut others) = (Vec::new(), Vec::new());
    // A dictionary can contain itself, so the depth is limited.
    for _ in 0..3 {
        let entries = &pickle.dicts[dict];
        let named: Vec<(&str, &Value)> = WEIGHTS
            .iter()
            .filter_map(|&name| {
                let key = Value::Text(name.into());
                entries.iter().find(|(found, _)| *found == key).map(|(_, value)| (name, value))
            })
            .collect();
        let mut inner = named.iter().filter_map(|(name, value)| match value {
            Value::Dict(inner) => Some((*name, *inner)),
            _ => None,
        });
        match inner.next() {
            Some((name, found)) => {
                taken.push(name.to_string());
                others.extend(inner.map(|(name, _)| name.to_string()));
                dict = found;
            }
            None => {
                if let Some((name, other)) = named.first().filter(|(_, other)| !matches!(other, Value::Tensor(_))) {
                    return Err(format!("entry '{name}' is {}; expected a dictionary", other.kind()));
                }
                break;
            }
        }
    }
    Ok((dict, taken, others))
}

/// The tensors without the prefixes that all names share.
fn without_wrapper(mut tensors: BTreeMap<String, Entry>) -> BTreeMap<String, Entry> {
    if tensors.len() > 1 && tensors.keys().all(|name| name == AVERAGED_COUNTER || name.starts_with(PREFIXES[0])) {
        tensors.remove(AVERAGED_COUNTER);
    }
    // Wrappers can be nested, but not deeply.
    for _ in 0..4 {
        if let Some(prefix) = PREFIXES.iter().find(|prefix| tensors.keys().all(|name| name.starts_with(**prefix))) {
            tensors = tensors.into_iter().map(|(name, entry)| (name[prefix.len()..].to_string(), entry)).collect();
        }
    }
    tensors
}

/// The tensors of dictionary number `dict`.
fn tensors_of(
    dict: usize,
    pickle: &Pickle,
    location: impl Fn(&Storage) -> Result<Location, String>,
) -> Result<BTreeMap<String, Entry>, String> {
    let mut tensors = BTreeMap::new();
    for (key, value) in &pickle.dicts[dict] {
        let Value::Text(name) = key else {
            return Err(format!("the dictionary has {} as a key; expected names of tensors", key.kind()));
        };
        let Value::Tensor(tensor) = value else {
            return Err(format!(
                "'{name}' is {}; expected a tensor; weights are searched in the entries {}, and in the dictionary itself",
                value.kind(),
                WEIGHTS.join(", ")
            ));
        };
        let view = &pickle.tensors[*tensor];
        let storage = &pickle.storages[view.storage];
        let entry = Entry {
            element: storage.element,
            shape: view.shape.clone(),
            strides: view.strides.clone(),
            offset: view.offset,
            elements: storage.elements,
            storage: location(storage).map_err(|message| format!("tensor '{name}': {message}"))?,
        };
        tensors.insert(name.to_string(), entry);
    }
    Ok(tensors)
}

/// Reads an entry of the archive and verifies its checksum.
fn read_archived(archive: &mut Archive, name: &str, limit: u64) -> Result<Vec<u8>, String> {
    let entry = archive.by_name(name).map_err(|e| format!("'{name}' cannot be read from the zip archive: {e}"))?;
    let (size, start) = (entry.size(), entry.data_start().unwrap_or(0));
    if size > limit {
        return Err(format!("'{name}' has {size} bytes, more than the limit of {limit}"));
    }
    // Programs store tensors as they are; what unpacks to a multiple of its size is made to exhaust memory.
    if size > entry.compressed_size().saturating_mul(16).saturating_add(1 << 20) {
        return Err(format!("'{name}' has {size} bytes, which are {} in the file", entry.compressed_size()));
    }
    let mut bytes = Vec::new();
    // Reading one byte more than declared detects an entry that unpacks to more; reading to the end verifies the
    // checksum.
    entry
        .take(size + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| format!("'{name}' at byte {start} of the file is damaged: {e}"))?;
    if bytes.len() as u64 != size {
        return Err(format!(
            "'{name}' at byte {start} of the file unpacks to {} bytes, but {size} are declared",
            bytes.len()
        ));
    }
    Ok(bytes)
}

/// The first element of `bytes` as f32; `None` if `bytes` is too short or the type is not a floating-point type.
fn number(element: ElementType, bytes: &[u8]) -> Option<f32> {
    Some(match element {
        ElementType::F64 => f64::from_le_bytes(*bytes.first_chunk()?) as f32,
        ElementType::F32 => f32::from_le_bytes(*bytes.first_chunk()?),
        ElementType::F16 => f16::from_le_bytes(*bytes.first_chunk()?).to_f32(),
        ElementType::Bf16 => bf16::from_le_bytes(*bytes.first_chunk()?).to_f32(),
        ElementType::Integer(_) => return None,
    })
}
