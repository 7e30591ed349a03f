//! Comparison of chosen with random subnets for the predictor: Kendall's tau against the number of measurements.
//!
//! With the published predictor as ground truth, plus noise (NOISE is the standard deviation of a measured accuracy, by
//! default 0.004: that of ten thousand images at 80 %):
//! `cargo run --release -p ofa-extract --example active_sampling -- acc_predictor.pth [NOISE [REPETITIONS]]`
//!
//! With samples that `ofa predictor` measured: a file of random samples, and files of runs with `--active deviation`.
//! All random samples judge the chosen ones; a random draw is judged by the random samples that it left: `cargo run
//! --release -p ofa-extract --example active_sampling -- SPACE RANDOM.jsonl CHOSEN.jsonl...`

use ofa_extract::predictor::active::{Acquisition, next};
use ofa_extract::predictor::metrics::kendall_tau;
use ofa_extract::predictor::read_samples;
use ofa_extract::{FitSettings, Predictor, Sample};
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::{SearchSpace, Subnet};
use rand::Rng;
use rand::seq::SliceRandom;
use std::error::Error;
use std::path::Path;

/// Numbers of measurements at which random and chosen subnets are compared.
const SIZES: [usize; 7] = [50, 75, 100, 150, 200, 300, 400];
/// Number of random subnets on which tau is computed.
const JUDGED: u64 = 1000;

/// Number of random draws over which tau is averaged.
const DRAWS: u64 = 10;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [space, random, chosen @ ..] if !chosen.is_empty() && random.ends_with(".jsonl") => {
            measured(&SearchSpace::named(space)?, random, chosen)
        }
        [file, rest @ ..] => {
            let noise = rest.first().map_or(Ok(0.004), |text| text.parse())?;
            simulated(file, noise, rest.get(1).map_or(Ok(5), |text| text.parse())?)
        }
        [] => Err("expected the published predictor, acc_predictor.pth, or a space and files of samples".into()),
    }
}

/// Kendall's tau, on `judges`, of a predictor fitted on `samples`.
fn tau(space: &SearchSpace, samples: &[Sample], judges: &[Sample], seed: u64) -> Result<f64, Box<dyn Error>> {
    let (predictor, _) = Predictor::fit(space, samples, &FitSettings::default(), seed, &mut |_, _, _| {})?;
    let subnets: Vec<Subnet> = judges.iter().map(|s| s.subnet.clone()).collect();
    let accuracies: Vec<f64> = judges.iter().map(|s| s.accuracy).collect();
    Ok(kendall_tau(&accuracies, &predictor.predict(&subnets)?).unwrap_or(0.0))
}

fn measured(space: &SearchSpace, random: &str, chosen: &[String]) -> Result<(), Box<dyn Error>> {
    let random = read_samples(Path::new(random), space)?;
    let chosen: Vec<Vec<Sample>> =
        chosen.iter().map(|path| read_samples(Path::new(path), space)).collect::<Result<_, _>>()?;
    println!("measurements  tau, random  tau, chosen");
    for size in (20..).step_by(20).take_while(|&size| chosen.iter().all(|samples| size <= samples.len())) {
        let mut taus = [0.0; 2];
        for draw in 0..DRAWS {
            let mut samples = random.clone();
            samples.shuffle(&mut generator(draw, Stream::Order, &[]));
            let (drawn, judges) = samples.split_at(size);
            taus[0] += tau(space, drawn, judges, draw)? / DRAWS as f64;
        }
        for samples in &chosen {
            taus[1] += tau(space, &samples[..size], &random, 0)? / chosen.len() as f64;
        }
        println!("{size:12}  {:11.3}  {:11.3}", taus[0], taus[1]);
    }
    Ok(())
}

fn simulated(file: &str, noise: f64, repetitions: u64) -> Result<(), Box<dyn Error>> {
    let mut space = SearchSpace::named("mbv3-w1.2")?;
    space.resolutions = vec![160, 176, 192, 208, 224];
    let truth = Predictor::import(Path::new(file), &space)?;
    let settings = FitSettings::default();
    let subnets: Vec<Subnet> = (0..JUDGED).map(|i| space.sample(&mut generator(0, Stream::Validation, &[i]))).collect();
    let accuracies = truth.predict(&subnets)?;
    let judges: Vec<Sample> =
        subnets.into_iter().zip(accuracies).map(|(subnet, accuracy)| Sample::new(subnet, accuracy)).collect();
    let mut taus = [[0.0; 2]; SIZES.len()];
    for repetition in 0..repetitions {
        let mut rng = generator(repetition, Stream::Dropout, &[]);
        let mut measure = |subnets: Vec<Subnet>| -> Result<Vec<Sample>, ofa_extract::Error> {
            let exact = truth.predict(&subnets)?;
            let noisy = subnets.into_iter().zip(exact).map(|(subnet, exact)| {
                let normal = (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
                Sample::new(subnet, (exact + noise * normal).clamp(0.0, 1.0))
            });
            Ok(noisy.collect())
        };
        let drawn = |i: u64| space.sample(&mut generator(repetition, Stream::Samples, &[i]));
        let random = measure((0..SIZES[SIZES.len() - 1] as u64).map(drawn).collect())?;
        let mut chosen = Vec::new();
        for (size, taus) in SIZES.into_iter().zip(&mut taus) {
            let subnets = next(&space, &chosen, size - chosen.len(), Acquisition::Deviation, &settings, repetition)?;
            chosen.extend(measure(subnets)?);
            for (samples, sum) in [&random[..size], &chosen].into_iter().zip(taus) {
                *sum += tau(&space, samples, &judges, repetition)? / repetitions as f64;
            }
        }
        eprintln!("repetition {} of {repetitions}", repetition + 1);
    }
    println!("measurements  tau, random  tau, chosen");
    for (size, [random, chosen]) in SIZES.into_iter().zip(taus) {
        println!("{size:12}  {random:11.3}  {chosen:11.3}");
    }
    Ok(())
}
