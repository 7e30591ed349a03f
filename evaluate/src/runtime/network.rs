//! The network: kernels built from weights, buffers, and one forward pass.

use super::buffers::{Buffers, too_much};
use super::compiler::{Program, Rounding, compile};
use super::describe::StepInfo;
use super::kernels::Kernel;
use super::plan::Plan;
use super::weights::{Checked, Weights, check_weights, random_weights};
use crate::latency::milliseconds;
use crate::quantise::QuantisedNetwork;
use crate::{Error, Result, memory};
use ofa_supernet::graph::Graph;
use ofa_supernet::ops::{map_alone, threads};
use ofa_supernet::space::NetworkSpec;
use std::time::Instant;

/// Bytes of activations up to which a thread runs several images together: kernels of small networks begin less often
/// then, and what a layer writes is still in a cache when the next one reads it.
const TOGETHER: u64 = 4 << 20;

/// A static network ready to run.
///
/// ```
/// use ofa_evaluate::StaticNetwork;
/// use ofa_supernet::SearchSpace;
///
/// let space = SearchSpace::named("tiny")?;
/// let spec = space.network(&space.smallest(), 10)?;
/// let mut network = StaticNetwork::random(&spec, 0)?;
/// let images = vec![0.5; 2 * spec.resolution * spec.resolution * 3];
/// let logits = network.run(&images, 2)?;
/// assert_eq!(logits.len(), 2 * 10);
/// assert!(logits.iter().all(|logit| logit.is_finite()));
/// # Ok::<(), ofa_evaluate::Error>(())
/// ```
pub struct StaticNetwork {
    spec: NetworkSpec,
    /// The kernel of each layer of the program.
    kernels: Vec<Kernel>,
    program: Program,
    /// One for each thread that runs images of its own, at least one.
    buffers: Vec<Buffers>,
    /// Bytes of a pass that the machine has been found to have.
    checked_bytes: u64,
    logits: Vec<f32>,
    /// Of a network in integers.
    rounding: Option<Rounding>,
}

/// Takes the times of steps, in milliseconds, each summed over all images.
struct Clock {
    last: Instant,
    /// Number of the next time.
    next: usize,
    times: Vec<f64>,
    /// Whether the steps of a layer count as one.
    by_layer: bool,
}

impl Clock {
    fn new(by_layer: bool) -> Self {
        Clock { last: Instant::now(), next: 0, times: Vec::new(), by_layer }
    }

    /// Begins with the first step of an image.
    fn start(&mut self) {
        (self.last, self.next) = (Instant::now(), 0);
    }

    fn step_done(&mut self, layer_done: bool) {
        if layer_done || !self.by_layer {
            let now = Instant::now();
            self.add(milliseconds(now - self.last));
            self.last = now;
        }
    }

    fn add(&mut self, time: f64) {
        match self.times.get_mut(self.next) {
            Some(sum) => *sum += time,
            None => self.times.push(time),
        }
        self.next += 1;
    }
}

impl StaticNetwork {
    /// Builds the network of `spec` from `weights`, named and shaped as
    /// [`tensor_shapes`](crate::model::tensor_shapes) says.
    ///
    /// # Errors
    /// An impossible network, or a tensor that is missing, superfluous, of the wrong shape or not finite, by name.
    pub fn new(spec: &NetworkSpec, weights: &Weights) -> Result<Self> {
        check_weights(spec, weights)?;
        let weights = Checked { weights, epsilon: spec.batch_norm_epsilon };
        let program = compile(&Graph::of(spec), None)?;
        let kernels = program.layers.iter().map(|layer| Kernel::new(layer, &weights)).collect();
        let buffers = vec![Buffers::new(Plan::of(&program))];
        let (spec, logits) = (spec.clone(), Vec::new());
        Ok(StaticNetwork { spec, kernels, program, buffers, checked_bytes: 0, logits, rounding: None })
    }

    /// Builds a network in integers. Its logits are those of [`reference`](crate::quantise::reference) to the bit.
    ///
    /// # Errors
    /// A network that fails [`QuantisedNetwork::check`], or that no kernels compute.
    pub fn quantised(network: &QuantisedNetwork) -> Result<Self> {
        network.check()?;
        let rounding = Rounding::of(network);
        let program = compile(&Graph::of(&network.spec), Some(&rounding))?;
        let kernels = program.layers.iter().map(|layer| Kernel::quantised(layer, network)).collect::<Result<_>>()?;
        let (spec, buffers, logits) = (network.spec.clone(), vec![Buffers::new(Plan::of(&program))], Vec::new());
        Ok(StaticNetwork { spec, kernels, program, buffers, checked_bytes: 0, logits, rounding: Some(rounding) })
    }

    /// The network of `spec` with seeded random weights, for measuring.
    ///
    /// # Errors
    /// An impossible network.
    pub fn random(spec: &NetworkSpec, seed: u64) -> Result<Self> {
        StaticNetwork::new(spec, &random_weights(spec, seed)?)
    }

    /// Description of the network.
    pub fn spec(&self) -> &NetworkSpec {
        &self.spec
    }

    /// Makes it take images of another size; the weights do not depend on it.
    ///
    /// # Errors
    /// A resolution that is 0 or larger than 4096.
    pub fn set_resolution(&mut self, resolution: usize) -> Result<()> {
        let mut spec = self.spec.clone();
        spec.set_resolution(resolution);
        crate::model::validate(&spec)?;
        self.program = compile(&Graph::of(&spec), self.rounding.as_ref())?;
        let plan = Plan::of(&self.program);
        self.buffers.iter_mut().for_each(|buffers| buffers.set_plan(plan.clone()));
        self.spec = spec;
        Ok(())
    }

    /// Logits `[batch, classes]` of `images` `[batch, resolution, resolution, 3]`, normalised.
    ///
    /// # Errors
    /// A number of values that is not that of the batch.
    pub fn run(&mut self, images: &[f32], batch: usize) -> Result<&[f32]> {
        self.forward(images, batch, None)?;
        Ok(&self.logits)
    }

    /// Runs the network as [`run`](Self::run) does, and replaces `times` with each layer's time in milliseconds: the
    /// stem's convolutions, max pool, blocks, head (feature convolution, pool, hidden layer and classifier), as far as
    /// it has them.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_timed(&mut self, images: &[f32], batch: usize, times: &mut Vec<f64>) -> Result<&[f32]> {
        *times = self.forward(images, batch, Some(true))?;
        Ok(&self.logits)
    }

    /// Runs the network as [`run`](Self::run) does, and replaces `times` with the time of each of
    /// [`steps`](Self::steps) in milliseconds.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_steps(&mut self, images: &[f32], batch: usize, times: &mut Vec<f64>) -> Result<()> {
        *times = self.forward(images, batch, Some(false))?;
        Ok(())
    }

    /// Calls of kernels in their order.
    pub fn steps(&self) -> Vec<StepInfo> {
        self.program.steps.iter().map(|step| self.program.describe(step)).collect()
    }

    /// Whether the network computes in integers.
    pub fn is_quantised(&self) -> bool {
        self.program.quantised
    }

    /// Bytes of the buffers that one image of a batch takes while it runs.
    pub fn buffer_bytes(&self) -> u64 {
        self.buffers[0].bytes()
    }

    /// Bytes of the buffers that one image would take in the network of `spec`.
    ///
    /// # Errors
    /// A network that no kernels compute.
    pub fn planned_bytes(spec: &NetworkSpec) -> Result<u64> {
        Ok(Plan::of(&compile(&Graph::of(spec), None)?).bytes())
    }

    /// Fills the logits. With `by_layer` returns the times of steps, or of [layers](crate::profile::layers), over all
    /// images.
    ///
    /// Each thread runs whole images of its own: their activations stay in the thread's caches, and no thread waits for
    /// another between layers. Only the images that are left over share the threads.
    fn forward(&mut self, images: &[f32], batch: usize, by_layer: Option<bool>) -> Result<Vec<f64>> {
        let spec = &self.spec;
        let size = spec.resolution * spec.resolution * 3;
        let expected = batch.saturating_mul(size);
        if batch == 0 || images.len() != expected {
            return Err(Error::Input(format!(
                "{} values given for a batch of {batch}; {expected} = {batch} x {r} x {r} x 3 were expected, and a batch holds at \
                 least one image",
                images.len(),
                r = spec.resolution
            )));
        }
        self.logits.resize(batch * spec.classes, 0.0);
        let threads = threads();
        let of_thread = batch / threads;
        let (alone, shared) = images.split_at(of_thread * threads * size);
        let (logits, shared_logits) = self.logits.split_at_mut(of_thread * threads * spec.classes);
        let (program, kernels) = (&self.program, &self.kernels[..]);
        let together = (TOGETHER / self.buffers[0].bytes().max(1)).max(1) as usize;
        let pass =
            |buffers: &mut Buffers, images: &[f32], logits: &mut [f32], clock: &mut Option<Clock>| -> Result<()> {
                let batch = images.len() / size;
                buffers.reserve(batch)?;
                clock.iter_mut().for_each(Clock::start);
                let mut steps = program.steps.iter().peekable();
                while let Some(step) = steps.next() {
                    buffers.run(step, program, kernels, images, batch);
                    let layer_done = steps.peek().is_none_or(|next| next.layer != step.layer);
                    clock.iter_mut().for_each(|clock| clock.step_done(layer_done));
                }
                let output = program.steps.last().map_or(&[][..], |step| buffers.floats(program, step.output, batch));
                logits.copy_from_slice(output);
                Ok(())
            };
        let mut clock = by_layer.map(Clock::new);
        // Systems promise more memory than they have.
        let most = (threads * together.min(of_thread)).max(batch - of_thread * threads);
        let bytes = self.buffers[0].bytes().saturating_mul(most as u64);
        if bytes > self.checked_bytes {
            if memory::limit().is_some_and(|limit| bytes > limit) {
                return Err(too_much(bytes));
            }
            self.checked_bytes = bytes;
        }
        if of_thread > 0 {
            while self.buffers.len() < threads {
                self.buffers.push(Buffers::new(self.buffers[0].plan().clone()));
            }
            let parts = alone.chunks_exact(of_thread * size).zip(logits.chunks_exact_mut(of_thread * spec.classes));
            let parts = parts.zip(&mut self.buffers).collect();
            let clocks = map_alone(parts, |((images, logits), buffers)| {
                let mut clock = by_layer.map(Clock::new);
                let groups = images.chunks(together * size).zip(logits.chunks_mut(together * spec.classes));
                for (images, logits) in groups {
                    pass(buffers, images, logits, &mut clock)?;
                }
                Ok(clock)
            });
            let clocks: Vec<Option<Clock>> = clocks.into_iter().collect::<Result<_>>()?;
            // All threads have the same steps, at the same time.
            if let Some(mean) = &mut clock {
                for of_thread in clocks.into_iter().flatten() {
                    mean.next = 0;
                    of_thread.times.iter().for_each(|time| mean.add(time / threads as f64));
                }
            }
        }
        if !shared.is_empty() {
            pass(&mut self.buffers[0], shared, shared_logits, &mut clock)?;
        }
        Ok(clock.map_or_else(Vec::new, |clock| clock.times))
    }
}

/// Probabilities of the classes, from the logits of one image.
pub fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - largest).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.into_iter().map(|value| value / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Tensor};
    use ofa_supernet::graph::interpreter;
    use ofa_supernet::ops::{ChannelStatistics, with_threads};
    use ofa_supernet::seed::{Stream, generator};
    use ofa_supernet::space::{Activation, Subnet, preset};
    use rand::Rng;

    fn images(spec: &NetworkSpec, batch: usize) -> Vec<f32> {
        let mut rng = generator(9, Stream::Builtin, &[]);
        (0..batch * spec.resolution * spec.resolution * 3).map(|_| rng.random_range(-2.0..2.0)).collect()
    }

    /// The network as PyTorch would run it, in f64: convolutions, then batch norm with the running statistics.
    fn expected_logits(spec: &NetworkSpec, weights: &Weights, images: &[f32], batch: usize) -> Vec<f32> {
        let graph = Graph::of(spec);
        let wide = |(shape, values): &(Vec<usize>, Vec<f32>)| {
            let tensor = Tensor::from_slice(values, shape.as_slice(), &Device::Cpu).unwrap();
            tensor.to_dtype(DType::F64).unwrap()
        };
        let (mut parameters, mut statistics) = (Vec::new(), Vec::new());
        for slot in graph.slots() {
            let get = |part: &str| &weights[&format!("{}.{part}", graph.name(slot))];
            let (running, trained): (Vec<_>, Vec<_>) =
                graph.tensors(slot).into_iter().map(|(part, _)| part).partition(|part| part.starts_with("running"));
            parameters.push(trained.into_iter().map(|part| wide(get(part))).collect());
            if let [mean, variance] = running[..] {
                let (mean, variance) = (get(mean).1.clone(), get(variance).1.clone());
                statistics.push(ChannelStatistics { mean, variance, count: 1 });
            }
        }
        let shape = (batch, spec.resolution, spec.resolution, 3);
        let images = wide(&(vec![shape.0, shape.1, shape.2, shape.3], images.to_vec()));
        let (logits, _) = interpreter::run(&graph, &images, &parameters, Some(&statistics)).unwrap();
        logits.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
        assert_eq!(found.len(), expected.len());
        let size = expected.iter().fold(0.0f32, |a, &b| a.max(b.abs()));
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= tolerance * size, "{found} instead of {expected} (largest {size})");
        }
    }

    #[test]
    fn more_memory_than_the_machine_has_is_refused() {
        let space = preset("tiny").unwrap();
        let spec = space.network(&space.smallest(), 10).unwrap();
        let mut network = StaticNetwork::random(&spec, 1).unwrap();
        for batch in [1 << 40, usize::MAX] {
            let error = network.buffers[0].reserve(batch).unwrap_err().to_string();
            assert!(error.contains("MiB of memory"), "{error}");
        }
        network.run(&images(&spec, 1), 1).unwrap();
    }

    #[test]
    fn logits_equal_the_unfolded_network() {
        // Odd sizes, both strides, with and without squeeze-excite and residual.
        let mut space = preset("tiny").unwrap();
        space.resolutions = vec![15, 21];
        space.depths = vec![1, 2];
        for (position, batch) in [(0, 1), (1, 3), (2, 2), (3, 3)] {
            // As in ProxylessNAS: no hidden layer, a last stage of one block; another epsilon.
            if position >= 2 {
                let head = space.head.as_mut().unwrap();
                (head.hidden_channels, head.activation) = (None, Activation::Relu6);
                space.stages[1].depths = vec![1];
                space.batch_norm_epsilon = 1e-2;
            }
            let subnet = space.sample(&mut generator(4, Stream::Sampling, &[position]));
            let spec = space.network(&subnet, 5).unwrap();
            let weights = random_weights(&spec, 11).unwrap();
            let images = images(&spec, batch);
            let mut network = StaticNetwork::new(&spec, &weights).unwrap();
            let expected = expected_logits(&spec, &weights, &images, batch);
            assert_close(network.run(&images, batch).unwrap(), &expected, 1e-4);
            // Again with the buffers of the first run, through the timed path, and after another batch size.
            network.run(&images[..images.len() / batch], 1).unwrap();
            let mut times = vec![1.0];
            assert_close(network.run_timed(&images, batch, &mut times).unwrap(), &expected, 1e-4);
            assert_eq!(times.len(), spec.blocks().count() + 2);
            assert!(times.iter().all(|t| *t >= 0.0));
        }
    }

    #[test]
    fn logits_of_other_shortcuts_equal_the_unfolded_network() {
        // Odd sizes: windows over the border, in all pools.
        let cases = [(0, 1), (1, 3), (2, 2), (3, 3)].into_iter();
        for (name, (position, batch)) in
            ["resnet-tiny", "attentive-tiny"].into_iter().flat_map(|name| cases.clone().map(move |case| (name, case)))
        {
            let mut space = preset(name).unwrap();
            space.resolutions = vec![15, 21];
            let subnet = space.sample(&mut generator(3, Stream::Sampling, &[position]));
            let spec = space.network(&subnet, 6).unwrap();
            let weights = random_weights(&spec, position).unwrap();
            let images = images(&spec, batch);
            let mut network = StaticNetwork::new(&spec, &weights).unwrap();
            let expected = expected_logits(&spec, &weights, &images, batch);
            assert_close(network.run(&images, batch).unwrap(), &expected, 1e-4);
            let mut times = vec![];
            assert_close(network.run_timed(&images, batch, &mut times).unwrap(), &expected, 1e-4);
            assert_eq!(times.len(), crate::profile::layers(&spec).count());
        }
    }

    #[test]
    fn another_resolution_is_the_same_as_a_network_built_for_it() {
        for name in ["resnet-tiny", "tiny"] {
            let space = preset(name).unwrap();
            let at = |resolution| Subnet { resolution, ..space.largest() };
            let small = space.network(&at(space.resolutions[0]), 4).unwrap();
            let large = space.network(&at(space.resolutions[1]), 4).unwrap();
            let mut network = StaticNetwork::random(&small, 1).unwrap();
            network.set_resolution(large.resolution).unwrap();
            assert_eq!(*network.spec(), large);
            let images = images(&large, 2);
            let expected = StaticNetwork::random(&large, 1).unwrap().run(&images, 2).unwrap().to_vec();
            assert_eq!(network.run(&images, 2).unwrap(), expected);
        }
        let space = preset("tiny").unwrap();
        let large = space.network(&space.smallest(), 4).unwrap();
        let mut network = StaticNetwork::random(&large, 1).unwrap();
        let images = images(&large, 2);
        assert!(network.set_resolution(0).is_err());
        assert!(network.run(&images, 3).unwrap_err().to_string().contains("batch of 3"));
        assert!(network.run(&[], 0).is_err());
    }

    #[test]
    fn every_image_has_the_same_logits_in_any_batch_on_any_threads() {
        let space = preset("tiny").unwrap();
        let spec = space.network(&space.largest(), 4).unwrap();
        let mut network = StaticNetwork::random(&spec, 1).unwrap();
        let images = images(&spec, 7);
        let size = images.len() / 7;
        let alone: Vec<f32> = images.chunks(size).flat_map(|image| network.run(image, 1).unwrap().to_vec()).collect();
        for (threads, batch) in [(1, 7), (2, 7), (3, 7), (3, 6), (3, 2), (9, 7)] {
            with_threads(threads, || {
                let found = network.run(&images[..batch * size], batch).unwrap();
                assert_eq!(found, &alone[..batch * 4], "{threads} threads, {batch} images");
                let (mut of_layers, mut of_steps) = (Vec::new(), Vec::new());
                network.run_timed(&images[..batch * size], batch, &mut of_layers).unwrap();
                network.run_steps(&images[..batch * size], batch, &mut of_steps).unwrap();
                assert_eq!((of_layers.len(), of_steps.len()), (spec.blocks().count() + 2, network.steps().len()));
            });
        }
    }

    #[test]
    fn wrong_tensors_are_named() {
        let space = preset("tiny").unwrap();
        let spec = space.network(&space.smallest(), 3).unwrap();
        let good = random_weights(&spec, 0).unwrap();
        let refused = |change: &dyn Fn(&mut Weights), name: &str, part: &str| {
            let mut weights = good.clone();
            change(&mut weights);
            let message = StaticNetwork::new(&spec, &weights).err().unwrap().to_string();
            assert!(message.contains(name) && message.contains(part), "{message}");
        };
        let name = "blocks.1.0.conv_dw.weight";
        refused(&|w| drop(w.remove(name)), name, "missing");
        refused(&|w| w.get_mut(name).unwrap().0 = vec![1], name, "shape [1]");
        refused(&|w| w.get_mut(name).unwrap().1[3] = f32::NAN, name, "value 3 is NaN");
        refused(&|w| w.get_mut("bn1.running_var").unwrap().1[0] = -1.0, "bn1.running_var", "negative");
        refused(&|w| drop(w.insert("extra".into(), (vec![1], vec![0.0]))), "extra", "does not belong");
    }

    #[test]
    fn probabilities_add_up_and_do_not_overflow() {
        let found = softmax(&[1000.0, 1000.0 - 2f32.ln(), -1000.0]);
        let expected = [2.0 / 3.0, 1.0 / 3.0, 0.0];
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4), "{found:?}");
    }
}
