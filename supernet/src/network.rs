//! The weight-sharing network. The subnet is an argument of every pass, never a state of the network.

use crate::blocks::Block;
use crate::graph::Graph;
use crate::layers::{
    BatchNorm, Dense, Initialiser, Moments, ParameterId, Parameters, Pass, activate, average_pool, linear, max_pool,
};
use crate::network_seam::{Seam, Trunk};
use crate::ops::{self, ChannelStatistics, Relay};
use crate::ranks::Ranks;
use crate::seed::{Stream, generator};
use crate::space::{NetworkSpec, SearchSpace, Subnet};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use rand::Rng;
use rand::rngs::StdRng;

pub use crate::layers::Parameter;
pub use crate::network_statistics::{Statistics, StatisticsCollector};

/// Behaviour of batch norm and dropout in a forward pass.
pub enum Mode<'a> {
    /// Batch statistics, which also move the running statistics; dropout at this rate; gradients are kept.
    Train {
        /// Dropout rate before the classifier.
        dropout: f64,
        /// Generator of the dropout masks.
        rng: &'a mut StdRng,
        /// Place of the first image in the step's whole batch, of which other processes may hold parts: an image's mask
        /// depends on its place alone.
        first: usize,
    },
    /// Batch statistics, nothing is changed or kept for gradients: the teacher.
    BatchStatistics,
    /// Batch statistics, averaged into the collector: batch-norm recalibration.
    Collect(&'a mut StatisticsCollector),
    /// The given statistics.
    Evaluate(&'a Statistics),
}

/// The weight-sharing network.
#[derive(Debug)]
pub struct Supernet {
    space: SearchSpace,
    classes: usize,
    parameters: Parameters,
    /// The convolution of the stem, or ResNet-D's three, of which the middle one is optional.
    stem: Vec<Dense>,
    /// The fixed first block of MobileNets.
    first: Option<Block>,
    stages: Vec<Vec<Block>>,
    feature: Option<Dense>,
    hidden: Option<ParameterId>,
    classifier: (ParameterId, ParameterId),
    momentum: f64,
    /// The processes whose batches' statistics are used together.
    ranks: Option<Ranks>,
}

/// Results of a forward pass.
pub(crate) struct Passed {
    pub logits: Tensor,
    /// The statistics of its batch norms.
    pub used: Vec<ChannelStatistics>,
    /// The seam of a pass in halves, and the index of the first parameter of the later half.
    pub middle: Option<(Seam, usize)>,
}

/// Borrowed view of the layers whose channels are sorted.
pub(crate) struct Parts<'a> {
    pub parameters: &'a Parameters,
    pub stem: &'a [Dense],
    pub stages: &'a [Vec<Block>],
    /// Weight and bias.
    pub classifier: (ParameterId, ParameterId),
}

impl Supernet {
    /// A new network with seeded weights, f32 on the CPU, batch-norm momentum 0.1.
    ///
    /// # Errors
    /// An invalid space.
    pub fn new(space: &SearchSpace, classes: usize, seed: u64) -> Result<Self> {
        Self::on_device(space, classes, seed, DType::F32, &Device::Cpu)
    }

    /// A new network with another number type or on another device, where the interpreter computes its layers.
    ///
    /// # Errors
    /// An invalid space, or a device without memory.
    pub fn on_device(space: &SearchSpace, classes: usize, seed: u64, dtype: DType, device: &Device) -> Result<Self> {
        space.validate()?;
        let mut largest = space.network(&space.largest(), classes)?;
        let mut parameters = Parameters::new(seed, dtype, device);
        let stem_name = |index: usize| match largest.stem.len() {
            1 => "stem".to_string(),
            _ => format!("stem.{index}"),
        };
        let stem = largest.stem.iter().enumerate();
        let stem = stem.map(|(index, spec)| Dense::new(&mut parameters, &stem_name(index), spec, false));
        let stem = stem.collect::<candle_core::Result<_>>()?;
        let mut first = None;
        if space.first_block.is_some() {
            let spec = &largest.stages.remove(0)[0];
            first = Some(Block::new(&mut parameters, "first", spec, &[3])?);
        }
        let mut stages = Vec::new();
        for (s, specs) in largest.stages.iter().enumerate() {
            let mut blocks = Vec::new();
            for (b, spec) in specs.iter().enumerate() {
                let kernel_sizes = space.stage_kernel_sizes(s);
                blocks.push(Block::new(&mut parameters, &format!("stages.{s}.{b}"), spec, kernel_sizes)?);
            }
            stages.push(blocks);
        }
        let feature = largest.feature.as_ref().map(|spec| Dense::new(&mut parameters, "feature", spec, true));
        let feature = feature.transpose()?;
        let width = largest.classifier_channels();
        let hidden = match largest.hidden_channels {
            Some(width) => {
                let he = Initialiser::Normal((2.0 / width as f64).sqrt());
                let dims = [width, largest.pooled_map().0];
                Some(parameters.add("hidden.weight".into(), &dims, he, true)?)
            }
            None => None,
        };
        let bound = Initialiser::Uniform(1.0 / (width as f64).sqrt());
        let weight = parameters.add("classifier.weight".into(), &[classes, width], bound, true)?;
        let bias = parameters.add("classifier.bias".into(), &[classes], Initialiser::Constant(0.0), false)?;
        Ok(Supernet {
            space: space.clone(),
            classes,
            parameters,
            stem,
            first,
            stages,
            feature,
            hidden,
            classifier: (weight, bias),
            momentum: 0.1,
            ranks: None,
        })
    }

    /// The search space.
    pub fn space(&self) -> &SearchSpace {
        &self.space
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The device that holds the tensors.
    pub fn device(&self) -> &Device {
        self.parameters.device()
    }

    /// All trainable tensors in a fixed order.
    pub fn parameters(&self) -> &[Parameter] {
        self.parameters.list()
    }

    /// Sets the fraction by which a training step moves the running statistics (default 0.1).
    pub fn set_batch_norm_momentum(&mut self, momentum: f64) {
        self.momentum = momentum;
    }

    /// From now on batch norm takes the statistics of the batches of all `ranks` together in [`Mode::Train`] and
    /// [`Mode::BatchStatistics`]. All ranks must then make the same calls of [`forward`](Self::forward), with the same
    /// subnets, and of backward passes.
    ///
    /// # Errors
    /// A network that is not f32 on the CPU: only those kernels can.
    pub fn share_batch_statistics(&mut self, ranks: &Ranks) -> Result<()> {
        if !self.has_kernels() {
            return Err(Error::Config("batch norm can be synchronised between ranks on the CPU only; use --device cpu, or leave --sync-batch-norm out".into()));
        }
        self.ranks = ranks.is_distributed().then(|| ranks.clone());
        Ok(())
    }

    /// Whether its layers run as this crate's own kernels: f32 on the CPU.
    pub(crate) fn has_kernels(&self) -> bool {
        ops::has_kernels(self.device(), self.parameters.dtype())
    }

    /// Whether batch norm uses the statistics of several processes together.
    pub fn shares_batch_statistics(&self) -> bool {
        self.ranks.is_some()
    }

    /// Logits `[batch, classes]` of `subnet` for `images` `[batch, r, r, 3]`. The images' size need not equal the
    /// subnet's resolution: in training one size serves all subnets of a step.
    ///
    /// # Errors
    /// A subnet outside the space, statistics of another subnet, images of another shape.
    pub fn forward(&self, images: &Tensor, subnet: &Subnet, mode: Mode) -> Result<Tensor> {
        // On one of rayon's threads: candle's own operations would put a caller from outside to sleep and wake it for
        // each of them.
        let network = self.space.network(subnet, self.classes)?;
        let trains = matches!(mode, Mode::Train { .. });
        let passed = rayon::scope(|_| self.forward_on_this_thread(images, &network, mode, None, None))?;
        if trains {
            self.move_running(&network, &passed.used);
        }
        Ok(passed.logits)
    }

    /// The layers that all of `subnets` have in common from the first on, if there are several subnets and such layers:
    /// a training step computes them once. They end in the middle of the last subnet at the latest, where
    /// [`forward_from`](Self::forward_from) cuts it.
    pub(crate) fn trunk(&self, images: &Tensor, subnets: &[Subnet]) -> Result<Option<Trunk>> {
        let networks = subnets.iter().map(|subnet| self.space.network(subnet, self.classes));
        let networks: Vec<NetworkSpec> = networks.collect::<Result<_>>()?;
        let [first, .., last] = &networks[..] else { return Ok(None) };
        let in_common = networks.iter().map(|network| first.layers_in_common(network)).min();
        let layers = in_common.unwrap_or(0).min(1 + last.middle_block());
        if layers == 0 {
            return Ok(None);
        }
        let mut pass = Pass { keep_gradients: true, ranks: self.ranks.as_ref(), given: None, used: Vec::new() };
        let mut x = self.stem(images, first, &mut pass)?;
        for (block, spec) in self.active_blocks(first).zip(first.blocks()).take(layers - 1) {
            x = block.forward(&self.parameters, x, spec, first.batch_norm_epsilon, &mut pass)?;
        }
        Ok(Some(Trunk { seam: Seam::new(x.tracked()?)?, used: pass.used, layers }))
    }

    /// As [`forward`](Self::forward) of `subnet`, one of those of `trunk`, if there is one: backward from the logits
    /// ends at its seam. On this thread, and without a change to the running statistics: several subnets may pass at
    /// one time.
    ///
    /// `in_halves`, backward from the logits ends in the middle of the network, and goes on from that seam with
    /// [`Seam::backward`]. Together both give the same bits as one backward pass.
    pub(crate) fn forward_from(
        &self,
        images: &Tensor,
        trunk: Option<&Trunk>,
        subnet: &Subnet,
        mode: Mode,
        in_halves: bool,
    ) -> Result<Passed> {
        let network = self.space.network(subnet, self.classes)?;
        let middle = in_halves.then(|| network.middle_block());
        let passed = self.forward_on_this_thread(images, &network, mode, trunk, middle)?;
        match in_halves && passed.middle.is_none() {
            true => Err(Error::Internal("a network without blocks has no middle".into())),
            false => Ok(passed),
        }
    }

    /// Moves the running statistics of `subnet` towards those that a pass of it used.
    pub(crate) fn move_running_statistics(&self, subnet: &Subnet, used: &[ChannelStatistics]) -> Result<()> {
        self.move_running(&self.space.network(subnet, self.classes)?, used);
        Ok(())
    }

    fn move_running(&self, network: &NetworkSpec, used: &[ChannelStatistics]) {
        for (norm, used) in self.norms(network).zip(used) {
            norm.update(used, self.momentum);
        }
    }

    /// Logits of each of `subnets` for the same images, as [`forward`](Self::forward) with its mode gives them, bit for
    /// bit. Layers that neighbours have in common from the first on are computed once, so that subnets in order (they
    /// have one) cost less than one by one.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); another number of modes, or [`Mode::Train`], whose gradients are those of one
    /// subnet.
    pub fn forward_each(&self, images: &Tensor, subnets: &[Subnet], modes: Vec<Mode>) -> Result<Vec<Tensor>> {
        if modes.len() != subnets.len() || modes.iter().any(|mode| matches!(mode, Mode::Train { .. })) {
            return Err(Error::Internal("subnets are evaluated together with a mode each, and not trained".into()));
        }
        let networks = subnets.iter().map(|subnet| self.space.network(subnet, self.classes));
        let networks: Vec<NetworkSpec> = networks.collect::<Result<_>>()?;
        rayon::scope(|_| self.each_on_this_thread(images, &networks, modes))
    }

    fn each_on_this_thread(&self, images: &Tensor, networks: &[NetworkSpec], modes: Vec<Mode>) -> Result<Vec<Tensor>> {
        // After each layer that the last network and this one have in common (the stem is the first): its output, and
        // the statistics so far.
        let mut common: Vec<(Relay, Vec<ChannelStatistics>)> = Vec::new();
        let mut last_kind = None;
        let mut all = Vec::with_capacity(networks.len());
        for (index, (network, mode)) in networks.iter().zip(modes).enumerate() {
            let mut pass = self.pass(&mode);
            let kind = std::mem::discriminant(&mode);
            if last_kind != Some(kind) {
                common.clear();
            }
            last_kind = Some(kind);
            while common.last().is_some_and(|(_, used)| !pass.would_use(used)) {
                common.pop();
            }
            let next = networks.get(index + 1).map_or(0, |next| network.layers_in_common(next));
            let done = common.len();
            let mut x = match common.last() {
                Some((x, used)) => {
                    pass.used.clone_from(used);
                    x.clone()
                }
                None => self.stem(images, network, &mut pass)?,
            };
            if done == 0 && next > 0 {
                common.push((x.clone(), pass.used.clone()));
            }
            let blocks = self.active_blocks(network).zip(network.blocks()).enumerate();
            for (place, (block, spec)) in blocks.skip(done.saturating_sub(1)) {
                x = block.forward(&self.parameters, x, spec, network.batch_norm_epsilon, &mut pass)?;
                if place + 1 < next {
                    common.push((x.clone(), pass.used.clone()));
                }
            }
            common.truncate(next);
            all.push(self.head(x, network, mode, &mut pass)?);
        }
        Ok(all)
    }

    fn forward_on_this_thread(
        &self,
        images: &Tensor,
        network: &NetworkSpec,
        mode: Mode,
        trunk: Option<&Trunk>,
        middle: Option<usize>,
    ) -> Result<Passed> {
        let mut pass = self.pass(&mode);
        let mut cut = None;
        let (mut x, blocks_done) = match trunk {
            Some(trunk) => {
                pass.used.clone_from(&trunk.used);
                (trunk.seam.input().clone().into(), trunk.layers - 1)
            }
            None => (self.stem(images, network, &mut pass)?, 0),
        };
        let blocks = self.active_blocks(network).zip(network.blocks()).enumerate();
        for (index, (block, spec)) in blocks.skip(blocks_done) {
            if middle == Some(index) {
                let (here, _) = cut.insert((Seam::new(x.tracked()?)?, block.first_parameter().place()));
                x = here.input().clone().into();
            }
            x = block.forward(&self.parameters, x, spec, network.batch_norm_epsilon, &mut pass)?;
        }
        let logits = self.head(x, network, mode, &mut pass)?;
        Ok(Passed { logits, used: pass.used, middle: cut })
    }

    /// The pass of a mode.
    fn pass<'a>(&'a self, mode: &Mode<'a>) -> Pass<'a> {
        Pass {
            keep_gradients: matches!(mode, Mode::Train { .. }),
            ranks: match mode {
                Mode::Train { .. } | Mode::BatchStatistics => self.ranks.as_ref(),
                Mode::Collect(_) | Mode::Evaluate(_) => None,
            },
            given: match mode {
                Mode::Evaluate(statistics) => Some(&statistics.layers),
                _ => None,
            },
            used: Vec::new(),
        }
    }

    /// Layers before the blocks.
    fn stem(&self, images: &Tensor, network: &NetworkSpec, pass: &mut Pass) -> Result<Relay> {
        let mut x = images.to_dtype(self.parameters.dtype())?;
        for (dense, spec) in self.active_stem(network).zip(&network.stem) {
            x = dense.forward(&self.parameters, &x, spec, network.batch_norm_epsilon, pass)?;
        }
        Ok(if network.max_pool.is_some() { max_pool(&x)? } else { x }.into())
    }

    /// Layers after the blocks.
    fn head(&self, x: Relay, network: &NetworkSpec, mode: Mode, pass: &mut Pass) -> Result<Tensor> {
        let x = x.tracked()?;
        let (batch, height, width, channels) = x.dims4()?;
        let keep = pass.keep_gradients;
        let pooled = match (&self.feature, &network.feature) {
            (Some(dense), Some(spec)) => dense.forward(&self.parameters, &x, spec, network.batch_norm_epsilon, pass)?,
            _ => average_pool(&x, (height, width))?.reshape((batch, channels))?,
        };
        let mut hidden = match self.hidden {
            Some(id) => activate(&linear(&pooled, &self.parameters.get(id, keep))?, network.hidden_activation)?,
            None => pooled,
        };
        match mode {
            Mode::Train { dropout, rng, first } => {
                if dropout > 0.0 {
                    hidden = (&hidden * dropout_mask(&hidden, dropout, rng, first)?)?;
                }
            }
            Mode::Collect(collector) => collector.add(batch, &pass.used),
            Mode::BatchStatistics | Mode::Evaluate(_) => {}
        }
        let (weight, bias) = self.classifier;
        let weight = self.parameters.get(weight, keep).narrow(1, 0, network.classifier_channels())?;
        Ok(linear(&hidden, &weight)?.broadcast_add(&self.parameters.get(bias, keep))?)
    }

    /// The stem's convolutions that a subnet has.
    fn active_stem<'a>(&'a self, network: &NetworkSpec) -> impl Iterator<Item = &'a Dense> + use<'a> {
        let skipped = if network.stem.len() < self.stem.len() { 1..self.stem.len() - 1 } else { 0..0 };
        self.stem.iter().enumerate().filter(move |(index, _)| !skipped.contains(index)).map(|(_, dense)| dense)
    }

    /// The blocks that a subnet has.
    fn active_blocks<'a>(&'a self, network: &'a NetworkSpec) -> impl Iterator<Item = &'a Block> {
        let specs = &network.stages[usize::from(self.first.is_some())..];
        self.first
            .iter()
            .chain(self.stages.iter().zip(specs).flat_map(|(blocks, specs)| blocks.iter().take(specs.len())))
    }

    /// Active slices of the tensors of each slot of the graph of `network`, without running statistics.
    pub(crate) fn active(&self, network: &NetworkSpec) -> Result<Vec<Vec<Tensor>>> {
        let parameters = &self.parameters;
        let mut slots = Vec::new();
        for (dense, spec) in self.active_stem(network).zip(&network.stem) {
            slots.extend(dense.active(parameters, spec, false)?);
        }
        for (block, spec) in self.active_blocks(network).zip(network.blocks()) {
            slots.extend(block.active(parameters, spec, false)?);
        }
        if let (Some(dense), Some(spec)) = (&self.feature, &network.feature) {
            slots.extend(dense.active(parameters, spec, false)?);
        }
        slots.extend(self.hidden.map(|id| vec![parameters.get(id, false)]));
        let (weight, bias) = self.classifier;
        let weight = parameters.get(weight, false).narrow(1, 0, network.classifier_channels())?;
        slots.push(vec![weight, parameters.get(bias, false)]);
        Ok(slots)
    }

    /// The batch norms of a subnet in layer order.
    fn norms<'a>(&'a self, network: &'a NetworkSpec) -> impl Iterator<Item = &'a BatchNorm> {
        let stem = self.active_stem(network).map(|dense| &dense.norm);
        stem.chain(self.active_blocks(network).flat_map(Block::norms))
            .chain(self.feature.iter().map(|dense| &dense.norm))
    }

    /// All batch norms.
    pub(crate) fn all_norms(&self) -> impl Iterator<Item = &BatchNorm> {
        let blocks = self.first.iter().chain(self.stages.iter().flatten());
        let stem = self.stem.iter().map(|dense| &dense.norm);
        stem.chain(blocks.flat_map(Block::norms)).chain(self.feature.iter().map(|dense| &dense.norm))
    }

    /// Running statistics of the subnet's layers, as training left them. They are a mixture of all trained subnets:
    /// recalibrate before you trust an accuracy.
    ///
    /// # Errors
    /// A subnet outside the space.
    pub fn running_statistics(&self, subnet: &Subnet) -> Result<Statistics> {
        let network = self.space.network(subnet, self.classes)?;
        let layers = self
            .norms(&network)
            .zip(Graph::of(&network).norm_widths())
            .map(|(norm, width)| {
                let Moments { mean, variance } = norm.running();
                Moments { mean: mean[..width].to_vec(), variance: variance[..width].to_vec() }
            })
            .collect();
        Ok(Statistics { layers })
    }

    pub(crate) fn parts(&self) -> Parts<'_> {
        Parts { parameters: &self.parameters, stem: &self.stem, stages: &self.stages, classifier: self.classifier }
    }
}

/// Zeros with probability `rate`, else `1 / (1 - rate)`, for images from place `first` of the batch on.
fn dropout_mask(like: &Tensor, rate: f64, rng: &mut StdRng, first: usize) -> Result<Tensor> {
    let (images, channels) = like.dims2()?;
    let (keep, seed) = (1.0 / (1.0 - rate), rng.random());
    let mut mask = Vec::with_capacity(images * channels);
    for image in first..first + images {
        let mut rng = generator(seed, Stream::Dropout, &[image as u64]);
        mask.extend((0..channels).map(|_| if rng.random::<f64>() < rate { 0.0 } else { keep as f32 }));
    }
    Ok(Tensor::from_vec(mask, like.shape(), &Device::Cpu)?.to_dtype(like.dtype())?.to_device(like.device())?)
}
