//! Facts of `config.json` that a rebuild in another framework needs beside the network's layers.

use ofa_supernet::data::CENTRAL_FROM;
use ofa_supernet::space::{BlockSpec, NetworkSpec};
use serde::{Deserialize, Serialize};

/// What the layers of a network leave open. Each fact has one value in this version; a file with another is refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// Zeros around the input of convolutions.
    pub padding: Padding,
    /// Inside of squeeze-excite; absent where no block has it: mean over the pixels, 1x1 convolution with bias, inner
    /// activation, 1x1 convolution with bias, gate, which multiplies the channels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub squeeze_excite: Option<SqueezeExcite>,
}

/// Zeros around the input of convolutions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Padding {
    /// Half of the kernel's size, rounded down, on all sides.
    HalfKernel,
}

/// Functions inside of squeeze-excite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqueezeExcite {
    /// Function between the two convolutions.
    pub inner_activation: InnerActivation,
    /// Function after the second one.
    pub gate: GateFunction,
}

/// Function between the convolutions of squeeze-excite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InnerActivation {
    /// `max(x, 0)`
    Relu,
}

/// Function whose values multiply the channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateFunction {
    /// `relu6(x + 3) / 6`
    HardSigmoid,
}

/// How an image becomes the network's input. Each fact has one value in this version, and a file with another is
/// refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Order of the colours.
    pub colours: Colours,
    /// Part of the image that is seen.
    pub crop: InputCrop,
    /// How that part is brought to the network's resolution.
    pub resize: Resize,
}

/// Order of the colours of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Colours {
    /// Red, green, blue.
    Rgb,
}

/// Part of an image that is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputCrop {
    /// All of a square image, otherwise the central square of its shorter side: for less than 64 pixels.
    CentralSquare,
    /// All of a square image, otherwise the central square of 224/256 of its shorter side: from 64 pixels on.
    #[serde(rename = "central_square_224_of_256")]
    CentralSquare224Of256,
}

/// How a part of an image is brought to a resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// Once, with a triangle filter: as wide as the scale when shrinking (antialiased), bilinear when enlarging.
    AntialiasedBilinear,
}

impl Architecture {
    /// The facts about `network`.
    pub fn of(network: &NetworkSpec) -> Self {
        let gated = |block: &BlockSpec| match block {
            BlockSpec::InvertedResidual(block) => block.squeeze_excite.is_some(),
            BlockSpec::Bottleneck(_) | BlockSpec::Custom(_) => false,
        };
        let squeeze_excite = SqueezeExcite { inner_activation: InnerActivation::Relu, gate: GateFunction::HardSigmoid };
        Architecture {
            padding: Padding::HalfKernel,
            squeeze_excite: network.blocks().any(gated).then_some(squeeze_excite),
        }
    }
}

impl Input {
    /// The input of a network of this resolution.
    pub fn at(resolution: usize) -> Self {
        let crop = if resolution < CENTRAL_FROM { InputCrop::CentralSquare } else { InputCrop::CentralSquare224Of256 };
        Input { colours: Colours::Rgb, crop, resize: Resize::AntialiasedBilinear }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofa_supernet::space::preset;

    #[test]
    fn facts_follow_from_the_network() {
        let network = |name: &str| {
            let space = preset(name).unwrap();
            space.network(&space.largest(), 3).unwrap()
        };
        assert_eq!(Architecture::of(&network("resnet-tiny")).squeeze_excite, None);
        let gated = Architecture::of(&network("mbv3-w1.0")).squeeze_excite.unwrap();
        assert_eq!((gated.inner_activation, gated.gate), (InnerActivation::Relu, GateFunction::HardSigmoid));
        let text = |resolution| serde_json::to_string(&Input::at(resolution)).unwrap();
        assert_eq!(text(32), r#"{"colours":"rgb","crop":"central_square","resize":"antialiased_bilinear"}"#);
        assert!(text(64).contains("central_square_224_of_256"));
    }
}
