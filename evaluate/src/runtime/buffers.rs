//! Memory of a program's values, and the computation of one step.

use super::compiler::{Program, Step, Stored, Value, Work};
use super::kernels::Kernel;
use super::plan::Plan;
use crate::quantise::{activate, hard_sigmoid};
use crate::{Error, Result};
use ofa_supernet::ops::inference::int8::{self, Affine, Gate, Target};
use ofa_supernet::ops::inference::{average_pool, average_windows, max_pool};
use ofa_supernet::space::Activation;

/// Memory of all values, laid out by a plan.
pub(super) struct Buffers {
    plan: Plan,
    /// Each as large as the largest use of it so far.
    memory: Vec<Memory>,
}

/// A buffer of one number type.
enum Memory {
    Floats(Vec<f32>),
    Bytes(Vec<u8>),
}

impl Memory {
    /// The first numbers, for a value to be written to.
    fn target(&mut self, value: Stored, batch: usize) -> Target<'_> {
        match (self, value.scale) {
            (Memory::Bytes(bytes), Some(scale)) => Target::Bytes(&mut bytes[..batch * value.numbers], scale.into()),
            (Memory::Floats(floats), None) => Target::Floats(&mut floats[..batch * value.numbers]),
            _ => unreachable!("the plan gives each value a buffer of its number type"),
        }
    }
}

/// The output of a step that gives f32.
fn floats(target: Target<'_>) -> &mut [f32] {
    match target {
        Target::Floats(floats) => floats,
        Target::Bytes(..) => unreachable!("the compiler rounds the output in a step of its own"),
    }
}

/// The error that a pass needs so many bytes.
pub fn too_much(bytes: u64) -> Error {
    Error::Network(format!("a pass takes {} MiB of memory, which this machine does not give", bytes >> 20))
}

impl Buffers {
    /// Buffers without memory.
    pub fn new(plan: Plan) -> Self {
        Buffers { plan, memory: Vec::new() }
    }

    /// The layout.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Follows another plan.
    pub fn set_plan(&mut self, plan: Plan) {
        let same = plan.sizes.iter().zip(&self.plan.sizes).all(|(new, old)| new.width == old.width);
        if !same {
            self.memory.clear();
        }
        self.plan = plan;
    }

    /// Bytes that one image takes.
    pub fn bytes(&self) -> u64 {
        self.plan.bytes()
    }

    /// Grows every buffer to what `batch` images need.
    ///
    /// # Errors
    /// More memory than the machine gives.
    pub fn reserve(&mut self, batch: usize) -> Result<()> {
        let bytes = self.plan.bytes().saturating_mul(batch as u64);
        let refused = || too_much(bytes);
        for (index, size) in self.plan.sizes.iter().enumerate() {
            if index == self.memory.len() {
                self.memory.push(if size.width == 1 { Memory::Bytes(Vec::new()) } else { Memory::Floats(Vec::new()) });
            }
            let len = batch.checked_mul(size.numbers).ok_or_else(refused)?;
            let grows = match &self.memory[index] {
                Memory::Bytes(bytes) => bytes.len() < len,
                Memory::Floats(floats) => floats.len() < len,
            };
            if !grows {
                continue;
            }
            match &mut self.memory[index] {
                Memory::Bytes(bytes) => {
                    bytes.try_reserve_exact(len - bytes.len()).map_err(|_| refused())?;
                    bytes.resize(len, 0);
                }
                Memory::Floats(floats) => {
                    floats.try_reserve_exact(len - floats.len()).map_err(|_| refused())?;
                    floats.resize(len, 0.0);
                }
            }
        }
        Ok(())
    }

    /// The numbers of an f32 value.
    pub fn floats(&self, program: &Program, value: Value, batch: usize) -> &[f32] {
        match &self.memory[self.plan.buffer(value)] {
            Memory::Floats(floats) => &floats[..batch * program.values[value.0].numbers],
            Memory::Bytes(_) => unreachable!("the compiler inserts a conversion before readers of f32"),
        }
    }

    /// The bytes of a rounded value, `None` for f32.
    fn bytes_of(&self, program: &Program, value: Value, batch: usize) -> Option<(&[u8], Affine)> {
        let stored = program.values[value.0];
        match &self.memory[self.plan.buffer(value)] {
            Memory::Bytes(bytes) => Some((&bytes[..batch * stored.numbers], stored.scale?.into())),
            Memory::Floats(_) => None,
        }
    }

    /// Takes the buffer of a value out, so that others can be read while it is written.
    fn take(&mut self, value: Value) -> Memory {
        std::mem::replace(&mut self.memory[self.plan.buffer(value)], Memory::Bytes(Vec::new()))
    }

    fn put_back(&mut self, value: Value, buffer: Memory) {
        self.memory[self.plan.buffer(value)] = buffer;
    }

    /// Computes a step.
    pub fn run(&mut self, step: &Step, program: &Program, kernels: &[Kernel], images: &[f32], batch: usize) {
        let mut buffer = self.take(step.output);
        let target = buffer.target(program.values[step.output.0], batch);
        match step.work {
            Work::Layer { pooled, .. } => {
                // The means are a second output.
                let mut memory = pooled.map(|means| (means, self.take(means)));
                let means = memory.as_mut().map(|(means, memory)| memory.target(program.values[means.0], batch));
                self.layer(step, program, kernels, images, batch, target, means.map(floats));
                if let Some((means, memory)) = memory {
                    self.put_back(means, memory);
                }
            }
            _ => self.between(step, program, images, batch, target),
        }
        self.put_back(step.output, buffer);
    }

    /// Computes a layer, and the means of its output in `means`.
    #[allow(clippy::too_many_arguments)] // those of `run`, and the two outputs
    fn layer(
        &self,
        step: &Step,
        program: &Program,
        kernels: &[Kernel],
        images: &[f32],
        batch: usize,
        target: Target,
        means: Option<&mut [f32]>,
    ) {
        let Work::Layer { layer, expand, activation, gate, residual, .. } = step.work else { return };
        let (height, width) = (step.shape.height, step.shape.width);
        let read = |value: Option<Value>| value.map_or(images, |value| self.floats(program, value, batch));
        let rounded = |value: Option<Value>| value.and_then(|value| self.bytes_of(program, value, batch));
        let gate = gate.map(|gate| self.floats(program, gate, batch));
        match &kernels[layer] {
            Kernel::Pointwise(kernel) => {
                let residual = residual.map(|value| self.floats(program, value, batch));
                kernel.run(read(step.input), batch, height * width, activation, gate, residual, floats(target));
            }
            Kernel::Depthwise(kernel) => {
                let expand = expand.and_then(|(expand, activation)| match &kernels[expand] {
                    Kernel::Pointwise(expand) => Some((expand, activation)),
                    _ => None,
                });
                kernel.run(read(step.input), expand, batch, height, width, activation, floats(target), means);
            }
            Kernel::Dense(kernel) => kernel.run(read(step.input), batch, height, width, activation, floats(target)),
            Kernel::Ordered(kernel) => kernel.run(read(step.input), batch, height, width, activation, floats(target)),
            Kernel::Int8Pointwise(kernel, to) => {
                let Some((input, from)) = rounded(step.input) else { return };
                let gate = gate.map(|factors| Gate { factors, from, to: (*to).into() });
                kernel.run(input, batch, height * width, activation, gate, rounded(residual), target);
            }
            Kernel::Int8Depthwise(kernel) => {
                let Some((input, _)) = rounded(step.input) else { return };
                kernel.run(input, batch, height, width, activation, target);
            }
            Kernel::Int8Dense(kernel) => {
                let Some((input, _)) = rounded(step.input) else { return };
                kernel.run(input, batch, height, width, activation, target);
            }
        }
    }

    /// Computes a step between layers.
    fn between(&self, step: &Step, program: &Program, images: &[f32], batch: usize, target: Target) {
        let (height, width, channels) = (step.shape.height, step.shape.width, step.shape.channels);
        let pixels = height * width;
        let read = |value: Option<Value>| value.map_or(images, |value| self.floats(program, value, batch));
        let rounded = step.input.filter(|&input| input != step.output);
        let rounded = rounded.and_then(|value| self.bytes_of(program, value, batch));
        match (step.work.clone(), rounded) {
            (Work::Quantise, _) => {
                if let Target::Bytes(bytes, affine) = target {
                    int8::quantise(read(step.input), affine, bytes);
                }
            }
            (Work::Dequantise, Some((bytes, affine))) => int8::dequantise(bytes, affine, floats(target)),
            (Work::GateRounded(factors), Some((bytes, affine))) => {
                int8::gate(bytes, affine, read(Some(factors)), (pixels, channels), target);
            }
            (Work::GlobalAveragePool, Some((bytes, affine))) => {
                int8::average_pool(bytes, affine, pixels, channels, floats(target));
            }
            (Work::GlobalAveragePool, None) if program.quantised => {
                means_in_order(read(step.input), pixels, channels, floats(target));
            }
            (Work::GlobalAveragePool, None) => {
                average_pool(read(step.input), batch, pixels, channels, floats(target));
            }
            (Work::AveragePool { window, padding }, Some((bytes, affine))) => {
                int8::average_windows(bytes, affine, (height, width, channels), window, padding, floats(target));
            }
            (Work::AveragePool { window, padding }, None) => {
                average_windows(read(step.input), (height, width, channels), window, padding, floats(target));
            }
            (Work::MaxPool, Some((bytes, _))) => {
                if let Target::Bytes(output, _) = target {
                    int8::max_pool(bytes, height, width, channels, output);
                }
            }
            (Work::MaxPool, None) => max_pool(read(step.input), height, width, channels, floats(target)),
            (Work::Add(other), _) => floats(target).iter_mut().zip(read(other)).for_each(|(sum, x)| *sum += x),
            (Work::Copy, _) => floats(target).copy_from_slice(read(step.input)),
            (Work::Activation(activation), _) => {
                let function: fn(Activation, f32) -> f32 = if program.quantised { activate } else { Activation::apply };
                floats(target).iter_mut().for_each(|value| *value = function(activation, *value));
            }
            (Work::Gate(factors), _) => {
                let maps = floats(target).chunks_exact_mut(pixels * channels);
                for (map, factors) in maps.zip(read(Some(factors)).chunks_exact(channels)) {
                    let values = map.chunks_exact_mut(channels).flat_map(|pixel| pixel.iter_mut().zip(factors));
                    values.for_each(|(value, factor)| *value *= factor);
                }
            }
            (Work::HardSigmoid, _) => floats(target).iter_mut().for_each(|value| *value = hard_sigmoid(*value)),
            (Work::Layer { .. } | Work::Dequantise | Work::GateRounded(_), _) => {
                unreachable!("layers have a function of their own, and rounded values are read from bytes")
            }
        }
    }
}

/// Means over pixels, summed in their order.
fn means_in_order(input: &[f32], pixels: usize, channels: usize, output: &mut [f32]) {
    for (image, means) in input.chunks_exact(pixels * channels).zip(output.chunks_exact_mut(channels)) {
        for (channel, mean) in means.iter_mut().enumerate() {
            let sum = image.chunks_exact(channels).fold(0.0, |sum: f32, pixel| sum + pixel[channel]);
            *mean = sum * (1.0 / pixels as f32);
        }
    }
}
