//! The whole network: fused kernels against the f64 composite, elastic slices, channel sorting, state.

mod kinds;

use candle_core::{DType, Device, Tensor};
use ofa_supernet::data::{DataOptions, Dataset};
use ofa_supernet::network::{Gradients, Mode, Statistics, StatisticsCollector, Tape};
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::space::{Activation, Ratio};
use ofa_supernet::train::EvaluationSet;
use ofa_supernet::train::validation::{accuracies_on, accuracy_on, recalibrate_on};
use ofa_supernet::{SearchSpace, Subnet, Supernet};
use rand::Rng;
use std::ops::ControlFlow;

fn space() -> SearchSpace {
    let mut space = SearchSpace::named("tiny").unwrap();
    space.kernel_sizes = vec![3, 5, 7];
    space
}

/// As ProxylessNAS: ReLU6, no squeeze-excite, no hidden layer, a last stage that is never deeper than one block.
fn proxyless() -> SearchSpace {
    let mut space = space();
    for stage in &mut space.stages {
        (stage.activation, stage.squeeze_excite) = (Activation::Relu6, false);
    }
    space.stages[1].depths = vec![1];
    let head = space.head.as_mut().unwrap();
    (head.hidden_channels, head.activation) = (None, Activation::Relu6);
    space.batch_norm_epsilon = 1e-3;
    space
}

/// Bottlenecks at odd sizes: an average pool over incomplete windows, and a max pool.
fn resnet() -> SearchSpace {
    let mut space = SearchSpace::named("resnet-tiny").unwrap();
    space.width_multipliers = [0.5, 0.75, 1.0].map(|w| Ratio::try_from(w).unwrap()).to_vec();
    space
}

/// Shortcuts of pools and projections, at odd sizes where the images are.
fn attentive() -> SearchSpace {
    SearchSpace::named("attentive-tiny").unwrap()
}

/// Blocks of kinds that the crate does not know.
fn custom() -> SearchSpace {
    kinds::register();
    let mut space = space();
    space.stages[0].block = Some("fused".into());
    space.stages[1].block = Some("winding".into());
    space
}

#[test]
fn optimizers_tell_weights_of_custom_kinds_apart_by_their_place_in_the_graph() {
    use ofa_supernet::network::ParameterKind::{self, Depthwise, NormalisedPointwise, OtherWeight, Vector};
    let net = Supernet::new(&custom(), 10, 1).unwrap();
    let kind = |name: &str| net.parameters().iter().find(|p| p.name == name).unwrap_or_else(|| panic!("{name}")).kind;
    let expected: [(&str, ParameterKind); 7] = [
        ("stages.0.0.conv_exp.weight", OtherWeight),
        ("stages.0.0.bn1.weight", Vector),
        ("stages.0.0.conv_pwl.weight", NormalisedPointwise),
        ("stages.1.0.conv1.weight", NormalisedPointwise),
        ("stages.1.0.conv2.weight", Depthwise),
        ("stages.1.0.se.conv_reduce.weight", OtherWeight),
        ("stages.1.0.se.conv_reduce.bias", Vector),
    ];
    for (name, expected) in expected {
        assert_eq!(kind(name), expected, "{name}");
    }
}

/// The same between bottlenecks, with elastic widths: some subnets need a projection that the largest lacks.
fn custom_resnet() -> SearchSpace {
    let mut space = resnet();
    // At the largest width the first block of the stage keeps its input's shape.
    let same = space.stages[0].channels;
    space.stages.insert(1, space.stages[0].clone());
    (space.stages[1].channels, space.stages[1].stride, space.stages[1].block) =
        (same, 1, custom().stages[1].block.clone());
    space
}

fn images(batch: usize, size: usize, seed: u64) -> Tensor {
    let mut rng = generator(seed, Stream::Builtin, &[]);
    let values: Vec<f32> = (0..batch * size * size * 3).map(|_| rng.random_range(-2.0f32..2.0)).collect();
    Tensor::from_vec(values, (batch, size, size, 3), &Device::Cpu).unwrap()
}

fn sample(space: &SearchSpace, position: u64) -> Subnet {
    space.sample(&mut generator(4, Stream::Sampling, &[position]))
}

/// A network whose transforms and batch norms are not at their initial values.
fn disturbed(net: &Supernet) {
    let mut rng = generator(8, Stream::Weights, &[]);
    for parameter in net.parameters() {
        let count = parameter.var.elem_count();
        let noise: Vec<f32> = (0..count).map(|_| rng.random_range(-0.2f32..0.2)).collect();
        let noise = Tensor::from_vec(noise, parameter.var.shape(), &Device::Cpu).unwrap();
        let noise = noise.to_dtype(parameter.var.dtype()).unwrap().to_device(parameter.var.device()).unwrap();
        parameter.var.set(&(parameter.var.as_detached_tensor() + noise).unwrap()).unwrap();
    }
}

fn exact(values: &Tensor) -> Tensor {
    values.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (exact(a), exact(b));
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

#[test]
fn fused_network_equals_the_f64_composite_in_value_and_gradient() {
    equals_exact(&Device::Cpu);
}

/// `cargo test --release -p ofa-supernet --features cuda --test network -- --ignored gpu`; with `metal` on a Mac.
#[test]
#[ignore = "needs a GPU"]
fn network_on_a_gpu_equals_the_f64_composite_in_value_and_gradient() {
    let device = if cfg!(feature = "metal") { Device::new_metal(0) } else { Device::new_cuda(0) };
    equals_exact(&device.unwrap());
}

fn equals_exact(device: &Device) {
    for space in [space(), proxyless(), resnet(), custom(), attentive(), custom_resnet()] {
        space_equals_exact(&space, device);
    }
}

fn space_equals_exact(space: &SearchSpace, device: &Device) {
    let fused = Supernet::on_device(space, 7, 1, DType::F32, device).unwrap();
    let exact = Supernet::on_device(space, 7, 1, DType::F64, &Device::Cpu).unwrap();
    disturbed(&fused);
    exact.load_state(&fused.state().unwrap()).unwrap();
    for (position, size) in [(0, 16), (1, 24), (2, 19), (3, 21)] {
        let subnet = match position {
            0 => space.largest(),
            1 => space.smallest(),
            _ => sample(space, position),
        };
        let x = images(3, size, position);
        let run = |net: &Supernet| {
            let mut rng = generator(1, Stream::Dropout, &[]);
            let x = x.to_device(net.device()).unwrap();
            let mut tape = Tape::default();
            let mode = Mode::Train { dropout: 0.2, rng: &mut rng, first: 0, drop_path: None, tape: &mut tape };
            let logits = net.forward(&x, &subnet, mode).unwrap();
            let mut gradients = Gradients::none(net.parameters().len());
            tape.backward((&logits * 2.0).unwrap(), &mut gradients).unwrap();
            (logits, gradients)
        };
        let ((a, fused_gradients), (b, exact_gradients)) = (run(&fused), run(&exact));
        assert!(largest_difference(&a, &b) < 2e-3, "{subnet}: {}", largest_difference(&a, &b));
        let both = fused_gradients.tensors().iter().zip(exact_gradients.tensors());
        for (f, both) in fused.parameters().iter().zip(both) {
            match both {
                (Some(g), Some(h)) => {
                    let norm = h.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
                    let difference = (self::exact(g) - h).unwrap();
                    let difference = difference.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
                    assert!(difference <= 1e-3 * norm.max(1e-2), "{subnet} {}: {difference} of {norm}", f.name);
                }
                (None, None) => {}
                _ => panic!("{}: only one network has a gradient", f.name),
            }
        }
        // Running statistics moved alike.
        let (f, e) = (fused.running_statistics(&subnet).unwrap(), exact.running_statistics(&subnet).unwrap());
        for (f, e) in f.layers.iter().zip(&e.layers) {
            let (fm, fv, em, ev) = (&f.mean, &f.variance, &e.mean, &e.variance);
            for (f, e) in fm.iter().chain(fv).zip(em.iter().chain(ev)) {
                assert!((f - e).abs() <= 1e-3 * e.abs().max(1.0), "{f} {e}");
            }
        }
    }
}

#[test]
fn every_parameter_of_the_largest_subnet_gets_a_gradient() {
    for space in [space(), resnet(), custom()] {
        gradients_everywhere(&space);
    }
}

fn gradients_everywhere(space: &SearchSpace) {
    let net = Supernet::new(space, 5, 1).unwrap();
    let mut rng = generator(1, Stream::Dropout, &[]);
    let mut narrow = Subnet { resolution: space.resolutions[0], ..space.largest() };
    narrow.stages.iter_mut().flatten().for_each(|block| (block.kernel, block.expand) = (3, space.expand_ratios[0]));
    let mut gradients = Gradients::none(net.parameters().len());
    for subnet in [space.largest(), narrow] {
        let mut tape = Tape::default();
        let mode = Mode::Train { dropout: 0.0, rng: &mut rng, first: 0, drop_path: None, tape: &mut tape };
        let logits = net.forward(&images(2, 16, 1), &subnet, mode).unwrap();
        tape.backward((logits * 2.0).unwrap(), &mut gradients).unwrap();
    }
    for (parameter, gradient) in net.parameters().iter().zip(gradients.tensors()) {
        let gradient = gradient.as_ref().unwrap_or_else(|| panic!("{} has no gradient", parameter.name));
        assert_eq!(gradient.dims(), parameter.var.dims());
        assert!(gradient.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap() > 0.0, "{}", parameter.name);
    }
}

#[test]
fn sorting_channels_keeps_the_largest_function() {
    for space in [space(), attentive(), custom(), custom_resnet()] {
        sorting_keeps_the_largest_function(&space);
    }
}

#[test]
fn channels_that_no_stage_has_trained_alone_are_sorted_before_every_width_stage() {
    // 64, 48 and 32 middle channels have 16, 16 and 8 reduced ones: before stage 2 no fewer than 16 are trained.
    let net = Supernet::new(&custom(), 5, 3).unwrap();
    net.sort_channels(2).unwrap();
    let state = net.state().unwrap();
    let excite = &state["stages.1.0.se.conv_expand.weight"];
    assert_eq!(excite.dims(), [64, 16, 1, 1]);
    let read: Vec<f32> = excite.abs().unwrap().sum(0).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    assert!(read.windows(2).all(|pair| pair[0] + 1e-4 > pair[1]), "{read:?}");
}

fn sorting_keeps_the_largest_function(space: &SearchSpace) {
    let net = Supernet::new(space, 5, 3).unwrap();
    disturbed(&net);
    let x = images(4, 24, 2);
    let logits = |net: &Supernet, subnet: &Subnet| net.forward(&x, subnet, Mode::BatchStatistics).unwrap();
    let running = |net: &Supernet| {
        let statistics = net.running_statistics(&space.largest()).unwrap();
        net.forward(&x, &space.largest(), Mode::Evaluate(&statistics)).unwrap()
    };
    let mut rng = generator(1, Stream::Dropout, &[]);
    let mode = Mode::Train { dropout: 0.0, rng: &mut rng, first: 0, drop_path: None, tape: &mut Tape::default() };
    net.forward(&x, &space.largest(), mode).unwrap();
    let (largest, smallest) = (logits(&net, &space.largest()), logits(&net, &space.smallest()));
    let evaluated = running(&net);
    for stage in 1..space.expand_ratios.len() {
        net.sort_channels(stage).unwrap();
        assert!(largest_difference(&largest, &logits(&net, &space.largest())) < 1e-3);
        // Running statistics follow their channels.
        assert!(
            largest_difference(&evaluated, &running(&net))
                < 1e-3 * (1.0 + largest_difference(&evaluated, &(&evaluated * 0.0).unwrap()))
        );
    }
    assert!(largest_difference(&smallest, &logits(&net, &space.smallest())) > 1e-3, "the order did not change");
}

/// Sums of a tensor's leading `count` channels along `dim`, over all that there are.
fn leading_share(tensor: &Tensor, dim: usize, count: usize) -> f64 {
    let sum =
        |t: &Tensor| t.abs().unwrap().sum_all().unwrap().to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap();
    sum(&tensor.narrow(dim, 0, count).unwrap()) / sum(tensor)
}

#[test]
fn sorting_a_resnet_keeps_the_largest_function_and_puts_what_is_read_most_in_front() {
    let space = resnet();
    let net = Supernet::new(&space, 5, 3).unwrap();
    disturbed(&net);
    let x = images(4, 24, 2);
    let logits = |subnet: &Subnet| net.forward(&x, subnet, Mode::BatchStatistics).unwrap();
    let running = |subnet: &Subnet| {
        let statistics = net.running_statistics(subnet).unwrap();
        net.forward(&x, subnet, Mode::Evaluate(&statistics)).unwrap()
    };
    let mut rng = generator(1, Stream::Dropout, &[]);
    let mode = Mode::Train { dropout: 0.0, rng: &mut rng, first: 0, drop_path: None, tape: &mut Tape::default() };
    net.forward(&x, &space.largest(), mode).unwrap();
    let (largest, evaluated) = (logits(&space.largest()), running(&space.largest()));
    let share = || {
        let state = net.state().unwrap();
        [
            leading_share(&state["stages.1.1.conv3.weight"], 1, 16),
            leading_share(&state["stages.1.1.conv2.weight"], 1, 16),
            leading_share(&state["stages.1.0.conv1.weight"], 1, 16),
            leading_share(&state["stages.1.1.conv1.weight"], 1, 32),
            leading_share(&Tensor::cat(&[&state["stem.1.weight"], &state["stem.2.weight"]], 0).unwrap(), 1, 4),
            leading_share(&state["stages.0.0.shortcut.weight"], 1, 8),
        ]
    };
    let before = share();
    let outside = logits(&Subnet { widths: space.smallest().widths, ..space.largest() });
    for stage in [1, 2] {
        if stage < space.expand_ratios.len() {
            net.sort_channels(stage).unwrap();
        }
        net.sort_outer_channels(stage).unwrap();
        assert!(largest_difference(&largest, &logits(&space.largest())) < 1e-3);
        assert!(largest_difference(&evaluated, &running(&space.largest())) < 1e-3);
    }
    for (index, (before, after)) in before.iter().zip(share()).enumerate() {
        assert!(after > *before, "{index}: {after} after {before}");
    }
    let narrow = logits(&Subnet { widths: space.smallest().widths, ..space.largest() });
    assert!(largest_difference(&outside, &narrow) > 1e-3, "the order did not change");
}

#[test]
fn recalibrated_statistics_of_one_batch_reproduce_batch_mode() {
    let space = space();
    let net = Supernet::new(&space, 5, 3).unwrap();
    let subnet = sample(&space, 9);
    let x = images(6, 20, 2);
    let mut collector = StatisticsCollector::default();
    let batch = net.forward(&x, &subnet, Mode::Collect(&mut collector)).unwrap();
    let statistics = collector.finish();
    let given = net.forward(&x, &subnet, Mode::Evaluate(&statistics)).unwrap();
    assert!(largest_difference(&batch, &given) < 1e-4);
    let other = net.forward(&x, &space.largest(), Mode::Evaluate(&statistics));
    assert!(other.is_err_and(|e| e.to_string().contains("do not belong")));
}

fn bits(logits: &Tensor) -> Vec<u32> {
    logits.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn subnets_together_give_the_bits_of_one_by_one() {
    for space in [space(), proxyless(), resnet(), custom(), attentive()] {
        let net = Supernet::new(&space, 7, 1).unwrap();
        disturbed(&net);
        let (images, others) = (images(3, 24, 1), images(4, 24, 2));
        // Neighbours that begin alike, the same one twice, and in an order in which little is common.
        let mut subnets: Vec<Subnet> = (0..12).map(|position| sample(&space, position)).collect();
        subnets.sort();
        subnets.insert(3, subnets[3].clone());
        subnets.extend([space.largest(), space.smallest(), space.largest()]);
        let mut together: Vec<_> = subnets.iter().map(|_| StatisticsCollector::default()).collect();
        let mut statistics: Vec<Statistics> = Vec::new();
        for images in [&images, &others] {
            net.forward_each(images, &subnets, together.iter_mut().map(Mode::Collect).collect()).unwrap();
        }
        for (subnet, together) in subnets.iter().zip(together) {
            let mut own = StatisticsCollector::default();
            for images in [&images, &others] {
                net.forward(images, subnet, Mode::Collect(&mut own)).unwrap();
            }
            let together = together.finish();
            assert_eq!(together, own.finish(), "{subnet}");
            statistics.push(together);
        }
        // Statistics that are another's where the layers are the same.
        let foreign = statistics[0].layers[0].mean.iter().map(|mean| mean + 0.1).collect();
        statistics[4].layers[0].mean = foreign;
        let modes = statistics.iter().map(Mode::Evaluate).collect();
        let all = net.forward_each(&images, &subnets, modes).unwrap();
        for ((subnet, logits), statistics) in subnets.iter().zip(&all).zip(&statistics) {
            let own = net.forward(&images, subnet, Mode::Evaluate(statistics)).unwrap();
            assert_eq!(bits(logits), bits(&own), "{subnet}");
        }
        // Modes that differ.
        let mut collector = StatisticsCollector::default();
        let pair = [subnets[0].clone(), subnets[0].clone(), subnets[0].clone()];
        let modes = vec![Mode::BatchStatistics, Mode::Evaluate(&statistics[0]), Mode::Collect(&mut collector)];
        let all = net.forward_each(&images, &pair, modes).unwrap();
        let batch = net.forward(&images, &pair[0], Mode::BatchStatistics).unwrap();
        let given = net.forward(&images, &pair[0], Mode::Evaluate(&statistics[0])).unwrap();
        assert_eq!(all.iter().map(bits).collect::<Vec<_>>(), [&batch, &given, &batch].map(bits));
        assert!(net.forward_each(&images, &pair, vec![Mode::BatchStatistics]).is_err());
    }
}

#[test]
fn accuracies_together_are_those_of_one_by_one_and_can_be_stopped() {
    let space = space();
    let options = DataOptions { validation: Some(20), builtin_train: 60, builtin_test: 10, ..DataOptions::default() };
    let data = Dataset::open("builtin", &options).unwrap();
    let net = Supernet::new(&space, 10, 1).unwrap();
    let recalibration = EvaluationSet::for_recalibration(&data, 20, 8, 1).unwrap();
    let validation = EvaluationSet::of_split(&data, &data.validation, None, 8, 1).unwrap();
    let subnets: Vec<Subnet> = (0..9).map(|position| sample(&space, position)).collect();
    assert!(subnets.iter().any(|subnet| subnet.resolution != subnets[0].resolution));
    let mut batches = 0;
    let mut count = || {
        batches += 1;
        ControlFlow::Continue(())
    };
    let together = accuracies_on(&net, &subnets, &recalibration, &validation, &mut count).unwrap();
    for (subnet, together) in subnets.iter().zip(together) {
        let statistics = recalibrate_on(&net, subnet, &recalibration).unwrap();
        assert_eq!(together, accuracy_on(&net, subnet, &statistics, &validation).unwrap(), "{subnet}");
    }
    let mut left = batches - 1;
    let mut stop = || {
        left -= 1;
        if left < 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let stopped = accuracies_on(&net, &subnets, &recalibration, &validation, &mut stop);
    assert!(matches!(stopped, Err(ofa_supernet::Error::Interrupted)));
    assert!(accuracies_on(&net, &[], &recalibration, &validation, &mut stop).unwrap().is_empty());
}

#[test]
fn state_round_trips_and_bad_state_changes_nothing() {
    let space = space();
    let (net, other) = (Supernet::new(&space, 5, 3).unwrap(), Supernet::new(&space, 5, 4).unwrap());
    let state = net.state().unwrap();
    let mut broken = state.clone();
    broken.remove("stages.1.0.project.weight");
    let before = other.state().unwrap();
    assert!(other.load_state(&broken).unwrap_err().to_string().contains("stages.1.0.project.weight"));
    let mut poisoned = state.clone();
    poisoned.insert("classifier.bias".into(), Tensor::full(f32::NAN, 5, &Device::Cpu).unwrap());
    assert!(other.load_state(&poisoned).unwrap_err().to_string().contains("NaN"));
    for (name, tensor) in other.state().unwrap() {
        assert_eq!(largest_difference(&tensor, &before[&name]), 0.0, "{name}");
    }
    other.load_state(&state).unwrap();
    for (name, tensor) in other.state().unwrap() {
        assert_eq!(largest_difference(&tensor, &state[&name]), 0.0, "{name}");
    }
}
