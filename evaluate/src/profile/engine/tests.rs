//! Profiles from a function in place of an engine: times are the layers' true times with noise.

use super::*;
use crate::model::NumberType;
use crate::profile::layers;
use ofa_supernet::files::checksum;
use ofa_supernet::space::preset;

fn options() -> (ProfileOptions, EngineOptions) {
    let options = ProfileOptions { rounds: 2, check_subnets: 20, ..ProfileOptions::new("engine", 10) };
    let command = EngineCommand {
        words: vec!["none".into()],
        ..Preset::named("trtexec").unwrap().command(None, NumberType::F32).unwrap()
    };
    (options, EngineOptions { command, error: 0.001, samples: 60 })
}

/// A time between 0.1 and 1 that only the text determines.
fn drawn(text: &str) -> f64 {
    0.1 + 0.9 * f64::from(checksum(text.as_bytes()) % 1000) / 1000.0
}

/// Milliseconds of a subnet: half a millisecond and its layers' times, which no cost explains, with 1 % of noise.
fn truth(space: &SearchSpace, subnet: &Subnet, turn: usize) -> f64 {
    let network = space.network(subnet, 10).unwrap();
    let sum: f64 = layers(&network).map(|layer| drawn(&layer.to_string())).sum();
    (0.5 + sum) * (1.0 + 0.02 * (drawn(&format!("{subnet} {turn}")) - 0.55))
}

#[test]
fn held_out_networks_are_predicted_and_layers_of_no_network_are_marked() {
    let space = preset("cifar-mbv3").unwrap();
    let (options, engine) = options();
    let mut calls = 0;
    let mut time = |subnet: &Subnet, _: &mut dyn FnMut() -> ControlFlow<()>| {
        calls += 1;
        Ok((truth(&space, subnet, calls), Some("7".into())))
    };
    let mut measured = |engine: &EngineOptions| {
        measure_with(&space, &options, engine, None, &mut time, &mut |_| ControlFlow::Continue(())).unwrap()
    };
    let few = measured(&EngineOptions { samples: 8, ..engine.clone() });
    let profile = measured(&EngineOptions { samples: 160, error: 0.0, ..engine.clone() });
    let (rough, check) = (few.check.clone().unwrap(), profile.check.clone().unwrap());
    assert_eq!(check.subnets.len(), 20);
    assert!(check.median_error < 0.05 && check.median_error < 0.8 * rough.median_error, "{check:?} {rough:?}");
    for profile in [&few, &profile] {
        assert!(profile.table.iter().all(|entry| entry.estimated == (entry.samples == 0) && entry.ms >= 0.0));
    }
    assert!(few.table.iter().any(|entry| entry.estimated));
    let record = profile.engine.as_ref().unwrap();
    assert_eq!((record.name.as_str(), record.version.as_deref()), ("trtexec", Some("7")));
    // It may compute elsewhere.
    assert!(profile.hardware.is_none() && profile.conditions.as_ref().unwrap().cores.is_none());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("few.json");
    few.save(&path).unwrap();
    let loaded = DeviceProfile::load(&path).unwrap();
    assert_eq!((loaded.engine, loaded.table, loaded.check), (few.engine, few.table, few.check));
}

#[test]
fn the_measurement_ends_when_the_error_is_small_enough() {
    let space = preset("tiny").unwrap();
    let (options, engine) = options();
    let visits = |error: f64| {
        let mut calls = 0;
        let mut time = |subnet: &Subnet, _: &mut dyn FnMut() -> ControlFlow<()>| {
            calls += 1;
            Ok((truth(&space, subnet, 0), None))
        };
        let engine = EngineOptions { error, samples: 100, ..engine.clone() };
        let profile =
            measure_with(&space, &options, &engine, None, &mut time, &mut |_| ControlFlow::Continue(())).unwrap();
        (calls, profile.check.unwrap().median_error)
    };
    let ((few, error), (many, _)) = (visits(0.2), visits(0.0));
    // 20 of the check and 40 of the first group, twice, and the fixed network.
    assert_eq!((few, many), (2 * 60 + 10, 2 * 120 + 10 + 3 * 4));
    assert!(error < 0.2);
}

#[test]
fn a_stopped_measurement_goes_on_where_it_was() {
    let space = preset("tiny").unwrap();
    let (options, engine) = options();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine.unfinished");
    let visits = |engine: &EngineOptions, most: usize| {
        let mut calls = 0;
        let mut time = |subnet: &Subnet, _: &mut dyn FnMut() -> ControlFlow<()>| {
            if calls == most {
                return Err(Error::Measurement("broken".into()));
            }
            calls += 1;
            Ok((truth(&space, subnet, 0), None))
        };
        let result = measure_with(&space, &options, engine, Some(&path), &mut time, &mut |_| ControlFlow::Continue(()));
        (calls, result)
    };
    let (all, whole) = visits(&engine, usize::MAX);
    std::fs::remove_file(&path).unwrap();
    let (_, broken) = visits(&engine, 50);
    assert_eq!(broken.unwrap_err().to_string(), "measurement: broken");
    let (more, resumed) = visits(&engine, usize::MAX);
    // The fixed network is measured first again.
    assert!((all - 50..=all - 50 + 1).contains(&more), "{all} {more}");
    let (whole, resumed) = (whole.unwrap(), resumed.unwrap());
    assert_eq!(whole.table, resumed.table);
    // More networks are measured besides; another command measures from the beginning.
    assert!(visits(&EngineOptions { samples: 80, error: 0.0, ..engine.clone() }, usize::MAX).0 < all);
    let mut other = engine.clone();
    other.command.words.push("--flag".into());
    assert_eq!(visits(&other, usize::MAX).0, all);
    // So does one whose output is read otherwise: its times have another unit.
    let _ = visits(&engine, 50);
    let mut seconds = engine.clone();
    seconds.command.readers = vec![Reader::new("(.)", Unit::Seconds).unwrap()];
    assert_eq!(visits(&seconds, usize::MAX).0, all);
}

#[test]
fn times_of_two_versions_are_not_mixed() {
    let space = preset("tiny").unwrap();
    let (options, engine) = options();
    let mut calls = 0;
    let mut time = |_: &Subnet, _: &mut dyn FnMut() -> ControlFlow<()>| {
        calls += 1;
        Ok((1.0, Some(if calls < 9 { "7" } else { "8" }.into())))
    };
    let result = measure_with(&space, &options, &engine, None, &mut time, &mut |_| ControlFlow::Continue(()));
    let message = result.unwrap_err().to_string();
    assert!(message.contains("changed from 7 to 8"), "{message}");
}

#[test]
fn stopping_is_an_interruption_and_few_subnets_are_refused() {
    let space = preset("tiny").unwrap();
    let (options, engine) = options();
    let mut time = |_: &Subnet, control: &mut dyn FnMut() -> ControlFlow<()>| match control() {
        ControlFlow::Break(()) => Err(ofa_supernet::Error::Interrupted.into()),
        ControlFlow::Continue(()) => Ok((1.0, None)),
    };
    let stopped = measure_with(&space, &options, &engine, None, &mut time, &mut |_| ControlFlow::Break(()));
    assert!(stopped.unwrap_err().is_interrupted());
    let single = SearchSpace {
        resolutions: vec![16],
        depths: vec![1],
        kernel_sizes: vec![3],
        expand_ratios: vec![space.expand_ratios[0]],
        ..space
    };
    let refused = measure_with(&single, &options, &engine, None, &mut time, &mut |_| ControlFlow::Continue(()));
    assert!(refused.unwrap_err().to_string().contains("too few subnets"));
}

/// A model as each engine reads it.
#[test]
fn files_are_written_for_each_engine_and_number_type() {
    let space = preset("tiny").unwrap();
    let folder = tempfile::tempdir().unwrap();
    for number_type in [NumberType::F32, NumberType::Int8] {
        let (options, engine) = options();
        let options = ProfileOptions { number_type, ..options };
        let mut sizes = Vec::new();
        for preset in PRESETS {
            let command = preset.command(None, NumberType::F32).unwrap();
            let path = model_file::write(folder.path(), &space, &space.smallest(), &options, &command).unwrap();
            sizes.push(fs::metadata(path).unwrap().len());
        }
        assert!(sizes.iter().all(|size| *size > 10_000), "{sizes:?}");
        // Engines round at different places.
        sizes.sort_unstable();
        sizes.dedup();
        assert_eq!(sizes.len() > 1, number_type == NumberType::Int8, "{sizes:?}");
        let command = EngineCommand { folder: true, ..engine.command };
        let path = model_file::write(folder.path(), &space, &space.smallest(), &options, &command).unwrap();
        assert_eq!(crate::Model::load(path).unwrap().config().dtype, number_type);
    }
}
