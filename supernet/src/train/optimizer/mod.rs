//! Optimizers: SGD with Nesterov momentum, alone or with Muon for pointwise convolutions, and AdamW.
//!
//! | file | concern |
//! | --- | --- |
//! | `rules` | the rules and their settings, as a configuration has them |
//! | `nesterov`, `adamw` | the update of one parameter |
//! | `muon` | the update of all matrices |
//! | `buffer` | what an optimizer keeps of a parameter, and updates in one pass over memory |

mod adamw;
mod buffer;
mod muon;
mod nesterov;
mod rules;

use super::gradients::Gradients;
use crate::network::{Parameter, ParameterKind};
use crate::ranks::Ranks;
use crate::{Error, Result};
use adamw::Squares;
use buffer::Buffer;
use candle_core::Tensor;
use std::collections::HashMap;

pub use rules::{AdamW, Muon, OptimizerKind, Undecayed};

/// What the names of squared gradients and of counted steps in a checkpoint end with.
const SQUARES: &str = ".squares";
const STEPS: &str = ".steps";

/// An optimizer and what it keeps of each parameter.
///
/// A parameter without a gradient is left alone entirely: no decay, no momentum (PyTorch's behaviour for `grad is
/// None`).
pub struct Optimizer {
    rule: Rule,
    momentum: f64,
    weight_decay: f64,
    undecayed: Vec<Undecayed>,
    /// Momentum, or AdamW's first moments.
    buffers: Vec<Option<Buffer>>,
    /// AdamW's second moments.
    squares: Vec<Option<Squares>>,
}

enum Rule {
    Nesterov,
    /// Nesterov momentum, but Muon at the places of matrices.
    Muon {
        settings: Muon,
        matrices: Vec<usize>,
    },
    AdamW(AdamW),
}

/// How far an update goes.
#[derive(Clone, Copy)]
struct Pace {
    /// Learning rate.
    rate: f64,
    /// What gradients are multiplied by (clipping).
    scale: f64,
    /// Weight decay.
    decay: f64,
}

impl Optimizer {
    /// SGD with Nesterov momentum for `count` parameters, without momentum yet.
    pub fn sgd(momentum: f64, weight_decay: f64, count: usize) -> Self {
        Optimizer {
            rule: Rule::Nesterov,
            momentum,
            weight_decay,
            undecayed: Vec::new(),
            buffers: (0..count).map(|_| None).collect(),
            squares: (0..count).map(|_| None).collect(),
        }
    }

    /// The optimizer without decay of the weights `undecayed`.
    pub fn without_decay_of(self, undecayed: &[Undecayed]) -> Self {
        Optimizer { undecayed: undecayed.to_vec(), ..self }
    }

    /// The optimizer with Muon for those of `parameters` that are pointwise convolutions before a batch norm.
    pub fn with_muon(self, settings: &Muon, parameters: &[Parameter]) -> Self {
        Optimizer { rule: Rule::Muon { settings: settings.clone(), matrices: muon::matrices(parameters) }, ..self }
    }

    /// AdamW, with the decay of this optimizer and without its momentum.
    pub fn with_adamw(self, settings: &AdamW) -> Self {
        Optimizer { rule: Rule::AdamW(settings.clone()), ..self }
    }

    /// Applies one step with learning rate `rate` to `parameters`; gradients are multiplied by `scale` first
    /// (clipping). All `ranks` do it together, with the same gradients.
    ///
    /// # Errors
    /// A tensor operation failed.
    pub fn step(
        &mut self,
        parameters: &[Parameter],
        gradients: &Gradients,
        rate: f64,
        scale: f64,
        ranks: &Ranks,
    ) -> Result<()> {
        for (place, (parameter, gradient)) in parameters.iter().zip(gradients.tensors()).enumerate() {
            let Some(gradient) = gradient else { continue };
            let decays = parameter.kind != ParameterKind::Vector
                && !self.undecayed.iter().any(|group| group.has(parameter.kind));
            let pace = Pace { rate, scale, decay: if decays { self.weight_decay } else { 0.0 } };
            let buffer = &mut self.buffers[place];
            match &self.rule {
                Rule::Muon { matrices, .. } if matrices.binary_search(&place).is_ok() => {}
                Rule::AdamW(settings) => {
                    adamw::update(parameter, gradient, buffer, &mut self.squares[place], settings, pace)?;
                }
                Rule::Nesterov | Rule::Muon { .. } => {
                    nesterov::update(parameter, gradient, buffer, self.momentum, pace)?;
                }
            }
        }
        if let Rule::Muon { settings, matrices } = &self.rule {
            muon::update(settings, matrices, parameters, gradients, &mut self.buffers, (rate, scale), ranks)?;
        }
        Ok(())
    }

    /// What is kept of each parameter, by name; parameters that never had a gradient are absent.
    ///
    /// # Errors
    /// A tensor operation failed.
    pub fn state(&self, parameters: &[Parameter]) -> Result<HashMap<String, Tensor>> {
        let mut state = HashMap::new();
        for (parameter, (buffer, squares)) in parameters.iter().zip(self.buffers.iter().zip(&self.squares)) {
            let (name, weight) = (&parameter.name, parameter.var.as_tensor());
            if let Some(buffer) = buffer {
                state.insert(name.clone(), buffer.tensor(weight)?);
            }
            if let Some(Squares { buffer, steps }) = squares {
                state.insert(format!("{name}{SQUARES}"), buffer.tensor(weight)?);
                state.insert(format!("{name}{STEPS}"), Tensor::new(&[*steps as f32], weight.device())?);
            }
        }
        Ok(state)
    }

    /// Takes over what [`state`](Self::state) gave.
    ///
    /// # Errors
    /// A tensor whose shape differs from its parameter's.
    pub fn load_state(&mut self, parameters: &[Parameter], state: &HashMap<String, Tensor>) -> Result<()> {
        for (place, Parameter { name, var, .. }) in parameters.iter().enumerate() {
            let buffer = |tensor: Option<&Tensor>| -> Result<Option<Buffer>> {
                let Some(tensor) = tensor else { return Ok(None) };
                if tensor.dims() != var.dims() {
                    return Err(Error::Weights(format!(
                        "the momentum of '{name}' has shape {:?}, the parameter {:?}; the checkpoint belongs to another network",
                        tensor.dims(),
                        var.dims()
                    )));
                }
                Buffer::from_tensor(tensor, var.as_tensor()).map(Some)
            };
            self.buffers[place] = buffer(state.get(name))?;
            let steps = state
                .get(&format!("{name}{STEPS}"))
                .map_or(Ok(0.0), |steps| steps.flatten_all()?.get(0)?.to_scalar::<f32>())?;
            let squares = buffer(state.get(&format!("{name}{SQUARES}")))?;
            self.squares[place] = squares.map(|buffer| Squares { buffer, steps: steps as u32 });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::buffer::CHUNK;
    use super::*;
    use candle_core::{DType, Device, Var};

    const STEPS: usize = 5;
    const RATE: f64 = 0.1;

    fn gradient_at(parameter: usize, step: usize, index: usize) -> f64 {
        ((parameter * 31 + step * 7 + index * 3) as f64 * 0.7).sin()
    }

    /// The rule written out in f64. Parameter 0 decays, 1 does not and has no gradient at step 0 and 3.
    fn reference(start: &[Vec<f64>], scale: f64) -> Vec<Vec<f64>> {
        let mut weights = start.to_vec();
        for (p, weight) in weights.iter_mut().enumerate() {
            let decay = if p == 0 { 0.01 } else { 0.0 };
            let mut buffer: Option<Vec<f64>> = None;
            for step in 0..STEPS {
                if p == 1 && (step == 0 || step == 3) {
                    continue;
                }
                let direction: Vec<f64> =
                    weight.iter().enumerate().map(|(i, w)| scale * gradient_at(p, step, i) + decay * w).collect();
                let moved: Vec<f64> = match &buffer {
                    None => direction.clone(),
                    Some(b) => b.iter().zip(&direction).map(|(b, d)| 0.9 * b + d).collect(),
                };
                for (i, w) in weight.iter_mut().enumerate() {
                    *w -= RATE * (direction[i] + 0.9 * moved[i]);
                }
                buffer = Some(moved);
            }
        }
        weights
    }

    /// Runs the optimizer; at step 2 its state is carried over to a new one, as a resumed run does.
    fn run(start: &[Vec<f64>], dtype: DType, scale: f64) -> Vec<Vec<f64>> {
        let parameters: Vec<Parameter> = start
            .iter()
            .enumerate()
            .map(|(p, values)| Parameter {
                name: format!("p{p}"),
                var: Var::from_tensor(&Tensor::new(values.as_slice(), &Device::Cpu).unwrap().to_dtype(dtype).unwrap())
                    .unwrap(),
                kind: if p == 0 { ParameterKind::OtherWeight } else { ParameterKind::Vector },
            })
            .collect();
        let mut optimizer = Optimizer::sgd(0.9, 0.01, parameters.len());
        for step in 0..STEPS {
            let mut gradients = Gradients::none(parameters.len());
            for (p, start) in start.iter().enumerate() {
                if p == 1 && (step == 0 || step == 3) {
                    continue;
                }
                let wanted: Vec<f64> = (0..start.len()).map(|i| gradient_at(p, step, i)).collect();
                let wanted = Tensor::new(wanted, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
                gradients.add_tensor(p, wanted).unwrap();
            }
            optimizer.step(&parameters, &gradients, RATE, scale, &Ranks::alone()).unwrap();
            if step == 2 {
                let state = optimizer.state(&parameters).unwrap();
                optimizer = Optimizer::sgd(0.9, 0.01, parameters.len());
                optimizer.load_state(&parameters, &state).unwrap();
            }
        }
        parameters.iter().map(|p| p.var.to_dtype(DType::F64).unwrap().to_vec1().unwrap()).collect()
    }

    #[test]
    fn both_paths_follow_the_f64_reference() {
        // The first parameter is longer than a chunk, so it takes the parallel path.
        let start: Vec<Vec<f64>> = [CHUNK + 5, 7]
            .iter()
            .map(|&n| (0..n).map(|i| f64::from(((i as f64) * 0.3).cos() as f32)).collect())
            .collect();
        for scale in [1.0, 0.3] {
            let expected = reference(&start, scale);
            for (dtype, tolerance) in [(DType::F32, 2e-6), (DType::F64, 1e-12)] {
                for (found, expected) in run(&start, dtype, scale).iter().flatten().zip(expected.iter().flatten()) {
                    assert!((found - expected).abs() < tolerance, "{dtype:?} {scale}: {found} {expected}");
                }
            }
        }
    }

    /// AdamW written out in f64, as its doc comment has it, for a parameter with gradients at all steps.
    fn adamw_reference(start: &[f64], scale: f64) -> Vec<f64> {
        let (mut weight, mut mean, mut square) = (start.to_vec(), vec![0.0; start.len()], vec![0.0; start.len()]);
        for step in 0..STEPS {
            let t = step as i32 + 1;
            for i in 0..weight.len() {
                let g = scale * gradient_at(0, step, i);
                weight[i] -= RATE * 0.01 * weight[i];
                mean[i] = 0.8 * mean[i] + 0.2 * g;
                square[i] = 0.99 * square[i] + 0.01 * g * g;
                let (m, v) = (mean[i] / (1.0 - 0.8f64.powi(t)), square[i] / (1.0 - 0.99f64.powi(t)));
                weight[i] -= RATE * m / (v.sqrt() + 1e-3);
            }
        }
        weight
    }

    /// Runs an optimizer on one parameter; at step 2 its state is carried over to a new one.
    fn run_one(parameter: Parameter, optimizer: &dyn Fn(&[Parameter]) -> Optimizer, scale: f64) -> Vec<f64> {
        let norm = Parameter {
            name: "block.norm.weight".into(),
            var: Var::from_tensor(&parameter.var.as_tensor().ones_like().unwrap()).unwrap(),
            kind: ParameterKind::Vector,
        };
        let parameters = [parameter, norm];
        let mut current = optimizer(&parameters);
        for step in 0..STEPS {
            let weight = parameters[0].var.as_tensor();
            let gradient: Vec<f64> = (0..weight.elem_count()).map(|i| gradient_at(0, step, i)).collect();
            let gradient = Tensor::from_vec(gradient, weight.shape(), &Device::Cpu).unwrap();
            let mut gradients = Gradients::none(2);
            gradients.add_tensor(0, gradient.to_dtype(weight.dtype()).unwrap()).unwrap();
            current.step(&parameters, &gradients, RATE, scale, &Ranks::alone()).unwrap();
            if step == 2 {
                let state = current.state(&parameters).unwrap();
                current = optimizer(&parameters);
                current.load_state(&parameters, &state).unwrap();
            }
        }
        let values = parameters[0].var.flatten_all().unwrap().to_dtype(DType::F64).unwrap();
        values.to_vec1().unwrap()
    }

    fn matrix(rows: usize, columns: usize, dtype: DType) -> (Vec<f64>, Parameter) {
        let values: Vec<f64> = (0..rows * columns).map(|i| f64::from(((i as f64) * 0.3).cos() as f32)).collect();
        let tensor = Tensor::from_vec(values.clone(), (rows, columns, 1, 1), &Device::Cpu).unwrap();
        let var = Var::from_tensor(&tensor.to_dtype(dtype).unwrap()).unwrap();
        (values, Parameter { name: "block.weight".into(), var, kind: ParameterKind::NormalisedPointwise })
    }

    #[test]
    fn adamw_follows_the_f64_reference_on_both_paths() {
        let settings = AdamW { betas: [0.8, 0.99], epsilon: 1e-3 };
        for (rows, scale) in [(7, 1.0), (CHUNK / 2 + 3, 0.3)] {
            for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F64, 1e-12)] {
                let (start, parameter) = matrix(rows, 3, dtype);
                let adamw =
                    |parameters: &[Parameter]| Optimizer::sgd(0.9, 0.01, parameters.len()).with_adamw(&settings);
                let found = run_one(parameter, &adamw, scale);
                for (found, expected) in found.iter().zip(adamw_reference(&start, scale)) {
                    assert!((found - expected).abs() < tolerance, "{dtype:?} {scale}: {found} {expected}");
                }
            }
        }
    }

    /// Muon written out in f64, with the iterations on the wide matrix `[rows, columns]`.
    fn muon_reference(start: &[f64], rows: usize, scale: f64) -> Vec<f64> {
        let columns = start.len() / rows;
        let norm = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
        let (mut weight, mut buffer) = (start.to_vec(), vec![0.0; start.len()]);
        for step in 0..STEPS {
            let mut x = vec![0.0; start.len()];
            for i in 0..start.len() {
                let g = scale * gradient_at(0, step, i);
                buffer[i] = 0.6 * buffer[i] + g;
                x[i] = g + 0.6 * buffer[i];
            }
            let size = norm(&x);
            x.iter_mut().for_each(|x| *x /= size);
            for _ in 0..5 {
                let dot = |a: usize, b: usize| (0..columns).map(|k| x[a * columns + k] * x[b * columns + k]).sum();
                let a: Vec<f64> = (0..rows * rows).map(|i| dot(i / rows, i % rows)).collect();
                let squared = |i: usize, j: usize| (0..rows).map(|k| a[i * rows + k] * a[k * rows + j]).sum::<f64>();
                let factor: Vec<f64> =
                    (0..rows * rows).map(|i| -4.775 * a[i] + 2.0315 * squared(i / rows, i % rows)).collect();
                let change =
                    |i: usize, j: usize| (0..rows).map(|k| factor[i * rows + k] * x[k * columns + j]).sum::<f64>();
                x = (0..x.len()).map(|i| 3.4445 * x[i] + change(i / columns, i % columns)).collect();
            }
            let factor = (rows as f64).sqrt() / norm(&weight);
            weight.iter_mut().zip(&x).for_each(|(w, x)| *w = *w * factor - 2.4 * RATE * x);
        }
        weight
    }

    #[test]
    fn muon_follows_the_f64_reference_for_wide_and_tall_matrices() {
        let muon = |parameters: &[Parameter]| {
            Optimizer::sgd(0.9, 0.01, parameters.len()).with_muon(&Muon { rate_factor: 2.4, momentum: 0.6 }, parameters)
        };
        for (rows, columns, scale, dtype) in
            [(5, 40, 1.0, DType::F32), (24, 16, 0.3, DType::F32), (19, 19, 1.0, DType::F64)]
        {
            let (start, parameter) = matrix(rows, columns, dtype);
            let found = run_one(parameter, &muon, scale);
            for (found, expected) in found.iter().zip(muon_reference(&start, rows, scale)) {
                assert!((found - expected).abs() < 2e-4, "{rows}x{columns}: {found} {expected}");
            }
        }
    }

    #[test]
    fn muon_has_the_pointwise_convolutions_before_a_batch_norm() {
        let names = |space: &str| {
            let net = crate::Supernet::new(&crate::space::preset(space).unwrap(), 10, 1).unwrap();
            muon::matrices(net.parameters()).into_iter().map(|place| net.parameters()[place].name.clone()).collect()
        };
        let names: [Vec<String>; 2] = ["tiny", "resnet-tiny"].map(names);
        let [mobile, resnet] = names.each_ref().map(|names| names.iter().map(String::as_str).collect::<Vec<_>>());
        let kinds = |names: &[&str], kind: &str| names.iter().filter(|name| name.ends_with(kind)).count();
        // Four elastic blocks, and the first block, which has no expansion.
        let counts = [".expand.weight", ".project.weight", "feature.weight"].map(|kind| kinds(&mobile, kind));
        assert_eq!((counts, mobile.len()), ([4, 5, 1], 10), "{mobile:?}");
        assert!(kinds(&resnet, "conv1.weight") > 0 && kinds(&resnet, "conv2.weight") == 0, "{resnet:?}");
    }

    #[test]
    fn undecayed_weights_are_found_by_kind_in_every_space() {
        let moved = |space: &str, undecayed: &[Undecayed]| {
            let net = crate::Supernet::new(&crate::space::preset(space).unwrap(), 10, 1).unwrap();
            let before = net.state().unwrap();
            let mut gradients = Gradients::none(net.parameters().len());
            // Gradients that are too small to move a weight, but are there.
            for (place, parameter) in net.parameters().iter().enumerate() {
                let gradient = parameter.var.as_tensor().ones_like().unwrap().affine(1e-30, 0.0).unwrap();
                gradients.add_tensor(place, gradient).unwrap();
            }
            let mut optimizer = Optimizer::sgd(0.9, 0.5, net.parameters().len()).without_decay_of(undecayed);
            optimizer.step(net.parameters(), &gradients, 0.1, 1.0, &Ranks::alone()).unwrap();
            let differs = |p: &&Parameter| {
                let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let pairs = values(p.var.as_tensor()).into_iter().zip(values(&before[&p.name]));
                pairs.into_iter().any(|(now, then)| (now - then).abs() > 1e-20)
            };
            net.parameters().iter().filter(differs).map(|p| p.name.clone()).collect::<Vec<_>>()
        };
        let all = moved("tiny", &[]);
        let depthwise = |name: &String| name.ends_with("depthwise.weight");
        let transform = |name: &String| name.contains("transform_5to3");
        // The first block and four elastic ones, each with one transform.
        assert_eq!((all.iter().filter(|n| depthwise(n)).count(), all.iter().filter(|n| transform(n)).count()), (5, 4));
        let left = moved("tiny", &[Undecayed::Depthwise, Undecayed::KernelTransforms]);
        assert_eq!(left.len(), all.len() - 9);
        assert!(!left.iter().any(|name| depthwise(name) || transform(name)), "{left:?}");
        assert_eq!(moved("tiny", &[Undecayed::KernelTransforms]).len(), all.len() - 4);
        assert_eq!(moved("resnet-tiny", &[Undecayed::Depthwise]), moved("resnet-tiny", &[]));
    }

    #[test]
    fn a_foreign_buffer_is_refused() {
        let var = Var::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let parameters = [Parameter { name: "w".into(), var, kind: ParameterKind::OtherWeight }];
        let state = HashMap::from([("w".to_string(), Tensor::new(&[1f32], &Device::Cpu).unwrap())]);
        let error = Optimizer::sgd(0.9, 0.0, 1).load_state(&parameters, &state).unwrap_err().to_string();
        assert!(error.contains("'w'") && error.contains("[1]"), "{error}");
    }
}
