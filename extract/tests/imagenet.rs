//! Searches on a truth that is known: a predictor fitted on 1,500 true ImageNet accuracies, and the published one, both
//! in `../shared/reference` beside the checkout:
//! `cargo test --release --workspace --test imagenet -- --ignored --nocapture`.

use ofa_extract::predictor::{FitSettings, Sample, import_accuracies};
use ofa_extract::search::{Rounds, SearchSettings, hypervolume, overrating};
use ofa_extract::{Limit, Measures, Predictor, Problem, search};
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::{SearchSpace, Subnet};
use rand::Rng;
use std::path::Path;

fn space() -> SearchSpace {
    let mut space = SearchSpace::named("mbv3-w1.0").unwrap();
    space.resolutions = vec![224];
    space
}

fn truth(space: &SearchSpace) -> Predictor {
    let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/reference/imagenet_w1.0/accuracies.jsonl"));
    let samples = import_accuracies(file, space).unwrap();
    assert_eq!(samples.len(), 1500);
    Predictor::fit(space, &samples, &FitSettings::default(), 0, &mut |_, _, _| {}).unwrap().0
}

/// A normal number with the deviation `sigma`.
fn noise(sigma: f64, rng: &mut impl Rng) -> f64 {
    let (radius, angle): (f64, f64) = (rng.random_range(f64::MIN_POSITIVE..1.0), rng.random());
    sigma * (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

fn macs<'a>(measures: &'a Measures, bound: f64) -> Limit<'a> {
    Limit::new("macs", bound, |s| measures.value(&"any:macs=1".parse().unwrap(), s))
}

/// The published space with its accuracy predictor.
fn published() -> (SearchSpace, Predictor) {
    let mut space = SearchSpace::named("mbv3-w1.2").unwrap();
    space.resolutions = vec![160, 176, 192, 208, 224];
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/reference/official/acc_predictor.pth");
    let predictor = Predictor::import(Path::new(file), &space).unwrap();
    (space, predictor)
}

#[test]
#[ignore = "needs the reference data"]
fn winners_are_as_good_as_they_are_said_to_be() {
    let measured = space();
    let (published, published_truth) = published();
    for (space, truth) in [(&measured, &truth(&measured)), (&published, &published_truth)] {
        let measures = Measures::new(space, 1000, Vec::new());
        for (count, sigma) in [(100, 0.004), (200, 0.004), (200, 0.0004), (500, 0.004)] {
            let (mut errors, mut raw, mut within) = (Vec::new(), Vec::new(), 0);
            for repetition in 0..3 {
                let mut rng = generator(repetition, Stream::Samples, &[count]);
                let subnets: Vec<Subnet> = (0..count).map(|_| space.sample(&mut rng)).collect();
                let accuracies = truth.predict(&subnets).unwrap();
                let measured = subnets.into_iter().zip(accuracies);
                let samples: Vec<Sample> =
                    measured.map(|(subnet, accuracy)| Sample::new(subnet, accuracy + noise(sigma, &mut rng))).collect();
                let settings = FitSettings::default();
                let fitted = Predictor::fit(space, &samples, &settings, repetition, &mut |_, _, _| {});
                let (mut predictor, _) = fitted.unwrap();
                let found = overrating(&predictor, &samples, repetition, &mut |_, _| ()).unwrap();
                predictor.set_overrating(found);
                let effects = |subnets: &[Subnet]| predictor.effects(space, subnets);
                for step in 0..8 {
                    let limits = [macs(&measures, 200e6 + 40e6 * f64::from(step))];
                    let problem = Problem { effects: Some(&effects), ..Problem::new(space, &limits, 0) };
                    let settings = SearchSettings::named("memetic").unwrap();
                    let found = search(&problem, &settings, &mut |s| predictor.predict(s), &mut |_| ()).unwrap();
                    let best = std::slice::from_ref(&found.best);
                    let uncorrected = predictor.predict_with_deviation(best).unwrap()[0];
                    let said = predictor.of_chosen(uncorrected);
                    let is = truth.predict(best).unwrap()[0] + noise(sigma, &mut rng);
                    errors.push(said.accuracy - is);
                    raw.push(uncorrected.accuracy - is);
                    let (low, high) = said.interval();
                    within += usize::from((low..=high).contains(&is));
                }
            }
            let mean = |values: &[f64]| 100.0 * values.iter().sum::<f64>() / values.len() as f64;
            println!(
                "{}, {count} samples, noise {:.2} points: winners err by {:.3} points (uncorrected {:.3}), \
                 {within} of 24 within",
                space.name,
                100.0 * sigma,
                mean(&errors),
                mean(&raw)
            );
            assert!(mean(&errors).abs() < 0.3 && within >= 20, "{count} samples, noise {sigma}");
        }
    }
}

#[test]
#[ignore = "needs the reference data"]
fn rounds_of_few_measurements_cover_the_front() {
    let space = space();
    let truth = truth(&space);
    let measures = Measures::new(&space, 1000, Vec::new());
    let most = measures.value(&"any:macs=1".parse().unwrap(), &space.largest()).unwrap();
    let volume = |points: &[(f64, f64)]| {
        let goals: Vec<Vec<f64>> = points.iter().map(|(accuracy, macs)| vec![-accuracy, *macs]).collect();
        hypervolume(&goals, &[-0.7, most])
    };
    let against = [macs(&measures, f64::INFINITY)];
    let (mut rounds, mut random) = (Vec::new(), Vec::new());
    for seed in 0..5 {
        let mut rng = generator(seed, Stream::Samples, &[1]);
        let mut measure = |subnets: &[Subnet]| {
            let accuracies = truth.predict(subnets)?;
            Ok(accuracies.into_iter().map(|accuracy| accuracy + noise(0.0004, &mut rng)).collect())
        };
        let problem = Problem { against: &against, evaluations: Some(554), ..Problem::new(&space, &[], seed) };
        let found = search(&problem, &SearchSettings::Rounds(Rounds::default()), &mut measure, &mut |_| ()).unwrap();
        assert!(found.evaluations <= 554);
        let points: Vec<(f64, f64)> = found.front.iter().map(|point| (point.score, point.values[0])).collect();
        rounds.push(volume(&points));
        let mut rng = generator(seed, Stream::Samples, &[2]);
        let subnets: Vec<Subnet> = (0..5000).map(|_| space.sample(&mut rng)).collect();
        let accuracies = truth.predict(&subnets).unwrap();
        let points: Vec<(f64, f64)> = subnets
            .iter()
            .zip(accuracies)
            .map(|(s, a)| (a + noise(0.0004, &mut rng), against[0].value(s).unwrap()))
            .collect();
        random.push(volume(&points));
    }
    rounds.sort_by(f64::total_cmp);
    random.sort_by(f64::total_cmp);
    println!("hypervolume of 554 measurements in rounds: {rounds:?}; of 5,000 random ones: {random:?}");
    assert!(rounds[2] >= random[2]);
}
