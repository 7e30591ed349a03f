//! `config.json` of an extracted model.

use super::{Architecture, Input, validate};
use crate::quantise::{Engine, Scale};
use ofa_supernet::data::Normalisation;
use ofa_supernet::space::{NetworkSpec, Subnet};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Value of the `format` field.
pub const FORMAT: &str = "ofa-model";
/// Version of the format that this program writes and reads.
pub const VERSION: u32 = 1;

/// Everything that is needed to rebuild a model from its tensors and to prepare its input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Always [`FORMAT`].
    pub format: String,
    /// Format version, [`VERSION`].
    pub version: u32,
    /// Name of the search space the model comes from.
    pub space: String,
    /// The subnet in its one-line form.
    pub subnet: Subnet,
    /// The network, layer by layer.
    pub network: NetworkSpec,
    /// Name of each class, in the order of the logits.
    pub labels: Vec<String>,
    /// Map from pixels to input values: `(pixel / 255 - mean) / std`, per colour channel.
    pub normalisation: Normalisation,
    /// Number type of the tensors in the file.
    pub dtype: NumberType,
    /// What the network's layers leave open; absent in folders of earlier versions, which had the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<Architecture>,
    /// How an image becomes the network's input; absent in folders of earlier versions, which had the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Input>,
    /// Where the model comes from; absent in folders of earlier versions and of imported networks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
    /// How the weights came about before any fine-tuning, in sentences for the model card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Fine-tuning after the weights were cut out of the supernet; absent if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finetuned: Option<Finetuned>,
    /// Fine-tuning that lowered the validation accuracy, so that the weights from before it are stored; absent
    /// otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried_finetuning: Option<Finetuned>,
    /// Scales of an int8 model; absent for all others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantisation: Option<Quantisation>,
}

/// Where a model comes from. Paths are left out: a run is named by its folder.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Version of the program that extracted the model, with its commit.
    pub ofa: String,
    /// Name of the run folder.
    pub run: String,
    /// Name of the search that found the subnet; absent if it was named otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<String>,
    /// Limits of that search, such as `phone:latency=12ms`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<String>,
    /// Accuracy that the search or the predictor predicted, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_accuracy: Option<f64>,
    /// Accuracy of the f32 weights on validation images, 0 to 1, after fine-tuning if that was kept; an int8 model has
    /// that of the model it was made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_accuracy: Option<f64>,
}

/// How a model was quantised, and the scales of its values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantisation {
    /// Engine whose rounding the model has.
    pub engine: Engine,
    /// Training images that scales and biases were calibrated on.
    pub images: usize,
    /// Bits of the weights: 8, or 7 for engines that add products in 16 bits.
    pub weight_bits: u8,
    /// Layers that were kept in f32 on purpose: other engines keep them, too.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub keep_f32: BTreeSet<String>,
    /// Name of the folder of the f32 model that it was made of, beside that of the int8 model; absent if it is
    /// elsewhere. `load.py` reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub f32_model: Option<String>,
    /// Fine-tuning with quantisation in the loop; absent if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finetuned: Option<Finetuned>,
    /// Fine-tuning with quantisation in the loop that lowered the validation accuracy, so that the integers from before
    /// it are stored; absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried_finetuning: Option<Finetuned>,
    /// Scales of the rounded values, by the names of the nodes that make them
    /// ([`node_names`](crate::quantise::node_names)).
    pub values: BTreeMap<String, Scale>,
    /// Scales of values that stay f32 here, for engines that round there too.
    pub engine_values: BTreeMap<String, Scale>,
}

/// Settings of a fine-tuning: equal settings and the same supernet give the same weights.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finetuned {
    /// Epochs over the training images.
    pub epochs: f64,
    /// Learning rate at the start.
    pub learning_rate: f64,
}

/// Number types in which a model can be stored; computation is in f32 for all but int8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NumberType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// Upper half of single precision.
    Bf16,
    /// 8-bit integers with scales.
    Int8,
}

impl NumberType {
    /// Number of bytes per number.
    pub fn bytes(self) -> usize {
        match self {
            NumberType::F32 => 4,
            NumberType::F16 | NumberType::Bf16 => 2,
            NumberType::Int8 => 1,
        }
    }
}

impl fmt::Display for NumberType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NumberType::F32 => "f32",
            NumberType::F16 => "f16",
            NumberType::Bf16 => "bf16",
            NumberType::Int8 => "int8",
        })
    }
}

impl ModelConfig {
    /// A configuration in the current format version.
    pub fn new(
        space: &str,
        subnet: &Subnet,
        network: NetworkSpec,
        labels: Vec<String>,
        normalisation: Normalisation,
        dtype: NumberType,
    ) -> Self {
        ModelConfig {
            format: FORMAT.into(),
            version: VERSION,
            space: space.into(),
            subnet: subnet.clone(),
            architecture: Some(Architecture::of(&network)),
            input: Some(Input::at(network.resolution)),
            network,
            labels,
            normalisation,
            dtype,
            provenance: None,
            origin: None,
            finetuned: None,
            tried_finetuning: None,
            quantisation: None,
        }
    }

    /// The configuration without records of where the weights come from, and without facts that follow from the
    /// network. Equal weights with equal configurations of this form are one model.
    pub(super) fn without_records(&self) -> Self {
        let without = |quantisation: Quantisation| Quantisation {
            f32_model: None,
            finetuned: None,
            tried_finetuning: None,
            ..quantisation
        };
        ModelConfig {
            architecture: None,
            input: None,
            provenance: None,
            origin: None,
            finetuned: None,
            tried_finetuning: None,
            quantisation: self.quantisation.clone().map(without),
            ..self.clone()
        }
    }

    /// Checks that the configuration is consistent.
    ///
    /// # Errors
    /// One sentence about the first wrong value.
    pub fn validate(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("the format is '{}'; expected '{FORMAT}'", self.format));
        }
        if self.version != VERSION {
            return Err(format!(
                "the file has format version {}, but this program reads version {VERSION}; extract the model again",
                self.version
            ));
        }
        validate(&self.network).map_err(|e| e.to_string())?;
        if self.labels.len() != self.network.classes {
            return Err(format!("{} labels for {} classes", self.labels.len(), self.network.classes));
        }
        if (self.dtype == NumberType::Int8) != self.quantisation.is_some() {
            return Err(format!("'quantisation' belongs to int8 models and to no others, and dtype is {}", self.dtype));
        }
        // Both are written for readers; this program would not act on other values.
        if self.architecture.as_ref().is_some_and(|facts| *facts != Architecture::of(&self.network)) {
            return Err("'architecture' is not that of the network; extract the model again".into());
        }
        if self.input.as_ref().is_some_and(|input| *input != Input::at(self.network.resolution)) {
            return Err(format!(
                "'input' is not that of a network for {} pixels; extract the model again",
                self.network.resolution
            ));
        }
        let engine_values = self.quantisation.iter().flat_map(|quantisation| &quantisation.engine_values);
        engine_values.into_iter().try_for_each(|(name, scale)| scale.check(name)).map_err(|e| e.to_string())?;
        self.normalisation.check().map_err(|e| e.to_string())
    }
}
