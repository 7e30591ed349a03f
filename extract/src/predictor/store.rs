//! `predictor.safetensors`: the weights, with the search space and the format's version in its metadata.
//!
//! The metadata is one entry, `ofa`, since the order of several is left to chance: equal predictors are equal files.

use super::features::Features;
use super::fit::MOST_MEMBERS;
use super::mlp::{Layer, Mlp};
use super::{Origin, Predictor};
use crate::{Error, Result};
use ofa_supernet::{SearchSpace, files};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;

const FORMAT: &str = "ofa-predictor";
const VERSION: u32 = 4;
const ENTRY: &str = "ofa";

#[derive(Serialize, Deserialize)]
struct Entry {
    format: String,
    version: u32,
    space: SearchSpace,
    members: usize,
    noise: f32,
    /// Absent in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin: Option<Origin>,
}

impl Predictor {
    /// Writes the predictor: of each member tensors `member{m}.layer{0..3}.weight` of shape `[inputs, outputs]`,
    /// `member{m}.layer{0..3}.bias` and `member{m}.linear` of shape `[inputs]` in f32.
    ///
    /// # Errors
    /// A failed write.
    pub fn save(&self, path: &Path) -> Result<()> {
        Ok(files::write_atomic(path, &self.content()?)?)
    }

    /// The file's bytes: equal for equal predictors.
    pub(super) fn content(&self) -> Result<Vec<u8>> {
        let fail = |e: &dyn std::fmt::Display| Error::Internal(format!("the predictor has no form as a file: {e}"));
        let entry = Entry {
            format: FORMAT.into(),
            version: VERSION,
            space: self.space.clone(),
            members: self.members.len(),
            noise: self.noise,
            origin: self.origin.clone(),
        };
        let entry = serde_json::to_string(&entry).map_err(|e| fail(&e))?;
        let metadata = HashMap::from([(ENTRY.to_string(), entry)]);
        let bytes = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
        let mut tensors = Vec::new();
        for (member, mlp) in self.members.iter().enumerate() {
            tensors.push((format!("member{member}.linear"), vec![mlp.linear().len()], bytes(mlp.linear())));
            for (index, layer) in mlp.layers().iter().enumerate() {
                let outputs = layer.bias.len();
                let shape = vec![layer.weight.len() / outputs, outputs];
                tensors.push((format!("member{member}.layer{index}.weight"), shape, bytes(&layer.weight)));
                tensors.push((format!("member{member}.layer{index}.bias"), vec![outputs], bytes(&layer.bias)));
            }
        }
        let mut views = Vec::new();
        for (name, shape, data) in &tensors {
            views.push((name.clone(), TensorView::new(Dtype::F32, shape.clone(), data).map_err(|e| fail(&e))?));
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
        let Entry { format, version, space, members, noise, origin } =
            serde_json::from_str(entry).map_err(|e| foreign(format!("its '{ENTRY}' entry: {e}")))?;
        if format != FORMAT {
            return Err(foreign(format!("its format is '{format}', expected '{FORMAT}'")));
        }
        if version != VERSION {
            return Err(foreign(format!("its version is {version}, expected {VERSION}; fit it anew")));
        }
        space.validate().map_err(|e| e.at(path))?;
        if !((1..=MOST_MEMBERS).contains(&members) && noise.is_finite() && noise >= 0.0) {
            return Err(foreign(format!("{members} members and noise {noise} are no predictor's")));
        }
        let tensors = SafeTensors::deserialize(&file).map_err(|e| foreign(e.to_string()))?;
        let hidden =
            tensors.tensor("member0.layer0.bias").map_err(|e| foreign(e.to_string()))?.shape().iter().product();
        if hidden == 0 {
            return Err(foreign("member0.layer0.bias is empty".into()));
        }
        let read = |name: String, shape: &[usize]| -> Result<Vec<f32>> {
            let view = tensors.tensor(&name).map_err(|e| foreign(e.to_string()))?;
            if view.dtype() != Dtype::F32 || view.shape() != shape {
                let found = format!("{:?} {:?}", view.dtype(), view.shape());
                return Err(foreign(format!("{name} is {found}, expected F32 {shape:?}")));
            }
            let (words, _) = view.data().as_chunks::<4>();
            let values: Vec<f32> = words.iter().map(|&word| f32::from_le_bytes(word)).collect();
            if values.iter().any(|v| !v.is_finite()) {
                return Err(foreign(format!("{name} holds a value that is no number")));
            }
            Ok(values)
        };
        let layer = |member: usize, index: usize, inputs: usize, outputs: usize| -> Result<Layer> {
            Ok(Layer {
                weight: read(format!("member{member}.layer{index}.weight"), &[inputs, outputs])?,
                bias: read(format!("member{member}.layer{index}.bias"), &[outputs])?,
            })
        };
        let mut networks = Vec::with_capacity(members);
        let inputs = Features::new(&space).count();
        for member in 0..members {
            let layers = [
                layer(member, 0, inputs, hidden)?,
                layer(member, 1, hidden, hidden)?,
                layer(member, 2, hidden, hidden)?,
                layer(member, 3, hidden, 1)?,
            ];
            networks.push(Mlp::new(layers, read(format!("member{member}.linear"), &[inputs])?));
        }
        Ok(Predictor { space, members: networks, noise, origin })
    }
}
