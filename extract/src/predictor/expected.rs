//! Accuracies as log-likelihoods tell them.
//!
//! An accuracy counts images on either side of a border, so that a subnet gains or loses some by chance; the mean
//! log-likelihood of the same images changes smoothly. Among the subnets of one supernet it tells the accuracy on other
//! images better than the measured accuracy does (`docs/accuracy.md`). A predictor is therefore fitted to the cubic
//! function of the log-likelihood that comes closest to the measured accuracies, unless these lie farther from it than
//! the images they were measured on explain: then the log-likelihood says something else (a network may be sure of its
//! errors), and the accuracies stay as they are.

use super::Sample;
use super::attainable::noise;
use crate::cholesky::Cholesky;

/// Fewest samples that tell the function.
const FEWEST: usize = 20;
/// Numbers of the function.
const NUMBERS: usize = 4;
/// Largest variance of measured accuracies about the function, relative to their noise. Both have errors from the same
/// images, with a correlation `r`: if they are equally good, what remains is `2 (1 - r)` of the noise. On CIFAR-10 `r`
/// was 0.63, and 0.57 to 0.63 of the noise remained.
const MOST: f64 = 0.7;

/// Accuracies of samples as their log-likelihoods tell them.
pub(super) struct Expected {
    /// The samples, with these accuracies.
    pub samples: Vec<Sample>,
    /// Standard deviation of the measured accuracies about them.
    pub deviation: f64,
}

/// `samples` of different subnets with the accuracies that their log-likelihoods tell; `None` where a sample has no
/// log-likelihood or no counted answers, and where measured accuracies stray from a function of the log-likelihood.
pub(super) fn expected(samples: &[Sample]) -> Option<Expected> {
    if samples.len() < FEWEST {
        return None;
    }
    let likelihoods = samples.iter().map(|sample| sample.log_likelihood).collect::<Option<Vec<f64>>>()?;
    let correct: Vec<&[u32]> = samples.iter().map(|sample| &sample.correct[..]).collect();
    let best = samples.iter().max_by(|a, b| a.accuracy.total_cmp(&b.accuracy)).filter(|best| best.accuracy > 0.0)?;
    let images = best.correct.iter().map(|&count| f64::from(count)).sum::<f64>() / best.accuracy;
    let noise = noise(&correct, images)?;

    let count = samples.len() as f64;
    let mean = likelihoods.iter().sum::<f64>() / count;
    let spread = (likelihoods.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt();
    if spread.is_nan() || spread < 1e-9 {
        return None;
    }
    // Least squares by the normal equations; scaled values keep these far from singular.
    let powers = |value: &f64| {
        let scaled = (value - mean) / spread;
        [1.0, scaled, scaled.powi(2), scaled.powi(3)]
    };
    let (mut matrix, mut right) = (vec![0.0; NUMBERS * NUMBERS], vec![0.0; NUMBERS]);
    for (row, sample) in likelihoods.iter().map(powers).zip(samples) {
        for (i, a) in row.iter().enumerate() {
            row.iter().enumerate().for_each(|(j, b)| matrix[NUMBERS * i + j] += a * b);
            right[i] += a * sample.accuracy;
        }
    }
    let factors = Cholesky::new(matrix, NUMBERS)?.solve(right);
    let told = likelihoods.iter().map(powers).map(|row| row.iter().zip(&factors).map(|(a, b)| a * b).sum::<f64>());
    let samples: Vec<(f64, Sample)> = samples
        .iter()
        .zip(told)
        .map(|(sample, told)| (sample.accuracy - told, Sample { accuracy: told, ..sample.clone() }))
        .collect();
    let rest = samples.iter().map(|(rest, _)| rest * rest).sum::<f64>() / (count - NUMBERS as f64);
    (rest <= MOST * noise)
        .then(|| Expected { samples: samples.into_iter().map(|(_, sample)| sample).collect(), deviation: rest.sqrt() })
}

#[cfg(test)]
mod tests {
    use super::super::{FitSettings, Predictor};
    use super::*;
    use ofa_supernet::SearchSpace;
    use ofa_supernet::seed::{Stream, generator};
    use rand::Rng;

    const SUBNETS: u64 = 200;

    /// Random subnets with their true accuracies and a measurement on 25 batches of 100 images: an image has a
    /// difficulty, and a subnet a margin on it that is the difference, with some chance; larger subnets are better. The
    /// log-likelihood is that of a logistic function of the margin, times `sureness` of the subnet with that number.
    fn measured(sureness: impl Fn(u64) -> f64) -> (Vec<Sample>, Vec<f64>) {
        let space = SearchSpace::named("cifar-k5").unwrap();
        let mut rng = generator(3, Stream::Samples, &[]);
        let difficulties: Vec<f64> = (0..2500).map(|_| rng.random_range(-3.0..1.0)).collect();
        let sample = |index: u64| {
            let subnet = space.sample(&mut generator(5, Stream::Samples, &[index]));
            let good = 0.01 * subnet.blocks().map(|block| block.expand.value()).sum::<f64>() - 0.1;
            let mut rng = generator(4, Stream::Samples, &[index]);
            let margins: Vec<f64> = difficulties.iter().map(|hard| good - hard + rng.random_range(-0.7..0.7)).collect();
            let correct = margins.chunks(100).map(|batch| batch.iter().filter(|&&margin| margin > 0.0).count() as u32);
            let correct: Vec<u32> = correct.collect();
            let sure = sureness(index);
            let sum: f64 = margins.iter().map(|margin| -(1.0 + (-sure * margin).exp()).ln()).sum();
            let accuracy = f64::from(correct.iter().sum::<u32>()) / 2500.0;
            let sample = Sample { correct, log_likelihood: Some(sum / 2500.0), ..Sample::new(subnet, accuracy) };
            (sample, (3.0 + good) / 4.0)
        };
        (0..SUBNETS).map(sample).unzip()
    }

    /// Root mean squared error of the differences between accuracies.
    fn error(accuracies: &[f64], truth: &[f64]) -> f64 {
        let differences: Vec<f64> = accuracies.iter().zip(truth).map(|(accuracy, truth)| accuracy - truth).collect();
        let mean = differences.iter().sum::<f64>() / differences.len() as f64;
        (differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / differences.len() as f64).sqrt()
    }

    fn accuracies(samples: &[Sample]) -> Vec<f64> {
        samples.iter().map(|sample| sample.accuracy).collect()
    }

    #[test]
    fn it_is_closer_to_the_true_accuracies_than_what_was_measured() {
        let (samples, truth) = measured(|_| 3.0);
        let told = expected(&samples).unwrap();
        let (by_likelihood, by_count) =
            (error(&accuracies(&told.samples), &truth), error(&accuracies(&samples), &truth));
        assert!(by_likelihood < 0.8 * by_count, "{by_likelihood} and {by_count}");
        assert!(told.deviation > 0.001 && told.deviation < 0.01, "{}", told.deviation);
    }

    #[test]
    fn a_predictor_is_fitted_to_it_and_its_file_keeps_how_far_measurements_lie() {
        let (samples, truth) = measured(|_| 3.0);
        let fit = |samples: &[Sample]| {
            let space = SearchSpace::named("cifar-k5").unwrap();
            Predictor::fit(&space, samples, &FitSettings::default(), 0, &mut |_, _, _| {}).unwrap()
        };
        let counted: Vec<Sample> = samples.iter().map(|s| Sample { log_likelihood: None, ..s.clone() }).collect();
        let ((told, report), (plain, plain_report)) = (fit(&samples), fit(&counted));
        let measuring = report.measuring.unwrap();
        assert!(measuring > 0.001 && plain_report.measuring.is_none(), "{measuring}");
        let subnets: Vec<_> = samples.iter().map(|sample| sample.subnet.clone()).collect();
        let error = |predictor: &Predictor| error(&predictor.predict(&subnets).unwrap(), &truth);
        assert!(error(&told) < error(&plain), "{} and {}", error(&told), error(&plain));

        let file = tempfile::NamedTempFile::new().unwrap();
        told.save(file.path()).unwrap();
        let sure = |predictor: &Predictor| predictor.predict_with_deviation(&subnets).unwrap();
        assert_eq!(sure(&Predictor::load(file.path()).unwrap()), sure(&told));
        // The deviation is that of a measured accuracy.
        assert!(sure(&told).iter().all(|prediction| prediction.deviation > measuring.hypot(prediction.doubt)));
        Predictor { measuring: Some(-1.0), ..told }.save(file.path()).unwrap();
        let error = Predictor::load(file.path()).unwrap_err().to_string();
        assert!(error.contains("deviate by -1 from expected ones"), "{error}");
    }

    #[test]
    fn accuracies_stay_where_likelihoods_tell_something_else() {
        // Every other subnet is sure of its errors.
        assert!(expected(&measured(|index| if index % 2 == 0 { 3.0 } else { 9.0 }).0).is_none());
        let samples = measured(|_| 3.0).0;
        let without = |change: fn(&mut Sample)| {
            let mut samples = samples.clone();
            change(&mut samples[7]);
            samples
        };
        assert!(expected(&without(|sample| sample.log_likelihood = None)).is_none());
        assert!(expected(&without(|sample| sample.correct.clear())).is_none());
        assert!(expected(&samples[..FEWEST - 1]).is_none());
        let equal: Vec<Sample> = samples.iter().map(|_| samples[0].clone()).collect();
        assert!(expected(&equal).is_none());
    }
}
