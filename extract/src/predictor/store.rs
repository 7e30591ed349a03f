//! `predictor.safetensors`: the fitted numbers, with the search space and the format's version in its metadata.
//!
//! The metadata is one entry, `ofa`, since the order of several is left to chance: equal predictors are equal files.
//! Version 4 is an ensemble, version 6 a Gaussian process (version 5 had sums for totals, not their logarithms).

use super::encoding::Encoding;
use super::ensemble::Ensemble;
use super::features::Features;
use super::fit::MOST_MEMBERS;
use super::likelihood::Shape;
use super::mlp::{Layer, Mlp};
use super::process::MOST_SAMPLES;
use super::process::{Parts, Process, Scale};
use super::{Model, Origin, Predictor};
use crate::{Error, Result};
use ofa_supernet::space::Narrowing;
use ofa_supernet::{SearchSpace, files};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;

const FORMAT: &str = "ofa-predictor";
const ENSEMBLE: u32 = 4;
const PROCESS: u32 = 6;
const ENTRY: &str = "ofa";

#[derive(Serialize, Deserialize)]
struct Entry {
    format: String,
    version: u32,
    space: SearchSpace,
    /// Of an ensemble; 0 otherwise.
    members: usize,
    noise: f32,
    /// Absent in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin: Option<Origin>,
    /// Absent if not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    overrating: Option<f64>,
    /// Absent without samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sampled: Option<Narrowing>,
    /// Absent where measured accuracies were fitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    measuring: Option<f64>,
}

/// A tensor as it is written.
struct Stored {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Stored {
    fn f32(name: String, shape: Vec<usize>, values: &[f32]) -> Self {
        Stored { name, dtype: Dtype::F32, shape, bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect() }
    }

    fn f64(name: &str, values: &[f64]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Stored { name: name.into(), dtype: Dtype::F64, shape: vec![values.len()], bytes }
    }
}

impl Predictor {
    /// Writes the predictor.
    ///
    /// Of an ensemble: for each member tensors `member{m}.layer{0..3}.weight` of shape `[inputs, outputs]`,
    /// `member{m}.layer{0..3}.bias` and `member{m}.linear` of shape `[inputs]` in f32. Of a Gaussian process:
    /// `process.states` of shape `[samples, choices]` in u8, `process.weights` of shape `[samples]`, `process.shape`
    /// and `process.scales` in f64.
    ///
    /// # Errors
    /// A failed write.
    pub fn save(&self, path: &Path) -> Result<()> {
        Ok(files::write_atomic(path, &self.content()?)?)
    }

    /// The file's bytes: equal for equal predictors.
    pub(super) fn content(&self) -> Result<Vec<u8>> {
        let fail = |e: &dyn std::fmt::Display| Error::Internal(format!("the predictor has no form as a file: {e}"));
        let (version, members, noise, tensors) = match &self.model {
            Model::Ensemble(ensemble) => (ENSEMBLE, ensemble.members.len(), ensemble.noise, of_ensemble(ensemble)),
            Model::Process(process) => (PROCESS, 0, 0.0, of_process(process.parts())),
        };
        let (space, origin, sampled) = (self.space.clone(), self.origin.clone(), self.sampled.clone());
        let (overrating, measuring) = (self.overrating, self.measuring);
        let entry =
            Entry { format: FORMAT.into(), version, space, members, noise, origin, overrating, sampled, measuring };
        let entry = serde_json::to_string(&entry).map_err(|e| fail(&e))?;
        let metadata = HashMap::from([(ENTRY.to_string(), entry)]);
        let mut views = Vec::new();
        for Stored { name, dtype, shape, bytes } in &tensors {
            views.push((name.clone(), TensorView::new(*dtype, shape.clone(), bytes).map_err(|e| fail(&e))?));
        }
        serialize(views, Some(metadata)).map_err(|e| fail(&e))
    }

    /// Reads a predictor that [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// An unreadable file, another format or version, an invalid space, a tensor that is missing, has another shape
    /// than the space asks for, or holds a value that is no number.
    pub fn load(path: &Path) -> Result<Self> {
        let file = files::read_bytes(path)?;
        let foreign = |message: String| Error::format(path, format!("no predictor of this program: {message}"));
        let (_, header) = SafeTensors::read_metadata(&file).map_err(|e| foreign(e.to_string()))?;
        let entry = header.metadata().as_ref().and_then(|metadata| metadata.get(ENTRY));
        let entry = entry.ok_or_else(|| foreign(format!("its header has no '{ENTRY}' entry; fit it anew")))?;
        let entry: Entry = serde_json::from_str(entry).map_err(|e| foreign(format!("its '{ENTRY}' entry: {e}")))?;
        if entry.format != FORMAT {
            return Err(foreign(format!("its format is '{}', expected '{FORMAT}'", entry.format)));
        }
        entry.space.validate().map_err(|e| e.at(path))?;
        if let Some(overrating) = entry.overrating.filter(|value| !(value.is_finite() && *value >= 0.0)) {
            return Err(foreign(format!(
                "a search cannot overrate its choice by {overrating} deviations; fit it anew"
            )));
        }
        if let Some(measuring) = entry.measuring.filter(|value| !(value.is_finite() && *value >= 0.0)) {
            return Err(foreign(format!("accuracies cannot deviate by {measuring} from expected ones; fit it anew")));
        }
        let tensors = Tensors(SafeTensors::deserialize(&file).map_err(|e| foreign(e.to_string()))?);
        let model = match entry.version {
            ENSEMBLE => tensors.ensemble(&entry).map(|ensemble| Model::Ensemble(Box::new(ensemble))),
            PROCESS => tensors.process(&entry.space).map(|process| Model::Process(Box::new(process))),
            version => Err(format!("its version is {version}, expected {ENSEMBLE} or {PROCESS}; fit it anew")),
        };
        Ok(Predictor {
            space: entry.space,
            model: model.map_err(foreign)?,
            origin: entry.origin,
            overrating: entry.overrating,
            sampled: entry.sampled,
            measuring: entry.measuring,
        })
    }
}

fn of_ensemble(ensemble: &Ensemble) -> Vec<Stored> {
    let mut tensors = Vec::new();
    for (member, mlp) in ensemble.members.iter().enumerate() {
        tensors.push(Stored::f32(format!("member{member}.linear"), vec![mlp.linear().len()], mlp.linear()));
        for (index, layer) in mlp.layers().iter().enumerate() {
            let outputs = layer.bias.len();
            let shape = vec![layer.weight.len() / outputs, outputs];
            tensors.push(Stored::f32(format!("member{member}.layer{index}.weight"), shape, &layer.weight));
            tensors.push(Stored::f32(format!("member{member}.layer{index}.bias"), vec![outputs], &layer.bias));
        }
    }
    tensors
}

fn of_process(parts: &Parts) -> Vec<Stored> {
    let Parts { shape, states, weights, accuracy, totals, widening } = parts;
    let scales = [&[*accuracy][..], totals].concat();
    let mut scales: Vec<f64> = scales.iter().flat_map(|scale| [scale.mean, scale.deviation]).collect();
    scales.push(*widening);
    let states = Stored {
        name: "process.states".into(),
        dtype: Dtype::U8,
        shape: vec![weights.len(), states.len() / weights.len().max(1)],
        bytes: states.clone(),
    };
    vec![
        states,
        Stored::f64("process.weights", weights),
        Stored::f64("process.shape", &shape.to_list()),
        Stored::f64("process.scales", &scales),
    ]
}

/// The tensors of a file. Errors are the end of a sentence about the file.
struct Tensors<'a>(SafeTensors<'a>);

type Read<T> = std::result::Result<T, String>;

impl Tensors<'_> {
    /// The bytes of a tensor of a number type and a shape.
    fn bytes(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Read<&[u8]> {
        let view = self.0.tensor(name).map_err(|e| e.to_string())?;
        if view.dtype() != dtype || view.shape() != shape {
            return Err(format!("{name} is {:?} {:?}, expected {dtype:?} {shape:?}", view.dtype(), view.shape()));
        }
        Ok(view.data())
    }

    fn f32(&self, name: &str, shape: &[usize]) -> Read<Vec<f32>> {
        let (words, _) = self.bytes(name, Dtype::F32, shape)?.as_chunks::<4>();
        let values: Vec<f32> = words.iter().map(|&word| f32::from_le_bytes(word)).collect();
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(values),
            false => Err(format!("{name} holds a value that is no number")),
        }
    }

    fn f64(&self, name: &str, count: usize) -> Read<Vec<f64>> {
        let (words, _) = self.bytes(name, Dtype::F64, &[count])?.as_chunks::<8>();
        let values: Vec<f64> = words.iter().map(|&word| f64::from_le_bytes(word)).collect();
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(values),
            false => Err(format!("{name} holds a value that is no number")),
        }
    }

    /// The size of a tensor along its first axis.
    fn length(&self, name: &str) -> Read<usize> {
        let view = self.0.tensor(name).map_err(|e| e.to_string())?;
        match view.shape().first() {
            Some(&length) if length > 0 => Ok(length),
            _ => Err(format!("{name} is empty")),
        }
    }

    fn ensemble(&self, entry: &Entry) -> Read<Ensemble> {
        let Entry { members, noise, space, .. } = entry;
        if !((1..=MOST_MEMBERS).contains(members) && noise.is_finite() && *noise >= 0.0) {
            return Err(format!("{members} members and noise {noise} are no predictor's"));
        }
        let hidden = self.length("member0.layer0.bias")?;
        let layer = |member: usize, index: usize, inputs: usize, outputs: usize| -> Read<Layer> {
            Ok(Layer {
                weight: self.f32(&format!("member{member}.layer{index}.weight"), &[inputs, outputs])?,
                bias: self.f32(&format!("member{member}.layer{index}.bias"), &[outputs])?,
            })
        };
        let inputs = Features::new(space).count();
        let member = |member: usize| -> Read<Mlp> {
            let layers = [
                layer(member, 0, inputs, hidden)?,
                layer(member, 1, hidden, hidden)?,
                layer(member, 2, hidden, hidden)?,
                layer(member, 3, hidden, 1)?,
            ];
            Ok(Mlp::new(layers, self.f32(&format!("member{member}.linear"), &[inputs])?))
        };
        Ok(Ensemble::new(space, (0..*members).map(member).collect::<Read<_>>()?, *noise))
    }

    fn process(&self, space: &SearchSpace) -> Read<Process> {
        let encoding = Encoding::new(space);
        let samples = self.length("process.weights")?;
        if samples > MOST_SAMPLES {
            return Err(format!("{samples} samples are more than the {MOST_SAMPLES} that a process may have"));
        }
        let weights = self.f64("process.weights", samples)?;
        let states = self.bytes("process.states", Dtype::U8, &[samples, encoding.choices()])?.to_vec();
        let known =
            |row: &[u8]| row.iter().enumerate().all(|(place, &state)| usize::from(state) < encoding.states_of(place));
        if !states.chunks_exact(encoding.choices()).all(known) {
            return Err("process.states holds a choice that the space does not have".into());
        }
        let list = self.f64("process.shape", 2 * encoding.groups + 2)?;
        let shape = Shape::from_list(&list, encoding.groups)
            .ok_or_else(|| "process.shape holds a weight that is not positive".to_string())?;
        let scales = self.f64("process.scales", 2 * encoding.totals.len() + 3)?;
        let (pairs, widening) = scales.as_chunks::<2>();
        let [accuracy, totals @ ..] = pairs else { return Err("process.scales is empty".into()) };
        let positive = pairs.iter().map(|pair| pair[1]).chain(widening.iter().copied()).all(|value| value > 0.0);
        if !positive {
            return Err("process.scales holds a deviation that is not positive".into());
        }
        let scale = |&[mean, deviation]: &[f64; 2]| Scale { mean, deviation };
        let (accuracy, totals) = (scale(accuracy), totals.iter().map(scale).collect());
        Ok(Process::new(encoding, Parts { shape, states, weights, accuracy, totals, widening: widening[0] }))
    }
}
