//! Reads `net.config`: a network as one JSON dictionary per layer.

use super::super::validate;
use crate::{Error, Result};
use ofa_supernet::space::{
    Activation, BlockChoice, BlockSpec, BottleneckSpec, ConvSpec, DEFAULT_EPSILON, ExpandRatio, InvertedResidualSpec,
    MaxPoolSpec, NetworkSpec, Subnet, reduced_channels,
};
use serde::Deserialize;

/// A published static network.
#[derive(Debug, Clone, PartialEq)]
pub struct PublishedNetwork {
    /// The network, layer by layer.
    pub network: NetworkSpec,
    /// Choices of the network, where each block that changes the shape of its input starts a stage. The subnet need not
    /// belong to any known space.
    pub subnet: Subnet,
    /// Index in the file of each block. Blocks that compute nothing have an index too, and are skipped here.
    pub(super) numbers: Vec<usize>,
}

/// Dictionary of a network. Keys that have no influence on the computation are ignored.
#[derive(Deserialize)]
struct Network {
    bn: Option<BatchNorm>,
    #[serde(flatten)]
    layers: Layers,
    classifier: Linear,
}

#[derive(Deserialize)]
#[serde(untagged)]
#[allow(clippy::large_enum_variant)] // there is a single instance
enum Layers {
    MobileNet {
        first_conv: Convolution,
        blocks: Vec<Inverted>,
        final_expand_layer: Option<Convolution>,
        feature_mix_layer: Convolution,
    },
    ResNet {
        input_stem: Vec<Stem>,
        blocks: Vec<Bottleneck>,
    },
}

#[derive(Deserialize)]
struct BatchNorm {
    eps: f64,
}

#[derive(Deserialize)]
struct Convolution {
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    #[serde(default = "one")]
    stride: usize,
    #[serde(default = "one")]
    groups: usize,
    #[serde(default = "one")]
    dilation: usize,
    #[serde(default = "yes")]
    use_bn: bool,
    act_func: Option<String>,
}

#[derive(Deserialize)]
struct Linear {
    in_features: usize,
    out_features: usize,
}

/// A convolution, with or without its input added.
#[derive(Deserialize)]
#[serde(untagged)]
enum Stem {
    Residual { conv: Convolution },
    Plain(Convolution),
}

/// An inverted residual with or without a shortcut; no layer, or a `ZeroLayer`, for a block that the search removed.
#[derive(Deserialize)]
struct Inverted {
    #[serde(alias = "mobile_inverted_conv")]
    conv: Option<InvertedLayer>,
    shortcut: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum InvertedLayer {
    Convolutions {
        in_channels: usize,
        out_channels: usize,
        kernel_size: usize,
        stride: usize,
        expand_ratio: f64,
        mid_channels: Option<usize>,
        act_func: String,
        #[serde(default)]
        use_se: bool,
        groups: Option<usize>,
    },
    Zero {
        name: String,
    },
}

#[derive(Deserialize)]
struct Bottleneck {
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    stride: usize,
    expand_ratio: f64,
    mid_channels: Option<usize>,
    act_func: String,
    groups: Option<usize>,
    downsample_mode: String,
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

fn fail<T>(message: String) -> Result<T> {
    Err(Error::Network(message))
}

impl PublishedNetwork {
    /// The network that the dictionary `text` describes, at `resolution`.
    ///
    /// # Errors
    /// The dictionary is not of that form, or a layer is not supported (the first one is named).
    pub fn new(text: &str, resolution: usize) -> Result<Self> {
        let config: Network = match serde_json::from_str(text) {
            Ok(config) => config,
            Err(e) => {
                return fail(format!("the file describes no published network of MobileNet or ResNet layers: {e}"));
            }
        };
        let network = NetworkSpec {
            resolution,
            stem: Vec::new(),
            max_pool: None,
            stages: Vec::new(),
            feature: None,
            hidden_channels: None,
            hidden_activation: Activation::Identity,
            batch_norm_epsilon: config.bn.map_or(DEFAULT_EPSILON, |bn| bn.eps),
            classes: config.classifier.out_features,
        };
        let subnet = Subnet { resolution, widths: Vec::new(), stem_blocks: 0, stages: Vec::new() };
        let mut published = PublishedNetwork { network, subnet, numbers: Vec::new() };
        match config.layers {
            Layers::MobileNet { first_conv, blocks, final_expand_layer, feature_mix_layer } => {
                published.mobile_net(&first_conv, &blocks, final_expand_layer.as_ref(), &feature_mix_layer)?;
            }
            Layers::ResNet { input_stem, blocks } => published.res_net(&input_stem, &blocks)?,
        }
        validate(&published.network)?;
        let (inputs, expected) = (config.classifier.in_features, published.network.classifier_channels());
        if inputs != expected {
            return fail(format!("classifier has {inputs} inputs, but the layer before it has {expected} outputs"));
        }
        Ok(published)
    }

    /// Adds a block to the last stage, or to a new stage.
    fn push(&mut self, number: usize, block: BlockSpec, choice: BlockChoice, new_stage: bool) {
        if new_stage {
            self.network.stages.push(Vec::new());
            self.subnet.stages.push(Vec::new());
        }
        if let (Some(stage), Some(choices)) = (self.network.stages.last_mut(), self.subnet.stages.last_mut()) {
            stage.push(block);
            choices.push(choice);
        }
        self.numbers.push(number);
    }

    fn mobile_net(
        &mut self,
        first: &Convolution,
        blocks: &[Inverted],
        expand: Option<&Convolution>,
        mix: &Convolution,
    ) -> Result<()> {
        let stem = convolution("first_conv", first, true, self.network.resolution)?;
        let mut size = stem.output_size();
        self.network.stem.push(stem);
        for (number, block) in blocks.iter().enumerate() {
            let Some((spec, choice)) = inverted_residual(number, block, size)? else { continue };
            size = spec.output_size();
            // The fixed first block is a stage, and a new stage begins after it.
            let new_stage = self.network.stages.len() < 2 || !spec.residual;
            self.push(number, BlockSpec::InvertedResidual(spec), choice, new_stage);
        }
        if self.numbers.len() < 2 {
            return fail(format!("{} of the blocks compute something; expected at least 2", self.numbers.len()));
        }
        // The first block is not part of the choices.
        self.subnet.stages.remove(0);
        self.network.feature = Some(match expand {
            Some(feature) => {
                if mix.use_bn || mix.kernel_size != 1 {
                    return fail(
                        "feature_mix_layer has batch norm or a kernel above 1 after final_expand_layer".into(),
                    );
                }
                self.network.hidden_channels = Some(mix.out_channels);
                self.network.hidden_activation = activation("feature_mix_layer", mix.act_func.as_deref())?;
                convolution("final_expand_layer", feature, true, size)?
            }
            None => {
                let feature = convolution("feature_mix_layer", mix, true, size)?;
                self.network.hidden_activation = feature.activation;
                feature
            }
        });
        Ok(())
    }

    fn res_net(&mut self, stem: &[Stem], blocks: &[Bottleneck]) -> Result<()> {
        let mut size = self.network.resolution;
        for (index, layer) in stem.iter().enumerate() {
            let (conv, residual) = match layer {
                Stem::Residual { conv } => (conv, true),
                Stem::Plain(conv) => (conv, false),
            };
            let spec = ConvSpec { residual, ..convolution(&format!("input_stem {index}"), conv, true, size)? };
            size = spec.output_size();
            self.subnet.stem_blocks += usize::from(residual);
            self.network.stem.push(spec);
        }
        let channels = self.network.stem.last().map_or(0, |conv| conv.out_channels);
        let pool = MaxPoolSpec { channels, input_size: size };
        size = pool.output_size();
        self.network.max_pool = Some(pool);
        for (number, block) in blocks.iter().enumerate() {
            let name = format!("block {number}");
            if block.groups.is_some_and(|groups| groups != 1) {
                return fail(format!("{name} has {:?} groups; 1 was expected", block.groups));
            }
            check_stride(&name, block.stride)?;
            // The published code adds the input itself if the shapes allow it.
            let projection = block.stride != 1 || block.in_channels != block.out_channels;
            if projection && block.downsample_mode != "avgpool_conv" {
                return fail(format!("{name} has the shortcut '{}'; avgpool_conv was expected", block.downsample_mode));
            }
            let middle = (block.out_channels as f64 * block.expand_ratio).round() as usize;
            let spec = BottleneckSpec {
                in_channels: block.in_channels,
                middle_channels: block.mid_channels.unwrap_or(middle),
                out_channels: block.out_channels,
                kernel: block.kernel_size,
                stride: block.stride,
                activation: activation(&name, Some(&block.act_func))?,
                projection,
                input_size: size,
            };
            size = spec.output_size();
            let choice = choice(&name, block.kernel_size, block.expand_ratio)?;
            self.push(number, BlockSpec::Bottleneck(spec), choice, number == 0 || projection);
        }
        Ok(())
    }
}

/// The specification and choice of a block; `None` for a block that computes nothing.
fn inverted_residual(
    index: usize,
    block: &Inverted,
    input_size: usize,
) -> Result<Option<(InvertedResidualSpec, BlockChoice)>> {
    let name = format!("block {index}");
    match &block.conv {
        None => Ok(None),
        Some(InvertedLayer::Zero { name: kind }) if kind == "ZeroLayer" => Ok(None),
        Some(InvertedLayer::Zero { name: kind }) => {
            fail(format!("{name} is a {kind}; a complete MBConvLayer was expected"))
        }
        &Some(InvertedLayer::Convolutions {
            in_channels,
            out_channels,
            kernel_size: kernel,
            stride,
            expand_ratio,
            mid_channels,
            ref act_func,
            use_se,
            groups,
        }) => {
            check_stride(&name, stride)?;
            let residual = match block.shortcut.as_ref().map(|shortcut| shortcut.name.as_str()) {
                None | Some("ZeroLayer") => false,
                Some("IdentityLayer") => true,
                Some(other) => return fail(format!("{name} has the shortcut '{other}'; IdentityLayer was expected")),
            };
            let middle = mid_channels.unwrap_or((in_channels as f64 * expand_ratio).round() as usize);
            if groups.is_some_and(|groups| groups != middle) {
                return fail(format!("{name} has {groups:?} groups; a depthwise convolution was expected"));
            }
            let spec = InvertedResidualSpec {
                in_channels,
                middle_channels: middle,
                out_channels,
                kernel,
                stride,
                activation: activation(&name, Some(act_func))?,
                expand: expand_ratio != 1.0,
                squeeze_excite: use_se.then(|| reduced_channels(middle)),
                residual,
                projection: false,
                input_size,
            };
            if spec.residual && stride != 1 {
                return fail(format!("{name} has a shortcut and stride {stride}; stride 1 was expected"));
            }
            Ok(Some((spec, choice(&name, kernel, expand_ratio)?)))
        }
    }
}

/// Checks a stride before map sizes are divided by it; the network as a whole is checked later.
fn check_stride(name: &str, stride: usize) -> Result<()> {
    if (1..=2).contains(&stride) { Ok(()) } else { fail(format!("{name} has stride {stride}; 1 or 2 was expected")) }
}

fn choice(name: &str, kernel: usize, expand_ratio: f64) -> Result<BlockChoice> {
    let expand = ExpandRatio::try_from(expand_ratio).or_else(|e| fail(format!("{name}: {e}")))?;
    Ok(BlockChoice { kernel, expand })
}

fn convolution(name: &str, conv: &Convolution, batch_norm: bool, input_size: usize) -> Result<ConvSpec> {
    check_stride(name, conv.stride)?;
    if conv.groups != 1 || conv.dilation != 1 || conv.use_bn != batch_norm {
        return fail(format!(
            "{name} has {} groups, dilation {} and batch norm: {}; 1, 1 and {batch_norm} were expected",
            conv.groups, conv.dilation, conv.use_bn
        ));
    }
    Ok(ConvSpec {
        in_channels: conv.in_channels,
        out_channels: conv.out_channels,
        kernel: conv.kernel_size,
        stride: conv.stride,
        activation: activation(name, conv.act_func.as_deref())?,
        residual: false,
        input_size,
    })
}

fn activation(layer: &str, name: Option<&str>) -> Result<Activation> {
    match name {
        None => Ok(Activation::Identity),
        Some("relu") => Ok(Activation::Relu),
        Some("relu6") => Ok(Activation::Relu6),
        Some("h_swish") => Ok(Activation::HardSwish),
        Some(other) => fail(format!("{layer} has the activation '{other}'; known are relu, relu6 and h_swish")),
    }
}
