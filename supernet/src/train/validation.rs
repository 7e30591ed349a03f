//! Accuracy of subnets. Batch norm's running statistics belong to no particular subnet, so they are recalibrated on
//! training images before a subnet is evaluated (paper §3.3 and the published code); without it accuracy is
//! meaningless.

use super::loss;
use crate::data::{Batch, Dataset, Split};
use crate::network::{Mode, Statistics, StatisticsCollector, Supernet};
use crate::ranks::Ranks;
use crate::seed::{Stream, generator};
use crate::{Error, Result, Subnet};
use candle_core::Tensor;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

/// Most bytes of prepared images that an [`EvaluationSet`] keeps (1 GiB); a set that does not fit is decoded again
/// each time.
pub const BUDGET: usize = 1 << 30;

/// A batch as the network takes it.
pub struct EvaluationBatch {
    /// `[batch, resolution, resolution, 3]`, normalised, on the network's device.
    pub images: Tensor,
    /// Class of each image.
    pub labels: Vec<u32>,
}

impl EvaluationBatch {
    /// Moves a loaded batch to the device and number type of `net`.
    ///
    /// # Errors
    /// A tensor operation failed.
    pub fn new(batch: Batch, net: &Supernet) -> Result<Self> {
        Ok(EvaluationBatch {
            images: image_tensor(batch.images, batch.labels.len(), batch.resolution, net)?,
            labels: batch.labels,
        })
    }
}

/// Images `[count, resolution, resolution, 3]` on the device and in the number type of `net`.
pub(super) fn image_tensor(images: Vec<f32>, count: usize, resolution: usize, net: &Supernet) -> Result<Tensor> {
    let images = Tensor::from_vec(images, (count, resolution, resolution, 3), net.device())?;
    match net.parameters().first() {
        Some(parameter) => Ok(images.to_dtype(parameter.var.dtype())?),
        None => Ok(images),
    }
}

/// Chosen images of a split without augmentation, prepared once a resolution and kept while they fit in memory, so that
/// a thousand subnets can be measured without decoding an image twice. May be shared between threads.
pub struct EvaluationSet<'a> {
    data: &'a Dataset,
    split: &'a Split,
    /// Images of each batch of this process.
    batches: Vec<Vec<usize>>,
    /// The processes that share the images out, and the number of all images.
    ranks: Ranks,
    len: usize,
    control: &'a (dyn Fn() -> ControlFlow<()> + Sync),
    prepared: Mutex<HashMap<usize, Arc<Vec<EvaluationBatch>>>>,
}

impl<'a> EvaluationSet<'a> {
    /// The images `indices` of `split` in the fewest batches of at most `batch`, as equal as possible: a last batch of
    /// few images would give poor statistics.
    ///
    /// # Errors
    /// No images, or a batch of none.
    pub fn new(data: &'a Dataset, split: &'a Split, indices: Vec<usize>, batch: usize) -> Result<Self> {
        if indices.is_empty() || batch == 0 {
            return Err(Error::Data(format!(
                "cannot evaluate on {} images in batches of {batch}; both must be at least 1 (is the split empty?)",
                indices.len()
            )));
        }
        let (ranks, len) = (Ranks::alone(), indices.len());
        let count = len.div_ceil(batch);
        let batches = (0..count).map(|i| indices[i * len / count..(i + 1) * len / count].to_vec()).collect();
        Ok(EvaluationSet {
            data,
            split,
            batches,
            ranks,
            len,
            control: &|| ControlFlow::Continue(()),
            prepared: Mutex::default(),
        })
    }

    /// `limit` images of `split`, drawn by `seed` ([`Split::draw`]), or all.
    ///
    /// # Errors
    /// An empty split.
    pub fn of_split(
        data: &'a Dataset,
        split: &'a Split,
        limit: Option<usize>,
        batch: usize,
        seed: u64,
    ) -> Result<Self> {
        let indices = match limit {
            Some(limit) if limit < split.len() => split.draw(limit, &mut generator(seed, Stream::Validation, &[])),
            _ => (0..split.len()).collect(),
        };
        Self::new(data, split, indices, batch)
    }

    /// `images` training images, drawn by `seed` ([`Split::draw`]), or all if there are fewer: for recalibration.
    ///
    /// Batches hold images of all classes, however files are sorted: the statistics of a batch of one class are not
    /// those that the network meets.
    ///
    /// # Errors
    /// No training images.
    pub fn for_recalibration(data: &'a Dataset, images: usize, batch: usize, seed: u64) -> Result<Self> {
        let indices = data.train.draw(images, &mut generator(seed, Stream::Recalibration, &[]));
        Self::new(data, &data.train, indices, batch)
    }

    /// Shares the batches out over `ranks`, who must then measure the same subnets together. Batches are what they
    /// were; where there are fewer than ranks, each rank takes them all.
    pub fn shared_over(mut self, ranks: &Ranks) -> Self {
        if self.batches.len() >= ranks.count() {
            self.batches = self.batches[ranks.shard(self.batches.len())].to_vec();
            self.ranks = ranks.clone();
        }
        self
    }

    /// Asks `control` before each batch whether to continue; [`for_each`](Self::for_each) ends with
    /// [`Error::Interrupted`] otherwise.
    pub fn with_control(mut self, control: &'a (dyn Fn() -> ControlFlow<()> + Sync)) -> Self {
        self.control = control;
        self
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Number of batches of this rank.
    pub fn batches(&self) -> usize {
        self.batches.len()
    }

    /// Never true: a set has at least one image.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Calls `use_batch` with every batch of this process at `resolution`, in order.
    ///
    /// # Errors
    /// An image that cannot be loaded, an interruption by the control, or what `use_batch` returns.
    pub fn for_each(
        &self,
        net: &Supernet,
        resolution: usize,
        mut use_batch: impl FnMut(&EvaluationBatch) -> Result<()>,
    ) -> Result<()> {
        if let Some(batches) = self.kept(net, resolution)? {
            return batches.iter().try_for_each(|batch| {
                self.check()?;
                use_batch(batch)
            });
        }
        for indices in &self.batches {
            use_batch(&self.load(net, indices, resolution)?)?;
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        if (self.control)().is_break() { Err(Error::Interrupted) } else { Ok(()) }
    }

    fn load(&self, net: &Supernet, indices: &[usize], resolution: usize) -> Result<EvaluationBatch> {
        self.check()?;
        EvaluationBatch::new(self.data.evaluation_batch(self.split, indices, resolution)?, net)
    }

    /// The prepared batches if they fit the budget; other resolutions make room for them.
    fn kept(&self, net: &Supernet, resolution: usize) -> Result<Option<Arc<Vec<EvaluationBatch>>>> {
        let images: usize = self.batches.iter().map(Vec::len).sum();
        let size = |resolution: usize| images * resolution * resolution * 3 * size_of::<f32>();
        if size(resolution) > BUDGET {
            return Ok(None);
        }
        // A thread that panicked while it held the lock left a map that is still whole.
        let mut prepared = self.prepared.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(batches) = prepared.get(&resolution) {
            return Ok(Some(batches.clone()));
        }
        let held: usize = prepared.keys().map(|&r| size(r)).sum();
        if held + size(resolution) > BUDGET {
            prepared.clear();
        }
        let batches: Result<Vec<_>> = self.batches.iter().map(|indices| self.load(net, indices, resolution)).collect();
        let batches = Arc::new(batches?);
        prepared.insert(resolution, batches.clone());
        Ok(Some(batches))
    }
}

/// Recalibrated batch-norm statistics of `subnet`: means over the images of `set`, at the subnet's resolution.
///
/// # Errors
/// A subnet outside the space, or images that cannot be loaded.
pub fn recalibrate_on(net: &Supernet, subnet: &Subnet, set: &EvaluationSet) -> Result<Statistics> {
    let mut collector = StatisticsCollector::default();
    set.for_each(net, subnet.resolution, |batch| {
        net.forward(&batch.images, subnet, Mode::Collect(&mut collector)).map(|_| ())
    })?;
    Ok(collector.finish_over(&set.ranks))
}

/// Top-1 accuracy (0 to 1) of `subnet` on `set` with the given statistics.
///
/// # Errors
/// A subnet outside the space, or images that cannot be loaded.
pub fn accuracy_on(net: &Supernet, subnet: &Subnet, statistics: &Statistics, set: &EvaluationSet) -> Result<f64> {
    let mut correct = 0;
    set.for_each(net, subnet.resolution, |batch| {
        let logits = net.forward(&batch.images, subnet, Mode::Evaluate(statistics))?;
        correct += loss::correct(&logits, &batch.labels)?;
        Ok(())
    })?;
    let mut sum = [correct as f64];
    set.ranks.sum_f64(&mut sum);
    Ok(sum[0] / set.len() as f64)
}

/// Top-1 accuracies (0 to 1) of `subnets` on `validation`, each with its own statistics from `recalibration`: the bits
/// of [`recalibrate_on`] and [`accuracy_on`]. Layers that subnets have in common from the first on are computed once
/// ([`Supernet::forward_each`]); `control` is asked before each batch whether to continue.
///
/// # Errors
/// As theirs; [`Error::Interrupted`].
pub fn accuracies_on(
    net: &Supernet,
    subnets: &[Subnet],
    recalibration: &EvaluationSet,
    validation: &EvaluationSet,
    control: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Vec<f64>> {
    let answers = answers_on(net, subnets, recalibration, validation, control)?;
    let correct = answers.iter().map(|answers| answers.correct.iter().map(|&count| f64::from(count)).sum());
    let mut sums: Vec<f64> = correct.collect();
    validation.ranks.sum_f64(&mut sums);
    Ok(sums.into_iter().map(|sum| sum / validation.len() as f64).collect())
}

/// What a subnet answered on this rank's images of a set.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Answers {
    /// Number of correct answers in each batch.
    pub correct: Vec<u32>,
    /// Sum over the images of the logarithm of their own class's probability.
    pub log_likelihood: f64,
}

/// Answers of `subnets` on `validation`, from which [`accuracies_on`] follows.
///
/// # Errors
/// As its.
pub fn answers_on(
    net: &Supernet,
    subnets: &[Subnet],
    recalibration: &EvaluationSet,
    validation: &EvaluationSet,
    control: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Vec<Answers>> {
    let mut go_on = || if control().is_break() { Err(Error::Interrupted) } else { Ok(()) };
    let mut order: Vec<usize> = (0..subnets.len()).collect();
    order.sort_by(|&a, &b| subnets[a].cmp(&subnets[b]));
    let mut answers = vec![Answers::default(); subnets.len()];
    for places in order.chunk_by(|&a, &b| subnets[a].resolution == subnets[b].resolution) {
        let subnets: Vec<Subnet> = places.iter().map(|&place| subnets[place].clone()).collect();
        let resolution = subnets[0].resolution;
        let mut collectors: Vec<_> = subnets.iter().map(|_| StatisticsCollector::default()).collect();
        recalibration.for_each(net, resolution, |batch| {
            go_on()?;
            let modes = collectors.iter_mut().map(Mode::Collect).collect();
            net.forward_each(&batch.images, &subnets, modes).map(|_| ())
        })?;
        let statistics = collectors.into_iter().map(|collector| collector.finish_over(&recalibration.ranks));
        let statistics: Vec<Statistics> = statistics.collect();
        validation.for_each(net, resolution, |batch| {
            go_on()?;
            let modes = statistics.iter().map(Mode::Evaluate).collect();
            for (&place, logits) in places.iter().zip(net.forward_each(&batch.images, &subnets, modes)?) {
                answers[place].correct.push(loss::correct(&logits, &batch.labels)? as u32);
                answers[place].log_likelihood += loss::log_likelihood(&logits, &batch.labels)?;
            }
            Ok(())
        })?;
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::data::DataOptions;

    fn builtin() -> Dataset {
        let options = DataOptions { validation: Some(40), builtin_train: 240, builtin_test: 20, ..Default::default() };
        Dataset::open("builtin", &options).unwrap()
    }

    #[test]
    fn batches_are_as_equal_as_possible() {
        let data = builtin();
        let sizes = |images: usize, batch: usize| -> Vec<usize> {
            let set = EvaluationSet::for_recalibration(&data, images, batch, 0).unwrap();
            assert_eq!(set.len(), images);
            set.batches.iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(101, 100), [50, 51]);
        assert_eq!(sizes(100, 100), [100]);
        assert_eq!(sizes(7, 3), [2, 2, 3]);
        assert_eq!(sizes(5, 1), [1; 5]);
        assert!(EvaluationSet::for_recalibration(&data, 0, 10, 0).is_err());
        assert!(EvaluationSet::for_recalibration(&data, 10, 0, 0).is_err());
    }

    #[test]
    fn recalibration_batches_hold_all_classes_of_sorted_images() {
        let data = builtin();
        let mut sorted: Vec<usize> = (0..data.train.len()).collect();
        sorted.sort_by_key(|&index| data.train.label(index));
        let data = Dataset { train: data.train.subset(&sorted), ..data };
        let set = EvaluationSet::for_recalibration(&data, 100, 50, 3).unwrap();
        for batch in &set.batches {
            let classes: std::collections::HashSet<u32> = batch.iter().map(|&i| data.train.label(i)).collect();
            assert!(classes.len() >= 8, "{classes:?}");
        }
    }

    #[test]
    fn some_validation_images_are_drawn_and_all_are_all() {
        let data = builtin();
        let images =
            |limit, seed| EvaluationSet::of_split(&data, &data.validation, limit, 100, seed).unwrap().batches.concat();
        assert_eq!(images(None, 1), (0..40).collect::<Vec<_>>());
        assert_eq!(images(Some(90), 1), images(None, 2));
        assert_eq!(images(Some(20), 1), images(Some(20), 1));
        assert_ne!(images(Some(20), 1), images(Some(20), 2));
    }
}
