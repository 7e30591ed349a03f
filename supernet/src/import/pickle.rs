//! A restricted reader of Python pickles: data only.
//!
//! A pickle is a program for a stack machine, and Python's own reader calls whatever that program names. This reader
//! knows the opcodes that `torch.save` writes and a closed list of names ([`Global`]); it builds values and nothing
//! else. Every opcode adds at most one value, values that contain others refer to them by number, and nothing recurses:
//! time and memory are proportional to the length of the file.

mod values;

pub(super) use values::{ElementType, Storage, Value};

use std::collections::HashMap;
use values::{Global, View};

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
    /// Executes one opcode; gives the pickle's value at the end of the program.
    fn step(&mut self) -> Result<Option<Value>, String> {
        match self.byte()? {
            0x80 => match self.byte()? {
                2..=5 => Ok(None),
                protocol => Err(format!("protocol {protocol}, expected 2 to 5")),
            },
            // A frame only announces how many bytes follow.
            0x95 => self.take(8).map(|_| None),
            b'.' => {
                let value = self.pop()?;
                if self.stack.is_empty() { Ok(Some(value)) } else { Err("it ends with values left over".into()) }
            }
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(None)
            }
            b'q' => self.memoise(|m| Ok(u32::from(m.byte()?))),
            b'r' => self.memoise(Self::u32),
            0x94 => self.memoise(|m| Ok(m.memo.len() as u32)),
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(items)
            }
            b's' => {
                let items = self.pop_many(2)?;
                self.set(items)
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set(items)
            }
            b'b' => {
                // Attributes of an OrderedDict (PyTorch stores version numbers there) are ignored.
                self.pop()?;
                match self.stack.last() {
                    Some(Value::Dict(_)) => Ok(None),
                    other => Err(format!("the program sets attributes of {}", other.map_or("nothing", Value::kind))),
                }
            }
            opcode => {
                let value = self.value(opcode)?;
                self.stack.push(value);
                Ok(None)
            }
        }
    }

    /// The value that `opcode` puts on the stack.
    fn value(&mut self, opcode: u8) -> Result<Value, String> {
        Ok(match opcode {
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
            opcode => return Err(format!("opcode {opcode:#04x} is not needed by a checkpoint and is refused")),
        })
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
mod tests;
