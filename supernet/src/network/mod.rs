//! The weight-sharing network. The subnet is an argument of every pass, never a state of the network.
//!
//! | file | concern |
//! | --- | --- |
//! | `forward` | passes: of one subnet, of several, of the layers that several have in common |
//! | `statistics` | batch norm's statistics for one subnet, and recalibration |
//! | `state` | parameters and running statistics as named tensors |
//! | `cut` | a subnet's weights as a static network |
//! | `paste` | a static network's weights as those of a subnet |
//! | `sort` | sorting channels by importance |
//! | `initial` | weights to start from |
//!
//! A forward pass with [`Mode::Train`] records a [`Tape`], which goes back from the gradient at the logits.

mod cut;
mod forward;
mod initial;
mod paste;
mod sort;
mod state;
mod statistics;
#[cfg(test)]
mod tree_tests;

use crate::blocks::{Block, BlockSpec};
use crate::graph::Graph;
use crate::graph::names::{own_block, own_stem};
use crate::layers::{Active, BatchNorm, Dense, Initialiser, Moments, ParameterId, Parameters, Pass};
use crate::ranks::Ranks;
use crate::space::{NetworkSpec, SearchSpace, Subnet};
use crate::{Error, Result};
use candle_core::{DType, Device};
use rand::rngs::StdRng;

pub use crate::layers::{DropPath, Gradients, Parameter, ParameterKind, Tape};
pub(crate) use forward::Trunk;
pub use paste::Values;
pub use statistics::{Statistics, StatisticsCollector};

/// Behaviour of batch norm and dropout in a forward pass.
pub enum Mode<'a> {
    /// Batch statistics, which also move the running statistics; dropout at this rate; the pass is recorded.
    Train {
        /// Dropout rate before the classifier.
        dropout: f64,
        /// Generator of the dropout masks.
        rng: &'a mut StdRng,
        /// Place of the first image in the step's whole batch, of which other processes may hold parts: an image's mask
        /// depends only on its place.
        first: usize,
        /// Images that skip blocks, if there are any.
        drop_path: Option<DropPath>,
        /// Receives the record of the pass: [`Tape::backward`] takes the gradient at the logits.
        tape: &'a mut Tape,
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
        let choices: Vec<NetworkSpec> =
            space.covering().map(|subnet| space.network(&subnet, classes)).collect::<Result<_>>()?;
        let mut parameters = Parameters::new(seed, dtype, device);
        let stem_name = |index: usize| own_stem(index, largest.stem.len());
        let stem = largest.stem.iter().enumerate();
        let stem = stem.map(|(index, spec)| Dense::new(&mut parameters, &stem_name(index), spec, false));
        let stem = stem.collect::<candle_core::Result<_>>()?;
        let mut first = None;
        if space.first_block.is_some() {
            let spec = &largest.stages.remove(0)[0];
            first = Some(Block::new(&mut parameters, &own_block(0, 0, true), &[spec], &[3])?);
        }
        let mut stages = Vec::new();
        for (s, specs) in largest.stages.iter().enumerate() {
            let mut blocks = Vec::new();
            for (b, spec) in specs.iter().enumerate() {
                let others = choices.iter().map(|network| &network.stages[s + usize::from(first.is_some())][b]);
                let all: Vec<&BlockSpec> = [spec].into_iter().chain(others).collect();
                let kernel_sizes = space.transformed_kernel_sizes(s);
                blocks.push(Block::new(&mut parameters, &own_block(s, b, false), &all, kernel_sizes)?);
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
                Some(parameters.add("hidden.weight".into(), &dims, he, ParameterKind::OtherWeight)?)
            }
            None => None,
        };
        let bound = Initialiser::Uniform(1.0 / (width as f64).sqrt());
        let weight =
            parameters.add("classifier.weight".into(), &[classes, width], bound, ParameterKind::OtherWeight)?;
        let bias =
            parameters.add("classifier.bias".into(), &[classes], Initialiser::Constant(0.0), ParameterKind::Vector)?;
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

    /// The block at whose input half of the work of `subnet` is done.
    pub(crate) fn middle_block(&self, subnet: &Subnet) -> Result<usize> {
        Ok(self.space.network(subnet, self.classes)?.middle_block())
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
    /// A network that is not f32 on the CPU, or has blocks of a custom kind: only the kernels of the others can.
    pub fn share_batch_statistics(&mut self, ranks: &Ranks) -> Result<()> {
        if !self.has_kernels() {
            return Err(Error::Config("batch norm can be synchronised between ranks on the CPU only; use --device cpu, or leave --sync-batch-norm out".into()));
        }
        if let Some(kind) = self.space.stages.iter().find_map(|stage| stage.block.as_ref()) {
            return Err(Error::Config(format!(
                "batch norm cannot be synchronised between ranks in blocks of the kind '{kind}'; leave --sync-batch-norm out"
            )));
        }
        self.ranks = ranks.is_distributed().then(|| ranks.clone());
        Ok(())
    }

    /// Whether its layers run as this crate's own kernels: f32 on the CPU.
    pub(crate) fn has_kernels(&self) -> bool {
        crate::ops::has_kernels(self.device(), self.parameters.dtype())
    }

    /// Whether batch norm uses the statistics of several processes together.
    pub fn shares_batch_statistics(&self) -> bool {
        self.ranks.is_some()
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

    /// Tells `pass` which images skip the block that comes next.
    fn begin_block(&self, block: &Block, drop_path: Option<DropPath>, pass: &mut Pass) {
        pass.drops = drop_path.and_then(|drop_path| {
            let mut all = self.first.iter().chain(self.stages.iter().flatten());
            let blocks = all.clone().count();
            let place = all.position(|other| other.first_parameter() == block.first_parameter())?;
            Some(drop_path.of_block(place, blocks))
        });
    }

    /// Active parts of the tensors of each slot of the graph of `network`, without running statistics.
    fn active(&self, network: &NetworkSpec) -> Result<Vec<Vec<Active>>> {
        let parameters = &self.parameters;
        let mut slots = Vec::new();
        for (dense, spec) in self.active_stem(network).zip(&network.stem) {
            slots.extend(dense.active(parameters, spec));
        }
        for (block, spec) in self.active_blocks(network).zip(network.blocks()) {
            slots.extend(block.active(parameters, spec)?);
        }
        if let (Some(dense), Some(spec)) = (&self.feature, &network.feature) {
            slots.extend(dense.active(parameters, spec));
        }
        slots.extend(self.active_hidden(network).map(|hidden| vec![hidden]));
        slots.push(self.active_classifier(network).to_vec());
        Ok(slots)
    }

    /// The weight of the hidden layer.
    fn active_hidden(&self, network: &NetworkSpec) -> Option<Active> {
        self.hidden.map(|id| self.parameters.leading_two(id, network.classifier_channels(), network.pooled_map().0))
    }

    /// Weight and bias of the classifier.
    fn active_classifier(&self, network: &NetworkSpec) -> [Active; 2] {
        let (weight, bias) = self.classifier;
        let weight = self.parameters.leading_two(weight, self.classes, network.classifier_channels());
        [weight, self.parameters.leading(bias, self.classes)]
    }

    /// The batch norms of a subnet in layer order.
    fn norms<'a>(&'a self, network: &'a NetworkSpec) -> impl Iterator<Item = &'a BatchNorm> {
        let stem = self.active_stem(network).map(|dense| &dense.norm);
        let blocks = self.active_blocks(network).zip(network.blocks());
        stem.chain(blocks.flat_map(|(block, spec)| block.active_norms(spec)))
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
