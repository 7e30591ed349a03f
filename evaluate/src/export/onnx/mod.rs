//! ONNX: a plain graph of standard operators, with batch norm folded into the convolutions.
//!
//! The input is `input`, f32 `[batch, 3, height, width]` and normalised, the output `logits` `[batch, classes]`.
//! Engines differ in what they read well; the rules that follow from that are kept by construction:
//!
//! - Constants are never listed as inputs, never shared, and stored in the file itself.
//! - Every value has its type and shape.
//! - Fully connected layers read a `Flatten`, and averages over all pixels are `GlobalAveragePool`: neither names the
//!   batch.
//! - Pools name their padding and never use `ceil_mode`, which engines understand differently.
//! - `HardSigmoid` has its slope written out (ONNX's default is another function).
//! - Int8 models keep their weights as integers per output channel, with `axis` 0 and zero points written out. Each
//!   operation of the network that reads a rounded value has a `DequantizeLinear` of its own; scales of values have no
//!   extents.
//! - Names begin with a letter and hold letters, digits, dots and underscores only.
//!
//! | file | concern |
//! | --- | --- |
//! | `proto` | the messages of the file |
//! | `writer` | names, constants, nodes, shapes |
//! | `nodes` | from the nodes of a graph to operators |
//! | `rounding` | where an int8 model is rounded |
//! | `metadata` | labels and normalisation |

mod metadata;
mod nodes;
mod proto;
mod rounding;
mod writer;

use super::{Batch, Format, Options, Parameters};
use crate::model::{ModelConfig, ONNX_FILE};
use crate::{Error, Result};
use ofa_supernet::graph::Graph;
use prost::Message;
use std::ops::RangeInclusive;
use writer::Writer;

/// The format's line in the table.
pub(super) const FORMAT: Format = Format { name: "onnx", file: ONNX_FILE, convert };

/// Versions of the operators that can be written.
pub const OPSETS: RangeInclusive<usize> = 13..=21;

/// Version of the operators that is written by default. Engines of several years read it.
pub const DEFAULT_OPSET: usize = 17;

/// Largest message that protobuf's readers accept.
const MAX_BYTES: usize = i32::MAX as usize;

fn convert(config: &ModelConfig, parameters: &Parameters, options: &Options) -> Result<Vec<u8>> {
    let model = model(config, parameters, options)?;
    let bytes = model.encoded_len();
    if bytes > MAX_BYTES {
        return Err(Error::Export(format!(
            "the model takes {bytes} bytes, and an ONNX file holds at most {MAX_BYTES}"
        )));
    }
    Ok(model.encode_to_vec())
}

/// The file's content as a message.
fn model(config: &ModelConfig, parameters: &Parameters, options: &Options) -> Result<proto::Model> {
    let opset = opset(options);
    if !OPSETS.contains(&opset) {
        let (low, high) = OPSETS.into_inner();
        return Err(Error::Export(format!("opset {opset} is not supported; choose one from {low} to {high}")));
    }
    if options.batch == Batch::Fixed(0) {
        return Err(Error::Export("a batch of 0 images is not supported; choose at least 1".into()));
    }
    let graph = Graph::of(&config.network);
    let mut writer = Writer::new(options.batch);
    nodes::write(&graph, config, parameters, options, &mut writer)?;
    Ok(proto::Model {
        ir_version: ir_version(opset),
        opset_import: vec![proto::OperatorSet { domain: String::new(), version: opset as i64 }],
        producer_name: "ofa".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(writer.finish()),
        metadata_props: metadata::entries(config, options),
    })
}

/// Version of the operators that is written.
fn opset(options: &Options) -> usize {
    options.opset.unwrap_or(DEFAULT_OPSET)
}

/// The oldest version of the file format that has this version of the operators: engines refuse newer ones.
fn ir_version(opset: usize) -> i64 {
    match opset {
        ..=18 => 8,
        19..=20 => 9,
        _ => 10,
    }
}

#[cfg(test)]
mod tests;
