//! Helpers of the kernels' tests: values and comparisons as in the tests of `ofa-kernels`, and the interpreter as
//! reference.

#[path = "../../kernels/src/testing.rs"]
mod values;

pub(crate) use values::{assert_close, assert_close_above, for_each_of, repeat_with_each_instruction_set, values};

use super::{BlockShape, BlockStatistics, ChannelStatistics, DenseShape, InstructionSet};
use crate::graph::{Builder, Graph, Shape, interpreter};
use crate::space::{BlockSpec, InvertedResidualSpec};
use candle_core::{Device, Result, Shape as TensorShape, Tensor};

/// A tensor of [`values`].
pub(crate) fn tensor(shape: impl Into<TensorShape>, stream: u64) -> Tensor {
    let shape = shape.into();
    Tensor::from_vec(values(shape.elem_count(), stream), shape, &Device::Cpu).expect("as many values as elements")
}

/// The block in candle's operations, from packed parameters: the reference of the fused kernel.
pub(super) fn interpreted_block(
    x: &Tensor,
    packed: &Tensor,
    shape: &BlockShape,
    given: Option<&BlockStatistics>,
) -> Result<Tensor> {
    let spec = InvertedResidualSpec {
        in_channels: shape.in_channels,
        middle_channels: shape.middle,
        out_channels: shape.out_channels,
        kernel: shape.kernel,
        stride: shape.stride,
        activation: shape.activation,
        expand: shape.expand,
        squeeze_excite: shape.squeeze_excite,
        residual: shape.residual,
        projection: false,
        input_size: shape.height,
    };
    let graph = BlockSpec::InvertedResidual(spec).graph(shape.eps);
    let given = given.map(|given| &given[usize::from(!shape.expand)..]);
    Ok(interpreter::run(&graph, x, &unpacked(&graph, packed)?, given)?.0)
}

/// The dense or depthwise convolution in candle's operations, from packed parameters.
pub(super) fn interpreted_dense(
    x: &Tensor,
    packed: &Tensor,
    shape: &DenseShape,
    given: Option<&ChannelStatistics>,
) -> Result<Tensor> {
    let input = Shape { height: shape.height, width: shape.width, channels: shape.in_channels };
    let (mut builder, image) = Builder::new(input, shape.eps);
    let groups = if shape.depthwise { shape.in_channels } else { 1 };
    let kernel = (shape.kernel, shape.stride);
    let names = ("convolution", "norm");
    builder.convolution_norm_activation(image, names, shape.out_channels, kernel, groups, shape.activation);
    let graph = builder.finish();
    let y = interpreter::run(&graph, x, &unpacked(&graph, packed)?, given.map(std::slice::from_ref))?.0;
    if shape.pool { y.mean((1, 2)) } else { Ok(y) }
}

/// Trainable tensors of each slot, which `packed` holds one after the other.
fn unpacked(graph: &Graph, packed: &Tensor) -> Result<Vec<Vec<Tensor>>> {
    let mut offset = 0;
    let mut next = |shape: Vec<usize>| -> Result<Tensor> {
        let len = shape.iter().product();
        offset += len;
        packed.narrow(0, offset - len, len)?.reshape(shape)
    };
    let mut slot = |slot| -> Result<Vec<Tensor>> {
        let trained = graph.tensors(slot).into_iter().filter(|(part, _)| !part.starts_with("running"));
        trained.map(|(_, shape)| next(shape)).collect()
    };
    graph.slots().iter().map(&mut slot).collect()
}
