use super::student::{Pass, Student};
use super::*;
use crate::model::NumberType;
use crate::quantise::{Engine, Options, QuantisedLayer, QuantisedNetwork, quantise, reference};
use crate::runtime::random_weights;
use ofa_supernet::data::{DataOptions, Normalisation};
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::space::{NetworkSpec, PRESETS, preset};
use rand::Rng;
use std::collections::BTreeMap;

const IMAGES: usize = 4;

fn images(spec: &NetworkSpec, count: usize) -> Vec<f32> {
    let mut rng = generator(9, Stream::Builtin, &[]);
    (0..count * spec.resolution * spec.resolution * 3).map(|_| rng.random_range(-2.0..2.0)).collect()
}

/// The largest networks of all small spaces.
fn networks() -> Vec<(ModelConfig, Weights)> {
    let tiny = PRESETS.iter().filter(|name| name.contains("tiny"));
    let network = |name: &&str| {
        let space = preset(name).unwrap();
        let subnet = space.largest();
        let spec = space.network(&subnet, 5).unwrap();
        let weights = random_weights(&spec, 3).unwrap();
        let labels = (0..5).map(|class| class.to_string()).collect();
        let config = ModelConfig::new(name, &subnet, spec, labels, Normalisation::IMAGENET, NumberType::F32);
        (config, weights)
    };
    tiny.map(network).collect()
}

fn quantised(config: &ModelConfig, weights: &Weights, engine: Engine) -> Quantised {
    let names = ["classifier", "fc"].map(String::from).into_iter();
    let keep_f32 = names.filter(|name| weights.contains_key(&format!("{name}.weight"))).collect();
    let options = Options { engine, weight_bits: 7, keep_f32 };
    let images = images(&config.network, 32);
    quantise(config, weights, &images, &options, &mut |_, _| ControlFlow::Continue(())).unwrap()
}

#[test]
fn the_student_computes_what_its_integers_do() {
    for (config, weights) in networks() {
        for engine in [Engine::Ofa, Engine::OnnxRuntime, Engine::TensorRt] {
            let start = quantised(&config, &weights, engine);
            let folded = Folded::new(&config.network, &weights);
            let student = Student::new(&folded, &start.network, 7);
            let keep_f32 = &start.config.quantisation.as_ref().unwrap().keep_f32;
            let network = student.quantised(&start.network, keep_f32);
            network.check().unwrap();
            // Layers that are kept by name lose nothing.
            assert_eq!(keep_f32.len(), 1);
            for name in keep_f32 {
                let index = folded.names.iter().position(|other| other == name).unwrap();
                let (exact, _) = folded.layers[index].as_ref().unwrap();
                for network in [&network, &start.network] {
                    let QuantisedLayer::F32 { weight, .. } = &network.layers[name] else { panic!("{name} is rounded") };
                    assert!(weight == exact, "{name}");
                }
            }
            assert_eq!(network.values.keys().collect::<Vec<_>>(), start.network.values.keys().collect::<Vec<_>>());
            let images = images(&config.network, IMAGES);
            let expected = reference::run(&network, &images, IMAGES).unwrap();
            let pass = student.forward(images, IMAGES).unwrap();
            let power: f32 = expected.iter().map(|logit| logit * logit).sum();
            let noise: f32 = expected.iter().zip(pass.logits()).map(|(a, b)| (a - b) * (a - b)).sum();
            // Sums are rounded differently, which now and then moves a value to the next integer.
            assert!(noise < 1e-3 * power, "{} {engine:?}: {noise} of {power}", config.space);
        }
    }
}

/// A network without any rounding, for which gradients are exact.
fn exact(folded: &Folded, spec: &NetworkSpec) -> QuantisedNetwork {
    let layers = folded.names.iter().zip(&folded.layers).filter_map(|(name, layer)| {
        let (weight, bias) = layer.clone()?;
        Some((name.clone(), QuantisedLayer::F32 { weight, bias }))
    });
    QuantisedNetwork { spec: spec.clone(), layers: layers.collect(), values: BTreeMap::new() }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    for (config, weights) in networks() {
        let folded = Folded::new(&config.network, &weights);
        let start = exact(&folded, &config.network);
        let mut student = Student::new(&folded, &start, 8);
        let images = images(&config.network, IMAGES);
        let weight_of = |logit: usize| ((logit * 7 + 3) % 11) as f64 / 11.0 - 0.5;
        let value = |pass: &Pass| -> f64 {
            pass.logits().iter().enumerate().map(|(logit, value)| weight_of(logit) * f64::from(*value)).sum()
        };
        let pass = student.forward(images.clone(), IMAGES).unwrap();
        let at_logits = (0..pass.logits().len()).map(|logit| weight_of(logit) as f32).collect();
        let largest = pass.logits().iter().fold(0f64, |largest, logit| largest.max(f64::from(logit.abs())));
        student.backward(pass, at_logits);
        for (name, number) in student.parameters().iter().map(|(name, numbers)| (name.clone(), numbers.len())) {
            let gradient = student.parameter(&name).gradients.clone();
            assert_eq!(gradient.len(), number);
            let norm = gradient.iter().map(|g| f64::from(g * g)).sum::<f64>().sqrt();
            // A step along the gradient, small enough for the kinks of activations.
            let step = 3e-4 * largest / norm;
            let mut at = |sign: f64| {
                let before = student.parameter(&name).values.clone();
                let moved = before.iter().zip(&gradient).map(|(v, g)| v + (sign * step / norm) as f32 * g);
                student.parameter(&name).values = moved.collect();
                let value = value(&student.forward(images.clone(), IMAGES).unwrap());
                student.parameter(&name).values = before;
                value
            };
            let numeric = (at(1.0) - at(-1.0)) / (2.0 * step);
            assert!((numeric - norm).abs() < 0.03 * norm, "{}, {name}: {norm} {numeric}", config.space);
        }
    }
}

fn builtin() -> Dataset {
    let options = DataOptions { builtin_train: 200, builtin_test: 20, ..DataOptions::default() };
    Dataset { normalisation: Normalisation::IMAGENET, ..Dataset::open("builtin", &options).unwrap() }
}

#[test]
fn fine_tuning_brings_the_integers_nearer_to_the_f32_network() {
    let data = builtin();
    let (config, weights) = networks().into_iter().find(|(config, _)| config.space == "tiny").unwrap();
    let start = quantised(&config, &weights, Engine::Ofa);
    let calibration = images(&config.network, 32);
    let options = FinetuneOptions {
        epochs: 8.0,
        learning_rate: FinetuneOptions::LEARNING_RATE,
        augmentation: Augmentation::default(),
        seed: 1,
    };
    let mut steps = Vec::new();
    let run = |options: &FinetuneOptions, observer: &mut dyn FnMut(FinetuneProgress) -> ControlFlow<()>| {
        finetune(&start, &weights, &calibration, &data, options, observer)
    };
    let tuned = run(&options, &mut |at| {
        steps.push((at.step, at.steps));
        ControlFlow::Continue(())
    });
    let tuned = tuned.unwrap();
    // 160 training images in batches of 32.
    assert_eq!((steps.len(), steps.last()), (40, Some(&(40, 40))));
    // The error that is told is that of the integers that are returned.
    let size = 3 * config.network.resolution * config.network.resolution;
    let compared = &calibration[..crate::quantise::sensitivity::IMAGES * size];
    let found = error(&Folded::new(&config.network, &weights), &tuned.network, compared).unwrap();
    assert_eq!(tuned.sensitivity, found);
    assert_ne!(tuned.sensitivity.error, start.sensitivity.error);
    let how = tuned.config.quantisation.clone().unwrap();
    assert_eq!((how.finetuned.unwrap().epochs, &how.values), (8.0, &tuned.network.values));
    let before = start.config.quantisation.as_ref().unwrap();
    assert!(how.engine_values.keys().eq(before.engine_values.keys()));
    let batch = data.evaluation_batch(&data.test, &(0..20).collect::<Vec<_>>(), config.network.resolution).unwrap();
    let expected = StaticNetwork::new(&config.network, &weights).unwrap().run(&batch.images, 20).unwrap().to_vec();
    let loss = |network: &QuantisedNetwork| {
        divergence(&reference::run(network, &batch.images, 20).unwrap(), &expected, config.network.classes).0
    };
    let (at_first, at_last) = (loss(&start.network), loss(&tuned.network));
    assert!(at_last < 0.9 * at_first, "{at_first} {at_last}");
    // Equal seeds give equal integers, others do not.
    let mut go_on = |_| ControlFlow::Continue(());
    assert_eq!(run(&options, &mut go_on).unwrap().network, tuned.network);
    assert_ne!(run(&FinetuneOptions { seed: 2, ..options.clone() }, &mut go_on).unwrap().network, tuned.network);
    let stopped = run(&options, &mut |_| ControlFlow::Break(())).unwrap_err();
    assert!(stopped.is_interrupted());
    let message = run(&FinetuneOptions { epochs: 0.0, ..options }, &mut go_on).unwrap_err().to_string();
    assert!(message.contains("epochs 0"), "{message}");
}

#[test]
fn the_divergence_has_its_gradient() {
    let (logits, teacher) = ([0.3f32, -1.2, 2.0, 0.1, 0.0, 1.0], [1.0f32, 0.0, 0.5, -2.0, 0.3, 0.2]);
    let (loss, gradient) = divergence(&logits, &teacher, 3);
    assert!(loss > 0.0 && divergence(&teacher, &teacher, 3).0.abs() < 1e-12);
    for place in 0..logits.len() {
        let at = |step: f32| {
            let mut moved = logits;
            moved[place] += step;
            divergence(&moved, &teacher, 3).0
        };
        let numeric = (at(1e-2) - at(-1e-2)) / 2e-2;
        assert!((numeric - f64::from(gradient[place])).abs() < 1e-4, "{place}: {numeric} {gradient:?}");
    }
}
