//! A network's weights as they come from a file: checking, seeded random ones, batch-norm folding.

use super::compiler::Layer;
use crate::model::{tensor_shapes, validate};
use crate::{Error, Result};
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::space::NetworkSpec;
use rand::Rng;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

/// Tensors by name: shape and values, with the names and layouts of [`tensor_shapes`].
pub type Weights = HashMap<String, (Vec<usize>, Vec<f32>)>;

/// Checks that `weights` are exactly the tensors of `network`: none missing, none extra, each with its shape and
/// finite.
///
/// # Errors
/// An impossible network, or the first tensor that is wrong, by name.
pub fn check_weights(network: &NetworkSpec, weights: &Weights) -> Result<()> {
    validate(network)?;
    let expected = tensor_shapes(network);
    for (name, shape) in &expected {
        let Some((found, values)) = weights.get(name) else {
            return Err(Error::tensor(name, format!("is missing; a tensor of shape {shape:?} was expected")));
        };
        if found != shape {
            return Err(Error::tensor(name, format!("has shape {found:?}, the network needs {shape:?}")));
        }
        if values.len() != shape.iter().product::<usize>() {
            return Err(Error::tensor(name, format!("has {} values, its shape is {shape:?}", values.len())));
        }
        if let Some(position) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::tensor(name, format!("value {position} is {}, it must be finite", values[position])));
        }
        if name.ends_with("running_var")
            && let Some(position) = values.iter().position(|v| *v < 0.0)
        {
            return Err(Error::tensor(
                name,
                format!("value {position} is {}, a variance cannot be negative", values[position]),
            ));
        }
    }
    if weights.len() > expected.len() {
        let known: HashSet<&String> = expected.iter().map(|(name, _)| name).collect();
        let mut unknown: Vec<&String> = weights.keys().filter(|name| !known.contains(name)).collect();
        unknown.sort();
        if let Some(name) = unknown.first() {
            return Err(Error::tensor(*name, "does not belong to the network"));
        }
    }
    Ok(())
}

/// Seeded random weights for `network`: convolutions uniform with He's variance (so that activations keep their size
/// through the layers and no denormal number slows a measurement), batch norm near the identity.
///
/// # Errors
/// An impossible network.
pub fn random_weights(network: &NetworkSpec, seed: u64) -> Result<Weights> {
    validate(network)?;
    let tensor = |(index, (name, shape)): (usize, (String, Vec<usize>))| {
        let mut rng = generator(seed, Stream::Weights, &[index as u64]);
        let (low, high) = match name.rsplit('.').next() {
            Some("running_var") => (0.8, 1.2),
            Some("weight") if shape.len() == 1 => (0.8, 1.2),
            Some("running_mean" | "bias") => (-0.1, 0.1),
            _ => {
                let bound = (6.0 / shape[1..].iter().product::<usize>() as f32).sqrt();
                (-bound, bound)
            }
        };
        let count = shape.iter().product::<usize>();
        let values = (0..count).map(|_| rng.random_range(low..high)).collect();
        (name, (shape, values))
    };
    Ok(tensor_shapes(network).into_iter().enumerate().map(tensor).collect())
}

/// Weights that [`check_weights`] has accepted, read by name.
pub(crate) struct Checked<'a> {
    pub weights: &'a Weights,
    /// Epsilon of every batch norm.
    pub epsilon: f64,
}

impl Checked<'_> {
    /// Weight and bias of a layer, with the batch norm after it folded in.
    pub(super) fn layer(&self, layer: &Layer) -> (Cow<'_, [f32]>, Cow<'_, [f32]>) {
        self.weight_and_bias(&layer.name, layer.bias, layer.norm.as_deref(), layer.out_channels)
    }

    /// Weight and bias of a convolution or linear layer by name, with the batch norm after it folded in. A layer
    /// without both has a bias of zeros.
    pub fn weight_and_bias(
        &self,
        name: &str,
        has_bias: bool,
        norm: Option<&str>,
        out_channels: usize,
    ) -> (Cow<'_, [f32]>, Cow<'_, [f32]>) {
        if let Some(norm) = norm {
            let (weight, bias) = self.folded(name, has_bias, norm);
            return (weight.into(), bias.into());
        }
        let weight = self.get(&format!("{name}.weight")).into();
        match has_bias {
            true => (weight, self.get(&format!("{name}.bias")).into()),
            false => (weight, vec![0.0; out_channels].into()),
        }
    }

    /// The values of a tensor.
    fn get(&self, name: &str) -> &[f32] {
        &self.weights.get(name).expect("checked: every tensor of the network is there").1
    }

    /// Weight and bias of a convolution (its output channels come first) with the batch norm after it folded in, in
    /// f64.
    fn folded(&self, convolution: &str, has_bias: bool, norm: &str) -> (Vec<f32>, Vec<f32>) {
        let weight = self.get(&format!("{convolution}.weight"));
        let part = |name: &str| self.get(&format!("{norm}.{name}"));
        let (gamma, beta, mean, variance) = (part("weight"), part("bias"), part("running_mean"), part("running_var"));
        let scales: Vec<f64> =
            gamma.iter().zip(variance).map(|(&g, &v)| f64::from(g) / (f64::from(v) + self.epsilon).sqrt()).collect();
        let folded = weight
            .chunks_exact(weight.len() / scales.len())
            .zip(&scales)
            .flat_map(|(filter, scale)| filter.iter().map(move |&w| (f64::from(w) * scale) as f32))
            .collect();
        let own = if has_bias { self.get(&format!("{convolution}.bias")) } else { &[] };
        let bias = |(channel, scale): (usize, &f64)| {
            let own = own.get(channel).copied().unwrap_or(0.0);
            (f64::from(beta[channel]) - (f64::from(mean[channel]) - f64::from(own)) * scale) as f32
        };
        let bias = scales.iter().enumerate().map(bias).collect();
        (folded, bias)
    }
}
