//! Model
mod names;
pub use names::{BlockNames, block_prefix, feature_prefix, tensor_shapes};
