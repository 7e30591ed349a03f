//! Whether subnets that the predictor chooses teach it more than random ones: Kendall's tau against the number of measurements, on the space of
//! the published predictor with that predictor as the truth, and with noise as of so many validation images.
//!
//! `cargo run --release -p ofa-extract --example active_sampling -- acc_predictor.pth [NOISE [REPETITIONS]]`, where NOISE is the standard deviation
//! of a measured accuracy (default 0).

use ofa_extract::predictor::active::{Acquisition, next};
use ofa_extract::predictor::metrics::kendall_tau;
use ofa_extract::{FitSettings, Predictor, Sample};
use ofa_supernet::seed::{Purpose, generator};
use ofa_supernet::{SearchSpace, Subnet};
use rand::Rng;
use std::path::Path;

/// Measurements at which both are compared; the first are random for both.
const SIZES: [usize; 6] = [100, 150, 200, 300, 400, 600];
/// Random subnets that tau is computed on.
const JUDGED: u64 = 1000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let file = arguments.first().ok_or("expected the published predictor, acc_predictor.pth")?;
    let noise: f64 = arguments.get(1).map_or(Ok(0.0), |text| text.parse())?;
    let repetitions: u64 = arguments.get(2).map_or(Ok(3), |text| text.parse())?;
    let mut space = SearchSpace::named("mbv3-w1.2")?;
    space.resolutions = vec![160, 176, 192, 208, 224];
    let truth = Predictor::import(Path::new(file), &space)?;
    let settings = FitSettings::default();
    let judged: Vec<Subnet> =
        (0..JUDGED).map(|i| space.sample(&mut generator(0, Purpose::Sampling, &[1, i]))).collect();
    let judged_accuracies = truth.predict(&judged)?;
    let mut taus = [[0.0; 2]; SIZES.len()];
    for repetition in 0..repetitions {
        // The same subnet has the same noise, however often and wherever it is measured.
        let measure = |subnets: Vec<Subnet>| -> Result<Vec<Sample>, ofa_extract::Error> {
            let exact = truth.predict(&subnets)?;
            let noisy = subnets.into_iter().zip(exact).map(|(subnet, exact)| {
                let seed =
                    subnet.to_string().bytes().fold(repetition, |hash, b| hash.wrapping_mul(31).wrapping_add(b.into()));
                let mut rng = generator(seed, Purpose::Dropout, &[]);
                let normal = (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
                Sample { accuracy: (exact + noise * normal).clamp(0.0, 1.0), subnet }
            });
            Ok(noisy.collect())
        };
        let drawn = |i: u64| space.sample(&mut generator(repetition, Purpose::Sampling, &[2, i]));
        let random = measure((0..SIZES[SIZES.len() - 1] as u64).map(drawn).collect())?;
        let mut chosen = random[..SIZES[0]].to_vec();
        for (size, taus) in SIZES.into_iter().zip(&mut taus) {
            while chosen.len() < size {
                let count = (size - chosen.len()).min(50);
                let subnets = next(&space, &chosen, count, Acquisition::Deviation, &settings, repetition)?;
                chosen.extend(measure(subnets)?);
            }
            for (samples, tau) in [&random[..size], &chosen].into_iter().zip(taus) {
                let (predictor, _) = Predictor::fit(&space, samples, &settings, repetition, &mut |_, _, _| {})?;
                *tau +=
                    kendall_tau(&judged_accuracies, &predictor.predict(&judged)?).unwrap_or(0.0) / repetitions as f64;
            }
        }
    }
    println!("measurements  tau, random  tau, chosen");
    for (size, [random, chosen]) in SIZES.into_iter().zip(taus) {
        println!("{size:12}  {random:11.3}  {chosen:11.3}");
    }
    Ok(())
}
