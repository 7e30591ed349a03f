//! A Gaussian process over the choices of a space: the predictor for up to some thousand measurements.
//!
//! The covariance of two subnets with the numbers `x` and `y` of [`super::encoding`], in groups `g`, is
//!
//! ```text
//! 1 + sum_g a_g x_g.y_g + s exp(-1/2 sum_g b_g |x_g - y_g|^2)
//! ```
//!
//! and the noise on its diagonal: a linear function, and what choices do together. How much each group counts in either
//! follows from the largest posterior density (Rasmussen and Williams, *Gaussian Processes for Machine Learning*,
//! chapter 5), with a wide prior that keeps some fifty numbers within reason where there are only as many samples.

use super::encoding::{Encoding, States};
use super::likelihood::{self, Feature, Shape};
use super::{Prediction, Sample};
use crate::cholesky::Cholesky;
use crate::effects::Effects;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use ofa_supernet::ops::{SparseLayer, SparseRows};
use ofa_supernet::{SearchSpace, Subnet};
use rayon::prelude::*;
use std::sync::OnceLock;

/// Most samples of a process: their covariance takes 3.2 GB.
pub(super) const MOST_SAMPLES: usize = 20_000;
/// Subnets that pass through a thread together.
const BATCH: usize = 64;
/// Subnets whose derivatives a thread computes together.
const SLOPES: usize = 2 * SparseRows::GROUP;
/// Most samples that the shape of the covariance follows from: with more it changes little, and its cost grows with
/// their cube.
const SHAPE_SAMPLES: usize = 400;

/// Leave-one-out errors of the promised size that are added to those of the samples before these correct the
/// deviations: few errors tell little.
const PROMISED: f64 = 50.0;

/// A fitted process.
#[derive(Debug, Clone)]
pub(super) struct Process {
    encoding: Encoding,
    parts: Parts,
    choices: Vec<ChoiceTable>,
    totals: Vec<TotalTable>,
    /// The linear function where all numbers are zero.
    constant: f64,
    /// From weights of the samples to sums of their distances for each state of each table, made when derivatives are
    /// asked for.
    to_states: OnceLock<SparseLayer>,
    /// Inverse of the covariance's Cholesky factor, `[samples, samples]`, made when a deviation is asked for.
    inverse: OnceLock<Vec<f32>>,
}

/// The numbers of a fitted process, as its file holds them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Parts {
    pub shape: Shape,
    /// States of the samples, `[samples, choices]`.
    pub states: Vec<u8>,
    /// Inverse covariance times the scaled accuracies, `[samples]`.
    pub weights: Vec<f64>,
    /// Scale of accuracies.
    pub accuracy: Scale,
    /// Scale of each total.
    pub totals: Vec<Scale>,
    /// Factor on deviations: by how much the samples' own leave-one-out errors are larger than promised.
    pub widening: f64,
}

/// Mean and standard deviation by which values are scaled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    pub mean: f64,
    pub deviation: f64,
}

/// A choice's part of the covariance with the samples, in each of its states.
#[derive(Debug, Clone)]
struct ChoiceTable {
    place: usize,
    /// What the choice adds to the linear function.
    linear: Vec<f64>,
    /// What it adds to the linear function's variance.
    variance: Vec<f64>,
    /// What it adds to the linear function's covariance with each sample, `[states, samples]`.
    products: Vec<f32>,
    /// What it adds to the squared distance from each sample, `[states, samples]`.
    distances: Vec<f32>,
}

/// A total's part of the covariance with the samples.
#[derive(Debug, Clone)]
struct TotalTable {
    /// Weights of products and of squared distances.
    linear: f64,
    scale: f64,
    /// Slope of the linear function.
    slope: f64,
    of_samples: Vec<f64>,
}

/// A subnet before the samples: its own part of mean and variance, and its scaled totals.
struct Query {
    states: States,
    totals: Vec<f64>,
    linear: f64,
    variance: f64,
}

impl Scale {
    fn of(values: impl Iterator<Item = f64> + Clone) -> Self {
        let count = values.clone().count() as f64;
        let mean = values.clone().sum::<f64>() / count;
        let variance = values.map(|value| (value - mean).powi(2)).sum::<f64>() / count;
        // Equal values have no scale: all are then zero, on any.
        Scale { mean, deviation: if variance > 1e-24 { variance.sqrt() } else { 1.0 } }
    }

    fn apply(self, value: f64) -> f64 {
        (value - self.mean) / self.deviation
    }

    fn undo(self, scaled: f64) -> f64 {
        self.mean + self.deviation * scaled
    }
}

impl Process {
    /// Fits a process to `samples`, which are two or more in random order; `progress` gets the steps done, all steps,
    /// and the root mean squared leave-one-out error. The second result is each sample's prediction from the others.
    ///
    /// # Errors
    /// A subnet outside the space; a covariance that has no Cholesky factor.
    pub(super) fn fit(
        space: &SearchSpace,
        samples: &[Sample],
        progress: &mut dyn FnMut(usize, usize, f64),
    ) -> Result<(Self, Vec<f64>)> {
        if samples.len() > MOST_SAMPLES {
            return Err(Error::Predictor(format!(
                "{} samples are more than the {MOST_SAMPLES} that a Gaussian process may have; fit an ensemble (`--method \
                 ensemble`)",
                samples.len()
            )));
        }
        let encoding = Encoding::new(space);
        let mut states = States::new();
        samples.iter().try_for_each(|sample| encoding.push(&sample.subnet, &mut states))?;
        let of_rows: Vec<Vec<f64>> =
            states.chunks_exact(encoding.choices()).map(|row| encoding.totals_of(row)).collect();
        let totals = (0..encoding.totals.len()).map(|total| Scale::of(of_rows.iter().map(|totals| totals[total])));
        let totals: Vec<Scale> = totals.collect();
        let accuracy = Scale::of(samples.iter().map(|sample| sample.accuracy));
        let targets: Vec<f64> = samples.iter().map(|sample| accuracy.apply(sample.accuracy)).collect();

        let features = features(&encoding, &states, &totals);
        let few = &targets[..targets.len().min(SHAPE_SAMPLES)];
        let shape = likelihood::most_likely(&features, encoding.groups, few, &mut |done, all, error| {
            progress(done, all, error * accuracy.deviation);
        });
        let cholesky = factor(&features, &shape, samples.len())?;
        let weights = cholesky.solve(targets);
        // Leave-one-out errors in closed form (Rasmussen and Williams, equations 5.10 to 5.12).
        let precisions = cholesky.inverse_diagonal();
        let errors: Vec<f64> = weights.iter().zip(&precisions).map(|(weight, precision)| weight / precision).collect();
        let standardised = errors.iter().zip(&precisions).map(|(error, precision)| error * error * precision);
        let as_promised = PROMISED + standardised.sum::<f64>();
        let widening = (as_promised / (PROMISED + samples.len() as f64)).sqrt();
        let unseen = samples.iter().zip(&errors).map(|(s, error)| s.accuracy - error * accuracy.deviation).collect();
        let parts = Parts { shape, states, weights, accuracy, totals, widening };
        Ok((Process::new(encoding, parts), unseen))
    }

    /// A process from its parts, whose lengths and states fit the space.
    pub(super) fn new(encoding: Encoding, parts: Parts) -> Self {
        let features = features(&encoding, &parts.states, &parts.totals);
        let Parts { shape, weights, .. } = &parts;
        let slope = |feature: &Feature| {
            shape.linear[feature.group] * feature.of_samples.iter().zip(weights).map(|(x, w)| x * w).sum::<f64>()
        };
        let (columns, totals) = features.split_at(encoding.columns.len());
        let mut choices: Vec<ChoiceTable> = Vec::new();
        for (column, feature) in encoding.columns.iter().zip(columns) {
            let (states, samples) = (column.of_state.len(), weights.len());
            let index = choices.iter().position(|table| table.place == column.place).unwrap_or_else(|| {
                choices.push(ChoiceTable {
                    place: column.place,
                    linear: vec![0.0; states],
                    variance: vec![0.0; states],
                    products: vec![0.0; states * samples],
                    distances: vec![0.0; states * samples],
                });
                choices.len() - 1
            });
            let table = &mut choices[index];
            let (slope, linear, scale) = (slope(feature), shape.linear[column.group], shape.scale[column.group]);
            for (state, value) in column.of_state.iter().enumerate() {
                table.linear[state] += slope * value;
                table.variance[state] += linear * value * value;
                let line = state * samples..(state + 1) * samples;
                let products = table.products[line.clone()].iter_mut().zip(&mut table.distances[line]);
                for ((product, distance), other) in products.zip(&feature.of_samples) {
                    *product += (linear * value * other) as f32;
                    *distance += (scale * (value - other).powi(2)) as f32;
                }
            }
        }
        let totals = totals.iter().map(|feature| TotalTable {
            linear: shape.linear[feature.group],
            scale: shape.scale[feature.group],
            slope: slope(feature),
            of_samples: feature.of_samples.clone(),
        });
        let (totals, constant) = (totals.collect(), weights.iter().sum());
        Process { encoding, choices, totals, constant, parts, to_states: OnceLock::new(), inverse: OnceLock::new() }
    }

    pub(super) fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Predicted accuracy of each subnet.
    ///
    /// # Errors
    /// A subnet outside the space.
    pub(super) fn predict(&self, subnets: &[Subnet]) -> Result<Vec<f64>> {
        let batches = subnets.par_chunks(BATCH).map(|batch| {
            let mut row = vec![0.0; self.parts.weights.len()];
            let accuracy = |subnet| {
                let query = self.query(subnet)?;
                self.write_together(&query, &mut row);
                Ok(self.accuracy(&query, &row))
            };
            batch.iter().map(accuracy).collect()
        });
        Ok(batches.collect::<Result<Vec<Vec<f64>>>>()?.concat())
    }

    /// Predicted accuracy of each subnet with the standard deviation of a measurement about it.
    ///
    /// # Errors
    /// A subnet outside the space; a covariance that has no Cholesky factor.
    pub(super) fn predict_with_deviation(&self, subnets: &[Subnet]) -> Result<Vec<Prediction>> {
        let count = self.parts.weights.len();
        let inverse = Tensor::from_slice(self.inverse()?, (count, count), &Device::Cpu)?.t()?;
        let mut predictions = Vec::with_capacity(subnets.len());
        for batch in subnets.chunks(BATCH) {
            // Always of one shape, so that a prediction does not depend on those beside it.
            let mut rows = vec![0.0; BATCH * count];
            let lines = batch.par_iter().zip(rows.par_chunks_exact_mut(count)).map(|(subnet, row)| {
                let query = self.query(subnet)?;
                self.write_together(&query, row);
                let accuracy = self.accuracy(&query, row);
                self.add_linear(&query, row);
                Ok((accuracy, query.variance))
            });
            let lines = lines.collect::<Result<Vec<(f64, f64)>>>()?;
            let known = Tensor::from_vec(rows, (BATCH, count), &Device::Cpu)?.matmul(&inverse)?;
            let known = known.sqr()?.sum(1)?.to_vec1::<f32>()?;
            predictions.extend(lines.into_iter().zip(known).map(|((accuracy, prior), known)| {
                let own = (prior - f64::from(known)).max(0.0);
                let scale = self.parts.widening * self.parts.accuracy.deviation;
                let deviation = scale * (own + self.parts.shape.noise).sqrt();
                Prediction { accuracy, deviation, doubt: scale * own.sqrt() }
            }));
        }
        Ok(predictions)
    }

    /// By how much each value of each choice raises the accuracy, to first order about each subnet; an absent choice
    /// counts 0.
    ///
    /// # Errors
    /// A subnet outside the space.
    pub(super) fn effects(&self, subnets: &[Subnet]) -> Result<Vec<Effects>> {
        let count = self.parts.weights.len();
        let batches = subnets.par_chunks(SLOPES).map(|batch| {
            let mut pulls = vec![0.0; batch.len() * count];
            let queries = batch.iter().zip(pulls.chunks_exact_mut(count)).map(|(subnet, pulls)| {
                let query = self.query(subnet)?;
                self.write_together(&query, pulls);
                pulls.iter_mut().zip(&self.parts.weights).for_each(|(k, weight)| *k *= -0.5 * *weight as f32);
                Ok(query)
            });
            let queries = queries.collect::<Result<Vec<Query>>>()?;
            let layer = self.to_states.get_or_init(|| self.layer_to_states());
            let of_states = layer.forward(&SparseRows::of_values(count, &pulls)).values();
            let of_states = of_states.chunks_exact(of_states.len() / batch.len());
            let effects = queries.iter().zip(pulls.chunks_exact(count)).zip(of_states);
            Ok(effects.map(|((query, pulls), of_states)| self.effects_of(query, pulls, of_states)).collect())
        });
        Ok(batches.collect::<Result<Vec<Vec<Effects>>>>()?.concat())
    }

    fn layer_to_states(&self) -> SparseLayer {
        let count = self.parts.weights.len();
        let distances: Vec<&[f32]> =
            self.choices.iter().flat_map(|table| table.distances.chunks_exact(count)).collect();
        let of_sample = |sample: usize| distances.iter().map(move |of_state| of_state[sample]);
        let weight: Vec<f32> = (0..count).flat_map(of_sample).collect();
        SparseLayer::new(&weight, &vec![0.0; distances.len()]).without_activation()
    }

    /// The derivatives about a subnet from the derivative of each sample's squared distance, and their sums over the
    /// samples for each state.
    fn effects_of(&self, query: &Query, pulls: &[f32], mut of_states: &[f32]) -> Effects {
        let mut effects = self.encoding.no_effects();
        for table in &self.choices {
            let (pulled, others) = of_states.split_at(table.linear.len());
            of_states = others;
            let in_state = |state: usize| table.linear[state] + f64::from(pulled[state]);
            let absent = in_state(table.linear.len() - 1);
            for (state, effect) in effects[self.encoding.values(table.place)].iter_mut().enumerate() {
                *effect += in_state(state) - absent;
            }
        }
        for ((index, total), table) in query.totals.iter().enumerate().zip(&self.totals) {
            // Derivative of a squared distance.
            let pull = |(pull, other): (&f32, &f64)| f64::from(*pull) * 2.0 * table.scale * (total - other);
            let slope = table.slope + pulls.iter().zip(&table.of_samples).map(pull).sum::<f64>();
            let scale = self.parts.totals[index];
            self.encoding.add_total(index, scale.undo(*total), slope / scale.deviation, &mut effects);
        }
        let scale = self.parts.accuracy.deviation;
        effects.iter_mut().for_each(|effect| *effect *= scale);
        effects
    }

    fn query(&self, subnet: &Subnet) -> Result<Query> {
        let mut states = States::with_capacity(self.encoding.choices());
        self.encoding.push(subnet, &mut states)?;
        let totals = self.encoding.totals_of(&states).into_iter().zip(&self.parts.totals);
        let totals: Vec<f64> = totals.map(|(total, scale)| scale.apply(total)).collect();
        let (mut linear, mut variance) = (self.constant, 1.0 + self.parts.shape.together);
        for table in &self.choices {
            let state = usize::from(states[table.place]);
            linear += table.linear[state];
            variance += table.variance[state];
        }
        for (total, table) in totals.iter().zip(&self.totals) {
            linear += table.slope * total;
            variance += table.linear * total * total;
        }
        Ok(Query { states, totals, linear, variance })
    }

    /// Writes the covariance of what choices do together, with each sample.
    fn write_together(&self, query: &Query, row: &mut [f32]) {
        row.fill(0.0);
        for table in &self.choices {
            let distances = &table.distances[usize::from(query.states[table.place]) * row.len()..];
            row.iter_mut().zip(distances).for_each(|(sum, distance)| *sum += distance);
        }
        for (total, table) in query.totals.iter().zip(&self.totals) {
            let distance = |other: &f64| (table.scale * (total - other).powi(2)) as f32;
            row.iter_mut().zip(&table.of_samples).for_each(|(sum, other)| *sum += distance(other));
        }
        let together = self.parts.shape.together as f32;
        row.iter_mut().for_each(|distance| *distance = together * (-0.5 * *distance).exp());
    }

    /// Adds the linear function's covariance with each sample.
    fn add_linear(&self, query: &Query, row: &mut [f32]) {
        row.iter_mut().for_each(|sum| *sum += 1.0);
        for table in &self.choices {
            let products = &table.products[usize::from(query.states[table.place]) * row.len()..];
            row.iter_mut().zip(products).for_each(|(sum, product)| *sum += product);
        }
        for (total, table) in query.totals.iter().zip(&self.totals) {
            let product = |other: &f64| (table.linear * total * other) as f32;
            row.iter_mut().zip(&table.of_samples).for_each(|(sum, other)| *sum += product(other));
        }
    }

    fn accuracy(&self, query: &Query, together: &[f32]) -> f64 {
        let together = together.iter().zip(&self.parts.weights).map(|(k, weight)| f64::from(*k) * weight);
        let Scale { mean, deviation } = self.parts.accuracy;
        mean + deviation * (query.linear + together.sum::<f64>())
    }

    fn inverse(&self) -> Result<&[f32]> {
        if let Some(inverse) = self.inverse.get() {
            return Ok(inverse);
        }
        let features = features(&self.encoding, &self.parts.states, &self.parts.totals);
        let cholesky = factor(&features, &self.parts.shape, self.parts.weights.len())?;
        let inverse = cholesky.inverse_lower().into_iter().map(|value| value as f32).collect();
        Ok(self.inverse.get_or_init(|| inverse))
    }
}

/// The numbers of samples: columns, then totals.
fn features(encoding: &Encoding, states: &[u8], scales: &[Scale]) -> Vec<Feature> {
    let rows = || states.chunks_exact(encoding.choices());
    let columns = encoding.columns.iter().map(|column| {
        let of_samples = rows().map(|row| column.of_state[usize::from(row[column.place])]).collect();
        Feature { group: column.group, is_total: false, of_samples }
    });
    let of_rows: Vec<Vec<f64>> = rows().map(|row| encoding.totals_of(row)).collect();
    let totals = encoding.totals.iter().zip(scales).enumerate().map(|(index, (total, scale))| Feature {
        group: total.group,
        is_total: true,
        of_samples: of_rows.iter().map(|totals| scale.apply(totals[index])).collect(),
    });
    columns.chain(totals).collect()
}

/// Factor of the samples' covariance with noise.
fn factor(features: &[Feature], shape: &Shape, samples: usize) -> Result<Cholesky> {
    let mut rows = likelihood::covariance(features, shape, samples);
    rows.iter_mut().step_by(samples + 1).for_each(|diagonal| *diagonal += shape.noise);
    Cholesky::new(rows, samples).ok_or_else(|| {
        Error::Predictor(
            "the covariance of its samples is singular; measure other subnets, or fit an ensemble with `--members 5`"
                .into(),
        )
    })
}
