//! Losses, gradients and weights that are NaN or infinite: steps are skipped up to a limit, then training stops; no
//! checkpoint holds them.

mod small_run;

use candle_core::{Device, Tensor};
use ofa_supernet::train::checkpoint::{Folder, Latest};
use ofa_supernet::train::finetune::{FinetuneOptions, finetune};
use ofa_supernet::train::{Control, Event, MetricsLine, Outcome, TrainConfig, train};
use ofa_supernet::{Error, Ranks, Supernet};
use small_run::{bits, config, data, space, untimed};
use std::collections::HashMap;

/// Weights that are finite, but whose products are not.
fn explode(net: &Supernet) -> Tensor {
    let stem = net.parameters().iter().find(|p| p.name == "stem.weight").unwrap();
    let before = stem.var.as_tensor().copy().unwrap();
    stem.var.set(&Tensor::full(1e30f32, stem.var.shape(), &Device::Cpu).unwrap()).unwrap();
    before
}

#[test]
fn steps_that_are_not_finite_are_left_out_up_to_a_limit() {
    // One bad step: whatever it touched is as before it.
    let folder = tempfile::tempdir().unwrap();
    let config = TrainConfig { skip_nonfinite: 2, ..config() };
    let mut net = Supernet::new(&space(), 10, 0).unwrap();
    let stem = net.parameters().iter().find(|p| p.name == "stem.weight").unwrap().var.clone();
    let mut good = None;
    let outcome = train(&mut net, &data(), &config, &Ranks::alone(), folder.path(), false, &mut |event| {
        match event {
            Event::Step(step) if step.step == 3 => {
                good = Some(stem.as_tensor().copy().unwrap());
                stem.set(&Tensor::full(1e30f32, stem.shape(), &Device::Cpu).unwrap()).unwrap();
            }
            Event::Skipped { reason, skipped: 1, allowed: 2 } => {
                assert!(reason.contains("'largest', step 3"), "{reason}");
                stem.set(good.as_ref().unwrap()).unwrap();
            }
            Event::Skipped { .. } => panic!("{event:?}"),
            _ => {}
        }
        Control::Continue
    });
    assert!(matches!(outcome, Ok(Outcome::Finished { steps: 15, .. })), "{outcome:?}");
    let skipped = untimed(folder.path()).into_iter().filter(|line| matches!(line, MetricsLine::Skipped { .. }));
    assert_eq!(skipped.count(), 1);
    // `load_state` refuses what is not finite: the running statistics came through unharmed.
    Supernet::new(&space(), 10, 1).unwrap().load_state(&net.state().unwrap()).unwrap();

    // More than allowed.
    let folder = tempfile::tempdir().unwrap();
    let mut net = Supernet::new(&space(), 10, 0).unwrap();
    explode(&net);
    let error = train(&mut net, &data(), &config, &Ranks::alone(), folder.path(), false, &mut |_| Control::Continue)
        .unwrap_err();
    assert!(error.to_string().contains("'largest', step 2"), "{error}");
    // The run can be resumed from the last good checkpoint, here the first one.
    let steps: Vec<usize> = Folder::of_run(folder.path(), 1).list().unwrap().iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [0]);
}

#[test]
fn a_skipped_step_changes_no_weight_momentum_average_or_running_statistic() {
    let folder = tempfile::tempdir().unwrap();
    let config = TrainConfig { skip_nonfinite: 1, checkpoint_steps: Some(1), keep_checkpoints: 99, ..config() };
    let mut net = Supernet::new(&space(), 10, 0).unwrap();
    let stem = net.parameters().iter().find(|p| p.name == "stem.weight").unwrap().var.clone();
    let error = train(&mut net, &data(), &config, &Ranks::alone(), folder.path(), false, &mut |event| {
        if matches!(event, Event::Step(step) if step.step == 3) {
            stem.set(&Tensor::full(1e30f32, stem.shape(), &Device::Cpu).unwrap()).unwrap();
        }
        Control::Continue
    });
    // The second bad step is one too many.
    assert!(matches!(error, Err(Error::NotFinite(_))), "{error:?}");
    let folder = Folder::of_run(folder.path(), 99);
    let [before, after] = [3, 4].map(|step| Folder::read(&folder.checkpoint_path(step)).unwrap());
    assert_eq!((before.progress.skipped, after.progress.skipped), (0, 1));
    assert!(before.weights.keys().any(|name| name.contains("running")), "{:?}", before.weights.keys());
    for (before, after) in
        [(&before.weights, &after.weights), (&before.momentum, &after.momentum), (&before.average, &after.average)]
    {
        assert!(!before.is_empty());
        assert_eq!(bits(before), bits(after));
    }
}

#[test]
fn weights_that_are_not_finite_never_reach_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let config = TrainConfig { checkpoint_steps: Some(1), ..config() };
    let mut net = Supernet::new(&space(), 10, 0).unwrap();
    let bias = net.parameters().iter().find(|p| p.name == "classifier.bias").unwrap().var.clone();
    let error = train(&mut net, &data(), &config, &Ranks::alone(), folder.path(), false, &mut |event| {
        if matches!(event, Event::Step(step) if step.step == 3) {
            bias.set(&Tensor::full(f32::NAN, 10, &Device::Cpu).unwrap()).unwrap();
        }
        Control::Continue
    });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("step 3") && error.contains("'classifier.bias'"), "{error}");
    let Latest { checkpoint, damaged, .. } = Folder::of_run(folder.path(), 1).latest().unwrap().unwrap();
    assert_eq!((checkpoint.progress.step, damaged.len()), (2, 0));
    net.load_state(&checkpoint.weights).unwrap();
}

#[test]
fn a_loss_that_is_not_finite_stops_before_the_weights_change() {
    let folder = tempfile::tempdir().unwrap();
    let mut net = Supernet::new(&space(), 10, 0).unwrap();
    explode(&net);
    let weights = |net: &Supernet| {
        let all: HashMap<String, Tensor> =
            net.parameters().iter().map(|p| (p.name.clone(), p.var.as_tensor().copy().unwrap())).collect();
        bits(&all)
    };
    let before = weights(&net);
    let error =
        train(&mut net, &data(), &config(), &Ranks::alone(), folder.path(), false, &mut |_: &Event| Control::Continue)
            .unwrap_err();
    assert!(matches!(error, Error::NotFinite(_)));
    let text = error.to_string();
    assert!(text.contains("'largest', step 0") && text.contains("subnet 'r1"), "{text}");
    assert_eq!(weights(&net), before);
}

#[test]
fn a_gradient_that_is_not_finite_stops_fine_tuning_before_the_weights_change() {
    let (data, config) = (data(), TrainConfig { clip_norm: Some(1.0), ..config() });
    let (net, teacher) = (Supernet::new(&space(), 10, 0).unwrap(), Supernet::new(&space(), 10, 0).unwrap());
    let subnet = space().largest();
    let options = FinetuneOptions { epochs: 0.1, learning_rate: 0.01, kd_ratio: 0.0 };
    let tune = |net: &Supernet, options: &FinetuneOptions| {
        finetune(net, &teacher, &subnet, &data, &config, options, &mut |_| Control::Continue)
    };
    for kd_ratio in [f64::NAN, -1.0] {
        let error = tune(&net, &FinetuneOptions { kd_ratio, ..options }).unwrap_err().to_string();
        assert!(error.contains("kd_ratio"), "{error}");
    }
    // The loss is finite, but not what goes back through the network.
    let classifier = net.parameters().iter().find(|p| p.name == "classifier.weight").unwrap();
    let signs = Tensor::arange(0f32, 10.0, &Device::Cpu).unwrap().affine(1.0, -4.5).unwrap().sign().unwrap();
    let large = (signs * 1e37).unwrap().unsqueeze(1).unwrap().broadcast_as(classifier.var.shape()).unwrap();
    classifier.var.set(&large.contiguous().unwrap()).unwrap();
    // Batch norm divides by what is left of the variance.
    let feature = net.parameters().iter().find(|p| p.name == "feature.weight").unwrap();
    feature.var.set(&(feature.var.as_detached_tensor() * 1e-9).unwrap()).unwrap();
    let state = || bits(&net.state().unwrap().into_iter().filter(|(name, _)| !name.contains("running")).collect());
    let before = state();
    let error = tune(&net, &options).unwrap_err();
    assert!(matches!(error, Error::NotFinite(_)) && error.to_string().contains("gradient's norm"), "{error}");
    assert_eq!(state(), before);
}
