//! Conversion of tensors to and from safetensors files.

use super::{NumberType, tensor_shapes};
use crate::runtime::Weights;
use half::{bf16, f16};
use ofa_supernet::space::NetworkSpec;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use std::collections::HashMap;

/// Answer to callers that need f32 weights.
const INT8: &str = "the model is int8, and f32 weights are needed here; name the f32 model that it was made from";

/// The tensors of a file as f32.
///
/// Only names of `network` are converted, so that a file cannot cause larger allocations than the network needs.
/// PyTorch's `num_batches_tracked` beside running statistics is ignored, since evaluation does not use it.
///
/// # Errors
/// One sentence about a broken header, a tensor that the network does not have, or a wrong number type.
pub fn decode(bytes: &[u8], network: &NetworkSpec, dtype: NumberType) -> Result<Weights, String> {
    if dtype == NumberType::Int8 {
        return Err(INT8.into());
    }
    let file = SafeTensors::deserialize(bytes).map_err(|e| format!("not a valid safetensors file: {e}"))?;
    let known: HashMap<String, Vec<usize>> = tensor_shapes(network).into_iter().collect();
    let mut weights = Weights::with_capacity(known.len());
    let counts_batches = |name: &str| {
        let norm = name.strip_suffix(".num_batches_tracked");
        norm.is_some_and(|norm| known.contains_key(&format!("{norm}.running_mean")))
    };
    for (name, view) in file.iter().filter(|(name, _)| !counts_batches(name)) {
        if !known.contains_key(name) {
            return Err(format!("tensor '{name}' does not belong to the network in config.json"));
        }
        if view.dtype() != stored(dtype) {
            return Err(format!("tensor '{name}' is {:?}, but config.json says {dtype}", view.dtype()));
        }
        let data = view.data();
        let values = match dtype {
            NumberType::F32 | NumberType::Int8 => data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            NumberType::F16 => data.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
            NumberType::Bf16 => data.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
        };
        weights.insert(name.to_string(), (view.shape().to_vec(), values));
    }
    Ok(weights)
}

/// The bytes of a file that holds `weights` as `dtype`.
///
/// # Errors
/// One sentence about a value without a finite counterpart in `dtype` (f16 ends at 65504), with the name of the tensor.
pub fn encode(weights: &Weights, dtype: NumberType) -> Result<Vec<u8>, String> {
    if dtype == NumberType::Int8 {
        return Err(INT8.into());
    }
    let mut converted = Vec::with_capacity(weights.len());
    for (name, (shape, values)) in weights {
        let finite = |value: f32, stored: f32| {
            if stored.is_finite() {
                return Ok(());
            }
            Err(format!("tensor '{name}' holds {value}, which {dtype} cannot store; use f32"))
        };
        let mut bytes = Vec::with_capacity(values.len() * dtype.bytes());
        for &value in values {
            match dtype {
                NumberType::F32 | NumberType::Int8 => bytes.extend_from_slice(&value.to_le_bytes()),
                NumberType::F16 => {
                    let half = f16::from_f32(value);
                    finite(value, half.to_f32())?;
                    bytes.extend_from_slice(&half.to_le_bytes());
                }
                NumberType::Bf16 => {
                    let half = bf16::from_f32(value);
                    finite(value, half.to_f32())?;
                    bytes.extend_from_slice(&half.to_le_bytes());
                }
            }
        }
        converted.push((name.clone(), stored(dtype), shape.clone(), bytes));
    }
    serialized(converted)
}

/// The bytes of a file with these tensors: name, number type, shape, values in little-endian bytes.
pub fn serialized(mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>) -> Result<Vec<u8>, String> {
    // Equal weights give equal files, whatever the order of the map.
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let mut views = Vec::with_capacity(tensors.len());
    for (name, dtype, shape, bytes) in &tensors {
        let view = TensorView::new(*dtype, shape.clone(), bytes).map_err(|e| format!("tensor '{name}': {e}"))?;
        views.push((name.as_str(), view));
    }
    // Python readers look for `format` to choose a framework.
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    serialize(views, Some(metadata)).map_err(|e| e.to_string())
}

fn stored(dtype: NumberType) -> Dtype {
    match dtype {
        NumberType::F32 => Dtype::F32,
        NumberType::F16 => Dtype::F16,
        NumberType::Bf16 => Dtype::BF16,
        NumberType::Int8 => Dtype::I8,
    }
}
