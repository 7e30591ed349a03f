//! Values of a pickle.

use std::rc::Rc;

/// The names that a pickle may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::import) enum Global {
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
pub(in crate::import) enum ElementType {
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
    pub(in crate::import) fn bytes(self) -> usize {
        match self {
            ElementType::F64 => 8,
            ElementType::F32 => 4,
            ElementType::F16 | ElementType::Bf16 => 2,
            ElementType::Integer(bytes) => bytes,
        }
    }
}

impl Global {
    pub(super) fn named(module: &str, name: &str) -> Option<Self> {
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

/// A value; those that contain others are numbers into [`Pickle`](super::Pickle)'s lists, so that copying one is always
/// cheap.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::import) enum Value {
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
    pub(in crate::import) fn kind(&self) -> &'static str {
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
    pub(in crate::import) fn as_usize(&self) -> Option<usize> {
        match self {
            Value::Int(value) => usize::try_from(*value).ok(),
            _ => None,
        }
    }
}

/// A storage as the pickle declares it. The reader of the bytes checks that they exist.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::import) struct Storage {
    pub(in crate::import) element: ElementType,
    /// Name of the storage's bytes in the file.
    pub(in crate::import) key: Rc<str>,
    /// Number of elements.
    pub(in crate::import) elements: usize,
}

/// A tensor: elements `offset + sum(index x stride)` of a storage. Checked to lie inside the declared storage, and to
/// have no more elements than the storage.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::import) struct View {
    /// Number of the storage in [`Pickle::storages`](super::Pickle::storages).
    pub(in crate::import) storage: usize,
    pub(in crate::import) offset: usize,
    pub(in crate::import) shape: Vec<usize>,
    pub(in crate::import) strides: Vec<usize>,
}
