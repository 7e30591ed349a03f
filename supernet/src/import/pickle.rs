//! A restricted reader of Python pickles: data only.
//!
//! A pickle is a program for a stack machine, and Python's own reader calls whatever that program names. This reader
//! knows the opcodes that `torch.save` writes and a closed list of names ([`Global`]); it builds values and nothing
//! else. Every opcode adds at most one value, values that contain others refer to them by number, and nothing recurses:
//! time and memory are proportional to the length of the file.

use std::collections::HashMap;
use std::rc::Rc;

/// The names that a pickle may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2` and the older `_rebuild_tensor`: a view of a storage.
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`: a trainable tensor.
    RebuildParameter,
    /// `torch.FloatStorage` and similar: the element type of a storage.
    Storage(ElementType),
    /// `torch.Size`: a tuple.
    Size,
}

/// Element type of a storage, always little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ElementType {
    F64,
    F32,
    F16,
    Bf16,
    /// Integers and booleans of this many bytes; they occur only in counters such as `num_batches_tracked`, whose
    /// values are not used.
    Integer(usize),
}

impl ElementType {
    /// Number of bytes per element.
    pub(super) fn bytes(self) -> usize {
        match self {
            ElementType::F64 => 8,
            ElementType::F32 => 4,
            ElementType::F16 | ElementType::Bf16 => 2,
            ElementType::Integer(bytes) => bytes,
        }
    }
}

impl Global {
    fn named(module: &str, name: &str) -> Option<Self> {
        use ElementType::{Bf16, F16, F32, F64, Integer};
        Some(match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            ("torch", "Size") => Global::Size,
            ("torch", "DoubleStorage") => Global::Storage(F64),
            ("torch", "FloatStorage") => Global::Storage(F32),
            ("torch", "HalfStorage") => Global::Storage(F16),
            ("torch", "BFloat16Storage") => Global::Storage(Bf16),
            ("torch", "LongStorage") => Global::Storage(Integer(8)),
            ("torch", "IntStorage") => Global::Storage(Integer(4)),
            ("torch", "ShortStorage") => Global::Storage(Integer(2)),
            ("torch", "CharStorage" | "ByteStorage" | "BoolStorage") => Global::Storage(Integer(1)),
            _ => return None,
        })
    }
}

/// A value. Values that contain others are indices into [`Pickle`]'s lists, so that cloning a value is always cheap.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i128),
    Float,
    Text(Rc<str>),
    Tuple(usize),
    List(usize),
    Dict(usize),
    Global(Global),
    Storage(usize),
    Tensor(usize),
}

impl Value {
    /// Name of the kind of value, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::None => "None",
            Value::Bool(_) => "a boolean",
            Value::Int(_) => "an integer",
            Value::Float => "a number",
            Value::Text(_) => "a string",
            Value::Tuple(_) => "a tuple",
            Value::List(_) => "a list",
            Value::Dict(_) => "a dictionary",
            Value::Global(_) => "a class or function",
            Value::Storage(_) => "a storage",
            Value::Tensor(_) => "a tensor",
        }
    }

    /// The value as a count.
    pub(super) fn as_usize(&self) -> Option<usize> {
        match self {
            Value::Int(value) => usize::try_from(*value).ok(),
            _ => None,
        }
    }
}

/// A storage as the pickle declares it. The reader of the bytes checks that they exist.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Storage {
    pub(super) element: ElementType,
    /// Name of the storage's bytes in the file.
    pub(super) key: Rc<str>,
    /// Number of elements.
    pub(super) elements: usize,
}

/// A tensor: elements `offset + sum(index x stride)` of a storage. Checked to lie inside the declared storage, and to
/// have no more elements than the storage.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct View {
    /// Index of the storage in [`Pickle::storages`].
    pub(super) storage: usize,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// Content of a pickle.
#[derive(Debug, Default)]
pub(super) struct Pickle {
    pub(super) dicts: Vec<Vec<(Value, Value)>>,
    pub(super) storages: Vec<Storage>,
    pub(super) tensors: Vec<View>,
    pub(super) lists: Vec<Vec<Value>>,
    tuples: Vec<Vec<Value>>,
}

/// Largest rank of a tensor.
const MAX_RANK: usize = 8;

/// Reads one pickle from the start of `bytes`; returns its value, the objects that it refers to, and its length in
/// bytes.
///
/// # Errors
/// One sentence with the offset (counted from `start`, the pickle's offset in its file) of the first thing that is not
/// allowed.
pub(super) fn read(bytes: &[u8], start: usize) -> Result<(Value, Pickle, usize), String> {
    let mut machine =
        Machine { bytes, at: 0, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), out: Pickle::default() };
    loop {
        let offset = start + machine.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(value)) => return Ok((value, machine.out, machine.at)),
            Err(message) => return Err(format!("pickle at byte {offset}: {message}")),
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Stack heights at the marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    out: Pickle,
}

impl Machine<'_> {
    /// Executes one opcode; returns the value at the end of the program.
    fn step(&mut self) -> Result<Option<Value>, String> {
        let value = match self.byte()? {
            0x80 => match self.byte()? {
                2..=5 => return Ok(None),
                protocol => return Err(format!("protocol {protocol}, expected 2 to 5")),
            },
            // A frame only announces how many bytes follow.
            0x95 => {
                self.take(8)?;
                return Ok(None);
            }
            b'.' => {
                let value = self.pop()?;
                return if self.stack.is_empty() {
                    Ok(Some(value))
                } else {
                    Err("the program ends with values left over".into())
                };
            }
            b'(' => {
                self.marks.push(self.stack.len());
                return Ok(None);
            }
            b'q' => return self.memoise(|m| Ok(u32::from(m.byte()?))),
            b'r' => return self.memoise(Self::u32),
            0x94 => return self.memoise(|m| Ok(m.memo.len() as u32)),
            b'h' => {
                let index = u32::from(self.byte()?);
                self.recall(index)?
            }
            b'j' => {
                let index = self.u32()?;
                self.recall(index)?
            }
            b'N' => Value::None,
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            b'K' => Value::Int(i128::from(self.byte()?)),
            b'M' => Value::Int(i128::from(u16::from_le_bytes(self.array()?))),
            b'J' => Value::Int(i128::from(i32::from_le_bytes(self.array()?))),
            0x8a => self.long()?,
            b'G' => {
                self.take(8)?;
                Value::Float
            }
            b'X' => {
                let length = self.u32()? as usize;
                self.text(length)?
            }
            0x8c => {
                let length = usize::from(self.byte()?);
                self.text(length)?
            }
            b')' => self.tuple(Vec::new()),
            b't' => {
                let items = self.pop_mark()?;
                self.tuple(items)
            }
            opcode @ 0x85..=0x87 => {
                let items = self.pop_many(usize::from(opcode - 0x84))?;
                self.tuple(items)
            }
            b']' => {
                self.out.lists.push(Vec::new());
                Value::List(self.out.lists.len() - 1)
            }
            b'}' => self.dict(),
            b'a' => {
                let item = self.pop()?;
                return self.append(vec![item]);
            }
            b'e' => {
                let items = self.pop_mark()?;
                return self.append(items);
            }
            b's' => {
                let items = self.pop_many(2)?;
                return self.set(items);
            }
            b'u' => {
                let items = self.pop_mark()?;
                return self.set(items);
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                global(&module, &name)?
            }
            0x93 => {
                let names = self.pop_many(2)?;
                match &names[..] {
                    [Value::Text(module), Value::Text(name)] => global(module, name)?,
                    _ => return Err("a name that is not a string".into()),
                }
            }
            b'Q' => self.persistent()?,
            b'R' => self.reduce()?,
            b'b' => {
                // Attributes of an OrderedDict (PyTorch stores version numbers there) are ignored.
                self.pop()?;
                return match self.stack.last() {
                    Some(Value::Dict(_)) => Ok(None),
                    other => Err(format!("the program sets attributes of {}", other.map_or("nothing", Value::kind))),
                };
            }
            opcode => return Err(format!("opcode {opcode:#04x} is not needed by a checkpoint and is refused")),
        };
        self.stack.push(value);
        Ok(None)
    }

    fn take(&mut self, count: usize) -> Result<&[u8], String> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end =
            end.ok_or_else(|| format!("{count} more bytes are needed, but {} are left", self.bytes.len() - self.at))?;
        let found = &self.bytes[self.at..end];
        self.at = end;
        Ok(found)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn text(&mut self, length: usize) -> Result<Value, String> {
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| "a string that is not UTF-8")?;
        Ok(Value::Text(text.into()))
    }

    /// Reads up to the next line feed.
    fn line(&mut self) -> Result<String, String> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|&b| b == b'\n').ok_or("a name without end")?;
        let line = std::str::from_utf8(&rest[..length]).map_err(|_| "a name that is not UTF-8")?.to_string();
        self.at += length + 1;
        Ok(line)
    }

    /// Reads an integer of up to 16 bytes, two's complement.
    fn long(&mut self) -> Result<Value, String> {
        let length = usize::from(self.byte()?);
        if length > 16 {
            return Err(format!("an integer of {length} bytes"));
        }
        let bytes = self.take(length)?;
        let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let mut value = [fill; 16];
        value[..length].copy_from_slice(bytes);
        Ok(Value::Int(i128::from_le_bytes(value)))
    }

    fn pop(&mut self) -> Result<Value, String> {
        if self.marks.last().is_some_and(|&mark| self.stack.len() <= mark) {
            return Err("the program takes a value across a mark".into());
        }
        self.stack.pop().ok_or_else(|| "the program takes a value from an empty stack".into())
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Value>, String> {
        let mut items = (0..count).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        Ok(items)
    }

    fn pop_mark(&mut self) -> Result<Vec<Value>, String> {
        let mark = self.marks.pop().ok_or("the program returns to a mark that was not set")?;
        Ok(self.stack.split_off(mark))
    }

    fn memoise(&mut self, index: impl FnOnce(&mut Self) -> Result<u32, String>) -> Result<Option<Value>, String> {
        let index = index(self)?;
        let value = self.stack.last().ok_or("the program stores a value of an empty stack")?.clone();
        self.memo.insert(index, value);
        Ok(None)
    }

    fn recall(&self, index: u32) -> Result<Value, String> {
        self.memo
            .get(&index)
            .cloned()
            .ok_or_else(|| format!("the program recalls value {index}, which was never stored"))
    }

    fn tuple(&mut self, items: Vec<Value>) -> Value {
        self.out.tuples.push(items);
        Value::Tuple(self.out.tuples.len() - 1)
    }

    fn dict(&mut self) -> Value {
        self.out.dicts.push(Vec::new());
        Value::Dict(self.out.dicts.len() - 1)
    }

    fn append(&mut self, items: Vec<Value>) -> Result<Option<Value>, String> {
        match self.stack.last() {
            Some(&Value::List(list)) => self.out.lists[list].extend(items),
            other => return Err(format!("the program appends to {}", other.map_or("nothing", Value::kind))),
        }
        Ok(None)
    }

    fn set(&mut self, items: Vec<Value>) -> Result<Option<Value>, String> {
        let Some(&Value::Dict(dict)) = self.stack.last() else {
            return Err(format!("the program sets an item of {}", self.stack.last().map_or("nothing", Value::kind)));
        };
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err("a key without a value".into());
        }
        self.out.dicts[dict].extend(pairs.iter().map(|[key, value]| (key.clone(), value.clone())));
        Ok(None)
    }

    /// Reads a persistent id: `('storage', type, key, location, elements[, view])`.
    fn persistent(&mut self) -> Result<Value, String> {
        let Value::Tuple(tuple) = self.pop()? else { return Err("a persistent id that is not a tuple".into()) };
        let storage = match &self.out.tuples[tuple][..] {
            [Value::Text(kind), Value::Global(Global::Storage(element)), Value::Text(key), _, elements, view @ ..]
                if **kind == *"storage" && matches!(view, [] | [Value::None]) =>
            {
                let elements = elements.as_usize().ok_or("a storage whose number of elements is not a count")?;
                Storage { element: *element, key: key.clone(), elements }
            }
            _ => return Err("a persistent id that is not a storage".into()),
        };
        self.out.storages.push(storage);
        Ok(Value::Storage(self.out.storages.len() - 1))
    }

    /// Executes a call: each of the functions that may be named only builds a value.
    fn reduce(&mut self) -> Result<Value, String> {
        let Value::Tuple(arguments) = self.pop()? else { return Err("a call whose arguments are not a tuple".into()) };
        let function = self.pop()?;
        let arguments = &self.out.tuples[arguments];
        match (&function, &arguments[..]) {
            (Value::Global(Global::OrderedDict), []) => Ok(self.dict()),
            (Value::Global(Global::Size), [Value::Tuple(size)]) => Ok(Value::Tuple(*size)),
            (Value::Global(Global::RebuildParameter), [tensor @ Value::Tensor(_), ..]) => Ok(tensor.clone()),
            (Value::Global(Global::RebuildTensor), [Value::Storage(storage), offset, size, stride, ..]) => {
                let view = self.view(*storage, offset, size, stride)?;
                self.out.tensors.push(view);
                Ok(Value::Tensor(self.out.tensors.len() - 1))
            }
            _ => Err(format!("a call of {} with unsupported arguments", function.kind())),
        }
    }

    fn view(&self, storage: usize, offset: &Value, size: &Value, stride: &Value) -> Result<View, String> {
        let numbers = |value: &Value| -> Option<Vec<usize>> {
            let Value::Tuple(items) = value else { return None };
            self.out.tuples[*items].iter().map(Value::as_usize).collect()
        };
        let (Some(offset), Some(shape), Some(strides)) = (offset.as_usize(), numbers(size), numbers(stride)) else {
            return Err("a tensor whose offset, shape or strides are not counts".into());
        };
        if shape.len() != strides.len() || shape.len() > MAX_RANK {
            return Err(format!("a tensor of shape {shape:?} with strides {strides:?}"));
        }
        let elements = self.out.storages[storage].elements;
        // Index after the last element that the view touches.
        let end = || -> Option<usize> {
            let mut last = offset;
            for (&size, &stride) in shape.iter().zip(&strides) {
                last = last.checked_add(size.checked_sub(1)?.checked_mul(stride)?)?;
            }
            last.checked_add(1)
        };
        let count = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let inside = end().is_some_and(|end| end <= elements) && count.is_some_and(|count| count <= elements);
        if !inside && !shape.contains(&0) {
            return Err(format!(
                "a tensor of shape {shape:?}, strides {strides:?} and offset {offset} does not fit its storage of {elements} elements"
            ));
        }
        Ok(View { storage, offset, shape, strides })
    }
}

fn global(module: &str, name: &str) -> Result<Value, String> {
    Global::named(module, name).map(Value::Global).ok_or_else(|| {
        let shown: String = format!("{module}.{name}").chars().filter(|c| !c.is_control()).take(80).collect();
        format!("the program names '{shown}', which a checkpoint of tensors does not need; the file is refused, and nothing was executed")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(bytes: &[u8]) -> String {
        read(bytes, 100).unwrap_err()
    }

    #[test]
    fn values_containers_and_the_memo() {
        // {'a': [1, -2], 'b': (None, True)}; the list is stored as 7 and used again as 'c'.
        let bytes = b"\x80\x02}(X\x01\0\0\0a]q\x07(K\x01J\xfe\xff\xff\xffeX\x01\0\0\0bN\x88\x86X\x01\0\0\0ch\x07u.rest";
        let (value, pickle, length) = read(bytes, 0).unwrap();
        assert_eq!((value, length), (Value::Dict(0), bytes.len() - 4));
        assert_eq!(pickle.lists, [[Value::Int(1), Value::Int(-2)]]);
        assert_eq!(pickle.tuples, [[Value::None, Value::Bool(true)]]);
        let keys: Vec<_> = pickle.dicts[0].iter().map(|(key, _)| key.clone()).collect();
        assert_eq!(keys, ["a", "b", "c"].map(|k| Value::Text(k.into())));
        assert_eq!(pickle.dicts[0][2].1, Value::List(0));
        // The magic number of the older format, ten bytes.
        assert_eq!(read(b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", 0).unwrap().0, Value::Int(0x1950a86a20f9469cfc6c));
        assert_eq!(read(b"\x8a\x01\xff.", 0).unwrap().0, Value::Int(-1));
    }

    #[test]
    fn code_is_refused_by_name() {
        let found = error(b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.");
        assert!(found.contains("'os.system'") && found.contains("byte 102"), "{found}");
        let found = error(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.");
        assert!(found.contains("'builtins.eval'"), "{found}");
        // Older opcodes that call: INST, OBJ, NEWOBJ, and extension codes.
        for opcode in [b'i', b'o', 0x81, 0x92, 0x82] {
            assert!(error(&[b'(', opcode, b'.']).contains("opcode"), "{opcode}");
        }
        assert!(error(b"(K\x01K\x02tb.").contains("attributes"));
    }

    #[test]
    fn broken_programs_are_errors() {
        for (bytes, reason) in [
            (&b""[..], "1 more bytes"),
            (b"N", "1 more bytes"),
            (b".", "empty stack"),
            (b"NN.", "left over"),
            (b"t.", "mark"),
            (b"N(0.", "opcode"),
            (b"N(.", "across a mark"),
            (b"h\x01.", "recalls value 1"),
            (b"X\xff\xff\xff\xffab", "4294967295 more bytes"),
            (b"X\x02\0\0\0\xff\xff.", "UTF-8"),
            (b"}NNNtu.", "mark"),
            (b"}(Nu.", "key without a value"),
            (b"N(Ne.", "appends to None"),
            (b"NNR.", "not a tuple"),
            (b"N)R.", "a call of None"),
            (b"K\x01Q.", "persistent id"),
            (b"\x8a\x11aaaaaaaaaaaaaaaaa.", "17 bytes"),
            (b"\x80\x07N.", "protocol 7"),
            (b"cos", "without end"),
        ] {
            assert!(error(bytes).contains(reason), "{bytes:?}: {}", error(bytes));
        }
    }

    /// A tensor of the given shape, strides and offset in a storage of `elements` floats.
    fn tensor(shape: &[i32], strides: &[i32], offset: i32, elements: i32) -> Result<View, String> {
        let integer = |value: i32| [&b"J"[..], &value.to_le_bytes()].concat();
        let tuple =
            |values: &[i32]| [b"(".to_vec(), values.iter().flat_map(|&v| integer(v)).collect(), b"t".to_vec()].concat();
        let program = [
            b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu".to_vec(),
            integer(elements),
            b"tQ".to_vec(),
            integer(offset),
            tuple(shape),
            tuple(strides),
            b"\x89}tR.".to_vec(),
        ]
        .concat();
        read(&program, 0).map(|(value, pickle, _)| {
            assert_eq!(value, Value::Tensor(0));
            pickle.tensors[0].clone()
        })
    }

    #[test]
    fn tensors_lie_inside_their_storage() {
        let view = tensor(&[2, 3], &[3, 1], 4, 10).unwrap();
        assert_eq!((view.shape, view.strides, view.offset), (vec![2, 3], vec![3, 1], 4));
        assert!(tensor(&[], &[], 0, 1).is_ok());
        assert!(tensor(&[0, 5], &[5, 1], 0, 0).is_ok());
        for (shape, strides, offset, elements) in [
            (&[2, 3][..], &[3, 1][..], 5, 10),
            (&[11], &[0], 0, 10),
            (&[i32::MAX, i32::MAX, i32::MAX], &[i32::MAX, i32::MAX, 1], 0, 10),
            (&[2], &[i32::MAX], 0, 10),
        ] {
            assert!(tensor(shape, strides, offset, elements).unwrap_err().contains("does not fit"));
        }
        assert!(tensor(&[-2], &[1], 0, 10).unwrap_err().contains("not counts"));
        assert!(tensor(&[2], &[1], 0, -1).unwrap_err().contains("elements"));
        assert!(tensor(&[1; 9], &[1; 9], 0, 10).unwrap_err().contains("shape"));
    }
}
