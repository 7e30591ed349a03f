//! The predictor as a whole: fits, files, doubts.

use super::*;
use ofa_supernet::space::dimension::{At, Value};

/// Accuracy with a mild interaction between size and resolution.
fn samples(space: &SearchSpace, count: u64) -> Vec<Sample> {
    let accuracy = |subnet: &Subnet| {
        let size: f64 = subnet.blocks().map(|b| b.expand.value() + 0.5 * b.kernel as f64).sum();
        0.5 + 0.2 * (size.ln() - 2.0) * (0.6 + subnet.resolution as f64 / 80.0)
    };
    (0..count)
        .map(|i| space.sample(&mut generator(4, Stream::Sampling, &[i])))
        .map(|subnet| {
            let accuracy = accuracy(&subnet);
            Sample::new(subnet, accuracy)
        })
        .collect()
}

#[test]
fn ranks_held_out_subnets_and_survives_its_file() {
    let space = SearchSpace::named("tiny").unwrap();
    let settings = FitSettings { method: Method::Ensemble, hidden: 100, learning_rate: 3e-3, ..FitSettings::default() };
    for (count, tau) in [(40, 0.6), (300, 0.85)] {
        let mut steps = 0;
        let fitted = Predictor::fit(&space, &samples(&space, count), &settings, 7, &mut |_, _, _| steps += 1);
        let (predictor, report) = fitted.unwrap();
        assert_eq!((report.held_out, steps), ((report.samples as f64 / 5.0).round() as usize, 500));
        let folds = report.cross_validation.as_ref().unwrap();
        assert!(folds.folds == 5 && folds.rmse < 0.05, "{report:?}");
        assert!(report.rmse < 0.05, "{report:?}");
        // Eight held-out subnets are too few for a firm tau: new ones judge.
        let new = samples(&space, 600).split_off(300);
        let measured: Vec<f64> = new.iter().map(|s| s.accuracy).collect();
        let predicted = predictor.predict(&new.into_iter().map(|s| s.subnet).collect::<Vec<_>>()).unwrap();
        let found = metrics::kendall_tau(&measured, &predicted).unwrap();
        assert!(found > tau, "{count} samples: Kendall tau {found}");

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("predictor.safetensors");
        predictor.save(&path).unwrap();
        let loaded = Predictor::load(&path).unwrap();
        let sure = |p: &Predictor| p.predict_with_deviation(&[space.smallest(), space.largest()]).unwrap();
        assert_eq!(sure(&loaded), sure(&predictor));
        let subnets: Vec<Subnet> = report.pairs.iter().map(|p| p.subnet.clone()).collect();
        let predicted: Vec<f64> = report.pairs.iter().map(|p| p.predicted).collect();
        assert_eq!(loaded.predict(&subnets).unwrap(), predicted);
        assert_eq!(*loaded.space(), space);
        assert_eq!((&loaded.origin, loaded.checksum().unwrap()), (&predictor.origin, predictor.checksum().unwrap()));
    }
}

#[test]
fn a_predictor_of_other_weights_or_without_an_order_is_doubted() {
    let space = SearchSpace::named("tiny").unwrap();
    let settings =
        FitSettings { method: Method::Ensemble, hidden: 40, members: 1, learning_rate: 3e-3, ..FitSettings::default() };
    let measured_with = |weights: &str| {
        let weights = weights.into();
        Some(Provenance { weights, data: "d".into(), recalibration: 9, images: 9, batch: 9, seed: 0 })
    };
    let fit = |samples: &[Sample]| Predictor::fit(&space, samples, &settings, 0, &mut |_, _, _| ()).unwrap().0;
    let mut predictor = fit(&samples(&space, 100));
    assert!(predictor.doubts("0a")[0].contains("does not record"));
    let before = predictor.checksum().unwrap();
    predictor.set_provenance(measured_with("0a"));
    assert_ne!(predictor.checksum().unwrap(), before);
    assert_eq!((predictor.doubts("0a"), predictor.weights()), (vec![], Some("0a")));
    assert!(predictor.doubts("0b")[0].contains("other weights (checksum 0a, the supernet now has 0b)"));
    let mut constant = samples(&space, 20);
    constant.iter_mut().for_each(|sample| sample.accuracy = 0.5);
    let mut constant = fit(&constant);
    constant.set_provenance(measured_with("0a"));
    let doubts = constant.doubts("0a");
    assert!(doubts.len() == 1 && doubts[0].contains("tau is undefined on 4 held-out subnets"), "{doubts:?}");
    assert!(doubts[0].contains("--samples") && constant.judgement().unwrap().contains("--samples"));
    // Accuracies from elsewhere cannot be measured here.
    constant.set_provenance(None);
    constant.set_imported();
    for advice in [constant.doubts("").swap_remove(0), constant.judgement().unwrap()] {
        assert!(advice.ends_with("`ofa predictor --run RUN --import`)"), "{advice}");
    }
}

#[test]
fn reported_predictions_are_accuracies_and_the_order_is_that_of_the_raw_ones() {
    let space = SearchSpace::named("tiny").unwrap();
    let settings =
        FitSettings { method: Method::Ensemble, hidden: 40, members: 2, learning_rate: 3e-3, ..FitSettings::default() };
    // Nearly all are right on all images: noise and slope lead above 1.
    let mut high = samples(&space, 200);
    high.iter_mut().enumerate().for_each(|(index, s)| s.accuracy = if index % 9 == 0 { 0.7 } else { 1.0 });
    let (predictor, report) = Predictor::fit(&space, &high, &settings, 3, &mut |_, _, _| ()).unwrap();
    let subnets: Vec<Subnet> = report.pairs.iter().map(|pair| pair.subnet.clone()).collect();
    let raw = predictor.predict(&subnets).unwrap();
    assert!(raw.iter().any(|p| *p > 1.0), "{raw:?}");
    assert!(report.pairs.iter().zip(&raw).all(|(pair, raw)| pair.predicted == raw.min(1.0)));
    let measured: Vec<f64> = report.pairs.iter().map(|pair| pair.measured).collect();
    assert_eq!(report.kendall_tau, metrics::kendall_tau(&measured, &raw));
}

#[test]
fn a_space_of_few_subnets_is_named() {
    let mut space = SearchSpace::named("tiny").unwrap();
    (space.resolutions, space.kernel_sizes, space.depths) = (vec![32], vec![3], vec![1]);
    space.expand_ratios.truncate(2);
    assert!(check_space(&space).unwrap_err().to_string().contains("has only 4 subnets"));
    space.expand_ratios.truncate(1);
    assert!(check_space(&space).unwrap_err().to_string().contains("has only one subnet"));
    space.resolutions = (1..=10).map(|r| 8 * r).collect();
    check_space(&space).unwrap();
}

#[test]
fn deviations_hold_what_they_promise() {
    use rand::Rng;
    let space = SearchSpace::named("tiny").unwrap();
    let mut noisy = samples(&space, 500);
    let mut rng = generator(1, Stream::Builtin, &[]);
    // Uniform noise of a point either way: a standard deviation of 0.58 points.
    noisy.iter_mut().for_each(|s| s.accuracy += rng.random_range(-0.01..0.01));
    let settings = FitSettings { method: Method::Ensemble, hidden: 100, learning_rate: 3e-3, ..FitSettings::default() };
    let (predictor, report) = Predictor::fit(&space, &noisy, &settings, 3, &mut |_, _, _| ()).unwrap();
    let calibration = report.calibration.unwrap();
    assert!((0.8..=1.0).contains(&calibration.within_90), "{calibration:?}");
    assert!((0.005..0.02).contains(&calibration.mean_deviation), "{calibration:?}");
    let Model::Ensemble(ensemble) = &predictor.model else { panic!("asked for an ensemble") };
    assert!(report.pairs.iter().all(|pair| pair.deviation.unwrap() >= f64::from(ensemble.noise)));
    // What no sample is like is less sure than what many are like.
    let far = predictor.predict_with_deviation(&[space.largest(), space.smallest()]).unwrap();
    assert!(far.iter().any(|p| p.deviation > calibration.mean_deviation), "{far:?} {calibration:?}");

    let single = FitSettings { members: 1, steps: Some(2), ..settings };
    let (predictor, report) = Predictor::fit(&space, &noisy, &single, 3, &mut |_, _, _| ()).unwrap();
    assert_eq!((report.members, report.calibration, report.cross_validation), (1, None, None));
    assert!(predictor.predict_with_deviation(&[space.largest()]).unwrap_err().to_string().contains("single network"));
}

#[test]
fn one_seed_one_predictor() {
    let space = SearchSpace::named("tiny").unwrap();
    let settings = FitSettings { method: Method::Ensemble, hidden: 40, steps: Some(20), ..FitSettings::default() };
    let fit = |seed| Predictor::fit(&space, &samples(&space, 30), &settings, seed, &mut |_, _, _| ()).unwrap().1;
    assert_eq!(fit(1), fit(1));
    assert_ne!(fit(1).pairs, fit(2).pairs);
}

#[test]
fn unusable_input_is_refused() {
    let space = SearchSpace::named("tiny").unwrap();
    let fit = |samples: &[Sample], settings: &FitSettings| {
        Predictor::fit(&space, samples, settings, 0, &mut |_, _, _| ()).unwrap_err().to_string()
    };
    let quick =
        FitSettings { method: Method::Ensemble, hidden: 8, steps: Some(1), members: 2, ..FitSettings::default() };
    let same = vec![samples(&space, 1).remove(0); 50];
    assert!(fit(&same, &quick).contains("1 different subnets"));
    let mut percent = samples(&space, 20);
    percent[3].accuracy = 83.0;
    assert!(fit(&percent, &quick).contains("between 0 and 1"));
    let mut foreign = samples(&space, 20);
    foreign.iter_mut().for_each(|s| s.subnet.resolution = 20);
    assert!(fit(&foreign, &quick).contains("allowed are"));
    assert!(fit(&samples(&space, 20), &FitSettings { batch_size: 0, ..quick }).contains("batch_size"));
}

#[test]
fn foreign_files_are_refused() {
    let space = SearchSpace::named("tiny").unwrap();
    let settings =
        FitSettings { method: Method::Ensemble, hidden: 8, steps: Some(1), members: 2, ..FitSettings::default() };
    let (predictor, _) = Predictor::fit(&space, &samples(&space, 20), &settings, 0, &mut |_, _, _| ()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("predictor.safetensors");
    predictor.save(&path).unwrap();
    let good = std::fs::read(&path).unwrap();
    // Replacements of equal length keep the header's offsets right.
    let replaced = |from: &str, to: &str| {
        let at = good.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        let mut bytes = good.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    for (bytes, reason) in [
        (good[..good.len() - 1].to_vec(), "no predictor of this program"),
        (b"hello".to_vec(), "no predictor of this program"),
        (replaced("ofa-predictor", "ofa-transform"), "expected 'ofa-predictor'"),
        (replaced("[16,24,32]", "[16,24   ]"), "member0.layer0.weight is F32 [23, 8], expected F32 [22, 8]"),
        (replaced("member1.layer2.bias", "member1.layer9.bias"), "member1.layer2.bias"),
    ] {
        std::fs::write(&path, &bytes).unwrap();
        let error = Predictor::load(&path).unwrap_err().to_string();
        assert!(error.contains("predictor.safetensors") && error.contains(reason), "{error}");
    }
}

fn fit_process(space: &SearchSpace, samples: &[Sample]) -> (Predictor, FitReport) {
    Predictor::fit(space, samples, &FitSettings::default(), 7, &mut |_, _, _| ()).unwrap()
}

#[test]
fn a_process_ranks_unseen_subnets_and_survives_its_file() {
    for (name, count, tau) in [("tiny", 30, 0.9), ("tiny", 120, 0.97), ("resnet-tiny", 60, 0.9)] {
        let space = SearchSpace::named(name).unwrap();
        let (predictor, report) = fit_process(&space, &samples(&space, count));
        assert_eq!(
            (report.members, report.cross_validation.as_ref().unwrap().folds),
            (0, report.samples - report.held_out)
        );
        let new = samples(&space, 600).split_off(300);
        let measured: Vec<f64> = new.iter().map(|s| s.accuracy).collect();
        let subnets: Vec<Subnet> = new.into_iter().map(|s| s.subnet).collect();
        let predicted = predictor.predict(&subnets).unwrap();
        let found = metrics::kendall_tau(&measured, &predicted).unwrap();
        assert!(found > tau, "{name}, {count} samples: Kendall tau {found}");
        // A prediction depends on its subnet alone, and not on those beside it.
        let sure = predictor.predict_with_deviation(&subnets).unwrap();
        assert_eq!(predictor.predict(&subnets[7..8]).unwrap(), predicted[7..8]);
        assert_eq!(predictor.predict_with_deviation(&subnets[70..71]).unwrap(), sure[70..71]);
        assert!(sure.iter().zip(&predicted).all(|(sure, accuracy)| sure.accuracy == *accuracy));

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("predictor.safetensors");
        predictor.save(&path).unwrap();
        let loaded = Predictor::load(&path).unwrap();
        assert_eq!(loaded.predict_with_deviation(&subnets).unwrap(), sure);
        assert_eq!((&loaded.origin, loaded.checksum().unwrap()), (&predictor.origin, predictor.checksum().unwrap()));
    }
}

/// The definition in f64: the mean and deviation of a process with the fitted shape.
#[test]
fn predictions_of_a_process_are_those_of_the_definition() {
    let space = SearchSpace::named("tiny").unwrap();
    let known: Vec<Sample> = distinct(&samples(&space, 50)).unwrap();
    let (process, unseen) = process::Process::fit(&space, &known, &mut |_, _, _| ()).unwrap();
    let parts = process.parts().clone();
    let query = samples(&space, 330).split_off(300);
    let subnets: Vec<Subnet> = query.iter().map(|s| s.subnet.clone()).collect();
    let found = process.predict_with_deviation(&subnets).unwrap();
    let encoding = encoding::Encoding::new(&space);
    let numbers = |subnet: &Subnet| -> Vec<(usize, f64)> {
        let mut states = Vec::new();
        encoding.push(subnet, &mut states).unwrap();
        let columns = encoding.columns.iter().map(|c| (c.group, c.of_state[usize::from(states[c.place])]));
        let totals = encoding.totals_of(&states).into_iter().zip(&parts.totals).zip(&encoding.totals);
        columns.chain(totals.map(|((sum, scale), total)| (total.group, (sum - scale.mean) / scale.deviation))).collect()
    };
    let covariance = |a: &[(usize, f64)], b: &[(usize, f64)]| -> f64 {
        let pairs = || a.iter().zip(b).map(|(&(group, a), &(_, b))| (group, a, b));
        let distance: f64 = pairs().map(|(group, a, b)| parts.shape.scale[group] * (a - b).powi(2)).sum();
        let linear: f64 = pairs().map(|(group, a, b)| parts.shape.linear[group] * a * b).sum();
        1.0 + linear + parts.shape.together * (-0.5 * distance).exp()
    };
    let inputs: Vec<_> = known.iter().map(|s| numbers(&s.subnet)).collect();
    let count = inputs.len();
    let entry = |i: usize, j: usize| covariance(&inputs[i], &inputs[j]) + if i == j { parts.shape.noise } else { 0.0 };
    let rows = |skip: Option<usize>| -> (Vec<usize>, crate::cholesky::Cholesky) {
        let kept: Vec<usize> = (0..count).filter(|i| Some(*i) != skip).collect();
        let rows = kept.iter().flat_map(|&i| kept.iter().map(move |&j| (i, j))).map(|(i, j)| entry(i, j)).collect();
        (kept.clone(), crate::cholesky::Cholesky::new(rows, kept.len()).unwrap())
    };
    let scaled = |i: usize| (known[i].accuracy - parts.accuracy.mean) / parts.accuracy.deviation;
    let predict = |skip: Option<usize>, input: &[(usize, f64)]| -> (f64, f64) {
        let (kept, cholesky) = rows(skip);
        let across: Vec<f64> = kept.iter().map(|&i| covariance(&inputs[i], input)).collect();
        let weights = cholesky.solve(kept.iter().map(|&i| scaled(i)).collect());
        let mean = crate::cholesky::dot(&across, &weights);
        let solved = cholesky.solve(across.clone());
        let variance = covariance(input, input) - crate::cholesky::dot(&across, &solved) + parts.shape.noise;
        (
            parts.accuracy.mean + parts.accuracy.deviation * mean,
            parts.widening * parts.accuracy.deviation * variance.sqrt(),
        )
    };
    for (subnet, found) in subnets.iter().zip(&found) {
        let (accuracy, deviation) = predict(None, &numbers(subnet));
        assert!((found.accuracy - accuracy).abs() < 1e-5, "{} {accuracy}", found.accuracy);
        assert!(
            (found.deviation - deviation).abs() < 1e-3 * parts.accuracy.deviation,
            "{} {deviation}",
            found.deviation
        );
    }
    for (index, unseen) in unseen.iter().enumerate().step_by(7) {
        let (accuracy, _) = predict(Some(index), &inputs[index]);
        assert!((unseen - accuracy).abs() < 1e-6, "{unseen} {accuracy}");
    }
}

#[test]
fn a_process_knows_how_sure_it_is_and_takes_equal_accuracies() {
    use rand::Rng;
    let space = SearchSpace::named("cifar-mbv3").unwrap();
    let mut noisy = samples(&space, 300);
    let mut rng = generator(1, Stream::Builtin, &[]);
    noisy.iter_mut().for_each(|s| s.accuracy += rng.random_range(-0.01..0.01));
    let (predictor, report) = fit_process(&space, &noisy);
    let calibration = report.calibration.unwrap();
    assert!((0.8..=1.0).contains(&calibration.within_90), "{calibration:?}");
    assert!((0.005..0.02).contains(&calibration.mean_deviation), "{calibration:?}");
    let far = predictor.predict_with_deviation(&[space.largest(), space.smallest()]).unwrap();
    assert!(far.iter().all(|p| p.deviation > calibration.mean_deviation), "{far:?} {calibration:?}");
    noisy.truncate(20);
    noisy.iter_mut().for_each(|sample| sample.accuracy = 0.5);
    let (constant, report) = fit_process(&space, &noisy);
    assert_eq!(report.kendall_tau, None);
    assert!((constant.predict(&[space.largest()]).unwrap()[0] - 0.5).abs() < 1e-9);
}

#[test]
fn damaged_files_of_a_process_are_refused() {
    let space = SearchSpace::named("tiny").unwrap();
    let (predictor, _) = fit_process(&space, &samples(&space, 20));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("predictor.safetensors");
    predictor.save(&path).unwrap();
    let good = std::fs::read(&path).unwrap();
    let tensor = |name: &str| {
        let file = safetensors::SafeTensors::deserialize(&good).unwrap();
        let data = file.tensor(name).unwrap().data().to_vec();
        let at = good.windows(data.len()).position(|window| window == data).unwrap();
        at..at + data.len()
    };
    for (name, bytes, reason) in [
        ("process.states", [9u8; 8], "process.states holds a choice"),
        ("process.weights", f64::NAN.to_le_bytes(), "process.weights holds a value that is no number"),
        ("process.shape", (-1.0f64).to_le_bytes(), "process.shape holds a weight that is not positive"),
    ] {
        let mut damaged = good.clone();
        let start = tensor(name).start;
        damaged[start..start + 8].copy_from_slice(&bytes);
        std::fs::write(&path, &damaged).unwrap();
        let error = Predictor::load(&path).unwrap_err().to_string();
        assert!(error.contains("predictor.safetensors") && error.contains(reason), "{error}");
    }
    let mut damaged = good.clone();
    let end = tensor("process.scales").end;
    damaged[end - 8..end].fill(0);
    std::fs::write(&path, &damaged).unwrap();
    assert!(Predictor::load(&path).unwrap_err().to_string().contains("deviation that is not positive"));

    let mut predictor = predictor;
    predictor.set_overrating(Some(1.25));
    predictor.save(&path).unwrap();
    let said = Prediction { accuracy: 0.5, deviation: 0.02, doubt: 0.01 };
    let corrected = Predictor::load(&path).unwrap().of_chosen(said);
    assert_eq!(corrected, Prediction { accuracy: 0.4875, deviation: 0.02f64.hypot(0.005), doubt: 0.01 });
    predictor.set_overrating(Some(-1.0));
    predictor.save(&path).unwrap();
    assert!(Predictor::load(&path).unwrap_err().to_string().contains("cannot overrate its choice by -1 deviations"));
}

#[test]
fn effects_are_nearly_those_of_single_changes_and_the_chosen_is_corrected() {
    let space = SearchSpace::named("tiny").unwrap();
    for method in [Method::GaussianProcess, Method::Ensemble] {
        let settings = FitSettings { method, hidden: 60, learning_rate: 3e-3, ..FitSettings::default() };
        // With errors of measurement, since there would be no doubt without any.
        let mut noisy = samples(&space, 200);
        noisy.iter_mut().step_by(2).for_each(|sample| sample.accuracy += 0.004);
        let (predictor, _) = Predictor::fit(&space, &noisy, &settings, 3, &mut |_, _, _| ()).unwrap();
        let places = space.places();
        let ranges = crate::effects::ranges(&places);
        let (mut expected, mut found) = (Vec::new(), Vec::new());
        for sample in samples(&space, 12) {
            let subnet = sample.subnet;
            let effects = &predictor.effects(&space, std::slice::from_ref(&subnet)).unwrap()[0];
            let total = |subnet: &Subnet| -> f64 {
                let effect = |(place, range): (&ofa_supernet::space::Place, &std::ops::Range<usize>)| {
                    place.choice(subnet).map_or(0.0, |choice| effects[range.start + choice])
                };
                places.iter().zip(&ranges).map(effect).sum()
            };
            let neighbours = space.neighbours(&subnet);
            let before = predictor.predict(std::slice::from_ref(&subnet)).unwrap()[0];
            expected.extend(predictor.predict(&neighbours).unwrap().into_iter().map(|after| after - before));
            found.extend(neighbours.iter().map(|other| total(other) - total(&subnet)));
        }
        let correlation = metrics::pearson(&expected, &found).unwrap();
        assert!(correlation > 0.9, "{method:?}: {correlation}");
        // A chosen subnet is worth less than it is said to be, by as much as the prediction is unsure.
        let chosen = predictor.predict_with_deviation(&[space.largest()]).unwrap()[0];
        assert!(chosen.doubt > 0.0 && chosen.doubt <= chosen.deviation, "{chosen:?}");
        let corrected = predictor.of_chosen(chosen);
        assert!((chosen.accuracy - corrected.accuracy - 2.0 * chosen.doubt).abs() < 1e-12);
        assert!(corrected.deviation > chosen.deviation);
    }
}

#[test]
fn a_predictor_knows_the_values_that_its_samples_have() {
    let space = SearchSpace::named("tiny").unwrap();
    let mut part = space.clone();
    (part.resolutions, part.kernel_sizes) = (vec![24], vec![3]);
    for method in [Method::GaussianProcess, Method::Ensemble] {
        let settings = FitSettings { method, hidden: 20, ..FitSettings::default() };
        let fit = |samples: &[Sample]| Predictor::fit(&space, samples, &settings, 3, &mut |_, _, _| ()).unwrap().0;
        let predictor = fit(&samples(&part, 60));
        assert_eq!(predictor.known_part(&space), part);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("predictor.safetensors");
        predictor.save(&path).unwrap();
        assert_eq!(Predictor::load(&path).unwrap().known_part(&space), part);
        assert_eq!(fit(&samples(&space, 60)).known_part(&space), space);
        // A resolution between two others counts as known.
        let mut ends = space.clone();
        ends.resolutions = vec![16, 32];
        assert_eq!(fit(&samples(&ends, 60)).known_part(&space), space);
    }
    // A stage of a single depth has it in every sample, and says nothing of the others. A stage's own list may be
    // longer than the space's: its values are counted from the largest down.
    for (first, second, known) in [(vec![], vec![1], [2].as_slice()), (vec![1, 2, 3, 4], vec![1, 2, 3, 4], &[1])] {
        let mut space = space.clone();
        (space.depths, space.stages[0].depths, space.stages[1].depths) = (vec![1, 2], first, second);
        let all = samples(&space, 200);
        let deep = |sample: &Sample| {
            let mut stages = sample.subnet.stages.iter().zip(&space.stages);
            stages.all(|(blocks, stage)| stage.depths.len() == 1 || blocks.len() == 2)
        };
        let some: Vec<Sample> = all.into_iter().filter(deep).collect();
        let settings = FitSettings { method: Method::GaussianProcess, ..FitSettings::default() };
        let predictor = Predictor::fit(&space, &some, &settings, 3, &mut |_, _, _| ()).unwrap().0;
        let part = predictor.known_part(&space);
        assert_eq!(part.depths, known);
        assert!(some.iter().all(|sample| part.check(&sample.subnet).is_ok()));
    }
}

#[test]
fn effects_in_a_part_of_the_space_are_those_of_the_whole() {
    let space = SearchSpace::named("tiny").unwrap();
    let mut part = space.clone();
    (part.resolutions, part.kernel_sizes, part.depths) = (vec![24, 32], vec![5], vec![1]);
    let settings = FitSettings { method: Method::GaussianProcess, ..FitSettings::default() };
    let predictor = Predictor::fit(&space, &samples(&space, 60), &settings, 3, &mut |_, _, _| ()).unwrap().0;
    let subnets: Vec<Subnet> = (0..9).map(|i| part.sample(&mut generator(8, Stream::Sampling, &[i]))).collect();
    let effect = |space: &SearchSpace, subnet: usize, letter: char, at: At, value: Value| {
        let places = space.places();
        let place = places.iter().position(|place| place.dimension.letter == letter && place.at == at).unwrap();
        let number = places[place].values.iter().position(|known| *known == value).unwrap();
        predictor.effects(space, &subnets).unwrap()[subnet][crate::effects::ranges(&places)[place].start + number]
    };
    let mut compared = 0;
    for place in part.places() {
        for (subnet, value) in (0..9).flat_map(|subnet| place.values.iter().map(move |value| (subnet, *value))) {
            let [within, whole] =
                [&part, &space].map(|space| effect(space, subnet, place.dimension.letter, place.at, value));
            assert_eq!(within, whole, "{:?} {value}", place.at);
            compared += usize::from(within != 0.0);
        }
    }
    assert!(compared > 9 * 10, "{compared} effects are not zero");
}
