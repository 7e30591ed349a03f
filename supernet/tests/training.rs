//! The training loop on a small space and the built-in images: what a step computes, resuming, failures.

mod small_run;

use candle_core::{Device, Tensor, Var};
use ofa_supernet::data::{Augmentation, Flip, Mix, Mixing};
use ofa_supernet::network::{Gradients, Mode, ParameterKind, Tape};
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::train::StepReport;
use ofa_supernet::train::checkpoint::{Folder, read_supernet};
use ofa_supernet::train::optimizer::Optimizer;
use ofa_supernet::train::sampling::{candidates_of, resolution_of, subnet_of};
use ofa_supernet::train::step::{StepInput, train_step};
use ofa_supernet::train::{
    Control, Decay, Divergence, Event, MetricsLine, Outcome, Sampling, Schedule, StageImages, Taught, Teacher,
    TrainConfig, loss, train,
};
use ofa_supernet::{Ranks, Subnet, Supernet};
use small_run::{bits, config, data, space, untimed};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// Trains until step `stop` (or the end), from a network with other initial weights than a resumed one would need.
fn run(folder: &Path, config: &TrainConfig, resume: bool, stop: Option<usize>) -> ofa_supernet::Result<Outcome> {
    let seed = if resume { 99 } else { config.seed };
    let mut net = Supernet::new(&space(), 10, seed).unwrap();
    train(&mut net, &data(), config, &Ranks::alone(), folder, resume, &mut |event| match event {
        Event::Step(step) if Some(step.step) == stop => Control::Stop,
        _ => Control::Continue,
    })
}

#[test]
fn a_run_resumed_again_and_again_equals_one_that_never_stopped() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let config = config();
    let Outcome::Finished { supernet, probes, steps, .. } = run(whole.path(), &config, false, None).unwrap() else {
        panic!("not finished")
    };
    assert_eq!(steps, 15);
    assert_eq!(probes.iter().map(|p| p.name).collect::<Vec<_>>(), ["smallest", "middle", "largest"]);

    // In the first stage; at its last step; at an epoch's end, where probes are due; in the last stage.
    for (index, stop) in [2, 6, 10, 13].into_iter().enumerate() {
        let outcome = run(parts.path(), &config, index > 0, Some(stop)).unwrap();
        assert!(matches!(outcome, Outcome::Interrupted { step, .. } if step == stop), "{outcome:?}");
        // Lines after the checkpoint, as a killed run leaves them, are dropped.
        let mut file = std::fs::OpenOptions::new().append(true).open(parts.path().join("metrics.jsonl")).unwrap();
        file.write_all(b"{\"type\":\"finished\",\"step\":1,\"seconds\":0.0}\n{\"type\"").unwrap();
    }
    let Outcome::Finished { supernet: resumed, probes: resumed_probes, .. } =
        run(parts.path(), &config, true, None).unwrap()
    else {
        panic!("not finished")
    };
    let (expected, note) = read_supernet(&supernet).unwrap();
    let (found, resumed_note) = read_supernet(&resumed).unwrap();
    assert_eq!(bits(&found), bits(&expected));
    assert_eq!((resumed_note, resumed_probes), (note, probes));
    assert_eq!(untimed(parts.path()), untimed(whole.path()));
    // The last ones, and the best one where it is none of them.
    assert!(Folder::of_run(parts.path(), 9).list().unwrap().len() <= config.keep_checkpoints + 1);

    // Resuming a finished run trains no further.
    let again = run(parts.path(), &config, true, None).unwrap();
    assert!(matches!(again, Outcome::Finished { steps: 15, .. }), "{again:?}");
    assert_eq!(bits(&read_supernet(&resumed).unwrap().0), bits(&expected));
    assert_eq!(untimed(parts.path()), untimed(whole.path()));
}

/// `config` with one schedule over all stages, an in-place teacher and a loss of its own in the last one.
fn with_one_schedule(mut config: TrainConfig) -> TrainConfig {
    config.schedule = Some(Schedule { learning_rate: 0.05, warmup_epochs: 0.5, decay: Decay::Linear });
    for stage in &mut config.stages {
        (stage.learning_rate, stage.warmup_epochs) = (None, None);
    }
    let last = &mut config.stages[2];
    (last.subnets_per_step, last.sampling, last.teacher) = (3, Sampling::Sandwich, Teacher::InPlace);
    last.taught = Taught { labels: 0.0, ramp_epochs: 0.5, divergence: Divergence::Alpha };
    (last.label_smoothing, last.images) = (Some(0.0), Some(StageImages { resolutions: vec![14], weights: vec![] }));
    let mix = Some(Mix { method: Mixing::Ricap, beta: 0.5, probability: 0.7 });
    last.augmentation = Some(Augmentation { flip: Flip::Alternating, mix, ..Augmentation::default() });
    config
}

#[test]
fn a_run_with_one_schedule_is_resumed_to_the_bit() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let config = with_one_schedule(config());
    let Outcome::Finished { supernet, .. } = run(whole.path(), &config, false, None).unwrap() else { panic!() };
    for (index, stop) in [3, 6, 8, 11, 12].into_iter().enumerate() {
        run(parts.path(), &config, index > 0, Some(stop)).unwrap();
    }
    let Outcome::Finished { supernet: resumed, .. } = run(parts.path(), &config, true, None).unwrap() else { panic!() };
    assert_eq!(bits(&read_supernet(&resumed).unwrap().0), bits(&read_supernet(&supernet).unwrap().0));
    assert_eq!(untimed(parts.path()), untimed(whole.path()));
}

/// The run is as one with the new epochs from the step at which it was resumed.
#[test]
fn the_epochs_of_what_is_left_may_change_and_the_learning_rate_follows() {
    for config in [config(), with_one_schedule(config())] {
        let folder = tempfile::tempdir().unwrap();
        run(folder.path(), &config, false, Some(9)).unwrap();
        let mut changed = config.clone();
        changed.stages[1].epochs = 0.5;
        let error = run(folder.path(), &changed, true, None).unwrap_err().to_string();
        assert!(error.contains("step 3 of stage 2") && error.contains("give the stage 0.75 epochs or more"), "{error}");
        changed.stages[1].epochs = 1.0;
        changed.stages[1].kd_ratio = 0.5;
        let error = run(folder.path(), &changed, true, None).unwrap_err().to_string();
        assert!(error.contains("stage 2 differs, but it has begun and only its epochs may change"), "{error}");
        changed.stages[1].kd_ratio = 1.0;
        changed.stages[2].epochs = 0.5;

        let rate = |config: &TrainConfig, step| config.learning_rate(&config.plan(&space(), 64), 1, step);
        let (mut net, mut told, mut found) = (Supernet::new(&space(), 10, 99).unwrap(), None, Vec::new());
        let outcome = train(&mut net, &data(), &changed, &Ranks::alone(), folder.path(), true, &mut |event| {
            match event {
                Event::Resumed { rates, .. } => told = *rates,
                Event::Step(step) => found.push(step.learning_rate),
                _ => {}
            }
            Control::Continue
        });
        assert!(matches!(outcome.unwrap(), Outcome::Finished { steps: 12, .. }));
        assert_eq!(told, Some((rate(&config, 3), rate(&changed, 3))));
        assert_eq!((found.len(), found[0]), (3, rate(&changed, 3)));
    }
}

/// The stage under way may end with the steps that are done; its last steps are its own in the metrics.
#[test]
fn a_stage_cut_to_the_steps_that_are_done_keeps_their_line() {
    let (folder, config) = (tempfile::tempdir().unwrap(), config());
    // Three steps after the last line of metrics.
    run(folder.path(), &config, false, Some(9)).unwrap();
    let mut changed = config.clone();
    changed.stages[1].epochs = 0.75;
    assert!(matches!(run(folder.path(), &changed, true, None).unwrap(), Outcome::Finished { steps: 13, .. }));
    let lines = untimed(folder.path()).into_iter().filter_map(|line| match line {
        MetricsLine::Step { step, stage, .. } => Some((step, stage)),
        _ => None,
    });
    let expected = [(4, "largest"), (6, "largest"), (9, "depth"), (13, "width")];
    assert_eq!(lines.collect::<Vec<_>>(), expected.map(|(step, stage)| (step, stage.to_string())));
}

/// Nothing starts anew between stages: two like ones are one that is as long as both.
#[test]
fn one_schedule_keeps_momentum_and_average_between_stages() {
    let mut whole = config();
    whole.stages.truncate(1);
    whole.stages[0].epochs = 2.0;
    whole.schedule = Some(Schedule { learning_rate: 0.05, warmup_epochs: 0.5, decay: Decay::Cosine });
    (whole.stages[0].learning_rate, whole.stages[0].warmup_epochs) = (None, None);
    let mut halves = whole.clone();
    halves.stages[0].epochs = 1.0;
    halves.stages.push(halves.stages[0].clone());
    let weights = |config: &TrainConfig| {
        let folder = tempfile::tempdir().unwrap();
        let Outcome::Finished { supernet, .. } = run(folder.path(), config, false, None).unwrap() else { panic!() };
        bits(&read_supernet(&supernet).unwrap().0)
    };
    assert_eq!(weights(&halves), weights(&whole));
    let own = |mut config: TrainConfig| {
        config.schedule = None;
        config.stages.iter_mut().for_each(|stage| stage.learning_rate = Some(0.05));
        config
    };
    assert_ne!(weights(&own(halves)), weights(&own(whole)));
}

/// Stopping where a stage begins, after probes and after checkpoints is as good as between two steps.
#[test]
fn a_run_stopped_at_every_kind_of_event_equals_one_that_never_stopped() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut config = config();
    (config.checkpoint_steps, config.keep_checkpoints) = (Some(2), 1);
    let Outcome::Finished { supernet, .. } = run(whole.path(), &config, false, None).unwrap() else { panic!() };
    let (mut kinds, mut sessions) = (Vec::new(), 0);
    let resumed = loop {
        let mut net = Supernet::new(&space(), 10, config.seed).unwrap();
        let kind = ["Step", "Probes", "Checkpoint", "Stage"].get(sessions).unwrap_or(&"Step");
        let mut steps = 0;
        let outcome = train(&mut net, &data(), &config, &Ranks::alone(), parts.path(), sessions > 0, &mut |event| {
            steps += usize::from(matches!(event, Event::Step(_)));
            if steps == 0 || !format!("{event:?}").starts_with(kind) {
                return Control::Continue;
            }
            if kinds.last() != Some(kind) {
                kinds.push(kind);
            }
            Control::Stop
        });
        sessions += 1;
        if let Outcome::Finished { supernet, .. } = outcome.unwrap() {
            break supernet;
        }
    };
    assert_eq!(kinds, ["Step", "Probes", "Checkpoint", "Stage", "Step"]);
    assert_eq!(bits(&read_supernet(&resumed).unwrap().0), bits(&read_supernet(&supernet).unwrap().0));
    assert_eq!(untimed(parts.path()), untimed(whole.path()));
}

#[test]
fn the_best_checkpoint_is_kept_besides_the_newest() {
    let folder = tempfile::tempdir().unwrap();
    let config = TrainConfig { keep_checkpoints: 1, ..config() };
    run(folder.path(), &config, false, None).unwrap();
    let mut means: Vec<(usize, f64)> = Vec::new();
    for line in untimed(folder.path()) {
        if let MetricsLine::Probe { step, accuracy, .. } = line {
            match means.last_mut().filter(|(of, _)| *of == step) {
                Some((_, sum)) => *sum += accuracy,
                None => means.push((step, accuracy)),
            }
        }
    }
    let best = means.iter().fold((0, f64::MIN), |best, &mean| if mean.1 > best.1 { mean } else { best }).0;
    let mut expected = vec![best, 15];
    expected.dedup();
    let kept: Vec<usize> = Folder::of_run(folder.path(), 1).list().unwrap().iter().map(|(step, _)| *step).collect();
    assert_eq!(kept, expected, "{means:?}");
}

#[test]
fn a_checkpoint_is_written_once_its_time_has_come() {
    let written = |checkpoint_minutes: f64| {
        let folder = tempfile::tempdir().unwrap();
        let mut config = TrainConfig { checkpoint_minutes, keep_checkpoints: 99, ..config() };
        config.probe.every_epochs = 0;
        let mut net = Supernet::new(&space(), 10, config.seed).unwrap();
        let (mut count, mut validated, mut wait) = (0, None, Duration::ZERO);
        train(&mut net, &data(), &config, &Ranks::alone(), folder.path(), false, &mut |event| {
            match event {
                Event::Probes { .. } => validated = Some(Instant::now()),
                Event::Checkpoint { .. } => {
                    count += 1;
                    wait = validated.take().map_or(Duration::ZERO, |validated: Instant| 51 * validated.elapsed());
                }
                // Checkpoints by time are at least fifty times as far apart as the last one took to write.
                Event::Step(_) => std::thread::sleep(std::mem::take(&mut wait)),
                _ => {}
            }
            Control::Continue
        })
        .unwrap();
        count
    };
    // Whatever the time, at the beginning and at the end of each of three stages.
    assert_eq!(written(1e6), 4);
    assert!(written(1e-6) >= 6);
}

#[test]
fn run_folders_are_neither_mixed_up_nor_resumed_with_other_settings() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config();
    let error = run(folder.path(), &config, true, None).unwrap_err().to_string();
    assert!(error.contains("no checkpoint to resume from"), "{error}");
    run(folder.path(), &config, false, Some(1)).unwrap();
    let error = run(folder.path(), &config, false, None).unwrap_err().to_string();
    assert!(error.contains("--resume"), "{error}");
    config.probe.every_epochs = 7;
    config.momentum = 0.8;
    let error = run(folder.path(), &config, true, None).unwrap_err().to_string();
    assert!(error.contains("differs in momentum"), "{error}");
}

/// One step from fresh momentum must be `w -= rate (1 + momentum) (sum of the subnets' gradients + decay w)`.
#[test]
fn a_step_sums_the_gradients_of_its_subnets_and_learns_from_the_teacher() {
    check_step(config(), Teacher::Frozen);
    let mut config = config();
    let stage = &mut config.stages[2];
    (stage.subnets_per_step, stage.sampling, stage.teacher) = (3, Sampling::Sandwich, Teacher::InPlace);
    check_step(config.clone(), Teacher::InPlace);
    let taught = &mut config.stages[2].taught;
    (taught.labels, taught.ramp_epochs) = (0.5, 0.5);
    check_step(config, Teacher::InPlace);
}

#[test]
fn a_step_has_the_same_bits_however_many_subnets_are_computed_at_one_time() {
    let (space, data) = (space(), data());
    let mut config = config();
    config.stages[2].subnets_per_step = 5;
    let mut in_place = config.clone();
    (in_place.stages[2].sampling, in_place.stages[2].teacher) = (Sampling::Sandwich, Teacher::InPlace);
    let threads = |threads: usize| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    for config in [config, in_place] {
        let steps = |subnets_at_once: usize| {
            let config = TrainConfig { subnets_at_once, ..config.clone() };
            let (net, teacher) = (Supernet::new(&space, 10, 1).unwrap(), Supernet::new(&space, 10, 2).unwrap());
            let mut optimizer = Optimizer::sgd(config.momentum, config.weight_decay, net.parameters().len());
            let (stage, choices) = (&config.stages[2], config.stages[2].choices(&space));
            let mut reports = Vec::new();
            for step in 0..4 {
                let side = resolution_of(stage, &choices, config.seed, step);
                let batch = data.evaluation_batch(&data.train, &(0..13).collect::<Vec<_>>(), side).unwrap();
                let images = Tensor::from_vec(batch.images, (13, side, side, 3), &Device::Cpu).unwrap();
                let (images, labels) = (&images, &batch.labels[..]);
                let (ranks, learning_rate, ramp, batch) = (&Ranks::alone(), 0.1, 1.0, labels.len());
                let (config, choices) = (&config, &choices);
                let input = StepInput {
                    config,
                    stage,
                    choices,
                    step,
                    ramp,
                    learning_rate,
                    images,
                    labels,
                    targets: None,
                    ranks,
                    batch,
                };
                let report = train_step(&net, Some(&teacher), &mut optimizer, &input).unwrap();
                reports.push((report.loss.to_bits(), report.gradient_norm.to_bits(), report.accuracy.to_bits()));
            }
            (reports, bits(&net.state().unwrap()))
        };
        let expected = threads(3).install(|| steps(1));
        for at_once in [2, 3, 64] {
            assert_eq!(threads(3).install(|| steps(at_once)), expected, "{at_once} at once");
        }
    }
}

/// Of candidates of like work the one with the lowest or the highest loss is trained.
#[test]
fn attentive_sampling_trains_the_best_or_the_worst_candidate() {
    let (space, data) = (space(), data());
    let mut config = TrainConfig { dropout: 0.0, ..config() };
    let resolution = space.resolutions[0];
    let batch = data.evaluation_batch(&data.train, &(0..16).collect::<Vec<_>>(), resolution).unwrap();
    let images = Tensor::from_vec(batch.images, (16, resolution, resolution, 3), &Device::Cpu).unwrap();
    let targets = loss::smoothed_targets(&batch.labels, 10, config.label_smoothing, &Device::Cpu).unwrap();
    for (sampling, sign) in [(Sampling::BestUp, 1.0), (Sampling::WorstUp, -1.0)] {
        let stage = &mut config.stages[2];
        (stage.sampling, stage.subnets_per_step, stage.candidates, stage.kd_ratio) = (sampling, 3, Some(4), 0.0);
        let (stage, config) = (config.stages[2].clone(), config.clone());
        let choices = stage.choices(&space);
        for step in 0..4 {
            let net = Supernet::new(&space, 10, 1).unwrap();
            let candidates = candidates_of(&stage, &choices, config.seed, step, 2, resolution).unwrap();
            let losses = candidates.iter().map(|subnet| {
                let logits = net.forward(&images, subnet, Mode::BatchStatistics).unwrap();
                let loss = loss::cross_entropy(&loss::log_softmax(&logits).unwrap(), &targets).unwrap();
                sign * loss.to_scalar::<f32>().unwrap()
            });
            let losses: Vec<f32> = losses.collect();
            let least = losses.iter().copied().fold(f32::INFINITY, f32::min);
            let expected = &candidates[losses.iter().position(|&loss| loss == least).unwrap()];
            let mut optimizer = Optimizer::sgd(config.momentum, config.weight_decay, net.parameters().len());
            let (labels, images) = (&batch.labels[..], &images);
            let input = StepInput {
                config: &config,
                stage: &stage,
                choices: &choices,
                step,
                ramp: 1.0,
                learning_rate: 0.1,
                images,
                labels,
                targets: None,
                ranks: &Ranks::alone(),
                batch: labels.len(),
            };
            let report = train_step(&net, None, &mut optimizer, &input).unwrap();
            assert_eq!(report.subnets[2], *expected, "{sampling:?}, step {step}: {losses:?}");
        }
    }
}

/// The loss is made of what is reported, where labels and ramp have no weights of their own.
fn check_loss(report: &StepReport, in_place: bool, weight: f64) {
    let distilled = if in_place { 2.0 / 3.0 } else { 1.0 };
    let distillation = 0.5 * distilled * report.distillation.unwrap();
    let sum = report.cross_entropy + distillation;
    assert_eq!((report.loss - sum).abs() < 1e-5, weight == 1.0, "{report:?}");
}

fn check_step(mut config: TrainConfig, kind: Teacher) {
    let (space, data) = (space(), data());
    (config.dropout, config.clip_norm, config.weight_decay) = (0.0, None, 1e-2);
    let stage = &config.stages[2];
    let choices = stage.choices(&space);
    let (net, twin, teacher) = (
        Supernet::new(&space, 10, 1).unwrap(),
        Supernet::new(&space, 10, 1).unwrap(),
        Supernet::new(&space, 10, 2).unwrap(),
    );
    let (step, rate) = (17, 0.1);
    let (labels, ramp) = (stage.taught.labels, if stage.taught.ramp_epochs > 0.0 { 0.25 } else { 1.0 });
    let resolution = resolution_of(stage, &choices, config.seed, step);
    let batch = data.evaluation_batch(&data.train, &(0..16).collect::<Vec<_>>(), resolution).unwrap();
    let images = Tensor::from_vec(batch.images, (16, resolution, resolution, 3), &Device::Cpu).unwrap();
    let mut optimizer = Optimizer::sgd(config.momentum, config.weight_decay, net.parameters().len());
    let input = StepInput {
        config: &config,
        stage,
        choices: &choices,
        step,
        ramp,
        learning_rate: rate,
        images: &images,
        labels: &batch.labels,
        targets: None,
        ranks: &Ranks::alone(),
        batch: batch.labels.len(),
    };
    let in_place = kind == Teacher::InPlace;
    let teacher = (!in_place).then_some(&teacher);
    let report = train_step(&net, teacher, &mut optimizer, &input).unwrap();
    check_loss(&report, in_place, labels * ramp);
    assert_eq!(report.subnets.len(), stage.subnets_per_step);
    if !in_place {
        assert!(train_step(&twin, None, &mut optimizer, &input).unwrap_err().to_string().contains("no teacher"));
    }

    let largest = Subnet { resolution, ..space.largest() };
    let soft = teacher.unwrap_or(&twin).forward(&images, &largest, Mode::BatchStatistics).unwrap();
    let soft = loss::soft_targets(&soft).unwrap();
    let hard = loss::smoothed_targets(&batch.labels, 10, 0.1, &Device::Cpu).unwrap();
    let mut sums = Gradients::none(net.parameters().len());
    for index in 0..stage.subnets_per_step {
        let subnet = subnet_of(stage, &choices, config.seed, step, index, resolution);
        assert_eq!(subnet, report.subnets[index]);
        let mut rng = generator(0, Stream::Dropout, &[]);
        let mut tape = Tape::default();
        let mode = Mode::Train { dropout: 0.0, rng: &mut rng, first: 0, drop_path: None, tape: &mut tape };
        let logits = Var::from_tensor(&twin.forward(&images, &subnet, mode).unwrap()).unwrap();
        let log_p = loss::log_softmax(&logits).unwrap();
        let mut total = loss::cross_entropy(&log_p, &hard).unwrap();
        if in_place && index == 0 {
            assert_eq!(subnet, largest);
        } else {
            let taught = (loss::cross_entropy(&log_p, &soft).unwrap() * 0.5).unwrap();
            total = (((total * labels).unwrap() + taught).unwrap() * ramp).unwrap();
        }
        tape.backward(loss::gradient_at(&logits, &total).unwrap(), &mut sums).unwrap();
    }
    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for ((sum, old), new) in sums.tensors().iter().zip(twin.parameters()).zip(net.parameters()) {
        let (before, after) = (values(old.var.as_tensor()), values(new.var.as_tensor()));
        let Some(sum) = sum else {
            assert_eq!(before, after, "{} took no part", old.name);
            continue;
        };
        let decay = if old.kind == ParameterKind::Vector { 0.0 } else { 1e-2 };
        for ((before, after), gradient) in before.iter().zip(&after).zip(values(sum)) {
            let expected = before - rate as f32 * 1.9 * (gradient + decay * before);
            assert!((after - expected).abs() < 1e-5, "{}: {after} {expected}", old.name);
        }
    }
}

#[test]
fn training_learns() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config();
    config.stages.truncate(1);
    (config.dropout, config.ema, config.clip_norm) = (0.0, None, None);
    (config.stages[0].epochs, config.log_every) = (30.0, 20);
    config.probe.every_epochs = 0;
    run(folder.path(), &config, false, None).unwrap();
    let losses: Vec<f64> = untimed(folder.path())
        .iter()
        .filter_map(|line| if let MetricsLine::Step { loss, .. } = line { Some(*loss) } else { None })
        .collect();
    assert_eq!(losses.len(), 6);
    assert!(losses[5] < losses[0] - 0.3, "{losses:?}");
}
