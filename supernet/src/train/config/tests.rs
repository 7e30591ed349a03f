//! Checks of training configurations.

use super::*;
use crate::space::preset;
use crate::train::stage_images::StageImages;
use crate::train::taught::Teacher;

fn tiny() -> (SearchSpace, TrainConfig) {
    let space = preset("tiny").unwrap();
    let config = TrainConfig::preset("tiny", &space).unwrap();
    (space, config)
}

#[test]
fn survives_toml_and_names_unknown_keys() {
    let (_, mut config) = tiny();
    config.ema = Some(0.99);
    let text = toml::to_string(&config).unwrap();
    assert_eq!(TrainConfig::from_toml(&text).unwrap(), config);
    let error = TrainConfig::from_toml("momentun = 0.9").unwrap_err().to_string();
    assert!(error.contains("momentun"), "{error}");
    let error = TrainConfig::from_toml("[[stages]]\nname='a'\nepochs=1\nlearning_rate=1.0\nkernels=[3]").unwrap_err();
    assert!(error.to_string().contains("kernels"), "{error}");
}

#[test]
fn faults_are_named_with_key_and_allowed_values() {
    let (space, good) = tiny();
    good.validate(&space).unwrap();
    let check = |change: &dyn Fn(&mut TrainConfig), expected: &[&str]| {
        let mut config = good.clone();
        change(&mut config);
        let error = config.validate(&space).unwrap_err().to_string();
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
    };
    check(&|c| c.stages.clear(), &["no stages", "preset"]);
    check(&|c| c.momentum = 1.0, &["momentum = 1", "below 1"]);
    check(&|c| c.dropout = f64::NAN, &["dropout"]);
    check(&|c| c.muon = Some(Muon::default()), &["[train.muon]", "optimizer = \"muon\""]);
    check(&|c| c.adamw = Some(AdamW::default()), &["[train.adamw]", "optimizer = \"adamw\""]);
    let muon =
        |muon: Muon| move |c: &mut TrainConfig| (c.optimizer, c.muon) = (OptimizerKind::Muon, Some(muon.clone()));
    check(&muon(Muon { momentum: 1.0, ..Muon::default() }), &["muon.momentum = 1"]);
    check(&muon(Muon { rate_factor: 0.0, ..Muon::default() }), &["muon.rate_factor = 0"]);
    let adamw =
        |adamw: AdamW| move |c: &mut TrainConfig| (c.optimizer, c.adamw) = (OptimizerKind::AdamW, Some(adamw.clone()));
    check(&adamw(AdamW { betas: [0.9, 1.0], ..AdamW::default() }), &["adamw.betas holds 1"]);
    check(&adamw(AdamW { epsilon: 0.0, ..AdamW::default() }), &["adamw.epsilon = 0"]);
    check(&|c| c.drop_path = 1.0, &["drop_path = 1", "below 1"]);
    check(&|c| c.batch = 0, &["batch = 0"]);
    check(&|c| c.probe.every_epochs = usize::MAX, &["probe.every_epochs = 18446744073709551615", "at most"]);
    check(&|c| c.probe.recalibration_images = usize::MAX, &["probe.recalibration_images", "at most"]);
    check(&|c| c.keep_checkpoints = usize::MAX, &["keep_checkpoints", "at most"]);
    check(&|c| c.stages[0].learning_rate = Some(1e300), &["learning_rate = 1", "at most"]);
    check(&|c| c.stages[1].kd_ratio = 1e300, &["kd_ratio = 1", "must lie between"]);
    check(&|c| c.clip_norm = Some(0.0), &["clip_norm"]);
    check(&|c| c.seed = u64::MAX, &["seed", "2^63"]);
    check(&|c| c.stages[0].kd_ratio = 1.0, &["largest", "kd_ratio must be 0"]);
    check(&|c| c.stages[1].teacher = Teacher::InPlace, &["kernel", "sandwich"]);
    check(&|c| c.stages[1].narrowing.kernel_sizes.push(9), &["kernel", "holds 9", "3, 5"]);
    check(&|c| c.stages[1].narrowing.kernel_sizes.push(3), &["3 twice"]);
    check(&|c| c.stages[1].warmup_epochs = Some(1e3), &["warmup_epochs = 1000"]);
    check(&|c| c.stages[0].taught.labels = 0.0, &["largest", "taught", "kd_ratio"]);
    check(&|c| c.stages[1].taught.labels = -1.0, &["taught.labels = -1"]);
    check(&|c| c.stages[1].taught.ramp_epochs = 1e3, &["taught.ramp_epochs = 1000"]);
    check(&|c| c.stages[1].taught.ramp_epochs = 0.1, &["taught.ramp_epochs", "in_place"]);
    check(&|c| c.stages[1].label_smoothing = Some(1.0), &["kernel", "label_smoothing = 1"]);
    let images = |resolutions: &[usize], weights: &[f64]| {
        Some(StageImages { resolutions: resolutions.to_vec(), weights: weights.to_vec() })
    };
    check(&|c| c.stages[0].images = images(&[], &[]), &["largest", "images.resolutions is empty"]);
    check(&|c| c.stages[0].images = images(&[20, 40], &[]), &["holds 40", "at most the space's 32"]);
    check(&|c| c.stages[0].images = images(&[20], &[1.0, 1.0]), &["2 numbers for 1"]);
    check(&|c| c.stages[0].images = images(&[20, 24], &[1.0, 0.0]), &["images.weights holds 0"]);
    let jitter = Augmentation { colour_jitter: 2.0, ..Augmentation::default() };
    check(&|c| c.stages[0].augmentation = Some(jitter.clone()), &["largest", "colour_jitter is 2"]);
    check(&|c| c.stages[1].sort_channels = Some(3), &["sort_channels = 3", "2 width stages"]);
    check(&|c| c.stages[0].sort_channels = Some(2), &["must be 1"]);
}

#[test]
fn a_stage_has_a_schedule_of_its_own_or_all_share_one() {
    let (space, mut config) = tiny();
    config.stages[1].learning_rate = None;
    let error = config.validate(&space).unwrap_err().to_string();
    assert!(error.contains("'kernel': learning_rate is missing") && error.contains("[train.schedule]"), "{error}");
    let schedule = Schedule { learning_rate: 0.4, warmup_epochs: 1.0, decay: Decay::Linear };
    config.schedule = Some(schedule);
    let error = config.validate(&space).unwrap_err().to_string();
    assert!(error.contains("'largest': learning_rate has no use"), "{error}");
    config.stages.iter_mut().for_each(|stage| stage.learning_rate = None);
    let error = config.validate(&space).unwrap_err().to_string();
    assert!(error.contains("'largest': warmup_epochs has no use"), "{error}");
    config.stages.iter_mut().for_each(|stage| stage.warmup_epochs = None);
    config.validate(&space).unwrap();
    // 4 steps an epoch; 2 epochs, then 1.
    config.stages.truncate(2);
    (config.batch, config.stages[0].epochs, config.stages[1].epochs) = (10, 2.0, 1.0);
    let plan = config.plan(&space, 40);
    let rates = [(0, 0), (0, 3), (0, 4), (0, 7), (1, 0), (1, 2)];
    let rates = rates.map(|(stage, step)| config.learning_rate(&plan, stage, step));
    for (rate, expected) in rates.iter().zip([0.1, 0.4, 0.4, 0.25, 0.2, 0.1]) {
        assert!((rate - expected).abs() < 1e-12, "{rates:?}");
    }
    // A warm-up of 2.5 epochs: 8 steps, and half of an epoch whose two steps have larger batches.
    let mut larger = config.clone();
    (larger.stages[1].batch, larger.schedule.as_mut().unwrap().warmup_epochs) = (Some(20), 2.5);
    let plan = larger.plan(&space, 40);
    let rates = [(0, 0), (0, 7), (1, 0), (1, 1)].map(|(stage, step)| larger.learning_rate(&plan, stage, step));
    for (rate, expected) in rates.iter().zip([0.4 / 9.0, 0.4 * 8.0 / 9.0, 0.4, 0.4]) {
        assert!((rate - expected).abs() < 1e-12, "{rates:?}");
    }
    let text = toml::to_string(&config).unwrap();
    assert_eq!(TrainConfig::from_toml(&text).unwrap(), config);
    let stretched = config.with_epochs(6.0);
    assert_eq!(stretched.schedule.unwrap().warmup_epochs, 2.0);
}

#[test]
fn plans_steps_epochs_and_warm_up() {
    let (space, mut config) = tiny();
    config.batch = 10;
    config.stages.truncate(2);
    (config.stages[0].epochs, config.stages[0].warmup_epochs) = (1.5, Some(0.5));
    (config.stages[1].epochs, config.stages[1].warmup_epochs, config.stages[1].batch) = (2.0, None, Some(500));
    let plan = config.plan(&space, 47);
    let steps = |p: &StagePlan| (p.batch, p.steps_per_epoch, p.steps, p.warmup_steps, p.first_epoch, p.first_step);
    assert_eq!(steps(&plan[0]), (10, 4, 6, 2, 0, 0));
    // Fewer images than a batch: all of them are the batch.
    assert_eq!(steps(&plan[1]), (47, 1, 2, 0, 2, 6));
    assert_eq!(plan[0].work, 30.0);
    assert_eq!(plan[1].work, 4.0 * 47.0);
}
