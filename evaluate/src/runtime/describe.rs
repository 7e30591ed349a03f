//! A program's steps in words, for measurements.

use super::compiler::{LayerKind, Program, Step, Work};

/// A call of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepInfo {
    /// Name of the layer's tensors, or the operation.
    pub name: String,
    /// Shapes, such as `3x3 16-64 at 112x112`.
    pub shape: String,
    /// Multiply-accumulates per image.
    pub macs: u64,
}

impl Program {
    /// A step in words.
    pub(super) fn describe(&self, step: &Step) -> StepInfo {
        let (height, width) = (step.shape.height, step.shape.width);
        let at = format!("at {height}x{width}");
        let Work::Layer { layer, expand, gate, .. } = step.work else {
            let channels = step.shape.channels;
            return StepInfo { name: operation(&step.work).into(), shape: format!("{channels} {at}"), macs: 0 };
        };
        let layer = &self.layers[layer];
        let (kernel, stride) = match layer.kind {
            LayerKind::Pointwise => (1, 1),
            LayerKind::Depthwise { kernel, stride } | LayerKind::Dense { kernel, stride } => (kernel, stride),
        };
        let (inputs, outputs) = (layer.in_channels, layer.out_channels);
        let depthwise = matches!(layer.kind, LayerKind::Depthwise { .. });
        let shape = match depthwise {
            true => format!("{kernel}x{kernel} stride {stride} of {outputs} {at}"),
            false if kernel * stride > 1 => format!("{kernel}x{kernel} stride {stride} {inputs}-{outputs} {at}"),
            false => format!("{inputs}-{outputs} {at}{}", if gate.is_some() { ", gated" } else { "" }),
        };
        let per_pixel = kernel * kernel * if depthwise { outputs } else { inputs * outputs };
        let macs = height.div_ceil(stride) * width.div_ceil(stride) * per_pixel;
        let Some(expand) = expand.map(|(expand, _)| &self.layers[expand]) else {
            return StepInfo { name: layer.name.clone(), shape, macs: macs as u64 };
        };
        let macs = macs + height * width * expand.in_channels * expand.out_channels;
        let shape = format!("{}-{}, {shape}", expand.in_channels, expand.out_channels);
        StepInfo { name: format!("{} and {}", expand.name, layer.name), shape, macs: macs as u64 }
    }
}

fn operation(work: &Work) -> &'static str {
    match work {
        Work::Layer { .. } => "layer",
        Work::GlobalAveragePool | Work::AveragePool { .. } => "average pool",
        Work::MaxPool => "max pool",
        Work::Add(_) => "sum",
        Work::HardSigmoid => "hard sigmoid",
        Work::Activation(_) => "activation",
        Work::Gate(_) | Work::GateRounded(_) => "gate",
        Work::Copy => "copy",
        Work::Quantise => "rounding",
        Work::Dequantise => "conversion to f32",
    }
}
