//! The forward and backward passes of a step's subnets, several at a time. What comes out does not depend on how many.

use super::loss::{self, SubnetLoss};
use super::step_input::StepInput;
use crate::network::{Gradients, Mode, Statistics, Supernet, Tape, Trunk};
use crate::ops::{self, ChannelStatistics};
use crate::ranks::Ranks;
use crate::seed::{Stream, generator};
use crate::{Error, Result, Subnet};
use candle_core::{DType, Tensor, Var};

/// What all passes of a step have in common.
pub(super) struct Passes<'a> {
    pub net: &'a Supernet,
    pub input: &'a StepInput<'a>,
    pub subnets: &'a [Subnet],
    pub trunk: Option<&'a Trunk>,
    /// Smoothed labels `[own, classes]`.
    pub targets: &'a Tensor,
    /// What this rank's mean over its images counts in the mean over all.
    pub part: f64,
}

/// What they gave, summed in the order of the subnets.
pub(super) struct Sums {
    pub gradients: Gradients,
    /// The gradient at the trunk's output, of all subnets but the last.
    pub at_trunk: Option<Tensor>,
    /// Sums of each subnet.
    pub values: Vec<SubnetSums>,
    /// The last subnet's backward pass down to its middle.
    pub last: Option<LastPass>,
}

/// A subnet's sums over images. Losses are this rank's part of the mean over the images of all ranks.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SubnetSums {
    /// What is minimised.
    pub loss: f64,
    pub cross_entropy: f64,
    /// 0 without a teacher.
    pub distillation: f64,
    /// Images that are classified correctly.
    pub correct: f64,
    /// A running statistic of batch norm that is not finite, or 0.
    pub statistic: f64,
}

impl SubnetSums {
    /// Adds up the sums of all ranks.
    pub(super) fn sum_over(ranks: &Ranks, subnets: &mut [SubnetSums]) {
        let numbers = |s: &SubnetSums| [s.loss, s.cross_entropy, s.distillation, s.correct, s.statistic];
        let mut all: Vec<[f64; 5]> = subnets.iter().map(numbers).collect();
        ranks.sum_f64(all.as_flattened_mut());
        for (sums, [loss, cross_entropy, distillation, correct, statistic]) in subnets.iter_mut().zip(all) {
            *sums = SubnetSums { loss, cross_entropy, distillation, correct, statistic };
        }
    }
}

/// The backward pass of a step's last subnet, which halts in the middle of the network.
pub(super) struct LastPass {
    /// Records of the earlier half.
    pub tape: Tape,
    /// The gradient at its output.
    pub gradient: Tensor,
    /// Place of the first parameter of the later half.
    pub middle: usize,
}

/// What the passes of one subnet gave.
struct Trained {
    logits: Tensor,
    /// All sums but the statistic.
    sums: SubnetSums,
    used: Vec<ChannelStatistics>,
    gradients: Gradients,
    /// The gradient at the trunk's output, if there is a trunk, or where the last pass halts.
    gradient: Option<Tensor>,
    /// Records that the last pass has not gone back over, and the place of the first parameter behind them.
    earlier: Option<(Tape, usize)>,
}

impl Passes<'_> {
    /// The passes of all subnets. If `in_place`, the first subnet teaches the others; otherwise `soft_targets`, if
    /// there are any, teach all.
    pub(super) fn sum(&self, soft_targets: Option<Tensor>, in_place: bool) -> Result<Sums> {
        let gradients = Gradients::none(self.net.parameters().len());
        let mut sums = Sums { gradients, at_trunk: None, values: Vec::new(), last: None };
        let mut soft_targets = soft_targets;
        if in_place {
            let trained = self.train(0, None)?;
            soft_targets = Some(loss::soft_targets(&trained.logits)?);
            self.add(&mut sums, trained)?;
        }
        let done = sums.values.len();
        let mut outcome = Ok(());
        let train = |index| self.train(done + index, soft_targets.as_ref());
        ops::map_ordered(self.subnets.len() - done, self.at_once(), train, |trained| {
            if outcome.is_ok() {
                outcome = trained.and_then(|trained| self.add(&mut sums, trained));
            }
        });
        outcome.map(|()| sums)
    }

    /// Number of passes at a time: one where ranks exchange statistics, which they do in the order of the passes, and
    /// where there are no kernels.
    fn at_once(&self) -> usize {
        match self.net.shares_batch_statistics() || !self.net.has_kernels() {
            true => 1,
            false => self.input.config.subnets_at_once,
        }
    }

    fn train(&self, index: usize, soft_targets: Option<&Tensor>) -> Result<Trained> {
        let StepInput { config, stage, step, ramp, images, labels, ranks, batch, .. } = *self.input;
        let mut rng = generator(config.seed, Stream::Dropout, &[step as u64, index as u64]);
        let (mut tape, first) = (Tape::default(), ranks.shard(batch).start);
        let mode = Mode::Train {
            dropout: config.dropout,
            rng: &mut rng,
            first,
            drop_path: self.input.drop_path(),
            tape: &mut tape,
        };
        let subnet = &self.subnets[index];
        let passed = self.net.forward_from(images, self.trunk, subnet, mode)?;
        let logits = Var::from_tensor(&passed.logits)?;
        let SubnetLoss { mut total, cross_entropy, distillation } =
            loss::of_subnet(&logits, self.targets, soft_targets, stage, ramp)?;
        let taught = distillation.as_ref().map_or(Ok(0.0), scalar)?;
        let [value, hard, taught] = [scalar(&total)?, scalar(&cross_entropy)?, taught].map(|value| self.part * value);
        let correct = loss::correct(&passed.logits, labels)? as f64;
        if ranks.is_distributed() {
            total = (total * self.part)?;
        }
        let mut gradients = Gradients::none(self.net.parameters().len());
        let mut halt = None;
        if index + 1 == self.subnets.len() {
            let middle = self.net.middle_block(subnet)?;
            let border = passed.borders.into_iter().find(|border| border.block == middle);
            let Some(border) = border else {
                return Err(Error::Internal("a network without blocks has no middle".into()));
            };
            halt = Some(border);
        }
        let records = halt.map_or(0, |border| border.records);
        let gradient = tape.backward_to(records, loss::gradient_at(&logits, &total)?, &mut gradients)?;
        Ok(Trained {
            logits: passed.logits,
            sums: SubnetSums { loss: value, cross_entropy: hard, distillation: taught, correct, statistic: 0.0 },
            used: passed.used,
            gradients,
            gradient,
            earlier: halt.map(|border| (tape, border.parameter)),
        })
    }

    fn add(&self, sums: &mut Sums, trained: Trained) -> Result<()> {
        let Trained { sums: own, used, gradients, gradient, earlier, .. } = trained;
        let subnet = &self.subnets[sums.values.len()];
        self.net.move_running_statistics(subnet, &used)?;
        // Activations can overflow and still leave a finite loss: divided by an infinite deviation they are zero.
        let statistic = first_not_finite(&self.net.running_statistics(subnet)?).unwrap_or(0.0);
        sums.values.push(SubnetSums { statistic, ..own });
        sums.gradients.add(gradients)?;
        let Some(gradient) = gradient else { return Ok(()) };
        if let Some((tape, middle)) = earlier {
            sums.last = Some(LastPass { tape, gradient, middle });
        } else {
            sums.at_trunk = Some(sums.at_trunk.take().map_or(Ok(gradient.clone()), |sum| sum + gradient)?);
        }
        Ok(())
    }
}

pub(super) fn scalar(tensor: &Tensor) -> Result<f64> {
    Ok(f64::from(tensor.to_dtype(DType::F32)?.to_scalar::<f32>()?))
}

fn first_not_finite(statistics: &Statistics) -> Option<f64> {
    let values = statistics.layers.iter().flat_map(|moments| moments.mean.iter().chain(&moments.variance));
    values.copied().find(|value| !value.is_finite()).map(f64::from)
}
