//! Descriptions of a configuration's keys that define a space or narrow it to some values.

use serde::Serialize;

/// A key of a configuration, described for people.
#[derive(Debug, Serialize)]
pub struct Key {
    /// Names from the top to the key, joined by dots; those of an array of tables as those of a table.
    pub path: &'static str,
    /// Unit or kind of the value.
    pub unit: &'static str,
    /// Value where the key is absent; empty if the key is needed.
    pub default: &'static str,
    /// What the key is.
    pub what: &'static str,
    /// When to change it.
    pub change: &'static str,
}

impl Key {
    /// The key at `path`.
    pub const fn new(
        path: &'static str,
        unit: &'static str,
        default: &'static str,
        what: &'static str,
        change: &'static str,
    ) -> Key {
        Key { path, unit, default, what, change }
    }
}

/// Tables of a space, with what each holds.
pub static SPACE_TABLES: &[(&str, &str)] = &[
    ("space", "What subnets consist of: each list holds the values of an elastic dimension."),
    ("space.stem", "First convolution."),
    ("space.first_block", "First, fixed block; ResNet-D and AttentiveNAS have none."),
    ("space.stages", "Stages of elastic blocks, in order."),
    ("space.head", "Layers after the last stage; ResNet-D has only pool and classifier there."),
];

/// Keys of a [`SearchSpace`](super::SearchSpace) under `space`, in the order of the file.
#[rustfmt::skip]
pub static SPACE_KEYS: &[Key] = &[
    Key::new("space.name", "text", "", "name shown to people", "for a space of your own"),
    Key::new("space.family", "mobile_net_v3, proxyless_nas, resnet_d or attentive_nas", "", "kind of network",
        "together with the whole space"),
    Key::new("space.width_multiplier", "factor", "", "multiplier on all channel counts, which round to multiples of 8; AttentiveNAS: 1",
        "for a wider or narrower supernet"),
    Key::new("space.width_multipliers", "ascending factors", "none; ResNet-D needs it ([1.0] for a fixed width)",
        "ResNet-D: elastic multipliers beside that one, for the stem and each stage", "for elastic widths"),
    Key::new("space.resolutions", "ascending pixels", "", "elastic sides of the input images", "to fit your images and devices"),
    Key::new("space.kernel_sizes", "ascending odd pixels", "", "elastic depthwise kernel sizes; ResNet-D: the only one",
        "fewer values train faster"),
    Key::new("space.expand_ratios", "ascending factors", "", "elastic ratios of the channels inside a block to those before it, in ResNet-D to those after it",
        "fewer values train faster"),
    Key::new("space.depths", "ascending blocks", "", "elastic numbers of blocks of a stage", "more for larger networks"),
    Key::new("space.uniform_stages", "true or false", "false",
        "all blocks of a stage have one kernel size and one expand ratio (AttentiveNAS)", "for a smaller space"),
    Key::new("space.batch_norm_epsilon", "number", "1e-5", "epsilon of every batch norm", "only for weights that expect another"),
    Key::new("space.stem.channels", "channels", "", "output channels before the width multiplier", "with the network"),
    Key::new("space.stem.stride", "pixels", "", "stride of the first convolution", "2 for photographs, 1 for small images"),
    Key::new("space.stem.activation", "relu, relu6, hard_swish or swish", "", "activation after batch norm", "with the network"),
    Key::new("space.stem.depths", "ascending blocks", "none; ResNet-D needs it", "ResNet-D: elastic numbers of middle convolutions",
        "with the network"),
    Key::new("space.stem.widths", "ascending channels", "only `channels`", "AttentiveNAS: elastic output channels",
        "with the network"),
    Key::new("space.first_block.channels", "channels", "", "output channels before the width multiplier", "with the network"),
    Key::new("space.first_block.activation", "as in the stem", "", "activation of the depthwise convolution", "with the network"),
    Key::new("space.stages.channels", "channels", "", "output channels before the width multiplier", "with the network"),
    Key::new("space.stages.stride", "pixels", "", "stride of the stage's first block", "1 in more stages for small images"),
    Key::new("space.stages.activation", "as in the stem", "", "activation inside the blocks", "with the network"),
    Key::new("space.stages.squeeze_excite", "true or false", "false", "whether the blocks have squeeze-excite",
        "off for devices that run it badly"),
    Key::new("space.stages.block", "name", "the family's own", "kind of the blocks, of those that the program registers",
        "for blocks of your own"),
    Key::new("space.stages.depths", "ascending blocks", "the space's", "elastic numbers of blocks of this stage",
        "for a stage that differs"),
    Key::new("space.stages.kernel_sizes", "ascending odd pixels", "the space's", "elastic kernel sizes of this stage",
        "for a stage that differs"),
    Key::new("space.stages.expand_ratios", "ascending factors", "the space's", "elastic expand ratios of this stage",
        "for a stage that differs"),
    Key::new("space.stages.widths", "ascending channels", "only `channels`", "AttentiveNAS: elastic output channels",
        "with the network"),
    Key::new("space.head.feature_channels", "channels", "", "channels of the last 1x1 convolution before the width multiplier",
        "fewer for few classes"),
    Key::new("space.head.hidden_channels", "channels", "no hidden layer; AttentiveNAS needs it",
        "channels of the layer between pool and classifier", "fewer for few classes"),
    Key::new("space.head.activation", "as in the stem", "", "activation of both", "with the network"),
    Key::new("space.head.widths", "ascending channels", "only `hidden_channels`",
        "AttentiveNAS: elastic widths of the hidden layer", "with the network"),
];

/// Keys of a [`Narrowing`](super::Narrowing) under `train.stages`: the lists that the stage's subnets are drawn from.
#[rustfmt::skip]
pub static NARROWING_KEYS: &[Key] = &[
    Key::new("train.stages.resolutions", "pixels", "all of the space", "resolutions that are drawn", "to narrow a stage"),
    Key::new("train.stages.kernel_sizes", "pixels", "the largest", "kernel sizes that are drawn", "to free them in this stage"),
    Key::new("train.stages.depths", "blocks", "the largest", "numbers of blocks that are drawn", "to free them in this stage"),
    Key::new("train.stages.expand_ratios", "factors", "the largest", "expand ratios that are drawn", "to free them in this stage"),
    Key::new("train.stages.width_multipliers", "factors or channels", "the largest",
        "widths that are drawn (ResNet-D and AttentiveNAS)", "to free them in this stage"),
];
