//! Images per second of whole steps, for the largest CIFAR network and an ImageNet network: `cargo bench -p
//! ofa-supernet --bench steps`. `ofa speed` measures any other space, resolution and batch.

use candle_core::{Device, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ofa_supernet::network::Mode;
use ofa_supernet::seed::{Stream, generator};
use ofa_supernet::train::optimizer::Optimizer;
use ofa_supernet::train::step::{StepInput, train_step};
use ofa_supernet::train::{StageConfig, TrainConfig};
use ofa_supernet::{Ranks, SearchSpace, Supernet};
use rand::Rng;

fn steps(c: &mut Criterion) {
    for (name, resolution, batch) in [("cifar-mbv3", 32, 64), ("mbv3-w1.0", 128, 32)] {
        let mut space = SearchSpace::named(name).expect("a preset");
        space.resolutions = vec![resolution];
        let shape = (batch, resolution, resolution, 3);
        let mut rng = generator(0, Stream::Builtin, &[]);
        let values = (0..batch * resolution * resolution * 3).map(|_| rng.random_range(-1.0f32..1.0)).collect();
        let images = Tensor::from_vec(values, shape, &Device::Cpu).expect("images");
        let labels: Vec<u32> = (0..batch as u32).map(|i| i % 10).collect();
        let net = Supernet::new(&space, 10, 0).expect("a network");
        let teacher = Supernet::new(&space, 10, 1).expect("a network");
        let config = TrainConfig::preset("progressive", &space).expect("a preset");
        let (first, last) = (&config.stages[0], &config.stages[config.stages.len() - 1]);
        let elastic = StageConfig { subnets_per_step: 4, kd_ratio: 1.0, ..last.clone() };
        let mut optimizer = Optimizer::sgd(config.momentum, config.weight_decay, net.parameters().len());
        let mut group = c.benchmark_group(format!("{name} {resolution} px"));
        group.sample_size(10).throughput(Throughput::Elements(batch as u64));
        for (kind, stage) in [("step of the largest", first), ("teacher and 4 subnets", &elastic)] {
            let choices = stage.choices(&space);
            let mut step = 0;
            group.bench_function(kind, |b| {
                b.iter(|| {
                    let (learning_rate, ramp) = (0.001, 1.0);
                    let (config, choices, images, labels) = (&config, &choices, &images, &labels[..]);
                    let ranks = &Ranks::alone();
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
                    step += 1;
                    train_step(&net, Some(&teacher), &mut optimizer, &input).expect("a step")
                });
            });
        }
        let statistics = net.running_statistics(&space.largest()).expect("statistics");
        group.bench_function("evaluation", |b| {
            b.iter(|| net.forward(&images, &space.largest(), Mode::Evaluate(&statistics)).expect("logits"));
        });
        group.finish();
    }
}

criterion_group!(benches, steps);
criterion_main!(benches);
