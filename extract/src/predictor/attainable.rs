//! Kendall's tau that a perfect predictor would reach: accuracies are measured on few images, so that even the true
//! ones order measured subnets imperfectly.

use super::metrics::kendall_tau;
use ofa_supernet::seed::{Stream, generator};
use rand::Rng;

/// Draws of batches over which tau is averaged.
const DRAWS: u64 = 100;
/// Fewest batches of images whose differences tell the noise.
const FEWEST_BATCHES: usize = 4;

/// Kendall's tau of true and measured accuracies of subnets whose numbers of correct answers in each batch of images
/// are `correct`, `[subnets, batches]`; `None` for few batches, rows of several lengths, or no order.
///
/// Images are drawn again, batch by batch (bootstrap); all subnets see the same ones, so that what makes a draw easy
/// for all of them does not count. The spread of measured accuracies is that of the true ones and of the noise: the
/// former are taken as the measured ones, drawn to their mean by as much as the noise adds.
pub fn attainable_tau(correct: &[&[u32]], seed: u64) -> Option<f64> {
    let Rests { measured, all, rests, unbiased, noise } = Rests::new(correct)?;
    let batches = rests[0].len();
    let spread = measured.iter().map(|own| (own - all).powi(2)).sum::<f64>() / measured.len() as f64;
    // Otherwise the measurements tell no order.
    let shrink = if spread > noise { ((spread - noise) / spread).sqrt() } else { return None };
    let truth: Vec<f64> = measured.iter().map(|own| shrink * (own - all)).collect();
    let taus = (0..DRAWS).filter_map(|draw| {
        let mut rng = generator(seed, Stream::HeldOut, &[2, draw]);
        let drawn: Vec<usize> = (0..batches).map(|_| rng.random_range(0..batches)).collect();
        let error =
            |rests: &Vec<f64>| unbiased.sqrt() * drawn.iter().map(|&batch| rests[batch]).sum::<f64>() / batches as f64;
        let again: Vec<f64> = truth.iter().zip(&rests).map(|(truth, rests)| truth + error(rests)).collect();
        kendall_tau(&again, &truth)
    });
    let taus: Vec<f64> = taus.collect();
    (!taus.is_empty()).then(|| mean(&taus))
}

/// Variance of an accuracy, relative to those of other subnets, that comes from the images they were measured on.
/// `correct` are the numbers of correct answers in each batch, `[subnets, batches]`, of `images` images in all. `None`
/// for few batches, or rows of several lengths.
pub(super) fn noise(correct: &[&[u32]], images: f64) -> Option<f64> {
    let rests = Rests::new(correct)?;
    Some(rests.noise * (rests.rests[0].len() as f64 / images).powi(2))
}

/// How far each subnet's answers in a batch are from what subnet and batch would give by themselves.
struct Rests {
    /// Mean number of correct answers in a batch: of each subnet, and of all.
    measured: Vec<f64>,
    all: f64,
    /// `[subnets, batches]`.
    rests: Vec<Vec<f64>>,
    /// Factor from the variance of rests to that of single answers.
    unbiased: f64,
    /// Variance of a measured mean about the true one.
    noise: f64,
}

impl Rests {
    fn new(correct: &[&[u32]]) -> Option<Self> {
        let batches = correct.first()?.len();
        if batches < FEWEST_BATCHES || correct.iter().any(|counts| counts.len() != batches) {
            return None;
        }
        let counts: Vec<Vec<f64>> =
            correct.iter().map(|row| row.iter().map(|&count| f64::from(count)).collect()).collect();
        let of_batch: Vec<f64> =
            (0..batches).map(|batch| mean(&counts.iter().map(|row| row[batch]).collect::<Vec<_>>())).collect();
        let all = mean(&of_batch);
        let measured: Vec<f64> = counts.iter().map(|row| mean(row)).collect();
        let rest = |(row, own): (&Vec<f64>, &f64)| -> Vec<f64> {
            row.iter().zip(&of_batch).map(|(count, batch)| count - own - (batch - all)).collect()
        };
        let rests: Vec<Vec<f64>> = counts.iter().zip(&measured).map(rest).collect();
        let unbiased = batches as f64 / (batches - 1) as f64;
        let noise = rests.iter().flatten().map(|rest| rest * rest).sum::<f64>() * unbiased
            / (rests.len() * batches * batches) as f64;
        Some(Rests { measured, all, rests, unbiased, noise })
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_tau_of_true_and_measured_accuracies() {
        // An image is answered correctly where it is easier than a subnet is good, but for a slip.
        let (subnets, batches, images) = (60, 25, 100);
        for (spread, slip) in [(0.02, 0.1), (0.10, 0.1), (0.02, 0.02)] {
            let (mut real, mut said) = (0.0, 0.0);
            for repetition in 0..8 {
                let mut rng = generator(repetition, Stream::Samples, &[]);
                let good: Vec<f64> =
                    (0..subnets).map(|_| rng.random_range(0.85 - spread / 2.0..0.85 + spread / 2.0)).collect();
                let mut correct = vec![vec![0; batches]; subnets];
                for batch in 0..batches {
                    for _ in 0..images {
                        let hard: f64 = rng.random();
                        for (good, counts) in good.iter().zip(&mut correct) {
                            let slips = rng.random_bool(slip);
                            counts[batch] += u32::from((hard < *good) != slips);
                        }
                    }
                }
                let measured: Vec<f64> = correct.iter().map(|counts| f64::from(counts.iter().sum::<u32>())).collect();
                real += kendall_tau(&measured, &good).unwrap() / 8.0;
                let rows: Vec<&[u32]> = correct.iter().map(Vec::as_slice).collect();
                said += attainable_tau(&rows, repetition).unwrap() / 8.0;
            }
            assert!((real - said).abs() < 0.05, "spread {spread}, slips {slip}: {said} in place of {real}");
        }
    }

    #[test]
    fn it_is_unknown_without_batches_or_an_order() {
        assert_eq!(attainable_tau(&[], 0), None);
        assert_eq!(attainable_tau(&[&[9, 8, 7], &[8, 8, 6]], 0), None);
        assert_eq!(attainable_tau(&[&[9, 8, 7, 7], &[8, 8, 6]], 0), None);
        assert_eq!(attainable_tau(&[&[9, 8, 7, 7], &[9, 8, 7, 7]], 0), None);
        // Subnets differ by one answer in all, and by up to two in each batch.
        assert_eq!(attainable_tau(&[&[9, 7, 9, 7], &[7, 9, 8, 7], &[8, 8, 7, 9]], 0), None);
    }
}
