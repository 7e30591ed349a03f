//! The layers of a program with their weights, laid out for their kernels.

use super::compiler::{Layer, LayerKind};
use super::weights::Checked;
use crate::quantise::{Int8Layer, QuantisedLayer, QuantisedNetwork, Scale};
use crate::{Error, Result};
use ofa_supernet::ops::inference::int8::{self, Affine, Int8Weights, OrderedConv};
use ofa_supernet::ops::inference::{DenseConv, Depthwise, Pointwise};

/// A layer's weights.
pub(super) enum Kernel {
    Pointwise(Pointwise),
    Depthwise(Depthwise),
    Dense(DenseConv),
    Int8Pointwise(int8::Pointwise, Scale),
    Int8Depthwise(int8::Depthwise),
    Int8Dense(int8::DenseConv),
    /// An f32 layer of a quantised network.
    Ordered(OrderedConv),
}

impl Kernel {
    /// A layer of an f32 network.
    pub fn new(layer: &Layer, weights: &Checked) -> Self {
        let (weight, bias) = weights.layer(layer);
        let (input, output) = (layer.in_channels, layer.out_channels);
        match layer.kind {
            LayerKind::Pointwise => Kernel::Pointwise(Pointwise::new(&weight, &bias, input, output)),
            LayerKind::Depthwise { kernel, stride } => {
                Kernel::Depthwise(Depthwise::new(&weight, &bias, output, kernel, stride))
            }
            LayerKind::Dense { kernel, stride } => {
                Kernel::Dense(DenseConv::new(&weight, &bias, input, output, kernel, stride))
            }
        }
    }

    /// A layer of a quantised network that passed its check.
    ///
    /// # Errors
    /// A layer that no kernel computes.
    pub fn quantised(layer: &Layer, network: &QuantisedNetwork) -> Result<Self> {
        match (network.layers.get(&layer.name), layer.input) {
            (Some(QuantisedLayer::Int8(weights)), Some(scale)) => Kernel::int8(layer, weights, scale),
            (Some(QuantisedLayer::F32 { weight, bias }), None) => {
                let (kernel, stride, depthwise) = match layer.kind {
                    LayerKind::Pointwise => (1, 1, false),
                    LayerKind::Depthwise { kernel, stride } => (kernel, stride, true),
                    LayerKind::Dense { kernel, stride } => (kernel, stride, false),
                };
                Ok(Kernel::Ordered(OrderedConv::new(weight, bias, layer.in_channels, kernel, stride, depthwise)))
            }
            _ => Err(Error::tensor(&layer.name, "has no weights of the number type of its input")),
        }
    }

    fn int8(layer: &Layer, weights: &Int8Layer, scale: Scale) -> Result<Self> {
        let multipliers: Vec<f32> = weights.scales.iter().map(|weight| scale.scale * weight).collect();
        let Int8Layer { weight, bias, .. } = weights;
        let weights = Int8Weights { weight, bias, multipliers: &multipliers, zero_point: scale.zero_point };
        match layer.kind {
            LayerKind::Pointwise => Ok(Kernel::Int8Pointwise(int8::Pointwise::new(weights, layer.in_channels), scale)),
            LayerKind::Depthwise { kernel, stride } if int8::Depthwise::supports(kernel, stride) => {
                Ok(Kernel::Int8Depthwise(int8::Depthwise::new(weights, kernel, stride)))
            }
            LayerKind::Depthwise { kernel, stride } => {
                let message = format!("no int8 kernel computes a depthwise {kernel}x{kernel} with stride {stride}");
                Err(Error::tensor(&layer.name, format!("{message}; keep the layer f32")))
            }
            LayerKind::Dense { kernel, stride } => {
                Ok(Kernel::Int8Dense(int8::DenseConv::new(weights, layer.in_channels, kernel, stride)))
            }
        }
    }
}

impl From<Scale> for Affine {
    fn from(Scale { scale, zero_point }: Scale) -> Self {
        Affine { scale, zero_point }
    }
}
