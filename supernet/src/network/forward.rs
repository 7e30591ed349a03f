//! Forward passes: of one subnet, of several, of the layers that several have in common.

use super::{Mode, Supernet};
use crate::layers::{DropPath, Pass, Tape, activate, global_average_pool, linear, max_pool};
use crate::ops::ChannelStatistics;
use crate::seed::{Stream, generator};
use crate::space::{NetworkSpec, Subnet};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use rand::Rng;
use rand::rngs::StdRng;

/// Results of a forward pass.
pub(crate) struct Passed {
    pub logits: Tensor,
    /// The statistics of its batch norms.
    pub used: Vec<ChannelStatistics>,
    /// Where each block begins.
    pub borders: Vec<Border>,
}

/// The beginning of a block, at which a backward pass can halt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Border {
    /// Number of the block.
    pub block: usize,
    /// Records of the layers before it on the tape.
    pub records: usize,
    /// Place of its first parameter: those of earlier layers have smaller ones.
    pub parameter: usize,
}

/// The first layers of several subnets, which they have in common, for a backward pass. Each subnet starts from their
/// output; its gradients there are summed, and go back through these layers once.
pub(crate) struct Trunk {
    /// Output of the last of the layers.
    pub output: Tensor,
    pub tape: Tape,
    /// Statistics that the layers' batch norms used.
    pub used: Vec<ChannelStatistics>,
    /// Number of layers: the stem, and some blocks.
    pub layers: usize,
}

impl Supernet {
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
        let passed = rayon::scope(|_| self.forward_on_this_thread(images, &network, mode, None))?;
        if trains {
            self.move_running(&network, &passed.used);
        }
        Ok(passed.logits)
    }

    /// The layers that all of `subnets` have in common from the first on, if there are several subnets and such layers:
    /// a training step computes them once. They end in the middle of the last subnet at the latest, where its backward
    /// pass halts.
    pub(crate) fn trunk(
        &self,
        images: &Tensor,
        subnets: &[Subnet],
        drop_path: Option<DropPath>,
    ) -> Result<Option<Trunk>> {
        let networks = subnets.iter().map(|subnet| self.space.network(subnet, self.classes));
        let networks: Vec<NetworkSpec> = networks.collect::<Result<_>>()?;
        let [first, .., last] = &networks[..] else { return Ok(None) };
        let in_common = networks.iter().map(|network| first.layers_in_common(network)).min();
        let layers = in_common.unwrap_or(0).min(1 + last.middle_block());
        if layers == 0 {
            return Ok(None);
        }
        let tape = Some(Tape::from_images());
        let mut pass = Pass { tape, ranks: self.ranks.as_ref(), given: None, drops: None, used: Vec::new() };
        let mut x = self.stem(images, first, &mut pass)?;
        for (block, spec) in self.active_blocks(first).zip(first.blocks()).take(layers - 1) {
            self.begin_block(block, drop_path, &mut pass);
            x = block.forward(&self.parameters, &x, spec, first.batch_norm_epsilon, &mut pass)?;
        }
        Ok(Some(Trunk { output: x, tape: pass.tape.unwrap_or_default(), used: pass.used, layers }))
    }

    /// As [`forward`](Self::forward) of `subnet`, one of those of `trunk`, if there is one: the tape then begins at the
    /// trunk's output. On this thread, and without a change to the running statistics: several subnets may pass at one
    /// time.
    pub(crate) fn forward_from(
        &self,
        images: &Tensor,
        trunk: Option<&Trunk>,
        subnet: &Subnet,
        mode: Mode,
    ) -> Result<Passed> {
        self.forward_on_this_thread(images, &self.space.network(subnet, self.classes)?, mode, trunk)
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
        let mut common: Vec<(Tensor, Vec<ChannelStatistics>)> = Vec::new();
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
                x = block.forward(&self.parameters, &x, spec, network.batch_norm_epsilon, &mut pass)?;
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
    ) -> Result<Passed> {
        let mut pass = self.pass(&mode);
        let mut borders = Vec::new();
        let drop_path = match &mode {
            Mode::Train { drop_path, .. } => *drop_path,
            _ => None,
        };
        let (mut x, blocks_done) = match trunk {
            Some(trunk) => {
                pass.tape = Some(Tape::default());
                pass.used.clone_from(&trunk.used);
                (trunk.output.clone(), trunk.layers - 1)
            }
            None => (self.stem(images, network, &mut pass)?, 0),
        };
        let blocks = self.active_blocks(network).zip(network.blocks()).enumerate();
        for (index, (block, spec)) in blocks.skip(blocks_done) {
            let records = pass.tape.as_ref().map_or(0, Tape::len);
            borders.push(Border { block: index, records, parameter: block.first_parameter().place() });
            self.begin_block(block, drop_path, &mut pass);
            x = block.forward(&self.parameters, &x, spec, network.batch_norm_epsilon, &mut pass)?;
        }
        let logits = self.head(x, network, mode, &mut pass)?;
        Ok(Passed { logits, used: pass.used, borders })
    }

    /// The pass of a mode.
    fn pass<'a>(&'a self, mode: &Mode<'a>) -> Pass<'a> {
        Pass {
            tape: matches!(mode, Mode::Train { .. }).then(Tape::from_images),
            ranks: match mode {
                Mode::Train { .. } | Mode::BatchStatistics => self.ranks.as_ref(),
                Mode::Collect(_) | Mode::Evaluate(_) => None,
            },
            given: match mode {
                Mode::Evaluate(statistics) => Some(&statistics.layers),
                _ => None,
            },
            drops: None,
            used: Vec::new(),
        }
    }

    /// Layers before the blocks.
    fn stem(&self, images: &Tensor, network: &NetworkSpec, pass: &mut Pass) -> Result<Tensor> {
        let mut x = images.to_dtype(self.parameters.dtype())?;
        for (dense, spec) in self.active_stem(network).zip(&network.stem) {
            x = dense.forward(&self.parameters, &x, spec, network.batch_norm_epsilon, pass)?;
        }
        Ok(if network.max_pool.is_some() { max_pool(&x, pass)? } else { x })
    }

    /// Layers after the blocks.
    fn head(&self, x: Tensor, network: &NetworkSpec, mode: Mode, pass: &mut Pass) -> Result<Tensor> {
        let batch = x.dim(0)?;
        let pooled = match (&self.feature, &network.feature) {
            (Some(dense), Some(spec)) => dense.forward(&self.parameters, &x, spec, network.batch_norm_epsilon, pass)?,
            _ => global_average_pool(&x, pass)?,
        };
        let mut hidden = match self.active_hidden(network) {
            Some(weight) => activate(&linear(&pooled, weight, None, pass)?, network.hidden_activation, pass)?,
            None => pooled,
        };
        let mut recorded = None;
        match mode {
            Mode::Train { dropout, rng, first, tape, .. } => {
                if dropout > 0.0 {
                    let mask = dropout_mask(&hidden, dropout, rng, first)?;
                    hidden = (&hidden * &mask)?;
                    pass.record(move |gradient, _| (gradient * mask).map(Some));
                }
                recorded = Some(tape);
            }
            Mode::Collect(collector) => collector.add(batch, &pass.used),
            Mode::BatchStatistics | Mode::Evaluate(_) => {}
        }
        let [weight, bias] = self.active_classifier(network);
        let logits = linear(&hidden, weight, Some(bias), pass)?;
        if let (Some(recorded), Some(tape)) = (recorded, pass.tape.take()) {
            *recorded = tape;
        }
        Ok(logits)
    }
}

/// A mask that is zero with probability `rate` and `1 / (1 - rate)` otherwise, for images from place `first` of the
/// batch on.
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
