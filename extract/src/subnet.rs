//! Extraction of a subnet into a model folder, and the proof that the model computes the same as the supernet.

use crate::Result;
use candle_core::{Device, Tensor};
use ofa_evaluate::Model;
use ofa_evaluate::model::{Finetuned, ModelConfig, NumberType, Provenance, save};
use ofa_supernet::data::Normalisation;
use ofa_supernet::network::{Mode, Statistics};
use ofa_supernet::{Subnet, Supernet};
use std::path::Path;

/// What a model folder records beside the network and its weights.
#[derive(Debug, Clone)]
pub struct Record {
    /// Number type of the stored weights.
    pub dtype: NumberType,
    /// How the supernet was trained, in sentences for the model card.
    pub origin: Option<String>,
    /// How it was trained on this subnet after that.
    pub finetuned: Option<Finetuned>,
    /// Training on this subnet that lowered its accuracy, so that these are the weights from before it.
    pub tried_finetuning: Option<Finetuned>,
    /// Where the model comes from.
    pub provenance: Option<Provenance>,
}

impl Record {
    /// A record of nothing but the number type.
    pub fn of(dtype: NumberType) -> Self {
        Record { dtype, origin: None, finetuned: None, tried_finetuning: None, provenance: None }
    }
}

/// Writes `model.safetensors` and `config.json` into `folder`: the active weights with the recalibrated statistics.
///
/// # Errors
/// A subnet outside the space, statistics of another subnet, a number type that cannot hold the weights, a failed
/// write.
pub fn extract(
    net: &Supernet,
    subnet: &Subnet,
    statistics: &Statistics,
    labels: &[String],
    normalisation: &Normalisation,
    record: Record,
    folder: &Path,
) -> Result<()> {
    let weights = net
        .cut(subnet, statistics)?
        .into_iter()
        .map(|(name, tensor)| Ok((name, (tensor.dims().to_vec(), tensor.flatten_all()?.to_vec1()?))))
        .collect::<candle_core::Result<_>>()?;
    let network = net.space().network(subnet, net.classes())?;
    let config =
        ModelConfig::new(&net.space().name, subnet, network, labels.to_vec(), normalisation.clone(), record.dtype);
    let Record { origin, finetuned, tried_finetuning, provenance, .. } = record;
    save(folder, &ModelConfig { origin, finetuned, tried_finetuning, provenance, ..config }, &weights)?;
    Ok(())
}

/// Reloads `folder` and compares its logits with the subnet's inside the supernet: the largest difference, and the
/// largest logit to relate it to. `images` is `[count, r, r, 3]`, normalised, at the subnet's resolution.
///
/// # Errors
/// A folder that cannot be loaded, or images of another shape.
pub fn compare(
    net: &Supernet,
    subnet: &Subnet,
    statistics: &Statistics,
    folder: &Path,
    images: &[f32],
) -> Result<(f64, f64)> {
    let r = subnet.resolution;
    let count = images.len() / (r * r * 3);
    let tensor = Tensor::from_slice(images, (count, r, r, 3), &Device::Cpu)?;
    let expected: Vec<f32> = net.forward(&tensor, subnet, Mode::Evaluate(statistics))?.flatten_all()?.to_vec1()?;
    let mut model = Model::load(folder)?;
    let found = model.network().run(images, count)?;
    // Unlike `f64::max`, this keeps NaN.
    let larger = |a: f64, b: f64| if a.is_nan() || b <= a { a } else { b };
    let largest = expected.iter().map(|v| f64::from(v.abs())).fold(0.0, larger);
    let difference = expected.iter().zip(found).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, larger);
    Ok((difference, largest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofa_supernet::SearchSpace;
    use ofa_supernet::network::StatisticsCollector;
    use ofa_supernet::seed::{Stream, generator};
    use rand::Rng;

    #[test]
    fn extracted_folders_compute_what_the_supernet_computes() {
        let mut space = SearchSpace::named("tiny").unwrap();
        space.kernel_sizes = vec![3, 5, 7];
        extracted_equals_supernet(&space);
        extracted_equals_supernet(&SearchSpace::named("resnet-tiny").unwrap());
    }

    #[test]
    fn logits_that_are_not_finite_are_no_small_difference() {
        let net = Supernet::new(&SearchSpace::named("tiny").unwrap(), 6, 1).unwrap();
        // Its second number changes the logits of one class, which is not the last.
        let bias = net.parameters().iter().find(|p| p.name == "classifier.bias").unwrap();
        let subnet = net.space().smallest();
        let images = vec![0.5; 2 * subnet.resolution * subnet.resolution * 3];
        let tensor = Tensor::from_slice(&images, (2, subnet.resolution, subnet.resolution, 3), &Device::Cpu).unwrap();
        let mut collector = StatisticsCollector::default();
        net.forward(&tensor, &subnet, Mode::Collect(&mut collector)).unwrap();
        let (labels, normalisation) = (vec!["a".to_string(); 6], Normalisation { mean: [0.5; 3], std: [0.25; 3] });
        let folder = tempfile::tempdir().unwrap();
        let statistics = collector.finish();
        let record = Record::of(NumberType::F32);
        bias.var.set(&Tensor::zeros(6, candle_core::DType::F32, &Device::Cpu).unwrap()).unwrap();
        extract(&net, &subnet, &statistics, &labels, &normalisation, record, folder.path()).unwrap();
        for value in [f32::NAN, f32::INFINITY] {
            bias.var.set(&Tensor::new(&[0f32, value, 0.0, 0.0, 0.0, 0.0], &Device::Cpu).unwrap()).unwrap();
            let (difference, largest) = compare(&net, &subnet, &statistics, folder.path(), &images).unwrap();
            assert!(!difference.is_finite() && !largest.is_finite(), "{difference} of {largest}");
        }
    }

    fn extracted_equals_supernet(space: &SearchSpace) {
        let net = Supernet::new(space, 6, 1).unwrap();
        let labels: Vec<String> = (0..6).map(|i| format!("class {i}")).collect();
        let normalisation = Normalisation { mean: [0.5; 3], std: [0.25; 3] };
        let folder = tempfile::tempdir().unwrap();
        for position in 0..4 {
            let subnet = space.sample(&mut generator(2, Stream::Sampling, &[position]));
            let r = subnet.resolution;
            let mut rng = generator(2, Stream::Builtin, &[position]);
            let images: Vec<f32> = (0..5 * r * r * 3).map(|_| rng.random_range(-2.0f32..2.0)).collect();
            let tensor = Tensor::from_slice(&images, (5, r, r, 3), &Device::Cpu).unwrap();
            let mut collector = StatisticsCollector::default();
            net.forward(&tensor, &subnet, Mode::Collect(&mut collector)).unwrap();
            let statistics = collector.finish();
            let path = folder.path().join(position.to_string());
            extract(&net, &subnet, &statistics, &labels, &normalisation, Record::of(NumberType::F32), &path).unwrap();
            let (difference, largest) = compare(&net, &subnet, &statistics, &path, &images).unwrap();
            assert!(largest > 0.1 && difference <= 1e-4 * largest, "{subnet}: {difference} of {largest}");
        }
    }
}
